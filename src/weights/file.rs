//! Stage 1, read: a file of any known format → [`LstmWeights`].
//!
//! In:  a path or bytes: safetensors, a PyTorch checkpoint, or a Keras model; of a path also the index of a model in
//!      several files.
//! Out: [`LstmWeights`] and, for display, [`FileContents`].
//! The format is recognised by the first bytes, never by the file's name; a wrong file of many gigabytes is refused
//! before memory is taken for it.
//! Not here: what the formats hold (`safetensors`, `pytorch`, `keras`), what names mean (`state_dict`).

use std::path::Path;

use super::LstmWeights;
#[cfg(any(feature = "safetensors", feature = "pytorch"))]
use super::shards::{self, Index};
#[cfg(any(feature = "safetensors", feature = "pytorch"))]
use super::source::shown;
use super::source::{
    FileContents, HEAD_BYTES, ReadOptions, foreign, is_json, is_safetensors, is_stream, is_tar, read_bytes,
};
#[cfg(any(feature = "safetensors", feature = "pytorch"))]
use super::state_dict::StateDict;
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

/// Reads a network from the file at `path`, see [`read`]; an index such as `model.safetensors.index.json` stands for
/// the model whose files it lists, which are beside it.
///
/// ```
/// use wgpu_lstm::weights::{self, ReadOptions};
/// let weights = weights::read_file("data/japanese_vowels/model.safetensors", &ReadOptions::default())?;
/// assert_eq!(weights.spec().input_size(), 12);
/// # Ok::<(), wgpu_lstm::Error>(())
/// ```
///
/// # Errors
/// As [`read`]; [`InvalidFile`](crate::ErrorKind::InvalidFile) also if the file is missing, is a directory, a pipe or a
/// device, or is one of several that make a model.
pub fn read_file(path: impl AsRef<Path>, options: &ReadOptions) -> Result<LstmWeights> {
    Ok(read_file_with_contents(path, options)?.0)
}

/// Reads a network from the file at `path`, and lists what the file holds.
///
/// # Errors
/// As [`read_file`].
pub fn read_file_with_contents(path: impl AsRef<Path>, options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    let path = path.as_ref();
    read_path(path, options).map_err(|e| e.context(path.display()))
}

#[cfg(any(feature = "safetensors", feature = "pytorch"))]
fn read_path(path: &Path, options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    shards::refuse_lone_shard(path)?;
    let bytes = read_bytes(path, |head, file_bytes| match Format::of(head, file_bytes)? {
        Format::Json => shards::check_size(file_bytes),
        _ => Ok(()),
    })?;
    if Format::of(&bytes[..bytes.len().min(HEAD_BYTES)], bytes.len() as u64)? == Format::Json {
        let index = Index::parse(&bytes)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return read_shards(&index, folder, options);
    }
    read_with_contents(&bytes, options)
}

#[cfg(not(any(feature = "safetensors", feature = "pytorch")))]
fn read_path(path: &Path, options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    let bytes = read_bytes(path, |head, file_bytes| Format::of(head, file_bytes).map(drop))?;
    read_with_contents(&bytes, options)
}

/// Reads a network from the files of an index. All that it lists must be there, and nothing else.
#[cfg(any(feature = "safetensors", feature = "pytorch"))]
fn read_shards(index: &Index, folder: &Path, options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    let mut files: Vec<(&str, Vec<u8>)> = Vec::new();
    for name in index.shards() {
        let bytes = read_bytes(&folder.join(name), |head, file_bytes| match Format::of(head, file_bytes)? {
            Format::Json | Format::Hdf5 => {
                bail!(InvalidFile, "expected safetensors or a checkpoint, found another format")
            }
            _ => Ok(()),
        });
        files.push((name, bytes.map_err(|e| e.context(format!("shard {}", shown(name))))?));
    }
    let mut joined = StateDict::new("safetensors", 0);
    for (name, bytes) in &files {
        let shard = match Format::of(&bytes[..bytes.len().min(HEAD_BYTES)], bytes.len() as u64)? {
            Format::Safetensors => safetensors_dict(bytes),
            _ => pytorch_dict(bytes),
        };
        let shard = shard.map_err(|e| e.context(format!("shard {}", shown(name))))?;
        if let Some(tensor) =
            shard.tensors.keys().find(|tensor| index.files.get(*tensor).is_none_or(|file| file != name))
        {
            bail!(
                InvalidFile,
                "{}: found in the shard {}, where the index does not have it",
                shown(tensor),
                shown(name)
            );
        }
        joined.join(shard)?;
    }
    let found = |tensor: &str| joined.tensors.contains_key(tensor) || joined.objects.contains_key(tensor);
    if let Some((tensor, name)) = index.files.iter().find(|(tensor, _)| !found(tensor)) {
        bail!(InvalidFile, "{}: expected in the shard {}, found none there", shown(tensor), shown(name));
    }
    joined.read(options)
}

