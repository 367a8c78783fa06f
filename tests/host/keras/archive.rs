//! Archives as Keras writes them, and as nobody should.

use rawzip::{ZipArchive, crc32};
use serde_json::Value;

use super::bytes;

/// A stored entry; what an honest archive says of it can be changed.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub name: String,
    /// The name where the entry stands, if the directory has another.
    pub local_name: Option<String>,
    pub method: u16,
    pub sum: Option<u32>,
    pub bytes: Vec<u8>,
}

impl Entry {
    pub(super) fn new(name: &str, bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), local_name: None, method: 0, sum: None, bytes }
    }
}

/// Writes a zip archive.
pub(super) fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    let word = |n: usize| u32::try_from(n).unwrap().to_le_bytes();
    let half = |n: usize| u16::try_from(n).unwrap().to_le_bytes();
    for entry in entries {
        let local = entry.local_name.as_ref().unwrap_or(&entry.name);
        let sum = entry.sum.unwrap_or_else(|| crc32(&entry.bytes));
        let described = |name: &str| {
            let mut header = vec![20, 0, 0, 0];
            header.extend(entry.method.to_le_bytes());
            header.extend([0; 4]);
            header.extend(sum.to_le_bytes());
            header.extend(word(entry.bytes.len()));
            header.extend(word(entry.bytes.len()));
            header.extend(half(name.len()));
            header.extend(half(0));
            header
        };
        let offset = file.len();
        file.extend(b"PK\x03\x04");
        file.extend(described(local));
        file.extend(local.as_bytes());
        file.extend(&entry.bytes);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(described(&entry.name));
        // Comment, disk, attributes.
        directory.extend([0; 10]);
        directory.extend(word(offset));
        directory.extend(entry.name.as_bytes());
    }
    let start = file.len();
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([half(entries.len()), half(entries.len())].concat());
    file.extend([word(directory.len()), word(start)].concat());
    file.extend(half(0));
    file
}

/// The entries of a fixture.
pub(super) fn entries(file: &str) -> Vec<Entry> {
    let file = bytes(file);
    let archive = ZipArchive::from_slice(&file).unwrap();
    let entry = |entry: Result<rawzip::ZipFileHeaderRecord<'_>, rawzip::Error>| {
        let entry = entry.unwrap();
        let name = String::from_utf8(entry.file_path().as_ref().to_vec()).unwrap();
        Entry::new(&name, archive.get_entry(entry.wayfinder()).unwrap().data().to_vec())
    };
    archive.entries().map(entry).collect()
}

/// A fixture with another configuration.
pub(super) fn with_config(file: &str, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut entries = entries(file);
    let config = entries.iter_mut().find(|e| e.name == "config.json").unwrap();
    let mut value: Value = serde_json::from_slice(&config.bytes).unwrap();
    change(&mut value);
    config.bytes = serde_json::to_vec(&value).unwrap();
    archive(&entries)
}

/// The entry of a layer in the configuration of a model.
pub(super) fn layer<'a>(model: &'a mut Value, name: &str) -> &'a mut Value {
    let layers = model["config"]["layers"].as_array_mut().unwrap();
    layers.iter_mut().find(|l| l["config"]["name"] == name).unwrap_or_else(|| panic!("no layer {name}"))
}

#[test]
fn an_archive_written_anew_reads_the_same() {
    let read = |bytes: &[u8]| wgpu_lstm::weights::keras::read(bytes, None).unwrap();
    assert_eq!(read(&with_config("k3_stack.keras", |_| {})), read(&bytes("k3_stack.keras")));
}
