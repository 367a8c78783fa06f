//! Nodes of f32 arithmetic that run together on [rten](https://docs.rs/rten).
//!
//! In:  nodes that [`takes`] holds for, in an order in which they can run.
//! Out: [`Segment`]: their results, or an error that names a node.
//! rten computes f32, int32, int8 and uint8, and takes int64 and bool for int32 and double for float; so only nodes of
//! floats come here, with every other operand a constant. Shapes are worked out before a run (`shapes.rs`). What rten
//! does not load, or has another idea of, runs on the host's operators, which give the same to rounding.
//! 16-bit floats are computed as f32 here, and rounded where a value leaves the segment.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use prost::Message as _;
use rten::{Model, ModelOptions, NodeId, Value as RtenValue, ValueOrView, ValueView};
use rten_tensor::Layout as _;

use super::element::ElementType;
use super::graph::{Node, ValueId, Values};
use super::host::{self, Call, Limits};
#[cfg(feature = "cpu")]
use super::packed::Packed;
use super::proto::{NodeProto, OperatorSetIdProto, TensorHead, TensorTypeProto, TypeProto, ValueInfoProto, field};
use super::shapes::{self, Known};
use super::tensor::TensorData;
use super::value::{Array, Value};
use super::wire;
use crate::error::{Error, ErrorKind, Result, bail};

/// See the module.
pub(super) struct Segment {
    pub(super) nodes: Vec<Node>,
    /// What is read from outside and is no constant.
    pub(super) inputs: Vec<ValueId>,
    pub(super) outputs: Vec<ValueId>,
    /// `F32`, or the 16-bit float that an output is.
    output_types: Vec<ElementType>,
    constants: HashMap<ValueId, Array>,
    /// Or why the runtime does not take the nodes.
    fast: std::result::Result<Fast, String>,
    /// For each node its packed weights, for inputs that are too small for the runtime.
    #[cfg(feature = "cpu")]
    packed: Vec<Option<Packed>>,
    /// Shapes of the inputs that were found right last, and who may have them.
    checked: Mutex<Option<(Vec<Vec<usize>>, Suits)>>,
}

/// Elements of weights up to which products are packed here. Larger ones are of networks over images, where the runtime is
/// good.
#[cfg(feature = "cpu")]
const MOST_WEIGHTS: usize = 1 << 21;

/// Who is to compute inputs of some shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suits {
    Runtime,
    /// Packed products between few elements: done before a thread of the runtime has woken, or with better products.
    Packed,
    Host,
}

/// The nodes as a model of the runtime.
struct Fast {
    model: Model,
    inputs: Vec<Option<NodeId>>,
    outputs: Vec<NodeId>,
}

