//! Stage 1, read: the bytes of a Keras file → its configuration, and the variables of a layer.
//!
//! In:  an HDF5 file as Keras 2 and 3 write it, whole or weights only, or the `.keras` archive.
//! Out: [`Store`]: the configuration as JSON, the version of Keras, and for each layer its cells' [`Tensor`]s.
//! Afterwards no code asks where in a file a variable lies.
//! Not here: what layers mean (`graph`, `cell`).
//!
//! Nothing is read from other files: links to them are refused by the HDF5 reader, which bounds its allocations by the
//! file. What one open store hands out in all is bounded by [`READ_FACTOR`] times the file, and how often it looks by
//! [`LOOKS`], since many names may lead to the same bytes. Entries of an archive are read only if they are stored, once,
//! and have the checksum that the archive gives.

use std::cell::Cell as Counter;
use std::collections::HashSet;

use half::f16;
use hdf5_reader::group::Group;
use hdf5_reader::messages::datatype::{StringSize, VarLenKind};
use hdf5_reader::{Dataset, Datatype, Hdf5File, OpenOptions, RawAttribute};
use rawzip::{CompressionMethod, ZipArchive, crc32};
use serde_json::Value;

use super::graph::{Place, Step};
use crate::error::{Error, ErrorKind, Result, bail};

/// How many bytes may be read per byte of the file; more than one because datasets may be compressed and layers shared.
const READ_FACTOR: usize = 16;

/// How many groups and attributes may be looked up in any file, and in a larger one for each 4 KiB besides: names that
/// lead to the same groups again and again would take time without end. Each layer takes about five.
const LOOKS: usize = 20_000;

/// How large the JSON of a model may be.
const MAX_JSON_BYTES: usize = 32 << 20;

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

/// What a file without configuration holds.
#[derive(Debug, Default)]
pub(super) struct Weights {
    /// Layers of their own.
    pub recurrent: Vec<Unconfigured>,
    /// Groups with recurrent layers inside: of wrappers and nested models.
    pub wrapped: Vec<String>,
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
    budget: Budget,
}

/// What is left of the work that a file may cause.
struct Budget {
    bytes: Counter<usize>,
    looks: Counter<usize>,
}

impl Budget {
    fn new(file_bytes: usize) -> Self {
        let bytes = file_bytes.saturating_mul(READ_FACTOR);
        Self { bytes: Counter::new(bytes), looks: Counter::new(LOOKS + file_bytes / 4096) }
    }

    /// Takes `bytes` before they are read.
    fn spend(&self, bytes: usize, what: &str) -> Result<()> {
        match self.bytes.get().checked_sub(bytes) {
            Some(left) => {
                self.bytes.set(left);
                Ok(())
            }
            None => bail!(
                InvalidFile,
                "{what}: expected at most {} bytes more in a file of this size, found {bytes}",
                self.bytes.get()
            ),
        }
    }

