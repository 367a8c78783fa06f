// with_bias, where the projection has a bias.

@group(0) @binding(7) var<storage, read> b_hr: array<vec4f>;

fn with_bias(direction: u32, p4: u32, sum: vec4f) -> vec4f {
    return sum + b_hr[direction * (timestep.h_stride / 4u) + p4];
}
