//! Where the kernels expect the weights of a layer: sizes and byte ranges of its buffers.
//!
//! All weights are k-major with one vec4 per column, so that the lanes of a workgroup read neighbouring vec4:
//! `weights_ih` [D][K][columns], K the concatenated input planes; `bias` [D][columns]; `weights_hh`
//! [D][h_stride][columns_hh]; `weights_inner` [D][hidden_stride][h_stride / 4] of four outputs each. What a column is
//! depends on the cell:
//!
//! | cell | column of `weights_ih` and `bias` | column of `weights_hh` | `weights_inner` |
//! |---|---|---|---|
//! | LSTM | i f g o of a unit | i f g o of a unit | W_hr |
//! | GRU, linear before reset | r z n of a unit, and b_hn | r z n of a unit | – |
//! | GRU, not linear before reset | r z n of a unit | r z of two units | W_hn |
//! | RNN | four units | four units | – |
//!
//! Where the input is narrow, `narrow_input` [D][K + 1][columns] has `weights_ih` once more, as f32, and the bias as the last k.
//!
//! `cell_vectors` holds, per unit, the peepholes i f o; with layer normalisation the scales, the biases (`bias` is zero
//! then) and the peepholes. Every k is padded to whole vec4 with zeros. The directions of `weights_ih` and `bias` start at
//! multiples of [`RANGE_ALIGN`], since they are bound one at a time.
//!
//! Where weights are larger than a binding, their columns are split into ranges ([`LayerLayout::within`]), each of which
//! is a buffer of its own in the layout above with only its columns; the packed array holds one range after another.

use std::ops::Range;

use super::{NARROW_INPUT, padded};
use crate::cell::CellSpec;
use crate::spec::{LayerSpec, Merge};

/// `min_storage_buffer_offset_alignment` of WebGPU's default limits, the largest there is.
const RANGE_ALIGN: u64 = 256;
const VEC4: u64 = 16;

/// The parts of a layer's packed weights; one buffer each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ModelPart {
    /// Input weights, a range per direction.
    WeightsIh,
    /// The sum of both biases, a range per direction.
    Bias,
    /// Recurrent weights, both directions.
    WeightsHh,
    /// The weights of a second product in a step, both directions: of the projection, or W_hn; often absent.
    WeightsInner,
    /// Peepholes and normalisation, both directions; often absent.
    CellVectors,
    /// The bias of the projection, both directions; often absent.
    BiasHr,
    /// Input weights and bias of a narrow input, both directions; often absent.
    NarrowInput,
}

impl ModelPart {
    /// All parts.
    pub const ALL: [ModelPart; 7] = [
        ModelPart::WeightsIh,
        ModelPart::Bias,
        ModelPart::WeightsHh,
        ModelPart::WeightsInner,
        ModelPart::CellVectors,
        ModelPart::BiasHr,
        ModelPart::NarrowInput,
    ];

    /// `weights_ih`
    pub fn name(self) -> &'static str {
        match self {
            ModelPart::WeightsIh => "weights_ih",
            ModelPart::Bias => "bias",
            ModelPart::WeightsHh => "weights_hh",
            ModelPart::WeightsInner => "weights_inner",
            ModelPart::CellVectors => "cell_vectors",
            ModelPart::BiasHr => "bias_hr",
            ModelPart::NarrowInput => "narrow_input",
        }
    }
}

/// What a column of weights is; see the table of the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// LSTM.
    Lstm,
    /// GRU, linear before reset.
    Gru,
    /// GRU, not linear before reset.
    GruAfterReset,
    /// RNN.
    Rnn,
}

impl Form {
    /// The form of a cell.
    pub fn of(cell: &CellSpec) -> Self {
        match cell {
            CellSpec::Lstm(_) => Form::Lstm,
            CellSpec::Gru(cell) if cell.linear_before_reset => Form::Gru,
            CellSpec::Gru(_) => Form::GruAfterReset,
            CellSpec::Rnn(_) => Form::Rnn,
        }
    }
}

