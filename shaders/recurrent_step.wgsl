// recurrent_step: one timestep of one layer, all directions; recurrent matmul of all gates and cell update fused.
//
//   recurrent[b, j] = Σ_k h_prev[b, k] · w_hh[k, j]        one vec4 per unit j: gates i f g o, or r z n
//   c, m = advance(input[b, j], recurrent[b, j], c_prev[b, j])
//
// The equations are those of `advance`, shaders/lib/cell_lstm.wgsl and shaders/lib/cell_gru.wgsl. Without projection m is
// the new h; with projection it goes to projection_step. The two differ in `emit`, shaders/lib/emit_h.wgsl and
// shaders/lib/emit_m.wgsl.
//
// Dispatch   x: ceil(columns / WG_X) of a part of a range of the weights, y: ceil(num_active / rows of a workgroup), z: directions
// Bindings   0 the step, unless it comes as immediates · 1 x_gates read [rows, H], or x · 2 w_hh read [D, K, columns]
//            3 h_prev read [D, B, h_stride / 4] · 4 next read_write [D, B, stride] (h, or m with projection)
//            5 state read_write c [D, B, hidden_stride], h_n [D, B, h_stride], last [D, B, h_stride]; no c in a GRU
//            6 y0 · 7 y1 read_write [rows, y_stride], forward and reverse · 8 peepholes read [D, H],
//            or input_weights (shaders/lib/gates_narrow.wgsl), where there are any
// Overrides  WG_X, WG_Y: product ≤ 256; ROWS, SLICES and the tile's functions are text, see src/kernels/rows.rs
// Workgroup  ROWS · SLICES · 256 bytes if SLICES > 1      Barriers   two per SLICES segments then
// Sum        the segments of h in order, then added to x_gates
// Masked     ranks at or past num_active: nothing is read or written, the state stays as it was
// Padding    units from hidden_size to hidden_stride are written as zero, since the next matmul reads them
// Reference  src/reference/cell.rs      Accuracy  docs/numerics.md, "one step"

override WG_X: u32;
override WG_Y: u32;

@group(0) @binding(2) var<storage, read> w_hh: array<Weight>;
@group(0) @binding(3) var<storage, read> h_prev: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> next: array<f32>;
@group(0) @binding(5) var<storage, read_write> state: array<f32>;
@group(0) @binding(6) var<storage, read_write> y0: array<f32>;
@group(0) @binding(7) var<storage, read_write> y1: array<f32>;

fn finish(direction: u32, rank: u32, j: u32, recurrent: vec4f) {
    let at = step_of(direction);
    if rank >= at.num_active {
        return;
    }
    let y_row = (at.y_row + rank) * timestep.y_stride;
    emit(direction, at, rank, j, y_row, update(direction, at, rank, j, y_row, recurrent));
}

@compute @workgroup_size(WG_X, WG_Y)
fn recurrent_step(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u) {
    let j = timestep.column_first + tile_column(group, local);
    let row = tile_row(group, local);
    let direction = group.z;
    let num_active = step_of(direction).num_active;
    if row >= num_active || leaves(j, timestep.column_end) {
        return;
    }
    let k4 = timestep.h_stride / 4u;
    // Padding reads the last unit's weights; its sum is not used.
    let column = readable(j, min(timestep.hidden_size, timestep.column_end));
    let sum = dot_h(
        rows_zero(),
        direction * timestep.batch_size * k4,
        row,
        num_active - 1u,
        k4,
        k4,
        direction * timestep.h_stride * timestep.weight_columns + column - timestep.weight_first,
        timestep.weight_columns,
    );
    if finishes(j, timestep.column_end) {
        finish_rows(direction, row, j, sum);
    }
}
