//! Batches whose arrays lie on the device, and recordings into an application's encoder.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use libtest_mimic::Failed;
use wgpu_lstm::internals::{pooled_bytes, set_poison};
use wgpu_lstm::{
    BatchOutput, CellSpec, Direction, Engine, Error, ErrorKind, GpuBatch, GpuOutput, GpuTensor, GruCell, Layout,
    LstmCell, LstmSpec, Merge, Outputs, SequenceOutput, wgpu,
};

use crate::bits::{equal_bits, equal_outputs};
use crate::fixture::Case;
use crate::{Subject, Test};

pub const TESTS: &[(&str, Test)] = &[
    ("a_recording_gives_the_bits_of_a_run", recorded),
    ("a_recording_in_chunks_gives_the_bits_of_a_run", recorded_in_chunks),
    ("recordings_before_one_submit_do_not_disturb_each_other", several_recordings),
    ("rows_are_pooled_on_the_device", pooled),
    ("models_chain_on_the_device", chained),
    ("an_application_shares_its_device", shared_device),
    ("a_recording_that_is_never_submitted_leaks_nothing", never_submitted),
    ("empty_recordings_return_their_initial_state", empty),
    ("bad_device_batches_name_the_offender", refused),
];

fn tensor(engine: &Engine, values: &[f32], shape: &[usize]) -> Result<GpuTensor, Error> {
    engine.upload(values, shape)
}

/// A case with its arrays on the device of `engine`.
pub fn on_device(engine: &Engine, case: &Case) -> Result<GpuBatch, Error> {
    let shape = case.layout.shape(case.seq_len, case.batch_size(), case.spec().input_size());
    let mut batch = GpuBatch::new(&tensor(engine, &case.x, &shape)?, case.layout)?.lengths(&case.lengths)?;
    if let Some(h_0) = &case.h_0 {
        batch = batch.h_0(&tensor(engine, h_0, &[h_0.len()])?);
    }
    if let Some(c_0) = &case.c_0 {
        batch = batch.c_0(&tensor(engine, c_0, &[c_0.len()])?);
    }
    Ok(batch.outputs(case.outputs))
}

pub fn read(engine: &Engine, output: &GpuOutput) -> Result<BatchOutput, Error> {
    let read = |t: &Option<GpuTensor>| t.as_ref().map(|t| engine.read_back_blocking(t)).transpose();
    Ok(BatchOutput {
        output: read(&output.output)?,
        last: read(&output.last)?,
        pooled: read(&output.pooled)?,
        h_n: read(&output.h_n)?,
        c_n: read(&output.c_n)?,
        cells: read(&output.cells)?,
    })
}

/// Every cell, both merges, with and without initial states, every output.
fn cases() -> Result<Vec<Case>, Failed> {
    let norm = LstmCell { layer_norm: true, peepholes: true, ..LstmCell::default() };
    let after_reset = GruCell { linear_before_reset: false, ..GruCell::default() };
    let stack = LstmSpec::stack(13, 21, 2);
    let specs = [
        stack,
        stack.direction(Direction::Reverse),
        stack.direction(Direction::Bidirectional),
        stack.direction(Direction::Bidirectional).projection(7),
        stack.direction(Direction::Bidirectional).merge(Merge::Sum),
        stack.cell(CellSpec::Lstm(norm)),
        stack.cell(CellSpec::Gru(GruCell::default())),
        stack.cell(CellSpec::Gru(after_reset)).direction(Direction::Bidirectional),
    ];
    let mut cases = Vec::new();
    for (n, spec) in specs.into_iter().enumerate() {
        let spec = spec.build()?;
        let has_c = spec.last_layer().c_size() > 0;
        for (lengths, seq_len) in [(&[6, 0, 11, 3, 11, 1][..], 12), (&[4, 4, 4], 4)] {
            for initial in [false, true] {
                let case = Case::new("device", &spec, lengths, seq_len, initial, n as u64);
                let [all, last, none] = [SequenceOutput::All, SequenceOutput::Last, SequenceOutput::None];
                for (sequence, final_state, cells) in
                    [(all, true, has_c), (last, true, false), (none, false, has_c), (all, false, false)]
                {
                    let mut case = if initial { case.clone() } else { case.time_major() };
                    case.outputs = Outputs { sequence, final_state, cells };
                    cases.push(case);
                }
            }
        }
        // Only one of the two states is given.
        let mut half = Case::new("half", &spec, &[5, 2], 5, true, 7);
        half.c_0 = None;
        cases.push(half);
    }
    Ok(cases)
}

