//! Where the kernels expect the weights of a layer: sizes and byte ranges of its four buffers.
//!
//! All weights are k-major with one vec4 per column, so that the lanes of a workgroup read neighbouring vec4:
//! `weights_ih` [D][K][H] of gates i f g o, K the concatenated input planes; `bias` [D][H] of gates;
//! `weights_hh` [D][h_stride][H] of gates; `weights_hr` [D][hidden_stride][h_stride / 4] of four outputs each.
//! Every k is padded to whole vec4 with zeros. The ranges of the directions of `weights_ih` and `bias` start at
//! multiples of [`RANGE_ALIGN`], since they are bound one at a time.

use std::ops::Range;

use super::padded;
use crate::spec::LayerSpec;

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
    /// Projection weights, both directions; absent without projection.
    WeightsHr,
}

impl ModelPart {
    /// All parts.
    pub const ALL: [ModelPart; 4] = [ModelPart::WeightsIh, ModelPart::Bias, ModelPart::WeightsHh, ModelPart::WeightsHr];

    /// `weights_ih`
    pub fn name(self) -> &'static str {
        match self {
            ModelPart::WeightsIh => "weights_ih",
            ModelPart::Bias => "bias",
            ModelPart::WeightsHh => "weights_hh",
            ModelPart::WeightsHr => "weights_hr",
        }
    }
}

/// The layout of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerLayout {
    /// The width of each plane of the input, unpadded.
    pub plane_size: usize,
    /// The number of planes: the directions of the layer before, 1 for the first layer.
    pub num_planes: usize,
    /// H.
    pub hidden_size: usize,
    /// P or H.
    pub h_size: usize,
    /// D.
    pub num_directions: usize,
    /// Whether the layer has a projection.
    pub projected: bool,
}

impl LayerLayout {
    /// The layout of layer `l` of `layers`.
    pub fn new(layers: &[LayerSpec], l: usize) -> Self {
        let layer = &layers[l];
        let (plane_size, num_planes) = match l.checked_sub(1) {
            Some(before) => (layers[before].h_size(), layers[before].num_directions()),
            None => (layer.input_size, 1),
        };
        Self {
            plane_size,
            num_planes,
            hidden_size: layer.hidden_size,
            h_size: layer.h_size(),
            num_directions: layer.num_directions(),
            projected: layer.projection_size.is_some(),
        }
    }

    /// K of the input sum: all planes, each padded.
    pub fn input_k(&self) -> usize {
        self.num_planes * padded(self.plane_size)
    }

    /// The longest sum of the layer's kernels, in elements.
    pub fn longest_sum(&self) -> usize {
        self.input_k().max(padded(self.hidden_size))
    }

    /// Byte range of the input weights of direction `d`.
    pub fn weights_ih(&self, d: usize) -> Range<u64> {
        aligned_range(d, self.input_k() * self.hidden_size)
    }

    /// Byte range of the bias of direction `d`.
    pub fn bias(&self, d: usize) -> Range<u64> {
        aligned_range(d, self.hidden_size)
    }

    /// Bytes of the recurrent weights of one direction.
    pub fn weights_hh_bytes(&self) -> u64 {
        (padded(self.h_size) * self.hidden_size) as u64 * VEC4
    }

    /// Bytes of the projection weights of one direction; 0 without projection.
    pub fn weights_hr_bytes(&self) -> u64 {
        if self.projected { (padded(self.hidden_size) * padded(self.h_size) / 4) as u64 * VEC4 } else { 0 }
    }

    /// Bytes of the largest binding of a buffer.
    pub fn binding_bytes(&self, part: ModelPart) -> u64 {
        match part {
            ModelPart::WeightsIh => self.weights_ih(0).end,
            ModelPart::Bias => self.bias(0).end,
            ModelPart::WeightsHh | ModelPart::WeightsHr => self.size_bytes(part),
        }
    }

    /// Bytes of a buffer.
    pub fn size_bytes(&self, part: ModelPart) -> u64 {
        let last = self.num_directions - 1;
        match part {
            ModelPart::WeightsIh => self.weights_ih(last).end,
            ModelPart::Bias => self.bias(last).end,
            ModelPart::WeightsHh => self.num_directions as u64 * self.weights_hh_bytes(),
            ModelPart::WeightsHr => self.num_directions as u64 * self.weights_hr_bytes(),
        }
    }
}

/// The `index`-th of equal ranges of `len` vec4.
fn aligned_range(index: usize, len: usize) -> Range<u64> {
    let size = len as u64 * VEC4;
    let start = index as u64 * size.next_multiple_of(RANGE_ALIGN);
    start..start + size
}
