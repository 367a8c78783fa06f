// gru_reset: first half of a timestep of a GRU that is not linear before reset: the gates r and z, and r·h.
//
//   r, z = gate_f(x_gates[b, u].xy + Σ_k h_prev[b, k] · w_hh[k, u])        m[b, u] = r · h_prev[b, u]
//
// One vec4 of w_hh holds r and z of two units. z waits in `state`, where an LSTM has c.
//
// Dispatch   x: ceil(columns / WG_X) of a part of a range of the weights, y: ceil(num_active / rows of a workgroup), z: directions
// Bindings   0 the step, unless it comes as immediates · 1 x_gates read [rows, H] · 2 w_hh read [D, K, columns]
//            3 h_prev read [D, B, h_stride / 4] · 4 m read_write [D, B, hidden_stride]
//            5 state read_write z [D, B, hidden_stride], then as in recurrent_step
// Overrides  WG_X, WG_Y: product ≤ 256; those of the functions; ROWS is text, see src/kernels/rows.rs
// Workgroup  none      Barriers   none
// Sum        the segments of h in order, then added to x_gates
// Masked     ranks at or past num_active: nothing is read or written
// Padding    units from hidden_size to hidden_stride of m are written as zero, since gru_candidate reads them
// Reference  src/reference/cell.rs      Accuracy  docs/numerics.md, "one step"

override WG_X: u32;
override WG_Y: u32;

@group(0) @binding(1) var<storage, read> x_gates: array<vec4f>;
@group(0) @binding(2) var<storage, read> w_hh: array<Weight>;
@group(0) @binding(3) var<storage, read> h_prev: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> m: array<f32>;
@group(0) @binding(5) var<storage, read_write> state: array<f32>;

fn finish_unit(direction: u32, rank: u32, unit: u32, recurrent: vec2f) {
    let row = direction * timestep.batch_size + rank;
    let slot = row * timestep.hidden_stride + unit;
    var reset = 0.0;
    if unit < timestep.hidden_size {
        let x = x_gates[step_of(direction).gates_first + rank * timestep.hidden_size + unit];
        let h = h_prev[row * (timestep.h_stride / 4u) + unit / 4u][unit % 4u];
        reset = gate_f(direction, x.x + recurrent.x) * h;
        state[slot] = gate_f(direction, x.y + recurrent.y);
    }
    m[slot] = reset;
}

fn finish(direction: u32, rank: u32, pair: u32, recurrent: vec4f) {
    if rank < step_of(direction).num_active {
        finish_unit(direction, rank, 2u * pair, recurrent.xy);
        finish_unit(direction, rank, 2u * pair + 1u, recurrent.zw);
    }
}

@compute @workgroup_size(WG_X, WG_Y)
fn gru_reset(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u) {
    let pair = timestep.column_first + tile_column(group, local);
    let row = tile_row(group, local);
    let direction = group.z;
    let num_active = step_of(direction).num_active;
    if row >= num_active || leaves(pair, timestep.column_end) {
        return;
    }
    let k4 = timestep.h_stride / 4u;
    // Padding reads the last pair's weights; its sum is not used.
    let column = readable(pair, min(timestep.weight_first + timestep.weight_columns, timestep.column_end));
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
    if finishes(pair, timestep.column_end) {
        finish_rows(direction, row, pair, sum);
    }
}
