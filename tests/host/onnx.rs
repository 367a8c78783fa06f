//! ONNX models against onnxruntime's numbers and the operator's own node tests; and what hostile files may do.

use wgpu_lstm::onnx::{OnnxCompat, OnnxModel, OnnxOptions, Tensor, TensorData};
use wgpu_lstm::{DeviceChoice, Engine, EngineOptions, ErrorKind};

use crate::support::onnx::{Example, example, examples, floats};
use crate::support::{self, data::Rng};

fn engines() -> Vec<Engine> {
    let mut devices = vec![DeviceChoice::Reference];
    if cfg!(feature = "cpu") {
        devices.push(DeviceChoice::Cpu);
    }
    devices.into_iter().map(|d| Engine::open_blocking(EngineOptions::on(d)).unwrap()).collect()
}

fn load(engine: &Engine, bytes: &[u8]) -> wgpu_lstm::Result<OnnxModel> {
    pollster::block_on(OnnxModel::load(engine, bytes, &OnnxOptions::default()))
}

#[test]
fn every_model_has_the_numbers_of_onnxruntime() {
    let examples = examples();
    assert_eq!(examples.iter().filter(|e| e.name.starts_with("test_lstm_")).count(), 6, "the operator's node tests");
    assert!(examples.len() >= 22, "{} models", examples.len());
    for engine in engines() {
        for example in &examples {
            let Example { name, bytes, inputs, .. } = example;
            let model = pollster::block_on(OnnxModel::load(&engine, bytes, &example.options()))
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            // Twice: a model is loaded once and runs as often as it is asked to.
            for _ in 0..2 {
                let found = pollster::block_on(model.run(inputs)).unwrap_or_else(|e| panic!("{name}: {e}"));
                example.check(&found).unwrap_or_else(|e| panic!("{e}"));
            }
        }
    }
}

/// The same models with another batch and another time, where the graph leaves them open.
#[test]
fn batch_and_time_may_differ_from_run_to_run() {
    let Example { bytes, inputs, .. } = example("exported_two_layers_bidirectional");
    for engine in engines() {
        let model = load(&engine, &bytes).unwrap();
        let run = |t: usize, b: usize| {
            let x: Vec<f32> = (0..t * b * 4).map(|i| (i as f32 * 0.7).sin()).collect();
            let x = Tensor::floats(vec![t, b, 4], x).unwrap();
            pollster::block_on(model.run(&[("x", x)])).unwrap()
        };
        for (t, b) in [(1, 1), (9, 2), (2, 5)] {
            let shapes: Vec<_> = run(t, b).into_iter().map(|(_, tensor)| tensor.shape).collect();
            assert_eq!(shapes, [vec![t, b, 10], vec![4, b, 5], vec![4, b, 5]]);
        }
        // The second sequence alone is what it was in company.
        let whole = run(9, 2);
        let x: Vec<f32> = (0..9).flat_map(|t| (4..8).map(move |k| ((t * 8 + k) as f32 * 0.7).sin())).collect();
        let alone = pollster::block_on(model.run(&[("x", Tensor::floats(vec![9, 1, 4], x).unwrap())])).unwrap();
        for t in 0..9 {
            let (whole, alone) = (&floats(&whole[0].1)[(t * 2 + 1) * 10..][..10], &floats(&alone[0].1)[t * 10..][..10]);
            assert!(whole.iter().zip(alone).all(|(a, b)| (a - b).abs() < 1e-6));
        }
        assert_eq!(inputs.len(), 1);
    }
}

#[test]
fn nodes_are_reported_and_a_decomposed_one_is_told() {
    let engine = &engines()[0];
    let model = load(engine, &example("parallel").bytes).unwrap();
    let names: Vec<_> = model.recurrent_nodes().map(|(name, spec)| (name.to_owned(), spec.is_some())).collect();
    assert_eq!(names.len(), 3);
    assert!(names.iter().all(|(_, loaded)| *loaded) && names[2].0.starts_with("RNN"), "{names:?}");
    assert_eq!((model.notice(), model.num_other_nodes()), (None, 6));
    let model = load(engine, &example("weights_at_run_time").bytes).unwrap();
    assert!(model.recurrent_nodes().all(|(_, spec)| spec.is_none()));
    let model = load(engine, &example("decomposed").bytes).unwrap();
    assert_eq!(model.recurrent_nodes().count(), 0);
    assert!(model.notice().unwrap().contains("no LSTM, GRU or RNN node"));
}

