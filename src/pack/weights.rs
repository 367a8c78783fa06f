//! Weights: gate-major rows → k-major columns of one vec4.

use crate::kernels::{COLUMN, Form, LayerLayout, ModelPart, padded};
use crate::weights::CellWeights;

/// The buffers of one layer, in the layout of [`LayerLayout`].
#[derive(Debug, Clone, PartialEq)]
pub struct PackedLayer {
    /// By [`ModelPart::ALL`]; empty for a part that the layer does not have.
    parts: [Vec<f32>; 7],
}

impl PackedLayer {
    /// The buffer of a part.
    pub fn part(&self, part: ModelPart) -> &[f32] {
        &self.parts[index(part)]
    }

    fn part_mut(&mut self, part: ModelPart) -> &mut Vec<f32> {
        &mut self.parts[index(part)]
    }
}

fn index(part: ModelPart) -> usize {
    ModelPart::ALL.iter().position(|&p| p == part).expect("ALL lists every part")
}

/// Packs the cells of a layer, forward before reverse.
pub fn pack_layer(layout: &LayerLayout, cells: &[CellWeights]) -> PackedLayer {
    let zeros = |part| vec![0.0; (layout.size_bytes(part) / 4) as usize];
    let mut packed = PackedLayer { parts: ModelPart::ALL.map(zeros) };
    let hidden = layout.hidden_size;
    for (d, cell) in cells.iter().enumerate() {
        let at = Places::new(layout, d);
        let bias = |row: usize| match (&cell.bias_ih, &cell.bias_hh) {
            (Some(ih), Some(hh)) => (ih[row], hh[row]),
            _ => (0.0, 0.0),
        };
        for gate in 0..layout.num_gates() {
            for j in 0..hidden {
                let row = gate * hidden + j;
                let column = at.weight_ih(gate, j);
                for (k, &w) in cell.weight_ih[row * at.input_size..][..at.input_size].iter().enumerate() {
                    packed.part_mut(column.part)[column.at(at.padded_k(k))] = w;
                    if layout.is_narrow() {
                        packed.part_mut(ModelPart::NarrowInput)[at.narrow(gate, j).at(k)] = w;
                    }
                }
                let column = at.weight_hh(gate, j);
                for (k, &w) in cell.weight_hh[row * layout.h_size..][..layout.h_size].iter().enumerate() {
                    packed.part_mut(column.part)[column.at(k)] = w;
                }
                let (b_ih, b_hh) = bias(row);
                match at.bias(gate, j) {
                    BiasPlaces::Sum(part, place) => packed.part_mut(part)[place] = b_ih + b_hh,
                    BiasPlaces::Apart(ih, hh) => {
                        packed.part_mut(ModelPart::Bias)[ih] = b_ih;
                        packed.part_mut(ModelPart::Bias)[hh] = b_hh;
                    }
                }
            }
        }
        if layout.is_narrow() {
            // A copy of the bias, b_hn included, is the last k.
            let first = at.narrow(0, 0).at(layout.input_k());
            let bias = packed.part(ModelPart::Bias)[at.bias_first..][..layout.columns * COLUMN].to_vec();
            packed.part_mut(ModelPart::NarrowInput)[first..][..bias.len()].copy_from_slice(&bias);
        }
        for (p, row) in cell.weight_hr.iter().flat_map(|w| w.chunks_exact(hidden)).enumerate() {
            let column = at.weight_inner(p);
            for (j, &w) in row.iter().enumerate() {
                packed.part_mut(column.part)[column.at(j)] = w;
            }
        }
        for (p, &b) in cell.bias_hr.iter().flatten().enumerate() {
            packed.part_mut(ModelPart::BiasHr)[at.bias_hr(p)] = b;
        }
        for (n, &w) in cell.weight_peephole.iter().flatten().enumerate() {
            packed.part_mut(ModelPart::CellVectors)[at.peephole(n / hidden, n % hidden)] = w;
        }
        for (n, &w) in cell.weight_norm.iter().flatten().enumerate() {
            packed.part_mut(ModelPart::CellVectors)[at.vector(0, n / hidden, n % hidden)] = w;
        }
    }
    packed
}

