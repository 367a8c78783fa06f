//! The CPU backend: for machines without a GPU, and the opponent in benchmarks.
//!
//! In:  [`LstmWeights`], cut once into panels by [`CpuLstm`]; a validated [`SequenceBatch`].
//! Out: [`BatchOutput`].
//! Sequences are sorted by length, longest first. The sequences that are active at a timestep are the first ones, in both
//! directions; only valid rows are stored or computed. Many sequences are dealt to groups that run on their own, all
//! layers and timesteps, without waiting for one another; the threads of a group share every timestep.
//! Not here: one direction of one layer (`direction.rs`), the threads (`team.rs`), products (`panels.rs`), the cells
//! (`cell.rs`, `activation.rs`). Design and figures: docs/cpu.md.

mod activation;
mod cell;
mod columns;
mod direction;
mod lines;
mod panels;
mod prefetch;
#[cfg(feature = "onnx")]
mod product;
mod rows;
mod team;

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::batch::{BatchOutput, Layout, SequenceBatch, SequenceOutput};
use crate::error::Result;
use crate::options::Precision;
use crate::spec::{Direction, LayerSpec, LstmSpec, Merge};
use crate::weights::LstmWeights;
#[cfg(feature = "onnx")]
pub(crate) use product::Product;

use columns::{Columns, Matrix};
use direction::{ChunkSize, Collect, DirectionOutput, Input, Output, Weights};
use lines::Lines;
use rows::{LANES, Rows, blocks, from_blocks, to_blocks};
use team::Team;

/// The number of threads that a run may use.
pub(crate) fn num_threads() -> usize {
    rayon::current_num_threads()
}

/// A loaded model.
pub(crate) struct CpuLstm {
    spec: LstmSpec,
    /// One per cell of the spec, in its order.
    cells: Vec<Weights>,
    chunk: ChunkSize,
}

impl CpuLstm {
    /// Packs the weights.
    pub(crate) fn new(weights: &LstmWeights, precision: Precision) -> Self {
        // The gates are still in the cache when their timestep comes, unless a row has very many.
        Self::with_chunks(weights, precision, ChunkSize { bytes: 256 << 10, rows: 64 })
    }

    fn with_chunks(weights: &LstmWeights, precision: Precision, chunk: ChunkSize) -> Self {
        let spec = weights.spec();
        let mut cells = Vec::new();
        let mut packed = weights.cells().iter();
        let mut parts = vec![spec.input_size()];
        for layer in spec.layers() {
            for d in 0..layer.num_directions() {
                let cell = packed.next().expect("one cell per layer and direction");
                cells.push(Weights::new(layer, d, cell, &parts, precision));
            }
            parts = vec![layer.h_size(); layer.merge.num_outputs(layer.num_directions())];
        }
        Self { spec: spec.clone(), cells, chunk }
    }

    /// Runs a batch that [`SequenceBatch::validate_shapes`] has accepted for this model's spec. The values of its input are
    /// checked where they are read, by all threads, since to read them once more takes time.
    pub(crate) fn run(&self, batch: &SequenceBatch<'_>) -> Result<BatchOutput> {
        let (groups, threads) = self.groups(batch);
        let acceptable = AtomicBool::new(true);
        // Says what was found, and where.
        let check = || if acceptable.load(Ordering::Relaxed) { Ok(()) } else { batch.validate_input() };
        if let [only] = groups.as_slice() {
            return Team::of(self.outer_team(threads), |team| {
                // The last layer writes its output where it belongs, unless directions are summed.
                let direct = batch.requested().sequence == SequenceOutput::All && !self.sums_output();
                let rows = batch.seq_len() * batch.batch_size();
                let mut output = direct.then(|| Matrix::new(rows, self.spec.output_size()));
                let columns = output.as_mut().map(Matrix::columns);
                let results = [self.run_group(batch, &acceptable, only, team, threads, columns)];
                check()?;
                let output = output.map(|matrix| {
                    let ended = acceptable.load(Ordering::Relaxed); // or `check` has returned
                    // SAFETY: a run that came to its end wrote all units of all directions in every valid row; if a part had
                    // panicked, on whatever thread, its loop had too.
                    #[allow(unsafe_code, reason = "only a run knows what it wrote")]
                    unsafe {
                        matrix.finish(team, |row| ended && valid_place(batch, row).is_some())
                    }
                });
                Ok(self.assemble(batch, &groups, &results, team, output))
            });
        }
        let mut results: Vec<Option<GroupOutput>> = groups.iter().map(|_| None).collect();
        rayon::in_place_scope(|scope| {
            let acceptable = &acceptable;
            let run = |group, result: &mut Option<GroupOutput>| {
                let outer = self.outer_team(threads);
                *result = Some(Team::of(outer, |team| self.run_group(batch, acceptable, group, team, threads, None)));
            };
            let mut pairs = groups.iter().zip(&mut results);
            let first = pairs.next();
            for (group, result) in pairs {
                scope.spawn(move |_| run(group, result));
            }
            // The first on this thread, which would only wait otherwise.
            if let Some((group, result)) = first {
                run(group, result);
            }
        });
        check()?;
        let results: Vec<GroupOutput> = results.into_iter().flatten().collect();
        Ok(Team::of(threads * groups.len(), |team| self.assemble(batch, &groups, &results, team, None)))
    }

