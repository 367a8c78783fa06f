//! Models of Keras 1 to 3, read and run, against what Keras computed.

mod archive;
mod damage;
mod refused;

use std::path::PathBuf;
use std::sync::LazyLock;

use serde_json::Value;
use wgpu_lstm::weights::keras::{self, KerasModel};
use wgpu_lstm::weights::{self, ReadOptions};
use wgpu_lstm::{
    CellSpec, DeviceChoice, Direction, Engine, EngineOptions, ErrorKind, Layout, Outputs, SequenceBatch,
    SequenceOutput, reference,
};

use crate::support::comparer::{Bound, compare};
use crate::support::evaluate;

/// An entry of `expected.json`.
struct Fixture {
    file: String,
    read: Option<String>,
    layers: Vec<String>,
    time_reversed: bool,
    returns_sequences: bool,
    masked: bool,
    stateful: bool,
    /// What is taken for granted besides the floats of Keras; absent: not compared.
    assumed: Option<Vec<String>>,
    /// [B, T, I]
    shape: [usize; 3],
    x: Vec<f32>,
    y: Vec<f64>,
}

/// The slopes of hard_sigmoid, 0.2 and 1/6, are rounded to f32; Keras adds the biases of cuDNN in f32.
const ROUNDED: [&str; 5] = ["activations", "cudnn", "k1_stack", "k1_bi", "k20_stack"];

impl Fixture {
    fn title(&self) -> String {
        format!("{} {:?}", self.file, self.read)
    }

    fn model(&self) -> KerasModel {
        keras::read(&bytes(&self.file), self.read.as_deref()).unwrap_or_else(|e| panic!("{}: {e}", self.title()))
    }
}

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "data", "keras"].iter().collect()
}

fn bytes(file: &str) -> Vec<u8> {
    std::fs::read(folder().join(file)).unwrap()
}

static FIXTURES: LazyLock<Vec<Fixture>> = LazyLock::new(|| {
    let mut entries: Vec<Value> = serde_json::from_slice(&bytes("expected.json")).unwrap();
    entries.append(&mut serde_json::from_slice(&bytes("expected_more.json")).unwrap());
    let doubles = |v: &Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
    let fixture = |e: &Value| Fixture {
        file: e["file"].as_str().unwrap().to_owned(),
        read: e["read"].as_str().map(str::to_owned),
        layers: e["layers"].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect(),
        time_reversed: e["time_reversed"].as_bool().unwrap(),
        returns_sequences: e["returns_sequences"].as_bool().unwrap(),
        masked: e["masked"].as_bool().unwrap(),
        stateful: e["stateful"].as_bool().unwrap(),
        assumed: e["assumed"].as_array().map(|a| a.iter().map(|v| v.as_str().unwrap().to_owned()).collect()),
        shape: [0, 1, 2].map(|i| usize::try_from(e["x_shape"][i].as_u64().unwrap()).unwrap()),
        x: doubles(&e["x"]).into_iter().map(|v| v as f32).collect(),
        y: doubles(&e["y"]),
    };
    entries.iter().map(fixture).collect()
});

/// Keras' output from ours.
fn as_keras(fixture: &Fixture, model: &KerasModel) -> Vec<f64> {
    let [_, steps, width] = fixture.shape;
    let sequence = |x: &[f32]| {
        let x: Vec<f64> = x.iter().map(|&v| v.into()).collect();
        let (output, last) = evaluate::run(&model.weights, &x);
        if !model.returns_sequences {
            last
        } else if model.output_is_time_reversed {
            output.chunks(model.weights.spec().output_size()).rev().flatten().copied().collect()
        } else {
            output
        }
    };
    fixture.x.chunks(steps * width).flat_map(sequence).collect()
}

