//! A recurrent node: its attributes, and its tensors in the engine's terms.
//!
//! In:  a `NodeProto` of LSTM, GRU or RNN; W, R, B and P.
//! Out: [`RecurrentNode`], and the weights of a model of one layer.
//! Orders: ONNX has the gates of an LSTM as i o f c, of a GRU as z r h, and peepholes as i o f; the engine has i f g o,
//! r z n and i f o.
//! Source: [LSTM](https://onnx.ai/onnx/operators/onnx__LSTM.html), [GRU](https://onnx.ai/onnx/operators/onnx__GRU.html),
//! [RNN](https://onnx.ai/onnx/operators/onnx__RNN.html).

use super::proto::{AttributeProto, NodeProto};
use super::tensor::Tensor;
use crate::activation::Activation;
use crate::batch::Layout;
use crate::cell::{CellSpec, GruActivations, GruCell, LstmActivations, LstmCell, RnnCell};
use crate::error::{Error, ErrorKind, Result, bail};
use crate::spec::{Direction, LayerSpec, LstmSpec};
use crate::weights::{CellWeights, LstmWeights};

/// What to do where the operator's text and onnxruntime part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnnxCompat {
    /// As the operator's text says.
    #[default]
    Operator,
    /// As onnxruntime's CPU kernels do: `clip` does not reach the activation h of an LSTM, and alpha and beta of
    /// Affine, ScaledTanh and ThresholdedRelu are 0 where the model gives none.
    Onnxruntime,
}

/// Which operator a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Lstm,
    Gru,
    Rnn,
}

impl Operator {
    pub(super) fn of(op_type: &str, domain: &str) -> Option<Self> {
        match (op_type, domain) {
            ("LSTM", "" | "ai.onnx") => Some(Operator::Lstm),
            ("GRU", "" | "ai.onnx") => Some(Operator::Gru),
            ("RNN", "" | "ai.onnx") => Some(Operator::Rnn),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Operator::Lstm => "LSTM",
            Operator::Gru => "GRU",
            Operator::Rnn => "RNN",
        }
    }

    /// For each gate in the engine's order, its place in ONNX's.
    fn gates(self) -> &'static [usize] {
        match self {
            Operator::Lstm => &[0, 2, 3, 1],
            Operator::Gru => &[1, 0, 2],
            Operator::Rnn => &[0],
        }
    }

    /// Names of the inputs, in order.
    fn inputs(self) -> &'static [&'static str] {
        match self {
            Operator::Lstm => &["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"],
            Operator::Gru | Operator::Rnn => &["X", "W", "R", "B", "sequence_lens", "initial_h"],
        }
    }

    fn outputs(self) -> &'static [&'static str] {
        match self {
            Operator::Lstm => &["Y", "Y_h", "Y_c"],
            Operator::Gru | Operator::Rnn => &["Y", "Y_h"],
        }
    }
}

/// A recurrent node of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct RecurrentNode {
    pub(super) name: String,
    pub(super) operator: Operator,
    /// Input names by position; empty where absent.
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
    pub(super) direction: Direction,
    pub(super) layout: Layout,
    hidden_size: Option<usize>,
    cell: CellSpec,
}

impl RecurrentNode {
    /// Reads a node's attributes.
    pub(super) fn new(node: &NodeProto, operator: Operator, compat: OnnxCompat) -> Result<Self> {
        let name = if node.name.is_empty() {
            let output = node.output.iter().find(|o| !o.is_empty()).map_or("", String::as_str);
            format!("{} that makes {output:?}", operator.name())
        } else {
            format!("{} {:?}", operator.name(), node.name)
        };
        Self::parse(node, operator, compat, name.clone()).map_err(|e| e.context(name))
    }

