//! The conformance corpus as ONNX models: every attribute and input of the three operators through the importer.

use serde_json::Value;
use wgpu_lstm::onnx::{OnnxModel, OnnxOptions, Tensor, TensorData};
use wgpu_lstm::{DeviceChoice, Engine, EngineOptions};

use crate::support::conformance::{group_with_records, shape, sizes, tensor};

/// A protobuf message in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field * 8);
        self.varint(value);
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.varint(field * 8 + 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field * 8 + 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }
}

/// An attribute with its type, as exporters write it.
fn attribute(name: &str, value: &Value) -> Message {
    let message = Message::default().bytes(1, name.as_bytes());
    let floats = |list: &[Value]| list.iter().filter_map(Value::as_f64).map(|v| v as f32).collect::<Vec<_>>();
    match value {
        Value::String(text) => message.bytes(4, text.as_bytes()).number(20, 3),
        Value::Number(number) if name == "clip" => message.float(2, number.as_f64().unwrap() as f32).number(20, 1),
        Value::Number(number) => message.number(3, number.as_u64().unwrap()).number(20, 2),
        Value::Array(list) if list.iter().all(Value::is_string) => {
            let texts = list.iter().filter_map(Value::as_str);
            texts.fold(message, |message, text| message.bytes(9, text.as_bytes())).number(20, 8)
        }
        Value::Array(list) => floats(list).into_iter().fold(message, |message, v| message.float(7, v)).number(20, 6),
        other => panic!("{name}: {other}"),
    }
}

const INPUTS: [&str; 8] = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"];
const WEIGHTS: [&str; 4] = ["W", "R", "B", "P"];

/// The case as a model of one node, its weights as initialisers.
fn model(record: &Value) -> Vec<u8> {
    let operator = record["operator"].as_str().unwrap();
    let inputs = record["inputs"].as_object().unwrap();
    let outputs = record["outputs"].as_object().unwrap();
    let all_inputs = if operator == "LSTM" { &INPUTS[..] } else { &INPUTS[..6] };
    let mut node = Message::default().bytes(4, operator.as_bytes()).bytes(3, b"case");
    for name in all_inputs {
        node = node.bytes(1, if inputs.contains_key(*name) { name.as_bytes() } else { b"" });
    }
    for name in if operator == "LSTM" { &["Y", "Y_h", "Y_c"][..] } else { &["Y", "Y_h"] } {
        node = node.bytes(2, if outputs.contains_key(*name) { name.as_bytes() } else { b"" });
    }
    for (name, value) in record["attributes"].as_object().unwrap() {
        node = node.bytes(5, &attribute(name, value).0);
    }
    let mut graph = Message::default().bytes(1, &node.0).bytes(2, b"graph");
    for name in WEIGHTS.into_iter().filter(|name| inputs.contains_key(*name)) {
        let raw: Vec<u8> = tensor(&inputs[name]).iter().flat_map(|v| v.to_le_bytes()).collect();
        let sizes = shape(&inputs[name]);
        let tensor = sizes.iter().fold(Message::default(), |tensor, &size| tensor.number(1, size as u64));
        graph = graph.bytes(5, &tensor.number(2, 1).bytes(8, name.as_bytes()).bytes(9, &raw).0);
    }
    for name in all_inputs.iter().filter(|name| inputs.contains_key(**name) && !WEIGHTS.contains(name)) {
        graph = graph.bytes(11, &Message::default().bytes(1, name.as_bytes()).0);
    }
    for name in outputs.keys() {
        graph = graph.bytes(12, &Message::default().bytes(1, name.as_bytes()).0);
    }
    let opset = Message::default().number(2, 22);
    Message::default().number(1, 10).bytes(7, &graph.0).bytes(8, &opset.0).0
}

#[test]
fn every_case_of_onnx_passes_through_the_importer() {
    let device = if cfg!(feature = "cpu") { DeviceChoice::Cpu } else { DeviceChoice::Reference };
    let engine = Engine::open_blocking(EngineOptions::on(device)).unwrap();
    let (mut count, mut failures) = (0, Vec::new());
    for group in ["lstm", "gru", "rnn"] {
        for (case, record) in group_with_records(group) {
            let inputs = record["inputs"].as_object().unwrap();
            let mut given = vec![("X", Tensor::floats(shape(&inputs["X"]), case.x.clone()).unwrap())];
            if let Some(lengths) = inputs.get("sequence_lens") {
                let lengths: Vec<i32> = sizes(lengths).into_iter().map(|n| n as i32).collect();
                given.push(("sequence_lens", Tensor::new(vec![lengths.len()], TensorData::I32(lengths)).unwrap()));
            }
            for name in ["initial_h", "initial_c"] {
                given.extend(inputs.get(name).map(|i| (name, Tensor::floats(shape(i), tensor(i)).unwrap())));
            }
            let loaded = pollster::block_on(OnnxModel::load(&engine, &model(&record), &OnnxOptions::default()));
            let found = loaded.and_then(|model| pollster::block_on(model.run(&given)));
            let found = found.unwrap_or_else(|e| panic!("{}: {e}", case.id));
            assert_eq!(found.len(), case.expected.len(), "{}", case.id);
            for expected in &case.expected {
                let (_, tensor) = found.iter().find(|(name, _)| *name == expected.name).unwrap();
                assert_eq!(tensor.shape, expected.shape, "{} {}", case.id, expected.name);
                let TensorData::F32(values) = &tensor.data else { panic!("floats") };
                let wide: Vec<f64> = values.iter().map(|&v| v.into()).collect();
                failures.extend(expected.check(&wide, expected.tolerance).err().map(|e| format!("{}: {e}", case.id)));
            }
            count += 1;
        }
    }
    assert!(count >= 600, "{count} cases");
    assert!(failures.is_empty(), "{} of {count} cases:\n{}", failures.len(), failures.join("\n"));
}
