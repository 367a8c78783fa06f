// projection_step: one timestep of a projected layer, all directions: h = w_hr · m.
//
//   h[b, p] = Σ_j m[b, j] · w_hr[j, p]        one vec4 per four outputs p
//
// With a projection bias `with_bias` adds it, shaders/lib/projection_bias.wgsl; otherwise it does nothing,
// shaders/lib/no_projection_bias.wgsl.
//
// Dispatch   x: ceil(columns / WG_X) of a part of a range of the weights, y: ceil(num_active / rows of a workgroup), z: directions
// Bindings   0 the step, unless it comes as immediates · 1 w_hr read [D, hidden_stride, columns]
//            2 m read [D, B, hidden_stride / 4] · 3 h_next read_write [D, B, h_stride / 4]
//            4 state read_write, as in recurrent_step, in vec4 · 5 y0 · 6 y1 read_write, in vec4
//            7 b_hr read [D, h_stride / 4], where there is one
// Overrides  WG_X, WG_Y: product ≤ 256; ROWS, SLICES and the tile's functions are text, see src/kernels/rows.rs
// Workgroup  ROWS · SLICES · 256 bytes if SLICES > 1      Barriers   two per SLICES segments then
// Sum        the segments of m in order
// Masked     ranks at or past num_active: nothing is read or written
// Padding    outputs from P to h_stride are zero because their weights and biases are
// Reference  src/reference/cell.rs      Accuracy  docs/numerics.md, "one step"

override WG_X: u32;
override WG_Y: u32;

@group(0) @binding(1) var<storage, read> w_hr: array<Weight>;
@group(0) @binding(2) var<storage, read> m: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> h_next: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> state: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> y0: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> y1: array<vec4f>;

fn finish(direction: u32, rank: u32, p4: u32, sum: vec4f) {
    let at = step_of(direction);
    if rank < at.num_active {
        emit4(direction, at, rank, p4, with_bias(direction, p4, sum));
    }
}

@compute @workgroup_size(WG_X, WG_Y)
fn projection_step(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u) {
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