    fn parse(node: &NodeProto, operator: Operator, compat: OnnxCompat, name: String) -> Result<Self> {
        for (what, found, known) in
            [("inputs", node.input.len(), operator.inputs()), ("outputs", node.output.len(), operator.outputs())]
        {
            if found > known.len() {
                bail!(InvalidFile, "{what}: expected at most {} ({}), found {found}", known.len(), known.join(", "));
            }
        }
        for (i, required) in ["X", "W", "R"].iter().enumerate() {
            if node.input.get(i).is_none_or(String::is_empty) {
                bail!(InvalidFile, "inputs: expected {required}, found none");
            }
        }
        let attributes = Attributes::read(operator, &node.attribute)?;
        let direction = match attributes.direction.as_str() {
            "forward" => Direction::Forward,
            "reverse" => Direction::Reverse,
            "bidirectional" => Direction::Bidirectional,
            other => bail!(InvalidFile, "direction: expected forward, reverse or bidirectional, found {other:?}"),
        };
        let layout = match attributes.layout {
            0 => Layout::TimeMajor,
            1 => Layout::BatchMajor,
            other => bail!(InvalidFile, "layout: expected 0 or 1, found {other}"),
        };
        let cell = attributes.cell(operator, direction.num_directions(), compat)?;
        Ok(Self {
            name,
            operator,
            inputs: node.input.clone(),
            outputs: node.output.clone(),
            direction,
            layout,
            hidden_size: attributes.hidden_size,
            cell,
        })
    }