fn recorded(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    set_poison(&engine, Some(f32::NAN));
    for case in cases()? {
        let lstm = engine.load_blocking(&case.weights)?;
        let expected = lstm.run_blocking(&case.batch())?;
        let output = lstm.submit(&on_device(&engine, &case)?)?;
        let what = format!("{:?} {:?} {:?}", case.spec().layers()[0], case.outputs, case.lengths);
        equal_outputs(&what, &read(&engine, &output)?, &expected)?;
    }
    Ok(())
}

/// A recording has all its chunks in one submit, so that what they upload must not share a byte.
fn recorded_in_chunks(subject: &Subject) -> Result<(), Failed> {
    for direction in [Direction::Forward, Direction::Bidirectional] {
        let spec = LstmSpec::stack(9, 40, 2).direction(direction).build()?;
        let case = Case::new("chunks", &spec, &[200, 141, 7, 200], 204, true, 3);
        let plan = |engine: &Engine| {
            let lstm = engine.load_blocking(&case.weights)?;
            let plan = wgpu_lstm::internals::plan(&lstm, &case.batch(), Default::default()).ok_or("not on a GPU")??;
            Ok::<_, Failed>((lstm, plan))
        };
        let whole = plan(&subject.engine()?)?.1.scratch_bytes();
        let engine = subject.open(|o| o.memory_budget_bytes(whole * 7 / 10))?;
        set_poison(&engine, Some(f32::NAN));
        let (lstm, plan) = plan(&engine)?;
        if plan.submits.len() < 2 {
            return Err(format!("expected several chunks, found {}", plan.submits.len()).into());
        }
        let expected = lstm.run_blocking(&case.batch())?;
        let output = lstm.submit(&on_device(&engine, &case)?)?;
        equal_outputs(&format!("{direction:?}"), &read(&engine, &output)?, &expected)?;
    }
    Ok(())
}

fn several_recordings(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    set_poison(&engine, Some(f32::NAN));
    let (device, queue) = engine.device_and_queue().ok_or("not on a GPU")?;
    let spec = LstmSpec::stack(6, 18, 2).build()?;
    let first = Case::new("first", &spec, &[5, 9, 2], 9, true, 1);
    let second = Case::new("second", &spec, &[9, 1, 7], 9, false, 2);
    let lstm = engine.load_blocking(&first.weights)?;
    let other = engine.load_blocking(&second.weights)?;
    let expected = [lstm.run_blocking(&first.batch())?, other.run_blocking(&second.batch())?];
    // Both encoders are open while a third batch runs, and the later one is submitted first.
    let mut encoders = [(); 2].map(|()| device.create_command_encoder(&Default::default()));
    let a = lstm.record(&mut encoders[0], &on_device(&engine, &first)?)?;
    let b = other.record(&mut encoders[1], &on_device(&engine, &second)?)?;
    let c = lstm.record(&mut encoders[1], &on_device(&engine, &first)?)?;
    equal_outputs("a run in between", &lstm.run_blocking(&first.batch())?, &expected[0])?;
    let [early, late] = encoders;
    queue.submit([late.finish(), early.finish()]);
    equal_outputs("first", &read(&engine, &a)?, &expected[0])?;
    equal_outputs("second", &read(&engine, &b)?, &expected[1])?;
    equal_outputs("third", &read(&engine, &c)?, &expected[0])
}