/// Whether the node only moves elements: not worth the runtime alone.
pub(super) fn only_moves(node: &Node) -> bool {
    matches!(node.op_type.as_str(), "Transpose" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Slice" | "Concat")
}

/// Whether the runtime computes the node as its text says.
pub(super) fn takes(node: &Node, values: &Values) -> bool {
    let floats = |mut indices: std::ops::Range<usize>| {
        indices.all(|i| {
            let element = node.input(i).and_then(|id| values.types.get(&id));
            element.is_some_and(|e| *e == ElementType::F32 || e.is_half())
        })
    };
    let constant = |index: usize| node.input(index).and_then(|id| values.constant(id));
    // An operand that is absent or a constant.
    let fixed = |index: usize| node.input(index).is_none() || constant(index).is_some();
    let attribute = |name: &str| node.has(name);
    let count = node.inputs.len();
    if !node.domain.is_empty() || host::check(node).is_err() || node.outputs.len() != 1 || node.input(0).is_none() {
        return false;
    }
    let since = |version: i64| node.version >= version;
    let all = floats(0..count);
    match node.op_type.as_str() {
        "Abs" | "Neg" | "Exp" | "Log" | "Sqrt" | "Reciprocal" | "Sigmoid" | "Tanh" | "Erf" | "Relu" | "Sin" | "Cos"
        | "Softplus" | "Floor" | "Ceil" | "HardSwish" => all && !attribute("consumed_inputs"),
        "LeakyRelu" | "Elu" | "HardSigmoid" => all && !attribute("consumed_inputs"),
        "Gelu" => all,
        "Clip" => all && since(11) && fixed(1) && fixed(2),
        "Softmax" | "LogSoftmax" => all && since(13),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" => all && since(7) && count == 2,
        "MatMul" => all && (0..2).all(|i| constant(i).is_none_or(|c| c.rank() >= 2)),
        "Gemm" => all && since(7) && constant(2).is_none_or(|c| c.rank() <= 2),
        "Conv" => {
            let Some(w) = constant(1) else { return false };
            let static_pads = match node.text("auto_pad") {
                Ok(None | Some("NOTSET" | "VALID")) => true,
                Ok(Some("SAME_UPPER" | "SAME_LOWER")) => !attribute("strides") || strides_are_one(node),
                _ => false,
            };
            all && matches!(w.rank(), 3 | 4) && static_pads && pads_are_whole(node)
        }
        "ConvTranspose" => {
            let plain = matches!(node.text("auto_pad"), Ok(None | Some("NOTSET"))) && !attribute("output_shape");
            let dilated = node.ints("dilations").ok().flatten().is_some_and(|d| d.iter().any(|n| *n != 1));
            all && constant(1).is_some_and(|w| matches!(w.rank(), 3 | 4)) && plain && !dilated
        }
        "MaxPool" | "AveragePool" => {
            let plain = matches!(node.text("auto_pad"), Ok(None | Some("NOTSET" | "VALID")))
                && !attribute("storage_order")
                && !node.flag("ceil_mode", false).unwrap_or(true)
                && node.ints("dilations").is_ok_and(|d| d.unwrap_or_default().iter().all(|n| *n == 1));
            let rank = node.ints("kernel_shape").ok().flatten().map_or(0, <[i64]>::len);
            all && plain && matches!(rank, 1 | 2) && pads_are_whole(node)
        }
        "GlobalAveragePool" | "GlobalMaxPool" => all,
        "BatchNormalization" => {
            all && since(9) && count == 5 && !node.flag("training_mode", false).unwrap_or(true) && (1..5).all(fixed)
        }
        "InstanceNormalization" => all && since(6) && count == 3,
        "LayerNormalization" => all && node.int("stash_type").is_ok_and(|s| s.unwrap_or(1) == 1),
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceL2" => {
            floats(0..1) && fixed(1) && !attribute("noop_with_empty_axes")
        }
        "Transpose" => all,
        "Flatten" => all,
        "Reshape" => {
            floats(0..1) && since(5) && constant(1).is_some() && !node.flag("allowzero", false).unwrap_or(true)
        }
        "Squeeze" | "Unsqueeze" | "Slice" => floats(0..1) && (1..count).all(fixed),
        "Concat" => all && since(4),
        _ => false,
    }
}

/// Whether the host takes long for an element of the node's result.
fn is_costly(node: &Node) -> bool {
    let cheap = matches!(
        node.op_type.as_str(),
        "Add" | "Sub" | "Mul" | "Div" | "Relu" | "Abs" | "Neg" | "Clip" | "LeakyRelu" | "Conv" | "MatMul" | "Gemm"
    );
    !cheap && !only_moves(node)
}

fn strides_are_one(node: &Node) -> bool {
    node.ints("strides").ok().flatten().is_some_and(|s| s.iter().all(|n| *n == 1))
}

fn pads_are_whole(node: &Node) -> bool {
    node.ints("pads").is_ok_and(|pads| pads.unwrap_or_default().iter().all(|p| *p >= 0))
}

