//! Stage 1, read: the formats of `torch.save` before PyTorch 1.6 → tensors by name.
//!
//! In:  a stream of pickles, then the bytes of storages (PyTorch 0.2 to 1.5); a tar archive (before 0.2); or the tar
//!      archive of a NeMo model, which holds a checkpoint.
//! Out: [`StateDict`].
//! The layouts are those that `torch.serialization._legacy_load` reads:
//!
//! stream:  magic number, 1001, {little_endian ..}, the object, [key ..] as pickles; for each key the number of
//!          elements in 8 bytes, then the elements
//! tar:     `storages`: their number; for each (key, location, type), the number of elements in 8 bytes, the elements;
//!          then the views [(key, key of the whole, offset, number of elements) ..]
//!          `tensors`: their number; for each (key, key of the storage, type), axes in 8 bytes, sizes, strides, offset
//!          `pickle`: the object, whose persistent ids are keys

use std::collections::BTreeMap;

use super::pickle::{self, Global, Key, MAX_TENSORS, Node, Pickle, Storage, TensorView, Value};
use super::search::{Records, search};
use crate::error::{Result, bail};
use crate::weights::source::{is_stream, shown};
use crate::weights::state_dict::StateDict;

/// The version that the stream and its description of the machine have.
const VERSION: i64 = 1001;

/// PyTorch's own limit on axes.
const MAX_AXES: usize = 64;

/// Takes bytes off the front.
struct Reader<'a> {
    rest: &'a [u8],
    /// For messages.
    place: &'static str,
}

impl<'a> Reader<'a> {
    fn take(&mut self, size: usize) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(size) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => {
                let found = self.rest.len();
                bail!(InvalidFile, "{}: expected {size} more bytes, found {found}: truncated?", self.place)
            }
        }
    }

    fn i64(&mut self) -> Result<i64> {
        let mut word = [0; 8];
        word.copy_from_slice(self.take(8)?);
        Ok(i64::from_le_bytes(word))
    }

    fn size(&mut self) -> Result<usize> {
        let number = self.i64()?;
        match usize::try_from(number) {
            Ok(size) => Ok(size),
            Err(_) => bail!(InvalidFile, "{}: expected a size, found {number}", self.place),
        }
    }

    fn pickle(&mut self) -> Result<Pickle<'a>> {
        let pickle = pickle::read(self.rest).map_err(|e| e.context(self.place))?;
        self.take(pickle.size)?;
        Ok(pickle)
    }

    /// A pickle of one whole number.
    fn number(&mut self) -> Result<i64> {
        match self.pickle()?.root {
            Value::Int(number) => Ok(number),
            _ => bail!(InvalidFile, "{}: expected a whole number, found something else", self.place),
        }
    }

    /// The elements of a storage behind their number.
    fn elements(&mut self, element_bytes: usize) -> Result<(usize, &'a [u8])> {
        let len = self.size()?;
        let bytes = self.take(len.saturating_mul(element_bytes))?;
        Ok((len, bytes))
    }
}

/// The tensors of a stream.
pub(super) fn stream(bytes: &[u8]) -> Result<StateDict<'_>> {
    let mut reader = Reader { rest: bytes, place: "header" };
    reader.pickle()?;
    let version = reader.number()?;
    if version != VERSION {
        bail!(Unsupported, "header: expected version {VERSION}, found {version}");
    }
    let machine = reader.pickle()?;
    // Protocols 0 and 1 have no truth values.
    if matches!(machine.entry(machine.root, "little_endian"), Some(Value::Bool(false) | Value::Int(0))) {
        bail!(Unsupported, "header: expected little_endian, found a file of a machine with the other byte order");
    }
    reader.place = "object";
    let object = reader.pickle()?;
    reader.place = "keys of storages";
    let keys = reader.pickle()?;
    let Some(keys) = keys.items(keys.root) else {
        bail!(InvalidFile, "keys of storages: expected a list, found something else");
    };

    // What is behind a key does not say how large its elements are; the object does.
    let mut element_bytes: BTreeMap<Key<'_>, usize> = BTreeMap::new();
    for node in &object.nodes {
        if let Node::Storage(storage) = node
            && element_bytes.insert(storage.key, storage.element_bytes()).is_some_and(|b| b != storage.element_bytes())
        {
            bail!(InvalidFile, "object: expected one type per storage, found two of {:?}", storage.key);
        }
    }
    reader.place = "storages";
    let mut table: BTreeMap<Key<'_>, &[u8]> = BTreeMap::new();
    for key in keys {
        let Value::Str(key) = *key else {
            bail!(InvalidFile, "keys of storages: expected strings, found something else");
        };
        let Some(&element_bytes) = element_bytes.get(&Key::Name(key)) else {
            bail!(Unsupported, "storage {}: expected one of a known type, found another", shown(key));
        };
        table.insert(Key::Name(key), reader.elements(element_bytes)?.1);
    }
    search(&object, &Records::Table(&table), "PyTorch checkpoint (before 1.6)", bytes.len())
}

