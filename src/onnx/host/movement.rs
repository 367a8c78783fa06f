//! Operators that only move elements, of any type.

use super::strides::{around, broadcast_shape, broadcast_strides, copy, permuted, strides};
use super::{Array, Call, Limits, Outputs, Value, axis_of, one};
use crate::error::{Result, bail};
use crate::onnx::element::{Element, for_any};

/// A dense copy of a view of an array; see [`copy`].
fn view(array: &Array, offset: usize, shape: Vec<usize>, strides: &[isize]) -> Array {
    for_any!(&*array.data, v => { let values = copy(v, offset, &shape, strides); Array::new(shape, values) })
}

pub(super) fn identity(call: &Call<'_>) -> Outputs {
    Ok(vec![call.value(0)?.clone()])
}

/// Inference only: what comes in goes out.
pub(super) fn dropout(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    if let Some(training) = call.optional(2)?
        && training.truth("training_mode")?
    {
        bail!(Unsupported, "training_mode: expected false, found true: what is drawn at random is not computed");
    }
    let mut outputs = vec![Value::Array(data.clone())];
    if call.node.outputs.len() > 1 {
        // Before version 10 the mask had the type of the data.
        let mask = match call.node.version {
            ..10 => for_any!(&*data.data, v => Array::new(data.shape.clone(), ones(v))),
            _ => Array::new(data.shape.clone(), vec![true; data.len()]),
        };
        outputs.push(mask.into());
    }
    Ok(outputs)
}

/// As many ones, of the same type.
fn ones<T: Element + One>(values: &[T]) -> Vec<T> {
    vec![T::ONE; values.len()]
}

/// A type with a one.
trait One {
    const ONE: Self;
}

macro_rules! has_one {
    ($($type:ty: $one:expr),* $(,)?) => { $(impl One for $type { const ONE: Self = $one; })* };
}

has_one!(
    f32: 1.0, f64: 1.0, half::f16: half::f16::ONE, half::bf16: half::bf16::ONE, bool: true,
    i8: 1, i16: 1, i32: 1, i64: 1, u8: 1, u16: 1, u32: 1, u64: 1,
);

pub(super) fn reshape(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let Some(wanted) = call.integers(1, "shape")? else { bail!(InvalidFile, "shape: expected one, found none") };
    let shape = reshaped(&data.shape, &wanted, call.node.flag("allowzero", false)?)?;
    one(data.reshaped(shape))
}

/// The shape that Reshape gives to an array of another.
pub(in crate::onnx) fn reshaped(shape: &[usize], wanted: &[i64], allow_zero: bool) -> Result<Vec<usize>> {
    let refused = || -> Result<Vec<usize>> {
        bail!(InvalidInput, "expected a shape for the elements of {shape:?}, found {wanted:?}")
    };
    let elements: usize = shape.iter().product();
    let mut sizes = Vec::with_capacity(wanted.len());
    let mut open = None;
    for (axis, &size) in wanted.iter().enumerate() {
        sizes.push(match size {
            -1 if open.is_none() => {
                open = Some(axis);
                1
            }
            0 if !allow_zero => match shape.get(axis) {
                Some(&size) => size,
                None => return refused(),
            },
            size => match usize::try_from(size) {
                Ok(size) => size,
                Err(_) => return refused(),
            },
        });
    }
    let Some(product) = sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size)) else { return refused() };
    if let Some(axis) = open {
        if product == 0 || !elements.is_multiple_of(product) {
            return refused();
        }
        sizes[axis] = elements / product;
    } else if product != elements {
        return refused();
    }
    Ok(sizes)
}

pub(super) fn flatten(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let axis = call.node.int("axis")?.unwrap_or(1);
    let axis = if axis == data.rank() as i64 { data.rank() } else { axis_of(axis, data.rank())? };
    one(data.reshaped(vec![data.shape[..axis].iter().product(), data.shape[axis..].iter().product()]))
}

