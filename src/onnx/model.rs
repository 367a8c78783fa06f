//! A loaded model: stage after stage, the runtime around the recurrent nodes, then the nodes of the stage.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::graph::{Graph, SizeOperand};
use super::node::{OnnxCompat, RecurrentNode};
use super::rest::Rest;
use super::tensor::{ExternalFiles, Tensor, TensorData, ValueInfo};
use crate::batch::{Layout, Outputs, SequenceBatch, SequenceOutput};
use crate::engine::{Engine, Lstm};
use crate::error::{Error, ErrorKind, Result, bail};
use crate::spec::LstmSpec;
use crate::weights::LstmWeights;

/// How to read a model.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct OnnxOptions {
    /// What to do where the operator's text and onnxruntime part.
    pub compat: OnnxCompat,
    /// The folder in which data outside the model file lies; [`OnnxModel::load_file`] takes the model's own.
    pub external_data: Option<PathBuf>,
}

impl OnnxOptions {
    /// Sets the compatibility.
    #[must_use]
    pub fn compat(mut self, compat: OnnxCompat) -> Self {
        self.compat = compat;
        self
    }

    /// Sets the folder of external data.
    #[must_use]
    pub fn external_data(mut self, folder: impl Into<PathBuf>) -> Self {
        self.external_data = Some(folder.into());
        self
    }
}

/// An ONNX model on an engine.
///
/// ```no_run
/// use wgpu_lstm::onnx::{OnnxModel, OnnxOptions, Tensor};
/// use wgpu_lstm::{Engine, EngineOptions};
/// # async fn example() -> wgpu_lstm::Result<()> {
/// let engine = Engine::open(EngineOptions::default()).await?;
/// let model = OnnxModel::load_file(&engine, "model.onnx", &OnnxOptions::default()).await?;
/// let x = Tensor::floats(vec![5, 2, 40], vec![0.0; 400])?; // whatever the graph asks for
/// for (name, tensor) in model.run(&[("x", x)]).await? {
///     println!("{name}: {:?}", tensor.shape);
/// }
/// # Ok(())
/// # }
/// ```
pub struct OnnxModel {
    engine: Engine,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    nodes: Vec<Node>,
    num_others: usize,
    /// Values to evaluate at each stage.
    evaluated: Vec<Vec<String>>,
    /// Sizes that a run decides, in the order of the nodes that read them.
    sizes: Vec<SizeOperand>,
    /// Constant tensors that recurrent nodes read besides weights, and graph outputs that are constants.
    constants: HashMap<String, Tensor>,
    rest: Option<Rest>,
}

/// A recurrent node with its stage and, if its weights are constants, its model.
struct Node {
    stage: usize,
    node: RecurrentNode,
    model: Option<Lstm>,
    /// The last model made of weights that are known at run time only, with those weights.
    made: Mutex<Option<(LstmWeights, Lstm)>>,
}

