// emit4: four units of the new h, where buffers are bound as vec4.

fn emit4(direction: u32, at: DirectionStep, rank: u32, p4: u32, h: vec4f) {
    let slot = (direction * timestep.batch_size + rank) * (timestep.h_stride / 4u) + p4;
    h_next[slot] = h;
    if rank >= at.final_from {
        state[timestep.state_h_n / 4u + slot] = h;
    }
    if rank >= at.last_from {
        state[timestep.state_last / 4u + slot] = h;
    }
    if timestep.y_h != NONE {
        let index = ((at.y_row + rank) * timestep.y_stride + timestep.y_h) / 4u + p4;
        if direction == 0u {
            y0[index] = h;
        } else {
            y1[index] = h;
        }
    }
}

// h where the unit exists; padding is zero, whatever the activation makes of zero.
fn only_units(p4: u32, h: vec4f) -> vec4f {
    let unit = vec4u(4u * p4) + vec4u(0u, 1u, 2u, 3u);
    return select(vec4f(), h, unit < vec4u(timestep.hidden_size));
}
