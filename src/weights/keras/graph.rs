//! Stage 1, read: a model's configuration → its recurrent layers, and the chains that they form.
//!
//! In:  `model_config` of Keras 2 or `config.json` of Keras 3: Sequential and functional models, nested ones too.
//! Out: [`Graph`]: recurrent layers, and chains of those that feed only each other.
//! Afterwards no code asks which layer feeds which.
//! Not here: what a layer computes (`cell`), its variables (`store`).

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::error::{Result, bail};

/// Layers that do nothing to a sequence at inference, apart from masks.
const IDENTITIES: [&str; 10] = [
    "Dropout",
    "SpatialDropout1D",
    "GaussianNoise",
    "GaussianDropout",
    "AlphaDropout",
    "ActivityRegularization",
    "Masking",
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

/// How deep models may be nested.
const MAX_DEPTH: usize = 8;

/// Where a layer stands: its name and class, those of the models around it first.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone)]
pub(super) struct Step {
    pub name: String,
    pub class: String,
    /// How many layers of this class stand before it in the same model.
    pub index: usize,
}

impl Place {
    /// `model/layer`.
    pub(super) fn name(&self) -> String {
        self.steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>().join("/")
    }
}

/// A recurrent layer.
#[derive(Debug, Clone)]
pub(super) struct Layer<'a> {
    pub place: Place,
    pub name: String,
    pub class: &'a str,
    pub config: &'a Value,
    /// A mask may reach it.
    pub masked: bool,
    /// Other layers give it an initial state.
    pub takes_state: bool,
}

/// The recurrent layers of a model in its order, and the chains that they form, as indices.
#[derive(Debug, Default)]
pub(super) struct Graph<'a> {
    pub layers: Vec<Layer<'a>>,
    pub chains: Vec<Vec<usize>>,
}

/// An output of a layer: the layer's name, and which of its outputs.
type Tensor = (String, u64);

/// A layer of the model at hand, recurrent or not.
struct Node<'a> {
    name: &'a str,
    class: &'a str,
    config: &'a Value,
    /// For each time the layer is called: what it is called with.
    calls: Vec<Call>,
}

#[derive(Default)]
struct Call {
    inputs: Vec<Tensor>,
    /// Given by keyword, apart from masks.
    others: Vec<Tensor>,
    has_mask: bool,
}

impl Node<'_> {
    fn is_identity(&self) -> bool {
        let linear = || matches!(self.config.get("activation"), Some(Value::String(a)) if a == "linear");
        IDENTITIES.contains(&self.class) && (self.class != "Activation" || linear())
    }

    fn masks(&self) -> bool {
        self.class == "Masking" || self.config.get("mask_zero").and_then(Value::as_bool).unwrap_or(false)
    }

    fn returns_sequences(&self) -> bool {
        let inner = self.config.get("layer").and_then(|layer| layer.get("config"));
        let config = if self.class == "Bidirectional" { inner } else { Some(self.config) };
        config.and_then(|c| c.get("return_sequences")).and_then(Value::as_bool).unwrap_or(false)
    }
}

impl<'a> Graph<'a> {
    /// Reads a whole model's configuration.
    pub(super) fn new(model: &'a Value) -> Result<Self> {
        let mut graph = Self::default();
        graph.add_model(model, &[], false)?;
        Ok(graph)
    }

