//! A plan is run: step after step, values in a table.
//!
//! Not here: what a step computes (`segment.rs`, `host/`, `recurrent.rs`).

use std::collections::HashMap;
use std::pin::Pin;

use super::graph::{Node, ValueId};
use super::host::{self, Call, Limits};
use super::recurrent::Recurrent;
use super::schedule::{Plan, Step, Work};
use super::value::{Array, Value};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result, bail};

/// What a run needs of a model.
pub(super) struct Machine<'m> {
    pub(super) engine: &'m Engine,
    pub(super) recurrent: &'m [Recurrent],
    pub(super) constants: &'m HashMap<ValueId, Value>,
    pub(super) limits: Limits,
}

/// The values of a run.
pub(super) struct Table {
    values: Vec<Option<Value>>,
    size_bytes: usize,
    iterations: u64,
}

impl Table {
    pub(super) fn new(num_values: usize) -> Self {
        Self { values: vec![None; num_values], size_bytes: 0, iterations: 0 }
    }

    fn drop_value(&mut self, id: ValueId) {
        if let Some(old) = self.values[id].take() {
            self.size_bytes -= old.size_bytes();
        }
    }

    pub(super) fn set(&mut self, id: ValueId, value: Value, limits: Limits) -> Result<()> {
        self.drop_value(id);
        self.size_bytes += value.size_bytes();
        self.values[id] = Some(value);
        if self.size_bytes > limits.max_bytes {
            bail!(
                Unsupported,
                "expected values of at most {} bytes at a time (OnnxOptions::max_bytes), found {}",
                limits.max_bytes,
                self.size_bytes
            );
        }
        Ok(())
    }
}

/// Futures of a run call each other, so they lie in a box.
#[cfg(not(target_arch = "wasm32"))]
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
#[cfg(target_arch = "wasm32")]
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

