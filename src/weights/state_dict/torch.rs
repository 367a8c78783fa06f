//! Stage 1, read: the names of `torch.nn.LSTM`, `GRU`, `RNN` and of their cells → [`LstmWeights`].
//!
//! In:  tensors under a prefix; Candle's layers have the same names.
//! Out: [`LstmWeights`]; PyTorch's gate orders i f g o and r z n are the canonical ones, and its GRU applies r to
//!      W_hn·h + b_hn.
//! The number of rows of weight_hh tells the networks apart: 4H of an LSTM, 3H of a GRU, H of an RNN.
//! Not here: which prefix (`state_dict`).

use std::collections::{BTreeMap, BTreeSet};

use super::{Network, StateDict, two_sizes};
use crate::cell::CellSpec;
use crate::error::{Result, bail};
use crate::spec::{Direction, LayerSpec, LstmSpec};
use crate::weights::tensor::Tensor;
use crate::weights::{CellWeights, LstmWeights};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    WeightIh,
    WeightHh,
    BiasIh,
    BiasHh,
    WeightHr,
}

const KINDS: [(&str, Kind); 5] = [
    ("weight_hh", Kind::WeightHh),
    ("weight_ih", Kind::WeightIh),
    ("bias_ih", Kind::BiasIh),
    ("bias_hh", Kind::BiasHh),
    ("weight_hr", Kind::WeightHr),
];

/// Which tensor of a network a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    /// `None` in the names of `torch.nn.LSTMCell`.
    layer: Option<usize>,
    reverse: bool,
    kind: Kind,
}

impl Slot {
    /// PyTorch's name.
    fn name(self) -> String {
        let kind = KINDS.iter().find(|(_, kind)| *kind == self.kind).expect("KINDS lists every kind").0;
        let layer = self.layer.map_or(String::new(), |l| format!("_l{l}"));
        format!("{kind}{layer}{}", if self.reverse { "_reverse" } else { "" })
    }
}

/// Takes a name apart: its prefix, and which tensor it means; `None` in place of the slot if the name only looks
/// like one of a network (`weight_hh_l0_raw`), and no result if it does not.
fn take_apart(name: &str) -> Option<(&str, Option<Slot>)> {
    let (start, (stem, kind)) =
        KINDS.iter().filter_map(|entry| name.rfind(entry.0).map(|start| (start, *entry))).max_by_key(|e| e.0)?;
    let rest = &name[start + stem.len()..];
    let (number, reverse) = match rest.strip_suffix("_reverse") {
        Some(number) => (number, true),
        None => (rest, false),
    };
    let slot = if rest.is_empty() {
        (kind != Kind::WeightHr).then_some(Slot { layer: None, reverse: false, kind })
    } else {
        let number = number.strip_prefix("_l").and_then(|n| n.parse::<u16>().ok());
        let slot = number.map(|n| Slot { layer: Some(n.into()), reverse, kind });
        // `parse` reads "+1" and "01" too; only the canonical spelling is PyTorch's.
        slot.filter(|slot| slot.name() == name[start..])
    };
    Some((&name[..start], slot))
}

/// Each prefix with PyTorch's names, and the network that the shapes show; an LSTM if they show none.
pub(super) fn candidates(dict: &StateDict<'_>) -> BTreeMap<String, Network> {
    #[derive(Default)]
    struct Shown {
        /// The first weight_hh whose shape is that of a network.
        by: Option<(Slot, Network)>,
        projection: bool,
    }
    let mut found: BTreeMap<&str, Shown> = BTreeMap::new();
    for (name, tensor) in &dict.tensors {
        let Some((prefix, Some(slot))) = take_apart(name) else {
            continue;
        };
        let shown = found.entry(prefix).or_default();
        shown.projection |= slot.kind == Kind::WeightHr;
        if slot.kind == Kind::WeightHh
            && let [rows, h] = *tensor.shape()
            && h > 0
        {
            let network = match (rows / h, rows % h) {
                (4, 0) => Network::Lstm,
                (3, 0) => Network::Gru,
                (1, 0) => Network::Rnn,
                _ => continue,
            };
            if shown.by.is_none_or(|(first, _)| slot < first) {
                shown.by = Some((slot, network));
            }
        }
    }
    let network = |shown: Shown| match shown.by {
        // Only torch.nn.LSTM has projections; with one, the columns of weight_hh are P.
        Some((_, network)) if !shown.projection => network,
        _ => Network::Lstm,
    };
    found.into_iter().map(|(prefix, shown)| (prefix.to_owned(), network(shown))).collect()
}

