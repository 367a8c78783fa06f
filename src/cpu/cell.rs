//! The elementwise half of a timestep: sums, activations and the cell equations, for the units of a block.
//!
//! In:  `x_gates` and `sums` [rows][gates][units], the two products of every gate; the state [rows][units].
//! Out: the state one step later; `x_gates` is used up.
//! [`pulp::Arch`] compiles the loops for the widest vectors that the processor has, and the bits are the same on all
//! that have fused multiply-add. A block has 16 units; with layer normalisation, which needs all of them at once, the block is the layer.
//! Not here: products (`panels.rs`), the functions themselves (`activation.rs`).

use pulp::{Arch, Simd, WithSimd};

use super::activation::{Clipped, clamp, mul_add, sigmoid, tanh};
use super::rows::LANES;
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
        let bias = summed_bias(layer, weights);
        match &layer.cell {
            CellSpec::Lstm(cell) if is_plain(cell) => {
                Self::Plain(PlainLstm { bias: by_block(&bias, 4, layer.hidden_size, LANES) })
            }
            CellSpec::Lstm(cell) => Self::Lstm(Box::new(Lstm::new(cell, direction, &bias, layer.hidden_size, weights))),
            CellSpec::Gru(cell) => Self::Gru(Gru::new(cell, direction, bias, layer.hidden_size, weights)),
            CellSpec::Rnn(RnnCell { activations, activation_clip }) => {
                let f = Clipped { function: activations[direction], clip: *activation_clip };
                Self::Rnn(Rnn { bias: by_block(&bias, 1, layer.hidden_size, LANES), f })
            }
        }
    }
}

impl Elementwise {
    /// Whether a block is the layer.
    pub(super) fn needs_all_units(&self) -> bool {
        matches!(self, Self::Lstm(cell) if cell.norm.is_some())
    }

    /// One step of the units of `step`, or its first half where a step has two: `h` is then r·h.
    pub(super) fn advance(&self, arch: Arch, step: Step<'_>) {
        arch.dispatch(Advance { cell: self, step, second_half: false });
    }

    /// The second half of a GRU that is not linear before reset: the sums are (r·h)·W_hn.
    pub(super) fn finish(&self, arch: Arch, step: Step<'_>) {
        arch.dispatch(Advance { cell: self, step, second_half: true });
    }
}

/// What a step of the units of a block reads and writes, for some rows.
pub(super) struct Step<'a> {
    pub(super) block: usize,
    /// [rows][gates][units], used up.
    pub(super) x_gates: &'a mut [f32],
    /// [rows][gates of the product][units]
    pub(super) sums: &'a [f32],
    /// [rows][units]; empty without a cell state.
    pub(super) c: &'a mut [f32],
    /// [rows][units], only read without a cell state.
    pub(super) h_prev: &'a [f32],
    /// [rows][units], written.
    pub(super) h: &'a mut [f32],
}

/// A struct, not a closure: the compiler does not always inline a closure into the function that has the vectors.
struct Advance<'a> {
    cell: &'a Elementwise,
    step: Step<'a>,
    second_half: bool,
}

impl WithSimd for Advance<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        // Vectors come with fused multiply-add, but in WebAssembly.
        if S::F32_LANES > 1 && !cfg!(target_family = "wasm") { self.run::<true>() } else { self.run::<false>() }
    }
}

impl Advance<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        match self.cell {
            Elementwise::Plain(cell) => cell.advance::<FUSED>(self.step),
            Elementwise::Lstm(cell) => cell.advance::<FUSED>(self.step),
            Elementwise::Gru(cell) if cell.linear_before_reset => cell.advance::<FUSED>(self.step),
            Elementwise::Gru(cell) if self.second_half => cell.finish::<FUSED>(self.step),
            Elementwise::Gru(cell) => cell.reset::<FUSED>(self.step),
            Elementwise::Rnn(cell) => cell.advance::<FUSED>(self.step),
        }
    }
}

/// A vector [gates · H] as [⌈H / width⌉][gates][width], padded with zeros.
fn by_block(vector: &[f32], gates: usize, hidden_size: usize, width: usize) -> Vec<f32> {
    let mut values = vec![0.0; hidden_size.div_ceil(width) * gates * width];
    for (row, &v) in vector.iter().enumerate() {
        let (gate, unit) = (row / hidden_size, row % hidden_size);
        values[(unit / width * gates + gate) * width + unit % width] = v;
    }
    values
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
    /// [blocks][4][16]
    bias: Vec<f32>,
}