    fn look(&self) -> Result<()> {
        match self.looks.get().checked_sub(1) {
            Some(left) => {
                self.looks.set(left);
                Ok(())
            }
            None => bail!(InvalidFile, "expected groups and attributes as a file of this size has, found more"),
        }
    }
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
        let budget = Budget::new(bytes.len());
        let root = root_of(bytes)?;
        let model = child(&root, "model_weights", &budget)?;
        let group = model.as_ref().unwrap_or(&root);
        let version = match text(group, "keras_version", &budget)? {
            Some(version) => Some(version),
            None => text(&root, "keras_version", &budget)?,
        };
        let config = text(&root, "model_config", &budget)?.map(|c| json("model_config", c.as_bytes())).transpose()?;
        let naming = if model.is_some() || has_names(&root, "layer_names", &budget)? {
            Naming::Names(model.unwrap_or(root))
        } else if child(&root, "layers", &budget)?.is_some() {
            Naming::Places(root)
        } else if attributes(&root, &budget)?.iter().any(|a| a.name() == "nb_layers") {
            bail!(
                Unsupported,
                "nb_layers: expected a file of Keras 1 or later, found one of an earlier version; save it with Keras 1"
            )
        } else {
            bail!(
                InvalidFile,
                "expected a file of Keras: a group model_weights or layers, or the attribute layer_names; found {}",
                member_list(&root, &budget)?
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
        let budget = Budget::new(weights.len());
        let root = root_of(weights).map_err(|e| e.context("model.weights.h5"))?;
        let version = metadata.get("keras_version").and_then(Value::as_str).map(str::to_owned);
        Ok(Self { naming: Naming::Places(root), config: Some(config), version, budget })
    }

    /// The variables of a layer, one entry a cell: forward before reverse, and the cells of a stack in order;
    /// `classes` are theirs.
    pub(super) fn cells(&self, place: &Place<'_>, classes: &[&str]) -> Result<Vec<CellTensors>> {
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
    pub(super) fn unconfigured(&self) -> Result<Weights> {
        let Weights { recurrent: mut found, mut wrapped } = Weights::default();
        match &self.naming {
            Naming::Names(group) => {
                let mut follows = false;
                for name in names(group, "layer_names", &self.budget)? {
                    let Some(layer) = child(group, &name, &self.budget)? else {
                        bail!(InvalidFile, "{name}: listed in layer_names, found no such group");
                    };
                    let weights = names(&layer, "weight_names", &self.budget)?;
                    if gates_of_keras_1(&weights).is_some() {
                        bail!(
                            Unsupported,
                            "{name}: variables of Keras 1, whose inner_activation may be hard_sigmoid or another; give \
                             the whole model"
                        );
                    }
                    let recurrent = weights.iter().any(|w| stem(w) == "recurrent_kernel");
                    // Keras names wrappers so unless told otherwise; their variables look like those of the layer.
                    if recurrent && name.starts_with("time_distributed") {
                        wrapped.push(name);
                        follows = false;
                    } else if recurrent {
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
                let layers = child(group, "layers", &self.budget)?;
                let members = layers.as_ref().map(|l| children(l, &self.budget)).transpose()?.unwrap_or_default();
                for layer in members {
                    if !self.is_recurrent(&layer)? {
                        if self.wraps_recurrent(&layer)? {
                            wrapped.push(layer.name().to_owned());
                        }
                        continue;
                    }
                    let own = child(&layer, "vars", &self.budget)?
                        .map(|vars| text(&vars, "name", &self.budget))
                        .transpose()?
                        .flatten();
                    let name = own.unwrap_or_else(|| layer.name().to_owned());
                    let cells = self.placed_cells(&layer, &[]).map_err(|e| e.context(&name))?;
                    let bidirectional = child(&layer, "forward_layer", &self.budget)?.is_some();
                    found.push(Unconfigured { name, cells, bidirectional, follows_the_one_before: false });
                }
            }
        }
        Ok(Weights { recurrent: found, wrapped })
    }

    /// Whether a group has the parts of a recurrent layer.
    fn is_recurrent(&self, group: &Group) -> Result<bool> {
        Ok(child(group, "cell", &self.budget)?.is_some() || child(group, "forward_layer", &self.budget)?.is_some())
    }

    /// Whether a group is that of a wrapper or model with a recurrent layer inside; not looked for deeper than that.
    fn wraps_recurrent(&self, group: &Group) -> Result<bool> {
        if let Some(inner) = child(group, "layer", &self.budget)? {
            return self.is_recurrent(&inner);
        }
        let Some(layers) = child(group, "layers", &self.budget)? else {
            return Ok(false);
        };
        for inner in children(&layers, &self.budget)? {
            if self.is_recurrent(&inner)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Refuses a file that has variables of a recurrent layer which the configuration, with layers of these `names` at
    /// its top, does not have.
    pub(super) fn expect_no_other_than(&self, top: &HashSet<&str>) -> Result<()> {
        let Naming::Names(group) = &self.naming else {
            return Ok(());
        };
        for name in names(group, "layer_names", &self.budget)? {
            if top.contains(name.as_str()) {
                continue;
            }
            let Some(layer) = child(group, &name, &self.budget)? else {
                continue;
            };
            let weights = names(&layer, "weight_names", &self.budget)?;
            if weights.iter().any(|w| stem(w) == "recurrent_kernel") || gates_of_keras_1(&weights).is_some() {
                bail!(
                    InvalidFile,
                    "{}: expected a layer of this name in model_config, found only its variables",
                    cut(name)
                );
            }
        }
        Ok(())
    }

    /// Whether variables are found by lists of names.
    pub(super) fn has_names(&self) -> bool {
        matches!(self.naming, Naming::Names(_))
    }

    fn named_cells(&self, group: &Group, place: &Place<'_>) -> Result<Vec<CellTensors>> {
        let Some((outer, inner)) = place.steps.split_first() else {
            return Ok(Vec::new());
        };
        let layer = self.must(group, outer.name, place)?;
        let mut weights = names(&layer, "weight_names", &self.budget)?;
        if let Some(last) = inner.last() {
            weights.retain(|w| w.split('/').any(|part| part == last.name));
        }
        self.group_by_cell(&layer, &weights)
    }

    /// Cuts kernel, recurrent_kernel, bias, kernel ... into cells.
    fn group_by_cell(&self, layer: &Group, weights: &[String]) -> Result<Vec<CellTensors>> {
        if let Some(cells) = gates_of_keras_1(weights) {
            return cells.iter().map(|(prefix, gates)| self.cell_of_keras_1(layer, weights, prefix, gates)).collect();
        }
        let mut cells: Vec<CellTensors> = Vec::new();
        let mut rest = weights.iter().peekable();
        while let Some(kernel) = rest.next() {
            let recurrent = rest.next_if(|w| stem(w) == "recurrent_kernel");
            let (true, Some(recurrent)) = (stem(kernel) == "kernel", recurrent) else {
                bail!(
                    InvalidFile,
                    "weight_names: expected kernel, recurrent_kernel and perhaps bias for each cell, found {}",
                    weights.iter().take(8).map(|w| cut(w.clone())).collect::<Vec<_>>().join(", ")
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

    /// Joins the variables that Keras 1 has for each gate, `lstm_1_W_i`, in the order of Keras 2.
    fn cell_of_keras_1(&self, layer: &Group, weights: &[String], prefix: &str, gates: &[&str]) -> Result<CellTensors> {
        let joined = |letter: &str| -> Result<Tensor> {
            let name = format!("{prefix}_{letter}");
            let mut parts = Vec::new();
            for gate in gates {
                let wanted = format!("{name}{gate}");
                match weights.iter().find(|w| stem(w) == wanted) {
                    Some(weight) => parts.push(self.tensor(layer, weight)?),
                    None => bail!(InvalidWeights, "{wanted}: expected beside the other gates, found none"),
                }
            }
            let shape = parts[0].shape.clone();
            let Some((&columns, rows)) = shape.split_last().filter(|(columns, _)| **columns > 0) else {
                bail!(InvalidWeights, "{name}: expected a matrix or a vector, found {shape:?}");
            };
            if let Some(other) = parts.iter().find(|part| part.shape != shape) {
                bail!(
                    InvalidWeights,
                    "{}: expected {shape:?} as of the other gates, found {:?}",
                    other.name,
                    other.shape
                );
            }
            let rows_len = parts[0].values.len() / columns;
            let row = |i: usize| parts.iter().flat_map(move |part| &part.values[i * columns..(i + 1) * columns]);
            let values = (0..rows_len).flat_map(row).copied().collect();
            let shape = rows.iter().copied().chain([columns * gates.len()]).collect();
            Ok(Tensor { name, shape, values })
        };
        Ok(CellTensors { kernel: joined("W")?, recurrent: joined("U")?, bias: Some(joined("b")?) })
    }

    /// The group of a layer: the one that has its name, or, where names are not stored, the n-th of its class.
    fn find_step(&self, layers: &Group, step: &Step<'_>, place: &Place<'_>) -> Result<Group> {
        let class = snake_case(step.class);
        let numbered = self::numbered(step.class, step.index);
        let surplus = self::numbered(step.class, step.of_class);
        if child(layers, &surplus, &self.budget)?.is_some() {
            bail!(
                InvalidFile,
                "{}: expected as many layers of class {} as in config.json = {}, found {surplus}",
                layers.name(),
                step.class,
                step.of_class
            );
        }
        let own_name = |group: &Group| match child(group, "vars", &self.budget)? {
            Some(vars) => text(&vars, "name", &self.budget),
            None => Ok(None),
        };
        let expected = child(layers, &numbered, &self.budget)?;
        if let Some(group) = &expected
            && own_name(group)?.is_none_or(|name| name == step.name)
        {
            return Ok(group.clone());
        }
        for group in children(layers, &self.budget)? {
            if group.name().starts_with(&class) && own_name(&group)?.as_deref() == Some(step.name) {
                return Ok(group);
            }
        }
        bail!(
            InvalidFile,
            "{}: expected the group {numbered} for {}, found {}",
            layers.name(),
            place.name(),
            member_list(layers, &self.budget)?
        )
    }

    /// The cells below a layer's group.
    fn placed_cells(&self, layer: &Group, classes: &[&str]) -> Result<Vec<CellTensors>> {
        if let Some(forward) = child(layer, "forward_layer", &self.budget)? {
            let Some(backward) = child(layer, "backward_layer", &self.budget)? else {
                bail!(InvalidFile, "backward_layer: expected beside forward_layer, found none");
            };
            let mut cells = self.placed_cells_of_one(&forward, classes)?;
            cells.extend(self.placed_cells_of_one(&backward, classes)?);
            return Ok(cells);
        }
        self.placed_cells_of_one(layer, classes)
    }

    fn placed_cells_of_one(&self, layer: &Group, classes: &[&str]) -> Result<Vec<CellTensors>> {
        let cell = child(layer, "cell", &self.budget)?;
        if let Some(cell) = &cell
            && let Some(stack) = child(cell, "cells", &self.budget)?
        {
            // Each class is numbered on its own.
            let name = |i: usize| numbered(classes[i], classes[..i].iter().filter(|c| **c == classes[i]).count());
            return (0..classes.len())
                .map(|i| match child(&stack, &name(i), &self.budget)? {
                    Some(cell) => self.vars(&cell),
                    None => {
                        bail!(InvalidFile, "cells: expected {}, found {}", name(i), member_list(&stack, &self.budget)?)
                    }
                })
                .collect();
        }
        // Layers of the cuDNN layout have no cell.
        Ok(vec![self.vars(cell.as_ref().unwrap_or(layer))?])
    }

    /// kernel, recurrent kernel and bias of `group/vars`.
    fn vars(&self, group: &Group) -> Result<CellTensors> {
        let Some(vars) = child(group, "vars", &self.budget)? else {
            bail!(
                InvalidFile,
                "{}: expected the group vars, found {}",
                group.name(),
                member_list(group, &self.budget)?
            );
        };
        let (_, present) = vars.member_names().map_err(damaged)?;
        Ok(CellTensors {
            kernel: self.tensor(&vars, "0")?,
            recurrent: self.tensor(&vars, "1")?,
            bias: present.iter().any(|name| name == "2").then(|| self.tensor(&vars, "2")).transpose()?,
        })
    }

    fn must(&self, group: &Group, name: &str, place: &Place<'_>) -> Result<Group> {
        match child(group, name, &self.budget)? {
            Some(child) => Ok(child),
            None => bail!(
                InvalidFile,
                "expected the group {name} for {}, found {}",
                place.name(),
                member_list(group, &self.budget)?
            ),
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
        self.budget.look()?;
        let size = match *dataset.dtype() {
            Datatype::FloatingPoint { size, .. } if is_ieee(&dataset.raw_datatype().map_err(named)?) => size,
            Datatype::FloatingPoint { size, .. } => {
                bail!(
                    Unsupported,
                    "{path}: expected float16, float32 or float64, found a float of {size} bytes that is none of them, \
                     such as bfloat16"
                )
            }
            ref other => bail!(
                Unsupported,
                "{path}: expected float16, float32 or float64, found {}; bfloat16 is stored so, int8 is of a quantised \
                 layer",
                cut(format!("{other:?}"))
            ),
        };
        self.budget.spend(read_bytes(&dataset).map_err(named)?, path)?;
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

/// Whether the bytes of a datatype message are those of a float16, float32 or float64 of IEEE 754.
fn is_ieee(datatype: &[u8]) -> bool {
    // Class and flags, size, bit offset, precision, places and sizes of exponent and mantissa, bias.
    let Some(([_, _, _, _, size, _, _, _, 0, 0, precision, 0, _, exponent, 0, mantissa, ..], bias)) =
        datatype.split_at_checked(16)
    else {
        return false;
    };
    let bias = bias.first_chunk().map(|&bias| u32::from_le_bytes(bias));
    let layouts = [(2, 16, 5, 10, 15), (4, 32, 8, 23, 127), (8, 64, 11, 52, 1023)];
    bias.is_some_and(|bias| layouts.contains(&(*size, *precision, *exponent, *mantissa, bias)))
}

/// What a dataset takes to read: whole chunks, however little of them lies within its shape.
fn read_bytes(dataset: &Dataset) -> hdf5_reader::error::Result<usize> {
    let bytes = dataset.raw_byte_len()?;
    let Some(chunks) = dataset.chunks() else {
        return Ok(bytes);
    };
    let size = dataset.raw_element_size()?;
    let along = |(&n, &chunk): (&u64, &u32)| {
        let chunk = u64::from(chunk.max(1));
        usize::try_from(n.div_ceil(chunk).saturating_mul(chunk)).unwrap_or(usize::MAX)
    };
    let elements = dataset.shape().iter().zip(&chunks).map(along).fold(1, usize::saturating_mul);
    Ok(bytes.max(elements.saturating_mul(size)))
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

fn child(group: &Group, name: &str, budget: &Budget) -> Result<Option<Group>> {
    budget.look()?;
    match group.group(name) {
        Ok(group) => Ok(Some(group)),
        Err(hdf5_reader::error::Error::GroupNotFound(_)) => Ok(None),
        Err(e) => Err(damaged(e).context(name)),
    }
}

fn children(group: &Group, budget: &Budget) -> Result<Vec<Group>> {
    budget.look()?;
    group.groups().map_err(damaged)
}

/// The first few members of a group, for messages.
fn member_list(group: &Group, budget: &Budget) -> Result<String> {
    budget.look()?;
    let (groups, datasets) = group.member_names().map_err(damaged)?;
    let shown: Vec<String> = groups.into_iter().chain(datasets).take(8).map(cut).collect();
    Ok(if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") })
}

/// A name as it stands in a message.
fn cut(name: String) -> String {
    match name.char_indices().nth(80) {
        Some((end, _)) => format!("{} ...", &name[..end]),
        None => name,
    }
}

fn attributes(group: &Group, budget: &Budget) -> Result<Vec<RawAttribute>> {
    budget.look()?;
    let attributes = group.raw_attributes().map_err(damaged)?;
    // They are parsed anew each time.
    let bytes = attributes.iter().map(|a| a.message().raw_data.len() + 16).sum();
    budget.spend(bytes, "attributes")?;
    Ok(attributes)
}

/// The strings of an attribute; `None` if there is none of this name.
fn strings(group: &Group, name: &str, budget: &Budget) -> Result<Option<Vec<String>>> {
    let attributes = attributes(group, budget)?;
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
        budget.spend(bytes.len(), name)?;
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        match std::str::from_utf8(&bytes[..end]) {
            Ok(text) => found.push(text.to_owned()),
            Err(_) => bail!(InvalidFile, "attribute {name}: expected UTF-8, found other bytes in string {i}"),
        }
    }
    Ok(Some(found))
}

/// An attribute of one string.
fn text(group: &Group, name: &str, budget: &Budget) -> Result<Option<String>> {
    Ok(strings(group, name, budget)?.and_then(|mut s| if s.len() == 1 { s.pop() } else { None }))
}

fn has_names(group: &Group, name: &str, budget: &Budget) -> Result<bool> {
    let first = format!("{name}0");
    let attributes = attributes(group, budget)?;
    Ok(attributes.iter().any(|a| a.name() == name || a.name() == first))
}

/// A list of names; Keras cuts a list of more than 64 KiB into the attributes NAME0, NAME1 ...
fn names(group: &Group, name: &str, budget: &Budget) -> Result<Vec<String>> {
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

/// The gates of each cell, by what stands before `_W_i` in its variables' names, if these are named as Keras 1 does:
/// one for each gate, or one for all.
fn gates_of_keras_1(weights: &[String]) -> Option<Vec<(&str, &'static [&'static str])>> {
    let mut cells: Vec<(&str, &'static [&'static str])> = Vec::new();
    for weight in weights {
        let stem = stem(weight);
        let found: Option<(&str, &'static [&'static str])> =
            [("_U_i", &["_i", "_f", "_c", "_o"][..]), ("_U_z", &["_z", "_r", "_h"][..]), ("_U", &[""][..])]
                .into_iter()
                .find_map(|(end, gates)| Some((stem.strip_suffix(end)?, gates)));
        cells.extend(found);
    }
    (!cells.is_empty()).then_some(cells)
}

fn json(name: &str, bytes: &[u8]) -> Result<Value> {
    if bytes.len() > MAX_JSON_BYTES {
        bail!(InvalidFile, "{name}: expected at most {MAX_JSON_BYTES} bytes, found {}", bytes.len());
    }
    // Nested deeper than 128, it is refused.
    serde_json::from_slice(bytes).map_err(|e| Error::new(ErrorKind::InvalidFile, format!("{name}: not JSON: {e}")))
}

/// The bytes of a stored entry of a zip archive: the only one of its name, and what was put there.
fn entry<'a>(file: &'a [u8], name: &str) -> Result<Option<&'a [u8]>> {
    let damaged = |e: rawzip::Error| Error::new(ErrorKind::InvalidFile, format!("not a complete zip archive: {e}"));
    let archive = ZipArchive::from_slice(file).map_err(damaged)?;
    let mut found = None;
    for entry in archive.entries() {
        let entry = entry.map_err(damaged)?;
        if entry.file_path().as_ref() != name.as_bytes() {
            continue;
        }
        if found.is_some() {
            bail!(InvalidFile, "{name}: expected once in a .keras archive, found twice");
        }
        if entry.compression_method() != CompressionMethod::STORE || entry.flags().is_encrypted() {
            bail!(
                Unsupported,
                "{name}: expected a stored entry, as Keras writes them, found a compressed or encrypted one"
            );
        }
        let local = archive.get_entry(entry.wayfinder()).map_err(damaged)?;
        if local.local_header().file_path().as_ref() != name.as_bytes() {
            bail!(InvalidFile, "{name}: expected the same name where the entry stands, found another");
        }
        let (start, end) = local.compressed_data_range();
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        let Some(bytes) = range.and_then(|(start, end)| file.get(start..end)) else {
            bail!(InvalidFile, "{name}: expected within {} bytes, found one that ends at {end}", file.len());
        };
        found = Some((bytes, entry.crc32()));
    }
    let Some((bytes, expected)) = found else {
        return Ok(None);
    };
    let sum = crc32(bytes);
    if sum != expected {
        bail!(InvalidFile, "{name}: expected the checksum {expected:08x}, found {sum:08x}: damaged");
    }
    Ok(Some(bytes))
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
        let budget = Budget { bytes: Counter::new(100), looks: Counter::new(1) };
        assert!(budget.spend(60, "kernel").is_ok());
        assert_eq!(
            budget.spend(60, "kernel").unwrap_err().to_string(),
            "kernel: expected at most 40 bytes more in a file of this size, found 60"
        );
        assert!(budget.spend(40, "kernel").is_ok());
        assert!(budget.look().is_ok());
        assert!(budget.look().is_err());
    }

    #[test]
    fn floats_are_those_of_ieee_or_refused() {
        let message = |size: u8, exponent: u8, mantissa: u8, bias: u32| {
            let mut bytes = vec![0x11, 0x20, 0, 0, size, 0, 0, 0, 0, 0, 8 * size, 0, mantissa, exponent, 0, mantissa];
            bytes.extend(bias.to_le_bytes());
            bytes
        };
        for (size, exponent, mantissa, bias) in [(2, 5, 10, 15), (4, 8, 23, 127), (8, 11, 52, 1023)] {
            let whole = message(size, exponent, mantissa, bias);
            assert!(is_ieee(&whole));
            assert!(!is_ieee(&message(size, exponent, mantissa, bias + 1)));
            assert!((0..whole.len()).all(|len| !is_ieee(&whole[..len])));
        }
        // bfloat16
        assert!(!is_ieee(&message(2, 8, 7, 127)));
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
