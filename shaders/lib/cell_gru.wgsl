// advance, of a GRU that is linear before reset: h_prev and gates in, h out.
//
//   r, z = gate_f(x.xy + recurrent.xy)        n = candidate_g(x.z + r·(recurrent.z + b_hn))        b_hn is x.w
//   m = (1 − z)·n + z·h_prev
//
// gate_f and candidate_g are generated for the options (src/kernels/cell.rs). There is no cell state.

fn advance(direction: u32, rank: u32, j: u32, x: vec4f, recurrent: vec4f) -> CellState {
    let slot = (direction * timestep.batch_size + rank) * (timestep.h_stride / 4u) + j / 4u;
    let h = h_prev[slot][j % 4u];
    let r = gate_f(direction, x.x + recurrent.x);
    let z = gate_f(direction, x.y + recurrent.y);
    let n = candidate_g(direction, fma(r, recurrent.z + x.w, x.z));
    return CellState(0.0, fma(z, h, (1.0 - z) * n));
}
