//! Damaged files: whatever the bytes, reading ends with weights or with an error, soon and in bounded memory.
//!
//! In:  the files of `tests/data` that readers of weights take, as seeds.
//! A mutation is a function of its number, so a failure names the number that brings it back. Whole files are damaged,
//! and, put together again afterwards, the pickle of an archive and the header of safetensors: a damaged length elsewhere
//! would be all that a reader gets to see.
//! `LSTM_FUZZ` is how many are made, 10000 unless set; `LSTM_FUZZ_FIRST` the number of the first.

use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wgpu_lstm::weights::{self, ReadOptions, pytorch, safetensors};

/// Much more than any of the small files takes, on a busy machine too.
const LONGEST: Duration = Duration::from_secs(10);

/// What all mutations together may add to the process' peak memory.
const MOST_BYTES: u64 = 2 << 30;

const LONGEST_MESSAGE: usize = 4096;

/// A file, and how its inner part is put into it again.
struct Seed {
    name: String,
    inner: Vec<u8>,
    container: Container,
}

enum Container {
    /// The inner part is the file.
    None,
    /// It is this entry of an archive.
    Zip { entry: String, others: BTreeMap<String, Vec<u8>> },
    /// It is the header; this follows.
    Safetensors { data: Vec<u8> },
}

impl Seed {
    fn whole(&self, inner: &[u8]) -> Vec<u8> {
        match &self.container {
            Container::None => inner.to_vec(),
            Container::Safetensors { data } => [&(inner.len() as u64).to_le_bytes()[..], inner, data].concat(),
            Container::Zip { entry, others } => {
                let mut bytes = Vec::new();
                let mut archive = rawzip::ZipArchiveWriter::new(&mut bytes);
                let others = others.iter().map(|(name, data)| (name.as_str(), data.as_slice()));
                for (name, data) in [(entry.as_str(), inner)].into_iter().chain(others) {
                    let file = archive.new_file(name).compression_method(rawzip::CompressionMethod::STORE);
                    let (mut file, config) = file.start().unwrap();
                    let mut writer = config.wrap(&mut file);
                    writer.write_all(data).unwrap();
                    let (_, descriptor) = writer.finish().unwrap();
                    file.finish(descriptor).unwrap();
                }
                archive.finish().unwrap();
                bytes
            }
        }
    }
}

/// The entries of an archive without compression.
fn entries(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let archive = rawzip::ZipArchive::from_slice(bytes).unwrap();
    let mut entries = BTreeMap::new();
    for entry in archive.entries() {
        let entry = entry.unwrap();
        let (start, end) = archive.get_entry(entry.wayfinder()).unwrap().compressed_data_range();
        let name = std::str::from_utf8(entry.file_path().as_ref()).unwrap().to_owned();
        entries.insert(name, bytes[start as usize..end as usize].to_vec());
    }
    entries
}

fn seeds() -> Vec<Seed> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for folder in ["checkpoints", "burn", "checkpoints/sharded_safetensors", "checkpoints/sharded_bin"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder);
        paths.extend(
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()),
        );
    }
    paths.sort();
    let mut seeds = Vec::new();
    for path in paths {
        let bytes = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if bytes.starts_with(b"PK") {
            let mut others = entries(&bytes);
            let entry = others.keys().find(|name| name.ends_with("/data.pkl")).unwrap().clone();
            let inner = others.remove(&entry).unwrap();
            seeds.push(Seed { name: format!("{name}: pickle"), inner, container: Container::Zip { entry, others } });
        } else if name.ends_with(".safetensors") {
            let size = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let container = Container::Safetensors { data: bytes[size..].to_vec() };
            seeds.push(Seed { name: format!("{name}: header"), inner: bytes[8..size].to_vec(), container });
        }
        seeds.push(Seed { name, inner: bytes, container: Container::None });
    }
    seeds
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn range(&mut self, length: usize, longest: usize) -> std::ops::Range<usize> {
        let start = self.below(length);
        start..length.min(start + 1 + self.below(longest))
    }
}