/// Against rows that are read back and pooled on the host, in the same order: the maximum to the last bit, the mean but
/// for the division, which WGSL allows 2.5 ulp.
fn pooled(subject: &Subject) -> Result<(), Failed> {
    let whole = subject.open(|o| o)?;
    let stack = LstmSpec::stack(9, 21, 2);
    for (n, spec) in [
        stack,
        stack.direction(Direction::Bidirectional).projection(10),
        stack.direction(Direction::Bidirectional).merge(Merge::Sum),
        stack.direction(Direction::Reverse),
    ]
    .into_iter()
    .enumerate()
    {
        let spec = spec.build()?;
        let features = spec.output_size();
        let case = Case::new("pooled", &spec, &[60, 0, 141, 7, 140], 142, true, n as u64);
        let asked = |engine: &Engine, sequence, cells| -> Result<[BatchOutput; 2], Failed> {
            let mut case = case.clone();
            case.outputs = Outputs { sequence, final_state: true, cells };
            let lstm = engine.load_blocking(&case.weights)?;
            let recorded = lstm.submit(&on_device(engine, &case)?)?;
            Ok([lstm.run_blocking(&case.batch())?, read(engine, &recorded)?])
        };
        let rows = asked(&whole, SequenceOutput::All, false)?[0].output.clone().ok_or("no output")?;
        // In one piece, and in many chunks or pieces.
        let small = subject.open(|o| o.max_binding_bytes(8 << 10))?;
        for engine in [&whole, &small] {
            set_poison(engine, Some(f32::NAN));
            for (how, cells) in [(SequenceOutput::Mean, false), (SequenceOutput::Max, true)] {
                let [run, recorded] = asked(engine, how, cells)?;
                equal_outputs(&format!("{how:?}, recorded"), &recorded, &run)?;
                let found = run.pooled.ok_or("nothing pooled")?;
                if run.output.is_some() || run.last.is_some() || found.len() != 5 * features {
                    return Err("expected one row per sequence and nothing else".into());
                }
                for (b, &length) in case.lengths.iter().enumerate() {
                    for u in 0..features {
                        let column = (0..length).map(|t| rows[(b * 142 + t) * features + u]);
                        let expected = match (length, how) {
                            (0, _) => 0.0,
                            (_, SequenceOutput::Max) => column.fold(f32::MIN, f32::max),
                            _ => column.fold(0.0, |sum, v| sum + v) / length as f32,
                        };
                        let bound = if how == SequenceOutput::Max { 0.0 } else { 3.0 * f32::EPSILON * expected.abs() };
                        let value = found[b * features + u];
                        if !((value - expected).abs() <= bound) {
                            return Err(
                                format!("{how:?} of sequence {b}, unit {u}: {value}, expected {expected}").into()
                            );
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// The output of one model is the input of the next, and its final states are the next initial ones.
fn chained(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let lower = LstmSpec::stack(6, 18, 1).direction(Direction::Bidirectional).build()?;
    let upper = LstmSpec::stack(36, 10, 2).build()?;
    let case = Case::new("lower", &lower, &[5, 9, 2], 9, false, 1);
    let top = Case::new("upper", &upper, &[5, 9, 2], 9, false, 2);
    let (below, above) = (engine.load_blocking(&case.weights)?, engine.load_blocking(&top.weights)?);

    let middle = below.run_blocking(&case.batch())?.output.ok_or("no output")?;
    let mut stacked = top.clone();
    stacked.x = middle;
    let expected = above.run_blocking(&stacked.batch())?;
    let mut again = stacked.clone();
    (again.h_0, again.c_0) = (expected.h_n.clone(), expected.c_n.clone());
    let expected_again = above.run_blocking(&again.batch())?;

    let y = below.submit(&on_device(&engine, &case)?)?.output.ok_or("no output")?;
    let batch = || Ok::<_, Failed>(GpuBatch::new(&y, Layout::BatchMajor)?.lengths(&case.lengths)?);
    let found = above.submit(&batch()?.outputs(top.outputs))?;
    equal_outputs("chained", &read(&engine, &found)?, &expected)?;
    let (h, c) = (found.h_n.ok_or("no h_n")?, found.c_n.ok_or("no c_n")?);
    let found = above.submit(&batch()?.outputs(top.outputs).h_0(&h).c_0(&c))?;
    equal_outputs("carried on", &read(&engine, &found)?, &expected_again)
}

/// A kernel of the application before and after: x + 1 into a part of a larger buffer, and 2·y.
const KERNEL: &str = "
@group(0) @binding(0) var<storage, read> src: array<f32>;
@group(0) @binding(1) var<storage, read_write> dst: array<f32>;
override SCALE: f32;
override BIAS: f32;
override OFFSET: u32;
override COUNT: u32;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
    if id.x < COUNT { dst[OFFSET + id.x] = SCALE * src[id.x] + BIAS; }
}";

/// Adds the application's kernel to an encoder.
fn own_kernel(
    device: &wgpu::Device,
    encoder: &mut wgpu::CommandEncoder,
    constants: &[(&str, f64)],
    from: &wgpu::Buffer,
    to: &wgpu::Buffer,
    count: usize,
) {
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(KERNEL.into()),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: wgpu::PipelineCompilationOptions { constants, ..Default::default() },
        cache: None,
    });
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[
            wgpu::BindGroupEntry { binding: 0, resource: from.as_entire_binding() },
            wgpu::BindGroupEntry { binding: 1, resource: to.as_entire_binding() },
        ],
    });
    let mut pass = encoder.begin_compute_pass(&Default::default());
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(count.div_ceil(64) as u32, 1, 1);
}

fn shared_device(subject: &Subject) -> Result<(), Failed> {
    let adapter = subject.adapter()?;
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_limits: Engine::required_limits(&adapter),
        required_features: Engine::required_features(&adapter),
        ..Default::default()
    }))?;
    // The application's handlers stay: the engine must not replace them.
    let seen = Arc::new(AtomicUsize::new(0));
    let (errors, losses) = (seen.clone(), seen.clone());
    device.on_uncaptured_error(Arc::new(move |_| {
        errors.fetch_add(1, Ordering::SeqCst);
    }));
    device.set_device_lost_callback(move |_, _| {
        losses.fetch_add(100, Ordering::SeqCst);
    });
    let engine = pollster::block_on(Engine::from_device(&adapter, device.clone(), queue.clone()))?;

    let spec = LstmSpec::stack(7, 19, 2).direction(Direction::Bidirectional).build()?;
    let case = Case::new("shared", &spec, &[5, 9, 2], 9, false, 1);
    let lstm = engine.load_blocking(&case.weights)?;
    let mut plus_one = case.clone();
    plus_one.x.iter_mut().for_each(|v| *v += 1.0);
    let expected = lstm.run_blocking(&plus_one.batch())?;
    // A device of an application without immediates, or with too few, gives the same.
    let mut fewer = vec![(wgpu::Features::empty(), 0)];
    if Engine::required_features(&adapter).contains(wgpu::Features::IMMEDIATES) {
        fewer.push((wgpu::Features::IMMEDIATES, 64));
    }
    for (required_features, max_immediate_size) in fewer {
        let required_limits = wgpu::Limits { max_immediate_size, ..Engine::required_limits(&adapter) };
        let descriptor = wgpu::DeviceDescriptor { required_limits, required_features, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
        let engine = pollster::block_on(Engine::from_device(&adapter, device, queue))?;
        let found = engine.load_blocking(&case.weights)?.run_blocking(&plus_one.batch())?;
        equal_outputs("fewer immediates", &found, &expected)?;
    }
    let doubled: Vec<f32> = expected.output.clone().ok_or("no output")?.iter().map(|v| 2.0 * v).collect();
    // An async run needs nobody else to poll.
    equal_outputs("async", &pollster::block_on(lstm.run(&plus_one.batch()))?, &expected)?;

    // The application's kernel → LSTM → the application's kernel, with offsets that no binding could start at.
    use wgpu::BufferUsages as U;
    let create = |len: usize| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("application"),
            size: 4 * len as u64,
            usage: U::STORAGE | U::COPY_SRC | U::COPY_DST,
            mapped_at_creation: false,
        })
    };
    let shape = case.layout.shape(case.seq_len, case.batch_size(), 7);
    let out_shape = case.layout.shape(case.seq_len, case.batch_size(), 38);
    let out_len: usize = out_shape.iter().product();
    let (raw, large, result) = (tensor(&engine, &case.x, &shape)?, create(case.x.len() + 1005), create(out_len));
    let guarded = create(out_len + 77 + 13);
    queue.write_buffer(&guarded, 0, &vec![0x7f; 4 * (out_len + 77 + 13)]);
    let y = GpuTensor::new(&guarded, 4 * 77, &out_shape)?;
    let mut encoder = device.create_command_encoder(&Default::default());
    let constants = |scale, bias, offset, count: usize| {
        [("SCALE", scale), ("BIAS", bias), ("OFFSET", offset), ("COUNT", count as f64)]
    };
    own_kernel(&device, &mut encoder, &constants(1.0, 1.0, 1005.0, case.x.len()), raw.buffer(), &large, case.x.len());
    let input = GpuTensor::new(&large, 4 * 1005, &shape)?;
    let batch = GpuBatch::new(&input, case.layout)?.lengths(&case.lengths)?.outputs(case.outputs).output_into(&y);
    let recorded = lstm.record(&mut encoder, &batch)?;
    // The second kernel reads from the start of a buffer.
    let whole = create(out_len);
    encoder.copy_buffer_to_buffer(y.buffer(), y.offset_bytes(), &whole, 0, y.size_bytes());
    own_kernel(&device, &mut encoder, &constants(2.0, 0.0, 0.0, out_len), &whole, &result, out_len);
    queue.submit([encoder.finish()]);
    let found = engine.read_back_blocking(&GpuTensor::new(&result, 0, &[out_len])?)?;
    equal_outputs("recorded", &read(&engine, &recorded)?, &expected)?;
    let all = engine.read_back_blocking(&GpuTensor::new(&guarded, 0, &[out_len + 77 + 13])?)?;
    if all[..77].iter().chain(&all[77 + out_len..]).any(|v| v.to_bits() != 0x7f7f_7f7f) {
        return Err("a recording wrote outside of its output".into());
    }
    equal_bits("the application's result", &found, &doubled)?;
    if seen.load(Ordering::SeqCst) != 0 {
        return Err("the application's handlers were called".into());
    }

    // An error of the application still reaches it, and a loss does.
    let _ = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: u64::MAX / 2,
        usage: U::MAP_READ | U::STORAGE,
        mapped_at_creation: false,
    });
    if seen.load(Ordering::SeqCst) != 1 {
        return Err("the application's error did not reach its handler".into());
    }
    device.destroy();
    match lstm.run_blocking(&case.batch()) {
        Err(e) if e.kind() == ErrorKind::DeviceLost => {}
        other => return Err(format!("expected DeviceLost, found {other:?}").into()),
    }
    match lstm.submit(&batch) {
        Err(e) if e.kind() == ErrorKind::DeviceLost => {}
        other => return Err(format!("expected DeviceLost of submit, found {other:?}").into()),
    }
    device.poll(wgpu::PollType::Poll)?;
    if seen.load(Ordering::SeqCst) < 100 {
        return Err("the loss did not reach the application's handler".into());
    }
    // A device that is too small is refused by name.
    let limits = wgpu::Limits { max_compute_invocations_per_workgroup: 32, ..Engine::required_limits(&adapter) };
    let small = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&small))?;
    match pollster::block_on(Engine::from_device(&adapter, device, queue)) {
        Err(e) if e.kind() == ErrorKind::DeviceLimit && e.to_string().contains("invocations_per_workgroup is 32") => {}
        other => return Err(format!("expected a DeviceLimit, found {other:?}").into()),
    }
    Ok(())
}

