// with_bias, where the projection has none.

fn with_bias(direction: u32, p4: u32, sum: vec4f) -> vec4f {
    return sum;
}
