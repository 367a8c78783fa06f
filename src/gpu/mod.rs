//! Stages 5 to 7, record, run, read back: the only folder that names wgpu.
//!
//! In:  a [`Plan`](crate::plan::Plan), packed weights, a batch on the host or on the device.
//! Out: a [`BatchOutput`](crate::BatchOutput), or commands in the caller's encoder.
//! Not here: sizes and layouts, which the plan holds; order of sequences, which `pack` undoes.

mod adapters;
mod faults;
mod device;
mod interop;
mod job;
mod kept;
#[cfg(not(target_family = "wasm"))]
mod limits;
mod model;
mod pace;
mod pipelines;
mod run;
mod self_test;
mod slots;
mod timestamps;
mod trip;
mod wait;
mod watch;

pub(crate) use adapters::{Listed, list, report};
pub(crate) use device::{Context, required_features, required_limits};
pub use interop::{GpuBatch, GpuOutput, GpuTensor};
pub(crate) use job::Job;
#[cfg(not(target_family = "wasm"))]
pub use limits::AdapterLimits;
#[cfg(not(target_family = "wasm"))]
pub(crate) use limits::measure;
pub(crate) use model::GpuLstm;
pub(crate) use run::Run;
pub(crate) use self_test::run as self_test;
pub(crate) use slots::{GpuSlots, Sequences};
pub use trip::TripKind;
pub(crate) use wait::Waiting;
pub use watch::Rewrite;
