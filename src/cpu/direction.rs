//! One direction of one layer, for one group of sequences.
//!
//! In:  the rows of the layer's input, `h` and `c` of every sequence.
//! Out: [`DirectionOutput`].
//! The input projection of a chunk of timesteps is one matrix product; then each timestep is a product of the
//! active rows of `h` and the elementwise part. A chunk bounds the memory of gates, whatever the lengths.

use pulp::Arch;
use rayon::prelude::*;

use super::Group;
use super::cell::Elementwise;
use super::matmul::Panels;
use crate::batch::SequenceBatch;
use crate::cell::CellSpec;
use crate::spec::LayerSpec;
use crate::weights::CellWeights;

/// The weights of a cell as the products read them.
pub(super) struct Weights {
    layer: LayerSpec,
    reverse: bool,
    weight_ih: Panels,
    /// All gates; r and z of a GRU that is not linear before reset.
    weight_hh: Panels,
    /// W_hn of a GRU that is not linear before reset.
    weight_hn: Option<Panels>,
    weight_hr: Option<Panels>,
    /// `[P]`, if the projection has one.
    bias_hr: Option<Vec<f32>>,
    elementwise: Elementwise,
}

/// What to keep besides the final state.
#[derive(Clone, Copy)]
pub(super) struct Collect {
    pub(super) output: bool,
    pub(super) last: bool,
    pub(super) cells: bool,
}

/// What a run may use.
#[derive(Clone, Copy)]
pub(super) struct Budget {
    pub(super) threads: usize,
    /// Bytes of gates that are projected at once; at least one timestep is.
    pub(super) chunk_bytes: usize,
}

/// The results of one direction; rows are stored timestep after timestep, only valid ones.
pub(super) struct DirectionOutput {
    /// [rows, H or P], if collected.
    pub(super) output: Vec<f32>,
    /// [sequences, H or P], if collected.
    pub(super) last: Vec<f32>,
    /// [rows, H], if collected.
    pub(super) cells: Vec<f32>,
    /// [sequences, H or P]
    pub(super) h: Vec<f32>,
    /// [sequences, H]; empty without a cell state.
    pub(super) c: Vec<f32>,
}

/// The input of a layer.
pub(super) enum Rows<'a> {
    /// The first layer's: rows of the batch in its own layout.
    Batch(&'a SequenceBatch<'a>),
    /// A later layer's: stored timestep after timestep.
    Packed(Vec<f32>),
}

impl Weights {
    /// Direction `d` of the layer in storage order.
    pub(super) fn new(layer: &LayerSpec, d: usize, cell: &CellWeights) -> Self {
        let (gates, hidden_size) = (layer.gate_rows(), layer.hidden_size);
        let after_reset = matches!(&layer.cell, CellSpec::Gru(cell) if !cell.linear_before_reset);
        let with_h = if after_reset { 2 * hidden_size } else { gates };
        let (weight_hh, weight_hn) = cell.weight_hh.split_at(with_h * layer.h_size());
        Self {
            layer: *layer,
            reverse: layer.direction.is_reverse()[d],
            weight_ih: Panels::new(&cell.weight_ih, gates, layer.input_size),
            weight_hh: Panels::new(weight_hh, with_h, layer.h_size()),
            weight_hn: after_reset.then(|| Panels::new(weight_hn, hidden_size, hidden_size)),
            weight_hr: cell.weight_hr.as_ref().map(|w| Panels::new(w, layer.h_size(), hidden_size)),
            bias_hr: cell.bias_hr.clone(),
            elementwise: Elementwise::new(layer, d, cell),
        }
    }

    /// Whether a step has a second product, of `hidden`.
    fn has_inner(&self) -> bool {
        self.weight_hr.is_some() || self.weight_hn.is_some()
    }

