// self_test: what a driver must get right before its numbers are trusted; run once when a device is opened.
//
//   counts[0..1]  trips of one long loop, and of a nested pair of loops
//   values        for each probe x: sigmoid(x), tanh(x), and a dot product of known value
//
// Some software drivers end loops after 65,535 trips without an error; others return NaN from tanh of a
// large argument. The host compares with exact or double-precision values (src/gpu/self_test.rs).
//
// Dispatch   x: 1; one invocation per probe, the loops in invocation 0
// Bindings   0 params uniform · 1 probes read [N] · 2 counts read_write [2] · 3 values read_write [N, 3]
// Workgroup  64 · 4 bytes      Barriers   one, in uniform control flow
// Overrides  none

struct Params {
    num_probes: u32,
    long_loop: u32,
    outer_loop: u32,
    inner_loop: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> probes: array<f32>;
@group(0) @binding(2) var<storage, read_write> counts: array<u32>;
@group(0) @binding(3) var<storage, read_write> values: array<f32>;

var<workgroup> shared_probes: array<f32, 64>;

@compute @workgroup_size(64)
fn self_test(@builtin(local_invocation_index) index: u32) {
    let n = params.num_probes;
    var probe = 0.0;
    if index < n {
        probe = probes[index];
    }
    shared_probes[index] = probe;
    workgroupBarrier();

    // The sum walks backwards through what the other invocations wrote.
    var sum = 0.0;
    for (var k = 0u; k < n; k += 1u) {
        let other = shared_probes[n - 1u - k];
        sum = fma(clamp(other, -1.0, 1.0), f32(k + 1u), sum);
    }
    if index < n {
        values[3u * index] = sigmoid(probe);
        values[3u * index + 1u] = tanh_exp(probe);
        values[3u * index + 2u] = sum;
    }

    if index == 0u {
        // The added value depends on the trip, so that the loop cannot be folded into a constant.
        var trips = 0u;
        for (var i = 0u; i < params.long_loop; i += 1u) {
            trips += 1u + (((i * 2654435761u) ^ trips) & params.num_probes & 0x80000000u);
        }
        counts[0] = trips;
        var nested = 0u;
        for (var i = 0u; i < params.outer_loop; i += 1u) {
            for (var k = 0u; k < params.inner_loop; k += 1u) {
                nested += 1u + (((k * 2654435761u) ^ nested) & params.num_probes & 0x80000000u);
            }
        }
        counts[1] = nested;
    }
}
