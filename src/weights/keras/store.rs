//! Stage 1, read: the bytes of a Keras file → its configuration, and the variables of a layer.
//!
//! In:  an HDF5 file as Keras 2 and 3 write it, whole or weights only, or the `.keras` archive.
//! Out: [`Store`]: the configuration as JSON, the version of Keras, and for each layer its cells' [`Tensor`]s.
//! Afterwards no code asks where in a file a variable lies.
//! Not here: what layers mean (`graph`, `cell`).
//!
//! Nothing is read from other files: links to them are refused by the HDF5 reader, which bounds its allocations by the
//! file. What one open store hands out in all is bounded by [`READ_FACTOR`] times the file, since many names may lead to
//! the same bytes.

use std::cell::Cell as Counter;

use half::f16;
use hdf5_reader::group::Group;
use hdf5_reader::messages::datatype::{StringSize, VarLenKind};
use hdf5_reader::{Datatype, Hdf5File, OpenOptions};
use rawzip::{CompressionMethod, ZipArchive};
use serde_json::Value;

use super::graph::{Place, Step};
use crate::error::{Error, ErrorKind, Result, bail};

/// How many bytes may be read per byte of the file; more than one because datasets may be compressed and layers shared.
const READ_FACTOR: usize = 16;

/// What an HDF5 file starts with.
pub(super) const HDF5_MAGIC: &[u8] = b"\x89HDF\r\n\x1a\n";
/// What a zip archive starts with.
pub(super) const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// A variable.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    /// As it stands in the file.
    pub name: String,
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

/// The variables of one cell.
#[derive(Debug, Clone)]
pub(super) struct CellTensors {
    pub kernel: Tensor,
    pub recurrent: Tensor,
    pub bias: Option<Tensor>,
}

/// A recurrent layer of a file without configuration.
#[derive(Debug)]
pub(super) struct Unconfigured {
    pub name: String,
    /// Forward, and reverse if the layer is bidirectional.
    pub cells: Vec<CellTensors>,
    pub bidirectional: bool,
    /// The file has an order, and no other variables stand between this layer and the one before it in the list.
    pub follows_the_one_before: bool,
}

/// Where the variables of layers lie.
enum Naming {
    /// `layer/<names listed in the attribute weight_names>`: Keras 2, and Keras 3's `.h5`.
    Names(Group),
    /// `layers/<class>_<n>/cell/vars/<i>`: `.keras` and `.weights.h5`.
    Places(Group),
}

/// An open file.
pub(super) struct Store {
    naming: Naming,
    /// The whole model's, as JSON; absent in a file of weights only.
    pub config: Option<Value>,
    /// `2.2.4-tf`; absent in `.weights.h5`.
    pub version: Option<String>,
    budget: Counter<usize>,
}

impl Store {
    /// Opens a file of any of the kinds.
    pub(super) fn open(bytes: &[u8]) -> Result<Self> {
        if bytes.starts_with(HDF5_MAGIC) {
            Self::open_hdf5(bytes)
        } else if bytes.starts_with(ZIP_MAGIC) {
            Self::open_archive(bytes)
        } else {
            bail!(
                InvalidFile,
                "expected an HDF5 file (.h5, .hdf5) or a .keras archive, found {} bytes that start with {:02x?}",
                bytes.len(),
                &bytes[..bytes.len().min(8)]
            )
        }
    }

    fn open_hdf5(bytes: &[u8]) -> Result<Self> {
        let budget = Counter::new(bytes.len().saturating_mul(READ_FACTOR));
        let root = root_of(bytes)?;
        let model = child(&root, "model_weights")?;
        let group = model.as_ref().unwrap_or(&root);
        let version = match text(group, "keras_version", &budget)? {
            Some(version) => Some(version),
            None => text(&root, "keras_version", &budget)?,
        };
        let config = text(&root, "model_config", &budget)?.map(|c| json("model_config", c.as_bytes())).transpose()?;
        let naming = if model.is_some() || has_names(&root, "layer_names")? {
            Naming::Names(model.unwrap_or(root))
        } else if child(&root, "layers")?.is_some() {
            Naming::Places(root)
        } else {
            bail!(
                InvalidFile,
                "expected a file of Keras: a group model_weights or layers, or the attribute layer_names; found {}",
                member_list(&root)?
            )
        };
        Ok(Self { naming, config, version, budget })
    }

