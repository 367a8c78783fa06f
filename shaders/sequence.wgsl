// sequence: many timesteps of one layer of an LSTM in one dispatch, all directions.
//
// A workgroup has ROWS sequences of one direction and goes through the timesteps with their h and c in its memory; nothing
// passes between workgroups. Each step is that of recurrent_step, in the same order of summation.
//
// Dispatch   x: ceil(batch_size / ROWS), y: 1, z: directions
// Bindings   0 step uniform of the first timestep, dynamic offset · 1 x_gates read [rows, H], or x · 2 w_hh read [D, K, H]
//            3 steps read, a window of the uniforms: a record per timestep · 4 h read_write [D, B, h_stride], before and after
//            5 state read_write, as in recurrent_step · 6 y0 · 7 y1 read_write [rows, y_stride], forward and reverse
//            8 input_weights (shaders/lib/gates_narrow.wgsl), where there are any
// Overrides  WG_X ≤ 256; ROWS is text, see src/kernels/rows.rs
// Workgroup  12 · ROWS · UNITS bytes      Barriers   one per timestep; their number is uniform
// Sum        the segments of h in order, then added to x_gates
// Masked     ranks at or past num_active of a timestep: the state stays as it was
// Padding    units from hidden_size to hidden_stride are written as zero
// Reference  src/reference/cell.rs      Accuracy  docs/numerics.md, "one step"

override WG_X: u32;

@group(0) @binding(0) var<uniform> timestep: Step;
@group(0) @binding(2) var<storage, read> w_hh: array<Weight>;
@group(0) @binding(3) var<storage, read> steps: array<u32>;
@group(0) @binding(4) var<storage, read_write> h: array<f32>;
@group(0) @binding(5) var<storage, read_write> state: array<f32>;
@group(0) @binding(6) var<storage, read_write> y0: array<f32>;
@group(0) @binding(7) var<storage, read_write> y1: array<f32>;

// Room for the units of a row, the largest hidden_stride.
const UNITS: u32 = 256u;
// Words of a Step before its directions, and of a direction.
const STEP_WORDS: u32 = 16u;
const DIRECTION_WORDS: u32 = 8u;

// Two halves: h before and after a timestep.
var<workgroup> h_now: array<f32, 2u * ROWS * UNITS>;
var<workgroup> c_now: array<f32, ROWS * UNITS>;

var<private> at: DirectionStep;
var<private> rank_first: u32;
// Where the half starts that this timestep writes.
var<private> next_first: u32;

fn h4(i: u32) -> vec4f {
    return vec4f(h_now[4u * i], h_now[4u * i + 1u], h_now[4u * i + 2u], h_now[4u * i + 3u]);
}

fn load_c(direction: u32, rank: u32, j: u32) -> f32 {
    return c_now[(rank - rank_first) * UNITS + j];
}

fn store_c(direction: u32, rank: u32, j: u32, c: f32) {
    c_now[(rank - rank_first) * UNITS + j] = c;
}

fn finish(direction: u32, rank: u32, j: u32, recurrent: vec4f) {
    let place = (rank - rank_first) * UNITS + j;
    if rank >= at.num_active {
        h_now[next_first + place] = h_now[ROWS * UNITS - next_first + place];
        return;
    }
    let y_row = (at.y_row + rank) * timestep.y_stride;
    let m = update(direction, at, rank, j, y_row, recurrent);
    h_now[next_first + place] = m;
    emit_rows(direction, at, rank, j, y_row, m);
}

@compute @workgroup_size(WG_X)
fn sequence(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let direction = group.z;
    let first = group.x * ROWS;
    rank_first = first;
    for (var i = lane; i < ROWS * UNITS; i += WG_X) {
        let slot = direction * timestep.batch_size + min(first + i / UNITS, timestep.batch_size - 1u);
        let j = i % UNITS;
        if j < timestep.hidden_stride {
            h_now[i] = h[slot * timestep.h_stride + j];
            c_now[i] = state[slot * timestep.hidden_stride + j];
        }
    }
    var now_first = 0u;
    for (var s = 0u; s < timestep.num_steps; s += 1u) {
        workgroupBarrier();
        let record = timestep.record_first + s * timestep.record_words + STEP_WORDS + direction * DIRECTION_WORDS;
        at = DirectionStep(
            steps[record],
            steps[record + 1u],
            steps[record + 2u],
            steps[record + 3u],
            steps[record + 4u],
            steps[record + 5u],
            0u,
            0u,
        );
        if first < steps[record + 1u] {
            next_first = ROWS * UNITS - now_first;
            for (var j = lane; j < timestep.hidden_stride; j += WG_X) {
                // Padding reads the last unit's weights; its sum is not used.
                let column = min(j, timestep.hidden_size - 1u);
                let sum = dot_h(
                    rows_zero(),
                    now_first / 4u,
                    0u,
                    ROWS - 1u,
                    UNITS / 4u,
                    timestep.h_stride / 4u,
                    direction * timestep.h_stride * timestep.weight_columns + column,
                    timestep.weight_columns,
                );
                finish_rows(direction, first, j, sum);
            }
            now_first = ROWS * UNITS - now_first;
        }
    }
    workgroupBarrier();
    for (var i = lane; i < ROWS * UNITS; i += WG_X) {
        let rank = first + i / UNITS;
        let j = i % UNITS;
        if rank < timestep.batch_size && j < timestep.hidden_stride {
            let slot = direction * timestep.batch_size + rank;
            h[slot * timestep.h_stride + j] = h_now[now_first + i];
            state[slot * timestep.hidden_stride + j] = c_now[i];
        }
    }
}
