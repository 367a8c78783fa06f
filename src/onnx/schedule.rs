//! A scope → steps in the order in which they run.
//!
//! In:  a lowered graph with its types.
//! Out: [`Plan`]: recurrent nodes for the engine, segments of f32 arithmetic, everything else on the host's operators,
//!      each with the values that nothing reads after it.
//! What can run without a recurrent node comes first, so that segments are as long as they can be.

use std::collections::{HashMap, HashSet};

use super::graph::{Node, Scope, ValueId, Values};
use super::host;
use super::node::{OnnxCompat, Operator};
use super::recurrent::Recurrent;
use super::segment::{self, Segment};
use crate::error::{Result, bail};

/// What a scope does.
pub(super) struct Plan {
    pub(super) inputs: Vec<ValueId>,
    pub(super) outputs: Vec<ValueId>,
    pub(super) steps: Vec<Step>,
}

pub(super) struct Step {
    pub(super) work: Work,
    /// Values of this scope that no later step reads.
    pub(super) dropped: Vec<ValueId>,
}

pub(super) enum Work {
    Host(Node),
    Segment(Box<Segment>),
    /// By its place in [`Scheduler::recurrent`].
    Recurrent(usize),
    /// The node without its graphs, and their plans.
    If(Node, [Plan; 2]),
    Loop(Node, Plan),
    Scan(Node, Plan),
}

/// Makes plans; keeps the recurrent nodes of all scopes.
pub(super) struct Scheduler<'a> {
    pub(super) values: &'a Values,
    pub(super) compat: OnnxCompat,
    /// Whether segments may run on the fast runtime.
    pub(super) fast: bool,
    pub(super) recurrent: Vec<Recurrent>,
}

