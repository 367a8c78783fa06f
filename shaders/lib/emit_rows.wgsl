// emit_rows: where the new h of a unit goes besides the next timestep.

fn emit_rows(direction: u32, at: DirectionStep, rank: u32, j: u32, y_row: u32, m: f32) {
    let slot = (direction * timestep.batch_size + rank) * timestep.h_stride + j;
    if rank >= at.final_from {
        state[timestep.state_h_n + slot] = m;
    }
    if rank >= at.last_from {
        state[timestep.state_last + slot] = m;
    }
    if timestep.y_h != NONE {
        store_y(direction, y_row + timestep.y_h + j, m);
    }
}
