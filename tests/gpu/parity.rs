//! The GPU path against the reference: every parity case, one step at a time and as a whole.

use libtest_mimic::Failed;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use wgpu_lstm::internals::{KernelId, num_pipelines, set_poison};
use wgpu_lstm::{
    Direction, Layout, LstmSpec, LstmWeights, Outputs, SequenceBatch, SequenceOutput, reference, weights::safetensors,
};

use crate::fixture::{Case, parity_cases};
use crate::judge::{self, Headroom};
use crate::{Subject, Test, is_full};

pub const TESTS: &[(&str, Test)] = &[
    ("whole_runs_agree_with_the_reference", whole_runs),
    ("single_steps_are_within_the_rounding_bound", single_steps),
    ("scratch_content_never_shows", poison),
    ("long_sums_agree_with_the_reference", long_sums),
    ("random_models_agree_with_the_reference", random_models),
    ("the_trained_classifier_is_as_accurate_as_on_the_cpu", classifier),
    ("zz_ci_compiles_at_most_60_pipelines", pipelines),
];

fn whole_runs(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let mut worst = Headroom::default();
    for case in parity_cases() {
        let lstm = engine.load_blocking(&case.weights)?;
        let headroom = judge::whole_run(&case, &lstm.run_blocking(&case.batch())?)?;
        worst.0 = worst.0.max(headroom.0);
    }
    println!("{}: worst share of the tolerance {:.3}", subject.label, worst.0);
    Ok(())
}

/// From the reference's state at sampled steps, one step of every cell.
fn single_steps(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let mut worst = Headroom::default();
    for case in parity_cases() {
        for (index, (l, layer, reverse)) in case.spec().cells().enumerate() {
            let Some(samples) = Samples::take(&case, l, reverse)? else { continue };
            // The cell alone, as a forward layer over batches of one step.
            let mut alone = *layer;
            alone.direction = Direction::Forward;
            let cell = case.weights.cells()[index].clone();
            let weights = LstmWeights::new(LstmSpec::new(vec![alone])?, vec![cell.clone()])?;
            let lstm = engine.load_blocking(&weights)?;
            let n = samples.x.len() / layer.input_size;
            let batch = SequenceBatch::new(&samples.x, [n, 1, layer.input_size], Layout::BatchMajor)?
                .h_0(&samples.h)
                .c_0(&samples.c);
            let output = lstm.run_blocking(&batch)?;
            let (h_n, c_n) = (output.h_n.ok_or("no h_n")?, output.c_n.ok_or("no c_n")?);
            let (h_size, hidden) = (layer.h_size(), layer.hidden_size);
            for s in 0..n {
                let (h, c) = (&samples.h[s * h_size..][..h_size], &samples.c[s * hidden..][..hidden]);
                let step = judge::step(layer, &cell, &samples.x[s * layer.input_size..][..layer.input_size], h, c);
                let what = |part| format!("{}, layer {l}, reverse {reverse}, sample {s}, {part}", case.name);
                judge::within(&what("h"), &h_n[s * h_size..][..h_size], &step.h, &step.h_bound, &mut worst)?;
                judge::within(&what("c"), &c_n[s * hidden..][..hidden], &step.c, &step.c_bound, &mut worst)?;
            }
        }
    }
    println!("{}: worst share of the one-step bound {:.3}", subject.label, worst.0);
    Ok(())
}

/// What enters a cell at sampled steps, from the f64 reference, rounded to f32.
struct Samples {
    x: Vec<f32>,
    h: Vec<f32>,
    c: Vec<f32>,
}

impl Samples {
    fn take(case: &Case, l: usize, reverse: bool) -> Result<Option<Self>, Failed> {
        let prefix = |layers: usize| -> Result<Case, Failed> {
            let spec = LstmSpec::new(case.spec().layers()[..layers].to_vec())?;
            let cells = case.weights.cells()[..spec.num_cells()].to_vec();
            let mut shorter = case.clone();
            let (h, c) = spec.state_sizes();
            shorter.h_0 = case.h_0.as_ref().map(|s| s[..h * case.batch_size()].to_vec());
            shorter.c_0 = case.c_0.as_ref().map(|s| s[..c * case.batch_size()].to_vec());
            shorter.weights = LstmWeights::new(spec, cells)?;
            Ok(shorter)
        };
        let layer = case.spec().layers()[l];
        let at = prefix(l + 1)?;
        let exact = reference::run::<f64>(&at.weights, &at.batch())?;
        let (output, cells) = (exact.output.ok_or("no output")?, exact.cells.ok_or("no cells")?);
        let input: Vec<f64> = match l {
            0 => case.x.iter().map(|&v| f64::from(v)).collect(),
            _ => {
                let before = prefix(l)?;
                reference::run::<f64>(&before.weights, &before.batch())?.output.ok_or("no output")?
            }
        };
        let direction = usize::from(reverse && layer.direction == Direction::Bidirectional);
        let row = |t: usize, b: usize| case.layout.row(t, b, case.seq_len, case.batch_size());
        let round = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        let (h_size, hidden) = (layer.h_size(), layer.hidden_size);
        let mut samples = Self { x: Vec::new(), h: Vec::new(), c: Vec::new() };
        for (b, &length) in case.lengths.iter().enumerate().take(5) {
            // Steps whose state comes from another step.
            for t in [1, length / 2, length.saturating_sub(1)] {
                let from = if reverse { t + 1 } else { t.wrapping_sub(1) };
                if t >= length || from >= length {
                    continue;
                }
                let take = |array: &[f64], width: usize| {
                    let first = (row(from, b) * layer.num_directions() + direction) * width;
                    round(&array[first..first + width])
                };
                samples.x.extend(round(&input[row(t, b) * layer.input_size..][..layer.input_size]));
                samples.h.extend(take(&output, h_size));
                samples.c.extend(take(&cells, hidden));
            }
        }
        Ok((!samples.x.is_empty()).then_some(samples))
    }
}

