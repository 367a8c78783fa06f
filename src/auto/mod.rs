//! `auto`: for each model and batch shape, the one of a GPU and the CPU backend that is estimated to be faster.
//!
//! In:  an opened GPU, measured once per adapter and process (`calibrate.rs`); a model and the lengths of a batch.
//! Out: [`Choice`].
//! A choice depends on the model, the shape of the batch and the measurements of this process alone, never on earlier
//! runs, so the same shape has the same bits as long as the process lives.
//! Not here: which adapters are tried (`engine.rs`).

mod calibrate;
mod cost;

use std::fmt;
use std::time::Duration;

use crate::batch::{SequenceBatch, SequenceOutput};
use crate::cpu::CpuLstm;
use crate::options::BackendKind;
use crate::spec::LstmSpec;

pub(crate) use calibrate::costs;
pub use cost::{Costs, CpuCosts, GpuCosts};
use cost::{Shape, Work};

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
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (chosen, name, other, other_name) = match self.kind {
            BackendKind::Cpu => (self.cpu, "CPU backend", self.gpu, "GPU"),
            _ => (self.gpu, "GPU", self.cpu, "CPU backend"),
        };
        write!(f, "{name}: {chosen:.1?} estimated, {other:.1?} on the {other_name}")
    }
}

/// What a model that is on a GPU has besides, under `auto`.
pub(crate) struct Alternative {
    pub(crate) cpu: CpuLstm,
    costs: Costs,
    work: Work,
}

impl Alternative {
    pub(crate) fn new(cpu: CpuLstm, spec: &LstmSpec, many_lanes: bool, costs: Costs) -> Self {
        Self { cpu, costs, work: Work::new(spec, many_lanes) }
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
        }
    }
}
