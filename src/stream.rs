//! Sequences that arrive in pieces: the state of each stays on the device between them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::batch::{Layout, Outputs, SequenceBatch, SequenceOutput};
use crate::counters::Request;
use crate::engine::Lstm;
use crate::error::{Result, bail};
use crate::spec::LstmSpec;
use crate::trace::{Instrument, span};

#[cfg(feature = "gpu")]
use crate::gpu::{GpuSlots, GpuTensor, Sequences, Waiting};
#[cfg(feature = "gpu")]
use crate::options::BackendKind;

/// A table entry that means: from zero, or to nowhere.
const NONE: u32 = u32::MAX;
/// Slots are numbered by u32, of which the last means none.
const MAX_SLOTS: usize = u32::MAX as usize - 1;

/// The next timesteps of one slot.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    slot: usize,
    input: &'a [f32],
    resets: &'a [usize],
    output: SequenceOutput,
}

impl<'a> Chunk<'a> {
    /// The next timesteps of `slot`, [T, I] with T ≥ 0; all their hidden states are returned.
    pub fn new(slot: usize, input: &'a [f32]) -> Self {
        Self { slot, input, resets: &[], output: SequenceOutput::All }
    }

    /// Timesteps of this chunk, ascending, before which the state is set to zero: a new sequence begins there.
    #[must_use]
    pub fn resets(mut self, resets: &'a [usize]) -> Self {
        self.resets = resets;
        self
    }

    /// Which hidden states of the last layer are returned.
    #[must_use]
    pub fn output(mut self, output: SequenceOutput) -> Self {
        self.output = output;
        self
    }
}

/// Hidden states of the last layer that a push returned.
#[derive(Debug, Clone, PartialEq)]
pub struct PushOutput {
    values: Vec<f32>,
    chunks: Vec<Range<usize>>,
}

impl PushOutput {
    /// Ranges of `values`, one per chunk. What no chunk wants is dropped.
    fn of(values: Vec<f32>, chunks: Vec<Range<usize>>) -> Self {
        let wanted: usize = chunks.iter().map(Range::len).sum();
        if wanted == values.len() {
            // Chunks do not overlap.
            return Self { values, chunks };
        }
        let mut output = Self { values: Vec::with_capacity(wanted), chunks: Vec::with_capacity(chunks.len()) };
        for range in chunks {
            let first = output.values.len();
            output.values.extend_from_slice(&values[range]);
            output.chunks.push(first..output.values.len());
        }
        output
    }

    /// The rows of chunk `i` of the push: [T, H or P] if it asked for all, [1, H or P] for the last, none otherwise or
    /// if it has no timestep.
    ///
    /// # Panics
    /// If the push had no chunk `i`.
    pub fn chunk(&self, i: usize) -> &[f32] {
        &self.values[self.chunks[i].clone()]
    }

    /// The rows of all chunks, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.chunks.iter().map(|range| &self.values[range.clone()])
    }
}

/// The state of one slot, on the host; fits every device that runs a model of the same sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotState {
    h: Vec<f32>,
    c: Vec<f32>,
}

impl SlotState {
    /// A state from hidden states [L, H or P] and cell states [L, H], layer by layer.
    pub fn new(h: Vec<f32>, c: Vec<f32>) -> Self {
        Self { h, c }
    }

    /// The hidden states, [L, H or P].
    pub fn h(&self) -> &[f32] {
        &self.h
    }

    /// The cell states, [L, H]; of layers that have one.
    pub fn c(&self) -> &[f32] {
        &self.c
    }

    fn of_row(row: &[f32], spec: &LstmSpec) -> Self {
        let (h, c) = row.split_at(spec.state_sizes().0);
        Self { h: h.to_vec(), c: c.to_vec() }
    }
}

