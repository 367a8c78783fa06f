// functions: the activations besides sigmoid and tanh, by ONNX's names; alpha and beta are overrides of the pipeline.
//
// Absolute error: at most 16 · 2^-24 of the larger of 1 (for elu |alpha|) and the result, docs/numerics.md, "activations".

fn leaky_relu(x: f32, alpha: f32) -> f32 {
    return select(x, alpha * x, x < 0.0);
}

fn thresholded_relu(x: f32, alpha: f32) -> f32 {
    return select(x, 0.0, x < alpha);
}

fn hard_sigmoid(x: f32, alpha: f32, beta: f32) -> f32 {
    return clamp(fma(alpha, x, beta), 0.0, 1.0);
}

fn elu(x: f32, alpha: f32) -> f32 {
    return select(x, alpha * (exp(clamp(x, -87.0, 0.0)) - 1.0), x < 0.0);
}

fn softsign(x: f32) -> f32 {
    return x / (1.0 + abs(x));
}

// ln(1 + e^x) = max(x, 0) + ln(1 + e), e = e^-|x|, and ln(1 + e) = 2·artanh(a) with a = e / (2 + e) ≤ 1/3, by its odd
// series up to a^15; WGSL's log would be off by 2^-21 near 1.
fn softplus(x: f32) -> f32 {
    let e = exp(-min(abs(x), 87.0));
    let a = e / (2.0 + e);
    let q = a * a;
    var series = fma(q, 1.0 / 15.0, 1.0 / 13.0);
    series = fma(q, series, 1.0 / 11.0);
    series = fma(q, series, 1.0 / 9.0);
    series = fma(q, series, 1.0 / 7.0);
    series = fma(q, series, 1.0 / 5.0);
    series = fma(q, series, 1.0 / 3.0);
    series = fma(q, series, 1.0);
    return fma(2.0 * a, series, max(x, 0.0));
}
