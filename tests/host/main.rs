//! Tests that need no adapter, in the order of trust: comparer, data, reference, packing, plan, shader contract.

mod comparer;
#[cfg(feature = "safetensors")]
mod conformance;
#[cfg(feature = "cpu")]
mod cpu;
mod data;
#[path = "../gpu/fixture.rs"]
#[allow(dead_code, reason = "the GPU tests use all of it")]
mod fixture;
mod icu4x;
#[cfg(feature = "gpu")]
mod kernels;
#[cfg(feature = "gpu")]
mod plan;
mod reference;
#[cfg(feature = "gpu")]
mod snapshot;
#[path = "../support/mod.rs"]
mod support;
