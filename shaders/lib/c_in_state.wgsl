// load_c, store_c: the cell state of a unit, where it lies in `state`.

fn load_c(direction: u32, rank: u32, j: u32) -> f32 {
    return state[(direction * timestep.batch_size + rank) * timestep.hidden_stride + j];
}

fn store_c(direction: u32, rank: u32, j: u32, c: f32) {
    state[(direction * timestep.batch_size + rank) * timestep.hidden_stride + j] = c;
}
