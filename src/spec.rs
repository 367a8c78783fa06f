//! What a model is: a list of layers with sizes, direction, equations, bias and projection, validated once.

use crate::cell::CellSpec;
use crate::error::{Result, bail};

/// The largest size a spec accepts; far beyond any trained model, it keeps products inside 64 bits.
pub const MAX_SIZE: usize = 1 << 24;

/// The directions in which a layer reads its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the first timestep to the last valid one.
    Forward,
    /// From the last valid timestep of each sequence to the first; outputs stay at their own timestep.
    Reverse,
    /// Both; the outputs are merged as [`Merge`] says.
    Bidirectional,
}

/// What becomes of the two outputs of a bidirectional layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Merge {
    /// Side by side, forward first; PyTorch's way.
    #[default]
    Concat,
    /// Added element by element; Keras' `merge_mode="sum"`.
    Sum,
}

impl Direction {
    /// 1 or 2.
    pub fn num_directions(self) -> usize {
        match self {
            Direction::Forward | Direction::Reverse => 1,
            Direction::Bidirectional => 2,
        }
    }

    /// For each direction of the layer in storage order, whether it runs in reverse.
    pub fn is_reverse(self) -> &'static [bool] {
        match self {
            Direction::Forward => &[false],
            Direction::Reverse => &[true],
            Direction::Bidirectional => &[false, true],
        }
    }
}

/// One layer.
///
/// ```
/// use wgpu_lstm::{Direction, LayerSpec, Merge};
/// let layer = LayerSpec { direction: Direction::Bidirectional, merge: Merge::Sum, ..LayerSpec::new(40, 64) };
/// assert_eq!(layer.output_size(), 64);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpec {
    /// I, the width of a row of the layer's input.
    pub input_size: usize,
    /// H, the number of hidden units: the width of the cell state.
    pub hidden_size: usize,
    /// The equations.
    pub cell: CellSpec,
    /// Forward, Reverse or Bidirectional.
    pub direction: Direction,
    /// What becomes of the outputs of a bidirectional layer; Concat for any other.
    pub merge: Merge,
    /// Whether the gates have biases.
    pub bias: bool,
    /// P, the width that `h` is projected to; `None` keeps it at H
    /// ([Sak et al. 2014](https://arxiv.org/abs/1402.1128)).
    pub projection_size: Option<usize>,
}

impl LayerSpec {
    /// PyTorch's `nn.LSTM(input_size, hidden_size)`: forward, with biases, without projection.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        Self {
            input_size,
            hidden_size,
            cell: CellSpec::default(),
            direction: Direction::Forward,
            merge: Merge::Concat,
            bias: true,
            projection_size: None,
        }
    }

    /// The width of `h` in one direction: P with projection, otherwise H.
    pub fn h_size(&self) -> usize {
        self.projection_size.unwrap_or(self.hidden_size)
    }

    /// The width of `c` in one direction: H, or 0 for equations without a cell state.
    pub fn c_size(&self) -> usize {
        if self.cell.has_cell_state() { self.hidden_size } else { 0 }
    }

    /// The width of a row of the layer's output: D·P or D·H, or that of one direction if they are summed.
    pub fn output_size(&self) -> usize {
        self.num_outputs() * self.h_size()
    }

    /// How many times the width of `h` a row of the output has: D, or 1 if the directions are summed.
    pub fn num_outputs(&self) -> usize {
        match self.merge {
            Merge::Concat => self.num_directions(),
            Merge::Sum => 1,
        }
    }

    /// The rows of weights and biases: 4·H for an LSTM, 3·H for a GRU, H for an RNN.
    pub fn gate_rows(&self) -> usize {
        self.cell.num_gates() * self.hidden_size
    }

    /// 1 or 2.
    pub fn num_directions(&self) -> usize {
        self.direction.num_directions()
    }

    /// The number of trained parameters of the layer, counted as PyTorch stores them (two biases).
    pub fn num_parameters(&self) -> usize {
        let gates = self.gate_rows();
        let projection_bias = usize::from(self.cell.lstm().is_some_and(|cell| cell.projection_bias));
        let per_direction = gates * (self.input_size + self.h_size())
            + if self.bias { 2 * gates } else { 0 }
            + self.projection_size.map_or(0, |p| p * (self.hidden_size + projection_bias))
            + self.cell.lstm().map_or(0, |cell| {
                usize::from(cell.peepholes) * 3 * self.hidden_size + usize::from(cell.layer_norm) * gates
            });
        self.num_directions() * per_direction
    }
}

