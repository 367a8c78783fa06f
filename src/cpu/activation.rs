//! The elementwise half of a timestep: sums, sigmoid, tanh, and the cell equations, for rows of gates.
//!
//! In:  `x_gates` and `h_gates` [rows, 4H], `bias` `[4H]`, `c` [rows, H].
//! Out: `c` and `h` [rows, H] one step later; `x_gates` is used up.
//! The loops are plain, without fused multiply-add or reassociation; [`pulp::Arch`] compiles them for the widest
//! vectors that the processor has, and the bits are the same on all of them. NaN propagates.
//! Accuracy: docs/numerics.md, "activations".

use pulp::Arch;

/// gate = (x·W_ih + bias) + h·W_hh; c = σ(f)·c + σ(i)·tanh(g); h = σ(o)·tanh(c), for every row.
pub(super) fn advance(arch: Arch, x_gates: &mut [f32], h_gates: &[f32], bias: &[f32], c: &mut [f32], h: &mut [f32]) {
    let gates = bias.len();
    let hidden_size = gates / 4;
    arch.dispatch(
        #[inline(always)]
        || {
            let rows = x_gates.chunks_exact_mut(gates).zip(h_gates.chunks_exact(gates));
            let states = c.chunks_exact_mut(hidden_size).zip(h.chunks_exact_mut(hidden_size));
            for ((x_gates, h_gates), (c, h)) in rows.zip(states) {
                advance_row(x_gates, h_gates, bias, c, h);
            }
        },
    );
}

#[inline(always)]
fn advance_row(x_gates: &mut [f32], h_gates: &[f32], bias: &[f32], c: &mut [f32], h: &mut [f32]) {
    let hidden_size = c.len();
    activate(&mut x_gates[..2 * hidden_size], &h_gates[..2 * hidden_size], &bias[..2 * hidden_size], sigmoid);
    let (g, o) = (2 * hidden_size..3 * hidden_size, 3 * hidden_size..4 * hidden_size);
    activate(&mut x_gates[g.clone()], &h_gates[g.clone()], &bias[g], tanh);
    activate(&mut x_gates[o.clone()], &h_gates[o.clone()], &bias[o], sigmoid);

    let (i, rest) = x_gates.split_at(hidden_size);
    let (f, rest) = rest.split_at(hidden_size);
    let (g, o) = rest.split_at(hidden_size);
    for ((c, i), (f, g)) in c.iter_mut().zip(i).zip(f.iter().zip(g)) {
        *c = f * *c + i * g;
    }
    for ((h, o), c) in h.iter_mut().zip(o).zip(&*c) {
        *h = o * tanh(*c);
    }
}

#[inline(always)]
fn activate(x_gates: &mut [f32], h_gates: &[f32], bias: &[f32], activation: impl Fn(f32) -> f32) {
    for ((x, h), b) in x_gates.iter_mut().zip(h_gates).zip(bias) {
        *x = activation((*x + b) + h);
    }
}

/// e^x = s·(1 + p): s = 2^n with n = round(x / ln 2), and p = e^r − 1 for the rest r, |r| ≤ ln 2 / 2.
/// x must lie within ±87, or be NaN.
#[inline(always)]
fn exp_parts(x: f32) -> (f32, f32) {
    /// 1.5·2^23: adding it rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; n · HIGH is exact for |n| < 2^15.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // (e^r − 1 − r) / r² by weighted least squares over |r| ≤ ln 2 / 2, relative error of e^r 1.1e-9.
    const Q: [f32; 6] = [0.5, 0.166_666_66, 0.041_666_295, 0.008_333_497, 0.001_394_468_5, 0.000_197_903_72];

    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let q = ((((Q[5] * r + Q[4]) * r + Q[3]) * r + Q[2]) * r + Q[1]) * r + Q[0];
    let s = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    (s, r + r * r * q)
}

/// 1 / (1 + e^−x), from e^−|x| so that nothing overflows; exactly 0 below −87 and 1 above 17.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    let a = -x.abs();
    // Comparisons that are false for NaN let it pass; f32::max would drop it.
    let (s, p) = exp_parts(if a < LOWEST { LOWEST } else { a });
    let e = if a < LOWEST { 0.0 } else { s + s * p };
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

/// tanh x = m / (m + 2) with m = e^2|x| − 1, whose small values keep their relative accuracy; ±1 from 10 on.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    const HIGHEST: f32 = 10.0;
    let a = x.abs();
    let a = if a > HIGHEST { HIGHEST } else { a };
    let (s, p) = exp_parts(2.0 * a);
    let m = (s - 1.0) + s * p;
    (m / (m + 2.0)).copysign(x)
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
        let worst =
            worst_ulps(sigmoid, |x| if x < -87.0 { 0.0f64.max((-1e9f64).exp()) } else { 1.0 / (1.0 + (-x).exp()) });
        assert!(worst.0 <= 3.0, "sigmoid({}) is {} ulps off", worst.1, worst.0);
        let worst = worst_ulps(tanh, f64::tanh);
        assert!(worst.0 <= 3.0, "tanh({}) is {} ulps off", worst.1, worst.0);
    }

    #[test]
    fn ends_saturate_and_nan_passes() {
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
    fn vectors_and_scalars_agree_bit_for_bit() {
        let hidden_size = 37;
        let values = |seed: u64, n: usize| -> Vec<f32> {
            let mut state = seed;
            (0..n).map(|_| 12.0 * crate::weights::uniform(&mut state) - 6.0).collect()
        };
        let (x_gates, h_gates, bias) =
            (values(1, 12 * hidden_size), values(2, 12 * hidden_size), values(3, 4 * hidden_size));
        let (c_0, mut h) = (values(4, 3 * hidden_size), vec![f32::NAN; 3 * hidden_size]);
        let (mut used, mut c) = (x_gates.clone(), c_0.clone());
        advance(Arch::new(), &mut used, &h_gates, &bias, &mut c, &mut h);
        for row in 0..3 {
            for j in 0..hidden_size {
                let gate = |g: usize| {
                    let at = row * 4 * hidden_size + g * hidden_size + j;
                    (x_gates[at] + bias[g * hidden_size + j]) + h_gates[at]
                };
                let at = row * hidden_size + j;
                let expected = sigmoid(gate(1)) * c_0[at] + sigmoid(gate(0)) * tanh(gate(2));
                assert_eq!([c[at], h[at]], [expected, sigmoid(gate(3)) * tanh(expected)]);
            }
        }
    }
}
