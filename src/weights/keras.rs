//! Stage 1, read: the recurrent layers of a Keras model → [`LstmWeights`].
//!
//! In:  a file of Keras 1, 2 or 3: a whole model (`.keras`, `.h5`), or its weights (`.weights.h5`, `.hdf5`).
//! Out: [`KerasModel`]: one layer, or a chain of layers that feed only each other, and what a caller has to know to run
//!      it as Keras does.
//! Afterwards every layer, activation and option that is not computed has been refused by name.
//! Not here: what the rest of the network means.
//!
//! Read are LSTM, GRU (`reset_after` or not), SimpleRNN, CuDNNLSTM, CuDNNGRU, RNN of their cells or of a stack of them,
//! and Bidirectional around these with `merge_mode` concat or sum. Sequences that Keras masks are given to
//! [`Lstm::run`](crate::Lstm::run) by their lengths, see [`KerasModel::masked`].

mod cell;
mod graph;
mod store;

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};

use self::cell::{Recurrent, Version};
use self::graph::Graph;
use self::store::{CellTensors, HDF5_MAGIC, Store, Unconfigured, Weights, ZIP_MAGIC};
use super::LstmWeights;
use crate::error::{Error, ErrorKind, Result, bail};
use crate::spec::{Direction, LayerSpec, LstmSpec, Merge};

/// A recurrent layer of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KerasLayer {
    /// The layer's name; in a model inside the model, `model/layer`.
    pub name: String,
    /// Keras' class, such as `LSTM` or `Bidirectional`.
    pub class: String,
    /// The number of its chain: layers of one number follow each other without anything between them that changes
    /// a sequence. Of a layer that is applied several times, the first.
    pub chain: usize,
}

/// What was read, and how Keras runs it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct KerasModel {
    /// The layers and their weights. An RNN of stacked cells becomes as many layers as it has cells.
    pub weights: LstmWeights,
    /// Keras' layers, in the order in which they run.
    pub layers: Vec<KerasLayer>,
    /// Whether Keras returns the sequence in reverse: its layers with `go_backwards=True` do, and the layer after one
    /// then reads it that way. Here every output stands at its own timestep; flip it along T, padding included, to get
    /// Keras'. False if only the last output is returned.
    pub output_is_time_reversed: bool,
    /// `return_sequences` of the last layer. If false, Keras returns the final state h of the last layer: `h_n`, and of
    /// a bidirectional layer that of both directions, merged.
    pub returns_sequences: bool,
    /// Whether a Masking layer or an Embedding with `mask_zero` stands before the layers. Masked steps at the end of a
    /// sequence are what lengths express; masked steps before it (`pad_sequences` pads there unless told otherwise)
    /// must be moved to the end. Keras repeats the previous output on masked steps unless `zero_output_for_mask` is
    /// set; here outputs past a sequence's length are zero.
    pub masked: bool,
    /// Whether a layer keeps its state from one batch to the next: pass `h_n` and `c_n` on as `h_0` and `c_0`.
    pub stateful: bool,
    /// Whether other layers of the model give a layer its initial state; pass it as `h_0` and `c_0`.
    pub takes_initial_state: bool,
    /// What is taken for granted, a line each. Of a file of weights: what it does not say and was taken to be Keras'
    /// default, for each layer. Of a whole model: that it applies a layer more often than here, that it has layers that
    /// are not computed here, that Keras computes with other floats, or repeats outputs where here they are zero.
    pub assumptions: Vec<String>,
}

/// Reads recurrent layers from the bytes of a Keras file.
///
/// `name` is a layer's (`"lstm_1"`; in a model inside the model `"encoder/lstm"`), or a range within a chain
/// (`"lstm_1..lstm_3"`), or `None` for the only chain of the file; [`list_layers`] has names and chains. A layer read
/// by name reads its input as it would at the start of a chain. A layer that the model applies again to its own output
/// stands in a chain as often as it is applied, with the same weights; by its name it is read once.
///
/// A file of weights without the model says neither how layers are connected nor their activations. It has one chain
/// per layer; Keras' defaults are taken where they are unambiguous, and listed in [`KerasModel::assumptions`]. A range
/// in it, of a file with `layer_names`, is the caller's word that these layers follow each other.
///
/// # Errors
/// [`InvalidFile`](ErrorKind::InvalidFile) if the bytes are not a complete Keras file or the configuration is not
/// one of Keras'; [`InvalidWeights`](ErrorKind::InvalidWeights) if no layer or several chains fit, or a variable is
/// missing, of the wrong shape, not finite or too large for f32; [`Unsupported`](ErrorKind::Unsupported) for a layer,
/// activation or option that is not computed, and for weights whose model has to be known.
///
/// ```no_run
/// let bytes = std::fs::read("model.keras")?;
/// let model = wgpu_lstm::weights::keras::read(&bytes, None)?;
/// println!("{} layers, input [B, T, {}]", model.layers.len(), model.weights.spec().input_size());
/// assert!(!model.output_is_time_reversed);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read(bytes: &[u8], name: Option<&str>) -> Result<KerasModel> {
    let store = Store::open(bytes)?;
    let version = store.version.as_deref().and_then(Version::parse);
    match &store.config {
        Some(config) => read_configured(&store, &Graph::new(config)?, version, name),
        None => read_unconfigured(&store, version, name),
    }
}

