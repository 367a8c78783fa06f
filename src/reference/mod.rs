//! The judge: every cell from the printed equations, in f32 or f64.
//!
//! In:  [`LstmWeights`], f32 as rounded for the device, and a [`SequenceBatch`].
//! Out: [`ReferenceOutput`], in the shapes of [`BatchOutput`]; or the results of chosen sequences,
//!      [`SequenceResult`].
//! Afterwards a difference from these numbers is a question about the other side. NaN and infinity propagate.
//! Not here: speed; `cpu` is the backend for machines without a GPU and shares no code with this folder.

mod activation;
mod cell;

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::batch::{BatchOutput, Layout, Outputs, SequenceBatch, SequenceOutput};
use crate::error::{Result, bail};
use crate::spec::{LstmSpec, Merge};
use crate::weights::LstmWeights;
use cell::Cell;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// The arithmetic of a reference run: `f32` or `f64`.
pub trait Real:
    sealed::Sealed
    + Copy
    + Debug
    + PartialOrd
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// The same number, exactly.
    fn from_f32(value: f32) -> Self;
    /// The same number, exactly.
    fn to_f64(self) -> f64;
    /// e^self
    fn exp(self) -> Self;
    /// e^self − 1
    fn exp_m1(self) -> Self;
    /// ln(1 + self)
    fn ln_1p(self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// The magnitude.
    fn abs(self) -> Self;
    /// The hyperbolic tangent.
    fn tanh(self) -> Self;
}

macro_rules! real {
    ($t:ident) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            fn from_f32(value: f32) -> Self {
                value.into()
            }
            fn to_f64(self) -> f64 {
                self.into()
            }
            fn exp(self) -> Self {
                $t::exp(self)
            }
            fn exp_m1(self) -> Self {
                $t::exp_m1(self)
            }
            fn ln_1p(self) -> Self {
                $t::ln_1p(self)
            }
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            fn abs(self) -> Self {
                $t::abs(self)
            }
            fn tanh(self) -> Self {
                $t::tanh(self)
            }
        }
    };
}
real!(f32);
real!(f64);

/// What a reference run returned; the fields are those of [`BatchOutput`] in the arithmetic of the run.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceOutput<R> {
    /// All hidden states of the last layer in the batch's layout, [T, B, D·H] or [B, T, D·H]; [.., H] if summed.
    pub output: Option<Vec<R>>,
    /// The hidden states at each sequence's last valid timestep, [B, D·H]; zero for a sequence of length 0.
    pub last: Option<Vec<R>>,
    /// Final hidden states, [L·D, B, H or P]; the initial ones for a sequence of length 0.
    pub h_n: Option<Vec<R>>,
    /// Final cell states, [L·D, B, H].
    pub c_n: Option<Vec<R>>,
    /// All cell states of the last layer in the batch's layout, [T, B, D·H] or [B, T, D·H].
    pub cells: Option<Vec<R>>,
}

impl ReferenceOutput<f32> {
    /// The same arrays as an engine returns them.
    pub fn into_batch_output(self) -> BatchOutput {
        BatchOutput {
            output: self.output,
            last: self.last,
            pooled: None,
            h_n: self.h_n,
            c_n: self.c_n,
            cells: self.cells,
        }
    }
}

/// Everything about one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceResult<R> {
    /// Its index in the batch.
    pub sequence: usize,
    /// The hidden states of the last layer at the valid timesteps, [length, D·H].
    pub output: Vec<R>,
    /// The cell states of the last layer at the valid timesteps, [length, D·H].
    pub cells: Vec<R>,
    /// Its final hidden states, the cells of the spec one after the other.
    pub h_n: Vec<R>,
    /// Its final cell states, the cells of the spec one after the other.
    pub c_n: Vec<R>,
}