/// Scratch buffers start as NaN once and as a large finite number once; nothing of it reaches a result.
fn poison(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    for case in parity_cases().into_iter().step_by(3) {
        let lstm = engine.load_blocking(&case.weights)?;
        set_poison(&engine, None);
        let expected = lstm.run_blocking(&case.batch())?;
        for value in [f32::NAN, 3.0e38] {
            set_poison(&engine, Some(value));
            crate::bits::equal_outputs(
                &format!("{} with scratch of {value}", case.name),
                &lstm.run_blocking(&case.batch())?,
                &expected,
            )?;
        }
    }
    Ok(())
}

/// Sums of many segments.
fn long_sums(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let sizes: &[(usize, usize, Option<usize>)] = if is_full() {
        &[(700, 515, None), (3, 1024, None), (1500, 300, Some(129))]
    } else {
        &[(300, 259, None), (700, 150, Some(67))]
    };
    for &(input, hidden, projection) in sizes {
        let spec =
            LstmSpec::stack(input, hidden, 1).direction(Direction::Bidirectional).projection(projection).build()?;
        let case = Case::new("long_sums", &spec, &[5, 3, 0, 2], 5, true, 21);
        let lstm = engine.load_blocking(&case.weights)?;
        judge::whole_run(&case, &lstm.run_blocking(&case.batch())?)?;
    }
    Ok(())
}

/// Any spec, shape, lengths and outputs.
fn random_models(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let direction = prop_oneof![Just(Direction::Forward), Just(Direction::Reverse), Just(Direction::Bidirectional)];
    let strategy = (
        (1..40usize, 2..50usize, 1..4usize, direction, any::<bool>()),
        (prop::option::of(1..50usize), prop::collection::vec(0..14usize, 1..12), any::<bool>(), any::<u64>()),
        (any::<bool>(), any::<bool>(), any::<bool>(), 0..3usize),
    );
    let cases = if is_full() { 400 } else { 24 };
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let outcome = runner.run(&strategy, |(model, batch, options)| {
        let (input, hidden, layers, direction, bias) = model;
        let (projection, lengths, time_major, seed) = batch;
        let (initial, final_state, cells, sequence) = options;
        let spec = LstmSpec::stack(input, hidden, layers)
            .direction(direction)
            .bias(bias)
            .projection(projection.filter(|&p| p < hidden))
            .build()
            .expect("sizes are valid");
        let seq_len = lengths.iter().max().copied().unwrap_or(0) + seed as usize % 2;
        let mut case = Case::new("random", &spec, &lengths, seq_len, initial, seed);
        if time_major {
            case = case.time_major();
        }
        let sequence = [SequenceOutput::None, SequenceOutput::Last, SequenceOutput::All][sequence];
        case.outputs = Outputs { sequence, final_state, cells };
        let judged = engine
            .load_blocking(&case.weights)
            .and_then(|lstm| lstm.run_blocking(&case.batch()))
            .map_err(Failed::from)
            .and_then(|output| judge::whole_run(&case, &output));
        judged.map(|_| ()).map_err(|e| TestCaseError::fail(e.message().unwrap_or("failed").to_owned()))
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, input)) => Err(format!("{why}\nsmallest input: {input:?}").into()),
        Err(TestError::Abort(why)) => Err(format!("aborted: {why}").into()),
    }
}

/// The demo's model on the demo's data.
fn classifier(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/data/japanese_vowels");
    let model = std::fs::read(format!("{folder}/model.safetensors"))?;
    let data = std::fs::read(format!("{folder}/test.safetensors"))?;
    let weights = safetensors::read(&model, None)?;
    let (shape, x) = safetensors::read_tensor(&data, "x")?;
    let (_, lengths) = safetensors::read_tensor_i64(&data, "lengths")?;
    let lengths: Vec<usize> = lengths.iter().map(|&n| n as usize).collect();
    let outputs = Outputs { sequence: SequenceOutput::Last, final_state: false, cells: false };
    let batch =
        SequenceBatch::new(&x, [shape[0], shape[1], shape[2]], Layout::BatchMajor)?.lengths(&lengths)?.outputs(outputs);
    let found = engine.load_blocking(&weights)?.run_blocking(&batch)?.last.ok_or("no rows")?;
    let exact = reference::run::<f64>(&weights, &batch)?.last.ok_or("no rows")?;
    let error = found.iter().zip(&exact).map(|(f, e)| (f64::from(*f) - e).abs()).fold(0.0, f64::max);
    if !(error < 1e-5) || found.len() != exact.len() {
        return Err(format!("370 utterances: error {error:e}").into());
    }
    Ok(())
}

/// Runs last, by its name: what all tests of this adapter together have compiled on the shared engine.
fn pipelines(subject: &Subject) -> Result<(), Failed> {
    let compiled = num_pipelines(&subject.engine()?);
    println!("{}: {compiled} pipelines of {}", subject.label, KernelId::all().len());
    if compiled > 60 {
        return Err(format!("{compiled} pipelines were compiled").into());
    }
    Ok(())
}
