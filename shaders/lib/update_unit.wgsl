// update: a unit of an active sequence from the sum of its gates to its c and m; stores c in the output if asked for.

// c and what becomes h, of one unit.
struct CellState {
    c: f32,
    m: f32,
}

fn update(direction: u32, at: DirectionStep, rank: u32, j: u32, y_row: u32, recurrent: vec4f) -> f32 {
    // Padding stays zero, since the next matmul reads it.
    var next_state = CellState();
    if j < timestep.hidden_size {
        let x = gates_of_input(direction, at, rank, j);
        next_state = advance(direction, rank, j, x, recurrent);
    }
    if timestep.y_c != NONE {
        store_y(direction, y_row + timestep.y_c + j, next_state.c);
    }
    return next_state.m;
}
