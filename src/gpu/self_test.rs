//! The test that an adapter must pass when it is opened; see `shaders/self_test.wgsl`.

use super::device::{Context, new_buffer};
use super::wait::{Waiting, map};
use crate::error::{Result, bail};
use crate::kernels::params::SelfTestParams;
use crate::kernels::{CellCode, Kernel, KernelId};

/// Where tanh and sigmoid go wrong on some drivers, and where they must be accurate.
const PROBES: [f32; 19] = [
    -3.0e38, -1.0e4, -100.0, -89.0, -20.0, -5.0, -1.0, -0.28, -0.1, 0.0, 1.0e-4, 0.27, 0.5, 2.0, 9.0, 16.0, 89.0,
    1.0e4, 3.0e38,
];
const LONG_LOOP: u32 = 70_000;
const NESTED: (u32, u32) = (300, 300);
/// docs/numerics.md, "activations".
const ACTIVATION_TOLERANCE: f64 = 5.0 / (1u64 << 23) as f64;

/// Runs the test. Returns the most loop trips that the driver completes, `None` if no bound was found.
pub(crate) async fn run(context: &Context) -> Result<Option<u32>> {
    let id =
        KernelId { kernel: Kernel::SelfTest, cell: CellCode::default(), rows: 1, lanes: 64, slices: 1, halves: false };
    let pipeline = context.pipeline(id).await?;
    let n = PROBES.len() as u64;
    let params =
        SelfTestParams { num_probes: n as u32, long_loop: LONG_LOOP, outer_loop: NESTED.0, inner_loop: NESTED.1 };
    let (staging, index) = context
        .guarded("self-test", || {
            let buffer = |label, size, usage| new_buffer(&context.device, label, size, usage);
            use wgpu::BufferUsages as U;
            let uniform = buffer("lstm.self_test.params", 16, U::UNIFORM | U::COPY_DST);
            let probes = buffer("lstm.self_test.probes", n * 4, U::STORAGE | U::COPY_DST);
            let counts = buffer("lstm.self_test.counts", 8, U::STORAGE | U::COPY_SRC);
            let values = buffer("lstm.self_test.values", n * 12, U::STORAGE | U::COPY_SRC);
            let staging = buffer("lstm.self_test.staging", 8 + n * 12, U::MAP_READ | U::COPY_DST);
            context.queue.write_buffer(&uniform, 0, bytemuck::bytes_of(&params));
            context.queue.write_buffer(&probes, 0, bytemuck::cast_slice(&PROBES));
            let bind_group = context.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("lstm.self_test"),
                layout: context.pipelines.bind_group_layout(Kernel::SelfTest),
                entries: &[&uniform, &probes, &counts, &values]
                    .into_iter()
                    .enumerate()
                    .map(|(i, b)| wgpu::BindGroupEntry { binding: i as u32, resource: b.as_entire_binding() })
                    .collect::<Vec<_>>(),
            });
            let mut encoder = context.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                pass.set_pipeline(&pipeline);
                pass.set_bind_group(0, &bind_group, &[]);
                pass.dispatch_workgroups(1, 1, 1);
            }
            encoder.copy_buffer_to_buffer(&counts, 0, &staging, 0, 8);
            encoder.copy_buffer_to_buffer(&values, 0, &staging, 8, n * 12);
            let index = context.queue.submit([encoder.finish()]);
            (staging, index)
        })
        .await?;
    // The caller of open may be async, but the test takes milliseconds and nothing else runs yet.
    map([&staging]).finish(&context.waiter, &index, Waiting::Blocking).await?;
    let bytes = super::run::mapped_bytes(&staging)?;
    let (counts, values) = bytes.split_at(8);
    judge(bytemuck::pod_collect_to_vec(counts).as_slice(), bytemuck::pod_collect_to_vec(values).as_slice())
}

fn judge(counts: &[u32], values: &[f32]) -> Result<Option<u32>> {
    let mut dot = 0.0f64;
    for (k, probe) in PROBES.iter().rev().enumerate() {
        dot += f64::from(probe.clamp(-1.0, 1.0)) * (k + 1) as f64;
    }
    for (probe, found) in PROBES.iter().zip(values.chunks_exact(3)) {
        let x = f64::from(*probe);
        let expected = [1.0 / (1.0 + (-x).exp()), x.tanh(), dot];
        let tolerance = [ACTIVATION_TOLERANCE, ACTIVATION_TOLERANCE, 1e-3];
        for (name, i) in [("sigmoid", 0), ("tanh", 1), ("dot product", 2)] {
            let error = (f64::from(found[i]) - expected[i]).abs();
            if !(error <= tolerance[i]) {
                bail!(
                    DeviceFault,
                    "self-test: the driver computes {name}({probe}) = {}, expected {}; its numbers cannot be trusted",
                    found[i],
                    expected[i]
                );
            }
        }
    }
    let expected = [LONG_LOOP, NESTED.0 * NESTED.1];
    match *counts {
        [long, nested] if [long, nested] == expected => Ok(None),
        // A driver that ends loops early counts all loops of an invocation together, so a short first loop says it all.
        [long, nested] if long <= expected[0] && nested <= expected[1] && long > 1000 => {
            Ok(Some(if long < expected[0] { long } else { nested }))
        }
        _ => bail!(
            DeviceFault,
            "self-test: loops of {expected:?} trips were counted as {counts:?}; the driver's numbers cannot be trusted"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn good_values() -> Vec<f32> {
        let dot: f64 =
            PROBES.iter().rev().enumerate().map(|(k, p)| f64::from(p.clamp(-1.0, 1.0)) * (k + 1) as f64).sum();
        PROBES
            .iter()
            .flat_map(|&x| {
                let x = f64::from(x);
                [(1.0 / (1.0 + (-x).exp())) as f32, x.tanh() as f32, dot as f32]
            })
            .collect()
    }

    #[test]
    fn drivers_with_faults_are_found() {
        let good = good_values();
        assert_eq!(judge(&[70_000, 90_000], &good), Ok(None));
        assert_eq!(judge(&[65_534, 0], &good), Ok(Some(65_534)), "Mesa 22 ends loops early");
        assert_eq!(judge(&[70_000, 65_101], &good), Ok(Some(65_101)));
        for counts in [[70_001, 90_000], [0, 90_000], [70_000, 0x8000_0000]] {
            assert_eq!(judge(&counts, &good).unwrap_err().kind(), ErrorKind::DeviceFault, "{counts:?}");
        }
        for i in 0..good.len() {
            for bad in [f32::NAN, f32::INFINITY, good[i] + 0.01] {
                let mut values = good.clone();
                values[i] = bad;
                assert!(judge(&[70_000, 90_000], &values).is_err(), "value {i} = {bad}");
            }
        }
    }
}