/// Weights that each run computes anew are used anew.
#[test]
fn weights_of_a_run_are_those_of_its_inputs() {
    let Example { bytes, mut inputs, .. } = example("weights_at_run_time");
    for engine in engines() {
        let model = load(&engine, &bytes).unwrap();
        let first = pollster::block_on(model.run(&inputs)).unwrap();
        let a = inputs.iter_mut().find(|(name, _)| name == "a").unwrap();
        let TensorData::F32(values) = &mut a.1.data else { panic!("floats") };
        values.iter_mut().for_each(|v| *v = -*v);
        let second = pollster::block_on(model.run(&inputs)).unwrap();
        assert_ne!(first, second);
        let TensorData::F32(values) = &mut inputs.iter_mut().find(|(name, _)| name == "a").unwrap().1.data else {
            panic!("floats")
        };
        values.iter_mut().for_each(|v| *v = -*v);
        assert_eq!(pollster::block_on(model.run(&inputs)).unwrap(), first);
    }
}

#[test]
fn compatibility_with_onnxruntime_changes_what_it_is_about() {
    let engine = &engines()[0];
    for name in ["clip_onnxruntime", "defaults_onnxruntime"] {
        let example = example(name);
        let run = |compat| {
            let options = OnnxOptions::default().compat(compat);
            let model = pollster::block_on(OnnxModel::load(engine, &example.bytes, &options)).unwrap();
            pollster::block_on(model.run(&example.inputs)).unwrap()
        };
        example.check(&run(OnnxCompat::Onnxruntime)).unwrap();
        let (text, ort) = (run(OnnxCompat::Operator), run(OnnxCompat::Onnxruntime));
        let largest = floats(&text[0].1).iter().zip(floats(&ort[0].1)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest > 1e-3, "{name}: the two differ by {largest}");
    }
}

/// Weights in a file beside the model, of recurrent nodes and of others.
#[test]
fn data_outside_the_model_file_is_read_from_its_folder_only() {
    let folder = support::onnx::folder().join("external");
    let example = support::onnx::examples_in(&folder).remove(0);
    let engine = &engines()[0];
    let options = OnnxOptions::default();
    let load_file = |path: &std::path::Path| pollster::block_on(OnnxModel::load_file(engine, path, &options));
    let model = load_file(&folder.join("model.onnx")).unwrap();
    example.check(&pollster::block_on(model.run(&example.inputs)).unwrap()).unwrap();

    let error = load_file(&folder.join("outside.onnx")).unwrap_err();
    assert!(error.to_string().contains("inside the model's folder, found \"../external/weights.bin\""), "{error}");
    let error = load(engine, &example.bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("its data lies in another file, \"weights.bin\""), "{error}");

    let copy = std::env::temp_dir().join(format!("lstm-onnx-{}", std::process::id()));
    std::fs::create_dir_all(&copy).unwrap();
    let model = copy.join("model.onnx");
    std::fs::write(&model, &example.bytes).unwrap();
    let missing = load_file(&model).unwrap_err();
    let data = std::fs::read(folder.join("weights.bin")).unwrap();
    std::fs::write(copy.join("weights.bin"), &data[..data.len() / 8]).unwrap();
    let short = load_file(&model).unwrap_err();
    std::fs::remove_file(copy.join("weights.bin")).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(folder.join("weights.bin"), copy.join("weights.bin")).unwrap();
        let linked = load_file(&model).unwrap_err();
        assert!(linked.to_string().contains("inside the model's folder"), "{linked}");
    }
    std::fs::remove_dir_all(&copy).unwrap();
    for error in [missing, short] {
        assert_eq!(error.kind(), ErrorKind::InvalidFile);
        assert!(error.to_string().contains("weights.bin"), "{error}");
    }
}

