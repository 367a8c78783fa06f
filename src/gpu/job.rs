//! What a plan runs on: sequences, and where their rows and states are.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

use super::model::GpuLstm;
use crate::batch::{Outputs, RowOrder, SequenceBatch};
use crate::error::Result;
use crate::plan::{Caller, Plan, PlanRequest, RowsAt, StatesAt, TileOverride};
use crate::spec::{LayerSpec, LstmSpec};
use crate::trace::span;

/// A buffer of the caller, from `offset_bytes` on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CallerRange {
    pub(crate) buffer: wgpu::Buffer,
    pub(crate) offset_bytes: u64,
    pub(crate) size_bytes: u64,
}

impl CallerRange {
    /// Where its binding starts: bindings start at multiples of the device's alignment.
    pub(super) fn binding_offset(&self, alignment: u32) -> u64 {
        self.offset_bytes - self.offset_bytes % u64::from(alignment)
    }
}

/// The buffers of the caller that a plan names.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct CallerBuffers([Option<CallerRange>; Caller::ALL.len()]);

impl CallerBuffers {
    pub(crate) fn set(&mut self, caller: Caller, range: CallerRange) {
        self.0[caller.index()] = Some(range);
    }

    pub(crate) fn get(&self, caller: Caller) -> Option<&CallerRange> {
        self.0[caller.index()].as_ref()
    }
}

/// For each sequence the slot that its state comes from and the one that it goes to; `NONE` for zero and for nowhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotsOf<'a> {
    pub(crate) num_slots: usize,
    pub(crate) from: &'a [u32],
    pub(crate) to: &'a [u32],
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Job<'a> {
    pub(crate) lengths: Cow<'a, [usize]>,
    /// Where rows lie in the input, and in output and cells.
    pub(crate) input_order: RowOrder<'a>,
    pub(crate) output_order: RowOrder<'a>,
    /// Rows of output and cells.
    pub(crate) array_rows: usize,
    /// Input rows on the host; `None` if the caller's buffer has them.
    pub(crate) input: Option<&'a [f32]>,
    pub(crate) h_0: Option<Cow<'a, [f32]>>,
    pub(crate) c_0: Option<Cow<'a, [f32]>>,
    pub(crate) slots: Option<SlotsOf<'a>>,
    pub(crate) outputs: Outputs,
    /// Whether results go to buffers of the caller.
    pub(crate) to_device: bool,
    pub(crate) callers: CallerBuffers,
    /// Set as soon as the last submit is made: from then on the device changes what outlives the run.
    pub(crate) committed: Option<&'a AtomicBool>,
    /// Tiles fixed by a test.
    pub(crate) tiles: TileOverride,
    /// The memory budget in place of the context's.
    pub(crate) budget_bytes: Option<u64>,
    /// The most operations of a dispatch, in place of what the device has shown.
    pub(crate) dispatch_flops: Option<u64>,
    /// Whether a refusal says what would fit: not where something else runs then.
    pub(crate) advises: bool,
}

impl<'a> Job<'a> {
    /// Sequences whose rows lie in this order in input and output, from zero states; without an input yet.
    pub(crate) fn new(lengths: Cow<'a, [usize]>, order: RowOrder<'a>, array_rows: usize, outputs: Outputs) -> Self {
        Self {
            lengths,
            input_order: order,
            output_order: order,
            array_rows,
            input: None,
            h_0: None,
            c_0: None,
            slots: None,
            outputs,
            to_device: false,
            callers: CallerBuffers::default(),
            committed: None,
            tiles: TileOverride::default(),
            budget_bytes: None,
            dispatch_flops: None,
            advises: true,
        }
    }

    /// A batch whose rows and states are on the host.
    pub(crate) fn of(batch: &'a SequenceBatch<'_>) -> Self {
        let (lengths, rows) = (Cow::Borrowed(batch.sequence_lengths()), batch.seq_len() * batch.batch_size());
        Self {
            input: Some(batch.input()),
            h_0: batch.initial_h().map(Cow::Borrowed),
            c_0: batch.initial_c().map(Cow::Borrowed),
            ..Self::new(lengths, batch.order(0), rows, batch.requested())
        }
    }