/// The inverse of [`pack_layer`], except that the sum of two biases comes back as that of `bias_ih`, and that of
/// `bias_hh` is zero.
pub fn unpack_layer(layout: &LayerLayout, packed: &PackedLayer, bias: bool) -> Vec<CellWeights> {
    let hidden = layout.hidden_size;
    let vectors = |has: bool, parts: usize, place: &dyn Fn(usize, usize) -> usize| {
        let values = |part: usize| (0..hidden).map(move |j| (part, j));
        has.then(|| {
            let places = (0..parts).flat_map(values).map(|(part, j)| place(part, j));
            places.map(|place| packed.part(ModelPart::CellVectors)[place]).collect()
        })
    };
    (0..layout.num_directions)
        .map(|d| {
            let at = Places::new(layout, d);
            let rows = || (0..layout.num_gates() * hidden).map(|row| (row / hidden, row % hidden));
            let biases = rows().map(|(gate, j)| match at.bias(gate, j) {
                BiasPlaces::Sum(part, place) => (packed.part(part)[place], 0.0),
                BiasPlaces::Apart(ih, hh) => (packed.part(ModelPart::Bias)[ih], packed.part(ModelPart::Bias)[hh]),
            });
            let (bias_ih, bias_hh): (Vec<f32>, Vec<f32>) = biases.unzip();
            let projected = layout.has_inner && layout.form == Form::Lstm;
            CellWeights {
                weight_ih: rows()
                    .flat_map(|(g, j)| (0..at.input_size).map(move |k| (k, at.weight_ih(g, j))))
                    .map(|(k, column)| packed.part(column.part)[column.at(at.padded_k(k))])
                    .collect(),
                weight_hh: rows()
                    .flat_map(|(g, j)| (0..layout.h_size).map(move |k| (k, at.weight_hh(g, j))))
                    .map(|(k, column)| packed.part(column.part)[column.at(k)])
                    .collect(),
                bias_ih: bias.then_some(bias_ih),
                bias_hh: bias.then_some(bias_hh),
                weight_hr: projected.then(|| {
                    (0..layout.h_size)
                        .flat_map(|p| (0..hidden).map(move |j| (j, at.weight_inner(p))))
                        .map(|(j, column)| packed.part(column.part)[column.at(j)])
                        .collect()
                }),
                bias_hr: layout
                    .projection_bias
                    .then(|| (0..layout.h_size).map(|p| packed.part(ModelPart::BiasHr)[at.bias_hr(p)]).collect()),
                weight_peephole: vectors(layout.has_peepholes(), 3, &|part, j| at.peephole(part, j)),
                weight_norm: vectors(layout.is_normalized(), 4, &|part, j| at.vector(0, part, j)),
            }
        })
        .collect()
}

/// Where the biases of a gate of a unit lie.
enum BiasPlaces {
    /// Their sum, in one place of a part.
    Sum(ModelPart, usize),
    /// That of x and that of h, in places of [`ModelPart::Bias`].
    Apart(usize, usize),
}

/// The weights of one gate of one unit: the f32 index of its k is `first + k · stride`.
#[derive(Clone, Copy)]
struct Column {
    part: ModelPart,
    first: usize,
    stride: usize,
}

impl Column {
    fn at(&self, k: usize) -> usize {
        self.first + k * self.stride
    }
}

/// The f32 index of each element of one direction; the only place that spells the layout out.
#[derive(Clone, Copy)]
struct Places<'a> {
    layout: &'a LayerLayout,
    d: usize,
    input_size: usize,
    bias_first: usize,
    vectors_first: usize,
    bias_hr_first: usize,
}

