//! Stages 5 to 7, record, run, read back: the only folder that names wgpu.
//!
//! In:  a [`Plan`](crate::plan::Plan), packed weights, a batch.
//! Out: a [`BatchOutput`](crate::BatchOutput).
//! Not here: sizes and layouts, which the plan holds; order of sequences, which `pack` undoes.

mod adapters;
mod faults;
mod device;
mod model;
mod pipelines;
mod run;
mod self_test;
mod wait;

pub(crate) use adapters::list;
pub(crate) use device::Context;
pub(crate) use model::GpuLstm;
pub(crate) use run::{DeviceRows, RunOptions};
pub(crate) use self_test::run as self_test;
pub(crate) use wait::Waiting;
