//! The phases of a case on a device, each timed on its own.

use std::time::{Duration, Instant};

use wgpu_lstm::internals::time_submits;
use wgpu_lstm::{
    AdapterLimits, BackendKind, BatchOutput, Counters, DeviceChoice, DeviceReport, Engine, EngineOptions, Lstm,
    Outputs, SequenceOutput,
};

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
    /// What a GPU was given to do.
    pub(crate) work: Option<Work>,
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

/// What one steady run is on a GPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) submits: u64,
    pub(crate) dispatches: u64,
    pub(crate) flops: u64,
    /// That the dispatches move at least.
    pub(crate) moved_bytes: u64,
    pub(crate) uploaded_bytes: u64,
    pub(crate) read_back_bytes: u64,
    /// By the device's own clock, if it has one; the shortest of the timed runs.
    pub(crate) gpu_time: Option<f64>,
}

impl Work {
    fn between(before: &Counters, after: &Counters) -> Self {
        Self {
            submits: after.submits - before.submits,
            dispatches: after.dispatches - before.dispatches,
            flops: after.flops - before.flops,
            moved_bytes: after.moved_bytes - before.moved_bytes,
            uploaded_bytes: after.uploaded_bytes - before.uploaded_bytes,
            read_back_bytes: after.read_back_bytes - before.read_back_bytes,
            gpu_time: Some((after.gpu_time - before.gpu_time).as_secs_f64()),
        }
    }

    /// The shortest time in which an adapter with these limits could do it, in seconds.
    pub(crate) fn least(&self, limits: &AdapterLimits) -> f64 {
        let arithmetic = self.flops as f64 / limits.flops;
        let moving = self.moved_bytes as f64 / limits.copy_bytes_per_second;
        arithmetic.max(moving) + self.dispatches as f64 * limits.dispatch_gap
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

/// How the command line asks to open a device.
pub(crate) fn engine_options(device: &DeviceChoice, options: &Arguments) -> EngineOptions {
    let engine_options = EngineOptions::on(device.clone()).precision(options.weights.precision()).timestamps(true);
    match options.memory_budget {
        Some(bytes) => engine_options.memory_budget_bytes(bytes),
        None => engine_options,
    }
}

/// Opens a device as the command line asks.
pub(crate) fn open(device: &DeviceChoice, options: &Arguments) -> Result<Engine> {
    let engine = Engine::open_blocking(engine_options(device, options))?;
    // Runs are timed by the wall; a few more by the device's clock, which costs something.
    time_submits(&engine, false);
    Ok(engine)
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
        let work = self.work(&lstm, &mut state)?;
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
            work,
            steps: self.lengths().iter().copied().max().unwrap_or(0),
            valid_rows: self.valid_rows(),
            weights: options.weights,
            rounding: self.rounding(&result, options)?,
        })
    }

    /// What a run is on a GPU, and how long by its clock.
    fn work(&self, lstm: &Lstm, state: &mut Option<[Vec<f32>; 2]>) -> Result<Option<Work>> {
        /// Runs that are timed by the device.
        const TIMED: usize = 3;
        let engine = lstm.engine();
        if engine.device().kind != BackendKind::Gpu {
            return Ok(None);
        }
        let has_clock = time_submits(engine, true);
        let mut works = Vec::new();
        for _ in 0..TIMED {
            let before = engine.counters();
            self.run_once(lstm, Outputs::default(), state)?;
            works.push(Work::between(&before, &engine.counters()));
        }
        time_submits(engine, false);
        let shortest = works.iter().filter_map(|work| work.gpu_time).fold(f64::INFINITY, f64::min);
        Ok(works.pop().map(|work| Work { gpu_time: has_clock.then_some(shortest), ..work }))
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
