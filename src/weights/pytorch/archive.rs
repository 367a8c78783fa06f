//! Stage 1, read: the zip archive of a PyTorch checkpoint → its records.
//!
//! In:  the bytes of a file that `torch.save` wrote: `NAME/data.pkl`, `NAME/data/0` ... stored, not compressed.
//! Out: [`Archive`]: records that borrow from the file.
//! Afterwards every record lies within the file, and no two of them overlap.
//! Not here: what the records hold (`pickle`, `pytorch`). Checksums are not looked at: PyTorch can be told to leave
//! them out.

use std::collections::BTreeMap;
use std::ops::Range;

use rawzip::{CompressionMethod, ZipArchive};

use crate::error::{Error, ErrorKind, Result, bail};
use crate::weights::source::{shown, shown_message};

/// The records of a checkpoint by name, without the folder that they all lie in.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    records: BTreeMap<String, Record<'a>>,
}

#[derive(Debug, Clone, Copy)]
struct Record<'a> {
    bytes: &'a [u8],
    /// Why the bytes cannot be taken as they are.
    refused: Option<&'static str>,
}

impl<'a> Archive<'a> {
    /// Finds the records of the checkpoint in the archive.
    pub(super) fn open(file: &'a [u8]) -> Result<Self> {
        let archive = ZipArchive::from_slice(file).map_err(damaged)?;
        let directory_at = archive.directory_offset();
        let mut entries: BTreeMap<String, Record<'a>> = BTreeMap::new();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut num_entries = 0;
        for entry in archive.entries() {
            let entry = entry.map_err(damaged)?;
            num_entries += 1;
            let local = archive.get_entry(entry.wayfinder()).map_err(damaged)?;
            let (start, end) = local.compressed_data_range();
            ranges.push(entry.local_header_offset()..end);
            let bytes = usize::try_from(start).ok().zip(usize::try_from(end).ok());
            let Some(bytes) = bytes.and_then(|(start, end)| file.get(start..end)) else {
                bail!(InvalidFile, "expected entries within {} bytes, found one that ends at {end}", file.len());
            };
            let refused = if entry.flags().is_encrypted() {
                Some("encrypted")
            } else if entry.compression_method() != CompressionMethod::STORE {
                Some("compressed")
            } else {
                None
            };
            // A name that is no text is none of PyTorch's.
            if let Ok(name) = std::str::from_utf8(entry.file_path().as_ref())
                && entries.insert(name.to_owned(), Record { bytes, refused }).is_some()
            {
                bail!(InvalidFile, "{}: expected one entry of this name, found two", shown(name));
            }
        }
        if num_entries != archive.entries_hint() {
            bail!(InvalidFile, "expected {} entries in the archive, found {num_entries}", archive.entries_hint());
        }
        ranges.sort_unstable_by_key(|range| (range.start, range.end));
        let overlap = ranges.windows(2).any(|pair| pair[0].end > pair[1].start);
        if overlap || ranges.last().is_some_and(|last| last.end > directory_at) {
            bail!(InvalidFile, "expected entries side by side, found some that overlap");
        }
        let mut folders = entries.keys().filter_map(|name| name.strip_suffix("data.pkl"));
        let (folder, another) = (folders.find(|f| is_folder(f)), folders.find(|f| is_folder(f)));
        match (folder, another) {
            (None, _) => {
                let found: Vec<String> = entries.keys().take(4).map(|name| shown(name).to_string()).collect();
                let has = |end: &str| entries.keys().any(|name| name.ends_with(end));
                let found = match found.join(", ") {
                    _ if !entries.is_empty() && entries.keys().all(|name| name.ends_with(".npy")) => format!(
                        "arrays of numpy ({}): a .npz file; save the state dict as safetensors",
                        found.join(", ")
                    ),
                    _ if has("archive_format") || has("serialized_exported_program.json") => {
                        "a program of torch.export (.pt2), which is code; in Python, save \
                         torch.save(torch.export.load(path).state_dict, new_path)"
                            .to_owned()
                    }
                    none if none.is_empty() => "no entries".to_owned(),
                    names => names,
                };
                bail!(InvalidFile, "expected NAME/data.pkl in the zip archive, as torch.save writes it, found {found}")
            }
            (Some(_), Some(_)) => bail!(InvalidFile, "expected one NAME/data.pkl in the zip archive, found two"),
            (Some(folder), None) => {
                let inside =
                    entries.iter().filter_map(|(name, record)| Some((name.strip_prefix(folder)?.to_owned(), *record)));
                Ok(Self { records: inside.collect() })
            }
        }
    }

    /// Whether a record lies in this folder.
    pub(super) fn has_folder(&self, folder: &str) -> bool {
        self.records.keys().any(|name| name.starts_with(folder))
    }

    /// The bytes of a record, if there is one of this name.
    pub(super) fn get(&self, name: &str) -> Result<Option<&'a [u8]>> {
        match self.records.get(name) {
            Some(Record { refused: Some(refused), .. }) => {
                bail!(Unsupported, "{name}: expected a stored record, as torch.save writes them, found a {refused} one")
            }
            Some(record) => Ok(Some(record.bytes)),
            None => Ok(None),
        }
    }
}

/// Whether this is `NAME/`.
fn is_folder(path: &str) -> bool {
    path.strip_suffix('/').is_some_and(|name| !name.contains('/'))
}

fn damaged(error: rawzip::Error) -> Error {
    Error::new(ErrorKind::InvalidFile, format!("not a complete zip archive: {}", shown_message(&error.to_string())))
}
