//! `lstm run` and `lstm info` of ONNX models: arrays by the names of the graph's inputs and outputs.

use std::path::Path;
use std::time::Instant;

use serde_json::json;
use wgpu_lstm::onnx::{Dimension, OnnxCompat, OnnxModel, OnnxOptions, Tensor, TensorData, ValueInfo};
use wgpu_lstm::{DeviceChoice, Engine, EngineOptions, LstmSpec};

use crate::args::{BenchOptions, DeviceOption, InfoOptions, LayoutName, ModelOption, OnnxCompatName, RunOptions};
use crate::bench::BUDGET;
use crate::common::failure::{Failure, Result, fail, say};
use crate::common::random::Random;
use crate::common::spec_text::describe;
use crate::common::table;
use crate::common::timing::{Repeat, Times};
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
    let model = OnnxModel::load_file_blocking(&engine, path, &OnnxOptions::default())?;
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
                "inputs": infos(&model.inputs()),
                "optional_inputs": infos(model.optional_inputs()),
                "outputs": infos(model.outputs()),
                "recurrent_nodes": nodes,
                "other_nodes": model.num_other_nodes(),
                "notice": model.notice(),
            })
        );
    }
    say!("{}: ONNX", path.display())?;
    for (what, list) in
        [("input", &model.inputs()[..]), ("optional input", model.optional_inputs()), ("output", model.outputs())]
    {
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
    if options.layout != LayoutName::Batch {
        return usage("--layout: an ONNX graph says itself what its axes are");
    }
    let engine = Engine::open_blocking(engine_options(&options.device, &options.weights, &options.budget))?;
    let compat = match options.onnx_compat {
        None | Some(OnnxCompatName::Operator) => OnnxCompat::Operator,
        Some(OnnxCompatName::Onnxruntime) => OnnxCompat::Onnxruntime,
    };
    let model_options = OnnxOptions::default().compat(compat);
    let model = OnnxModel::load_file_blocking(&engine, &options.model.model, &model_options)?;
    let takes: Vec<ValueInfo> = model.inputs().into_iter().chain(model.optional_inputs().iter().cloned()).collect();
    let inputs = read_inputs(&options.input, &takes)?;
    let mut expected =
        options.expect.as_deref().map(|path| ArrayFile::open(path, first_name(model.outputs()))).transpose()?;
    if let Some(path) = &options.output {
        check_folder(path)?;
    }
    let quiet = options.is_quiet();
    let say_unless_quiet = |line: String| if quiet { Ok(()) } else { say!("{line}") };
    for (name, spec) in model.recurrent_nodes() {
        say_unless_quiet(format!("{name}: {}", spec.map_or("weights computed in each run".to_owned(), describe)))?;
    }
    if let Some(notice) = model.notice() {
        say_unless_quiet(format!("note: {notice}"))?;
    }
    say_unless_quiet(format!("device: {}: {}", engine.device().name, engine.device().reason))?;
    if options.explain {
        say!("{}", model.explain().trim_end())?;
    }
    let start = Instant::now();
    let outputs = writable(model.run_blocking(&inputs)?);
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
    // Both are reported before the first failure ends the program.
    let verified = if options.verify.is_some() { verify(options, &model_options, &inputs, &outputs) } else { Ok(()) };
    let compared = expected.as_mut().map_or(Ok(()), |file| compare(file, &outputs, options));
    verified.and(compared)
}

/// The whole graph once more with every operator in f64 and the recurrent nodes on the reference.
///
/// What rounding alone does is measured: the same graph with each float of the input moved by half a unit in the last
/// place. Where an output moves by more than the tolerance then, no run in f32 can be judged by it.
fn verify(
    options: &RunOptions,
    model_options: &OnnxOptions,
    inputs: &[(String, Tensor)],
    outputs: &[(String, Tensor)],
) -> Result<()> {
    const RTOL: f64 = 1e-3;
    const ATOL: f64 = 1e-5;
    let engine = Engine::open_blocking(EngineOptions::on(DeviceChoice::Reference))?;
    let model = OnnxModel::load_file_blocking(&engine, &options.model.model, &model_options.clone().fast(false))?;
    let expected = writable(model.run_blocking(inputs)?);
    let moved = writable(model.run_blocking(&moved(inputs))?);
    let mut failures = Vec::new();
    let quiet = options.is_quiet();
    if !quiet {
        say!("verify: every operator in f64, rtol {RTOL:e}, atol {ATOL:e}")?;
    }
    for (((name, found), (_, expected)), (_, moved)) in outputs.iter().zip(&expected).zip(&moved) {
        if found.shape != expected.shape {
            failures.push(format!("{name}: expected shape {:?}, found {:?}", expected.shape, found.shape));
            continue;
        }
        let wide =
            |tensor: &Tensor| -> Result<Vec<f64>> { Ok(as_floats(name, tensor)?.into_iter().map(f64::from).collect()) };
        let (wanted, response) = (wide(expected)?, as_floats(name, moved)?);
        let comparison = Comparison::new(name, &found.shape, &as_floats(name, found)?, &wanted, RTOL, ATOL);
        let unstable = moved.shape != expected.shape
            || !Comparison::new(name, &moved.shape, &response, &wanted, RTOL, ATOL).passed();
        let line = match (comparison.passed(), unstable) {
            (false, true) => format!(
                "no judgement of {name}: moving each input by half a unit in its last place moves it by {:.1e}",
                response.iter().zip(&wanted).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
            ),
            _ => comparison.to_string(),
        };
        if !quiet {
            say!("  {line}")?;
        }
        if !comparison.passed() && !unstable {
            failures.push(comparison.to_string());
        }
    }
    if failures.is_empty() { Ok(()) } else { fail!("verify: {}", failures.join("; ")) }
}