impl PlainLstm {
    #[inline(always)]
    fn advance<const FUSED: bool>(&self, step: Step<'_>) {
        let Step { block, x_gates, sums, c, h, .. } = step;
        const GATES: usize = 4 * LANES;
        let bias = self.bias.as_chunks::<GATES>().0[block].as_chunks::<LANES>().0;
        let rows = x_gates.as_chunks_mut::<GATES>().0.iter_mut().zip(sums.as_chunks::<GATES>().0);
        let states = c.as_chunks_mut::<LANES>().0.iter_mut().zip(h.as_chunks_mut::<LANES>().0);
        for ((x_gates, sums), (c, h)) in rows.zip(states) {
            let (x_gates, sums) = (x_gates.as_chunks::<LANES>().0, sums.as_chunks::<LANES>().0);
            let i = gate(&x_gates[0], &sums[0], &bias[0], sigmoid::<FUSED>);
            let f = gate(&x_gates[1], &sums[1], &bias[1], sigmoid::<FUSED>);
            let g = gate(&x_gates[2], &sums[2], &bias[2], tanh::<FUSED>);
            let o = gate(&x_gates[3], &sums[3], &bias[3], sigmoid::<FUSED>);
            for j in 0..LANES {
                c[j] = mul_add::<FUSED>(f[j], c[j], i[j] * g[j]);
            }
            for j in 0..LANES {
                h[j] = o[j] * tanh::<FUSED>(c[j]);
            }
        }
    }
}

#[inline(always)]
fn gate(
    x_gate: &[f32; LANES],
    sums: &[f32; LANES],
    bias: &[f32; LANES],
    activation: impl Fn(f32) -> f32,
) -> [f32; LANES] {
    let mut values = [0.0; LANES];
    for j in 0..LANES {
        values[j] = activation((x_gate[j] + bias[j]) + sums[j]);
    }
    values
}