/// Axes that an operand names, each once.
pub(in crate::onnx) fn axes_of(axes: &[i64], rank: usize) -> Result<Vec<usize>> {
    let mut found = Vec::with_capacity(axes.len());
    for &axis in axes {
        let axis = axis_of(axis, rank)?;
        if found.contains(&axis) {
            bail!(InvalidInput, "axes: expected each once, found {axes:?}");
        }
        found.push(axis);
    }
    Ok(found)
}

pub(super) fn squeeze(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let axes = call.integers(1, "axes")?;
    one(data.reshaped(squeezed(&data.shape, axes.as_deref())?))
}

pub(in crate::onnx) fn squeezed(shape: &[usize], axes: Option<&[i64]>) -> Result<Vec<usize>> {
    let axes = match axes {
        Some(axes) => axes_of(axes, shape.len())?,
        None => (0..shape.len()).filter(|&axis| shape[axis] == 1).collect(),
    };
    if axes.iter().any(|&axis| shape[axis] != 1) {
        bail!(InvalidInput, "axes: expected axes of size 1, found {axes:?} of {shape:?}");
    }
    Ok((0..shape.len()).filter(|axis| !axes.contains(axis)).map(|axis| shape[axis]).collect())
}

pub(super) fn unsqueeze(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let Some(axes) = call.integers(1, "axes")? else { bail!(InvalidFile, "axes: expected some, found none") };
    one(data.reshaped(unsqueezed(&data.shape, &axes)?))
}

pub(in crate::onnx) fn unsqueezed(shape: &[usize], axes: &[i64]) -> Result<Vec<usize>> {
    let rank = shape.len() + axes.len();
    let axes = axes_of(axes, rank)?;
    let mut sizes = shape.iter();
    let size = |axis| if axes.contains(&axis) { Some(1) } else { sizes.next().copied() };
    Ok((0..rank).filter_map(size).collect())
}

/// The order of axes of a Transpose.
pub(in crate::onnx) fn axis_order(perm: Option<&[i64]>, rank: usize) -> Result<Vec<usize>> {
    match perm {
        None => Ok((0..rank).rev().collect()),
        Some(perm) if perm.len() == rank => axes_of(perm, rank),
        Some(perm) => bail!(InvalidInput, "perm: expected the {rank} axes of the input, found {perm:?}"),
    }
}

pub(super) fn transpose(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let order = axis_order(call.node.ints("perm")?, data.rank())?;
    // Where only axes of size 1 change places, no element does.
    let wide = |axis: &&usize| data.shape[**axis] != 1;
    if order.iter().filter(wide).is_sorted() {
        return one(data.reshaped(order.iter().map(|&axis| data.shape[axis]).collect()));
    }
    one(
        for_any!(&*data.data, v => { let (shape, values) = permuted(v, &data.shape, &order); Array::new(shape, values) }),
    )
}

/// Sizes that an operand gives.
pub(super) fn sizes(values: &[i64], what: &str) -> Result<Vec<usize>> {
    let size = |&n: &i64| usize::try_from(n).ok();
    match values.iter().map(size).collect() {
        Some(sizes) => Ok(sizes),
        None => bail!(InvalidInput, "{what}: expected sizes, found {:?}", &values[..values.len().min(8)]),
    }
}

pub(super) fn expand(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let wanted = sizes(&call.array(1)?.integers("shape")?, "shape")?;
    let shape = broadcast_shape(&data.shape, &wanted)?;
    call.limits.elements(&shape)?;
    if shape == data.shape {
        return one(data.clone());
    }
    let strides = broadcast_strides(&data.shape, &shape);
    one(view(data, 0, shape, &strides))
}

