//! What a layer computes at each timestep: LSTM, GRU or the one-layer module of a standard recurrent network, with
//! their options.
//!
//! In:  options, as a file or a caller gives them.
//! Out: [`CellSpec`], a part of a layer's spec; checked with it.
//! The equations are those of `reference/cell.rs`; docs/numerics.md has them with their order of summation.
//! Not here: sizes, direction, biases (`spec`).

use crate::activation::Activation;
use crate::error::{Result, bail};

/// The equations of a layer. Options that hold functions have them per direction, forward first; a layer of one
/// direction, whichever, has the same in both places.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CellSpec {
    /// Long short-term memory: state h and c, gates i f g o.
    Lstm(LstmCell),
    /// Gated recurrent unit: state h, gates r z n.
    Gru(GruCell),
    /// The standard recurrent network: h' = f(W_ih·x + b_ih + W_hh·h + b_hh).
    Rnn(RnnCell),
}

/// The activations of an LSTM, by ONNX's letters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LstmActivations {
    /// Of the gates i, f and o; Sigmoid unless set.
    pub f: Activation,
    /// Of the cell candidate g; Tanh unless set.
    pub g: Activation,
    /// Of the cell state where it enters h; Tanh unless set.
    pub h: Activation,
}

/// The options of an LSTM; the default is PyTorch's `nn.LSTM`.
///
/// ```
/// use wgpu_lstm::{CellSpec, LstmCell, LstmSpec};
/// let cell = LstmCell { peepholes: true, cell_clip: Some(3.0), ..LstmCell::default() };
/// let spec = LstmSpec::stack(40, 64, 2).cell(CellSpec::Lstm(cell)).build()?;
/// # Ok::<(), wgpu_lstm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LstmCell {
    /// Per direction.
    pub activations: [LstmActivations; 2],
    /// The gates see the cell state: i and f that before the step, o that after it
    /// ([Gers and Schmidhuber 2000](https://doi.org/10.1109/IJCNN.2000.861302)).
    pub peepholes: bool,
    /// f = 1 − i after activation; weights, bias and peephole of f are present and not used. ONNX's `input_forget`.
    pub coupled_input_forget: bool,
    /// Clamps what every activation is applied to, and so also c where it enters h, to ±this. The stored c is not
    /// clamped. ONNX's `clip`.
    pub activation_clip: Option<f32>,
    /// Whether `activation_clip` also clamps c where it enters h; true unless set. ONNX's text says so, onnxruntime
    /// does not do it.
    pub clip_output_activation: bool,
    /// Clamps the stored c to ±this. The clip of TensorFlow, NNAPI and cuDNN.
    pub cell_clip: Option<f32>,
    /// Each gate's sum, peephole included, is normalised over the H units to mean 0 and variance 1, scaled by a
    /// trained vector, and its bias is added then; as in
    /// [NNAPI](https://developer.android.com/ndk/reference/group/neural-networks), ε = 1e-8.
    pub layer_norm: bool,
    /// The projection has a bias `[P]`, as in NNAPI.
    pub projection_bias: bool,
}

impl Default for LstmCell {
    fn default() -> Self {
        let activations = LstmActivations { f: Activation::Sigmoid, g: Activation::Tanh, h: Activation::Tanh };
        Self {
            activations: [activations; 2],
            peepholes: false,
            coupled_input_forget: false,
            activation_clip: None,
            clip_output_activation: true,
            cell_clip: None,
            layer_norm: false,
            projection_bias: false,
        }
    }
}

/// The activations of a GRU, by ONNX's letters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GruActivations {
    /// Of the gates r and z; Sigmoid unless set.
    pub f: Activation,
    /// Of the candidate n; Tanh unless set.
    pub g: Activation,
}

/// The options of a GRU; the default is PyTorch's `nn.GRU`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GruCell {
    /// Per direction.
    pub activations: [GruActivations; 2],
    /// Whether r multiplies W_hn·h + b_hn (as in PyTorch, and Keras' `reset_after`), or h before the product with
    /// W_hn ([Cho et al. 2014](https://arxiv.org/abs/1406.1078), and ONNX's default).
    pub linear_before_reset: bool,
    /// Clamps what every activation is applied to, to ±this. ONNX's `clip`.
    pub activation_clip: Option<f32>,
}

