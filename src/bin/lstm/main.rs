//! The command `lstm`: demo, devices, info, run, bench.
//!
//! Exit codes: 0 good, 1 failed check or bad data, 2 usage, which includes a device that is not there.

mod args;
mod bench;
#[path = "../common/mod.rs"]
mod common;
mod compare;
mod demo;
mod devices;
mod info;
mod input;
mod model;
mod npz;
mod onnx;
mod progress;
mod run;
mod system;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

fn main() -> ExitCode {
    // clap ends the program itself for --help and for a mistyped option (2).
    let arguments = args::Arguments::try_parse().unwrap_or_else(|error| with_suggestion(error).exit());
    common::failure::run("lstm", || match arguments.command {
        args::Command::Demo(options) => demo::demo(&options),
        args::Command::Devices(options) => devices::devices(&options),
        args::Command::Info(options) => info::info(&options),
        args::Command::Run(options) => run::run(&options),
        args::Command::Bench(options) => bench::bench(&options),
    })
}

/// A mistyped command with the one that was meant: clap sees no likeness in two letters that changed places.
fn with_suggestion(mut error: clap::Error) -> clap::Error {
    const MOST_EDITS: usize = 2;
    let typed = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(typed)) if error.kind() == ErrorKind::InvalidSubcommand => typed.clone(),
        _ => return error,
    };
    let command = args::Arguments::command();
    let near = command.get_subcommands().map(|c| (strsim::osa_distance(&typed, c.get_name()), c.get_name()));
    if error.get(ContextKind::SuggestedSubcommand).is_none()
        && let Some((edits, name)) = near.min()
        && edits <= MOST_EDITS.min(typed.len().saturating_sub(1))
    {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(vec![name.to_owned()]));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_command_is_suggested() {
        let told = |typed: &str| {
            let error = args::Arguments::try_parse_from(["lstm", typed]).unwrap_err();
            with_suggestion(error).to_string()
        };
        for (typed, meant) in [("rnu", "run"), ("rum", "run"), ("ifno", "info"), ("bnech", "bench"), ("dmeo", "demo")] {
            let text = told(typed);
            assert!(text.contains("similar subcommand") && text.contains(&format!("'{meant}'")), "{typed}: {text}");
        }
        assert!(!told("x").contains("similar") && !told("serve").contains("similar"), "{}", told("x"));
    }
}
