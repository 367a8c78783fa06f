//! The CPU backend: for machines without a GPU, and the opponent in benchmarks.
//!
//! In:  [`LstmWeights`], transposed once into [`CpuLstm`]; a validated [`SequenceBatch`].
//! Out: [`BatchOutput`].
//! Sequences are sorted by length, longest first, and dealt to groups that run on their own, all layers and
//! timesteps, without waiting for one another. Inside a group the sequences that are active at a timestep are the
//! first ones, in both directions; only valid rows are stored or computed.
//! Not here: one direction of one layer (`direction.rs`), products (`matmul.rs`), activations (`activation.rs`).

mod activation;
mod cell;
mod direction;
mod matmul;

use std::cmp::Reverse;

use rayon::prelude::*;

use crate::batch::{BatchOutput, SequenceBatch, SequenceOutput};
use crate::error::Result;
use crate::spec::{Direction, LstmSpec, Merge};
use crate::weights::LstmWeights;
use direction::{Budget, Collect, DirectionOutput, Rows, Weights};

/// The number of threads that a run may use.
pub(crate) fn num_threads() -> usize {
    rayon::current_num_threads()
}

/// A loaded model.
pub(crate) struct CpuLstm {
    spec: LstmSpec,
    /// One per cell of the spec, in its order.
    cells: Vec<Weights>,
    chunk_bytes: usize,
}

impl CpuLstm {
    /// Packs the weights.
    pub(crate) fn new(weights: &LstmWeights) -> Self {
        /// Small enough that the gates are still in the cache when their timestep comes.
        const CHUNK_BYTES: usize = 4 << 20;
        Self::with_chunk_bytes(weights, CHUNK_BYTES)
    }

    fn with_chunk_bytes(weights: &LstmWeights, chunk_bytes: usize) -> Self {
        let layers = weights.spec().layers().iter();
        let directions = layers.flat_map(|layer| (0..layer.num_directions()).map(move |d| (layer, d)));
        let cells = directions.zip(weights.cells()).map(|((layer, d), cell)| Weights::new(layer, d, cell)).collect();
        Self { spec: weights.spec().clone(), cells, chunk_bytes }
    }

    /// Runs a batch that [`SequenceBatch::validate`] has accepted for this model's spec.
    pub(crate) fn run(&self, batch: &SequenceBatch<'_>) -> Result<BatchOutput> {
        let groups = self.groups(batch);
        let budget = Budget { threads: (num_threads() / groups.len()).max(1), chunk_bytes: self.chunk_bytes };
        let results: Vec<Vec<DirectionOutput>> =
            groups.par_iter().map(|group| self.run_group(batch, group, budget)).collect();
        Ok(self.assemble(batch, &groups, &results))
    }

