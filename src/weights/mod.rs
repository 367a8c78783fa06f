//! Stage 1, read: foreign tensors → canonical weights.
//!
//! In:  slices, or a file: safetensors ([`safetensors`]) or a PyTorch checkpoint ([`pytorch`]), with the names of
//!      PyTorch, Candle or Burn, or a Keras model ([`keras`]).
//! Out: [`LstmWeights`]: f32, gate rows in the order i f g o or r z n, checked against the spec and for finiteness.
//! Afterwards no code asks about names or gate order again.
//! Not here: the layout of any device (`pack`, `cpu`).

use crate::error::{Result, bail};
use crate::spec::{LayerSpec, LstmSpec};

mod source;
#[cfg(any(feature = "safetensors", feature = "pytorch"))]
mod tensor;
#[cfg(any(feature = "safetensors", feature = "pytorch"))]
mod state_dict;
#[cfg(any(feature = "safetensors", feature = "pytorch"))]
mod shards;
#[cfg(feature = "keras")]
pub mod keras;
#[cfg(feature = "safetensors")]
pub mod safetensors;
#[cfg(feature = "pytorch")]
pub mod pytorch;
mod file;

pub use file::{read, read_file, read_file_with_contents};
pub use source::{FileContents, ObjectInfo, ReadOptions, TensorInfo};

/// The weights of one layer in one direction, in PyTorch's shapes. G gates: 4 of an LSTM in the order i f g o, 3 of a
/// GRU in the order r z n, 1 of an RNN.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CellWeights {
    /// [G·H, I]
    pub weight_ih: Vec<f32>,
    /// [G·H, H], or [G·H, P] with projection.
    pub weight_hh: Vec<f32>,
    /// `[G·H]`; present exactly if the layer has biases.
    pub bias_ih: Option<Vec<f32>>,
    /// `[G·H]`; present exactly if the layer has biases.
    pub bias_hh: Option<Vec<f32>>,
    /// [P, H]; present exactly if the layer has a projection.
    pub weight_hr: Option<Vec<f32>>,
    /// `[P]`; present exactly if the projection has a bias.
    pub bias_hr: Option<Vec<f32>>,
    /// [3, H] in the order i f o; present exactly if the cell has peepholes.
    pub weight_peephole: Option<Vec<f32>>,
    /// [4, H] in the order i f g o, the scales; present exactly if the gates are layer-normalised.
    pub weight_norm: Option<Vec<f32>>,
}

/// A model: its spec and the weights of every cell.
#[derive(Debug, Clone, PartialEq)]
pub struct LstmWeights {
    spec: LstmSpec,
    cells: Vec<CellWeights>,
}

impl LstmWeights {
    /// Joins a spec and its cells, layer-major and forward before reverse.
    ///
    /// # Errors
    /// [`InvalidWeights`](crate::ErrorKind::InvalidWeights) if the number of cells, a shape or the presence of
    /// a tensor disagrees with the spec, or a value is NaN or infinite; the message has PyTorch's name.
    pub fn new(spec: LstmSpec, cells: Vec<CellWeights>) -> Result<Self> {
        if cells.len() != spec.num_cells() {
            bail!(
                InvalidWeights,
                "cells: expected one per layer and direction = {}, found {}",
                spec.num_cells(),
                cells.len()
            );
        }
        for ((l, layer, reverse), cell) in spec.cells().zip(&cells) {
            let suffix = if reverse { "_reverse" } else { "" };
            for (name, shape, tensor) in tensors(layer, cell) {
                check(&format!("{name}_l{l}{suffix}"), &shape, tensor)?;
            }
        }
        Ok(Self { spec, cells })
    }