    fn add_model(&mut self, model: &'a Value, around: &[Step], masked: bool) -> Result<()> {
        let outer = around.iter().map(|step| step.name.as_str()).collect::<Vec<_>>().join("/");
        if around.len() > MAX_DEPTH {
            bail!(Unsupported, "model {outer}: expected at most {MAX_DEPTH} models inside each other, found more");
        }
        let Some((nodes, outputs)) = nodes_of(model)? else {
            // A subclassed model or a layer: only those with layers inside can be read.
            bail!(
                Unsupported,
                "model_config: expected a Sequential or functional model, found {}",
                model.get("class_name").and_then(Value::as_str).unwrap_or("no class_name")
            );
        };
        let by_name: HashMap<&str, usize> = nodes.iter().enumerate().map(|(i, n)| (n.name, i)).collect();
        let mut uses: HashMap<&Tensor, usize> = HashMap::new();
        let inputs = nodes.iter().flat_map(|n| &n.calls).flat_map(|call| call.inputs.iter().chain(&call.others));
        for tensor in inputs.chain(&outputs) {
            *uses.entry(tensor).or_default() += 1;
        }
        let masked = masked_nodes(&nodes, &by_name, masked);

        let mut place_of = HashMap::new();
        let mut of_class: HashMap<&str, usize> = HashMap::new();
        for (i, node) in nodes.iter().enumerate() {
            let index = of_class.entry(node.class).or_default();
            let step = Step { name: node.name.to_owned(), class: node.class.to_owned(), index: *index };
            *index += 1;
            let mut steps = around.to_vec();
            steps.push(step);
            if RECURRENT.contains(&node.class) {
                place_of.insert(i, self.layers.len());
                let place = Place { steps };
                self.layers.push(Layer {
                    name: place.name(),
                    place,
                    class: node.class,
                    config: node.config,
                    masked: masked[i],
                    takes_state: node.calls.iter().any(|c| c.inputs.len() > 1 || !c.others.is_empty()),
                });
            } else if node.config.get("layers").is_some_and(Value::is_array) {
                // By its place, not its name: entries of one name would be entered once each, at every depth.
                if let Some(inner) = entries(model).and_then(|entries| entries.get(i)) {
                    self.add_model(inner, &steps, masked[i])?;
                }
            }
        }

        // Who feeds whom; each layer has at most one successor, since its output has one use.
        let mut next: HashMap<usize, usize> = HashMap::new();
        let mut fed = vec![false; nodes.len()];
        for &i in place_of.keys() {
            if let Some(source) = source_of(i, &nodes, &by_name, &uses).filter(|s| place_of.contains_key(s)) {
                next.insert(source, i);
                fed[i] = true;
            }
        }
        let mut starts: Vec<usize> = place_of.keys().copied().filter(|&i| !fed[i]).collect();
        starts.sort_unstable();
        for start in starts {
            let chain = std::iter::successors(Some(start), |i| next.get(i).copied());
            self.chains.push(chain.map(|i| place_of[&i]).collect());
        }
        Ok(())
    }
}

