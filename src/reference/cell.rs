//! One cell and one timestep, as the equations are printed.
//!
//! LSTM, with S(x, h) = W_i·x + b_i + W_h·h + b_h of each gate and the options in brackets:
//!
//! ```text
//! i = f(S_i [+ p_i·c])        f = f(S_f [+ p_f·c]), or [1 − i]        g = g(S_g)
//! c' = f·c + i·g [clamped]    o = f(S_o [+ p_o·c'])
//! h' = o·h(c')                with projection: h' = W_hr·(o·h(c')) [+ b_hr]
//! ```
//!
//! Sources: [torch.nn.LSTM](https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html); the options
//! [ONNX LSTM](https://onnx.ai/onnx/operators/onnx__LSTM.html); the projection
//! [Sak et al. 2014](https://arxiv.org/abs/1402.1128), section 2. With layer normalisation S has no bias; the sum,
//! peephole included, becomes (S − mean S) / √(var S + 1e-8) · γ + b over the units
//! ([NNAPI](https://developer.android.com/ndk/reference/group/neural-networks)).
//!
//! GRU and RNN, [ONNX](https://onnx.ai/onnx/operators/onnx__GRU.html) and
//! [PyTorch](https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html):
//!
//! ```text
//! r = f(S_r)      z = f(S_z)      h' = (1 − z)·n + z·h
//! n = g(W_in·x + b_in + r·(W_hn·h + b_hn))        linear before reset
//! n = g(W_in·x + b_in + W_hn·(r·h) + b_hn)        otherwise
//! RNN: h' = f(S)
//! ```
//!
//! In:  one row of input, `h` and `c` of one sequence.
//! Out: `h` and `c` one step later.
//! Not here: lengths, directions, layers (`mod.rs`).

use super::Real;
use super::activation::{activate, clamp};
use crate::activation::Activation;
use crate::cell::{CellSpec, GruCell, LstmCell, RnnCell};
use crate::spec::LayerSpec;
use crate::weights::CellWeights;

/// NNAPI adds it to the variance.
const NORM_EPSILON: f32 = 1e-8;

/// A cell with room for the values of one step.
pub(super) struct Cell<'a, R> {
    layer: &'a LayerSpec,
    weights: &'a CellWeights,
    /// 0 forward, 1 reverse of a bidirectional layer.
    direction: usize,
    /// o·h(c') of an LSTM, r·h of a GRU, `[H]`
    hidden: Vec<R>,
    /// [G, H]; `h` must not change before the last gate has read it.
    gates: Vec<R>,
}

impl<'a, R: Real> Cell<'a, R> {
    pub(super) fn new(layer: &'a LayerSpec, weights: &'a CellWeights, direction: usize) -> Self {
        let (hidden, gates) = (vec![R::ZERO; layer.hidden_size], vec![R::ZERO; layer.gate_rows()]);
        Self { layer, weights, direction, hidden, gates }
    }

    /// Advances `h` [H or P] and `c` ([H] of an LSTM, otherwise empty) by the timestep whose input is `x` `[I]`.
    pub(super) fn step(&mut self, x: &[R], h: &mut [R], c: &mut [R]) {
        match &self.layer.cell {
            CellSpec::Lstm(cell) => self.lstm(cell, x, h, c),
            CellSpec::Gru(cell) => self.gru(cell, x, h),
            CellSpec::Rnn(cell) => self.rnn(cell, x, h),
        }
    }

    fn lstm(&mut self, cell: &LstmCell, x: &[R], h: &mut [R], c: &mut [R]) {
        let hidden_size = self.layer.hidden_size;
        let functions = cell.activations[self.direction];
        let clip = cell.activation_clip;
        let peephole = |part: usize, j: usize, c: R| match &self.weights.weight_peephole {
            Some(p) => R::from_f32(p[part * hidden_size + j]) * c,
            None => R::ZERO,
        };
        let [i, f, g, o] = [0, 1, 2, 3].map(|gate| gate * hidden_size..(gate + 1) * hidden_size);
        let mut gates = std::mem::take(&mut self.gates);
        gates.iter_mut().enumerate().for_each(|(row, gate)| *gate = self.lstm_sum(cell, row, x, h));
        for j in 0..hidden_size {
            gates[i.start + j] += peephole(0, j, c[j]);
            gates[f.start + j] += peephole(1, j, c[j]);
        }
        for part in [&i, &f, &g] {
            self.normalise(cell, &mut gates, part.clone());
        }
        for j in 0..hidden_size {
            let input = clipped(functions.f, gates[i.start + j], clip);
            let forget = match cell.coupled_input_forget {
                true => R::ONE - input,
                false => clipped(functions.f, gates[f.start + j], clip),
            };
            c[j] = forget * c[j] + input * clipped(functions.g, gates[g.start + j], clip);
            if let Some(limit) = cell.cell_clip {
                c[j] = clamp(c[j], -R::from_f32(limit), R::from_f32(limit));
            }
            gates[o.start + j] += peephole(2, j, c[j]);
        }
        self.normalise(cell, &mut gates, o.clone());
        let output_clip = clip.filter(|_| cell.clip_output_activation);
        for j in 0..hidden_size {
            let output = clipped(functions.f, gates[o.start + j], clip);
            self.hidden[j] = output * clipped(functions.h, c[j], output_clip);
        }
        self.gates = gates;
        match &self.weights.weight_hr {
            None => h.copy_from_slice(&self.hidden),
            Some(weight_hr) => {
                for (p, (h, row)) in h.iter_mut().zip(weight_hr.chunks_exact(hidden_size)).enumerate() {
                    *h = dot(row, &self.hidden) + bias(&self.weights.bias_hr, p);
                }
            }
        }
    }

