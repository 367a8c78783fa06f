//! Stage 1, read: a checkpoint that `torch.save` wrote (`.pt`, `.pth`) → [`LstmWeights`], without running its code.
//!
//! In:  the zip archive that `torch.save` writes since PyTorch 1.6, with one or more `torch.nn.LSTM`, `GRU`, `RNN` or
//!      their cells in state dicts at any depth of dicts; f32, f16, bf16 or f64; views of any offset and stride.
//! Out: tensors by name, the keys joined by dots (`state_dict.encoder.weight_ih_l0`), and from them [`LstmWeights`].
//! A checkpoint is a pickle, a program that may call anything. Here it is data: what it would call is described if it
//! is what tensors and plain data are made of, and refused by name if not (`pickle`).
//! Not here: whole modules (`torch.save(module)`), TorchScript, the formats before 1.6; what names mean
//! (`state_dict`).

use std::collections::BTreeMap;
use std::path::Path;

use super::LstmWeights;
use super::source::{ReadOptions, magic_name, read_bytes};
use super::state_dict::StateDict;
use super::tensor::{ElementType, Tensor};
use crate::error::{Result, bail};

use archive::Archive;
use pickle::{MAX_TENSORS, Node, Pickle, TensorView, Value};

pub(crate) mod archive;
mod pickle;

/// The deepest nesting of dicts that is searched.
const MAX_DEPTH: usize = 64;

/// The most entries of dicts that are looked at; one dict may be found in several places.
const MAX_VISITS: usize = 1 << 23;

/// The longest name, in bytes.
const MAX_NAME: usize = 1024;

/// Reads the network under `prefix`, or the only one in the checkpoint if `prefix` is `None`; an RNN with tanh.
///
/// `prefix` may be given with or without its last dot, and without what wrappers put into names: `lstm` finds
/// `state_dict.module.lstm.`. `Some("")` means the top level. [`weights::read`](super::read) has more options.
///
/// # Errors
/// [`InvalidFile`](crate::ErrorKind::InvalidFile) if the bytes are not a complete checkpoint, records overlap or lie
/// outside the file, or a tensor lies outside its record; [`Unsupported`](crate::ErrorKind::Unsupported) if reading it
/// would run code, a record is compressed, the byte order is big, or a weight has a type other than f32, f16, bf16 or
/// f64; [`InvalidWeights`](crate::ErrorKind::InvalidWeights) if no network or several fit, a tensor is missing,
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
    let bytes = read_bytes(path, |head, _| check_head(head));
    bytes.and_then(|bytes| read(&bytes, prefix)).map_err(|e| e.context(path.display()))
}

/// The prefixes under which the checkpoint holds a network, sorted; the top level is the empty one.
///
/// # Errors
/// As [`read`] as far as it concerns the file.
pub fn list_prefixes(bytes: &[u8]) -> Result<Vec<String>> {
    Ok(state_dict(bytes)?.prefixes())
}

/// Refuses what cannot be a checkpoint by its first bytes.
fn check_head(head: &[u8]) -> Result<()> {
    if head.starts_with(b"PK") {
        return Ok(());
    }
    match magic_name(head) {
        Some(name) => bail!(InvalidFile, "expected a zip archive, as torch.save writes, found {name}"),
        None => bail!(InvalidFile, "expected a zip archive, as torch.save writes, found another format"),
    }
}

/// The tensors of a checkpoint.
pub(crate) fn state_dict(bytes: &[u8]) -> Result<StateDict<'_>> {
    check_head(bytes)?;
    let archive = Archive::open(bytes)?;
    if archive.get("constants.pkl")?.is_some() {
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
    let mut search =
        Search { pickle: &pickle, archive: &archive, name: String::new(), visits: 0, tensors: BTreeMap::new() };
    search.collect(pickle.root, 0)?;
    Ok(StateDict { format: "PyTorch checkpoint", tensors: search.tensors, file_bytes: bytes.len() })
}

/// Walks the dicts of a pickle.
struct Search<'p, 'a> {
    pickle: &'p Pickle<'a>,
    archive: &'p Archive<'a>,
    /// Of the value looked at, ending with a dot if it is in a dict.
    name: String,
    visits: usize,
    tensors: BTreeMap<String, Tensor<'a>>,
}

impl Search<'_, '_> {
    fn collect(&mut self, value: Value<'_>, depth: usize) -> Result<()> {
        let pickle = self.pickle;
        let node = match value {
            Value::Node(id) => pickle.nodes.get(id),
            _ => None,
        };
        match node {
            Some(Node::Dict { entries, .. }) => {
                if depth > MAX_DEPTH {
                    bail!(InvalidFile, "expected dicts nested at most {MAX_DEPTH} deep, found them deeper");
                }
                for (key, value) in entries {
                    self.visits += 1;
                    if self.visits > MAX_VISITS {
                        bail!(InvalidFile, "expected at most {MAX_VISITS} entries of dicts, found more");
                    }
                    if !matches!(value, Value::Node(_)) {
                        continue;
                    }
                    let length = self.name.len();
                    if length > 0 {
                        self.name.push('.');
                    }
                    match key {
                        Value::Str(key) if key.len() <= MAX_NAME => self.name.push_str(key),
                        Value::Int(key) => self.name.push_str(&key.to_string()),
                        // No name of a tensor that anyone could ask for.
                        _ => {
                            self.name.truncate(length);
                            continue;
                        }
                    }
                    self.collect(*value, depth + 1)?;
                    self.name.truncate(length);
                }
                Ok(())
            }
            Some(Node::Tensor(view)) => self.tensor(view),
            _ => Ok(()),
        }
    }

    fn tensor(&mut self, view: &TensorView<'_>) -> Result<()> {
        let name = &self.name;
        if name.len() > MAX_NAME || self.tensors.len() >= MAX_TENSORS {
            bail!(
                InvalidFile,
                "expected at most {MAX_TENSORS} tensors with names of at most {MAX_NAME} bytes, found more or longer ones"
            );
        }
        if view.storage.key.len() > MAX_NAME {
            bail!(InvalidFile, "{name}: expected the key of a record, found one of {} bytes", view.storage.key.len());
        }
        let record = format!("data/{}", view.storage.key);
        let Some(bytes) = self.archive.get(&record)? else {
            bail!(InvalidFile, "{name}: expected the record {record:?}, found none");
        };
        let unit = view.storage.element.map_or(1, ElementType::size_bytes);
        let claimed = view.storage.len.checked_mul(unit);
        if claimed != Some(bytes.len()) {
            bail!(
                InvalidFile,
                "{name}: {record}: expected {} elements of {unit} bytes, found {} bytes",
                view.storage.len,
                bytes.len()
            );
        }
        let tensor = Tensor::strided(view.element, view.shape.clone(), view.strides.clone(), view.offset, bytes);
        let tensor = tensor.map_err(|e| e.context(name))?;
        if self.tensors.insert(name.clone(), tensor).is_some() {
            bail!(InvalidFile, "{name}: expected one tensor of this name, found two");
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "safetensors"))]
mod tests;
