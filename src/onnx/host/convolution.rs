//! Convolutions and pooling over any number of axes.
//!
//! Plain loops, computed as f64: for types, ranks and paddings that the fast runtime does not have.

use super::arithmetic::{doubles, like};
use super::{Array, Call, Outputs, one};
use crate::error::{Result, bail};
use crate::onnx::graph::Node;

/// Geometry of a window that moves over the spatial axes.
#[derive(Debug, Clone)]
pub(in crate::onnx) struct Window {
    pub(in crate::onnx) kernel: Vec<usize>,
    pub(in crate::onnx) strides: Vec<usize>,
    pub(in crate::onnx) dilations: Vec<usize>,
    /// Before and after, for each axis.
    pub(in crate::onnx) pads: Vec<[i64; 2]>,
    /// Sizes of the output's spatial axes.
    pub(in crate::onnx) output: Vec<usize>,
}

/// A list attribute with an element for each axis, each at least `least`.
fn list(node: &Node, name: &str, count: usize, default: i64, least: i64) -> Result<Vec<i64>> {
    match node.ints(name)? {
        None => Ok(vec![default; count]),
        Some(values) if values.len() == count && values.iter().all(|v| (least..1 << 31).contains(v)) => {
            Ok(values.to_vec())
        }
        Some(found) => bail!(InvalidInput, "{name}: expected {count} numbers of at least {least}, found {found:?}"),
    }
}

fn whole(values: Vec<i64>) -> Vec<usize> {
    values.into_iter().map(|v| v as usize).collect()
}

impl Window {
    /// The window of a convolution or pooling of an input with these spatial sizes. Pads of `auto_pad` are worked out
    /// here, since they depend on the sizes.
    pub(in crate::onnx) fn new(node: &Node, input: &[usize], kernel: Vec<usize>) -> Result<Self> {
        let count = input.len();
        if kernel.len() != count || kernel.contains(&0) {
            bail!(InvalidInput, "kernel_shape: expected {count} sizes, found {kernel:?}");
        }
        let strides = whole(list(node, "strides", count, 1, 1)?);
        let dilations = whole(list(node, "dilations", count, 1, 1)?);
        let ceil = node.flag("ceil_mode", false)?;
        let extent: Vec<i64> = (0..count).map(|i| (kernel[i] as i64 - 1) * dilations[i] as i64 + 1).collect();
        let auto = node.text("auto_pad")?.unwrap_or("NOTSET");
        let pads: Vec<[i64; 2]> = match auto {
            "NOTSET" => {
                let flat = list(node, "pads", 2 * count, 0, -(1 << 31))?;
                (0..count).map(|i| [flat[i], flat[count + i]]).collect()
            }
            "VALID" => vec![[0, 0]; count],
            "SAME_UPPER" | "SAME_LOWER" => (0..count)
                .map(|i| {
                    let (size, stride) = (input[i] as i64, strides[i] as i64);
                    let wanted = (size + stride - 1) / stride;
                    let total = ((wanted - 1) * stride + extent[i] - size).max(0);
                    let small = total / 2;
                    if auto == "SAME_UPPER" { [small, total - small] } else { [total - small, small] }
                })
                .collect(),
            other => bail!(Unsupported, "auto_pad: expected NOTSET, VALID, SAME_UPPER or SAME_LOWER, found {other:?}"),
        };
        let mut output = Vec::with_capacity(count);
        for i in 0..count {
            let stride = strides[i] as i64;
            let room = (input[i] as i64 + pads[i][0]).saturating_add(pads[i][1]) - extent[i];
            if room < 0 {
                bail!(
                    InvalidInput,
                    "expected an input of at least {} along axis {}, found {}",
                    extent[i] - pads[i][0] - pads[i][1],
                    i + 2,
                    input[i]
                );
            }
            let mut steps = room / stride + 1;
            // A window that would begin in the padding after the input is left out.
            let rounds_up = ceil && room % stride != 0 && steps * stride < input[i] as i64 + pads[i][0];
            steps += i64::from(rounds_up);
            output.push(steps as usize);
        }
        Ok(Self { kernel, strides, dilations, pads, output })
    }
}