/// Reads recurrent layers from the file at `path`, see [`read`].
///
/// # Errors
/// As [`read`]; [`InvalidFile`](ErrorKind::InvalidFile) also if the file is missing or is a directory.
pub fn read_file(path: impl AsRef<Path>, name: Option<&str>) -> Result<KerasModel> {
    let path = path.as_ref();
    read_bytes(path).and_then(|bytes| read(&bytes, name)).map_err(|e| e.context(path.display()))
}

/// The recurrent layers of a file, in its order; also those that [`read`] refuses.
///
/// # Errors
/// [`InvalidFile`](ErrorKind::InvalidFile) if the bytes are not a complete Keras file;
/// [`Unsupported`](ErrorKind::Unsupported) if the model is neither Sequential nor functional.
pub fn list_layers(bytes: &[u8]) -> Result<Vec<KerasLayer>> {
    let store = Store::open(bytes)?;
    match &store.config {
        Some(config) => Ok(layers_of(&Graph::new(config)?)),
        None => {
            let layer = |(chain, layer): (usize, Unconfigured)| {
                let class = if layer.bidirectional { "Bidirectional" } else { gates_of(&layer)?.0 };
                Ok(KerasLayer { name: layer.name, class: class.to_owned(), chain })
            };
            store.unconfigured()?.recurrent.into_iter().enumerate().map(layer).collect()
        }
    }
}

/// The bytes of the file at `path`, after a look at its head: a wrong file of many gigabytes is refused before memory is
/// taken for it.
fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::new(ErrorKind::InvalidFile, format!("cannot be read: {e}"));
    let mut file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        bail!(InvalidFile, "expected a file, found a directory");
    }
    let mut bytes = Vec::new();
    file.by_ref().take(8).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.starts_with(HDF5_MAGIC) || bytes.starts_with(ZIP_MAGIC) {
        file.read_to_end(&mut bytes).map_err(failed)?;
    }
    Ok(bytes)
}

/// One Keras layer with its variables.
struct Part {
    name: String,
    recurrent: Recurrent,
    /// All cells of the first direction, then all of the second.
    tensors: Vec<CellTensors>,
}

fn read_configured(
    store: &Store,
    graph: &Graph<'_>,
    version: Option<Version>,
    name: Option<&str>,
) -> Result<KerasModel> {
    let all = layers_of(graph);
    let chosen = choose(&all, &graph.chains, name, &graph.others)?;
    if chosen.len() > MAX_CHAIN {
        bail!(Unsupported, "name: expected a chain of at most {MAX_CHAIN} layers, found {}", chosen.len());
    }
    store.expect_no_other_than(&graph.top)?;
    let mut parts = Vec::new();
    for (at, &i) in chosen.iter().enumerate() {
        let layer = &graph.layers[i];
        let title = || format!("layer {} ({})", layer.name, layer.class);
        if let Some(refusal) = &layer.refusal {
            bail!(Unsupported, "{}: {refusal}", title());
        }
        let recurrent = Recurrent::new(layer.class, layer.config, version).map_err(|e| e.context(title()))?;
        if layer.training && drops(layer.config) {
            bail!(
                Unsupported,
                "{}: argument training of a call: expected false or no dropout, found true: every run drops other values",
                title()
            );
        }
        if layer.masked && recurrent.go_backwards && at + 1 < chosen.len() {
            bail!(
                Unsupported,
                "{}: go_backwards before another layer with a mask: Keras hands the mask on without reversing it; read \
                 the layers one by one",
                title()
            );
        }
        let tensors = store.cells(&layer.place, &recurrent.classes())?;
        parts.push(Part { name: layer.name.clone(), recurrent, tensors });
    }
    let model = assemble(&parts)?;
    let masked = chosen.iter().any(|&i| graph.layers[i].masked);
    let mut assumptions = assumptions(graph, chosen, &parts);
    let repeats = parts.last().is_some_and(|p| p.recurrent.return_sequences && !p.recurrent.zero_output_for_mask);
    if masked && repeats {
        assumptions.push("masked steps: Keras repeats the output before them, here it is zero".to_owned());
    }
    Ok(KerasModel {
        layers: chosen.iter().map(|&i| all[i].clone()).collect(),
        masked,
        takes_initial_state: chosen.iter().any(|&i| graph.layers[i].takes_state),
        assumptions,
        ..model
    })
}