    /// Random weights as PyTorch initialises them, uniform in ±1/√H, reproducible from `seed`. For benchmarks
    /// and tests.
    pub fn random(spec: &LstmSpec, seed: u64) -> Self {
        let mut state = seed;
        let cells = spec
            .cells()
            .map(|(_, layer, _)| {
                let bound = 1.0 / (layer.hidden_size as f32).sqrt();
                let mut draw =
                    |n: usize| -> Vec<f32> { (0..n).map(|_| bound * (2.0 * uniform(&mut state) - 1.0)).collect() };
                let gates = layer.gate_rows();
                let lstm = layer.cell.lstm().copied().unwrap_or_default();
                CellWeights {
                    weight_ih: draw(gates * layer.input_size),
                    weight_hh: draw(gates * layer.h_size()),
                    bias_ih: layer.bias.then(|| draw(gates)),
                    bias_hh: layer.bias.then(|| draw(gates)),
                    weight_hr: layer.projection_size.map(|p| draw(p * layer.hidden_size)),
                    bias_hr: lstm.projection_bias.then(|| draw(layer.h_size())),
                    weight_peephole: lstm.peepholes.then(|| draw(3 * layer.hidden_size)),
                    // As layers are initialised that normalise.
                    weight_norm: lstm.layer_norm.then(|| vec![1.0; gates]),
                }
            })
            .collect();
        Self { spec: spec.clone(), cells }
    }

    /// The weights with every matrix rounded to the nearest f16, kept as f32: what
    /// [`Precision::F16Weights`](crate::Precision::F16Weights) computes with. Vectors stay as they are.
    ///
    /// # Errors
    /// [`InvalidWeights`](crate::ErrorKind::InvalidWeights) if a weight is beyond ±65504, the largest f16.
    pub fn rounded_to_f16(&self) -> Result<Self> {
        let mut rounded = self.clone();
        for ((l, _, reverse), cell) in self.spec.cells().zip(&mut rounded.cells) {
            let suffix = if reverse { "_reverse" } else { "" };
            let matrices = [
                ("weight_ih", Some(&mut cell.weight_ih)),
                ("weight_hh", Some(&mut cell.weight_hh)),
                ("weight_hr", cell.weight_hr.as_mut()),
            ];
            for (name, matrix) in matrices {
                for (i, w) in matrix.into_iter().flatten().enumerate() {
                    let half = half::f16::from_f32(*w);
                    if half.is_infinite() {
                        bail!(
                            InvalidWeights,
                            "{name}_l{l}{suffix}: expected values within ±65504, the range of f16, found {w} at element {i}"
                        );
                    }
                    *w = half.to_f32();
                }
            }
        }
        Ok(rounded)
    }

    /// The spec.
    pub fn spec(&self) -> &LstmSpec {
        &self.spec
    }

    /// The cells, layer-major, forward before reverse; the order of [`LstmSpec::cells`].
    pub fn cells(&self) -> &[CellWeights] {
        &self.cells
    }
}

/// PyTorch's name, expected shape (`None` if the tensor must be absent) and content of each tensor of a cell.
fn tensors<'a>(layer: &LayerSpec, cell: &'a CellWeights) -> [(&'static str, Shape, Option<&'a [f32]>); 8] {
    let gates = layer.gate_rows();
    let bias = layer.bias.then(|| vec![gates]);
    let lstm = layer.cell.lstm().copied().unwrap_or_default();
    [
        ("weight_ih", Some(vec![gates, layer.input_size]), Some(&cell.weight_ih)),
        ("weight_hh", Some(vec![gates, layer.h_size()]), Some(&cell.weight_hh)),
        ("bias_ih", bias.clone(), cell.bias_ih.as_deref()),
        ("bias_hh", bias, cell.bias_hh.as_deref()),
        ("weight_hr", layer.projection_size.map(|p| vec![p, layer.hidden_size]), cell.weight_hr.as_deref()),
        ("bias_hr", lstm.projection_bias.then(|| vec![layer.h_size()]), cell.bias_hr.as_deref()),
        ("weight_peephole", lstm.peepholes.then(|| vec![3, layer.hidden_size]), cell.weight_peephole.as_deref()),
        ("weight_norm", lstm.layer_norm.then(|| vec![4, layer.hidden_size]), cell.weight_norm.as_deref()),
    ]
}