pub(super) fn tile(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let repeats = sizes(&call.array(1)?.integers("repeats")?, "repeats")?;
    // The first version had a number and an axis.
    let repeats = match (call.node.version, call.optional(2)?) {
        (..6, Some(axis)) => {
            let axis = axis_of(axis.integer("axis")?, data.rank())?;
            (0..data.rank()).map(|i| if i == axis { repeats.first().copied().unwrap_or(1) } else { 1 }).collect()
        }
        _ => repeats,
    };
    if repeats.len() != data.rank() {
        bail!(InvalidInput, "repeats: expected one for each axis of {:?}, found {repeats:?}", data.shape);
    }
    let shape: Option<Vec<usize>> = data.shape.iter().zip(&repeats).map(|(&n, &r)| n.checked_mul(r)).collect();
    let Some(shape) = shape else { bail!(Unsupported, "repeats: expected sizes that fit, found {repeats:?}") };
    call.limits.elements(&shape)?;
    // [n] repeated r times is [r, n] with a stride of 0.
    let own = strides(&data.shape);
    let wide: Vec<usize> = data.shape.iter().zip(&repeats).flat_map(|(&n, &r)| [r, n]).collect();
    let steps: Vec<isize> = own.iter().flat_map(|&stride| [0, stride]).collect();
    one(view(data, 0, wide, &steps).reshaped(shape))
}

pub(super) fn slice(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let (Some(starts), Some(ends)) = (call.integers(1, "starts")?, call.integers(2, "ends")?) else {
        bail!(InvalidFile, "starts and ends: expected both, found one or none");
    };
    let axes = call.integers(3, "axes")?;
    let steps = call.optional(4)?.map(|a| a.integers("steps")).transpose()?;
    let cuts = Cuts::new(&data.shape, &starts, &ends, axes.as_deref(), steps.as_deref())?;
    one(view(data, cuts.offset(&data.shape), cuts.shape.clone(), &cuts.strides(&data.shape)))
}

/// What Slice takes of an array.
pub(in crate::onnx) struct Cuts {
    first: Vec<usize>,
    step: Vec<i64>,
    pub(in crate::onnx) shape: Vec<usize>,
}

impl Cuts {
    pub(in crate::onnx) fn new(
        shape: &[usize],
        starts: &[i64],
        ends: &[i64],
        axes: Option<&[i64]>,
        steps: Option<&[i64]>,
    ) -> Result<Self> {
        let count = starts.len();
        let axes = match axes {
            Some(axes) => axes_of(axes, shape.len())?,
            None => (0..count).collect(),
        };
        let ones = vec![1; count];
        let steps = steps.unwrap_or(&ones);
        if ends.len() != count || axes.len() != count || steps.len() != count || count > shape.len() {
            bail!(
                InvalidInput,
                "expected as many starts, ends, axes and steps, found {count}, {}, {} and {}",
                ends.len(),
                axes.len(),
                steps.len()
            );
        }
        let mut cuts = Self { first: vec![0; shape.len()], step: vec![1; shape.len()], shape: shape.to_vec() };
        for (i, &axis) in axes.iter().enumerate() {
            let size = shape[axis] as i64;
            let step = steps[i];
            if step == 0 {
                bail!(InvalidInput, "steps: expected others than 0, found {steps:?}");
            }
            let from_end = |n: i64| if n < 0 { n.saturating_add(size) } else { n };
            let (start, end) = if size == 0 {
                (0, 0)
            } else if step > 0 {
                (from_end(starts[i]).clamp(0, size), from_end(ends[i]).clamp(0, size))
            } else {
                (from_end(starts[i]).clamp(0, size - 1), from_end(ends[i]).clamp(-1, size - 1))
            };
            let distance = if step > 0 { end - start } else { start - end };
            let taken = if distance <= 0 { 0 } else { (distance - 1) / step.saturating_abs().max(1) + 1 };
            cuts.shape[axis] = taken as usize;
            cuts.first[axis] = start as usize;
            cuts.step[axis] = step;
        }
        Ok(cuts)
    }

