//! What PyTorch computed: the files of `tests/data/goldens`, written by `tools/make_goldens.py`.

use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};
use wgpu_lstm::weights::safetensors::{read, read_tensor, read_tensor_i64};
use wgpu_lstm::{Layout, LstmWeights, Outputs, SequenceBatch, SequenceOutput};

/// One file. Input, weights and states are representable in f32, also in the files of f64.
#[derive(Debug)]
pub struct Golden {
    /// The name of the file without its ending.
    pub name: String,
    /// Whether PyTorch computed in f64.
    pub is_f64: bool,
    pub weights: LstmWeights,
    /// [B, T, I]
    pub shape: [usize; 3],
    pub x: Vec<f32>,
    pub lengths: Vec<usize>,
    pub h_0: Option<Vec<f32>>,
    pub c_0: Option<Vec<f32>>,
    /// [B, T, D·H or D·P]
    pub output: Vec<f64>,
    pub h_n: Vec<f64>,
    pub c_n: Vec<f64>,
}

impl Golden {
    pub fn batch(&self) -> SequenceBatch<'_> {
        let batch = SequenceBatch::new(&self.x, self.shape, Layout::BatchMajor).and_then(|b| b.lengths(&self.lengths));
        let mut batch = batch.expect("the golden is well-formed").outputs(Outputs {
            sequence: SequenceOutput::All,
            final_state: true,
            cells: false,
        });
        if let Some(h_0) = &self.h_0 {
            batch = batch.h_0(h_0);
        }
        if let Some(c_0) = &self.c_0 {
            batch = batch.c_0(c_0);
        }
        batch
    }

    fn load(name: String, bytes: &[u8]) -> Self {
        let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
        let is_f64 = file.tensor("x").expect("x").dtype() == Dtype::F64;
        for tensor in file.names().into_iter().filter(|n| !["output", "h_n", "c_n", "lengths"].contains(n)) {
            let rounded = read_tensor(bytes, tensor).expect(tensor).1;
            let exact = doubles(&file, tensor);
            assert!(rounded.iter().zip(&exact).all(|(r, e)| f64::from(*r) == *e), "{name}: {tensor} is not f32");
        }
        let (x_shape, x) = read_tensor(bytes, "x").expect("x");
        let lengths = read_tensor_i64(bytes, "lengths").expect("lengths").1;
        let state = |name| file.tensor(name).is_ok().then(|| read_tensor(bytes, name).expect(name).1);
        Self {
            is_f64,
            weights: read(bytes, None).unwrap_or_else(|e| panic!("{name}: {e}")),
            shape: x_shape.try_into().expect("x has three axes"),
            x,
            lengths: lengths.into_iter().map(|n| usize::try_from(n).expect("a length")).collect(),
            h_0: state("h_0"),
            c_0: state("c_0"),
            output: doubles(&file, "output"),
            h_n: doubles(&file, "h_n"),
            c_n: doubles(&file, "c_n"),
            name,
        }
    }
}

fn doubles(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let view = file.tensor(name).expect(name);
    match view.dtype() {
        Dtype::F64 => view.data().as_chunks().0.iter().map(|w| f64::from_le_bytes(*w)).collect(),
        Dtype::F32 => view.data().as_chunks().0.iter().map(|w| f32::from_le_bytes(*w).into()).collect(),
        other => panic!("{name}: {other}"),
    }
}

/// All goldens, by name.
pub fn all() -> Vec<Golden> {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "data", "goldens"].iter().collect();
    let mut goldens = Vec::new();
    for entry in std::fs::read_dir(&folder).expect("tests/data/goldens is part of the repository") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            goldens.push(Golden::load(name, &std::fs::read(&path).expect("a readable file")));
        }
    }
    goldens.sort_by(|a, b| a.name.cmp(&b.name));
    goldens
}
