//! What the command line accepts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use wgpu_lstm::{Activation, DeviceChoice, Layout};

use crate::common::precision::WeightsName;
use crate::common::units::parse_bytes;

#[derive(Debug, Parser)]
#[command(
    name = "lstm",
    version,
    about = "LSTM inference on any GPU, and without one",
    after_help = "Exit codes: 0 good, 1 failed check or bad data, 2 usage (a device that is not there included).\n\
                  Start with `lstm demo`."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Classify real speech with a trained LSTM; print accuracy, error and times
    Demo(DemoOptions),
    /// List adapters, say which one `auto` chooses and why
    Devices(DevicesOptions),
    /// Show the layers, sizes and tensors of a model
    Info(InfoOptions),
    /// Run a model on sequences from a file
    Run(RunOptions),
    /// Time a model on random input
    Bench(BenchOptions),
}

#[derive(Debug, Args)]
pub(crate) struct DeviceOption {
    /// auto, gpu, gpu:N, cpu, reference, or a part of an adapter's name (see `lstm devices`)
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    pub(crate) device: DeviceChoice,
}

#[derive(Debug, Args)]
pub(crate) struct WeightsOption {
    /// How to keep the weights: f16 halves their memory and, where reading them is what takes the time, about halves that; results change in the fourth digit
    #[arg(long, value_enum, default_value_t = WeightsName::F32)]
    pub(crate) weights: WeightsName,
}

#[derive(Debug, Args)]
pub(crate) struct BudgetOption {
    /// Working memory of one run on a GPU, for example 512MiB; long input is cut to fit [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) memory_budget: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ModelOption {
    /// Weights: a safetensors file (names of PyTorch, Candle or Burn), a PyTorch checkpoint (.pt, .pth) or a Keras model (.keras, .h5); or an ONNX model (.onnx)
    pub(crate) model: PathBuf,
    /// What stands before the network's own tensor names, for example `encoder.lstm`, or a layer of a Keras model; needed if there are several
    #[arg(long, value_name = "PREFIX")]
    pub(crate) prefix: Option<String>,
    /// The activation of an RNN, which weights do not tell [default: tanh]
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) rnn_activation: Option<RnnActivation>,
}

/// The activations of `torch.nn.RNN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RnnActivation {
    /// tanh x
    Tanh,
    /// max(0, x)
    Relu,
}