    fn offset(&self, shape: &[usize]) -> usize {
        strides(shape).iter().zip(&self.first).map(|(&stride, &first)| stride as usize * first).sum()
    }

    fn strides(&self, shape: &[usize]) -> Vec<isize> {
        // A step that is taken at most once may be as long as it likes.
        let step = |axis: usize| if self.shape[axis] > 1 { self.step[axis] as isize } else { 1 };
        strides(shape).iter().enumerate().map(|(axis, &stride)| stride * step(axis)).collect()
    }
}

/// Elements `first..first + size` along an axis.
pub(super) fn part(data: &Array, axis: usize, first: usize, size: usize) -> Array {
    let own = strides(&data.shape);
    let mut shape = data.shape.clone();
    shape[axis] = size;
    if shape.contains(&0) {
        return for_any!(&*data.data, v => Array::new(shape, v[..0].to_vec()));
    }
    view(data, first * own[axis] as usize, shape, &own)
}

/// Sizes of the parts that Split and SplitToSequence make of an axis: `n` of equal size, the last one smaller.
pub(super) fn even_parts(size: usize, n: usize) -> Result<Vec<usize>> {
    if n == 0 || n > size.max(1) {
        bail!(InvalidInput, "expected at most as many parts as the axis has elements, {size}, found {n}");
    }
    let each = size.div_ceil(n);
    let parts: Vec<usize> = (0..n).map(|i| each.min(size.saturating_sub(i * each))).collect();
    Ok(parts)
}

pub(super) fn split(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let axis = call.axis(0, data.rank())?;
    let parts = match call.integers(1, "split")? {
        Some(split) => sizes(&split, "split")?,
        None => {
            let n = match call.node.int("num_outputs")? {
                Some(n) => sizes(&[n], "num_outputs")?[0],
                None => call.node.outputs.len(),
            };
            if call.node.version < 18 && !data.shape[axis].is_multiple_of(n.max(1)) {
                bail!(InvalidInput, "expected {n} equal parts, found an axis of {}", data.shape[axis]);
            }
            even_parts(data.shape[axis], n)?
        }
    };
    if parts.len() != call.node.outputs.len()
        || parts.iter().try_fold(0usize, |n, &p| n.checked_add(p)) != Some(data.shape[axis])
    {
        bail!(
            InvalidInput,
            "split: expected {} parts that add up to {}, found {:?}",
            call.node.outputs.len(),
            data.shape[axis],
            &parts[..parts.len().min(8)]
        );
    }
    let mut first = 0;
    let mut outputs = Vec::with_capacity(parts.len());
    for size in parts {
        outputs.push(part(data, axis, first, size).into());
        first += size;
    }
    Ok(outputs)
}

pub(super) fn concat(call: &Call<'_>) -> Outputs {
    let arrays = call.arrays()?;
    let Some(first) = arrays.first() else { bail!(InvalidFile, "expected an input, found none") };
    // The first version had a default.
    let axis = match (call.node.int("axis")?, call.node.version) {
        (Some(axis), _) => axis,
        (None, ..4) => 1,
        (None, _) => bail!(InvalidFile, "axis: expected one, found none"),
    };
    let axis = axis_of(axis, first.rank())?;
    one(joined(&arrays, axis, call.limits)?)
}

/// The elements at one place of an axis, which goes away.
pub(in crate::onnx) fn taken(data: &Array, axis: usize, at: usize) -> Array {
    let mut shape = data.shape.clone();
    shape.remove(axis);
    part(data, axis, at, 1).reshaped(shape)
}

/// Arrays of one shape along a new axis.
pub(in crate::onnx) fn stacked(arrays: &[&Array], axis: usize, limits: Limits) -> Result<Array> {
    let widened = |array: &&Array| {
        let mut shape = array.shape.clone();
        shape.insert(axis.min(shape.len()), 1);
        array.reshaped(shape)
    };
    let wide: Vec<Array> = arrays.iter().map(widened).collect();
    joined(&wide.iter().collect::<Vec<_>>(), axis, limits)
}

