//! Operators that make tensors of sizes, or of nothing.

use super::arithmetic::Number;
use super::movement::sizes;
use super::{Array, Call, ElementType, Outputs, named_type, one};
use crate::error::bail;
use crate::onnx::element::{Element, for_any, for_numbers};

pub(super) fn shape(call: &Call<'_>) -> Outputs {
    let found = &call.array(0)?.shape;
    let rank = found.len() as i64;
    let place = |n: i64| (if n < 0 { n.saturating_add(rank) } else { n }).clamp(0, rank) as usize;
    let start = place(call.node.int("start")?.unwrap_or(0));
    let end = place(call.node.int("end")?.unwrap_or(rank)).max(start);
    let values: Vec<i64> = found[start..end].iter().map(|&n| n as i64).collect();
    one(Array::new(vec![values.len()], values))
}

pub(super) fn size(call: &Call<'_>) -> Outputs {
    one(Array::scalar(call.array(0)?.len() as i64))
}

pub(super) fn constant_of_shape(call: &Call<'_>) -> Outputs {
    let shape = sizes(&call.array(0)?.integers("shape")?, "shape")?;
    let elements = call.limits.elements(&shape)?;
    let zero = Array::scalar(0f32);
    let value = call.node.tensor("value").unwrap_or(&zero);
    if value.len() != 1 {
        bail!(InvalidFile, "value: expected one element, found {}", value.len());
    }
    one(for_any!(&*value.data, v => Array::new(shape, vec![v[0]; elements])))
}

pub(super) fn range(call: &Call<'_>) -> Outputs {
    let [start, limit, delta] = [call.array(0)?, call.array(1)?, call.array(2)?];
    if [start, limit, delta].iter().any(|a| a.len() != 1) {
        bail!(InvalidInput, "start, limit and delta: expected one element each, found others");
    }
    if limit.element_type() != start.element_type() || delta.element_type() != start.element_type() {
        bail!(InvalidInput, "start, limit and delta: expected one type, found several");
    }
    for_numbers!(
        &*start.data,
        v => counted(v[0], limit, delta, call),
        other => bail!(InvalidInput, "expected numbers, found {}", other.type_name())
    )
}

fn counted<T: Element + Number>(start: T, limit: &Array, delta: &Array, call: &Call<'_>) -> Outputs {
    let (Some(&[limit]), Some(&[delta])) = (limit.of::<T>(), delta.of::<T>()) else {
        bail!(InvalidInput, "start, limit and delta: expected one type, found several")
    };
    let steps = ((limit.to_f64() - start.to_f64()) / delta.to_f64()).ceil();
    if steps.is_nan() {
        bail!(InvalidInput, "expected a range that ends, found steps of {}", delta.to_f64());
    }
    let count = steps.max(0.0) as usize;
    call.limits.elements(&[count])?;
    let values = (0..count).map(|i| start.add(T::from_f64(i as f64).mul(delta))).collect();
    one(Array::new(vec![count], values))
}

pub(super) fn eye_like(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let [rows, columns] = *data.shape else { bail!(InvalidInput, "expected two axes, found {:?}", data.shape) };
    let k = call.node.int("k")?.unwrap_or(0);
    let element = call.node.int("dtype")?.map_or(Ok(data.element_type()), named_type)?;
    let is_one = |i: usize| (i % columns) as i64 - (i / columns) as i64 == k;
    let ones = Array::new(data.shape.clone(), (0..rows * columns).map(|i| f32::from(is_one(i))).collect());
    one(super::cast::converted(&ones, element)?)
}

/// A window of a size, as the texts of the operators have it.
pub(super) fn window(call: &Call<'_>) -> Outputs {
    let size = sizes(&[call.array(0)?.integer("size")?], "size")?[0];
    call.limits.elements(&[size])?;
    let element = call.node.int("output_datatype")?.map_or(Ok(ElementType::F32), named_type)?;
    let periodic = call.node.flag("periodic", true)?;
    let length = if periodic { size } else { size.saturating_sub(1) } as f64;
    let term = |n: usize, k: f64| (k * std::f64::consts::TAU * n as f64 / length.max(1.0)).cos();
    let value = |n: usize| match call.node.op_type.as_str() {
        "HannWindow" => 0.5 - 0.5 * term(n, 1.0),
        "HammingWindow" => 25.0 / 46.0 - 21.0 / 46.0 * term(n, 1.0),
        _ => 0.42 - 0.5 * term(n, 1.0) + 0.08 * term(n, 2.0),
    };
    let values = Array::new(vec![size], (0..size).map(value).collect());
    one(super::cast::converted(&values, element)?)
}
