//! A graph cut at its recurrent nodes.
//!
//! In:  the bytes of a model.
//! Out: [`Graph`]: its recurrent nodes in the order in which they can run, and the rest of the model as bytes.
//! The *stage* of a value is the largest number of recurrent nodes on a way to it from the graph's inputs. What is left
//! of the model evaluates all values of a stage at once, from the inputs, the outputs of recurrent nodes of the stages
//! before, and values of those stages that are used again.
//! Not here: running anything.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::node::{OnnxCompat, Operator, RecurrentNode};
use super::proto::{self, NodeProto, OperatorSetIdProto, field};
use super::tensor::{ExternalFiles, StoredTensor, ValueInfo};
use super::wire::{self, Field};
use crate::error::{Result, bail};

/// See the module.
pub(super) struct Graph<'a> {
    pub(super) inputs: Vec<ValueInfo>,
    pub(super) outputs: Vec<ValueInfo>,
    /// With their stage, in the order of stages.
    pub(super) recurrent: Vec<(usize, RecurrentNode)>,
    /// The number of other nodes.
    pub(super) num_others: usize,
    /// For each stage, the values of it that a later one, a recurrent node or the caller needs, and that are not
    /// outputs of recurrent nodes.
    pub(super) evaluated: Vec<Vec<String>>,
    /// What decides the size of a tensor that a node makes, in the order of the nodes.
    pub(super) sizes: Vec<SizeOperand>,
    /// Those of `evaluated` that are read by the rest of the model in a later stage, or returned.
    pub(super) reused: HashSet<String>,
    /// Values that are the same in every run.
    pub(super) constants: HashSet<String>,
    pub(super) initializers: HashMap<String, StoredTensor<'a>>,
    /// The model without its recurrent nodes, which it has as inputs instead; `None` if nothing is left.
    pub(super) rest: Option<Vec<u8>>,
}

/// A tensor of sizes that a node reads.
pub(super) struct SizeOperand {
    /// The stage of the tensor.
    pub(super) stage: usize,
    /// The node in words.
    pub(super) node: String,
    /// The tensor's name.
    pub(super) name: String,
}

/// A node with its place in the graph's message.
struct Node<'a> {
    head: NodeProto,
    raw: &'a [u8],
    operator: Option<Operator>,
    /// Values of the graph that its subgraphs read.
    captured: BTreeSet<String>,
}

impl Node<'_> {
    fn reads(&self) -> impl Iterator<Item = &str> {
        self.head.input.iter().chain(&self.captured).map(String::as_str).filter(|name| !name.is_empty())
    }

    fn makes(&self) -> impl Iterator<Item = &str> {
        self.head.output.iter().map(String::as_str).filter(|name| !name.is_empty())
    }
}

