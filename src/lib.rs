//! LSTM inference on any GPU through WGSL compute shaders, with a CPU backend and a reference to judge both.
//!
//! Weights are read, a spec is fixed, weights and sequences are packed, a plan is made, the plan is recorded,
//! the recording runs, results are read back: [`Engine::open`] → [`Engine::load`] → [`Lstm::run`].
//!
//! Letters in shapes: T timesteps, B batch, I input size, H hidden size, P projection size, D directions,
//! L layers. Gate rows are in the order i f g o.

mod batch;
#[cfg(feature = "cpu")]
mod cpu;
mod engine;
mod error;
#[cfg(feature = "gpu")]
mod gpu;
#[doc(hidden)]
pub mod internals;
#[cfg(feature = "gpu")]
mod kernels;
#[cfg(feature = "gpu")]
mod pack;
#[cfg(feature = "gpu")]
mod plan;
pub mod reference;
mod spec;
pub mod weights;

pub use batch::{BatchOutput, Layout, Outputs, SequenceBatch, SequenceOutput};
pub use engine::{AdapterReport, BackendKind, DeviceChoice, DeviceReport, Engine, EngineOptions, LimitsProfile, Lstm};
pub use error::{Error, ErrorKind, Result};
pub use spec::{Direction, LayerSpec, LstmSpec, MAX_SIZE, StackBuilder};
pub use weights::{CellWeights, LstmWeights};

/// Compiles the example of the README.
#[cfg(all(doctest, feature = "safetensors", feature = "cpu", feature = "gpu"))]
#[doc = include_str!("../README.md")]
struct Readme;
