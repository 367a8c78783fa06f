//! What adapters there are, in order of preference, and what is known about each.

use super::device::missing_limits;
use crate::options::AdapterReport;

/// An adapter of wgpu with its report; the position in the list is the N of `gpu:N`.
pub(crate) struct Listed {
    pub(crate) adapter: wgpu::Adapter,
    pub(crate) report: AdapterReport,
}

/// Lists the adapters of all primary backends (Vulkan, Metal, DX12, WebGPU; or those named by `WGPU_BACKEND`):
/// discrete, integrated, virtual, others, and last software.
pub(crate) async fn list() -> Vec<Listed> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    let backends = wgpu::Backends::from_env().unwrap_or(wgpu::Backends::PRIMARY);
    descriptor.backends = backends;
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor.with_env());
    let mut adapters = instance.enumerate_adapters(backends).await;
    adapters.sort_by_key(|a| preference(a.get_info().device_type));
    adapters
        .into_iter()
        .enumerate()
        .map(|(index, adapter)| Listed { report: report(index, &adapter), adapter })
        .collect()
}

fn preference(device_type: wgpu::DeviceType) -> u8 {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

/// What is known about an adapter.
pub(crate) fn report(index: usize, adapter: &wgpu::Adapter) -> AdapterReport {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let unusable = missing_limits(&limits);
    AdapterReport {
        index,
        name: info.name,
        backend: format!("{:?}", info.backend),
        device_type: format!("{:?}", info.device_type),
        driver: info.driver,
        driver_info: info.driver_info,
        vendor: info.vendor,
        device: info.device,
        is_software: info.device_type == wgpu::DeviceType::Cpu,
        limits: vec![
            ("max_storage_buffer_binding_size", limits.max_storage_buffer_binding_size),
            ("max_buffer_size", limits.max_buffer_size),
            ("max_storage_buffers_per_shader_stage", limits.max_storage_buffers_per_shader_stage.into()),
            ("max_compute_invocations_per_workgroup", limits.max_compute_invocations_per_workgroup.into()),
            ("max_compute_workgroup_storage_size", limits.max_compute_workgroup_storage_size.into()),
            ("max_compute_workgroups_per_dimension", limits.max_compute_workgroups_per_dimension.into()),
        ],
        unusable: (!unusable.is_empty()).then(|| unusable.join("; ")),
    }
}
