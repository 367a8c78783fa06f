//! The bytes of a model → [`Graph`].
//!
//! In:  a `ModelProto`, opset 1 or later; nodes in any order.
//! Out: nodes in the order in which they can run, at every depth; calls of the model's functions replaced by their
//!      nodes; initialisers and Constant nodes as constants; an initialiser that is also an input as an optional input.
//! Not here: what an operator means.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::element::ElementType;
use super::graph::{Attribute, Graph, Node, Scope, ValueId, Values, shortened};
use super::proto::{self, AttributeProto, FunctionHead, NodeProto, OperatorSetIdProto, field};
use super::stored::{ExternalFiles, StoredTensor};
use super::tensor::ValueInfo;
use super::wire::{self, Field};
use crate::error::{Error, ErrorKind, Result, bail};

/// Graphs inside graphs, and functions that call functions.
const MOST_NESTED: usize = 32;
/// Nodes after functions were replaced by what they stand for.
const MOST_NODES: usize = 1 << 20;

/// Versions of operators by domain.
type Versions = HashMap<String, i64>;

struct Importer<'a> {
    files: &'a ExternalFiles,
    functions: HashMap<(String, String, String), Function<'a>>,
    values: Values,
    num_nodes: usize,
    /// Inputs of the main graph that a run gives although the model has a constant for them.
    given: &'a BTreeSet<String>,
}

/// A function of the model.
struct Function<'a> {
    head: FunctionHead,
    versions: Versions,
    defaults: Vec<&'a [u8]>,
    nodes: Vec<&'a [u8]>,
}

/// The names that a graph sees.
struct Names<'n> {
    own: HashMap<String, ValueId>,
    outer: Option<&'n Names<'n>>,
}

impl Names<'_> {
    fn get(&self, name: &str) -> Option<ValueId> {
        self.own.get(name).copied().or_else(|| self.outer?.get(name))
    }
}

/// What the nodes of a graph or function are read with.
#[derive(Clone, Copy)]
struct Surroundings<'s, 'a> {
    versions: &'s Versions,
    /// Attributes of the call of the function whose nodes these are.
    call: Option<&'s HashMap<String, CallAttribute<'a>>>,
    depth: usize,
}

/// An attribute that a function's nodes may refer to: its message.
#[derive(Clone)]
struct CallAttribute<'a>(&'a [u8]);

/// Reads a model. Inputs named in `given` are inputs even where the model has constants for them.
///
/// # Errors
/// [`InvalidFile`](ErrorKind::InvalidFile) if the bytes are no complete model or disagree with themselves;
/// [`Unsupported`](ErrorKind::Unsupported) for what is not read.
pub(super) fn import(bytes: &[u8], files: &ExternalFiles, given: &BTreeSet<String>) -> Result<Graph> {
    let model = wire::fields("model", bytes)?;
    let mut graphs = model.iter().filter(|f| f.number == field::MODEL_GRAPH && f.has_length);
    let (Some(graph), None) = (graphs.next(), graphs.next()) else {
        bail!(InvalidFile, "model: expected one graph; is this an ONNX model?");
    };
    let versions = read_versions(&model, field::MODEL_OPSET)?;
    let ir_version = model.iter().find(|f| f.number == field::MODEL_IR_VERSION).and_then(|f| {
        let mut value = f.value;
        wire::varint(&mut value)
    });
    let mut functions = HashMap::new();
    for message in model.iter().filter(|f| f.number == field::MODEL_FUNCTIONS && f.has_length) {
        let function = read_function(message.value)?;
        let head = &function.head;
        functions.insert((normal(&head.domain), head.name.clone(), head.overload.clone()), function);
    }
    let mut importer = Importer { files, functions, values: Values::default(), num_nodes: 0, given };
    importer.main_graph(graph.value, &versions, ir_version.unwrap_or(0))
}

