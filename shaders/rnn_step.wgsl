// rnn_step: one timestep of a layer of the standard recurrent network, all directions.
//
//   h[b, u] = gate_f(x_gates[b, u] + Σ_k h_prev[b, k] · w_hh[k, u])        one vec4 per four units u
//
// Dispatch   x: ceil(columns / WG_X) of a part of a range of the weights, y: ceil(num_active / rows of a workgroup), z: directions
// Bindings   0 the step, unless it comes as immediates · 1 x_gates read [rows, h_stride / 4]
//            2 w_hh read [D, h_stride, columns] · 3 h_prev read · 4 h_next read_write [D, B, h_stride / 4]
//            5 state read_write h_n, last [D, B, h_stride / 4] · 6 y0 · 7 y1 read_write, in vec4
// Overrides  WG_X, WG_Y: product ≤ 256; those of the function; ROWS is text, see src/kernels/rows.rs
// Workgroup  none      Barriers   none
// Sum        the segments of h in order, then added to x_gates
// Masked     ranks at or past num_active: nothing is read or written
// Padding    units from hidden_size to h_stride are written as zero
// Reference  src/reference/cell.rs      Accuracy  docs/numerics.md, "one step"

override WG_X: u32;
override WG_Y: u32;

@group(0) @binding(1) var<storage, read> x_gates: array<vec4f>;
@group(0) @binding(2) var<storage, read> w_hh: array<Weight>;
@group(0) @binding(3) var<storage, read> h_prev: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> h_next: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> state: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> y0: array<vec4f>;
@group(0) @binding(7) var<storage, read_write> y1: array<vec4f>;

fn finish(direction: u32, rank: u32, p4: u32, recurrent: vec4f) {
    let at = step_of(direction);
    if rank >= at.num_active {
        return;
    }
    let sum = x_gates[at.gates_first + rank * (timestep.h_stride / 4u) + p4] + recurrent;
    let h = vec4f(gate_f(direction, sum.x), gate_f(direction, sum.y), gate_f(direction, sum.z), gate_f(direction, sum.w));
    emit4(direction, at, rank, p4, only_units(p4, h));
}

@compute @workgroup_size(WG_X, WG_Y)
fn rnn_step(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u) {
    let p4 = timestep.column_first + tile_column(group, local);
    let row = tile_row(group, local);
    let direction = group.z;
    let num_active = step_of(direction).num_active;
    if row >= num_active || leaves(p4, timestep.column_end) {
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
        direction * timestep.h_stride * timestep.weight_columns + readable(p4, timestep.column_end) - timestep.weight_first,
        timestep.weight_columns,
    );
    if finishes(p4, timestep.column_end) {
        finish_rows(direction, row, p4, sum);
    }
}
