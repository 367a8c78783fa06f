//! Stage 1, read: a model's configuration → its recurrent layers, and how they are connected.
//!
//! In:  the JSON of Sequential and functional models, nested ones too.
//! Out: [`Graph`]: recurrent layers, and chains of those that feed only each other.
//! Afterwards no code asks which layer feeds which, or what a layer is called with.
//! Not here: what a layer computes (`cell`), its variables (`store`).
//!
//! Time and memory are bounded by the file: entries and the length of names are limited, and every list of layers is
//! walked once.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::cell::foreign;
use crate::error::{Result, bail};

/// Layers that do nothing to a sequence at inference. Masking is not one of them: it takes the place of the mask that
/// reaches it by one that depends on the values.
const IDENTITIES: [&str; 9] = [
    "Dropout",
    "SpatialDropout1D",
    "GaussianNoise",
    "GaussianDropout",
    "AlphaDropout",
    "ActivityRegularization",
    "Identity",
    "InputLayer",
    "Activation",
];

const RECURRENT: [&str; 10] = [
    "LSTM",
    "GRU",
    "SimpleRNN",
    "CuDNNLSTM",
    "CuDNNGRU",
    "RNN",
    "Bidirectional",
    "ConvLSTM1D",
    "ConvLSTM2D",
    "ConvLSTM3D",
];

const CELLS: [&str; 4] = ["LSTMCell", "GRUCell", "SimpleRNNCell", "StackedRNNCells"];

/// Layers and operations that a mask is made of; what they make is told as [`Layer::masked`].
const MASK_MAKERS: [&str; 3] = ["Masking", "NotEqual", "Any"];

/// Keras' names of a model whose layers are in its configuration.
const MODELS: [&str; 4] = ["Sequential", "Functional", "Model", "Merge"];

/// How deep models may be nested.
const MAX_DEPTH: usize = 8;

/// How many layers all models of a file may have. Large models of images have a few thousand.
const MAX_LAYERS: usize = 1 << 15;

/// How long a layer's name may be, in bytes.
const MAX_NAME: usize = 512;

/// Where a layer stands: its name and class, those of the models around it first.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    pub steps: Vec<Step<'a>>,
}

#[derive(Debug, Clone)]
pub(super) struct Step<'a> {
    pub name: &'a str,
    pub class: &'a str,
    /// How many layers of this class stand before it in the same model.
    pub index: usize,
    /// How many layers of this class the same model has.
    pub of_class: usize,
}

impl Place<'_> {
    /// `model/layer`.
    pub(super) fn name(&self) -> String {
        self.steps.iter().map(|step| step.name).collect::<Vec<_>>().join("/")
    }
}

/// A recurrent layer.
#[derive(Debug, Clone)]
pub(super) struct Layer<'a> {
    pub place: Place<'a>,
    pub name: String,
    pub class: &'a str,
    pub config: &'a Value,
    /// A mask may reach it.
    pub masked: bool,
    /// Other layers give it an initial state.
    pub takes_state: bool,
    /// How many times the whole model applies it.
    pub calls: usize,
    /// It is called with `training=True`: what drops values then does so at inference too.
    pub training: bool,
    /// Why it cannot be read, if its place or what it is called with shows that.
    pub refusal: Option<String>,
}

/// The recurrent layers of a model in its order, and the chains that they form, as indices.
#[derive(Debug, Default)]
pub(super) struct Graph<'a> {
    pub layers: Vec<Layer<'a>>,
    /// A layer that feeds itself stands several times in a chain.
    pub chains: Vec<Vec<usize>>,
    /// `name (class)` of the layers that change values and are not recurrent.
    pub others: Vec<String>,
    /// `name (class)` of models of a user's class that are taken to be functional.
    pub custom_models: Vec<String>,
    /// The names of the whole model's own layers.
    pub top: HashSet<&'a str>,
    entries: usize,
}

/// An output of a layer: the layer's name, which of its calls, and which of its outputs.
type Tensor<'a> = (&'a str, usize, u64);

