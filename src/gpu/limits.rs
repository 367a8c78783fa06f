//! What an adapter reaches at best, measured: the roof that kernels are judged against.

use std::time::Instant;

use super::device::{Context, new_buffer};
use super::wait::{Waiting, map};
use crate::error::Result;
use crate::kernels::params::MeasureParams;
use crate::kernels::{CellCode, Kernel, KernelId};

/// Floating-point operations of an invocation and iteration, as `shaders/measure.wgsl` says.
const FLOPS: f64 = 64.0;
const INVOCATIONS: f64 = 64.0;
const ITERATIONS: u32 = 512;
/// Values that a dispatch reads, and that it writes.
const NUM_VALUES: u32 = 1024;
/// What is copied at a time, if the device allows so much.
const COPIED_BYTES: u64 = 64 << 20;
/// Dispatches of a chain.
const CHAIN: u32 = 200;
/// The shortest submit that is measured, in seconds: far above the cost of a submit.
const LONG_ENOUGH: f64 = 0.01;
const RUNS: usize = 3;

/// What an adapter reaches at best.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct AdapterLimits {
    /// Floating-point operations per second of fused multiply-adds in f32.
    pub flops: f64,
    /// Bytes per second of a copy from buffer to buffer, read and written bytes added.
    pub copy_bytes_per_second: f64,
    /// Seconds from one dispatch to the next that depends on it, in one pass, recording included.
    pub dispatch_gap: f64,
    /// Seconds of a submit of one empty dispatch, until the host knows that it is done.
    pub submit: f64,
}

/// What a submit does.
#[derive(Clone, Copy)]
enum Work {
    /// So many dispatches of so many workgroups.
    Dispatches { count: u32, workgroups: u32, iterations: u32 },
    /// So many copies.
    Copies(u32),
}

struct Bench<'a> {
    context: &'a Context,
    pipeline: wgpu::ComputePipeline,
    params: wgpu::Buffer,
    bind_group: wgpu::BindGroup,
    copied: [wgpu::Buffer; 2],
    staging: wgpu::Buffer,
    values: wgpu::Buffer,
}

/// Measures for about a second on a software adapter, less on a GPU.
pub(crate) fn measure(context: &Context) -> Result<AdapterLimits> {
    let bench = Bench::new(context)?;
    let chain = |count| Work::Dispatches { count, workgroups: 1, iterations: 0 };
    let submit = bench.shortest(chain(1))?;
    let gap = (bench.shortest(chain(CHAIN + 1))? - submit) / f64::from(CHAIN);

    let mut workgroups = 256;
    let mut count = 1;
    let arithmetic = loop {
        let work = |count| Work::Dispatches { count, workgroups, iterations: ITERATIONS };
        let seconds = bench.shortest(work(count))?;
        if seconds - submit > LONG_ENOUGH || count == 1 << 12 {
            break of_the_second_half(bench.shortest(work(2 * count))?, seconds);
        }
        if workgroups < 1 << 14 { workgroups *= 2 } else { count *= 2 }
    };
    let flops = f64::from(count) * f64::from(workgroups) * INVOCATIONS * f64::from(ITERATIONS) * FLOPS;

    let mut count = 1;
    let copying = loop {
        let seconds = bench.shortest(Work::Copies(count))?;
        if seconds - submit > LONG_ENOUGH || count == 1 << 10 {
            break of_the_second_half(bench.shortest(Work::Copies(2 * count))?, seconds);
        }
        count *= 2;
    };
    let bytes = 2.0 * f64::from(count) * bench.copied[0].size() as f64;
    Ok(AdapterLimits {
        flops: flops / arithmetic,
        copy_bytes_per_second: bytes / copying,
        dispatch_gap: gap.max(0.0),
        submit,
    })
}

