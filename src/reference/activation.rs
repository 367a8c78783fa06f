//! The activation functions as [`Activation`] prints them, written so that nothing overflows on the way.

use super::Real;
use crate::activation::Activation;

/// f(x).
pub(super) fn activate<R: Real>(f: Activation, x: R) -> R {
    let constant = R::from_f32;
    match f {
        Activation::Sigmoid => sigmoid(x),
        Activation::Tanh => x.tanh(),
        Activation::Relu => keep_from(x, R::ZERO, R::ZERO),
        Activation::Affine { alpha, beta } => constant(alpha) * x + constant(beta),
        Activation::LeakyRelu { alpha } => keep_from(x, R::ZERO, constant(alpha) * x),
        Activation::ThresholdedRelu { alpha } => keep_from(x, constant(alpha), R::ZERO),
        Activation::ScaledTanh { alpha, beta } => constant(alpha) * (constant(beta) * x).tanh(),
        Activation::HardSigmoid { alpha, beta } => clamp(constant(alpha) * x + constant(beta), R::ZERO, R::ONE),
        Activation::Elu { alpha } => keep_from(x, R::ZERO, constant(alpha) * x.exp_m1()),
        Activation::Softsign => x / (R::ONE + x.abs()),
        // ln(1 + e^x) = max(x, 0) + ln(1 + e^−|x|)
        Activation::Softplus => keep_from(x, R::ZERO, R::ZERO) + (-x.abs()).exp().ln_1p(),
    }
}

/// x within `low` and `high`; NaN stays NaN.
pub(super) fn clamp<R: Real>(x: R, low: R, high: R) -> R {
    if x < low {
        low
    } else if x > high {
        high
    } else {
        x
    }
}

/// x where x ≥ `threshold`, otherwise `below`; NaN stays NaN.
fn keep_from<R: Real>(x: R, threshold: R, below: R) -> R {
    if x < threshold { below } else { x }
}

/// 1 / (1 + e^−x), written so that `exp` never overflows.
fn sigmoid<R: Real>(x: R) -> R {
    if x >= R::ZERO {
        R::ONE / (R::ONE + (-x).exp())
    } else {
        let e = x.exp();
        e / (R::ONE + e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigmoid_is_safe_at_both_ends() {
        assert_eq!(sigmoid(0.0f64), 0.5);
        assert_eq!([sigmoid(f32::INFINITY), sigmoid(f32::NEG_INFINITY), sigmoid(1e30f32)], [1.0, 0.0, 1.0]);
        assert_eq!(sigmoid(-1e30f32), 0.0);
        assert!((sigmoid(-80.0f32) / (-80.0f32).exp() - 1.0).abs() < 1e-6);
        assert!(sigmoid(f64::NAN).is_nan());
        for x in [0.1f64, 1.0, 30.0] {
            assert!((sigmoid(x) + sigmoid(-x) - 1.0).abs() < 1e-15);
        }
    }

    /// Values computed by hand with 30 digits.
    #[test]
    fn functions_are_those_of_the_operator() {
        for (f, x, expected) in [
            (Activation::Relu, -0.5, 0.0),
            (Activation::Relu, 0.5, 0.5),
            (Activation::Affine { alpha: 2.0, beta: -0.5 }, 1.5, 2.5),
            (Activation::LeakyRelu { alpha: 0.25 }, -2.0, -0.5),
            (Activation::LeakyRelu { alpha: 0.25 }, 2.0, 2.0),
            (Activation::ThresholdedRelu { alpha: 0.5 }, 0.5, 0.5),
            (Activation::ThresholdedRelu { alpha: 0.5 }, 0.499, 0.0),
            (Activation::ScaledTanh { alpha: 2.0, beta: 0.5 }, 1.0, 0.924_234_314_520_019_3),
            (Activation::HardSigmoid { alpha: 0.25, beta: 0.5 }, 1.0, 0.75),
            (Activation::HardSigmoid { alpha: 0.25, beta: 0.5 }, 3.0, 1.0),
            (Activation::HardSigmoid { alpha: 0.25, beta: 0.5 }, -3.0, 0.0),
            (Activation::Elu { alpha: 2.0 }, -1.0, -1.264_241_117_657_115_4),
            (Activation::Elu { alpha: 2.0 }, 1.0, 1.0),
            (Activation::Softsign, -3.0, -0.75),
            (Activation::Softplus, 0.0, std::f64::consts::LN_2),
            (Activation::Softplus, 1000.0, 1000.0),
            (Activation::Softplus, -1.0, 0.313_261_687_518_222_8),
        ] {
            let found: f64 = activate(f, x);
            assert!((found - expected).abs() < 1e-15, "{f}({x}) = {found}, expected {expected}");
        }
        for f in Activation::ALL {
            assert!(activate(f, f64::NAN).is_nan(), "{f}");
            assert!(!activate(f, -1e30f32).is_nan() && !activate(f, 1e30f32).is_nan(), "{f}");
        }
    }
}
