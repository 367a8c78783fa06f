// normalized_cell: second half of a timestep of an LSTM with layer normalisation: normalised gates and cell update.
//
//   gate = (sum − mean) / √(variance + 1e-8) · scale + bias        mean and variance over the units of a gate
//
// of the sums with their peepholes: i and f on c_prev, o on c, so that o's are known only after the cell update.
// A workgroup owns a sequence of a direction; where there are more of these than workgroups, it owns several in turn.
//
// Dispatch   x: min(num_active, the device's limit), z: directions
// Bindings   0 the step, unless it comes as immediates · 1 sums read [D, B, H]
//            2 cell_vectors read [D, H, 3]: scales i f g o, biases i f g o, peepholes i f o
//            3 next · 4 state · 5 y0 · 6 y1 read_write, as in recurrent_step
// Overrides  those of the functions
// Workgroup  64 · 16 bytes      Barriers   in uniform control flow; the loop bound is uniform
// Sum        units lane, lane + 64, ... in order by each of 64 lanes, then the lanes in halves
// Masked     ranks at or past num_active: nothing is read or written, the state stays as it was
// Padding    units from hidden_size to hidden_stride are written as zero, since the next matmul reads them
// Reference  src/reference/cell.rs      Accuracy  docs/numerics.md, "one step"

const LANES: u32 = 64u;
const NORM_EPSILON: f32 = 1e-8;

@group(0) @binding(1) var<storage, read> sums: array<vec4f>;
@group(0) @binding(2) var<storage, read> cell_vectors: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> next: array<f32>;
@group(0) @binding(4) var<storage, read_write> state: array<f32>;
@group(0) @binding(5) var<storage, read_write> y0: array<f32>;
@group(0) @binding(6) var<storage, read_write> y1: array<f32>;

var<workgroup> by_lane: array<vec4f, LANES>;

// The sum over all lanes.
fn over_lanes(lane: u32, value: vec4f) -> vec4f {
    by_lane[lane] = value;
    workgroupBarrier();
    for (var width = LANES / 2u; width > 0u; width /= 2u) {
        if lane < width {
            by_lane[lane] += by_lane[lane + width];
        }
        workgroupBarrier();
    }
    let total = by_lane[0];
    workgroupBarrier();
    return total;
}

// The sums of a unit with the peepholes of i and f; o has none yet.
fn gates_of(direction: u32, row: u32, j: u32) -> vec4f {
    let p = cell_vectors[(direction * timestep.hidden_size + j) * 3u + 2u];
    let gates = sums[row * timestep.hidden_size + j];
    let c = state[row * timestep.hidden_stride + j];
    return vec4f(fma(p.x, c, gates.x), fma(p.y, c, gates.y), gates.z, gates.w);
}

// The sum of o with its peephole, once c is the new one.
fn output_of(direction: u32, row: u32, j: u32) -> f32 {
    let p = cell_vectors[(direction * timestep.hidden_size + j) * 3u + 2u];
    return fma(p.z, state[row * timestep.hidden_stride + j], sums[row * timestep.hidden_size + j].w);
}

fn advance_row(direction: u32, at: DirectionStep, rank: u32, lane: u32) {
    let units = timestep.hidden_size;
    let count = f32(units);
    let row = direction * timestep.batch_size + rank;

    var total = vec4f();
    for (var j = lane; j < units; j += LANES) {
        total += gates_of(direction, row, j);
    }
    let mean = over_lanes(lane, total) / count;
    total = vec4f();
    for (var j = lane; j < units; j += LANES) {
        let d = gates_of(direction, row, j) - mean;
        total = fma(d, d, total);
    }
    let deviation = sqrt(over_lanes(lane, total) / count + NORM_EPSILON);

    var output_total = 0.0;
    for (var j = lane; j < units; j += LANES) {
        let vectors = (direction * units + j) * 3u;
        let scale = cell_vectors[vectors];
        let bias = cell_vectors[vectors + 1u];
        let gates = fma((gates_of(direction, row, j) - mean) / deviation, scale, bias);
        let cell = row * timestep.hidden_stride + j;
        let i = gate_f(direction, gates.x);
        let f = forget(direction, i, gates.y);
        state[cell] = bound_cell(fma(f, state[cell], i * candidate_g(direction, gates.z)));
        output_total += output_of(direction, row, j);
    }
    let output_mean = over_lanes(lane, vec4f(output_total)).x / count;
    output_total = 0.0;
    for (var j = lane; j < units; j += LANES) {
        let d = output_of(direction, row, j) - output_mean;
        output_total = fma(d, d, output_total);
    }
    let output_deviation = sqrt(over_lanes(lane, vec4f(output_total)).x / count + NORM_EPSILON);

    let y_row = (at.y_row + rank) * timestep.y_stride;
    for (var j = lane; j < timestep.hidden_stride; j += LANES) {
        var c = 0.0;
        var m = 0.0;
        if j < units {
            let vectors = (direction * units + j) * 3u;
            let normal = (output_of(direction, row, j) - output_mean) / output_deviation;
            let o = gate_f(direction, fma(normal, cell_vectors[vectors].w, cell_vectors[vectors + 1u].w));
            c = state[row * timestep.hidden_stride + j];
            m = o * output_h(direction, c);
        }
        if timestep.y_c != NONE {
            store_y(direction, y_row + timestep.y_c + j, c);
        }
        emit(direction, at, rank, j, y_row, m);
    }
}

@compute @workgroup_size(64)
fn normalized_cell(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let direction = group.z;
    let at = step_of(direction);
    for (var rank = group.x; rank < at.num_active; rank += groups.x) {
        advance_row(direction, at, rank, lane);
    }
}
