//! Every option, argument and layer of a Keras model: right, or refused by name.

use serde_json::{Value, json};
use wgpu_lstm::ErrorKind;
use wgpu_lstm::weights::keras::{self, KerasModel};

use super::archive::{Entry, archive, entries, layer, with_config};
use super::patched;

const FILE: &str = "k3_stack.keras";

fn refused(file: &str, change: impl FnOnce(&mut Value)) -> String {
    let error = keras::read(&with_config(file, change), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    error.to_string()
}

fn read(file: &str, change: impl FnOnce(&mut Value)) -> KerasModel {
    keras::read(&with_config(file, change), None).unwrap()
}

fn option<'a>(name: &'a str, value: Value) -> impl FnOnce(&mut Value) + 'a {
    move |model| layer(model, "first")["config"][name] = value
}

#[test]
fn options_are_inert_computed_or_refused_by_name() {
    let refusals = [
        ("lora_enabled", json!(true)),
        ("lora_rank", json!(4)),
        ("quantization_mode", json!("int8")),
        ("num_constants", json!(1)),
        ("peephole", json!(true)),
        ("time_major", json!(true)),
        ("reset_after", json!(true)),
        ("cell_clip", json!(3.0)),
    ];
    for (name, value) in refusals {
        let message = refused(FILE, option(name, value));
        assert!(message.starts_with("layer first (LSTM): ") && message.contains(&format!("{name}: ")), "{message}");
    }
    let whole = read(FILE, |_| {});
    let inert = [
        ("unroll", json!(true)),
        ("implementation", json!(2)),
        ("use_cudnn", json!("auto")),
        ("seed", json!(3)),
        ("return_state", json!(true)),
        ("dropout", json!(0.5)),
        ("recurrent_dropout", json!(0.5)),
        ("unit_forget_bias", json!(false)),
        ("kernel_constraint", json!({ "class_name": "MaxNorm" })),
        ("lora_enabled", json!(false)),
        ("reset_after", json!(null)),
    ];
    for (name, value) in inert {
        assert_eq!(read(FILE, option(name, value)), whole, "{name}");
    }
    assert!(read(FILE, option("stateful", json!(true))).stateful);
    assert_ne!(read(FILE, option("go_backwards", json!(true))).weights, whole.weights);
    assert_ne!(read(FILE, option("activation", json!("relu"))).weights, whole.weights);
    assert_ne!(read(FILE, option("recurrent_activation", json!("hard_sigmoid"))).weights, whole.weights);
    for (name, value) in [("activation", "gelu"), ("recurrent_activation", "swish"), ("activation", "mine>relu")] {
        let message = refused(FILE, option(name, json!(value)));
        let named = message.starts_with(&format!("layer first (LSTM): {name}: "));
        assert!(named && message.ends_with(&format!("found {value}")), "{message}");
    }
}

#[test]
fn floats_that_keras_computes_in_are_told_and_integers_refused() {
    let policy =
        |class: &str, name: &str| json!({ "module": "keras", "class_name": class, "config": { "name": name } });
    for dtype in [json!("mixed_float16"), policy("DTypePolicy", "mixed_float16"), policy("Policy", "mixed_float16")] {
        let model = read(FILE, option("dtype", dtype));
        assert_eq!(model.assumptions[0], "first: Keras computes in mixed_float16, here in f32");
    }
    assert!(read(FILE, option("dtype", json!("float32"))).assumptions.iter().all(|a| !a.starts_with("first")));
    let quantised =
        json!({ "class_name": "QuantizedDTypePolicy", "config": { "mode": "int8", "source_name": "float32" } });
    for dtype in [quantised, json!("int8"), policy("DTypePolicyMap", "float32"), policy("DTypePolicy", "float8")] {
        let message = refused(FILE, option("dtype", dtype));
        assert!(message.starts_with("layer first (LSTM): dtype: "), "{message}");
    }
}