impl<'a> Graph<'a> {
    pub(super) fn new(bytes: &'a [u8], compat: OnnxCompat, files: &ExternalFiles) -> Result<Self> {
        let model = wire::fields("model", bytes)?;
        let mut graphs = model.iter().filter(|f| f.number == field::MODEL_GRAPH && f.has_length);
        let (Some(graph), None) = (graphs.next(), graphs.next()) else {
            bail!(InvalidFile, "model: expected one graph; is this an ONNX model?");
        };
        check_opset(&model)?;
        check_functions(&model)?;
        let fields = wire::fields("graph", graph.value)?;
        let messages = |number: u64| fields.iter().filter(move |f| f.number == number && f.has_length);

        let mut initializers = HashMap::new();
        for message in messages(field::GRAPH_INITIALIZER) {
            let tensor = StoredTensor::decode(message.value)?;
            initializers.insert(tensor.head.name.clone(), tensor);
        }
        let infos = |number| messages(number).map(|f| ValueInfo::decode(f.value)).collect::<Result<Vec<_>>>();
        // Before version 4 of the format an initialiser had to be an input too.
        let mut inputs = infos(field::GRAPH_INPUT)?;
        inputs.retain(|info| !initializers.contains_key(&info.name));
        let outputs = infos(field::GRAPH_OUTPUT)?;
        let mut nodes = Vec::new();
        for message in messages(field::GRAPH_NODE) {
            nodes.push(read_node(message)?);
        }

        let stages = stages(&nodes, &inputs, &initializers, &outputs)?;
        let mut recurrent = Vec::new();
        for node in &nodes {
            if let Some(operator) = node.operator {
                let stage = node.reads().map(|name| stages[name].stage).max().unwrap_or(0);
                recurrent.push((stage, RecurrentNode::new(&node.head, operator, compat)?));
            }
        }
        recurrent.sort_by_key(|(stage, _)| *stage);

        let of_recurrent: HashSet<&str> = nodes.iter().filter(|n| n.operator.is_some()).flat_map(Node::makes).collect();
        let others = || nodes.iter().filter(|n| n.operator.is_none());
        let made_by_others: HashSet<&str> = others().flat_map(Node::makes).collect();

        // What each stage must hand on.
        let mut wanted: BTreeSet<(usize, &str)> = BTreeSet::new();
        let mut reused = HashSet::new();
        for node in &nodes {
            let own = match node.operator {
                Some(_) => usize::MAX,
                None => node.makes().map(|name| stages[name].stage).max().unwrap_or(0),
            };
            for name in node.reads().filter(|name| made_by_others.contains(name)) {
                if stages[name].stage < own {
                    wanted.insert((stages[name].stage, name));
                    if node.operator.is_none() {
                        reused.insert(name.to_owned());
                    }
                }
            }
        }
        for name in outputs.iter().map(|o| o.name.as_str()).filter(|name| made_by_others.contains(name)) {
            wanted.insert((stages[name].stage, name));
            reused.insert(name.to_owned());
        }
        let sizes: Vec<SizeOperand> = others().filter_map(|node| size_operand(node, &stages)).collect();
        let last = wanted.last().map_or(0, |(stage, _)| *stage).max(recurrent.last().map_or(0, |(stage, _)| *stage));
        let mut evaluated = vec![Vec::new(); last + 1];
        for (stage, name) in wanted {
            evaluated[stage].push(name.to_owned());
        }

        let rest = (others().next().is_some()).then(|| {
            let read: HashSet<&str> = others().flat_map(Node::reads).collect();
            let sizes = sizes.iter().map(|s| s.name.as_str()).filter(|name| made_by_others.contains(name));
            let outputs: BTreeSet<&str> = evaluated.iter().flatten().map(String::as_str).chain(sizes).collect();
            rest_of_model(&model, &fields, &nodes, &of_recurrent, &read, &outputs, files)
        });
        let constants = stages.iter().filter(|(_, s)| s.constant).map(|(name, _)| (*name).to_owned()).collect();
        Ok(Self {
            num_others: others().count(),
            inputs,
            outputs,
            recurrent,
            evaluated,
            sizes,
            reused,
            constants,
            rest: rest.transpose()?,
            initializers,
        })
    }
}

/// The versions of the operators: from 1 on, and the newest known text of LSTM, GRU and RNN is that of 22.
fn check_opset(model: &[Field<'_>]) -> Result<()> {
    for message in model.iter().filter(|f| f.number == field::MODEL_OPSET) {
        let id: OperatorSetIdProto = proto::decode("opset_import", message.value)?;
        if matches!(id.domain.as_str(), "" | "ai.onnx") && id.version < 1 {
            bail!(InvalidFile, "opset_import: expected version 1 or later, found {}", id.version);
        }
    }
    Ok(())
}

/// Functions of the model are the runtime's business, unless they hold a recurrent node.
fn check_functions(model: &[Field<'_>]) -> Result<()> {
    const FUNCTION_NODE: u64 = 7;
    for function in model.iter().filter(|f| f.number == field::MODEL_FUNCTIONS && f.has_length) {
        for node in wire::fields("function", function.value)?.iter().filter(|f| f.number == FUNCTION_NODE) {
            if let Some(op_type) = recurrent_op(node.value)? {
                bail!(
                    Unsupported,
                    "{op_type}: a recurrent node inside a function of the model is not read; inline functions first"
                );
            }
            find_in_subgraphs(node.value, &mut BTreeSet::new(), 0)?;
        }
    }
    Ok(())
}

fn recurrent_op(node: &[u8]) -> Result<Option<String>> {
    let fields = wire::fields("node", node)?;
    let text = |number| {
        let value = fields.iter().find(|f| f.number == number).map_or(&[][..], |f| f.value);
        String::from_utf8_lossy(value).into_owned()
    };
    let (op_type, domain) = (text(field::NODE_OP_TYPE), text(7));
    Ok(Operator::of(&op_type, &domain).map(|_| op_type))
}

fn read_node<'a>(message: &Field<'a>) -> Result<Node<'a>> {
    // Only recurrent nodes need their attributes; those of others may hold large tensors.
    let fields = wire::fields("node", message.value)?;
    let mut head = Vec::new();
    for part in fields.iter().filter(|f| f.number != field::NODE_ATTRIBUTE) {
        head.extend_from_slice(part.raw);
    }
    let mut node: NodeProto = proto::decode("node", &head)?;
    let operator = Operator::of(&node.op_type, &node.domain);
    let mut captured = BTreeSet::new();
    match operator {
        Some(_) => node = proto::decode(&format!("node {:?}", node.name), message.value)?,
        None => find_in_subgraphs(message.value, &mut captured, 0)?,
    }
    Ok(Node { head: node, raw: message.raw, operator, captured })
}

