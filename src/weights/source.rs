//! Stage 1, read: what is asked of a file, and what every reader looks at first.
//!
//! In:  a path.
//! Out: [`ReadOptions`], [`FileContents`]; the bytes, after a look at the first of them.
//! Not here: any format.

use std::fmt;
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

/// An object of a checkpoint that is neither a tensor nor plain data: its class alone knows what it means, and no code
/// of classes is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Where the checkpoint has it, such as `hyper_parameters`.
    pub name: String,
    /// Its class, such as `argparse.Namespace`.
    pub class: String,
}

/// What a file holds besides the numbers of the weights.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileContents {
    /// The format in words.
    pub format: &'static str,
    /// What stands before the network's own names, as the file has it.
    pub prefix: String,
    /// The tensors of the network, by name.
    pub tensors: Vec<TensorInfo>,
    /// All others, by name.
    pub others: Vec<TensorInfo>,
    /// Those of the others that stand in the network's own state dict, by name: the rest of the model, which is not
    /// run, such as a Linear after the network; not the state of an optimizer.
    pub beside: Vec<TensorInfo>,
    /// The objects of a checkpoint that were passed over, by name; at most a thousand.
    pub objects: Vec<ObjectInfo>,
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

/// Whether a file begins as `torch.save` wrote from PyTorch 0.2 to 1.5: with the pickle, of any protocol, of the magic
/// number 0x1950a86a20f9469cfc6c.
pub(crate) fn is_stream(head: &[u8]) -> bool {
    const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
    // As protocols 0 and 1 write it.
    const DECIMAL: &[u8] = b"L119547037146038801333356L\n.";
    const LONGEST: usize = 32;
    if head.starts_with(DECIMAL) {
        return true;
    }
    head.first() == Some(&0x80) && head[..head.len().min(LONGEST)].windows(MAGIC.len()).any(|bytes| bytes == MAGIC)
}

/// Whether a file begins with the header of a tar archive.
pub(crate) fn is_tar(head: &[u8]) -> bool {
    head.get(257..262) == Some(b"ustar")
}

/// Whether a file begins as a JSON object does, which the index of a model in several files is.
pub(crate) fn is_json(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    head.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
}

/// A format that is often taken for weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Foreign {
    /// In words, with an article.
    pub(crate) name: &'static str,
    /// What would help; may be empty.
    pub(crate) advice: &'static str,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if !self.advice.is_empty() {
            write!(f, "; {}", self.advice)?;
        }
        Ok(())
    }
}