    /// Whether the directions of the last layer are added.
    fn sums_output(&self) -> bool {
        let layer = self.spec.last_layer();
        layer.merge == Merge::Sum && layer.num_directions() == 2
    }

    /// The members of the team that runs a group: all of its threads, or one for each of two directions, which have teams
    /// of their own.
    fn outer_team(&self, threads: usize) -> usize {
        let both = self.spec.layers().iter().any(|layer| layer.direction == Direction::Bidirectional);
        if both { threads.min(2) } else { threads }
    }

    /// Deals the sequences, longest first, to as many groups as can work on their own with rows enough each for a good
    /// matrix product; and says how many threads each has.
    fn groups(&self, batch: &SequenceBatch<'_>) -> (Vec<Group>, usize) {
        /// Fewer rows would read the weights too often.
        const ROWS_PER_GROUP: usize = 48;
        /// Multiply-adds that a thread should have for a timestep, and for all of a run.
        const WORTH_A_STEP: usize = 30_000;
        const WORTH_A_RUN: usize = 500_000;
        let lengths = batch.sequence_lengths();
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&b| Reverse(lengths[b]));
        let rows = batch.num_valid_rows();
        let longest = order.first().map_or(0, |&b| lengths[b]).max(1);
        let projection: usize = self.cells.iter().map(Weights::projection_multiply_adds).sum();
        let steps: usize = self.cells.iter().map(Weights::step_multiply_adds).sum();
        let all = rows.saturating_mul(projection + steps);
        // A step of one cell, and what is projected for it.
        let of_step = all / longest / self.cells.len();
        let threads = num_threads().min(all / WORTH_A_RUN).max(1);
        let directions = self.spec.layers().iter().map(LayerSpec::num_directions).max().unwrap_or(1);
        // Two directions need no step to be shared.
        let in_a_team = threads.min((of_step / WORTH_A_STEP).max(1) * directions);
        let count = (lengths.len() / ROWS_PER_GROUP).min(threads / in_a_team).max(1);
        let deal = |g| Group::new(order.iter().copied().skip(g).step_by(count).collect(), lengths);
        ((0..count).map(deal).collect(), in_a_team)
    }

    /// All layers of one group; the output goes to `columns` of the padded array, if they are given. Ends early where a
    /// value of the input is not `acceptable`.
    fn run_group(
        &self,
        batch: &SequenceBatch<'_>,
        acceptable: &AtomicBool,
        group: &Group,
        team: &Team,
        threads: usize,
        mut columns: Option<Columns<'_>>,
    ) -> GroupOutput {
        let requested = batch.requested();
        let mut h_0 = Blocks { states: batch.initial_h(), batch_size: batch.batch_size() };
        let mut c_0 = Blocks { states: batch.initial_c(), batch_size: batch.batch_size() };
        let mut cells = self.cells.iter();
        let mut results = Vec::new();
        let mut input = Lines::default();
        for (l, layer) in self.spec.layers().iter().enumerate() {
            let is_last = l + 1 == self.spec.num_layers();
            let collect = Collect {
                last: is_last && requested.sequence == SequenceOutput::Last,
                cells: is_last && requested.cells,
            };
            let columns = if is_last { columns.take() } else { None };
            let wanted = !is_last || requested.sequence == SequenceOutput::All;
            let y_len = match columns.is_none() && wanted {
                true => blocks(layer.h_size()) * group.num_rows() * LANES,
                false => 0,
            };
            let mut y = Lines::zeros(layer.num_directions() * y_len);
            let (y_0, y_1) = y.split_at_mut(y_len);
            let outputs = match columns {
                Some(columns) => {
                    let (first, second) = columns.split(layer.h_size());
                    [Output::Padded(first, batch), Output::Padded(second, batch)]
                }
                None if wanted => [Output::Blocks(y_0), Output::Blocks(y_1)],
                None => [Output::None, Output::None],
            };
            let [output_0, output_1] = outputs;
            let rows = match l {
                0 => Input::Batch(batch, acceptable),
                _ => Input::Rows(Rows::new(&input, group.num_rows())),
            };
            let mut next = || {
                let weights = cells.next().expect("one cell per layer and direction");
                (weights, (h_0.next(group, layer.h_size()), c_0.next(group, layer.c_size())))
            };
            let run = |team: &Team, (weights, states): (&Weights, _), y: Output<'_>| {
                weights.run(team, group, rows, states, y, collect, self.chunk)
            };
            if layer.direction == Direction::Bidirectional {
                let mut directions = [(Some((next(), output_0)), None), (Some((next(), output_1)), None)];
                team.each(&mut directions, |_, (work, result)| {
                    let work = work.take();
                    *result = work.map(|(cell, y)| Team::of(threads / 2, |team| run(team, cell, y)));
                });
                results.extend(directions.into_iter().filter_map(|(_, result)| result));
            } else if team.size() < threads {
                // Beside bidirectional layers: a member of the outer team waits meanwhile.
                results.push(Team::of(threads - 1, |team| run(team, next(), output_0)));
            } else {
                results.push(run(team, next(), output_0));
            }
            input = y;
            if !acceptable.load(Ordering::Relaxed) {
                break;
            }
            if layer.direction == Direction::Bidirectional && layer.merge == Merge::Sum && !is_last {
                sum(&mut input);
            }
        }
        GroupOutput { y: input, cells: results }
    }

    /// Puts the results of all groups where [`BatchOutput`] says.
    fn assemble(
        &self,
        batch: &SequenceBatch<'_>,
        groups: &[Group],
        results: &[GroupOutput],
        team: &Team,
        written: Option<Vec<f32>>,
    ) -> BatchOutput {
        let requested = batch.requested();
        let layer = self.spec.last_layer();
        let first_of_last = self.cells.len() - layer.num_directions();
        let last = || {
            let mut array = vec![0.0; batch.batch_size() * layer.output_size()];
            let directions = layer.num_directions();
            for (group, results) in groups.iter().zip(results) {
                for (d, result) in results.cells[first_of_last..].iter().enumerate() {
                    let rows = from_blocks(&result.last, group.sequences.len(), layer.h_size());
                    for (&b, row) in group.sequences.iter().zip(rows.chunks_exact(layer.h_size())) {
                        match layer.merge {
                            Merge::Concat => {
                                array[(b * directions + d) * row.len()..][..row.len()].copy_from_slice(row)
                            }
                            Merge::Sum => add(&mut array[b * row.len()..][..row.len()], row),
                        }
                    }
                }
            }
            array
        };
        let states = |width: fn(&LayerSpec) -> usize, of: fn(&DirectionOutput) -> &[f32]| {
            let widths: Vec<usize> = self.spec.cells().map(|(_, layer, _)| width(layer)).collect();
            let mut array = vec![0.0; batch.batch_size() * widths.iter().sum::<usize>()];
            let mut start = 0;
            for (cell, width) in widths.into_iter().enumerate() {
                for (group, results) in groups.iter().zip(results) {
                    let rows = Rows::new(of(&results.cells[cell]), group.sequences.len());
                    for (s, &b) in group.sequences.iter().enumerate() {
                        rows.copy_to(s, &mut array[start + b * width..][..width]);
                    }
                }
                start += batch.batch_size() * width;
            }
            array
        };
        let output = || {
            let half = |g: usize, d: usize| {
                let len = results[g].y.len() / layer.num_directions();
                &results[g].y[d * len..][..len]
            };
            padded(team, batch, groups, layer, layer.merge, layer.h_size(), &half)
        };
        let cells = || {
            let of = |g: usize, d: usize| &*results[g].cells[first_of_last + d].cells;
            padded(team, batch, groups, layer, Merge::Concat, layer.c_size(), &of)
        };
        BatchOutput {
            output: written.or_else(|| (requested.sequence == SequenceOutput::All).then(output)),
            last: (requested.sequence == SequenceOutput::Last).then(last),
            pooled: None,
            h_n: requested.final_state.then(|| states(LayerSpec::h_size, |r| &r.h)),
            c_n: requested.final_state.then(|| states(LayerSpec::c_size, |r| &r.c)),
            cells: requested.cells.then(cells),
        }
    }
}