impl Default for GruCell {
    fn default() -> Self {
        let activations = GruActivations { f: Activation::Sigmoid, g: Activation::Tanh };
        Self { activations: [activations; 2], linear_before_reset: true, activation_clip: None }
    }
}

/// The options of a standard recurrent network; the default is PyTorch's `nn.RNN`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RnnCell {
    /// Per direction; Tanh unless set.
    pub activations: [Activation; 2],
    /// Clamps what the activation is applied to, to ±this. ONNX's `clip`.
    pub activation_clip: Option<f32>,
}

impl Default for RnnCell {
    fn default() -> Self {
        Self { activations: [Activation::Tanh; 2], activation_clip: None }
    }
}

impl Default for CellSpec {
    /// PyTorch's `nn.LSTM`.
    fn default() -> Self {
        CellSpec::Lstm(LstmCell::default())
    }
}

impl CellSpec {
    /// `LSTM`, `GRU` or `RNN`.
    pub fn name(&self) -> &'static str {
        match self {
            CellSpec::Lstm(_) => "LSTM",
            CellSpec::Gru(_) => "GRU",
            CellSpec::Rnn(_) => "RNN",
        }
    }

    /// The rows of weights per hidden unit: i f g o, r z n, or one.
    pub fn num_gates(&self) -> usize {
        match self {
            CellSpec::Lstm(_) => 4,
            CellSpec::Gru(_) => 3,
            CellSpec::Rnn(_) => 1,
        }
    }

    /// Whether the state has a cell state c besides h.
    pub fn has_cell_state(&self) -> bool {
        matches!(self, CellSpec::Lstm(_))
    }

    /// The LSTM's options, if it is one.
    pub fn lstm(&self) -> Option<&LstmCell> {
        match self {
            CellSpec::Lstm(cell) => Some(cell),
            CellSpec::Gru(_) | CellSpec::Rnn(_) => None,
        }
    }

    /// Names and functions of direction `d`.
    pub fn activations(&self, d: usize) -> Vec<(&'static str, Activation)> {
        match self {
            CellSpec::Lstm(cell) => {
                let LstmActivations { f, g, h } = cell.activations[d];
                vec![("f", f), ("g", g), ("h", h)]
            }
            CellSpec::Gru(cell) => vec![("f", cell.activations[d].f), ("g", cell.activations[d].g)],
            CellSpec::Rnn(cell) => vec![("f", cell.activations[d])],
        }
    }

    /// Checks the numbers among the options of a layer of `num_directions`.
    pub(crate) fn validate(&self, num_directions: usize) -> Result<()> {
        for d in 0..2 {
            for (role, activation) in self.activations(d) {
                let (alpha, beta) = activation.parameters();
                for (name, value) in [("alpha", alpha), ("beta", beta)] {
                    if let Some(value) = value
                        && !value.is_finite()
                    {
                        bail!(
                            InvalidSpec,
                            "activation {role}: {} expects a finite {name}, found {value}",
                            activation.name()
                        );
                    }
                }
            }
        }
        if num_directions == 1 && self.activations(0) != self.activations(1) {
            bail!(
                InvalidSpec,
                "activations: a layer of one direction has the same ones in both places, found others in the second"
            );
        }
        let (activation_clip, cell_clip) = match self {
            CellSpec::Lstm(cell) => (cell.activation_clip, cell.cell_clip),
            CellSpec::Gru(cell) => (cell.activation_clip, None),
            CellSpec::Rnn(cell) => (cell.activation_clip, None),
        };
        for (name, clip) in [("activation_clip", activation_clip), ("cell_clip", cell_clip)] {
            if let Some(clip) = clip
                && !(clip > 0.0 && clip.is_finite())
            {
                bail!(InvalidSpec, "{name}: expected a positive number (absent for none), found {clip}");
            }
        }
        Ok(())
    }
}
