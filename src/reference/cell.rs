//! One cell and one timestep, as the equations are printed.
//!
//! ```text
//! i = σ(W_ii·x + b_ii + W_hi·h + b_hi)        f = σ(W_if·x + b_if + W_hf·h + b_hf)
//! g = tanh(W_ig·x + b_ig + W_hg·h + b_hg)     o = σ(W_io·x + b_io + W_ho·h + b_ho)
//! c' = f·c + i·g                              h' = o·tanh(c')       with projection: h' = W_hr·(o·tanh(c'))
//! ```
//!
//! Source: [torch.nn.LSTM](https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html); the projection is
//! that of [Sak et al. 2014](https://arxiv.org/abs/1402.1128), section 2.
//!
//! In:  one row of input, `h` and `c` of one sequence.
//! Out: `h` and `c` one step later.
//! Not here: lengths, directions, layers (`mod.rs`).

use super::Real;
use crate::spec::LayerSpec;
use crate::weights::CellWeights;

/// A cell with room for the values of one step.
pub(super) struct Cell<'a, R> {
    layer: &'a LayerSpec,
    weights: &'a CellWeights,
    /// o·tanh(c'), `[H]`
    hidden: Vec<R>,
    /// i, f, g, o of every unit; `h` must not change before the last gate has read it.
    activated: Vec<[R; 4]>,
}

impl<'a, R: Real> Cell<'a, R> {
    pub(super) fn new(layer: &'a LayerSpec, weights: &'a CellWeights) -> Self {
        let hidden_size = layer.hidden_size;
        Self { layer, weights, hidden: vec![R::ZERO; hidden_size], activated: vec![[R::ZERO; 4]; hidden_size] }
    }

    /// Advances `h` [H or P] and `c` `[H]` by the timestep whose input is `x` `[I]`.
    pub(super) fn step(&mut self, x: &[R], h: &mut [R], c: &mut [R]) {
        let hidden_size = self.layer.hidden_size;
        for (j, activated) in self.activated.iter_mut().enumerate() {
            let [i, f, g, o] =
                [0, 1, 2, 3].map(|gate| gate_sum(self.layer, self.weights, gate * hidden_size + j, x, h));
            *activated = [sigmoid(i), sigmoid(f), g.tanh(), sigmoid(o)];
        }
        for (j, &[i, f, g, o]) in self.activated.iter().enumerate() {
            c[j] = f * c[j] + i * g;
            self.hidden[j] = o * c[j].tanh();
        }
        match &self.weights.weight_hr {
            None => h.copy_from_slice(&self.hidden),
            Some(weight_hr) => {
                for (h, row) in h.iter_mut().zip(weight_hr.chunks_exact(hidden_size)) {
                    *h = dot(row, &self.hidden);
                }
            }
        }
    }
}

/// The pre-activation of gate row `r`: W_ih·x + b_ih + W_hh·h + b_hh.
fn gate_sum<R: Real>(layer: &LayerSpec, weights: &CellWeights, r: usize, x: &[R], h: &[R]) -> R {
    let weight_ih = &weights.weight_ih[r * layer.input_size..][..layer.input_size];
    let weight_hh = &weights.weight_hh[r * layer.h_size()..][..layer.h_size()];
    let bias = |bias: &Option<Vec<f32>>| bias.as_ref().map_or(R::ZERO, |b| R::from_f32(b[r]));
    dot(weight_ih, x) + bias(&weights.bias_ih) + dot(weight_hh, h) + bias(&weights.bias_hh)
}

/// Σ w·x in eight partial sums, so that the additions do not wait for one another.
fn dot<R: Real>(w: &[f32], x: &[R]) -> R {
    assert_eq!(w.len(), x.len());
    let (w_blocks, w_tail) = w.as_chunks::<8>();
    let (x_blocks, x_tail) = x.as_chunks::<8>();
    let mut sums = [R::ZERO; 8];
    for (w, x) in w_blocks.iter().zip(x_blocks) {
        for k in 0..8 {
            sums[k] += R::from_f32(w[k]) * x[k];
        }
    }
    let mut sum = ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
    for (&w, &x) in w_tail.iter().zip(x_tail) {
        sum += R::from_f32(w) * x;
    }
    sum
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
    fn dot_takes_every_element_once() {
        for n in [0, 1, 7, 8, 9, 16, 23, 100] {
            let w: Vec<f32> = (0..n).map(|k| k as f32 + 1.0).collect();
            let ones = vec![1.0f64; n];
            assert_eq!(dot(&w, &ones), (n * (n + 1) / 2) as f64);
            for k in 0..n {
                let mut unit = vec![0.0f64; n];
                unit[k] = 1.0;
                assert_eq!(dot(&w, &unit), k as f64 + 1.0);
            }
        }
    }

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
}
