//! The elementwise half of a timestep: sums, activations and the cell equations, for rows of gates.
//!
//! In:  `x_gates` and `h_gates`, the two products of every gate; the state.
//! Out: the state one step later; `x_gates` is used up.
//! [`pulp::Arch`] compiles the loops for the widest vectors that the processor has, and the bits are the same on all
//! of them.
//! Not here: products (`matmul.rs`), the functions themselves (`activation.rs`).

use pulp::Arch;

use super::activation::{Clipped, clamp, sigmoid, tanh};
use crate::cell::{CellSpec, GruCell, LstmCell, RnnCell};
use crate::spec::LayerSpec;
use crate::weights::CellWeights;

/// The equations of one direction with the vectors that they need.
pub(super) enum Elementwise {
    /// LSTM with the default options, which most models have.
    Plain(PlainLstm),
    /// LSTM with any.
    Lstm(Box<Lstm>),
    Gru(Gru),
    Rnn(Rnn),
}

impl Elementwise {
    pub(super) fn new(layer: &LayerSpec, direction: usize, weights: &CellWeights) -> Self {
        let hidden_size = layer.hidden_size;
        let bias = summed_bias(layer, weights);
        match &layer.cell {
            CellSpec::Lstm(cell) if is_plain(cell) => Self::Plain(PlainLstm { bias }),
            CellSpec::Lstm(cell) => Self::Lstm(Box::new(Lstm::new(cell, direction, bias, weights))),
            CellSpec::Gru(cell) => Self::Gru(Gru::new(cell, direction, bias, hidden_size, weights)),
            CellSpec::Rnn(RnnCell { activations, activation_clip }) => {
                let f = Clipped { function: activations[direction], clip: *activation_clip };
                Self::Rnn(Rnn { bias, f })
            }
        }
    }
}

/// Whether the options are the default but for those that belong to the projection.
fn is_plain(cell: &LstmCell) -> bool {
    LstmCell { projection_bias: false, ..*cell } == LstmCell::default()
}

/// b_ih + b_hh, zero without biases.
fn summed_bias(layer: &LayerSpec, weights: &CellWeights) -> Vec<f32> {
    match (&weights.bias_ih, &weights.bias_hh) {
        (Some(ih), Some(hh)) => ih.iter().zip(hh).map(|(ih, hh)| ih + hh).collect(),
        _ => vec![0.0; layer.gate_rows()],
    }
}

/// gate = (x·W_ih + bias) + h·W_hh; c = σ(f)·c + σ(i)·tanh(g); h = σ(o)·tanh(c).
pub(super) struct PlainLstm {
    /// `[4H]`
    bias: Vec<f32>,
}

impl PlainLstm {
    /// `x_gates` and `h_gates` [rows, 4H], `c` and `h` [rows, H]; `h` is written.
    pub(super) fn advance(&self, arch: Arch, x_gates: &mut [f32], h_gates: &[f32], c: &mut [f32], h: &mut [f32]) {
        let gates = self.bias.len();
        let hidden_size = gates / 4;
        arch.dispatch(
            #[inline(always)]
            || {
                let rows = x_gates.chunks_exact_mut(gates).zip(h_gates.chunks_exact(gates));
                let states = c.chunks_exact_mut(hidden_size).zip(h.chunks_exact_mut(hidden_size));
                for ((x_gates, h_gates), (c, h)) in rows.zip(states) {
                    self.row(x_gates, h_gates, c, h);
                }
            },
        );
    }

    #[inline(always)]
    fn row(&self, x_gates: &mut [f32], h_gates: &[f32], c: &mut [f32], h: &mut [f32]) {
        let hidden_size = c.len();
        activated(&mut x_gates[..2 * hidden_size], &h_gates[..2 * hidden_size], &self.bias[..2 * hidden_size], sigmoid);
        let (g, o) = (2 * hidden_size..3 * hidden_size, 3 * hidden_size..4 * hidden_size);
        activated(&mut x_gates[g.clone()], &h_gates[g.clone()], &self.bias[g], tanh);
        activated(&mut x_gates[o.clone()], &h_gates[o.clone()], &self.bias[o], sigmoid);

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
}

#[inline(always)]
fn activated(x_gates: &mut [f32], h_gates: &[f32], bias: &[f32], activation: impl Fn(f32) -> f32) {
    for ((x, h), b) in x_gates.iter_mut().zip(h_gates).zip(bias) {
        *x = activation((*x + b) + h);
    }
}

/// LSTM with options; the equations are those of `reference/cell.rs`.
pub(super) struct Lstm {
    f: Clipped,
    g: Clipped,
    h: Clipped,
    coupled: bool,
    cell_clip: Option<f32>,
    /// `[4H]`; added after the normalisation if there is one.
    bias: Vec<f32>,
    /// [3, H]: i f o.
    peephole: Option<Vec<f32>>,
    /// [4, H]: i f g o.
    norm: Option<Vec<f32>>,
}

impl Lstm {
    fn new(cell: &LstmCell, direction: usize, bias: Vec<f32>, weights: &CellWeights) -> Self {
        let functions = cell.activations[direction];
        let clip = cell.activation_clip;
        Self {
            f: Clipped { function: functions.f, clip },
            g: Clipped { function: functions.g, clip },
            h: Clipped { function: functions.h, clip: clip.filter(|_| cell.clip_output_activation) },
            coupled: cell.coupled_input_forget,
            cell_clip: cell.cell_clip,
            bias,
            peephole: weights.weight_peephole.clone(),
            norm: weights.weight_norm.clone(),
        }
    }

