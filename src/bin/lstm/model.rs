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

/// What else of the model the file has, which a run leaves out, and how to include it.
pub(crate) fn what_is_not_run(contents: &FileContents) -> Option<String> {
    const MOST_NAMED: usize = 3;
    let beside = &contents.beside;
    let named: Vec<String> = beside.iter().take(MOST_NAMED).map(|t| format!("{} {:?}", t.name, t.shape)).collect();
    let more = match beside.len().checked_sub(MOST_NAMED + 1) {
        Some(n) => format!(" and {} more", n + 1),
        None => String::new(),
    };
    (!named.is_empty()).then(|| {
        format!(
            "the file also has {}{more}, which are not run: the output is that of the recurrent layers alone; to run the \
             whole model, export it as ONNX",
            named.join(", ")
        )
    })
}

fn options(option: &ModelOption) -> ReadOptions {
    ReadOptions { prefix: option.prefix.clone(), rnn_activation: option.rnn_activation.map(Into::into) }
}
