//! `lstm-bench`: the GPU path against the CPU backend over a table of shapes.
//!
//! In:  `benches/cases.toml`, compiled in, or another table of its form.
//! Out: for each case and device the phases of a run, verified before they are reported, beside what the device was given to
//!      do and what it reaches at best; what `auto` would choose; as text, CSV, JSON or charts.
//! With `--streams`: what streams cost instead (`streams.rs`).
//! What the phases mean and how records are kept: docs/benchmarking.md.
//!
//! Exit codes: 0 good, 1 a result was wrong or nothing could be measured, 2 usage.

mod args;
mod cases;
mod check;
#[path = "../common/mod.rs"]
mod common;
mod devices;
mod machine;
mod phases;
mod plot;
mod report;
mod streams;

use std::process::ExitCode;

use clap::Parser;

use cases::Case;
use common::failure::{Failure, Result, fail, say};
use devices::{Device, Verdict};
use phases::Outcome;
use report::{Format, Row};

fn main() -> ExitCode {
    let options = args::Arguments::parse();
    common::failure::run("lstm-bench", || if options.streams { streams::bench(&options) } else { bench(&options) })
}

fn bench(options: &args::Arguments) -> Result<()> {
    let cases = chosen_cases(options)?;
    report::check_path(options.record.as_deref())?;
    report::check_chart(options.plot.as_deref())?;
    let machine = machine::Machine::of_this_run();
    let quiet = options.format != Format::Text;
    if !quiet {
        say!("{}", machine.describe())?;
    }
    let devices: Vec<Device> = options.device.iter().map(|choice| Device::new(choice, options)).collect();
    if !quiet {
        devices.iter().try_for_each(Device::describe)?;
        if devices.iter().any(|device| device.failure.is_none()) {
            say!("{}", report::text_heading())?;
        }
    }
    let mut rows = Vec::new();
    let mut choices = Vec::new();
    for case in &cases {
        let inputs = case.inputs()?.keeping(options.weights)?;
        // The first device's result is what the others' must agree with.
        let mut agreed = None;
        for device in &devices {
            let outcome = match &device.failure {
                Some(failure) => Outcome::Unavailable(failure.clone()),
                None => inputs.measure(&device.choice, options, &mut agreed),
            };
            let row = Row { case: case.clone(), device: device.choice.clone(), limits: device.limits, outcome };
            if !quiet && device.failure.is_none() {
                say!("{}", report::text_line(&row))?;
            }
            rows.push(row);
        }
        for device in &devices {
            choices.extend(Verdict::new(case, device, device.choose(&inputs)?, &rows));
        }
    }
    let document = || report::document(&machine, &devices, &rows, &choices);
    match options.format {
        Format::Text => devices::describe_choices(&choices)?,
        Format::Csv => say!("{}", report::csv(&machine, &rows).trim_end())?,
        Format::Json => say!("{:#}", document())?,
    }
    if let Some(path) = &options.record {
        report::record(path, &machine, &rows, document)?;
        if !quiet {
            say!("recorded in {}", path.display())?;
        }
    }
    if let Some(path) = &options.plot {
        plot::draw(path, &machine, &devices, &rows)?;
        if !quiet {
            say!("drawn in {}", path.display())?;
        }
    }
    verdict(&rows)
}

fn chosen_cases(options: &args::Arguments) -> Result<Vec<Case>> {
    if !options.sweep.is_empty() {
        let mut cases: Vec<Case> = options.sweep.iter().flat_map(|sweep| sweep.cases()).collect();
        cases.retain(|case| options.filter.as_deref().is_none_or(|text| case.id().contains(text)));
        return if cases.is_empty() { Err(Failure::Usage("no case of the sweep matches".into())) } else { Ok(cases) };
    }
    let mut cases = match &options.cases {
        Some(path) => {
            let named = |failure: Failure| failure.context(path.display());
            let text =
                std::fs::read_to_string(path).map_err(|e| named(Failure::Data(format!("cannot be read: {e}"))))?;
            cases::parse(&text).map_err(named)?
        }
        None => cases::parse(cases::TABLE)?,
    };
    let groups: Vec<String> = cases.iter().map(|case| case.group.clone()).collect();
    cases.retain(|case| case.matches(&options.group, options.filter.as_deref()));
    if cases.is_empty() {
        let mut groups = groups;
        groups.sort_unstable();
        groups.dedup();
        return Err(Failure::Usage(format!("no case matches; the groups are {}", groups.join(", "))));
    }
    Ok(cases)
}

/// Fails if a result was wrong, or if nothing was measured.
fn verdict(rows: &[Row]) -> Result<()> {
    let mut unavailable = None;
    for row in rows {
        match &row.outcome {
            Outcome::Wrong(why) => fail!("{} on {}: {why}", row.case.id(), row.device),
            Outcome::Unavailable(failure) => unavailable = unavailable.or(Some((row, failure))),
            Outcome::Measured(_) => {}
        }
    }
    match unavailable {
        Some((row, failure)) if rows.iter().all(|row| !matches!(row.outcome, Outcome::Measured(_))) => {
            Err(failure.clone().context(&row.device))
        }
        _ => Ok(()),
    }
}
