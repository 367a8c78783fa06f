// store_y: one number of a row of the layer's output, forward and reverse.

fn store_y(direction: u32, index: u32, value: f32) {
    if direction == 0u {
        y0[index] = value;
    } else {
        y1[index] = value;
    }
}
