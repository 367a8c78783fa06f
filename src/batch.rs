//! What goes in and what comes out: a batch of sequences of unequal length, and the results asked for.

#[cfg(feature = "gpu")]
use std::ops::Range;

use crate::error::{Result, bail};
#[cfg(feature = "gpu")]
use crate::spec::LayerSpec;
use crate::spec::LstmSpec;

/// The order of the first two axes of `input` and `output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Layout {
    /// [T, B, features], PyTorch's default.
    TimeMajor,
    /// [B, T, features], PyTorch's `batch_first=True`.
    #[default]
    BatchMajor,
}

impl Layout {
    /// The row index of timestep `t` of sequence `b` in an array of `seq_len` × `batch_size` rows.
    pub fn row(self, t: usize, b: usize, seq_len: usize, batch_size: usize) -> usize {
        match self {
            Layout::TimeMajor => t * batch_size + b,
            Layout::BatchMajor => b * seq_len + t,
        }
    }

    /// [T, B, features] or [B, T, features].
    pub fn shape(self, seq_len: usize, batch_size: usize, features: usize) -> [usize; 3] {
        match self {
            Layout::TimeMajor => [seq_len, batch_size, features],
            Layout::BatchMajor => [batch_size, seq_len, features],
        }
    }
}

/// Where the row of a timestep of a sequence lies in an array of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg(feature = "gpu")]
pub enum RowOrder<'a> {
    /// All sequences have room for `seq_len` timesteps.
    Layout {
        /// Which axis comes first.
        layout: Layout,
        /// T
        seq_len: usize,
        /// B
        batch_size: usize,
        /// The sequence of the array that is sequence 0 here.
        first: usize,
    },
    /// Each sequence has just its own timesteps, from this row on, `[B]`.
    Starts(&'a [usize]),
}

#[cfg(feature = "gpu")]
impl RowOrder<'_> {
    /// The row of timestep `t` of sequence `b`.
    pub fn row(&self, t: usize, b: usize) -> usize {
        match *self {
            RowOrder::Layout { layout, seq_len, batch_size, first } => layout.row(t, first + b, seq_len, batch_size),
            RowOrder::Starts(starts) => starts[b] + t,
        }
    }
}

/// Which hidden states of the last layer to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SequenceOutput {
    /// None; the final states may still be asked for.
    None,
    /// The row of the output at each sequence's last valid timestep, [B, D·H]; zero for a sequence of length 0.
    Last,
    /// All, [T, B, D·H] or [B, T, D·H]; rows at or past a sequence's length are zero.
    #[default]
    All,
    /// The mean over each sequence's valid timesteps, [B, D·H]; zero for a sequence of length 0. Summed in order of time
    /// in f32.
    Mean,
    /// The maximum over each sequence's valid timesteps, [B, D·H]; zero for a sequence of length 0.
    Max,
}

impl SequenceOutput {
    /// Whether all rows of a sequence become one.
    pub(crate) fn is_pooled(self) -> bool {
        matches!(self, SequenceOutput::Mean | SequenceOutput::Max)
    }
}

/// What a run returns; what is not asked for is not read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outputs {
    /// The hidden states of the last layer.
    pub sequence: SequenceOutput,
    /// The final states `h_n` and `c_n` of every layer and direction.
    pub final_state: bool,
    /// All cell states of the last layer, in the layout of the input; zero at or past a length.
    pub cells: bool,
}

impl Default for Outputs {
    fn default() -> Self {
        Self { sequence: SequenceOutput::All, final_state: true, cells: false }
    }
}

const MAX_SEQ_LEN: usize = i32::MAX as usize;
/// An array without timesteps can claim any batch size; this many lengths still fit in memory.
const MAX_BATCH_SIZE: usize = 1 << 24;

