//! This library.

use std::path::PathBuf;

use wgpu_lstm::{Engine, EngineOptions, Layout, Lstm, Precision, SequenceBatch, weights};

use crate::case::Case;
use crate::{Result, Worker};

pub struct WgpuLstm {
    lstm: Lstm,
    x: Vec<f32>,
    shape: [usize; 3],
    lengths: Vec<usize>,
    carried: bool,
    h: Vec<f32>,
    c: Vec<f32>,
}

impl WgpuLstm {
    /// `device` as in `lstm --device`, with `:f16` for weights as halves.
    pub fn new(case: &Case, device: &str) -> Result<(Self, String)> {
        let mut options = EngineOptions::default();
        let (device, halves) = device.strip_suffix(":f16").map_or((device, false), |device| (device, true));
        options.device = device.parse()?;
        options.precision = if halves { Precision::F16Weights } else { Precision::F32 };
        let engine = Engine::open_blocking(options)?;
        let path: PathBuf = case.folder.join("weights.safetensors");
        let lstm = engine.load_blocking(&weights::safetensors::read_file(path, None)?)?;
        let name = engine.device().name.clone();
        let worker = Self {
            lstm,
            x: case.x.clone(),
            shape: [case.len, case.batch, case.input],
            lengths: case.lengths.clone(),
            carried: case.carried,
            h: case.zero_state(),
            c: case.zero_state(),
        };
        Ok((worker, name))
    }
}

impl Worker for WgpuLstm {
    fn run(&mut self) -> Result<Vec<f32>> {
        let batch = SequenceBatch::new(&self.x, self.shape, Layout::TimeMajor)?.lengths(&self.lengths)?;
        let output = self.lstm.run_blocking(&batch.h_0(&self.h).c_0(&self.c))?;
        if self.carried {
            self.h = output.h_n.ok_or("no h_n")?;
            self.c = output.c_n.ok_or("no c_n")?;
        }
        Ok(output.output.ok_or("no output")?)
    }
}
