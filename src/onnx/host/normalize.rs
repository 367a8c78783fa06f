//! Softmax and the normalisations, computed as f64.

use super::arithmetic::{doubles, like};
use super::movement::axes_of;
use super::strides::{around, broadcast_strides, copy, permuted};
use super::{Array, Call, Outputs, axis_of, one};
use crate::error::{Result, bail};

pub(super) fn softmax(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let values = doubles(data)?;
    // Before version 13 everything from the axis on was one row.
    let spread = if call.node.version < 13 {
        let axis = call.node.int("axis")?.unwrap_or(1);
        let axis = if axis == data.rank() as i64 { data.rank() } else { axis_of(axis, data.rank())? };
        [data.shape[..axis].iter().product(), data.shape[axis..].iter().product(), 1]
    } else {
        around(&data.shape, call.axis(-1, data.rank())?)
    };
    let [outer, size, inner] = spread;
    let mut result = vec![0.0; values.len()];
    for row in 0..outer * inner {
        let place = |k: usize| (row / inner * size + k) * inner + row % inner;
        let most = (0..size).map(|k| values[place(k)]).fold(f64::NEG_INFINITY, f64::max);
        if call.node.is("Hardmax") {
            if let Some(k) = (0..size).find(|&k| values[place(k)] == most) {
                result[place(k)] = 1.0;
            }
            continue;
        }
        let total: f64 = (0..size).map(|k| (values[place(k)] - most).exp()).sum();
        for k in 0..size {
            let shifted = values[place(k)] - most;
            result[place(k)] = if call.node.is("LogSoftmax") { shifted - total.ln() } else { shifted.exp() / total };
        }
    }
    one(like(data, data.shape.clone(), result))
}

/// Mean and variance of every `length` elements.
fn moments(values: &[f64], length: usize) -> Vec<(f64, f64)> {
    let of = |row: &[f64]| {
        let mean = row.iter().sum::<f64>() / length as f64;
        (mean, row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / length as f64)
    };
    values.chunks_exact(length.max(1)).map(of).collect()
}

fn epsilon(call: &Call<'_>) -> Result<f64> {
    Ok(call.node.float("epsilon")?.map_or(1e-5, f64::from))
}

/// An operand as f64 in a shape that it broadcasts to.
fn spread(operand: &Array, shape: &[usize], what: &str) -> Result<Vec<f64>> {
    if super::broadcast_shape(&operand.shape, shape).ok().as_deref() != Some(shape) {
        bail!(InvalidInput, "{what}: expected a shape that broadcasts to {shape:?}, found {:?}", operand.shape);
    }
    Ok(copy(&doubles(operand)?, 0, shape, &broadcast_strides(&operand.shape, shape)))
}

pub(super) fn layer_norm(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let axis = call.axis(-1, data.rank())?;
    let length: usize = data.shape[axis..].iter().product();
    let scale = spread(call.array(1)?, &data.shape, "Scale")?;
    let bias = call.optional(2)?.map(|b| spread(b, &data.shape, "B")).transpose()?;
    let epsilon = epsilon(call)?;
    let values = doubles(data)?;
    let moments = moments(&values, length);
    let normal = |(i, v): (usize, &f64)| {
        let (mean, variance) = moments[i / length];
        (v - mean) / (variance + epsilon).sqrt() * scale[i] + bias.as_ref().map_or(0.0, |b| b[i])
    };
    let result = values.iter().enumerate().map(normal).collect();
    let mut outputs = vec![like(data, data.shape.clone(), result).into()];
    let shape: Vec<usize> = data.shape.iter().enumerate().map(|(i, &n)| if i < axis { n } else { 1 }).collect();
    if call.node.outputs.len() > 1 {
        outputs.push(like(data, shape.clone(), moments.iter().map(|m| m.0).collect()).into());
    }
    if call.node.outputs.len() > 2 {
        let inverse = moments.iter().map(|m| 1.0 / (m.1 + epsilon).sqrt()).collect();
        outputs.push(like(data, shape, inverse).into());
    }
    Ok(outputs)
}

pub(super) fn rms_norm(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let axis = call.axis(-1, data.rank())?;
    let length: usize = data.shape[axis..].iter().product();
    let scale = spread(call.array(1)?, &data.shape, "scale")?;
    let epsilon = epsilon(call)?;
    let values = doubles(data)?;
    let mean = |row: &[f64]| (row.iter().map(|v| v * v).sum::<f64>() / length as f64 + epsilon).sqrt();
    let sizes: Vec<f64> = values.chunks_exact(length.max(1)).map(mean).collect();
    let result = values.iter().enumerate().map(|(i, v)| v / sizes[i / length] * scale[i]).collect();
    one(like(data, data.shape.clone(), result))
}

/// [N, C, everything else] of an input with channels.
fn channels(data: &Array) -> Result<[usize; 3]> {
    match *data.shape {
        [n, c, ref rest @ ..] => Ok([n, c, rest.iter().product()]),
        _ => bail!(InvalidInput, "expected [N, C, ..], found {:?}", data.shape),
    }
}

/// One element for each of `count` channels.
fn per_channel(array: &Array, count: usize, what: &str) -> Result<Vec<f64>> {
    if array.len() != count {
        bail!(InvalidInput, "{what}: expected {count} elements, found {:?}", array.shape);
    }
    doubles(array)
}

