//! `lstm info`: the layers, sizes and tensors of a model.

use serde_json::{Value, json};
use wgpu_lstm::LstmSpec;

use crate::args::InfoOptions;
use crate::common::failure::{Result, say};
use crate::common::spec_text::{describe, direction_name, options as layer_options};
use crate::common::table;
use crate::common::units::{bytes, grouped};
use crate::model::{self, FileInfo, TensorInfo};

pub(crate) fn info(options: &InfoOptions) -> Result<()> {
    let (weights, file) = model::read_with_info(&options.model)?;
    let spec = weights.spec();
    if options.json {
        return say!("{:#}", to_json(&options.model.model.display().to_string(), spec, &file));
    }
    say!("{}: {}", options.model.model.display(), describe(spec))?;
    say!("input [.., {}], output [.., {}]", spec.input_size(), spec.output_size())?;
    let size_bytes = 4 * spec.num_parameters() as u64;
    say!("{} parameters, {} in f32", grouped(spec.num_parameters()), bytes(size_bytes))?;
    say!("")?;
    for line in table::lines(&layer_rows(spec), &[1, 6, 7]) {
        say!("{line}")?;
    }
    for (l, layer) in spec.layers().iter().enumerate() {
        for option in layer_options(layer) {
            say!("layer {l}: {option}")?;
        }
    }
    say!("")?;
    say!("tensors, prefix {:?}", file.prefix)?;
    for line in table::lines(&file.tensors.iter().map(tensor_row).collect::<Vec<_>>(), &[0, 1, 2]) {
        say!("  {line}")?;
    }
    if !file.others.is_empty() {
        say!("other tensors in the file, not used")?;
        for line in table::lines(&file.others.iter().map(tensor_row).collect::<Vec<_>>(), &[0, 1, 2]) {
            say!("  {line}")?;
        }
    }
    Ok(())
}

fn layer_rows(spec: &LstmSpec) -> Vec<Vec<String>> {
    let heading = ["layer", "cell", "input", "hidden", "projection", "output", "direction", "bias", "parameters"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for (l, layer) in spec.layers().iter().enumerate() {
        rows.push(vec![
            l.to_string(),
            layer.cell.name().into(),
            layer.input_size.to_string(),
            layer.hidden_size.to_string(),
            layer.projection_size.map_or("–".into(), |p| p.to_string()),
            layer.output_size().to_string(),
            direction_name(layer.direction).into(),
            if layer.bias { "yes" } else { "no" }.into(),
            grouped(layer.num_parameters()),
        ]);
    }
    rows
}

fn tensor_row(tensor: &TensorInfo) -> Vec<String> {
    vec![tensor.name.clone(), tensor.dtype.clone(), format!("{:?}", tensor.shape)]
}

fn to_json(path: &str, spec: &LstmSpec, file: &FileInfo) -> Value {
    let layers: Vec<Value> = spec
        .layers()
        .iter()
        .map(|layer| {
            json!({
                "cell": layer.cell.name(),
                "options": layer_options(layer),
                "input_size": layer.input_size,
                "hidden_size": layer.hidden_size,
                "projection_size": layer.projection_size,
                "output_size": layer.output_size(),
                "direction": direction_name(layer.direction),
                "bias": layer.bias,
                "num_parameters": layer.num_parameters(),
            })
        })
        .collect();
    let tensors = |list: &[TensorInfo]| -> Vec<Value> {
        list.iter().map(|t| json!({ "name": t.name, "dtype": t.dtype, "shape": t.shape })).collect()
    };
    json!({
        "file": path,
        "prefix": file.prefix,
        "num_layers": spec.num_layers(),
        "input_size": spec.input_size(),
        "output_size": spec.output_size(),
        "num_parameters": spec.num_parameters(),
        "layers": layers,
        "tensors": tensors(&file.tensors),
        "other_tensors": tensors(&file.others),
    })
}
