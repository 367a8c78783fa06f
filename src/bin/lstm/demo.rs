//! `lstm demo`: a trained LSTM classifies real speech; accuracy, error and times on GPU and CPU.
//!
//! In:  the data in `data/japanese_vowels`, compiled in, so that an installed binary has it too.
//! Out: for each device the accuracy, the largest difference from the f64 reference, and the time of a run.
//! Fails below [`LEAST_ACCURACY`] or above [`MOST_DIFFERENCE`].

use std::time::Duration;

use wgpu_lstm::weights::safetensors;
use wgpu_lstm::{
    BackendKind, DeviceChoice, Engine, EngineOptions, Layout, LstmWeights, Outputs, SequenceBatch, SequenceOutput,
    reference,
};

use crate::args::DemoOptions;
use crate::common::failure::{Failure, Result, fail, say};
use crate::common::spec_text::describe;
use crate::common::timing::{Repeat, Times};
use crate::common::units::{grouped, milliseconds};

const MODEL: &[u8] = include_bytes!("../../../data/japanese_vowels/model.safetensors");
const TEST: &[u8] = include_bytes!("../../../data/japanese_vowels/test.safetensors");

/// In percent.
const LEAST_ACCURACY: f64 = 96.0;
/// Hidden states lie in −1..1; 29 steps in f32 stay far below this.
const MOST_DIFFERENCE: f64 = 1e-5;
/// Time for the runs of one device.
const BUDGET: Duration = Duration::from_millis(500);

/// The classifier and the utterances.
struct Demo {
    weights: LstmWeights,
    linear: Linear,
    x: Vec<f32>,
    shape: [usize; 3],
    lengths: Vec<usize>,
    labels: Vec<usize>,
}

/// The layer on top: scores = weight · h + bias.
struct Linear {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// What one device did.
struct Outcome {
    /// In percent.
    accuracy: f64,
    /// Of the hidden states from the f64 reference, the largest; NaN if one is.
    difference: f64,
    times: Times,
}

pub(crate) fn demo(options: &DemoOptions) -> Result<()> {
    let mut engine = Engine::open_blocking(EngineOptions::on(options.device.device.clone()))?;
    let device = engine.device().clone();
    let demo = Demo::read().map_err(|f| f.context("the data of the demo"))?;
    demo.introduce()?;
    let exact = reference::run::<f64>(&demo.weights, &demo.batch()?)?.last.unwrap_or_default();

    say!("")?;
    say!("{}: {}", device.name, device.reason)?;
    let choice = engine.load_blocking(&demo.weights)?.choice(&demo.batch()?);
    if let (Some(choice), Some(adapter)) = (choice, &device.adapter) {
        // Both are run, each by its name.
        say!("auto: {choice}")?;
        engine = Engine::open_blocking(EngineOptions::on(DeviceChoice::GpuIndex(adapter.index)))?;
    }
    let chosen = demo.run(&engine, &exact)?;
    let opponent = if device.kind == BackendKind::Gpu {
        let engine = Engine::open_blocking(EngineOptions::on(DeviceChoice::Cpu))?;
        say!("{}: for comparison", engine.device().name)?;
        Some(demo.run(&engine, &exact)?)
    } else {
        None
    };

    say!("")?;
    let time = milliseconds(chosen.times.median());
    let is_software = device.adapter.as_ref().is_some_and(|a| a.is_software);
    match (&opponent, device.kind) {
        (Some(cpu), _) => {
            let note = if is_software { " (a software adapter, which computes on the CPU)" } else { "" };
            say!("time: GPU {time} ms{note}, CPU {} ms", milliseconds(cpu.times.median()))?;
        }
        (None, BackendKind::Reference) => say!("time: reference {time} ms")?,
        (None, _) => say!("time: CPU {time} ms")?,
    }
    if cfg!(debug_assertions) {
        say!("this is a debug build; `cargo run --release -- demo` is faster")?;
    }
    if device.kind == BackendKind::Cpu && options.device.device == DeviceChoice::Auto {
        match pollster::block_on(Engine::adapters()).iter().find(|a| a.unusable.is_none()) {
            Some(adapter) => say!("`lstm demo --device gpu` takes the GPU path on {}", adapter.name)?,
            None => say!("no adapter for the GPU path was found; `lstm devices` says what is missing, if anything")?,
        }
    }
    for outcome in [Some(chosen), opponent].into_iter().flatten() {
        outcome.check()?;
    }
    Ok(())
}

impl Outcome {
    /// Comparisons are written so that NaN fails.
    fn check(&self) -> Result<()> {
        if !(self.accuracy >= LEAST_ACCURACY) {
            fail!("accuracy: expected at least {LEAST_ACCURACY} %, found {:.1} %", self.accuracy);
        }
        if !(self.difference <= MOST_DIFFERENCE) {
            fail!(
                "largest difference from the f64 reference: expected at most {MOST_DIFFERENCE:e}, found {:e}",
                self.difference
            );
        }
        Ok(())
    }
}

impl Demo {
    fn read() -> Result<Self> {
        let weights = safetensors::read(MODEL, Some("lstm"))?;
        let (weight_shape, weight) = safetensors::read_tensor(MODEL, "linear.weight")?;
        let (_, bias) = safetensors::read_tensor(MODEL, "linear.bias")?;
        let (x_shape, x) = safetensors::read_tensor(TEST, "x")?;
        let (_, lengths) = safetensors::read_tensor_i64(TEST, "lengths")?;
        let (_, labels) = safetensors::read_tensor_i64(TEST, "labels")?;
        let shape: [usize; 3] = x_shape.try_into().map_err(|s| Failure::Data(format!("x: shape {s:?}")))?;
        let width = weights.spec().output_size();
        if weight_shape != [bias.len(), width] || lengths.len() != shape[0] || labels.len() != shape[0] {
            fail!("linear.weight, linear.bias, x, lengths and labels do not fit together");
        }
        let whole = |values: Vec<i64>| values.into_iter().map(|n| usize::try_from(n).unwrap_or(usize::MAX)).collect();
        Ok(Self { weights, linear: Linear { weight, bias }, x, shape, lengths: whole(lengths), labels: whole(labels) })
    }