impl From<RnnActivation> for Activation {
    fn from(name: RnnActivation) -> Self {
        match name {
            RnnActivation::Tanh => Activation::Tanh,
            RnnActivation::Relu => Activation::Relu,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    #[command(flatten)]
    pub(crate) device: DeviceOption,
}

#[derive(Debug, Args)]
pub(crate) struct DevicesOptions {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InfoOptions {
    #[command(flatten)]
    pub(crate) model: ModelOption,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    #[command(flatten)]
    pub(crate) model: ModelOption,
    /// Sequences: .npz with the array x and if wanted lengths, h_0, c_0; or .npy with x alone; `-` is the standard input.
    /// For an ONNX model: the arrays that the graph names as inputs
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: PathBuf,
    /// Results: .npz with output, h_n and c_n; or .npy with output alone; `-` is .npz on the standard output. Of an ONNX
    /// model: all outputs by name
    #[arg(short, long, value_name = "FILE", required_unless_present_any = ["verify", "expect"], value_parser = array_path)]
    pub(crate) output: Option<PathBuf>,
    /// Axes of x and output: [B, T, features] or [T, B, features]
    #[arg(long, value_enum, default_value_t = LayoutName::Batch)]
    pub(crate) layout: LayoutName,
    #[command(flatten)]
    pub(crate) device: DeviceOption,
    #[command(flatten)]
    pub(crate) weights: WeightsOption,
    #[command(flatten)]
    pub(crate) budget: BudgetOption,
    /// Compare with the f64 reference: the longest, the shortest and some other sequences, or all
    #[arg(long, value_enum, value_name = "WHICH", num_args = 0..=1, require_equals = true, default_missing_value = "some")]
    pub(crate) verify: Option<Verify>,
    /// Compare with the arrays output, h_n, c_n of this file; |found − expected| ≤ atol + rtol·|expected|
    #[arg(long, value_name = "FILE")]
    pub(crate) expect: Option<PathBuf>,
    /// Relative tolerance of --expect
    #[arg(long, requires = "expect", allow_negative_numbers = true, default_value_t = 1e-4, value_parser = tolerance)]
    pub(crate) rtol: f64,
    /// Absolute tolerance of --expect
    #[arg(long, requires = "expect", allow_negative_numbers = true, default_value_t = 1e-5, value_parser = tolerance)]
    pub(crate) atol: f64,
    /// Where ONNX and onnxruntime part: as the operator's text says, or as onnxruntime does [default: operator]
    #[arg(long, value_enum, value_name = "WHICH")]
    pub(crate) onnx_compat: Option<OnnxCompatName>,
    /// Say how the batch runs: chunks, tiles, dispatches, bytes, and why; of an ONNX model: where each node runs
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) explain: bool,
    /// Print failures only: no summary, no progress bar
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

impl RunOptions {
    /// Whether only failures are told: results on the standard output leave no room for anything else.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet || self.output.as_deref() == Some(std::path::Path::new("-"))
    }
}

/// `OnnxCompat` by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnnxCompatName {
    /// As the text of the operator says
    Operator,
    /// As onnxruntime's CPU kernels do
    Onnxruntime,
}

#[derive(Debug, Args)]
pub(crate) struct BenchOptions {
    #[command(flatten)]
    pub(crate) model: ModelOption,
    /// Arrays for an ONNX model, by the names of its inputs, as `lstm run` takes them; without, random numbers for inputs
    /// of fixed sizes. --batch and --len are for other models
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Batch sizes
    #[arg(long, value_name = "B,B,…", value_delimiter = ',', default_value = "1,16,64", value_parser = positive)]
    pub(crate) batch: Vec<usize>,
    /// Sequence lengths
    #[arg(long, value_name = "T,T,…", value_delimiter = ',', default_value = "100", value_parser = positive)]
    pub(crate) len: Vec<usize>,
    /// Devices, as `lstm run --device` takes them
    #[arg(long, value_name = "DEVICE,…", value_delimiter = ',', default_value = "cpu,gpu")]
    pub(crate) device: Vec<DeviceChoice>,
    /// Timed runs of each case [default: about two seconds' worth, at least 3]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) runs: Option<usize>,
    #[command(flatten)]
    pub(crate) weights: WeightsOption,
    #[command(flatten)]
    pub(crate) budget: BudgetOption,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// [`Layout`] by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayoutName {
    /// x is [B, T, I], PyTorch's batch_first=True
    Batch,
    /// x is [T, B, I], PyTorch's default
    Time,
}

impl From<LayoutName> for Layout {
    fn from(name: LayoutName) -> Self {
        match name {
            LayoutName::Batch => Layout::BatchMajor,
            LayoutName::Time => Layout::TimeMajor,
        }
    }
}

/// Which sequences to verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Verify {
    /// The longest, the shortest and some others
    Some,
    /// All
    All,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(n) if n > 0 && n <= i32::MAX as usize => Ok(n),
        _ => Err(format!("expected a whole number from 1 to {}, found {text:?}", i32::MAX)),
    }
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(value) if value >= 0.0 && f64::is_finite(value) => Ok(value),
        _ => Err(format!("expected a number such as 1e-4, not negative, found {text:?}")),
    }
}

fn array_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if text == "-" {
        return Ok(path);
    }
    match path.extension().and_then(|e| e.to_str()) {
        Some("npz" | "npy") => Ok(path),
        _ => Err(format!("expected a name that ends in .npz or .npy, or -, found {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run_options(line: &str) -> Result<RunOptions, clap::Error> {
        match Arguments::try_parse_from(line.split(' '))?.command {
            Command::Run(options) => Ok(options),
            other => panic!("expected run, found {other:?}"),
        }
    }

    #[test]
    fn the_definitions_hold_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_output_is_needed_unless_something_is_compared() {
        assert!(run_options("lstm run m -i x.npz").is_err());
        assert!(run_options("lstm run m -i x.npz -o y.npz").is_ok());
        assert_eq!(run_options("lstm run m -i x.npz --verify").unwrap().verify, Some(Verify::Some));
        assert_eq!(run_options("lstm run m -i x.npz --verify=all").unwrap().verify, Some(Verify::All));
        assert!(run_options("lstm run m -i x.npz --expect y.npz --rtol 1e-3").is_ok());
        assert!(run_options("lstm run m -i x.npz -o y.npz --rtol 1e-3").is_err(), "--rtol needs --expect");
    }

    #[test]
    fn bad_values_are_usage_errors() {
        for bad in [
            "-o y.txt",
            "-o y.npz --device gpu:x",
            "-o y.npz --layout sideways",
            "-o y.npz --memory-budget 512",
            "-o y.npz --verify=none",
            "-o y.npz --rnn-activation sigmoid",
            "--expect y.npz --rtol -1",
            "--expect y.npz --atol NaN",
            "-o y.npz --colour",
        ] {
            let error = run_options(&format!("lstm run m -i x.npz {bad}")).expect_err(bad);
            assert_eq!(error.exit_code(), 2, "{bad}");
        }
        assert!(Arguments::try_parse_from(["lstm", "bench", "m", "--batch", "1,0"]).is_err());
    }
}