/// The results of one group.
struct GroupOutput {
    /// The rows of the last layer in blocks, direction after direction; empty if not wanted.
    y: Lines,
    /// One per cell of the spec.
    cells: Vec<DirectionOutput>,
}

/// The array of all timesteps of all sequences from the rows in blocks of every group and direction; zeros past the
/// lengths.
fn padded<'a>(
    team: &Team,
    batch: &SequenceBatch<'_>,
    groups: &[Group],
    layer: &LayerSpec,
    merge: Merge,
    width: usize,
    of: &(dyn Fn(usize, usize) -> &'a [f32] + Sync),
) -> Vec<f32> {
    const BYTES_AT_ONCE: usize = 1 << 16;
    let (seq_len, batch_size) = (batch.seq_len(), batch.batch_size());
    let directions = layer.num_directions();
    let row_len = merge.num_outputs(directions) * width;
    let mut array = vec![0.0; seq_len * batch_size * row_len];
    if array.is_empty() {
        return array;
    }
    let mut places = vec![(0, 0); batch_size];
    for (g, group) in groups.iter().enumerate() {
        for (s, &b) in group.sequences.iter().enumerate() {
            places[b] = (g, s);
        }
    }
    let fill = |first: usize, rows: &mut [f32]| {
        for (i, row) in rows.chunks_exact_mut(row_len).enumerate() {
            let Some((t, b)) = valid_place(batch, first + i) else { continue };
            let (g, s) = places[b];
            for d in 0..directions {
                let rows = Rows::new(of(g, d), groups[g].num_rows());
                match merge {
                    Merge::Concat => rows.copy_to(groups[g].starts[t] + s, &mut row[d * width..][..width]),
                    Merge::Sum => rows.add_to(groups[g].starts[t] + s, row),
                }
            }
        }
    };
    let rows_each = (BYTES_AT_ONCE / (row_len * size_of::<f32>())).max(1);
    let mut parts: Vec<&mut [f32]> = array.chunks_mut(rows_each * row_len).collect();
    team.each(&mut parts, |i, rows| fill(i * rows_each, rows));
    array
}

