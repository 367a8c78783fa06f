// gates_of_input: the input's share of the gates of a unit, which input_projection has left in x_gates.

@group(0) @binding(1) var<storage, read> x_gates: array<vec4f>;

fn gates_of_input(direction: u32, at: DirectionStep, rank: u32, j: u32) -> vec4f {
    return x_gates[at.gates_first + rank * timestep.hidden_size + j];
}