#[test]
fn classes_and_functions_of_others_are_refused() {
    let message = refused(FILE, |model| layer(model, "first")["registered_name"] = json!("mine>LSTM"));
    assert_eq!(message, "layer first (LSTM): expected a layer of Keras, found one of this name of mine>LSTM");
    let message = refused(FILE, |model| layer(model, "first")["module"] = json!("my.layers"));
    assert!(message.ends_with("found one of this name of my.layers"), "{message}");
    // As Keras 3 saves a class that is not registered.
    let message = refused(FILE, |model| {
        let first = layer(model, "first");
        first["module"] = json!(null);
        first["registered_name"] = json!("LSTM");
    });
    assert!(message.ends_with("found one of this name of LSTM"), "{message}");
    let lambda = json!({ "value": ["4wEAAAAAAAAA", null, null] });
    let message = refused(FILE, option("activation", lambda));
    assert!(message.starts_with("layer first (LSTM): activation: expected the name of a function"), "{message}");
    let mine = json!({ "module": "my", "class_name": "function", "config": "tanh", "registered_name": "function" });
    let message = refused(FILE, option("activation", mine));
    assert!(message.starts_with("layer first (LSTM): activation: ") && message.ends_with("one of my"), "{message}");
    let cell =
        json!({ "module": "my", "class_name": "LSTMCell", "registered_name": "my>LSTMCell", "config": { "units": 4 } });
    let message = refused(FILE, |model| {
        *layer(model, "first") =
            json!({ "class_name": "RNN", "config": { "name": "first", "cell": cell, "return_sequences": true } });
    });
    assert!(message.contains("layer first (RNN): cell: ") && message.ends_with("my>LSTMCell"), "{message}");
    let message = refused(FILE, |model| model["class_name"] = json!("Mine"));
    assert!(message.contains("expected a Sequential or functional model, found Mine"), "{message}");
    let model = read("k3_twice.keras", |model| model["class_name"] = json!("Mine"));
    assert!(model.assumptions.contains(&"a class of the user's is taken to be functional: twice (Mine)".to_owned()));
}

#[test]
fn a_recurrent_layer_inside_another_layer_is_found_and_refused() {
    for class in ["TimeDistributed", "SpectralNormalization", "Mine"] {
        let wrapped = with_config(FILE, |model| {
            let inner = layer(model, "first").clone();
            *layer(model, "first") = json!({ "class_name": class, "config": { "name": "first", "layer": inner } });
        });
        let message = keras::read(&wrapped, Some("first")).unwrap_err().to_string();
        let title = format!("layer first ({class}): expected a recurrent layer by itself");
        assert!(message.starts_with(&title) && message.contains("found LSTM inside"), "{message}");
        assert!(keras::list_layers(&wrapped).unwrap().iter().any(|l| l.name == "first" && l.class == class));
    }
}

#[test]
fn layers_between_that_change_values_part_a_chain_and_all_others_are_told() {
    for class in ["Dense", "BatchNormalization", "RepeatVector", "Masking", "Concatenate", "Lambda", "TimeDistributed"]
    {
        let bytes = with_config(FILE, |model| layer(model, "drop")["class_name"] = json!(class));
        let message = keras::read(&bytes, None).unwrap_err().to_string();
        assert!(message.contains("several chains of recurrent layers: \"first\", \"second\""), "{class}: {message}");
        let told = keras::read(&bytes, Some("first")).unwrap().assumptions.iter().any(|a| a.contains("drop ("));
        assert_eq!(told, class != "Masking", "{class}");
    }
    for class in ["GaussianNoise", "SpatialDropout1D", "Identity", "ActivityRegularization"] {
        assert_eq!(read(FILE, |model| layer(model, "drop")["class_name"] = json!(class)).layers.len(), 2, "{class}");
    }
    // A user's layer of that name.
    let mine = with_config(FILE, |model| layer(model, "drop")["registered_name"] = json!("mine>Dropout"));
    assert!(keras::read(&mine, None).unwrap_err().to_string().contains("several chains"));
}

