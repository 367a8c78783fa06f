//! Which kernels a layer takes, by its cell: the input projection of a chunk, and the dispatches of a timestep.

use std::ops::Range;

use crate::kernels::{CellCode, Form, Kernel, LayerLayout, ModelPart, padded};
use crate::spec::LayerSpec;

/// The kernels of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerKernels {
    /// The options of the cell.
    pub cell: CellCode,
    /// The input projection, with its columns.
    pub input: (Kernel, usize),
    /// Those of a timestep in order, each with its columns; 0 for one that has a workgroup per sequence.
    pub step: Vec<(Kernel, usize)>,
}

/// Runs of forward layers, and each layer with a reverse direction by itself.
pub fn groups(layers: &[LayerSpec]) -> Vec<Range<usize>> {
    let is_forward = |l: usize| layers[l].direction.is_reverse() == [false];
    let mut groups: Vec<Range<usize>> = Vec::new();
    for l in 0..layers.len() {
        match groups.last_mut() {
            Some(last) if is_forward(last.start) && is_forward(l) => last.end = l + 1,
            _ => groups.push(l..l + 1),
        }
    }
    groups
}

/// The weights that a kernel of a timestep sums with; `None` for one that has no sum over k.
pub fn summed_part(kernel: Kernel) -> Option<ModelPart> {
    match kernel {
        Kernel::InputProjection | Kernel::InputProjectionSum => Some(ModelPart::WeightsIh),
        Kernel::RecurrentStep
        | Kernel::RecurrentStepProjected
        | Kernel::PeepholeStep
        | Kernel::PeepholeStepProjected
        | Kernel::GateSums
        | Kernel::GruStep
        | Kernel::GruReset
        | Kernel::RnnStep
        | Kernel::Sequence
        | Kernel::NarrowStep
        | Kernel::NarrowStepProjected
        | Kernel::NarrowGruStep
        | Kernel::NarrowSequence
        | Kernel::Wave => Some(ModelPart::WeightsHh),
        Kernel::ProjectionStep | Kernel::ProjectionStepBias | Kernel::GruCandidate => Some(ModelPart::WeightsInner),
        Kernel::NormalizedCell
        | Kernel::NormalizedCellProjected
        | Kernel::CopyRows
        | Kernel::PoolRows
        | Kernel::SelfTest
        | Kernel::Measure => None,
    }
}

/// The products in a sum of `kernel`; 0 for one that has no sum over k.
pub fn sum_len(layout: &LayerLayout, kernel: Kernel) -> usize {
    match summed_part(kernel) {
        Some(ModelPart::WeightsIh) => layout.num_planes * padded(layout.plane_size),
        Some(ModelPart::WeightsHh) => padded(layout.h_size),
        Some(ModelPart::WeightsInner) => padded(layout.hidden_size),
        _ => 0,
    }
}

impl LayerKernels {
    /// Those of layer `l` of `layers`.
    pub fn new(layers: &[LayerSpec], l: usize) -> Self {
        let layout = LayerLayout::new(layers, l);
        let (hidden_stride, h_stride) = (padded(layout.hidden_size), padded(layout.h_size));
        let step = match layout.form {
            Form::Lstm => {
                let mut step = match (layout.is_normalized(), layout.has_peepholes(), layout.has_inner) {
                    (true, _, projected) => {
                        let cell = if projected { Kernel::NormalizedCellProjected } else { Kernel::NormalizedCell };
                        vec![(Kernel::GateSums, layout.hidden_size), (cell, 0)]
                    }
                    (false, false, false) => vec![(Kernel::RecurrentStep, hidden_stride)],
                    (false, false, true) => vec![(Kernel::RecurrentStepProjected, hidden_stride)],
                    (false, true, false) => vec![(Kernel::PeepholeStep, hidden_stride)],
                    (false, true, true) => vec![(Kernel::PeepholeStepProjected, hidden_stride)],
                };
                if layout.has_inner {
                    let bias = layout.projection_bias;
                    step.push((if bias { Kernel::ProjectionStepBias } else { Kernel::ProjectionStep }, h_stride / 4));
                }
                step
            }
            Form::Gru => vec![(Kernel::GruStep, hidden_stride)],
            Form::GruAfterReset => {
                vec![(Kernel::GruReset, hidden_stride / 2), (Kernel::GruCandidate, hidden_stride / 4)]
            }
            Form::Rnn => vec![(Kernel::RnnStep, h_stride / 4)],
        };
        let input = if layout.sums_planes { Kernel::InputProjectionSum } else { Kernel::InputProjection };
        Self { cell: CellCode::of(&layers[l].cell), input: (input, layout.columns), step }
    }
}
