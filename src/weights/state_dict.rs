//! Stage 1, read: named tensors → [`LstmWeights`].
//!
//! In:  the tensors of a file by name, with PyTorch's names ([`torch`]) or Burn's ([`burn`]), of any number of
//!      networks at any depth.
//! Out: the weights of the one network that [`ReadOptions`] asks for; equations, layers, directions, projection and
//!      biases are inferred from names and shapes.
//! Afterwards every error has named the tensor, the expected and the found shape.
//! Tensors under the network's own prefix are part of it: one that is not understood is refused, never ignored.
//! Not here: the formats of files; what the rest of the file means.
//!
//! A *prefix* is what stands before the network's own names: `encoder.lstm.` in `encoder.lstm.weight_ih_l0`.

use std::collections::{BTreeMap, BTreeSet};

use super::LstmWeights;
use super::source::{FileContents, ObjectInfo, ReadOptions, TensorInfo, shown};
use super::tensor::Tensor;
use crate::activation::Activation;
use crate::cell::{CellSpec, GruCell, LstmCell, RnnCell};
use crate::error::{Result, bail};

mod burn;
mod fold;
mod torch;

/// Components of names that wrappers and checkpoints add: `DataParallel`, `torch.compile`, Lightning, and the keys
/// under which training scripts keep a state dict. A prefix may be given without them.
const WRAPPERS: [&str; 8] =
    ["module", "_orig_mod", "model", "net", "state_dict", "model_state_dict", "model_state", "module_state_dict"];

/// What training scripts keep in a checkpoint beside weights: how its names begin.
const TRAINING: [&str; 10] =
    ["optim", "sched", "lr_sched", "scaler", "callback", "loop", "rng", "metric", "loss", "best"];

/// The names of goldens, which hold a network and what it computed: what `lstm run` reads and writes.
const GOLDEN: [&str; 7] = ["x", "lengths", "h_0", "c_0", "output", "h_n", "c_n"];

/// The most names in a message.
const SHOWN: usize = 6;

/// The most objects that [`FileContents`] lists.
const MAX_OBJECTS: usize = 1000;

const ADVICE: &str = "in Python, save torch.save(module.state_dict(), path)";

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

/// An object of a checkpoint that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opaque {
    pub(crate) class: String,
    /// Whether it stands for a tensor, such as a sparse or a quantised one.
    pub(crate) is_tensor: bool,
}

/// What a pickled module says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) class: String,
    /// `relu` or `tanh`, if it has one.
    pub(crate) nonlinearity: Option<&'static str>,
    /// Whether code is attached that changes what it computes.
    pub(crate) hooked: bool,
}

/// The tensors of a file.
#[derive(Debug)]
pub(crate) struct StateDict<'a> {
    /// For [`FileContents`].
    pub(crate) format: &'static str,
    /// By full name.
    pub(crate) tensors: BTreeMap<String, Tensor<'a>>,
    /// For tensors of a dict inside others, by full name: the length of what precedes the key in the innermost dict. A
    /// pickled module is one dict.
    pub(crate) scopes: BTreeMap<String, usize>,
    /// What was passed over, by full name.
    pub(crate) objects: BTreeMap<String, Opaque>,
    /// The pickled modules by prefix.
    pub(crate) modules: BTreeMap<String, Module>,
    /// The size of the file.
    pub(crate) file_bytes: usize,
}

/// A network that was read.
struct Found {
    weights: LstmWeights,
    /// The tensors that its numbers are from, by name.
    used: BTreeSet<String>,
    notes: Vec<String>,
}

impl<'a> StateDict<'a> {
    pub(crate) fn new(format: &'static str, file_bytes: usize) -> Self {
        Self {
            format,
            tensors: BTreeMap::new(),
            scopes: BTreeMap::new(),
            objects: BTreeMap::new(),
            modules: BTreeMap::new(),
            file_bytes,
        }
    }

    /// Adds the tensors of another file.
    pub(crate) fn join(&mut self, other: StateDict<'a>) -> Result<()> {
        for (name, tensor) in other.tensors {
            if self.tensors.insert(name.clone(), tensor).is_some() {
                bail!(InvalidFile, "{}: expected it in one shard, found it in two", shown(&name));
            }
        }
        self.format = other.format;
        self.scopes.extend(other.scopes);
        self.objects.extend(other.objects);
        self.modules.extend(other.modules);
        self.file_bytes = self.file_bytes.saturating_add(other.file_bytes);
        Ok(())
    }

    /// Whether a name looks like a network's.
    #[cfg(feature = "pytorch")]
    pub(crate) fn has_network(&self) -> bool {
        !self.candidates().is_empty()
    }

