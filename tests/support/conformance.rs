//! The conformance corpus of `tests/data/conformance` on this crate: a case → model and batch, results → the shapes of
//! the case, and their judgement. The README there has the format.
//!
//! Gate orders are exchanged here and not by any importer of the crate, so that neither can hide a mistake of the other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::SafeTensors;
use serde_json::Value;
use wgpu_lstm::reference::ReferenceOutput;
use wgpu_lstm::{
    Activation, BatchOutput, CellSpec, CellWeights, Direction, GruActivations, GruCell, LayerSpec, Layout,
    LstmActivations, LstmCell, LstmSpec, LstmWeights, Merge, Outputs, RnnCell, SequenceBatch, SequenceOutput,
};

use super::comparer::{Bound, compare};
use super::data::Rng;

pub const GROUPS: [&str; 4] = ["lstm", "gru", "rnn", "stack"];

/// What rows of X hold at or past a sequence's length.
const PADDING: f32 = 1000.0;
/// Arrays of more elements are stored as some elements and a weighted sum of each row.
const STORED_WHOLE: usize = 256;
const ELEMENTS: usize = 48;

/// One case, ready to run.
#[derive(Debug)]
pub struct ConformanceCase {
    pub id: String,
    pub weights: LstmWeights,
    pub layout: Layout,
    pub lengths: Vec<usize>,
    pub seq_len: usize,
    pub x: Vec<f32>,
    pub h_0: Option<Vec<f32>>,
    pub c_0: Option<Vec<f32>>,
    pub outputs: Outputs,
    /// Whether it is one of ONNX's operators: a sequence of length 0 ends in zeros, and arrays have ONNX's axes.
    pub is_onnx: bool,
    pub expected: Vec<Expected>,
}

/// One output that the case asks for.
#[derive(Debug)]
pub struct Expected {
    pub name: String,
    pub shape: Vec<usize>,
    pub tolerance: f64,
    parts: Parts,
}

#[derive(Debug)]
enum Parts {
    Whole(Vec<f64>),
    Some { elements: Vec<f64>, rows: Vec<f64> },
}

impl Expected {
    /// The largest number that is stored, at least 1.
    pub fn size(&self) -> f64 {
        let (Parts::Whole(values) | Parts::Some { elements: values, .. }) = &self.parts;
        values.iter().fold(1.0, |m, v| m.max(v.abs()))
    }

    /// Compares `found`, in the shape of the case.
    ///
    /// # Errors
    /// The message of the comparison that fails.
    pub fn check(&self, found: &[f64], bound: f64) -> Result<f64, String> {
        let count: usize = self.shape.iter().product();
        if found.len() != count {
            return Err(format!("{}: found {} elements, expected {:?}", self.name, found.len(), self.shape));
        }
        let axes: Vec<(&str, usize)> = self.shape.iter().map(|&size| ("", size)).collect();
        let headroom = |what: &str, axes: &[(&str, usize)], found: &[f64], expected: &[f64], bound: f64| {
            compare(&format!("{}{what}", self.name), axes, found, expected, Bound::Same(bound)).map(|r| r.headroom)
        };
        match &self.parts {
            Parts::Whole(expected) => headroom("", &axes, found, expected, bound),
            Parts::Some { elements, rows } => {
                let mut chosen = Rng::new(1);
                let picked: Vec<f64> = (0..ELEMENTS).map(|_| found[chosen.below(count)]).collect();
                let (width, leading) = axes.split_last().expect("three axes or more");
                let mut random = Rng::new(2);
                let mut weight = || random.odd() as f64;
                let weights: Vec<f64> =
                    (0..width.1).map(|_| weight()).map(|r| (r + r.signum() * 4096.0) / 8192.0).collect();
                let sum = |row: &[f64]| row.iter().zip(&weights).map(|(v, w)| v * w).sum();
                let sums: Vec<f64> = found.chunks_exact(width.1).map(sum).collect();
                let sum_bound = bound * weights.iter().map(|w| w.abs()).sum::<f64>();
                let first = headroom(" elements", &[("", ELEMENTS)], &picked, elements, bound)?;
                Ok(first.min(headroom(" rows", leading, &sums, rows, sum_bound)?))
            }
        }
    }
}