impl Segment {
    /// Puts nodes together; `outputs` are what is read of them outside.
    pub(super) fn new(nodes: Vec<Node>, outputs: Vec<ValueId>, values: &Values) -> Self {
        let made: HashSet<ValueId> = nodes.iter().flat_map(|n| n.outputs.iter().flatten().copied()).collect();
        let mut inputs = BTreeSet::new();
        let mut constants = HashMap::new();
        for id in nodes.iter().flat_map(|n| n.inputs.iter().flatten()) {
            match values.constant(*id) {
                Some(array) => drop(constants.insert(*id, array.clone())),
                None if made.contains(id) => {}
                None => drop(inputs.insert(*id)),
            }
        }
        let output_types = outputs.iter().map(|id| values.types.get(id).copied().unwrap_or(ElementType::F32)).collect();
        let inputs: Vec<ValueId> = inputs.into_iter().collect();
        let fast = Fast::new(&nodes, &inputs, &outputs, &constants);
        #[cfg(feature = "cpu")]
        let packed = {
            let size: usize = constants.values().map(Array::len).sum();
            let worth = fast.is_ok() && size <= MOST_WEIGHTS;
            nodes.iter().map(|node| if worth { Packed::new(node, &constants) } else { None }).collect()
        };
        Self {
            nodes,
            inputs,
            outputs,
            output_types,
            constants,
            fast,
            #[cfg(feature = "cpu")]
            packed,
            checked: Mutex::new(None),
        }
    }

    /// Why the host's operators run it, rather than rten.
    pub(super) fn why_slow(&self) -> Option<&str> {
        self.fast.as_ref().err().map(String::as_str)
    }