impl Machine<'_> {
    pub(super) fn get<'t>(&'t self, table: &'t Table, id: ValueId) -> Option<&'t Value> {
        table.values.get(id).and_then(Option::as_ref).or_else(|| self.constants.get(&id))
    }

    pub(super) fn read(&self, table: &Table, id: ValueId) -> Result<Value> {
        match self.get(table, id) {
            Some(value) => Ok(value.clone()),
            None => bail!(InvalidFile, "a value that nothing makes is read"),
        }
    }

    /// Runs a plan whose inputs are in the table.
    pub(super) fn run<'a>(&'a self, plan: &'a Plan, table: &'a mut Table) -> Boxed<'a, Result<()>> {
        Box::pin(async move {
            for step in &plan.steps {
                self.step(step, table).await?;
                step.dropped.iter().for_each(|&id| table.drop_value(id));
            }
            Ok(())
        })
    }

    async fn step(&self, step: &Step, table: &mut Table) -> Result<()> {
        match &step.work {
            Work::Host(node) => {
                let inputs: Vec<Option<&Value>> = node.inputs.iter().map(|id| self.get(table, (*id)?)).collect();
                let made = host::run(&Call { node, inputs: &inputs, limits: self.limits })
                    .and_then(|made| self.store(node, made, table));
                made.map_err(|e| e.context(node.label()))
            }
            Work::Segment(segment) => {
                let made = segment.run(|id| self.get(table, id), self.limits)?;
                for (&id, value) in segment.outputs.iter().zip(made) {
                    table.set(id, value, self.limits)?;
                }
                Ok(())
            }
            Work::Recurrent(index) => {
                let recurrent = &self.recurrent[*index];
                let made = recurrent.run(self.engine, |id| self.get(table, id)).await;
                for (id, value) in made.map_err(|e| e.context(recurrent.node.name()))? {
                    table.set(id, value, self.limits)?;
                }
                Ok(())
            }
            Work::If(node, branches) => {
                let condition = self.operand(node, 0, table)?;
                let truth = condition.truth("condition").map_err(|e| e.context(node.label()))?;
                let branch = &branches[usize::from(truth)];
                self.run(branch, table).await?;
                let made = branch.outputs.iter().map(|&id| self.read(table, id)).collect::<Result<Vec<_>>>();
                made.and_then(|made| self.store(node, made, table)).map_err(|e| e.context(node.label()))
            }
            Work::Loop(node, body) => self.repeat(node, body, table).await.map_err(|e| e.context(node.label())),
            Work::Scan(node, body) => self.scan(node, body, table).await.map_err(|e| e.context(node.label())),
        }
    }

    fn operand(&self, node: &Node, index: usize, table: &Table) -> Result<Array> {
        let value = node.input(index).and_then(|id| self.get(table, id));
        match value {
            Some(value) => value.array(&format!("input {index}")).cloned(),
            None => bail!(InvalidFile, "{}: input {index}: expected one, found none", node.label()),
        }
    }

    fn store(&self, node: &Node, made: Vec<Value>, table: &mut Table) -> Result<()> {
        if made.len() < node.outputs.len() {
            bail!(Unsupported, "expected at most {} outputs, found {}", made.len(), node.outputs.len());
        }
        for (id, value) in node.outputs.iter().zip(made) {
            if let Some(id) = *id {
                table.set(id, value, self.limits)?;
            }
        }
        Ok(())
    }

    fn count_iteration(&self, table: &mut Table) -> Result<()> {
        table.iterations += 1;
        if table.iterations > self.limits.max_iterations {
            bail!(
                Unsupported,
                "expected loops of at most {} iterations (OnnxOptions::max_iterations), found more",
                self.limits.max_iterations
            );
        }
        Ok(())
    }

    /// Source: [Loop](https://onnx.ai/onnx/operators/onnx__Loop.html).
    async fn repeat(&self, node: &Node, body: &Plan, table: &mut Table) -> Result<()> {
        let most = match node.input(0) {
            Some(_) => Some(self.operand(node, 0, table)?.integer("M")?),
            None => None,
        };
        let mut goes_on = match node.input(1) {
            Some(_) => self.operand(node, 1, table)?.truth("cond")?,
            None => true,
        };
        let mut carried = Vec::new();
        for id in node.inputs.iter().skip(2) {
            match id {
                Some(id) => carried.push(self.read(table, *id)?),
                None => bail!(InvalidFile, "expected every value that is carried, found one left out"),
            }
        }
        let count = carried.len();
        if body.inputs.len() != 2 + count || body.outputs.len() < 1 + count {
            bail!(
                InvalidFile,
                "body: expected {} inputs and at least {} outputs, found {} and {}",
                2 + count,
                1 + count,
                body.inputs.len(),
                body.outputs.len()
            );
        }
        let mut collected: Vec<Vec<Array>> = vec![Vec::new(); body.outputs.len() - 1 - count];
        let mut iteration = 0i64;
        while goes_on && most.is_none_or(|most| iteration < most) {
            self.count_iteration(table)?;
            table.set(body.inputs[0], Array::scalar(iteration).into(), self.limits)?;
            table.set(body.inputs[1], Array::scalar(true).into(), self.limits)?;
            for (&id, value) in body.inputs[2..].iter().zip(carried.drain(..)) {
                table.set(id, value, self.limits)?;
            }
            self.run(body, table).await?;
            goes_on = self.read(table, body.outputs[0])?.array("cond")?.truth("cond")?;
            for &id in &body.outputs[1..=count] {
                carried.push(self.read(table, id)?);
            }
            self.collect(&body.outputs[1 + count..], &mut collected, table)?;
            iteration += 1;
        }
        for (k, arrays) in collected.iter().enumerate() {
            // Outputs that nothing reads need no shape.
            match node.output(count + k) {
                Some(_) => carried.push(stacked(arrays, 0, false, self.limits)?.into()),
                None => carried.push(Array::new::<f32>(vec![0], Vec::new()).into()),
            }
        }
        forget(&collected, table);
        carried.truncate(node.outputs.len().max(1));
        self.store(node, carried, table)
    }

    fn collect(&self, ids: &[ValueId], collected: &mut [Vec<Array>], table: &mut Table) -> Result<()> {
        for (&id, arrays) in ids.iter().zip(collected) {
            let array = self.read(table, id)?.array("a scan output")?.clone();
            table.size_bytes = table.size_bytes.saturating_add(array.size_bytes());
            if table.size_bytes > self.limits.max_bytes {
                bail!(
                    Unsupported,
                    "expected values of at most {} bytes at a time (OnnxOptions::max_bytes), found more",
                    self.limits.max_bytes
                );
            }
            arrays.push(array);
        }
        Ok(())
    }

    /// Source: [Scan](https://onnx.ai/onnx/operators/onnx__Scan.html), version 9 and later.
    async fn scan(&self, node: &Node, body: &Plan, table: &mut Table) -> Result<()> {
        let num_scanned = match node.int("num_scan_inputs")?.map(usize::try_from) {
            Some(Ok(n)) if n > 0 && n <= node.inputs.len() => n,
            found => bail!(InvalidFile, "num_scan_inputs: expected 1 to {}, found {found:?}", node.inputs.len()),
        };
        let known = [
            "num_scan_inputs",
            "scan_input_axes",
            "scan_input_directions",
            "scan_output_axes",
            "scan_output_directions",
        ];
        if let Some(other) = node.attributes.iter().find(|a| !known.contains(&a.head.name.as_str())) {
            bail!(Unsupported, "attribute {}: not one that is known", other.head.name);
        }
        let count = node.inputs.len() - num_scanned;
        if body.inputs.len() != node.inputs.len() || body.outputs.len() < count {
            bail!(
                InvalidFile,
                "body: expected {} inputs and at least {count} outputs, found {} and {}",
                node.inputs.len(),
                body.inputs.len(),
                body.outputs.len()
            );
        }
        let num_collected = body.outputs.len() - count;
        let list = |name: &str, n: usize| -> Result<Vec<i64>> {
            match node.ints(name)? {
                None => Ok(vec![0; n]),
                Some(values) if values.len() == n => Ok(values.to_vec()),
                Some(found) => bail!(InvalidFile, "{name}: expected {n} numbers, found {}", found.len()),
            }
        };
        let (axes, directions) = (list("scan_input_axes", num_scanned)?, list("scan_input_directions", num_scanned)?);
        let (out_axes, out_directions) =
            (list("scan_output_axes", num_collected)?, list("scan_output_directions", num_collected)?);
        let mut carried = Vec::new();
        for index in 0..count {
            carried.push(Value::from(self.operand(node, index, table)?));
        }
        let mut scanned = Vec::new();
        let mut length = None;
        for (k, &axis) in axes.iter().enumerate() {
            let array = self.operand(node, count + k, table)?;
            let axis = host::axis_of(axis, array.rank())?;
            let size = array.shape[axis];
            if *length.get_or_insert(size) != size {
                bail!(InvalidInput, "expected one length of all that is scanned, found {length:?} and {size}");
            }
            scanned.push((array, axis));
        }
        let length = length.unwrap_or(0);
        let mut collected: Vec<Vec<Array>> = vec![Vec::new(); num_collected];
        for step in 0..length {
            self.count_iteration(table)?;
            for (&id, value) in body.inputs.iter().zip(carried.drain(..)) {
                table.set(id, value, self.limits)?;
            }
            for (k, (array, axis)) in scanned.iter().enumerate() {
                let at = if directions[k] == 0 { step } else { length - 1 - step };
                table.set(body.inputs[count + k], host::taken(array, *axis, at).into(), self.limits)?;
            }
            self.run(body, table).await?;
            for &id in &body.outputs[..count] {
                carried.push(self.read(table, id)?);
            }
            self.collect(&body.outputs[count..], &mut collected, table)?;
        }
        for (k, arrays) in collected.iter().enumerate() {
            match node.output(count + k) {
                Some(_) => carried.push(stacked(arrays, out_axes[k], out_directions[k] != 0, self.limits)?.into()),
                None => carried.push(Array::new::<f32>(vec![0], Vec::new()).into()),
            }
        }
        forget(&collected, table);
        carried.truncate(node.outputs.len().max(1));
        self.store(node, carried, table)
    }
}

/// What a loop collected is in its outputs now.
fn forget(collected: &[Vec<Array>], table: &mut Table) {
    let size_bytes: usize = collected.iter().flatten().map(Array::size_bytes).sum();
    table.size_bytes = table.size_bytes.saturating_sub(size_bytes);
}

/// Arrays along a new axis.
fn stacked(arrays: &[Array], axis: i64, reversed: bool, limits: Limits) -> Result<Array> {
    let Some(first) = arrays.first() else {
        bail!(Unsupported, "a loop without an iteration: the shape of what it collects is not known")
    };
    let axis = host::axis_of(axis, first.rank() + 1)?;
    let mut ordered: Vec<&Array> = arrays.iter().collect();
    if reversed {
        ordered.reverse();
    }
    host::stacked(&ordered, axis, limits).map_err(|e| Error::new(ErrorKind::InvalidInput, e.to_string()))
}