/// Collects what the graphs among a node's attributes read from outside, and refuses a recurrent node in them: the
/// runtime would compute some of those wrongly.
fn find_in_subgraphs(node: &[u8], captured: &mut BTreeSet<String>, depth: usize) -> Result<()> {
    const MOST_NESTED: usize = 32;
    if depth > MOST_NESTED {
        bail!(Unsupported, "graph: expected at most {MOST_NESTED} nested subgraphs, found more");
    }
    for attribute in wire::fields("node", node)?.iter().filter(|f| f.number == field::NODE_ATTRIBUTE && f.has_length) {
        for graph in wire::fields("attribute", attribute.value)?
            .iter()
            .filter(|f| matches!(f.number, field::ATTRIBUTE_GRAPH | field::ATTRIBUTE_GRAPHS) && f.has_length)
        {
            let fields = wire::fields("subgraph", graph.value)?;
            let nodes = fields.iter().filter(|f| f.number == field::GRAPH_NODE && f.has_length);
            for inner in nodes {
                if let Some(op_type) = recurrent_op(inner.value)? {
                    bail!(
                        Unsupported,
                        "{op_type}: a recurrent node inside the subgraph of another node (If, Loop, Scan) is not read"
                    );
                }
                for part in wire::fields("node", inner.value)?.iter().filter(|f| f.number == 1 && f.has_length) {
                    captured.insert(String::from_utf8_lossy(part.value).into_owned());
                }
                find_in_subgraphs(inner.value, captured, depth + 1)?;
            }
            for output in fields.iter().filter(|f| f.number == field::GRAPH_OUTPUT && f.has_length) {
                captured.insert(ValueInfo::decode(output.value)?.name);
            }
        }
    }
    Ok(())
}

/// Nodes whose output is as large as a tensor says: its sizes, or how often to repeat.
fn size_operand(node: &Node<'_>, stages: &HashMap<&str, Value>) -> Option<SizeOperand> {
    let index = match node.head.op_type.as_str() {
        "ConstantOfShape" => 0,
        "Expand" | "Tile" => 1,
        _ => return None,
    };
    let name = node.head.input.get(index).filter(|name| !name.is_empty())?.clone();
    let label = format!("node {:?} ({})", node.head.name, node.head.op_type);
    Some(SizeOperand { stage: stages.get(name.as_str())?.stage, node: label, name })
}

/// What is known of a value.
#[derive(Clone, Copy)]
struct Value {
    stage: usize,
    /// Whether it is the same in every run.
    constant: bool,
}

