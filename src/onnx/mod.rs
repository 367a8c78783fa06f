//! ONNX models: recurrent nodes run on an [`Engine`](crate::Engine), everything around them on the CPU.
//!
//! In:  the bytes of a model, opset 1 or later; tensors by the names of the graph's inputs.
//! Out: [`OnnxModel`], and the tensors that the graph names as outputs.
//! A model is imported (`import.rs`), lowered (`lower.rs`), given its types (`types.rs`) and cut into steps
//! (`schedule.rs`): recurrent nodes for the engine, segments of f32 arithmetic for [rten](https://docs.rs/rten),
//! everything else for the host's own operators (`host/`). A run (`run.rs`) is a walk along the steps and stays
//! asynchronous. A recurrent node whose weights are constants, or follow from constants, is loaded once.
//! Not here: what an activation or a cell computes; docs/onnx.md has the table of what is read and what is refused.

mod element;
mod graph;
mod host;
mod import;
mod lower;
mod model;
mod node;
#[cfg(feature = "cpu")]
mod packed;
mod proto;
mod recurrent;
mod run;
mod schedule;
mod segment;
mod shapes;
mod stored;
mod tensor;
mod types;
mod value;
mod wire;

pub use model::{OnnxModel, OnnxOptions};
pub use node::{OnnxCompat, RecurrentNode};
pub use tensor::{Dimension, Tensor, TensorData, ValueInfo};
