//! Stage 1, read: the names of `torch.nn.LSTM`, `GRU`, `RNN` and of their cells → [`LstmWeights`].
//!
//! In:  tensors under a prefix; Candle's layers have the same names.
//! Out: [`LstmWeights`]; PyTorch's gate orders i f g o and r z n are the canonical ones, and its GRU applies r to
//!      W_hn·h + b_hn.
//! The number of rows of weight_hh tells the networks apart: 4H of an LSTM, 3H of a GRU, H of an RNN.
//! Not here: which prefix (`state_dict`); weights in parts (`fold`).

use std::collections::{BTreeMap, BTreeSet};

use super::fold::{Named, PARAMETRIZED, Part, SUFFIXES, Source};
use super::{Found, Network, StateDict, two_sizes};
use crate::cell::CellSpec;
use crate::error::{Result, bail};
use crate::spec::{Direction, LayerSpec, LstmSpec};
use crate::weights::source::shown;
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

/// Takes a name apart: its prefix, and which part of which tensor it means; `None` in their place if the name only
/// looks like one of a network (`weight_hh_l0_foo`), and no result if it does not.
fn take_apart(name: &str) -> Option<(&str, Option<(Slot, Part)>)> {
    const PARAMETRIZATIONS: &str = "parametrizations.";
    if let Some(start) = name.rfind(PARAMETRIZATIONS)
        && let Some((stem, part)) = name[start + PARAMETRIZATIONS.len()..].split_once('.')
        && let Some((start_of_stem, slot)) = slot_of(stem)
        && start_of_stem == 0
    {
        let part = PARAMETRIZED.iter().find(|entry| entry.0 == part).map(|entry| entry.1);
        return Some((&name[..start], slot.zip(part)));
    }
    let (start, slot) = slot_of(name)?;
    if let Some(slot) = slot {
        return Some((&name[..start], Some((slot, Part::Whole))));
    }
    let part = SUFFIXES.iter().find_map(|(suffix, part)| Some((slot_of(name.strip_suffix(suffix)?)?.1?, *part)));
    Some((&name[..start], part))
}

/// Where in a name a tensor's own name begins, and which tensor it is.
fn slot_of(name: &str) -> Option<(usize, Option<Slot>)> {
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
    Some((start, slot))
}

/// The prefix of the network whose tensor a name is, or looks like.
pub(super) fn prefix_of(name: &str) -> Option<&str> {
    take_apart(name).map(|(prefix, _)| prefix)
}

/// Whether a name is, or looks like, that of a tensor of the network under `prefix`.
pub(super) fn is_of(name: &str, prefix: &str) -> bool {
    prefix_of(name) == Some(prefix)
}

/// The prefix of the network that a tensor belongs to. The raw weights of weight drop are in the module around it.
fn home(dict: &StateDict<'_>, prefix: &str, slot: Slot, part: Part) -> String {
    let inner = format!("{prefix}module.");
    let is_inside = |kind| dict.tensors.contains_key(&format!("{inner}{}", Slot { kind, ..slot }.name()));
    if part == Part::Raw && KINDS.iter().any(|(_, kind)| is_inside(*kind)) { inner } else { prefix.to_owned() }
}

