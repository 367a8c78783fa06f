// input_projection: the input's share of all gates, for every valid row of a chunk, of one direction.
//
//   x_gates[r, j] = Σ_k x[r, k] · w_ih[k, j] + bias[j]        one vec4 per column j: the gates i f g o of a unit,
//                                                             r z n and b_hn of a unit, or four units of an RNN
//
// How a row of x is made of a row of x0 and a row of x1 differs in `project`, shaders/lib/planes_concat.wgsl and
// shaders/lib/planes_sum.wgsl.
//
// Dispatch   x: ceil(columns of a part of a range of the weights / WG_X), y: ceil(rows / (ROWS · WG_Y)); one invocation per ROWS rows and column
// Bindings   0 params uniform · 1 x0 read [rows, x0_k4] · 2 x1 read [rows, x1_k4] · 3 weights read [K, weight_columns]
//            4 bias read [columns] · 5 x_gates read_write [rows, columns]
// Overrides  WG_X, WG_Y: product ≤ 256; ROWS is text, see src/kernels/rows.rs
// Workgroup  none      Barriers   none
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
@group(0) @binding(3) var<storage, read> weights: array<vec4f>;
@group(0) @binding(4) var<storage, read> bias: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> x_gates: array<vec4f>;

fn finish(row: u32, j: u32, sum: vec4f) {
    if row < params.rows {
        x_gates[params.gates_first + row * params.columns + j] = sum + bias[j];
    }
}

@compute @workgroup_size(WG_X, WG_Y)
fn input_projection(@builtin(global_invocation_id) id: vec3u) {
    let j = params.column_first + id.x;
    let row = id.y * ROWS;
    if j >= params.column_end || row >= params.rows {
        return;
    }
    finish_rows(row, j, project(row, params.rows - 1u, j - params.weight_first));
}
