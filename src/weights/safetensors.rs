//! Stage 1, read: a [safetensors](https://github.com/huggingface/safetensors) file → [`LstmWeights`].
//!
//! In:  a file as `safetensors.torch.save_file(module.state_dict(), path)` writes it, holding one or more
//!      `torch.nn.LSTM`, `GRU`, `RNN` or their cells at any depth, or the recurrent modules of Candle or Burn; f32,
//!      f16, bf16 or f64.
//! Out: [`LstmWeights`]; or single tensors by name.
//! Not here: other formats; what names mean (`state_dict`).

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::LstmWeights;
use super::shards::refuse_lone_shard;
use super::source::{HEAD_BYTES, ReadOptions, foreign, is_safetensors, read_bytes, shown, shown_message};
use super::state_dict::StateDict;
use super::tensor::{ElementType, Tensor};
use crate::error::{Error, ErrorKind, Result, bail};

/// Reads the network under `prefix`, or the only one in the file if `prefix` is `None`; an RNN with tanh.
///
/// `prefix` may be given with or without its last dot; `Some("")` means the top level. [`weights::read`](super::read)
/// has more options.
///
/// # Errors
/// [`InvalidFile`](ErrorKind::InvalidFile) if the bytes are not a complete safetensors file;
/// [`InvalidWeights`](ErrorKind::InvalidWeights) if no network or several fit, a tensor is missing, surplus, of the
/// wrong shape, not finite or too large for f32; [`Unsupported`](ErrorKind::Unsupported) if its type is another.
pub fn read(bytes: &[u8], prefix: Option<&str>) -> Result<LstmWeights> {
    let options = ReadOptions { prefix: prefix.map(str::to_owned), ..ReadOptions::default() };
    Ok(state_dict(bytes)?.read(&options)?.0)
}

/// Reads the network under `prefix` from the file at `path`, see [`read`].
///
/// # Errors
/// As [`read`]; [`InvalidFile`](ErrorKind::InvalidFile) also if the file is missing or is a directory.
pub fn read_file(path: impl AsRef<Path>, prefix: Option<&str>) -> Result<LstmWeights> {
    let path = path.as_ref();
    let read_all = || {
        refuse_lone_shard(path)?;
        read(&read_bytes(path, check_head)?, prefix)
    };
    read_all().map_err(|e| e.context(path.display()))
}

/// The prefixes under which the file holds a network, sorted; the top level is the empty one.
///
/// # Errors
/// [`InvalidFile`](ErrorKind::InvalidFile) if the bytes are not a complete safetensors file.
pub fn list_prefixes(bytes: &[u8]) -> Result<Vec<String>> {
    Ok(state_dict(bytes)?.prefixes())
}

/// Reads one tensor by its full name: its shape and its values as f32.
///
/// # Errors
/// [`InvalidFile`](ErrorKind::InvalidFile) if the bytes are not a complete safetensors file or have no such
/// tensor; [`Unsupported`](ErrorKind::Unsupported) if it is not f32, f16, bf16 or f64;
/// [`InvalidWeights`](ErrorKind::InvalidWeights) if a finite f64 is too large for f32.
pub fn read_tensor(bytes: &[u8], name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
    let tensor = find(bytes, name)?;
    Ok((tensor.shape().to_vec(), tensor.to_f32(name)?))
}

/// Reads one tensor of i64 or i32 by its full name: its shape and its values.
///
/// # Errors
/// As [`read_tensor`].
pub fn read_tensor_i64(bytes: &[u8], name: &str) -> Result<(Vec<usize>, Vec<i64>)> {
    let tensor = find(bytes, name)?;
    Ok((tensor.shape().to_vec(), tensor.to_i64(name)?))
}

/// Refuses what cannot be a safetensors file by its first bytes.
fn check_head(head: &[u8], file_bytes: u64) -> Result<()> {
    if is_safetensors(head, file_bytes) {
        return Ok(());
    }
    if let Some(found) = foreign(head, file_bytes) {
        bail!(InvalidFile, "expected a safetensors file, found {found}");
    }
    let Some(header_bytes) = head.first_chunk().map(|&word| u64::from_le_bytes(word)) else {
        bail!(InvalidFile, "expected a safetensors file, found {file_bytes} bytes: too short for a header");
    };
    bail!(
        InvalidFile,
        "expected a safetensors file, found a header of {header_bytes} bytes in a file of {file_bytes}: truncated, or \
         another format"
    )
}

/// The tensors of a file.
pub(crate) fn state_dict(bytes: &[u8]) -> Result<StateDict<'_>> {
    check_head(&bytes[..bytes.len().min(HEAD_BYTES)], bytes.len() as u64)?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| {
        Error::new(
            ErrorKind::InvalidFile,
            format!("not a complete safetensors file: {}", shown_message(&e.to_string())),
        )
    })?;
    let mut dict = StateDict::new("safetensors", bytes.len());
    for (name, view) in file.tensors() {
        let tensor = Tensor::contiguous(element_type(view.dtype()), view.shape().to_vec(), view.data());
        dict.tensors.insert(name.clone(), tensor.map_err(|e| e.context(shown(&name)))?);
    }
    Ok(dict)
}

fn find<'a>(bytes: &'a [u8], name: &str) -> Result<Tensor<'a>> {
    let mut dict = state_dict(bytes)?;
    match dict.tensors.remove(name) {
        Some(tensor) => Ok(tensor),
        None => bail!(InvalidFile, "{}: no such tensor; found {}", shown(name), dict.first_names()),
    }
}

fn element_type(dtype: Dtype) -> ElementType {
    let name = match dtype {
        Dtype::F64 => return ElementType::F64,
        Dtype::F32 => return ElementType::F32,
        Dtype::F16 => return ElementType::F16,
        Dtype::BF16 => return ElementType::Bf16,
        Dtype::I64 => return ElementType::I64,
        Dtype::I32 => return ElementType::I32,
        Dtype::BOOL => "BOOL",
        Dtype::U8 => "U8",
        Dtype::I8 => "I8",
        Dtype::U16 => "U16",
        Dtype::I16 => "I16",
        Dtype::U32 => "U32",
        Dtype::U64 => "U64",
        Dtype::C64 => "C64",
        Dtype::F8_E5M2 => "F8_E5M2",
        Dtype::F8_E4M3 => "F8_E4M3",
        _ => "another type",
    };
    // 0 for types smaller than a byte.
    ElementType::Other { name, size_bytes: dtype.bitsize() / 8 }
}

#[cfg(test)]
mod tests;
