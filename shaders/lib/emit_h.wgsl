// emit, without projection: m is the new h.

fn emit(direction: u32, at: DirectionStep, rank: u32, j: u32, y_row: u32, m: f32) {
    next[(direction * timestep.batch_size + rank) * timestep.h_stride + j] = m;
    emit_rows(direction, at, rank, j, y_row, m);
}