#[test]
fn arguments_of_a_call_are_states_masks_or_refused() {
    let call = |name: &'static str, value: Value| {
        move |model: &mut Value| layer(model, "shared")["inbound_nodes"][0]["kwargs"][name] = value
    };
    let tensor = json!({ "class_name": "__keras_tensor__", "config": { "keras_history": ["in", 0, 0] } });
    for (name, value) in [
        ("constants", json!([tensor])),
        ("initial_state", json!([[0.5, 0.5, 0.5], [1.0, 1.0, 1.0]])),
        ("unheard", json!(3)),
    ] {
        let message = refused("k3_twice.keras", call(name, value));
        let title = format!("layer shared (LSTM): argument {name} of a call: expected none, found ");
        assert!(message.starts_with(&title), "{message}");
    }
    assert!(read("k3_twice.keras", call("initial_state", json!([tensor, tensor]))).takes_initial_state);
    let twice = "k3_twice.keras";
    // A state in the middle of a chain would be lost.
    let parted = with_config(twice, |model| {
        layer(model, "shared")["inbound_nodes"][1]["kwargs"]["initial_state"] = json!([tensor, tensor]);
    });
    assert_eq!(keras::read(&parted, None).unwrap().layers.len(), 1);
    // A mask of its own parts it from the call before, which has none.
    let masked = with_config(twice, |model| layer(model, "shared")["inbound_nodes"][1]["kwargs"]["mask"] = tensor);
    let masked = keras::read(&masked, None).unwrap();
    assert!(masked.masked && masked.layers.len() == 1);
    assert!(masked.assumptions.iter().any(|a| a.contains("applies this layer 2 times")));
    let drops = |rate: f64| {
        move |model: &mut Value| {
            layer(model, "shared")["inbound_nodes"][0]["kwargs"]["training"] = json!(true);
            layer(model, "shared")["config"]["recurrent_dropout"] = json!(rate);
        }
    };
    let message = refused(twice, drops(0.5));
    assert!(message.starts_with("layer shared (LSTM): argument training of a call"), "{message}");
    assert_eq!(read(twice, drops(0.0)).layers.len(), 2);
    // Dropout that always drops is a layer that changes values.
    let noisy = read(twice, |model| layer(model, "drop")["inbound_nodes"][1]["kwargs"]["training"] = json!(true));
    assert!(noisy.layers.len() == 1 && noisy.assumptions.iter().any(|a| a.contains("drop (Dropout)")));
}

#[test]
fn a_mask_is_not_handed_on_past_a_change_of_direction() {
    let change = |backwards: bool| {
        with_config(FILE, |model| {
            let mask = json!({ "class_name": "Masking", "config": { "name": "mask", "mask_value": 0.0 } });
            model["config"]["layers"].as_array_mut().unwrap().insert(1, mask);
            layer(model, "first")["config"]["go_backwards"] = json!(backwards);
        })
    };
    let model = keras::read(&change(false), None).unwrap();
    assert!(model.masked && model.assumptions.iter().any(|a| a.contains("Keras repeats the output before them")));
    let message = keras::read(&change(true), None).unwrap_err().to_string();
    assert!(message.starts_with("layer first (LSTM): go_backwards before another layer with a mask"), "{message}");
    assert!(keras::read(&change(true), Some("first")).is_ok());
}

#[test]
fn variables_without_a_layer_are_refused() {
    let fewer = with_config(FILE, |model| {
        model["config"]["layers"].as_array_mut().unwrap().truncate(3);
    });
    let error = keras::read(&fewer, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidFile);
    assert!(error.to_string().contains("as many layers of class LSTM as in config.json = 1, found lstm_1"), "{error}");
    let more = with_config(FILE, |model| {
        let mut layer = layer(model, "second").clone();
        layer["config"]["name"] = json!("third");
        model["config"]["layers"].as_array_mut().unwrap().push(layer);
    });
    let message = keras::read(&more, None).unwrap_err().to_string();
    assert!(message.contains("expected the group lstm_2 for third"), "{message}");
    let message = keras::read(&patched("k2_stack.h5", "\"name\": \"second\"", "\"name\": \"thirds\""), Some("first"));
    let message = message.unwrap_err().to_string();
    assert!(message.starts_with("second: expected a layer of this name in model_config"), "{message}");
    let twins = with_config(FILE, |model| layer(model, "second")["config"]["name"] = json!("first"));
    let message = keras::read(&twins, None).unwrap_err().to_string();
    assert!(message.contains("expected one layer of each name, found another first"), "{message}");
}

#[test]
fn weights_of_keras_1_alone_need_their_model() {
    let error = keras::read(&super::bytes("k1_stack_weights.h5"), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().starts_with("lstm_1: variables of Keras 1"), "{error}");
}

#[test]
fn layers_inside_others_are_told_of_weights_alone() {
    let model = keras::read(&super::bytes("k3_wrapped.weights.h5"), None).unwrap();
    let line = "recurrent layers inside other layers or models are not read: functional, time_distributed";
    assert!(model.assumptions.contains(&line.to_owned()), "{:?}", model.assumptions);
    let error = keras::read(&super::bytes("k2_wrapped_weights.h5"), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().starts_with("time_distributed_1: a recurrent layer inside another layer"), "{error}");
    let error = keras::read(&super::bytes("k0_weights.h5"), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().starts_with("nb_layers: expected a file of Keras 1 or later"), "{error}");
}

