//! The time of a submit by the device's own clock.

use std::time::Duration;

use super::device::new_buffer;

/// Two points in time, before and after the pass of a submit.
pub(super) struct Timestamps {
    set: wgpu::QuerySet,
}

const BYTES: u64 = 16;

impl Timestamps {
    pub(super) fn new(device: &wgpu::Device) -> Self {
        let descriptor =
            wgpu::QuerySetDescriptor { label: Some("lstm.timestamps"), ty: wgpu::QueryType::Timestamp, count: 2 };
        Self { set: device.create_query_set(&descriptor) }
    }

    /// What the pass notes.
    pub(super) fn writes(&self) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        }
    }

    /// Records that both are read, into a buffer that can be mapped.
    pub(super) fn read(&self, device: &wgpu::Device, encoder: &mut wgpu::CommandEncoder) -> wgpu::Buffer {
        use wgpu::BufferUsages as U;
        let resolved = new_buffer(device, "lstm.timestamps", BYTES, U::QUERY_RESOLVE | U::COPY_SRC);
        let staging = new_buffer(device, "lstm.staging", BYTES, U::MAP_READ | U::COPY_DST);
        encoder.resolve_query_set(&self.set, 0..2, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, BYTES);
        staging
    }
}

/// What lies between two timestamps, of a clock whose ticks last `period` nanoseconds.
pub(super) fn elapsed(bytes: &[u8], period: f32) -> Duration {
    let ticks = bytemuck::pod_collect_to_vec::<u8, u64>(bytes);
    let ticks = ticks.get(1).zip(ticks.first()).map_or(0, |(end, begin)| end.saturating_sub(*begin));
    Duration::from_nanos((ticks as f64 * f64::from(period)) as u64)
}
