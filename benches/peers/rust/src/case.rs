//! The files of a case, as compare.py writes them.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;

pub struct Case {
    pub folder: PathBuf,
    pub batch: usize,
    pub len: usize,
    pub input: usize,
    pub hidden: usize,
    pub layers: usize,
    pub directions: usize,
    pub carried: bool,
    /// [T, B, I]
    pub x: Vec<f32>,
    /// [B]
    pub lengths: Vec<usize>,
}

impl Case {
    pub fn read(folder: &Path) -> Result<Self> {
        let json = |name: &str| -> Result<Value> {
            Ok(serde_json::from_str(&std::fs::read_to_string(folder.join(name))?)?)
        };
        let case = json("case.json")?;
        let size = |name: &str| case[name].as_u64().map(|v| v as usize).ok_or(format!("case.json: no {name}"));
        let x = std::fs::read(folder.join("x.f32"))?;
        Ok(Self {
            folder: folder.to_owned(),
            batch: size("batch")?,
            len: size("len")?,
            input: size("input")?,
            hidden: size("hidden")?,
            layers: size("layers")?,
            directions: if case["direction"] == "bidirectional" { 2 } else { 1 },
            carried: case["carried"] == true,
            x: x.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            lengths: serde_json::from_value(json("lengths.json")?)?,
        })
    }

    #[allow(dead_code, reason = "not every library has lengths")]
    pub fn is_ragged(&self) -> bool {
        self.lengths.iter().any(|&l| l != self.len)
    }

    /// [L·D, B, H]
    pub fn zero_state(&self) -> Vec<f32> {
        vec![0.0; self.layers * self.directions * self.batch * self.hidden]
    }
}