/// Damages bytes in one to four ways, most often in one.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    const OPCODES: &[u8] = b"().0123}]{tRbQPsueahjqrcioplgSVIFLXUTBC\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96NKJMG";
    const SIZES: [u64; 12] =
        [0, 1, 2, 8, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];
    for _ in 0..1 + random.below(2) * random.below(4) {
        let length = bytes.len();
        if length == 0 {
            return;
        }
        let at = random.below(length);
        match random.below(12) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = OPCODES[random.below(OPCODES.len())],
            3 => bytes[at] = b"0123456789[]{},:\"-.eE_lr"[random.below(24)],
            4 => bytes.truncate(at),
            5 => {
                let range = random.range(length, 64);
                bytes.drain(range);
            }
            6 => {
                let range = random.range(length, 64);
                let copy = bytes[range].to_vec();
                bytes.splice(at..at, copy);
            }
            // A part many times: what takes more memory than bytes shows.
            7 => {
                let range = random.range(length, 16);
                let copy = bytes[range].repeat(1 + random.below(400));
                bytes.splice(at..at, copy);
            }
            8 if !other.is_empty() => {
                let range = random.range(other.len(), 200);
                let end = length.min(at + random.below(2) * range.len());
                bytes.splice(at..end, other[range].iter().copied());
            }
            9 => {
                let size = SIZES[random.below(SIZES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(length - at);
                bytes[at..at + width].copy_from_slice(&size[..width]);
            }
            // A length, off by little.
            10 => bytes[at] = bytes[at].wrapping_add([1, 255, 4, 252][random.below(4)]),
            _ => {
                let opcode = OPCODES[random.below(OPCODES.len())];
                bytes.insert(at, opcode);
            }
        }
    }
}

/// Every way to read bytes; the number of those that took them.
fn exercise(bytes: &[u8]) -> usize {
    let options = |prefix: Option<&str>| ReadOptions { prefix: prefix.map(str::to_owned), ..ReadOptions::default() };
    let _ = pytorch::list_prefixes(bytes);
    let _ = safetensors::list_prefixes(bytes);
    let _ = safetensors::read_tensor(bytes, "x");
    let read = [None, Some("encoder"), Some("")].map(|prefix| weights::read(bytes, &options(prefix)));
    for found in &read {
        if let Err(error) = found {
            let message = error.to_string();
            assert!(message.len() <= LONGEST_MESSAGE, "a message of {} bytes: {message}", message.len());
            assert!(message.chars().all(|c| !c.is_control()), "control characters in {message:?}");
        }
    }
    read.iter().flatten().count()
}

/// The peak of memory in use.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

#[test]
fn damaged_files_end_in_weights_or_an_error() {
    let seeds = seeds();
    assert!(seeds.len() > 60, "only {} seeds", seeds.len());
    for seed in &seeds {
        let whole = seed.whole(&seed.inner);
        let original = seed.name.split(": ").next().unwrap();
        let is_refused =
            ["hostile", "torchscript", "cells.pt", "json", "00002-of"].iter().any(|part| original.contains(part));
        assert_eq!(exercise(&whole) > 0, !is_refused, "{}", seed.name);
    }
    let before = peak_bytes();
    let (first, count) = (variable("LSTM_FUZZ_FIRST", 0), variable("LSTM_FUZZ", 10_000));
    let mut accepted = 0;
    let mut slowest = (Duration::ZERO, 0);
    for number in first..first + count {
        let mut random = Random(number.wrapping_mul(0xd6e8_feb8_6659_fd93));
        let seed = &seeds[random.below(seeds.len())];
        let other = &seeds[random.below(seeds.len())];
        let mut inner = seed.inner.clone();
        mutate(&mut inner, &other.inner, &mut random);
        let whole = seed.whole(&inner);
        let start = Instant::now();
        let found = catch_unwind(AssertUnwindSafe(|| exercise(&whole)));
        let took = start.elapsed();
        slowest = slowest.max((took, number));
        if found.is_err() || took > LONGEST {
            let path = std::env::temp_dir().join(format!("wgpu-lstm-mutation-{number}"));
            std::fs::write(&path, &whole).unwrap();
            panic!(
                "mutation {number} of {} took {took:?}, panic: {}; kept as {}",
                seed.name,
                found.is_err(),
                path.display()
            );
        }
        accepted += u64::from(found.unwrap_or(0) > 0);
    }
    // Neither all nor none: damage that no reader notices, or that none gets past, tests little.
    assert!(count < 1000 || (count / 50..count / 4 * 3).contains(&accepted), "{accepted} of {count} were accepted");
    println!("{count} mutations from {first}: {accepted} accepted, the slowest {:?} ({})", slowest.0, slowest.1);
    if let (Some(before), Some(after)) = (before, peak_bytes()) {
        println!("peak memory: {} MiB before, {} MiB after", before >> 20, after >> 20);
        assert!(after - before < MOST_BYTES, "took {} MiB", (after - before) >> 20);
    }
}
