//! A graph as it is worked on: values by number, nodes in the order in which they can run, subgraphs inside them.
//!
//! Not here: reading it (`import.rs`), changing it (`lower.rs`), running it (`schedule.rs`, `run.rs`).

use std::collections::HashMap;

use super::element::ElementType;
use super::proto::AttributeProto;
use super::tensor::ValueInfo;
use super::value::{Array, Value};
use crate::error::{Result, bail};

/// Number of a value: one for each name of a graph and of the graphs inside it.
pub(super) type ValueId = usize;

/// A whole model.
pub(super) struct Graph {
    /// What each run has to give.
    pub(super) inputs: Vec<(ValueInfo, ValueId)>,
    /// What a run may give instead of the constant that the model has for it.
    pub(super) optional_inputs: Vec<(ValueInfo, ValueId)>,
    pub(super) outputs: Vec<ValueInfo>,
    pub(super) scope: Scope,
    pub(super) values: Values,
}

/// What is known of all values.
#[derive(Default)]
pub(super) struct Values {
    pub(super) names: Vec<String>,
    /// Element types, where they follow from what the graph declares.
    pub(super) types: HashMap<ValueId, ElementType>,
    /// Values that are the same in every run.
    pub(super) constants: HashMap<ValueId, Value>,
}

impl Values {
    pub(super) fn add(&mut self, name: impl Into<String>) -> ValueId {
        self.names.push(name.into());
        self.names.len() - 1
    }

    pub(super) fn add_constant(&mut self, name: impl Into<String>, array: Array) -> ValueId {
        let id = self.add(name);
        self.types.insert(id, array.element_type());
        self.constants.insert(id, array.into());
        id
    }

    pub(super) fn constant(&self, id: ValueId) -> Option<&Array> {
        match self.constants.get(&id)? {
            Value::Array(array) => Some(array),
            Value::Sequence(_) => None,
        }
    }
}

/// A graph, or one inside a node: reads values of those around it by their numbers.
#[derive(Clone)]
pub(super) struct Scope {
    pub(super) inputs: Vec<ValueId>,
    pub(super) outputs: Vec<ValueId>,
    pub(super) nodes: Vec<Node>,
}

/// An operator with what it reads and makes.
#[derive(Clone)]
pub(super) struct Node {
    /// The name in the file, which may be empty.
    pub(super) name: String,
    pub(super) op_type: String,
    /// Empty for ONNX's own operators.
    pub(super) domain: String,
    /// Version of the domain's operators that the model imports.
    pub(super) version: i64,
    pub(super) attributes: Vec<Attribute>,
    pub(super) inputs: Vec<Option<ValueId>>,
    pub(super) outputs: Vec<Option<ValueId>>,
    /// Graphs among the attributes, by name.
    pub(super) scopes: Vec<(String, Scope)>,
}

/// An attribute that is no graph.
#[derive(Clone)]
pub(super) struct Attribute {
    pub(super) head: AttributeProto,
    pub(super) tensor: Option<Array>,
}

impl Scope {
    /// Calls `f` with every value that its nodes read, or that it returns, deep inside too.
    pub(super) fn each_read(&self, f: &mut impl FnMut(ValueId)) {
        for node in &self.nodes {
            node.each_read(f);
        }
        self.outputs.iter().for_each(|&id| f(id));
    }

    /// The number of nodes, deep inside too.
    pub(super) fn num_nodes(&self) -> usize {
        self.nodes.iter().map(|n| 1 + n.scopes.iter().map(|(_, scope)| scope.num_nodes()).sum::<usize>()).sum()
    }
}

impl Node {
    /// A node of ONNX's own operators that is not in the file.
    pub(super) fn made(op_type: &str, version: i64, inputs: &[ValueId], output: ValueId, like: &Node) -> Self {
        Self {
            name: like.name.clone(),
            op_type: op_type.to_owned(),
            domain: String::new(),
            version,
            attributes: Vec::new(),
            inputs: inputs.iter().map(|&id| Some(id)).collect(),
            outputs: vec![Some(output)],
            scopes: Vec::new(),
        }
    }

