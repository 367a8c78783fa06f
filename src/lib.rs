//! LSTM inference on any GPU through WGSL compute shaders, with a CPU backend and a reference to judge both.
//!
//! Weights are read, a spec is fixed, weights and sequences are packed, a plan is made, the plan is recorded,
//! the recording runs, results are read back: [`Engine::open`] → [`Engine::load`] → [`Lstm::run`].
//!
//! Letters in shapes: T timesteps, B batch, I input size, H hidden size, P projection size, D directions,
//! L layers. Gate rows are in the order i f g o, or r z n of a GRU.

mod error;
mod counters;
mod trace;
mod activation;
mod cell;
mod spec;
mod batch;
pub mod weights;
pub mod reference;
#[cfg(feature = "cpu")]
mod cpu;
mod options;
#[cfg(feature = "gpu")]
mod schedule;
#[cfg(feature = "gpu")]
mod kernels;
#[cfg(feature = "gpu")]
mod pack;
#[cfg(feature = "gpu")]
mod plan;
#[cfg(feature = "gpu")]
mod gpu;
#[cfg(feature = "gpu")]
mod auto;
mod engine;
mod many;
mod stream;
#[cfg(feature = "onnx")]
pub mod onnx;
#[doc(hidden)]
pub mod internals;

pub use activation::Activation;
#[cfg(feature = "gpu")]
pub use auto::{Choice, Costs, CpuCosts, GpuCosts};
pub use batch::{BatchOutput, Layout, Outputs, SequenceBatch, SequenceOutput};
pub use cell::{CellSpec, GruActivations, GruCell, LstmActivations, LstmCell, RnnCell};
pub use counters::Counters;
pub use engine::{Engine, Lstm};
pub use error::{Error, ErrorKind, Result};
#[cfg(all(feature = "gpu", not(target_family = "wasm")))]
pub use gpu::AdapterLimits;
#[cfg(feature = "gpu")]
pub use gpu::{GpuBatch, GpuOutput, GpuTensor};
pub use many::RunMany;
pub use options::{
    AdapterReport, BackendKind, DeviceChoice, DeviceReport, EngineOptions, LimitsProfile, Precision, Tuning,
};
pub use spec::{Direction, LayerSpec, LstmSpec, MAX_SIZE, Merge, StackBuilder};
pub use stream::{Chunk, PushOutput, SlotState, Stream};
pub use weights::{CellWeights, LstmWeights};
/// The version of wgpu that this crate shares devices and buffers with.
#[cfg(feature = "gpu")]
pub use wgpu;

/// Compiles the example of the README.
#[cfg(all(doctest, feature = "safetensors", feature = "cpu", feature = "gpu"))]
#[doc = include_str!("../README.md")]
struct Readme;
