//! Pipelines: one per kernel variant, compiled when a plan first needs it and kept for the device's life.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::device::Context;
use super::watch::{Rewrite, Watch};
use crate::error::Result;
use crate::kernels::params::Step;
use crate::kernels::{BindingKind, Kernel, KernelId};

/// The layouts of every kernel and the pipelines made so far.
pub(crate) struct Pipelines {
    layouts: Layouts,
    made: Mutex<HashMap<KernelId, wgpu::ComputePipeline>>,
    /// Set by a test, if at all.
    watch: OnceLock<Watch>,
}

pub(super) type Layouts = HashMap<Kernel, KernelLayout>;

/// How a kernel is bound.
pub(super) struct KernelLayout {
    pub(super) group: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
    pub(super) immediate_bytes: u32,
}

impl Pipelines {
    /// With `immediates`, the kernels of one timestep have them in place of binding 0.
    pub(crate) fn new(device: &wgpu::Device, immediates: bool) -> Self {
        let of = |kernel: Kernel| (kernel, layout(device, kernel, immediates && kernel.takes_immediates()));
        let layouts = Kernel::ALL.into_iter().map(of).collect();
        Self { layouts, made: Mutex::new(HashMap::new()), watch: OnceLock::new() }
    }

    pub(crate) fn bind_group_layout(&self, kernel: Kernel) -> &wgpu::BindGroupLayout {
        &self.layouts[&kernel].group
    }

    /// Group 1 of the kernels of a plan, if they have one.
    pub(super) fn watch_group(&self) -> Option<&wgpu::BindGroup> {
        self.watch.get().map(|watch| &watch.group)
    }

    /// The pipeline of `id`, if it was made.
    pub(crate) fn get(&self, id: KernelId) -> Option<wgpu::ComputePipeline> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn keep(&self, id: KernelId, pipeline: wgpu::ComputePipeline) -> wgpu::ComputePipeline {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.entry(id).or_insert(pipeline).clone()
    }

    /// The number of pipelines made.
    pub(crate) fn len(&self) -> usize {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Context {
    /// From now on, kernels that were not compiled yet are `rewrite`'s, and may write to `reports`; for tests.
    pub(crate) fn watch(&self, rewrite: Rewrite, reports: &wgpu::Buffer) {
        self.pipelines.watch.get_or_init(|| Watch::new(&self.device, &self.pipelines.layouts, rewrite, reports));
    }

    /// The pipeline of `id`, compiled if need be. Two threads may both compile it; one result is kept.
    pub(crate) async fn pipeline(&self, id: KernelId) -> Result<wgpu::ComputePipeline> {
        if let Some(pipeline) = self.pipelines.get(id) {
            return Ok(pipeline);
        }
        let pipeline = self.guarded(&id.label(), || self.compile(id)).await?;
        Ok(self.pipelines.keep(id, pipeline))
    }

    /// [`pipeline`](Self::pipeline) for a caller that cannot wait.
    pub(crate) fn pipeline_now(&self, id: KernelId) -> Result<wgpu::ComputePipeline> {
        if let Some(pipeline) = self.pipelines.get(id) {
            return Ok(pipeline);
        }
        let pipeline = self.guarded_now(&id.label(), || self.compile(id))?;
        Ok(self.pipelines.keep(id, pipeline))
    }

    fn compile(&self, id: KernelId) -> wgpu::ComputePipeline {
        let label = id.label();
        let immediates = self.limits.immediates && id.kernel.takes_immediates();
        let source = if immediates { id.source_with_immediates() } else { id.source() };
        let watch = self.pipelines.watch.get();
        let (source, layout) = match watch {
            Some(watch) => ((watch.rewrite)(id, source), &watch.layouts[&id.kernel]),
            None => (source, &self.pipelines.layouts[&id.kernel].pipeline),
        };
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(&label), source: wgpu::ShaderSource::Wgsl(source.into()) };
        // What a test has rewritten is not known to stay within its arrays.
        let module = match self.limits.wide && watch.is_none() {
            true => self.trusted(descriptor),
            false => self.device.create_shader_module(descriptor),
        };
        self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(layout),
            module: &module,
            entry_point: Some(id.kernel.entry_point()),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &id.constants(),
                // Every kernel writes workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        })
    }

    /// A module whose loops, divisions, reads and writes are not guarded.
    fn trusted(&self, descriptor: wgpu::ShaderModuleDescriptor<'_>) -> wgpu::ShaderModule {
        let checks = wgpu::ShaderRuntimeChecks {
            bounds_checks: false,
            force_loop_bounding: false,
            int_div_checks: false,
            ..wgpu::ShaderRuntimeChecks::checked()
        };
        // SAFETY: every loop of a kernel counts up to a number that was fixed before it, or halves down to 0; steps are too
        // small and rows too few for a counter to wrap. Every divisor of an integer is a constant above 0, which a test sees
        // to, but for `measure`'s number of values, which the host sets. Every index follows from the plan and tables of the host,
        // never from values of tensors, and ends before the bound range does: `tests/gpu/indices.rs` counts those that do not.
        #[allow(unsafe_code, reason = "the only way to leave checks out that no kernel needs")]
        unsafe {
            self.device.create_shader_module_trusted(descriptor, checks)
        }
    }
}

fn layout(device: &wgpu::Device, kernel: Kernel, immediates: bool) -> KernelLayout {
    let label = format!("lstm.{}", kernel.name());
    let entries: Vec<_> = kernel
        .bindings()
        .iter()
        .enumerate()
        .skip(usize::from(immediates))
        .map(|(binding, b)| {
            let (ty, has_dynamic_offset, size) = match b.kind {
                BindingKind::DynamicUniform { size_bytes } => (wgpu::BufferBindingType::Uniform, true, size_bytes),
                BindingKind::Uniform { size_bytes } => (wgpu::BufferBindingType::Uniform, false, size_bytes),
                BindingKind::Read => (wgpu::BufferBindingType::Storage { read_only: true }, false, 0),
                BindingKind::ReadWrite => (wgpu::BufferBindingType::Storage { read_only: false }, false, 0),
            };
            wgpu::BindGroupLayoutEntry {
                binding: binding as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty,
                    has_dynamic_offset,
                    min_binding_size: std::num::NonZeroU64::new(size.into()),
                },
                count: None,
            }
        })
        .collect();
    let group =
        device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&label), entries: &entries });
    let immediate_bytes = if immediates { size_of::<Step>() as u32 } else { 0 };
    let pipeline = pipeline_layout(device, kernel, &[Some(&group)], immediate_bytes);
    KernelLayout { group, pipeline, immediate_bytes }
}

pub(super) fn pipeline_layout(
    device: &wgpu::Device,
    kernel: Kernel,
    groups: &[Option<&wgpu::BindGroupLayout>],
    immediate_bytes: u32,
) -> wgpu::PipelineLayout {
    device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(&format!("lstm.{}", kernel.name())),
        bind_group_layouts: groups,
        immediate_size: immediate_bytes,
    })
}