/// Runs a batch and returns what [`SequenceBatch::requested`] asks for.
///
/// The shapes are documented at [`BatchOutput`]. Timesteps at or past a sequence's length are not read; their
/// output is zero. T = 0 and B = 0 return empty outputs and the initial state.
///
/// ```
/// use wgpu_lstm::{Layout, LstmSpec, LstmWeights, SequenceBatch, reference};
/// let spec = LstmSpec::stack(3, 4, 1).build()?;
/// let weights = LstmWeights::random(&spec, 1);
/// let x = vec![0.5; 2 * 5 * 3]; // [B=2, T=5, I=3]
/// let batch = SequenceBatch::new(&x, [2, 5, 3], Layout::BatchMajor)?.lengths(&[5, 2])?;
/// let result = reference::run::<f64>(&weights, &batch)?;
/// assert_eq!(result.output.unwrap().len(), 2 * 5 * 4);
/// assert_eq!(result.h_n.unwrap().len(), 2 * 4);
/// # Ok::<(), wgpu_lstm::Error>(())
/// ```
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) as [`SequenceBatch::validate`].
pub fn run<R: Real>(weights: &LstmWeights, batch: &SequenceBatch<'_>) -> Result<ReferenceOutput<R>> {
    let everyone: Vec<usize> = (0..batch.batch_size()).collect();
    let results = run_sequences(weights, batch, &everyone)?;
    Ok(assemble(weights.spec(), batch, &results))
}

/// Runs only the given sequences of a batch, for spot checks of large ones; the results are in the order given.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) as [`SequenceBatch::validate`], or if an index is not below B.
pub fn run_sequences<R: Real>(
    weights: &LstmWeights,
    batch: &SequenceBatch<'_>,
    sequences: &[usize],
) -> Result<Vec<SequenceResult<R>>> {
    batch.validate(weights.spec())?;
    if let Some(&b) = sequences.iter().find(|&&b| b >= batch.batch_size()) {
        bail!(InvalidInput, "sequences: expected indices below batch_size {}, found {b}", batch.batch_size());
    }
    let lengths = batch.sequence_lengths();
    let rows: usize = sequences.iter().map(|&b| lengths[b]).sum();
    let threads = num_threads(sequences.len(), rows.saturating_mul(weights.spec().num_parameters()));
    if threads == 1 {
        return Ok(sequences.iter().map(|&b| run_sequence(weights, batch, b)).collect());
    }

    // The longest first, so that no thread is left with a long one at the end.
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by_key(|&s| std::cmp::Reverse(lengths[sequences[s]]));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(&s) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((s, run_sequence(weights, batch, sequences[s])));
        }
        done
    };
    let mut results: Vec<(usize, SequenceResult<R>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let join = |w: std::thread::ScopedJoinHandle<'_, _>| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
        workers.into_iter().flat_map(join).collect()
    });
    results.sort_by_key(|&(s, _)| s);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// One thread per processor, but none for less than a fraction of a millisecond of work. Where the platform has
/// no threads, `available_parallelism` is an error and all runs in the caller's.
fn num_threads(sequences: usize, multiply_adds: usize) -> usize {
    const WORTH_A_THREAD: usize = 500_000;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors.min(sequences).min(multiply_adds / WORTH_A_THREAD).max(1)
}

/// All layers of sequence `b`.
fn run_sequence<R: Real>(weights: &LstmWeights, batch: &SequenceBatch<'_>, b: usize) -> SequenceResult<R> {
    let spec = weights.spec();
    let length = batch.sequence_lengths()[b];
    let mut cells = weights.cells().iter();
    let mut h_0 = Blocks { states: batch.initial_h(), batch_size: batch.batch_size(), b };
    let mut c_0 = Blocks { states: batch.initial_c(), batch_size: batch.batch_size(), b };

    let input = (0..length).flat_map(|t| batch.input_row(t, b).iter().map(|&x| R::from_f32(x)));
    let mut rows: Vec<R> = input.collect();
    let mut result = SequenceResult { sequence: b, output: vec![], cells: vec![], h_n: vec![], c_n: vec![] };
    for layer in spec.layers() {
        let mut layer_output = vec![R::ZERO; length * layer.output_size()];
        let mut layer_cells = vec![R::ZERO; length * layer.num_directions() * layer.c_size()];
        for (d, &reverse) in layer.direction.is_reverse().iter().enumerate() {
            let cell = cells.next().expect("LstmWeights::new: one cell per layer and direction");
            let mut h = h_0.next(layer.h_size());
            let mut c = c_0.next(layer.c_size());
            let cell = Cell::new(layer, cell, d);
            run_direction(cell, layer.input_size, reverse, &rows, [&mut h, &mut c], |t, h, c| {
                match layer.merge {
                    Merge::Concat => put(&mut layer_output, layer.num_directions() * t + d, h),
                    Merge::Sum => layer_output[t * h.len()..].iter_mut().zip(h).for_each(|(sum, h)| *sum += *h),
                }
                put(&mut layer_cells, layer.num_directions() * t + d, c);
            });
            result.h_n.extend(h);
            result.c_n.extend(c);
        }
        rows = layer_output;
        result.cells = layer_cells;
    }
    result.output = rows;
    result
}

