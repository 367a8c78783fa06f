//! Weights: gate-major rows → k-major columns of one vec4 per unit.

use crate::kernels::{GATES, LayerLayout, ModelPart, padded};
use crate::weights::CellWeights;

/// The buffers of one layer, in the layout of [`LayerLayout`].
#[derive(Debug, Clone, PartialEq)]
pub struct PackedLayer {
    /// Input weights.
    pub weights_ih: Vec<f32>,
    /// b_ih + b_hh, zero without bias.
    pub bias: Vec<f32>,
    /// Recurrent weights.
    pub weights_hh: Vec<f32>,
    /// Projection weights, empty without projection.
    pub weights_hr: Vec<f32>,
}

impl PackedLayer {
    /// The buffer of a part.
    pub fn part(&self, part: ModelPart) -> &[f32] {
        match part {
            ModelPart::WeightsIh => &self.weights_ih,
            ModelPart::Bias => &self.bias,
            ModelPart::WeightsHh => &self.weights_hh,
            ModelPart::WeightsHr => &self.weights_hr,
        }
    }
}

/// Packs the cells of a layer, forward before reverse.
pub fn pack_layer(layout: &LayerLayout, cells: &[CellWeights]) -> PackedLayer {
    let zeros = |part| vec![0.0; (layout.size_bytes(part) / 4) as usize];
    let mut packed = PackedLayer {
        weights_ih: zeros(ModelPart::WeightsIh),
        bias: zeros(ModelPart::Bias),
        weights_hh: zeros(ModelPart::WeightsHh),
        weights_hr: zeros(ModelPart::WeightsHr),
    };
    let hidden = layout.hidden_size;
    for (d, cell) in cells.iter().enumerate() {
        let at = Places::new(layout, d);
        for gate in 0..GATES {
            for j in 0..hidden {
                let row = gate * hidden + j;
                for (k, &w) in cell.weight_ih[row * at.input_size..][..at.input_size].iter().enumerate() {
                    packed.weights_ih[at.weight_ih(k, gate, j)] = w;
                }
                for (k, &w) in cell.weight_hh[row * layout.h_size..][..layout.h_size].iter().enumerate() {
                    packed.weights_hh[at.weight_hh(k, gate, j)] = w;
                }
                if let (Some(b_ih), Some(b_hh)) = (&cell.bias_ih, &cell.bias_hh) {
                    packed.bias[at.bias(gate, j)] = b_ih[row] + b_hh[row];
                }
            }
        }
        if let Some(weight_hr) = &cell.weight_hr {
            for (p, row) in weight_hr.chunks_exact(hidden).enumerate() {
                for (j, &w) in row.iter().enumerate() {
                    packed.weights_hr[at.weight_hr(j, p)] = w;
                }
            }
        }
    }
    packed
}

/// The inverse of [`pack_layer`], except that the sum of the biases comes back as `bias_ih` and `bias_hh` is zero.
pub fn unpack_layer(layout: &LayerLayout, packed: &PackedLayer, bias: bool) -> Vec<CellWeights> {
    let hidden = layout.hidden_size;
    (0..layout.num_directions)
        .map(|d| {
            let at = Places::new(layout, d);
            let rows = || (0..GATES * hidden).map(|row| (row / hidden, row % hidden));
            CellWeights {
                weight_ih: rows()
                    .flat_map(|(g, j)| (0..at.input_size).map(move |k| (k, g, j)))
                    .map(|(k, g, j)| packed.weights_ih[at.weight_ih(k, g, j)])
                    .collect(),
                weight_hh: rows()
                    .flat_map(|(g, j)| (0..layout.h_size).map(move |k| (k, g, j)))
                    .map(|(k, g, j)| packed.weights_hh[at.weight_hh(k, g, j)])
                    .collect(),
                bias_ih: bias.then(|| rows().map(|(g, j)| packed.bias[at.bias(g, j)]).collect()),
                bias_hh: bias.then(|| vec![0.0; GATES * hidden]),
                weight_hr: layout.projected.then(|| {
                    (0..layout.h_size)
                        .flat_map(|p| (0..hidden).map(move |j| (j, p)))
                        .map(|(j, p)| packed.weights_hr[at.weight_hr(j, p)])
                        .collect()
                }),
                ..CellWeights::default()
            }
        })
        .collect()
}

/// The f32 index of each element of one direction; the only place that spells the layout out.
struct Places {
    plane_size: usize,
    input_size: usize,
    hidden_size: usize,
    ih_first: usize,
    bias_first: usize,
    hh_first: usize,
    hr_first: usize,
    hr_stride: usize,
}

impl Places {
    fn new(layout: &LayerLayout, d: usize) -> Self {
        Self {
            plane_size: layout.plane_size,
            input_size: layout.num_planes * layout.plane_size,
            hidden_size: layout.hidden_size,
            ih_first: (layout.weights_ih(d).start / 4) as usize,
            bias_first: (layout.bias(d).start / 4) as usize,
            hh_first: d * (layout.weights_hh_bytes() / 4) as usize,
            hr_first: d * (layout.weights_hr_bytes() / 4) as usize,
            hr_stride: padded(layout.h_size),
        }
    }

    fn weight_ih(&self, k: usize, gate: usize, j: usize) -> usize {
        let padded_k = k / self.plane_size * padded(self.plane_size) + k % self.plane_size;
        self.ih_first + (padded_k * self.hidden_size + j) * GATES + gate
    }

    fn bias(&self, gate: usize, j: usize) -> usize {
        self.bias_first + j * GATES + gate
    }

    fn weight_hh(&self, k: usize, gate: usize, j: usize) -> usize {
        self.hh_first + (k * self.hidden_size + j) * GATES + gate
    }

    fn weight_hr(&self, j: usize, p: usize) -> usize {
        self.hr_first + j * self.hr_stride + p
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Direction, LstmSpec, LstmWeights};

    #[test]
    fn unpacking_inverts_packing() {
        for (input, hidden, direction, projection, bias) in [
            (5, 7, Direction::Bidirectional, None, true),
            (1, 1, Direction::Forward, None, false),
            (12, 8, Direction::Reverse, Some(3), true),
            (9, 27, Direction::Bidirectional, Some(5), false),
        ] {
            let spec = LstmSpec::stack(input, hidden, 2)
                .direction(direction)
                .projection(projection)
                .bias(bias)
                .build()
                .unwrap();
            let mut cells = LstmWeights::random(&spec, 3).cells().to_vec();
            for cell in &mut cells {
                // The packed bias is the sum; with a zero second bias it comes back as the first.
                cell.bias_hh.iter_mut().flatten().for_each(|b| *b = 0.0);
            }
            let directions = direction.num_directions();
            for l in 0..2 {
                let layout = LayerLayout::new(spec.layers(), l);
                let of_layer = &cells[l * directions..][..directions];
                let packed = pack_layer(&layout, of_layer);
                for part in ModelPart::ALL {
                    assert_eq!(packed.part(part).len() as u64 * 4, layout.size_bytes(part));
                }
                assert_eq!(unpack_layer(&layout, &packed, bias), of_layer);
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
        assert_eq!(packed.weights_ih[..8], [0., 100., 200., 300., 10., 110., 210., 310.]);
        assert_eq!(packed.weights_ih[12..16], [1., 101., 201., 301.]);
        assert!(packed.weights_ih[24..].iter().all(|&w| w == 0.0), "padding is zero");
    }
}
