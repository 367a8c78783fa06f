// gate_sums: first half of a timestep of an LSTM with layer normalisation: the sums of all gates.
//
//   sums[b, j] = x_gates[b, j] + Σ_k h_prev[b, k] · w_hh[k, j]        one vec4 per unit j: gates i f g o
//
// Dispatch   x: ceil(columns / WG_X) of a part of a range of the weights, y: ceil(num_active / rows of a workgroup), z: directions
// Bindings   0 the step, unless it comes as immediates · 1 x_gates read [rows, H] · 2 w_hh read [D, K, columns]
//            3 h_prev read [D, B, h_stride / 4] · 4 sums read_write [D, B, H]
// Overrides  WG_X, WG_Y: product ≤ 256; ROWS, SLICES and the tile's functions are text, see src/kernels/rows.rs
// Workgroup  ROWS · SLICES · 256 bytes if SLICES > 1      Barriers   two per SLICES segments then
// Sum        the segments of h in order, then added to x_gates
// Masked     ranks at or past num_active: nothing is read or written
// Reference  src/reference/cell.rs      Accuracy  docs/numerics.md, "one step"

override WG_X: u32;
override WG_Y: u32;

@group(0) @binding(1) var<storage, read> x_gates: array<vec4f>;
@group(0) @binding(2) var<storage, read> w_hh: array<Weight>;
@group(0) @binding(3) var<storage, read> h_prev: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> sums: array<vec4f>;

fn finish(direction: u32, rank: u32, j: u32, recurrent: vec4f) {
    let at = step_of(direction);
    if rank < at.num_active {
        let x = x_gates[at.gates_first + rank * timestep.hidden_size + j];
        sums[(direction * timestep.batch_size + rank) * timestep.hidden_size + j] = x + recurrent;
    }
}

@compute @workgroup_size(WG_X, WG_Y)
fn gate_sums(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u) {
    let j = timestep.column_first + tile_column(group, local);
    let row = tile_row(group, local);
    let direction = group.z;
    let num_active = step_of(direction).num_active;
    if row >= num_active || leaves(j, timestep.column_end) {
        return;
    }
    let k4 = timestep.h_stride / 4u;
    let sum = dot_h(
        rows_zero(),
        direction * timestep.batch_size * k4,
        row,
        num_active - 1u,
        k4,
        k4,
        direction * timestep.h_stride * timestep.weight_columns + readable(j, timestep.column_end) - timestep.weight_first,
        timestep.weight_columns,
    );
    if finishes(j, timestep.column_end) {
        finish_rows(direction, row, j, sum);
    }
}