impl<'a> Places<'a> {
    fn new(layout: &'a LayerLayout, d: usize) -> Self {
        Self {
            layout,
            d,
            input_size: layout.num_planes * layout.plane_size,
            bias_first: (layout.bias(d).start / 4) as usize,
            vectors_first: d * layout.hidden_size * layout.vectors * COLUMN,
            bias_hr_first: d * padded(layout.h_size),
        }
    }

    /// The place of gate `gate` of unit `j` among the columns of x.
    fn column(&self, gate: usize, j: usize) -> usize {
        match self.layout.form {
            Form::Lstm | Form::Gru | Form::GruAfterReset => j * COLUMN + gate,
            Form::Rnn => j,
        }
    }

    /// Component `place % 4` of column `place / 4` of a part.
    fn in_range(&self, part: ModelPart, place: usize) -> Column {
        let layout = self.layout;
        let i = layout.range_of(part, place / COLUMN);
        let columns = layout.range(part, i);
        let of_direction = match part {
            ModelPart::WeightsIh => layout.weights_ih(i, self.d).start,
            _ => {
                let bytes = layout.range_bytes(part, i);
                (bytes.end - bytes.start) / layout.num_directions as u64 * self.d as u64
            }
        };
        let first = (layout.range_bytes(part, i).start + of_direction) as usize / 4;
        Column { part, first: first + place - columns.start * COLUMN, stride: columns.len() * COLUMN }
    }

    fn weight_ih(&self, gate: usize, j: usize) -> Column {
        self.in_range(ModelPart::WeightsIh, self.column(gate, j))
    }

    /// The row of packed input weights that belongs to input `k`.
    fn padded_k(&self, k: usize) -> usize {
        let plane_size = self.layout.plane_size;
        k / plane_size * padded(plane_size) + k % plane_size
    }

    fn bias(&self, gate: usize, j: usize) -> BiasPlaces {
        let x = self.bias_first + self.column(gate, j);
        match self.layout.form {
            Form::Gru if gate == 2 => BiasPlaces::Apart(x, x + 1),
            Form::Lstm if self.layout.is_normalized() => {
                BiasPlaces::Sum(ModelPart::CellVectors, self.vector(1, gate, j))
            }
            _ => BiasPlaces::Sum(ModelPart::Bias, x),
        }
    }

    fn weight_hh(&self, gate: usize, j: usize) -> Column {
        let place = match self.layout.form {
            Form::GruAfterReset if gate == 2 => return self.weight_inner(j),
            Form::GruAfterReset => j / 2 * COLUMN + 2 * (j % 2) + gate,
            Form::Lstm | Form::Gru | Form::Rnn => self.column(gate, j),
        };
        self.in_range(ModelPart::WeightsHh, place)
    }

    /// Gate `gate` of unit `j` of a narrow input, whose last k is the bias.
    fn narrow(&self, gate: usize, j: usize) -> Column {
        let stride = self.layout.columns * COLUMN;
        let first = self.d * (self.layout.input_k() + 1) * stride;
        Column { part: ModelPart::NarrowInput, first: first + self.column(gate, j), stride }
    }

    fn weight_inner(&self, output: usize) -> Column {
        self.in_range(ModelPart::WeightsInner, output)
    }

    /// Component `part` of vector `n` of unit `j`.
    fn vector(&self, n: usize, part: usize, j: usize) -> usize {
        self.vectors_first + (j * self.layout.vectors + n) * COLUMN + part
    }

    fn peephole(&self, part: usize, j: usize) -> usize {
        self.vector(self.layout.vectors - 1, part, j)
    }

    fn bias_hr(&self, p: usize) -> usize {
        self.bias_hr_first + p
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CellSpec, Direction, GruCell, LstmCell, LstmSpec, LstmWeights, Merge, RnnCell};