    fn open_archive(bytes: &[u8]) -> Result<Self> {
        let entry = |name| match entry(bytes, name)? {
            Some(entry) => Ok(entry),
            None => bail!(InvalidFile, "{name}: expected in a .keras archive, found none"),
        };
        let config = json("config.json", entry("config.json")?)?;
        let metadata = json("metadata.json", entry("metadata.json")?)?;
        let weights = entry("model.weights.h5")?;
        let budget = Counter::new(weights.len().saturating_mul(READ_FACTOR));
        let root = root_of(weights).map_err(|e| e.context("model.weights.h5"))?;
        let version = metadata.get("keras_version").and_then(Value::as_str).map(str::to_owned);
        Ok(Self { naming: Naming::Places(root), config: Some(config), version, budget })
    }

    /// The variables of a layer, one entry a cell: forward before reverse, and the cells of a stack in order;
    /// `classes` are theirs.
    pub(super) fn cells(&self, place: &Place, classes: &[&str]) -> Result<Vec<CellTensors>> {
        match &self.naming {
            Naming::Names(group) => self.named_cells(group, place),
            Naming::Places(group) => {
                let mut group = group.clone();
                for step in &place.steps {
                    let layers = self.must(&group, "layers", place)?;
                    group = self.find_step(&layers, step, place)?;
                }
                self.placed_cells(&group, classes)
            }
        }
        .map_err(|e| e.context(format!("layer {}", place.name())))
    }

    /// The recurrent layers of a file without configuration, in its order.
    pub(super) fn unconfigured(&self) -> Result<Vec<Unconfigured>> {
        let mut found = Vec::new();
        match &self.naming {
            Naming::Names(group) => {
                let mut follows = false;
                for name in names(group, "layer_names", &self.budget)? {
                    let Some(layer) = child(group, &name)? else {
                        bail!(InvalidFile, "{name}: listed in layer_names, found no such group");
                    };
                    let weights = names(&layer, "weight_names", &self.budget)?;
                    if weights.iter().any(|w| stem(w) == "recurrent_kernel") {
                        let cells = self.group_by_cell(&layer, &weights).map_err(|e| e.context(&name))?;
                        let bidirectional = weights[0].contains("forward");
                        found.push(Unconfigured { name, cells, bidirectional, follows_the_one_before: follows });
                        follows = true;
                    } else if !weights.is_empty() {
                        follows = false;
                    }
                }
            }
            Naming::Places(group) => {
                let layers = child(group, "layers")?;
                let members = layers.as_ref().map(children).transpose()?.unwrap_or_default();
                for layer in members {
                    if child(&layer, "cell")?.is_none() && child(&layer, "forward_layer")?.is_none() {
                        continue;
                    }
                    let own =
                        child(&layer, "vars")?.map(|vars| text(&vars, "name", &self.budget)).transpose()?.flatten();
                    let name = own.unwrap_or_else(|| layer.name().to_owned());
                    let cells = self.placed_cells(&layer, &[]).map_err(|e| e.context(&name))?;
                    let bidirectional = child(&layer, "forward_layer")?.is_some();
                    found.push(Unconfigured { name, cells, bidirectional, follows_the_one_before: false });
                }
            }
        }
        Ok(found)
    }

    /// Whether variables are found by lists of names.
    pub(super) fn has_names(&self) -> bool {
        matches!(self.naming, Naming::Names(_))
    }

    fn named_cells(&self, group: &Group, place: &Place) -> Result<Vec<CellTensors>> {
        let Some((outer, inner)) = place.steps.split_first() else {
            return Ok(Vec::new());
        };
        let layer = self.must(group, &outer.name, place)?;
        let mut weights = names(&layer, "weight_names", &self.budget)?;
        if let Some(last) = inner.last() {
            weights.retain(|w| w.split('/').any(|part| part == last.name));
        }
        self.group_by_cell(&layer, &weights)
    }

    /// Cuts kernel, recurrent_kernel, bias, kernel ... into cells.
    fn group_by_cell(&self, layer: &Group, weights: &[String]) -> Result<Vec<CellTensors>> {
        let mut cells: Vec<CellTensors> = Vec::new();
        let mut rest = weights.iter().peekable();
        while let Some(kernel) = rest.next() {
            let recurrent = rest.next_if(|w| stem(w) == "recurrent_kernel");
            let (true, Some(recurrent)) = (stem(kernel) == "kernel", recurrent) else {
                bail!(
                    InvalidFile,
                    "weight_names: expected kernel, recurrent_kernel and perhaps bias for each cell, found {}",
                    weights.join(", ")
                );
            };
            let bias = rest.next_if(|w| stem(w) == "bias");
            cells.push(CellTensors {
                kernel: self.tensor(layer, kernel)?,
                recurrent: self.tensor(layer, recurrent)?,
                bias: bias.map(|bias| self.tensor(layer, bias)).transpose()?,
            });
        }
        Ok(cells)
    }

