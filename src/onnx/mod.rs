//! ONNX models: recurrent nodes run on an [`Engine`](crate::Engine), everything around them on a CPU runtime.
//!
//! In:  the bytes of a model, opset 1 or later; tensors by the names of the graph's inputs.
//! Out: [`OnnxModel`], and the tensors that the graph names as outputs.
//! The graph is cut at its LSTM, GRU and RNN nodes: what lies between two cuts is evaluated by
//! [rten](https://docs.rs/rten), the nodes themselves by the engine, so that a run stays asynchronous. A node whose
//! weights are constants, or follow from constants, is loaded once.
//! Not here: what an activation or a cell computes; docs/onnx.md has the table of what is read and what is refused.

mod graph;
mod model;
mod node;
mod proto;
mod rest;
mod tensor;
mod wire;

pub use model::{OnnxModel, OnnxOptions};
pub use node::{OnnxCompat, RecurrentNode};
pub use tensor::{Dimension, Tensor, TensorData, ValueInfo};