/// Arrays one after another along an axis.
pub(super) fn joined(arrays: &[&Array], axis: usize, limits: Limits) -> Result<Array> {
    let first = arrays[0];
    let mut shape = first.shape.clone();
    let mut total = 0usize;
    for array in arrays {
        let mut own = array.shape.clone();
        if own.len() == shape.len() {
            own[axis] = first.shape[axis];
        }
        if own != first.shape || array.element_type() != first.element_type() {
            bail!(
                InvalidInput,
                "expected inputs of one type that differ in axis {axis} only, found {} {:?} and {} {:?}",
                first.element_type().name(),
                first.shape,
                array.element_type().name(),
                array.shape
            );
        }
        total = total.saturating_add(array.shape[axis]);
    }
    shape[axis] = total;
    let elements = limits.elements(&shape)?;
    Ok(for_any!(&*first.data, v => join_values(v, arrays, axis, shape, elements)))
}

fn join_values<T: Element>(_: &[T], arrays: &[&Array], axis: usize, shape: Vec<usize>, elements: usize) -> Array {
    let outer: usize = shape[..axis].iter().product();
    let parts: Vec<(&[T], usize)> =
        arrays.iter().filter_map(|a| Some((a.of::<T>()?, a.shape[axis..].iter().product::<usize>()))).collect();
    let mut values = Vec::with_capacity(elements);
    for row in 0..outer {
        for (part, size) in &parts {
            values.extend_from_slice(&part[row * size..][..*size]);
        }
    }
    Array::new(shape, values)
}