    /// Evaluates the outputs.
    pub(super) fn run<'v>(&self, get: impl Fn(ValueId) -> Option<&'v Value>, limits: Limits) -> Result<Vec<Value>> {
        let mut given: Vec<&Array> = Vec::with_capacity(self.inputs.len());
        for &id in &self.inputs {
            match get(id) {
                Some(value) => given.push(value.array("input")?),
                None => bail!(InvalidFile, "a value that nothing makes is read"),
            }
        }
        let suits = self.check(&given, limits)?;
        // What the runtime refuses, the host's operators compute, or refuse with a better word.
        match &self.fast {
            Ok(fast) if suits == Suits::Runtime => {
                self.run_fast(fast, &given).or_else(|_| self.run_on_host(&given, limits))
            }
            Ok(_) if suits == Suits::Packed => self.run_packed(&given, limits),
            _ => self.run_on_host(&given, limits),
        }
    }

    /// Works out all shapes, and who is to compute them.
    fn check(&self, given: &[&Array], limits: Limits) -> Result<Suits> {
        let shapes: Vec<Vec<usize>> = given.iter().map(|a| a.shape.clone()).collect();
        let mut checked = self.checked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((known, suits)) = &*checked
            && *known == shapes
        {
            return Ok(*suits);
        }
        let mut known: HashMap<ValueId, Vec<usize>> = self.inputs.iter().copied().zip(shapes.iter().cloned()).collect();
        let mut suits = true;
        let (mut work, mut elements, mut costly) = (0.0, 0usize, 0usize);
        for node in &self.nodes {
            let shape = |id: &Option<ValueId>| {
                let id = (*id)?;
                self.constants.get(&id).map(|a| &a.shape[..]).or_else(|| known.get(&id).map(Vec::as_slice))
            };
            let inputs = Known {
                shapes: node.inputs.iter().map(shape).collect(),
                constants: node.inputs.iter().map(|id| self.constants.get(&(*id)?)).collect(),
            };
            // rten leaves an axis of 1 where numpy takes a vector's away, and has no opinion on empty tensors.
            suits &= !node.is("MatMul") || inputs.shapes.iter().flatten().all(|s| s.len() >= 2);
            suits &= inputs.shapes.iter().flatten().all(|s| !s.contains(&0));
            let made = shapes::made(node, &inputs, limits).map_err(|e| e.context(node.label()))?;
            work += made.multiply_adds;
            limits.work(work).map_err(|e| e.context(node.label()))?;
            let made_here = made.shapes.iter().map(|s| s.iter().product::<usize>()).sum::<usize>();
            elements += made_here;
            let exponent = node.input(1).and_then(|id| self.constants.get(&id)?.of::<f32>()?.first());
            let is_square = node.is("Pow") && exponent == Some(&2.0);
            costly += if is_costly(node) && !is_square { made_here } else { 0 };
            for (id, shape) in node.outputs.iter().zip(made.shapes) {
                if let Some(id) = *id {
                    known.insert(id, shape);
                }
            }
        }
        let suits = match suits {
            false => Suits::Host,
            true if self.suits_packed(elements, costly) => Suits::Packed,
            true => Suits::Runtime,
        };
        *checked = Some((shapes, suits));
        Ok(suits)
    }

    /// Whether packed products and the host's operators are better than the runtime: every product is packed, and the
    /// rest is few elements, fewer of them functions that the host computes as f64.
    #[cfg(feature = "cpu")]
    fn suits_packed(&self, elements: usize, costly: usize) -> bool {
        const MOST_ELEMENTS: usize = 1 << 22;
        const MOST_COSTLY: usize = 1 << 18;
        let product = |node: &Node| matches!(node.op_type.as_str(), "Conv" | "ConvTranspose" | "MatMul" | "Gemm");
        let mut pairs = self.nodes.iter().zip(&self.packed);
        pairs.all(|(node, packed)| packed.is_some() || !product(node))
            && elements <= MOST_ELEMENTS
            && costly <= MOST_COSTLY
    }

    #[cfg(not(feature = "cpu"))]
    fn suits_packed(&self, _: usize, _: usize) -> bool {
        false
    }

    /// With packed products, and the host's operators for the rest.
    fn run_packed(&self, given: &[&Array], limits: Limits) -> Result<Vec<Value>> {
        #[cfg(feature = "cpu")]
        let packed = |index: usize, node: &Node, inputs: &[Option<&Value>]| match (&self.packed[index], inputs) {
            (Some(packed), [Some(Value::Array(x)), ..]) if x.of::<f32>().is_some() => Some(packed.run(node, x)),
            _ => None,
        };
        #[cfg(not(feature = "cpu"))]
        let packed = |_: usize, _: &Node, _: &[Option<&Value>]| None::<Result<Array>>;
        self.run_nodes(given, limits, packed)
    }

    fn run_fast(&self, fast: &Fast, given: &[&Array]) -> Result<Vec<Value>> {
        let mut inputs: Vec<(NodeId, ValueOrView<'_>)> = Vec::with_capacity(given.len());
        for (id, array) in fast.inputs.iter().zip(given) {
            // An input that the runtime has no use for was left out by it.
            if let Some(id) = id {
                inputs.push((*id, to_runtime(array)?));
            }
        }
        let values = contained("evaluating", || fast.model.run(inputs, &fast.outputs, None))
            .and_then(|r| r.map_err(|e| Error::new(ErrorKind::InvalidInput, e.to_string())))?;
        values.into_iter().zip(&self.output_types).map(|(value, &element)| from_runtime(value, element)).collect()
    }

    fn run_on_host(&self, given: &[&Array], limits: Limits) -> Result<Vec<Value>> {
        self.run_nodes(given, limits, |_, _, _| None)
    }

    /// Node after node on the host's operators, but for those that `instead` computes.
    fn run_nodes(
        &self,
        given: &[&Array],
        limits: Limits,
        instead: impl Fn(usize, &Node, &[Option<&Value>]) -> Option<Result<Array>>,
    ) -> Result<Vec<Value>> {
        let mut known: HashMap<ValueId, Value> = self.constants.iter().map(|(&id, a)| (id, a.clone().into())).collect();
        known.extend(self.inputs.iter().copied().zip(given.iter().map(|&a| a.clone().into())));
        for (index, node) in self.nodes.iter().enumerate() {
            let inputs: Vec<Option<&Value>> = node.inputs.iter().map(|id| known.get(&(*id)?)).collect();
            let outputs = match instead(index, node, &inputs) {
                Some(made) => made.map(|array| vec![array.into()]),
                None => host::run(&Call { node, inputs: &inputs, limits }),
            }
            .map_err(|e| e.context(node.label()))?;
            let named = node.outputs.iter().zip(outputs).filter_map(|(id, value)| Some(((*id)?, value)));
            known.extend(named.collect::<Vec<_>>());
        }
        let output = |id: &ValueId| match known.get(id) {
            Some(value) => Ok(value.clone()),
            None => bail!(InvalidFile, "a value that nothing makes is read"),
        };
        self.outputs.iter().map(output).collect()
    }
}

