//! Tests that need no adapter, in the order of trust: comparer, data, reference, packing, plan, shader contract.

mod comparer;
#[cfg(feature = "safetensors")]
mod conformance;
#[cfg(feature = "onnx")]
mod conformance_onnx;
#[cfg(feature = "cpu")]
mod cpu;
mod data;
#[cfg(all(feature = "safetensors", feature = "pytorch"))]
mod files;
#[path = "../gpu/fixture.rs"]
#[allow(dead_code, reason = "the GPU tests use all of it")]
mod fixture;
mod icu4x;
#[cfg(feature = "gpu")]
mod kernels;
#[cfg(feature = "gpu")]
mod plan;
#[cfg(feature = "keras")]
mod keras;
#[cfg(all(feature = "onnx", feature = "safetensors"))]
mod onnx;
#[cfg(all(feature = "safetensors", feature = "pytorch"))]
mod mutations;
mod reference;
#[cfg(feature = "gpu")]
mod snapshot;
#[cfg(feature = "cpu")]
mod stream;
#[path = "../support/mod.rs"]
mod support;