#[test]
fn every_model_computes_what_keras_computed() {
    assert!(FIXTURES.len() >= 30);
    for fixture in FIXTURES.iter() {
        let model = fixture.model();
        let found = as_keras(fixture, &model);
        let rounded = ROUNDED.iter().any(|part| fixture.file.contains(part));
        let tolerance = if rounded { 3e-8 } else { 1e-11 };
        compare(&fixture.title(), &[("y", fixture.y.len())], &found, &fixture.y, Bound::Same(tolerance))
            .unwrap_or_else(|e| panic!("{e}"));
    }
}

/// Reference and CPU backend, of every model that returns sequences.
#[test]
fn engines_compute_what_keras_computed() {
    let flipped = |values: &[f64], fixture: &Fixture| -> Vec<f64> {
        let [batch_size, steps, _] = fixture.shape;
        let width = values.len() / (batch_size * steps);
        values.chunks(steps * width).flat_map(|sequence| sequence.chunks(width).rev().flatten().copied()).collect()
    };
    let mut count = 0;
    for fixture in FIXTURES.iter().filter(|f| f.returns_sequences) {
        let model = fixture.model();
        count += 1;
        let outputs = Outputs { sequence: SequenceOutput::All, final_state: true, cells: false };
        let batch = SequenceBatch::new(&fixture.x, fixture.shape, Layout::BatchMajor).unwrap().outputs(outputs);
        let exact = reference::run::<f64>(&model.weights, &batch).unwrap().output.unwrap();
        let rounded = ROUNDED.iter().any(|part| fixture.file.contains(part));
        let mut results = vec![(exact, if rounded { 3e-8 } else { 1e-11 })];
        if cfg!(feature = "cpu") {
            let engine = Engine::open_blocking(EngineOptions::on(DeviceChoice::Cpu)).unwrap();
            let found = engine.load_blocking(&model.weights).unwrap().run_blocking(&batch).unwrap().output.unwrap();
            results.push((found.into_iter().map(f64::from).collect(), 1e-5));
        }
        for (found, tolerance) in results {
            let found = if model.output_is_time_reversed { flipped(&found, fixture) } else { found };
            compare(&fixture.title(), &[("y", fixture.y.len())], &found, &fixture.y, Bound::Same(tolerance))
                .unwrap_or_else(|e| panic!("{e}"));
        }
    }
    assert!(count >= 20, "{count}");
}

/// Without naming the format, and with what a caller has to know.
#[test]
fn any_file_of_keras_is_recognised() {
    for (file, layer) in [("k3_stack.keras", None), ("k2_gru.h5", None), ("k2_bi.h5", None)] {
        let options = ReadOptions { prefix: layer.map(str::to_owned), ..ReadOptions::default() };
        let expected = keras::read(&bytes(file), layer);
        match (weights::read_file_with_contents(folder().join(file), &options), expected) {
            (Ok((found, contents)), Ok(expected)) => {
                assert_eq!((contents.format, &found), ("Keras", &expected.weights));
                assert!(contents.notes[0].starts_with("layers: "), "{:?}", contents.notes);
                let told = contents.notes.iter().any(|note| note.contains("reverse order of time"));
                assert_eq!(told, expected.output_is_time_reversed, "{file}");
            }
            (Err(found), Err(expected)) => assert!(found.to_string().ends_with(&expected.to_string()), "{found}"),
            (found, expected) => panic!("{file}: {found:?}, {expected:?}"),
        }
    }
}

#[test]
fn layers_and_what_a_caller_has_to_know_are_reported() {
    for fixture in FIXTURES.iter() {
        let model = fixture.model();
        let title = fixture.title();
        assert_eq!(model.layers.iter().map(|l| l.name.clone()).collect::<Vec<_>>(), fixture.layers, "{title}");
        assert_eq!(model.output_is_time_reversed, fixture.time_reversed, "{title}");
        assert_eq!(model.returns_sequences, fixture.returns_sequences, "{title}");
        assert_eq!(model.masked, fixture.masked, "{title}");
        assert_eq!(model.stateful, fixture.stateful, "{title}");
        let told: Vec<&String> = model.assumptions.iter().filter(|a| !a.ends_with("in float64, here in f32")).collect();
        if let Some(assumed) = &fixture.assumed {
            assert_eq!(told, assumed.iter().collect::<Vec<_>>(), "{title}");
        }
        let of_weights = |line: &&&String| line.contains("return_sequences true");
        assert_eq!(told.iter().any(|line| of_weights(&line)), fixture.file.contains("weights"), "{title}");
        let takes_state = model.layers.iter().any(|l| l.name == "decoder");
        assert_eq!(model.takes_initial_state, takes_state, "{title}");
    }
}