impl Fast {
    /// An error if the runtime does not load the nodes.
    fn new(
        nodes: &[Node],
        inputs: &[ValueId],
        outputs: &[ValueId],
        constants: &HashMap<ValueId, Array>,
    ) -> std::result::Result<Self, String> {
        let Some(bytes) = model_bytes(nodes, inputs, outputs, constants) else {
            return Err("an attribute or constant that it does not have".into());
        };
        // What the optimiser makes of a graph may lose an output by its name; then it is left out.
        Self::load(bytes.clone(), inputs, outputs, true).or_else(|_| Self::load(bytes, inputs, outputs, false))
    }

    fn load(
        bytes: Vec<u8>,
        inputs: &[ValueId],
        outputs: &[ValueId],
        optimized: bool,
    ) -> std::result::Result<Self, String> {
        let mut options = ModelOptions::with_all_ops();
        options.enable_optimization(optimized).prepack_weights(true);
        let loaded = contained("loading", || options.load(bytes)).map_err(|e| e.to_string())?;
        let model = loaded.map_err(|e| e.to_string())?;
        let named = |&id: &NodeId| Some((model.node_info(id)?.name()?.to_owned(), id));
        let of_inputs: HashMap<String, NodeId> = model.input_ids().iter().filter_map(named).collect();
        let of_outputs: HashMap<String, NodeId> = model.output_ids().iter().filter_map(named).collect();
        let inputs = inputs.iter().map(|id| of_inputs.get(&name(*id)).copied()).collect();
        let found: Option<Vec<NodeId>> = outputs.iter().map(|id| of_outputs.get(&name(*id)).copied()).collect();
        match found {
            Some(outputs) => Ok(Self { model, inputs, outputs }),
            None => Err("it lost an output".into()),
        }
    }
}

/// A value's name in the runtime's model.
fn name(id: ValueId) -> String {
    format!("v{id}")
}