    #[test]
    fn unpacking_inverts_packing() {
        let plain = CellSpec::default();
        let norm = LstmCell { layer_norm: true, ..LstmCell::default() };
        let everything = CellSpec::Lstm(LstmCell { peepholes: true, projection_bias: true, ..norm });
        let after_reset = CellSpec::Gru(GruCell { linear_before_reset: false, ..GruCell::default() });
        for (cell, input, hidden, direction, projection, bias) in [
            (plain, 5, 7, Direction::Bidirectional, None, true),
            (plain, 1, 1, Direction::Forward, None, false),
            (plain, 12, 8, Direction::Reverse, Some(3), true),
            (plain, 9, 27, Direction::Bidirectional, Some(5), false),
            (
                CellSpec::Lstm(LstmCell { peepholes: true, ..LstmCell::default() }),
                3,
                6,
                Direction::Bidirectional,
                None,
                true,
            ),
            (CellSpec::Lstm(norm), 3, 6, Direction::Forward, None, false),
            (everything, 4, 9, Direction::Bidirectional, Some(6), true),
            (CellSpec::Gru(GruCell::default()), 4, 9, Direction::Bidirectional, None, true),
            (after_reset, 4, 9, Direction::Bidirectional, None, true),
            (after_reset, 1, 1, Direction::Forward, None, false),
            (CellSpec::Rnn(RnnCell::default()), 4, 9, Direction::Bidirectional, None, true),
        ] {
            let spec = LstmSpec::stack(input, hidden, 2)
                .cell(cell)
                .direction(direction)
                .merge(if hidden == 9 { Merge::Sum } else { Merge::Concat })
                .projection(projection)
                .bias(bias)
                .build()
                .unwrap();
            let mut cells = LstmWeights::random(&spec, 3).cells().to_vec();
            let apart = if cell == CellSpec::Gru(GruCell::default()) { 2 * hidden } else { usize::MAX };
            for cell in &mut cells {
                // The packed bias is a sum but for n of a GRU; with a zero second bias it comes back as the first.
                let biases = cell.bias_hh.iter_mut().flatten();
                biases.enumerate().filter(|(row, _)| *row < apart).for_each(|(_, b)| *b = 0.0);
            }
            let directions = direction.num_directions();
            // In one range, and in ranges of a few columns.
            for (l, limit) in [(0, u64::MAX), (1, u64::MAX), (0, 2 * 16 * 24), (1, 2 * 16 * 24)] {
                let layout = LayerLayout::new(spec.layers(), l).within(limit, u64::MAX);
                if limit < u64::MAX && hidden > 8 {
                    assert!(layout.num_ranges(ModelPart::WeightsHh) > 1);
                }
                let of_layer = &cells[l * directions..][..directions];
                let packed = pack_layer(&layout, of_layer);
                for part in ModelPart::ALL {
                    assert_eq!(packed.part(part).len() as u64 * 4, layout.size_bytes(part));
                }
                let mut unpacked = unpack_layer(&layout, &packed, bias);
                if cell == CellSpec::Lstm(norm) {
                    // There is room for peepholes beside the scales; it is zero.
                    for cell in &mut unpacked {
                        assert!(cell.weight_peephole.take().unwrap().iter().all(|p| *p == 0.0));
                    }
                }
                assert_eq!(unpacked, of_layer);
            }
        }
    }

    #[test]
    fn one_unit_is_one_vec4_in_the_order_i_f_g_o() {
        let spec = LstmSpec::stack(2, 3, 1).build().unwrap();
        let layout = LayerLayout::new(spec.layers(), 0);
        let mut cell = LstmWeights::random(&spec, 1).cells()[0].clone();
        // weight_ih[gate · H + j, k] = 100·gate + 10·j + k
        cell.weight_ih = (0..24).map(|n| (100 * (n / 6) + 10 * (n / 2 % 3) + n % 2) as f32).collect();
        let packed = pack_layer(&layout, &[cell]);
        assert_eq!(packed.part(ModelPart::WeightsIh)[..8], [0., 100., 200., 300., 10., 110., 210., 310.]);
        assert_eq!(packed.part(ModelPart::WeightsIh)[12..16], [1., 101., 201., 301.]);
        assert!(packed.part(ModelPart::WeightsIh)[24..].iter().all(|&w| w == 0.0), "padding is zero");
    }
}
