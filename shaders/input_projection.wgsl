// input_projection: the input's share of all gates, for every valid row of a chunk, of one direction.
//
//   x_gates[r, j] = Σ_k x[r, k] · w_ih[k, j] + bias[j]        one vec4 per column j: the gates i f g o of a unit,
//                                                             r z n and b_hn of a unit, or four units of an RNN
//
// How a row of x is made of a row of x0 and a row of x1 differs in `project`, shaders/lib/planes_concat.wgsl and
// shaders/lib/planes_sum.wgsl.
//
// Dispatch   x: ceil(columns of a part of a range of the weights / WG_X), y: ceil(rows / rows of a workgroup)
// Bindings   0 params uniform · 1 x0 read [rows, x0_k4] · 2 x1 read [rows, x1_k4] · 3 weights read [K, weight_columns]
//            4 bias read [columns] · 5 x_gates read_write [rows, columns]
// Overrides  WG_X, WG_Y: product ≤ 256; ROWS, SLICES and the tile's functions are text, see src/kernels/rows.rs
// Workgroup  ROWS · SLICES · 256 bytes if SLICES > 1      Barriers   two per SLICES segments then
// Sum        x0's segments in order, x1's segments in order, or those of the sums, then the bias
// Masked     rows of ended sequences do not exist: rows are packed, time-major, longest sequence first
// Reference  src/reference/cell.rs      Accuracy  docs/numerics.md, "one step"

override WG_X: u32;
override WG_Y: u32;

struct Params {
    rows: u32,
    columns: u32,
    x0_first: u32,
    x0_k4: u32,
    x1_first: u32,
    x1_k4: u32,
    gates_first: u32,
    x0_stride: u32,
    x1_stride: u32,
    // The columns of this dispatch, the first column of the bound range of weights, and how many it has.
    column_first: u32,
    column_end: u32,
    weight_first: u32,
    weight_columns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x0: array<vec4f>;
@group(0) @binding(2) var<storage, read> x1: array<vec4f>;
@group(0) @binding(3) var<storage, read> weights: array<Weight>;
@group(0) @binding(4) var<storage, read> bias: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> x_gates: array<vec4f>;

fn finish(row: u32, j: u32, sum: vec4f) {
    if row < params.rows {
        x_gates[params.gates_first + row * params.columns + j] = sum + bias[j];
    }
}

@compute @workgroup_size(WG_X, WG_Y)
fn input_projection(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u) {
    let j = params.column_first + tile_column(group, local);
    let row = tile_row(group, local);
    if row >= params.rows || leaves(j, params.column_end) {
        return;
    }
    let sum = project(row, params.rows - 1u, readable(j, params.column_end) - params.weight_first);
    if finishes(j, params.column_end) {
        finish_rows(row, j, sum);
    }
}