/// Calls `f` with every index below `sizes`, in order.
fn each_index(sizes: &[usize], mut f: impl FnMut(&[usize])) {
    if sizes.contains(&0) {
        return;
    }
    let mut index = vec![0; sizes.len()];
    loop {
        f(&index);
        let mut axis = sizes.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            if index[axis] < sizes[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}

impl Window {
    /// Where an element of the window over an output's place lies in the input, if it does; `None` in the padding.
    fn source(&self, at: &[usize], k: &[usize], input: &[usize]) -> Option<usize> {
        let mut place = 0;
        for axis in 0..input.len() {
            let index = (at[axis] * self.strides[axis] + k[axis] * self.dilations[axis]) as i64 - self.pads[axis][0];
            place = place * input[axis] + usize::try_from(index).ok().filter(|&i| i < input[axis])?;
        }
        Some(place)
    }
}

#[cfg(feature = "cpu")]
impl Window {
    /// The input of some places of the output, rows of [N · places, C · taps] of an input [N, C, ..]; zeros in the padding.
    pub(in crate::onnx) fn columns(&self, values: &[f32], shape: &[usize], rows: std::ops::Range<usize>) -> Vec<f32> {
        let (c, input) = (shape[1], &shape[2..]);
        let plane: usize = input.iter().product();
        let taps: usize = self.kernel.iter().product();
        let places: usize = self.output.iter().product();
        let mut columns = vec![0.0; rows.len() * c * taps];
        let mut at = vec![0; input.len()];
        for (row, n) in columns.chunks_exact_mut((c * taps).max(1)).zip(rows) {
            let from = &values[n / places * c * plane..][..c * plane];
            let mut rest = n % places;
            for axis in (0..at.len()).rev() {
                at[axis] = rest % self.output[axis];
                rest /= self.output[axis];
            }
            let mut tap = 0;
            // Taps along the last axis lie beside each other where no padding is near.
            if let (&[step], &[pad]) = (&self.strides[..], &self.pads[..])
                && self.dilations == [1]
            {
                let first = (at[0] * step) as i64 - pad[0];
                let inside = first.max(0)..(first + taps as i64).min(plane as i64);
                if inside.start < inside.end {
                    let (source, size) = (inside.start as usize, (inside.end - inside.start) as usize);
                    let skipped = (inside.start - first) as usize;
                    for channel in 0..c {
                        row[channel * taps + skipped..][..size]
                            .copy_from_slice(&from[channel * plane + source..][..size]);
                    }
                }
                continue;
            }
            each_index(&self.kernel, |k| {
                if let Some(source) = self.source(&at, k, input) {
                    for channel in 0..c {
                        row[channel * taps + tap] = from[channel * plane + source];
                    }
                }
                tap += 1;
            });
        }
        columns
    }
}

/// [N, C] and the spatial sizes.
fn spatial(array: &Array) -> Result<(usize, usize, &[usize])> {
    match &array.shape[..] {
        [n, c, rest @ ..] => Ok((*n, *c, rest)),
        found => bail!(InvalidInput, "expected [N, C, ..], found {found:?}"),
    }
}

fn groups(node: &Node) -> Result<usize> {
    match usize::try_from(node.int("group")?.unwrap_or(1)) {
        Ok(groups) if groups > 0 => Ok(groups),
        _ => bail!(InvalidFile, "group: expected at least 1, found another"),
    }
}

/// The kernel's sizes: those of the weights, which `kernel_shape` may repeat.
pub(in crate::onnx) fn kernel_of(node: &Node, weights: &[usize]) -> Result<Vec<usize>> {
    let kernel = weights.get(2..).unwrap_or_default().to_vec();
    match node.ints("kernel_shape")? {
        Some(told) if told.iter().map(|&n| n as usize).ne(kernel.iter().copied()) => {
            bail!(InvalidInput, "kernel_shape: expected that of W, {kernel:?}, found {told:?}")
        }
        _ => Ok(kernel),
    }
}

fn convolved(
    node: &Node,
    call: &Call<'_>,
    (x, x_shape): (&[f64], &Array),
    (w, w_shape): (&[f64], &Array),
    bias: Option<&[f64]>,
) -> Result<(Vec<usize>, Vec<f64>)> {
    let (n, c, input) = spatial(x_shape)?;
    let (filters, depth, _) = spatial(w_shape)?;
    let groups = groups(node)?;
    if depth * groups != c || filters % groups != 0 || w_shape.rank() != x_shape.rank() {
        bail!(InvalidInput, "W: expected [filters, channels / group = {c} / {groups}, ..], found {:?}", w_shape.shape);
    }
    let window = Window::new(node, input, kernel_of(node, &w_shape.shape)?)?;
    let shape: Vec<usize> = [n, filters].into_iter().chain(window.output.iter().copied()).collect();
    let elements = call.limits.elements(&shape)?;
    let (plane, taps): (usize, usize) = (input.iter().product(), window.kernel.iter().product());
    call.limits.work(elements as f64 * taps as f64 * depth as f64)?;
    let mut values = Vec::with_capacity(elements);
    for row in 0..n {
        for filter in 0..filters {
            let first = filter / (filters / groups) * depth;
            each_index(&window.output, |at| {
                let mut sum = bias.map_or(0.0, |b| b[filter]);
                let mut tap = 0;
                each_index(&window.kernel, |k| {
                    if let Some(place) = window.source(at, k, input) {
                        for channel in 0..depth {
                            let x = x[(row * c + first + channel) * plane + place];
                            sum += x * w[(filter * depth + channel) * taps + tap];
                        }
                    }
                    tap += 1;
                });
                values.push(sum);
            });
        }
    }
    Ok((shape, values))
}

fn bias_of(call: &Call<'_>, filters: usize) -> Result<Option<Vec<f64>>> {
    match call.optional(2)? {
        Some(b) if b.shape == [filters] => Ok(Some(doubles(b)?)),
        Some(b) => bail!(InvalidInput, "B: expected shape [{filters}], found {:?}", b.shape),
        None => Ok(None),
    }
}

pub(super) fn conv(call: &Call<'_>) -> Outputs {
    let (x, w) = (call.array(0)?, call.array(1)?);
    let bias = bias_of(call, w.shape.first().copied().unwrap_or(0))?;
    let (shape, values) = convolved(call.node, call, (&doubles(x)?, x), (&doubles(w)?, w), bias.as_deref())?;
    one(like(x, shape, values))
}

pub(super) fn conv_integer(call: &Call<'_>) -> Outputs {
    let (x, w) = (call.array(0)?, call.array(1)?);
    let centred = |array: &Array, zero: Option<&Array>, per_filter: bool| -> Result<Vec<f64>> {
        let zeros = zero.map(|z| z.integers("zero point")).transpose()?.unwrap_or_else(|| vec![0]);
        if zeros.len() != 1 && !(per_filter && zeros.len() == array.shape[0]) {
            bail!(InvalidInput, "zero point: expected one element, found {}", zeros.len());
        }
        let each = array.len() / array.shape.first().copied().unwrap_or(1).max(1);
        let of = |(i, v): (usize, i64)| (v - zeros[if zeros.len() == 1 { 0 } else { i / each.max(1) }]) as f64;
        Ok(array.integers("input")?.into_iter().enumerate().map(of).collect())
    };
    let (xs, ws) = (centred(x, call.optional(2)?, false)?, centred(w, call.optional(3)?, true)?);
    let (shape, values) = convolved(call.node, call, (&xs, x), (&ws, w), None)?;
    // Sums wrap as 32-bit integers do.
    one(Array::new(shape, values.into_iter().map(|v| v as i64 as i32).collect()))
}

/// Geometry of a ConvTranspose: pads before each axis, and the output's spatial sizes.
pub(in crate::onnx) fn transposed(
    node: &Node,
    input: &[usize],
    kernel: &[usize],
) -> Result<(Vec<[i64; 2]>, Vec<usize>)> {
    let count = input.len();
    let strides = list(node, "strides", count, 1, 1)?;
    let dilations = list(node, "dilations", count, 1, 1)?;
    let extra = list(node, "output_padding", count, 0, 0)?;
    let wanted = node.ints("output_shape")?;
    let auto = node.text("auto_pad")?.unwrap_or("NOTSET");
    let flat = list(node, "pads", 2 * count, 0, 0)?;
    let mut pads = Vec::with_capacity(count);
    let mut output = Vec::with_capacity(count);
    for i in 0..count {
        let full = (input[i] as i64 - 1) * strides[i] + extra[i] + (kernel[i] as i64 - 1) * dilations[i] + 1;
        // A rank of all axes is taken too, as onnxruntime does.
        let size = wanted.map(|w| if w.len() == count { w[i] } else { w.get(i + 2).copied().unwrap_or(-1) });
        let size = match (size, auto) {
            (Some(size), _) => Some(size),
            (None, "SAME_UPPER" | "SAME_LOWER") => Some(input[i] as i64 * strides[i]),
            (None, "NOTSET") => None,
            (None, "VALID") => Some(full),
            (None, other) => {
                bail!(Unsupported, "auto_pad: expected NOTSET, VALID, SAME_UPPER or SAME_LOWER, found {other:?}")
            }
        };
        let pad = match size {
            None => [flat[i], flat[count + i]],
            Some(size) => {
                let total = (full - size).max(0);
                let half = total / 2;
                if auto == "SAME_UPPER" { [half, total - half] } else { [total - half, half] }
            }
        };
        let size = size.unwrap_or(full - pad[0] - pad[1]);
        match usize::try_from(size) {
            Ok(size) if input[i] > 0 => output.push(size),
            _ => bail!(InvalidInput, "expected an output of at least 0, found {size} along axis {}", i + 2),
        }
        pads.push(pad);
    }
    Ok((pads, output))
}

pub(super) fn conv_transpose(call: &Call<'_>) -> Outputs {
    let (x, w) = (call.array(0)?, call.array(1)?);
    let (n, c, input) = spatial(x)?;
    let (channels, depth, _) = spatial(w)?;
    let groups = groups(call.node)?;
    if channels != c || c % groups != 0 || w.rank() != x.rank() {
        bail!(InvalidInput, "W: expected [channels = {c}, filters / group, ..], found {:?}", w.shape);
    }
    let kernel = kernel_of(call.node, &w.shape)?;
    let strides = whole(list(call.node, "strides", input.len(), 1, 1)?);
    let dilations = whole(list(call.node, "dilations", input.len(), 1, 1)?);
    let (pads, output) = transposed(call.node, input, &kernel)?;
    let filters = depth * groups;
    let bias = bias_of(call, filters)?;
    let shape: Vec<usize> = [n, filters].into_iter().chain(output.iter().copied()).collect();
    let elements = call.limits.elements(&shape)?;
    let (plane, taps, out_plane): (usize, usize, usize) =
        (input.iter().product(), kernel.iter().product(), output.iter().product());
    call.limits.work(x.len() as f64 * taps as f64 * depth as f64)?;
    let mut values = vec![0.0; elements];
    if let Some(bias) = &bias {
        let each = values.chunks_exact_mut(out_plane.max(1)).enumerate();
        each.for_each(|(i, plane)| plane.fill(bias[i % filters]));
    }
    let (xs, ws) = (doubles(x)?, doubles(w)?);
    for row in 0..n {
        for channel in 0..c {
            let first = channel / (c / groups) * depth;
            let mut from = 0;
            each_index(input, |at| {
                let value = xs[(row * c + channel) * plane + from];
                let mut tap = 0;
                each_index(&kernel, |k| {
                    let mut place = Some(0);
                    for axis in 0..output.len() {
                        let index = (at[axis] * strides[axis] + k[axis] * dilations[axis]) as i64 - pads[axis][0];
                        let index = usize::try_from(index).ok().filter(|&i| i < output[axis]);
                        place = place.zip(index).map(|(p, i)| p * output[axis] + i);
                    }
                    if let Some(place) = place {
                        for filter in 0..depth {
                            values[(row * filters + first + filter) * out_plane + place] +=
                                value * ws[(channel * depth + filter) * taps + tap];
                        }
                    }
                    tap += 1;
                });
                from += 1;
            });
        }
    }
    one(like(x, shape, values))
}

pub(super) fn pool(call: &Call<'_>) -> Outputs {
    let x = call.array(0)?;
    let node = call.node;
    let (n, c, input) = spatial(x)?;
    let kernel = match node.ints("kernel_shape")? {
        Some(kernel) if kernel.iter().all(|k| (1..1 << 31).contains(k)) => whole(kernel.to_vec()),
        found => bail!(InvalidFile, "kernel_shape: expected sizes, found {found:?}"),
    };
    let window = Window::new(node, input, kernel)?;
    let shape: Vec<usize> = [n, c].into_iter().chain(window.output.iter().copied()).collect();
    let elements = call.limits.elements(&shape)?;
    call.limits.work(elements as f64 * window.kernel.iter().map(|&k| k as f64).product::<f64>())?;
    let plane: usize = input.iter().product();
    let with_padding = node.flag("count_include_pad", false)?;
    let columns_first = node.flag("storage_order", false)?;
    let p = f64::from(node.int("p")?.unwrap_or(2) as i32);
    let integers = !x.element_type().is_float();
    let values: Vec<f64> = match integers {
        true => x.integers("X")?.into_iter().map(|v| v as f64).collect(),
        false => doubles(x)?,
    };
    let kind = node.op_type.as_str();
    if integers && kind != "MaxPool" {
        bail!(InvalidInput, "expected floats, found {}", x.element_type().name());
    }
    let (mut result, mut indices) = (Vec::new(), Vec::new());
    for slice in 0..n * c {
        each_index(&window.output, |at| {
            let (mut most, mut best) = (f64::NEG_INFINITY, None);
            let (mut sum, mut count) = (0.0, 0usize);
            each_index(&window.kernel, |k| match window.source(at, k, input) {
                Some(place) => {
                    let value = values[slice * plane + place];
                    if best.is_none() || value > most || (value.is_nan() && !most.is_nan()) {
                        (most, best) = (value, Some(place));
                    }
                    sum += if kind == "LpPool" { value.abs().powf(p) } else { value };
                    count += 1;
                }
                // Padding that was asked for counts; what rounding up adds beyond it does not.
                None if with_padding => {
                    let inside = (0..input.len()).all(|axis| {
                        let index = at[axis] * window.strides[axis] + k[axis] * window.dilations[axis];
                        (index as i64) < input[axis] as i64 + window.pads[axis][0] + window.pads[axis][1]
                    });
                    count += usize::from(inside);
                }
                None => {}
            });
            result.push(match kind {
                "MaxPool" => most,
                "LpPool" => sum.powf(1.0 / p),
                _ => sum / count as f64,
            });
            let place = best.unwrap_or(0);
            let place = if columns_first { transposed_place(place, input) } else { place };
            indices.push((slice * plane + place) as i64);
        });
    }
    let pooled = match integers {
        true => super::cast::converted(&Array::new(shape.clone(), result), x.element_type())?,
        false => like(x, shape.clone(), result),
    };
    let mut outputs = vec![pooled.into()];
    if node.outputs.len() > 1 {
        outputs.push(Array::new(shape, indices).into());
    }
    Ok(outputs)
}

/// A place in an array of these sizes, counted with the first axis as the fastest.
fn transposed_place(mut place: usize, sizes: &[usize]) -> usize {
    let mut index = vec![0; sizes.len()];
    for axis in (0..sizes.len()).rev() {
        index[axis] = place % sizes[axis];
        place /= sizes[axis];
    }
    (0..sizes.len()).rev().fold(0, |n, axis| n * sizes[axis] + index[axis])
}

pub(super) fn global_pool(call: &Call<'_>) -> Outputs {
    let x = call.array(0)?;
    let (n, c, input) = spatial(x)?;
    let plane: usize = input.iter().product();
    let p = f64::from(call.node.int("p")?.unwrap_or(2) as i32);
    let values = doubles(x)?;
    let of = |i: usize| {
        let row = &values[i * plane..][..plane];
        match call.node.op_type.as_str() {
            "GlobalMaxPool" => {
                row.iter().copied().fold(f64::NEG_INFINITY, |a, b| if a.is_nan() || a > b { a } else { b })
            }
            "GlobalLpPool" => row.iter().map(|v| v.abs().powf(p)).sum::<f64>().powf(1.0 / p),
            _ => row.iter().sum::<f64>() / plane as f64,
        }
    };
    let shape = [n, c].into_iter().chain(input.iter().map(|_| 1)).collect();
    one(like(x, shape, (0..n * c).map(of).collect()))
}
