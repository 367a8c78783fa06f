//! Linear quantisation to integers and back.

use super::arithmetic::doubles;
use super::strides::around;
use super::{Array, Call, ElementType, Outputs, axis_of, named_type, one, to_f32};
use crate::error::{Result, bail};

/// For each element its scale and zero point: of everything, of its index along an axis, or of its block.
fn parameter_places(call: &Call<'_>, data: &Array, scale: &Array) -> Result<Vec<usize>> {
    let block = call.node.int("block_size")?.unwrap_or(0);
    if scale.len() == 1 && scale.rank() <= 1 && block == 0 {
        return Ok(vec![0; data.len()]);
    }
    let axis = axis_of(call.node.int("axis")?.unwrap_or(1), data.rank())?;
    let [_, size, inner] = around(&data.shape, axis);
    if block == 0 {
        if scale.shape != [size] {
            bail!(InvalidInput, "scale: expected one element or [{size}], found {:?}", scale.shape);
        }
        return Ok((0..data.len()).map(|i| i / inner % size).collect());
    }
    let Some(block) = usize::try_from(block).ok() else {
        bail!(InvalidFile, "block_size: expected 0 or more, found {block}")
    };
    let mut expected = data.shape.clone();
    expected[axis] = size.div_ceil(block);
    if scale.shape != expected {
        bail!(InvalidInput, "scale: expected shape {expected:?} for blocks of {block}, found {:?}", scale.shape);
    }
    let blocks = expected[axis];
    Ok((0..data.len()).map(|i| (i / (size * inner) * blocks + i / inner % size / block) * inner + i % inner).collect())
}

fn floats(array: &Array) -> Result<Vec<f64>> {
    match to_f32(array) {
        Some(wide) => doubles(&wide),
        None if array.element_type().is_float() => doubles(array),
        None => Ok(array.integers("x")?.into_iter().map(|v| v as f64).collect()),
    }
}

fn zero_points(call: &Call<'_>, scale: &Array) -> Result<Vec<i64>> {
    match call.optional(2)? {
        Some(zero) if zero.len() == scale.len() => zero.integers("zero point"),
        Some(zero) => {
            bail!(InvalidInput, "zero point: expected the shape of scale {:?}, found {:?}", scale.shape, zero.shape)
        }
        None => Ok(vec![0; scale.len()]),
    }
}

fn range(element: ElementType) -> Result<(f64, f64)> {
    Ok(match element {
        ElementType::U8 => (0.0, 255.0),
        ElementType::I8 => (-128.0, 127.0),
        ElementType::U16 => (0.0, 65535.0),
        ElementType::I16 => (-32768.0, 32767.0),
        other => bail!(Unsupported, "expected a type of 8 or 16 bits, found {}", other.name()),
    })
}

pub(super) fn quantize(call: &Call<'_>) -> Outputs {
    let (x, scale) = (call.array(0)?, call.array(1)?);
    if call.node.int("precision")?.unwrap_or(0) != 0 {
        bail!(Unsupported, "precision: expected that of scale, found another");
    }
    let element = match (call.optional(2)?, call.node.int("output_dtype")?) {
        (Some(zero), _) => zero.element_type(),
        (None, Some(n)) if n != 0 => named_type(n)?,
        _ => ElementType::U8,
    };
    let (low, high) = range(element)?;
    let places = parameter_places(call, x, scale)?;
    let (scales, zeros) = (floats(scale)?, zero_points(call, scale)?);
    // The quotient is rounded to f32 before it is rounded to an integer, as the operator's arithmetic is that of x.
    let of = |(i, v): (usize, f64)| {
        let place = places[i];
        let quotient = (v as f32 / scales[place] as f32).round_ties_even();
        (f64::from(quotient) + zeros[place] as f64).clamp(low, high)
    };
    let values = floats(x)?.into_iter().enumerate().map(of).collect();
    one(super::cast::converted(&Array::new(x.shape.clone(), values), element)?)
}

pub(super) fn dequantize(call: &Call<'_>) -> Outputs {
    let (x, scale) = (call.array(0)?, call.array(1)?);
    let element = match call.node.int("output_dtype")?.unwrap_or(0) {
        0 => scale.element_type(),
        n => named_type(n)?,
    };
    let places = parameter_places(call, x, scale)?;
    let (scales, zeros) = (floats(scale)?, zero_points(call, scale)?);
    let of = |(i, v): (usize, i64)| (v - zeros[places[i]]) as f64 * scales[places[i]];
    let values = x.integers("x")?.into_iter().enumerate().map(of).collect();
    one(super::cast::converted(&Array::new(x.shape.clone(), values), element)?)
}

/// To uint8, with a scale and zero point that fit the input; in f32, step by step as the operator's text.
pub(super) fn dynamic(call: &Call<'_>) -> Outputs {
    let x = call.array(0)?;
    let Some(values) = x.of::<f32>() else { bail!(InvalidInput, "expected float, found {}", x.element_type().name()) };
    let low = values.iter().copied().fold(0f32, f32::min);
    let high = values.iter().copied().fold(0f32, f32::max);
    let scale = (high - low) / 255.0;
    let zero = if scale == 0.0 { 0.0 } else { (-low / scale).round_ties_even().clamp(0.0, 255.0) };
    let of = |&v: &f32| {
        if scale == 0.0 { zero as u8 } else { ((v / scale).round_ties_even() + zero).clamp(0.0, 255.0) as u8 }
    };
    Ok(vec![
        Array::new(x.shape.clone(), values.iter().map(of).collect()).into(),
        Array::scalar(scale).into(),
        Array::scalar(zero as u8).into(),
    ])
}
