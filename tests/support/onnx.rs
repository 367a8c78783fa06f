//! The models of `tests/data/onnx`, with inputs and the outputs of onnxruntime; written by `tools/make_onnx_models.py`.

use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};
use wgpu_lstm::onnx::{OnnxCompat, OnnxOptions, Tensor, TensorData};

/// Where they lie.
pub fn folder() -> PathBuf {
    // The GPU tests may run on another machine, from the root of a copy of the repository.
    let built_in: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "data", "onnx"].iter().collect();
    if built_in.exists() { built_in } else { "tests/data/onnx".into() }
}

/// A model with its inputs and the outputs that are expected.
pub struct Example {
    pub name: String,
    pub bytes: Vec<u8>,
    pub inputs: Vec<(String, Tensor)>,
    pub outputs: Vec<(String, Tensor)>,
}

pub fn examples() -> Vec<Example> {
    examples_in(&folder())
}

/// Those of a folder.
pub fn examples_in(folder: &std::path::Path) -> Vec<Example> {
    let mut examples = Vec::new();
    for entry in std::fs::read_dir(folder).expect("tests/data/onnx is part of the repository") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "onnx") {
            continue;
        }
        let Ok(tensors) = std::fs::read(path.with_extension("safetensors")) else { continue };
        let file = SafeTensors::deserialize(&tensors).expect("a safetensors file");
        let mut example = Example {
            name: path.file_stem().expect("a name").to_string_lossy().into_owned(),
            bytes: std::fs::read(&path).expect("a readable model"),
            inputs: Vec::new(),
            outputs: Vec::new(),
        };
        for (name, view) in file.iter() {
            let data = match view.dtype() {
                Dtype::F32 => {
                    TensorData::F32(view.data().as_chunks().0.iter().map(|w| f32::from_le_bytes(*w)).collect())
                }
                Dtype::I32 => {
                    TensorData::I32(view.data().as_chunks().0.iter().map(|w| i32::from_le_bytes(*w)).collect())
                }
                Dtype::F64 => {
                    TensorData::F64(view.data().as_chunks().0.iter().map(|w| f64::from_le_bytes(*w)).collect())
                }
                Dtype::F16 => {
                    TensorData::F16(view.data().as_chunks().0.iter().map(|w| half::f16::from_le_bytes(*w)).collect())
                }
                Dtype::BOOL => TensorData::Bool(view.data().iter().map(|&b| b != 0).collect()),
                Dtype::I64 => {
                    TensorData::I64(view.data().as_chunks().0.iter().map(|w| i64::from_le_bytes(*w)).collect())
                }
                other => panic!("{name}: {other}"),
            };
            let tensor = Tensor::new(view.shape().to_vec(), data).expect("a whole tensor");
            match name.split_once('.').expect("in.NAME or out.NAME") {
                ("in", name) => example.inputs.push((name.to_owned(), tensor)),
                (_, name) => example.outputs.push((name.to_owned(), tensor)),
            }
        }
        examples.push(example);
    }
    examples.sort_by(|a, b| a.name.cmp(&b.name));
    examples
}

pub fn example(name: &str) -> Example {
    examples().into_iter().find(|e| e.name == name).expect(name)
}

impl Example {
    /// Whose numbers they are where the operator's text and onnxruntime part.
    pub fn options(&self) -> OnnxOptions {
        let onnxruntime = self.name.ends_with("_onnxruntime");
        OnnxOptions::default().compat(if onnxruntime { OnnxCompat::Onnxruntime } else { OnnxCompat::Operator })
    }

    /// Compares what a run returned.
    ///
    /// # Errors
    /// The first element that is off by more than 1e-5, or an output of another shape or name.
    pub fn check(&self, found: &[(String, Tensor)]) -> Result<(), String> {
        let name = &self.name;
        if found.len() != self.outputs.len() {
            return Err(format!("{name}: expected {} outputs, found {}", self.outputs.len(), found.len()));
        }
        for (output, tensor) in found {
            let expected = self.outputs.iter().find(|(name, _)| name == output);
            let (_, expected) = expected.ok_or_else(|| format!("{name}: no output {output:?} is expected"))?;
            if tensor.shape != expected.shape || expected.shape.iter().product::<usize>() == 0 {
                return Err(format!("{name}, {output}: expected shape {:?}, found {:?}", expected.shape, tensor.shape));
            }
            match (&tensor.data, &expected.data) {
                (TensorData::F32(found), TensorData::F32(expected)) => {
                    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
                        if !((f - e).abs() <= 1e-5) {
                            return Err(format!("{name}, {output}, element {i}: found {f}, expected {e}"));
                        }
                    }
                }
                (TensorData::F16(found), TensorData::F16(expected)) => {
                    // One unit in the last place: what was rounded differed in its last bits before.
                    let near = |f: half::f16, e: half::f16| f.to_bits().abs_diff(e.to_bits()) <= 1;
                    if let Some(i) = (0..found.len()).find(|&i| !near(found[i], expected[i])) {
                        return Err(format!(
                            "{name}, {output}, element {i}: found {}, expected {}",
                            found[i], expected[i]
                        ));
                    }
                }
                (found, expected) if found == expected => {}
                (found, expected) => {
                    return Err(format!("{name}, {output}: expected {expected:?}, found {found:?}"));
                }
            }
        }
        Ok(())
    }
}

/// The elements of a tensor of floats.
pub fn floats(tensor: &Tensor) -> &[f32] {
    match &tensor.data {
        TensorData::F32(values) => values,
        other => panic!("expected floats, found {}", other.type_name()),
    }
}