/// How many layers a chain may have; as many as a model of this crate.
const MAX_CHAIN: usize = 1 << 10;

/// What a caller of these layers of a whole model has to know and no other field says.
fn assumptions(graph: &Graph<'_>, chosen: &[usize], parts: &[Part]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut told = HashSet::new();
    for (part, &i) in parts.iter().zip(chosen) {
        let layer = &graph.layers[i];
        if !told.insert(i) {
            continue;
        }
        let times = chosen.iter().filter(|&&other| other == i).count();
        if times != layer.calls {
            lines.push(format!(
                "{}: the model applies this layer {} times, with the same weights; here it is applied {}",
                layer.name,
                layer.calls,
                if times == 1 { "once".to_owned() } else { format!("{times} times") }
            ));
        }
        if let Some(precision) = &part.recurrent.precision {
            lines.push(format!("{}: Keras computes in {precision}, here in f32", layer.name));
        }
    }
    if !graph.others.is_empty() {
        lines.push(format!("layers of the model that are not computed here: {}", first_of(&graph.others)));
    }
    if !graph.custom_models.is_empty() {
        lines.push(format!("a class of the user's is taken to be functional: {}", first_of(&graph.custom_models)));
    }
    lines
}

/// The first of many names, for a message.
fn first_of(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// Whether a layer, or one inside it, drops values while it is trained.
fn drops(config: &Value) -> bool {
    match config {
        Value::Object(map) => map.iter().any(|(name, value)| match value {
            Value::Number(rate) => name.contains("dropout") && rate.as_f64() != Some(0.0),
            inner => drops(inner),
        }),
        Value::Array(list) => list.iter().any(drops),
        _ => false,
    }
}

fn layers_of(graph: &Graph<'_>) -> Vec<KerasLayer> {
    let mut chain_of = vec![graph.chains.len(); graph.layers.len()];
    for (number, chain) in graph.chains.iter().enumerate().rev() {
        for &i in chain {
            chain_of[i] = number;
        }
    }
    let layer = |(layer, &chain): (&graph::Layer<'_>, &usize)| KerasLayer {
        name: layer.name.clone(),
        class: layer.class.to_owned(),
        chain,
    };
    graph.layers.iter().zip(&chain_of).map(layer).collect()
}

/// The layers to read, as indices; `others` are the layers that are not recurrent, for a message.
fn choose<'a>(
    all: &[KerasLayer],
    chains: &'a [Vec<usize>],
    wanted: Option<&str>,
    others: &[String],
) -> Result<&'a [usize]> {
    let list = || {
        let chain = |chain: &Vec<usize>| match chain.as_slice() {
            [one] => format!("{:?}", all[*one].name),
            [first, .., last] => format!("\"{}..{}\"", all[*first].name, all[*last].name),
            [] => String::new(),
        };
        first_of(&chains.iter().map(chain).collect::<Vec<_>>())
    };
    let Some(wanted) = wanted else {
        return match chains {
            [chain] => Ok(chain),
            [] => {
                let found = if others.is_empty() { "none".to_owned() } else { first_of(others) };
                bail!(
                    InvalidWeights,
                    "no recurrent layer in the file: looked for LSTM, GRU, SimpleRNN, RNN, Bidirectional; found {found}"
                )
            }
            _ => {
                bail!(InvalidWeights, "name: the file holds several chains of recurrent layers: {}; choose one", list())
            }
        };
    };
    let first = |chain: &[usize], name: &str| chain.iter().position(|&i| all[i].name == name);
    let last = |chain: &[usize], name: &str| chain.iter().rposition(|&i| all[i].name == name);
    if let Some((chain, at)) = chains.iter().find_map(|chain| Some((chain, first(chain, wanted)?))) {
        return Ok(&chain[at..=at]);
    }
    if let Some((from, to)) = wanted.split_once("..") {
        let range = |chain: &'a Vec<usize>| chain.get(first(chain, from)?..=last(chain, to)?);
        if let Some(range) = chains.iter().find_map(range).filter(|range| !range.is_empty()) {
            return Ok(range);
        }
        if [from, to].iter().all(|name| chains.iter().any(|chain| first(chain, name).is_some())) {
            bail!(InvalidWeights, "name: expected a range within one of the chains {}, found {wanted:?}", list());
        }
    }
    bail!(InvalidWeights, "name: expected a recurrent layer, or a range, of {}, found {wanted:?}", list())
}

