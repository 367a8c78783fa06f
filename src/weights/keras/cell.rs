//! Stage 1, read: a recurrent layer's configuration and variables → its equations and canonical weights.
//!
//! In:  `class_name` and `config` of a layer, the version of Keras, and the variables of its cells.
//! Out: [`Recurrent`]: cells in our terms; [`CellWeights`] in the order i f g o or r z n.
//! Afterwards no code asks about Keras' names, activations, gate order or layouts.
//! Not here: which layers follow each other (`graph`), and in which direction time runs (`keras`).

use serde_json::Value;

use super::store::{CellTensors, Tensor};
use crate::activation::Activation;
use crate::cell::{CellSpec, GruActivations, GruCell, LstmActivations, LstmCell, RnnCell};
use crate::error::{Error, Result, bail};
use crate::spec::{MAX_SIZE, Merge};
use crate::weights::CellWeights;

/// The version of Keras that wrote a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    pub major: u32,
    pub minor: u32,
    /// The Keras inside TensorFlow.
    pub of_tensorflow: bool,
}

impl Version {
    /// Reads `2.2.4-tf`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.');
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        Some(Self { major, minor, of_tensorflow: text.ends_with("-tf") })
    }
}

/// A layer: one cell, or a stack of cells that run in lockstep; in one direction or two.
#[derive(Debug, Clone)]
pub(super) struct Recurrent {
    /// Forward, and reverse if bidirectional; as many cells in both.
    pub directions: Vec<Vec<Cell>>,
    pub merge: Merge,
    pub go_backwards: bool,
    pub return_sequences: bool,
    pub stateful: bool,
    /// Outputs of masked steps are zero; Keras repeats the output before them unless this is set.
    pub zero_output_for_mask: bool,
    /// The type that Keras computes with, if it is not float32.
    pub precision: Option<String>,
}

/// One cell of one direction.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub class: &'static str,
    pub spec: CellSpec,
    pub units: usize,
    pub bias: bool,
}

/// Options that change nothing at inference, of Keras 1 to 3.
const INERT: [&str; 40] = [
    "name",
    "trainable",
    "batch_input_shape",
    "batch_shape",
    "input_shape",
    "input_dim",
    "input_length",
    "input_dtype",
    "dynamic",
    "autocast",
    "kernel_initializer",
    "recurrent_initializer",
    "bias_initializer",
    "kernel_regularizer",
    "recurrent_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "recurrent_constraint",
    "bias_constraint",
    "unit_forget_bias",
    "dropout",
    "recurrent_dropout",
    "seed",
    // How it is computed, and what else is returned.
    "implementation",
    "unroll",
    "use_cudnn",
    "return_state",
    "reverse_state_order",
    // Of Keras 1.
    "init",
    "inner_init",
    "forget_bias_init",
    "W_regularizer",
    "U_regularizer",
    "b_regularizer",
    "dropout_W",
    "dropout_U",
    "consume_less",
    "batch_size",
    "input_spec",
];

/// Options that every layer may have and that are computed.
const OF_LAYERS: [&str; 6] =
    ["dtype", "return_sequences", "go_backwards", "stateful", "time_major", "zero_output_for_mask"];

/// Refuses an option that is set and neither inert nor among `computed`.
fn check_options(config: &Value, computed: &[&str]) -> Result<()> {
    let Some(options) = config.as_object() else {
        bail!(InvalidFile, "config: expected an object, found {}", short(config));
    };
    for (name, value) in options {
        let unset = match value {
            Value::Null => true,
            Value::Bool(set) => !set,
            Value::Number(number) => number.as_f64() == Some(0.0),
            _ => false,
        };
        let name = name.as_str();
        if !unset && !INERT.contains(&name) && !OF_LAYERS.contains(&name) && !computed.contains(&name) {
            let name: String = name.chars().take(80).collect();
            bail!(Unsupported, "option {name}: expected none of this name, found {}", short(value));
        }
    }
    Ok(())
}