/// The timestep and the sequence of a row of the array of all timesteps, unless it is past the sequence's length.
fn valid_place(batch: &SequenceBatch<'_>, row: usize) -> Option<(usize, usize)> {
    let (seq_len, batch_size) = (batch.seq_len(), batch.batch_size());
    let (t, b) = match batch.layout() {
        Layout::TimeMajor => (row / batch_size, row % batch_size),
        Layout::BatchMajor => (row % seq_len, row / seq_len),
    };
    (t < batch.sequence_lengths()[b]).then_some((t, b))
}

/// Adds the second half to the first, and keeps that.
fn sum(y: &mut Lines) {
    let len = y.len() / 2;
    let (first, second) = y.split_at_mut(len);
    add(first, second);
    y.truncate(len);
}

fn add(sum: &mut [f32], row: &[f32]) {
    sum.iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
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

    /// The number of valid timesteps of all sequences.
    fn num_rows(&self) -> usize {
        self.starts[self.seq_len()]
    }

    /// The number of sequences longer than `t`.
    fn active(&self, t: usize) -> usize {
        self.starts.get(t + 1).map_or(0, |end| end - self.starts[t])
    }
}

/// The initial states of a batch, taken cell after cell.
struct Blocks<'a> {
    states: Option<&'a [f32]>,
    batch_size: usize,
}