    /// Deals the sequences, longest first, to as many groups as can work on their own with rows enough each for
    /// a good matrix product.
    fn groups(&self, batch: &SequenceBatch<'_>) -> Vec<Group> {
        const ROWS_PER_GROUP: usize = 16;
        const WORTH_A_GROUP: usize = 1_000_000;
        let lengths = batch.sequence_lengths();
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&b| Reverse(lengths[b]));
        let multiply_adds = batch.num_valid_rows().saturating_mul(self.spec.num_parameters());
        let count = (lengths.len() / ROWS_PER_GROUP).min(multiply_adds / WORTH_A_GROUP).clamp(1, num_threads());
        let deal = |g| Group::new(order.iter().copied().skip(g).step_by(count).collect(), lengths);
        (0..count).map(deal).collect()
    }

    /// All layers of one group; the result has one entry per cell of the spec.
    fn run_group(&self, batch: &SequenceBatch<'_>, group: &Group, budget: Budget) -> Vec<DirectionOutput> {
        let requested = batch.requested();
        let mut h_0 = Blocks { states: batch.initial_h(), batch_size: batch.batch_size() };
        let mut c_0 = Blocks { states: batch.initial_c(), batch_size: batch.batch_size() };
        let mut cells = self.cells.iter();
        let mut results = Vec::new();
        let mut rows = Rows::Batch(batch);
        for (l, layer) in self.spec.layers().iter().enumerate() {
            let is_last = l + 1 == self.spec.num_layers();
            let collect = Collect {
                output: !is_last || requested.sequence == SequenceOutput::All,
                last: is_last && requested.sequence == SequenceOutput::Last,
                cells: is_last && requested.cells,
            };
            let mut next = || {
                let weights = cells.next().expect("one cell per layer and direction");
                (weights, h_0.next(group, layer.h_size()), c_0.next(group, layer.c_size()))
            };
            let run = |(weights, h, c): (&Weights, _, _), threads| {
                weights.run(group, &rows, h, c, collect, Budget { threads, ..budget })
            };
            let mut outputs = match (layer.direction, budget.threads) {
                (Direction::Forward | Direction::Reverse, threads) => vec![run(next(), threads)],
                (Direction::Bidirectional, 1) => vec![run(next(), 1), run(next(), 1)],
                (Direction::Bidirectional, threads) => {
                    let (forward, reverse) = (next(), next());
                    let (forward, reverse) = rayon::join(|| run(forward, threads / 2), || run(reverse, threads / 2));
                    vec![forward, reverse]
                }
            };
            if !is_last {
                rows = Rows::Packed(merged(layer.merge, layer.h_size(), &mut outputs));
            }
            results.extend(outputs);
        }
        results
    }

    /// Puts the results of all groups where [`BatchOutput`] says.
    fn assemble(&self, batch: &SequenceBatch<'_>, groups: &[Group], results: &[Vec<DirectionOutput>]) -> BatchOutput {
        let requested = batch.requested();
        let layer = self.spec.last_layer();
        let directions = layer.num_directions();
        let last_cells = self.cells.len() - directions..self.cells.len();
        let padded = |merge: Merge, width: usize, of: fn(&DirectionOutput) -> &[f32]| {
            let mut array = vec![0.0; batch.seq_len() * batch.batch_size() * merge.num_outputs(directions) * width];
            for (group, results) in groups.iter().zip(results) {
                for (d, result) in results[last_cells.clone()].iter().enumerate() {
                    for (t, s, row) in group.rows(of(result), width) {
                        let to = batch.layout().row(t, group.sequences[s], batch.seq_len(), batch.batch_size());
                        put(merge, &mut array, to, directions, d, row);
                    }
                }
            }
            array
        };
        let last = || {
            let width = layer.h_size();
            let mut array = vec![0.0; batch.batch_size() * layer.output_size()];
            for (group, results) in groups.iter().zip(results) {
                for (d, result) in results[last_cells.clone()].iter().enumerate() {
                    for (&b, row) in group.sequences.iter().zip(result.last.chunks_exact(width)) {
                        put(layer.merge, &mut array, b, directions, d, row);
                    }
                }
            }
            array
        };
        let states = |widths: Vec<usize>, of: fn(&DirectionOutput) -> &[f32]| {
            let mut array = vec![0.0; batch.batch_size() * widths.iter().sum::<usize>()];
            let mut start = 0;
            for (cell, width) in widths.into_iter().enumerate() {
                for (group, results) in groups.iter().zip(results) {
                    for (&b, row) in group.sequences.iter().zip(of(&results[cell]).chunks_exact(width.max(1))) {
                        array[start + b * width..][..width].copy_from_slice(row);
                    }
                }
                start += batch.batch_size() * width;
            }
            array
        };
        let h_widths = || self.spec.cells().map(|(_, layer, _)| layer.h_size()).collect();
        let c_widths = || self.spec.cells().map(|(_, layer, _)| layer.c_size()).collect();
        BatchOutput {
            output: (requested.sequence == SequenceOutput::All)
                .then(|| padded(layer.merge, layer.h_size(), |r| &r.output)),
            last: (requested.sequence == SequenceOutput::Last).then(last),
            pooled: None,
            h_n: requested.final_state.then(|| states(h_widths(), |r| &r.h)),
            c_n: requested.final_state.then(|| states(c_widths(), |r| &r.c)),
            cells: requested.cells.then(|| padded(Merge::Concat, layer.c_size(), |r| &r.cells)),
        }
    }
}

/// Sequences that run together, longest first.
struct Group {
    /// Their indices in the batch.
    sequences: Vec<usize>,
    /// For t in 0..=T of the group: the number of rows before timestep t, when the valid rows are stored timestep
    /// after timestep. The sequences active at t are the first `starts[t + 1] - starts[t]`.
    starts: Vec<usize>,
}

impl Group {
    fn new(sequences: Vec<usize>, lengths: &[usize]) -> Self {
        let longest = sequences.first().map_or(0, |&b| lengths[b]);
        let mut starts = vec![0; longest + 1];
        let mut active = sequences.len();
        for t in 0..longest {
            while lengths[sequences[active - 1]] <= t {
                active -= 1; // the first one is longer than t, so this ends
            }
            starts[t + 1] = starts[t] + active;
        }
        Self { sequences, starts }
    }

    fn seq_len(&self) -> usize {
        self.starts.len() - 1
    }

    /// The number of sequences longer than `t`.
    fn active(&self, t: usize) -> usize {
        self.starts.get(t + 1).map_or(0, |end| end - self.starts[t])
    }