/// One direction of one layer: `each(t, h, c)` is called with the state after each timestep.
fn run_direction<R: Real>(
    mut cell: Cell<'_, R>,
    input_size: usize,
    reverse: bool,
    rows: &[R],
    [h, c]: [&mut [R]; 2],
    mut each: impl FnMut(usize, &[R], &[R]),
) {
    let length = rows.len() / input_size;
    for s in 0..length {
        let t = if reverse { length - 1 - s } else { s };
        cell.step(&rows[t * input_size..][..input_size], h, c);
        each(t, h, c);
    }
}

/// Writes `values` as the `index`-th block of its size.
fn put<R: Copy>(array: &mut [R], index: usize, values: &[R]) {
    array[index * values.len()..][..values.len()].copy_from_slice(values);
}

/// Walks the initial states of sequence `b`: one block [B, width] per cell.
struct Blocks<'a> {
    states: Option<&'a [f32]>,
    batch_size: usize,
    b: usize,
}

impl Blocks<'_> {
    /// The state of the next cell, zero if none was given.
    fn next<R: Real>(&mut self, width: usize) -> Vec<R> {
        match &mut self.states {
            None => vec![R::ZERO; width],
            Some(states) => {
                let (block, rest) = states.split_at(self.batch_size * width);
                *states = rest;
                block[self.b * width..][..width].iter().map(|&v| R::from_f32(v)).collect()
            }
        }
    }
}

/// Puts the results of all sequences where [`BatchOutput`] says.
fn assemble<R: Real>(spec: &LstmSpec, batch: &SequenceBatch<'_>, results: &[SequenceResult<R>]) -> ReferenceOutput<R> {
    let Outputs { sequence, final_state, cells } = batch.requested();
    let h_widths = || spec.cells().map(|(_, layer, _)| layer.h_size());
    let c_widths = || spec.cells().map(|(_, layer, _)| layer.c_size());
    let output_size = spec.output_size();
    let cells_size = spec.last_layer().num_directions() * spec.last_layer().c_size();
    ReferenceOutput {
        output: (sequence == SequenceOutput::All).then(|| padded(batch, output_size, results, |r| &r.output)),
        last: (sequence == SequenceOutput::Last).then(|| last_rows(output_size, results)),
        h_n: final_state.then(|| states(h_widths(), results, |r| &r.h_n)),
        c_n: final_state.then(|| states(c_widths(), results, |r| &r.c_n)),
        cells: cells.then(|| padded(batch, cells_size, results, |r| &r.cells)),
    }
}

/// [length, width] of every sequence → [T, B, width] or [B, T, width], zero at or past a length.
fn padded<R: Real>(
    batch: &SequenceBatch<'_>,
    width: usize,
    results: &[SequenceResult<R>],
    of: impl Fn(&SequenceResult<R>) -> &[R],
) -> Vec<R> {
    let (layout, seq_len, batch_size): (Layout, _, _) = (batch.layout(), batch.seq_len(), batch.batch_size());
    let mut array = vec![R::ZERO; seq_len * batch_size * width];
    for result in results {
        for (t, row) in of(result).chunks_exact(width).enumerate() {
            put(&mut array, layout.row(t, result.sequence, seq_len, batch_size), row);
        }
    }
    array
}

/// The last valid row of every sequence, [B, width].
fn last_rows<R: Real>(width: usize, results: &[SequenceResult<R>]) -> Vec<R> {
    let mut array = vec![R::ZERO; results.len() * width];
    for result in results {
        if let Some(row) = result.output.chunks_exact(width).next_back() {
            put(&mut array, result.sequence, row);
        }
    }
    array
}