fn read_with_contents(bytes: &[u8], options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    match Format::of(&bytes[..bytes.len().min(HEAD_BYTES)], bytes.len() as u64)? {
        Format::Safetensors => safetensors(bytes, options),
        Format::Zip => zip(bytes, options),
        Format::Checkpoint => pytorch(bytes, options),
        Format::Hdf5 => keras(bytes, options),
        Format::Json => bail!(
            InvalidFile,
            "expected safetensors, a PyTorch checkpoint or a Keras model, found JSON; the index of a model in several files is \
             read by its path"
        ),
    }
}

fn safetensors(bytes: &[u8], options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    #[cfg(any(feature = "safetensors", feature = "pytorch"))]
    return safetensors_dict(bytes)?.read(options);
    #[cfg(not(any(feature = "safetensors", feature = "pytorch")))]
    no_safetensors((bytes, options))
}

#[cfg(feature = "safetensors")]
fn safetensors_dict(bytes: &[u8]) -> Result<StateDict<'_>> {
    super::safetensors::state_dict(bytes)
}

#[cfg(all(feature = "pytorch", not(feature = "safetensors")))]
fn safetensors_dict(bytes: &[u8]) -> Result<StateDict<'_>> {
    no_safetensors(bytes)
}

#[cfg(not(feature = "safetensors"))]
fn no_safetensors<I, T>(_: I) -> Result<T> {
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

fn pytorch(bytes: &[u8], options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
    #[cfg(any(feature = "safetensors", feature = "pytorch"))]
    return pytorch_dict(bytes)?.read(options);
    #[cfg(not(any(feature = "safetensors", feature = "pytorch")))]
    no_pytorch((bytes, options))
}

#[cfg(feature = "pytorch")]
fn pytorch_dict(bytes: &[u8]) -> Result<StateDict<'_>> {
    super::pytorch::state_dict(bytes)
}

#[cfg(all(feature = "safetensors", not(feature = "pytorch")))]
fn pytorch_dict(bytes: &[u8]) -> Result<StateDict<'_>> {
    no_pytorch(bytes)
}

#[cfg(not(feature = "pytorch"))]
fn no_pytorch<I, T>(_: I) -> Result<T> {
    bail!(Unsupported, "expected a format of this build, found a PyTorch checkpoint; enable the feature `pytorch`")
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
    let contents = FileContents { format: "Keras", prefix, notes, ..FileContents::default() };
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
    /// A PyTorch checkpoint of another kind.
    Checkpoint,
    Hdf5,
    /// Which may be the index of a model in several files.
    Json,
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
        if is_stream(head) || is_tar(head) {
            return Ok(Self::Checkpoint);
        }
        if is_json(head) {
            return Ok(Self::Json);
        }
        match foreign(head, file_bytes) {
            Some(found) => {
                bail!(InvalidFile, "expected safetensors, a PyTorch checkpoint or a Keras model, found {found}")
            }
            None => bail!(
                InvalidFile,
                "expected safetensors, a PyTorch checkpoint or a Keras model, found {file_bytes} bytes of another format, or \
                 truncated; ONNX, which has no magic bytes, is known by a name ending in .onnx, or read by `onnx::OnnxModel`"
            ),
        }
    }
}
