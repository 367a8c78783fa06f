//! Stage 1, read: a model in several files → which files, and which tensor is in which.
//!
//! In:  an index as Hugging Face's libraries write it (`model.safetensors.index.json`, `pytorch_model.bin.index.json`):
//!      {"weight_map": {"encoder.weight_ih_l0": "model-00001-of-00002.safetensors", ..}}
//! Out: [`Index`]: the tensors by name, each with a file in the index's own folder.
//! A shard alone is refused: the network in it may lack what the others hold, such as its biases.
//! Not here: what the files hold (`safetensors`, `pytorch`), joining them (`file`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::source::{read_bytes, shown, shown_message};
use crate::error::{Error, ErrorKind, Result, bail};

/// The largest index, which is bytes of names.
const MAX_BYTES: u64 = 64 << 20;

/// The most files of a model.
const MAX_SHARDS: usize = 10_000;

/// The most files that are looked at to find whether one is a shard.
const MAX_INDICES: usize = 16;

/// How the names of indices end.
const INDEX: &str = ".index.json";

/// The tensors of a model by name, and the file that each is in.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) files: BTreeMap<String, String>,
}

impl Index {
    /// Reads an index.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let failed = |e: serde_json::Error| {
            Error::new(ErrorKind::InvalidFile, format!("not a complete JSON file: {}", shown_message(&e.to_string())))
        };
        let json: Value =
            serde_json::from_slice(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)).map_err(failed)?;
        let Some(Value::Object(map)) = json.get("weight_map") else {
            bail!(
                InvalidFile,
                "expected weights, or an index of their files with a weight_map, found JSON, such as a configuration; weights \
                 are in another file, often model.safetensors beside it"
            );
        };
        let mut files = BTreeMap::new();
        for (tensor, file) in map {
            let Value::String(file) = file else {
                bail!(InvalidFile, "weight_map: {}: expected the name of a file, found something else", shown(tensor));
            };
            // In the folder of the index, whatever the system's rules for paths are.
            if file.is_empty() || file.contains(['/', '\\', ':', '\0']) || matches!(file.as_str(), "." | "..") {
                bail!(
                    InvalidFile,
                    "weight_map: {}: expected a file in the folder of the index, found \"{}\"",
                    shown(tensor),
                    shown(file)
                );
            }
            files.insert(tensor.clone(), file.clone());
        }
        let index = Self { files };
        let num_shards = index.shards().len();
        if num_shards == 0 || num_shards > MAX_SHARDS {
            bail!(InvalidFile, "weight_map: expected tensors in 1 to {MAX_SHARDS} files, found {num_shards} files");
        }
        Ok(index)
    }

    /// The files, in order.
    pub(super) fn shards(&self) -> BTreeSet<&str> {
        self.files.values().map(String::as_str).collect()
    }
}

/// Refuses an index that is too large for one.
pub(super) fn check_size(file_bytes: u64) -> Result<()> {
    if file_bytes > MAX_BYTES {
        bail!(InvalidFile, "expected an index of at most {MAX_BYTES} bytes, found JSON of {file_bytes}");
    }
    Ok(())
}

/// Refuses a file that is one of several: its name says so (`model-00001-of-00002.safetensors`), or an index beside it.
pub(super) fn refuse_lone_shard(path: &Path) -> Result<()> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Ok(());
    };
    if name.ends_with(INDEX) {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let index = index_of(folder, name);
    let number = number_of(name);
    match (index, number) {
        (Some(index), _) => bail!(
            InvalidFile,
            "expected a whole model, found {}, one of its shards; give the index {}",
            shown(name),
            shown(&index)
        ),
        (None, Some((number, of))) if of > 1 => bail!(
            InvalidFile,
            "expected a whole model, found shard {number} of {of} by its name; give the index of the shards (named like \
             model.safetensors{INDEX}), or join them into one file"
        ),
        _ => Ok(()),
    }
}

/// The 1 and 2 of `model-00001-of-00002.safetensors`.
fn number_of(name: &str) -> Option<(u32, u32)> {
    let (before, after) = name.rsplit_once("-of-")?;
    let digits = |text: &str| (3..=9).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = before.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    let of = after.split(|c: char| !c.is_ascii_digit()).next()?;
    (digits(number) && digits(of)).then_some(())?;
    number.parse().ok().zip(of.parse().ok())
}

/// The name of an index in the folder that has this file and others.
fn index_of(folder: &Path, name: &str) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut indices: Vec<String> = names.filter(|name| name.ends_with(INDEX)).take(MAX_INDICES).collect();
    indices.sort_unstable();
    indices.into_iter().find(|index| {
        let bytes = read_bytes(&folder.join(index), |_, file_bytes| check_size(file_bytes));
        let index = bytes.and_then(|bytes| Index::parse(&bytes));
        index.is_ok_and(|index| index.shards().len() > 1 && index.shards().contains(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_shards_are_recognised() {
        for (name, expected) in [
            ("model-00001-of-00002.safetensors", Some((1, 2))),
            ("pytorch_model-00003-of-00010.bin", Some((3, 10))),
            ("model_part-001-of-004", Some((1, 4))),
            ("best-of-both.safetensors", None),
            ("run-1-of-2.safetensors", None),
            ("model.safetensors", None),
        ] {
            assert_eq!(number_of(name), expected, "{name}");
        }
    }

    #[test]
    fn an_index_names_files_of_its_own_folder_only() {
        for name in ["../secret", "a/b", "/etc/passwd", "..", "", "a\\\\b", "c:x"] {
            let error =
                Index::parse(format!(r#"{{"weight_map": {{"w": "{name}"}}}}"#).as_bytes()).unwrap_err().to_string();
            assert!(error.contains("expected a file in the folder of the index"), "{name}: {error}");
        }
        assert_eq!(Index::parse(br#"{"weight_map": {"w": "a", "v": "a", "u": "b"}}"#).unwrap().shards().len(), 2);
        for broken in [&br#"{"weight_map": {}}"#[..], br#"{"weight_map": {"w": 1}}"#, b"{\"weight_map\": ", b"{}"] {
            assert!(Index::parse(broken).is_err());
        }
        assert!(Index::parse(&b"[".repeat(1 << 20)).is_err());
    }
}