pub(super) fn group_norm(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let [_, c, inner] = channels(data)?;
    let groups = match call.node.int("num_groups")?.map(usize::try_from) {
        Some(Ok(groups)) if groups > 0 && c % groups == 0 => groups,
        found => bail!(InvalidInput, "num_groups: expected a divisor of {c} channels, found {found:?}"),
    };
    // Before version 21 scale and bias had an element for each group.
    let count = if call.node.version < 21 { groups } else { c };
    let scale = per_channel(call.array(1)?, count, "scale")?;
    let bias = per_channel(call.array(2)?, count, "bias")?;
    normalized(data, c / groups * inner, epsilon(call)?, |i| {
        let channel = i / inner % c * count / c;
        (scale[channel], bias[channel])
    })
}

pub(super) fn instance_norm(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let [_, c, inner] = channels(data)?;
    let (scale, bias) = (per_channel(call.array(1)?, c, "scale")?, per_channel(call.array(2)?, c, "B")?);
    normalized(data, inner, epsilon(call)?, |i| (scale[i / inner % c], bias[i / inner % c]))
}

/// Every `length` elements normalised, with a scale and a bias for each place.
fn normalized(data: &Array, length: usize, epsilon: f64, of: impl Fn(usize) -> (f64, f64)) -> Outputs {
    let values = doubles(data)?;
    let moments = moments(&values, length);
    let normal = |(i, v): (usize, &f64)| {
        let ((mean, variance), (scale, bias)) = (moments[i / length], of(i));
        (v - mean) / (variance + epsilon).sqrt() * scale + bias
    };
    let result = values.iter().enumerate().map(normal).collect();
    one(like(data, data.shape.clone(), result))
}

pub(super) fn batch_norm(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let training =
        call.node.flag("training_mode", false)? || (call.node.version < 7 && !call.node.flag("is_test", false)?);
    if training || call.node.outputs.len() > 1 {
        bail!(Unsupported, "training_mode: expected inference with one output, found training");
    }
    if !call.node.flag("spatial", true)? {
        bail!(Unsupported, "spatial: expected 1, found 0");
    }
    let [_, c, inner] = match data.rank() {
        1 => [1, 1, data.len()],
        _ => channels(data)?,
    };
    let of = |index: usize, what: &str| per_channel(call.array(index)?, c, what);
    let (scale, bias, mean, variance) = (of(1, "scale")?, of(2, "B")?, of(3, "mean")?, of(4, "var")?);
    let epsilon = epsilon(call)?;
    let normal = |(i, v): (usize, f64)| {
        let k = i / inner % c;
        (v - mean[k]) / (variance[k] + epsilon).sqrt() * scale[k] + bias[k]
    };
    let result = doubles(data)?.into_iter().enumerate().map(normal).collect();
    one(like(data, data.shape.clone(), result))
}

pub(super) fn lp_norm(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let [_, size, inner] = around(&data.shape, call.axis(-1, data.rank())?);
    let p = call.node.int("p")?.unwrap_or(2);
    let values = doubles(data)?;
    let norm = |vector: usize| -> f64 {
        let first = vector / inner * size * inner + vector % inner;
        let row = (0..size).map(|k| values[first + k * inner]);
        if p == 1 { row.map(f64::abs).sum() } else { row.map(|v| v * v).sum::<f64>().sqrt() }
    };
    if !(1..=2).contains(&p) {
        bail!(Unsupported, "p: expected 1 or 2, found {p}");
    }
    let norms: Vec<f64> = (0..values.len() / size.max(1)).map(norm).collect();
    // A vector of zeros stays one.
    let scaled = |i: usize| match norms[i / (size * inner) * inner + i % inner] {
        0.0 => 0.0,
        norm => values[i] / norm,
    };
    let result = (0..values.len()).map(scaled).collect();
    one(like(data, data.shape.clone(), result))
}

pub(super) fn mean_variance(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    if call.node.has("across_channels") || call.node.has("normalize_variance") {
        bail!(Unsupported, "across_channels, normalize_variance: expected axes, as since version 9");
    }
    let axes = axes_of(call.node.ints("axes")?.unwrap_or(&[0, 2, 3]), data.rank())?;
    let kept: Vec<usize> = (0..data.rank()).filter(|axis| !axes.contains(axis)).collect();
    let order: Vec<usize> = kept.iter().chain(&axes).copied().collect();
    let length: usize = axes.iter().map(|&axis| data.shape[axis]).product();
    let (shape, values) = permuted(&doubles(data)?, &data.shape, &order);
    let moments = moments(&values, length);
    let normal = |(i, v): (usize, &f64)| {
        let (mean, variance) = moments[i / length];
        // The function in the operator's text adds 1e-9 to the deviation.
        (v - mean) / (variance.sqrt() + 1e-9)
    };
    let normal: Vec<f64> = values.iter().enumerate().map(normal).collect();
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(i, &axis)| back[axis] = i);
    let (shape, values) = permuted(&normal, &shape, &back);
    one(like(data, shape, values))
}

pub(super) fn local_response(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let [_, c, inner] = channels(data)?;
    let size = match call.node.int("size")?.map(usize::try_from) {
        Some(Ok(size)) if size > 0 => size,
        found => bail!(InvalidFile, "size: expected at least 1, found {found:?}"),
    };
    let parameter = |name: &str, default: f64| -> Result<f64> { Ok(call.node.float(name)?.map_or(default, f64::from)) };
    let (alpha, beta, bias) = (parameter("alpha", 1e-4)?, parameter("beta", 0.75)?, parameter("bias", 1.0)?);
    let values = doubles(data)?;
    let of = |i: usize| {
        let (channel, first) = (i / inner % c, i - i / inner % c * inner);
        let near = channel.saturating_sub((size - 1) / 2)..(channel + size / 2 + 1).min(c);
        let sum: f64 = near.map(|k| values[first + k * inner].powi(2)).sum();
        values[i] / (bias + alpha / size as f64 * sum).powf(beta)
    };
    one(like(data, data.shape.clone(), (0..values.len()).map(of).collect()))
}
