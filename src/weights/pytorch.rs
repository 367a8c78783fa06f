//! Stage 1, read: a checkpoint that `torch.save` wrote (`.pt`, `.pth`, `.ckpt`) → [`LstmWeights`], without running its
//! code.
//!
//! In:  the zip archive that `torch.save` writes since PyTorch 1.6, what it wrote before (`legacy`), or a NeMo model;
//!      with one or more `torch.nn.LSTM`, `GRU`, `RNN` or their cells in state dicts at any depth of dicts, or in pickled
//!      modules; f32, f16, bf16 or f64; views of any offset and stride.
//! Out: tensors by name, the keys joined by dots (`state_dict.encoder.weight_ih_l0`), and from them [`LstmWeights`].
//! A checkpoint is a pickle, a program that may call anything. Here it is data: what it would call is described if it
//! is what tensors and plain data are made of, and passed over if not (`pickle`). What was passed over is refused only
//! where the network needs it.
//! Not here: TorchScript; what names mean (`state_dict`).

use std::path::Path;

use super::LstmWeights;
use super::shards::refuse_lone_shard;
use super::source::{HEAD_BYTES, ReadOptions, foreign, is_stream, is_tar, read_bytes};
use super::state_dict::StateDict;
use crate::error::{Result, bail};

use archive::Archive;
use search::{Records, search};

pub(crate) mod archive;
mod legacy;
mod pickle;
mod search;

/// Reads the network under `prefix`, or the only one in the checkpoint if `prefix` is `None`; an RNN with tanh.
///
/// `prefix` may be given with or without its last dot, and without what wrappers put into names: `lstm` finds
/// `state_dict.module.lstm.`. `Some("")` means the top level. [`weights::read`](super::read) has more options.
///
/// # Errors
/// [`InvalidFile`](crate::ErrorKind::InvalidFile) if the bytes are not a complete checkpoint, records overlap or lie
/// outside the file, or a tensor lies outside its record; [`Unsupported`](crate::ErrorKind::Unsupported) if only running
/// code would give the weights, a record is compressed, the byte order is big, or a weight has a type other than f32, f16,
/// bf16 or f64; [`InvalidWeights`](crate::ErrorKind::InvalidWeights) if no network or several fit, a tensor is missing,
/// surplus, of the wrong shape, not finite or too large for f32.
pub fn read(bytes: &[u8], prefix: Option<&str>) -> Result<LstmWeights> {
    let options = ReadOptions { prefix: prefix.map(str::to_owned), ..ReadOptions::default() };
    Ok(state_dict(bytes)?.read(&options)?.0)
}

/// Reads the network under `prefix` from the file at `path`, see [`read`].
///
/// ```no_run
/// use wgpu_lstm::weights::pytorch;
/// let weights = pytorch::read_file("checkpoint.pt", Some("encoder.lstm"))?;
/// # Ok::<(), wgpu_lstm::Error>(())
/// ```
///
/// # Errors
/// As [`read`]; [`InvalidFile`](crate::ErrorKind::InvalidFile) also if the file is missing or is a directory.
pub fn read_file(path: impl AsRef<Path>, prefix: Option<&str>) -> Result<LstmWeights> {
    let path = path.as_ref();
    let read_all = || {
        refuse_lone_shard(path)?;
        read(&read_bytes(path, check_head)?, prefix)
    };
    read_all().map_err(|e| e.context(path.display()))
}

/// The prefixes under which the checkpoint holds a network, sorted; the top level is the empty one.
///
/// # Errors
/// As [`read`] as far as it concerns the file.
pub fn list_prefixes(bytes: &[u8]) -> Result<Vec<String>> {
    Ok(state_dict(bytes)?.prefixes())
}

/// Refuses what cannot be a checkpoint by its first bytes.
fn check_head(head: &[u8], file_bytes: u64) -> Result<()> {
    if head.starts_with(b"PK") || is_stream(head) || is_tar(head) {
        return Ok(());
    }
    match foreign(head, file_bytes) {
        Some(found) => bail!(InvalidFile, "expected a checkpoint, as torch.save writes, found {found}"),
        None => bail!(InvalidFile, "expected a checkpoint, as torch.save writes, found another format"),
    }
}

/// The tensors of a checkpoint.
pub(crate) fn state_dict(bytes: &[u8]) -> Result<StateDict<'_>> {
    check_head(&bytes[..bytes.len().min(HEAD_BYTES)], bytes.len() as u64)?;
    match bytes {
        _ if is_stream(bytes) => legacy::stream(bytes),
        _ if is_tar(bytes) => legacy::tar(bytes),
        _ => zip(bytes),
    }
}

/// The tensors of an archive, which is what `torch.save` writes since PyTorch 1.6.
fn zip(bytes: &[u8]) -> Result<StateDict<'_>> {
    let archive = Archive::open(bytes)?;
    if archive.get("constants.pkl")?.is_some() || archive.has_folder("code/") {
        bail!(
            Unsupported,
            "expected a state dict, found TorchScript, which is code; in Python, save \
             torch.save(torch.jit.load(path).state_dict(), new_path)"
        );
    }
    match archive.get("byteorder")? {
        None | Some(b"little") => {}
        Some(other) => {
            let found = String::from_utf8_lossy(&other[..other.len().min(16)]);
            bail!(Unsupported, "byteorder: expected \"little\", found {found:?}")
        }
    }
    let Some(bytes_of_pickle) = archive.get("data.pkl")? else {
        bail!(InvalidFile, "data.pkl: expected it in the archive, found none");
    };
    let pickle = pickle::read(bytes_of_pickle).map_err(|e| e.context("data.pkl"))?;
    search(&pickle, &Records::Archive(&archive), "PyTorch checkpoint", bytes.len())
}

#[cfg(all(test, feature = "safetensors"))]
mod tests;
