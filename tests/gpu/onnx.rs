//! ONNX models on every adapter.

use libtest_mimic::Failed;
use wgpu_lstm::onnx::OnnxModel;

use crate::support::onnx::examples;
use crate::{Subject, Test};

pub const TESTS: &[(&str, Test)] = &[("every_onnx_model_has_the_numbers_of_onnxruntime", onnx_models)];

fn onnx_models(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    for example in examples() {
        let model = pollster::block_on(OnnxModel::load(&engine, &example.bytes, &example.options()))?;
        let found = pollster::block_on(model.run(&example.inputs))?;
        example.check(&found)?;
    }
    Ok(())
}