/// A layer of the model at hand, recurrent or not.
struct Node<'a> {
    name: &'a str,
    class: &'a str,
    entry: &'a Value,
    config: &'a Value,
    /// For each time the layer is called: what it is called with.
    calls: Vec<Call<'a>>,
    recurrent: bool,
}

#[derive(Default)]
struct Call<'a> {
    inputs: Vec<Tensor<'a>>,
    /// Given by keyword, apart from masks.
    others: Vec<Tensor<'a>>,
    mask: Vec<Tensor<'a>>,
    /// Keras 3 gives every mask as an argument; Keras 2 hands masks on with the sequence.
    names_masks: bool,
    training: bool,
    /// An argument of a recurrent layer that is not computed.
    refusal: Option<String>,
}

impl Call<'_> {
    fn takes_state(&self) -> bool {
        self.inputs.len() > 1 || !self.others.is_empty()
    }

    /// Whether the steps that `before` leaves out are those that this call leaves out.
    fn masks_as(&self, before: &Call<'_>) -> bool {
        self.mask == before.mask || self.mask.is_empty() && !self.names_masks
    }
}

impl<'a> Node<'a> {
    fn is_identity(&self) -> bool {
        let linear = || matches!(self.config.get("activation"), Some(Value::String(a)) if a == "linear");
        IDENTITIES.contains(&self.class)
            && (self.class != "Activation" || linear())
            && !self.calls.iter().any(|call| call.training)
            && foreign(self.entry).is_none()
    }

    fn masks(&self) -> bool {
        self.class == "Masking" || self.config.get("mask_zero").and_then(Value::as_bool).unwrap_or(false)
    }

    fn returns_sequences(&self) -> bool {
        let inner = self.config.get("layer").and_then(|layer| layer.get("config"));
        let config = if self.class == "Bidirectional" { inner } else { Some(self.config) };
        config.and_then(|c| c.get("return_sequences")).and_then(Value::as_bool).unwrap_or(false)
    }

    fn title(&self) -> String {
        format!("{} ({})", self.name, self.class)
    }

    /// Why a recurrent layer is not read, if its entry or its calls show it.
    fn refusal(&self) -> Option<String> {
        if !RECURRENT.contains(&self.class) {
            let inside = inner_class(self.config).unwrap_or("a recurrent layer");
            return Some(format!(
                "expected a recurrent layer by itself or inside Bidirectional, found {inside} inside {}",
                self.class
            ));
        }
        let foreign = foreign(self.entry);
        let foreign = foreign.map(|origin| format!("expected a layer of Keras, found one of this name of {origin}"));
        foreign.or_else(|| self.calls.iter().find_map(|call| call.refusal.clone()))
    }
}

/// The class of a recurrent layer or cell somewhere inside `value`.
fn inner_class(value: &Value) -> Option<&str> {
    match value {
        Value::Object(map) => {
            let class = map.get("class_name").and_then(Value::as_str);
            let recurrent = class.filter(|class| RECURRENT.contains(class) || CELLS.contains(class));
            recurrent.or_else(|| map.values().find_map(inner_class))
        }
        Value::Array(list) => list.iter().find_map(inner_class),
        _ => None,
    }
}

impl<'a> Graph<'a> {
    /// Reads a whole model's configuration.
    pub(super) fn new(model: &'a Value) -> Result<Self> {
        let mut graph = Self::default();
        graph.add_model(model, &[], false, 1)?;
        Ok(graph)
    }