#[test]
fn archives_with_tricks_are_refused() {
    let refused = |change: &dyn Fn(&mut Vec<Entry>)| {
        let mut entries = entries(FILE);
        change(&mut entries);
        keras::read(&archive(&entries), None).unwrap_err().to_string()
    };
    let of = |name: &str, entries: &[Entry]| entries.iter().position(|e| e.name == name).unwrap();
    let twice = refused(&|e| {
        let config = e[of("config.json", e)].clone();
        e.push(config);
    });
    assert_eq!(twice, "config.json: expected once in a .keras archive, found twice");
    let flipped = refused(&|e| {
        let at = of("model.weights.h5", e);
        e[at].sum = Some(1);
    });
    assert!(flipped.starts_with("model.weights.h5: expected the checksum 00000001"), "{flipped}");
    let other = refused(&|e| {
        let at = of("config.json", e);
        e[at].local_name = Some("confih.json".to_owned());
    });
    assert_eq!(other, "config.json: expected the same name where the entry stands, found another");
    let deflated = refused(&|e| {
        let at = of("model.weights.h5", e);
        e[at].method = 8;
    });
    assert!(deflated.starts_with("model.weights.h5: expected a stored entry"), "{deflated}");
    let absent = refused(&|e| {
        let at = of("model.weights.h5", e);
        e[at].name = "../model.weights.h5".to_owned();
    });
    assert_eq!(absent, "model.weights.h5: expected in a .keras archive, found none");
    let with = |json: String| {
        refused(&move |e| {
            let at = of("config.json", e);
            e[at].bytes = json.clone().into_bytes();
        })
    };
    let deep = with("[".repeat(1 << 20));
    assert!(deep.starts_with("config.json: not JSON: recursion limit"), "{deep}");
    let large = with(" ".repeat((32 << 20) + 1));
    assert!(large.starts_with("config.json: expected at most 33554432 bytes"), "{large}");
}

/// Sizes at which a walk that is not linear would not end.
#[test]
fn models_of_very_many_layers_are_bounded() {
    let many = |count: usize, class: &str, name: &dyn Fn(usize) -> String| {
        let start = std::time::Instant::now();
        let result = keras::read(
            &with_config(FILE, |model| {
                let mut config = layer(model, "first").clone();
                let layers = (0..count).map(|i| {
                    config["class_name"] = json!(class);
                    config["config"] = json!({ "name": name(i), "units": 4, "return_sequences": true });
                    config.clone()
                });
                model["config"]["layers"] = layers.collect::<Vec<_>>().into();
            }),
            None,
        );
        assert!(start.elapsed().as_secs() < 20, "{count} {class}: {:?}", start.elapsed());
        result.unwrap_err().to_string()
    };
    let number = |i: usize| i.to_string();
    assert!(many((1 << 15) + 1, "LSTM", &number).contains("expected at most 32768 layers"));
    assert!(many(1 << 15, "LSTM", &number).contains("expected a chain of at most 1024 layers, found 32768"));
    assert!(many(1024, "LSTM", &number).contains("found"));
    assert!(many(1 << 15, "Dense", &number).contains("no recurrent layer in the file"));
    assert!(many(1, "LSTM", &|_| "x".repeat(513)).contains("names of at most 512 bytes"));
}

#[test]
fn files_that_would_never_end_are_refused() {
    for (file, named) in [
        ("hostile_cycle.weights.h5", "dataset not found"),
        ("hostile_bomb.weights.h5", "expected at most"),
        ("hostile_shape.weights.h5", "expected at most"),
        ("hostile_chunk.weights.h5", "expected at most"),
        ("hostile_links.weights.h5", "expected at most"),
    ] {
        let start = std::time::Instant::now();
        for name in [None, Some("lstm")] {
            let error = keras::read(&super::bytes(file), name).unwrap_err();
            assert!(error.to_string().contains(named), "{file}: {error}");
        }
        assert!(start.elapsed().as_secs() < 5, "{file}: {:?}", start.elapsed());
    }
}
