// gates_of_input: the input's share of the gates of a unit, summed here because the input has few values: one segment at
// most, as in input_projection.
//
// x is read [rows, x_k4], from `gates_first`; input_weights [D, K + 1, H], whose last k is the bias.

@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(8) var<storage, read> input_weights: array<vec4f>;

fn gates_of_input(direction: u32, at: DirectionStep, rank: u32, j: u32) -> vec4f {
    let units = timestep.hidden_size;
    let first = at.gates_first + rank * at.x_k4;
    var w = direction * (4u * at.x_k4 + 1u) * units + j;
    var sum = vec4f();
    for (var k = 0u; k < at.x_k4; k += 1u) {
        let v = x[first + k];
        sum = fma(input_weights[w], vec4f(v.x), sum);
        sum = fma(input_weights[w + units], vec4f(v.y), sum);
        sum = fma(input_weights[w + 2u * units], vec4f(v.z), sum);
        sum = fma(input_weights[w + 3u * units], vec4f(v.w), sum);
        w += 4u * units;
    }
    return (vec4f() + sum) + input_weights[w];
}