    /// `calls` is how many times the models around apply this one.
    fn add_model(&mut self, model: &'a Value, around: &[Step<'a>], masked: bool, calls: usize) -> Result<()> {
        let outer = || around.iter().map(|step| step.name).collect::<Vec<_>>().join("/");
        if around.len() > MAX_DEPTH {
            bail!(Unsupported, "model {}: expected at most {MAX_DEPTH} models inside each other, found more", outer());
        }
        let class = model.get("class_name").and_then(Value::as_str).unwrap_or("no class_name");
        let Some((nodes, outputs)) = nodes_of(model, MAX_LAYERS - self.entries)? else {
            // A subclassed model or a layer: only those with layers inside can be read.
            bail!(Unsupported, "model_config: expected a Sequential or functional model, found {class}");
        };
        self.entries += nodes.len();
        if around.is_empty() {
            self.top = nodes.iter().map(|node| node.name).collect();
        }
        if !is_model(model) {
            bail!(Unsupported, "model_config: expected a Sequential or functional model, found {class}");
        }
        if !MODELS.contains(&class) || foreign(model).is_some() {
            let name = model.get("config").and_then(|c| c.get("name")).and_then(Value::as_str).unwrap_or("model");
            self.custom_models.push(format!("{name} ({class})"));
        }
        let by_name: HashMap<&str, usize> = nodes.iter().enumerate().map(|(i, n)| (n.name, i)).collect();
        let mut uses: HashMap<Tensor<'_>, usize> = HashMap::new();
        let inputs = nodes.iter().flat_map(|n| &n.calls).flat_map(|call| call.inputs.iter().chain(&call.others));
        for tensor in inputs.chain(&outputs) {
            *uses.entry(tensor_of(tensor, &nodes, &by_name)).or_default() += 1;
        }
        let masked = masked_nodes(&nodes, &by_name, masked);

        let mut layer_of = HashMap::new();
        let mut totals: HashMap<&str, usize> = HashMap::new();
        for node in &nodes {
            *totals.entry(node.class).or_default() += 1;
        }
        let mut of_class: HashMap<&str, usize> = HashMap::new();
        for (i, node) in nodes.iter().enumerate() {
            let index = of_class.entry(node.class).or_default();
            let step = Step { name: node.name, class: node.class, index: *index, of_class: totals[node.class] };
            *index += 1;
            let mut steps = around.to_vec();
            steps.push(step);
            let calls = calls.saturating_mul(node.calls.len().max(1));
            if node.recurrent {
                layer_of.insert(i, self.layers.len());
                let place = Place { steps };
                self.layers.push(Layer {
                    name: place.name(),
                    place,
                    class: node.class,
                    config: node.config,
                    masked: masked[i],
                    takes_state: node.calls.iter().any(Call::takes_state),
                    calls,
                    training: node.calls.iter().any(|call| call.training),
                    refusal: node.refusal(),
                });
            } else if is_model(node.entry) {
                self.add_model(node.entry, &steps, masked[i], calls)?;
            } else if !node.is_identity() && !MASK_MAKERS.contains(&node.class) {
                self.others.push(node.title());
            }
        }

        // Who feeds whom; each call has at most one successor, since its output has one use.
        let calls_of = |&i: &usize| (0..nodes[i].calls.len().max(1)).map(move |c| (i, c));
        let mut vertices: Vec<(usize, usize)> = layer_of.keys().flat_map(calls_of).collect();
        vertices.sort_unstable();
        let mut next: HashMap<(usize, usize), (usize, usize)> = HashMap::new();
        let mut fed = HashSet::new();
        for &vertex in &vertices {
            if let Some(source) = source_of(vertex, &nodes, &by_name, &uses) {
                next.insert(source, vertex);
                fed.insert(vertex);
            }
        }
        let mut seen = HashSet::new();
        for &start in vertices.iter().filter(|vertex| !fed.contains(*vertex)) {
            let chain = std::iter::successors(Some(start), |vertex| next.get(vertex).copied());
            let chain: Vec<usize> = chain.map(|(i, _)| layer_of[&i]).collect();
            // A layer that is applied to several sequences is one chain.
            if seen.insert(chain.clone()) {
                self.chains.push(chain);
            }
        }
        Ok(())
    }
}