/// Where a class or function comes from that is not Keras' own.
pub(super) fn foreign(object: &Value) -> Option<String> {
    let text = |name| object.get(name).and_then(Value::as_str);
    let of_keras = |module: &str| {
        let package = module.split('.').next().unwrap_or(module);
        ["keras", "tf_keras", "tensorflow", "builtins"].contains(&package)
    };
    // Keras 3 gives its own classes a module, and a name of registration only to those of others.
    let nowhere = object.get("module").is_some_and(Value::is_null);
    let registered = text("registered_name").filter(|name| nowhere || name.contains('>'));
    let found = registered.or_else(|| text("module").filter(|module| !of_keras(module)));
    found.map(|found| found.chars().take(80).collect())
}

/// The type that a layer computes with, if it is not float32.
fn precision(config: &Value) -> Result<Option<String>> {
    let name = match config.get("dtype") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(name)) => name.as_str(),
        Some(policy) => {
            let class = policy.get("class_name").and_then(Value::as_str).unwrap_or_default();
            let name = policy.get("config").and_then(|config| config.get("name")).and_then(Value::as_str);
            match name {
                Some(name) if ["DTypePolicy", "FloatDTypePolicy", "Policy", "PolicyV1"].contains(&class) => name,
                _ => bail!(Unsupported, "dtype: expected a policy of floats, found {}", short(policy)),
            }
        }
    };
    match name {
        "float32" => Ok(None),
        "float16" | "float64" | "bfloat16" | "mixed_float16" | "mixed_bfloat16" => Ok(Some(name.to_owned())),
        other => bail!(
            Unsupported,
            "dtype: expected float16, bfloat16, float32, float64, mixed_float16 or mixed_bfloat16, found {other}"
        ),
    }
}

fn flag(config: &Value, name: &str, default: bool) -> Result<bool> {
    match config.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => bail!(InvalidFile, "{name}: expected true or false, found {other}"),
    }
}

impl Recurrent {
    /// Reads the configuration of a layer.
    pub(super) fn new(class: &str, config: &Value, version: Option<Version>) -> Result<Self> {
        if class == "Bidirectional" {
            return Self::bidirectional(config, version);
        }
        for option in ["time_major"] {
            if flag(config, option, false)? {
                bail!(Unsupported, "{option}: expected false, found true; save the model with [B, T, I] sequences");
            }
        }
        let mut precision = precision(config)?;
        let cells = match class {
            "RNN" => {
                check_options(config, &["cell"])?;
                let (class, cell) = part(config, "cell")?;
                precision = precision.or(self::precision(cell)?);
                if class == "StackedRNNCells" {
                    let Some(list) = cell.get("cells").and_then(Value::as_array).filter(|list| !list.is_empty()) else {
                        bail!(InvalidFile, "cells: expected a list of cells, found none");
                    };
                    check_options(cell, &["cells"])?;
                    let cells = list.iter().enumerate().map(|(i, cell)| {
                        let named = |e: Error| e.context(format!("cell {i}"));
                        let (class, config) = class_and_config(cell).map_err(named)?;
                        Cell::new(class, config, version).map_err(named)
                    });
                    cells.collect::<Result<_>>()?
                } else {
                    vec![Cell::new(class, cell, version)?]
                }
            }
            _ => vec![Cell::new(class, config, version)?],
        };
        Ok(Self {
            directions: vec![cells],
            merge: Merge::Concat,
            go_backwards: flag(config, "go_backwards", false)?,
            return_sequences: flag(config, "return_sequences", false)?,
            stateful: flag(config, "stateful", false)?,
            zero_output_for_mask: flag(config, "zero_output_for_mask", false)?,
            precision,
        })
    }