    /// The group of a layer: the one that has its name, or, where names are not stored, the n-th of its class.
    fn find_step(&self, layers: &Group, step: &Step, place: &Place) -> Result<Group> {
        let class = snake_case(&step.class);
        let numbered = numbered(&step.class, step.index);
        let own_name = |group: &Group| match child(group, "vars")? {
            Some(vars) => text(&vars, "name", &self.budget),
            None => Ok(None),
        };
        let expected = child(layers, &numbered)?;
        if let Some(group) = &expected
            && own_name(group)?.is_none_or(|name| name == step.name)
        {
            return Ok(group.clone());
        }
        for group in children(layers)? {
            if group.name().starts_with(&class) && own_name(&group)?.as_deref() == Some(&step.name) {
                return Ok(group);
            }
        }
        bail!(
            InvalidFile,
            "{}: expected the group {numbered} for {}, found {}",
            layers.name(),
            place.name(),
            member_list(layers)?
        )
    }

    /// The cells below a layer's group.
    fn placed_cells(&self, layer: &Group, classes: &[&str]) -> Result<Vec<CellTensors>> {
        if let Some(forward) = child(layer, "forward_layer")? {
            let Some(backward) = child(layer, "backward_layer")? else {
                bail!(InvalidFile, "backward_layer: expected beside forward_layer, found none");
            };
            let mut cells = self.placed_cells_of_one(&forward, classes)?;
            cells.extend(self.placed_cells_of_one(&backward, classes)?);
            return Ok(cells);
        }
        self.placed_cells_of_one(layer, classes)
    }

    fn placed_cells_of_one(&self, layer: &Group, classes: &[&str]) -> Result<Vec<CellTensors>> {
        let cell = child(layer, "cell")?;
        if let Some(cell) = &cell
            && let Some(stack) = child(cell, "cells")?
        {
            // Each class is numbered on its own.
            let name = |i: usize| numbered(classes[i], classes[..i].iter().filter(|c| **c == classes[i]).count());
            return (0..classes.len())
                .map(|i| match child(&stack, &name(i))? {
                    Some(cell) => self.vars(&cell),
                    None => bail!(InvalidFile, "cells: expected {}, found {}", name(i), member_list(&stack)?),
                })
                .collect();
        }
        // Layers of the cuDNN layout have no cell.
        Ok(vec![self.vars(cell.as_ref().unwrap_or(layer))?])
    }

    /// kernel, recurrent kernel and bias of `group/vars`.
    fn vars(&self, group: &Group) -> Result<CellTensors> {
        let Some(vars) = child(group, "vars")? else {
            bail!(InvalidFile, "{}: expected the group vars, found {}", group.name(), member_list(group)?);
        };
        let (_, present) = vars.member_names().map_err(damaged)?;
        Ok(CellTensors {
            kernel: self.tensor(&vars, "0")?,
            recurrent: self.tensor(&vars, "1")?,
            bias: present.iter().any(|name| name == "2").then(|| self.tensor(&vars, "2")).transpose()?,
        })
    }

    fn must(&self, group: &Group, name: &str, place: &Place) -> Result<Group> {
        match child(group, name)? {
            Some(child) => Ok(child),
            None => bail!(InvalidFile, "expected the group {name} for {}, found {}", place.name(), member_list(group)?),
        }
    }

    /// The dataset at a path below `group`.
    fn tensor(&self, group: &Group, path: &str) -> Result<Tensor> {
        let named = |e: hdf5_reader::error::Error| damaged(e).context(path);
        let mut group = group.clone();
        let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
        let dataset = loop {
            match parts.next() {
                Some(part) if parts.peek().is_some() => group = group.group(part).map_err(named)?,
                Some(part) => break group.dataset(part).map_err(named)?,
                None => bail!(InvalidFile, "weight_names: expected the names of datasets, found an empty one"),
            }
        };
        let Datatype::FloatingPoint { size, .. } = *dataset.dtype() else {
            bail!(Unsupported, "{path}: expected float16, float32 or float64, found {:?}", dataset.dtype());
        };
        spend(&self.budget, dataset.raw_byte_len().map_err(named)?, path)?;
        let mut shape = Vec::new();
        for &n in dataset.shape() {
            match usize::try_from(n) {
                Ok(n) => shape.push(n),
                Err(_) => bail!(InvalidFile, "{path}: expected sizes that fit in memory, found {n}"),
            }
        }
        let bytes = dataset.read_native_bytes().map_err(named)?;
        let values: Vec<f32> = match size {
            2 => words(&bytes).map(|w| f16::from_ne_bytes(w).to_f32()).collect(),
            4 => words(&bytes).map(f32::from_ne_bytes).collect(),
            8 => {
                let exact: Vec<f64> = words(&bytes).map(f64::from_ne_bytes).collect();
                let beyond = |v: &f64| v.is_finite() && (*v as f32).is_infinite();
                if let Some(i) = exact.iter().position(beyond) {
                    bail!(
                        InvalidWeights,
                        "{path}: expected values within the range of f32, found {} at element {i}",
                        exact[i]
                    );
                }
                exact.into_iter().map(|v| v as f32).collect()
            }
            other => bail!(Unsupported, "{path}: expected float16, float32 or float64, found a float of {other} bytes"),
        };
        if shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s)) != Some(values.len()) {
            bail!(InvalidFile, "{path}: expected shape {shape:?}, found {} elements", values.len());
        }
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            bail!(InvalidWeights, "{path}: expected finite values, found {} at element {i}", values[i]);
        }
        Ok(Tensor { name: path.to_owned(), shape, values })
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

