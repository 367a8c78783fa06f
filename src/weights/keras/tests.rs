use super::cell::Version;
use super::*;
use crate::activation::Activation;
use crate::cell::CellSpec;

fn layer(class: &str, config: Value) -> Result<Recurrent> {
    Recurrent::new(class, &config, Version::parse("2.4.0"))
}

fn tensor(name: &str, shape: &[usize]) -> store::Tensor {
    let len: usize = shape.iter().product();
    store::Tensor { name: name.to_owned(), shape: shape.to_vec(), values: (0..len).map(|i| i as f32).collect() }
}

#[test]
fn activations_are_read_as_objects_too() {
    let read = |activation: Value| -> String {
        match layer("SimpleRNN", json!({ "units": 2, "activation": activation })) {
            Ok(layer) => match layer.directions[0][0].spec {
                CellSpec::Rnn(cell) => cell.activations[0].to_string(),
                _ => unreachable!("an RNN was asked for"),
            },
            Err(e) => e.to_string(),
        }
    };
    let object = |class: &str, config: Value| read(json!({ "class_name": class, "config": config }));
    assert_eq!(read(Value::Null), "Affine(alpha 1, beta 0)");
    assert_eq!(object("function", json!("relu")), "Relu");
    assert_eq!(object("LeakyReLU", json!({ "alpha": 0.25 })), "LeakyRelu(alpha 0.25)");
    assert_eq!(object("LeakyReLU", json!({})), "LeakyRelu(alpha 0.3)");
    assert_eq!(object("ELU", json!({ "alpha": { "class_name": "__numpy__", "value": 0.5 } })), "Elu(alpha 0.5)");
    assert_eq!(object("ReLU", json!({ "max_value": null, "negative_slope": 0.0 })), "Relu");
    assert!(object("ReLU", json!({ "max_value": 6.0 })).contains("ReLU: expected no max_value"));
    assert!(object("PReLU", json!({})).contains("found PReLU"));
    assert_eq!(read(json!("celu")), "Elu(alpha 1)");
    assert_eq!(object("ReLU", json!({ "max_value": 1.0 })), "HardSigmoid(alpha 1, beta 0)");
    for other in ["Softmax", "ThresholdedReLU", "Custom>Mine", "__lambda__"] {
        let message = object(other, json!({}));
        assert!(message.starts_with("activation: ") && message.ends_with(&format!("found {other}")), "{message}");
    }
    let mine =
        read(json!({ "module": "mine", "class_name": "function", "config": "relu", "registered_name": "function" }));
    assert_eq!(mine, "activation: expected function of Keras, found one of mine");
    let refused = [
        "selu",
        "gelu",
        "swish",
        "silu",
        "exponential",
        "relu6",
        "Tanh",
        "log_sigmoid",
        "hard_silu",
        "hard_swish",
        "hard_tanh",
        "hard_shrink",
        "soft_shrink",
        "tanh_shrink",
        "threshold",
        "glu",
        "mish",
        "squareplus",
        "softmax",
        "log_softmax",
        "sparsemax",
        "sparse_plus",
        "sparse_sigmoid",
        "mine>relu",
    ];
    for refused in refused {
        let message = read(json!(refused));
        assert!(message.starts_with("activation: expected") && message.ends_with(refused), "{message}");
    }
}

#[test]
fn directions_may_have_their_own_activations() {
    let cell = |activation, backwards| json!({ "class_name": "GRU", "config": { "units": 2, "activation": activation, "go_backwards": backwards } });
    let config = json!({ "layer": cell("relu", false), "backward_layer": cell("elu", true), "merge_mode": "sum" });
    let read = layer("Bidirectional", config).unwrap();
    let spec = read.directions[0][0].join(Some(&read.directions[1][0])).unwrap();
    assert_eq!(spec.activations(0)[1].1, Activation::Relu);
    assert_eq!(spec.activations(1)[1].1, Activation::Elu { alpha: 1.0 });
    let same = json!({ "layer": cell("relu", false), "backward_layer": cell("relu", false) });
    assert_eq!(
        layer("Bidirectional", same).unwrap_err().to_string(),
        "backward_layer: expected go_backwards true, found false"
    );
}

#[test]
fn time_in_reverse_swaps_summed_directions_and_refuses_concatenated_ones() {
    let read = |merge: &str| {
        let inner =
            json!({ "class_name": "SimpleRNN", "config": { "units": 1, "use_bias": false, "go_backwards": true } });
        let recurrent = layer("Bidirectional", json!({ "layer": inner, "merge_mode": merge })).unwrap();
        let cell = |value: f32| CellTensors {
            kernel: store::Tensor { values: vec![value], ..tensor("kernel", &[1, 1]) },
            recurrent: tensor("recurrent", &[1, 1]),
            bias: None,
        };
        assemble(&[Part { name: "both".to_owned(), recurrent, tensors: vec![cell(1.0), cell(2.0)] }])
    };
    let model = read("sum").unwrap();
    assert_eq!(model.weights.cells().iter().map(|c| c.weight_ih[0]).collect::<Vec<_>>(), [2.0, 1.0]);
    let error = read("concat").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().starts_with("layer both: Bidirectional with merge_mode \"concat\""), "{error}");
}

#[test]
fn each_wrong_variable_is_named() {
    let read = layer("LSTM", json!({ "units": 2 })).unwrap();
    let convert = |change: fn(&mut CellTensors)| {
        let mut tensors = CellTensors {
            kernel: tensor("k", &[3, 8]),
            recurrent: tensor("r", &[2, 8]),
            bias: Some(tensor("b", &[8])),
        };
        change(&mut tensors);
        read.directions[0][0].convert(&tensors).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(convert(|_| {}), Ok(()));
    let error = |change| convert(change).unwrap_err();
    assert_eq!(error(|t| t.kernel = tensor("k", &[3, 6])), "k: expected [input_size, 4·units] = [_, 8], found [3, 6]");
    assert_eq!(error(|t| t.recurrent = tensor("r", &[8, 2])), "r: expected [units, 4·units] = [2, 8], found [8, 2]");
    assert_eq!(error(|t| t.bias = Some(tensor("b", &[2, 8]))), "b: expected [4·units] = [8], found [2, 8]");
    assert_eq!(error(|t| t.bias = None), "bias: expected one, as use_bias says, found none");
    let units = layer("LSTM", json!({ "units": 0 })).unwrap_err().to_string();
    assert!(units.contains("units: expected 1 to"), "{units}");
}

#[test]
fn cells_of_other_layers_are_refused_by_name() {
    let message = |class: &str, config: Value| layer(class, config).unwrap_err().to_string();
    assert!(message("ConvLSTM2D", json!({ "filters": 2 })).ends_with("found ConvLSTM2D"));
    let custom = json!({ "cell": { "class_name": "PeepholeLSTMCell", "config": { "units": 2 } } });
    assert!(message("RNN", custom).ends_with("found PeepholeLSTMCell"));
    let cell = json!({ "class_name": "LSTMCell", "config": { "units": 2 } });
    let stack = json!({ "class_name": "StackedRNNCells", "config": { "cells": [cell, cell] } });
    let stacked = json!({ "layer": { "class_name": "RNN", "config": { "cell": stack } } });
    assert!(message("Bidirectional", stacked).ends_with("found StackedRNNCells"));
}
