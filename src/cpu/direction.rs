//! One direction of one layer, for one group of sequences.
//!
//! In:  the rows of the layer's input, `h` and `c` of every sequence.
//! Out: [`DirectionOutput`].
//! The input projection of a chunk of timesteps is one matrix product; then each timestep is a product of the
//! active rows of `h` and the elementwise part. A chunk bounds the memory of gates, whatever the lengths.

use pulp::Arch;
use rayon::prelude::*;

use super::Group;
use super::activation::advance;
use super::matmul::Transposed;
use crate::batch::SequenceBatch;
use crate::spec::LayerSpec;
use crate::weights::CellWeights;

/// The weights of a cell as the products read them.
pub(super) struct Weights {
    layer: LayerSpec,
    reverse: bool,
    weight_ih: Transposed,
    weight_hh: Transposed,
    /// b_ih + b_hh, `[4H]`; zero without biases.
    bias: Vec<f32>,
    weight_hr: Option<Transposed>,
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
    /// [sequences, H]
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
    pub(super) fn new(layer: &LayerSpec, reverse: bool, cell: &CellWeights) -> Self {
        let gates = 4 * layer.hidden_size;
        let bias = match (&cell.bias_ih, &cell.bias_hh) {
            (Some(ih), Some(hh)) => ih.iter().zip(hh).map(|(ih, hh)| ih + hh).collect(),
            _ => vec![0.0; gates],
        };
        Self {
            layer: *layer,
            reverse,
            weight_ih: Transposed::new(&cell.weight_ih, gates, layer.input_size),
            weight_hh: Transposed::new(&cell.weight_hh, gates, layer.h_size()),
            bias,
            weight_hr: cell.weight_hr.as_ref().map(|w| Transposed::new(w, layer.h_size(), layer.hidden_size)),
        }
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
        let gates = self.bias.len();
        let num_rows = group.starts[group.seq_len()];
        let sequences = group.sequences.len();
        let room = |wanted: bool, rows: usize, width: usize| vec![0.0; if wanted { rows * width } else { 0 }];
        let mut result = DirectionOutput {
            output: room(collect.output, num_rows, self.layer.h_size()),
            last: room(collect.last, sequences, self.layer.h_size()),
            cells: room(collect.cells, num_rows, self.layer.hidden_size),
            h,
            c,
        };
        let mut step = Step {
            weights: self,
            arch: Arch::new(),
            threads: budget.threads,
            h_gates: vec![0.0; sequences * gates],
            hidden: room(self.weight_hr.is_some(), sequences, self.layer.hidden_size),
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
            self.weight_ih.multiply(x, &mut x_gates[..rows * gates], budget.threads);
            for s in 0..chunk.len() {
                let t = if self.reverse { chunk.end - 1 - s } else { chunk.start + s };
                let active = group.active(t);
                let row = group.starts[t];
                let x_gates = &mut x_gates[(row - first_row) * gates..][..active * gates];
                step.run(x_gates, &mut result.h, &mut result.c);
                result.keep(collect, row, active, group.active(t + 1), self.layer.h_size(), self.layer.hidden_size);
            }
        }
        result
    }
}

impl DirectionOutput {
    /// Copies the state after a timestep, whose rows start at `row`, to where it was asked for.
    fn keep(
        &mut self,
        collect: Collect,
        row: usize,
        active: usize,
        active_next: usize,
        h_size: usize,
        hidden_size: usize,
    ) {
        if collect.output {
            self.output[row * h_size..][..active * h_size].copy_from_slice(&self.h[..active * h_size]);
        }
        if collect.cells {
            self.cells[row * hidden_size..][..active * hidden_size].copy_from_slice(&self.c[..active * hidden_size]);
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
    /// o·tanh(c) before the projection; empty without one.
    hidden: Vec<f32>,
}

impl Step<'_> {
    /// Advances the first rows of `h` and `c`, as many as `x_gates` has; the others are not active.
    fn run(&mut self, x_gates: &mut [f32], h: &mut [f32], c: &mut [f32]) {
        let weights = self.weights;
        let active = x_gates.len() / weights.bias.len();
        let h = &mut h[..active * weights.layer.h_size()];
        let c = &mut c[..active * weights.layer.hidden_size];
        let h_gates = &mut self.h_gates[..x_gates.len()];
        weights.weight_hh.multiply(h, h_gates, self.threads);
        match &weights.weight_hr {
            None => self.advance(x_gates, c, h),
            Some(weight_hr) => {
                let mut hidden = std::mem::take(&mut self.hidden);
                self.advance(x_gates, c, &mut hidden[..active * weights.layer.hidden_size]);
                weight_hr.multiply(&hidden[..active * weights.layer.hidden_size], h, self.threads);
                self.hidden = hidden;
            }
        }
    }

    /// The elementwise part, rows in parallel where there is work for it.
    fn advance(&self, x_gates: &mut [f32], c: &mut [f32], hidden: &mut [f32]) {
        const WORTH_A_THREAD: usize = 8192;
        let (arch, bias, gates) = (self.arch, &self.weights.bias, self.weights.bias.len());
        let rows = x_gates.len() / gates;
        let threads = self.threads.min(rows).min(c.len() / WORTH_A_THREAD).max(1);
        let h_gates = &self.h_gates[..x_gates.len()];
        if threads == 1 {
            return advance(arch, x_gates, h_gates, bias, c, hidden);
        }
        let rows_each = rows.div_ceil(threads);
        let hidden_size = gates / 4;
        let gate_rows = x_gates.par_chunks_mut(rows_each * gates).zip(h_gates.par_chunks(rows_each * gates));
        let states = c.par_chunks_mut(rows_each * hidden_size).zip(hidden.par_chunks_mut(rows_each * hidden_size));
        gate_rows.zip(states).for_each(|((x, h), (c, hidden))| advance(arch, x, h, bias, c, hidden));
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