fn root_of(bytes: &[u8]) -> Result<Group> {
    let largest = bytes.len().saturating_mul(READ_FACTOR);
    let options = OpenOptions::default()
        .with_max_chunk_bytes(largest)
        .with_max_read_bytes(largest)
        .with_max_object_header_bytes(bytes.len())
        .with_chunk_cache_bytes(0);
    let file = Hdf5File::from_bytes_with_options(bytes, options).map_err(damaged)?;
    let expected = file.superblock().eof_address;
    if expected > bytes.len() as u64 {
        bail!(InvalidFile, "expected an HDF5 file of {expected} bytes, found {}: truncated", bytes.len());
    }
    file.root_group().map_err(damaged)
}

fn damaged(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidFile, format!("not a complete HDF5 file: {error}"))
}

fn child(group: &Group, name: &str) -> Result<Option<Group>> {
    match group.group(name) {
        Ok(group) => Ok(Some(group)),
        Err(hdf5_reader::error::Error::GroupNotFound(_)) => Ok(None),
        Err(e) => Err(damaged(e).context(name)),
    }
}

fn children(group: &Group) -> Result<Vec<Group>> {
    group.groups().map_err(damaged)
}

/// The first few members of a group, for messages.
fn member_list(group: &Group) -> Result<String> {
    let (groups, datasets) = group.member_names().map_err(damaged)?;
    let shown: Vec<String> = groups.into_iter().chain(datasets).take(8).collect();
    Ok(if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") })
}

/// Takes `bytes` from the budget before they are read.
fn spend(budget: &Counter<usize>, bytes: usize, what: &str) -> Result<()> {
    match budget.get().checked_sub(bytes) {
        Some(left) => {
            budget.set(left);
            Ok(())
        }
        None => bail!(
            InvalidFile,
            "{what}: expected at most {} bytes more in a file of this size, found {bytes}",
            budget.get()
        ),
    }
}

/// The strings of an attribute; `None` if there is none of this name.
fn strings(group: &Group, name: &str, budget: &Counter<usize>) -> Result<Option<Vec<String>>> {
    let attributes = group.raw_attributes().map_err(damaged)?;
    let Some(attribute) = attributes.iter().find(|a| a.name() == name) else {
        return Ok(None);
    };
    let message = attribute.message();
    let data = message.raw_data.as_slice();
    let count = message.dataspace.num_elements().map_err(damaged)?;
    if count == 0 {
        // Keras stores an empty list of names as an empty array of numbers.
        return Ok(Some(Vec::new()));
    }
    let width = match message.datatype {
        Datatype::String { size: StringSize::Fixed(width), .. } => Some(width as usize),
        Datatype::String { size: StringSize::Variable, .. } | Datatype::VarLen { kind: VarLenKind::String, .. } => None,
        ref other => bail!(InvalidFile, "attribute {name}: expected strings, found {other:?}"),
    };
    let reference = 4 + usize::from(group.offset_size()) + 4;
    let each = width.unwrap_or(reference);
    if each == 0 || u64::try_from(data.len() / each).is_ok_and(|n| n < count) {
        bail!(InvalidFile, "attribute {name}: expected {count} strings, found {} bytes", data.len());
    }
    let mut found = Vec::new();
    for (i, item) in data.chunks_exact(each).enumerate() {
        if i as u64 == count {
            break;
        }
        let bytes = match width {
            Some(_) => item.to_vec(),
            None => group.resolve_vlen_reference_bytes(item, 1).map_err(|e| damaged(e).context(name))?,
        };
        spend(budget, bytes.len(), name)?;
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        match std::str::from_utf8(&bytes[..end]) {
            Ok(text) => found.push(text.to_owned()),
            Err(_) => bail!(InvalidFile, "attribute {name}: expected UTF-8, found other bytes in string {i}"),
        }
    }
    Ok(Some(found))
}

/// An attribute of one string.
fn text(group: &Group, name: &str, budget: &Counter<usize>) -> Result<Option<String>> {
    Ok(strings(group, name, budget)?.and_then(|mut s| if s.len() == 1 { s.pop() } else { None }))
}

fn has_names(group: &Group, name: &str) -> Result<bool> {
    let first = format!("{name}0");
    let attributes = group.raw_attributes().map_err(damaged)?;
    Ok(attributes.iter().any(|a| a.name() == name || a.name() == first))
}

/// A list of names; Keras cuts a list of more than 64 KiB into the attributes NAME0, NAME1 ...
fn names(group: &Group, name: &str, budget: &Counter<usize>) -> Result<Vec<String>> {
    if let Some(names) = strings(group, name, budget)? {
        return Ok(names);
    }
    let mut all = Vec::new();
    for i in 0.. {
        match strings(group, &format!("{name}{i}"), budget)? {
            Some(names) => all.extend(names),
            None if i == 0 => bail!(InvalidFile, "{}: expected the attribute {name}, found none", group.name()),
            None => break,
        }
    }
    Ok(all)
}

/// `kernel` of `lstm/lstm_cell/kernel:0`.
fn stem(weight: &str) -> &str {
    let last = weight.rsplit('/').next().unwrap_or(weight);
    last.split_once(':').map_or(last, |(stem, _)| stem)
}

fn json(name: &str, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::new(ErrorKind::InvalidFile, format!("{name}: not JSON: {e}")))
}