impl ConformanceCase {
    pub fn batch(&self) -> SequenceBatch<'_> {
        let spec = self.weights.spec();
        let shape = self.layout.shape(self.seq_len, self.lengths.len(), spec.input_size());
        let batch = SequenceBatch::new(&self.x, shape, self.layout).and_then(|b| b.lengths(&self.lengths));
        let batch = batch.expect("the case is well-formed").outputs(self.outputs);
        let batch = self.h_0.iter().fold(batch, |b, h_0| b.h_0(h_0));
        self.c_0.iter().fold(batch, |b, c_0| b.c_0(c_0))
    }

    /// Judges a result; each output may be off by `bound` of it. Returns the smallest headroom.
    ///
    /// # Errors
    /// The message of the first comparison that fails.
    pub fn check(&self, found: &ReferenceOutput<f64>, bound: impl Fn(&Expected) -> f64) -> Result<f64, String> {
        self.check_padding(found).map_err(|e| format!("{}: {e}", self.id))?;
        let arrays = self.in_shapes_of_the_case(found);
        let mut headroom = f64::INFINITY;
        for expected in &self.expected {
            let array = arrays.get(&expected.name).ok_or_else(|| format!("{}: no {}", self.id, expected.name))?;
            let found = expected.check(array, bound(expected)).map_err(|e| format!("{}: {e}", self.id))?;
            headroom = headroom.min(found);
        }
        Ok(headroom)
    }

    /// Judges a result in f32 by the tolerance of the case.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_f32(&self, found: &BatchOutput) -> Result<f64, String> {
        self.check(&widened(found), |expected| expected.tolerance)
    }

    fn check_padding(&self, found: &ReferenceOutput<f64>) -> Result<(), String> {
        for array in [&found.output, &found.cells].into_iter().flatten() {
            let batch_size = self.lengths.len();
            let width = array.len() / (self.seq_len * batch_size);
            for (b, &length) in self.lengths.iter().enumerate() {
                for t in length..self.seq_len {
                    let row = self.layout.row(t, b, self.seq_len, batch_size);
                    if array[row * width..][..width].iter().any(|v| *v != 0.0) {
                        return Err(format!("not zero at step {t} of sequence {b}, which has length {length}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn in_shapes_of_the_case(&self, found: &ReferenceOutput<f64>) -> BTreeMap<String, Vec<f64>> {
        let spec = self.weights.spec();
        let batch_size = self.lengths.len();
        let mut arrays = BTreeMap::new();
        if self.is_onnx {
            let layer = spec.last_layer();
            let (directions, hidden) = (layer.num_directions(), layer.hidden_size);
            if let Some(output) = &found.output {
                arrays.insert(
                    "Y".to_owned(),
                    match self.layout {
                        Layout::BatchMajor => output.clone(), // [B, T, D, H]
                        Layout::TimeMajor => {
                            output // [T, B, D, H] → [T, D, B, H]
                                .chunks_exact(batch_size * directions * hidden)
                                .flat_map(|step| exchanged(step, batch_size, directions, hidden))
                                .collect()
                        }
                    },
                );
            }
            for (name, state) in [("Y_h", &found.h_n), ("Y_c", &found.c_n)] {
                let Some(state) = state.as_ref().filter(|s| !s.is_empty()) else { continue };
                let mut state = state.clone();
                // ONNX: a sequence of length 0 ends in zeros; here it ends in its initial state.
                for (k, block) in state.chunks_exact_mut(hidden).enumerate() {
                    if self.lengths[k % batch_size] == 0 {
                        block.fill(0.0);
                    }
                }
                arrays.insert(
                    name.to_owned(),
                    match self.layout {
                        Layout::TimeMajor => state, // [D, B, H]
                        Layout::BatchMajor => exchanged(&state, directions, batch_size, hidden),
                    },
                );
            }
            return arrays;
        }
        for (name, array) in [("output", &found.output), ("cells", &found.cells)] {
            arrays.extend(array.iter().map(|a| (name.to_owned(), a.clone())));
        }
        for (prefix, state, width) in
            [("h_n", &found.h_n, LayerSpec::h_size as fn(&LayerSpec) -> usize), ("c_n", &found.c_n, LayerSpec::c_size)]
        {
            let Some(state) = state else { continue };
            let mut start = 0;
            for (l, layer, reverse) in spec.cells() {
                let size = batch_size * width(layer);
                arrays.insert(format!("{prefix}{}", suffix(l, layer, reverse)), state[start..start + size].to_vec());
                start += size;
            }
        }
        arrays
    }
}

/// The numbers of an f32 result.
pub fn widened(found: &BatchOutput) -> ReferenceOutput<f64> {
    let wide = |values: &Option<Vec<f32>>| values.as_ref().map(|v| v.iter().map(|&v| f64::from(v)).collect());
    ReferenceOutput {
        output: wide(&found.output),
        last: wide(&found.last),
        h_n: wide(&found.h_n),
        c_n: wide(&found.c_n),
        cells: wide(&found.cells),
    }
}

/// All cases.
pub fn cases() -> Vec<ConformanceCase> {
    GROUPS.into_iter().flat_map(group).collect()
}

/// The cases of one group.
pub fn group(name: &str) -> Vec<ConformanceCase> {
    group_with_records(name).into_iter().map(|(case, _)| case).collect()
}

/// The cases of one group, each with its line of the file.
pub fn group_with_records(name: &str) -> Vec<(ConformanceCase, Value)> {
    // A test binary may run on another machine, from the root of a copy of the repository.
    let built_in: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "data", "conformance"].iter().collect();
    let folder = if built_in.exists() { built_in } else { ["tests", "data", "conformance"].iter().collect() };
    let read = |ending: &str| {
        let path = folder.join(format!("{name}.{ending}"));
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let records: Vec<Value> = serde_json::from_slice(&read("json")).expect("an array of cases");
    let bytes = read("safetensors");
    let arrays = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    records.into_iter().map(|record| (load(&record, &arrays), record)).collect()
}

fn load(record: &Value, arrays: &SafeTensors<'_>) -> ConformanceCase {
    let id = record["id"].as_str().expect("id").to_owned();
    let operator = record["operator"].as_str().expect("operator");
    let attributes = &record["attributes"];
    let inputs = &record["inputs"];
    let is_onnx = operator != "Stack";
    let layout =
        if is_onnx && attributes["layout"].as_u64().unwrap_or(0) == 0 { Layout::TimeMajor } else { Layout::BatchMajor };
    let x_shape = shape(&inputs["X"]);
    let (seq_len, batch_size) = match layout {
        Layout::TimeMajor => (x_shape[0], x_shape[1]),
        Layout::BatchMajor => (x_shape[1], x_shape[0]),
    };
    let lengths = match inputs.get("sequence_lens") {
        Some(lengths) => sizes(lengths),
        None => vec![seq_len; batch_size],
    };
    let mut x = tensor(&inputs["X"]);
    for (b, &length) in lengths.iter().enumerate() {
        for t in length..seq_len {
            x[layout.row(t, b, seq_len, batch_size) * x_shape[2]..][..x_shape[2]].fill(PADDING);
        }
    }
    let (weights, h_0, c_0) = match is_onnx {
        true => onnx_model(operator, attributes, inputs, layout),
        false => stack_model(attributes, inputs),
    };
    let expected: Vec<Expected> = record["outputs"]
        .as_object()
        .expect("outputs")
        .iter()
        .map(|(name, output)| {
            let array = |ending: &str| -> Vec<f64> {
                let view =
                    arrays.tensor(&format!("{id}/{name}{ending}")).unwrap_or_else(|e| panic!("{id}/{name}: {e}"));
                view.data().as_chunks().0.iter().map(|w| f64::from_le_bytes(*w)).collect()
            };
            let shape = shape(output);
            let parts = match shape.iter().product::<usize>() <= STORED_WHOLE {
                true => Parts::Whole(array("")),
                false => Parts::Some { elements: array(".elements"), rows: array(".rows") },
            };
            Expected { name: name.clone(), shape, tolerance: output["tolerance"].as_f64().expect("tolerance"), parts }
        })
        .collect();
    let asks_for = |names: &[&str]| expected.iter().any(|e| names.iter().any(|n| e.name.starts_with(n)));
    let outputs = Outputs {
        sequence: if asks_for(&["output"]) || expected.iter().any(|e| e.name == "Y") {
            SequenceOutput::All
        } else {
            SequenceOutput::None
        },
        final_state: asks_for(&["Y_", "h_n", "c_n"]),
        cells: asks_for(&["cells"]),
    };
    ConformanceCase { id, weights, layout, lengths, seq_len, x, h_0, c_0, outputs, is_onnx, expected }
}

// --- ONNX's operators --------------------------------------------------------------------------------------------

type Model = (LstmWeights, Option<Vec<f32>>, Option<Vec<f32>>);

fn onnx_model(operator: &str, attributes: &Value, inputs: &Value, layout: Layout) -> Model {
    let direction = direction(attributes["direction"].as_str().unwrap_or("forward"));
    let directions = direction.num_directions();
    let [input_size, hidden_size] = ["W", "R"].map(|name| shape(&inputs[name])[2]);
    let activation_clip = attributes["clip"].as_f64().map(|v| v as f32);
    // This crate's rows in terms of ONNX's: i o f c → i f g o, z r h → r z n.
    let gates: &[usize] = match operator {
        "LSTM" => &[0, 2, 3, 1],
        "GRU" => &[1, 0, 2],
        _ => &[0],
    };
    let default: &[&str] = match operator {
        "LSTM" => &["Sigmoid", "Tanh", "Tanh"],
        "GRU" => &["Sigmoid", "Tanh"],
        _ => &["Tanh"],
    };
    let functions = functions(attributes, &default.repeat(directions));
    let of = |d: usize, role: usize| functions[d % directions * default.len() + role];
    let is_set = |name: &str| attributes[name].as_u64().unwrap_or(0) != 0;
    let peepholes = inputs.get("P");
    let cell = match operator {
        "LSTM" => CellSpec::Lstm(LstmCell {
            activations: [0, 1].map(|d| LstmActivations { f: of(d, 0), g: of(d, 1), h: of(d, 2) }),
            peepholes: peepholes.is_some(),
            coupled_input_forget: is_set("input_forget"),
            activation_clip,
            ..LstmCell::default()
        }),
        "GRU" => CellSpec::Gru(GruCell {
            activations: [0, 1].map(|d| GruActivations { f: of(d, 0), g: of(d, 1) }),
            linear_before_reset: is_set("linear_before_reset"),
            activation_clip,
        }),
        _ => CellSpec::Rnn(RnnCell { activations: [0, 1].map(|d| of(d, 0)), activation_clip }),
    };
    let bias = inputs.get("B").map(tensor);
    let layer = LayerSpec { cell, direction, bias: bias.is_some(), ..LayerSpec::new(input_size, hidden_size) };
    let (weight_ih, weight_hh) = (tensor(&inputs["W"]), tensor(&inputs["R"]));
    let peepholes = peepholes.map(tensor);
    // The blocks of direction d of an array that holds `count` blocks per direction, in the order `chosen`.
    let blocks = |array: &[f32], d: usize, count: usize, chosen: &[usize]| -> Vec<f32> {
        let block = array.len() / (directions * count);
        chosen.iter().flat_map(|k| &array[(d * count + k) * block..][..block]).copied().collect()
    };
    let of_recurrence: Vec<usize> = gates.iter().map(|g| g + gates.len()).collect();
    let cells = (0..directions).map(|d| CellWeights {
        weight_ih: blocks(&weight_ih, d, gates.len(), gates),
        weight_hh: blocks(&weight_hh, d, gates.len(), gates),
        bias_ih: bias.as_ref().map(|b| blocks(b, d, 2 * gates.len(), gates)),
        bias_hh: bias.as_ref().map(|b| blocks(b, d, 2 * gates.len(), &of_recurrence)),
        weight_peephole: peepholes.as_ref().map(|p| blocks(p, d, 3, &[0, 2, 1])), // i o f → i f o
        ..CellWeights::default()
    });
    let spec = LstmSpec::new(vec![layer]).expect("the case is well-formed");
    let weights = LstmWeights::new(spec, cells.collect()).expect("the case is well-formed");
    let state = |name: &str| {
        inputs.get(name).map(|description| {
            let state = tensor(description);
            match layout {
                Layout::TimeMajor => state,
                Layout::BatchMajor => exchanged(&state, shape(description)[0], directions, hidden_size),
            }
        })
    };
    (weights, state("initial_h"), state("initial_c"))
}

/// Alpha and beta are taken in order by the functions that have one.
fn functions(attributes: &Value, default: &[&str]) -> Vec<Activation> {
    let list = |name: &str| attributes[name].as_array().cloned().unwrap_or_default().into_iter();
    let names: Vec<String> = match attributes["activations"].as_array() {
        Some(names) => names.iter().map(|n| n.as_str().expect("a name").to_owned()).collect(),
        None => default.iter().map(|n| (*n).to_owned()).collect(),
    };
    let (mut alphas, mut betas) = (list("activation_alpha"), list("activation_beta"));
    let mut function = |name: &String| {
        let function = Activation::named(name).unwrap_or_else(|| panic!("no function {name}"));
        let (alpha, beta) = function.parameters();
        let next = |values: &mut dyn Iterator<Item = Value>, has: Option<f32>| {
            has.and_then(|_| values.next()).map(|v| v.as_f64().expect("a number") as f32)
        };
        let (alpha, beta) = (next(&mut alphas, alpha), next(&mut betas, beta));
        function.with_parameters(alpha, beta)
    };
    names.iter().map(&mut function).collect()
}

// --- Stacks ------------------------------------------------------------------------------------------------------

fn stack_model(attributes: &Value, inputs: &Value) -> Model {
    let layer = |record: &Value| {
        let size = |name: &str| record[name].as_u64().map(|n| n as usize);
        let number = |name: &str| record[name].as_f64().map(|v| v as f32);
        let is_set = |name: &str| record[name].as_bool().unwrap_or(false);
        let activation_clip = number("activation_clip");
        let cell = match record["cell"].as_str().expect("cell") {
            "LSTM" => CellSpec::Lstm(LstmCell {
                peepholes: is_set("peepholes"),
                coupled_input_forget: is_set("coupled_input_forget"),
                activation_clip,
                cell_clip: number("cell_clip"),
                layer_norm: is_set("layer_norm"),
                projection_bias: is_set("projection_bias"),
                ..LstmCell::default()
            }),
            "GRU" => CellSpec::Gru(GruCell {
                linear_before_reset: is_set("linear_before_reset"),
                activation_clip,
                ..GruCell::default()
            }),
            _ => {
                let function = Activation::named(record["activation"].as_str().expect("activation")).expect("its name");
                CellSpec::Rnn(RnnCell { activations: [function; 2], activation_clip })
            }
        };
        LayerSpec {
            cell,
            direction: direction(record["direction"].as_str().expect("direction")),
            merge: if record["merge"] == "sum" { Merge::Sum } else { Merge::Concat },
            bias: is_set("bias"),
            projection_size: size("projection_size"),
            ..LayerSpec::new(size("input_size").expect("input_size"), size("hidden_size").expect("hidden_size"))
        }
    };
    let spec = LstmSpec::new(attributes["layers"].as_array().expect("layers").iter().map(layer).collect());
    let spec = spec.expect("the case is well-formed");
    let cells = spec.cells().map(|(l, layer, reverse)| {
        let find = |name: &str| inputs.get(format!("{name}{}", suffix(l, layer, reverse))).map(tensor);
        CellWeights {
            weight_ih: find("weight_ih").expect("weight_ih"),
            weight_hh: find("weight_hh").expect("weight_hh"),
            bias_ih: find("bias_ih"),
            bias_hh: find("bias_hh"),
            weight_hr: find("weight_hr"),
            bias_hr: find("bias_hr"),
            weight_peephole: find("weight_peephole"),
            weight_norm: find("weight_norm"),
        }
    });
    let state = |name: &str| {
        let blocks = spec.cells().map(|(l, layer, reverse)| inputs.get(format!("{name}{}", suffix(l, layer, reverse))));
        let blocks: Vec<f32> = blocks.flatten().flat_map(tensor).collect();
        (!blocks.is_empty()).then_some(blocks)
    };
    let (h_0, c_0) = (state("h_0"), state("c_0"));
    let weights = LstmWeights::new(spec.clone(), cells.collect()).expect("the case is well-formed");
    (weights, h_0, c_0)
}

/// The ending of names; a layer of one direction has plain ones whichever it is.
fn suffix(l: usize, layer: &LayerSpec, reverse: bool) -> String {
    format!("_l{l}{}", if reverse && layer.num_directions() == 2 { "_reverse" } else { "" })
}

// --- Arrays ------------------------------------------------------------------------------------------------------

fn direction(name: &str) -> Direction {
    match name {
        "forward" => Direction::Forward,
        "reverse" => Direction::Reverse,
        "bidirectional" => Direction::Bidirectional,
        other => panic!("no direction {other}"),
    }
}

pub fn sizes(value: &Value) -> Vec<usize> {
    value.as_array().expect("a list").iter().map(|n| n.as_u64().expect("a size") as usize).collect()
}

pub fn shape(description: &Value) -> Vec<usize> {
    sizes(&description["shape"])
}

/// The tensor of a description: equal blocks, each with a scale and an offset in units of 1/1024.
pub fn tensor(description: &Value) -> Vec<f32> {
    let count: usize = shape(description).iter().product();
    let units = |name: &str| -> Vec<i64> {
        let list = description[name].as_array().map(|l| l.iter().map(|v| v.as_i64().expect("an integer")).collect());
        list.unwrap_or_else(|| vec![0])
    };
    let (scale, offset) = (units("scale"), units("offset"));
    let mut rng = Rng::new(description["seed"].as_u64().expect("a seed"));
    let value = |k: usize| {
        let of = |blocks: &[i64]| blocks[k / (count / blocks.len())];
        (of(&scale) * rng.odd() + 4096 * of(&offset)) as f32 / 4_194_304.0
    };
    (0..count).map(value).collect()
}

/// [a, b, n] → [b, a, n]
fn exchanged<T: Copy>(array: &[T], a: usize, b: usize, n: usize) -> Vec<T> {
    (0..b).flat_map(|j| (0..a).flat_map(move |i| &array[(i * b + j) * n..][..n])).copied().collect()
}