    fn introduce(&self) -> Result<()> {
        let [utterances, _, features] = self.shape;
        let shortest = self.lengths.iter().min().copied().unwrap_or(0);
        let longest = self.lengths.iter().max().copied().unwrap_or(0);
        let speakers = self.linear.bias.len();
        say!("data:  JapaneseVowels (Kudo, Toyama, Shimbo 1999; CC BY 4.0): speech of {speakers} speakers")?;
        say!("       {utterances} test utterances of {shortest} to {longest} frames, {features} features each")?;
        say!("model: {}, then a linear layer", describe(self.weights.spec()))?;
        say!("       {} parameters", grouped(self.num_parameters()))?;
        say!("run:   all utterances as one ragged batch; times are from host memory to host memory")
    }

    fn num_parameters(&self) -> usize {
        self.weights.spec().num_parameters() + self.linear.weight.len() + self.linear.bias.len()
    }

    fn batch(&self) -> Result<SequenceBatch<'_>> {
        let batch = SequenceBatch::new(&self.x, self.shape, Layout::BatchMajor)?.lengths(&self.lengths)?;
        Ok(batch.outputs(Outputs { sequence: SequenceOutput::Last, final_state: false, cells: false }))
    }

    /// Runs the batch on a device and prints what came out.
    fn run(&self, engine: &Engine, exact: &[f64]) -> Result<Outcome> {
        let lstm = engine.load_blocking(&self.weights)?;
        let batch = self.batch()?;
        let last = lstm.run_blocking(&batch)?.last.unwrap_or_default();
        if last.len() != exact.len() {
            fail!("expected {} hidden states, found {}", exact.len(), last.len());
        }
        let correct = self.labels.iter().zip(last.chunks_exact(last.len() / self.labels.len()));
        let correct = correct.filter(|(label, h)| self.linear.best(h) == **label).count();
        let accuracy = 100.0 * correct as f64 / self.labels.len() as f64;
        say!("  accuracy: {accuracy:.1} %  ({correct} of {})", self.labels.len())?;
        let error = |(&found, &exact): (&f32, &f64)| (f64::from(found) - exact).abs();
        // Once NaN, always NaN.
        let larger = |worst: f64, e: f64| if e <= worst { worst } else { e + 0.0 * worst };
        let difference = last.iter().zip(exact).map(error).fold(0.0, larger);
        say!("  largest difference from the f64 reference: {difference:.1e}")?;
        let times = Repeat { runs: None, budget: BUDGET }.measure(|| {
            lstm.run_blocking(&batch)?;
            Ok(())
        })?;
        let [median, min, max] = [times.median(), times.min(), times.max()].map(milliseconds);
        say!("  time: {median} ms  (median of {} runs, {min}–{max})", times.runs())?;
        Ok(Outcome { accuracy, difference, times })
    }
}

impl Linear {
    /// The class with the highest score.
    fn best(&self, h: &[f32]) -> usize {
        let score = |row: &[f32]| row.iter().zip(h).map(|(&w, &h)| f64::from(w) * f64::from(h)).sum::<f64>();
        let scores = self.weight.chunks_exact(h.len()).zip(&self.bias).map(|(row, &b)| score(row) + f64::from(b));
        scores.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(class, _)| class)
    }
}
