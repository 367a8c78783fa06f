// copy_rows: copies rows between an array in the caller's layout and packed rows, both on the device.
//
//   dst[dst_first + dst_row · dst_stride + k] = src[src_first + src_row · src_stride + k]     k in 0..width
//   gather:  src_row = listed, dst_row = r        scatter: src_row = r, dst_row = listed        r in first_row..rows
//   listed = table[table_first + r]; where it is NONE, a gathered row is zero, and a scattered one goes nowhere
//   the binding has the listed rows from listed_first to listed_end; others are left to other dispatches
//   scatter is 0 for gather, 1 for scatter, 2 for scatter and add to what is there
//
// Dispatch   x: ceil(dst_width / WG_X), y: ceil((rows - first_row) / WG_Y)
// Bindings   0 params uniform · 1 table read · 2 src read · 3 dst read_write
// Overrides  WG_X, WG_Y: product ≤ 256
// Workgroup  none      Barriers   none
// Padding    columns from width to dst_width are written as zero

override WG_X: u32;
override WG_Y: u32;

const NONE: u32 = 0xffffffffu;

struct Params {
    rows: u32,
    width: u32,
    dst_width: u32,
    scatter: u32,
    src_first: u32,
    src_stride: u32,
    dst_first: u32,
    dst_stride: u32,
    first_row: u32,
    table_first: u32,
    listed_first: u32,
    listed_end: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read> src: array<f32>;
@group(0) @binding(3) var<storage, read_write> dst: array<f32>;

@compute @workgroup_size(WG_X, WG_Y)
fn copy_rows(@builtin(global_invocation_id) id: vec3u) {
    let k = id.x;
    let row = params.first_row + id.y;
    if k >= params.dst_width || row >= params.rows {
        return;
    }
    let listed = table[params.table_first + row];
    let is_here = listed >= params.listed_first && listed < params.listed_end;
    if !is_here && (listed != NONE || params.scatter != 0u) {
        return;
    }
    let place = listed - params.listed_first;
    let src_row = select(place, row, params.scatter != 0u);
    let dst_row = select(row, place, params.scatter != 0u);
    var value = 0.0;
    if k < params.width && is_here {
        value = src[params.src_first + src_row * params.src_stride + k];
    }
    let to = params.dst_first + dst_row * params.dst_stride + k;
    if params.scatter == 2u {
        value += dst[to];
    }
    dst[to] = value;
}
