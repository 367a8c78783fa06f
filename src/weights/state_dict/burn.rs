//! Stage 1, read: the names of [Burn](https://burn.dev)'s `Lstm`, `BiLstm`, `Gru`, `BiGru`, `Rnn` and `BiRnn` →
//! [`LstmWeights`].
//!
//! In:  per gate `GATE.input_transform` and `GATE.hidden_transform`, each a linear layer with weight [in, out], as
//!      Burn's own record or `SafetensorsStore` has it, and bias `[out]`; under `forward.` and `reverse.` of a
//!      bidirectional module.
//! Out: [`LstmWeights`] of one layer: the gates stacked in canonical order, transposed.
//! What a file does not hold is taken as Burn's defaults: sigmoid and tanh, `reset_after`, no clip. An LSTM without
//! a forget gate is Burn's `input_forget`.
//! Not here: which prefix (`state_dict`).

use std::collections::{BTreeMap, BTreeSet};

use super::{Found, Network, StateDict, two_sizes};
use crate::cell::CellSpec;
use crate::error::{Result, bail};
use crate::spec::{Direction, LayerSpec, LstmSpec};
use crate::weights::source::shown;
use crate::weights::tensor::Tensor;
use crate::weights::{CellWeights, LstmWeights};

const FORGET_GATE: &str = "forget_gate";

impl Network {
    /// Burn's names of the gates, in canonical order.
    fn burn_gates(self) -> &'static [&'static str] {
        match self {
            Network::Lstm => &["input_gate", FORGET_GATE, "cell_gate", "output_gate"],
            Network::Gru => &["reset_gate", "update_gate", "new_gate"],
            Network::Rnn => &["gate"],
        }
    }
}

/// Takes `PREFIX GATE.input_transform.weight` apart: the prefix, and the network that has such a gate.
fn take_apart(name: &str) -> Option<(&str, Network)> {
    let (rest, leaf) = name.rsplit_once('.')?;
    let (rest, transform) = rest.rsplit_once('.')?;
    if !matches!(leaf, "weight" | "bias") || !matches!(transform, "input_transform" | "hidden_transform") {
        return None;
    }
    let gate = rest.rsplit('.').next().unwrap_or_default();
    let networks = [Network::Lstm, Network::Gru, Network::Rnn];
    let network = networks.into_iter().find(|network| network.burn_gates().contains(&gate))?;
    Some((&rest[..rest.len() - gate.len()], network))
}

/// Each prefix with Burn's names and the network that the gates show; the two halves of a bidirectional module are
/// one.
pub(super) fn candidates(dict: &StateDict<'_>) -> BTreeMap<String, Network> {
    let halves: BTreeMap<&str, Network> = dict.tensors.keys().filter_map(|name| take_apart(name)).collect();
    let mut found = BTreeMap::new();
    for (&prefix, &network) in &halves {
        let module = prefix.strip_suffix("forward.").or_else(|| prefix.strip_suffix("reverse.")).unwrap_or(prefix);
        let both = ["forward", "reverse"].map(|half| halves.get(format!("{module}{half}.").as_str()).copied());
        let is_half = module != prefix && both == [Some(network); 2];
        found.insert(if is_half { module } else { prefix }.to_owned(), network);
    }
    found
}