/// Joins the parts; time runs as it does at the input, whatever `go_backwards` says.
fn assemble(parts: &[Part]) -> Result<KerasModel> {
    let mut specs = Vec::new();
    let mut cells = Vec::new();
    // Whether Keras holds the sequence in reverse at this point of the chain.
    let mut flipped = false;
    for part in parts {
        let in_layer = |e: Error| e.context(format!("layer {}", part.name));
        let recurrent = &part.recurrent;
        let reverse = flipped ^ recurrent.go_backwards;
        let per_direction = recurrent.directions[0].len();
        if part.tensors.len() != per_direction * recurrent.directions.len() {
            bail!(
                InvalidWeights,
                "layer {}: expected the variables of {} cells, found those of {}",
                part.name,
                per_direction * recurrent.directions.len(),
                part.tensors.len()
            );
        }
        for (i, cell) in recurrent.directions[0].iter().enumerate() {
            let (input_size, first) = cell.convert(&part.tensors[i]).map_err(in_layer)?;
            let other = recurrent.directions.get(1).map(|cells| &cells[i]);
            let mut spec = LayerSpec {
                cell: cell.join(other).map_err(in_layer)?,
                direction: if reverse { Direction::Reverse } else { Direction::Forward },
                bias: cell.bias,
                ..LayerSpec::new(input_size, cell.units)
            };
            let Some(other) = other else {
                specs.push(spec);
                cells.push(first);
                continue;
            };
            let (other_size, second) = other.convert(&part.tensors[per_direction + i]).map_err(in_layer)?;
            if other_size != input_size {
                bail!(
                    InvalidWeights,
                    "layer {}: expected both directions to read {input_size} inputs, found {other_size}",
                    part.name
                );
            }
            spec.direction = Direction::Bidirectional;
            spec.merge = recurrent.merge;
            if !reverse {
                cells.extend([first, second]);
            } else if recurrent.merge == Merge::Sum {
                // Keras' first direction runs backwards in time.
                spec.cell = other.join(Some(cell)).map_err(in_layer)?;
                cells.extend([second, first]);
            } else {
                bail!(
                    Unsupported,
                    "layer {}: Bidirectional with merge_mode \"concat\": expected time to run forward, found it in \
                     reverse, by go_backwards of this layer or one before it",
                    part.name
                );
            }
            specs.push(spec);
        }
        flipped ^= recurrent.go_backwards;
    }
    let returns_sequences = parts.last().is_some_and(|part| part.recurrent.return_sequences);
    Ok(KerasModel {
        weights: LstmWeights::new(LstmSpec::new(specs)?, cells)?,
        layers: Vec::new(),
        output_is_time_reversed: flipped && returns_sequences,
        returns_sequences,
        masked: false,
        stateful: parts.iter().any(|part| part.recurrent.stateful),
        takes_initial_state: false,
        assumptions: Vec::new(),
    })
}

/// The class and the number of gates that shapes show: H columns or 3·H or 4·H in a recurrent kernel of H rows.
fn gates_of(layer: &Unconfigured) -> Result<(&'static str, usize)> {
    let shape = layer.cells.first().map_or(&[][..], |cell| &cell.recurrent.shape);
    match *shape {
        [h, columns] if h > 0 && columns == h => Ok(("SimpleRNN", 1)),
        [h, columns] if h > 0 && Some(columns) == h.checked_mul(3) => Ok(("GRU", 3)),
        [h, columns] if h > 0 && Some(columns) == h.checked_mul(4) => Ok(("LSTM", 4)),
        _ => bail!(
            Unsupported,
            "layer {}: expected a recurrent kernel [units, units], [units, 3·units] or [units, 4·units], found {shape:?}; \
             give the whole model",
            layer.name
        ),
    }
}

