// planes: a row of x is the sum of a row of x0 and one of x1, which lie alike.

fn project(row: u32, last: u32, j: u32) -> Rows {
    return dot_x(rows_zero(), params.x0_first, row, last, params.x0_stride, params.x0_k4, j, params.weight_columns);
}