/// The recurrent layer that feeds node `i` and nothing else, through layers that do nothing.
fn source_of(
    i: usize,
    nodes: &[Node<'_>],
    by_name: &HashMap<&str, usize>,
    uses: &HashMap<&Tensor, usize>,
) -> Option<usize> {
    let mut at = i;
    for _ in 0..nodes.len() {
        let [call] = nodes[at].calls.as_slice() else {
            return None;
        };
        let tensor = call.inputs.first()?;
        if uses.get(tensor) != Some(&1) || tensor.1 != 0 {
            return None;
        }
        let source = *by_name.get(tensor.0.as_str())?;
        let node = &nodes[source];
        if RECURRENT.contains(&node.class) {
            return (node.calls.len() == 1 && node.returns_sequences()).then_some(source);
        }
        if !node.is_identity() {
            return None;
        }
        at = source;
    }
    None
}

/// For each node whether a mask may reach it: a layer before it makes one.
fn masked_nodes(nodes: &[Node<'_>], by_name: &HashMap<&str, usize>, input: bool) -> Vec<bool> {
    let mut masked: Vec<bool> = nodes.iter().map(|n| input || n.calls.iter().any(|c| c.has_mask)).collect();
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        for (name, _) in node.calls.iter().flat_map(|c| &c.inputs) {
            if let Some(&source) = by_name.get(name.as_str()) {
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
    entry.get("name").or(own).and_then(Value::as_str)
}

/// The layers of a model, and which of their outputs are the model's.
#[allow(clippy::type_complexity, reason = "taken apart at once")]
fn nodes_of(model: &Value) -> Result<Option<(Vec<Node<'_>>, Vec<Tensor>)>> {
    let Some(entries) = entries(model) else {
        return Ok(None);
    };
    let sequential = !entries.iter().any(|entry| entry.get("inbound_nodes").is_some());
    let mut nodes: Vec<Node<'_>> = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let class = entry.get("class_name").and_then(Value::as_str);
        let (Some(class), Some(config), Some(name)) = (class, entry.get("config"), name_of(entry)) else {
            bail!(InvalidFile, "model_config: layer {i}: expected class_name, config and name, found one missing");
        };
        let calls = if sequential {
            let before = nodes.last().map(|n| (n.name.to_owned(), 0));
            vec![Call { inputs: before.into_iter().collect(), ..Call::default() }]
        } else {
            let list = entry.get("inbound_nodes").and_then(Value::as_array);
            list.map(|list| list.iter().map(call).collect()).unwrap_or_default()
        };
        nodes.push(Node { name, class, config, calls });
    }
    let mut outputs = Vec::new();
    if sequential {
        outputs.extend(nodes.last().map(|n| (n.name.to_owned(), 0)));
    } else if let Some(list) = model.get("config").and_then(|c| c.get("output_layers")) {
        gather(list, &mut outputs);
    }
    Ok(Some((nodes, outputs)))
}

/// One call: of Keras 2 `[["lstm", 0, 0, {"mask": ..}], ..]`, of Keras 3 `{"args": [..], "kwargs": {..}}`.
fn call(node: &Value) -> Call {
    let mut call = Call::default();
    let keywords = |call: &mut Call, map: &Map<String, Value>| {
        for (key, value) in map {
            let mut found = Vec::new();
            gather(value, &mut found);
            if key == "mask" {
                call.has_mask |= !found.is_empty();
            } else {
                call.others.extend(found);
            }
        }
    };
    match node {
        Value::Object(map) => {
            if let Some(args) = map.get("args") {
                gather(args, &mut call.inputs);
            }
            if let Some(Value::Object(kwargs)) = map.get("kwargs") {
                keywords(&mut call, kwargs);
            }
        }
        Value::Array(inputs) => {
            for input in inputs {
                gather(input, &mut call.inputs);
                if let Some(Value::Object(kwargs)) = input.get(3) {
                    keywords(&mut call, kwargs);
                }
            }
        }
        _ => {}
    }
    call
}

/// The tensors that a value names; not those among the keywords of Keras 2.
fn gather(value: &Value, found: &mut Vec<Tensor>) {
    let history = |list: &[Value]| -> Option<Tensor> {
        let [name, node, output, ..] = list else {
            return None;
        };
        node.as_u64()?;
        Some((name.as_str()?.to_owned(), output.as_u64()?))
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
        assert_eq!(chains(&through("Masking")), "a>b");
        for middle in ["BatchNormalization", "Dense", "Activation", "LayerNormalization", "Unheard"] {
            assert_eq!(chains(&through(middle)), "a b", "{middle}");
        }
        let skip = [("LSTM", "a", "in"), ("LSTM", "b", "a"), ("Concatenate", "c", "a b"), ("LSTM", "d", "c")];
        assert_eq!(chains(&functional(&skip)), "a b d");
        // Ten models in each of eight, all of one name, and only the first of them with something inside.
        let mut deep =
            "{\"name\": \"m\", \"class_name\": \"Model\", \"config\": {\"name\": \"m\", \"layers\": []}}".to_owned();
        let empty = deep.clone();
        for _ in 0..8 {
            let layers = format!("{deep}{}", format!(", {empty}").repeat(9));
            deep = format!("{{\"name\": \"m\", \"class_name\": \"Model\", \"config\": {{\"layers\": [{layers}]}}}}");
        }
        assert_eq!(chains(&deep), "");
        // A ring is no chain, and no endless loop.
        assert_eq!(chains(&functional(&[("Dropout", "d", "d"), ("LSTM", "a", "d")])), "a");
        assert_eq!(chains(&functional(&[("LSTM", "a", "b"), ("LSTM", "b", "a")])), "");
    }
}