    /// `x_gates` and `h_gates` [rows, 4H], `c` and `h` [rows, H]; `h` is written.
    pub(super) fn advance(&self, arch: Arch, x_gates: &mut [f32], h_gates: &[f32], c: &mut [f32], h: &mut [f32]) {
        let gates = self.bias.len();
        let hidden_size = gates / 4;
        arch.dispatch(
            #[inline(always)]
            || {
                let rows = x_gates.chunks_exact_mut(gates).zip(h_gates.chunks_exact(gates));
                let states = c.chunks_exact_mut(hidden_size).zip(h.chunks_exact_mut(hidden_size));
                for ((x_gates, h_gates), (c, h)) in rows.zip(states) {
                    self.row(x_gates, h_gates, c, h);
                }
            },
        );
    }

    #[inline(always)]
    fn row(&self, gates: &mut [f32], h_gates: &[f32], c: &mut [f32], h: &mut [f32]) {
        let hidden_size = c.len();
        match &self.norm {
            None => activated(gates, h_gates, &self.bias, |x| x),
            Some(_) => gates.iter_mut().zip(h_gates).for_each(|(x, h)| *x += h),
        }
        let (i, rest) = gates.split_at_mut(hidden_size);
        let (f, rest) = rest.split_at_mut(hidden_size);
        let (g, o) = rest.split_at_mut(hidden_size);
        self.peep(0, i, c);
        self.gate(0, i, self.f);
        if self.coupled {
            f.iter_mut().zip(&*i).for_each(|(f, i)| *f = 1.0 - i);
        } else {
            self.peep(1, f, c);
            self.gate(1, f, self.f);
        }
        self.gate(2, g, self.g);
        for ((c, i), (f, g)) in c.iter_mut().zip(&*i).zip(f.iter().zip(&*g)) {
            *c = f * *c + i * g;
        }
        if let Some(limit) = self.cell_clip {
            c.iter_mut().for_each(|c| *c = clamp(*c, -limit, limit));
        }
        self.peep(2, o, c);
        self.gate(3, o, self.f);
        h.copy_from_slice(c);
        self.h.apply(h);
        h.iter_mut().zip(&*o).for_each(|(h, o)| *h *= o);
    }

    /// gate + p·c
    #[inline(always)]
    fn peep(&self, part: usize, gate: &mut [f32], c: &[f32]) {
        if let Some(peephole) = &self.peephole {
            let weights = &peephole[part * c.len()..][..c.len()];
            gate.iter_mut().zip(weights).zip(c).for_each(|((gate, p), c)| *gate += p * c);
        }
    }

    /// The normalisation, if there is one, and the activation.
    #[inline(always)]
    fn gate(&self, part: usize, gate: &mut [f32], f: Clipped) {
        if let Some(norm) = &self.norm {
            let at = part * gate.len()..(part + 1) * gate.len();
            normalise(gate, &norm[at.clone()], &self.bias[at]);
        }
        f.apply(gate);
    }
}

/// (gate − mean) / √(variance + 1e-8) · scale + bias; the two means are summed in order.
#[inline(always)]
fn normalise(gate: &mut [f32], scale: &[f32], bias: &[f32]) {
    let count = gate.len() as f32;
    let mean = gate.iter().sum::<f32>() / count;
    let variance = gate.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / count;
    let deviation = (variance + 1e-8).sqrt();
    for ((v, scale), bias) in gate.iter_mut().zip(scale).zip(bias) {
        *v = (*v - mean) / deviation * scale + bias;
    }
}

/// GRU; its two forms differ in where r multiplies.
pub(super) struct Gru {
    f: Clipped,
    g: Clipped,
    /// `[3H]`: r and z have both biases, n has b_hn only if not linear before reset.
    bias: Vec<f32>,
    /// b_hn, `[H]`; zero if not linear before reset.
    bias_hn: Vec<f32>,
}

impl Gru {
    fn new(cell: &GruCell, direction: usize, mut bias: Vec<f32>, hidden_size: usize, weights: &CellWeights) -> Self {
        let functions = cell.activations[direction];
        let mut bias_hn = vec![0.0; hidden_size];
        if let (true, Some(ih), Some(hh)) = (cell.linear_before_reset, &weights.bias_ih, &weights.bias_hh) {
            bias[2 * hidden_size..].copy_from_slice(&ih[2 * hidden_size..]);
            bias_hn.copy_from_slice(&hh[2 * hidden_size..]);
        }
        let clipped = |function| Clipped { function, clip: cell.activation_clip };
        Self { f: clipped(functions.f), g: clipped(functions.g), bias, bias_hn }
    }

