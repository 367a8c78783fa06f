// pool_rows: the mean or the maximum of a sequence's rows, over the timesteps of a piece of the output.
//
//   pooled[b, u] = Σ_t y[t, b, u], in order of t, at the end divided by the length; or max_t y[t, b, u]
//
// Where the two directions are summed, y is the sum of a row of y0 and one of y1; otherwise y1 is not read.
//
// Dispatch   x: ceil(width4 / WG_X), y: ceil(ranks of this dispatch / WG_Y); one invocation per sequence and four units
// Bindings   0 params uniform · 1 table read: lengths by rank [B], then the first packed row of each timestep [T + 1]
//            2 y0 · 3 y1 read, in vec4 · 4 pooled read_write [D, B, width4]
// Overrides  WG_X, WG_Y: product ≤ 256
// Workgroup  none      Barriers   none
// Sum        timesteps in order, whatever the pieces
// Masked     sequences of length 0 get zero
// Reference  src/batch.rs, `pool_rows`

override WG_X: u32;
override WG_Y: u32;

struct Params {
    ranks: u32,
    rank_first: u32,
    width4: u32,
    // Timesteps of this dispatch, and the packed row that y starts with.
    t_first: u32,
    t_end: u32,
    row_first: u32,
    // In vec4: from one row of y to the next, h in a row, and the first of `pooled`.
    y_stride: u32,
    y_h: u32,
    pooled_first: u32,
    // 1 for the maximum.
    is_max: u32,
    sums_planes: u32,
    // Whether these are the last timesteps of all.
    is_end: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read> y0: array<vec4f>;
@group(0) @binding(3) var<storage, read> y1: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> pooled: array<vec4f>;

@compute @workgroup_size(WG_X, WG_Y)
fn pool_rows(@builtin(global_invocation_id) id: vec3u) {
    let u = id.x;
    let rank = params.rank_first + id.y;
    if u >= params.width4 || rank >= params.ranks {
        return;
    }
    let slot = params.pooled_first + rank * params.width4 + u;
    let end = min(params.t_end, table[rank]);
    var result = vec4f();
    if params.t_first > 0u {
        result = pooled[slot];
    }
    for (var t = params.t_first; t < end; t += 1u) {
        let row = table[params.ranks + t] - params.row_first + rank;
        let at = row * params.y_stride + params.y_h + u;
        var y = y0[at];
        if params.sums_planes != 0u {
            y += y1[at];
        }
        if params.is_max == 0u {
            result += y;
        } else {
            result = select(max(result, y), y, t == 0u);
        }
    }
    if params.is_end != 0u && params.is_max == 0u && table[rank] > 0u {
        result /= f32(table[rank]);
    }
    pooled[slot] = result;
}