/// The layout of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerLayout {
    /// The width of each plane of the input, unpadded.
    pub plane_size: usize,
    /// The number of planes side by side: the directions of the layer before, 1 if they are summed and for the first
    /// layer.
    pub num_planes: usize,
    /// Whether a row of the input is the sum of two planes.
    pub sums_planes: bool,
    /// H.
    pub hidden_size: usize,
    /// P or H.
    pub h_size: usize,
    /// D.
    pub num_directions: usize,
    /// What a column is.
    pub form: Form,
    /// vec4 per k of the input weights, and per row of gates.
    pub columns: usize,
    /// vec4 per k of the recurrent weights.
    pub columns_hh: usize,
    /// Whether a step has a second product.
    pub has_inner: bool,
    /// vec4 per unit of the cell vectors; 0 for none.
    pub vectors: usize,
    /// Whether the projection has a bias.
    pub projection_bias: bool,
    /// Whether the device has the weights as halves; the packed arrays are f32 all the same.
    halves: bool,
    /// Whether the weights of a narrow input fit a binding; they are not split.
    narrow_fits: bool,
    /// The most columns of a range of `weights_ih`, `weights_hh` and `weights_inner`.
    range_columns: [usize; 3],
}

impl LayerLayout {
    /// The layout of layer `l` of `layers`.
    pub fn new(layers: &[LayerSpec], l: usize) -> Self {
        let layer = &layers[l];
        let (plane_size, num_planes) = match l.checked_sub(1) {
            Some(before) => (layers[before].h_size(), layers[before].num_outputs()),
            None => (layer.input_size, 1),
        };
        let hidden = layer.hidden_size;
        let form = Form::of(&layer.cell);
        let (columns, columns_hh, has_inner) = match form {
            Form::Lstm => (hidden, hidden, layer.projection_size.is_some()),
            Form::Gru => (hidden, hidden, false),
            Form::GruAfterReset => (hidden, hidden.div_ceil(2), true),
            Form::Rnn => (padded(hidden) / 4, padded(hidden) / 4, false),
        };
        let lstm = layer.cell.lstm().copied().unwrap_or_default();
        Self {
            plane_size,
            num_planes,
            sums_planes: l > 0 && layers[l - 1].merge == Merge::Sum,
            hidden_size: layer.hidden_size,
            h_size: layer.h_size(),
            num_directions: layer.num_directions(),
            form,
            columns,
            columns_hh,
            has_inner,
            vectors: match (lstm.layer_norm, lstm.peepholes) {
                (true, _) => 3,
                (false, true) => 1,
                (false, false) => 0,
            },
            projection_bias: lstm.projection_bias,
            halves: false,
            narrow_fits: true,
            range_columns: [usize::MAX; 3],
        }
    }

    /// The layout with weights that the device has as halves, or not.
    #[must_use]
    pub fn halves(mut self, halves: bool) -> Self {
        self.halves = halves;
        self
    }

    /// Where a range of a part's packed array, in f32, lies on the device.
    pub fn on_device(&self, part: ModelPart, packed: Range<u64>) -> Range<u64> {
        let narrower = if self.is_halved(part) { 2 } else { 1 };
        packed.start / narrower..packed.end / narrower
    }

    /// Whether the device has a part as halves: the matrices, not the vectors.
    pub fn is_halved(&self, part: ModelPart) -> bool {
        self.halves && RANGED.contains(&part)
    }

    /// The layout with ranges of columns that fit bindings and buffers of these sizes, as far as single columns do.
    #[must_use]
    pub fn within(mut self, binding_bytes: u64, buffer_bytes: u64) -> Self {
        /// Ranges of whole workgroups leave no lane idle.
        const WHOLE: u64 = 64;
        for (n, part) in RANGED.into_iter().enumerate() {
            let column = self.on_device(part, 0..self.k(part) as u64 * VEC4).end;
            let directions = self.num_directions as u64;
            let most = match part {
                // Bound one direction at a time.
                ModelPart::WeightsIh => {
                    let buffer = buffer_bytes.saturating_sub(directions * RANGE_ALIGN) / (directions * column);
                    (binding_bytes / column).min(buffer)
                }
                _ if column == 0 => continue,
                _ => binding_bytes.min(buffer_bytes) / (directions * column),
            };
            let most = if most > WHOLE { most - most % WHOLE } else { most.max(1) };
            self.range_columns[n] = usize::try_from(most).unwrap_or(usize::MAX);
        }
        self.narrow_fits = self.size_bytes(ModelPart::NarrowInput) <= binding_bytes.min(buffer_bytes);
        self
    }