/// The inputs with every f32 moved by half a unit in its last place, up and down in turn.
fn moved(inputs: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    let step = |(i, &v): (usize, &f32)| {
        let up = i.wrapping_mul(0x9e37_79b9) >> 16 & 1 == 0;
        if !v.is_finite() {
            v
        } else if up {
            v.next_up()
        } else {
            v.next_down()
        }
    };
    let tensor = |tensor: &Tensor| match &tensor.data {
        TensorData::F32(v) => {
            Tensor { shape: tensor.shape.clone(), data: TensorData::F32(v.iter().enumerate().map(step).collect()) }
        }
        _ => tensor.clone(),
    };
    inputs.iter().map(|(name, t)| (name.clone(), tensor(t))).collect()
}

/// Times a graph on arrays from a file, or on random numbers where its inputs have fixed sizes.
pub(crate) fn bench(options: &BenchOptions) -> Result<()> {
    refuse_weight_options(&options.model)?;
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for choice in &options.device {
        let device = DeviceOption { device: choice.clone() };
        let measured = Engine::open_blocking(engine_options(&device, &options.weights, &options.budget))
            .map_err(Failure::from)
            .and_then(|engine| measure(&engine, options));
        match measured {
            Ok((name, first, times)) => rows.push((choice.to_string(), name, first, times)),
            Err(failure) => failures.push((choice.to_string(), failure)),
        }
    }
    if options.json {
        let timed = rows.iter().map(|(device, name, first, times)| {
            json!({
                "device": device,
                "adapter": name,
                "median_ms": times.median() * 1e3,
                "min_ms": times.min() * 1e3,
                "max_ms": times.max() * 1e3,
                "runs": times.runs(),
                "first_ms": first * 1e3,
            })
        });
        let missing =
            failures.iter().map(|(device, failure)| json!({ "device": device, "unavailable": failure.to_string() }));
        let all: Vec<_> = timed.chain(missing).collect();
        say!("{:#}", json!({ "model": options.model.model.display().to_string(), "rows": all }))?;
    } else {
        let mut text = vec![["device", "", "median ms", "min", "max", "runs", "first ms"].map(str::to_owned).to_vec()];
        for (device, name, first, times) in &rows {
            let mut cells = vec![device.clone(), name.clone()];
            cells.extend([times.median(), times.min(), times.max()].map(milliseconds));
            cells.extend([times.runs().to_string(), milliseconds(*first)]);
            text.push(cells);
        }
        say!("{}: the whole graph, from host memory to host memory", options.model.model.display())?;
        for line in table::lines(&text, &[0, 1]) {
            say!("{line}")?;
        }
        for (device, failure) in &failures {
            say!("{device}: unavailable: {failure}")?;
        }
    }
    // A missing GPU is a row, not a failure, as long as something was measured.
    match failures.into_iter().next() {
        Some((_, first)) if rows.is_empty() => Err(first),
        _ => Ok(()),
    }
}

/// The device, the seconds of the first run, and the times of the others.
fn measure(engine: &Engine, options: &BenchOptions) -> Result<(String, f64, Times)> {
    let model = OnnxModel::load_file_blocking(engine, &options.model.model, &OnnxOptions::default())?;
    let takes: Vec<ValueInfo> = model.inputs().into_iter().chain(model.optional_inputs().iter().cloned()).collect();
    let inputs = match &options.input {
        Some(path) => read_inputs(path, &takes)?,
        None => model.inputs().iter().map(random).collect::<Result<_>>()?,
    };
    let start = Instant::now();
    model.run_blocking(&inputs)?;
    let first = start.elapsed().as_secs_f64();
    let times = Repeat { runs: options.runs, budget: BUDGET }.measure(|| {
        model.run_blocking(&inputs)?;
        Ok(())
    })?;
    Ok((engine.device().name.clone(), first, times))
}