/// The call of a recurrent layer that feeds call `vertex` and nothing else, through layers that do nothing.
fn source_of(
    vertex: (usize, usize),
    nodes: &[Node<'_>],
    by_name: &HashMap<&str, usize>,
    uses: &HashMap<Tensor<'_>, usize>,
) -> Option<(usize, usize)> {
    let fed = nodes[vertex.0].calls.get(vertex.1)?;
    // The state that another layer gives is the caller's to give, at the start of a chain.
    if fed.takes_state() {
        return None;
    }
    let mut at = vertex;
    for _ in 0..=nodes.len() {
        let call = nodes[at.0].calls.get(at.1)?;
        let tensor = tensor_of(call.inputs.first()?, nodes, by_name);
        if uses.get(&tensor) != Some(&1) || tensor.2 != 0 {
            return None;
        }
        at = (*by_name.get(tensor.0)?, tensor.1);
        let node = &nodes[at.0];
        if node.recurrent {
            let chains = RECURRENT.contains(&node.class) && node.returns_sequences();
            return node.calls.get(at.1).filter(|source| chains && fed.masks_as(source)).map(|_| at);
        }
        if !node.is_identity() {
            return None;
        }
    }
    None
}

/// The tensor, whose call is the first if its layer is called once: some versions of Keras number calls over all models.
fn tensor_of<'a>(tensor: &Tensor<'a>, nodes: &[Node<'_>], by_name: &HashMap<&str, usize>) -> Tensor<'a> {
    let once = by_name.get(tensor.0).is_some_and(|&i| nodes[i].calls.len() == 1);
    (tensor.0, if once { 0 } else { tensor.1 }, tensor.2)
}

/// For each node whether a mask may reach it: a layer before it makes one.
fn masked_nodes(nodes: &[Node<'_>], by_name: &HashMap<&str, usize>, input: bool) -> Vec<bool> {
    let mut masked: Vec<bool> = nodes.iter().map(|n| input || n.calls.iter().any(|c| !c.mask.is_empty())).collect();
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        for (name, ..) in node.calls.iter().flat_map(|c| &c.inputs) {
            if let Some(&source) = by_name.get(name) {
                after[source].push(i);
            }
        }
    }
    let mut open: Vec<usize> = (0..nodes.len()).filter(|&i| masked[i] || nodes[i].masks()).collect();
    let mut seen = vec![false; nodes.len()];
    while let Some(i) = open.pop() {
        if std::mem::replace(&mut seen[i], true) {
            continue;
        }
        for &j in &after[i] {
            masked[j] = true;
            open.push(j);
        }
    }
    masked
}

/// The layer entries of a model; `None` if it has none.
fn entries(model: &Value) -> Option<&Vec<Value>> {
    // Sequential of Keras before 2.2 has the list itself as its config.
    let config = model.get("config")?;
    config.as_array().or_else(|| config.get("layers")?.as_array())
}

fn name_of(entry: &Value) -> Option<&str> {
    let own = entry.get("config").and_then(|c| c.get("name"));
    // Sequential of Keras before 2.2, inside another model, has no name: its class has to do.
    let nameless = entry.get("config").is_some_and(Value::is_array).then(|| entry.get("class_name")).flatten();
    entry.get("name").or(own).or(nameless).and_then(Value::as_str)
}

/// The layers of a model, and which of their outputs are the model's.
#[allow(clippy::type_complexity, reason = "taken apart at once")]
fn nodes_of(model: &Value, most: usize) -> Result<Option<(Vec<Node<'_>>, Vec<Tensor<'_>>)>> {
    let Some(entries) = entries(model) else {
        return Ok(None);
    };
    if entries.len() > most {
        bail!(Unsupported, "model_config: expected at most {MAX_LAYERS} layers, found more");
    }
    let sequential = !entries.iter().any(|entry| entry.get("inbound_nodes").is_some());
    let mut nodes: Vec<Node<'_>> = Vec::new();
    let mut names = HashSet::new();
    for (i, entry) in entries.iter().enumerate() {
        let class = entry.get("class_name").and_then(Value::as_str);
        let (Some(class), Some(config), Some(name)) = (class, entry.get("config"), name_of(entry)) else {
            bail!(InvalidFile, "model_config: layer {i}: expected class_name, config and name, found one missing");
        };
        if name.len().max(class.len()) > MAX_NAME {
            bail!(
                InvalidFile,
                "model_config: layer {i}: expected names of at most {MAX_NAME} bytes, found longer ones"
            );
        }
        if !names.insert(name) {
            bail!(InvalidFile, "model_config: layer {i}: expected one layer of each name, found another {name}");
        }
        let recurrent = RECURRENT.contains(&class) || !is_model(entry) && inner_class(config).is_some();
        let calls = if sequential {
            let before = nodes.last().map(|n| (n.name, 0, 0));
            vec![Call { inputs: before.into_iter().collect(), ..Call::default() }]
        } else {
            let list = entry.get("inbound_nodes").and_then(Value::as_array);
            list.map(|list| list.iter().map(|node| call(node, recurrent)).collect()).unwrap_or_default()
        };
        nodes.push(Node { name, class, entry, config, calls, recurrent });
    }
    let mut outputs = Vec::new();
    if sequential {
        outputs.extend(nodes.last().map(|n| (n.name, 0, 0)));
    } else if let Some(list) = model.get("config").and_then(|c| c.get("output_layers")) {
        gather(list, &mut outputs);
    }
    Ok(Some((nodes, outputs)))
}

/// Whether an entry is a model, whose layers are entered one by one: one of Keras', or a user's that is functional.
fn is_model(entry: &Value) -> bool {
    let class = entry.get("class_name").and_then(Value::as_str);
    let of_keras = class.is_some_and(|class| MODELS.contains(&class)) && foreign(entry).is_none();
    entries(entry).is_some_and(|entries| of_keras || entries.iter().any(|entry| entry.get("inbound_nodes").is_some()))
}

/// One call: of Keras 2 `[["lstm", 0, 0, {"mask": ..}], ..]`, of Keras 3 `{"args": [..], "kwargs": {..}}`.
fn call(node: &Value, recurrent: bool) -> Call<'_> {
    let mut call = Call::default();
    match node {
        Value::Object(map) => {
            match map.get("args") {
                // sequences, initial_state, mask, training
                Some(Value::Array(args)) if recurrent => {
                    for (argument, value) in ["", "initial_state", "mask", "training"].iter().zip(args) {
                        match *argument {
                            "" => gather(value, &mut call.inputs),
                            name => keyword(&mut call, name, value, recurrent),
                        }
                    }
                }
                Some(args) => gather(args, &mut call.inputs),
                None => {}
            }
            if let Some(Value::Object(kwargs)) = map.get("kwargs") {
                keywords(&mut call, kwargs, recurrent);
            }
            call.names_masks = true;
        }
        Value::Array(inputs) => {
            for input in inputs {
                gather(input, &mut call.inputs);
                if let Some(Value::Object(kwargs)) = input.get(3) {
                    keywords(&mut call, kwargs, recurrent);
                }
            }
        }
        _ => {}
    }
    call
}

fn keywords<'a>(call: &mut Call<'a>, map: &'a Map<String, Value>, recurrent: bool) {
    for (key, value) in map {
        keyword(call, key, value, recurrent);
    }
}

