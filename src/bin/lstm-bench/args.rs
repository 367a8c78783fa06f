//! What the command line accepts.

use std::path::PathBuf;

use clap::Parser;
use wgpu_lstm::DeviceChoice;

use crate::cases::Sweep;
use crate::common::precision::WeightsName;
use crate::common::units::parse_bytes;
use crate::report::Format;

#[derive(Debug, Parser)]
#[command(
    name = "lstm-bench",
    version,
    about = "Times LSTM shapes on the GPU path and on the CPU backend, each result verified first",
    after_help = "What the columns mean: docs/benchmarking.md. Build with --release."
)]
pub(crate) struct Arguments {
    /// Devices, as `lstm run --device` takes them
    #[arg(long, value_name = "DEVICE,…", value_delimiter = ',', default_value = "cpu,gpu")]
    pub(crate) device: Vec<DeviceChoice>,
    /// Time streams instead: one frame to all slots in a push, and how many live streams each device serves
    #[arg(long, conflicts_with_all = ["group", "filter", "cases"])]
    pub(crate) streams: bool,
    /// With --streams: hidden sizes of the model, whose input is as wide
    #[arg(long, value_name = "H,…", value_delimiter = ',', default_value = "128,512", value_parser = size)]
    pub(crate) stream_hidden: Vec<usize>,
    /// With --streams: numbers of slots
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,64,1000", value_parser = size)]
    pub(crate) stream_slots: Vec<usize>,
    /// With --streams: times from one frame to the next for which the largest number of live streams is searched
    #[arg(long, value_name = "MS,…", value_delimiter = ',', default_value = "10,32", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) stream_frame_ms: Vec<u64>,
    /// Groups of cases [default: all but `tiny`, `anchors` and `padded`]
    #[arg(long, value_name = "GROUP,…", value_delimiter = ',')]
    pub(crate) group: Vec<String>,
    /// Only cases whose id or name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) filter: Option<String>,
    /// Instead of the table, change one size at a time around batch 16, length 64, hidden size 256
    #[arg(long, value_enum, value_name = "SIZE,…", value_delimiter = ',', conflicts_with_all = ["group", "cases", "streams"])]
    pub(crate) sweep: Vec<Sweep>,
    /// Timed runs of each case and phase
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: Option<u32>,
    /// Without --runs: time for each case and phase, at least three runs
    #[arg(long, value_name = "S", default_value_t = 2.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// How to keep the weights
    #[arg(long, value_enum, default_value_t = WeightsName::F32)]
    pub(crate) weights: WeightsName,
    /// Leave out what `auto` would choose for each case
    #[arg(long)]
    pub(crate) no_auto: bool,
    /// Working memory of one run on a GPU, for example 512MiB [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) memory_budget: Option<u64>,
    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    /// Write the results to this file as well: a new JSON document with the machine, the devices and what they reach, or
    /// rows added to a CSV file
    #[arg(long, value_name = "FILE.json|FILE.csv")]
    pub(crate) record: Option<PathBuf>,
    /// Draw charts of the results into this file: growth with each swept size, and the roofline
    #[arg(long, value_name = "FILE.svg", conflicts_with = "streams")]
    pub(crate) plot: Option<PathBuf>,
    /// Another table of cases, in the form of benches/cases.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) cases: Option<PathBuf>,
}

fn size(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(n) if (1..=65_536).contains(&n) => Ok(n),
        _ => Err(format!("expected a whole number from 1 to 65536, found {text:?}")),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(value) if (0.0..=3600.0).contains(&value) => Ok(value),
        _ => Err(format!("expected seconds from 0 to 3600, found {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_hold_together() {
        Arguments::command().debug_assert();
        assert!(Arguments::try_parse_from(["lstm-bench", "--runs", "0"]).is_err());
        assert!(Arguments::try_parse_from(["lstm-bench", "--seconds", "NaN"]).is_err());
        let options = Arguments::try_parse_from(["lstm-bench", "--device", "cpu,gpu:1", "--group", "tiny"]).unwrap();
        assert_eq!(options.device, [DeviceChoice::Cpu, DeviceChoice::GpuIndex(1)]);
    }
}