/// Independent sequences that arrive in pieces, each in a slot of its own; h and c stay on the device.
///
/// A push names slots and brings each its next timesteps. On a GPU the results equal those of whole sequences to the
/// last bit, whoever else is in the push and however the timesteps are cut.
///
/// A push that returns an error other than [`DeviceLost`](crate::ErrorKind::DeviceLost), or whose future is dropped, has
/// happened for all of its slots or for none. After a loss, open a new engine and [`restore`](Self::restore) what was
/// [`saved`](Self::save).
///
/// ```
/// use wgpu_lstm::{Chunk, DeviceChoice, Engine, EngineOptions, LstmSpec, LstmWeights};
/// let engine = Engine::open_blocking(EngineOptions::on(DeviceChoice::Reference))?;
/// let lstm = engine.load_blocking(&LstmWeights::random(&LstmSpec::stack(3, 8, 2).build()?, 1))?;
/// let mut stream = lstm.stream(100)?;
/// // Two timesteps for slot 7, one for slot 42, in one call.
/// let y = stream.push_blocking(&[Chunk::new(7, &[0.1; 6]), Chunk::new(42, &[0.2; 3])])?;
/// assert_eq!((y.chunk(0).len(), y.chunk(1).len()), (2 * 8, 8));
/// stream.fork(7, 8)?; // slot 8 goes on from where slot 7 is
/// stream.reset(42)?;
/// # Ok::<(), wgpu_lstm::Error>(())
/// ```
pub struct Stream {
    lstm: Lstm,
    slots: Slots,
    /// Slots whose state is zero, whatever the device has.
    fresh: Vec<bool>,
    /// The last push, until it is known whether it happened.
    pending: Option<Pending>,
    check_finite: bool,
}

struct Pending {
    slots: Vec<usize>,
    committed: Arc<AtomicBool>,
}

enum Slots {
    #[cfg(feature = "gpu")]
    Gpu(GpuSlots),
    /// A row per slot, as on the device.
    Host(Vec<f32>),
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("num_slots", &self.fresh.len()).field("lstm", &self.lstm).finish_non_exhaustive()
    }
}

impl Lstm {
    /// A stream of `num_slots` independent sequences that arrive in pieces; all start from zero.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if a layer has a reverse direction;
    /// [`DeviceLimit`](crate::ErrorKind::DeviceLimit) with the number of slots that fit a buffer of the device;
    /// [`OutOfMemory`](crate::ErrorKind::OutOfMemory).
    pub fn stream(&self, num_slots: usize) -> Result<Stream> {
        Stream::new(self, num_slots)
    }
}

/// The chunks of a push as sequences: a chunk is cut where it resets.
#[derive(Debug, Default)]
struct Cut {
    lengths: Vec<usize>,
    starts: Vec<usize>,
    from: Vec<u32>,
    to: Vec<u32>,
    num_rows: usize,
    /// The last sequence of each chunk, if it has a timestep.
    last_of_chunk: Vec<Option<usize>>,
}

impl Cut {
    #[cfg(feature = "gpu")]
    fn sequences(&self) -> Sequences<'_> {
        Sequences {
            lengths: &self.lengths,
            starts: &self.starts,
            num_rows: self.num_rows,
            from: &self.from,
            to: &self.to,
        }
    }
}

impl Stream {
    pub(crate) fn new(lstm: &Lstm, num_slots: usize) -> Result<Self> {
        let spec = lstm.spec();
        if let Some(l) = spec.layers().iter().position(|layer| layer.direction.is_reverse() != [false]) {
            bail!(
                Unsupported,
                "stream: layer {l} has direction {:?}, which needs the end of a sequence before its beginning",
                spec.layers()[l].direction
            );
        }
        if !(1..=MAX_SLOTS).contains(&num_slots) {
            bail!(InvalidInput, "slots: expected 1 to {MAX_SLOTS}, found {num_slots}");
        }
        let on_host = || Slots::Host(vec![0.0; num_slots * row_len(spec)]);
        #[cfg(feature = "gpu")]
        let slots = match lstm.gpu_for_stream(num_slots).map(|model| GpuSlots::new(model, num_slots)) {
            Some(Ok(slots)) => Slots::Gpu(slots),
            Some(Err(e)) if !lstm.can_go_to_host(&e) => return Err(e),
            Some(Err(_)) | None => on_host(),
        };
        #[cfg(not(feature = "gpu"))]
        let slots = on_host();
        Ok(Self { lstm: lstm.clone(), slots, fresh: vec![true; num_slots], pending: None, check_finite: true })
    }

    /// The model.
    pub fn lstm(&self) -> &Lstm {
        &self.lstm
    }

    /// The number of slots.
    pub fn num_slots(&self) -> usize {
        self.fresh.len()
    }

    /// Whether to scan input for NaN and infinity and refuse them by slot and step; on unless turned off.
    #[must_use]
    pub fn check_finite(mut self, check: bool) -> Self {
        self.check_finite = check;
        self
    }