    /// Reads the network that `options` asks for.
    pub(crate) fn read(&self, options: &ReadOptions) -> Result<(LstmWeights, FileContents)> {
        let chosen = self.choose(options.prefix.as_deref())?;
        if let Some(activation) = options.rnn_activation
            && chosen.network != Network::Rnn
        {
            bail!(
                Unsupported,
                "rnn_activation: expected none for \"{}\", {}, found {activation}",
                shown(&chosen.prefix),
                chosen.network.with_article()
            );
        }
        let cell = chosen.network.cell(self.activation(&chosen, options.rnn_activation)?);
        let found = match chosen.names {
            Names::PyTorch => torch::read(self, &chosen.prefix, chosen.network, cell)?,
            Names::Burn => burn::read(self, &chosen.prefix, chosen.network, cell)?,
        };
        let info = |(name, tensor): (&String, &Tensor<'_>)| TensorInfo {
            name: name.clone(),
            element_type: tensor.element().to_string(),
            shape: tensor.shape().to_vec(),
        };
        let is_used = |name: &String| found.used.contains(name);
        let scope = found.used.first().map_or("", |name| self.scope_of(name));
        let is_beside = |name: &String| {
            let copy = torch::is_of(name, &chosen.prefix);
            !is_used(name) && !copy && self.scope_of(name) == scope
        };
        let tensors = |keep: &dyn Fn(&String) -> bool| self.tensors.iter().filter(|(n, _)| keep(n)).map(info).collect();
        let objects = self.objects.iter().take(MAX_OBJECTS);
        let contents = FileContents {
            format: self.format,
            prefix: chosen.prefix.clone(),
            tensors: tensors(&is_used),
            others: tensors(&|name| !is_used(name)),
            beside: tensors(&is_beside),
            objects: objects.map(|(name, o)| ObjectInfo { name: name.clone(), class: o.class.clone() }).collect(),
            notes: found.notes,
        };
        Ok((found.weights, contents))
    }

