//! `lstm-bench`: the GPU path against the CPU backend over a table of shapes.
//!
//! In:  `benches/cases.toml`, compiled in, or another table of its form.
//! Out: for each case and device the phases of a run, verified before they are reported; as text, CSV or JSON.
//! With `--streams`: what streams cost instead (`streams.rs`).
//! What the phases mean and how records are kept: docs/benchmarking.md.
//!
//! Exit codes: 0 good, 1 a result was wrong or nothing could be measured, 2 usage.

mod args;
mod cases;
mod check;
#[path = "../common/mod.rs"]
mod common;
mod machine;
mod phases;
mod report;
mod streams;

use std::process::ExitCode;

use clap::Parser;

use cases::Case;
use common::failure::{Failure, Result, fail, say};
use phases::Outcome;
use report::{Format, Row};

fn main() -> ExitCode {
    let options = args::Arguments::parse();
    common::failure::run("lstm-bench", || if options.streams { streams::bench(&options) } else { bench(&options) })
}

fn bench(options: &args::Arguments) -> Result<()> {
    let cases = chosen_cases(options)?;
    let machine = machine::Machine::of_this_run();
    let quiet = options.format != Format::Text;
    if !quiet {
        say!("{}", machine.describe())?;
    }
    // Opened once to say what they are; a device that is not there is not asked again for each case.
    let mut devices = Vec::new();
    for choice in &options.device {
        let found = phases::open(choice, options).map(|engine| report::describe(engine.device()));
        if !quiet {
            match &found {
                Ok(text) => say!("{choice}: {text}")?,
                Err(failure) => say!("{choice}: unavailable: {failure}")?,
            }
        }
        devices.push((choice, found.err()));
    }
    if !quiet && devices.iter().any(|(_, failure)| failure.is_none()) {
        say!("{}", report::text_heading())?;
    }
    let mut rows = Vec::new();
    for case in &cases {
        let inputs = case.inputs()?.keeping(options.weights)?;
        // The first device's result is what the others' must agree with.
        let mut agreed = None;
        for (choice, failure) in &devices {
            let outcome = match failure {
                Some(failure) => Outcome::Unavailable(failure.clone()),
                None => inputs.measure(choice, options, &mut agreed),
            };
            let row = Row { case: case.clone(), device: (*choice).clone(), outcome };
            if !quiet && failure.is_none() {
                say!("{}", report::text_line(&row))?;
            }
            rows.push(row);
        }
    }
    match options.format {
        Format::Text => {}
        Format::Csv => say!("{}", report::csv(&machine, &rows).trim_end())?,
        Format::Json => say!("{:#}", report::json(&machine, &rows))?,
    }
    if let Some(path) = &options.record {
        report::record(path, &machine, &rows)?;
        if !quiet {
            say!("recorded in {}", path.display())?;
        }
    }
    verdict(&rows)
}

fn chosen_cases(options: &args::Arguments) -> Result<Vec<Case>> {
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