    /// Runs all timesteps from the states `h` and `c`.
    pub(super) fn run(
        &self,
        group: &Group,
        input: &Rows<'_>,
        h: Vec<f32>,
        c: Vec<f32>,
        collect: Collect,
        budget: Budget,
    ) -> DirectionOutput {
        let gates = self.layer.gate_rows();
        let num_rows = group.starts[group.seq_len()];
        let sequences = group.sequences.len();
        let room = |wanted: bool, rows: usize, width: usize| vec![0.0; if wanted { rows * width } else { 0 }];
        let mut result = DirectionOutput {
            output: room(collect.output, num_rows, self.layer.h_size()),
            last: room(collect.last, sequences, self.layer.h_size()),
            cells: room(collect.cells, num_rows, self.layer.c_size()),
            h,
            c,
        };
        let mut step = Step {
            weights: self,
            arch: Arch::new(),
            threads: budget.threads,
            h_gates: vec![0.0; sequences * gates],
            hidden: room(self.has_inner(), sequences, self.layer.hidden_size),
        };
        let mut x_gates = Vec::new();
        let mut gathered = Vec::new();
        for chunk in chunks(group, budget.chunk_bytes / (gates * size_of::<f32>()), self.reverse) {
            let first_row = group.starts[chunk.start];
            let rows = group.starts[chunk.end] - first_row;
            let x = input.chunk(group, chunk.clone(), self.layer.input_size, &mut gathered);
            if x_gates.len() < rows * gates {
                x_gates = vec![0.0; rows * gates];
            }
            self.weight_ih.multiply(step.arch, x, &mut x_gates[..rows * gates], budget.threads);
            for s in 0..chunk.len() {
                let t = if self.reverse { chunk.end - 1 - s } else { chunk.start + s };
                let active = group.active(t);
                let row = group.starts[t];
                let x_gates = &mut x_gates[(row - first_row) * gates..][..active * gates];
                step.run(x_gates, &mut result.h, &mut result.c);
                result.keep(collect, row, active, group.active(t + 1), self.layer.h_size(), self.layer.c_size());
            }
        }
        result
    }
}

impl DirectionOutput {
    /// Copies the state after a timestep, whose rows start at `row`, to where it was asked for.
    fn keep(&mut self, collect: Collect, row: usize, active: usize, active_next: usize, h_size: usize, c_size: usize) {
        if collect.output {
            self.output[row * h_size..][..active * h_size].copy_from_slice(&self.h[..active * h_size]);
        }
        if collect.cells {
            self.cells[row * c_size..][..active * c_size].copy_from_slice(&self.c[..active * c_size]);
        }
        if collect.last {
            // Active now but not at the next timestep: this is their last valid one.
            let ending = active_next * h_size..active * h_size;
            self.last[ending.clone()].copy_from_slice(&self.h[ending]);
        }
    }
}

/// One timestep, with its scratch.
struct Step<'a> {
    weights: &'a Weights,
    arch: Arch,
    threads: usize,
    h_gates: Vec<f32>,
    /// o·h(c) before the projection, or r·h before the product with W_hn; empty without either.
    hidden: Vec<f32>,
}

impl Step<'_> {
    /// Advances the first rows of `h` and `c`, as many as `x_gates` has; the others are not active.
    fn run(&mut self, x_gates: &mut [f32], h: &mut [f32], c: &mut [f32]) {
        let weights = self.weights;
        let layer = &weights.layer;
        let active = x_gates.len() / layer.gate_rows();
        let h = &mut h[..active * layer.h_size()];
        let c = &mut c[..active * layer.c_size()];
        let mut hidden = std::mem::take(&mut self.hidden);
        let inner = &mut hidden[..if self.weights.has_inner() { active * layer.hidden_size } else { 0 }];
        let h_gates = &mut self.h_gates[..active * weights.weight_hh.columns()];
        weights.weight_hh.multiply(self.arch, h, h_gates, self.threads);
        let split = Split::new(self.threads, active, active * layer.hidden_size);
        let arch = self.arch;
        match &weights.elementwise {
            Elementwise::Plain(cell) => {
                let out = if weights.weight_hr.is_some() { &mut *inner } else { &mut *h };
                split.run4(x_gates, h_gates, c, out, |x, h_gates, c, h| cell.advance(arch, x, h_gates, c, h));
            }
            Elementwise::Lstm(cell) => {
                let out = if weights.weight_hr.is_some() { &mut *inner } else { &mut *h };
                split.run4(x_gates, h_gates, c, out, |x, h_gates, c, h| cell.advance(arch, x, h_gates, c, h));
            }
            Elementwise::Gru(cell) => match &weights.weight_hn {
                None => split.run3(x_gates, h_gates, h, |x, h_gates, h| cell.advance(arch, x, h_gates, h)),
                Some(weight_hn) => {
                    split.run4(x_gates, h_gates, h, inner, |x, h_gates, h, r| cell.reset(arch, x, h_gates, h, r));
                    let n_gates = &mut self.h_gates[..active * layer.hidden_size];
                    weight_hn.multiply(arch, inner, n_gates, self.threads);
                    split.run3(x_gates, n_gates, h, |x, n_gates, h| cell.finish(arch, x, n_gates, h));
                }
            },
            Elementwise::Rnn(cell) => {
                split.run3(x_gates, h_gates, h, |x, h_gates, h| cell.advance(arch, x, h_gates, h));
            }
        }
        if let Some(weight_hr) = &weights.weight_hr {
            weight_hr.multiply(arch, inner, h, self.threads);
            if let Some(bias) = &weights.bias_hr {
                for row in h.chunks_exact_mut(bias.len()) {
                    row.iter_mut().zip(bias).for_each(|(h, b)| *h += b);
                }
            }
        }
        self.hidden = hidden;
    }
}