impl std::fmt::Debug for OnnxModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxModel")
            .field("inputs", &self.inputs)
            .field("outputs", &self.outputs)
            .field("recurrent", &self.nodes.iter().map(|n| n.node.name()).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl OnnxModel {
    /// Reads a model and loads its recurrent nodes onto the engine.
    ///
    /// # Errors
    /// [`InvalidFile`](ErrorKind::InvalidFile) if the bytes are no complete ONNX model or disagree with themselves;
    /// [`Unsupported`](ErrorKind::Unsupported) with the node for an attribute, activation or operator that is not
    /// computed; [`InvalidWeights`](ErrorKind::InvalidWeights) with the node; as [`Engine::load`].
    pub async fn load(engine: &Engine, bytes: &[u8], options: &OnnxOptions) -> Result<Self> {
        Self::read(engine, bytes, options).await.map_err(one_line)
    }

    async fn read(engine: &Engine, bytes: &[u8], options: &OnnxOptions) -> Result<Self> {
        let files = ExternalFiles::new(options.external_data.clone());
        let graph = Graph::new(bytes, options.compat, &files)?;
        for (what, info) in graph.inputs.iter().map(|i| ("input", i)).chain(graph.outputs.iter().map(|o| ("output", o)))
        {
            if !["", "float", "int32", "int64", "int8", "uint8", "bool"].contains(&info.type_name) {
                bail!(
                    Unsupported,
                    "{what} {}: type {} is not computed; convert the model to float32 (float) where it has wider or \
                     narrower floats",
                    info.name,
                    info.type_name
                );
            }
        }
        let Graph { inputs, outputs, recurrent, num_others, evaluated, constants, initializers, reused, sizes, rest } =
            graph;
        let mut evaluated = evaluated;
        // Sizes that are constants first: loading may already compute with them.
        let is_constant = |size: &SizeOperand| initializers.contains_key(&size.name) || constants.contains(&size.name);
        let (constant_sizes, sizes): (Vec<_>, Vec<_>) = sizes.into_iter().partition(is_constant);
        let (stored, computed): (Vec<_>, Vec<_>) =
            constant_sizes.into_iter().partition(|size| initializers.contains_key(&size.name));
        for size in stored {
            check_sizes(&size, &constant(&initializers[&size.name], &files)?)?;
        }
        if let (Some(bytes), false) = (&rest, computed.is_empty()) {
            let plain = Rest::load(bytes.clone(), false)?;
            for size in computed {
                let found = plain.evaluate(std::iter::empty(), std::slice::from_ref(&size.name))?.remove(0);
                check_sizes(&size, &found)?;
            }
        }
        let rest = rest.map(|bytes| Rest::load(bytes, true)).transpose()?;

        // What recurrent nodes read of constants: initialisers, and values that follow from them.
        let mut known: HashMap<String, Tensor> = HashMap::new();
        let read_by_nodes = recurrent.iter().flat_map(|(_, node)| node.inputs.iter()).filter(|n| !n.is_empty());
        let of_first_stage: HashSet<&String> = evaluated[0].iter().collect();
        let direct_outputs = outputs.iter().map(|o| &o.name).filter(|name| initializers.contains_key(*name));
        for name in read_by_nodes.chain(direct_outputs) {
            if known.contains_key(name) {
                continue;
            }
            if let Some(tensor) = initializers.get(name) {
                known.insert(name.clone(), constant(tensor, &files)?);
            } else if let (true, Some(rest)) = (constants.contains(name), &rest)
                && of_first_stage.contains(name)
            {
                let value = rest.evaluate(std::iter::empty(), std::slice::from_ref(name))?.remove(0);
                known.insert(name.clone(), value);
            }
        }
        let mut nodes: Vec<Node> = Vec::with_capacity(recurrent.len());
        for (stage, node) in recurrent {
            let is_known = |index: usize| node.input(index).is_none_or(|name| known.contains_key(name));
            // One cell may stand in a graph many times.
            let twin = nodes.iter().find(|other| other.model.is_some() && node.has_weights_of(&other.node));
            let model = if let Some(twin) = twin {
                twin.model.clone()
            } else if RecurrentNode::WEIGHTS.into_iter().all(is_known) {
                let tensors = RecurrentNode::WEIGHTS.map(|index| node.input(index).map(|name| &known[name]));
                let weights = node.weights(tensors)?;
                Some(engine.load(&weights).await.map_err(|e| e.context(node.name()))?)
            } else {
                None
            };
            nodes.push(Node { stage, node, model, made: Mutex::new(None) });
        }
        // The weights of loaded nodes lie on the device now.
        let still_read: HashSet<String> = nodes
            .iter()
            .flat_map(|n| {
                let needs_weights = n.model.is_none();
                let inputs = n.node.inputs.iter().enumerate();
                inputs.filter(move |(i, _)| needs_weights || !RecurrentNode::WEIGHTS.contains(i)).map(|(_, name)| name)
            })
            .chain(outputs.iter().map(|o| &o.name))
            .cloned()
            .collect();
        evaluated[0].retain(|name| !known.contains_key(name) || still_read.contains(name) || reused.contains(name));
        known.retain(|name, _| still_read.contains(name));
        let engine = engine.clone();
        Ok(Self { engine, inputs, outputs, nodes, num_others, evaluated, sizes, constants: known, rest })
    }

    /// [`OnnxModel::load`] of the file at `path`; data outside of it must lie in its folder.
    ///
    /// # Errors
    /// As [`OnnxModel::load`]; [`InvalidFile`](ErrorKind::InvalidFile) also if the file cannot be read.
    pub async fn load_file(engine: &Engine, path: impl AsRef<Path>, options: &OnnxOptions) -> Result<Self> {
        let path = path.as_ref();
        let named = |e: Error| e.context(path.display());
        let bytes = std::fs::read(path)
            .map_err(|e| named(Error::new(ErrorKind::InvalidFile, format!("cannot be read: {e}"))))?;
        let mut options = options.clone();
        if options.external_data.is_none() {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            options.external_data = Some(folder.unwrap_or(Path::new(".")).to_owned());
        }
        Self::load(engine, &bytes, &options).await.map_err(named)
    }

    /// What the graph takes.
    pub fn inputs(&self) -> &[ValueInfo] {
        &self.inputs
    }

    /// What the graph returns.
    pub fn outputs(&self) -> &[ValueInfo] {
        &self.outputs
    }

    /// The recurrent nodes in the order in which they run, each with its spec, or `None` if its weights are computed
    /// in each run.
    pub fn recurrent_nodes(&self) -> impl Iterator<Item = (&str, Option<&LstmSpec>)> {
        self.nodes.iter().map(|n| (n.node.name(), n.model.as_ref().map(Lstm::spec)))
    }

    /// The number of other nodes, which the CPU runtime evaluates.
    pub fn num_other_nodes(&self) -> usize {
        self.num_others
    }

    /// What a user should know: a graph without recurrent nodes runs wholly on the CPU runtime.
    pub fn notice(&self) -> Option<&'static str> {
        self.nodes.is_empty().then_some(
            "the graph has no LSTM, GRU or RNN node (unrolled or decomposed by its exporter?): all of it runs on the CPU \
             runtime, none of it on the engine's device",
        )
    }

    /// Runs the model on tensors by the names of [`inputs`](Self::inputs); returns all
    /// [`outputs`](Self::outputs) in order.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if an input is missing, surplus, or of another type or shape than
    /// declared, or if shapes do not fit together inside; as [`Lstm::run`], with the node.
    pub async fn run<N: AsRef<str>>(&self, inputs: &[(N, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        self.evaluate(inputs).await.map_err(one_line)
    }

    async fn evaluate<N: AsRef<str>>(&self, inputs: &[(N, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        let mut values: HashMap<&str, Tensor> = self.check_inputs(inputs)?;
        let last_stage = self.evaluated.len();
        for stage in 0..last_stage {
            let missing: Vec<String> =
                self.evaluated[stage].iter().filter(|name| !self.constants.contains_key(*name)).cloned().collect();
            for size in self.sizes.iter().filter(|size| size.stage == stage) {
                let computed;
                let found = match (values.get(size.name.as_str()), &self.rest) {
                    (Some(known), _) => known,
                    (None, Some(rest)) => {
                        let constants = self.constants.iter().map(|(name, tensor)| (name.as_str(), tensor));
                        let known = values.iter().map(|(name, tensor)| (*name, tensor)).chain(constants);
                        computed = rest.evaluate(known, std::slice::from_ref(&size.name))?.remove(0);
                        &computed
                    }
                    (None, None) => continue,
                };
                check_sizes(size, found)?;
            }
            if let (Some(rest), false) = (&self.rest, missing.is_empty()) {
                let constants = self.constants.iter().map(|(name, tensor)| (name.as_str(), tensor));
                let known = values.iter().map(|(name, tensor)| (*name, tensor)).chain(constants);
                let found = rest.evaluate(known, &missing)?;
                let names = self.evaluated[stage].iter().filter(|name| !self.constants.contains_key(*name));
                values.extend(names.map(String::as_str).zip(found));
            }
            for node in self.nodes.iter().filter(|n| n.stage == stage) {
                let made = node.run(&self.engine, &values, &self.constants).await;
                for (name, tensor) in made.map_err(|e| e.context(node.node.name()))? {
                    values.insert(name, tensor);
                }
            }
        }
        let output = |info: &ValueInfo| match values.get(info.name.as_str()).or(self.constants.get(&info.name)) {
            Some(tensor) => Ok((info.name.clone(), declared(tensor.clone(), info.type_name))),
            None => bail!(InvalidFile, "graph output {:?}: nothing makes it", info.name),
        };
        self.outputs.iter().map(output).collect()
    }

    fn check_inputs<N: AsRef<str>>(&self, inputs: &[(N, Tensor)]) -> Result<HashMap<&str, Tensor>> {
        let list = || self.inputs.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let mut values: HashMap<&str, Tensor> = HashMap::new();
        for (name, tensor) in inputs {
            let Some(info) = self.inputs.iter().find(|info| info.name == name.as_ref()) else {
                bail!(InvalidInput, "input {:?}: the graph has no such input; it takes {}", name.as_ref(), list());
            };
            info.check(tensor)?;
            if values.insert(&info.name, tensor.clone()).is_some() {
                bail!(InvalidInput, "input {:?}: given twice", info.name);
            }
        }
        match self.inputs.iter().find(|info| !values.contains_key(info.name.as_str())) {
            Some(info) => bail!(InvalidInput, "input {:?}: missing; the graph takes {}", info.name, list()),
            None => Ok(values),
        }
    }
}

/// Names in a file may hold anything; a message is one line.
fn one_line(error: Error) -> Error {
    Error::new(error.kind(), error.to_string().replace(char::is_control, " "))
}

/// Refuses sizes that no tensor of a sensible model has, before the runtime takes memory for it: a failed allocation
/// would end the program.
fn check_sizes(size: &SizeOperand, tensor: &Tensor) -> Result<()> {
    const MOST_ELEMENTS: i64 = 1 << 28;
    let sizes: Vec<i64> = match &tensor.data {
        TensorData::I32(v) => v.iter().map(|&n| n.into()).collect(),
        TensorData::I64(v) => v.clone(),
        _ => return Ok(()),
    };
    let product = sizes.iter().try_fold(1i64, |n, &s| n.checked_mul(s.max(1)).filter(|n| *n <= MOST_ELEMENTS));
    match product {
        Some(_) => Ok(()),
        None => bail!(
            Unsupported,
            "{}: expected a tensor of at most {MOST_ELEMENTS} elements, found sizes {:?}",
            size.node,
            &sizes[..sizes.len().min(8)]
        ),
    }
}

/// An initialiser: floats of any width as f32, integers as they are stored.
fn constant(tensor: &super::tensor::StoredTensor<'_>, files: &ExternalFiles) -> Result<Tensor> {
    match tensor.head.data_type {
        2 | 3 | 6 | 7 | 9 => tensor.integers(files),
        _ => tensor.floats(files),
    }
}

/// The tensor as the graph declares its type.
fn declared(tensor: Tensor, type_name: &str) -> Tensor {
    let data = match (type_name, tensor.data) {
        ("int64", TensorData::I32(v)) => TensorData::I64(v.into_iter().map(i64::from).collect()),
        ("bool", TensorData::I32(v)) => TensorData::Bool(v.into_iter().map(|n| n != 0).collect()),
        (_, data) => data,
    };
    Tensor { data, ..tensor }
}

impl Node {
    /// The node's outputs that the graph names.
    async fn run<'a>(
        &'a self,
        engine: &Engine,
        values: &HashMap<&str, Tensor>,
        constants: &HashMap<String, Tensor>,
    ) -> Result<Vec<(&'a str, Tensor)>> {
        let node = &self.node;
        let get = |index: usize| -> Result<Option<&Tensor>> {
            let Some(name) = node.input(index) else { return Ok(None) };
            match values.get(name).or_else(|| constants.get(name)) {
                Some(tensor) => Ok(Some(tensor)),
                None => bail!(InvalidFile, "input {name:?}: nothing makes it"),
            }
        };
        let model = match &self.model {
            Some(model) => model.clone(),
            None => {
                let [w, r, b, p] = RecurrentNode::WEIGHTS.map(get);
                self.make(engine, node.weights([w?, r?, b?, p?])?).await?
            }
        };
        let x = get(0)?.expect("RecurrentNode::new: X is present");
        let run = NodeRun::new(node, model.spec(), x, get(4)?, [get(5)?, get(6)?])?;
        run.outputs(node, &model).await
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
        x: &'a Tensor,
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
        let x = x.expect_floats("X")?;
        Ok(Self { x, shape, seq_len, batch_size, lengths, states, directions, hidden_size })
    }

    async fn outputs<'n>(mut self, node: &'n RecurrentNode, model: &Lstm) -> Result<Vec<(&'n str, Tensor)>> {
        let [y, y_h, y_c] = [0, 1, 2].map(|index| node.output(index));
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
        if let (Some(name), Some(output)) = (y, result.output) {
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
            made.push((name, Tensor::floats(shape, values)?));
        }
        for (name, state) in [(y_h, result.h_n), (y_c, result.c_n)] {
            if let (Some(name), Some(state)) = (name, state) {
                made.push((name, self.state(node.layout, state)?));
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
