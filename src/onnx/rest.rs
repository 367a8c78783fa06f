//! What lies between recurrent nodes, evaluated by rten on the CPU.
//!
//! In:  the rest of a model, see `graph.rs`; values by name.
//! Out: values by name.
//! Not here: which values are needed when (`model.rs`).
//!
//! rten checks what a model promises, but not all of it before it indexes; a panic inside it is caught here and becomes
//! an error, since the model is the caller's input.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rten::{Model, ModelOptions, NodeId, Value, ValueOrView, ValueView};
use rten_tensor::AsView;

use super::tensor::{Tensor, TensorData};
use crate::error::{Error, ErrorKind, Result, bail};

/// See the module.
pub(super) struct Rest {
    model: Model,
    /// Inputs and outputs of the runtime's graph. Not by its own look-up, which mixes up values and nodes of one name.
    ids: HashMap<String, NodeId>,
}

impl Rest {
    /// Loads the rest of a model; unless `optimized` nothing of it is computed beforehand.
    pub(super) fn load(bytes: Vec<u8>, optimized: bool) -> Result<Self> {
        let mut options = ModelOptions::with_all_ops();
        options.enable_optimization(optimized);
        let model = contained("loading", || options.load(bytes))?
            .map_err(|e| Error::new(ErrorKind::Unsupported, format!("around the recurrent nodes: {e}")))?;
        let named = |&id: &NodeId| Some((model.node_info(id)?.name()?.to_owned(), id));
        let ids = model.input_ids().iter().chain(model.output_ids()).filter_map(named).collect();
        Ok(Self { model, ids })
    }

    /// Evaluates the values `wanted` from `known` ones.
    pub(super) fn evaluate<'a>(
        &self,
        known: impl Iterator<Item = (&'a str, &'a Tensor)>,
        wanted: &[String],
    ) -> Result<Vec<Tensor>> {
        let mut inputs: Vec<(NodeId, ValueOrView<'_>)> = Vec::new();
        for (name, tensor) in known {
            // A value that the runtime has no use for may have been left out by it.
            if let Some(&id) = self.ids.get(name) {
                inputs.push((id, to_value(name, tensor)?));
            }
        }
        let mut ids = Vec::with_capacity(wanted.len());
        for name in wanted {
            match self.ids.get(name) {
                Some(&id) => ids.push(id),
                None => bail!(Unsupported, "{name}: the runtime around the recurrent nodes does not make this value"),
            }
        }
        let values = contained("evaluating", || self.model.run(inputs, &ids, None))?
            .map_err(|e| Error::new(ErrorKind::InvalidInput, format!("around the recurrent nodes: {e}")))?;
        wanted.iter().zip(values).map(|(name, value)| from_value(name, value)).collect()
    }
}

/// Runs a call into the runtime; a panic becomes an error.
fn contained<T>(what: &str, call: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        bail!(
            Unsupported,
            "around the recurrent nodes: the runtime failed while {what} ({})",
            message.unwrap_or("no message")
        )
    })
}

fn to_value<'a>(name: &str, tensor: &'a Tensor) -> Result<ValueOrView<'a>> {
    let shape = &tensor.shape;
    let mismatch = |e: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidInput, format!("{name}: {e}"));
    let narrow = |values: Vec<i32>| -> Result<ValueOrView<'a>> {
        Ok(ValueOrView::Value(Value::from_shape(shape, values).map_err(|e| mismatch(&e))?))
    };
    Ok(match &tensor.data {
        TensorData::F32(v) => ValueOrView::View(ValueView::from_shape(shape, v).map_err(|e| mismatch(&e))?),
        TensorData::I32(v) => ValueOrView::View(ValueView::from_shape(shape, v).map_err(|e| mismatch(&e))?),
        TensorData::I8(v) => ValueOrView::View(ValueView::from_shape(shape, v).map_err(|e| mismatch(&e))?),
        TensorData::U8(v) => ValueOrView::View(ValueView::from_shape(shape, v).map_err(|e| mismatch(&e))?),
        TensorData::Bool(v) => narrow(v.iter().map(|&b| i32::from(b)).collect())?,
        TensorData::I64(v) => {
            let values: std::result::Result<Vec<i32>, _> = v.iter().map(|&n| i32::try_from(n)).collect();
            match values {
                Ok(values) => narrow(values)?,
                Err(_) => bail!(Unsupported, "{name}: expected integers of 32 bits, found larger ones"),
            }
        }
    })
}

fn from_value(name: &str, value: Value) -> Result<Tensor> {
    use rten_tensor::Layout;
    Ok(match value {
        Value::FloatTensor(t) => Tensor { shape: t.shape().to_vec(), data: TensorData::F32(t.to_vec()) },
        Value::Int32Tensor(t) => Tensor { shape: t.shape().to_vec(), data: TensorData::I32(t.to_vec()) },
        Value::Int8Tensor(t) => Tensor { shape: t.shape().to_vec(), data: TensorData::I8(t.to_vec()) },
        Value::UInt8Tensor(t) => Tensor { shape: t.shape().to_vec(), data: TensorData::U8(t.to_vec()) },
        _ => bail!(Unsupported, "{name}: a sequence of tensors is no value that can be handed on"),
    })
}
