//! What a run leaves for the next one that is like it: its plan, its buffers and their bindings.
//!
//! A step of a stream takes a GPU some microseconds, and the host longer to plan it and to bind its buffers. The plan of the
//! same lengths and sizes is the same, so the last one is kept, unless its buffers are large or its dispatches many: then a
//! run takes so long that its plan does not count, and the buffers are of more use in the pool.

use std::sync::{Mutex, PoisonError};

use super::device::{Context, Scratch};
use super::job::CallerBuffers;
use crate::batch::Outputs;
use crate::plan::{Caller, Plan, PlanLimits, PlanRequest, RowsAt, StatesAt, TileOverride};

/// Bytes of buffers up to which they are kept.
const MOST_BYTES: u64 = 8 << 20;
/// Dispatches up to which their plan is kept.
const MOST_DISPATCHES: usize = 4096;

/// All that a run needs before it can submit.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    pub(super) pipelines: Vec<wgpu::ComputePipeline>,
    pub(super) scratch: Vec<Scratch>,
    pub(super) bind_groups: Vec<wgpu::BindGroup>,
}

/// All that the plan of a model and the bindings of its buffers depend on.
#[derive(Debug, PartialEq)]
pub(super) struct Asked {
    lengths: Vec<usize>,
    array_rows: usize,
    outputs: Outputs,
    initial: Option<StatesAt>,
    finals: StatesAt,
    input: RowsAt,
    output: RowsAt,
    recorded: bool,
    caller_first: [u32; Caller::ALL.len()],
    /// Grows with the device's fastest submit so far, so a new one is rare before long.
    dispatch_flops: u64,
    limits: PlanLimits,
    tiles: TileOverride,
    callers: CallerBuffers,
}

impl Asked {
    pub(super) fn new(request: &PlanRequest<'_>, callers: &CallerBuffers) -> Self {
        let PlanRequest {
            spec: _, // the model's, which keeps what is kept
            lengths,
            array_rows,
            outputs,
            initial,
            finals,
            input,
            output,
            recorded,
            caller_first,
            dispatch_flops,
            advises: _, // changes no plan
            limits,
            tiles,
        } = *request;
        Self {
            lengths: lengths.to_vec(),
            array_rows,
            outputs,
            initial,
            finals,
            input,
            output,
            recorded,
            caller_first,
            dispatch_flops,
            limits,
            tiles,
            callers: callers.clone(),
        }
    }
}

/// See the module. Belongs to a model, or to a stream, whose buffers are bound.
#[derive(Default)]
pub(crate) struct Kept(Mutex<Option<Box<(Asked, Prepared)>>>);

impl Kept {
    /// What was kept, if it serves what is asked for now; otherwise its buffers go to the pool.
    pub(super) fn take(&self, asked: &Asked) -> Option<Prepared> {
        let (of, mut prepared) = *self.lock().take()?;
        if of != *asked {
            return None;
        }
        prepared.scratch.iter_mut().for_each(Scratch::resume);
        Some(prepared)
    }

    /// Keeps what a run that came to its end had, unless it is too large, or too much is kept in the whole context: what is
    /// kept serves nobody else.
    pub(super) fn put(&self, context: &Context, asked: Asked, mut prepared: Prepared) {
        let plan = &prepared.plan;
        let dispatches: usize = plan.submits.iter().map(|submit| submit.dispatches.len()).sum();
        let bytes = plan.scratch_bytes();
        let too_much = context.kept_bytes() + bytes > context.limits.budget_bytes / 8;
        if bytes > MOST_BYTES || dispatches > MOST_DISPATCHES || too_much {
            return;
        }
        prepared.scratch.iter_mut().for_each(Scratch::rest);
        // What was kept before is dropped outside the lock.
        let before = self.lock().replace(Box::new((asked, prepared)));
        drop(before);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Box<(Asked, Prepared)>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
