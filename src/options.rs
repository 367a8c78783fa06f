//! Which device to open and how, and what is told about it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result, bail};

/// Which device to run on. Parses from `auto`, `gpu`, `gpu:1`, `cpu`, `reference` or a part of an adapter's
/// name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// A hardware GPU, discrete before integrated, and the CPU backend: each batch runs on the one that is estimated to be
    /// faster ([`Lstm::choice`](crate::Lstm::choice)). Without a GPU the CPU backend; never a software adapter.
    #[default]
    Auto,
    /// The best adapter there is, a software one where there is no other.
    Gpu,
    /// An adapter by its position in [`Engine::adapters`](crate::Engine::adapters).
    GpuIndex(usize),
    /// The first adapter whose name or driver contains this text, ignoring case.
    Name(String),
    /// The CPU backend.
    Cpu,
    /// The reference: slow, plain f32, the judge in tests.
    Reference,
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let trimmed = text.trim();
        Ok(match trimmed.to_ascii_lowercase().as_str() {
            "" => bail!(
                DeviceNotFound,
                "device: expected auto, gpu, gpu:N, cpu, reference or a part of a name, found nothing"
            ),
            "auto" => Self::Auto,
            "gpu" => Self::Gpu,
            "cpu" => Self::Cpu,
            "reference" => Self::Reference,
            lower => match lower.strip_prefix("gpu:") {
                Some(index) => match index.parse() {
                    Ok(index) => Self::GpuIndex(index),
                    Err(_) => bail!(DeviceNotFound, "device: expected a number after gpu:, found {index:?}"),
                },
                None => Self::Name(trimmed.to_owned()),
            },
        })
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Gpu => f.write_str("gpu"),
            Self::GpuIndex(index) => write!(f, "gpu:{index}"),
            Self::Name(name) => f.write_str(name),
            Self::Cpu => f.write_str("cpu"),
            Self::Reference => f.write_str("reference"),
        }
    }
}

/// Which limits the GPU path may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LimitsProfile {
    /// Those of the adapter.
    #[default]
    Adapter,
    /// WebGPU's defaults, which every browser grants.
    WebGpuDefaults,
}

/// How a model's weight matrices are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Precision {
    /// As f32.
    #[default]
    F32,
    /// As f16, rounded to nearest when a model is loaded: half the memory, and about half the time where reading weights
    /// is what takes it. Biases, peepholes and the parameters of normalisation stay f32, and all arithmetic does, so
    /// the result is that of the rounded weights, to the last bit.
    F16Weights,
}

/// Which kernels a plan prefers on a GPU. A wrong choice costs time, never a bit of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Tuning {
    /// Those for the adapter: [`Tuning::ManyLanes`] on hardware, [`Tuning::FewLanes`] on a software adapter.
    #[default]
    Adapter,
    /// For a device with far more lanes than a small batch has units: sums are shared by several lanes, and small layers
    /// run many timesteps in one dispatch.
    ManyLanes,
    /// For a device with a few lanes, which are busy anyway: each sums by itself.
    FewLanes,
}

/// How to open an engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Which device.
    pub device: DeviceChoice,
    /// Bytes of working buffers of one run on a GPU; 1 GiB if `None`. Long inputs are cut into chunks of
    /// timesteps to stay within it. Weights are not counted, nor what is read back: at most the output asked
    /// for. The CPU backend and the reference hold whole sequences and have no budget.
    pub memory_budget_bytes: Option<u64>,
    /// Which limits to open a GPU with.
    pub limits: LimitsProfile,
    /// The most bytes of one binding on a GPU; what the device allows if `None`. Sequences and weights that are larger are
    /// split over several; smaller bindings than a device allows show how a model does on a smaller one.
    pub max_binding_bytes: Option<u64>,
    /// How the weights of models are kept.
    pub precision: Precision,
    /// Which kernels plans prefer on a GPU.
    pub tuning: Tuning,
    /// Whether to time submits by a GPU's own clock, if it has one; see [`Counters::gpu_time`](crate::Counters::gpu_time).
    pub timestamps: bool,
}

impl EngineOptions {
    /// The defaults with this device.
    pub fn on(device: DeviceChoice) -> Self {
        Self { device, ..Self::default() }
    }

    /// Sets the memory budget in bytes.
    #[must_use]
    pub fn memory_budget_bytes(mut self, bytes: u64) -> Self {
        self.memory_budget_bytes = Some(bytes);
        self
    }

    /// Sets the most bytes of one binding.
    #[must_use]
    pub fn max_binding_bytes(mut self, bytes: u64) -> Self {
        self.max_binding_bytes = Some(bytes);
        self
    }

    /// Sets how weights are kept.
    #[must_use]
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Sets whether submits are timed by a GPU's own clock.
    #[must_use]
    pub fn timestamps(mut self, timestamps: bool) -> Self {
        self.timestamps = timestamps;
        self
    }

    /// Sets which kernels plans prefer on a GPU.
    #[must_use]
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.tuning = tuning;
        self
    }

    /// Sets the limits profile.
    #[must_use]
    pub fn limits(mut self, limits: LimitsProfile) -> Self {
        self.limits = limits;
        self
    }
}

/// What kind of backend an engine runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// WGSL on an adapter.
    Gpu,
    /// The CPU backend.
    Cpu,
    /// The reference in f32.
    Reference,
}

/// An adapter as wgpu describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdapterReport {
    /// N of `gpu:N`.
    pub index: usize,
    /// The adapter's name.
    pub name: String,
    /// `Vulkan`, `Metal`, `Dx12`, `BrowserWebGpu`.
    pub backend: String,
    /// `DiscreteGpu`, `IntegratedGpu`, `VirtualGpu`, `Other`, `Cpu`.
    pub device_type: String,
    /// The driver's name.
    pub driver: String,
    /// The driver's version.
    pub driver_info: String,
    /// PCI vendor, where known.
    pub vendor: u32,
    /// PCI device, where known.
    pub device: u32,
    /// Whether it computes on the CPU.
    pub is_software: bool,
    /// The limits that matter here, by WebGPU's names.
    pub limits: Vec<(&'static str, u64)>,
    /// Why this crate cannot use the adapter, if so.
    pub unusable: Option<String>,
}

/// The device an engine runs on, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceReport {
    /// The kind of backend.
    pub kind: BackendKind,
    /// A name to show.
    pub name: String,
    /// Why this device was chosen.
    pub reason: String,
    /// The adapter, on the GPU path.
    pub adapter: Option<AdapterReport>,
    /// The driver ends loops after this many trips (found by the self-test); larger models are refused.
    pub loop_trips: Option<u32>,
}