/// Random floats for an input of fixed sizes.
fn random(info: &ValueInfo) -> Result<(String, Tensor)> {
    let size = |d: &Dimension| match d {
        Dimension::Fixed(n) => Some(*n),
        Dimension::Symbolic(_) => None,
    };
    let sizes: Option<Vec<usize>> = info.shape.as_ref().and_then(|shape| shape.iter().map(size).collect());
    match (sizes, info.type_name) {
        (Some(shape), "float") => {
            let elements = shape.iter().product();
            Ok((info.name.clone(), Tensor::floats(shape, Random::new(1).values(elements))?))
        }
        _ => Err(Failure::Usage(format!(
            "--input: expected a file with arrays, since {info} is not of fixed sizes and type float"
        ))),
    }
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
    let declared = info.type_name;
    let shape = array.shape.clone();
    let larger = || Failure::Data(format!("{name}: expected numbers of type {declared}, found larger ones"));
    macro_rules! whole {
        ($variant:ident, $type:ty) => {
            match &array.data {
                Data::Int(values) => TensorData::$variant(
                    values.iter().map(|&v| <$type>::try_from(v).map_err(|_| larger())).collect::<Result<_>>()?,
                ),
                Data::Uint(values) => TensorData::$variant(
                    values.iter().map(|&v| <$type>::try_from(v).map_err(|_| larger())).collect::<Result<_>>()?,
                ),
                _ => fail!("{name}: expected {declared}, found floating point"),
            }
        };
    }
    let data = match declared {
        "int8" => whole!(I8, i8),
        "int16" => whole!(I16, i16),
        "int32" => whole!(I32, i32),
        "int64" => whole!(I64, i64),
        "uint8" => whole!(U8, u8),
        "uint16" => whole!(U16, u16),
        "uint32" => whole!(U32, u32),
        "uint64" => whole!(U64, u64),
        "bool" => match &array.data {
            Data::Int(values) => TensorData::Bool(values.iter().map(|&v| v != 0).collect()),
            _ => fail!("{name}: expected bool, found another type"),
        },
        "double" => match array.data {
            Data::F32(values) => TensorData::F64(values.into_iter().map(f64::from).collect()),
            Data::F64(values) => TensorData::F64(values),
            _ => fail!("{name}: expected double, found integers; convert with astype(\"float64\")"),
        },
        "float16" | "bfloat16" => {
            let values = array.into_f32(name)?;
            let rounded = |exact: bool| -> Result<()> {
                if exact { Ok(()) } else { fail!("{name}: expected numbers that {declared} holds, found others") }
            };
            if declared == "float16" {
                let halves: Vec<half::f16> = values.iter().map(|&v| half::f16::from_f32(v)).collect();
                rounded(halves.iter().zip(&values).all(|(h, v)| h.to_f32() == *v || v.is_nan()))?;
                TensorData::F16(halves)
            } else {
                let halves: Vec<half::bf16> = values.iter().map(|&v| half::bf16::from_f32(v)).collect();
                rounded(halves.iter().zip(&values).all(|(h, v)| h.to_f32() == *v || v.is_nan()))?;
                TensorData::BF16(halves)
            }
        }
        _ => TensorData::F32(array.into_f32(name)?),
    };
    Ok(Tensor::new(shape, data)?)
}

/// Types that numpy does not have, as those that hold them.
fn writable(outputs: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    let wide = |(name, tensor): (String, Tensor)| {
        let data = match tensor.data {
            TensorData::BF16(v) => TensorData::F32(v.into_iter().map(half::bf16::to_f32).collect()),
            data => data,
        };
        (name, Tensor { shape: tensor.shape, data })
    };
    outputs.into_iter().map(wide).collect()
}

fn values<'a>(name: &str, tensor: &'a Tensor) -> Result<Values<'a>> {
    Ok(match &tensor.data {
        TensorData::F16(v) => Values::F16(v),
        TensorData::F32(v) => Values::F32(v),
        TensorData::F64(v) => Values::F64(v),
        TensorData::I8(v) => Values::I8(v),
        TensorData::I16(v) => Values::I16(v),
        TensorData::I32(v) => Values::I32(v),
        TensorData::I64(v) => Values::I64(v),
        TensorData::U8(v) => Values::U8(v),
        TensorData::U16(v) => Values::U16(v),
        TensorData::U32(v) => Values::U32(v),
        TensorData::U64(v) => Values::U64(v),
        TensorData::Bool(v) => Values::Bool(v),
        other => fail!("{name}: {} cannot be written", other.type_name()),
    })
}

/// The elements as floats, for a comparison.
fn as_floats(name: &str, tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(match values(name, tensor)? {
        Values::F16(v) => v.iter().map(|n| n.to_f32()).collect(),
        Values::F32(v) => v.to_vec(),
        Values::F64(v) => v.iter().map(|&n| n as f32).collect(),
        Values::I8(v) => v.iter().map(|&n| n.into()).collect(),
        Values::I16(v) => v.iter().map(|&n| n.into()).collect(),
        Values::I32(v) => v.iter().map(|&n| n as f32).collect(),
        Values::I64(v) => v.iter().map(|&n| n as f32).collect(),
        Values::U8(v) => v.iter().map(|&n| n.into()).collect(),
        Values::U16(v) => v.iter().map(|&n| n.into()).collect(),
        Values::U32(v) => v.iter().map(|&n| n as f32).collect(),
        Values::U64(v) => v.iter().map(|&n| n as f32).collect(),
        Values::Bool(v) => v.iter().map(|&n| n.into()).collect(),
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
        let found = as_floats(name, tensor)?;
        let comparison = Comparison::new(name, &tensor.shape, &found, &array.to_f64(), options.rtol, options.atol);
        if !options.is_quiet() {
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
