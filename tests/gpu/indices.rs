//! No index of a kernel leaves its array: devices with many lanes run kernels without bounds checks.
//!
//! Every index is counted that is past the end of its array, which is where the plan says, not where the buffer ends;
//! and tests of other files run as they are. That all indices are counted is held by `tests/host/kernels.rs`.

use std::sync::{Mutex, PoisonError};

use libtest_mimic::Failed;
use wgpu_lstm::internals::{Fixed, Kernel, Rewrite, TileOverride, num_pipelines, run_fixed, watch};
use wgpu_lstm::{Direction, Engine, EngineOptions, LstmSpec, wgpu};

use crate::fixture::Case;
use crate::support::indices::{End, TILES, array_names, checked, num_reports, ran_at};
use crate::{Subject, Test, any_size, bits, device_rows, parity, stacks, stream};

pub const TESTS: Tests = &[("indices_past_earlier_ends_are_counted", counted)];

/// For plans for many lanes.
pub const MANY_LANES_TESTS: Tests = &[("every_index_is_within_its_array", within)];

type Tests = &'static [(&'static str, Test)];

/// Tests that between them run every kernel.
const RUNS: &[(Tests, &[&str])] = &[
    (
        parity::TESTS,
        &["whole_runs_agree_with_the_reference", "whole_runs_of_every_cell_and_option_agree_with_the_reference"],
    ),
    (bits::TESTS, &["bits_do_not_depend_on_tiles", "weights_as_halves_are_the_rounded_weights"]),
    (
        any_size::TESTS,
        &[
            "sequences_beyond_a_binding_are_split_without_moving_a_bit",
            "weights_beyond_a_binding_are_split_without_moving_a_bit",
        ],
    ),
    (
        stacks::TESTS,
        &["layers_side_by_side_give_the_bits_of_one_after_another", "layers_side_by_side_go_on_from_stored_states"],
    ),
    (
        stream::TESTS,
        &[
            "streams_in_any_pieces_equal_whole_runs",
            "a_reset_inside_a_chunk_begins_a_new_sequence",
            "a_recorded_push_equals_a_push",
        ],
    ),
    (device_rows::TESTS, &["a_recording_in_chunks_gives_the_bits_of_a_run", "rows_are_pooled_on_the_device"]),
];

/// Watched engines with what their kernels report.
#[derive(Default)]
pub struct Watch {
    opened: Mutex<Vec<(Engine, wgpu::Buffer)>>,
}

impl Watch {
    /// An engine on a device with room for one more storage buffer in a kernel.
    pub fn open(&self, adapter: &wgpu::Adapter, options: EngineOptions) -> Result<Engine, Failed> {
        self.open_with(adapter, options, |id, source| checked(id, &source, End::Own))
    }

    fn open_with(&self, adapter: &wgpu::Adapter, options: EngineOptions, rewrite: Rewrite) -> Result<Engine, Failed> {
        let mut required_limits = Engine::required_limits(adapter);
        required_limits.max_storage_buffers_per_shader_stage += 1;
        let required_features = Engine::required_features(adapter);
        let descriptor = wgpu::DeviceDescriptor { required_limits, required_features, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
        let reports = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("reports"),
            size: 4 * num_reports() as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let engine = pollster::block_on(Engine::from_device_with(adapter, device, queue, options))?;
        watch(&engine, rewrite, &reports);
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).push((engine.clone(), reports));
        Ok(engine)
    }

    /// What all engines reported together.
    fn reports(&self) -> Result<Vec<u32>, Failed> {
        let mut sums = vec![0; num_reports()];
        for (engine, reports) in &*self.opened.lock().unwrap_or_else(PoisonError::into_inner) {
            sums.iter_mut().zip(read(engine, reports)?).for_each(|(sum, n)| *sum += n);
        }
        Ok(sums)
    }
}