    /// `LSTM "encoder/lstm"`, or the operator and what it makes where the node has no name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of output `index`, if present.
    pub(super) fn output(&self, index: usize) -> Option<&str> {
        self.outputs.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Positions of the inputs that are weights: W, R, B and P.
    pub(super) const WEIGHTS: [usize; 4] = [1, 2, 3, 7];

    /// Whether weights that are the same make the same model of both nodes.
    pub(super) fn is_same_cell(&self, other: &Self) -> bool {
        self.operator == other.operator
            && (self.direction, self.hidden_size, self.cell) == (other.direction, other.hidden_size, other.cell)
    }

    /// The model of this node from W, R, B and P, each in ONNX's shape and order.
    pub(super) fn weights(&self, tensors: [Option<&Tensor>; 4]) -> Result<LstmWeights> {
        self.assemble(tensors).map_err(|e| e.context(&self.name))
    }

    fn assemble(&self, [w, r, b, p]: [Option<&Tensor>; 4]) -> Result<LstmWeights> {
        let (Some(w), Some(r)) = (w, r) else { bail!(InvalidWeights, "W and R: expected both, found one or none") };
        let gates = self.operator.gates();
        let directions = self.direction.num_directions();
        let three = |name: &str, tensor: &Tensor| match *tensor.shape {
            [d, rows, columns] if d == directions => Ok((rows, columns)),
            _ => bail!(
                InvalidWeights,
                "{name}: expected [num_directions, {}·hidden_size, ..] with num_directions = {directions}, found {:?}",
                gates.len(),
                tensor.shape
            ),
        };
        let (rows, hidden_size) = three("R", r)?;
        let (w_rows, input_size) = three("W", w)?;
        if let Some(wanted) = self.hidden_size
            && wanted != hidden_size
        {
            bail!(InvalidWeights, "hidden_size: expected that of R {:?} = {hidden_size}, found {wanted}", r.shape);
        }
        if rows == 0 || hidden_size.checked_mul(gates.len()) != Some(rows) || w_rows != rows {
            bail!(
                InvalidWeights,
                "W and R: expected {}·hidden_size rows of both, with hidden_size = {hidden_size} columns of R; found {:?} \
                 and {:?}",
                gates.len(),
                w.shape,
                r.shape
            );
        }
        for (name, tensor, expected) in
            [("B", b, vec![directions, 2 * rows]), ("P", p, vec![directions, 3 * hidden_size])]
        {
            if let Some(tensor) = tensor
                && tensor.shape != expected
            {
                bail!(InvalidWeights, "{name}: expected shape {expected:?}, found {:?}", tensor.shape);
            }
        }
        let mut layer = LayerSpec {
            cell: self.cell,
            direction: self.direction,
            bias: b.is_some(),
            ..LayerSpec::new(input_size, hidden_size)
        };
        if let CellSpec::Lstm(cell) = &mut layer.cell {
            cell.peepholes = p.is_some();
        }
        let [w, r] = [("W", w), ("R", r)].map(|(name, tensor)| tensor.expect_floats(name));
        let (w, r) = (w?, r?);
        let b = b.map(|b| b.expect_floats("B")).transpose()?;
        let p = p.map(|p| p.expect_floats("P")).transpose()?;
        let cells = (0..directions).map(|d| {
            // Blocks of H rows, each `columns` wide, in the engine's order.
            let blocks = |values: &[f32], start: usize, columns: usize, order: &[usize]| -> Vec<f32> {
                let size = hidden_size * columns;
                order.iter().flat_map(|&gate| values[start + gate * size..][..size].iter().copied()).collect()
            };
            CellWeights {
                weight_ih: blocks(w, d * rows * input_size, input_size, gates),
                weight_hh: blocks(r, d * rows * hidden_size, hidden_size, gates),
                bias_ih: b.map(|b| blocks(b, d * 2 * rows, 1, gates)),
                bias_hh: b.map(|b| blocks(b, (d * 2 + 1) * rows, 1, gates)),
                weight_peephole: p.map(|p| blocks(p, d * 3 * hidden_size, 1, &[0, 2, 1])),
                ..CellWeights::default()
            }
        });
        LstmWeights::new(LstmSpec::new(vec![layer])?, cells.collect())
    }
}

/// The attributes of a recurrent operator of any version.
struct Attributes {
    direction: String,
    layout: i64,
    hidden_size: Option<usize>,
    activations: Vec<String>,
    alpha: Vec<f32>,
    beta: Vec<f32>,
    clip: Option<f32>,
    input_forget: bool,
    linear_before_reset: bool,
}

impl Attributes {
    fn read(operator: Operator, list: &[AttributeProto]) -> Result<Self> {
        let mut read = Self {
            direction: "forward".into(),
            layout: 0,
            hidden_size: None,
            activations: Vec::new(),
            alpha: Vec::new(),
            beta: Vec::new(),
            clip: None,
            input_forget: false,
            linear_before_reset: false,
        };
        for (n, attribute) in list.iter().enumerate() {
            let name = attribute.name.as_str();
            if list[..n].iter().any(|other| other.name == name) {
                bail!(InvalidFile, "{name}: expected once, found twice");
            }
            if !attribute.ref_attr_name.is_empty() {
                bail!(Unsupported, "{name}: expected a value, found a reference to an attribute of a function");
            }
            let expect = |kind: i32, what: &str| if attribute.is(kind) { Ok(()) } else { Err(wrong_type(name, what)) };
            // A writer may leave out a number that is zero.
            let integer = || expect(AttributeProto::INT, "an integer").map(|()| attribute.i.unwrap_or(0));
            let floats = || expect(AttributeProto::FLOATS, "a list of floats").map(|()| attribute.floats.clone());
            let flag = || match integer()? {
                0 => Ok(false),
                1 => Ok(true),
                other => bail!(InvalidFile, "{name}: expected 0 or 1, found {other}"),
            };
            match (name, operator) {
                ("direction", _) => {
                    expect(AttributeProto::STRING, "a string")?;
                    let text = attribute.s.as_deref().unwrap_or_default();
                    read.direction = String::from_utf8_lossy(text).to_ascii_lowercase();
                }
                ("layout", _) => read.layout = integer()?,
                ("hidden_size", _) => match usize::try_from(integer()?) {
                    Ok(size) if size > 0 => read.hidden_size = Some(size),
                    _ => bail!(InvalidFile, "hidden_size: expected at least 1, found {}", integer()?),
                },
                ("activations", _) => {
                    expect(AttributeProto::STRINGS, "a list of strings")?;
                    read.activations =
                        attribute.strings.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect();
                }
                ("activation_alpha", _) => read.alpha = floats()?,
                ("activation_beta", _) => read.beta = floats()?,
                ("clip", _) => {
                    expect(AttributeProto::FLOAT, "a float")?;
                    read.clip = Some(attribute.f.unwrap_or(0.0));
                }
                ("input_forget", Operator::Lstm) => read.input_forget = flag()?,
                ("linear_before_reset", Operator::Gru) => read.linear_before_reset = flag()?,
                // Version 1 only: whether Y may be asked for. Whether it is, the outputs say.
                ("output_sequence", _) => drop(flag()?),
                _ => bail!(Unsupported, "attribute {name:?}: not one of {}", operator.name()),
            }
        }
        Ok(read)
    }