pub(super) fn pad(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let rank = data.rank();
    let pads = match call.integers(1, "pads")? {
        Some(pads) => pads,
        None => match call.node.ints("paddings")? {
            Some(pads) => pads.to_vec(),
            None => bail!(InvalidFile, "pads: expected some, found none"),
        },
    };
    let axes = match call.optional(3)? {
        Some(axes) => axes_of(&axes.integers("axes")?, rank)?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() {
        bail!(InvalidInput, "pads: expected two for each of {} axes, found {}", axes.len(), pads.len());
    }
    let (mut before, mut after) = (vec![0i64; rank], vec![0i64; rank]);
    for (i, &axis) in axes.iter().enumerate() {
        (before[axis], after[axis]) = (pads[i], pads[axes.len() + i]);
    }
    let mode = call.node.text("mode")?.unwrap_or("constant");
    let mut shape = Vec::with_capacity(rank);
    for axis in 0..rank {
        let size = (data.shape[axis] as i64).checked_add(before[axis]).and_then(|n| n.checked_add(after[axis]));
        match size.map(usize::try_from) {
            Some(Ok(size)) => shape.push(size),
            _ => bail!(InvalidInput, "pads: expected at most all of {:?} to be cut off, found {pads:?}", data.shape),
        }
    }
    call.limits.elements(&shape)?;
    // For each axis the place that each element comes from; none where it is the constant.
    let mut sources: Vec<Vec<Option<usize>>> = Vec::with_capacity(rank);
    for axis in 0..rank {
        let size = data.shape[axis] as i64;
        let source = |i: usize| -> Result<Option<usize>> {
            let place = i as i64 - before[axis];
            if (0..size).contains(&place) {
                return Ok(Some(place as usize));
            }
            let mapped = match mode {
                "constant" => return Ok(None),
                "edge" if size > 0 => place.clamp(0, size - 1),
                "reflect" if size > 1 => {
                    let period = 2 * (size - 1);
                    let folded = place.rem_euclid(period);
                    folded.min(period - folded)
                }
                "reflect" if size == 1 => 0,
                "wrap" if size > 0 => place.rem_euclid(size),
                "edge" | "reflect" | "wrap" => {
                    bail!(InvalidInput, "mode {mode}: expected elements, found an empty axis")
                }
                other => bail!(Unsupported, "mode: expected constant, edge, reflect or wrap, found {other:?}"),
            };
            Ok(Some(mapped as usize))
        };
        sources.push((0..shape[axis]).map(source).collect::<Result<_>>()?);
    }
    let value = match call.optional(2)? {
        Some(value) if value.element_type() != data.element_type() || value.len() != 1 => bail!(
            InvalidInput,
            "constant_value: expected one {}, found {} {}",
            data.element_type().name(),
            value.len(),
            value.element_type().name()
        ),
        Some(value) => Some(value.clone()),
        None => match call.node.float("value")? {
            None | Some(0.0) => None,
            Some(value) if data.of::<f32>().is_some() => Some(Array::scalar(value)),
            Some(value) if data.of::<f64>().is_some() => Some(Array::scalar(f64::from(value))),
            Some(_) => bail!(Unsupported, "value: expected 0 for this type, found another"),
        },
    };
    one(for_any!(&*data.data, v => pad_values(v, data, &shape, &sources, value.as_ref())))
}

fn pad_values<T: Element>(
    values: &[T],
    data: &Array,
    shape: &[usize],
    sources: &[Vec<Option<usize>>],
    constant: Option<&Array>,
) -> Array {
    let constant = constant.and_then(|c| c.of::<T>()).map_or(T::default(), |v| v[0]);
    let mut current = values.to_vec();
    let mut sizes = data.shape.clone();
    // One axis after another, the last one first, so that what is copied stays short.
    for axis in (0..shape.len()).rev() {
        let [outer, size, inner] = around(&sizes, axis);
        let identity = size == shape[axis] && sources[axis].iter().enumerate().all(|(i, s)| *s == Some(i));
        if identity {
            continue;
        }
        let mut next = Vec::with_capacity(outer * shape[axis] * inner);
        for row in 0..outer {
            for source in &sources[axis] {
                match source {
                    Some(i) => next.extend_from_slice(&current[(row * size + i) * inner..][..inner]),
                    None => next.resize(next.len() + inner, constant),
                }
            }
        }
        sizes[axis] = shape[axis];
        current = next;
    }
    Array::new(shape.to_vec(), current)
}

fn image(data: &Array, call: &Call<'_>) -> Result<[usize; 5]> {
    let block = match call.node.int("blocksize")?.map(usize::try_from) {
        Some(Ok(block)) if block > 0 => block,
        _ => bail!(InvalidFile, "blocksize: expected a size, found none"),
    };
    match *data.shape {
        [n, c, h, w] => Ok([n, c, h, w, block]),
        ref found => bail!(InvalidInput, "expected [N, C, H, W], found {found:?}"),
    }
}

/// The array with other axes, in another order, with other axes again.
fn rearranged(data: &Array, axes: &[usize], order: &[usize], shape: Vec<usize>) -> Array {
    for_any!(&*data.data, v => Array::new(shape, permuted(v, axes, order).1))
}

pub(super) fn depth_to_space(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let [n, c, h, w, block] = image(data, call)?;
    if c % (block * block) != 0 {
        bail!(InvalidInput, "expected channels in multiples of {}, found {c}", block * block);
    }
    let depth = c / (block * block);
    let shape = vec![n, depth, h * block, w * block];
    one(match call.node.text("mode")?.unwrap_or("DCR") {
        "DCR" => rearranged(data, &[n, block, block, depth, h, w], &[0, 3, 4, 1, 5, 2], shape),
        "CRD" => rearranged(data, &[n, depth, block, block, h, w], &[0, 1, 4, 2, 5, 3], shape),
        other => bail!(Unsupported, "mode: expected DCR or CRD, found {other:?}"),
    })
}

pub(super) fn space_to_depth(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let [n, c, h, w, block] = image(data, call)?;
    if h % block != 0 || w % block != 0 {
        bail!(InvalidInput, "expected height and width in multiples of {block}, found {h} and {w}");
    }
    let axes = [n, c, h / block, block, w / block, block];
    let shape = vec![n, c * block * block, h / block, w / block];
    one(match call.node.text("mode")?.unwrap_or("DCR") {
        "DCR" => rearranged(data, &axes, &[0, 3, 5, 1, 2, 4], shape),
        "CRD" => rearranged(data, &axes, &[0, 1, 3, 5, 2, 4], shape),
        other => bail!(Unsupported, "mode: expected DCR or CRD, found {other:?}"),
    })
}

pub(super) fn reverse_sequence(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let lengths = call.array(1)?.integers("sequence_lens")?;
    let time = axis_of(call.node.int("time_axis")?.unwrap_or(0), data.rank())?;
    let batch = axis_of(call.node.int("batch_axis")?.unwrap_or(1), data.rank())?;
    if time == batch || lengths.len() != data.shape[batch] {
        bail!(
            InvalidInput,
            "sequence_lens: expected one for each of {} sequences, found {}",
            data.shape[batch],
            lengths.len()
        );
    }
    let steps = data.shape[time];
    if let Some(n) = lengths.iter().find(|n| usize::try_from(**n).map_or(true, |n| n > steps)) {
        bail!(InvalidInput, "sequence_lens: expected 0 to {steps}, found {n}");
    }
    let own = strides(&data.shape);
    let (time_stride, batch_stride) = (own[time] as usize, own[batch] as usize);
    let source = |place: usize| {
        let t = place / time_stride % steps;
        let n = lengths[place / batch_stride % data.shape[batch]] as usize;
        if t < n { place - t * time_stride + (n - 1 - t) * time_stride } else { place }
    };
    one(for_any!(&*data.data, v => {
        let values = (0..v.len()).map(|place| v[source(place)]).collect();
        Array::new(data.shape.clone(), values)
    }))
}

pub(super) fn trilu(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let upper = call.node.flag("upper", true)?;
    let k = call.optional(1)?.map_or(Ok(0), |k| k.integer("k"))?;
    let [.., rows, columns] = *data.shape else {
        bail!(InvalidInput, "expected at least two axes, found {:?}", data.shape)
    };
    let kept = |place: usize| {
        let (row, column) = ((place / columns % rows) as i64, (place % columns) as i64);
        let distance = (column - row).saturating_sub(k);
        if upper { distance >= 0 } else { distance <= 0 }
    };
    one(for_any!(&*data.data, v => {
        let values = v.iter().enumerate().map(|(i, x)| if kept(i) { *x } else { Default::default() }).collect();
        Array::new(data.shape.clone(), values)
    }))
}

pub(super) fn center_crop_pad(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let wanted = sizes(&call.array(1)?.integers("shape")?, "shape")?;
    let axes = match call.node.ints("axes")? {
        Some(axes) => axes_of(axes, data.rank())?,
        None => (0..data.rank()).collect(),
    };
    if wanted.len() != axes.len() {
        bail!(InvalidInput, "shape: expected a size for each of {} axes, found {}", axes.len(), wanted.len());
    }
    let mut current = data.clone();
    for (&axis, &size) in axes.iter().zip(&wanted) {
        let found = current.shape[axis];
        if size < found {
            current = part(&current, axis, (found - size) / 2, size);
        } else if size > found {
            let before = (size - found) / 2;
            let mut shape = current.shape.clone();
            shape[axis] = size;
            call.limits.elements(&shape)?;
            let identity = |n: usize| (0..n).map(Some).collect::<Vec<_>>();
            let sources: Vec<Vec<Option<usize>>> = (0..shape.len())
                .map(|i| match i == axis {
                    false => identity(shape[i]),
                    true => (0..size).map(|i| i.checked_sub(before).filter(|&i| i < found)).collect(),
                })
                .collect();
            current = for_any!(&*current.data, v => pad_values(v, &current, &shape, &sources, None));
        }
    }
    one(current)
}
