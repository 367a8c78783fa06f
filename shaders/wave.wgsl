// wave: one timestep of each of several layers of an LSTM in one dispatch; layer l is l timesteps behind the first.
//
//   input[b, j] = x_gates[b, j] in the first layer, else Σ_k h_below[b, k] · w_ih[k, j] + bias[j]
//   c, h = advance(input[b, j], Σ_k h_prev[b, k] · w_hh[k, j], c_prev[b, j])
//
// What a layer reads was written by the dispatch before: its own h, and that of the layer below at the same timestep. Each
// sum and each step is that of input_projection and recurrent_step, in the same order.
//
// Dispatch   x: ceil(most columns / WG_X), y: ceil(most active / rows of a workgroup), z: layers under way
// Bindings   0 record of the first of these layers, dynamic offset · 1 x_gates read [rows, H] · 2 weights read, of each
//            layer [K, H] over the layer below but for the first, then [h_stride, H] · 3 bias read [H] of each layer
//            4 steps read, a window of the uniforms: a record per layer · 5 h_prev read · 6 next read_write, of each layer
//            [B, h_stride] · 7 state read_write, of each layer as in recurrent_step · 8 y0 read_write, of the last layer
// Overrides  WG_X, WG_Y: product ≤ 256; ROWS, SLICES and the tile's functions are text, see src/kernels/rows.rs
// Workgroup  ROWS · SLICES · 256 bytes if SLICES > 1      Barriers   two per SLICES segments then
// Sum        the segments of the layer below in order, then the bias; the segments of h in order; then their sum
// Masked     ranks at or past num_active of a layer: nothing is read or written
// Padding    units from hidden_size to hidden_stride are written as zero, since the next matmul reads them
// Reference  src/reference/cell.rs      Accuracy  docs/numerics.md, "one step"

override WG_X: u32;
override WG_Y: u32;

// A record: a layer's timestep, and where the layer's parts lie; in vec4, h_first and state_first in f32.
struct WaveStep {
    step: Step,
    below_first: u32,
    // 0 in the first layer.
    below_k4: u32,
    w_ih_first: u32,
    w_hh_first: u32,
    bias_first: u32,
    h_first: u32,
    state_first: u32,
    padding_0: u32,
}

@group(0) @binding(0) var<uniform> first_record: WaveStep;
@group(0) @binding(1) var<storage, read> x_gates: array<vec4f>;
@group(0) @binding(2) var<storage, read> weights: array<Weight>;
@group(0) @binding(3) var<storage, read> bias: array<vec4f>;
@group(0) @binding(4) var<storage, read> steps: array<u32>;
@group(0) @binding(5) var<storage, read> h_prev: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> next: array<f32>;
@group(0) @binding(7) var<storage, read_write> state: array<f32>;
@group(0) @binding(8) var<storage, read_write> y0: array<f32>;

// Words of a Step before its directions, and of a whole one.
const STEP_WORDS: u32 = 16u;
const WAVE_WORDS: u32 = 32u;

// The record of this workgroup's layer.
var<private> timestep: Step;
var<private> has_gates: bool;
var<private> bias_first: u32;
var<private> h_first: u32;
var<private> state_first: u32;
// The sum over the layer below, of the unit that is updated.
var<private> from_below: vec4f;

fn load_record(record: u32) {
    let at = record + STEP_WORDS;
    timestep.hidden_size = steps[record];
    timestep.hidden_stride = steps[record + 1u];
    timestep.h_stride = steps[record + 2u];
    timestep.batch_size = steps[record + 3u];
    timestep.y_stride = steps[record + 4u];
    timestep.y_h = steps[record + 5u];
    timestep.y_c = steps[record + 6u];
    timestep.state_h_n = steps[record + 7u];
    timestep.state_last = steps[record + 8u];
    timestep.directions[0] = DirectionStep(
        steps[at],
        steps[at + 1u],
        steps[at + 2u],
        steps[at + 3u],
        steps[at + 4u],
        0u,
        0u,
        0u,
    );
    has_gates = steps[record + WAVE_WORDS + 1u] == 0u;
    bias_first = steps[record + WAVE_WORDS + 4u];
    h_first = steps[record + WAVE_WORDS + 5u];
    state_first = steps[record + WAVE_WORDS + 6u];
}

fn gates_of_input(direction: u32, at: DirectionStep, rank: u32, j: u32) -> vec4f {
    if has_gates {
        return x_gates[at.gates_first + rank * timestep.hidden_size + j];
    }
    return from_below + bias[bias_first + j];
}

fn load_c(direction: u32, rank: u32, j: u32) -> f32 {
    return state[state_first + rank * timestep.hidden_stride + j];
}

fn store_c(direction: u32, rank: u32, j: u32, c: f32) {
    state[state_first + rank * timestep.hidden_stride + j] = c;
}

fn store_y(direction: u32, index: u32, value: f32) {
    y0[index] = value;
}

fn finish(rank: u32, j: u32, below: vec4f, recurrent: vec4f) {
    let at = timestep.directions[0];
    if rank >= at.num_active {
        return;
    }
    let y_row = (at.y_row + rank) * timestep.y_stride;
    from_below = below;
    let h = update(0u, at, rank, j, y_row, recurrent);
    next[h_first + rank * timestep.h_stride + j] = h;
    emit_rows(0u, at, rank, j, y_row, h);
}

@compute @workgroup_size(WG_X, WG_Y)
fn wave(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u) {
    let record = first_record.step.record_first + group.z * first_record.step.record_words;
    let hidden_size = steps[record];
    let hidden_stride = steps[record + 1u];
    let num_active = steps[record + STEP_WORDS + 1u];
    let j = tile_column(group, local);
    let row = tile_row(group, local);
    if row >= num_active || leaves(j, hidden_stride) {
        return;
    }
    load_record(record);
    // Padding reads the last unit's weights; its sums are not used.
    let column = readable(j, hidden_size);
    let last = num_active - 1u;
    let below_first = steps[record + WAVE_WORDS];
    let below_k4 = steps[record + WAVE_WORDS + 1u];
    let w_ih = steps[record + WAVE_WORDS + 2u] + column;
    let w_hh = steps[record + WAVE_WORDS + 3u] + column;
    let k4 = steps[record + 2u] / 4u;
    let own_first = steps[record + WAVE_WORDS + 5u] / 4u;
    let below = dot_h(rows_zero(), below_first, row, last, below_k4, below_k4, w_ih, hidden_size);
    let recurrent = dot_h(rows_zero(), own_first, row, last, k4, k4, w_hh, hidden_size);
    if finishes(j, hidden_stride) {
        finish_rows(row, j, below, recurrent);
    }
}