#[test]
fn directions_are_those_of_time_at_the_input() {
    let model = keras::read(&bytes("k3_gru.keras"), None).unwrap();
    let directions: Vec<Direction> = model.weights.spec().layers().iter().map(|l| l.direction).collect();
    use Direction::{Forward, Reverse};
    // go_backwards: no, yes, no, yes, yes.
    assert_eq!(directions, [Forward, Reverse, Reverse, Forward, Reverse]);
}

#[test]
fn layers_are_listed_with_their_chains() {
    for file in ["k2_graph.h5", "k3_graph.keras"] {
        let bytes = bytes(file);
        let layers = keras::list_layers(&bytes).unwrap();
        let name = |l: &keras::KerasLayer| format!("{} {}", l.name, l.class);
        let mut listed: Vec<String> = layers.iter().map(name).collect();
        listed.sort();
        assert_eq!(listed, ["cells RNN", "decoder LSTM", "encoder LSTM", "inner/deep GRU", "one_cell RNN"], "{file}");
        let chain = |name: &str| layers.iter().find(|l| l.name == name).unwrap().chain;
        assert_eq!(chain("cells"), chain("one_cell"), "{file}");
        assert_ne!(chain("encoder"), chain("decoder"), "{file}");
        let error = keras::read(&bytes, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidWeights);
        let message = error.to_string();
        assert!(message.contains("several chains") && message.contains("\"cells..one_cell\""), "{message}");
        let message = keras::read(&bytes, Some("nobody")).unwrap_err().to_string();
        assert!(message.contains("found \"nobody\"") && message.contains("\"inner/deep\""), "{message}");
        let message = keras::read(&bytes, Some("encoder..decoder")).unwrap_err().to_string();
        assert!(message.contains("range within one of the chains"), "{message}");
    }
    let stack = keras::list_layers(&bytes("k3_stack.weights.h5")).unwrap();
    assert_eq!(stack.iter().map(|l| (l.name.as_str(), l.chain)).collect::<Vec<_>>(), [("first", 0), ("second", 1)]);
}

#[test]
fn weights_alone_say_what_was_assumed() {
    let model = keras::read(&bytes("k3_stack.weights.h5"), Some("first")).unwrap();
    let assumed = "first: return_sequences true, go_backwards false, activation tanh, recurrent_activation sigmoid";
    assert_eq!(model.assumptions, [assumed]);
    // The layout of cuDNN has one pair of activations.
    let model = keras::read(&bytes("k2_cudnn.weights.hdf5"), Some("lstm")).unwrap();
    assert_eq!(model.assumptions, ["lstm: return_sequences true, go_backwards false"]);
    assert!(keras::read(&bytes("k2_cudnn.weights.hdf5"), None).unwrap_err().to_string().contains("several chains"));
}

/// What `info` and `run` show comes from one call.
#[test]
fn notes_come_with_the_contents_of_a_file() {
    let notes = |file: &str, prefix: Option<&str>| {
        let options = ReadOptions { prefix: prefix.map(str::to_owned), ..ReadOptions::default() };
        weights::read_file_with_contents(folder().join(file), &options).unwrap().1.notes.join("\n")
    };
    assert!(notes("k3_twice.keras", Some("shared")).contains("applies this layer 2 times"));
    assert!(notes("k3_stack.weights.h5", Some("first")).contains("go_backwards false"));
    assert!(notes("k3_bi.keras", None).contains("out (Dense)"));
}