/// The tensors of a tar archive.
pub(super) fn tar(bytes: &[u8]) -> Result<StateDict<'_>> {
    let entries = entries_of_tar(bytes)?;
    if let Some((name, checkpoint)) =
        entries.iter().find(|(name, _)| name.rsplit('/').next() == Some("model_weights.ckpt"))
    {
        let dict = match checkpoint {
            bytes if bytes.starts_with(b"PK") => super::zip(bytes),
            bytes if is_stream(bytes) => stream(bytes),
            _ => bail!(InvalidFile, "{}: expected a checkpoint of torch.save, found something else", shown(name)),
        };
        return dict.map_err(|e| e.context(shown(name)));
    }
    let entry = |name: &'static str| match entries.get(name) {
        Some(&rest) => Ok(Reader { rest, place: name }),
        None => bail!(
            InvalidFile,
            "expected a tar archive with storages, tensors and pickle, as torch.save wrote it before PyTorch 0.2, or with \
             model_weights.ckpt, as NeMo does; found {}",
            shown(&entries.keys().take(4).map(String::as_str).collect::<Vec<_>>().join(", "))
        ),
    };
    let mut table: BTreeMap<Key<'_>, &[u8]> = BTreeMap::new();
    let mut nodes: BTreeMap<i64, Node<'_>> = BTreeMap::new();
    let mut reader = entry("storages")?;
    for _ in 0..reader.number()? {
        let pickle = reader.pickle()?;
        let Some(&[Value::Int(number), _, Value::Global(Global::Storage(element))]) = pickle.items(pickle.root) else {
            bail!(InvalidFile, "storages: expected (key, location, type), found something else");
        };
        let key = Key::Number(number);
        let mut storage = Storage { element, key, stored: 0, start: 0, len: 0 };
        let (len, bytes) = reader.elements(storage.element_bytes())?;
        (storage.stored, storage.len) = (len, len);
        if table.insert(key, bytes).is_some() || table.len() > MAX_TENSORS {
            bail!(InvalidFile, "storages: expected at most {MAX_TENSORS}, each once, found more");
        }
        nodes.insert(number, Node::Storage(Box::new(storage)));
    }
    let views = reader.pickle()?;
    for view in views.items(views.root).unwrap_or_default() {
        let Some(&[Value::Int(number), Value::Int(root), Value::Int(start), Value::Int(len)]) = views.items(*view)
        else {
            bail!(InvalidFile, "storages: expected (key, key of the whole, offset, size), found something else");
        };
        let sizes = usize::try_from(start).ok().zip(usize::try_from(len).ok());
        let (Some(Node::Storage(root)), Some((start, len))) = (nodes.get(&root), sizes) else {
            bail!(InvalidFile, "storages: expected a view of a storage, found one of nothing");
        };
        // A view of a view begins where that one does.
        let view = Storage { start: root.start.saturating_add(start), len, ..**root };
        nodes.insert(number, Node::Storage(Box::new(view)));
    }

    let mut reader = entry("tensors")?;
    for read in 0..reader.number()? {
        let pickle = reader.pickle()?;
        let Some(&[Value::Int(number), Value::Int(storage), _]) = pickle.items(pickle.root) else {
            bail!(InvalidFile, "tensors: expected (key, key of the storage, type), found something else");
        };
        // 4 bytes, and 4 that are not used.
        let num_axes = usize::try_from(reader.i64()? & 0xffff_ffff).unwrap_or(usize::MAX);
        if num_axes > MAX_AXES || read >= MAX_TENSORS as i64 {
            bail!(
                InvalidFile,
                "tensors: expected {MAX_TENSORS} of {MAX_AXES} axes at most, found {num_axes} axes or more"
            );
        }
        let mut sizes = || (0..num_axes).map(|_| reader.size()).collect::<Result<Vec<usize>>>();
        let (shape, strides) = (sizes()?, sizes()?);
        let offset = reader.size()?;
        let Some(Node::Storage(storage)) = nodes.get(&storage) else {
            bail!(InvalidFile, "tensors: expected the key of a storage, found {storage}");
        };
        let storage = **storage;
        let Some(element) = storage.element else {
            bail!(InvalidFile, "tensors: expected a storage with a type, found one without");
        };
        nodes.insert(number, Node::Tensor(Box::new(TensorView { storage, element, offset, shape, strides })));
    }
    let reader = entry("pickle")?;
    let object = pickle::read_with(reader.rest, &nodes).map_err(|e| e.context("pickle"))?;
    search(&object, &Records::Table(&table), "PyTorch checkpoint (before 0.2)", bytes.len())
}

/// The files of a tar archive by name, without a leading `./`.
fn entries_of_tar(bytes: &[u8]) -> Result<BTreeMap<String, &[u8]>> {
    const BLOCK: usize = 512;
    let octal = |field: &[u8]| {
        let text = std::str::from_utf8(field).ok()?;
        usize::from_str_radix(text.trim_matches([' ', '\0']), 8).ok()
    };
    let text = |field: &[u8]| {
        let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
        String::from_utf8_lossy(&field[..end]).into_owned()
    };
    let mut entries = BTreeMap::new();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + BLOCK) {
        if header.iter().all(|&byte| byte == 0) {
            break;
        }
        // The sum of the header's bytes, with spaces in place of the sum.
        let sum: usize =
            header.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { b.into() }).sum();
        let size = match header[124] & 0x80 {
            0 => octal(&header[124..136]),
            // Of 8 GiB and more: a number of 11 bytes.
            _ => {
                let mut word = [0; 8];
                word.copy_from_slice(&header[128..136]);
                usize::try_from(u64::from_be_bytes(word)).ok()
            }
        };
        let (Some(size), true) = (size, octal(&header[148..156]) == Some(sum)) else {
            bail!(InvalidFile, "tar archive: expected the header of an entry at byte {at}, found something else");
        };
        at += BLOCK;
        let Some(content) = bytes.get(at..).and_then(|rest| rest.get(..size)) else {
            bail!(
                InvalidFile,
                "tar archive: expected an entry of {size} bytes, found {}: truncated?",
                bytes.len() - at
            );
        };
        if matches!(header[156], b'0' | 0) {
            let name = format!("{}{}", text(&header[345..500]), text(&header[..100]));
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            if entries.insert(name.clone(), content).is_some() {
                bail!(InvalidFile, "tar archive: expected one entry {}, found two", shown(&name));
            }
        }
        at += size.div_ceil(BLOCK) * BLOCK;
    }
    Ok(entries)
}
