//! Tests that need no adapter, in the order of trust: comparer, reference, packing, plan, shader contract.

#[cfg(feature = "gpu")]
mod kernels;
#[cfg(feature = "gpu")]
mod plan;
#[cfg(feature = "gpu")]
mod snapshot;