/// The names of arrays whose ends were passed.
fn passed(reports: &[u32]) -> Vec<&'static str> {
    array_names().iter().zip(reports).filter(|(_, n)| **n > 0).map(|(name, _)| name.as_str()).collect()
}

/// The words of a buffer of the engine's device.
fn read(engine: &Engine, buffer: &wgpu::Buffer) -> Result<Vec<u32>, Failed> {
    let (device, queue) = engine.device_and_queue().ok_or("not on a GPU")?;
    let staging = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: buffer.size(),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
    queue.submit([encoder.finish()]);
    staging.map_async(wgpu::MapMode::Read, .., |_| ());
    device.poll(wgpu::PollType::wait_indefinitely())?;
    let words = bytemuck::pod_collect_to_vec(&staging.get_mapped_range(..)?);
    Ok(words)
}

fn within(subject: &Subject) -> Result<(), Failed> {
    let watched = subject.watched();
    for (tests, names) in RUNS {
        for name in *names {
            let (_, test) = tests.iter().find(|(n, _)| n == name).ok_or_else(|| format!("no test {name}"))?;
            test(&watched).map_err(|e| format!("{name}: {}", e.message().unwrap_or("failed")))?;
        }
    }
    every_tile(&watched)?;
    let reports = watched.watch.as_ref().ok_or("not watched")?.reports()?;
    let passed = passed(&reports);
    if !passed.is_empty() {
        return Err(format!("indices past the ends of {passed:?}").into());
    }
    for kernel in Kernel::ALL {
        let ran = |tile: &(u32, u32)| reports[ran_at(kernel, *tile)] > 0;
        let is_missing = match kernel {
            // These are no part of a plan; the host bounds what they use.
            Kernel::SelfTest | Kernel::Measure => false,
            // The projection and the step have every tile, and the others share their sums.
            Kernel::InputProjection | Kernel::RecurrentStep => !TILES.iter().all(ran),
            _ => !TILES.iter().any(ran),
        };
        if is_missing {
            let tiles: Vec<_> = TILES.into_iter().filter(ran).collect();
            return Err(format!("{kernel:?} ran with the tiles {tiles:?} only").into());
        }
    }
    Ok(())
}

/// Every tile of a step and its projection.
fn every_tile(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let spec = LstmSpec::stack(40, 20, 1).build()?;
    for (rows, slices) in TILES {
        let case = Case::new("tile", &spec, &vec![1; rows as usize], 1, true, 1);
        let tiles =
            TileOverride { rows: Some(rows), slices: Some(slices), sequence: Some(false), ..TileOverride::default() };
        let lstm = engine.load_blocking(&case.weights)?;
        run_fixed(&lstm, &case.batch(), Fixed { tiles, ..Fixed::default() }).ok_or("not on a GPU")??;
    }
    Ok(())
}

/// With ends one element earlier, whoever uses a last element is counted.
fn counted(subject: &Subject) -> Result<(), Failed> {
    let watch = Watch::default();
    let engine = watch
        .open_with(&subject.adapter()?, subject.options.clone(), |id, source| checked(id, &source, End::OneEarlier))?;
    let spec = LstmSpec::stack(40, 20, 1).direction(Direction::Bidirectional).build()?;
    let case = Case::new("counted", &spec, &[3, 3, 3, 3], 3, true, 1);
    engine.load_blocking(&case.weights)?.run_blocking(&case.batch())?;
    let passed = passed(&watch.reports()?);
    let expected = match subject.many_lanes {
        true => ["bias", "h", "partials", "state", "w_hh", "weights", "x0", "x_gates", "y0", "y1"],
        false => ["bias", "h_prev", "next", "state", "w_hh", "weights", "x0", "x_gates", "y0", "y1"],
    };
    if passed != expected || num_pipelines(&engine) < 3 {
        return Err(format!("expected the ends of {expected:?}, found those of {passed:?}").into());
    }
    Ok(())
}
