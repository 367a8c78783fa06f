//! tract on the ONNX file.

use tract_onnx::prelude::*;

use crate::case::Case;
use crate::{Result, Worker};

pub struct Tract {
    model: Arc<TypedRunnableModel>,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    carried: bool,
}

impl Tract {
    pub fn new(case: &Case) -> Result<Self> {
        if case.is_ragged() {
            return Err("tract refuses sequence lengths".into());
        }
        let model = tract_onnx::onnx().model_for_path(case.folder.join("model.onnx"))?;
        let states = [case.layers * case.directions, case.batch, case.hidden];
        Ok(Self {
            model: model.into_optimized()?.into_runnable()?,
            x: Tensor::from_shape(&[case.len, case.batch, case.input], &case.x)?,
            h: Tensor::from_shape(&states, &case.zero_state())?,
            c: Tensor::from_shape(&states, &case.zero_state())?,
            carried: case.carried,
        })
    }
}

impl Worker for Tract {
    fn run(&mut self) -> Result<Vec<f32>> {
        let inputs = [&self.x, &self.h, &self.c].map(|tensor| tensor.clone().into_tvalue());
        let outputs = self.model.run(inputs.into_iter().collect())?;
        if self.carried {
            self.h = outputs[1].clone().into_tensor();
            self.c = outputs[2].clone().into_tensor();
        }
        Ok(outputs[0].to_plain_array_view::<f32>()?.iter().copied().collect())
    }
}