fn never_submitted(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    let (device, queue) = engine.device_and_queue().ok_or("not on a GPU")?;
    let spec = LstmSpec::stack(6, 18, 1).build()?;
    let case = Case::new("dropped", &spec, &[5, 9, 2], 9, true, 1);
    let lstm = engine.load_blocking(&case.weights)?;
    let batch = on_device(&engine, &case)?;
    let expected = read(&engine, &lstm.submit(&batch)?)?;
    let idle = pooled_bytes(&engine);
    for way in ["submitted", "dropped", "finished and dropped"] {
        let mut encoder = device.create_command_encoder(&Default::default());
        let output = lstm.record(&mut encoder, &batch)?;
        if pooled_bytes(&engine) != 0 {
            return Err(format!("{way}: a recording left its scratch in the pool").into());
        }
        match way {
            "submitted" => {
                queue.submit([encoder.finish()]);
                equal_outputs(way, &read(&engine, &output)?, &expected)?;
            }
            "dropped" => drop(encoder),
            _ => drop(encoder.finish()),
        }
        if pooled_bytes(&engine) != idle || idle == 0 {
            return Err(format!("{way}: expected {idle} idle bytes, found {}", pooled_bytes(&engine)).into());
        }
    }
    Ok(())
}

fn empty(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let spec = LstmSpec::stack(5, 9, 2).build()?;
    for (lengths, seq_len) in [(&[0, 0][..], 0), (&[0, 0, 0], 4), (&[], 3)] {
        for initial in [false, true] {
            let mut case = Case::new("empty", &spec, lengths, seq_len, initial, 1);
            for sequence in [SequenceOutput::All, SequenceOutput::Last] {
                case.outputs = Outputs { sequence, final_state: true, cells: false };
                let lstm = engine.load_blocking(&case.weights)?;
                let expected = lstm.run_blocking(&case.batch())?;
                let output = lstm.submit(&on_device(&engine, &case)?)?;
                equal_outputs(&format!("{lengths:?}"), &read(&engine, &output)?, &expected)?;
            }
        }
    }
    Ok(())
}

