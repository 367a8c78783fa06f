// emit, with projection: m is the input of projection_step.

fn emit(direction: u32, at: DirectionStep, rank: u32, j: u32, y_row: u32, m: f32) {
    next[(direction * timestep.batch_size + rank) * timestep.hidden_stride + j] = m;
}