impl Blocks<'_> {
    /// The rows of the group's sequences in the next cell's block [B, width], in blocks of columns; zero if none are
    /// given.
    fn next(&mut self, group: &Group, width: usize) -> Lines {
        let Some(states) = &mut self.states else {
            return Lines::zeros(blocks(width) * group.sequences.len() * LANES);
        };
        let (of_cell, rest) = states.split_at(self.batch_size * width);
        *states = rest;
        to_blocks(group.sequences.iter().map(|&b| &of_cell[b * width..][..width]), width)
    }
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
        for (bytes, rows) in [(0, 0), (0, 100), (4 * 48 * 70, 0), (1 << 20, 64)] {
            let model = CpuLstm::with_chunks(&weights, Precision::F32, ChunkSize { bytes, rows });
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
    fn every_value_of_the_input_is_checked_where_it_is_valid() {
        // Few rows for one thread, rows enough for a team, and steps so short that threads take groups.
        for (batch_size, seq_len, hidden_size, stride) in [(5, 7, 3, 1), (20, 60, 64, 4001), (120, 90, 3, 9973)] {
            for direction in [Direction::Forward, Direction::Reverse, Direction::Bidirectional] {
                let spec = LstmSpec::stack(41, hidden_size, 2).direction(direction).build().unwrap();
                let chunk = ChunkSize { bytes: 1 << 16, rows: 0 };
                let model = CpuLstm::with_chunks(&LstmWeights::random(&spec, 1), Precision::F32, chunk);
                let short = if batch_size == 120 { 30 } else { seq_len };
                let length = |b: usize| if b == 0 { seq_len } else { short - b * 7 % short };
                let lengths: Vec<usize> = (0..batch_size).map(length).collect();
                let mut x = vec![0.5; batch_size * seq_len * 41];
                let run = |x: &[f32], check: bool| {
                    let batch = SequenceBatch::new(x, [batch_size, seq_len, 41], Layout::BatchMajor).unwrap();
                    model.run(&batch.lengths(&lengths).unwrap().check_finite(check))
                };
                let expected = run(&x, true).unwrap();
                if batch_size == 120 && direction == Direction::Forward && num_threads() > 1 {
                    let batch = SequenceBatch::new(&x, [batch_size, seq_len, 41], Layout::BatchMajor).unwrap();
                    assert!(model.groups(&batch.lengths(&lengths).unwrap()).0.len() > 1);
                }
                for at in (0..x.len()).step_by(stride) {
                    let (b, t, feature) = (at / 41 / seq_len, at / 41 % seq_len, at % 41);
                    let before = std::mem::replace(&mut x[at], if at % 2 == 0 { f32::NAN } else { f32::INFINITY });
                    match run(&x, true) {
                        Err(e) if t < lengths[b] => {
                            let place = format!("at sequence {b}, step {t}, feature {feature}");
                            assert!(e.to_string().ends_with(&place), "{e}, not {place}");
                            assert!(run(&x, false).is_ok());
                        }
                        found => assert!(t >= lengths[b] && found.unwrap() == expected, "({b}, {t}, {feature})"),
                    }
                    x[at] = before;
                }
            }
        }
    }

    #[test]
    fn groups_share_all_sequences() {
        let spec = LstmSpec::stack(9, 64, 1).build().unwrap();
        let model = CpuLstm::new(&LstmWeights::random(&spec, 1), Precision::F32);
        for (batch_size, seq_len) in [(0, 3), (1, 0), (5, 100), (100, 50), (1000, 10)] {
            let x = vec![0.0; batch_size * seq_len * 9];
            let batch = SequenceBatch::new(&x, [batch_size, seq_len, 9], Layout::BatchMajor).unwrap();
            let (groups, threads) = model.groups(&batch);
            assert!(threads >= 1 && (1..=num_threads()).contains(&(groups.len() * threads)));
            let mut all: Vec<usize> = groups.iter().flat_map(|g| g.sequences.clone()).collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..batch_size));
        }
    }
}