/// The bytes of a stored entry of a zip archive.
fn entry<'a>(file: &'a [u8], name: &str) -> Result<Option<&'a [u8]>> {
    let damaged = |e: rawzip::Error| Error::new(ErrorKind::InvalidFile, format!("not a complete zip archive: {e}"));
    let archive = ZipArchive::from_slice(file).map_err(damaged)?;
    for entry in archive.entries() {
        let entry = entry.map_err(damaged)?;
        if entry.file_path().as_ref() != name.as_bytes() {
            continue;
        }
        if entry.compression_method() != CompressionMethod::STORE || entry.flags().is_encrypted() {
            bail!(
                Unsupported,
                "{name}: expected a stored entry, as Keras writes them, found a compressed or encrypted one"
            );
        }
        let (start, end) = archive.get_entry(entry.wayfinder()).map_err(damaged)?.compressed_data_range();
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        return match range.and_then(|(start, end)| file.get(start..end)) {
            Some(bytes) => Ok(Some(bytes)),
            None => bail!(InvalidFile, "{name}: expected within {} bytes, found one that ends at {end}", file.len()),
        };
    }
    Ok(None)
}

/// The group of the n-th layer of a class.
fn numbered(class: &str, n: usize) -> String {
    let class = snake_case(class);
    if n == 0 { class } else { format!("{class}_{n}") }
}

/// Keras' rule for the names of groups: `SimpleRNN` → `simple_rnn`.
fn snake_case(class: &str) -> String {
    let letters: Vec<char> = class.chars().collect();
    let mut snake = String::new();
    for (i, &letter) in letters.iter().enumerate() {
        let after_lower = i > 0 && letters[i - 1].is_lowercase();
        let before_lower = i > 0 && letters.get(i + 1).is_some_and(|next| next.is_lowercase());
        if letter.is_uppercase() && (after_lower || before_lower) {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_to_the_same_bytes_are_read_within_bounds() {
        let budget = Counter::new(100);
        assert!(spend(&budget, 60, "kernel").is_ok());
        assert_eq!(
            spend(&budget, 60, "kernel").unwrap_err().to_string(),
            "kernel: expected at most 40 bytes more in a file of this size, found 60"
        );
        assert!(spend(&budget, 40, "kernel").is_ok());
    }

    #[test]
    fn groups_are_named_by_keras_rule() {
        for (class, group) in [
            ("LSTM", "lstm"),
            ("SimpleRNN", "simple_rnn"),
            ("CuDNNLSTM", "cu_dnnlstm"),
            ("StackedRNNCells", "stacked_rnn_cells"),
            ("SimpleRNNCell", "simple_rnn_cell"),
            ("Bidirectional", "bidirectional"),
        ] {
            assert_eq!(snake_case(class), group);
        }
        assert_eq!(stem("bi/forward_gru/gru_cell/kernel:0"), "kernel");
        assert_eq!(stem("kernel"), "kernel");
    }
}
