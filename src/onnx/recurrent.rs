//! A recurrent node on the engine: its model, and the arrays of a run.
//!
//! Not here: what attributes and weights mean (`node.rs`).

use std::collections::HashMap;
use std::sync::Mutex;

use super::element::ElementType;
use super::graph::{Node, ValueId, Values};
use super::host;
use super::node::{OnnxCompat, Operator, RecurrentNode};
use super::proto::NodeProto;
use super::tensor::{Tensor, TensorData};
use super::value::{Array, Value};
use crate::batch::{Layout, Outputs, SequenceBatch, SequenceOutput};
use crate::engine::{Engine, Lstm};
use crate::error::{Result, bail};
use crate::spec::LstmSpec;
use crate::weights::LstmWeights;

/// A recurrent node and, if its weights are constants, its model.
pub(super) struct Recurrent {
    pub(super) node: RecurrentNode,
    inputs: Vec<Option<ValueId>>,
    outputs: Vec<Option<ValueId>>,
    pub(super) model: Option<Lstm>,
    /// The last model made of weights that are known at run time only, with those weights.
    made: Mutex<Option<(LstmWeights, Lstm)>>,
}

impl Recurrent {
    pub(super) fn new(node: &Node, operator: Operator, compat: OnnxCompat, values: &Values) -> Result<Self> {
        let names = |ids: &[Option<ValueId>]| {
            ids.iter().map(|id| id.map_or(String::new(), |id| values.names[id].clone())).collect()
        };
        let message = NodeProto {
            name: node.name.clone(),
            op_type: node.op_type.clone(),
            input: names(&node.inputs),
            output: names(&node.outputs),
            attribute: node.attributes.iter().map(|a| a.head.clone()).collect(),
            ..NodeProto::default()
        };
        let x = node.input(0).and_then(|id| values.types.get(&id));
        if x == Some(&ElementType::F64) {
            bail!(Unsupported, "X: type double is not computed; convert the model to float32 (float)");
        }
        Ok(Self {
            node: RecurrentNode::new(&message, operator, compat)?,
            inputs: node.inputs.clone(),
            outputs: node.outputs.clone(),
            model: None,
            made: Mutex::new(None),
        })
    }

    fn input(&self, index: usize) -> Option<ValueId> {
        self.inputs.get(index).copied().flatten()
    }

    /// Whether the same model serves both nodes.
    pub(super) fn is_twin(&self, other: &Self) -> bool {
        let same = RecurrentNode::WEIGHTS.into_iter().all(|i| self.input(i) == other.input(i));
        same && self.node.is_same_cell(&other.node)
    }

    /// The node's weights, if all of them are constants.
    pub(super) fn constant_weights(&self, constants: &HashMap<ValueId, Value>) -> Result<Option<LstmWeights>> {
        let is_known = |i: usize| self.input(i).is_none_or(|id| constants.contains_key(&id));
        if !RecurrentNode::WEIGHTS.into_iter().all(is_known) {
            return Ok(None);
        }
        self.weights(|id| constants.get(&id)).map(Some)
    }

    /// Values that a run of the node reads: without its weights once they are loaded.
    pub(super) fn run_inputs(&self) -> impl Iterator<Item = ValueId> {
        let is_read = |i: &usize| self.model.is_none() || !RecurrentNode::WEIGHTS.contains(i);
        (0..self.inputs.len()).filter(is_read).filter_map(|i| self.input(i))
    }

