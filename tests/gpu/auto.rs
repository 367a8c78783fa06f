//! `auto`: the chosen device computes, and nothing else changes.

use libtest_mimic::Failed;
use wgpu_lstm::internals::open_auto;
use wgpu_lstm::{
    BackendKind, Chunk, Costs, CpuCosts, DeviceChoice, Direction, Engine, EngineOptions, ErrorKind, GpuBatch, GpuCosts,
    Layout, LimitsProfile, LstmSpec, LstmWeights, Outputs, SequenceBatch, SequenceOutput,
};

use crate::bits::equal_outputs;
use crate::fixture::Case;
use crate::{Subject, Test};

pub const TESTS: &[(&str, Test)] = &[
    ("auto_runs_each_batch_where_it_is_estimated_to_be_faster", per_batch),
    ("auto_keeps_a_stream_where_it_is_estimated_to_be_faster", per_stream),
    ("auto_gives_the_cpu_backend_what_does_not_fit", too_large),
    ("auto_measures_what_it_decides_by", measured),
];

/// A GPU that is worth its 0.1 ms from some 20 sequences of the test's model on.
const COSTS: Costs = Costs {
    gpu: GpuCosts {
        run: 1e-4,
        dispatch: 1e-6,
        bytes_per_second: 1e12,
        step_flops: 1e12,
        input_flops: 1e12,
        sequence_step: 1e-6,
        upload: 1e10,
        download: 1e10,
    },
    cpu: CpuCosts { run: 1e-6, step: 1e-6, bytes_per_second: [1e11, 1e11], flops: 1e9 },
};

fn spec() -> Result<LstmSpec, Failed> {
    Ok(LstmSpec::stack(5, 20, 2).build()?)
}

fn per_batch(subject: &Subject) -> Result<(), Failed> {
    let auto = open_auto(&subject.options, Some(COSTS))?;
    let (gpu, cpu) = (subject.engine()?, Engine::open_blocking(EngineOptions::on(DeviceChoice::Cpu))?);
    let weights = LstmWeights::random(&spec()?, 3);
    let [auto, gpu, cpu] = [&auto, &gpu, &cpu].map(|engine| engine.load_blocking(&weights));
    let (auto, gpu, cpu) = (auto?, gpu?, cpu?);
    if gpu.choice(&Case::new("named", &spec()?, &[3], 3, false, 1).batch()).is_some() {
        return Err("an engine on a named device chooses".into());
    }
    let cases: Vec<Case> = [vec![1], vec![9; 40], vec![0, 0], vec![2, 1, 0], (1..50).collect()]
        .into_iter()
        .map(|lengths| {
            let longest = lengths.iter().copied().max().unwrap_or(0);
            Ok::<_, Failed>(Case::new("auto", &spec()?, &lengths, longest.max(1), true, 7))
        })
        .collect::<Result<_, _>>()?;
    let mut expected = Vec::new();
    let mut kinds = Vec::new();
    for case in &cases {
        let pooled = Outputs { sequence: SequenceOutput::Mean, final_state: true, cells: false };
        for batch in [case.batch(), case.batch().outputs(pooled)] {
            let choice = auto.choice(&batch).ok_or("no choice")?;
            kinds.push(choice.kind);
            let chosen = if choice.kind == BackendKind::Gpu { &gpu } else { &cpu };
            let output = chosen.run_blocking(&batch)?;
            equal_outputs(&format!("{choice}"), &auto.run_blocking(&batch)?, &output)?;
            equal_outputs("again", &auto.run_blocking(&batch)?, &output)?;
            if !auto.explain(&batch)?.contains(&choice.to_string()) && batch.num_valid_rows() > 0 {
                return Err(format!("the explanation does not say {choice}").into());
            }
            if batch.requested().sequence == SequenceOutput::All {
                expected.push(output);
            }
        }
    }
    for kind in [BackendKind::Gpu, BackendKind::Cpu] {
        if !kinds.contains(&kind) {
            return Err(format!("no batch was for {kind:?}").into());
        }
    }
    let found: Vec<_> = auto.run_many(cases.iter().map(Case::batch)).collect::<Result<_, _>>()?;
    for (found, expected) in found.iter().zip(&expected) {
        equal_outputs("one of many", found, expected)?;
    }
    if found.len() != expected.len() {
        return Err(format!("expected {} outputs, found {}", expected.len(), found.len()).into());
    }
    Ok(())
}

fn per_stream(subject: &Subject) -> Result<(), Failed> {
    let auto = open_auto(&subject.options, Some(COSTS))?;
    let (gpu, cpu) = (subject.engine()?, Engine::open_blocking(EngineOptions::on(DeviceChoice::Cpu))?);
    let weights = LstmWeights::random(&spec()?, 3);
    let input: Vec<f32> = (0..4 * 5).map(|i| (i as f32).sin()).collect();
    for (num_slots, expected) in [(2, &cpu), (2000, &gpu)] {
        let (auto, named) = (auto.load_blocking(&weights)?, expected.load_blocking(&weights)?);
        let mut streams = [auto.stream(num_slots)?, named.stream(num_slots)?];
        let mut found = Vec::new();
        for stream in &mut streams {
            let first = stream.push_blocking(&[Chunk::new(1, &input), Chunk::new(0, &input[5..15])])?;
            let second = stream.push_blocking(&[Chunk::new(1, &input[..5])])?;
            found.push([first.chunk(0).to_vec(), first.chunk(1).to_vec(), second.chunk(0).to_vec()].concat());
        }
        if found[0] != found[1] {
            return Err(format!("{num_slots} slots: other bits than on {}", expected.device().name).into());
        }
    }
    Ok(())
}

