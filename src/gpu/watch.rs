//! Shaders as a test rewrites them, with a buffer that they report to.

use std::collections::HashMap;

use super::pipelines::{Layouts, pipeline_layout};
use crate::kernels::{Kernel, KernelId};

/// What becomes of a source. The new one may use a storage buffer at group 1, binding 0.
pub type Rewrite = fn(KernelId, String) -> String;

/// What the kernels of plans are compiled and bound with.
pub(super) struct Watch {
    pub(super) rewrite: Rewrite,
    pub(super) layouts: HashMap<Kernel, wgpu::PipelineLayout>,
    /// The reports, group 1.
    pub(super) group: wgpu::BindGroup,
}

impl Watch {
    pub(super) fn new(device: &wgpu::Device, layouts: &Layouts, rewrite: Rewrite, reports: &wgpu::Buffer) -> Self {
        let label = Some("lstm.watch");
        let entry = wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: false },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &[entry] });
        let entry = wgpu::BindGroupEntry { binding: 0, resource: reports.as_entire_binding() };
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor { label, layout: &layout, entries: &[entry] });
        let with_reports = |kernel: &Kernel| {
            let of = &layouts[kernel];
            pipeline_layout(device, *kernel, &[Some(&of.group), Some(&layout)], of.immediate_bytes)
        };
        Self { rewrite, layouts: layouts.keys().map(|k| (*k, with_reports(k))).collect(), group }
    }
}