    fn weights<'v>(&self, get: impl Fn(ValueId) -> Option<&'v Value>) -> Result<LstmWeights> {
        let mut tensors: [Option<Tensor>; 4] = Default::default();
        for (tensor, index) in tensors.iter_mut().zip(RecurrentNode::WEIGHTS) {
            if let Some(value) = self.input(index).and_then(&get) {
                *tensor = Some(floats(value.array("weights")?, &format!("input {index}"))?);
            }
        }
        self.node.weights(tensors.each_ref().map(Option::as_ref))
    }

    /// The node's outputs that the graph names.
    pub(super) async fn run<'v>(
        &self,
        engine: &Engine,
        get: impl Fn(ValueId) -> Option<&'v Value>,
    ) -> Result<Vec<(ValueId, Value)>> {
        let node = &self.node;
        let operand = |index: usize| -> Result<Option<&'v Array>> {
            let Some(id) = self.input(index) else { return Ok(None) };
            match get(id) {
                Some(value) => Ok(Some(value.array(&format!("input {index}"))?)),
                None => bail!(InvalidFile, "input {index}: nothing makes it"),
            }
        };
        let model = match &self.model {
            Some(model) => model.clone(),
            None => self.make(engine, self.weights(&get)?).await?,
        };
        let Some(given) = operand(0)? else { bail!(InvalidFile, "inputs: expected X, found none") };
        // 16-bit floats are computed as f32, and what comes out is rounded to them.
        let half = given.element_type().is_half().then(|| given.element_type());
        let wide = |array: Option<&Array>| array.map(|a| host::to_f32(a).unwrap_or_else(|| a.clone()).into_tensor());
        let (wide_x, lengths) = (host::to_f32(given), operand(4)?.map(|a| a.clone().into_tensor()));
        let x = wide_x.as_ref().unwrap_or(given);
        let (h, c) = (wide(operand(5)?), wide(operand(6)?));
        let run = NodeRun::new(node, model.spec(), x, lengths.as_ref(), [h.as_ref(), c.as_ref()])?;
        let made = run.outputs(node, &model).await?;
        let named = made.into_iter().filter_map(|(index, tensor)| {
            let value = Value::from(Array::from(tensor));
            let value = half.map_or(value.clone(), |half| host::narrowed(value, half));
            Some((self.outputs.get(index).copied().flatten()?, value))
        });
        Ok(named.collect())
    }

    /// The model of weights that were computed in this run; that of the last run if they are the same.
    async fn make(&self, engine: &Engine, weights: LstmWeights) -> Result<Lstm> {
        let made = || self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((of, model)) = &*made()
            && *of == weights
        {
            return Ok(model.clone());
        }
        let model = engine.load(&weights).await?;
        *made() = Some((weights, model.clone()));
        Ok(model)
    }
}

/// Floats of any width as f32.
fn floats(array: &Array, name: &str) -> Result<Tensor> {
    let wide = host::to_f32(array);
    let array = wide.as_ref().unwrap_or(array);
    match &*array.data {
        TensorData::F64(values) => {
            if let Some(v) = values.iter().find(|v| v.is_finite() && !(**v as f32).is_finite()) {
                bail!(InvalidWeights, "{name}: expected values that f32 can hold, found {v:e}");
            }
            Tensor::floats(array.shape.clone(), values.iter().map(|&v| v as f32).collect())
        }
        TensorData::F32(_) => Ok(array.clone().into_tensor()),
        other => bail!(
            InvalidWeights,
            "{name}: expected type float, float16, bfloat16 or double, found {}",
            other.type_name()
        ),
    }
}

/// The arrays of one run of a node, in the engine's order of axes.
struct NodeRun<'a> {
    x: &'a [f32],
    shape: [usize; 3],
    seq_len: usize,
    batch_size: usize,
    lengths: Vec<usize>,
    /// [D, B, H]
    states: [Option<Vec<f32>>; 2],
    directions: usize,
    hidden_size: usize,
}

impl<'a> NodeRun<'a> {
    fn new(
        node: &RecurrentNode,
        spec: &LstmSpec,
        x: &'a Array,
        lengths: Option<&Tensor>,
        states: [Option<&Tensor>; 2],
    ) -> Result<Self> {
        let layer = spec.last_layer();
        let (directions, hidden_size) = (layer.num_directions(), layer.hidden_size);
        let axes = match node.layout {
            Layout::TimeMajor => "[seq_length, batch_size, input_size]",
            Layout::BatchMajor => "[batch_size, seq_length, input_size]",
        };
        let shape: [usize; 3] = match x.shape.as_slice() {
            &[a, b, input] if input == layer.input_size => [a, b, input],
            found => bail!(InvalidInput, "X: expected {axes} with input_size = {}, found {found:?}", layer.input_size),
        };
        let (seq_len, batch_size) = match node.layout {
            Layout::TimeMajor => (shape[0], shape[1]),
            Layout::BatchMajor => (shape[1], shape[0]),
        };
        let lengths = match lengths {
            None => vec![seq_len; batch_size],
            Some(tensor) => read_lengths(tensor, seq_len, batch_size)?,
        };
        let state = |name: &str, tensor: Option<&Tensor>| -> Result<Option<Vec<f32>>> {
            let Some(tensor) = tensor else { return Ok(None) };
            let expected = match node.layout {
                Layout::TimeMajor => [directions, batch_size, hidden_size],
                Layout::BatchMajor => [batch_size, directions, hidden_size],
            };
            if tensor.shape != expected {
                bail!(InvalidInput, "{name}: expected shape {expected:?}, found {:?}", tensor.shape);
            }
            let values = tensor.expect_floats(name)?;
            Ok(Some(match node.layout {
                Layout::TimeMajor => values.to_vec(),
                Layout::BatchMajor => swap_axes(values, batch_size, directions, hidden_size),
            }))
        };
        let states = [state("initial_h", states[0])?, state("initial_c", states[1])?];
        let Some(x) = x.of::<f32>() else {
            bail!(InvalidInput, "X: expected type float, found {}", x.element_type().name())
        };
        Ok(Self { x, shape, seq_len, batch_size, lengths, states, directions, hidden_size })
    }