/// ONNX's own domain has two names.
fn normal(domain: &str) -> String {
    if domain == "ai.onnx" { String::new() } else { domain.to_owned() }
}

fn read_versions(fields: &[Field<'_>], number: u64) -> Result<Versions> {
    let mut versions = Versions::new();
    for message in fields.iter().filter(|f| f.number == number && f.has_length) {
        let id: OperatorSetIdProto = proto::decode("opset_import", message.value)?;
        let domain = normal(&id.domain);
        if domain.is_empty() && !(1..=NEWEST_VERSION).contains(&id.version) {
            bail!(
                Unsupported,
                "opset_import: expected version 1 to {NEWEST_VERSION} of ONNX's operators, found {}; what later versions \
                 changed is not known here",
                id.version
            );
        }
        if versions.insert(domain, id.version).is_some_and(|other| other != id.version) {
            bail!(InvalidFile, "opset_import: expected one version of {:?}, found several", id.domain);
        }
    }
    Ok(versions)
}

/// The newest version of ONNX's operators whose texts were read for this.
const NEWEST_VERSION: i64 = 28;

fn read_function(message: &[u8]) -> Result<Function<'_>> {
    let fields = wire::fields("function", message)?;
    let mut head = Vec::new();
    for part in fields.iter().filter(|f| matches!(f.number, 1 | 4 | 5 | 10 | 13)) {
        head.extend_from_slice(part.raw);
    }
    let messages =
        |number| fields.iter().filter(move |f| f.number == number && f.has_length).map(|f| f.value).collect();
    Ok(Function {
        head: proto::decode("function", &head)?,
        versions: read_versions(&fields, field::FUNCTION_OPSET)?,
        defaults: messages(field::FUNCTION_ATTRIBUTE_DEFAULT),
        nodes: messages(field::FUNCTION_NODE),
    })
}

impl<'a> Importer<'a> {
    fn main_graph(&mut self, graph: &'a [u8], versions: &Versions, ir_version: u64) -> Result<Graph> {
        let fields = wire::fields("graph", graph)?;
        let mut names = Names { own: HashMap::new(), outer: None };
        let initializers = self.initializers(&fields, &mut names)?;
        let mut inputs = Vec::new();
        let mut optional_inputs = Vec::new();
        for message in messages(&fields, field::GRAPH_INPUT) {
            let info = ValueInfo::decode(message.value)?;
            let has_default = initializers.contains(&info.name);
            // Before version 4 of the format every initialiser had to be an input; it was no default.
            if has_default && ir_version < 4 {
                continue;
            }
            let id = self.input(&info, &mut names, has_default)?;
            if has_default && self.given.contains(&info.name) {
                self.values.constants.remove(&id);
            }
            if has_default { &mut optional_inputs } else { &mut inputs }.push((info, id));
        }
        let around = Surroundings { versions, call: None, depth: 0 };
        let nodes = self.nodes(messages(&fields, field::GRAPH_NODE).map(|f| f.value), &mut names, around)?;
        let mut outputs = Vec::new();
        let mut ids = Vec::new();
        for message in messages(&fields, field::GRAPH_OUTPUT) {
            let info = ValueInfo::decode(message.value)?;
            ids.push(resolve(&names, &info.name, || "graph output".into())?);
            outputs.push(info);
        }
        let scope = Scope { inputs: inputs.iter().map(|(_, id)| *id).collect(), outputs: ids, nodes };
        Ok(Graph { inputs, optional_inputs, outputs, scope, values: std::mem::take(&mut self.values) })
    }