    fn bidirectional(config: &Value, version: Option<Version>) -> Result<Self> {
        check_options(config, &["layer", "backward_layer", "merge_mode"])?;
        let merge = match config.get("merge_mode") {
            None => Merge::Concat,
            Some(Value::String(mode)) if mode == "concat" => Merge::Concat,
            Some(Value::String(mode)) if mode == "sum" => Merge::Sum,
            Some(Value::String(mode)) if mode == "ave" => bail!(
                Unsupported,
                "merge_mode: expected \"concat\" or \"sum\", found \"ave\"; save the layer with \"sum\" and halve the \
                 kernel of what follows"
            ),
            Some(other) => bail!(Unsupported, "merge_mode: expected \"concat\" or \"sum\", found {other}"),
        };
        let read = |name| {
            let (class, inner) = part(config, name)?;
            if class == "Bidirectional" {
                bail!(Unsupported, "{name}: expected a recurrent layer, found Bidirectional");
            }
            Self::new(class, inner, version).map_err(|e| e.context(name))
        };
        let mut layer = read("layer")?;
        let mut reverse = match config.get("backward_layer") {
            None | Some(Value::Null) => layer.clone(),
            Some(_) => {
                let reverse = read("backward_layer")?;
                if reverse.go_backwards == layer.go_backwards {
                    bail!(
                        InvalidFile,
                        "backward_layer: expected go_backwards {}, found {}",
                        !layer.go_backwards,
                        reverse.go_backwards
                    );
                }
                if reverse.return_sequences != layer.return_sequences {
                    bail!(
                        InvalidFile,
                        "backward_layer: expected return_sequences like the forward layer, found another"
                    );
                }
                reverse
            }
        };
        if layer.directions[0].len() != 1 || reverse.directions[0].len() != 1 {
            bail!(Unsupported, "Bidirectional: expected one cell per direction, found StackedRNNCells");
        }
        let (a, b) = (&layer.directions[0][0], &reverse.directions[0][0]);
        if (a.class, a.units, a.bias) != (b.class, b.units, b.bias) {
            bail!(
                Unsupported,
                "Bidirectional: expected the same class, units and use_bias in both directions, found {} {} {} and {} {} {}",
                a.class,
                a.units,
                a.bias,
                b.class,
                b.units,
                b.bias
            );
        }
        layer.directions.append(&mut reverse.directions);
        layer.merge = merge;
        layer.stateful |= reverse.stateful;
        layer.zero_output_for_mask &= reverse.zero_output_for_mask;
        layer.precision = precision(config)?.or(layer.precision).or(reverse.precision);
        Ok(layer)
    }

    /// The classes of the cells of one direction.
    pub(super) fn classes(&self) -> Vec<&'static str> {
        self.directions[0].iter().map(|cell| cell.class).collect()
    }
}

fn class_and_config(layer: &Value) -> Result<(&str, &Value)> {
    match (layer.get("class_name").and_then(Value::as_str), layer.get("config")) {
        (Some(class), Some(config)) => match foreign(layer) {
            None => Ok((class, config)),
            Some(origin) => bail!(Unsupported, "expected {class} of Keras, found one of {origin}"),
        },
        _ => bail!(InvalidFile, "expected class_name and config, found {}", short(layer)),
    }
}

fn part<'a>(config: &'a Value, name: &str) -> Result<(&'a str, &'a Value)> {
    match config.get(name) {
        Some(layer) => class_and_config(layer).map_err(|e| e.context(name)),
        None => bail!(InvalidFile, "{name}: expected in the configuration, found none"),
    }
}

/// A value as it stands in a message.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

