//! `lstm run` and `lstm info` of ONNX models: arrays by the names of the graph's inputs and outputs.

use std::path::Path;
use std::time::Instant;

use serde_json::json;
use wgpu_lstm::onnx::{OnnxCompat, OnnxModel, OnnxOptions, Tensor, TensorData, ValueInfo};
use wgpu_lstm::{DeviceChoice, Engine, EngineOptions, LstmSpec};

use crate::args::{InfoOptions, LayoutName, ModelOption, OnnxCompatName, RunOptions};
use crate::common::failure::{Failure, Result, fail, say};
use crate::common::spec_text::describe;
use crate::common::units::milliseconds;
use crate::compare::Comparison;
use crate::npz::{self, Array, ArrayFile, Data, Output, Values};
use crate::run::{check_folder, engine_options};

/// ONNX has no magic bytes, so the name of the file decides.
pub(crate) fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
}

pub(crate) fn info(options: &InfoOptions) -> Result<()> {
    refuse_weight_options(&options.model)?;
    // Nothing runs, so nothing has to be uploaded.
    let engine = Engine::open_blocking(EngineOptions::on(DeviceChoice::Reference))?;
    let path = &options.model.model;
    let model = pollster::block_on(OnnxModel::load_file(&engine, path, &OnnxOptions::default()))?;
    let told = |spec: Option<&LstmSpec>| spec.map_or("weights computed in each run".to_owned(), describe);
    if options.json {
        let infos = |list: &[ValueInfo]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let nodes: Vec<_> =
            model.recurrent_nodes().map(|(name, spec)| json!({ "name": name, "spec": told(spec) })).collect();
        return say!(
            "{:#}",
            json!({
                "file": path.display().to_string(),
                "format": "ONNX",
                "inputs": infos(model.inputs()),
                "outputs": infos(model.outputs()),
                "recurrent_nodes": nodes,
                "other_nodes": model.num_other_nodes(),
                "notice": model.notice(),
            })
        );
    }
    say!("{}: ONNX", path.display())?;
    for (what, list) in [("input", model.inputs()), ("output", model.outputs())] {
        for info in list {
            say!("{what} {info}")?;
        }
    }
    for (name, spec) in model.recurrent_nodes() {
        say!("{name}: {}", told(spec))?;
    }
    say!("{} other nodes, on the CPU", model.num_other_nodes())?;
    model.notice().map_or(Ok(()), |notice| say!("note: {notice}"))
}

pub(crate) fn run(options: &RunOptions) -> Result<()> {
    refuse_weight_options(&options.model)?;
    if options.verify.is_some() {
        return usage("--verify: expected a model of recurrent layers alone; compare with --expect");
    }
    if options.layout != LayoutName::Batch {
        return usage("--layout: an ONNX graph says itself what its axes are");
    }
    let engine = Engine::open_blocking(engine_options(&options.device, &options.weights, &options.budget))?;
    let compat = match options.onnx_compat {
        None | Some(OnnxCompatName::Operator) => OnnxCompat::Operator,
        Some(OnnxCompatName::Onnxruntime) => OnnxCompat::Onnxruntime,
    };
    let model_options = OnnxOptions::default().compat(compat);
    let model = pollster::block_on(OnnxModel::load_file(&engine, &options.model.model, &model_options))?;
    let inputs = read_inputs(&options.input, model.inputs())?;
    let mut expected =
        options.expect.as_deref().map(|path| ArrayFile::open(path, first_name(model.outputs()))).transpose()?;
    if let Some(path) = &options.output {
        check_folder(path)?;
    }
    let say_unless_quiet = |line: String| if options.quiet { Ok(()) } else { say!("{line}") };
    for (name, spec) in model.recurrent_nodes() {
        say_unless_quiet(format!("{name}: {}", spec.map_or("weights computed in each run".to_owned(), describe)))?;
    }
    if let Some(notice) = model.notice() {
        say_unless_quiet(format!("note: {notice}"))?;
    }
    say_unless_quiet(format!("device: {}: {}", engine.device().name, engine.device().reason))?;
    let start = Instant::now();
    let outputs = pollster::block_on(model.run(&inputs))?;
    say_unless_quiet(format!("ran in {} ms, first-run set-up included", milliseconds(start.elapsed().as_secs_f64())))?;

    if let Some(path) = &options.output {
        let arrays: Vec<Output<'_>> = outputs
            .iter()
            .map(|(name, t)| Ok(Output { name, shape: &t.shape, values: values(name, t)? }))
            .collect::<Result<_>>()?;
        if arrays.is_empty() {
            fail!("the graph has no output to write");
        }
        npz::write(path, &arrays)?;
        let written = if path.extension().is_some_and(|e| e == "npy") { &arrays[..1] } else { &arrays };
        let list: Vec<String> = written.iter().map(|a| format!("{} {:?}", a.name, a.shape)).collect();
        say_unless_quiet(format!("wrote {}: {}", path.display(), list.join(", ")))?;
    }
    expected.as_mut().map_or(Ok(()), |file| compare(file, &outputs, options))
}