/// A batch of B sequences of up to T timesteps, each with its own length.
///
/// ```
/// use wgpu_lstm::{Layout, SequenceBatch};
/// let x = vec![0.0; 2 * 5 * 3]; // [B=2, T=5, I=3]
/// let batch = SequenceBatch::new(&x, [2, 5, 3], Layout::BatchMajor)?.lengths(&[5, 2])?;
/// assert_eq!(batch.num_valid_rows(), 7);
/// # Ok::<(), wgpu_lstm::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SequenceBatch<'a> {
    input: &'a [f32],
    layout: Layout,
    seq_len: usize,
    batch_size: usize,
    input_size: usize,
    lengths: Vec<usize>,
    h_0: Option<&'a [f32]>,
    c_0: Option<&'a [f32]>,
    outputs: Outputs,
    check_finite: bool,
}

impl<'a> SequenceBatch<'a> {
    /// A batch over `input` of `shape` [T, B, I] or [B, T, I] as `layout` says. All sequences have length T
    /// until [`lengths`](Self::lengths) says otherwise. T = 0 and B = 0 are legal.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if the number of elements is not the product of the
    /// shape, I is 0, T is above 2^31 − 1 or B above 2^24.
    pub fn new(input: &'a [f32], shape: [usize; 3], layout: Layout) -> Result<Self> {
        let elements = shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
        if elements != Some(input.len()) {
            bail!(
                InvalidInput,
                "input: expected {} elements for shape {shape:?}, found {}",
                elements.map_or("too many".to_owned(), |n| n.to_string()),
                input.len()
            );
        }
        let (seq_len, batch_size) = match layout {
            Layout::TimeMajor => (shape[0], shape[1]),
            Layout::BatchMajor => (shape[1], shape[0]),
        };
        for (name, size, most) in [("seq_len", seq_len, MAX_SEQ_LEN), ("batch_size", batch_size, MAX_BATCH_SIZE)] {
            if size > most {
                bail!(InvalidInput, "{name}: expected at most {most}, found {size}");
            }
        }
        if shape[2] == 0 {
            bail!(InvalidInput, "input: expected an input_size of at least 1, found shape {shape:?}");
        }
        Ok(Self {
            input,
            layout,
            seq_len,
            batch_size,
            input_size: shape[2],
            lengths: vec![seq_len; batch_size],
            h_0: None,
            c_0: None,
            outputs: Outputs::default(),
            check_finite: true,
        })
    }

    /// Sets each sequence's own length, `[B]`, 0 to T. Input at or past a length is not read.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if there are not B lengths or one is above T.
    pub fn lengths(mut self, lengths: &[usize]) -> Result<Self> {
        check_lengths(lengths, self.seq_len, self.batch_size)?;
        self.lengths = lengths.to_vec();
        Ok(self)
    }

    /// Sets the initial hidden state, [L·D, B, H or P] layer-major; zero where it is not given.
    /// Its size is checked when the batch meets a model.
    #[must_use]
    pub fn h_0(mut self, h_0: &'a [f32]) -> Self {
        self.h_0 = Some(h_0);
        self
    }

    /// Sets the initial cell state, [L·D, B, H] layer-major; zero where it is not given.
    /// Its size is checked when the batch meets a model.
    #[must_use]
    pub fn c_0(mut self, c_0: &'a [f32]) -> Self {
        self.c_0 = Some(c_0);
        self
    }

    /// Sets what the run returns.
    #[must_use]
    pub fn outputs(mut self, outputs: Outputs) -> Self {
        self.outputs = outputs;
        self
    }

    /// Whether to scan valid input and initial states for NaN and infinity and refuse them by name; on
    /// unless turned off. GPUs may assume that neither occurs.
    #[must_use]
    pub fn check_finite(mut self, check: bool) -> Self {
        self.check_finite = check;
        self
    }

