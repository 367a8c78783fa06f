//! The GPU path against the reference: every parity case, one step at a time and as a whole.

use libtest_mimic::Failed;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use wgpu_lstm::internals::set_poison;
use wgpu_lstm::{
    BatchOutput, Direction, LayerSpec, Layout, LstmSpec, Outputs, SequenceBatch, SequenceOutput, reference, weights::safetensors,
};

use crate::fixture::{Case, parity_cases, variant_cases, variant_layers};
use crate::support::tolerance::{self, GPU};
use crate::{Subject, Test, is_full};

pub const TESTS: &[(&str, Test)] = &[
    ("whole_runs_agree_with_the_reference", whole_runs),
    ("single_steps_are_within_the_rounding_bound", single_steps),
    ("whole_runs_of_every_cell_and_option_agree_with_the_reference", variants),
    ("single_steps_of_every_cell_and_option_are_within_the_rounding_bound", single_steps_of_variants),
    ("scratch_content_never_shows", poison),
    ("long_sums_agree_with_the_reference", long_sums),
    ("random_models_agree_with_the_reference", random_models),
    ("the_trained_classifier_is_right_for_96_percent", classifier),
];

/// Judges a whole run; returns the smallest headroom.
fn judge(case: &Case, output: &BatchOutput) -> Result<f64, Failed> {
    let reports = tolerance::whole_run(&case.weights, &case.batch(), GPU).check(output);
    let reports = reports.map_err(|e| format!("{}: {e}", case.name))?;
    Ok(reports.iter().map(|r| r.headroom).fold(f64::INFINITY, f64::min))
}

fn whole_runs(subject: &Subject) -> Result<(), Failed> {
    whole_runs_of(subject, parity_cases())
}

fn variants(subject: &Subject) -> Result<(), Failed> {
    whole_runs_of(subject, variant_cases())
}

fn whole_runs_of(subject: &Subject, cases: Vec<Case>) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let mut headroom = f64::INFINITY;
    for case in cases {
        let lstm = engine.load_blocking(&case.weights)?;
        headroom = headroom.min(judge(&case, &lstm.run_blocking(&case.batch())?)?);
    }
    println!("{}: smallest headroom of whole runs {headroom:.1}", subject.label);
    Ok(())
}

/// From the reference's state at sampled steps, one step of every cell.
fn single_steps(subject: &Subject) -> Result<(), Failed> {
    single_steps_of(subject, parity_cases())
}

fn single_steps_of_variants(subject: &Subject) -> Result<(), Failed> {
    single_steps_of(subject, variant_cases())
}

fn single_steps_of(subject: &Subject, cases: Vec<Case>) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let mut headroom = f64::INFINITY;
    for case in cases {
        let lstm = engine.load_blocking(&case.weights)?;
        let longest = case.lengths.iter().max().copied().unwrap_or(0);
        let mut steps = vec![0, longest / 2, longest - 1];
        steps.dedup();
        for t in steps {
            let sample = tolerance::sample_step(&case.weights, &case.batch(), t);
            let batch = sample.batch(case.spec().input_size());
            let judgement = tolerance::one_step(&case.weights, &batch, GPU);
            let reports = judgement.check(&lstm.run_blocking(&batch)?);
            let reports = reports.map_err(|e| format!("{}, step {t}: {e}", case.name))?;
            headroom = reports.iter().map(|r| r.headroom).fold(headroom, f64::min);
        }
    }
    println!("{}: smallest headroom of single steps {headroom:.1}", subject.label);
    Ok(())
}

/// Scratch buffers start as NaN once and as a large finite number once; nothing of it reaches a result.
fn poison(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    for case in parity_cases().into_iter().chain(variant_cases()).step_by(3) {
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
        judge(&case, &lstm.run_blocking(&case.batch())?)?;
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
        prop::option::of(0..variant_layers().len()),
    );
    let cases = if is_full() { 400 } else { 24 };
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let outcome = runner.run(&strategy, |(model, batch, options, variant)| {
        let (input, hidden, layers, direction, bias) = model;
        let (projection, lengths, time_major, seed) = batch;
        let (initial, final_state, cells, sequence) = options;
        let spec = LstmSpec::stack(input, hidden, layers).direction(direction).bias(bias);
        let spec = match variant.map(|n| variant_layers().swap_remove(n).1[0]) {
            // Any cell, whatever it was written for; options of two directions or of a projection stay where they fit.
            Some(LayerSpec { cell, direction, merge, projection_size: None, .. }) => {
                spec.cell(cell).direction(direction).merge(merge)
            }
            _ => spec.projection(projection.filter(|&p| p < hidden)),
        };
        let spec = spec.build().expect("sizes are valid");
        let seq_len = lengths.iter().max().copied().unwrap_or(0) + seed as usize % 2;
        let mut case = Case::new("random", &spec, &lengths, seq_len, initial, seed);
        if time_major {
            case = case.time_major();
        }
        let sequence = [SequenceOutput::None, SequenceOutput::Last, SequenceOutput::All][sequence];
        case.outputs = Outputs { sequence, final_state, cells: cells && spec.last_layer().c_size() > 0 };
        let judged = engine
            .load_blocking(&case.weights)
            .and_then(|lstm| lstm.run_blocking(&case.batch()))
            .map_err(Failed::from)
            .and_then(|output| judge(&case, &output));
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
    // The test binary may run on another machine, from the root of a copy of the repository.
    let built_in = concat!(env!("CARGO_MANIFEST_DIR"), "/data/japanese_vowels");
    let folder = if std::path::Path::new(built_in).exists() { built_in } else { "data/japanese_vowels" };
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
    let (_, weight) = safetensors::read_tensor(&model, "linear.weight")?;
    let (_, bias) = safetensors::read_tensor(&model, "linear.bias")?;
    let (_, labels) = safetensors::read_tensor_i64(&data, "labels")?;
    let features = weights.spec().output_size();
    let correct = found.chunks_exact(features).zip(&labels).filter(|(h, label)| {
        let score = |class: usize| -> f32 {
            weight[class * features..][..features].iter().zip(*h).map(|(w, h)| w * h).sum::<f32>() + bias[class]
        };
        let best = (0..bias.len()).max_by(|&a, &b| score(a).total_cmp(&score(b)));
        best == usize::try_from(**label).ok()
    });
    let (correct, all) = (correct.count(), labels.len());
    if all != 370 || correct * 100 < all * 96 {
        return Err(format!("{correct} of {all} utterances are classified correctly, expected at least 96 %").into());
    }
    Ok(())
}