/// The stage of every value; nodes are in topological order, as the format asks for.
fn stages<'a>(
    nodes: &'a [Node<'_>],
    inputs: &'a [ValueInfo],
    initializers: &'a HashMap<String, StoredTensor<'_>>,
    outputs: &[ValueInfo],
) -> Result<HashMap<&'a str, Value>> {
    let mut values: HashMap<&str, Value> = HashMap::new();
    values.extend(inputs.iter().map(|i| (i.name.as_str(), Value { stage: 0, constant: false })));
    values.extend(initializers.keys().map(|name| (name.as_str(), Value { stage: 0, constant: true })));
    let missing = |name: &str, who: &str| -> Result<HashMap<&'a str, Value>> {
        bail!(InvalidFile, "{who}: no node before it makes {name:?}, and it is no input or initializer")
    };
    for node in nodes {
        let mut value = Value { stage: 0, constant: true };
        for name in node.reads() {
            match values.get(name) {
                Some(read) => {
                    value.stage = value.stage.max(read.stage);
                    value.constant &= read.constant;
                }
                // A subgraph's own values are among those that it reads.
                None if node.captured.contains(name) => {}
                None => return missing(name, &format!("node {:?} ({})", node.head.name, node.head.op_type)),
            }
        }
        if node.operator.is_some() {
            value.stage += 1;
        }
        // What is drawn at random is another in each run, and so may be what a subgraph makes.
        let draws = ["Bernoulli", "Multinomial", "Dropout"].contains(&node.head.op_type.as_str());
        value.constant &= !draws && !node.head.op_type.starts_with("Random") && node.captured.is_empty();
        for name in node.makes() {
            if values.insert(name, value).is_some() {
                bail!(InvalidFile, "node {:?} ({}): {name:?} is made twice", node.head.name, node.head.op_type);
            }
        }
    }
    match outputs.iter().find(|o| !values.contains_key(o.name.as_str())) {
        Some(output) => missing(&output.name, "graph output"),
        None => Ok(values),
    }
}

/// The model's bytes with another graph: without recurrent nodes and what only they read, their outputs as inputs, and
/// every value that is handed on as an output.
fn rest_of_model(
    model: &[Field<'_>],
    graph: &[Field<'_>],
    nodes: &[Node<'_>],
    of_recurrent: &HashSet<&str>,
    read: &HashSet<&str>,
    outputs: &BTreeSet<&str>,
    files: &ExternalFiles,
) -> Result<Vec<u8>> {
    let recurrent: HashSet<*const u8> = nodes.iter().filter(|n| n.operator.is_some()).map(|n| n.raw.as_ptr()).collect();
    let mut rest = Vec::new();
    for part in graph {
        let keep = match part.number {
            field::GRAPH_NODE => !recurrent.contains(&part.raw.as_ptr()),
            field::GRAPH_INITIALIZER => {
                let tensor = StoredTensor::decode(part.value)?;
                let is_read = read.contains(tensor.head.name.as_str());
                if is_read && tensor.external().is_some() {
                    wire::push(&mut rest, field::GRAPH_INITIALIZER, &tensor.inlined(files)?);
                }
                is_read && tensor.external().is_none()
            }
            field::GRAPH_INPUT => read.contains(ValueInfo::decode(part.value)?.name.as_str()),
            field::GRAPH_VALUE_INFO => !of_recurrent.contains(ValueInfo::decode(part.value)?.name.as_str()),
            field::GRAPH_OUTPUT => false,
            _ => true,
        };
        if keep {
            rest.extend_from_slice(part.raw);
        }
    }
    let info = |name: &str, r#type| proto::ValueInfoProto { name: name.to_owned(), r#type };
    let mut add = |number, info: proto::ValueInfoProto| {
        wire::push(&mut rest, number, &prost::Message::encode_to_vec(&info));
    };
    // Sorted, so that the same model always gives the same bytes.
    for name in of_recurrent.intersection(read).collect::<BTreeSet<_>>() {
        let float = proto::TensorTypeProto { elem_type: 1, shape: None };
        add(field::GRAPH_INPUT, info(name, Some(proto::TypeProto { tensor_type: Some(float) })));
    }
    for name in outputs {
        add(field::GRAPH_OUTPUT, info(name, None));
    }
    let mut bytes = Vec::with_capacity(rest.len() + 1024);
    for part in model {
        if part.number == field::MODEL_GRAPH {
            wire::push(&mut bytes, field::MODEL_GRAPH, &rest);
        } else {
            bytes.extend_from_slice(part.raw);
        }
    }
    Ok(bytes)
}
