// activation: sigmoid and tanh from exp on a clamped argument.
//
// WGSL's tanh may overflow for large arguments and may be off by 1e-5; exp has a bound of 3 + 2·|x| ulp.
// Absolute error of both functions: at most 5 · 2^-23, docs/numerics.md, "activations".

// 87 keeps exp below 2^126, up to which WGSL bounds the error of a division.
const SIGMOID_LIMIT: f32 = 87.0;
// tanh(15) rounds to 1.
const TANH_LIMIT: f32 = 15.0;
// Below this magnitude the odd series is more accurate than the quotient; its first omitted term is
// 1382/155925 · x^10 of the result, under 2^-24.
const TANH_SERIES_LIMIT: f32 = 0.28;

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-clamp(x, -SIGMOID_LIMIT, SIGMOID_LIMIT)));
}

fn tanh_exp(x: f32) -> f32 {
    let a = min(abs(x), TANH_LIMIT);
    let quotient = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
    let s = a * a;
    let series = fma(fma(fma(fma(62.0 / 2835.0, s, -17.0 / 315.0), s, 2.0 / 15.0), s, -1.0 / 3.0) * s, a, a);
    let magnitude = select(quotient, series, a < TANH_SERIES_LIMIT);
    return select(magnitude, -magnitude, x < 0.0);
}