/// The nodes as an ONNX model.
fn model_bytes(
    nodes: &[Node],
    inputs: &[ValueId],
    outputs: &[ValueId],
    constants: &HashMap<ValueId, Array>,
) -> Option<Vec<u8>> {
    let mut graph = Vec::new();
    for node in nodes {
        let node = explicit(node, constants)?;
        let names = |ids: &[Option<ValueId>]| ids.iter().map(|id| id.map_or(String::new(), name)).collect();
        let message = NodeProto {
            input: names(&node.inputs),
            output: names(&node.outputs),
            op_type: node.op_type.clone(),
            attribute: node.attributes.iter().map(|a| a.head.clone()).collect(),
            ..NodeProto::default()
        };
        wire::push(&mut graph, field::GRAPH_NODE, &message.encode_to_vec());
    }
    let mut sorted: Vec<(&ValueId, &Array)> = constants.iter().collect();
    sorted.sort_by_key(|(id, _)| **id);
    for (&id, array) in sorted {
        wire::push(&mut graph, field::GRAPH_INITIALIZER, &initializer(id, array)?);
    }
    for &id in inputs {
        let float = TensorTypeProto { elem_type: 1, shape: None };
        let info = ValueInfoProto { name: name(id), r#type: Some(TypeProto { tensor_type: Some(float) }) };
        wire::push(&mut graph, field::GRAPH_INPUT, &info.encode_to_vec());
    }
    for &id in outputs {
        let info = ValueInfoProto { name: name(id), r#type: None };
        wire::push(&mut graph, field::GRAPH_OUTPUT, &info.encode_to_vec());
    }
    let mut model = vec![(field::MODEL_IR_VERSION * 8) as u8, 8];
    let version = nodes.first()?.version;
    let import = OperatorSetIdProto { domain: String::new(), version };
    wire::push(&mut model, field::MODEL_OPSET, &import.encode_to_vec());
    wire::push(&mut model, field::MODEL_GRAPH, &graph);
    Some(model)
}

/// A constant as the runtime has it: floats as f32, integers as they are.
fn initializer(id: ValueId, array: &Array) -> Option<Vec<u8>> {
    const RAW_DATA: u64 = 9;
    let wide = host::to_f32(array);
    let array = wide.as_ref().unwrap_or(array);
    let (data_type, raw): (i32, Vec<u8>) = match &*array.data {
        TensorData::F32(v) => (1, bytemuck::cast_slice(v).to_vec()),
        TensorData::I64(v) => (7, bytemuck::cast_slice(v).to_vec()),
        TensorData::I32(v) => (6, bytemuck::cast_slice(v).to_vec()),
        _ => return None,
    };
    let dims = array.shape.iter().map(|&n| n as i64).collect();
    let head = TensorHead { dims, data_type, name: name(id), ..TensorHead::default() };
    let mut message = head.encode_to_vec();
    wire::push(&mut message, RAW_DATA, &raw);
    Some(message)
}

/// The node with every attribute that the runtime wants to be there.
fn explicit(node: &Node, constants: &HashMap<ValueId, Array>) -> Option<Node> {
    let mut node = node.clone();
    let axes = match node.op_type.as_str() {
        "Conv" | "ConvTranspose" => constants.get(&node.input(1)?)?.rank().checked_sub(2)?,
        "MaxPool" | "AveragePool" => node.ints("kernel_shape").ok()??.len(),
        _ => return Some(node),
    };
    let strides = node.ints("strides").ok()?.map_or(vec![1; axes], <[i64]>::to_vec);
    let dilations = node.ints("dilations").ok()?.map_or(vec![1; axes], <[i64]>::to_vec);
    let mut pads = node.ints("pads").ok()?.map_or(vec![0; 2 * axes], <[i64]>::to_vec);
    let auto = node.text("auto_pad").ok()?.unwrap_or("NOTSET").to_owned();
    if auto == "VALID" {
        pads = vec![0; 2 * axes];
    } else if auto.starts_with("SAME") {
        // With strides of one the padding does not depend on the input.
        let w = constants.get(&node.input(1)?)?;
        for axis in 0..axes {
            let total = (w.shape[axis + 2] as i64 - 1) * dilations[axis];
            let (small, large) = (total / 2, total - total / 2);
            let (before, after) = if auto == "SAME_UPPER" { (small, large) } else { (large, small) };
            (pads[axis], pads[axes + axis]) = (before, after);
        }
    }
    node.remove_attribute("auto_pad");
    node.set_ints("strides", strides);
    node.set_ints("pads", pads);
    if node.is("Conv") || node.is("ConvTranspose") {
        node.set_ints("dilations", dilations);
    } else {
        node.remove_attribute("dilations");
    }
    Some(node)
}

/// Runs a call into the runtime; a panic becomes an error, since the model is the caller's input.
fn contained<T>(what: &str, call: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        bail!(Unsupported, "the runtime failed while {what} ({})", message.unwrap_or("no message"))
    })
}

fn to_runtime(array: &Array) -> Result<ValueOrView<'_>> {
    let shape = &array.shape;
    let mismatch = |e: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidInput, e.to_string());
    if let Some(wide) = host::to_f32(array) {
        let TensorData::F32(values) = &*wide.data else { unreachable!("to_f32 gives f32") };
        let value = RtenValue::from_shape(shape, values.clone()).map_err(|e| mismatch(&e))?;
        return Ok(ValueOrView::Value(value));
    }
    match &*array.data {
        TensorData::F32(v) => Ok(ValueOrView::View(ValueView::from_shape(shape, &v[..]).map_err(|e| mismatch(&e))?)),
        other => bail!(InvalidInput, "expected float, found {}", other.type_name()),
    }
}

fn from_runtime(value: RtenValue, element: ElementType) -> Result<Value> {
    let RtenValue::FloatTensor(tensor) = value else {
        bail!(Unsupported, "the runtime made another type than float");
    };
    let array = Array::new(tensor.shape().to_vec(), tensor.into_data());
    Ok(if element.is_half() { host::narrowed(array.into(), element) } else { array.into() })
}
