//! Activation functions over slices.
//!
//! In:  values, and the function with its clip.
//! Out: the same places, the function applied.
//! The loops are plain, without reassociation, so that whatever vectors they are compiled for (`cell.rs`), the bits are
//! the same; multiplications and additions are fused where the processor can. NaN propagates.
//! Accuracy: docs/numerics.md, "activations".

use crate::activation::Activation;

/// An activation with the clip before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Clipped {
    pub(super) function: Activation,
    pub(super) clip: Option<f32>,
}

impl Clipped {
    /// Replaces each value v by f(v), or f(v clamped).
    #[inline(always)]
    pub(super) fn apply<const FUSED: bool>(self, values: &mut [f32]) {
        if let Some(limit) = self.clip {
            each(values, |x| clamp(x, -limit, limit));
        }
        match self.function {
            Activation::Sigmoid => each(values, sigmoid::<FUSED>),
            Activation::Tanh => each(values, tanh::<FUSED>),
            Activation::Relu => each(values, |x| if x < 0.0 { 0.0 } else { x }),
            Activation::Affine { alpha, beta } => each(values, |x| alpha * x + beta),
            Activation::LeakyRelu { alpha } => each(values, |x| if x < 0.0 { alpha * x } else { x }),
            Activation::ThresholdedRelu { alpha } => each(values, |x| if x < alpha { 0.0 } else { x }),
            Activation::ScaledTanh { alpha, beta } => each(values, |x| alpha * tanh::<FUSED>(beta * x)),
            Activation::HardSigmoid { alpha, beta } => each(values, |x| clamp(alpha * x + beta, 0.0, 1.0)),
            Activation::Elu { alpha } => each(values, |x| elu::<FUSED>(alpha, x)),
            Activation::Softsign => each(values, |x| x / (1.0 + x.abs())),
            Activation::Softplus => each(values, softplus::<FUSED>),
        }
    }
}

/// a·b + c, with one rounding if `FUSED`: where the processor has an instruction for it, like the products.
#[inline(always)]
pub(super) fn mul_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn each(values: &mut [f32], f: impl Fn(f32) -> f32) {
    values.iter_mut().for_each(|v| *v = f(*v));
}

/// x within `low` and `high`. Comparisons that are false for NaN let it pass; f32::max would drop it.
#[inline(always)]
pub(super) fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// e^x = s·(1 + p): s = 2^n with n = round(x / ln 2), and p = e^r − 1 for the rest r, |r| ≤ ln 2 / 2.
/// x must lie within ±87, or be NaN.
#[inline(always)]
fn exp_parts<const FUSED: bool>(x: f32) -> (f32, f32) {
    /// 1.5·2^23: adding it rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; n · HIGH is exact for |n| < 2^15.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // (e^r − 1 − r) / r² by weighted least squares over |r| ≤ ln 2 / 2, relative error of e^r 1.1e-9.
    const Q: [f32; 6] = [0.5, 0.166_666_66, 0.041_666_295, 0.008_333_497, 0.001_394_468_5, 0.000_197_903_72];

    let shifted = mul_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<FUSED>(n, -LN_2_LOW, mul_add::<FUSED>(n, -LN_2_HIGH, x));
    let q = Q[..5].iter().rev().fold(Q[5], |q, c| mul_add::<FUSED>(q, r, *c));
    let s = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    (s, mul_add::<FUSED>(r * r, q, r))
}