/// A validated stack of layers.
///
/// ```
/// use wgpu_lstm::{Direction, LstmSpec};
/// let spec = LstmSpec::stack(40, 256, 3).direction(Direction::Bidirectional).build()?;
/// assert_eq!(spec.layers()[1].input_size, 512);
/// # Ok::<(), wgpu_lstm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LstmSpec {
    layers: Vec<LayerSpec>,
}

impl LstmSpec {
    /// Validates a list of layers.
    ///
    /// # Errors
    /// [`InvalidSpec`](crate::ErrorKind::InvalidSpec) if the list is empty, a size is zero or above
    /// [`MAX_SIZE`], a projection is not smaller than its hidden size or not that of an LSTM, options do not go
    /// together or a number among them is not finite, or a layer's input size is not the output size of the layer
    /// before it.
    pub fn new(layers: Vec<LayerSpec>) -> Result<Self> {
        if layers.is_empty() {
            bail!(InvalidSpec, "num_layers: expected at least 1, found 0");
        }
        for (l, layer) in layers.iter().enumerate() {
            for (name, size) in [
                ("input_size", layer.input_size),
                ("hidden_size", layer.hidden_size),
                ("projection_size", layer.h_size()),
            ] {
                if size == 0 || size > MAX_SIZE {
                    bail!(InvalidSpec, "layer {l}: {name}: expected 1 to {MAX_SIZE}, found {size}");
                }
            }
            if let Some(p) = layer.projection_size
                && p >= layer.hidden_size
            {
                bail!(
                    InvalidSpec,
                    "layer {l}: projection_size: expected less than hidden_size {}, found {p}",
                    layer.hidden_size
                );
            }
            if layer.projection_size.is_some() && layer.cell.lstm().is_none() {
                bail!(InvalidSpec, "layer {l}: projection_size: expected none for a {}, found one", layer.cell.name());
            }
            if layer.projection_size.is_none() && layer.cell.lstm().is_some_and(|cell| cell.projection_bias) {
                bail!(InvalidSpec, "layer {l}: projection_bias: expected a projection_size, found none");
            }
            if layer.merge == Merge::Sum && layer.direction != Direction::Bidirectional {
                bail!(InvalidSpec, "layer {l}: merge: Sum is for two directions, found {:?}", layer.direction);
            }
            layer.cell.validate(layer.num_directions()).map_err(|e| e.context(format!("layer {l}")))?;
            if l > 0 && layers[l - 1].output_size() != layer.input_size {
                bail!(
                    InvalidSpec,
                    "layer {l}: input_size: expected the output size of layer {} = {}, found {}",
                    l - 1,
                    layers[l - 1].output_size(),
                    layer.input_size
                );
            }
        }
        Ok(Self { layers })
    }

    /// Starts PyTorch's uniform stack: every layer has the same hidden size and options, and each layer's
    /// input is the output of the one before.
    pub fn stack(input_size: usize, hidden_size: usize, num_layers: usize) -> StackBuilder {
        StackBuilder {
            input_size,
            hidden_size,
            num_layers,
            cell: CellSpec::default(),
            direction: Direction::Forward,
            merge: Merge::Concat,
            bias: true,
            projection_size: None,
        }
    }

    /// The layers, first to last; never empty.
    pub fn layers(&self) -> &[LayerSpec] {
        &self.layers
    }

    /// The number of layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// The width of an input row.
    pub fn input_size(&self) -> usize {
        self.layers[0].input_size
    }