impl Scheduler<'_> {
    pub(super) fn plan(&mut self, scope: Scope) -> Result<Plan> {
        let Scope { inputs, outputs, nodes } = scope;
        let own: HashSet<ValueId> = nodes.iter().flat_map(|n| n.outputs.iter().flatten().copied()).collect();
        let reads: Vec<Vec<ValueId>> = nodes.iter().map(|node| own_reads(node, &own)).collect();
        let groups = self.groups(&nodes, &reads);

        // Who reads a value last decides where it is dropped, and what a segment has to give.
        let mut group_of = vec![0; nodes.len()];
        for (g, group) in groups.iter().enumerate() {
            group.nodes.iter().for_each(|&i| group_of[i] = g);
        }
        let mut last_read: HashMap<ValueId, usize> = HashMap::new();
        let mut read_outside: HashSet<ValueId> = outputs.iter().copied().collect();
        let maker: HashMap<ValueId, usize> =
            nodes.iter().enumerate().flat_map(|(i, n)| n.outputs.iter().flatten().map(move |&id| (id, i))).collect();
        for (i, ids) in reads.iter().enumerate() {
            for &id in ids {
                let last = last_read.entry(id).or_insert(0);
                *last = (*last).max(group_of[i]);
                if maker.get(&id).is_some_and(|&m| group_of[m] != group_of[i]) {
                    read_outside.insert(id);
                }
            }
        }
        let mut slots: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
        let mut steps = Vec::with_capacity(groups.len());
        for (g, group) in groups.into_iter().enumerate() {
            let members: Vec<Node> = group.nodes.iter().filter_map(|&i| slots[i].take()).collect();
            let mut dropped: Vec<ValueId> =
                last_read.iter().filter(|(_, last)| **last == g).map(|(id, _)| *id).collect();
            dropped.retain(|id| !outputs.contains(id));
            dropped.sort_unstable();
            if group.is_segment {
                let made = members.iter().flat_map(|n| n.outputs.iter().flatten().copied());
                let wanted: Vec<ValueId> = made.filter(|id| read_outside.contains(id)).collect();
                steps.push(Step { work: Work::Segment(Box::new(Segment::new(members, wanted, self.values))), dropped });
                continue;
            }
            for node in members {
                let label = node.label();
                steps.push(Step {
                    work: self.work(node).map_err(|e| e.context(label))?,
                    dropped: std::mem::take(&mut dropped),
                });
            }
        }
        Ok(Plan { inputs, outputs, steps })
    }

    fn work(&mut self, mut node: Node) -> Result<Work> {
        if let Some(operator) = Operator::of(&node.op_type, &node.domain) {
            self.recurrent.push(Recurrent::new(&node, operator, self.compat, self.values)?);
            return Ok(Work::Recurrent(self.recurrent.len() - 1));
        }
        let mut scope = |name: &str, node: &mut Node| -> Result<Plan> {
            match node.scopes.iter().position(|(n, _)| n == name) {
                Some(at) => self.plan(node.scopes.swap_remove(at).1),
                None => bail!(InvalidFile, "{name}: expected a graph, found none"),
            }
        };
        if node.is("If") {
            let branches = [scope("else_branch", &mut node)?, scope("then_branch", &mut node)?];
            return Ok(Work::If(node, branches));
        }
        if node.is("Loop") {
            let body = scope("body", &mut node)?;
            return Ok(Work::Loop(node, body));
        }
        if node.is("Scan") {
            if node.version < 9 {
                bail!(Unsupported, "version {}: expected 9 or later, whose scans have no batch", node.version);
            }
            let body = scope("body", &mut node)?;
            return Ok(Work::Scan(node, body));
        }
        host::check(&node)?;
        Ok(Work::Host(node))
    }

    /// Which nodes run together, in order.
    fn groups(&self, nodes: &[Node], reads: &[Vec<ValueId>]) -> Vec<Group> {
        let mut made: HashSet<ValueId> = HashSet::new();
        let mut left: Vec<usize> = (0..nodes.len()).collect();
        let mut groups = Vec::new();
        let fast: Vec<bool> = nodes.iter().map(|n| self.fast && segment::takes(n, self.values)).collect();
        let slow = |i: usize| {
            let node = &nodes[i];
            Operator::of(&node.op_type, &node.domain).is_some() || !node.scopes.is_empty()
        };
        while !left.is_empty() {
            let before = left.len();
            // The host's operators first: they are cheap, and segments may wait for their sizes.
            left.retain(|&i| {
                let ready = !fast[i] && !slow(i) && reads[i].iter().all(|id| made.contains(id));
                if ready {
                    made.extend(nodes[i].outputs.iter().flatten());
                    groups.push(Group { nodes: vec![i], is_segment: false });
                }
                !ready
            });
            if left.len() < before {
                continue;
            }
            let mut segment: Vec<usize> = Vec::new();
            let mut version = None;
            left.retain(|&i| {
                let fits = *version.get_or_insert(nodes[i].version) == nodes[i].version;
                let ready = fast[i] && fits && reads[i].iter().all(|id| made.contains(id));
                if ready {
                    made.extend(nodes[i].outputs.iter().flatten());
                    segment.push(i);
                }
                !ready
            });
            if !segment.is_empty() {
                if segment.iter().all(|&i| segment::only_moves(&nodes[i])) {
                    groups.extend(segment.into_iter().map(|i| Group { nodes: vec![i], is_segment: false }));
                } else {
                    groups.push(Group { nodes: segment, is_segment: true });
                }
                continue;
            }
            left.retain(|&i| {
                let ready = slow(i) && reads[i].iter().all(|id| made.contains(id));
                if ready {
                    made.extend(nodes[i].outputs.iter().flatten());
                    groups.push(Group { nodes: vec![i], is_segment: false });
                }
                !ready
            });
            if left.len() == before {
                // Nodes are sorted, so the first one left is always ready.
                break;
            }
        }
        groups
    }
}

/// Nodes that run together, by number.
struct Group {
    nodes: Vec<usize>,
    is_segment: bool,
}

/// The values of its own scope that a node reads, deep inside too.
fn own_reads(node: &Node, own: &HashSet<ValueId>) -> Vec<ValueId> {
    let mut found = HashSet::new();
    node.each_read(&mut |id| {
        if own.contains(&id) {
            found.insert(id);
        }
    });
    found.into_iter().collect()
}
