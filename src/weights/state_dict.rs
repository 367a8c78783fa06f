//! Stage 1, read: named tensors → [`LstmWeights`].
//!
//! In:  the tensors of a file by name, with PyTorch's names ([`torch`]) or Burn's ([`burn`]), of any number of
//!      networks at any depth.
//! Out: the weights of the one network that [`ReadOptions`] asks for; equations, layers, directions, projection and
//!      biases are inferred from names and shapes.
//! Afterwards every error has named the tensor, the expected and the found shape.
//! Not here: the formats of files; what the rest of the file means (its tensors are ignored).
//!
//! A *prefix* is what stands before the network's own names: `encoder.lstm.` in `encoder.lstm.weight_ih_l0`.

use std::collections::{BTreeMap, BTreeSet};

use super::LstmWeights;
use super::source::{FileContents, ReadOptions, TensorInfo};
use super::tensor::Tensor;
use crate::activation::Activation;
use crate::cell::{CellSpec, GruCell, LstmCell, RnnCell};
use crate::error::{Result, bail};

mod burn;
mod torch;

/// Components of names that wrappers and checkpoints add: `DataParallel`, `torch.compile`, Lightning, and the keys
/// under which training scripts keep a state dict. A prefix may be given without them.
const WRAPPERS: [&str; 8] =
    ["module", "_orig_mod", "model", "net", "state_dict", "model_state_dict", "model_state", "module_state_dict"];

/// The most names in a message.
const SHOWN: usize = 6;

/// The recurrent networks that names and shapes can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Network {
    Lstm,
    Gru,
    Rnn,
}

impl Network {
    /// PyTorch's and Burn's equations; the activation of an RNN is not in the file.
    fn cell(self, rnn_activation: Option<Activation>) -> CellSpec {
        match self {
            Network::Lstm => CellSpec::Lstm(LstmCell::default()),
            Network::Gru => CellSpec::Gru(GruCell::default()),
            Network::Rnn => {
                let activations = [rnn_activation.unwrap_or(Activation::Tanh); 2];
                CellSpec::Rnn(RnnCell { activations, ..RnnCell::default() })
            }
        }
    }

    fn name(self) -> &'static str {
        self.cell(None).name()
    }

    fn with_article(self) -> &'static str {
        match self {
            Network::Lstm => "an LSTM",
            Network::Gru => "a GRU",
            Network::Rnn => "an RNN",
        }
    }

    fn num_gates(self) -> usize {
        self.cell(None).num_gates()
    }

    /// The rows of weights, in words.
    fn rows(self) -> &'static str {
        match self {
            Network::Lstm => "4·hidden_size",
            Network::Gru => "3·hidden_size",
            Network::Rnn => "hidden_size",
        }
    }
}

/// Whose names a network has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Names {
    PyTorch,
    Burn,
}

/// A network that the names show; whether it is complete is not yet known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    prefix: String,
    network: Network,
    names: Names,
}

/// The tensors of a file.
#[derive(Debug)]
pub(crate) struct StateDict<'a> {
    /// For [`FileContents`].
    pub(crate) format: &'static str,
    /// By full name.
    pub(crate) tensors: BTreeMap<String, Tensor<'a>>,
    /// The size of the file.
    pub(crate) file_bytes: usize,
}