    /// Runs the next timesteps of the slots of `chunks`, each of which names another slot.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a slot that does not exist or comes twice, an input that is
    /// not whole rows, resets that do not ascend or lie outside the chunk, NaN or infinity;
    /// [`DeviceLimit`](crate::ErrorKind::DeviceLimit), [`OutOfMemory`](crate::ErrorKind::OutOfMemory),
    /// [`DeviceLost`](crate::ErrorKind::DeviceLost).
    pub async fn push(&mut self, chunks: &[Chunk<'_>]) -> Result<PushOutput> {
        self.counted(
            chunks,
            #[cfg(feature = "gpu")]
            Waiting::Async,
        )
        .await
    }

    /// [`Stream::push`], blocking.
    ///
    /// # Errors
    /// As [`Stream::push`].
    pub fn push_blocking(&mut self, chunks: &[Chunk<'_>]) -> Result<PushOutput> {
        pollster::block_on(self.counted(
            chunks,
            #[cfg(feature = "gpu")]
            Waiting::Blocking,
        ))
    }

    /// Sets the state of a slot to zero.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if there is no such slot.
    pub fn reset(&mut self, slot: usize) -> Result<()> {
        self.settle();
        self.check_slot(slot)?;
        self.fresh[slot] = true;
        Ok(())
    }

    /// Copies the state of slot `from` to slot `to`, on the device.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if there is no such slot;
    /// [`DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn fork(&mut self, from: usize, to: usize) -> Result<()> {
        self.settle();
        self.check_slot(from)?;
        self.check_slot(to)?;
        if !self.fresh[from] && from != to {
            let row_len = row_len(self.lstm.spec());
            match &mut self.slots {
                #[cfg(feature = "gpu")]
                Slots::Gpu(slots) => slots.fork(from, to)?,
                Slots::Host(rows) => rows.copy_within(from * row_len..(from + 1) * row_len, to * row_len),
            }
        }
        self.fresh[to] = self.fresh[from];
        Ok(())
    }

    /// Reads the state of a slot back.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if there is no such slot;
    /// [`DeviceLost`](crate::ErrorKind::DeviceLost).
    pub async fn save(&mut self, slot: usize) -> Result<SlotState> {
        self.check_slot(slot)?;
        let states = self.read(
            slot..slot + 1,
            #[cfg(feature = "gpu")]
            Waiting::Async,
        );
        Ok(states.await?.swap_remove(0))
    }

    /// [`Stream::save`], blocking.
    ///
    /// # Errors
    /// As [`Stream::save`].
    pub fn save_blocking(&mut self, slot: usize) -> Result<SlotState> {
        self.check_slot(slot)?;
        let states = self.read(
            slot..slot + 1,
            #[cfg(feature = "gpu")]
            Waiting::Blocking,
        );
        Ok(pollster::block_on(states)?.swap_remove(0))
    }

    /// Reads the states of all slots back at once, by slot.
    ///
    /// # Errors
    /// [`DeviceLost`](crate::ErrorKind::DeviceLost), [`OutOfMemory`](crate::ErrorKind::OutOfMemory).
    pub async fn save_all(&mut self) -> Result<Vec<SlotState>> {
        let all = 0..self.num_slots();
        self.read(
            all,
            #[cfg(feature = "gpu")]
            Waiting::Async,
        )
        .await
    }

    /// Sets the state of a slot.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if there is no such slot, or the state has other sizes or a
    /// value that is not finite; [`DeviceLost`](crate::ErrorKind::DeviceLost).
    pub fn restore(&mut self, slot: usize, state: &SlotState) -> Result<()> {
        self.settle();
        self.check_slot(slot)?;
        let (h_size, c_size) = self.lstm.spec().state_sizes();
        for (name, values, size) in [("h", &state.h, h_size), ("c", &state.c, c_size)] {
            if values.len() != size {
                bail!(InvalidInput, "state.{name}: expected {size} elements over all layers, found {}", values.len());
            }
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                bail!(InvalidInput, "state.{name}: expected finite values, found {} at element {i}", values[i]);
            }
        }
        let row = [&state.h[..], &state.c[..]].concat();
        match &mut self.slots {
            #[cfg(feature = "gpu")]
            Slots::Gpu(slots) => slots.write(slot, &row)?,
            Slots::Host(rows) => rows[slot * row.len()..][..row.len()].copy_from_slice(&row),
        }
        self.fresh[slot] = false;
        Ok(())
    }

