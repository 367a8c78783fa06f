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

use clap::Parser;

fn main() -> ExitCode {
    // clap ends the program itself for --help and for a mistyped option (2).
    let arguments = args::Arguments::parse();
    common::failure::run("lstm", || match arguments.command {
        args::Command::Demo(options) => demo::demo(&options),
        args::Command::Devices(options) => devices::devices(&options),
        args::Command::Info(options) => info::info(&options),
        args::Command::Run(options) => run::run(&options),
        args::Command::Bench(options) => bench::bench(&options),
    })
}
