// advance, of an LSTM: gates in, cell state and hidden value out.
//
//   gates = x + recurrent, with peepholes on c_prev        i, f, g = gate_f(i), gate_f(f) or 1 − i, candidate_g(g)
//   c = f·c_prev + i·g, clamped if asked for               m = gate_f(o, with a peephole on c)·output_h(c)
//
// gate_f, candidate_g, output_h, forget and bound_cell are generated for the options (src/kernels/cell.rs); see_before
// and see_after are peepholes.wgsl or no_peepholes.wgsl.

fn advance(direction: u32, rank: u32, j: u32, x: vec4f, recurrent: vec4f) -> CellState {
    let c_prev = load_c(direction, rank, j);
    let gates = see_before(direction, j, x + recurrent, c_prev);
    let i = gate_f(direction, gates.x);
    let f = forget(direction, i, gates.y);
    let c = bound_cell(fma(f, c_prev, i * candidate_g(direction, gates.z)));
    store_c(direction, rank, j, c);
    let o = gate_f(direction, see_after(direction, j, gates.w, c));
    return CellState(c, o * output_h(direction, c));
}
