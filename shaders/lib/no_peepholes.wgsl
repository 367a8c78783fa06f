// see_before, see_after: the gates do not see the cell state.

fn see_before(direction: u32, j: u32, gates: vec4f, c: f32) -> vec4f {
    return gates;
}

fn see_after(direction: u32, j: u32, o: f32, c: f32) -> f32 {
    return o;
}