#[inline(always)]
fn activated(x_gates: &mut [f32], sums: &[f32], bias: &[f32], activation: impl Fn(f32) -> f32) {
    for ((x, h), b) in x_gates.iter_mut().zip(sums).zip(bias) {
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
    /// Units of a block: 16, or all.
    width: usize,
    /// [blocks][4][width]; added after the normalisation if there is one.
    bias: Vec<f32>,
    /// [blocks][3][width]: i f o.
    peephole: Option<Vec<f32>>,
    /// [blocks][4][width]: i f g o.
    norm: Option<Vec<f32>>,
}

impl Lstm {
    fn new(cell: &LstmCell, direction: usize, bias: &[f32], hidden_size: usize, weights: &CellWeights) -> Self {
        let functions = cell.activations[direction];
        let clip = cell.activation_clip;
        let width = if cell.layer_norm { hidden_size } else { LANES };
        let vectors =
            |vector: &Option<Vec<f32>>, gates| vector.as_ref().map(|v| by_block(v, gates, hidden_size, width));
        Self {
            f: Clipped { function: functions.f, clip },
            g: Clipped { function: functions.g, clip },
            h: Clipped { function: functions.h, clip: clip.filter(|_| cell.clip_output_activation) },
            coupled: cell.coupled_input_forget,
            cell_clip: cell.cell_clip,
            width,
            bias: by_block(bias, 4, hidden_size, width),
            peephole: vectors(&weights.weight_peephole, 3),
            norm: vectors(&weights.weight_norm, 4),
        }
    }

    #[inline(always)]
    fn advance<const FUSED: bool>(&self, step: Step<'_>) {
        let Step { block, x_gates, sums, c, h, .. } = step;
        let rows = x_gates.chunks_exact_mut(4 * self.width).zip(sums.chunks_exact(4 * self.width));
        let states = c.chunks_exact_mut(self.width).zip(h.chunks_exact_mut(self.width));
        for ((x_gates, sums), (c, h)) in rows.zip(states) {
            self.row::<FUSED>(block, x_gates, sums, c, h);
        }
    }

    #[inline(always)]
    fn row<const FUSED: bool>(&self, block: usize, gates: &mut [f32], sums: &[f32], c: &mut [f32], h: &mut [f32]) {
        let width = self.width;
        let bias = &self.bias[block * 4 * width..][..4 * width];
        let peephole = self.peephole.as_ref().map(|p| &p[block * 3 * width..][..3 * width]);
        let norm = self.norm.as_ref().map(|n| &n[block * 4 * width..][..4 * width]);
        match norm {
            None => activated(gates, sums, bias, |x| x),
            Some(_) => gates.iter_mut().zip(sums).for_each(|(x, h)| *x += h),
        }
        let (i, rest) = gates.split_at_mut(width);
        let (f, rest) = rest.split_at_mut(width);
        let (g, o) = rest.split_at_mut(width);
        peep(peephole, 0, i, c);
        finish::<FUSED>(norm, bias, 0, i, self.f);
        if self.coupled {
            f.iter_mut().zip(&*i).for_each(|(f, i)| *f = 1.0 - i);
        } else {
            peep(peephole, 1, f, c);
            finish::<FUSED>(norm, bias, 1, f, self.f);
        }
        finish::<FUSED>(norm, bias, 2, g, self.g);
        for ((c, i), (f, g)) in c.iter_mut().zip(&*i).zip(f.iter().zip(&*g)) {
            *c = mul_add::<FUSED>(*f, *c, i * g);
        }
        if let Some(limit) = self.cell_clip {
            c.iter_mut().for_each(|c| *c = clamp(*c, -limit, limit));
        }
        peep(peephole, 2, o, c);
        finish::<FUSED>(norm, bias, 3, o, self.f);
        h.copy_from_slice(c);
        self.h.apply::<FUSED>(h);
        h.iter_mut().zip(&*o).for_each(|(h, o)| *h *= o);
    }
}

/// gate + p·c, for part `part` of the peepholes, if there are any.
#[inline(always)]
fn peep(peephole: Option<&[f32]>, part: usize, gate: &mut [f32], c: &[f32]) {
    if let Some(peephole) = peephole {
        let weights = &peephole[part * gate.len()..][..gate.len()];
        gate.iter_mut().zip(weights).zip(c).for_each(|((gate, p), c)| *gate += p * c);
    }
}

/// The normalisation, if there is one, and the activation.
#[inline(always)]
fn finish<const FUSED: bool>(norm: Option<&[f32]>, bias: &[f32], part: usize, gate: &mut [f32], f: Clipped) {
    if let Some(norm) = norm {
        let at = part * gate.len()..(part + 1) * gate.len();
        normalise(gate, &norm[at.clone()], &bias[at]);
    }
    f.apply::<FUSED>(gate);
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
    linear_before_reset: bool,
    /// [blocks][3][16]: r and z have both biases, n has b_hn only if not linear before reset.
    bias: Vec<f32>,
    /// b_hn, [blocks][16]; zero if not linear before reset.
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
        let bias = by_block(&bias, 3, hidden_size, LANES);
        let bias_hn = by_block(&bias_hn, 1, hidden_size, LANES);
        let linear_before_reset = cell.linear_before_reset;
        Self { f: clipped(functions.f), g: clipped(functions.g), linear_before_reset, bias, bias_hn }
    }

    /// Linear before reset, the whole step: `sums` has three gates.
    #[inline(always)]
    fn advance<const FUSED: bool>(&self, step: Step<'_>) {
        let Step { block, x_gates, sums, h_prev, h, .. } = step;
        let bias_hn = &self.bias_hn[block * LANES..][..LANES];
        let bias_n = &self.bias[(block * 3 + 2) * LANES..][..LANES];
        let rows = x_gates.chunks_exact_mut(3 * LANES).zip(sums.chunks_exact(3 * LANES));
        let states = h_prev.chunks_exact(LANES).zip(h.chunks_exact_mut(LANES));
        for ((x_gates, sums), (h_prev, h)) in rows.zip(states) {
            self.open::<FUSED>(block, x_gates, sums);
            let (rz, n) = x_gates.split_at_mut(2 * LANES);
            let h_n = sums[2 * LANES..].iter().zip(bias_hn);
            for ((n, r), (b, (h_n, b_hn))) in n.iter_mut().zip(&*rz).zip(bias_n.iter().zip(h_n)) {
                *n = (*n + b) + r * (h_n + b_hn);
            }
            self.g.apply::<FUSED>(n);
            blend(&rz[LANES..], n, h_prev, h);
        }
    }

    /// Not linear before reset, first half: r and z into `x_gates`, and r·h into `reset`. `sums` has two gates.
    #[inline(always)]
    fn reset<const FUSED: bool>(&self, step: Step<'_>) {
        let Step { block, x_gates, sums, h_prev, h, .. } = step;
        let rows = x_gates.chunks_exact_mut(3 * LANES).zip(sums.chunks_exact(2 * LANES));
        let states = h_prev.chunks_exact(LANES).zip(h.chunks_exact_mut(LANES));
        for ((x_gates, sums), (h_prev, reset)) in rows.zip(states) {
            self.open::<FUSED>(block, x_gates, sums);
            for ((reset, r), h) in reset.iter_mut().zip(&*x_gates).zip(h_prev) {
                *reset = r * h;
            }
        }
    }

    /// Second half: `sums` is (r·h)·W_hn.
    #[inline(always)]
    fn finish<const FUSED: bool>(&self, step: Step<'_>) {
        let Step { block, x_gates, sums, h_prev, h, .. } = step;
        let bias_n = &self.bias[(block * 3 + 2) * LANES..][..LANES];
        let rows = x_gates.chunks_exact_mut(3 * LANES).zip(sums.chunks_exact(LANES));
        let states = h_prev.chunks_exact(LANES).zip(h.chunks_exact_mut(LANES));
        for ((x_gates, sums), (h_prev, h)) in rows.zip(states) {
            let (rz, n) = x_gates.split_at_mut(2 * LANES);
            activated(n, sums, bias_n, |x| x);
            self.g.apply::<FUSED>(n);
            blend(&rz[LANES..], n, h_prev, h);
        }
    }

    /// The gates r and z.
    #[inline(always)]
    fn open<const FUSED: bool>(&self, block: usize, x_gates: &mut [f32], sums: &[f32]) {
        let rz = &mut x_gates[..2 * LANES];
        activated(rz, sums, &self.bias[block * 3 * LANES..][..2 * LANES], |x| x);
        self.f.apply::<FUSED>(rz);
    }
}