    /// The cell; whether it has peepholes is not known yet.
    fn cell(&self, operator: Operator, directions: usize, compat: OnnxCompat) -> Result<CellSpec> {
        let functions = self.functions(operator, directions, compat)?;
        let per_direction = functions.len() / directions;
        // A layer of one direction has the same in both places.
        let of = |d: usize| &functions[d.min(directions - 1) * per_direction..];
        let clip = self.clip;
        Ok(match operator {
            Operator::Lstm => CellSpec::Lstm(LstmCell {
                activations: [0, 1].map(|d| LstmActivations { f: of(d)[0], g: of(d)[1], h: of(d)[2] }),
                coupled_input_forget: self.input_forget,
                activation_clip: clip,
                clip_output_activation: compat == OnnxCompat::Operator,
                ..LstmCell::default()
            }),
            Operator::Gru => CellSpec::Gru(GruCell {
                activations: [0, 1].map(|d| GruActivations { f: of(d)[0], g: of(d)[1] }),
                linear_before_reset: self.linear_before_reset,
                activation_clip: clip,
            }),
            Operator::Rnn => CellSpec::Rnn(RnnCell { activations: [0, 1].map(|d| of(d)[0]), activation_clip: clip }),
        })
    }

    /// The functions of all directions, with their parameters: alpha and beta are taken in order by the functions that
    /// have them.
    fn functions(&self, operator: Operator, directions: usize, compat: OnnxCompat) -> Result<Vec<Activation>> {
        let defaults: &[&str] = match operator {
            Operator::Lstm => &["Sigmoid", "Tanh", "Tanh"],
            Operator::Gru => &["Sigmoid", "Tanh"],
            Operator::Rnn => &["Tanh"],
        };
        let expected = defaults.len() * directions;
        let names: Vec<&str> = if self.activations.is_empty() {
            defaults.iter().copied().cycle().take(expected).collect()
        } else {
            self.activations.iter().map(String::as_str).collect()
        };
        if names.len() != expected {
            bail!(
                InvalidFile,
                "activations: expected {} for each of {directions} directions, found {}: {}",
                defaults.len(),
                names.len(),
                names[..names.len().min(6)].join(", ")
            );
        }
        let (mut alpha, mut beta) = (self.alpha.iter().copied(), self.beta.iter().copied());
        let mut functions = Vec::with_capacity(expected);
        for name in names {
            let Some(function) = Activation::named(name) else {
                let known: Vec<&str> = Activation::ALL.iter().map(|f| f.name()).collect();
                bail!(Unsupported, "activation {name:?}: expected one of {}", known.join(", "));
            };
            let zero = match function {
                Activation::Affine { .. } | Activation::ScaledTanh { .. } | Activation::ThresholdedRelu { .. } => {
                    (compat == OnnxCompat::Onnxruntime).then_some(0.0)
                }
                _ => None,
            };
            let (has_alpha, has_beta) = function.parameters();
            let alpha = has_alpha.and_then(|_| alpha.next()).or(zero);
            let beta = has_beta.and_then(|_| beta.next()).or(zero);
            functions.push(function.with_parameters(alpha, beta));
        }
        for (name, rest, all) in
            [("activation_alpha", alpha.len(), self.alpha.len()), ("activation_beta", beta.len(), self.beta.len())]
        {
            if rest > 0 {
                bail!(InvalidFile, "{name}: the activations take {}, found {all}", all - rest);
            }
        }
        Ok(functions)
    }
}

fn wrong_type(name: &str, expected: &str) -> Error {
    Error::new(ErrorKind::InvalidFile, format!("{name}: expected {expected}, found another type"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(name: &str) -> AttributeProto {
        AttributeProto { name: name.into(), ..Default::default() }
    }

    fn integer(name: &str, i: i64) -> AttributeProto {
        AttributeProto { i: Some(i), ..attribute(name) }
    }

    fn text(name: &str, s: &str) -> AttributeProto {
        AttributeProto { s: Some(s.into()), ..attribute(name) }
    }

    fn node(operator: Operator, attributes: Vec<AttributeProto>) -> Result<RecurrentNode> {
        let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect();
        let proto = NodeProto {
            input: names(&["x", "w", "r", "", "", ""]),
            output: names(&["", "y_h"]),
            attribute: attributes,
            ..Default::default()
        };
        RecurrentNode::new(&proto, operator, OnnxCompat::Operator)
    }

    /// Element e of gate g, unit j, column k of direction d is 1000·d + 100·g + 10·j + k.
    fn tensor(directions: usize, gates: usize, hidden: usize, columns: usize) -> Tensor {
        let mut values = Vec::new();
        for d in 0..directions {
            for g in 0..gates {
                for j in 0..hidden {
                    values.extend((0..columns).map(|k| (1000 * d + 100 * g + 10 * j + k) as f32));
                }
            }
        }
        Tensor::floats(vec![directions, gates * hidden, columns], values).unwrap()
    }

    #[test]
    fn gates_biases_and_peepholes_come_in_the_order_of_the_engine() {
        for (operator, gates) in
            [(Operator::Lstm, vec![0, 2, 3, 1]), (Operator::Gru, vec![1, 0, 2]), (Operator::Rnn, vec![0])]
        {
            let node = node(operator, vec![text("direction", "bidirectional")]).unwrap();
            let n = gates.len();
            let (w, r) = (tensor(2, n, 2, 3), tensor(2, n, 2, 2));
            // Wb is that of W, Rb 50 more.
            let mut b = Vec::new();
            for d in 0..2 {
                for part in [0.0, 50.0] {
                    b.extend(
                        tensor(1, n, 2, 1).expect_floats("b").unwrap().iter().map(|v| v + part + 1000.0 * d as f32),
                    );
                }
            }
            let b = Tensor::floats(vec![2, 4 * n], b).unwrap();
            let p = Tensor::floats(vec![2, 6], (0..12).map(|v| v as f32).collect()).unwrap();
            let p = (operator == Operator::Lstm).then_some(&p);
            let weights = node.weights([Some(&w), Some(&r), Some(&b), p]).unwrap();
            for (d, cell) in weights.cells().iter().enumerate() {
                for (g, &onnx) in gates.iter().enumerate() {
                    for j in 0..2 {
                        let row = g * 2 + j;
                        let base = (1000 * d + 100 * onnx + 10 * j) as f32;
                        assert_eq!(cell.weight_ih[row * 3..][..3], [base, base + 1.0, base + 2.0]);
                        assert_eq!(cell.weight_hh[row * 2..][..2], [base, base + 1.0]);
                        assert_eq!(cell.bias_ih.as_ref().unwrap()[row], base);
                        assert_eq!(cell.bias_hh.as_ref().unwrap()[row], base + 50.0);
                    }
                }
                let first = 6.0 * d as f32;
                let peephole = p.map(|_| [0.0, 1.0, 4.0, 5.0, 2.0, 3.0].map(|v| v + first).to_vec());
                assert_eq!(cell.weight_peephole, peephole);
            }
        }
    }

    #[test]
    fn attributes_become_options() {
        let floats = |name: &str, floats: &[f32]| AttributeProto { floats: floats.into(), ..attribute(name) };
        let names = |list: &[&str]| AttributeProto {
            strings: list.iter().map(|s| s.as_bytes().to_vec()).collect(),
            ..attribute("activations")
        };
        let read = node(
            Operator::Lstm,
            vec![
                text("direction", "Bidirectional"),
                names(&["hardsigmoid", "TANH", "Affine", "Sigmoid", "LeakyRelu", "ScaledTanh"]),
                floats("activation_alpha", &[0.1, 0.2, 0.3]),
                floats("activation_beta", &[0.4]),
                AttributeProto { f: Some(2.5), ..attribute("clip") },
                integer("input_forget", 1),
                integer("layout", 1),
            ],
        )
        .unwrap();
        let CellSpec::Lstm(cell) = read.cell else { panic!("an LSTM") };
        // In order, by those that take one; the rest has the defaults.
        let f = [Activation::HardSigmoid { alpha: 0.1, beta: 0.4 }, Activation::Sigmoid];
        let g = [Activation::Tanh, Activation::LeakyRelu { alpha: 0.3 }];
        let h = [Activation::Affine { alpha: 0.2, beta: 0.0 }, Activation::ScaledTanh { alpha: 1.0, beta: 1.0 }];
        assert_eq!(cell.activations, [0, 1].map(|d| LstmActivations { f: f[d], g: g[d], h: h[d] }));
        assert_eq!(
            (cell.activation_clip, cell.clip_output_activation, cell.coupled_input_forget),
            (Some(2.5), true, true)
        );
        assert_eq!((read.layout, read.direction), (Layout::BatchMajor, Direction::Bidirectional));
        assert_eq!((read.output(0), read.output(1)), (None, Some("y_h")));
        let gru = node(Operator::Gru, vec![integer("linear_before_reset", 1), integer("hidden_size", 4)]).unwrap();
        assert!(matches!(gru.cell, CellSpec::Gru(GruCell { linear_before_reset: true, .. })));
        // Writers of proto3 leave out zeros.
        let zero = AttributeProto { r#type: AttributeProto::INT, ..attribute("linear_before_reset") };
        let gru = node(Operator::Gru, vec![zero]).unwrap();
        assert!(matches!(gru.cell, CellSpec::Gru(GruCell { linear_before_reset: false, .. })));
        let twice = node(Operator::Gru, vec![integer("layout", 1), integer("layout", 0)]).unwrap_err().to_string();
        assert!(twice.contains("layout: expected once, found twice"), "{twice}");
        assert!(matches!(
            node(Operator::Gru, vec![]).unwrap().cell,
            CellSpec::Gru(GruCell { linear_before_reset: false, .. })
        ));
    }

    /// Sizes that no product can hold, of tensors without an element.
    #[test]
    fn impossible_sizes_are_refused() {
        let node = node(Operator::Lstm, vec![]).unwrap();
        for hidden in [1usize << 62, usize::MAX / 3, usize::MAX] {
            let [w, r] = [vec![1, 0, 3], vec![1, 0, hidden]].map(|shape| Tensor::floats(shape, vec![]).unwrap());
            let error = node.weights([Some(&w), Some(&r), None, None]).unwrap_err().to_string();
            assert!(error.contains("rows of both"), "{error}");
        }
    }

    #[test]
    fn onnxruntime_has_zero_where_it_has_no_default() {
        let proto = NodeProto {
            input: vec!["x".into(), "w".into(), "r".into()],
            output: vec!["y".into()],
            name: "n".into(),
            attribute: vec![AttributeProto {
                strings: ["Sigmoid", "Affine", "ThresholdedRelu"].map(|s| s.as_bytes().to_vec()).into(),
                ..attribute("activations")
            }],
            ..Default::default()
        };
        let cell = |compat| match RecurrentNode::new(&proto, Operator::Lstm, compat).unwrap().cell {
            CellSpec::Lstm(cell) => cell,
            other => panic!("{other:?}"),
        };
        let (text, ort) = (cell(OnnxCompat::Operator), cell(OnnxCompat::Onnxruntime));
        assert_eq!(text.activations[0].g, Activation::Affine { alpha: 1.0, beta: 0.0 });
        assert_eq!(ort.activations[0].g, Activation::Affine { alpha: 0.0, beta: 0.0 });
        assert_eq!(ort.activations[0].h, Activation::ThresholdedRelu { alpha: 0.0 });
        assert!(text.clip_output_activation && !ort.clip_output_activation);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_node() {
        let message = |operator, attribute| node(operator, vec![attribute]).unwrap_err().to_string();
        let names = |list: &[&str]| AttributeProto {
            strings: list.iter().map(|s| s.as_bytes().to_vec()).collect(),
            ..attribute("activations")
        };
        for (found, needle) in [
            (message(Operator::Lstm, text("direction", "up")), "direction: expected forward, reverse or bidirectional"),
            (message(Operator::Lstm, integer("layout", 2)), "layout: expected 0 or 1, found 2"),
            (message(Operator::Lstm, integer("input_forget", 2)), "input_forget: expected 0 or 1"),
            (message(Operator::Gru, integer("input_forget", 1)), "attribute \"input_forget\": not one of GRU"),
            (message(Operator::Lstm, integer("window", 1)), "attribute \"window\": not one of LSTM"),
            (message(Operator::Lstm, text("clip", "x")), "clip: expected a float"),
            (message(Operator::Lstm, text("activations", "Relu")), "activations: expected a list of strings"),
            (
                message(Operator::Rnn, AttributeProto { f: Some(0.3), ..attribute("activation_alpha") }),
                "activation_alpha: expected a list of floats",
            ),
            (
                message(Operator::Lstm, AttributeProto { r#type: 6, ..integer("layout", 1) }),
                "layout: expected an integer",
            ),
            (message(Operator::Lstm, integer("hidden_size", 0)), "hidden_size: expected at least 1"),
            (message(Operator::Lstm, names(&["Sigmoid", "Tanh"])), "activations: expected 3 for each of 1 directions"),
            (message(Operator::Rnn, names(&["Gelu"])), "activation \"Gelu\": expected one of Sigmoid"),
            (
                message(Operator::Rnn, AttributeProto { floats: vec![1.0], ..attribute("activation_alpha") }),
                "activation_alpha: the activations take 0, found 1",
            ),
        ] {
            assert!(found.contains(needle) && found.contains("that makes \"y_h\""), "{found}");
        }
        let node = node(Operator::Lstm, vec![integer("hidden_size", 3)]).unwrap();
        let weights = |w: &[usize], r: &[usize], b: Option<&[usize]>| {
            let zeros = |shape: &[usize]| Tensor::floats(shape.to_vec(), vec![0.0; shape.iter().product()]).unwrap();
            node.weights([Some(&zeros(w)), Some(&zeros(r)), b.map(zeros).as_ref(), None]).unwrap_err().to_string()
        };
        for (found, needle) in [
            (weights(&[2, 12, 5], &[1, 12, 3], None), "W: expected [num_directions"),
            (weights(&[1, 8, 5], &[1, 8, 2], None), "hidden_size: expected that of R [1, 8, 2] = 2, found 3"),
            (weights(&[1, 8, 5], &[1, 12, 3], None), "expected 4·hidden_size rows of both"),
            (weights(&[1, 12, 5], &[1, 12, 3], Some(&[1, 12])), "B: expected shape [1, 24], found [1, 12]"),
            (weights(&[1, 0, 3], &[1, 0, 3], None), "expected 4·hidden_size rows of both"),
        ] {
            assert!(found.contains(needle), "{found}");
        }
    }
}