    /// Columns of a part that may be split.
    fn columns_of(&self, part: ModelPart) -> usize {
        match part {
            ModelPart::WeightsIh => self.columns,
            ModelPart::WeightsHh => self.columns_hh,
            ModelPart::WeightsInner if self.has_inner => padded(self.h_size) / 4,
            _ => 0,
        }
    }

    /// K of a part that may be split.
    pub fn k(&self, part: ModelPart) -> usize {
        match part {
            ModelPart::WeightsIh => self.input_k(),
            ModelPart::WeightsHh => padded(self.h_size),
            ModelPart::WeightsInner if self.has_inner => padded(self.hidden_size),
            _ => 0,
        }
    }

    fn range_len(&self, part: ModelPart) -> usize {
        let n = RANGED.iter().position(|&p| p == part);
        n.map_or(usize::MAX, |n| self.range_columns[n])
    }

    /// The number of ranges of a part, each of which is a buffer: 0 if the layer does not have the part, 1 if it is not
    /// split.
    pub fn num_ranges(&self, part: ModelPart) -> usize {
        match part {
            ModelPart::WeightsIh | ModelPart::WeightsHh | ModelPart::WeightsInner => {
                self.columns_of(part).div_ceil(self.range_len(part))
            }
            _ => usize::from(self.size_bytes(part) > 0),
        }
    }

    /// The columns of range `i` of a part that may be split.
    pub fn range(&self, part: ModelPart, i: usize) -> Range<usize> {
        let len = self.range_len(part);
        let first = i.saturating_mul(len);
        first..first.saturating_add(len).min(self.columns_of(part))
    }

    /// The range of a part that holds `column`.
    pub fn range_of(&self, part: ModelPart, column: usize) -> usize {
        column / self.range_len(part)
    }

    /// Bytes of range `i` in the packed array of a part.
    pub fn range_bytes(&self, part: ModelPart, i: usize) -> Range<u64> {
        match part {
            ModelPart::WeightsIh => {
                let size = |i| self.weights_ih(i, self.num_directions - 1).end;
                // All ranges before the last are equally long.
                let start = i as u64 * size(0);
                start..start + size(i)
            }
            ModelPart::WeightsHh | ModelPart::WeightsInner => {
                let column = (self.num_directions * self.k(part)) as u64 * VEC4;
                let range = self.range(part, i);
                range.start as u64 * column..range.end as u64 * column
            }
            _ => 0..self.size_bytes(part),
        }
    }

    /// Whether a step may sum over the input itself: one plane of few values, weights that fit a binding, and a cell with a
    /// kernel for it.
    pub fn is_narrow(&self) -> bool {
        let has_kernel = match self.form {
            Form::Lstm => self.vectors == 0,
            Form::Gru => true,
            Form::GruAfterReset | Form::Rnn => false,
        };
        has_kernel && self.narrow_fits && self.num_planes == 1 && !self.sums_planes && self.input_k() <= NARROW_INPUT
    }

    /// Rows of weights per unit.
    pub fn num_gates(&self) -> usize {
        match self.form {
            Form::Lstm => 4,
            Form::Gru | Form::GruAfterReset => 3,
            Form::Rnn => 1,
        }
    }

    /// Whether the gates are layer-normalised.
    pub fn is_normalized(&self) -> bool {
        self.vectors == 3
    }

    /// Whether there is room for peepholes.
    pub fn has_peepholes(&self) -> bool {
        self.vectors > 0
    }

    /// K of the input sum: all planes, each padded.
    pub fn input_k(&self) -> usize {
        self.num_planes * padded(self.plane_size)
    }