/// The states of every sequence, cell after cell → one block [B, width] per cell.
fn states<R: Real>(
    widths: impl Iterator<Item = usize>,
    results: &[SequenceResult<R>],
    of: impl Fn(&SequenceResult<R>) -> &[R],
) -> Vec<R> {
    let mut array = Vec::new();
    let mut start = 0;
    for width in widths {
        for result in results {
            array.extend_from_slice(&of(result)[start..start + width]);
        }
        start += width;
    }
    array
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::CellWeights;

    /// One unit, one input, weights 1 and biases 0, by hand.
    #[test]
    fn one_unit_follows_the_equations() {
        let spec = LstmSpec::stack(1, 1, 1).build().unwrap();
        let cell = CellWeights {
            weight_ih: vec![1.0, 2.0, 3.0, 4.0],
            weight_hh: vec![0.5, 0.25, -0.5, -0.25],
            bias_ih: Some(vec![0.0, 0.5, 0.0, 0.0]),
            bias_hh: Some(vec![0.0, 0.0, 0.0, -1.0]),
            ..CellWeights::default()
        };
        let weights = LstmWeights::new(spec, vec![cell]).unwrap();
        let (x, h, c) = (0.5f64, 0.25f64, -0.75f64);
        let sigma = |v: f64| 1.0 / (1.0 + (-v).exp());
        let c_1 = sigma(2.0 * x + 0.25 * h + 0.5) * c + sigma(x + 0.5 * h) * (3.0 * x - 0.5 * h).tanh();
        let h_1 = sigma(4.0 * x - 0.25 * h - 1.0) * c_1.tanh();

        let batch = SequenceBatch::new(&[0.5], [1, 1, 1], Layout::BatchMajor).unwrap().h_0(&[0.25]).c_0(&[-0.75]);
        let result = run::<f64>(&weights, &batch).unwrap();
        assert!((result.c_n.unwrap()[0] - c_1).abs() < 1e-15);
        assert!((result.h_n.unwrap()[0] - h_1).abs() < 1e-15);
        assert!((result.output.unwrap()[0] - h_1).abs() < 1e-15);
    }

    #[test]
    fn nan_propagates_and_stays_in_its_sequence() {
        let spec = LstmSpec::stack(2, 3, 2).build().unwrap();
        let weights = LstmWeights::random(&spec, 3);
        let mut x = vec![0.5; 2 * 4 * 2];
        x[2 * 2] = f32::NAN; // sequence 0, step 2
        let batch = SequenceBatch::new(&x, [2, 4, 2], Layout::BatchMajor).unwrap();
        assert!(run::<f64>(&weights, &batch).is_err());
        let output = run::<f64>(&weights, &batch.check_finite(false)).unwrap().output.unwrap();
        let nan: Vec<bool> = output.chunks(3).map(|row| row.iter().all(|v| v.is_nan())).collect();
        assert_eq!(nan, [false, false, true, true, false, false, false, false]);
    }

    #[test]
    fn threads_do_not_change_results() {
        let spec = LstmSpec::stack(40, 48, 2).direction(crate::Direction::Bidirectional).build().unwrap();
        let weights = LstmWeights::random(&spec, 5);
        let x: Vec<f32> = (0..6 * 9 * 40).map(|i| (i as f32 * 0.37).sin()).collect();
        let batch = SequenceBatch::new(&x, [6, 9, 40], Layout::BatchMajor).unwrap();
        let batch = batch.lengths(&[3, 9, 0, 1, 9, 4]).unwrap();
        let together = run_sequences::<f32>(&weights, &batch, &[5, 1, 4, 0, 2]).unwrap();
        for (result, b) in together.iter().zip([5, 1, 4, 0, 2]) {
            assert_eq!(*result, run_sequence(&weights, &batch, b));
        }
        let error = run_sequences::<f32>(&weights, &batch, &[6]).unwrap_err().to_string();
        assert_eq!(error, "sequences: expected indices below batch_size 6, found 6");
    }
}