fn too_large(subject: &Subject) -> Result<(), Failed> {
    // Nothing is faster on the CPU backend.
    let costs = Costs { gpu: GpuCosts { run: 0.0, ..COSTS.gpu }, cpu: CpuCosts { run: 1e3, ..COSTS.cpu } };
    let small = subject.options.clone().memory_budget_bytes(600 << 10);
    let (auto, cpu) = (open_auto(&small, Some(costs))?, Engine::open_blocking(EngineOptions::on(DeviceChoice::Cpu))?);
    let spec = LstmSpec::stack(9, 50, 1).direction(Direction::Bidirectional).build()?;
    let mut large = Case::new("large", &spec, &[2000], 2000, true, 1);
    let mut mixed = Case::new("mixed", &spec, &[3, 2000, 5], 2000, true, 1);
    let mut fits = Case::new("fits", &spec, &[3, 5], 5, true, 1);
    for case in [&mut large, &mut mixed, &mut fits] {
        case.outputs = Outputs { sequence: SequenceOutput::All, final_state: true, cells: true };
    }
    let (on_auto, on_cpu) = (auto.load_blocking(&large.weights)?, cpu.load_blocking(&large.weights)?);
    for (case, kind) in [(&large, BackendKind::Cpu), (&mixed, BackendKind::Cpu), (&fits, BackendKind::Gpu)] {
        let choice = on_auto.choice(&case.batch()).ok_or("no choice")?;
        let said = on_auto.explain(&case.batch())?.contains("which it does not fit");
        if choice.kind != kind || choice.fits_gpu != (kind == BackendKind::Gpu) || said == choice.fits_gpu {
            return Err(format!("{}: {choice:?}", case.name).into());
        }
        if kind == BackendKind::Cpu {
            let (found, expected) = (on_auto.run_blocking(&case.batch())?, on_cpu.run_blocking(&case.batch())?);
            equal_outputs(&case.name, &found, &expected)?;
        }
    }
    let found = on_auto.run_many([&large, &mixed, &fits].map(Case::batch)).collect::<Result<Vec<_>, _>>()?;
    for (case, found) in [&large, &mixed, &fits].into_iter().zip(&found) {
        equal_outputs("one of many", found, &on_auto.run_blocking(&case.batch())?)?;
    }
    if found.len() != 3 {
        return Err(format!("expected 3 outputs, found {}", found.len()).into());
    }
    // Weights that no binding of WebGPU's default limits has room for.
    if subject.options.limits == LimitsProfile::WebGpuDefaults {
        let inputs = (128 << 20) / 16 + 4;
        let weights = LstmWeights::random(&LstmSpec::stack(inputs, 1, 1).build()?, 5);
        let (on_auto, on_cpu) = (auto.load_blocking(&weights)?, cpu.load_blocking(&weights)?);
        let input = vec![0.5; inputs];
        let batch = SequenceBatch::new(&input, [1, 1, inputs], Layout::BatchMajor)?;
        equal_outputs("weights", &on_auto.run_blocking(&batch)?, &on_cpu.run_blocking(&batch)?)?;
        let choice = on_auto.choice(&batch).ok_or("no choice")?;
        let named = subject.engine()?.load_blocking(&weights).map(|_| ()).map_err(|e| e.kind());
        if choice.fits_gpu || choice.kind != BackendKind::Cpu || named != Err(ErrorKind::DeviceLimit) {
            return Err(format!("large weights: {choice:?}, on the GPU alone {named:?}").into());
        }
        let (device, queue) = auto.device_and_queue().ok_or("no device")?;
        let batch = GpuBatch::new(&auto.upload(&input, &[1, 1, inputs])?, Layout::BatchMajor)?;
        let recorded = on_auto.record(&mut device.create_command_encoder(&Default::default()), &batch);
        queue.submit([]);
        if !recorded.is_err_and(|e| e.kind() == ErrorKind::DeviceLimit) {
            return Err("a model that is not on the GPU was recorded".into());
        }
    }
    Ok(())
}

fn measured(subject: &Subject) -> Result<(), Failed> {
    let auto = open_auto(&subject.options, None)?;
    let costs = auto.costs().ok_or("no costs")?;
    let Costs { gpu, cpu } = costs;
    let factors = [gpu.run, gpu.dispatch, gpu.bytes_per_second, gpu.step_flops, gpu.input_flops, gpu.sequence_step]
        .into_iter()
        .chain([gpu.upload, gpu.download, cpu.step, cpu.bytes_per_second[0], cpu.bytes_per_second[1], cpu.flops]);
    for factor in factors {
        if !(factor.is_finite() && factor > 0.0) {
            return Err(format!("{costs:?}").into());
        }
    }
    let again = open_auto(&subject.options, None)?;
    if again.costs() != Some(costs) || again.counters().pipelines > 1 {
        return Err(format!("measured once more: {:?}", again.counters()).into());
    }
    if auto.counters().dispatches != 0 || auto.counters().submits != 0 {
        return Err(format!("measuring counts: {:?}", auto.counters()).into());
    }
    // A software adapter computes on the CPU with more in its way.
    if auto.device().adapter.as_ref().is_some_and(|adapter| adapter.is_software) {
        let lstm = auto.load_blocking(&LstmWeights::random(&LstmSpec::stack(128, 128, 1).build()?, 1))?;
        let input = vec![0.5; 100 * 128];
        let batch = SequenceBatch::new(&input, [1, 100, 128], Layout::BatchMajor)?;
        let choice = lstm.choice(&batch).ok_or("no choice")?;
        if choice.kind != BackendKind::Cpu {
            return Err(format!("a software adapter before the CPU: {choice}").into());
        }
    }
    Ok(())
}