/// The format that the first bytes of a file belong to, if it is one of those often taken for weights.
pub(crate) fn foreign(head: &[u8], file_bytes: u64) -> Option<Foreign> {
    const UNPACK: &str = "unpack it first";
    const EXPORT: &str = "export the model as ONNX or Keras, or save its weights as safetensors";
    #[rustfmt::skip]
    const MAGIC: [(&[u8], usize, &str, &str); 25] = [
        (b"PK\x03\x04", 0, "a zip archive, such as torch.save or numpy.savez write", ""),
        (b"ustar", 257, "a tar archive, such as NeMo and torch.save before PyTorch 0.2 wrote", ""),
        (b"\x89HDF", 0, "an HDF5 file, such as Keras writes", ""),
        (b"version https://git-lfs", 0, "a pointer of Git LFS, which stands in for the file", "fetch the file itself with `git lfs pull`"),
        (b"\x1f\x8b", 0, "a gzip archive", "unpack it first, with `gunzip` or `tar -xzf`; a .nemo file holds model_weights.ckpt, which is read"),
        (b"BZh", 0, "a bzip2 archive", UNPACK),
        (b"\xfd7zXZ\x00", 0, "an xz archive", UNPACK),
        (b"7z\xbc\xaf\x27\x1c", 0, "a 7z archive", UNPACK),
        (b"\x28\xb5\x2f\xfd", 0, "a zstd archive", UNPACK),
        (b"\x04\x22\x4d\x18", 0, "an lz4 archive", UNPACK),
        (b"Rar!", 0, "a rar archive", UNPACK),
        (b"TFL3", 4, "a TensorFlow Lite model", "its weights are in the model that it was converted from: read that one"),
        (b"\x93NUMPY", 0, "a numpy array (.npy)", "weights have names: save a state dict as safetensors"),
        (b"GGUF", 0, "a GGUF file", EXPORT),
        (b"lmgg", 0, "a GGML file", EXPORT),
        (b"tjgg", 0, "a GGML file", EXPORT),
        (b"MATLAB 5.0", 0, "a MATLAB file (.mat)", EXPORT),
        (b"PAR1", 0, "a Parquet file", EXPORT),
        (b"\x7fELF", 0, "a program (ELF)", ""),
        (b"MZ", 0, "a program (Windows)", ""),
        (b"%PDF", 0, "a PDF document", ""),
        (b"ORTM", 4, "an onnxruntime model (.ort)", "read the ONNX model that it was made from"),
        (b"TRTRT", 0, "a TensorRT engine", "read the ONNX model that it was made from"),
        (b"ftrt", 0, "a TensorRT engine", "read the ONNX model that it was made from"),
        (b"\x80", 0, "a pickle that torch.save did not write", "in Python, load it and save its tensors with safetensors.torch.save_file"),
    ];
    if file_bytes == 0 {
        return Some(Foreign { name: "an empty file", advice: "was its download complete?" });
    }
    let found = MAGIC.iter().find(|(magic, at, ..)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    if let Some(&(_, _, name, advice)) = found {
        return Some(Foreign { name, advice });
    }
    if is_saved_model(head) {
        let advice = "save the model with model.save(\"model.keras\"), or convert it with tf2onnx";
        return Some(Foreign { name: "a TensorFlow SavedModel (saved_model.pb)", advice });
    }
    // The first fields of ONNX' ModelProto: ir_version, then a string or the graph.
    if let [0x08, 1..=32, 0x12 | 0x1a | 0x22 | 0x32 | 0x3a | 0x42, ..] = head {
        let advice = "it is known by a name ending in .onnx, or read by `onnx::OnnxModel`";
        return Some(Foreign { name: "an ONNX model", advice });
    }
    text(head)
}

/// Whether this is `saved_model_schema_version: 1`, then a MetaGraphDef that begins with its MetaInfoDef.
fn is_saved_model(head: &[u8]) -> bool {
    let Some(rest) = head.strip_prefix(b"\x08\x01\x12") else {
        return false;
    };
    let length_bytes = rest.iter().take(5).position(|byte| byte & 0x80 == 0).map_or(0, |last| last + 1);
    length_bytes > 0 && rest.get(length_bytes) == Some(&0x0a)
}

/// What kind of text the first bytes are.
fn text(head: &[u8]) -> Option<Foreign> {
    let lossy = String::from_utf8_lossy(head);
    let start = lossy.trim_start_matches('\u{feff}').trim_start();
    // The head may end within a character.
    let is_utf8 = std::str::from_utf8(head).map_or_else(|e| e.error_len().is_none(), |_| true);
    let is_text = is_utf8 && head.iter().all(|&byte| byte >= 0x20 || matches!(byte, b'\t' | b'\n' | b'\r'));
    let lower = start.get(..start.len().min(16)).unwrap_or_default().to_ascii_lowercase();
    let (name, advice) = if lower.starts_with("<!doctype html") || lower.starts_with("<html") {
        ("an HTML page", "the download got a web page in place of the file: fetch the file's own address")
    } else if !is_text {
        return None;
    } else if start.starts_with('<') {
        ("XML", "")
    } else if start.starts_with(['{', '[']) {
        ("JSON, such as a configuration", "weights are in another file, often model.safetensors beside it")
    } else {
        ("text", "")
    };
    Some(Foreign { name, advice })
}

/// A name from a file as messages show it: control characters escaped, cut if long.
#[cfg(any(test, feature = "safetensors", feature = "pytorch"))]
pub(crate) fn shown(name: &str) -> Shown<'_> {
    Shown { text: name, longest: 80 }
}

/// See [`shown`].
#[cfg(any(test, feature = "safetensors", feature = "pytorch"))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'a> {
    text: &'a str,
    longest: usize,
}

