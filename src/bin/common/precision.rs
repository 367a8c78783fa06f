//! `--weights`: how the weights of a model are kept.

use clap::ValueEnum;
use wgpu_lstm::{LstmWeights, Precision};

use super::failure::Result;

/// [`Precision`] by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum WeightsName {
    /// As they are
    #[default]
    F32,
    /// Matrices rounded to half precision: half the memory, all arithmetic in f32
    F16,
}

impl WeightsName {
    pub(crate) fn precision(self) -> Precision {
        match self {
            WeightsName::F32 => Precision::F32,
            WeightsName::F16 => Precision::F16Weights,
        }
    }

    /// The weights that a device computes with, so that a result can be judged by them.
    pub(crate) fn of(self, weights: LstmWeights) -> Result<LstmWeights> {
        match self {
            WeightsName::F32 => Ok(weights),
            WeightsName::F16 => Ok(weights.rounded_to_f16()?),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            WeightsName::F32 => "f32",
            WeightsName::F16 => "f16",
        }
    }
}