    fn subgraph(&mut self, graph: &'a [u8], outer: &Names<'_>, around: Surroundings<'_, 'a>) -> Result<Scope> {
        if around.depth > MOST_NESTED {
            bail!(Unsupported, "graph: expected at most {MOST_NESTED} nested subgraphs, found more");
        }
        let fields = wire::fields("subgraph", graph)?;
        let mut names = Names { own: HashMap::new(), outer: Some(outer) };
        self.initializers(&fields, &mut names)?;
        let mut inputs = Vec::new();
        for message in messages(&fields, field::GRAPH_INPUT) {
            let info = ValueInfo::decode(message.value)?;
            let has_default = names.own.contains_key(&info.name);
            let id = self.input(&info, &mut names, has_default)?;
            // What the node hands in is not the default.
            self.values.constants.remove(&id);
            inputs.push(id);
        }
        let nodes = self.nodes(messages(&fields, field::GRAPH_NODE).map(|f| f.value), &mut names, around)?;
        let mut outputs = Vec::new();
        for message in messages(&fields, field::GRAPH_OUTPUT) {
            let info = ValueInfo::decode(message.value)?;
            outputs.push(resolve(&names, &info.name, || "output of a subgraph".into())?);
        }
        Ok(Scope { inputs, outputs, nodes })
    }

