//! The devices of a run: what they are, what they reach at best, and what `auto` would do with them.

use serde_json::{Value, json};
use wgpu_lstm::internals::open_auto;
use wgpu_lstm::{AdapterLimits, BackendKind, Choice, Costs, DeviceChoice, DeviceReport, Engine};

use crate::args::Arguments;
use crate::cases::{Case, Inputs};
use crate::common::failure::{Failure, Result, say};
use crate::common::units::{milliseconds, significant};
use crate::phases::{self, Outcome};
use crate::report::{self, Row};

/// A device of the command line.
pub(crate) struct Device {
    pub(crate) choice: DeviceChoice,
    /// Why it is not there.
    pub(crate) failure: Option<Failure>,
    pub(crate) report: Option<DeviceReport>,
    /// Of a GPU.
    pub(crate) limits: Option<AdapterLimits>,
    /// The GPU with the CPU backend beside it, as `auto` opens it.
    auto: Option<Engine>,
}

impl Device {
    /// Opens it once to say what it is, and measures what it reaches.
    pub(crate) fn new(choice: &DeviceChoice, options: &Arguments) -> Self {
        let unavailable =
            |failure| Self { choice: choice.clone(), failure: Some(failure), report: None, limits: None, auto: None };
        let engine = match phases::open(choice, options) {
            Ok(engine) => engine,
            Err(failure) => return unavailable(failure),
        };
        let report = engine.device().clone();
        let mut device = Self { choice: choice.clone(), failure: None, report: Some(report), limits: None, auto: None };
        if engine.device().kind == BackendKind::Gpu {
            match engine.measure_limits_blocking() {
                Ok(limits) => device.limits = Some(limits),
                Err(e) => return unavailable(e.into()),
            }
            if !options.no_auto {
                match open_auto(&phases::engine_options(choice, options).timestamps(false), None) {
                    Ok(engine) => device.auto = Some(engine),
                    Err(e) => return unavailable(e.into()),
                }
            }
        }
        device
    }

    /// Lines for people.
    pub(crate) fn describe(&self) -> Result<()> {
        let choice = &self.choice;
        let Some(report) = &self.report else {
            return match &self.failure {
                Some(failure) => say!("{choice}: unavailable: {failure}"),
                None => Ok(()),
            };
        };
        say!("{choice}: {}", report::describe(report))?;
        if let Some(limits) = self.limits {
            say!(
                "{choice}: reaches {} GFLOP/s of fused multiply-adds, {} GB/s in copies; {} µs between dependent dispatches, {} \
                 µs for a submit",
                significant(limits.flops / 1e9),
                significant(limits.copy_bytes_per_second / 1e9),
                significant(limits.dispatch_gap * 1e6),
                significant(limits.submit * 1e6)
            )?;
        }
        Ok(())
    }

    /// What a record keeps of it.
    pub(crate) fn json(&self) -> Value {
        let adapter = self.report.as_ref().and_then(|report| report.adapter.as_ref());
        json!({
            "device": self.choice.to_string(),
            "name": self.report.as_ref().map(|report| &report.name),
            "unavailable": self.failure.as_ref().map(Failure::to_string),
            "backend": adapter.map(|a| &a.backend),
            "type": adapter.map(|a| &a.device_type),
            "driver": adapter.map(report::driver),
            "vendor": adapter.map(|a| a.vendor),
            "pci_device": adapter.map(|a| a.device),
            "software": adapter.map(|a| a.is_software),
            "webgpu_limits": adapter.map(|a| a.limits.iter().map(|(name, value)| json!([name, value])).collect::<Vec<_>>()),
            "measured": self.limits.map(|l| json!({
                "flops": l.flops,
                "copy_bytes_per_second": l.copy_bytes_per_second,
                "dispatch_gap_s": l.dispatch_gap,
                "submit_s": l.submit,
            })),
            "auto_costs": self.auto.as_ref().and_then(Engine::costs).map(|costs| costs_json(&costs)),
        })
    }

    /// What `auto` would choose for a case.
    pub(crate) fn choose(&self, inputs: &Inputs) -> Result<Option<Choice>> {
        let Some(engine) = &self.auto else { return Ok(None) };
        let lstm = engine.load_blocking(&inputs.weights)?;
        Ok(lstm.choice(&inputs.batch(inputs.state.as_ref())?))
    }
}

fn costs_json(Costs { gpu, cpu }: &Costs) -> Value {
    json!({
        "gpu": {
            "run_s": gpu.run,
            "dispatch_s": gpu.dispatch,
            "bytes_per_second": gpu.bytes_per_second,
            "step_flops": gpu.step_flops,
            "input_flops": gpu.input_flops,
            "sequence_step_s": gpu.sequence_step,
            "upload": gpu.upload,
            "download": gpu.download,
        },
        "cpu": {
            "run_s": cpu.run,
            "step_s": cpu.step,
            "bytes_per_second": cpu.bytes_per_second,
            "flops": cpu.flops,
        },
    })
}

/// What `auto` chose for a case, beside what both devices took.
pub(crate) struct Verdict {
    pub(crate) case: Case,
    pub(crate) device: DeviceChoice,
    pub(crate) choice: Choice,
    /// Measured medians in seconds.
    pub(crate) gpu: f64,
    pub(crate) cpu: f64,
}

impl Verdict {
    /// Of a GPU's choice, if both it and the CPU backend were measured.
    pub(crate) fn new(case: &Case, device: &Device, choice: Option<Choice>, rows: &[Row]) -> Option<Self> {
        let median = |wanted: &dyn Fn(&Row) -> bool| {
            rows.iter().find(|row| row.case == *case && wanted(row)).and_then(|row| match &row.outcome {
                Outcome::Measured(phases) => Some(phases.steady.median()),
                _ => None,
            })
        };
        Some(Self {
            case: case.clone(),
            device: device.choice.clone(),
            choice: choice?,
            gpu: median(&|row| row.device == device.choice)?,
            cpu: median(&|row| row.device == DeviceChoice::Cpu)?,
        })
    }

    /// The time of the device that was chosen, in times of the better one.
    pub(crate) fn regret(&self) -> f64 {
        let chosen = if self.choice.kind == BackendKind::Gpu { self.gpu } else { self.cpu };
        chosen / self.gpu.min(self.cpu)
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "case": self.case.id(),
            "name": self.case.name,
            "device": self.device.to_string(),
            "chosen": format!("{:?}", self.choice.kind).to_lowercase(),
            "estimated_gpu_ms": self.choice.gpu.as_secs_f64() * 1e3,
            "estimated_cpu_ms": self.choice.cpu.as_secs_f64() * 1e3,
            "gpu_ms": self.gpu * 1e3,
            "cpu_ms": self.cpu * 1e3,
            "regret": self.regret(),
        })
    }
}

/// Says how good the choices were.
pub(crate) fn describe_choices(verdicts: &[Verdict]) -> Result<()> {
    let Some(worst) = verdicts.iter().max_by(|a, b| a.regret().total_cmp(&b.regret())) else { return Ok(()) };
    let good = verdicts.iter().filter(|v| v.regret() <= 1.0).count();
    say!(
        "auto: takes the faster device in {good} of {} cases; its worst choice is {} × the better one ({})",
        verdicts.len(),
        significant(worst.regret()),
        worst.case.id()
    )?;
    for v in verdicts {
        say!(
            "auto: {}: {}; measured {} ms on {}, {} ms on cpu",
            v.case.id(),
            v.choice,
            milliseconds(v.gpu),
            v.device,
            milliseconds(v.cpu)
        )?;
    }
    Ok(())
}
