//! Input and output rows in buffers of the caller on the device.

use libtest_mimic::Failed;
use wgpu_lstm::internals::{Fixed, device, run_fixed, set_poison, wgpu};
use wgpu_lstm::{Direction, LstmSpec, Merge, Outputs, SequenceOutput};

use crate::bits::{equal_bits, equal_outputs};
use crate::fixture::Case;
use crate::{Subject, Test};

pub const TESTS: &[(&str, Test)] = &[("rows_on_the_device_give_the_bits_of_rows_on_the_host", rows_on_the_device)];

fn rows_on_the_device(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    set_poison(&engine, Some(f32::NAN));
    let (gpu, queue) = device(&engine).ok_or("not on a GPU")?;
    for (direction, projection, merge) in [
        (Direction::Forward, None, Merge::Concat),
        (Direction::Bidirectional, None, Merge::Concat),
        (Direction::Bidirectional, Some(7), Merge::Concat),
        (Direction::Bidirectional, None, Merge::Sum),
    ] {
        let spec = LstmSpec::stack(13, 21, 2).direction(direction).projection(projection).merge(merge).build()?;
        let case = Case::new("device", &spec, &[6, 0, 11, 3, 11, 1], 12, true, 1);
        for mut case in [case.clone(), case.time_major()] {
            for cells in [false, true] {
                case.outputs = Outputs { sequence: SequenceOutput::All, final_state: true, cells };
                let lstm = engine.load_blocking(&case.weights)?;
                let expected = lstm.run_blocking(&case.batch())?;
                let rows = expected.output.clone().ok_or("no output")?;

                let size = (rows.len() * 4) as u64;
                let buffer = |label, size, usage| {
                    gpu.create_buffer(&wgpu::BufferDescriptor {
                        label: Some(label),
                        size,
                        usage,
                        mapped_at_creation: false,
                    })
                };
                use wgpu::BufferUsages as U;
                let input = buffer("test.input", (case.x.len() * 4) as u64, U::STORAGE | U::COPY_DST);
                let output = buffer("test.output", size, U::STORAGE | U::COPY_DST | U::COPY_SRC);
                queue.write_buffer(&input, 0, bytemuck::cast_slice(&case.x));
                queue.write_buffer(&output, 0, &vec![0x7f; size as usize]);
                // Host rows that must not be read in place of the device's.
                let mut blank = case.clone();
                blank.x.fill(0.25);
                let fixed = Fixed { input: Some(&input), output: Some(&output), ..Fixed::default() };
                let found = run_fixed(&lstm, &blank.batch(), fixed).ok_or("not on a GPU")??;

                let staging = buffer("test.staging", size, U::MAP_READ | U::COPY_DST);
                let mut encoder = gpu.create_command_encoder(&Default::default());
                encoder.copy_buffer_to_buffer(&output, 0, &staging, 0, size);
                queue.submit([encoder.finish()]);
                staging.map_async(wgpu::MapMode::Read, .., |_| ());
                gpu.poll(wgpu::PollType::wait_indefinitely())?;
                let bytes = staging.get_mapped_range(..).map_err(|e| e.to_string())?.to_vec();
                equal_bits("rows on the device", &bytemuck::pod_collect_to_vec::<u8, f32>(&bytes), &rows)?;
                if found.output.is_some() {
                    return Err("rows came back to the host although they were left on the device".into());
                }
                let mut states = expected.clone();
                states.output = None;
                equal_outputs("states", &found, &states)?;
            }
        }
    }
    Ok(())
}