    /// Records a push whose input lies on the device into an encoder of the application; see [`Lstm::record`].
    ///
    /// `input` is [Σ T, I], the rows of the chunks one after another; `chunks` are slots with their numbers of
    /// timesteps. The result is [Σ T, H or P] or [chunks, H or P]. The slots have their new states once the commands
    /// have run: submit them in the order of recording, and before the next call that is not a recording.
    ///
    /// # Errors
    /// As [`Stream::push`] and [`Lstm::record`]; for a chunk without a timestep.
    #[cfg(feature = "gpu")]
    pub fn record(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        input: &GpuTensor,
        chunks: &[(usize, usize)],
        output: SequenceOutput,
    ) -> Result<Option<GpuTensor>> {
        self.settle();
        if let Some(i) = chunks.iter().position(|&(_, steps)| steps == 0) {
            bail!(InvalidInput, "chunk {i}: expected at least one timestep, found 0");
        }
        if output.is_pooled() {
            bail!(Unsupported, "output: expected all, the last or no hidden states, found {output:?}");
        }
        let steps: usize = chunks.iter().map(|&(_, steps)| steps).sum();
        let spec = self.lstm.spec();
        if input.shape() != [steps, spec.input_size()] {
            let expected = [steps, spec.input_size()];
            bail!(InvalidInput, "input: expected shape {expected:?}, found {:?}", input.shape());
        }
        let cut = self.cut(chunks.iter().map(|&(slot, steps)| (slot, steps, &[][..])))?;
        let (Slots::Gpu(slots), Some(model)) = (&self.slots, self.lstm.gpu()) else {
            bail!(
                Unsupported,
                "Stream::record needs a stream on a GPU; this engine is on {}{}",
                self.lstm.engine().device().name,
                match (self.lstm.engine().device().kind, self.lstm.refusal()) {
                    (_, Some(e)) => format!(", which the model does not fit: {e}"),
                    (BackendKind::Gpu, None) => {
                        ", but `auto` keeps this stream on the CPU backend; open the engine with `gpu`".to_owned()
                    }
                    _ => String::new(),
                }
            );
        };
        if chunks.is_empty() {
            return Ok(None);
        }
        let result = slots.record(model, encoder, cut.sequences(), input, output);
        self.lstm.engine().tally().request(Request::Recording, steps, result.is_ok());
        let result = result?;
        chunks.iter().for_each(|&(slot, _)| self.fresh[slot] = false);
        Ok(result)
    }

    fn check_slot(&self, slot: usize) -> Result<()> {
        if slot >= self.num_slots() {
            bail!(InvalidInput, "slot: expected 0 to {}, found {slot}", self.num_slots() - 1);
        }
        Ok(())
    }

    /// Takes note of what became of the last push, whose future may have been dropped.
    fn settle(&mut self) {
        if let Some(Pending { slots, committed }) = self.pending.take()
            && committed.load(Ordering::SeqCst)
        {
            slots.into_iter().for_each(|slot| self.fresh[slot] = false);
        }
    }