/// An argument that is neither the sequence nor absent.
fn keyword<'a>(call: &mut Call<'a>, key: &str, value: &'a Value, recurrent: bool) {
    let absent = matches!(value, Value::Null | Value::Bool(false)) || value.as_array().is_some_and(Vec::is_empty);
    if absent {
        return;
    }
    let mut found = Vec::new();
    gather(value, &mut found);
    match key {
        "training" => call.training = true,
        "mask" => call.mask = found,
        // One sequence, given by name.
        "sequences" | "sequence" | "inputs" if call.inputs.is_empty() => call.inputs = found,
        "initial_state" if !found.is_empty() => call.others.extend(found),
        _ if recurrent => {
            let what = if found.is_empty() { "values in the configuration" } else { "outputs of other layers" };
            let key: String = key.chars().take(80).collect();
            call.refusal = Some(format!("argument {key} of a call: expected none, found {what}"));
        }
        _ => call.others.extend(found),
    }
}

/// The tensors that a value names; not those among the keywords of Keras 2.
fn gather<'a>(value: &'a Value, found: &mut Vec<Tensor<'a>>) {
    let history = |list: &'a [Value]| -> Option<Tensor<'a>> {
        let [name, node, output, ..] = list else {
            return None;
        };
        Some((name.as_str()?, usize::try_from(node.as_u64()?).ok()?, output.as_u64()?))
    };
    match value {
        Value::Array(list) => match history(list) {
            Some(tensor) => found.push(tensor),
            None => list.iter().for_each(|item| gather(item, found)),
        },
        Value::Object(map) => match map.get("config").and_then(|c| c.get("keras_history")).and_then(Value::as_array) {
            Some(list) => found.extend(history(list)),
            None => map.values().for_each(|item| gather(item, found)),
        },
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chains(model: &str) -> String {
        let model: Value = serde_json::from_str(model).unwrap();
        let graph = Graph::new(&model).unwrap();
        let chain = |c: &Vec<usize>| c.iter().map(|&i| graph.layers[i].name.as_str()).collect::<Vec<_>>().join(">");
        graph.chains.iter().map(chain).collect::<Vec<_>>().join(" ")
    }

    fn functional(layers: &[(&str, &str, &str)]) -> String {
        let layer = |(class, name, from): &(&str, &str, &str)| {
            let inputs = from.split(' ').map(|f| format!("[\"{f}\", 0, 0, {{}}]")).collect::<Vec<_>>().join(", ");
            let config = "{\"return_sequences\": true}";
            format!(
                "{{\"class_name\": \"{class}\", \"name\": \"{name}\", \"config\": {config}, \"inbound_nodes\": [[{inputs}]]}}"
            )
        };
        let layers = layers.iter().map(layer).collect::<Vec<_>>().join(", ");
        format!("{{\"class_name\": \"Model\", \"config\": {{\"layers\": [{layers}]}}}}")
    }

    #[test]
    fn what_changes_a_sequence_or_uses_it_twice_breaks_a_chain() {
        let through = |middle: &str| functional(&[("LSTM", "a", "in"), (middle, "m", "a"), ("GRU", "b", "m")]);
        assert_eq!(chains(&through("Dropout")), "a>b");
        // Its mask depends on the values.
        for middle in ["Masking", "BatchNormalization", "Dense", "Activation", "LayerNormalization", "Unheard"] {
            assert_eq!(chains(&through(middle)), "a b", "{middle}");
        }
        let skip = [("LSTM", "a", "in"), ("LSTM", "b", "a"), ("Concatenate", "c", "a b"), ("LSTM", "d", "c")];
        assert_eq!(chains(&functional(&skip)), "a b d");
        // Ten models in each of eight, and only the first of them with something inside.
        let mut deep =
            "{\"name\": \"m\", \"class_name\": \"Model\", \"config\": {\"name\": \"m\", \"layers\": []}}".to_owned();
        let empty = deep.clone();
        for _ in 0..8 {
            let others: String =
                (0..9).map(|i| format!(", {}", empty.replace("\"m\"", &format!("\"m{i}\"")))).collect();
            let layers = format!("{deep}{others}");
            deep = format!("{{\"name\": \"m\", \"class_name\": \"Model\", \"config\": {{\"layers\": [{layers}]}}}}");
        }
        assert_eq!(chains(&deep), "");
        // A ring is no chain, and no endless loop.
        assert_eq!(chains(&functional(&[("Dropout", "d", "d"), ("LSTM", "a", "d")])), "a");
        assert_eq!(chains(&functional(&[("LSTM", "a", "b"), ("LSTM", "b", "a")])), "");
    }
}
