// planes: a row of x is a row of x0 and then one of x1 (the two directions of the layer before); x1_k4 is 0 where there
// is only one.

// j is a column of the range of the weights.
fn project(row: u32, last: u32, j: u32) -> Rows {
    let columns = params.weight_columns;
    let sum0 = dot_x0(rows_zero(), params.x0_first, row, last, params.x0_stride, params.x0_k4, j, columns);
    let w1 = params.x0_k4 * 4u * columns + j;
    return dot_x1(sum0, params.x1_first, row, last, params.x1_stride, params.x1_k4, w1, columns);
}