    /// The width of an output row: the output size of the last layer.
    pub fn output_size(&self) -> usize {
        self.last_layer().output_size()
    }

    /// The last layer.
    pub fn last_layer(&self) -> &LayerSpec {
        &self.layers[self.layers.len() - 1]
    }

    /// (layer index, layer, runs in reverse) of every cell: layer-major, forward before reverse. This is the
    /// order of states and of [`LstmWeights::cells`](crate::LstmWeights::cells).
    pub fn cells(&self) -> impl Iterator<Item = (usize, &LayerSpec, bool)> {
        self.layers
            .iter()
            .enumerate()
            .flat_map(|(l, layer)| layer.direction.is_reverse().iter().map(move |&reverse| (l, layer, reverse)))
    }

    /// The number of cells, L·D for a uniform stack.
    pub fn num_cells(&self) -> usize {
        self.layers.iter().map(LayerSpec::num_directions).sum()
    }

    /// Whether all layers have the same state widths, so that states have PyTorch's shape [L·D, B, H].
    /// Otherwise states are the blocks [B, H of the cell] one after the other; cells without a cell state have no
    /// block in `c`.
    pub fn has_uniform_state(&self) -> bool {
        let first = &self.layers[0];
        self.layers.iter().all(|l| l.c_size() == first.c_size() && l.h_size() == first.h_size())
    }

    /// Elements of `h` and `c` of one sequence over all cells.
    pub fn state_sizes(&self) -> (usize, usize) {
        self.cells().fold((0, 0), |(h, c), (_, layer, _)| (h + layer.h_size(), c + layer.c_size()))
    }

    /// The number of trained parameters.
    pub fn num_parameters(&self) -> usize {
        self.layers.iter().map(LayerSpec::num_parameters).fold(0, usize::saturating_add)
    }
}

/// Options of [`LstmSpec::stack`].
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct StackBuilder {
    input_size: usize,
    hidden_size: usize,
    num_layers: usize,
    cell: CellSpec,
    direction: Direction,
    merge: Merge,
    bias: bool,
    projection_size: Option<usize>,
}

impl StackBuilder {
    /// The equations of every layer; PyTorch's LSTM unless set.
    pub fn cell(mut self, cell: CellSpec) -> Self {
        self.cell = cell;
        self
    }

    /// What becomes of the outputs of each bidirectional layer; Concat unless set.
    pub fn merge(mut self, merge: Merge) -> Self {
        self.merge = merge;
        self
    }

    /// The direction of every layer; Forward unless set.
    pub fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    /// Whether the gates have biases; true unless set.
    pub fn bias(mut self, bias: bool) -> Self {
        self.bias = bias;
        self
    }

    /// PyTorch's `proj_size`; `None` or 0 for no projection.
    pub fn projection(mut self, projection_size: impl Into<Option<usize>>) -> Self {
        self.projection_size = projection_size.into().filter(|&p| p > 0);
        self
    }