/// The time of the second half of a work that takes `both`, if the first alone takes `first`, the submit included. About half
/// of `both`; where the machine was busy with something else while the first was measured, not less than a quarter.
fn of_the_second_half(both: f64, first: f64) -> f64 {
    (both - first).max(both / 4.0).max(1e-9)
}

impl<'a> Bench<'a> {
    fn new(context: &'a Context) -> Result<Self> {
        let id = KernelId {
            kernel: Kernel::Measure,
            cell: CellCode::default(),
            rows: 1,
            lanes: 64,
            slices: 1,
            halves: false,
        };
        let pipeline = context.pipeline_now(id)?;
        let size = COPIED_BYTES.min(context.limits.buffer_bytes).min(context.limits.budget_bytes / 4) / 4 * 4;
        context.guarded_now("measuring", || {
            use wgpu::BufferUsages as U;
            let buffer = |label, size, usage| new_buffer(&context.device, label, size, usage);
            let params = buffer("lstm.measure.params", 16, U::UNIFORM | U::COPY_DST);
            let values = buffer("lstm.measure.values", 2 * 4 * u64::from(NUM_VALUES), U::STORAGE | U::COPY_SRC);
            let bind_group = context.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("lstm.measure"),
                layout: context.pipelines.bind_group_layout(Kernel::Measure),
                entries: &[
                    wgpu::BindGroupEntry { binding: 0, resource: params.as_entire_binding() },
                    wgpu::BindGroupEntry { binding: 1, resource: values.as_entire_binding() },
                ],
            });
            let copied = ["from", "to"].map(|_| buffer("lstm.measure.copied", size, U::COPY_SRC | U::COPY_DST));
            let staging = buffer("lstm.measure.staging", 4, U::MAP_READ | U::COPY_DST);
            Self { context, pipeline, params, bind_group, copied, staging, values }
        })
    }

    /// The shortest of some runs, after one to warm up, in seconds.
    fn shortest(&self, work: Work) -> Result<f64> {
        let mut shortest = f64::INFINITY;
        for run in 0..=RUNS {
            let start = Instant::now();
            self.run(work)?;
            if run > 0 {
                shortest = shortest.min(start.elapsed().as_secs_f64());
            }
        }
        Ok(shortest)
    }

    fn run(&self, work: Work) -> Result<()> {
        let Self { context, pipeline, params, bind_group, copied, staging, values } = self;
        let (index, signal) = context.guarded_now("measuring", || {
            let mut encoder = context.device.create_command_encoder(&Default::default());
            match work {
                Work::Dispatches { count, workgroups, iterations } => {
                    let content = MeasureParams { iterations, num_values: NUM_VALUES, padding_0: 0, padding_1: 0 };
                    context.queue.write_buffer(params, 0, bytemuck::bytes_of(&content));
                    let mut pass = encoder.begin_compute_pass(&Default::default());
                    pass.set_pipeline(pipeline);
                    pass.set_bind_group(0, bind_group, &[]);
                    for _ in 0..count {
                        pass.dispatch_workgroups(workgroups, 1, 1);
                    }
                }
                Work::Copies(count) => {
                    let [from, to] = copied;
                    for i in 0..count {
                        let (from, to) = if i % 2 == 0 { (from, to) } else { (to, from) };
                        encoder.copy_buffer_to_buffer(from, 0, to, 0, from.size());
                    }
                }
            }
            encoder.copy_buffer_to_buffer(values, 0, staging, 0, 4);
            let index = context.queue.submit([encoder.finish()]);
            (index, map([staging]))
        })?;
        pollster::block_on(signal.finish(&context.waiter, &index, Waiting::Blocking))?;
        staging.unmap();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_machine_does_not_make_a_device_fast() {
        assert_eq!(of_the_second_half(5.0, 3.0), 2.0);
        assert_eq!(of_the_second_half(5.0, 6.0), 1.25, "the first took longer than both");
        assert!(of_the_second_half(0.0, 0.0) > 0.0);
    }
}
