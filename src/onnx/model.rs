//! A loaded model: the public face of this folder.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::element::ElementType;
use super::graph::{Graph, ValueId};
use super::host::Limits;
use super::import::import;
use super::lower::lower;
use super::node::OnnxCompat;
use super::recurrent::Recurrent;
use super::run::{Machine, Table};
use super::schedule::{Plan, Scheduler, Work};
use super::stored::ExternalFiles;
use super::tensor::{Tensor, ValueInfo};
use super::types;
use super::value::{Array, Value};
use crate::engine::{Engine, Lstm};
use crate::error::{Error, ErrorKind, Result, bail};
use crate::spec::LstmSpec;

/// How to read a model, and what its evaluation may take.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OnnxOptions {
    /// What to do where the operator's text and onnxruntime part.
    pub compat: OnnxCompat,
    /// The folder in which data outside the model file lies; [`OnnxModel::load_file`] takes the model's own.
    pub external_data: Option<PathBuf>,
    /// Elements of a tensor that a node around the recurrent ones may make; 2²⁸ unless set.
    pub max_elements: usize,
    /// Bytes of all tensors that are alive at a time, without weights; 8 GiB unless set.
    pub max_bytes: usize,
    /// Multiply-adds of the nodes between two recurrent ones; 10¹² unless set, a minute or so on a CPU.
    pub max_multiply_adds: f64,
    /// Iterations of all Loop and Scan nodes of a run together; 2²⁰ unless set.
    pub max_iterations: u64,
    /// Whether f32 arithmetic around the recurrent nodes runs on the fast runtime; without, every operator is computed
    /// one element after another in f64 where it is a float: slow, and what results are checked against.
    pub fast: bool,
}

impl Default for OnnxOptions {
    fn default() -> Self {
        Self {
            compat: OnnxCompat::default(),
            external_data: None,
            max_elements: 1 << 28,
            max_bytes: 8usize.saturating_mul(1 << 30),
            max_multiply_adds: 1e12,
            max_iterations: 1 << 20,
            fast: true,
        }
    }
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

    /// Sets the most elements of a tensor.
    #[must_use]
    pub fn max_elements(mut self, elements: usize) -> Self {
        self.max_elements = elements;
        self
    }

    /// Sets the most bytes of all tensors.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets the most multiply-adds between two recurrent nodes.
    #[must_use]
    pub fn max_multiply_adds(mut self, multiply_adds: f64) -> Self {
        self.max_multiply_adds = multiply_adds;
        self
    }

    /// Sets the most iterations of loops.
    #[must_use]
    pub fn max_iterations(mut self, iterations: u64) -> Self {
        self.max_iterations = iterations;
        self
    }

    /// Sets whether the fast runtime is used.
    #[must_use]
    pub fn fast(mut self, fast: bool) -> Self {
        self.fast = fast;
        self
    }

