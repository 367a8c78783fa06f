//! Fourier transforms, as sums over all terms in f64.
//!
//! Source: [DFT](https://onnx.ai/onnx/operators/onnx__DFT.html), [STFT](https://onnx.ai/onnx/operators/onnx__STFT.html).

use super::arithmetic::{doubles, like};
use super::strides::around;
use super::{Array, Call, Outputs, axis_of, one};
use crate::error::{Result, bail};

/// cos and sin of 2π·k/n for all k below n.
fn roots(n: usize) -> Vec<(f64, f64)> {
    (0..n).map(|k| (std::f64::consts::TAU * k as f64 / n.max(1) as f64).sin_cos()).map(|(s, c)| (c, s)).collect()
}

/// The first `count` terms of the transform of complex numbers, to `length` of which they are cut or filled with zeros.
fn transform(
    values: &[(f64, f64)],
    length: usize,
    count: usize,
    inverse: bool,
    roots: &[(f64, f64)],
) -> Vec<(f64, f64)> {
    let term = |k: usize| {
        let mut sum = (0.0, 0.0);
        for (n, &(re, im)) in values.iter().take(length).enumerate() {
            let (c, s) = roots[k * n % length];
            let s = if inverse { s } else { -s };
            sum = (sum.0 + re * c - im * s, sum.1 + re * s + im * c);
        }
        let scale = if inverse { 1.0 / length as f64 } else { 1.0 };
        (sum.0 * scale, sum.1 * scale)
    };
    (0..count).map(term).collect()
}

/// Real numbers are complex ones without a second part.
fn complex(data: &Array) -> Result<Vec<(f64, f64)>> {
    let values = doubles(data)?;
    match data.shape.last() {
        Some(1) => Ok(values.into_iter().map(|re| (re, 0.0)).collect()),
        Some(2) => Ok(values.chunks_exact(2).map(|c| (c[0], c[1])).collect()),
        _ => bail!(InvalidInput, "expected a last axis of 1 or 2, found {:?}", data.shape),
    }
}

fn length_of(array: Option<&Array>, what: &str, default: usize) -> Result<usize> {
    match array.map(|a| a.integer(what)).transpose()?.map(usize::try_from) {
        None => Ok(default),
        Some(Ok(n)) if n > 0 => Ok(n),
        Some(_) => bail!(InvalidInput, "{what}: expected at least 1, found less"),
    }
}

pub(super) fn dft(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let (inverse, onesided) = (call.node.flag("inverse", false)?, call.node.flag("onesided", false)?);
    let values = complex(data)?;
    let shape = &data.shape[..data.rank() - 1];
    // The axis was an attribute before version 20.
    let axis = match (call.node.version, call.optional(2)?) {
        (..20, _) => call.node.int("axis")?.unwrap_or(1),
        (_, Some(axis)) => axis.integer("axis")?,
        (_, None) => -2,
    };
    let axis = axis_of(axis, data.rank())?;
    if axis == shape.len() {
        bail!(InvalidInput, "axis: expected another than the last, found {axis}");
    }
    // Half of the terms of real numbers are the others' conjugates: they may be left out, or be missing.
    let from_half = inverse && onesided;
    let default = if from_half { 2 * shape[axis].saturating_sub(1) } else { shape[axis] };
    let length = length_of(call.optional(1)?, "dft_length", default)?;
    let count = if onesided && !inverse { length / 2 + 1 } else { length };
    let [outer, size, inner] = around(shape, axis);
    let parts = if from_half { 1 } else { 2 };
    let mut result_shape = data.shape.clone();
    (result_shape[axis], result_shape[data.rank() - 1]) = (count, parts);
    let elements = call.limits.elements(&result_shape)?;
    call.limits.work(elements as f64 * length as f64)?;
    let roots = roots(length);
    let mut result = vec![0.0; elements];
    for o in 0..outer {
        for i in 0..inner {
            let mut row: Vec<(f64, f64)> = (0..size).map(|k| values[(o * size + k) * inner + i]).collect();
            if from_half {
                row.truncate(length / 2 + 1);
                row.resize(length / 2 + 1, (0.0, 0.0));
                (length / 2 + 1..length).for_each(|k| row.push((row[length - k].0, -row[length - k].1)));
            }
            for (k, (re, im)) in transform(&row, length, count, inverse, &roots).into_iter().enumerate() {
                let place = ((o * count + k) * inner + i) * parts;
                result[place] = re;
                if parts == 2 {
                    result[place + 1] = im;
                }
            }
        }
    }
    one(like(data, result_shape, result))
}

pub(super) fn stft(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let wide;
    let data = match *data.shape {
        [b, t] => {
            wide = data.reshaped(vec![b, t, 1]);
            &wide
        }
        [_, _, _] => data,
        ref found => bail!(InvalidInput, "signal: expected [batch, samples, 1 or 2], found {found:?}"),
    };
    let step = length_of(Some(call.array(1)?), "frame_step", 1)?;
    let window = call.optional(2)?.map(doubles).transpose()?;
    let default = window.as_ref().map_or(0, Vec::len);
    let length = length_of(call.optional(3)?, "frame_length", default)?;
    if length == 0 || window.as_ref().is_some_and(|w| w.len() != length) {
        bail!(InvalidInput, "window: expected one of frame_length, found {default} and {length}");
    }
    let onesided = call.node.flag("onesided", true)?;
    let values = complex(data)?;
    let (batch, samples) = (data.shape[0], data.shape[1]);
    let Some(room) = samples.checked_sub(length) else {
        bail!(InvalidInput, "signal: expected at least frame_length = {length} samples, found {samples}")
    };
    let (frames, count) = (room / step + 1, if onesided { length / 2 + 1 } else { length });
    let shape = vec![batch, frames, count, 2];
    let elements = call.limits.elements(&shape)?;
    call.limits.work(elements as f64 * length as f64)?;
    let roots = roots(length);
    let mut result = Vec::with_capacity(elements);
    for b in 0..batch {
        for frame in 0..frames {
            let signal = &values[b * samples + frame * step..][..length];
            let weighed = |(n, &(re, im)): (usize, &(f64, f64))| {
                let w = window.as_ref().map_or(1.0, |w| w[n]);
                (re * w, im * w)
            };
            let row: Vec<(f64, f64)> = signal.iter().enumerate().map(weighed).collect();
            result.extend(transform(&row, length, count, false, &roots).into_iter().flat_map(|(re, im)| [re, im]));
        }
    }
    one(like(data, shape, result))
}