#[test]
fn wrong_inputs_are_named() {
    let Example { bytes, inputs, .. } = example("keras_gru");
    let model = load(&engines()[0], &bytes).unwrap();
    let run = |inputs: &[(String, Tensor)]| pollster::block_on(model.run(inputs)).unwrap_err();
    let with = |name: &str, tensor: Tensor| {
        let mut changed = inputs.clone();
        changed.retain(|(n, _)| n != name);
        changed.push((name.to_owned(), tensor));
        run(&changed).to_string()
    };
    let ints = |shape: &[usize], values: &[i32]| Tensor::new(shape.to_vec(), TensorData::I32(values.to_vec())).unwrap();
    let zeros = |shape: &[usize]| Tensor::floats(shape.to_vec(), vec![0.0; shape.iter().product()]).unwrap();
    for (found, needle) in [
        (run(&inputs[..1]).to_string(), "missing; the graph takes x float [n, t, 3]; lengths int32 [n]"),
        (with("y", zeros(&[1])), "input \"y\": the graph has no such input; it takes x float"),
        (with("x", zeros(&[4, 6, 2])), "input: expected x float [n, t, 3], found shape [4, 6, 2]"),
        (with("x", ints(&[4, 6, 3], &[0; 72])), "input x: expected type float, found int32"),
        (with("lengths", ints(&[4], &[6, 7, 1, 1])), "sequence_lens[1]: expected 0 to seq_length 6, found 7"),
        (with("lengths", ints(&[4], &[6, -1, 1, 1])), "sequence_lens[1]: expected 0 to seq_length 6, found -1"),
        (
            with("lengths", ints(&[3], &[6, 1, 1])),
            "GRU \"gru\": sequence_lens: expected [batch_size] = [4], found shape [3]",
        ),
    ] {
        assert!(found.contains(needle), "{found}");
    }
    assert_eq!(run(&inputs[..1]).kind(), ErrorKind::InvalidInput);
}

/// Truncated and changed files give an error or a model, in bounded time and memory, and nothing panics.
#[test]
fn damaged_models_are_refused_or_harmless() {
    let engine = &engines()[0];
    let mut rng = Rng::new(3);
    let (mut refused, mut loaded) = (0, 0);
    let rounds = if std::env::var("LSTM_FULL").is_ok_and(|v| v == "1") { 2000 } else { 60 };
    for Example { name, bytes, inputs, .. } in examples() {
        let mut attempt = |bytes: &[u8]| match load(engine, bytes) {
            Err(error) => {
                assert!(!error.to_string().is_empty() && !error.to_string().contains('\n'), "{name}: {error}");
                refused += 1;
            }
            Ok(model) => {
                // What can be loaded may fail to run, with an error.
                let _ = pollster::block_on(model.run(&inputs));
                loaded += 1;
            }
        };
        for _ in 0..12 {
            attempt(&bytes[..rng.below(bytes.len())]);
        }
        for _ in 0..rounds {
            let mut changed = bytes.clone();
            for _ in 0..1 + rng.below(3) {
                let at = rng.below(changed.len());
                changed[at] = rng.below(256) as u8;
            }
            attempt(&changed);
        }
    }
    assert!(refused > 300 && loaded > 100, "{refused} refused, {loaded} loaded");
}

/// Sizes that no memory holds: from an initialiser, from a constant that loading would compute with, and from a run.
#[test]
fn impossible_sizes_are_refused_before_memory_is_taken() {
    let engine = &engines()[0];
    let Example { bytes, inputs, .. } = example("exported_forward");
    // The graph's own [1, batch, 5]: one of its two stored sizes becomes 2^40.
    let five = 5i64.to_le_bytes();
    let places: Vec<usize> = (0..bytes.len() - 8).filter(|&at| bytes[at..at + 8] == five).collect();
    assert!(!places.is_empty());
    let mut refused = 0;
    for at in places {
        let mut changed = bytes.clone();
        changed[at..at + 8].copy_from_slice(&(1i64 << 30).to_le_bytes());
        let result = load(engine, &changed).and_then(|model| pollster::block_on(model.run(&inputs)));
        let error = result.unwrap_err();
        refused += usize::from(error.to_string().contains("expected a tensor of at most 268435456 elements"));
    }
    assert!(refused >= 1);
}

/// Files that ask for more memory or time than there is end with an error that says so, soon.
#[test]
fn hostile_models_are_refused() {
    let engine = &engines()[0];
    let folder = support::onnx::folder().join("hostile");
    let x = Tensor::floats(vec![3], vec![1.0, 2.0, 3.0]).unwrap();
    let mut found: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    found.sort();
    let elements = "expected a tensor of at most 268435456 elements";
    let expected = [
        ("additions", elements),
        ("circle", "is made from itself"),
        ("constant_of_shape", elements),
        ("doublings", elements),
        ("endless_loop", "expected loops of at most 1000 iterations"),
        ("functions", "expected at most 1048576 nodes"),
        ("growing_loop", elements),
        ("one_hot", elements),
        ("outer_product", elements),
        ("pad", elements),
        ("range", elements),
        ("recursion", "expected at most 32 functions that call each other"),
    ];
    assert_eq!(found, expected.map(|(name, _)| name));
    for (name, needle) in expected {
        let started = std::time::Instant::now();
        let bytes = std::fs::read(folder.join(format!("{name}.onnx"))).unwrap();
        let options = OnnxOptions::default().max_iterations(1000);
        let result = pollster::block_on(OnnxModel::load(engine, &bytes, &options))
            .and_then(|model| pollster::block_on(model.run(&[("x", x.clone())])));
        let error = result.expect_err(name).to_string();
        assert!(error.contains(needle), "{name}: {error}");
        assert!(started.elapsed().as_secs() < 60, "{name}: {:?}", started.elapsed());
    }
}