    /// The input, in the order of [`layout`](Self::layout).
    pub fn input(&self) -> &'a [f32] {
        self.input
    }

    /// The axis order of input and output.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// T, the longest length that the arrays have room for.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// B.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// I.
    pub fn input_size(&self) -> usize {
        self.input_size
    }

    /// Each sequence's own length, `[B]`.
    pub fn sequence_lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// The sum of all lengths.
    pub fn num_valid_rows(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// The initial hidden state, if given.
    pub fn initial_h(&self) -> Option<&'a [f32]> {
        self.h_0
    }

    /// The initial cell state, if given.
    pub fn initial_c(&self) -> Option<&'a [f32]> {
        self.c_0
    }

    /// What the run returns.
    pub fn requested(&self) -> Outputs {
        self.outputs
    }

    /// Where the rows of the sequences from `first` on lie in the input.
    #[cfg(feature = "gpu")]
    pub(crate) fn order(&self, first: usize) -> RowOrder<'a> {
        RowOrder::Layout { layout: self.layout, seq_len: self.seq_len, batch_size: self.batch_size, first }
    }

    /// The input row of timestep `t` of sequence `b`, `[I]`.
    pub fn input_row(&self, t: usize, b: usize) -> &'a [f32] {
        let row = self.layout.row(t, b, self.seq_len, self.batch_size);
        &self.input[row * self.input_size..][..self.input_size]
    }

    /// Checks the batch against a model: widths, state sizes, and unless turned off NaN and infinity.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) with the name, the expected and the found value.
    pub fn validate(&self, spec: &LstmSpec) -> Result<()> {
        self.validate_shapes(spec)?;
        self.validate_input()
    }

    /// Checks all but the values of the input: widths, sizes, and the values of the initial state.
    pub(crate) fn validate_shapes(&self, spec: &LstmSpec) -> Result<()> {
        if self.input_size != spec.input_size() {
            let hint = if self.layout.shape(self.seq_len, self.batch_size, self.input_size)[1] == spec.input_size() {
                "; the second axis would fit: are the axes in another order?"
            } else {
                ""
            };
            bail!(
                InvalidInput,
                "input: expected input_size {}, found {} (shape {:?}){hint}",
                spec.input_size(),
                self.input_size,
                self.layout.shape(self.seq_len, self.batch_size, self.input_size)
            );
        }
        check_outputs(self.outputs, spec)?;
        let (h_size, c_size) = spec.state_sizes();
        for (name, state, size) in [("h_0", self.h_0, h_size), ("c_0", self.c_0, c_size)] {
            let expected = size * self.batch_size;
            if let Some(state) = state {
                if state.len() != expected {
                    bail!(
                        InvalidInput,
                        "{name}: expected {expected} elements (batch_size {} × {size} over all layers and \
                         directions), found {}",
                        self.batch_size,
                        state.len()
                    );
                }
                if self.check_finite
                    && let Some(i) = first_non_finite(state)
                {
                    bail!(InvalidInput, "{name}: expected finite values, found {} at element {i}", state[i]);
                }
            }
        }
        Ok(())
    }

    /// Whether NaN and infinity are refused.
    #[cfg(feature = "cpu")]
    pub(crate) fn checks_finite(&self) -> bool {
        self.check_finite
    }

    /// Checks the values of the input, unless turned off.
    pub(crate) fn validate_input(&self) -> Result<()> {
        // Most often all is finite, padding too; then nobody asks where a sequence ends.
        if self.check_finite && first_non_finite(self.input).is_some() {
            for (b, &length) in self.lengths.iter().enumerate() {
                for t in 0..length {
                    let row = self.input_row(t, b);
                    if let Some(i) = first_non_finite(row) {
                        bail!(
                            InvalidInput,
                            "input: expected finite values, found {} at sequence {b}, step {t}, feature {i}",
                            row[i]
                        );
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether there is neither NaN nor infinity; without a branch, so that it becomes vectors.
pub(crate) fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(true, |finite, v| finite & v.is_finite())
}

/// The index of the first NaN or infinity.
fn first_non_finite(values: &[f32]) -> Option<usize> {
    let stretch = values.chunks(1024).position(|values| !all_finite(values))? * 1024;
    values[stretch..].iter().position(|v| !v.is_finite()).map(|i| stretch + i)
}

/// The mean or maximum of the valid rows of each sequence: `output` in the batch's layout → [B, features].
pub(crate) fn pool_rows(output: &[f32], batch: &SequenceBatch<'_>, how: SequenceOutput, features: usize) -> Vec<f32> {
    let mut pooled = vec![0.0f32; batch.batch_size() * features];
    for (b, &length) in batch.sequence_lengths().iter().enumerate() {
        let result = &mut pooled[b * features..][..features];
        for t in 0..length {
            let row = batch.layout.row(t, b, batch.seq_len, batch.batch_size) * features;
            for (r, &v) in result.iter_mut().zip(&output[row..row + features]) {
                *r = match how {
                    SequenceOutput::Max if t == 0 => v,
                    SequenceOutput::Max => r.max(v),
                    _ => *r + v,
                };
            }
        }
        if how == SequenceOutput::Mean && length > 0 {
            result.iter_mut().for_each(|r| *r /= length as f32);
        }
    }
    pooled
}

/// The states of some sequences: [cells, B, size] → [cells, n, size].
#[cfg(feature = "gpu")]
pub(crate) fn states_of(
    state: &[f32],
    batch_size: usize,
    sequences: &Range<usize>,
    spec: &LstmSpec,
    size: fn(&LayerSpec) -> usize,
) -> Vec<f32> {
    let mut first = 0;
    let mut chosen = Vec::new();
    for (_, layer, _) in spec.cells() {
        let width = size(layer);
        chosen.extend_from_slice(&state[first + sequences.start * width..first + sequences.end * width]);
        first += batch_size * width;
    }
    chosen
}

/// Joins what runs of consecutive sequences returned, each with their number, to what one run would have.
#[cfg(feature = "gpu")]
pub(crate) fn join_outputs(
    parts: Vec<(usize, BatchOutput)>,
    batch: &SequenceBatch<'_>,
    spec: &LstmSpec,
) -> BatchOutput {
    if parts.len() == 1 {
        return parts.into_iter().next().map(|(_, output)| output).unwrap_or_default();
    }
    // Every array is [blocks, B, width] with a width for each block.
    let join = |array: fn(&BatchOutput) -> Option<&Vec<f32>>, widths: &[usize]| -> Option<Vec<f32>> {
        parts.first().and_then(|(_, output)| array(output))?;
        let mut joined = Vec::with_capacity(batch.batch_size() * widths.iter().sum::<usize>());
        let mut before = 0;
        for &width in widths {
            for (n, output) in &parts {
                let part = array(output).map_or(&[][..], Vec::as_slice);
                joined.extend_from_slice(&part[n * before..][..n * width]);
            }
            before += width;
        }
        Some(joined)
    };
    let rows = |features: usize| match batch.layout {
        Layout::TimeMajor => vec![features; batch.seq_len],
        Layout::BatchMajor => vec![batch.seq_len * features],
    };
    let last = spec.last_layer();
    let cells = |size: fn(&LayerSpec) -> usize| spec.cells().map(|(_, layer, _)| size(layer)).collect::<Vec<_>>();
    BatchOutput {
        output: join(|o| o.output.as_ref(), &rows(last.output_size())),
        last: join(|o| o.last.as_ref(), &[last.output_size()]),
        pooled: join(|o| o.pooled.as_ref(), &[last.output_size()]),
        h_n: join(|o| o.h_n.as_ref(), &cells(LayerSpec::h_size)),
        c_n: join(|o| o.c_n.as_ref(), &cells(LayerSpec::c_size)),
        cells: join(|o| o.cells.as_ref(), &rows(last.num_directions() * last.c_size())),
    }
}

/// Checks that there are `batch_size` lengths of at most `seq_len`.
pub(crate) fn check_lengths(lengths: &[usize], seq_len: usize, batch_size: usize) -> Result<()> {
    if lengths.len() != batch_size {
        bail!(InvalidInput, "lengths: expected batch_size = {batch_size}, found {}", lengths.len());
    }
    if let Some(b) = lengths.iter().position(|&n| n > seq_len) {
        bail!(InvalidInput, "lengths[{b}]: expected 0 to seq_len {seq_len}, found {}", lengths[b]);
    }
    Ok(())
}

/// Checks that the model has what is asked for.
pub(crate) fn check_outputs(outputs: Outputs, spec: &LstmSpec) -> Result<()> {
    if outputs.cells && spec.last_layer().c_size() == 0 {
        bail!(
            InvalidInput,
            "outputs.cells: expected a last layer with a cell state, found a {}",
            spec.last_layer().cell.name()
        );
    }
    Ok(())
}

/// What a run returned. Arrays are dense and row-major, slowest axis first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BatchOutput {
    /// All hidden states of the last layer in the batch's layout, [T, B, D·H] or [B, T, D·H]; [.., H] if the two
    /// directions are summed.
    pub output: Option<Vec<f32>>,
    /// The hidden states at each sequence's last valid timestep, [B, D·H].
    pub last: Option<Vec<f32>>,
    /// The mean or maximum of the hidden states over each sequence's valid timesteps, [B, D·H].
    pub pooled: Option<Vec<f32>>,
    /// Final hidden states, [L·D, B, H or P]; the state after each sequence's last valid step.
    pub h_n: Option<Vec<f32>>,
    /// Final cell states, [L·D, B, H]; of layers that have one.
    pub c_n: Option<Vec<f32>>,
    /// All cell states of the last layer in the batch's layout, [T, B, D·H] or [B, T, D·H], side by side also where the
    /// outputs are summed.
    pub cells: Option<Vec<f32>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_batches_name_the_offender() {
        let x = vec![0.0; 30];
        let shape = [2, 5, 3];
        let message = |r: Result<SequenceBatch<'_>>| r.unwrap_err().to_string();
        assert_eq!(
            message(SequenceBatch::new(&x[1..], shape, Layout::BatchMajor)),
            "input: expected 30 elements for shape [2, 5, 3], found 29"
        );
        assert!(message(SequenceBatch::new(&x, [usize::MAX, 5, 3], Layout::BatchMajor)).contains("too many"));
        assert_eq!(
            message(SequenceBatch::new(&[], [1 << 31, 0, 3], Layout::BatchMajor)),
            "batch_size: expected at most 16777216, found 2147483648"
        );
        assert!(message(SequenceBatch::new(&[], [2, 5, 0], Layout::BatchMajor)).contains("input_size of at least 1"));
        let batch = SequenceBatch::new(&x, shape, Layout::BatchMajor).unwrap();
        assert_eq!(message(batch.clone().lengths(&[5])), "lengths: expected batch_size = 2, found 1");
        assert_eq!(message(batch.clone().lengths(&[5, 6])), "lengths[1]: expected 0 to seq_len 5, found 6");

        let spec = LstmSpec::stack(3, 4, 1).build().unwrap();
        let h_0 = vec![0.0; 7];
        let error = batch.clone().h_0(&h_0).validate(&spec).unwrap_err().to_string();
        assert!(error.starts_with("h_0: expected 8 elements"), "{error}");
        let other = LstmSpec::stack(5, 4, 1).build().unwrap();
        let error = batch.validate(&other).unwrap_err().to_string();
        assert!(error.contains("expected input_size 5, found 3") && error.contains("second axis"), "{error}");
    }

    #[test]
    fn non_finite_input_is_found_only_where_it_is_valid() {
        let spec = LstmSpec::stack(3, 4, 1).build().unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![0.5; 30];
            x[(5 + 3) * 3 + 1] = bad; // sequence 1, step 3
            let batch = SequenceBatch::new(&x, [2, 5, 3], Layout::BatchMajor).unwrap();
            let error = batch.validate(&spec).unwrap_err().to_string();
            assert!(error.contains("sequence 1, step 3, feature 1"), "{error}");
            assert!(batch.clone().lengths(&[5, 3]).unwrap().validate(&spec).is_ok());
            assert!(batch.check_finite(false).validate(&spec).is_ok());
        }
    }
}
