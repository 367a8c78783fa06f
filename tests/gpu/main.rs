//! Every case on every adapter: Mesa lavapipe, SwiftShader and whatever hardware there is, and on the best adapter
//! once more with WebGPU's default limits and the kernels that it would not choose by itself.
//!
//! `LSTM_REQUIRE_ADAPTER=1` turns "no adapter" into a failure; `LSTM_EXPECT_ADAPTERS=llvmpipe,SwiftShader` asks for
//! adapters by parts of their names; `LSTM_FULL=1` adds the long cases.

mod any_size;
mod auto;
mod bits;
mod conformance;
mod device_rows;
mod fixture;
mod indices;
mod kept;
mod many;
mod onnx;
mod parity;
mod robustness;
mod stacks;
mod stream;
#[path = "../support/mod.rs"]
mod support;
mod trouble;

use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Failed, Trial};
use wgpu_lstm::{AdapterReport, DeviceChoice, Engine, EngineOptions, LimitsProfile, Tuning, wgpu};

/// An adapter under test; its engine is opened by the first test that needs it.
struct Subject {
    label: String,
    options: EngineOptions,
    engine: OnceLock<Result<Engine, String>>,
    /// Whether plans are for many lanes.
    many_lanes: bool,
    /// Whether engines count indices past the ends of arrays.
    watch: Option<indices::Watch>,
}

impl Subject {
    fn new(report: &AdapterReport, limits: LimitsProfile) -> Arc<Self> {
        // What an adapter does not choose by itself is tested beside the other limits.
        let (suffix, tuning) = match (limits, report.is_software) {
            (LimitsProfile::Adapter, _) => ("", Tuning::Adapter),
            (LimitsProfile::WebGpuDefaults, true) => ("+webgpu_defaults+many_lanes", Tuning::ManyLanes),
            (LimitsProfile::WebGpuDefaults, false) => ("+webgpu_defaults+few_lanes", Tuning::FewLanes),
        };
        let name: String =
            report.name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
        let name = name.trim_matches('_').to_owned();
        Arc::new(Self {
            label: format!("gpu{}_{name}{suffix}", report.index),
            options: EngineOptions::on(DeviceChoice::GpuIndex(report.index)).limits(limits).tuning(tuning),
            engine: OnceLock::new(),
            many_lanes: tuning == Tuning::ManyLanes || (tuning == Tuning::Adapter && !report.is_software),
            watch: None,
        })
    }

    /// The same adapter with engines that count indices.
    fn watched(&self) -> Self {
        let (label, options) = (format!("{}, watched", self.label), self.options.clone());
        let (many_lanes, watch) = (self.many_lanes, Some(indices::Watch::default()));
        Self { label, options, engine: OnceLock::new(), many_lanes, watch }
    }

    fn engine(&self) -> Result<Engine, Failed> {
        let open = || self.open(|options| options).map_err(|e| e.message().unwrap_or("failed").to_owned());
        let opened = self.engine.get_or_init(open);
        opened.clone().map_err(Failed::from)
    }

    /// The adapter as an application finds it.
    fn adapter(&self) -> Result<wgpu::Adapter, Failed> {
        let DeviceChoice::GpuIndex(index) = self.options.device else { return Err("expected a number".into()) };
        Ok(pollster::block_on(wgpu_lstm::internals::adapter(index)).ok_or("the adapter went away")?)
    }

    /// A new engine on the same adapter with other options.
    fn open(&self, change: impl FnOnce(EngineOptions) -> EngineOptions) -> Result<Engine, Failed> {
        let options = change(self.options.clone());
        match &self.watch {
            Some(watch) => watch.open(&self.adapter()?, options),
            None => Ok(Engine::open_blocking(options)?),
        }
    }
}

/// Whether the long cases run.
fn is_full() -> bool {
    std::env::var("LSTM_FULL").is_ok_and(|v| v == "1")
}

type Test = fn(&Subject) -> Result<(), Failed>;

fn main() {
    let mut arguments = Arguments::from_args();
    // Software adapters use all cores by themselves.
    arguments.test_threads.get_or_insert(2);
    let adapters = pollster::block_on(Engine::adapters());
    let mut trials = vec![presence(&adapters)];
    let mut subjects: Vec<_> = adapters.iter().map(|a| Subject::new(a, LimitsProfile::Adapter)).collect();
    subjects.extend(adapters.first().map(|a| Subject::new(a, LimitsProfile::WebGpuDefaults)));
    let tests = [
        auto::TESTS,
        bits::TESTS,
        device_rows::TESTS,
        stream::TESTS,
        any_size::TESTS,
        indices::TESTS,
        kept::TESTS,
        many::TESTS,
        trouble::TESTS,
        robustness::TESTS,
        stacks::TESTS,
        parity::TESTS,
        conformance::TESTS,
        onnx::TESTS,
    ]
    .concat();
    for subject in &subjects {
        let own = if subject.many_lanes { indices::MANY_LANES_TESTS } else { &[] };
        for (name, test) in tests.iter().chain(own) {
            let (subject, test) = (subject.clone(), *test);
            trials.push(Trial::test(format!("{}::{name}", subject.label), move || test(&subject)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// Whether the adapters that were asked for are there.
fn presence(adapters: &[AdapterReport]) -> Trial {
    let required = std::env::var("LSTM_REQUIRE_ADAPTER").is_ok_and(|v| v == "1");
    let expected = std::env::var("LSTM_EXPECT_ADAPTERS").unwrap_or_default();
    let names: Vec<String> = adapters.iter().map(|a| a.name.clone()).collect();
    let missing: Vec<String> = expected
        .split(',')
        .map(str::trim)
        .filter(|e| !e.is_empty() && !names.iter().any(|n| n.contains(e)))
        .map(str::to_owned)
        .collect();
    let nothing_to_test = names.is_empty() && !required && expected.is_empty();
    let name = if nothing_to_test { "adapters (no adapter found; nothing was tested on a GPU)" } else { "adapters" };
    Trial::test(name, move || {
        if required && names.is_empty() {
            return Err("LSTM_REQUIRE_ADAPTER=1, but there is no adapter".into());
        }
        if !missing.is_empty() {
            return Err(format!("expected adapters {missing:?}, found {names:?}").into());
        }
        Ok(())
    })
    .with_ignored_flag(nothing_to_test)
}