/// Reads the network under `prefix`.
pub(super) fn read(dict: &StateDict<'_>, prefix: &str, network: Network, mut cell: CellSpec) -> Result<Found> {
    let has = |prefix: &str| dict.tensors.keys().any(|name| take_apart(name).is_some_and(|(p, _)| p == prefix));
    let direction = if has(prefix) { Direction::Forward } else { Direction::Bidirectional };
    let halves = match direction {
        Direction::Bidirectional => vec![format!("{prefix}forward."), format!("{prefix}reverse.")],
        Direction::Forward | Direction::Reverse => vec![prefix.to_owned()],
    };
    let coupled = |half: &String| {
        network == Network::Lstm && !dict.tensors.keys().any(|name| name.starts_with(&format!("{half}{FORGET_GATE}.")))
    };
    let coupled = halves.iter().all(coupled);
    if let CellSpec::Lstm(cell) = &mut cell {
        cell.coupled_input_forget = coupled;
    }

    let first = format!("{}{}", halves[0], network.burn_gates()[0]);
    let size_of = |transform: &str, meaning: &str| {
        let name = format!("{first}.{transform}.weight");
        two_sizes(&name, meaning, find(dict, &name, &first)?.shape())
    };
    let [input_size, _] = size_of("input_transform", "[input_size, hidden_size]")?;
    let [_, hidden_size] = size_of("hidden_transform", "[hidden_size, hidden_size]")?;
    let bias = halves.iter().any(|half| {
        let biases = |name: &&String| name.ends_with(".bias") && take_apart(name).is_some_and(|(p, _)| p == half);
        dict.tensors.keys().any(|name| biases(&name))
    });
    let layer = LayerSpec { cell, direction, bias, ..LayerSpec::new(input_size, hidden_size) };
    let spec = LstmSpec::new(vec![layer])?;

    let mut used = BTreeSet::new();
    let mut parts: Vec<[Part<'_>; 4]> = Vec::new();
    for half in &halves {
        for &gate in network.burn_gates() {
            let mut part = |transform: &str, leaf: &str, expected: &[usize], meaning: &str| -> Result<Part<'_>> {
                let is_bias = leaf == "bias";
                if (is_bias && !bias) || (coupled && gate == FORGET_GATE) {
                    return Ok(Part::Absent {
                        num_elements: if is_bias && !bias { 0 } else { expected.iter().product() },
                    });
                }
                let name = format!("{half}{gate}.{transform}.{leaf}");
                let tensor = find(dict, &name, &first)?;
                if tensor.shape() != expected {
                    let turned = transform == "input_transform"
                        && matches!(*tensor.shape(), [out, size] if out == hidden_size && size != hidden_size);
                    let hint = if turned { "; saved through BurnToPyTorchAdapter?" } else { "" };
                    let (name, found) = (shown(&name), tensor.shape());
                    bail!(InvalidWeights, "{name}: expected {meaning} = {expected:?}, found {found:?}{hint}");
                }
                used.insert(name.clone());
                Ok(Part::Tensor { name, tensor })
            };
            parts.push([
                part("input_transform", "weight", &[input_size, hidden_size], "[input_size, hidden_size]")?,
                part("hidden_transform", "weight", &[hidden_size, hidden_size], "[hidden_size, hidden_size]")?,
                part("input_transform", "bias", &[hidden_size], "[hidden_size]")?,
                part("hidden_transform", "bias", &[hidden_size], "[hidden_size]")?,
            ]);
        }
    }
    dict.check_total(used.iter().map(String::as_str))?;
    let mut cells = Vec::new();
    for gates in parts.chunks(network.num_gates()) {
        let mut cell = CellWeights::default();
        let [mut bias_ih, mut bias_hh] = [Vec::new(), Vec::new()];
        for [weight_ih, weight_hh, b_ih, b_hh] in gates {
            cell.weight_ih.extend(transposed(&weight_ih.values()?, hidden_size));
            cell.weight_hh.extend(transposed(&weight_hh.values()?, hidden_size));
            bias_ih.extend(b_ih.values()?);
            bias_hh.extend(b_hh.values()?);
        }
        (cell.bias_ih, cell.bias_hh) = (bias.then_some(bias_ih), bias.then_some(bias_hh));
        cells.push(cell);
    }
    dict.check_siblings(prefix, &format!("Burn's {}", network.name()), &used)?;
    Ok(Found { weights: LstmWeights::new(spec, cells)?, used, notes: Vec::new() })
}

/// A tensor of a gate, or zeros: those of the gate that `input_forget` leaves out.
enum Part<'t> {
    Tensor { name: String, tensor: &'t Tensor<'t> },
    Absent { num_elements: usize },
}

impl Part<'_> {
    fn values(&self) -> Result<Vec<f32>> {
        match self {
            Part::Tensor { name, tensor } => tensor.to_finite_f32(name),
            Part::Absent { num_elements } => Ok(vec![0.0; *num_elements]),
        }
    }
}

fn find<'t>(dict: &'t StateDict<'t>, name: &str, why: &str) -> Result<&'t Tensor<'t>> {
    match dict.tensors.get(name) {
        Some(tensor) => Ok(tensor),
        None => bail!(
            InvalidWeights,
            "{}: missing, though the gate {} or another of the module is there",
            shown(name),
            shown(why)
        ),
    }
}

/// [rows, columns] → [columns, rows].
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|c| values.iter().skip(c).step_by(columns).copied()).collect()
}
