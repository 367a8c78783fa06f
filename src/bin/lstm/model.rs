//! A model file: the weights, and for display its tensors.

use std::path::Path;

use wgpu_lstm::LstmWeights;
use wgpu_lstm::weights::safetensors;

use crate::args::ModelOption;
use crate::common::failure::{Failure, Result, fail};

/// A tensor as the file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorInfo {
    pub(crate) name: String,
    /// `F32`, `F16`, `BF16`, `F64` ...
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
}

/// What a file holds besides the numbers of the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileInfo {
    /// What stands before PyTorch's own names.
    pub(crate) prefix: String,
    /// The tensors of the LSTM, by name.
    pub(crate) tensors: Vec<TensorInfo>,
    /// All others, by name.
    pub(crate) others: Vec<TensorInfo>,
}

/// Reads the weights.
pub(crate) fn read(option: &ModelOption) -> Result<LstmWeights> {
    Ok(safetensors::read_file(&option.model, option.prefix.as_deref())?)
}

/// Reads the weights, and lists the tensors they came from.
pub(crate) fn read_with_info(option: &ModelOption) -> Result<(LstmWeights, FileInfo)> {
    let weights = read(option)?;
    let named = |failure: Failure| failure.context(option.model.display());
    let info = file_info(&option.model, option.prefix.as_deref()).map_err(named)?;
    Ok((weights, info))
}

/// Lists the tensors of a file that [`read`] has accepted with the same prefix.
fn file_info(path: &Path, wanted: Option<&str>) -> Result<FileInfo> {
    let bytes = std::fs::read(path).map_err(|e| Failure::Data(format!("cannot be read: {e}")))?;
    let prefixes = safetensors::list_prefixes(&bytes)?;
    let fits = |prefix: &&String| match wanted {
        Some(wanted) => *prefix == wanted || prefix.strip_suffix('.') == Some(wanted),
        None => true,
    };
    let Some(prefix) = prefixes.iter().find(fits) else { fail!("changed while it was read") };
    let Ok(file) = ::safetensors::SafeTensors::deserialize(&bytes) else { fail!("changed while it was read") };
    let mut tensors = Vec::new();
    let mut others = Vec::new();
    for (name, view) in file.iter() {
        let tensor =
            TensorInfo { name: name.to_owned(), dtype: format!("{:?}", view.dtype()), shape: view.shape().to_vec() };
        let of_lstm = name
            .strip_prefix(prefix.as_str())
            .is_some_and(|own| !own.contains('.') && (own.starts_with("weight_") || own.starts_with("bias_")));
        if of_lstm { tensors.push(tensor) } else { others.push(tensor) }
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    others.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(FileInfo { prefix: prefix.clone(), tensors, others })
}