/// Reads the network under `prefix`: its weights, and the names of its tensors.
pub(super) fn read(
    dict: &StateDict<'_>,
    prefix: &str,
    network: Network,
    cell: CellSpec,
) -> Result<(LstmWeights, BTreeSet<String>)> {
    let tensors = collect(dict, prefix, network)?;
    let stack = check_complete(&tensors)?;
    let mut specs: Vec<LayerSpec> = Vec::new();
    for &layer in &stack.layers {
        specs.push(infer_layer(&tensors, layer, specs.last(), &stack, network, cell)?);
    }
    let spec = LstmSpec::new(specs)?;
    dict.check_total(tensors.values().map(|(name, _)| name.as_str()))?;
    let mut cells = Vec::new();
    for (&layer, layer_spec) in stack.layers.iter().zip(spec.layers()) {
        for &reverse in layer_spec.direction.is_reverse() {
            let get = |kind| {
                let (name, tensor) = &tensors[&Slot { layer, reverse, kind }];
                tensor.to_finite_f32(name)
            };
            cells.push(CellWeights {
                weight_ih: get(Kind::WeightIh)?,
                weight_hh: get(Kind::WeightHh)?,
                bias_ih: stack.bias.then(|| get(Kind::BiasIh)).transpose()?,
                bias_hh: stack.bias.then(|| get(Kind::BiasHh)).transpose()?,
                weight_hr: stack.projection.then(|| get(Kind::WeightHr)).transpose()?,
                ..CellWeights::default()
            });
        }
    }
    let used = tensors.into_values().map(|(name, _)| name).collect();
    Ok((LstmWeights::new(spec, cells)?, used))
}

/// The tensors of one network by slot, each with its full name.
type Tensors<'t> = BTreeMap<Slot, (String, &'t Tensor<'t>)>;

/// All tensors under `prefix`, after refusing names that only look right.
fn collect<'t>(dict: &'t StateDict<'t>, prefix: &str, network: Network) -> Result<Tensors<'t>> {
    let network = network.name();
    let mut tensors = Tensors::new();
    let parametrized = format!("{prefix}parametrizations.");
    for (name, tensor) in &dict.tensors {
        match take_apart(name) {
            Some((p, Some(slot))) if p == prefix => {
                tensors.insert(slot, (name.to_owned(), tensor));
            }
            Some((p, _)) if p == prefix || p == parametrized => bail!(
                InvalidWeights,
                "{name}: not a tensor of torch.nn.{network}; fold weight_norm, weight drop and other parametrizations \
                 into the weights before saving"
            ),
            _ => {}
        }
    }
    let of_cell = tensors.values().zip(tensors.keys()).find(|(_, slot)| slot.layer.is_none());
    let of_stack = tensors.values().zip(tensors.keys()).find(|(_, slot)| slot.layer.is_some());
    if let (Some(((cell, _), _)), Some(((stack, _), _))) = (of_cell, of_stack) {
        bail!(
            InvalidWeights,
            "{cell}, {stack}: names of torch.nn.{network}Cell and of torch.nn.{network} under one prefix"
        );
    }
    Ok(tensors)
}

/// What all layers have in common.
struct Stack {
    /// In order.
    layers: Vec<Option<usize>>,
    reverse: bool,
    bias: bool,
    projection: bool,
}