impl Cell {
    fn new(class: &str, config: &Value, version: Option<Version>) -> Result<Self> {
        let cudnn = matches!(class, "CuDNNLSTM" | "CuDNNGRU");
        // Keras 1 has other names; its gates are computed as those of early Keras 2 are.
        let first = config.get("output_dim").is_some();
        let version = if first { Some(Version { major: 1, minor: 0, of_tensorflow: false }) } else { version };
        let units_name = if first { "output_dim" } else { "units" };
        let gates_name = if first { "inner_activation" } else { "recurrent_activation" };
        match class {
            "LSTM" | "LSTMCell" => check_options(config, &[units_name, "activation", gates_name, "use_bias"])?,
            "GRU" | "GRUCell" => {
                check_options(config, &[units_name, "activation", gates_name, "use_bias", "reset_after"])?;
            }
            "SimpleRNN" | "SimpleRNNCell" => check_options(config, &[units_name, "activation", "use_bias"])?,
            "CuDNNLSTM" | "CuDNNGRU" => check_options(config, &[units_name])?,
            _ => {}
        }
        let of = |name: &str, default| {
            if cudnn { Ok(default) } else { activation(config, name, default, version) }
        };
        let g = of("activation", Activation::Tanh)?;
        let (class, spec) = match class {
            "LSTM" | "LSTMCell" | "CuDNNLSTM" => {
                let f = if cudnn { Activation::Sigmoid } else { recurrent_activation(config, gates_name, version)? };
                let activations = [LstmActivations { f, g, h: g }; 2];
                let class = if class == "LSTMCell" { "LSTMCell" } else { "LSTM" };
                (class, CellSpec::Lstm(LstmCell { activations, ..LstmCell::default() }))
            }
            "GRU" | "GRUCell" | "CuDNNGRU" => {
                let f = if cudnn { Activation::Sigmoid } else { recurrent_activation(config, gates_name, version)? };
                let linear_before_reset = cudnn || flag(config, "reset_after", false)?;
                let activations = [GruActivations { f, g }; 2];
                let class = if class == "GRUCell" { "GRUCell" } else { "GRU" };
                (class, CellSpec::Gru(GruCell { activations, linear_before_reset, ..GruCell::default() }))
            }
            "SimpleRNN" | "SimpleRNNCell" => {
                let class = if class == "SimpleRNNCell" { "SimpleRNNCell" } else { "SimpleRNN" };
                (class, CellSpec::Rnn(RnnCell { activations: [g; 2], ..RnnCell::default() }))
            }
            other => bail!(
                Unsupported,
                "expected LSTM, GRU, SimpleRNN, CuDNNLSTM, CuDNNGRU, Bidirectional, or RNN of their cells; found {other}"
            ),
        };
        let units = match config.get(units_name).and_then(Value::as_u64).map(usize::try_from) {
            Some(Ok(units)) if (1..=MAX_SIZE).contains(&units) => units,
            _ => bail!(
                InvalidFile,
                "{units_name}: expected 1 to {MAX_SIZE}, found {}",
                config.get(units_name).map_or("none".to_owned(), short)
            ),
        };
        Ok(Self { class, spec, units, bias: cudnn || flag(config, "use_bias", true)? })
    }

    /// The equations of a layer from those of its directions.
    pub(super) fn join(&self, reverse: Option<&Cell>) -> Result<CellSpec> {
        let Some(reverse) = reverse else {
            return Ok(self.spec);
        };
        Ok(match (self.spec, reverse.spec) {
            (CellSpec::Lstm(a), CellSpec::Lstm(b)) => {
                CellSpec::Lstm(LstmCell { activations: [a.activations[0], b.activations[0]], ..a })
            }
            (CellSpec::Gru(a), CellSpec::Gru(b)) if a.linear_before_reset == b.linear_before_reset => {
                CellSpec::Gru(GruCell { activations: [a.activations[0], b.activations[0]], ..a })
            }
            (CellSpec::Rnn(a), CellSpec::Rnn(b)) => {
                CellSpec::Rnn(RnnCell { activations: [a.activations[0], b.activations[0]], ..a })
            }
            _ => bail!(
                Unsupported,
                "Bidirectional: expected the same equations in both directions, found different ones"
            ),
        })
    }