    /// Cuts chunks (slot, timesteps, resets) into sequences; input rows lie one chunk after another.
    fn cut<'a>(&self, chunks: impl Iterator<Item = (usize, usize, &'a [usize])>) -> Result<Cut> {
        let mut cut = Cut::default();
        let mut seen = std::collections::HashSet::new();
        for (i, (slot, steps, resets)) in chunks.enumerate() {
            self.check_slot(slot).map_err(|e| e.context(format!("chunk {i}")))?;
            if !seen.insert(slot) {
                bail!(InvalidInput, "chunk {i}: expected another slot than those before, found slot {slot} again");
            }
            let ascends = resets.windows(2).all(|pair| pair[0] < pair[1]);
            if !ascends || resets.last().is_some_and(|&t| t >= steps) {
                bail!(InvalidInput, "chunk {i}: expected ascending resets below {steps}, found {resets:?}");
            }
            let from_zero = self.fresh[slot] || resets.first() == Some(&0);
            let mut from = if from_zero { NONE } else { slot as u32 };
            let mut start = 0;
            for &end in resets.iter().filter(|&&t| t > 0).chain(std::iter::once(&steps)) {
                if end > start {
                    cut.lengths.push(end - start);
                    cut.starts.push(cut.num_rows + start);
                    cut.from.push(from);
                    cut.to.push(if end == steps { slot as u32 } else { NONE });
                }
                (start, from) = (end, NONE);
            }
            cut.last_of_chunk.push((steps > 0).then(|| cut.lengths.len() - 1));
            cut.num_rows += steps;
        }
        Ok(cut)
    }

    async fn counted(&mut self, chunks: &[Chunk<'_>], #[cfg(feature = "gpu")] waiting: Waiting) -> Result<PushOutput> {
        let rows = chunks.iter().map(|c| c.input.len()).sum::<usize>() / self.lstm.spec().input_size();
        let span = span!("lstm.push", chunks = chunks.len(), rows = rows);
        let run = self.run(
            chunks,
            #[cfg(feature = "gpu")]
            waiting,
        );
        let result = run.instrument(span).await;
        self.lstm.engine().tally().request(Request::Push, rows, result.is_ok());
        result
    }

    async fn run(&mut self, chunks: &[Chunk<'_>], #[cfg(feature = "gpu")] waiting: Waiting) -> Result<PushOutput> {
        self.settle();
        let (input_size, features) = (self.lstm.spec().input_size(), self.lstm.spec().output_size());
        for (i, chunk) in chunks.iter().enumerate() {
            if chunk.output.is_pooled() {
                bail!(
                    Unsupported,
                    "chunk {i} of slot {}: expected all, the last or no hidden states, found {:?}",
                    chunk.slot,
                    chunk.output
                );
            }
            if chunk.input.len() % input_size != 0 {
                bail!(
                    InvalidInput,
                    "chunk {i} of slot {}: expected rows of input_size {input_size}, found {} values",
                    chunk.slot,
                    chunk.input.len()
                );
            }
            if self.check_finite
                && let Some(at) = chunk.input.iter().position(|v| !v.is_finite())
            {
                let (step, feature) = (at / input_size, at % input_size);
                bail!(
                    InvalidInput,
                    "chunk {i} of slot {}: expected finite values, found {} at step {step}, feature {feature}",
                    chunk.slot,
                    chunk.input[at]
                );
            }
        }
        let cut = self.cut(chunks.iter().map(|c| (c.slot, c.input.len() / input_size, c.resets)))?;
        // The least that holds what every chunk wants.
        let wanted = |output| chunks.iter().any(|c| c.output == output && !c.input.is_empty());
        let sequence = match (wanted(SequenceOutput::All), wanted(SequenceOutput::Last)) {
            (true, _) => SequenceOutput::All,
            (false, true) => SequenceOutput::Last,
            (false, false) => SequenceOutput::None,
        };
        let values = if cut.num_rows == 0 {
            Vec::new()
        } else {
            let input = chunks.iter().map(|c| c.input).collect::<Vec<_>>().concat();
            let slots = chunks.iter().filter(|c| !c.input.is_empty()).map(|c| c.slot).collect();
            let committed = Arc::new(AtomicBool::new(false));
            self.pending = Some(Pending { slots, committed: committed.clone() });
            let result = match &mut self.slots {
                #[cfg(feature = "gpu")]
                Slots::Gpu(slots) => {
                    let model = self.lstm.gpu().expect("slots on a GPU belong to a model on it");
                    let output = slots.push(model, cut.sequences(), &input, sequence, &committed, waiting).await;
                    output.map(|o| o.output.or(o.last).unwrap_or_default())
                }
                Slots::Host(rows) => push_on_host(&self.lstm, rows, &cut, &input, sequence, &committed),
            };
            self.settle();
            result?
        };

        let mut chunks_of = Vec::with_capacity(chunks.len());
        for (chunk, last) in chunks.iter().zip(&cut.last_of_chunk) {
            let rows = match (chunk.output, last, sequence) {
                // Pooled rows were refused above.
                (SequenceOutput::None | SequenceOutput::Mean | SequenceOutput::Max, ..) | (_, None, _) => 0..0,
                (SequenceOutput::Last, Some(b), SequenceOutput::Last) => *b..b + 1,
                (SequenceOutput::Last, Some(b), _) => {
                    let row = cut.starts[*b] + cut.lengths[*b] - 1;
                    row..row + 1
                }
                (SequenceOutput::All, Some(b), _) => {
                    let end = cut.starts[*b] + cut.lengths[*b];
                    end - chunk.input.len() / input_size..end
                }
            };
            chunks_of.push(rows.start * features..rows.end * features);
        }
        Ok(PushOutput::of(values, chunks_of))
    }

    /// The states of some slots.
    async fn read(&mut self, slots: Range<usize>, #[cfg(feature = "gpu")] waiting: Waiting) -> Result<Vec<SlotState>> {
        self.settle();
        let spec = self.lstm.spec();
        let row_len = row_len(spec);
        let read;
        let rows = match &self.slots {
            #[cfg(feature = "gpu")]
            Slots::Gpu(of_device) => {
                read = of_device.read(slots.start, slots.len(), waiting).await?;
                &read[..]
            }
            Slots::Host(rows) => {
                read = rows[slots.start * row_len..slots.end * row_len].to_vec();
                &read[..]
            }
        };
        let zero = vec![0.0; row_len];
        let states = slots.zip(rows.chunks_exact(row_len));
        Ok(states.map(|(slot, row)| SlotState::of_row(if self.fresh[slot] { &zero } else { row }, spec)).collect())
    }
}

fn row_len(spec: &LstmSpec) -> usize {
    let (h_size, c_size) = spec.state_sizes();
    h_size + c_size
}

/// A push on the CPU backend or the reference: a batch whose states come from and go to rows.
fn push_on_host(
    lstm: &Lstm,
    rows: &mut [f32],
    cut: &Cut,
    input: &[f32],
    sequence: SequenceOutput,
    committed: &AtomicBool,
) -> Result<Vec<f32>> {
    let spec = lstm.spec();
    let (input_size, features, row_len) = (spec.input_size(), spec.output_size(), row_len(spec));
    let batch_size = cut.lengths.len();
    let seq_len = cut.lengths.iter().copied().max().unwrap_or(0);
    let mut x = vec![0.0; batch_size * seq_len * input_size];
    for (b, (&start, &length)) in cut.starts.iter().zip(&cut.lengths).enumerate() {
        x[b * seq_len * input_size..][..length * input_size]
            .copy_from_slice(&input[start * input_size..][..length * input_size]);
    }
    // [L, B, size] of the batch against rows of h of all layers and c of all layers.
    let (h_size, _) = spec.state_sizes();
    let widths = |size: fn(&crate::LayerSpec) -> usize| spec.layers().iter().map(size).collect::<Vec<_>>();
    let parts = [(0, widths(crate::LayerSpec::h_size)), (h_size, widths(crate::LayerSpec::c_size))];
    let mut states = parts.each_ref().map(|(first, widths)| {
        let mut state = Vec::new();
        let mut column = *first;
        for &width in widths {
            for &from in &cut.from {
                match from {
                    NONE => state.resize(state.len() + width, 0.0),
                    slot => state.extend_from_slice(&rows[slot as usize * row_len + column..][..width]),
                }
            }
            column += width;
        }
        state
    });
    let [h_0, c_0] = &states;
    let batch = SequenceBatch::new(&x, [batch_size, seq_len, input_size], Layout::BatchMajor)?
        .lengths(&cut.lengths)?
        .h_0(h_0)
        .c_0(c_0)
        .outputs(Outputs { sequence, final_state: true, cells: false })
        .check_finite(false);
    batch.validate(spec)?;
    let output = lstm.run_on_host(&batch)?;
    states = [output.h_n.unwrap_or_default(), output.c_n.unwrap_or_default()];
    for ((first, widths), state) in parts.iter().zip(&states) {
        let (mut column, mut at) = (*first, 0);
        for &width in widths {
            for &to in &cut.to {
                if to != NONE {
                    rows[to as usize * row_len + column..][..width].copy_from_slice(&state[at..at + width]);
                }
                at += width;
            }
            column += width;
        }
    }
    committed.store(true, Ordering::SeqCst);
    Ok(match sequence {
        SequenceOutput::All => {
            let padded = output.output.unwrap_or_default();
            let mut dense = vec![0.0; cut.num_rows * features];
            for (b, (&start, &length)) in cut.starts.iter().zip(&cut.lengths).enumerate() {
                dense[start * features..][..length * features]
                    .copy_from_slice(&padded[b * seq_len * features..][..length * features]);
            }
            dense
        }
        _ => output.last.unwrap_or_default(),
    })
}