#[cfg(any(test, feature = "safetensors", feature = "pytorch"))]
impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for (i, c) in self.text.chars().enumerate() {
            if i == self.longest {
                return f.write_char('…');
            }
            // Those that turn the direction of text move what stands around them too.
            if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            {
                write!(f, "{}", c.escape_unicode())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

/// The same for a message of another library, which may quote a name.
#[cfg(any(feature = "safetensors", feature = "pytorch"))]
pub(crate) fn shown_message(text: &str) -> Shown<'_> {
    Shown { text, longest: 300 }
}

/// The bytes of the file at `path`, after `check` of its first [`HEAD_BYTES`] bytes and its size.
pub(crate) fn read_bytes(path: &Path, check: impl FnOnce(&[u8], u64) -> Result<()>) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::new(ErrorKind::InvalidFile, format!("cannot be read: {e}"));
    // Before it is opened: opening a named pipe waits for a writer.
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        let has = |name: &str| path.join(name).is_file();
        let inside = ["model.safetensors.index.json", "pytorch_model.bin.index.json", "model.safetensors"];
        match inside.into_iter().find(|name| has(name)) {
            Some(name) => bail!(InvalidFile, "expected a file, found a directory; give its {name}"),
            None if has("saved_model.pb") => bail!(
                InvalidFile,
                "expected a file, found a directory, a TensorFlow SavedModel; save the model with \
                 model.save(\"model.keras\"), or convert it with tf2onnx"
            ),
            None => bail!(InvalidFile, "expected a file, found a directory"),
        }
    }
    if !metadata.is_file() {
        bail!(InvalidFile, "expected a file, found a pipe or a device; save what it gives to a file first");
    }
    let mut file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut bytes).map_err(failed)?;
    check(&bytes, metadata.len())?;
    let rest = metadata.len().saturating_sub(bytes.len() as u64);
    if usize::try_from(rest).ok().is_none_or(|rest| bytes.try_reserve_exact(rest).is_err()) {
        bail!(InvalidFile, "expected a file that fits in memory, found {} bytes", metadata.len());
    }
    // No more than that, should the file grow meanwhile.
    file.take(rest).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_formats_are_named() {
        for (head, name) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"[..], "a pointer of Git LFS"),
            (b"\x1f\x8b\x08\x00", "a gzip archive"),
            (b"BZh91AY", "a bzip2 archive"),
            (b"\xfd7zXZ\x00\x00", "an xz archive"),
            (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
            (b"\x28\xb5\x2f\xfd\x04", "a zstd archive"),
            (b"\x1c\x00\x00\x00TFL3", "a TensorFlow Lite model"),
            (b"\x08\x01\x12\xd0\x9c\x01\x0a\xa0", "a TensorFlow SavedModel"),
            (b"\x08\x08\x12\x07pytorch", "an ONNX model"),
            (b"\x93NUMPY\x01\x00", "a numpy array"),
            (b"GGUF\x03", "a GGUF file"),
            (b"  {\"architectures\": [\"Lstm\"]}", "JSON"),
            (b"\n<!DOCTYPE html><html>", "an HTML page"),
            (b"<html><head>", "an HTML page"),
            (b"<?xml version", "XML"),
            (b"hello\n", "text"),
            (b"\x80\x04\x95", "a pickle"),
        ] {
            let found = foreign(head, head.len() as u64).unwrap_or_else(|| panic!("{name}")).to_string();
            assert!(found.starts_with(name), "{name}: {found}");
        }
        assert_eq!(foreign(b"", 0).unwrap().name, "an empty file");
        assert!(foreign(b"\x01\x02\x03", 3).is_none());
    }

    #[test]
    fn names_are_shown_short_and_without_control_characters() {
        assert_eq!(shown("naïve.weight").to_string(), "naïve.weight");
        assert_eq!(shown("a\x1b[31mb\n\u{202e}").to_string(), "a\\u{1b}[31mb\\u{a}\\u{202e}");
        assert_eq!(shown(&"é".repeat(81)).to_string(), "é".repeat(80) + "…");
        assert_eq!(shown(&"é".repeat(80)).to_string(), "é".repeat(80));
    }
}
