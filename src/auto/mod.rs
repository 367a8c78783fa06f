//! `auto`: for each model and batch shape, the one of a GPU and the CPU backend that is estimated to be faster.
//!
//! In:  an opened GPU, measured once per adapter and process (`calibrate.rs`); a model and the lengths of a batch.
//! Out: [`Choice`].
//! A choice depends on the model, the shape of the batch and the measurements of this process alone, not on earlier runs, so
//! the same shape has the same bits as long as the process lives. Whether a batch fits the GPU is the exception: where it
//! barely does, the length of dispatches decides, which follows the device's speed so far.
//! Not here: which adapters are tried (`engine.rs`).

#[cfg(all(feature = "cpu", not(target_family = "wasm")))]
mod calibrate;
mod cost;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::batch::{BatchOutput, SequenceBatch, SequenceOutput};
use crate::error::Result;
use crate::gpu::Context;
use crate::options::{BackendKind, DeviceReport, EngineOptions, Precision};
use crate::plan::PlanLimits;
use crate::weights::LstmWeights;

#[cfg(feature = "cpu")]
use crate::cpu::CpuLstm;
pub use cost::{Costs, CpuCosts, GpuCosts};
use cost::{Shape, Work};

/// The costs of `context` and the CPU backend; `None` without one of them, or without a clock.
///
/// Blocks for some tens of timed runs the first time that an adapter is opened with such options.
#[cfg_attr(
    not(all(feature = "cpu", not(target_family = "wasm"))),
    allow(unused_variables, reason = "there is nothing to choose from")
)]
pub(crate) async fn costs(
    context: &Arc<Context>,
    report: &DeviceReport,
    options: &EngineOptions,
) -> Result<Option<Costs>> {
    #[cfg(all(feature = "cpu", not(target_family = "wasm")))]
    return calibrate::costs(context, report, options).await.map(Some);
    #[cfg(not(all(feature = "cpu", not(target_family = "wasm"))))]
    Ok(None)
}

/// Stands for the CPU backend where there is none.
#[cfg(not(feature = "cpu"))]
enum CpuLstm {}

#[cfg(not(feature = "cpu"))]
impl CpuLstm {
    fn new(_: &LstmWeights, _: Precision) -> Option<Self> {
        None
    }

    fn run(&self, _: &SequenceBatch<'_>) -> Result<BatchOutput> {
        match *self {}
    }
}

/// Which device runs a batch, and the times that decided it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// The GPU or the CPU backend.
    pub kind: BackendKind,
    /// The estimate for the GPU, transfers included.
    pub gpu: Duration,
    /// The estimate for the CPU backend.
    pub cpu: Duration,
    /// `false` if the GPU has no room for the model, or was estimated to be faster but cannot take the batch: then the CPU
    /// backend runs it.
    pub fits_gpu: bool,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (chosen, name, other, other_name) = match self.kind {
            BackendKind::Cpu => (self.cpu, "CPU backend", self.gpu, "GPU"),
            _ => (self.gpu, "GPU", self.cpu, "CPU backend"),
        };
        write!(f, "{name}: {chosen:.1?} estimated, {other:.1?} on the {other_name}")?;
        if self.fits_gpu { Ok(()) } else { write!(f, ", which it does not fit") }
    }
}

/// What a model that is on a GPU has besides, under `auto`.
pub(crate) struct Alternative {
    cpu: CpuLstm,
    costs: Costs,
    work: Work,
}

impl Alternative {
    /// `None` without the CPU backend.
    pub(crate) fn new(weights: &LstmWeights, precision: Precision, limits: &PlanLimits, costs: Costs) -> Option<Self> {
        let cpu = CpuLstm::new(weights, precision);
        #[cfg(not(feature = "cpu"))]
        let cpu = cpu?;
        Some(Self { cpu, costs, work: Work::new(weights.spec(), limits) })
    }

    /// Runs a batch that [`SequenceBatch::validate_shapes`] has accepted on the CPU backend, which checks the values of its
    /// input.
    pub(crate) fn run_on_cpu(&self, batch: &SequenceBatch<'_>) -> Result<BatchOutput> {
        self.cpu.run(batch)
    }

    /// For a batch.
    pub(crate) fn choose(&self, batch: &SequenceBatch<'_>) -> Choice {
        let outputs = batch.requested();
        let rows_out = match outputs.sequence {
            SequenceOutput::All => batch.num_valid_rows(),
            SequenceOutput::None => 0,
            SequenceOutput::Last | SequenceOutput::Mean | SequenceOutput::Max => batch.batch_size(),
        };
        self.choose_for(&Shape::new(batch.sequence_lengths(), rows_out, outputs.final_state, outputs.cells))
    }

    /// For a push of one timestep to every slot of a stream; states stay where they are.
    pub(crate) fn choose_for_stream(&self, num_slots: usize) -> Choice {
        self.choose_for(&Shape::new(&vec![1; num_slots], num_slots, false, false))
    }

    fn choose_for(&self, shape: &Shape) -> Choice {
        let (gpu, cpu) = (self.costs.gpu.seconds(&self.work, shape), self.costs.cpu.seconds(&self.work, shape));
        Choice {
            kind: if gpu < cpu { BackendKind::Gpu } else { BackendKind::Cpu },
            gpu: Duration::from_secs_f64(gpu),
            cpu: Duration::from_secs_f64(cpu),
            fits_gpu: true,
        }
    }
}
