//! A model file: the weights, and for display its contents.

use wgpu_lstm::LstmWeights;
use wgpu_lstm::weights::{self, FileContents, ReadOptions};

use crate::args::ModelOption;
use crate::common::failure::Result;

/// Reads the weights.
pub(crate) fn read(option: &ModelOption) -> Result<LstmWeights> {
    Ok(weights::read_file(&option.model, &options(option))?)
}

/// Reads the weights, and lists what the file holds.
pub(crate) fn read_with_contents(option: &ModelOption) -> Result<(LstmWeights, FileContents)> {
    Ok(weights::read_file_with_contents(&option.model, &options(option))?)
}

fn options(option: &ModelOption) -> ReadOptions {
    ReadOptions { prefix: option.prefix.clone(), rnn_activation: option.rnn_activation.map(Into::into) }
}