    /// Validates the stack.
    ///
    /// # Errors
    /// As [`LstmSpec::new`].
    pub fn build(self) -> Result<LstmSpec> {
        const MAX_LAYERS: usize = 1 << 10;
        if self.num_layers > MAX_LAYERS {
            bail!(InvalidSpec, "num_layers: expected 1 to {MAX_LAYERS}, found {}", self.num_layers);
        }
        let mut input_size = self.input_size;
        let layers = (0..self.num_layers)
            .map(|_| {
                let layer = LayerSpec {
                    input_size,
                    hidden_size: self.hidden_size,
                    cell: self.cell,
                    direction: self.direction,
                    merge: self.merge,
                    bias: self.bias,
                    projection_size: self.projection_size,
                };
                input_size = layer.num_outputs().saturating_mul(layer.h_size());
                layer
            })
            .collect();
        LstmSpec::new(layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use crate::cell::{GruCell, LstmActivations, LstmCell};
    use crate::ErrorKind;

    #[test]
    fn stack_chains_sizes() {
        let spec = LstmSpec::stack(12, 32, 3).direction(Direction::Bidirectional).projection(8).build().unwrap();
        let inputs: Vec<_> = spec.layers().iter().map(|l| l.input_size).collect();
        assert_eq!(inputs, [12, 16, 16]);
        assert_eq!(spec.output_size(), 16);
        assert_eq!(spec.num_cells(), 6);
        assert_eq!(spec.state_sizes(), (6 * 8, 6 * 32));
    }

    #[test]
    fn cells_decide_gates_states_and_widths() {
        let gru = LstmSpec::stack(12, 32, 2).cell(CellSpec::Gru(GruCell::default()));
        let spec = gru.direction(Direction::Bidirectional).merge(Merge::Sum).build().unwrap();
        assert_eq!(spec.layers()[1].input_size, 32);
        assert_eq!((spec.output_size(), spec.state_sizes()), (32, (4 * 32, 0)));
        let per_direction = |input: usize| 96 * (input + 32) + 2 * 96;
        assert_eq!(spec.num_parameters(), 2 * (per_direction(12) + per_direction(32)));
        let all = LstmCell { peepholes: true, layer_norm: true, projection_bias: true, ..LstmCell::default() };
        let spec = LstmSpec::stack(3, 8, 1).cell(CellSpec::Lstm(all)).projection(2).build().unwrap();
        assert_eq!(spec.num_parameters(), 32 * (3 + 2) + 64 + 2 * 9 + 24 + 32);
    }

    #[test]
    fn invalid_specs_name_the_offender() {
        let bad = |s: StackBuilder| s.build().unwrap_err();
        for (error, needle) in [
            (bad(LstmSpec::stack(0, 4, 1)), "layer 0: input_size: expected 1 to 16777216, found 0"),
            (bad(LstmSpec::stack(4, 0, 1)), "layer 0: hidden_size"),
            (bad(LstmSpec::stack(4, 4, 0)), "num_layers: expected at least 1, found 0"),
            (bad(LstmSpec::stack(4, 4, 1).projection(4)), "expected less than hidden_size 4, found 4"),
            (bad(LstmSpec::stack(usize::MAX, 4, 1)), "layer 0: input_size"),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidSpec);
            assert!(error.to_string().contains(needle), "{error}");
        }
        let lstm = |cell: LstmCell| LstmSpec::stack(4, 8, 1).cell(CellSpec::Lstm(cell));
        let gru = LstmSpec::stack(4, 8, 1).cell(CellSpec::Gru(GruCell::default()));
        let mut differing = LstmCell::default();
        differing.activations[1].g = Activation::Relu;
        let mut infinite = LstmCell::default();
        infinite.activations = [LstmActivations { h: Activation::Elu { alpha: f32::INFINITY }, ..infinite.activations[0] }; 2];
        for (error, needle) in [
            (bad(gru.projection(3)), "layer 0: projection_size: expected none for a GRU"),
            (bad(gru.merge(Merge::Sum)), "layer 0: merge: Sum is for two directions, found Forward"),
            (bad(lstm(LstmCell { projection_bias: true, ..LstmCell::default() })), "expected a projection_size"),
            (bad(lstm(LstmCell { cell_clip: Some(0.0), ..LstmCell::default() })), "cell_clip: expected a positive"),
            (bad(lstm(LstmCell { activation_clip: Some(f32::NAN), ..LstmCell::default() })), "found NaN"),
            (bad(lstm(differing)), "found others in the second"),
            (bad(lstm(infinite)), "activation h: Elu expects a finite alpha, found inf"),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidSpec);
            assert!(error.to_string().contains(needle), "{error}");
        }
        let mut layers = LstmSpec::stack(4, 8, 2).build().unwrap().layers().to_vec();
        layers[1].input_size = 9;
        let error = LstmSpec::new(layers).unwrap_err().to_string();
        assert_eq!(error, "layer 1: input_size: expected the output size of layer 0 = 8, found 9");
    }
}
