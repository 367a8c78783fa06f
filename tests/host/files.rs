//! Files of other frameworks against the outputs that those frameworks computed: names, gate orders and layouts.
//!
//! In:  `tests/data/checkpoints` by PyTorch (tools/make_checkpoints.py), `tests/data/burn` by Burn
//!      (tools/make_burn_files).
//! The equations are written out once more, so that a mistake in the reference does not hide one in a reader.

use std::path::PathBuf;

use wgpu_lstm::weights::safetensors::read_tensor;
use wgpu_lstm::weights::{self, ReadOptions};
use wgpu_lstm::{Activation, CellSpec, CellWeights, Direction, ErrorKind, LayerSpec, LstmWeights};

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
    for name in [
        "lstm",
        "gru",
        "rnn_relu",
        "bf16",
        "f16",
        "f64",
        "views",
        "objects2",
        "objects4",
        "objects5",
        "module",
        "module_legacy",
        "legacy",
        "tar",
        "weight_norm",
        "parametrized",
        "pruned",
        "weight_drop",
    ] {
        let golden = std::fs::read(path("checkpoints", &format!("{name}.safetensors"))).unwrap();
        let rnn_activation = matches!(name, "rnn_relu" | "module_legacy").then_some(Activation::Relu);
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

#[test]
fn a_model_in_several_files_is_joined_by_its_index() {
    let golden = std::fs::read(path("checkpoints", "sharded.safetensors")).unwrap();
    for (end, stem) in [("safetensors", "model"), ("bin", "pytorch_model")] {
        let folder = path("checkpoints", &format!("sharded_{end}"));
        let options = ReadOptions::default();
        let index = folder.join(format!("{stem}.{end}.index.json"));
        let (weights, contents) = weights::read_file_with_contents(&index, &options).unwrap();
        assert_eq!((contents.prefix.as_str(), contents.tensors.len()), ("encoder.", 4));
        check(end, &weights, &golden);
        // One of the files alone has weights without their biases, or biases alone.
        for number in [1, 2] {
            let name = format!("{stem}-0000{number}-of-00002.{end}");
            let error = weights::read_file(folder.join(&name), &options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidFile);
            let expected = format!("found {name}, one of its shards; give the index {stem}.{end}.index.json");
            assert!(error.to_string().contains(&expected), "{error}");
            let error = match end {
                "bin" => wgpu_lstm::weights::pytorch::read_file(folder.join(&name), None),
                _ => wgpu_lstm::weights::safetensors::read_file(folder.join(&name), None),
            };
            assert!(error.unwrap_err().to_string().contains(&expected));
        }
        let bytes = std::fs::read(&index).unwrap();
        assert!(weights::read(&bytes, &options).unwrap_err().to_string().contains("is read by its path"));
    }
}

/// An empty folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("wgpu-lstm-files-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn shards_are_checked_against_their_index() {
    let folder = folder("shards");
    let source = path("checkpoints", "sharded_safetensors");
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    for name in names {
        std::fs::copy(source.join(name), folder.join(name)).unwrap();
    }
    let good = std::fs::read_to_string(source.join("model.safetensors.index.json")).unwrap();
    let index = folder.join("model.safetensors.index.json");
    let read = |text: &str| {
        std::fs::write(&index, text).unwrap();
        weights::read_file(&index, &ReadOptions::default()).map_err(|e| e.to_string())
    };
    assert!(read(&good).is_ok());
    let bias = "\"encoder.bias_hh_l0\": \"model-00002";
    assert!(good.contains(bias));
    let error = read(&good.replace(bias, &bias.replace("00002", "00001"))).unwrap_err();
    assert!(
        error.contains("encoder.bias_hh_l0: found in the shard model-00002-of-00002.safetensors, where"),
        "{error}"
    );
    let error = read(&good.replace("bias_hh_l0", "bias_hh_l1")).unwrap_err();
    assert!(error.contains("encoder.bias_hh_l0: found in the shard"), "{error}");
    let more = format!("\"encoder.extra\": \"model-00001-of-00002.safetensors\", {bias}");
    let error = read(&good.replace(bias, &more)).unwrap_err();
    assert!(
        error.contains("encoder.extra: expected in the shard model-00001-of-00002.safetensors, found none"),
        "{error}"
    );
    let error = read(&good.replace("model-00002", "absent")).unwrap_err();
    assert!(error.contains("shard absent-of-00002.safetensors: cannot be read"), "{error}");
    let error = read(&good.replace("model-00002-of-00002.safetensors", "model.safetensors.index.json")).unwrap_err();
    assert!(error.contains("expected safetensors or a checkpoint"), "{error}");
    assert!(read("{\"hidden_size\": 4}").unwrap_err().contains("found JSON, such as a configuration"));
    assert!(read(&good[..good.len() / 2]).unwrap_err().contains("not a complete JSON file"));

    // A shard is one by its name, too.
    std::fs::remove_file(&index).unwrap();
    let error = weights::read_file(folder.join(names[0]), &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("found shard 1 of 2 by its name; give the index"), "{error}");
    // And by an index that has another name for it; alone in its index it is a whole.
    std::fs::copy(folder.join(names[0]), folder.join("a.safetensors")).unwrap();
    assert!(weights::read_file(folder.join("a.safetensors"), &ReadOptions::default()).is_ok());
    assert!(read(&good.replace(names[0], "a.safetensors")).is_ok());
    let error = weights::read_file(folder.join("a.safetensors"), &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("found a.safetensors, one of its shards"), "{error}");
    assert!(read(&good.replace(names[0], "a.safetensors").replace(names[1], "a.safetensors")).is_err());
    assert!(weights::read_file(folder.join("a.safetensors"), &ReadOptions::default()).is_ok());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let folder = folder("kinds");
    let error = |path: &PathBuf| weights::read_file(path, &ReadOptions::default()).unwrap_err().to_string();
    assert!(error(&folder).ends_with("found a directory"), "{}", error(&folder));
    std::fs::write(folder.join("saved_model.pb"), b"").unwrap();
    assert!(error(&folder).contains("a TensorFlow SavedModel"), "{}", error(&folder));
    assert!(error(&folder.join("saved_model.pb")).contains("found an empty file"));
    std::fs::write(folder.join("model.safetensors"), b"").unwrap();
    assert!(error(&folder).ends_with("give its model.safetensors"), "{}", error(&folder));
    if cfg!(unix) {
        assert!(error(&PathBuf::from("/dev/zero")).contains("found a pipe or a device"));
        let pipe = folder.join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success());
        assert!(made, "mkfifo is part of every Unix");
        assert!(error(&pipe).contains("found a pipe or a device"), "{}", error(&pipe));
        // As large as no memory is, and no bytes on the disk.
        let sparse = std::fs::File::create(folder.join("sparse.pt")).unwrap();
        std::io::Write::write_all(&mut &sparse, b"PK\x03\x04").unwrap();
        if sparse.set_len(1 << 42).is_ok() {
            let error = error(&folder.join("sparse.pt"));
            assert!(error.contains("expected a file that fits in memory"), "{error}");
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
