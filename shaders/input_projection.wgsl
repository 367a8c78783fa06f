// input_projection: the input's share of all gates, for every valid row of a chunk, of one direction.
//
//   x_gates[r, j] = Σ_k x[r, k] · w_ih[k, j] + bias[j]        one vec4 per unit j: gates i f g o
//
// A row of x is the concatenation of a row of x0 and a row of x1 (the two directions of the layer before);
// x1_k4 is 0 where there is only one.
//
// Dispatch   x: ceil(hidden_size / WG_X), y: ceil(rows / (ROWS · WG_Y)); one invocation per ROWS rows and unit
// Bindings   0 params uniform · 1 x0 read [rows, x0_k4] · 2 x1 read [rows, x1_k4] · 3 weights read [K, H]
//            4 bias read [H] · 5 x_gates read_write [rows, H]
// Overrides  WG_X, WG_Y: product ≤ 256; ROWS is text, see src/kernels/rows.rs
// Workgroup  none      Barriers   none
// Sum        x0's segments in order, x1's segments in order, then the bias
// Masked     rows of ended sequences do not exist: rows are packed, time-major, longest sequence first
// Reference  src/reference/cell.rs      Accuracy  docs/numerics.md, "one step"

override WG_X: u32;
override WG_Y: u32;

struct Params {
    rows: u32,
    hidden_size: u32,
    x0_first: u32,
    x0_k4: u32,
    x1_first: u32,
    x1_k4: u32,
    gates_first: u32,
    x0_stride: u32,
    x1_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x0: array<vec4f>;
@group(0) @binding(2) var<storage, read> x1: array<vec4f>;
@group(0) @binding(3) var<storage, read> weights: array<vec4f>;
@group(0) @binding(4) var<storage, read> bias: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> x_gates: array<vec4f>;

fn finish(row: u32, j: u32, sum: vec4f) {
    if row < params.rows {
        x_gates[params.gates_first + row * params.hidden_size + j] = sum + bias[j];
    }
}

@compute @workgroup_size(WG_X, WG_Y)
fn input_projection(@builtin(global_invocation_id) id: vec3u) {
    let j = id.x;
    let row = id.y * ROWS;
    if j >= params.hidden_size || row >= params.rows {
        return;
    }
    let last = params.rows - 1u;
    let columns = params.hidden_size;
    let sum0 = dot_x0(rows_zero(), params.x0_first, row, last, params.x0_stride, params.x0_k4, j, columns);
    let w1 = params.x0_k4 * 4u * columns + j;
    let sum = dot_x1(sum0, params.x1_first, row, last, params.x1_stride, params.x1_k4, w1, columns);
    finish_rows(row, j, sum);
}