fn read_unconfigured(store: &Store, version: Option<Version>, name: Option<&str>) -> Result<KerasModel> {
    let Weights { recurrent: found, wrapped } = store.unconfigured()?;
    if found.is_empty() && !wrapped.is_empty() {
        bail!(
            Unsupported,
            "{}: a recurrent layer inside another layer, such as TimeDistributed, or a model; give the whole model",
            first_of(&wrapped)
        );
    }
    let layer = |(chain, layer): (usize, &Unconfigured)| KerasLayer {
        name: layer.name.clone(),
        class: (if layer.bidirectional { "Bidirectional" } else { gates_of(layer).map_or("RNN", |g| g.0) }).to_owned(),
        chain,
    };
    let all: Vec<KerasLayer> = found.iter().enumerate().map(layer).collect();
    // Layers with variables that follow each other; the groups of `.weights.h5` have no order.
    let mut runs: Vec<Vec<usize>> = Vec::new();
    for (i, layer) in found.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if layer.follows_the_one_before => run.push(i),
            _ => runs.push(vec![i]),
        }
    }
    let each: Vec<Vec<usize>> = (0..found.len()).map(|i| vec![i]).collect();
    let chosen = choose(&all, if name.is_some_and(|n| n.contains("..")) { &runs } else { &each }, name, &[])?;
    let mut parts = Vec::new();
    let mut assumptions = Vec::new();
    for (at, &i) in chosen.iter().enumerate() {
        let next_input = chosen.get(at + 1).and_then(|&next| found[next].cells.first()?.kernel.shape.first().copied());
        let (part, assumed) = guess(&found[i], store, version, next_input)?;
        assumptions.push(format!("{}: {assumed}", part.name));
        parts.push(part);
    }
    if !wrapped.is_empty() {
        assumptions
            .push(format!("recurrent layers inside other layers or models are not read: {}", first_of(&wrapped)));
    }
    let model = assemble(&parts)?;
    Ok(KerasModel { layers: chosen.iter().map(|&i| all[i].clone()).collect(), assumptions, ..model })
}

/// The configuration that a layer's variables show, completed by defaults, and what these are.
fn guess(
    layer: &Unconfigured,
    store: &Store,
    version: Option<Version>,
    next_input: Option<usize>,
) -> Result<(Part, String)> {
    let (class, gates) = gates_of(layer)?;
    let [Some(first), second] = [layer.cells.first(), layer.cells.get(1)] else {
        bail!(Unsupported, "layer {}: stacked cells; give the whole model", layer.name);
    };
    if layer.cells.len() != 1 + usize::from(layer.bidirectional) || second.is_some() != layer.bidirectional {
        bail!(Unsupported, "layer {}: {} cells; give the whole model", layer.name, layer.cells.len());
    }
    let units = first.recurrent.shape[0];
    let bias = first.bias.as_ref().map(|bias| bias.shape.as_slice());
    let cudnn = gates > 1 && bias.is_some_and(|bias| bias == [2 * gates * units]);
    if class == "GRU" && bias.is_none() {
        bail!(
            Unsupported,
            "layer {}: a GRU without bias may have reset_after or not; give the whole model",
            layer.name
        );
    }
    // Weights of Keras 3 alone have no version; its defaults are those since 2.3.
    let has_names = store.has_names();
    if gates > 1 && !cudnn && (has_names || version.is_some()) && version.is_none_or(|v| (v.major, v.minor) < (2, 3)) {
        bail!(
            Unsupported,
            "layer {}: expected weights of Keras 2.3 or later, found {}: recurrent_activation may be hard_sigmoid or \
             sigmoid; give the whole model",
            layer.name,
            store.version.as_deref().unwrap_or("no keras_version")
        );
    }
    let mut config = json!({ "units": units, "return_sequences": true });
    if !cudnn {
        config["use_bias"] = bias.is_some().into();
        if gates > 1 {
            config["recurrent_activation"] = "sigmoid".into();
        }
        if class == "GRU" {
            config["reset_after"] = bias.is_some_and(|bias| bias.len() == 2).into();
        }
    }
    let class = match (class, cudnn) {
        ("LSTM", true) => "CuDNNLSTM",
        ("GRU", true) => "CuDNNGRU",
        (class, _) => class,
    };
    let merge = if layer.bidirectional && next_input == Some(units) { "sum" } else { "concat" };
    let (class, config): (_, Value) = if layer.bidirectional {
        ("Bidirectional", json!({ "layer": { "class_name": class, "config": config }, "merge_mode": merge }))
    } else {
        (class, config)
    };
    let recurrent = Recurrent::new(class, &config, version).map_err(|e| e.context(format!("layer {}", layer.name)))?;
    let mut assumed = vec!["return_sequences true", "go_backwards false"];
    if !cudnn {
        assumed.push("activation tanh");
        if gates > 1 {
            assumed.push("recurrent_activation sigmoid");
        }
    }
    let merge = format!("merge_mode {merge}");
    if layer.bidirectional {
        assumed.push(&merge);
    }
    Ok((Part { name: layer.name.clone(), recurrent, tensors: layer.cells.clone() }, assumed.join(", ")))
}

#[cfg(test)]
mod tests;
