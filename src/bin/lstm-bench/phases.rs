//! The phases of a case on a device, each timed on its own.

use std::time::{Duration, Instant};

use wgpu_lstm::{BatchOutput, DeviceChoice, DeviceReport, Engine, EngineOptions, Lstm, Outputs, SequenceOutput};

use crate::args::Arguments;
use crate::cases::Inputs;
use crate::check;
use crate::common::failure::{Failure, Result, fail};
use crate::common::precision::WeightsName;
use crate::common::spec_text::flops;
use crate::common::timing::{Repeat, Times};

/// Times in seconds.
pub(crate) struct Phases {
    pub(crate) device: DeviceReport,
    /// Opening the device, self-test included.
    pub(crate) open: f64,
    /// Packing the weights and bringing them to the device.
    pub(crate) load: f64,
    /// The first run.
    pub(crate) first: f64,
    /// Runs after it that return all hidden states and the final states.
    pub(crate) steady: Times,
    /// Runs that return the final states only.
    pub(crate) states_only: Times,
    pub(crate) flops: f64,
    /// T
    pub(crate) steps: usize,
    pub(crate) valid_rows: usize,
    pub(crate) weights: WeightsName,
    /// The largest change of a hidden state by rounding the weights, if they were.
    pub(crate) rounding: Option<f64>,
}

impl Phases {
    /// What only the first run had to do: above all compile.
    pub(crate) fn compile(&self) -> f64 {
        (self.first - self.steady.median()).max(0.0)
    }

    /// The share of the hidden states in a run, by difference.
    pub(crate) fn read_back(&self) -> f64 {
        (self.steady.median() - self.states_only.median()).max(0.0)
    }

    pub(crate) fn us_per_step(&self) -> f64 {
        self.steady.median() * 1e6 / self.steps as f64
    }

    pub(crate) fn gflops(&self) -> f64 {
        self.flops / self.steady.median() / 1e9
    }
}

/// What came of a case on a device.
pub(crate) enum Outcome {
    Measured(Box<Phases>),
    /// The device could not be opened, or the case does not fit it.
    Unavailable(Failure),
    /// The result did not pass.
    Wrong(String),
}

/// Opens a device as the command line asks.
pub(crate) fn open(device: &DeviceChoice, options: &Arguments) -> Result<Engine> {
    let engine_options = EngineOptions::on(device.clone()).precision(options.weights.precision());
    Ok(Engine::open_blocking(match options.memory_budget {
        Some(bytes) => engine_options.memory_budget_bytes(bytes),
        None => engine_options,
    })?)
}

impl Inputs {
    /// Opens the device anew, so that each case pays for its own pipelines; runs, checks, then times. `agreed` is
    /// the result of the first device that got here.
    pub(crate) fn measure(
        &self,
        device: &DeviceChoice,
        options: &Arguments,
        agreed: &mut Option<BatchOutput>,
    ) -> Outcome {
        let started = match self.start(device, options) {
            Ok(started) => started,
            Err(failure) => return Outcome::Unavailable(failure),
        };
        if let Err(failure) = check::check(&started.lstm, self, &started.result) {
            return Outcome::Wrong(failure.to_string());
        }
        match agreed {
            Some(before) => {
                if let Err(failure) = check::agree(before, &started.result) {
                    return Outcome::Wrong(failure.to_string());
                }
            }
            None => *agreed = Some(started.result.clone()),
        }
        match self.steady(started, options) {
            Ok(phases) => Outcome::Measured(Box::new(phases)),
            Err(failure) => Outcome::Wrong(failure.to_string()),
        }
    }

    fn start(&self, device: &DeviceChoice, options: &Arguments) -> Result<Started> {
        let start = Instant::now();
        let engine = open(device, options)?;
        let open = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let lstm = engine.load_blocking(&self.weights)?;
        let load = start.elapsed().as_secs_f64();
        let batch = self.batch(self.state.as_ref())?;
        let start = Instant::now();
        let result = lstm.run_blocking(&batch)?;
        let first = start.elapsed().as_secs_f64();
        Ok(Started { lstm, result, open, load, first })
    }

    fn steady(&self, started: Started, options: &Arguments) -> Result<Phases> {
        let Started { lstm, result, open, load, first } = started;
        let repeat =
            Repeat { runs: options.runs.map(|n| n as usize), budget: Duration::from_secs_f64(options.seconds) };
        // Caches and clocks have warmed up within a first run of a second.
        let warm_up = first < 1.0;
        let mut state = self.state.clone();
        if warm_up {
            self.run_once(&lstm, Outputs::default(), &mut state)?;
        }
        let mut last = BatchOutput::default();
        let steady = repeat.measure(|| {
            last = self.run_once(&lstm, Outputs::default(), &mut state)?;
            Ok(())
        })?;
        if self.state.is_none() && last != result {
            fail!("two runs on equal input gave different results");
        }
        let states_only = Outputs { sequence: SequenceOutput::None, final_state: true, cells: false };
        if warm_up {
            self.run_once(&lstm, states_only, &mut state)?;
        }
        let states_only = repeat.measure(|| self.run_once(&lstm, states_only, &mut state).map(|_| ()))?;
        Ok(Phases {
            device: lstm.engine().device().clone(),
            open,
            load,
            first,
            steady,
            states_only,
            flops: flops(lstm.spec(), self.valid_rows()),
            steps: self.lengths().iter().copied().max().unwrap_or(0),
            valid_rows: self.valid_rows(),
            weights: options.weights,
            rounding: self.rounding(&result, options)?,
        })
    }

    /// What rounding the weights changed: the CPU backend has them as they were.
    fn rounding(&self, result: &BatchOutput, options: &Arguments) -> Result<Option<f64>> {
        if options.weights == WeightsName::F32 {
            return Ok(None);
        }
        let exact =
            Engine::open_blocking(EngineOptions::on(DeviceChoice::Cpu))?.load_blocking(&self.weights_as_drawn)?;
        let exact = exact.run_blocking(&self.batch(self.state.as_ref())?)?;
        let pairs = result.output.iter().flatten().zip(exact.output.iter().flatten());
        Ok(Some(pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)))
    }

    /// One run; where states are carried, its final state becomes the next initial one.
    fn run_once(&self, lstm: &Lstm, outputs: Outputs, state: &mut Option<[Vec<f32>; 2]>) -> Result<BatchOutput> {
        let result = lstm.run_blocking(&self.batch(state.as_ref())?.outputs(outputs))?;
        if let (Some(state), Some(h_n), Some(c_n)) = (state, &result.h_n, &result.c_n) {
            *state = [h_n.clone(), c_n.clone()];
        }
        Ok(result)
    }
}

/// A case after its first run.
struct Started {
    lstm: Lstm,
    result: BatchOutput,
    open: f64,
    load: f64,
    first: f64,
}