impl StateDict<'_> {
    /// Reads the network that `options` asks for.
    pub(crate) fn read(&self, options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
        let chosen = self.choose(options.prefix.as_deref())?;
        if let Some(activation) = options.rnn_activation
            && chosen.network != Network::Rnn
        {
            bail!(
                Unsupported,
                "rnn_activation: expected none for {:?}, {}, found {activation}",
                chosen.prefix,
                chosen.network.with_article()
            );
        }
        let cell = chosen.network.cell(options.rnn_activation);
        let (weights, used) = match chosen.names {
            Names::PyTorch => torch::read(self, &chosen.prefix, chosen.network, cell)?,
            Names::Burn => burn::read(self, &chosen.prefix, chosen.network, cell)?,
        };
        let info = |(name, tensor): (&String, &Tensor<'_>)| TensorInfo {
            name: name.clone(),
            element_type: tensor.element().to_string(),
            shape: tensor.shape().to_vec(),
        };
        let contents = FileContents {
            format: self.format,
            prefix: chosen.prefix,
            tensors: self.tensors.iter().filter(|(name, _)| used.contains(name.as_str())).map(info).collect(),
            others: self.tensors.iter().filter(|(name, _)| !used.contains(name.as_str())).map(info).collect(),
            notes: Vec::new(),
        };
        Ok((weights, contents))
    }

    /// The prefixes of all networks, sorted.
    pub(crate) fn prefixes(&self) -> Vec<String> {
        self.candidates().into_iter().map(|candidate| candidate.prefix).collect()
    }

    /// The first few names of the file, for messages.
    pub(crate) fn first_names(&self) -> String {
        let more = self.tensors.len().saturating_sub(SHOWN);
        let shown: Vec<&str> = self.tensors.keys().take(SHOWN).map(String::as_str).collect();
        match (shown.len(), more) {
            (0, _) => "no tensors".to_owned(),
            (_, 0) => shown.join(", "),
            _ => format!("{}, and {more} more", shown.join(", ")),
        }
    }

    fn candidates(&self) -> BTreeSet<Candidate> {
        let of = |names, found: BTreeMap<String, Network>| {
            found.into_iter().map(move |(prefix, network)| Candidate { prefix, network, names })
        };
        let torch = of(Names::PyTorch, torch::candidates(self));
        torch.chain(of(Names::Burn, burn::candidates(self))).collect()
    }

    /// The network under the prefix `wanted`, or the only one.
    fn choose(&self, wanted: Option<&str>) -> Result<Candidate> {
        let candidates = self.candidates();
        let list = |of: &[&Candidate]| {
            let quoted = |candidate: &&Candidate| match candidate.prefix.as_str() {
                "" => format!("\"\" (the top level, {})", candidate.network.name()),
                prefix => format!("{prefix:?} ({})", candidate.network.name()),
            };
            let mut shown: Vec<String> = of.iter().take(SHOWN).map(quoted).collect();
            if of.len() > SHOWN {
                shown.push(format!("and {} more", of.len() - SHOWN));
            }
            shown.join(", ")
        };
        let all: Vec<&Candidate> = candidates.iter().collect();
        let fitting: Vec<&Candidate> = match wanted {
            None => all.clone(),
            Some(wanted) => {
                let wanted = wanted.strip_suffix('.').unwrap_or(wanted);
                let by = |key: fn(&str) -> String| -> Vec<&Candidate> {
                    let key_of = |prefix: &str| key(prefix.strip_suffix('.').unwrap_or(prefix));
                    all.iter().copied().filter(|candidate| key_of(&candidate.prefix) == key(wanted)).collect()
                };
                let exact = by(str::to_owned);
                if exact.is_empty() { by(without_wrappers) } else { exact }
            }
        };
        match (fitting.as_slice(), wanted) {
            ([only], _) => Ok((*only).clone()),
            ([], _) if all.is_empty() => bail!(
                InvalidWeights,
                "no LSTM, GRU or RNN in the file: looked for weight_ih_l0 (torch.nn.LSTM), weight_ih \
                 (torch.nn.LSTMCell) and input_gate.input_transform.weight (Burn) under any prefix, found {}",
                self.first_names()
            ),
            ([], Some(wanted)) => bail!(InvalidWeights, "prefix: expected one of {}, found {wanted:?}", list(&all)),
            (several, Some(wanted)) => {
                bail!(InvalidWeights, "prefix: {wanted:?} fits {}; give the whole prefix", list(several))
            }
            (several, None) => bail!(
                InvalidWeights,
                "prefix: the file holds several networks: {}; choose one (`--prefix` on the command line)",
                list(several)
            ),
        }
    }

    /// Refuses tensors that share storage so much that their numbers take far more memory than the file.
    fn check_total<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Result<()> {
        let sizes = names.into_iter().filter_map(|name| self.tensors.get(name)).map(Tensor::num_elements);
        let total = sizes.fold(0, usize::saturating_add);
        let limit = self.file_bytes.saturating_mul(2);
        if total > limit {
            bail!(
                InvalidWeights,
                "the network's tensors share storage: expected at most {limit} elements from a file of {} bytes, found \
                 {total}",
                self.file_bytes
            );
        }
        Ok(())
    }
}

/// `prefix` without [`WRAPPERS`].
fn without_wrappers(prefix: &str) -> String {
    prefix.split('.').filter(|part| !WRAPPERS.contains(part)).collect::<Vec<_>>().join(".")
}

/// The two sizes of a matrix, both positive.
fn two_sizes(name: &str, meaning: &str, shape: &[usize]) -> Result<[usize; 2]> {
    match *shape {
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => bail!(InvalidWeights, "{name}: expected {meaning}, found {shape:?}"),
    }
}
