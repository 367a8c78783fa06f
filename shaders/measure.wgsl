// measure: arithmetic alone, for the rate that an adapter reaches and for the gap between dependent dispatches.
//
// Dispatch   x: any number of workgroups; every invocation does the same
// Bindings   0 params uniform · 1 values read_write [2, n]: the first half is read, the second written, so that
//            dispatches of one pass wait for one another and no invocation reads what another writes
// Workgroup  no memory      Barriers   none
// Overrides  none
// Work       64 floating-point operations per invocation and iteration, in eight independent chains of four

struct Params {
    iterations: u32,
    num_values: u32,
    padding_0: u32,
    padding_1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> values: array<f32>;

@compute @workgroup_size(64)
fn measure(@builtin(global_invocation_id) id: vec3u) {
    let start = values[id.x % params.num_values];
    let factor = vec4f(0.9990234375);
    let term = vec4f(start, start + 1.0, start + 2.0, start + 3.0);
    var a = term;
    var b = term + 1.0;
    var c = term + 2.0;
    var d = term + 3.0;
    var e = term + 4.0;
    var f = term + 5.0;
    var g = term + 6.0;
    var h = term + 7.0;
    for (var i = 0u; i < params.iterations; i += 1u) {
        a = fma(a, factor, term);
        b = fma(b, factor, term);
        c = fma(c, factor, term);
        d = fma(d, factor, term);
        e = fma(e, factor, term);
        f = fma(f, factor, term);
        g = fma(g, factor, term);
        h = fma(h, factor, term);
    }
    let sum = dot(a + b + c + d + e + f + g + h, vec4f(1.0));
    // No sum is negative, but that is not known to a compiler: all have to be computed.
    if id.x < params.num_values || sum < 0.0 {
        values[params.num_values + id.x % params.num_values] = sum;
    }
}
