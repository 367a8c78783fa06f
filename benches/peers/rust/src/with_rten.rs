//! rten on the ONNX file.

use rten::Model;
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;

use crate::case::Case;
use crate::{Result, Worker};

pub struct Rten {
    model: Model,
    x: NdTensor<f32, 3>,
    lengths: Option<NdTensor<i32, 1>>,
    h: NdTensor<f32, 3>,
    c: NdTensor<f32, 3>,
    carried: bool,
}

impl Rten {
    pub fn new(case: &Case) -> Result<Self> {
        let states = [case.layers * case.directions, case.batch, case.hidden];
        let lengths: Vec<i32> = case.lengths.iter().map(|&l| l as i32).collect();
        Ok(Self {
            model: Model::load_file(case.folder.join("model.onnx"))?,
            x: NdTensor::from_data([case.len, case.batch, case.input], case.x.clone()),
            lengths: case.is_ragged().then(|| NdTensor::from_data([case.batch], lengths)),
            h: NdTensor::zeros(states),
            c: NdTensor::zeros(states),
            carried: case.carried,
        })
    }
}

impl Worker for Rten {
    fn run(&mut self) -> Result<Vec<f32>> {
        let id = |name| self.model.node_id(name);
        let mut inputs = vec![
            (id("x")?, self.x.view().into()),
            (id("h_0")?, self.h.view().into()),
            (id("c_0")?, self.c.view().into()),
        ];
        if let Some(lengths) = &self.lengths {
            inputs.push((id("lengths")?, lengths.view().into()));
        }
        let [y, h, c] = self.model.run_n(inputs, [id("y")?, id("h_n")?, id("c_n")?], None)?;
        if self.carried {
            self.h = h.try_into()?;
            self.c = c.try_into()?;
        }
        let y: NdTensor<f32, 3> = y.try_into()?;
        Ok(y.into_data())
    }
}