/// How the rows of the elementwise part are dealt to threads.
#[derive(Clone, Copy)]
struct Split {
    rows: usize,
    /// All of them where there is too little work for a second thread.
    rows_each: usize,
}

impl Split {
    fn new(threads: usize, rows: usize, elements: usize) -> Self {
        const WORTH_A_THREAD: usize = 8192;
        let threads = threads.min(rows).min(elements / WORTH_A_THREAD).max(1);
        Self { rows, rows_each: rows.div_ceil(threads) }
    }

    /// The elements of a part of an array with these rows.
    fn part(self, array: &[f32]) -> usize {
        array.len() / self.rows * self.rows_each
    }

    fn run3(self, a: &mut [f32], b: &[f32], c: &mut [f32], f: impl Fn(&mut [f32], &[f32], &mut [f32]) + Sync) {
        if self.rows_each == self.rows {
            return f(a, b, c);
        }
        let [a_part, b_part, c_part] = [self.part(a), self.part(b), self.part(c)];
        let parts = a.par_chunks_mut(a_part).zip(b.par_chunks(b_part)).zip(c.par_chunks_mut(c_part));
        parts.for_each(|((a, b), c)| f(a, b, c));
    }

    fn run4(
        self,
        a: &mut [f32],
        b: &[f32],
        c: &mut [f32],
        d: &mut [f32],
        f: impl Fn(&mut [f32], &[f32], &mut [f32], &mut [f32]) + Sync,
    ) {
        if self.rows_each == self.rows {
            return f(a, b, c, d);
        }
        let [a_part, b_part, c_part, d_part] = [self.part(a), self.part(b), self.part(c), self.part(d)];
        let parts = a.par_chunks_mut(a_part).zip(b.par_chunks(b_part));
        let states = c.par_chunks_mut(c_part).zip(d.par_chunks_mut(d_part));
        parts.zip(states).for_each(|((a, b), (c, d))| f(a, b, c, d));
    }
}

impl Rows<'_> {
    /// The rows of a chunk of timesteps, gathered if they lie apart.
    fn chunk<'a>(
        &'a self,
        group: &Group,
        chunk: std::ops::Range<usize>,
        width: usize,
        gathered: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        match self {
            Rows::Packed(rows) => &rows[group.starts[chunk.start] * width..group.starts[chunk.end] * width],
            Rows::Batch(batch) => {
                gathered.clear();
                for t in chunk {
                    for &b in &group.sequences[..group.active(t)] {
                        gathered.extend_from_slice(batch.input_row(t, b));
                    }
                }
                gathered
            }
        }
    }
}

/// Cuts the timesteps into chunks of at most `max_rows` rows, but at least one timestep; in the order of the
/// direction.
fn chunks(group: &Group, max_rows: usize, reverse: bool) -> Vec<std::ops::Range<usize>> {
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < group.seq_len() {
        let fitting = group.starts.partition_point(|&s| s <= group.starts[start] + max_rows) - 1;
        let end = fitting.clamp(start + 1, group.seq_len());
        chunks.push(start..end);
        start = end;
    }
    if reverse {
        chunks.reverse();
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_every_timestep_once() {
        let group = Group::new(vec![2, 0, 1, 3], &[4, 2, 5, 0]);
        assert_eq!(group.starts, [0, 3, 6, 8, 10, 11]);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|t| group.active(t)), [3, 3, 2, 2, 1, 0]);
        assert_eq!(chunks(&group, 0, false), [0..1, 1..2, 2..3, 3..4, 4..5]);
        assert_eq!(chunks(&group, 5, false), [0..1, 1..3, 3..5]);
        assert_eq!(chunks(&group, 6, true), [2..5, 0..2]);
        assert_eq!(chunks(&group, 10, true), [4..5, 0..4]);
        assert_eq!(chunks(&Group::new(vec![0], &[0]), 9, false), []);
        assert_eq!(chunks(&Group::new(vec![], &[]), 9, false), []);
    }
}
