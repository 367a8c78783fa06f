//! Stage 1, read: a file of any known format → [`LstmWeights`].
//!
//! In:  a path or bytes: safetensors, a PyTorch checkpoint, or a Keras model.
//! Out: [`LstmWeights`] and, for display, [`FileContents`].
//! The format is recognised by the first bytes, never by the file's name; a wrong file of many gigabytes is refused
//! before memory is taken for it.
//! Not here: what the formats hold (`safetensors`, `pytorch`, `keras`), what names mean (`state_dict`).

use std::path::Path;

use super::LstmWeights;
use super::source::{FileContents, HEAD_BYTES, ReadOptions, is_safetensors, magic_name, read_bytes};
use crate::error::{Result, bail};

/// Reads a network from a safetensors file, a PyTorch checkpoint or a Keras model, where `prefix` is a layer's name.
///
/// # Errors
/// [`InvalidFile`](crate::ErrorKind::InvalidFile) if the bytes are of no known format or are damaged;
/// [`Unsupported`](crate::ErrorKind::Unsupported) if the format or a type of element is one that this build does not read, a
/// checkpoint would run code, or an option does not apply; [`InvalidWeights`](crate::ErrorKind::InvalidWeights) if no network
/// or several fit, a tensor is missing, surplus, of the wrong shape, not finite or too large for f32.
pub fn read(bytes: &[u8], options: &ReadOptions) -> Result<LstmWeights> {
    Ok(read_with_contents(bytes, options)?.0)
}

/// Reads a network from the file at `path`, see [`read`].
///
/// ```
/// use wgpu_lstm::weights::{self, ReadOptions};
/// let weights = weights::read_file("data/japanese_vowels/model.safetensors", &ReadOptions::default())?;
/// assert_eq!(weights.spec().input_size(), 12);
/// # Ok::<(), wgpu_lstm::Error>(())
/// ```
///
/// # Errors
/// As [`read`]; [`InvalidFile`](crate::ErrorKind::InvalidFile) also if the file is missing or is a directory.
pub fn read_file(path: impl AsRef<Path>, options: &ReadOptions) -> Result<LstmWeights> {
    Ok(read_file_with_contents(path, options)?.0)
}

/// Reads a network from the file at `path`, and lists what the file holds.
///
/// # Errors
/// As [`read_file`].
pub fn read_file_with_contents(path: impl AsRef<Path>, options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    let path = path.as_ref();
    let bytes = read_bytes(path, |head, file_bytes| Format::of(head, file_bytes).map(drop));
    bytes.and_then(|bytes| read_with_contents(&bytes, options)).map_err(|e| e.context(path.display()))
}

fn read_with_contents(bytes: &[u8], options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    match Format::of(&bytes[..bytes.len().min(HEAD_BYTES)], bytes.len() as u64)? {
        Format::Safetensors => safetensors(bytes, options),
        Format::Zip => zip(bytes, options),
        Format::Hdf5 => keras(bytes, options),
    }
}

#[cfg(feature = "safetensors")]
fn safetensors(bytes: &[u8], options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    super::safetensors::state_dict(bytes)?.read(options)
}

#[cfg(not(feature = "safetensors"))]
fn safetensors(_: &[u8], _: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    bail!(Unsupported, "expected a format of this build, found safetensors; enable the feature `safetensors`")
}

/// An archive of Keras holds its weights under a name of their own, which stands in the directory at its end.
fn zip(bytes: &[u8], options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    const NAME: &[u8] = b"model.weights.h5";
    const DIRECTORY_BYTES: usize = 1 << 20;
    let end = &bytes[bytes.len().saturating_sub(DIRECTORY_BYTES)..];
    if end.windows(NAME.len()).any(|name| name == NAME) {
        return keras(bytes, options);
    }
    pytorch(bytes, options)
}

#[cfg(feature = "pytorch")]
fn pytorch(bytes: &[u8], options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    super::pytorch::state_dict(bytes)?.read(options)
}

#[cfg(not(feature = "pytorch"))]
fn pytorch(_: &[u8], _: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    bail!(Unsupported, "expected a format of this build, found a zip archive; enable the feature `pytorch`")
}

/// A model of Keras; the prefix is the name of a layer or a chain.
#[cfg(feature = "keras")]
fn keras(bytes: &[u8], options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    if options.rnn_activation.is_some() {
        bail!(Unsupported, "rnn_activation: expected none for a model of Keras, which has its own, found one");
    }
    let model = super::keras::read(bytes, options.prefix.as_deref())?;
    let layers: Vec<String> = model.layers.iter().map(|l| format!("{} {}", l.class, l.name)).collect();
    let mut notes = vec![format!("layers: {}", layers.join(", "))];
    let mut add = |is: bool, note: &str| notes.extend(is.then(|| note.to_owned()));
    add(
        model.output_is_time_reversed,
        "Keras returns this output in reverse order of time (go_backwards); here it is not",
    );
    add(!model.returns_sequences, "return_sequences is false: Keras returns the final h of the last layer, here h_n");
    add(model.masked, "masked: give the number of unmasked steps as lengths, with padding at the end");
    add(model.stateful, "stateful: give the final state of a batch as the initial state of the next");
    add(model.takes_initial_state, "other layers of the model compute the initial state; give it as h_0 and c_0");
    notes.extend(model.assumptions);
    let prefix = model.layers.iter().map(|l| l.name.as_str()).collect::<Vec<_>>().join(", ");
    let contents = FileContents { format: "Keras", prefix, tensors: Vec::new(), others: Vec::new(), notes };
    Ok((model.weights, contents))
}

#[cfg(not(feature = "keras"))]
fn keras(_: &[u8], _: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    bail!(Unsupported, "expected a format of this build, found a model of Keras; enable the feature `keras`")
}

/// The formats that are told apart before the bytes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Safetensors,
    /// A PyTorch checkpoint or a Keras archive.
    Zip,
    Hdf5,
}

impl Format {
    /// The format of a file by its first [`HEAD_BYTES`] bytes and its size.
    fn of(head: &[u8], file_bytes: u64) -> Result<Self> {
        // First, since the length of a header may look like the first bytes of another format.
        if is_safetensors(head, file_bytes) {
            return Ok(Self::Safetensors);
        }
        if head.starts_with(b"PK\x03\x04") {
            return Ok(Self::Zip);
        }
        if head.starts_with(b"\x89HDF\r\n\x1a\n") {
            return Ok(Self::Hdf5);
        }
        if head.starts_with(b"\x80") || head.get(257..262) == Some(b"ustar") {
            let name = magic_name(head).unwrap_or("a pickle");
            bail!(
                Unsupported,
                "expected safetensors, a PyTorch checkpoint or a Keras model, found {name}; convert with PyTorch 1.6 or later: \
                 torch.save(torch.load(path, weights_only=True), new_path)"
            );
        }
        match magic_name(head) {
            Some(name) => {
                bail!(InvalidFile, "expected safetensors, a PyTorch checkpoint or a Keras model, found {name}")
            }
            None => bail!(
                InvalidFile,
                "expected safetensors, a PyTorch checkpoint or a Keras model, found {file_bytes} bytes of another format, or \
                 truncated; ONNX, which has no magic bytes, is known by a name ending in .onnx, or read by `onnx::OnnxModel`"
            ),
        }
    }
}