/// Each limit of the options is one: what passes without it is refused with it, by its name.
#[test]
fn limits_are_options() {
    let engine = &engines()[0];
    for (name, options, needle) in [
        ("exported_forward", OnnxOptions::default().max_elements(10), "OnnxOptions::max_elements"),
        ("exported_forward", OnnxOptions::default().max_bytes(100), "OnnxOptions::max_bytes"),
        ("convolution", OnnxOptions::default().max_multiply_adds(10.0), "OnnxOptions::max_multiply_adds"),
        ("around_loop_over_a_cell", OnnxOptions::default().max_iterations(2), "OnnxOptions::max_iterations"),
    ] {
        let Example { bytes, inputs, .. } = example(name);
        let run = |options: &OnnxOptions| {
            let model = pollster::block_on(OnnxModel::load(engine, &bytes, options))?;
            pollster::block_on(model.run(&inputs))
        };
        run(&OnnxOptions::default()).unwrap();
        let error = run(&options).expect_err(needle);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(needle), "{error}");
    }
}

/// Without the fast runtime every number is the same to rounding: the host's operators are what `--verify` goes by.
#[test]
fn the_host_alone_has_the_same_numbers() {
    let engine = &engines()[0];
    for example in examples() {
        let options = example.options().fast(false);
        let model = pollster::block_on(OnnxModel::load(engine, &example.bytes, &options)).unwrap();
        assert!(!model.explain().contains("CPU runtime"), "{}: {}", example.name, model.explain());
        example.check(&pollster::block_on(model.run(&example.inputs)).unwrap()).unwrap();
    }
    let model = load(engine, &example("convolution").bytes).unwrap();
    assert!(model.explain().contains("CPU runtime: Conv"), "{}", model.explain());
}

/// Small inputs go through packed products, large ones through the runtime; both have the numbers of the host's operators.
#[test]
fn small_and_large_inputs_have_the_same_numbers() {
    let engine = &engines()[0];
    let bytes = example("convolution").bytes;
    let load = |fast| pollster::block_on(OnnxModel::load(engine, &bytes, &OnnxOptions::default().fast(fast))).unwrap();
    let (fast, plain) = (load(true), load(false));
    for (n, t) in [(1, 3), (3, 70), (4, 30_000)] {
        let mut rng = Rng::new(9);
        let x: Vec<f32> = (0..n * 2 * t).map(|_| rng.below(2001) as f32 / 1000.0 - 1.0).collect();
        let inputs = [("x", Tensor::floats(vec![n, 2, t], x).unwrap())];
        let [found, expected] = [&fast, &plain].map(|model| pollster::block_on(model.run(&inputs)).unwrap());
        assert_eq!(found[0].1.shape, expected[0].1.shape);
        let largest = floats(&found[0].1).iter().zip(floats(&expected[0].1)).map(|(a, b)| (a - b).abs());
        let largest = largest.fold(0.0, f32::max);
        assert!(largest < 1e-5, "{n} × {t}: {largest}");
    }
}

/// An initialiser that is an input too is listed apart, kept where it is not given, and another model where it is.
#[test]
fn defaults_may_be_replaced() {
    let engine = &engines()[0];
    let (kept, replaced) = (example("around_default_kept"), example("around_default_replaced"));
    let model = load(engine, &kept.bytes).unwrap();
    assert_eq!(model.inputs().len(), 1);
    assert_eq!(model.optional_inputs().iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["h_0"]);
    for example in [&replaced, &kept, &replaced] {
        example.check(&pollster::block_on(model.run(&example.inputs)).unwrap()).unwrap();
    }
}

#[test]
fn other_files_are_told_apart() {
    let engine = &engines()[0];
    for (bytes, needle) in [
        (&b""[..], "expected one graph"),
        (b"PK\x03\x04 a zip archive of some length", "model"),
        (b"\x08\x07", "expected one graph"),
    ] {
        let error = load(engine, bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidFile);
        assert!(error.to_string().contains(needle), "{error}");
    }
}
