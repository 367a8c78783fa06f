// see_before, see_after: the gates see the cell state through weights i f o of each unit.

@group(0) @binding(8) var<storage, read> peepholes: array<vec4f>;

fn see_before(direction: u32, j: u32, gates: vec4f, c: f32) -> vec4f {
    let p = peepholes[direction * timestep.hidden_size + j];
    return vec4f(fma(p.x, c, gates.x), fma(p.y, c, gates.y), gates.z, gates.w);
}

fn see_after(direction: u32, j: u32, o: f32, c: f32) -> f32 {
    return fma(peepholes[direction * timestep.hidden_size + j].z, c, o);
}
