//! Weights and inputs whose parts cannot be mistaken for one another.

use wgpu_lstm::{CellSpec, CellWeights, LayerSpec, LstmSpec, LstmWeights};

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in ±`bound`, never zero.
    pub fn symmetric(&mut self, bound: f32) -> f32 {
        // Odd multiples of 2^-24 between −1 and 1.
        let odd = (self.next() >> 40) as i32 * 2 + 1 - (1 << 24);
        bound * odd as f32 / (1 << 24) as f32
    }

    /// Odd integers between −4096 and 4096.
    pub fn odd(&mut self) -> i64 {
        (self.next() >> 52) as i64 * 2 + 1 - 4096
    }

    /// Uniform in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Factors of the gates and offsets of their biases: i f g o, r z n, or one. f and z forget, so that states contract.
fn gates(cell: &CellSpec) -> &'static [(f32, f32)] {
    match cell {
        CellSpec::Lstm(_) => &[(0.75, 0.3), (1.0, -0.5), (1.3, 0.1), (0.55, 0.5)],
        CellSpec::Gru(_) => &[(1.0, 0.3), (0.75, -0.6), (0.6, 0.1)],
        CellSpec::Rnn(_) => &[(0.6, 0.1)],
    }
}
/// Factors of the peepholes i f o.
const PEEPHOLES: [f32; 3] = [0.3, 0.2, 0.45];
/// Factors of layers, repeated.
const LAYERS: [f32; 3] = [1.0, 0.7, 1.2];
const REVERSE: f32 = 0.85;

/// Random weights: gates, layers, directions and rows differ in scale, so that a swap shows; and the states
/// contract, so that errors do not grow with T (both are tested in `tests/host/data.rs`).
pub fn distinct_weights(spec: &LstmSpec, seed: u64) -> LstmWeights {
    let mut rng = Rng::new(seed);
    let cells = spec
        .cells()
        .map(|(l, layer, reverse)| {
            let scale = LAYERS[l % LAYERS.len()] * if reverse { REVERSE } else { 1.0 };
            distinct_cell(layer, scale, &mut rng)
        })
        .collect();
    LstmWeights::new(spec.clone(), cells).expect("the shapes are those of the spec")
}

fn distinct_cell(layer: &LayerSpec, scale: f32, rng: &mut Rng) -> CellWeights {
    let hidden_size = layer.hidden_size;
    let mut rows = |columns: usize, size: f32| -> Vec<f32> {
        let mut weight = Vec::with_capacity(layer.gate_rows() * columns);
        for &(gate, _) in gates(&layer.cell) {
            for j in 0..hidden_size {
                let row = 0.8 + 0.4 * j as f32 / hidden_size as f32;
                weight.extend((0..columns).map(|_| rng.symmetric(scale * gate * row * size)));
            }
        }
        weight
    };
    let weight_ih = rows(layer.input_size, 0.8 / (layer.input_size as f32).sqrt());
    let weight_hh = rows(layer.h_size(), 0.9 / (layer.h_size() as f32).sqrt());
    let mut bias = |offset: f32, size: f32| {
        let mut bias = rows(1, size);
        bias.iter_mut().enumerate().for_each(|(r, v)| *v += offset * scale * gates(&layer.cell)[r / hidden_size].1);
        bias
    };
    let bias_ih = layer.bias.then(|| bias(1.0, 0.6));
    let bias_hh = layer.bias.then(|| bias(0.4, 0.4));
    let weight_hr = layer.projection_size.map(|p| {
        let bound = 1.5 * scale / (hidden_size as f32).sqrt();
        (0..p * hidden_size).map(|_| rng.symmetric(bound)).collect()
    });
    let lstm = layer.cell.lstm().copied().unwrap_or_default();
    let bias_hr = lstm.projection_bias.then(|| (0..layer.h_size()).map(|_| 0.2 + rng.symmetric(0.15)).collect());
    let units = || (0..hidden_size).map(|j| 0.8 + 0.4 * j as f32 / hidden_size as f32);
    let weight_peephole = lstm.peepholes.then(|| {
        let parts = PEEPHOLES.into_iter().flat_map(|part| units().map(move |unit| part * unit));
        parts.map(|size| size * (1.0 + rng.symmetric(0.5))).collect()
    });
    // Small, because a sum that is normalised grows.
    let weight_norm = lstm.layer_norm.then(|| {
        let parts = gates(&layer.cell).iter().flat_map(|&(gate, _)| units().map(move |unit| 0.25 * gate * unit));
        parts.map(|size| size * (1.0 + rng.symmetric(0.3))).collect()
    });
    CellWeights { weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, bias_hr, weight_peephole, weight_norm }
}