/// 1 / (1 + e^−x), from e^−|x| so that nothing overflows; exactly 0 below −87 and 1 above 17.
#[inline(always)]
pub(super) fn sigmoid<const FUSED: bool>(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    let a = -x.abs();
    // Comparisons that are false for NaN let it pass; f32::max would drop it.
    let (s, p) = exp_parts::<FUSED>(if a < LOWEST { LOWEST } else { a });
    let e = if a < LOWEST { 0.0 } else { mul_add::<FUSED>(s, p, s) };
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

/// tanh x = m / (m + 2) with m = e^2|x| − 1, whose small values keep their relative accuracy; ±1 from 10 on.
#[inline(always)]
pub(super) fn tanh<const FUSED: bool>(x: f32) -> f32 {
    const HIGHEST: f32 = 10.0;
    let a = x.abs();
    let a = if a > HIGHEST { HIGHEST } else { a };
    let (s, p) = exp_parts::<FUSED>(2.0 * a);
    let m = mul_add::<FUSED>(s, p, s - 1.0);
    (m / (m + 2.0)).copysign(x)
}

/// x, or alpha·(e^x − 1) below 0.
#[inline(always)]
fn elu<const FUSED: bool>(alpha: f32, x: f32) -> f32 {
    let (s, p) = exp_parts::<FUSED>(clamp(x, -87.0, 0.0));
    if x < 0.0 { alpha * (mul_add::<FUSED>(s, p, s - 1.0)) } else { x }
}

/// ln(1 + e^x) = max(x, 0) + ln(1 + e), e = e^−|x|, and ln(1 + e) = 2·artanh(a) with a = e / (2 + e) ≤ 1/3: its odd
/// series up to a^15, whose first omitted term is below 2^-28 of the sum. Exactly 0 below −87, where e leaves the normal
/// numbers.
#[inline(always)]
fn softplus<const FUSED: bool>(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    let a = -x.abs();
    let (s, p) = exp_parts::<FUSED>(if a < LOWEST { LOWEST } else { a });
    let e = if a < LOWEST { 0.0 } else { mul_add::<FUSED>(s, p, s) };
    let a = e / (2.0 + e);
    let q = a * a;
    let odd = [1.0, 1.0 / 3.0, 1.0 / 5.0, 1.0 / 7.0, 1.0 / 9.0, 1.0 / 11.0, 1.0 / 13.0, 1.0 / 15.0];
    let series = odd.iter().rev().fold(0.0, |sum, c| sum * q + c);
    (if x < 0.0 { 0.0 } else { x }) + 2.0 * a * series
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of all magnitudes between 2^−40 and 128, both signs.
    fn sweep() -> impl Iterator<Item = f32> {
        let bits = (2.0f32.powi(-40).to_bits()..128.0f32.to_bits()).step_by(509);
        bits.flat_map(|b| [f32::from_bits(b), -f32::from_bits(b)])
    }

    fn worst_ulps(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> (f64, f32) {
        let ulps = |x: f32| {
            let expected = exact(x.into());
            let ulp = f64::from(f32::EPSILON) * 2.0f64.powi((expected.abs().log2().floor() as i32).max(-126));
            (f64::from(f(x)) - expected).abs() / ulp
        };
        sweep().map(|x| (ulps(x), x)).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
    }

    #[test]
    fn errors_stay_below_three_ulps() {
        check_errors::<true>();
        check_errors::<false>();
    }

    fn check_errors<const FUSED: bool>() {
        let worst = worst_ulps(sigmoid::<FUSED>, |x| {
            if x < -87.0 { 0.0f64.max((-1e9f64).exp()) } else { 1.0 / (1.0 + (-x).exp()) }
        });
        assert!(worst.0 <= 3.0, "sigmoid({}) is {} ulps off", worst.1, worst.0);
        let worst = worst_ulps(tanh::<FUSED>, f64::tanh);
        assert!(worst.0 <= 3.0, "tanh({}) is {} ulps off", worst.1, worst.0);
    }

    #[test]
    fn ends_saturate_and_nan_passes() {
        check_ends(sigmoid::<true>, tanh::<true>);
        check_ends(sigmoid::<false>, tanh::<false>);
    }

    fn check_ends(sigmoid: fn(f32) -> f32, tanh: fn(f32) -> f32) {
        for x in [87.5, 1e3, 1e30, f32::MAX, f32::INFINITY] {
            assert_eq!([sigmoid(x), sigmoid(-x), tanh(x), tanh(-x)], [1.0, 0.0, 1.0, -1.0], "{x}");
        }
        assert_eq!([sigmoid(18.0), tanh(9.5), tanh(-9.5)], [1.0, 1.0, -1.0]);
        assert_eq!([sigmoid(0.0), sigmoid(-0.0), tanh(0.0)], [0.5, 0.5, 0.0]);
        assert!(tanh(-0.0).is_sign_negative() && tanh(1e-40) == 1e-40);
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)] {
            assert!(sigmoid(nan).is_nan() && tanh(nan).is_nan());
        }
        assert!(sweep().all(|x| (0.0..=1.0).contains(&sigmoid(x)) && tanh(x).abs() <= 1.0 && tanh(-x) == -tanh(x)));
    }

    #[test]
    fn other_functions_are_within_five_roundings() {
        check_others::<true>();
        check_others::<false>();
    }

    fn check_others<const FUSED: bool>() {
        for function in [
            Activation::Relu,
            Activation::Affine { alpha: 0.7, beta: -0.2 },
            Activation::LeakyRelu { alpha: 0.1 },
            Activation::ThresholdedRelu { alpha: 0.3 },
            Activation::ScaledTanh { alpha: 1.7, beta: 0.6 },
            Activation::HardSigmoid { alpha: 0.3, beta: 0.4 },
            Activation::Elu { alpha: 1.3 },
            Activation::Softsign,
            Activation::Softplus,
        ] {
            for x in sweep() {
                let mut found = [x];
                Clipped { function, clip: None }.apply::<FUSED>(&mut found);
                let exact = exact(function, x.into());
                // Of the terms that are added, where there are two.
                let (alpha, beta) = function.parameters();
                let scale = match function {
                    Activation::Affine { .. } | Activation::HardSigmoid { .. } => {
                        (f64::from(alpha.unwrap() * x)).abs() + f64::from(beta.unwrap()).abs()
                    }
                    _ => exact.abs(),
                };
                let bound = 5.0 * f64::from(f32::EPSILON) / 2.0 * scale + (-87.0f64).exp();
                let error = (f64::from(found[0]) - exact).abs();
                assert!(error <= bound, "{function} of {x:e}: {} instead of {exact}, off by {error:e}", found[0]);
            }
            let mut nan = [f32::NAN];
            Clipped { function, clip: Some(1.0) }.apply::<FUSED>(&mut nan);
            assert!(nan[0].is_nan(), "{function}");
        }
        let mut clipped = [-5.0, -0.5, 0.5, 5.0];
        Clipped { function: Activation::Affine { alpha: 2.0, beta: 0.0 }, clip: Some(0.75) }
            .apply::<FUSED>(&mut clipped);
        assert_eq!(clipped, [-1.5, -1.0, 1.0, 1.5]);
    }

    fn exact(function: Activation, x: f64) -> f64 {
        match function {
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Activation::Tanh => x.tanh(),
            Activation::Relu => x.max(0.0),
            Activation::Affine { alpha, beta } => f64::from(alpha) * x + f64::from(beta),
            Activation::LeakyRelu { alpha } => {
                if x < 0.0 {
                    f64::from(alpha) * x
                } else {
                    x
                }
            }
            Activation::ThresholdedRelu { alpha } => {
                if x >= alpha.into() {
                    x
                } else {
                    0.0
                }
            }
            Activation::ScaledTanh { alpha, beta } => f64::from(alpha) * (f64::from(beta) * x).tanh(),
            Activation::HardSigmoid { alpha, beta } => (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
            Activation::Elu { alpha } => {
                if x < 0.0 {
                    f64::from(alpha) * x.exp_m1()
                } else {
                    x
                }
            }
            Activation::Softsign => x / (1.0 + x.abs()),
            Activation::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        }
    }
}