/// The layers and what they have, after checking that each has it like the others.
fn check_complete(tensors: &Tensors<'_>) -> Result<Stack> {
    let layers: Vec<Option<usize>> = {
        let set: BTreeSet<_> = tensors.keys().map(|slot| slot.layer).collect();
        set.into_iter().collect()
    };
    let (first, (any_name, _)) = tensors.first_key_value().expect("a chosen prefix has a tensor");
    let prefix = any_name.strip_suffix(&first.name()).unwrap_or_default();
    let missing =
        |slot: Slot, why: &str| bail!(InvalidWeights, "{prefix}{}: missing, though {why} is there", slot.name());

    // Why a tensor must be there: the first one that shows the property.
    let shows = |has: fn(&Slot) -> bool| tensors.iter().find(|(slot, _)| has(slot)).map(|(_, (name, _))| name.as_str());
    let reverse = shows(|slot| slot.reverse);
    let bias = shows(|slot| matches!(slot.kind, Kind::BiasIh | Kind::BiasHh));
    let projection = shows(|slot| slot.kind == Kind::WeightHr);
    for (l, &layer) in layers.iter().enumerate() {
        if layer.is_some_and(|found| found != l) {
            let why = &tensors.iter().find(|(slot, _)| slot.layer == layer).expect("layers are those of tensors").1.0;
            return missing(Slot { layer: Some(l), reverse: false, kind: Kind::WeightIh }, why);
        }
        for backwards in [false, true] {
            if backwards && reverse.is_none() {
                continue;
            }
            for (_, kind) in KINDS {
                let slot = Slot { layer, reverse: backwards, kind };
                let why = match kind {
                    Kind::BiasIh | Kind::BiasHh => bias,
                    Kind::WeightHr => projection,
                    Kind::WeightIh | Kind::WeightHh if backwards => reverse,
                    Kind::WeightIh | Kind::WeightHh => Some(any_name.as_str()),
                };
                if let Some(why) = why
                    && !tensors.contains_key(&slot)
                {
                    return missing(slot, why);
                }
            }
        }
    }
    Ok(Stack { layers, reverse: reverse.is_some(), bias: bias.is_some(), projection: projection.is_some() })
}

/// The sizes of a layer, after checking every shape against them.
fn infer_layer(
    tensors: &Tensors<'_>,
    layer: Option<usize>,
    before: Option<&LayerSpec>,
    stack: &Stack,
    network: Network,
    cell: CellSpec,
) -> Result<LayerSpec> {
    let rows = network.rows();
    let get = |kind| &tensors[&Slot { layer, reverse: false, kind }];
    let (hh_name, hh) = get(Kind::WeightHh);
    let (ih_name, ih) = get(Kind::WeightIh);
    let hh = two_sizes(hh_name, &format!("[{rows}, hidden_size]"), hh.shape())?;
    let ih = two_sizes(ih_name, &format!("[{rows}, input_size]"), ih.shape())?;
    let (hidden_size, projection_size) = if stack.projection {
        let (name, tensor) = get(Kind::WeightHr);
        let [p, hidden_size] = two_sizes(name, "[projection_size, hidden_size]", tensor.shape())?;
        (hidden_size, Some(p))
    } else {
        // Rows are the better witness: weight_ih and the biases have them too.
        (if hh[0].is_multiple_of(network.num_gates()) { hh[0] / network.num_gates() } else { hh[1] }, None)
    };
    let spec = LayerSpec {
        cell,
        direction: if stack.reverse { Direction::Bidirectional } else { Direction::Forward },
        bias: stack.bias,
        projection_size,
        ..LayerSpec::new(before.map_or(ih[1], LayerSpec::output_size), hidden_size)
    };
    let gates = hidden_size.saturating_mul(network.num_gates());
    let input = if before.is_some() { "output size of the layer before" } else { "input_size" };
    let h = if stack.projection { "projection_size" } else { "hidden_size" };
    for &reverse in spec.direction.is_reverse() {
        for (_, kind) in KINDS {
            let Some((name, tensor)) = tensors.get(&Slot { layer, reverse, kind }) else {
                continue;
            };
            let (meaning, expected) = match kind {
                Kind::WeightIh => (format!("[{rows}, {input}]"), vec![gates, spec.input_size]),
                Kind::WeightHh => (format!("[{rows}, {h}]"), vec![gates, spec.h_size()]),
                Kind::BiasIh | Kind::BiasHh => (format!("[{rows}]"), vec![gates]),
                Kind::WeightHr => ("[projection_size, hidden_size]".to_owned(), vec![spec.h_size(), hidden_size]),
            };
            if tensor.shape() != expected {
                bail!(InvalidWeights, "{name}: expected {meaning} = {expected:?}, found {:?}", tensor.shape());
            }
        }
    }
    Ok(spec)
}