    /// The outputs that the graph names, by position.
    async fn outputs(mut self, node: &RecurrentNode, model: &Lstm) -> Result<Vec<(usize, Tensor)>> {
        let [y, y_h, y_c] = [0, 1, 2].map(|index| node.output(index).map(|_| index));
        let outputs = Outputs {
            sequence: if y.is_some() { SequenceOutput::All } else { SequenceOutput::None },
            final_state: y_h.is_some() || y_c.is_some(),
            cells: false,
        };
        let states = std::mem::take(&mut self.states);
        let mut batch = SequenceBatch::new(self.x, self.shape, node.layout)?.lengths(&self.lengths)?.outputs(outputs);
        if let Some(h) = &states[0] {
            batch = batch.h_0(h);
        }
        if let Some(c) = &states[1] {
            batch = batch.c_0(c);
        }
        let result = model.run(&batch).await?;
        let (directions, hidden) = (self.directions, self.hidden_size);
        let mut made = Vec::new();
        if let (Some(index), Some(output)) = (y, result.output) {
            // The engine has the directions side by side in a row.
            let (shape, values) = match node.layout {
                Layout::TimeMajor => {
                    let mut values = Vec::with_capacity(output.len());
                    for rows in output.chunks_exact((self.batch_size * directions * hidden).max(1)) {
                        values.extend(swap_axes(rows, self.batch_size, directions, hidden));
                    }
                    (vec![self.seq_len, directions, self.batch_size, hidden], values)
                }
                Layout::BatchMajor => (vec![self.batch_size, self.seq_len, directions, hidden], output),
            };
            made.push((index, Tensor::floats(shape, values)?));
        }
        for (index, state) in [(y_h, result.h_n), (y_c, result.c_n)] {
            if let (Some(index), Some(state)) = (index, state) {
                made.push((index, self.state(node.layout, state)?));
            }
        }
        Ok(made)
    }

    /// A final state in the node's layout; zero for a sequence of length 0, as onnxruntime has it where the operator's
    /// text is silent.
    fn state(&self, layout: Layout, mut state: Vec<f32>) -> Result<Tensor> {
        let (directions, hidden) = (self.directions, self.hidden_size);
        for (row, values) in state.chunks_exact_mut(hidden).enumerate() {
            if self.lengths[row % self.batch_size] == 0 {
                values.fill(0.0);
            }
        }
        match layout {
            Layout::TimeMajor => Tensor::floats(vec![directions, self.batch_size, hidden], state),
            Layout::BatchMajor => {
                let values = swap_axes(&state, directions, self.batch_size, hidden);
                Tensor::floats(vec![self.batch_size, directions, hidden], values)
            }
        }
    }
}

/// [a, b, width] → [b, a, width]
fn swap_axes(values: &[f32], a: usize, b: usize, width: usize) -> Vec<f32> {
    let mut swapped = Vec::with_capacity(values.len());
    for j in 0..b {
        for i in 0..a {
            swapped.extend_from_slice(&values[(i * b + j) * width..][..width]);
        }
    }
    swapped
}

/// `sequence_lens`, int32 by the operator's text and int64 by some exporters.
fn read_lengths(tensor: &Tensor, seq_len: usize, batch_size: usize) -> Result<Vec<usize>> {
    if tensor.shape != [batch_size] {
        bail!(InvalidInput, "sequence_lens: expected [batch_size] = [{batch_size}], found shape {:?}", tensor.shape);
    }
    let wide: Vec<i64> = match &tensor.data {
        TensorData::I32(v) => v.iter().map(|&n| n.into()).collect(),
        TensorData::I64(v) => v.clone(),
        other => bail!(InvalidInput, "sequence_lens: expected type int32 or int64, found {}", other.type_name()),
    };
    let length = |(b, n): (usize, i64)| match usize::try_from(n) {
        Ok(length) if length <= seq_len => Ok(length),
        _ => bail!(InvalidInput, "sequence_lens[{b}]: expected 0 to seq_length {seq_len}, found {n}"),
    };
    wide.into_iter().enumerate().map(length).collect()
}