    /// Reads the tensors of a graph; returns their names.
    fn initializers(&mut self, fields: &[Field<'a>], names: &mut Names<'_>) -> Result<HashSet<String>> {
        if messages(fields, field::GRAPH_SPARSE_INITIALIZER).next().is_some() {
            bail!(Unsupported, "sparse_initializer: sparse tensors are not read; store them dense");
        }
        let mut found = HashSet::new();
        for message in messages(fields, field::GRAPH_INITIALIZER) {
            let stored = StoredTensor::decode(message.value)?;
            let name = stored.head.name.clone();
            if !found.insert(name.clone()) {
                bail!(InvalidFile, "initializer {:?}: expected once, found twice", shortened(&name));
            }
            // One that cannot be read is refused where something reads it.
            let id = match stored.tensor(self.files) {
                Ok(tensor) => self.values.add_constant(name.clone(), tensor.into()),
                Err(error) if ElementType::of(stored.head.data_type).is_some() => return Err(error),
                Err(_) => self.values.add(name.clone()),
            };
            names.own.insert(name, id);
        }
        Ok(found)
    }

    fn input(&mut self, info: &ValueInfo, names: &mut Names<'_>, has_default: bool) -> Result<ValueId> {
        let id = match names.own.get(&info.name) {
            Some(&id) if has_default => id,
            Some(_) => bail!(InvalidFile, "input {:?}: expected once, found twice", shortened(&info.name)),
            None => self.values.add(info.name.clone()),
        };
        if let Some(element) = info.element_type() {
            self.values.types.insert(id, element);
        }
        names.own.insert(info.name.clone(), id);
        Ok(id)
    }

    /// The nodes of a graph, sorted.
    fn nodes(
        &mut self,
        messages: impl Iterator<Item = &'a [u8]>,
        names: &mut Names<'_>,
        around: Surroundings<'_, 'a>,
    ) -> Result<Vec<Node>> {
        let mut heads = Vec::new();
        for message in messages {
            self.num_nodes += 1;
            if self.num_nodes > MOST_NODES {
                bail!(
                    Unsupported,
                    "graph: expected at most {MOST_NODES} nodes, with those of its functions, found more"
                );
            }
            let fields = wire::fields("node", message)?;
            let mut head = Vec::new();
            for part in fields.iter().filter(|f| f.number != field::NODE_ATTRIBUTE) {
                head.extend_from_slice(part.raw);
            }
            let head: NodeProto = proto::decode("node", &head)?;
            // A node may stand before those whose values it reads, so all names come first.
            for name in head.output.iter().filter(|name| !name.is_empty()) {
                let id = self.values.add(name.clone());
                if names.own.insert(name.clone(), id).is_some() {
                    bail!(
                        InvalidFile,
                        "node {:?} ({}): {:?} is made twice",
                        shortened(&head.name),
                        shortened(&head.op_type),
                        shortened(name)
                    );
                }
            }
            heads.push((head, fields));
        }
        let mut nodes = Vec::new();
        for (head, fields) in heads {
            self.node(head, &fields, names, around, &mut nodes)?;
        }
        sort(nodes, &self.values)
    }

    /// Appends a node, or what the function that it calls stands for.
    fn node(
        &mut self,
        head: NodeProto,
        fields: &[Field<'a>],
        names: &Names<'_>,
        around: Surroundings<'_, 'a>,
        nodes: &mut Vec<Node>,
    ) -> Result<()> {
        let label = format!("node {:?} ({})", shortened(&head.name), shortened(&head.op_type));
        let domain = normal(&head.domain);
        let mut inputs = Vec::new();
        for name in &head.input {
            let id = if name.is_empty() { None } else { Some(resolve(names, name, || label.clone())?) };
            inputs.push(id);
        }
        let outputs: Vec<Option<ValueId>> = head.output.iter().map(|name| names.own.get(name).copied()).collect();
        let attributes = messages(fields, field::NODE_ATTRIBUTE).map(|f| f.value);

        let key = (domain.clone(), head.op_type.clone(), head.overload.clone());
        if self.functions.contains_key(&key) {
            return self.call(&key, &label, &inputs, &outputs, attributes, around, nodes);
        }
        let Some(&version) = around.versions.get(&domain) else {
            // The first version of the format had no imports.
            if around.versions.is_empty() && domain.is_empty() {
                return self.plain_node(head, domain, 1, inputs, outputs, attributes, names, around, nodes);
            }
            bail!(InvalidFile, "{label}: opset_import: the model imports no version of the domain {:?}", head.domain);
        };
        self.plain_node(head, domain, version, inputs, outputs, attributes, names, around, nodes)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one message")]
    fn plain_node(
        &mut self,
        head: NodeProto,
        domain: String,
        version: i64,
        inputs: Vec<Option<ValueId>>,
        outputs: Vec<Option<ValueId>>,
        attributes: impl Iterator<Item = &'a [u8]>,
        names: &Names<'_>,
        around: Surroundings<'_, 'a>,
        nodes: &mut Vec<Node>,
    ) -> Result<()> {
        let mut node = Node {
            name: head.name,
            op_type: head.op_type,
            domain,
            version,
            attributes: Vec::new(),
            inputs,
            outputs,
            scopes: Vec::new(),
        };
        let label = node.label();
        for message in attributes {
            self.attribute(&mut node, message, names, around).map_err(|e| e.context(&label))?;
        }
        // Outputs at the end that are left out are as good as not named.
        while node.outputs.last() == Some(&None) {
            node.outputs.pop();
        }
        while node.inputs.last() == Some(&None) {
            node.inputs.pop();
        }
        nodes.push(node);
        Ok(())
    }

    fn attribute(
        &mut self,
        node: &mut Node,
        message: &'a [u8],
        names: &Names<'_>,
        around: Surroundings<'_, 'a>,
    ) -> Result<()> {
        let (head, fields) = attribute_head(message)?;
        if !head.ref_attr_name.is_empty() {
            let Some(call) = around.call else {
                bail!(InvalidFile, "attribute {}: refers to one of a function, outside of a function", head.name);
            };
            // Where the call does not give it, the node does not have it.
            let Some(CallAttribute(given)) = call.get(&head.ref_attr_name) else { return Ok(()) };
            let renamed = Surroundings { call: None, ..around };
            let before = node.attributes.len();
            self.attribute(node, given, names, renamed)?;
            if let Some(attribute) = node.attributes.get_mut(before) {
                attribute.head.name = head.name;
            }
            return Ok(());
        }
        let has_twin = node.has(&head.name) || node.scope(&head.name).is_some();
        if has_twin {
            bail!(InvalidFile, "attribute {}: expected once, found twice", shortened(&head.name));
        }
        let mut tensor = None;
        for part in &fields {
            match part.number {
                field::ATTRIBUTE_GRAPH => {
                    let inside = Surroundings { depth: around.depth + 1, ..around };
                    let scope = self.subgraph(part.value, names, inside)?;
                    node.scopes.push((head.name.clone(), scope));
                    return Ok(());
                }
                field::ATTRIBUTE_TENSOR => {
                    let stored = StoredTensor::decode(part.value)?;
                    tensor = Some(stored.tensor(self.files).map_err(|e| e.context(&head.name))?.into());
                }
                field::ATTRIBUTE_GRAPHS | field::ATTRIBUTE_TENSORS | field::ATTRIBUTE_SPARSE_TENSOR => {
                    bail!(
                        Unsupported,
                        "attribute {}: lists of graphs or tensors, and sparse ones, are not read",
                        head.name
                    )
                }
                _ => {}
            }
        }
        node.attributes.push(Attribute { head, tensor });
        Ok(())
    }

    /// Appends the nodes of a function in the place of its call.
    #[expect(clippy::too_many_arguments, reason = "the parts of one call")]
    fn call(
        &mut self,
        key: &(String, String, String),
        label: &str,
        inputs: &[Option<ValueId>],
        outputs: &[Option<ValueId>],
        attributes: impl Iterator<Item = &'a [u8]>,
        around: Surroundings<'_, 'a>,
        nodes: &mut Vec<Node>,
    ) -> Result<()> {
        if around.depth > MOST_NESTED {
            bail!(Unsupported, "{label}: expected at most {MOST_NESTED} functions that call each other, found more");
        }
        let function = &self.functions[key];
        let (head, versions) = (function.head.clone(), function.versions.clone());
        let bodies = function.nodes.clone();
        let mut call: HashMap<String, CallAttribute<'a>> = HashMap::new();
        for message in function.defaults.iter().copied().chain(attributes) {
            let (attribute, _) = attribute_head(message)?;
            // A function's attribute may be that of the function that calls it.
            let given = match around.call {
                Some(outer) if !attribute.ref_attr_name.is_empty() => outer.get(&attribute.ref_attr_name).cloned(),
                _ => Some(CallAttribute(message)),
            };
            if let Some(given) = given {
                call.insert(attribute.name, given);
            }
        }
        if inputs.len() > head.input.len() || outputs.len() > head.output.len() {
            bail!(
                InvalidFile,
                "{label}: expected at most {} inputs and {} outputs, as the function has, found {} and {}",
                head.input.len(),
                head.output.len(),
                inputs.len(),
                outputs.len()
            );
        }
        let mut names = Names { own: HashMap::new(), outer: None };
        // An input that is left out has a number that nothing makes.
        let mut absent = HashSet::new();
        for (i, name) in head.input.iter().enumerate() {
            let id = inputs.get(i).copied().flatten().unwrap_or_else(|| {
                let id = self.values.add(name.clone());
                absent.insert(id);
                id
            });
            names.own.insert(name.clone(), id);
        }
        let inside = Surroundings { versions: &versions, call: Some(&call), depth: around.depth + 1 };
        let mut body = self.nodes(bodies.into_iter(), &mut names, inside)?;
        let mut renamed: HashMap<ValueId, ValueId> = HashMap::new();
        for (name, output) in head.output.iter().zip(outputs) {
            let Some(outer) = *output else { continue };
            let inner = resolve(&names, name, || label.to_owned())?;
            let is_made = body.iter().any(|node| node.outputs.contains(&Some(inner)));
            if is_made && !renamed.contains_key(&inner) {
                renamed.insert(inner, outer);
            } else {
                // An input that is handed through, or one value for two outputs.
                let source = renamed.get(&inner).copied().unwrap_or(inner);
                let like = Node { version: NEWEST_VERSION, ..blank(label) };
                body.push(Node::made("Identity", NEWEST_VERSION, &[source], outer, &like));
            }
        }
        for node in &mut body {
            rename(node, &renamed, &absent);
        }
        nodes.extend(body);
        Ok(())
    }
}

fn blank(name: &str) -> Node {
    Node {
        name: name.to_owned(),
        op_type: String::new(),
        domain: String::new(),
        version: NEWEST_VERSION,
        attributes: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        scopes: Vec::new(),
    }
}

/// Puts other values in the place of those in `renamed`, and nothing in the place of absent ones.
fn rename(node: &mut Node, renamed: &HashMap<ValueId, ValueId>, absent: &HashSet<ValueId>) {
    for id in node.inputs.iter_mut().chain(&mut node.outputs) {
        *id = id.filter(|id| !absent.contains(id)).map(|id| renamed.get(&id).copied().unwrap_or(id));
    }
    while node.inputs.last() == Some(&None) {
        node.inputs.pop();
    }
    for (_, scope) in &mut node.scopes {
        for inner in &mut scope.nodes {
            rename(inner, renamed, absent);
        }
        for id in &mut scope.outputs {
            *id = renamed.get(id).copied().unwrap_or(*id);
        }
    }
}

fn messages<'f, 'a>(fields: &'f [Field<'a>], number: u64) -> impl Iterator<Item = &'f Field<'a>> {
    fields.iter().filter(move |f| f.number == number && f.has_length)
}

fn attribute_head(message: &[u8]) -> Result<(AttributeProto, Vec<Field<'_>>)> {
    let fields = wire::fields("attribute", message)?;
    let mut head = Vec::new();
    let mut large = Vec::new();
    for part in &fields {
        match part.number {
            field::ATTRIBUTE_TENSOR
            | field::ATTRIBUTE_GRAPH
            | field::ATTRIBUTE_TENSORS
            | field::ATTRIBUTE_GRAPHS
            | field::ATTRIBUTE_SPARSE_TENSOR
                if part.has_length =>
            {
                large.push(*part);
            }
            _ => head.extend_from_slice(part.raw),
        }
    }
    Ok((proto::decode("attribute", &head)?, large))
}

fn resolve(names: &Names<'_>, name: &str, who: impl FnOnce() -> String) -> Result<ValueId> {
    names.get(name).ok_or_else(|| {
        let text = format!("{}: no node makes {:?}, and it is no input or initializer", who(), shortened(name));
        Error::new(ErrorKind::InvalidFile, text)
    })
}

/// Nodes in an order in which each follows those whose values it reads; the order of the file where it is one.
fn sort(nodes: Vec<Node>, values: &Values) -> Result<Vec<Node>> {
    let mut maker: HashMap<ValueId, usize> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        maker.extend(node.outputs.iter().flatten().map(|&id| (id, i)));
    }
    let mut waits_for: Vec<usize> = vec![0; nodes.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        let mut sources: BTreeSet<usize> = BTreeSet::new();
        node.each_read(&mut |id| sources.extend(maker.get(&id)));
        waits_for[i] = sources.len();
        for source in sources {
            readers[source].push(i);
        }
    }
    let mut ready: BTreeSet<usize> = (0..nodes.len()).filter(|&i| waits_for[i] == 0).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(i) = ready.pop_first() {
        order.push(i);
        for &reader in &readers[i] {
            waits_for[reader] -= 1;
            if waits_for[reader] == 0 {
                ready.insert(reader);
            }
        }
    }
    if order.len() < nodes.len() {
        let left = nodes.iter().zip(&waits_for).find(|(_, n)| **n > 0).map_or(String::new(), |(node, _)| node.label());
        let name = nodes.iter().zip(&waits_for).find(|(_, n)| **n > 0).and_then(|(node, _)| node.output(0));
        bail!(
            InvalidFile,
            "{left}: {:?} is made from itself, by way of the nodes between",
            name.map_or("", |id| values.names[id].as_str())
        );
    }
    let mut slots: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
    Ok(order.into_iter().filter_map(|i| slots[i].take()).collect())
}