    /// Converts variables; also the input size.
    pub(super) fn convert(&self, tensors: &CellTensors) -> Result<(usize, CellWeights)> {
        let CellTensors { kernel, recurrent, bias } = tensors;
        let (units, gates) = (self.units, self.spec.num_gates());
        let rows = gates * units;
        let input_size = match kernel.shape[..] {
            [input, columns] if columns == rows && input > 0 => input,
            _ => bail!(
                InvalidWeights,
                "{}: expected [input_size, {gates}·units] = [_, {rows}], found {:?}",
                kernel.name,
                kernel.shape
            ),
        };
        expect(recurrent, &[units, rows], &format!("[units, {gates}·units]"))?;
        let mut cudnn = false;
        let bias = match (self.bias, bias) {
            (false, None) => None,
            (true, None) => bail!(InvalidWeights, "bias: expected one, as use_bias says, found none"),
            (false, Some(bias)) => {
                bail!(InvalidWeights, "{}: expected none, as use_bias says, found {:?}", bias.name, bias.shape)
            }
            (true, Some(bias)) => {
                // Keras tells the layout of cuDNN by the shape of the bias, whatever the class.
                let has_two = matches!(self.spec, CellSpec::Gru(GruCell { linear_before_reset: true, .. }));
                let is_lstm = self.spec.lstm().is_some();
                cudnn = (is_lstm || has_two) && bias.shape == [2 * rows];
                if cudnn {
                    let (ih, hh) = bias.values.split_at(rows);
                    Some((ih.to_vec(), hh.to_vec()))
                } else if has_two {
                    expect(bias, &[2, rows], "[2, 3·units]")?;
                    let (ih, hh) = bias.values.split_at(rows);
                    Some((ih.to_vec(), hh.to_vec()))
                } else {
                    expect(bias, &[rows], &format!("[{gates}·units]"))?;
                    Some((bias.values.clone(), vec![0.0; rows]))
                }
            }
        };
        // z r h → r z n; i f c o is i f g o.
        let order: &[usize] = if gates == 3 { &[1, 0, 2] } else { &[0, 1, 2, 3][..gates] };
        let mut weight_ih = Vec::with_capacity(kernel.values.len());
        let mut weight_hh = Vec::with_capacity(recurrent.values.len());
        for &gate in order {
            let block = |tensor: &Tensor, row: usize, column: usize| tensor.values[row * rows + gate * units + column];
            for j in 0..units {
                if cudnn {
                    // The block [I, H] holds the bytes of [H, I].
                    weight_ih
                        .extend((j * input_size..(j + 1) * input_size).map(|n| block(kernel, n / units, n % units)));
                    weight_hh.extend((0..units).map(|k| block(recurrent, j, k)));
                } else {
                    weight_ih.extend((0..input_size).map(|k| block(kernel, k, j)));
                    weight_hh.extend((0..units).map(|k| block(recurrent, k, j)));
                }
            }
        }
        let reorder = |b: Vec<f32>| order.iter().flat_map(|&g| b[g * units..(g + 1) * units].to_vec()).collect();
        let (bias_ih, bias_hh) = bias.map(|(ih, hh)| (reorder(ih), reorder(hh))).unzip();
        Ok((input_size, CellWeights { weight_ih, weight_hh, bias_ih, bias_hh, ..CellWeights::default() }))
    }
}

fn expect(tensor: &Tensor, shape: &[usize], meaning: &str) -> Result<()> {
    if tensor.shape != shape {
        bail!(InvalidWeights, "{}: expected {meaning} = {shape:?}, found {:?}", tensor.name, tensor.shape);
    }
    Ok(())
}

/// The gates' activation; its default has changed.
fn recurrent_activation(config: &Value, name: &str, version: Option<Version>) -> Result<Activation> {
    let default = match version {
        Some(Version { major: 2, minor: ..=2, of_tensorflow: true }) if config.get(name).is_none() => bail!(
            InvalidFile,
            "{name}: expected in a file of TensorFlow's Keras 2.2, whose layers have different defaults; found none"
        ),
        Some(v) if (v.major, v.minor) < (2, 3) => Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
        None if config.get(name).is_none() => bail!(
            InvalidFile,
            "{name}: expected in a file without keras_version, since its default has changed; found none"
        ),
        _ => Activation::Sigmoid,
    };
    activation(config, name, default, version)
}