    /// `node "encoder/conv" (Conv)`; `Conv that makes "y"` would need the names of values.
    pub(super) fn label(&self) -> String {
        let domain = if self.domain.is_empty() { String::new() } else { format!("{}.", self.domain) };
        format!("node {:?} ({domain}{})", shortened(&self.name), shortened(&self.op_type))
    }

    /// Whether it is this operator of ONNX.
    pub(super) fn is(&self, op_type: &str) -> bool {
        self.domain.is_empty() && self.op_type == op_type
    }

    pub(super) fn each_read(&self, f: &mut impl FnMut(ValueId)) {
        self.inputs.iter().flatten().for_each(|&id| f(id));
        for (_, scope) in &self.scopes {
            scope.each_read(f);
        }
    }

    pub(super) fn input(&self, index: usize) -> Option<ValueId> {
        self.inputs.get(index).copied().flatten()
    }

    pub(super) fn output(&self, index: usize) -> Option<ValueId> {
        self.outputs.get(index).copied().flatten()
    }

    pub(super) fn scope(&self, name: &str) -> Option<&Scope> {
        self.scopes.iter().find(|(n, _)| n == name).map(|(_, scope)| scope)
    }

    pub(super) fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|a| a.head.name == name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.attribute(name).is_some()
    }

    fn wrong_type<T>(&self, name: &str, expected: &str) -> Result<T> {
        bail!(InvalidFile, "attribute {name}: expected {expected}, found another type")
    }

    /// An integer attribute.
    pub(super) fn int(&self, name: &str) -> Result<Option<i64>> {
        match self.attribute(name) {
            None => Ok(None),
            Some(a) if a.head.is(AttributeProto::INT) => Ok(Some(a.head.i.unwrap_or(0))),
            Some(_) => self.wrong_type(name, "an integer"),
        }
    }

    /// An integer attribute that is 0 or 1.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.int(name)? {
            None => Ok(default),
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            Some(other) => bail!(InvalidFile, "attribute {name}: expected 0 or 1, found {other}"),
        }
    }

    pub(super) fn float(&self, name: &str) -> Result<Option<f32>> {
        match self.attribute(name) {
            None => Ok(None),
            Some(a) if a.head.is(AttributeProto::FLOAT) => Ok(Some(a.head.f.unwrap_or(0.0))),
            Some(_) => self.wrong_type(name, "a float"),
        }
    }

    pub(super) fn ints(&self, name: &str) -> Result<Option<&[i64]>> {
        match self.attribute(name) {
            None => Ok(None),
            Some(a) if a.head.is(AttributeProto::INTS) => Ok(Some(&a.head.ints)),
            Some(_) => self.wrong_type(name, "a list of integers"),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.attribute(name) {
            None => Ok(None),
            Some(a) if a.head.is(AttributeProto::STRING) => {
                match str::from_utf8(a.head.s.as_deref().unwrap_or_default()) {
                    Ok(text) => Ok(Some(text)),
                    Err(_) => self.wrong_type(name, "text"),
                }
            }
            Some(_) => self.wrong_type(name, "a string"),
        }
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&Array> {
        self.attribute(name)?.tensor.as_ref()
    }

    pub(super) fn remove_attribute(&mut self, name: &str) {
        self.attributes.retain(|a| a.head.name != name);
    }

    pub(super) fn set_ints(&mut self, name: &str, values: Vec<i64>) {
        self.remove_attribute(name);
        self.attributes.push(Attribute {
            head: AttributeProto {
                name: name.into(),
                ints: values,
                r#type: AttributeProto::INTS,
                ..AttributeProto::default()
            },
            tensor: None,
        });
    }
}

/// A name of a file in a message: cut where it is long.
pub(super) fn shortened(name: &str) -> String {
    const LONGEST: usize = 80;
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}