    fn limits(&self) -> Limits {
        Limits {
            max_elements: self.max_elements,
            max_bytes: self.max_bytes,
            max_multiply_adds: self.max_multiply_adds,
            max_iterations: self.max_iterations,
        }
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
    program: Arc<Program>,
    /// For inputs that have a constant in the model: the file, and the programs in which some of them are inputs.
    source: Option<(Vec<u8>, OnnxOptions)>,
    variants: Mutex<HashMap<BTreeSet<String>, Arc<Program>>>,
}

/// A graph ready to run.
struct Program {
    inputs: Vec<(ValueInfo, ValueId)>,
    optional_inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    plan: Plan,
    recurrent: Vec<Recurrent>,
    num_others: usize,
    num_values: usize,
    names: Vec<String>,
    constants: HashMap<ValueId, Value>,
    limits: Limits,
}

impl std::fmt::Debug for OnnxModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxModel")
            .field("inputs", &self.program.inputs)
            .field("outputs", &self.program.outputs)
            .field("recurrent", &self.program.recurrent.iter().map(|r| r.node.name()).collect::<Vec<_>>())
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
        let program = Program::load(engine, bytes, options, &BTreeSet::new()).await.map_err(one_line)?;
        let source = (!program.optional_inputs.is_empty()).then(|| (bytes.to_vec(), options.clone()));
        Ok(Self { engine: engine.clone(), program: Arc::new(program), source, variants: Mutex::default() })
    }

    /// [`OnnxModel::load`] of the file at `path`; data outside of it must lie in its folder.
    ///
    /// # Errors
    /// As [`OnnxModel::load`]; [`InvalidFile`](ErrorKind::InvalidFile) also if the file cannot be read.
    pub async fn load_file(engine: &Engine, path: impl AsRef<Path>, options: &OnnxOptions) -> Result<Self> {
        let path = path.as_ref();
        let named = |e: Error| e.context(path.display());
        let unreadable = |e: std::io::Error| named(Error::new(ErrorKind::InvalidFile, format!("cannot be read: {e}")));
        // What never ends is no file.
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        if !metadata.is_file() {
            let found = if metadata.is_dir() { "a directory" } else { "a device or pipe" };
            return Err(named(Error::new(ErrorKind::InvalidFile, format!("expected a file, found {found}"))));
        }
        let bytes = std::fs::read(path).map_err(unreadable)?;
        let mut options = options.clone();
        if options.external_data.is_none() {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            options.external_data = Some(folder.unwrap_or(Path::new(".")).to_owned());
        }
        Self::load(engine, &bytes, &options).await.map_err(named)
    }

    /// [`OnnxModel::load_file`], waiting for it.
    ///
    /// # Errors
    /// As [`OnnxModel::load_file`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load_file_blocking(engine: &Engine, path: impl AsRef<Path>, options: &OnnxOptions) -> Result<Self> {
        pollster::block_on(Self::load_file(engine, path, options))
    }

    /// What the graph takes.
    pub fn inputs(&self) -> Vec<ValueInfo> {
        self.program.inputs.iter().map(|(info, _)| info.clone()).collect()
    }

    /// What a run may give instead of the constants that the model has for it.
    pub fn optional_inputs(&self) -> &[ValueInfo] {
        &self.program.optional_inputs
    }

    /// What the graph returns.
    pub fn outputs(&self) -> &[ValueInfo] {
        &self.program.outputs
    }

    /// The recurrent nodes in the order in which they run, each with its spec, or `None` if its weights are computed
    /// in each run.
    pub fn recurrent_nodes(&self) -> impl Iterator<Item = (&str, Option<&LstmSpec>)> {
        self.program.recurrent.iter().map(|r| (r.node.name(), r.model.as_ref().map(Lstm::spec)))
    }

    /// The number of other nodes, which the CPU evaluates, without those whose values are constants.
    pub fn num_other_nodes(&self) -> usize {
        self.program.num_others
    }

    /// What a user should know: a graph without recurrent nodes runs wholly on the CPU.
    pub fn notice(&self) -> Option<&'static str> {
        self.program.recurrent.is_empty().then_some(
            "the graph has no LSTM, GRU or RNN node (unrolled or decomposed by its exporter?): all of it runs on the CPU \
             runtime, none of it on the engine's device",
        )
    }

    /// Every step of a run in order, one a line: where it runs, and which nodes it is.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        self.program.explain(&self.program.plan, 0, &mut text);
        text
    }

    /// Runs the model on tensors by the names of [`inputs`](Self::inputs) and, where wanted, of
    /// [`optional_inputs`](Self::optional_inputs); returns all [`outputs`](Self::outputs) in order.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if an input is missing, surplus, or of another type or shape than
    /// declared, or if shapes do not fit together inside; [`Unsupported`](ErrorKind::Unsupported) if a limit of
    /// [`OnnxOptions`] would be passed; as [`Lstm::run`], with the node.
    pub async fn run<N: AsRef<str>>(&self, inputs: &[(N, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        self.evaluate(inputs).await.map_err(one_line)
    }

    /// [`OnnxModel::run`], waiting for it.
    ///
    /// # Errors
    /// As [`OnnxModel::run`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn run_blocking<N: AsRef<str>>(&self, inputs: &[(N, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        pollster::block_on(self.run(inputs))
    }

    async fn evaluate<N: AsRef<str>>(&self, inputs: &[(N, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        let is_optional = |name: &str| self.program.optional_inputs.iter().any(|info| info.name == name);
        let given: BTreeSet<String> =
            inputs.iter().map(|(name, _)| name.as_ref()).filter(|name| is_optional(name)).map(str::to_owned).collect();
        let program = match &self.source {
            Some((bytes, options)) if !given.is_empty() => {
                let variants = || self.variants.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let known = variants().get(&given).cloned();
                match known {
                    Some(program) => program,
                    None => {
                        let program = Arc::new(Program::load(&self.engine, bytes, options, &given).await?);
                        variants().insert(given, program.clone());
                        program
                    }
                }
            }
            _ => self.program.clone(),
        };
        program.run(&self.engine, inputs).await
    }
}

/// Names in a file may hold anything; a message is one line.
fn one_line(error: Error) -> Error {
    Error::new(error.kind(), error.to_string().replace(char::is_control, " "))
}

impl Program {
    async fn load(engine: &Engine, bytes: &[u8], options: &OnnxOptions, given: &BTreeSet<String>) -> Result<Self> {
        let files = ExternalFiles::new(options.external_data.clone());
        let limits = options.limits();
        let mut graph = import(bytes, &files, given)?;
        for (what, info) in
            graph.inputs.iter().map(|(i, _)| ("input", i)).chain(graph.outputs.iter().map(|o| ("output", o)))
        {
            if info.element_type().is_none() && !info.type_name.is_empty() {
                bail!(Unsupported, "{what} {}: type {} is not computed", info.name, info.type_name);
            }
        }
        lower(&mut graph, limits)?;
        types::infer(&graph.scope, &mut graph.values);
        let num_nodes = graph.scope.num_nodes();
        let Graph { mut inputs, optional_inputs, outputs, scope, values } = graph;
        let mut scheduler =
            Scheduler { values: &values, compat: options.compat, fast: options.fast, recurrent: Vec::new() };
        let plan = scheduler.plan(scope)?;
        let mut recurrent = scheduler.recurrent;
        for at in 0..recurrent.len() {
            let (before, node) = recurrent.split_at_mut(at);
            let node = &mut node[0];
            // One cell may stand in a graph many times.
            node.model = match before.iter().find(|other| other.model.is_some() && node.is_twin(other)) {
                Some(twin) => twin.model.clone(),
                None => match node.constant_weights(&values.constants)? {
                    Some(weights) => Some(engine.load(&weights).await.map_err(|e| e.context(node.node.name()))?),
                    None => None,
                },
            };
        }
        let num_others = num_nodes - recurrent.len();
        inputs.extend(optional_inputs.iter().filter(|(info, _)| given.contains(&info.name)).cloned());
        let mut constants = values.constants;
        let read = plan.read(&recurrent);
        constants.retain(|id, _| read.contains(id));
        Ok(Self {
            inputs,
            optional_inputs: optional_inputs.into_iter().map(|(info, _)| info).collect(),
            outputs,
            plan,
            recurrent,
            num_others,
            num_values: values.names.len(),
            names: values.names,
            constants,
            limits,
        })
    }

    async fn run<N: AsRef<str>>(&self, engine: &Engine, inputs: &[(N, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        let mut table = Table::new(self.num_values);
        let mut given = HashSet::new();
        let list = || self.inputs.iter().map(|(info, _)| info.to_string()).collect::<Vec<_>>().join("; ");
        for (name, tensor) in inputs {
            let Some((info, id)) = self.inputs.iter().find(|(info, _)| info.name == name.as_ref()) else {
                bail!(InvalidInput, "input {:?}: the graph has no such input; it takes {}", name.as_ref(), list());
            };
            let array = Array::from(info.check(tensor)?);
            if !given.insert(*id) {
                bail!(InvalidInput, "input {:?}: given twice", info.name);
            }
            table.set(*id, array.into(), self.limits)?;
        }
        if let Some((info, _)) = self.inputs.iter().find(|(_, id)| !given.contains(id)) {
            bail!(InvalidInput, "input {:?}: missing; the graph takes {}", info.name, list());
        }
        let machine = Machine { engine, recurrent: &self.recurrent, constants: &self.constants, limits: self.limits };
        machine.run(&self.plan, &mut table).await?;
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for (info, &id) in self.outputs.iter().zip(&self.plan.outputs) {
            let named = |e: Error| e.context(format!("graph output {:?}", info.name));
            let value = machine.read(&table, id).map_err(named)?;
            outputs.push((info, value.array("output").map_err(named)?.clone()));
        }
        drop(table);
        let declared = |(info, array): (&ValueInfo, Array)| {
            let found = array.element_type();
            if info.element_type().is_some_and(|element| element != found) {
                bail!(
                    InvalidFile,
                    "graph output {:?}: expected type {}, as declared, found {}",
                    info.name,
                    info.type_name,
                    found.name()
                );
            }
            Ok((info.name.clone(), array.into_tensor()))
        };
        outputs.into_iter().map(declared).collect()
    }

    fn explain(&self, plan: &Plan, depth: usize, text: &mut String) {
        let indent = "  ".repeat(depth);
        for step in &plan.steps {
            // Writing to a string cannot fail.
            let _ = match &step.work {
                Work::Host(node) => writeln!(text, "{indent}host: {}", node.label()),
                Work::Segment(segment) => {
                    let place = match segment.why_slow() {
                        None => "CPU runtime".to_owned(),
                        Some(why) => format!("host, since the CPU runtime refuses ({why})"),
                    };
                    let labels: Vec<String> = segment.nodes.iter().map(|n| n.op_type.clone()).collect();
                    let outputs: Vec<&str> = segment.outputs.iter().map(|&id| self.names[id].as_str()).collect();
                    writeln!(text, "{indent}{place}: {} -> {}", labels.join(", "), outputs.join(", "))
                }
                Work::Recurrent(index) => {
                    let recurrent = &self.recurrent[*index];
                    let weights = if recurrent.model.is_some() { "" } else { ", weights computed in each run" };
                    writeln!(text, "{indent}engine: {}{weights}", recurrent.node.name())
                }
                Work::If(node, [otherwise, then]) => {
                    let _ = writeln!(text, "{indent}host: {}, then", node.label());
                    self.explain(then, depth + 1, text);
                    let _ = writeln!(text, "{indent}else");
                    self.explain(otherwise, depth + 1, text);
                    Ok(())
                }
                Work::Loop(node, body) | Work::Scan(node, body) => {
                    let _ = writeln!(text, "{indent}host: {}, in each iteration", node.label());
                    self.explain(body, depth + 1, text);
                    Ok(())
                }
            };
        }
    }
}

impl Plan {
    /// All values that a run reads; weights of recurrent nodes that are loaded are read no more.
    fn read(&self, recurrent: &[Recurrent]) -> HashSet<ValueId> {
        let mut read: HashSet<ValueId> = self.outputs.iter().copied().collect();
        for step in &self.steps {
            match &step.work {
                Work::Host(node) => read.extend(node.inputs.iter().flatten()),
                Work::Segment(_) => {}
                Work::Recurrent(index) => read.extend(recurrent[*index].run_inputs()),
                Work::If(node, branches) => {
                    read.extend(node.inputs.iter().flatten());
                    branches.iter().for_each(|plan| read.extend(plan.read(recurrent)));
                }
                Work::Loop(node, body) | Work::Scan(node, body) => {
                    read.extend(node.inputs.iter().flatten());
                    read.extend(body.read(recurrent));
                }
            }
        }
        read
    }
}

impl ValueInfo {
    /// The type of the elements, if it is one that is computed.
    pub(super) fn element_type(&self) -> Option<ElementType> {
        ElementType::named(self.type_name)
    }
}