#[test]
fn a_file_is_read_by_its_path() {
    let path = folder().join("k2_stack.h5");
    assert_eq!(keras::read_file(&path, None).unwrap(), keras::read(&bytes("k2_stack.h5"), None).unwrap());
    for (path, message) in [(folder(), "found a directory"), (folder().join("expected.json"), "expected an HDF5 file")]
    {
        let error = keras::read_file(&path, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidFile);
        assert!(error.to_string().contains(message), "{error}");
    }
}

/// Overwrites the only place where `old` stands with `new`, padded to its length by spaces: JSON stays JSON.
fn patched(file: &str, old: &str, new: &str) -> Vec<u8> {
    let mut bytes = bytes(file);
    let at: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i..].starts_with(old.as_bytes())).collect();
    assert!(!at.is_empty() && new.len() <= old.len(), "{file}: {old} at {at:?}");
    for at in at {
        bytes[at..at + old.len()].copy_from_slice(format!("{new:<0$}", old.len()).as_bytes());
    }
    bytes
}

#[test]
fn what_is_not_computed_is_refused_by_name_and_layer() {
    let refused = |file: &str, old: &str, new: &str| {
        let error = keras::read(&patched(file, old, new), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{old}: {error}");
        error.to_string()
    };
    let message = refused("k2_activations.h5", "\"softplus\"", "\"gelu\"");
    assert!(message.starts_with("layer act_5 (GRU): activation: ") && message.ends_with("found gelu"), "{message}");
    let message = refused("k2_activations.h5", "\"hard_sigmoid\"", "\"hard_silu\"");
    assert!(message.starts_with("layer act_0 (LSTM): recurrent_activation: "), "{message}");
    for mode in ["\"mul\"", "\"ave\"", "null"] {
        let message = refused("k2_bi.h5", "\"sum\"", mode);
        assert!(message.starts_with("layer bi_sum (Bidirectional): merge_mode: "), "{message}");
        assert!(message.contains(&format!("found {mode}")), "{message}");
    }
    let message = refused("k2_gru.h5", "\"time_major\": false", "\"time_major\": true");
    assert!(message.contains("layer after (GRU): time_major"), "{message}");
    let message = refused("k2_stack.h5", "\"Sequential\", \"config\": {", "\"Mine\", \"confoo\": {");
    assert!(message.contains("expected a Sequential or functional model, found Mine"), "{message}");
}

#[test]
fn the_version_of_keras_decides_what_hard_sigmoid_is() {
    let gates = |bytes: &[u8], name: &str| {
        let model = keras::read(bytes, Some(name)).unwrap();
        let CellSpec::Lstm(cell) = model.weights.spec().layers()[0].cell else { panic!("an LSTM") };
        cell.activations[0].f
    };
    use wgpu_lstm::Activation::{HardSigmoid, Sigmoid};
    let two = HardSigmoid { alpha: 0.2, beta: 0.5 };
    assert_eq!(gates(&bytes("k2_activations.h5"), "act_0"), two);
    assert_eq!(gates(&bytes("k3_activations.keras"), "act_0"), HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 });
    // Keras before 2.3 has it by default.
    let absent = ("\"recurrent_activation\": \"sigmoid\",", "");
    let mut old = patched("k2_stack.h5", absent.0, absent.1);
    assert_eq!(gates(&old, "first"), Sigmoid);
    let at = old.windows(6).position(|w| w == b"2.19.0").unwrap();
    for version in ["2.2.4\0", "2.1.5\0"] {
        for i in (0..old.len() - 6).filter(|&i| i >= at) {
            if &old[i..i + 6] == b"2.19.0" || &old[i..i + 3] == b"2.2" && old[i + 3] == b'.' {
                old[i..i + 6].copy_from_slice(version.as_bytes());
            }
        }
        assert_eq!(gates(&old, "first"), two, "{version}");
    }
}
