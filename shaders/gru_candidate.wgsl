// gru_candidate: second half of a timestep of a GRU that is not linear before reset: candidate and new h.
//
//   n = candidate_g(x_gates[b, u].z + Σ_k m[b, k] · w_hn[k, u])        h = (1 − z)·n + z·h_prev
//
// One vec4 per four units u; m is r·h and z lies in `state`, both from gru_reset.
//
// Dispatch   x: ceil(columns / WG_X) of a part of a range of the weights, y: ceil(num_active / rows of a workgroup), z: directions
// Bindings   0 the step, unless it comes as immediates · 1 x_gates read [rows, H] · 2 w_hn read [D, hidden_stride, columns]
//            3 m read [D, B, hidden_stride / 4] · 4 h_prev read · 5 h_next read_write [D, B, h_stride / 4]
//            6 state read_write, as in gru_reset, in vec4 · 7 y0 · 8 y1 read_write, in vec4
// Overrides  WG_X, WG_Y: product ≤ 256; those of the functions; ROWS is text, see src/kernels/rows.rs
// Workgroup  none      Barriers   none
// Sum        the segments of m in order, then added to x_gates
// Masked     ranks at or past num_active: nothing is read or written
// Padding    units from hidden_size to h_stride are written as zero
// Reference  src/reference/cell.rs      Accuracy  docs/numerics.md, "one step"

override WG_X: u32;
override WG_Y: u32;

@group(0) @binding(1) var<storage, read> x_gates: array<vec4f>;
@group(0) @binding(2) var<storage, read> w_hn: array<Weight>;
@group(0) @binding(3) var<storage, read> m: array<vec4f>;
@group(0) @binding(4) var<storage, read> h_prev: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> h_next: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> state: array<vec4f>;
@group(0) @binding(7) var<storage, read_write> y0: array<vec4f>;
@group(0) @binding(8) var<storage, read_write> y1: array<vec4f>;

fn candidate(direction: u32, first: u32, unit: u32, recurrent: f32) -> f32 {
    var n = 0.0;
    if unit < timestep.hidden_size {
        n = candidate_g(direction, x_gates[first + unit].z + recurrent);
    }
    return n;
}

fn finish(direction: u32, rank: u32, p4: u32, sum: vec4f) {
    let at = step_of(direction);
    if rank >= at.num_active {
        return;
    }
    let first = at.gates_first + rank * timestep.hidden_size;
    let n = vec4f(
        candidate(direction, first, 4u * p4, sum.x),
        candidate(direction, first, 4u * p4 + 1u, sum.y),
        candidate(direction, first, 4u * p4 + 2u, sum.z),
        candidate(direction, first, 4u * p4 + 3u, sum.w),
    );
    // hidden_stride and h_stride are equal: a GRU has no projection.
    let slot = (direction * timestep.batch_size + rank) * (timestep.h_stride / 4u) + p4;
    let z = state[slot];
    emit4(direction, at, rank, p4, only_units(p4, fma(z, h_prev[slot], (vec4f(1.0) - z) * n)));
}

@compute @workgroup_size(WG_X, WG_Y)
fn gru_candidate(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u) {
    let p4 = timestep.column_first + tile_column(group, local);
    let row = tile_row(group, local);
    let direction = group.z;
    let num_active = step_of(direction).num_active;
    if row >= num_active || leaves(p4, timestep.column_end) {
        return;
    }
    let k4 = timestep.hidden_stride / 4u;
    let sum = dot_m(
        rows_zero(),
        direction * timestep.batch_size * k4,
        row,
        num_active - 1u,
        k4,
        k4,
        direction * timestep.hidden_stride * timestep.weight_columns + readable(p4, timestep.column_end) - timestep.weight_first,
        timestep.weight_columns,
    );
    if finishes(p4, timestep.column_end) {
        finish_rows(direction, row, p4, sum);
    }
}
