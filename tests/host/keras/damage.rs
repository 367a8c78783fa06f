//! Files cut short and files changed at random: reading ends, in weights or in an error.
//!
//! `LSTM_FUZZ=300000` sets how many changed files are read; the n-th is the same in every run.

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use super::archive::{Entry, archive, entries};
use super::*;

fn files() -> Vec<String> {
    let mut files: Vec<String> = FIXTURES.iter().map(|f| f.file.clone()).collect();
    files.dedup();
    files.extend(["cycle", "bomb", "shape", "chunk", "links"].map(|name| format!("hostile_{name}.weights.h5")));
    files
}

/// Reads all that can be read; no matter what comes out, as long as it comes out.
fn read_all(bytes: &[u8]) {
    if let Ok(layers) = keras::list_layers(bytes) {
        for layer in layers.iter().take(8) {
            let _ = keras::read(bytes, Some(&layer.name));
        }
    }
    let _ = keras::read(bytes, None);
}

#[test]
fn truncated_files_are_refused() {
    for file in files() {
        let bytes = bytes(&file);
        let step = if std::env::var_os("LSTM_FULL").is_some() { 7 } else { bytes.len() / 100 };
        for len in (0..bytes.len()).step_by(step.max(1)) {
            read_all(&bytes[..len]);
            // The last member of an archive is its directory, the first bytes of HDF5 say how long it is.
            let error = keras::list_layers(&bytes[..len]).map(|_| ());
            assert!(error.is_err_and(|e| e.kind() == ErrorKind::InvalidFile), "{file} cut at {len}");
        }
    }
}

/// The numbers of one changed file.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) >> 16).unwrap() % n.max(1)
    }

    /// Changes bytes: bits, fields that hold sizes and addresses, pieces copied within the file, and its length.
    fn change(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(9) {
                0 | 1 => bytes[at] ^= 1 << self.below(8),
                2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                3 | 4 => {
                    let width = [2, 4, 8][self.below(3)];
                    let values = [0, 1, u64::MAX, 1 << 31, 1 << 40, u64::MAX >> 1, at as u64, bytes.len() as u64, 96];
                    let value = values[self.below(values.len())].to_le_bytes();
                    let at = at & !(width - 1);
                    let end = (at + width).min(bytes.len());
                    bytes[at..end].copy_from_slice(&value[..end - at]);
                }
                5 => {
                    let (from, len) = (self.below(bytes.len()), self.below(256));
                    let len = len.min(bytes.len() - from).min(bytes.len() - at);
                    bytes.copy_within(from..from + len, at);
                }
                6 => {
                    let from = self.below(other.len());
                    let len = self.below(512).min(other.len() - from).min(bytes.len() - at);
                    bytes[at..at + len].copy_from_slice(&other[from..from + len]);
                }
                7 => {
                    let end = (at + self.below(64)).min(bytes.len());
                    bytes.drain(at..end);
                }
                _ if self.below(8) == 0 => bytes.truncate(at),
                _ => {
                    let copy = bytes[at..(at + self.below(64)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
        }
    }

    /// Puts another word of a text in the place of one, so that JSON stays JSON.
    fn swap_words(&mut self, text: &mut Vec<u8>) {
        let word = |b: u8| b.is_ascii_alphanumeric() || b"_.-\"".contains(&b);
        let from = |text: &[u8], at: usize| {
            let start = (at..text.len()).find(|&i| word(text[i])).unwrap_or(text.len());
            let end = (start..text.len()).find(|&i| !word(text[i])).unwrap_or(text.len());
            start..end
        };
        const WORDS: [&str; 10] =
            ["null", "true", "-1", "0", "1e300", "18446744073709551615", "\"LSTM\"", "[]", "{}", "\"Bidirectional\""];
        for _ in 0..=self.below(3) {
            let to = from(text, self.below(text.len()));
            let other = from(text, self.below(text.len()));
            let new = if self.below(2) == 0 { text[other].to_vec() } else { WORDS[self.below(10)].as_bytes().to_vec() };
            text.splice(to, new);
        }
    }
}

#[test]
fn changed_files_end_in_weights_or_in_an_error() {
    let rounds = std::env::var("LSTM_FUZZ").map_or(1_500, |n| n.parse().expect("LSTM_FUZZ: a number"));
    let files: Vec<(String, Vec<u8>)> = files().into_iter().map(|file| (file.clone(), bytes(&file))).collect();
    let parts: Vec<Vec<Entry>> =
        files.iter().map(|(file, _)| if file.ends_with(".keras") { entries(file) } else { Vec::new() }).collect();
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let mut draw = Draw(round as u64);
        let (which, other) = (draw.below(files.len()), draw.below(files.len()));
        let other = &files[other].1;
        let mut changed = files[which].1.clone();
        let mut parts = parts[which].clone();
        // Inside an archive the checksum would hide every change.
        if parts.is_empty() || draw.below(4) == 0 {
            draw.change(&mut changed, other);
        } else {
            let part = draw.below(parts.len());
            if parts[part].name.ends_with(".json") && draw.below(4) > 0 {
                draw.swap_words(&mut parts[part].bytes);
            } else {
                draw.change(&mut parts[part].bytes, other);
            }
            changed = archive(&parts);
        }
        let start = Instant::now();
        let seen = catch_unwind(|| read_all(&changed));
        assert!(seen.is_ok(), "{}: panic in round {round}", files[which].0);
        slowest = slowest.max(start.elapsed());
        assert!(slowest < Duration::from_secs(20), "{}: {slowest:?} in round {round}", files[which].0);
    }
    println!("{rounds} changed files, the slowest in {slowest:?}");
}
