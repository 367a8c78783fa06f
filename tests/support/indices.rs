//! Sources of kernels in which every index is compared with the length of its array.
//!
//! In:  a kernel's source.
//! Out: the source with `a[i]` as `a[in_range(i, length of a, number of a)]`, which counts what is out of range in `reports`,
//! a storage buffer at group 1, binding 0. An index that is a literal in an array of fixed size stays: naga checks it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use wgpu_lstm::internals::{Kernel, KernelId};

/// What counts as the end of an array.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its end.
    Own,
    /// One element before, so that reading the last is counted.
    OneEarlier,
}

/// The names of all arrays of all kernels; the number of one is its place here.
pub fn array_names() -> &'static [String] {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let all = KernelId::all().into_iter().flat_map(|id| lengths(&without_comments(&id.source())).into_keys());
        all.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    })
}

/// Tiles of kernels that sum: rows and slices.
pub const TILES: [(u32, u32); 7] = [(1, 1), (4, 1), (8, 1), (1, 8), (4, 8), (1, 16), (4, 16)];

/// Numbers in `reports`: of every array, and of every tile of every kernel.
pub fn num_reports() -> usize {
    array_names().len() + Kernel::ALL.len() * TILES.len()
}

/// Where a kernel with its tile reports that it ran: when it uses the first element of an array.
pub fn ran_at(kernel: Kernel, tile: (u32, u32)) -> usize {
    let place = Kernel::ALL.iter().position(|k| *k == kernel).expect("one of all");
    let tile = TILES.iter().position(|t| *t == tile).expect("a tile of plans");
    array_names().len() + place * TILES.len() + tile
}

/// The source of a kernel with counted indices.
pub fn checked(id: KernelId, source: &str, end: End) -> String {
    let source = without_comments(source);
    let lengths = lengths(&source);
    let counted = rewritten(&source, &lengths, end);
    let ran = ran_at(id.kernel, (id.rows, id.slices));
    format!(
        "{counted}
@group(1) @binding(0) var<storage, read_write> reports: array<atomic<u32>>;

fn in_range(index: u32, length: u32, number: u32) -> u32 {{
    if index >= length {{
        atomicAdd(&reports[number], 1u);
    }}
    if index == 0u {{
        atomicStore(&reports[{ran}u], 1u);
    }}
    return index;
}}
"
    )
}

fn without_comments(source: &str) -> String {
    source.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// The arrays of a source with the expressions of their lengths.
fn lengths(source: &str) -> BTreeMap<String, String> {
    let mut lengths = BTreeMap::new();
    for declaration in source.split(';') {
        let Some((_, declared)) = declaration.split_once("var<") else { continue };
        let Some((space, declared)) = declared.split_once('>') else { continue };
        let Some((name, ty)) = declared.split_once(':') else { continue };
        let Some(inner) = ty.trim().strip_prefix("array<").and_then(|t| t.strip_suffix('>')) else { continue };
        let name = name.trim().to_owned();
        let length = match inner.rsplit_once(',') {
            Some((_, length)) => format!("u32({})", length.trim()),
            None => format!("arrayLength(&{name})"),
        };
        assert!(space.starts_with("storage") || space == "workgroup", "{name} is in {space}");
        lengths.insert(name, length);
    }
    // Of a record, in whatever space it lies.
    if source.contains("directions: array<DirectionStep, 2>") {
        lengths.insert("directions".to_owned(), "2u".to_owned());
    }
    lengths
}

fn rewritten(source: &str, lengths: &BTreeMap<String, String>, end: End) -> String {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::new();
    let mut rest = source;
    while let Some(open) = rest.find('[') {
        let name_at = rest[..open].rfind(|c| !is_name(c)).map_or(0, |i| i + 1);
        let name = &rest[name_at..open];
        let close = open + closing(&rest[open..]);
        let index = &rest[open + 1..close];
        out += &rest[..=open];
        let is_fixed = |length: &str| !length.starts_with("arrayLength");
        match lengths.get(name) {
            Some(length) if is_fixed(length) && index.parse::<u32>().is_ok() => out += index,
            Some(length) => {
                let number = array_names().iter().position(|n| n == name).expect("every array has a name");
                let length = if end == End::OneEarlier { format!("{length} - 1u") } else { length.clone() };
                out += &format!("in_range({}, {length}, {number}u)", rewritten(index, lengths, end));
            }
            None => out += &rewritten(index, lengths, end),
        }
        out.push(']');
        rest = &rest[close + 1..];
    }
    out + rest
}

/// The place of the bracket that closes the one at the start.
fn closing(text: &str) -> usize {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' if depth == 1 => return i,
            ']' => depth -= 1,
            _ => {}
        }
    }
    panic!("no bracket closes {text}")
}
