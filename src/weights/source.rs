//! Stage 1, read: what is asked of a file, and what every reader looks at first.
//!
//! In:  a path.
//! Out: [`ReadOptions`], [`FileContents`]; the bytes, after a look at the first of them.
//! Not here: any format.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::activation::Activation;
use crate::error::{Error, ErrorKind, Result, bail};

/// What a file leaves open.
///
/// ```
/// use wgpu_lstm::Activation;
/// use wgpu_lstm::weights::ReadOptions;
/// let options = ReadOptions { rnn_activation: Some(Activation::Relu), ..ReadOptions::default() };
/// assert_eq!(options.prefix, None);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReadOptions {
    /// What stands before the network's own tensor names, for example `encoder.lstm`, with or without its last dot,
    /// and without what wrappers put into names: `lstm` finds `state_dict.module.lstm.`. `Some("")` means the top
    /// level; `None` the only network in the file.
    pub prefix: Option<String>,
    /// The activation of an RNN, which no file has; Tanh unless set. For an LSTM or a GRU it is refused.
    pub rnn_activation: Option<Activation>,
}

/// A tensor as a file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The full name.
    pub name: String,
    /// `F32`, `F16`, `BF16`, `F64` ...
    pub element_type: String,
    /// The sizes of the axes, slowest first.
    pub shape: Vec<usize>,
}

/// What a file holds besides the numbers of the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContents {
    /// The format in words.
    pub format: &'static str,
    /// What stands before the network's own names, as the file has it.
    pub prefix: String,
    /// The tensors of the network, by name.
    pub tensors: Vec<TensorInfo>,
    /// All others, by name.
    pub others: Vec<TensorInfo>,
    /// What a user has to know of how the file's framework runs the network, one line each.
    pub notes: Vec<String>,
}

/// As many of a file's first bytes as tell its format.
pub(crate) const HEAD_BYTES: usize = 512;

/// Whether a file starts as safetensors do: the length of a header in 8 bytes, then JSON.
pub(crate) fn is_safetensors(head: &[u8], file_bytes: u64) -> bool {
    let header_bytes = head.first_chunk().map(|&word| u64::from_le_bytes(word));
    header_bytes.is_some_and(|header_bytes| header_bytes <= file_bytes.saturating_sub(8)) && head.get(8) == Some(&b'{')
}

/// The format that the first bytes of a file belong to, in words, if it is one of those often taken for weights.
pub(crate) fn magic_name(head: &[u8]) -> Option<&'static str> {
    const MAGIC: [(&[u8], usize, &str); 9] = [
        (b"PK\x03\x04", 0, "a zip archive, such as torch.save or numpy.savez write"),
        (b"\x80\x02", 0, "a pickle, such as torch.save wrote before PyTorch 1.6"),
        (b"\x80\x03", 0, "a pickle"),
        (b"\x80\x04", 0, "a pickle"),
        (b"\x80\x05", 0, "a pickle"),
        (b"ustar", 257, "a tar archive, such as torch.save wrote before PyTorch 0.2"),
        (b"\x89HDF", 0, "an HDF5 file, such as Keras writes"),
        (b"\x93NUMPY", 0, "a numpy array"),
        (b"GGUF", 0, "a GGUF file"),
    ];
    let found = MAGIC.iter().find(|(magic, at, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    found.map(|(_, _, name)| *name)
}

/// The bytes of the file at `path`, after `check` of its first [`HEAD_BYTES`] bytes and its size.
pub(crate) fn read_bytes(path: &Path, check: impl FnOnce(&[u8], u64) -> Result<()>) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::new(ErrorKind::InvalidFile, format!("cannot be read: {e}"));
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        bail!(InvalidFile, "expected a file, found a directory");
    }
    let mut bytes = Vec::new();
    file.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut bytes).map_err(failed)?;
    check(&bytes, metadata.len())?;
    bytes.reserve_exact(usize::try_from(metadata.len()).unwrap_or(0).saturating_sub(bytes.len()));
    file.read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
