//! The equations of every cell in f64, one sequence at a time and by the letter: a second opinion on what an importer
//! made of foreign weights. Written apart from `src/reference`.

use wgpu_lstm::{Activation, CellSpec, CellWeights, LayerSpec, LstmWeights, Merge};

fn act(a: Activation, x: f64) -> f64 {
    let wide = f64::from;
    match a {
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
        Activation::Relu => x.max(0.0),
        Activation::Affine { alpha, beta } => wide(alpha) * x + wide(beta),
        Activation::LeakyRelu { alpha } => x.max(0.0) + wide(alpha) * x.min(0.0),
        Activation::ThresholdedRelu { alpha } => {
            if x >= wide(alpha) {
                x
            } else {
                0.0
            }
        }
        Activation::ScaledTanh { alpha, beta } => wide(alpha) * (wide(beta) * x).tanh(),
        Activation::HardSigmoid { alpha, beta } => (wide(alpha) * x + wide(beta)).clamp(0.0, 1.0),
        Activation::Elu { alpha } => {
            if x >= 0.0 {
                x
            } else {
                wide(alpha) * x.exp_m1()
            }
        }
        Activation::Softsign => x / (1.0 + x.abs()),
        Activation::Softplus => x.exp().ln_1p(),
    }
}

/// `rows` [_, x.len()] times x, plus `bias`.
fn affine(rows: &[f32], x: &[f64], bias: Option<&Vec<f32>>) -> Vec<f64> {
    let sum = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
    rows.chunks(x.len()).map(sum).enumerate().map(|(r, s)| s + bias.map_or(0.0, |b| f64::from(b[r]))).collect()
}

fn step(layer: &LayerSpec, d: usize, w: &CellWeights, x: &[f64], h: &mut [f64], c: &mut [f64]) {
    let n = h.len();
    let xs = affine(&w.weight_ih, x, w.bias_ih.as_ref());
    let hs = affine(&w.weight_hh, h, w.bias_hh.as_ref());
    let both = |g: usize, j: usize| xs[g * n + j] + hs[g * n + j];
    match layer.cell {
        CellSpec::Lstm(cell) => {
            let a = cell.activations[d];
            for j in 0..n {
                c[j] = act(a.f, both(1, j)) * c[j] + act(a.f, both(0, j)) * act(a.g, both(2, j));
                h[j] = act(a.f, both(3, j)) * act(a.h, c[j]);
            }
        }
        CellSpec::Gru(cell) => {
            let a = cell.activations[d];
            let r: Vec<f64> = (0..n).map(|j| act(a.f, both(0, j))).collect();
            let z: Vec<f64> = (0..n).map(|j| act(a.f, both(1, j))).collect();
            let recurrent = if cell.linear_before_reset {
                (0..n).map(|j| r[j] * hs[2 * n + j]).collect()
            } else {
                let rh: Vec<f64> = r.iter().zip(&*h).map(|(r, h)| r * h).collect();
                affine(&w.weight_hh, &rh, w.bias_hh.as_ref())[2 * n..].to_vec()
            };
            for j in 0..n {
                h[j] = (1.0 - z[j]) * act(a.g, xs[2 * n + j] + recurrent[j]) + z[j] * h[j];
            }
        }
        CellSpec::Rnn(cell) => (0..n).for_each(|j| h[j] = act(cell.activations[d], both(0, j))),
    }
}

/// Output [T, D·H or H] of the last layer, and its final state h, merged like its output; from zero state.
pub fn run(weights: &LstmWeights, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let mut cells = weights.cells().iter();
    let mut rows: Vec<Vec<f64>> = x.chunks(weights.spec().input_size()).map(<[f64]>::to_vec).collect();
    let mut last = Vec::new();
    for layer in weights.spec().layers() {
        let mut merged: Vec<Vec<f64>> = vec![Vec::new(); rows.len()];
        last = Vec::new();
        let merge = |row: &mut Vec<f64>, h: &[f64]| match layer.merge {
            Merge::Sum if !row.is_empty() => row.iter_mut().zip(h).for_each(|(a, b)| *a += b),
            _ => row.extend(h),
        };
        for (d, &reverse) in layer.direction.is_reverse().iter().enumerate() {
            let w = cells.next().expect("a cell for each direction");
            let (mut h, mut c) = (vec![0.0; layer.hidden_size], vec![0.0; layer.hidden_size]);
            for i in 0..rows.len() {
                let t = if reverse { rows.len() - 1 - i } else { i };
                step(layer, d, w, &rows[t], &mut h, &mut c);
                merge(&mut merged[t], &h);
            }
            merge(&mut last, &h);
        }
        rows = merged;
    }
    (rows.concat(), last)
}