    /// Layer normalisation of one gate's sums, with scale and bias; nothing without the option.
    fn normalise(&self, cell: &LstmCell, gates: &mut [R], part: std::ops::Range<usize>) {
        if !cell.layer_norm {
            return;
        }
        let count = R::from_f32(part.len() as f32);
        let total = |values: &mut dyn Iterator<Item = R>| {
            let mut sum = R::ZERO;
            values.for_each(|v| sum += v);
            sum / count
        };
        let mean = total(&mut gates[part.clone()].iter().copied());
        let variance = total(&mut gates[part.clone()].iter().map(|&v| (v - mean) * (v - mean)));
        let deviation = (variance + R::from_f32(NORM_EPSILON)).sqrt();
        let scale = self.weights.weight_norm.as_ref().expect("LstmWeights::new: present with layer_norm");
        for row in part {
            let bias: R = bias::<R>(&self.weights.bias_ih, row) + bias(&self.weights.bias_hh, row);
            gates[row] = (gates[row] - mean) / deviation * R::from_f32(scale[row]) + bias;
        }
    }

    fn gru(&mut self, cell: &GruCell, x: &[R], h: &mut [R]) {
        let hidden_size = self.layer.hidden_size;
        let functions = cell.activations[self.direction];
        let clip = cell.activation_clip;
        for row in 0..2 * hidden_size {
            self.gates[row] = clipped(functions.f, self.gate_sum(row, x, h), clip);
        }
        for ((hidden, r), h) in self.hidden.iter_mut().zip(&self.gates).zip(&*h) {
            *hidden = *r * *h;
        }
        for j in 0..hidden_size {
            let row = 2 * hidden_size + j;
            let from_x = self.input_product(row, x) + bias(&self.weights.bias_ih, row);
            let b_hn = bias(&self.weights.bias_hh, row);
            let from_h = match cell.linear_before_reset {
                true => self.gates[j] * (self.hidden_product(row, h) + b_hn),
                false => self.hidden_product(row, &self.hidden) + b_hn,
            };
            self.gates[row] = clipped(functions.g, from_x + from_h, clip);
        }
        for (j, h) in h.iter_mut().enumerate() {
            let (z, n) = (self.gates[hidden_size + j], self.gates[2 * hidden_size + j]);
            *h = (R::ONE - z) * n + z * *h;
        }
    }

    fn rnn(&mut self, cell: &RnnCell, x: &[R], h: &mut [R]) {
        for row in 0..self.layer.hidden_size {
            self.gates[row] = clipped(cell.activations[self.direction], self.gate_sum(row, x, h), cell.activation_clip);
        }
        h.copy_from_slice(&self.gates);
    }

    /// W_ih·x + b_ih + W_hh·h + b_hh of gate row `row`.
    fn gate_sum(&self, row: usize, x: &[R], h: &[R]) -> R {
        let CellWeights { bias_ih, bias_hh, .. } = self.weights;
        self.input_product(row, x) + bias(bias_ih, row) + self.hidden_product(row, h) + bias(bias_hh, row)
    }

    /// The same for an LSTM, whose biases come after the normalisation if there is one.
    fn lstm_sum(&self, cell: &LstmCell, row: usize, x: &[R], h: &[R]) -> R {
        match cell.layer_norm {
            true => self.input_product(row, x) + self.hidden_product(row, h),
            false => self.gate_sum(row, x, h),
        }
    }

    fn input_product(&self, row: usize, x: &[R]) -> R {
        dot(&self.weights.weight_ih[row * self.layer.input_size..][..self.layer.input_size], x)
    }

    fn hidden_product(&self, row: usize, h: &[R]) -> R {
        dot(&self.weights.weight_hh[row * self.layer.h_size()..][..self.layer.h_size()], h)
    }
}

/// f of x, clamped to ±`clip` before.
fn clipped<R: Real>(f: Activation, x: R, clip: Option<f32>) -> R {
    activate(f, clip.map_or(x, |limit| clamp(x, -R::from_f32(limit), R::from_f32(limit))))
}

fn bias<R: Real>(bias: &Option<Vec<f32>>, row: usize) -> R {
    bias.as_ref().map_or(R::ZERO, |b| R::from_f32(b[row]))
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
}