fn activation(config: &Value, name: &str, default: Activation, version: Option<Version>) -> Result<Activation> {
    let named = |e: Error| e.context(name);
    match config.get(name) {
        None => Ok(default),
        Some(Value::Null) => Ok(Activation::Affine { alpha: 1.0, beta: 0.0 }),
        Some(Value::String(function)) => by_name(function, version).map_err(named),
        // Code, such as a lambda: not run, nor guessed at.
        Some(code) if code.get("class_name").is_none() => {
            bail!(Unsupported, "{name}: expected the name of a function, found {}", short(code))
        }
        Some(object) => {
            let (class, config) = class_and_config(object).map_err(named)?;
            by_object(class, config, version).map_err(named)
        }
    }
}

fn by_name(function: &str, version: Option<Version>) -> Result<Activation> {
    Ok(match function {
        "sigmoid" => Activation::Sigmoid,
        "tanh" => Activation::Tanh,
        "relu" => Activation::Relu,
        "linear" => Activation::Affine { alpha: 1.0, beta: 0.0 },
        // celu(x, 1) is elu(x, 1).
        "elu" | "celu" => Activation::Elu { alpha: 1.0 },
        "softplus" => Activation::Softplus,
        "softsign" => Activation::Softsign,
        "leaky_relu" => Activation::LeakyRelu { alpha: 0.2 },
        "hard_sigmoid" => match version {
            // Keras 3: relu6(x + 3) / 6.
            Some(Version { major: 3.., .. }) => Activation::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 },
            Some(_) => Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
            None => bail!(
                Unsupported,
                "expected the attribute keras_version, found none: hard_sigmoid of Keras 2 and 3 differ"
            ),
        },
        other => bail!(
            Unsupported,
            "expected sigmoid, tanh, relu, linear, elu, celu, softplus, softsign, hard_sigmoid or leaky_relu, found {}",
            other.chars().take(80).collect::<String>()
        ),
    })
}

/// An activation given as a layer, as a function object, or as a function with its name as config.
fn by_object(class: &str, config: &Value, version: Option<Version>) -> Result<Activation> {
    let number = |names: &[&str], default: f32| match names.iter().find_map(|name| config.get(*name)) {
        None | Some(Value::Null) => Ok(default),
        // Keras 2 stores some numbers as arrays of numpy.
        Some(value) => match value.as_f64().or_else(|| value.get("value").and_then(Value::as_f64)) {
            Some(number) if (number as f32).is_finite() => Ok(number as f32),
            _ => bail!(InvalidFile, "{class}: {}: expected a number, found {}", names[0], short(value)),
        },
    };
    match class {
        "function" => match config.as_str() {
            Some(function) => by_name(function, version),
            None => bail!(InvalidFile, "expected the name of a function, found {}", short(config)),
        },
        "LeakyReLU" => Ok(Activation::LeakyRelu { alpha: number(&["negative_slope", "alpha"], 0.3)? }),
        "ELU" => Ok(Activation::Elu { alpha: number(&["alpha"], 1.0)? }),
        "ReLU" => {
            let bound = number(&["max_value"], f32::INFINITY)?;
            let (slope, threshold) = (number(&["negative_slope"], 0.0)?, number(&["threshold"], 0.0)?);
            match (bound, slope, threshold) {
                (f32::INFINITY, 0.0, 0.0) => Ok(Activation::Relu),
                (f32::INFINITY, alpha, 0.0) => Ok(Activation::LeakyRelu { alpha }),
                (1.0, 0.0, 0.0) => Ok(Activation::HardSigmoid { alpha: 1.0, beta: 0.0 }),
                _ => bail!(Unsupported, "ReLU: expected no max_value other than 1 and no threshold, found one"),
            }
        }
        "Activation" => activation(config, "activation", Activation::Affine { alpha: 1.0, beta: 0.0 }, version),
        other => {
            bail!(Unsupported, "expected the name of a function, or LeakyReLU, ELU or ReLU as an object, found {other}")
        }
    }
}
