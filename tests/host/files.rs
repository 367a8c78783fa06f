//! Files of other frameworks against the outputs that those frameworks computed: names, gate orders and layouts.
//!
//! In:  `tests/data/checkpoints` by PyTorch (tools/make_checkpoints.py), `tests/data/burn` by Burn
//!      (tools/make_burn_files).
//! The equations are written out once more, so that a mistake in the reference does not hide one in a reader.

use std::path::PathBuf;

use wgpu_lstm::weights::safetensors::read_tensor;
use wgpu_lstm::weights::{self, ReadOptions};
use wgpu_lstm::{Activation, CellSpec, CellWeights, Direction, LayerSpec, LstmWeights};

fn path(folder: &str, name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "data", folder, name].iter().collect()
}

fn read(path: &PathBuf, options: &ReadOptions) -> LstmWeights {
    weights::read_file(path, options).unwrap_or_else(|e| panic!("{e}"))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// W·x + b of the rows of `gate`.
fn affine(weight: &[f32], bias: Option<&Vec<f32>>, x: &[f64], gate: usize, hidden_size: usize) -> Vec<f64> {
    let row = |j: usize| {
        let r = gate * hidden_size + j;
        let weights = weight[r * x.len()..][..x.len()].iter();
        weights.zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>() + bias.map_or(0.0, |b| f64::from(b[r]))
    };
    (0..hidden_size).map(row).collect()
}

fn step(layer: &LayerSpec, cell: &CellWeights, x: &[f64], h: &mut Vec<f64>, c: &mut [f64]) {
    let size = layer.hidden_size;
    let of_x = |gate| affine(&cell.weight_ih, cell.bias_ih.as_ref(), x, gate, size);
    let of_h = |gate| affine(&cell.weight_hh, cell.bias_hh.as_ref(), h, gate, size);
    let sum = |gate| -> Vec<f64> { of_x(gate).iter().zip(of_h(gate)).map(|(a, b)| a + b).collect() };
    let next: Vec<f64> = match layer.cell {
        CellSpec::Lstm(options) => {
            let [i, f, g, o] = [0, 1, 2, 3].map(sum);
            let unit = |j: usize| {
                let i = sigmoid(i[j]);
                let f = if options.coupled_input_forget { 1.0 - i } else { sigmoid(f[j]) };
                c[j] = f * c[j] + i * g[j].tanh();
                sigmoid(o[j]) * c[j].tanh()
            };
            (0..size).map(unit).collect()
        }
        CellSpec::Gru(options) => {
            assert!(options.linear_before_reset);
            let ([r, z], n_x, n_h) = ([0, 1].map(sum), of_x(2), of_h(2));
            let unit = |j: usize| {
                let n = (n_x[j] + sigmoid(r[j]) * n_h[j]).tanh();
                let z = sigmoid(z[j]);
                (1.0 - z) * n + z * h[j]
            };
            (0..size).map(unit).collect()
        }
        CellSpec::Rnn(options) => match options.activations[0] {
            Activation::Relu => sum(0).into_iter().map(|v| v.max(0.0)).collect(),
            _ => sum(0).into_iter().map(f64::tanh).collect(),
        },
    };
    *h = match &cell.weight_hr {
        Some(weight) => affine(weight, None, &next, 0, layer.h_size()),
        None => next,
    };
}

/// The outputs [T, D·H] of one sequence [T, I] from a zero state.
fn run(weights: &LstmWeights, x: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let mut rows = x;
    let mut cells = weights.cells().iter();
    for layer in weights.spec().layers() {
        let mut outputs = vec![Vec::new(); rows.len()];
        for (&reverse, cell) in layer.direction.is_reverse().iter().zip(&mut cells) {
            let (mut h, mut c) = (vec![0.0; layer.h_size()], vec![0.0; layer.hidden_size]);
            for t in 0..rows.len() {
                let t = if reverse { rows.len() - 1 - t } else { t };
                step(layer, cell, &rows[t], &mut h, &mut c);
                outputs[t].extend(&h);
            }
        }
        rows = outputs;
    }
    rows
}

/// Compares with the tensors `x` [B, T, I] and `output` [B, T, D·H] of a file.
fn check(name: &str, weights: &LstmWeights, golden: &[u8]) {
    let (shape, x) = read_tensor(golden, "x").unwrap();
    let (_, expected) = read_tensor(golden, "output").unwrap();
    let sequences = x.chunks(shape[1] * shape[2]);
    let rows =
        |sequence: &[f32]| sequence.chunks(shape[2]).map(|row| row.iter().map(|&v| v.into()).collect()).collect();
    let found: Vec<f64> = sequences.flat_map(|sequence| run(weights, rows(sequence)).concat()).collect();
    assert_eq!(found.len(), expected.len(), "{name}");
    assert!(expected.iter().any(|v| v.abs() > 0.05), "{name}: the outputs say too little");
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let error = (found - f64::from(*expected)).abs();
        assert!(error <= 2e-6, "{name}: element {i}: expected {expected}, found {found}");
    }
}

#[test]
fn checkpoints_of_pytorch_compute_what_pytorch_computed() {
    for name in ["lstm", "gru", "rnn_relu", "bf16", "f16", "f64", "views"] {
        let golden = std::fs::read(path("checkpoints", &format!("{name}.safetensors"))).unwrap();
        let rnn_activation = (name == "rnn_relu").then_some(Activation::Relu);
        let options = ReadOptions { rnn_activation, ..ReadOptions::default() };
        check(name, &read(&path("checkpoints", &format!("{name}.pt")), &options), &golden);
        check(name, &read(&path("checkpoints", &format!("{name}.safetensors")), &options), &golden);
    }
}

#[test]
fn files_of_burn_compute_what_burn_computed() {
    for (name, direction) in [
        ("burn_lstm", Direction::Forward),
        ("burn_lstm_coupled", Direction::Forward),
        ("burn_bilstm", Direction::Bidirectional),
        ("burn_gru", Direction::Forward),
        ("burn_bigru", Direction::Bidirectional),
        ("burn_rnn", Direction::Forward),
    ] {
        let path = path("burn", &format!("{name}.safetensors"));
        for prefix in [None, Some("net".to_owned()), Some("".to_owned())] {
            let weights = read(&path, &ReadOptions { prefix, ..ReadOptions::default() });
            let layer = weights.spec().layers()[0];
            assert_eq!((layer.input_size, layer.hidden_size, layer.direction), (3, 4, direction), "{name}");
            let coupled = layer.cell.lstm().is_some_and(|cell| cell.coupled_input_forget);
            assert_eq!((coupled, layer.bias), (name == "burn_lstm_coupled", name != "burn_lstm_coupled"), "{name}");
            check(name, &weights, &std::fs::read(&path).unwrap());
        }
    }
}