fn usage(message: &str) -> Result<()> {
    Err(Failure::Usage(message.to_owned()))
}

fn refuse_weight_options(option: &ModelOption) -> Result<()> {
    match (&option.prefix, option.rnn_activation) {
        (Some(_), _) => usage("--prefix: an ONNX graph is read as a whole"),
        (_, Some(_)) => usage("--rnn-activation: an ONNX graph says itself what its activations are"),
        _ => Ok(()),
    }
}

/// What an array without a name is.
fn first_name(infos: &[ValueInfo]) -> &str {
    infos.first().map_or("", |info| info.name.as_str())
}

fn read_inputs(path: &Path, infos: &[ValueInfo]) -> Result<Vec<(String, Tensor)>> {
    let named = |failure: Failure| failure.context(path.display());
    let mut file = ArrayFile::open(path, first_name(infos))?;
    let mut inputs = Vec::new();
    for info in infos {
        // What is missing or surplus is told by the model, with what it takes.
        if let Some(array) = file.read(&info.name).map_err(named)? {
            inputs.push((info.name.clone(), tensor(info, array).map_err(named)?));
        }
    }
    let known = |name: &String| infos.iter().any(|info| info.name == *name);
    if let Some(name) = file.names().into_iter().find(|name| !known(name)) {
        let list: Vec<String> = infos.iter().map(ToString::to_string).collect();
        fail!("{}: array {name:?}: the graph has no such input; it takes {}", path.display(), list.join("; "));
    }
    Ok(inputs)
}

/// An array as the graph declares the input.
fn tensor(info: &ValueInfo, array: Array) -> Result<Tensor> {
    let name = &info.name;
    let shape = array.shape.clone();
    let data = match (info.type_name, &array.data) {
        ("int32" | "int64", Data::Int(values)) => TensorData::I64(values.clone()),
        ("bool", Data::Int(values)) => TensorData::Bool(values.iter().map(|&v| v != 0).collect()),
        ("uint8" | "int8", Data::Int(values)) => {
            let small = |values: &[i64]| values.iter().all(|v| (-128..=255).contains(v));
            match info.type_name {
                _ if !small(values) => fail!("{name}: expected {}, found larger numbers", info.type_name),
                "uint8" => TensorData::U8(values.iter().map(|&v| v as u8).collect()),
                _ => TensorData::I8(values.iter().map(|&v| v as i8).collect()),
            }
        }
        ("int32" | "int64" | "bool" | "uint8" | "int8", _) => {
            fail!("{name}: expected {}, found floating point", info.type_name)
        }
        _ => TensorData::F32(array.into_f32(name)?),
    };
    Ok(Tensor::new(shape, data)?)
}

fn values<'a>(name: &str, tensor: &'a Tensor) -> Result<Values<'a>> {
    Ok(match &tensor.data {
        TensorData::F32(v) => Values::F32(v),
        TensorData::I8(v) => Values::I8(v),
        TensorData::I32(v) => Values::I32(v),
        TensorData::I64(v) => Values::I64(v),
        TensorData::U8(v) => Values::U8(v),
        TensorData::Bool(v) => Values::Bool(v),
        other => fail!("{name}: {} cannot be written", other.type_name()),
    })
}

/// Every array of the file against the output of its name.
fn compare(file: &mut ArrayFile, outputs: &[(String, Tensor)], options: &RunOptions) -> Result<()> {
    let mut failures = Vec::new();
    let mut compared = 0;
    for (name, tensor) in outputs {
        let Some(array) = file.read(name)? else { continue };
        compared += 1;
        if array.shape != tensor.shape {
            failures.push(format!("{name}: expected shape {:?}, found {:?}", array.shape, tensor.shape));
            continue;
        }
        let found: Vec<f32> = match &tensor.data {
            TensorData::F32(v) => v.clone(),
            TensorData::I64(v) => v.iter().map(|&n| n as f32).collect(),
            TensorData::I32(v) => v.iter().map(|&n| n as f32).collect(),
            other => fail!("expect: {name}: {} is not compared", other.type_name()),
        };
        let comparison = Comparison::new(name, &tensor.shape, &found, &array.to_f64(), options.rtol, options.atol);
        if !options.quiet {
            say!("  {comparison}")?;
        }
        if !comparison.passed() {
            failures.push(comparison.to_string());
        }
    }
    if compared == 0 {
        let names: Vec<&str> = outputs.iter().map(|(name, _)| name.as_str()).collect();
        fail!(
            "expect: expected an array named as an output of the graph ({}), found {}",
            names.join(", "),
            file.names().join(", ")
        );
    }
    if failures.is_empty() { Ok(()) } else { fail!("expect: {}", failures.join("; ")) }
}