/// Each prefix with PyTorch's names, and the network that the shapes show; an LSTM if they show none.
pub(super) fn candidates(dict: &StateDict<'_>) -> BTreeMap<String, Network> {
    #[derive(Default)]
    struct Shown {
        /// The first weight_hh whose shape is that of a network.
        by: Option<(Slot, Network)>,
        projection: bool,
    }
    let mut found: BTreeMap<String, Shown> = BTreeMap::new();
    for (name, tensor) in &dict.tensors {
        let Some((prefix, Some((slot, part)))) = take_apart(name) else {
            continue;
        };
        let shown = found.entry(home(dict, prefix, slot, part)).or_default();
        shown.projection |= slot.kind == Kind::WeightHr;
        // Other parts have other shapes.
        if slot.kind == Kind::WeightHh
            && matches!(part, Part::Whole | Part::Raw | Part::V | Part::Original | Part::Original1 | Part::Parametrized)
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
    found.into_iter().map(|(prefix, shown)| (prefix, network(shown))).collect()
}

/// Reads the network under `prefix`.
pub(super) fn read(dict: &StateDict<'_>, prefix: &str, network: Network, cell: CellSpec) -> Result<Found> {
    let tensors = collect(dict, prefix, network)?;
    let stack = check_complete(prefix, &tensors)?;
    let mut specs: Vec<LayerSpec> = Vec::new();
    for &layer in &stack.layers {
        specs.push(infer_layer(&tensors, layer, specs.last(), &stack, network, cell)?);
    }
    let spec = LstmSpec::new(specs)?;
    let used: BTreeSet<String> = names(tensors.values().flat_map(Source::used));
    dict.check_total(used.iter().map(String::as_str))?;
    let mut cells = Vec::new();
    for (&layer, layer_spec) in stack.layers.iter().zip(spec.layers()) {
        for &reverse in layer_spec.direction.is_reverse() {
            let get = |kind| tensors[&Slot { layer, reverse, kind }].to_finite_f32();
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
    let notes = tensors.values().filter_map(Source::note).collect();
    Ok(Found { weights: LstmWeights::new(spec, cells)?, used, notes })
}

fn names<'t>(tensors: impl Iterator<Item = Named<'t>>) -> BTreeSet<String> {
    tensors.map(|(name, _)| name.to_owned()).collect()
}

/// The tensors of one network by slot.
type Tensors<'t> = BTreeMap<Slot, Source<'t>>;

/// All tensors under `prefix`, after refusing names that only look right and those that are not understood.
fn collect<'t>(dict: &'t StateDict<'t>, prefix: &str, network: Network) -> Result<Tensors<'t>> {
    let network = network.name();
    let mut parts: BTreeMap<Slot, BTreeMap<Part, Named<'t>>> = BTreeMap::new();
    let outside = prefix.strip_suffix("module.").unwrap_or(prefix);
    let is_alone = !dict.tensors.keys().any(|name| {
        matches!(take_apart(name), Some((p, Some((slot, part)))) if p == outside && home(dict, p, slot, part) == p)
    });
    for (name, tensor) in &dict.tensors {
        match take_apart(name) {
            Some((p, Some((slot, part)))) if (p == prefix || p == outside) && home(dict, p, slot, part) == prefix => {
                parts.entry(slot).or_default().insert(part, (name, tensor));
            }
            // In the module around this one, if that is no network of its own.
            Some((p, None)) if p == prefix || (p == outside && is_alone) => bail!(
                InvalidWeights,
                "{}: not a tensor of torch.nn.{network}; fold parametrizations into the weights before saving",
                shown(name)
            ),
            _ => {}
        }
    }
    let mut tensors = Tensors::new();
    for (slot, parts) in parts {
        tensors.insert(slot, Source::of(&parts)?);
    }
    let understood = names(tensors.values().flat_map(Source::understood));
    dict.check_siblings(prefix, &format!("torch.nn.{network}"), &understood)?;
    let of_cell = tensors.values().zip(tensors.keys()).find(|(_, slot)| slot.layer.is_none());
    let of_stack = tensors.values().zip(tensors.keys()).find(|(_, slot)| slot.layer.is_some());
    if let (Some((cell, _)), Some((stack, _))) = (of_cell, of_stack) {
        let (cell, stack) = (shown(cell.main().0), shown(stack.main().0));
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
fn check_complete(prefix: &str, tensors: &Tensors<'_>) -> Result<Stack> {
    let layers: Vec<Option<usize>> = {
        let set: BTreeSet<_> = tensors.keys().map(|slot| slot.layer).collect();
        set.into_iter().collect()
    };
    let any_name = tensors.first_key_value().expect("a chosen prefix has a tensor").1.main().0;
    let missing = |slot: Slot, why: &str| {
        bail!(InvalidWeights, "{}{}: missing, though {} is there", shown(prefix), slot.name(), shown(why))
    };

    // Why a tensor must be there: the first one that shows the property.
    let shows = |has: fn(&Slot) -> bool| tensors.iter().find(|(slot, _)| has(slot)).map(|(_, source)| source.main().0);
    let reverse = shows(|slot| slot.reverse);
    let bias = shows(|slot| matches!(slot.kind, Kind::BiasIh | Kind::BiasHh));
    let projection = shows(|slot| slot.kind == Kind::WeightHr);
    for (l, &layer) in layers.iter().enumerate() {
        if layer.is_some_and(|found| found != l) {
            let of_layer = tensors.iter().find(|(slot, _)| slot.layer == layer);
            let why = of_layer.expect("layers are those of tensors").1.main().0;
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
                    Kind::WeightIh | Kind::WeightHh => Some(any_name),
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
    let get = |kind| tensors[&Slot { layer, reverse: false, kind }].main();
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
            let Some((name, tensor)) = tensors.get(&Slot { layer, reverse, kind }).map(Source::main) else {
                continue;
            };
            let (meaning, expected) = match kind {
                Kind::WeightIh => (format!("[{rows}, {input}]"), vec![gates, spec.input_size]),
                Kind::WeightHh => (format!("[{rows}, {h}]"), vec![gates, spec.h_size()]),
                Kind::BiasIh | Kind::BiasHh => (format!("[{rows}]"), vec![gates]),
                Kind::WeightHr => ("[projection_size, hidden_size]".to_owned(), vec![spec.h_size(), hidden_size]),
            };
            if tensor.shape() != expected {
                let (name, found) = (shown(name), tensor.shape());
                bail!(InvalidWeights, "{name}: expected {meaning} = {expected:?}, found {found:?}");
            }
        }
    }
    Ok(spec)
}
