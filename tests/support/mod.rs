//! What both test binaries share: data, judgement and goldens.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod comparer;
#[cfg(feature = "safetensors")]
pub mod conformance;
pub mod data;
#[cfg(feature = "keras")]
pub mod evaluate;
#[cfg(feature = "safetensors")]
pub mod goldens;
#[cfg(all(feature = "onnx", feature = "safetensors"))]
pub mod onnx;
pub mod icu4x;
#[cfg(feature = "gpu")]
pub mod indices;
pub mod tolerance;