fn refused(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let (device, _) = engine.device_and_queue().ok_or("not on a GPU")?;
    let spec = LstmSpec::stack(5, 9, 1).build()?;
    let case = Case::new("refused", &spec, &[3, 2], 3, false, 1);
    let lstm = engine.load_blocking(&case.weights)?;
    let x = tensor(&engine, &case.x, &[2, 3, 5])?;
    let message = |r: Result<GpuOutput, wgpu_lstm::Error>, kind: ErrorKind, part: &str| match r {
        Err(e) if e.kind() == kind && e.to_string().contains(part) => Ok(()),
        other => Err(Failed::from(format!("expected {kind:?} with {part:?}, found {other:?}"))),
    };
    use ErrorKind::InvalidInput;
    let flat = tensor(&engine, &case.x, &[6, 5])?;
    message(GpuBatch::new(&flat, Layout::BatchMajor).map(|_| GpuOutput::default()), InvalidInput, "three axes")?;
    let wide = tensor(&engine, &case.x, &[1, 5, 6])?;
    message(lstm.submit(&GpuBatch::new(&wide, Layout::BatchMajor)?), InvalidInput, "expected input_size 5, found 6")?;
    let batch = GpuBatch::new(&x, Layout::BatchMajor)?;
    message(lstm.submit(&batch.clone().h_0(&x)), InvalidInput, "h_0: expected 18 elements")?;
    let out = tensor(&engine, &[0.0; 54], &[3, 2, 9])?;
    message(lstm.submit(&batch.clone().output_into(&out)), InvalidInput, "expected shape [2, 3, 9]")?;
    // In place, as far as the sizes go.
    let square = LstmSpec::stack(5, 5, 1).build()?;
    let lstm = engine.load_blocking(&Case::new("square", &square, &[3, 2], 3, false, 1).weights)?;
    message(lstm.submit(&batch.output_into(&x)), InvalidInput, "apart from input")?;
    let copy_only = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 64,
        usage: wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    for (r, part) in [
        (GpuTensor::new(&copy_only, 0, &[2]), "expected usage STORAGE"),
        (GpuTensor::new(&copy_only, 2, &[2]), "multiple of 4"),
        (GpuTensor::new(&copy_only, 60, &[2]), "expected 68 bytes"),
        (GpuTensor::new(&copy_only, 0, &[usize::MAX, 2]), "too many"),
        (engine.upload(&[0.0; 3], &[4]), "shape [4]"),
    ] {
        message(r.map(|_| GpuOutput::default()), InvalidInput, part)?;
    }
    Ok(())
}