    /// Linear before reset, the whole step: `x_gates` and `h_gates` [rows, 3H], `h` [rows, H].
    pub(super) fn advance(&self, arch: Arch, x_gates: &mut [f32], h_gates: &[f32], h: &mut [f32]) {
        let (gates, hidden_size) = (self.bias.len(), self.bias_hn.len());
        arch.dispatch(
            #[inline(always)]
            || {
                let rows = x_gates.chunks_exact_mut(gates).zip(h_gates.chunks_exact(gates));
                for ((x_gates, h_gates), h) in rows.zip(h.chunks_exact_mut(hidden_size)) {
                    self.open(x_gates, h_gates);
                    let (rz, n) = x_gates.split_at_mut(2 * hidden_size);
                    let h_n = h_gates[2 * hidden_size..].iter().zip(&self.bias_hn);
                    let inputs = self.bias[2 * hidden_size..].iter().zip(h_n);
                    for ((n, r), (b, (h_n, b_hn))) in n.iter_mut().zip(&*rz).zip(inputs) {
                        *n = (*n + b) + r * (h_n + b_hn);
                    }
                    self.g.apply(n);
                    blend(&rz[hidden_size..], n, h);
                }
            },
        );
    }

    /// Not linear before reset, first half: r and z into `x_gates`, and r·h into `reset` [rows, H]. `h_gates` is
    /// [rows, 2H].
    pub(super) fn reset(&self, arch: Arch, x_gates: &mut [f32], h_gates: &[f32], h: &[f32], reset: &mut [f32]) {
        let (gates, hidden_size) = (self.bias.len(), self.bias_hn.len());
        arch.dispatch(
            #[inline(always)]
            || {
                let rows = x_gates.chunks_exact_mut(gates).zip(h_gates.chunks_exact(2 * hidden_size));
                let states = h.chunks_exact(hidden_size).zip(reset.chunks_exact_mut(hidden_size));
                for ((x_gates, h_gates), (h, reset)) in rows.zip(states) {
                    self.open(x_gates, h_gates);
                    for ((reset, r), h) in reset.iter_mut().zip(&*x_gates).zip(h) {
                        *reset = r * h;
                    }
                }
            },
        );
    }

    /// Second half: `n_gates` is (r·h)·W_hn, [rows, H].
    pub(super) fn finish(&self, arch: Arch, x_gates: &mut [f32], n_gates: &[f32], h: &mut [f32]) {
        let (gates, hidden_size) = (self.bias.len(), self.bias_hn.len());
        arch.dispatch(
            #[inline(always)]
            || {
                let rows = x_gates.chunks_exact_mut(gates).zip(n_gates.chunks_exact(hidden_size));
                for ((x_gates, n_gates), h) in rows.zip(h.chunks_exact_mut(hidden_size)) {
                    let (rz, n) = x_gates.split_at_mut(2 * hidden_size);
                    activated(n, n_gates, &self.bias[2 * hidden_size..], |x| x);
                    self.g.apply(n);
                    blend(&rz[hidden_size..], n, h);
                }
            },
        );
    }

    /// The gates r and z.
    #[inline(always)]
    fn open(&self, x_gates: &mut [f32], h_gates: &[f32]) {
        let rz = &mut x_gates[..2 * self.bias_hn.len()];
        activated(rz, h_gates, &self.bias, |x| x);
        self.f.apply(rz);
    }
}

/// h = (1 − z)·n + z·h
#[inline(always)]
fn blend(z: &[f32], n: &[f32], h: &mut [f32]) {
    for ((h, z), n) in h.iter_mut().zip(z).zip(n) {
        *h = (1.0 - z) * n + z * *h;
    }
}

/// h = f((x·W_ih + bias) + h·W_hh)
pub(super) struct Rnn {
    bias: Vec<f32>,
    f: Clipped,
}

impl Rnn {
    /// `x_gates` and `h_gates` [rows, H], `h` [rows, H]; `h` is written.
    pub(super) fn advance(&self, arch: Arch, x_gates: &mut [f32], h_gates: &[f32], h: &mut [f32]) {
        let hidden_size = self.bias.len();
        arch.dispatch(
            #[inline(always)]
            || {
                let rows = x_gates.chunks_exact_mut(hidden_size).zip(h_gates.chunks_exact(hidden_size));
                for ((x_gates, h_gates), h) in rows.zip(h.chunks_exact_mut(hidden_size)) {
                    activated(x_gates, h_gates, &self.bias, |x| x);
                    self.f.apply(x_gates);
                    h.copy_from_slice(x_gates);
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let plain = PlainLstm { bias: bias.clone() };
        plain.advance(Arch::new(), &mut used, &h_gates, &mut c, &mut h);
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
        // The form with options, none of them set, has the same bits.
        let general = Lstm::new(&LstmCell::default(), 0, bias, &CellWeights::default());
        let (mut used, mut general_c, mut general_h) = (x_gates.clone(), c_0.clone(), vec![f32::NAN; 3 * hidden_size]);
        general.advance(Arch::new(), &mut used, &h_gates, &mut general_c, &mut general_h);
        assert_eq!((general_c, general_h), (c, h));
    }
}
