//! A graph → one that says the same with less: constants are computed, names for the same value are one, an If whose
//! condition is known is the branch, and what nothing reads is gone.
//!
//! Not here: where a node runs (`schedule.rs`).

use std::collections::{HashMap, HashSet};

use super::graph::{Graph, Node, Scope, ValueId, Values};
use super::host::{self, Call, Limits};
use super::node::Operator;
use super::value::{Array, Value};
use crate::error::{Result, bail};

/// See the module.
pub(super) fn lower(graph: &mut Graph, limits: Limits) -> Result<()> {
    let mut pass = Pass { alias: HashMap::new(), limits };
    pass.scope(&mut graph.scope, &mut graph.values)?;
    remove_unread(&mut graph.scope);
    Ok(())
}

struct Pass {
    /// Values that are others.
    alias: HashMap<ValueId, ValueId>,
    limits: Limits,
}

impl Pass {
    fn actual(&self, id: ValueId) -> ValueId {
        self.alias.get(&id).copied().unwrap_or(id)
    }

    fn scope(&mut self, scope: &mut Scope, values: &mut Values) -> Result<()> {
        let mut nodes = Vec::with_capacity(scope.nodes.len());
        self.nodes(std::mem::take(&mut scope.nodes), &mut nodes, values)?;
        scope.nodes = nodes;
        for id in &mut scope.outputs {
            *id = self.actual(*id);
        }
        Ok(())
    }

    fn nodes(&mut self, from: Vec<Node>, to: &mut Vec<Node>, values: &mut Values) -> Result<()> {
        for mut node in from {
            for id in node.inputs.iter_mut().flatten() {
                *id = self.actual(*id);
            }
            if node.is("Constant") {
                let array = constant(&node).map_err(|e| e.context(node.label()))?;
                if let Some(id) = node.output(0) {
                    values.types.insert(id, array.element_type());
                    values.constants.insert(id, array.into());
                }
                continue;
            }
            // A Dropout without a mask is the same at inference.
            let same =
                node.is("Identity") || (node.is("Dropout") && node.outputs.len() == 1 && node.input(2).is_none());
            if let (true, Some(input), Some(output)) = (same, node.input(0), node.output(0)) {
                self.alias.insert(output, input);
                continue;
            }
            if node.is("If")
                && let Some(condition) = node.input(0).and_then(|id| values.constant(id))
                && let Ok(truth) = condition.truth("condition")
            {
                self.branch(node, truth, to, values)?;
                continue;
            }
            for (_, inner) in &mut node.scopes {
                self.scope(inner, values)?;
            }
            if !self.folded(&node, values) {
                to.push(node);
            }
        }
        Ok(())
    }

    /// Puts the nodes of the branch in the place of the If.
    fn branch(&mut self, mut node: Node, truth: bool, to: &mut Vec<Node>, values: &mut Values) -> Result<()> {
        let name = if truth { "then_branch" } else { "else_branch" };
        let Some(at) = node.scopes.iter().position(|(n, _)| n == name) else {
            bail!(InvalidFile, "{}: {name}: expected a graph, found none", node.label());
        };
        let (_, branch) = node.scopes.swap_remove(at);
        self.nodes(branch.nodes, to, values)?;
        if node.outputs.len() > branch.outputs.len() {
            bail!(
                InvalidFile,
                "{}: {name}: expected {} outputs, found {}",
                node.label(),
                node.outputs.len(),
                branch.outputs.len()
            );
        }
        for (outer, inner) in node.outputs.iter().zip(branch.outputs) {
            if let Some(outer) = *outer {
                let inner = self.actual(inner);
                self.alias.insert(outer, inner);
            }
        }
        Ok(())
    }

    /// Computes a node whose inputs are constants. What fails is left to the run, which may never come to it.
    fn folded(&self, node: &Node, values: &mut Values) -> bool {
        let is_plain = node.scopes.is_empty() && Operator::of(&node.op_type, &node.domain).is_none();
        if !is_plain || host::check(node).is_err() {
            return false;
        }
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for id in &node.inputs {
            match id.map(|id| values.constants.get(&id)) {
                None => inputs.push(None),
                Some(Some(value)) => inputs.push(Some(value)),
                Some(None) => return false,
            }
        }
        // Nor may loading take long.
        let limits = Limits { max_multiply_adds: 1e9f64.min(self.limits.max_multiply_adds), ..self.limits };
        let Ok(outputs) = host::run(&Call { node, inputs: &inputs, limits }) else { return false };
        if outputs.len() < node.outputs.len() {
            return false;
        }
        for (id, value) in node.outputs.iter().zip(outputs) {
            if let Some(id) = *id {
                if let Value::Array(array) = &value {
                    values.types.insert(id, array.element_type());
                }
                values.constants.insert(id, value);
            }
        }
        true
    }
}

/// The value of a Constant node.
fn constant(node: &Node) -> Result<Array> {
    if let Some(tensor) = node.tensor("value") {
        return Ok(tensor.clone());
    }
    if let Some(value) = node.float("value_float")? {
        return Ok(Array::scalar(value));
    }
    if let Some(value) = node.int("value_int")? {
        return Ok(Array::scalar(value));
    }
    if let Some(values) = node.ints("value_ints")? {
        return Ok(Array::new(vec![values.len()], values.to_vec()));
    }
    if let Some(attribute) = node.attribute("value_floats") {
        return Ok(Array::new(vec![attribute.head.floats.len()], attribute.head.floats.clone()));
    }
    let names: Vec<&str> = node.attributes.iter().map(|a| a.head.name.as_str()).collect();
    bail!(Unsupported, "expected a value of numbers, found {names:?}")
}

/// Takes away the nodes whose values nothing reads, deep inside too.
fn remove_unread(scope: &mut Scope) {
    let mut read: HashSet<ValueId> = scope.outputs.iter().copied().collect();
    let mut kept = Vec::with_capacity(scope.nodes.len());
    while let Some(mut node) = scope.nodes.pop() {
        let is_read = node.outputs.iter().flatten().any(|id| read.contains(id));
        if is_read {
            for (_, inner) in &mut node.scopes {
                remove_unread(inner);
            }
            node.each_read(&mut |id| {
                read.insert(id);
            });
            kept.push(node);
        }
    }
    kept.reverse();
    scope.nodes = kept;
}