    /// The longest sum of the layer's kernels, in elements.
    pub fn longest_sum(&self) -> usize {
        self.input_k().max(padded(self.hidden_size))
    }

    /// Byte range of the input weights of direction `d` in range `i`.
    pub fn weights_ih(&self, i: usize, d: usize) -> Range<u64> {
        // On the device half as far, if the weights are halves.
        let align = if self.halves { 2 * RANGE_ALIGN } else { RANGE_ALIGN };
        aligned_range(d, self.input_k() * self.range(ModelPart::WeightsIh, i).len(), align)
    }

    /// Byte range of the bias of direction `d`.
    pub fn bias(&self, d: usize) -> Range<u64> {
        aligned_range(d, self.columns, RANGE_ALIGN)
    }

    /// Bytes of the largest binding of a part on the device.
    pub fn binding_bytes(&self, part: ModelPart) -> u64 {
        match part {
            ModelPart::WeightsIh => self.on_device(part, self.weights_ih(0, 0)).end,
            ModelPart::Bias => self.bias(0).end,
            _ => self.largest_buffer(part),
        }
    }

    /// Bytes of the largest buffer of a part on the device; 0 if the layer does not have it.
    pub fn largest_buffer(&self, part: ModelPart) -> u64 {
        let bytes = self.on_device(part, self.range_bytes(part, 0));
        bytes.end - bytes.start
    }

    /// Bytes of the packed array of a part; 0 if the layer does not have it.
    pub fn size_bytes(&self, part: ModelPart) -> u64 {
        let directions = self.num_directions as u64;
        match part {
            ModelPart::WeightsIh | ModelPart::WeightsHh | ModelPart::WeightsInner => {
                self.num_ranges(part).checked_sub(1).map_or(0, |last| self.range_bytes(part, last).end)
            }
            ModelPart::Bias => self.bias(self.num_directions - 1).end,
            ModelPart::CellVectors => directions * (self.hidden_size * self.vectors) as u64 * VEC4,
            ModelPart::BiasHr if self.projection_bias => directions * (padded(self.h_size) / 4) as u64 * VEC4,
            ModelPart::BiasHr => 0,
            ModelPart::NarrowInput if self.is_narrow() => {
                directions * ((self.input_k() + 1) * self.columns) as u64 * VEC4
            }
            ModelPart::NarrowInput => 0,
        }
    }
}

/// Where a layer of a stack lies in the stack's two buffers: one has the matrices of its layers one after another, but for
/// the input weights of the first, and one the biases. In vec4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackPlaces {
    /// Input weights [K][H].
    pub w_ih: usize,
    /// Recurrent weights [K][H].
    pub w_hh: usize,
    /// The end of the matrices so far.
    pub matrices_end: usize,
    /// The bias [H].
    pub bias: usize,
    /// The end of the biases so far.
    pub bias_end: usize,
}

impl StackPlaces {
    /// Those of the forward layers of a stack.
    pub fn of(layouts: &[LayerLayout]) -> Vec<StackPlaces> {
        let (mut matrices, mut biases) = (0, 0);
        layouts
            .iter()
            .enumerate()
            .map(|(i, layout)| {
                let w_ih = matrices;
                let w_hh = w_ih + if i == 0 { 0 } else { layout.input_k() * layout.columns };
                let bias = biases;
                matrices = w_hh + layout.k(ModelPart::WeightsHh) * layout.columns_hh;
                biases += layout.columns;
                StackPlaces { w_ih, w_hh, matrices_end: matrices, bias, bias_end: biases }
            })
            .collect()
    }
}

/// The parts that may be split.
const RANGED: [ModelPart; 3] = [ModelPart::WeightsIh, ModelPart::WeightsHh, ModelPart::WeightsInner];

/// The `index`-th of equal ranges of `len` vec4.
fn aligned_range(index: usize, len: usize, align: u64) -> Range<u64> {
    let size = len as u64 * VEC4;
    let start = index as u64 * size.next_multiple_of(align);
    start..start + size
}