    /// What precedes the key in the innermost dict that holds a tensor.
    fn scope_of<'n>(&self, name: &'n str) -> &'n str {
        self.scopes.get(name).and_then(|&length| name.get(..length)).unwrap_or_default()
    }

    /// The activation of an RNN that is asked for, or that its pickled module has. Refuses modules that compute
    /// something else than their names say.
    fn activation(&self, chosen: &Candidate, asked: Option<Activation>) -> Result<Option<Activation>> {
        let Some(module) = self.modules.get(&chosen.prefix) else {
            return Ok(asked);
        };
        let prefix = shown(&chosen.prefix);
        let class = shown(&module.class);
        let network = match module.class.strip_prefix("torch.nn.modules.rnn.") {
            Some("LSTM" | "LSTMCell") => Network::Lstm,
            Some("GRU" | "GRUCell") => Network::Gru,
            Some("RNN" | "RNNCell") => Network::Rnn,
            _ => bail!(
                Unsupported,
                "\"{prefix}\": expected a module of torch.nn, found {class}, whose code decides what it computes and is not \
                 run; if that is {}, {ADVICE}",
                chosen.network.with_article()
            ),
        };
        if network != chosen.network {
            bail!(
                InvalidWeights,
                "\"{prefix}\": expected the tensors of {class}, found those of {}",
                chosen.network.with_article()
            );
        }
        if module.hooked {
            bail!(
                Unsupported,
                "\"{prefix}\": expected a module of torch.nn as it is, found hooks, which are code that is not run; if they do \
                 not change its results, {ADVICE}"
            );
        }
        let own = match module.nonlinearity {
            Some("relu") => Some(Activation::Relu),
            Some("tanh") => Some(Activation::Tanh),
            _ => None,
        };
        match (own, asked) {
            (Some(own), Some(asked)) if network == Network::Rnn && own != asked => {
                bail!(Unsupported, "rnn_activation: expected {own}, which the module \"{prefix}\" has, found {asked}")
            }
            (own, asked) => Ok(asked.or(own)),
        }
    }

    /// Refuses what stands under the network's prefix and is none of `understood`: it may change what the network
    /// computes, as layer normalisation does.
    fn check_siblings(&self, prefix: &str, network: &str, understood: &BTreeSet<String>) -> Result<()> {
        let scope = understood.first().map_or("", |name| self.scope_of(name));
        let mut inner: BTreeSet<String> = self.prefixes().into_iter().collect();
        // A module of its own name may use those inside it; names that only begin alike are of other modules.
        let is_module = prefix.ends_with('.');
        inner.retain(|inner| !is_module && inner.len() > prefix.len() && inner.starts_with(prefix));
        let golden = ["x", "output"]
            .iter()
            .all(|name| self.tensors.get(&format!("{prefix}{name}")).is_some_and(|t| t.shape().len() == 3));
        let is_part = |name: &str| {
            let Some(rest) = name.strip_prefix(prefix) else {
                return false;
            };
            let is_training = self.scope_of(name) != scope && TRAINING.iter().any(|start| rest.starts_with(start));
            // Another network that a caller may choose.
            let mut parents = name.match_indices('.').map(|(dot, _)| &name[..=dot]);
            let is_other = parents.any(|parent| inner.contains(parent))
                || torch::prefix_of(name).is_some_and(|p| inner.contains(p));
            !(is_training || is_other || (golden && GOLDEN.contains(&rest)))
        };
        if let Some(name) = self.tensors.keys().find(|name| !understood.contains(*name) && is_part(name)) {
            let mut parts = name[prefix.len()..].split(['.', '_']);
            let is_norm =
                parts.any(|part| part.to_ascii_lowercase().contains("norm") || part.starts_with("ln") || part == "bn");
            bail!(
                InvalidWeights,
                "{}: not a tensor of {network}, though it stands under the prefix \"{}\" of one; {} what the network computes. If \
                 it does not, save the file without it",
                shown(name),
                shown(prefix),
                if is_norm { "by its name it is layer normalisation, which changes" } else { "it may change" }
            );
        }
        let is_needed = |(name, object): &(&String, &Opaque)| {
            let is_state = name.strip_prefix(prefix) == Some("_extra_state");
            is_part(name) && (object.is_tensor || is_state || torch::is_of(name, prefix))
        };
        if let Some((name, object)) = self.objects.iter().find(is_needed) {
            return refuse_object(name, object);
        }
        Ok(())
    }

    /// The prefixes of all networks, sorted.
    pub(crate) fn prefixes(&self) -> Vec<String> {
        self.candidates().into_iter().map(|candidate| candidate.prefix).collect()
    }

    /// The first few names of the file, for messages.
    pub(crate) fn first_names(&self) -> String {
        let more = self.tensors.len().saturating_sub(SHOWN);
        let names: Vec<String> = self.tensors.keys().take(SHOWN).map(|name| shown(name).to_string()).collect();
        match (names.len(), more) {
            (0, _) => "no tensors".to_owned(),
            (_, 0) => names.join(", "),
            _ => format!("{}, and {more} more", names.join(", ")),
        }
    }

    /// A pickled module that is a recurrent network by its name.
    fn module_of_other_kind(&self) -> Option<(&String, &Module)> {
        let is_one = |module: &Module| {
            let name = module.class.rsplit('.').next().unwrap_or_default();
            ["LSTM", "GRU", "RNN"].iter().any(|network| name.contains(network))
        };
        self.modules.iter().find(|(_, module)| is_one(module))
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
                prefix => format!("\"{}\" ({})", shown(prefix), candidate.network.name()),
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
            ([], _) if all.is_empty() && self.module_of_other_kind().is_some() => {
                let (name, module) = self.module_of_other_kind().expect("there is one");
                bail!(
                    Unsupported,
                    "no LSTM, GRU or RNN of torch.nn in the file: found {} {}, which keeps its weights in another form, as \
                     quantised modules do; save the model that it was made from, {ADVICE}",
                    shown(&module.class),
                    place(name.strip_suffix('.').unwrap_or(name))
                )
            }
            ([], _) if all.is_empty() && !self.objects.is_empty() => {
                let mut objects: Vec<String> = self
                    .objects
                    .iter()
                    .take(SHOWN)
                    .map(|(name, object)| format!("{} {}", shown(&object.class), place(name)))
                    .collect();
                let more = self.objects.len().saturating_sub(SHOWN);
                objects.extend((more > 0).then(|| format!("and {more} more")));
                bail!(
                    Unsupported,
                    "no LSTM, GRU or RNN in what is read: tensors are ({}); objects are not, since their code is not run: {}. If \
                     one of them holds the network, {ADVICE}",
                    self.first_names(),
                    objects.join(", ")
                )
            }
            ([], _) if all.is_empty() => bail!(
                InvalidWeights,
                "no LSTM, GRU or RNN in the file: looked for weight_ih_l0 (torch.nn.LSTM), weight_ih \
                 (torch.nn.LSTMCell) and input_gate.input_transform.weight (Burn) under any prefix, found {}",
                self.first_names()
            ),
            ([], Some(wanted)) => {
                let mut parents = wanted.match_indices('.').map(|(at, _)| &wanted[..at]).chain([wanted]);
                if let Some((name, object)) = parents.find_map(|name| self.objects.get_key_value(name)) {
                    return refuse_object(name, object);
                }
                bail!(InvalidWeights, "prefix: expected one of {}, found \"{}\"", list(&all), shown(wanted))
            }
            (several, Some(wanted)) => {
                bail!(InvalidWeights, "prefix: \"{}\" fits {}; give the whole prefix", shown(wanted), list(several))
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

fn refuse_object<T>(name: &str, object: &Opaque) -> Result<T> {
    bail!(
        Unsupported,
        "{}: expected a tensor, found an object of {}, whose code is not run; {ADVICE}, with dense tensors",
        shown(name),
        shown(&object.class)
    )
}

/// Where something is, in words.
fn place(name: &str) -> String {
    if name.is_empty() { "(as the whole file)".to_owned() } else { format!("(as {})", shown(name)) }
}

/// `prefix` without [`WRAPPERS`].
fn without_wrappers(prefix: &str) -> String {
    prefix.split('.').filter(|part| !WRAPPERS.contains(part)).collect::<Vec<_>>().join(".")
}

/// The two sizes of a matrix, both positive.
fn two_sizes(name: &str, meaning: &str, shape: &[usize]) -> Result<[usize; 2]> {
    match *shape {
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => bail!(InvalidWeights, "{}: expected {meaning}, found {shape:?}", shown(name)),
    }
}