/// h = (1 − z)·n + z·h_prev
#[inline(always)]
fn blend(z: &[f32], n: &[f32], h_prev: &[f32], h: &mut [f32]) {
    for ((h, h_prev), (z, n)) in h.iter_mut().zip(h_prev).zip(z.iter().zip(n)) {
        *h = (1.0 - z) * n + z * h_prev;
    }
}

/// h = f((x·W_ih + bias) + h·W_hh)
pub(super) struct Rnn {
    /// [blocks][16]
    bias: Vec<f32>,
    f: Clipped,
}

impl Rnn {
    #[inline(always)]
    fn advance<const FUSED: bool>(&self, step: Step<'_>) {
        let Step { block, x_gates, sums, h, .. } = step;
        let bias = &self.bias[block * LANES..][..LANES];
        let rows = x_gates.chunks_exact_mut(LANES).zip(sums.chunks_exact(LANES));
        for ((x_gates, sums), h) in rows.zip(h.chunks_exact_mut(LANES)) {
            activated(x_gates, sums, bias, |x| x);
            self.f.apply::<FUSED>(x_gates);
            h.copy_from_slice(x_gates);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// c and h by the equations.
    fn one<const FUSED: bool>([i, f, g, o]: [f32; 4], c: f32) -> [f32; 2] {
        let candidate = sigmoid::<FUSED>(i) * tanh::<FUSED>(g);
        let c = mul_add::<FUSED>(sigmoid::<FUSED>(f), c, candidate);
        [c, sigmoid::<FUSED>(o) * tanh::<FUSED>(c)]
    }

    #[test]
    fn vectors_and_scalars_agree_bit_for_bit() {
        let (hidden_size, rows, block) = (37, 3, 1);
        let values = |seed: u64, n: usize| -> Vec<f32> {
            let mut state = seed;
            (0..n).map(|_| 12.0 * crate::weights::uniform(&mut state) - 6.0).collect()
        };
        let (x_gates, sums, bias) =
            (values(1, rows * 4 * LANES), values(2, rows * 4 * LANES), values(3, 4 * hidden_size));
        let (c_0, mut h) = (values(4, rows * LANES), vec![f32::NAN; rows * LANES]);
        let (mut used, mut c) = (x_gates.clone(), c_0.clone());
        let plain = Elementwise::Plain(PlainLstm { bias: by_block(&bias, 4, hidden_size, LANES) });
        let step = Step { block, x_gates: &mut used, sums: &sums, c: &mut c, h_prev: &[], h: &mut h };
        plain.advance(Arch::new(), step);
        for (row, lane) in (0..rows).flat_map(|row| (0..LANES).map(move |lane| (row, lane))) {
            let gate = |g: usize| {
                let at = (row * 4 + g) * LANES + lane;
                (x_gates[at] + bias[g * hidden_size + block * LANES + lane]) + sums[at]
            };
            let at = row * LANES + lane;
            let expected = |fused: bool| match fused {
                true => one::<true>([gate(0), gate(1), gate(2), gate(3)], c_0[at]),
                false => one::<false>([gate(0), gate(1), gate(2), gate(3)], c_0[at]),
            };
            assert_eq!([c[at], h[at]], expected(!matches!(Arch::new(), Arch::Scalar)));
        }
        // The form with options, none of them set, has the same bits.
        let general = Lstm::new(&LstmCell::default(), 0, &bias, hidden_size, &CellWeights::default());
        let (mut used, mut general_c, mut general_h) = (x_gates.clone(), c_0.clone(), vec![f32::NAN; rows * LANES]);
        let step = Step { block, x_gates: &mut used, sums: &sums, c: &mut general_c, h_prev: &[], h: &mut general_h };
        Elementwise::Lstm(Box::new(general)).advance(Arch::new(), step);
        assert_eq!((general_c, general_h), (c, h));
    }
}