    /// (timestep, position in the group, row) of rows stored timestep after timestep.
    fn rows<'a>(&'a self, packed: &'a [f32], width: usize) -> impl Iterator<Item = (usize, usize, &'a [f32])> {
        let positions = (0..self.seq_len()).flat_map(|t| (0..self.active(t)).map(move |s| (t, s)));
        positions.zip(packed.chunks_exact(width)).map(|((t, s), row)| (t, s, row))
    }
}

/// The initial states of a batch, taken cell after cell.
struct Blocks<'a> {
    states: Option<&'a [f32]>,
    batch_size: usize,
}

impl Blocks<'_> {
    /// The rows of the group's sequences in the next cell's block [B, width].
    fn next(&mut self, group: &Group, width: usize) -> Vec<f32> {
        let mut rows = vec![0.0; group.sequences.len() * width];
        if let Some(states) = &mut self.states {
            let (block, rest) = states.split_at(self.batch_size * width);
            *states = rest;
            for (row, &b) in rows.chunks_exact_mut(width.max(1)).zip(&group.sequences) {
                row.copy_from_slice(&block[b * width..][..width]);
            }
        }
        rows
    }
}

/// Writes `row` of direction `d` into row `to` of an array, or adds it where directions are summed.
fn put(merge: Merge, array: &mut [f32], to: usize, directions: usize, d: usize, row: &[f32]) {
    match merge {
        Merge::Concat => array[(to * directions + d) * row.len()..][..row.len()].copy_from_slice(row),
        Merge::Sum => array[to * row.len()..][..row.len()].iter_mut().zip(row).for_each(|(sum, v)| *sum += v),
    }
}

/// Takes the output rows of each direction and merges them.
fn merged(merge: Merge, width: usize, outputs: &mut [DirectionOutput]) -> Vec<f32> {
    if let [only] = outputs {
        return std::mem::take(&mut only.output);
    }
    let parts: Vec<Vec<f32>> = outputs.iter_mut().map(|o| std::mem::take(&mut o.output)).collect();
    let mut rows = vec![0.0; parts[0].len() * merge.num_outputs(parts.len())];
    for (d, part) in parts.iter().enumerate() {
        for (to, row) in part.chunks_exact(width).enumerate() {
            put(merge, &mut rows, to, parts.len(), d, row);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Layout;
    use crate::reference;

    #[test]
    fn neither_chunks_nor_groups_lose_a_row() {
        let spec = LstmSpec::stack(9, 12, 2).direction(Direction::Bidirectional).projection(5).build().unwrap();
        let weights = LstmWeights::random(&spec, 21);
        let (batch_size, seq_len) = (67, 31);
        let x: Vec<f32> = (0..batch_size * seq_len * 9).map(|i| (i as f32 * 0.61).sin()).collect();
        let lengths: Vec<usize> = (0..batch_size).map(|b| (b * 13) % (seq_len + 1)).collect();
        let batch = SequenceBatch::new(&x, [seq_len, batch_size, 9], Layout::TimeMajor).unwrap();
        let batch = batch.lengths(&lengths).unwrap();
        let expected = reference::run::<f64>(&weights, &batch).unwrap();
        for chunk_bytes in [0, 4 * 48 * 70, 1 << 20] {
            let model = CpuLstm::with_chunk_bytes(&weights, chunk_bytes);
            let found = model.run(&batch).unwrap();
            for (found, expected) in
                [(&found.output, &expected.output), (&found.h_n, &expected.h_n), (&found.c_n, &expected.c_n)]
            {
                let (found, expected) = (found.as_ref().unwrap(), expected.as_ref().unwrap());
                assert_eq!(found.len(), expected.len());
                let worst = found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).abs()).fold(0.0, f64::max);
                assert!(worst < 1e-6, "{worst}");
            }
        }
    }

    #[test]
    fn groups_share_all_sequences() {
        let spec = LstmSpec::stack(9, 64, 1).build().unwrap();
        let model = CpuLstm::new(&LstmWeights::random(&spec, 1));
        for (batch_size, seq_len) in [(0, 3), (1, 0), (5, 100), (100, 50), (1000, 10)] {
            let x = vec![0.0; batch_size * seq_len * 9];
            let batch = SequenceBatch::new(&x, [batch_size, seq_len, 9], Layout::BatchMajor).unwrap();
            let groups = model.groups(&batch);
            assert!((1..=num_threads()).contains(&groups.len()));
            let mut all: Vec<usize> = groups.iter().flat_map(|g| g.sequences.clone()).collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..batch_size));
        }
    }
}
