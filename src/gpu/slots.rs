//! The slots of a stream on the device: a row per slot, h of all layers and then c of all layers.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::device::{Context, new_buffer};
use super::interop::GpuTensor;
use super::job::{CallerBuffers, CallerRange, Job, SlotsOf};
use super::kept::Kept;
use super::model::GpuLstm;
use super::wait::Waiting;
use crate::batch::{BatchOutput, Outputs, RowOrder, SequenceOutput};
use crate::error::{Result, bail};
use crate::plan::Caller;

/// The chunks of a push as sequences, in the caller's order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequences<'a> {
    pub(crate) lengths: &'a [usize],
    /// The first row of each in input and output, `[B]`.
    pub(crate) starts: &'a [usize],
    /// Rows of input and output.
    pub(crate) num_rows: usize,
    /// The slot that each starts from, or `NONE` for zero.
    pub(crate) from: &'a [u32],
    /// The slot that each ends in, or `NONE`.
    pub(crate) to: &'a [u32],
}

/// See the module.
pub(crate) struct GpuSlots {
    context: Arc<Context>,
    num_slots: usize,
    row_bytes: u64,
    buffer: wgpu::Buffer,
    /// A row on its way from one slot to another: wgpu copies between two buffers only.
    spare: wgpu::Buffer,
    /// Of the last push.
    kept: Kept,
}

impl GpuSlots {
    pub(crate) fn new(model: &GpuLstm, num_slots: usize) -> Result<Self> {
        let context = &model.context;
        let (h_size, c_size) = model.spec.state_sizes();
        let row_bytes = 4 * (h_size + c_size) as u64;
        let limit = context.limits.buffer_bytes;
        let most = limit / row_bytes;
        if num_slots as u64 > most {
            bail!(
                DeviceLimit,
                "max_buffer_size: {num_slots} slots of {row_bytes} bytes need {}, the device has {limit}; \
                 {most} slots would fit",
                num_slots as u64 * row_bytes
            );
        }
        let create = |label, size| {
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
            new_buffer(&context.device, label, size, usage)
        };
        let (buffer, spare) = context.guarded_now("allocating slots", || {
            (create("lstm.slots", num_slots as u64 * row_bytes), create("lstm.slots.spare", row_bytes))
        })?;
        Ok(Self { context: context.clone(), num_slots, row_bytes, buffer, spare, kept: Kept::default() })
    }

    fn range(&self) -> CallerRange {
        CallerRange { buffer: self.buffer.clone(), offset_bytes: 0, size_bytes: self.num_slots as u64 * self.row_bytes }
    }

    fn job<'a>(&self, sequences: Sequences<'a>, outputs: Outputs) -> Job<'a> {
        let mut callers = CallerBuffers::default();
        callers.set(Caller::Slots, self.range());
        let (lengths, order) = (Cow::Borrowed(sequences.lengths), RowOrder::Starts(sequences.starts));
        Job {
            slots: Some(SlotsOf { num_slots: self.num_slots, from: sequences.from, to: sequences.to }),
            callers,
            ..Job::new(lengths, order, sequences.num_rows, outputs)
        }
    }

    /// Runs the chunks; `committed` is set once the device has been told to keep the new states.
    pub(crate) async fn push(
        &self,
        model: &GpuLstm,
        sequences: Sequences<'_>,
        input: &[f32],
        sequence: SequenceOutput,
        committed: &AtomicBool,
        waiting: Waiting,
    ) -> Result<BatchOutput> {
        let outputs = Outputs { sequence, final_state: true, cells: false };
        let job = Job { input: Some(input), committed: Some(committed), ..self.job(sequences, outputs) };
        model.run_keeping(job, &self.kept, waiting, &|_| ()).await
    }

    /// Records the chunks, whose rows lie in `input`; all hidden states go to `output`, those at the last steps to
    /// `last`.
    pub(crate) fn record(
        &self,
        model: &GpuLstm,
        encoder: &mut wgpu::CommandEncoder,
        sequences: Sequences<'_>,
        input: &GpuTensor,
        sequence: SequenceOutput,
    ) -> Result<Option<GpuTensor>> {
        let features = model.spec.output_size();
        let (caller, rows) = match sequence {
            SequenceOutput::All => (Caller::Output, sequences.num_rows),
            SequenceOutput::Last => (Caller::Last, sequences.lengths.len()),
            _ => (Caller::Output, 0),
        };
        let result = match sequence {
            SequenceOutput::None => None,
            _ => Some(self.context.new_tensor("output", &[rows, features])?),
        };
        let mut job =
            Job { to_device: true, ..self.job(sequences, Outputs { sequence, final_state: true, cells: false }) };
        job.callers.set(Caller::Input, input.range());
        if let Some(result) = &result {
            job.callers.set(caller, result.range());
        }
        model.record(&job, encoder)?;
        Ok(result)
    }

    /// Copies the state of one slot to another.
    pub(crate) fn fork(&self, from: usize, to: usize) -> Result<()> {
        let at = |slot: usize| slot as u64 * self.row_bytes;
        self.context.guarded_now("forking", || {
            let mut encoder = self.context.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(&self.buffer, at(from), &self.spare, 0, self.row_bytes);
            encoder.copy_buffer_to_buffer(&self.spare, 0, &self.buffer, at(to), self.row_bytes);
            self.context.queue.submit([encoder.finish()]);
        })
    }

    /// Writes the row of a slot.
    pub(crate) fn write(&self, slot: usize, row: &[f32]) -> Result<()> {
        self.context.faults.check()?;
        let write =
            || self.context.queue.write_buffer(&self.buffer, slot as u64 * self.row_bytes, bytemuck::cast_slice(row));
        self.context.guarded_now("restoring", write)
    }

    /// Reads the rows of `count` slots from `first` on.
    pub(crate) async fn read(&self, first: usize, count: usize, waiting: Waiting) -> Result<Vec<f32>> {
        let row_len = (self.row_bytes / 4) as usize;
        let rows = GpuTensor::new(&self.buffer, first as u64 * self.row_bytes, &[count, row_len])?;
        self.context.read_back(&rows, waiting).await
    }
}