    /// Some sequences of a batch, with arrays of their own for what they return.
    pub(crate) fn part(batch: &SequenceBatch<'a>, sequences: Range<usize>, spec: &LstmSpec) -> Self {
        let order = RowOrder::Layout {
            layout: batch.layout(),
            seq_len: batch.seq_len(),
            batch_size: sequences.len(),
            first: 0,
        };
        let states = |state: Option<&'a [f32]>, size: fn(&LayerSpec) -> usize| {
            state.map(|s| match sequences.len() == batch.batch_size() {
                true => Cow::Borrowed(s),
                false => Cow::Owned(crate::batch::states_of(s, batch.batch_size(), &sequences, spec, size)),
            })
        };
        let lengths = Cow::Owned(batch.sequence_lengths()[sequences.clone()].to_vec());
        Self {
            input_order: batch.order(sequences.start),
            input: Some(batch.input()),
            h_0: states(batch.initial_h(), LayerSpec::h_size),
            c_0: states(batch.initial_c(), LayerSpec::c_size),
            ..Self::new(lengths, order, batch.seq_len() * sequences.len(), batch.requested())
        }
    }

    fn initial(&self) -> Option<StatesAt> {
        if let Some(slots) = self.slots {
            // Nothing is gathered where every sequence starts from zero.
            let some = slots.from.iter().any(|&slot| slot != crate::kernels::NONE);
            return some.then_some(StatesAt::Slots { num_slots: slots.num_slots });
        }
        if self.callers.get(Caller::H0).is_some() {
            return Some(StatesAt::Arrays);
        }
        (self.h_0.is_some() || self.c_0.is_some()).then_some(StatesAt::Host)
    }

    fn finals(&self) -> StatesAt {
        match self.slots {
            Some(slots) => StatesAt::Slots { num_slots: slots.num_slots },
            None if self.to_device => StatesAt::Arrays,
            None => StatesAt::Host,
        }
    }
}

impl GpuLstm {
    /// The plan of a job in words.
    pub(crate) fn explain(&self, job: &Job<'_>) -> Result<String> {
        Ok(self.plan(job, false)?.explain(&self.context.limits))
    }

    /// The plan of a job that has a valid row.
    pub(crate) fn plan(&self, job: &Job<'_>, recorded: bool) -> Result<Plan> {
        let _span = span!("lstm.plan", batch_size = job.lengths.len(), recorded = recorded).entered();
        Plan::new(&self.request(job, recorded))
    }

    /// What is to be planned for a job.
    pub(super) fn request<'a>(&'a self, job: &'a Job<'_>, recorded: bool) -> PlanRequest<'a> {
        let mut limits = self.context.limits;
        limits.budget_bytes = job.budget_bytes.unwrap_or(limits.budget_bytes);
        let alignment = self.context.storage_alignment;
        let first = |caller| {
            let range: Option<&CallerRange> = job.callers.get(caller);
            range.map_or(0, |r| ((r.offset_bytes - r.binding_offset(alignment)) / 4) as u32)
        };
        PlanRequest {
            spec: &self.spec,
            lengths: &job.lengths,
            array_rows: job.array_rows,
            outputs: job.outputs,
            initial: job.initial(),
            finals: job.finals(),
            input: if job.input.is_some() { RowsAt::Host } else { RowsAt::Device },
            output: if job.to_device { RowsAt::Device } else { RowsAt::Host },
            recorded,
            caller_first: Caller::ALL.map(first),
            dispatch_flops: job.dispatch_flops.unwrap_or_else(|| self.context.pace.dispatch_flops()),
            limits,
            tiles: job.tiles,
            advises: job.advises,
        }
    }
}