type Shape = Option<Vec<usize>>;

fn check(name: &str, shape: &Shape, tensor: Option<&[f32]>) -> Result<()> {
    match (shape, tensor) {
        (None, None) => Ok(()),
        (None, Some(_)) => bail!(InvalidWeights, "{name}: expected none by the spec, found a tensor"),
        (Some(shape), None) => bail!(InvalidWeights, "{name}: expected shape {shape:?}, found none"),
        (Some(shape), Some(tensor)) => {
            let elements: usize = shape.iter().product();
            if tensor.len() != elements {
                bail!(InvalidWeights, "{name}: expected shape {shape:?} = {elements} elements, found {}", tensor.len());
            }
            match tensor.iter().position(|v| !v.is_finite()) {
                Some(i) => bail!(InvalidWeights, "{name}: expected finite values, found {} at element {i}", tensor[i]),
                None => Ok(()),
            }
        }
    }
}

/// The next number in [0, 1) of SplitMix64 (Steele, Lea, Flood 2014), 24 bits.
pub(crate) fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_the_nearest_and_what_is_beyond_is_named() {
        let spec = LstmSpec::stack(3, 4, 1).direction(crate::Direction::Bidirectional).build().unwrap();
        let mut cells = LstmWeights::random(&spec, 1).cells;
        cells[1].weight_hh[2] = 1.0 + 1.0 / 2048.0 + 1e-6; // just above the middle of two halves
        cells[1].weight_hh[3] = 5e-8; // nearer to the smallest than to zero
        cells[1].bias_hh.as_mut().unwrap()[0] = 1e6;
        let rounded = LstmWeights::new(spec.clone(), cells.clone()).unwrap().rounded_to_f16().unwrap();
        assert_eq!(rounded.cells[1].weight_hh[2], 1.0 + 1.0 / 1024.0);
        assert_eq!(rounded.cells[1].weight_hh[3], 2.0f32.powi(-24));
        assert_eq!(rounded.cells[1].bias_hh, cells[1].bias_hh);
        assert_eq!(rounded.rounded_to_f16().unwrap(), rounded);
        cells[1].weight_ih[7] = -65520.0;
        let error = LstmWeights::new(spec, cells).unwrap().rounded_to_f16().unwrap_err().to_string();
        assert!(error.starts_with("weight_ih_l0_reverse: ") && error.contains("-65520 at element 7"), "{error}");
    }

    #[test]
    fn each_wrong_tensor_is_named() {
        let spec = LstmSpec::stack(3, 4, 2).direction(crate::Direction::Bidirectional).projection(2).build().unwrap();
        let good = LstmWeights::random(&spec, 1);
        assert!(LstmWeights::new(spec.clone(), good.cells().to_vec()).is_ok());
        let broken = |change: fn(&mut CellWeights)| {
            let mut cells = good.cells().to_vec();
            change(&mut cells[3]);
            LstmWeights::new(spec.clone(), cells).unwrap_err().to_string()
        };
        assert_eq!(
            broken(|c| c.weight_hh.truncate(1)),
            "weight_hh_l1_reverse: expected shape [16, 2] = 32 elements, found 1"
        );
        assert_eq!(broken(|c| c.weight_hr = None), "weight_hr_l1_reverse: expected shape [2, 4], found none");
        assert!(broken(|c| c.weight_ih[5] = f32::NAN).contains("found NaN at element 5"));
        assert!(broken(|c| c.bias_hh = None).starts_with("bias_hh_l1_reverse"));
        assert_eq!(
            broken(|c| c.weight_peephole = Some(vec![0.0; 12])),
            "weight_peephole_l1_reverse: expected none by the spec, found a tensor"
        );
        let error = LstmWeights::new(spec.clone(), good.cells()[..3].to_vec()).unwrap_err().to_string();
        assert_eq!(error, "cells: expected one per layer and direction = 4, found 3");
    }
}
