//! Operators that pick elements, or put them, by indices.

use std::cmp::Ordering;

use super::arithmetic::Number;
use super::movement::part;
use super::strides::{around, broadcast_shape, broadcast_strides, copy, strides};
use super::{Array, Call, Outputs, axis_of, one};
use crate::error::{Result, bail};
use crate::onnx::element::{Element, for_any, for_numbers};
use crate::onnx::tensor::TensorData;

/// An index along an axis of `size`, counted from the end where it is negative.
fn place(index: i64, size: usize) -> Result<usize> {
    let wide = size as i64;
    match if index < 0 { index + wide } else { index } {
        n if (0..wide).contains(&n) => Ok(n as usize),
        _ => bail!(InvalidInput, "indices: expected {} to {}, found {index}", -wide, wide - 1),
    }
}

fn places(indices: &Array, size: usize) -> Result<Vec<usize>> {
    indices.integers("indices")?.into_iter().map(|i| place(i, size)).collect()
}

pub(super) fn gather(call: &Call<'_>) -> Outputs {
    let (data, indices) = (call.array(0)?, call.array(1)?);
    let axis = call.axis(0, data.rank())?;
    let [outer, size, inner] = around(&data.shape, axis);
    let places = places(indices, size)?;
    let shape: Vec<usize> =
        data.shape[..axis].iter().chain(&indices.shape).chain(&data.shape[axis + 1..]).copied().collect();
    let elements = call.limits.elements(&shape)?;
    one(for_any!(&*data.data, v => {
        let mut values = Vec::with_capacity(elements);
        for row in 0..outer {
            for &i in &places {
                values.extend_from_slice(&v[(row * size + i) * inner..][..inner]);
            }
        }
        Array::new(shape, values)
    }))
}

/// For each element of `indices`, the place in an array of `shape` that has its index along `axis`.
fn element_places(shape: &[usize], indices: &Array, axis: usize) -> Result<Vec<usize>> {
    let fits = indices.rank() == shape.len() && (0..shape.len()).all(|i| i == axis || indices.shape[i] <= shape[i]);
    if !fits {
        bail!(
            InvalidInput,
            "indices: expected a shape within {shape:?} but for axis {axis}, found {:?}",
            indices.shape
        );
    }
    let along = places(indices, shape[axis])?;
    let (own, of_indices) = (strides(shape), strides(&indices.shape));
    let at = |(n, &i): (usize, &usize)| {
        let mut place = i * own[axis] as usize;
        for other in (0..shape.len()).filter(|&other| other != axis) {
            place += n / of_indices[other] as usize % indices.shape[other] * own[other] as usize;
        }
        place
    };
    Ok(along.iter().enumerate().map(at).collect())
}

pub(super) fn gather_elements(call: &Call<'_>) -> Outputs {
    let (data, indices) = (call.array(0)?, call.array(1)?);
    let axis = call.axis(0, data.rank())?;
    let places = element_places(&data.shape, indices, axis)?;
    one(for_any!(&*data.data, v => Array::new(indices.shape.clone(), places.iter().map(|&i| v[i]).collect())))
}

/// The places of the blocks that GatherND and ScatterND speak of, and the elements of a block.
fn blocks(shape: &[usize], indices: &Array, batch_dims: usize) -> Result<(Vec<usize>, usize)> {
    let Some((&depth, lead)) = indices.shape.split_last() else {
        bail!(InvalidInput, "indices: expected at least one axis, found none")
    };
    if batch_dims > lead.len() || batch_dims + depth > shape.len() || shape[..batch_dims] != lead[..batch_dims] {
        bail!(InvalidInput, "indices: expected at most the axes of {shape:?}, found {:?}", indices.shape);
    }
    let own = strides(shape);
    let per_batch: usize = lead[batch_dims..].iter().product();
    let batch_size: usize = shape[batch_dims..].iter().product();
    let values = indices.integers("indices")?;
    let count: usize = lead.iter().product();
    let mut places = Vec::with_capacity(count);
    for n in 0..count {
        let mut at = n / per_batch.max(1) * batch_size;
        for (k, &index) in values[n * depth..][..depth].iter().enumerate() {
            at += place(index, shape[batch_dims + k])? * own[batch_dims + k] as usize;
        }
        places.push(at);
    }
    Ok((places, shape[batch_dims + depth..].iter().product()))
}

pub(super) fn gather_nd(call: &Call<'_>) -> Outputs {
    let (data, indices) = (call.array(0)?, call.array(1)?);
    let batch_dims = match usize::try_from(call.node.int("batch_dims")?.unwrap_or(0)) {
        Ok(n) => n,
        Err(_) => bail!(InvalidFile, "batch_dims: expected 0 or more, found a negative number"),
    };
    let (places, size) = blocks(&data.shape, indices, batch_dims)?;
    let depth = indices.shape.last().copied().unwrap_or(0);
    let lead = &indices.shape[..indices.rank() - 1];
    let shape: Vec<usize> = lead.iter().chain(&data.shape[batch_dims + depth..]).copied().collect();
    call.limits.elements(&shape)?;
    one(for_any!(&*data.data, v => {
        let values = places.iter().flat_map(|&i| &v[i..][..size]).copied().collect();
        Array::new(shape, values)
    }))
}

/// Puts `updates` at places, with a reduction.
fn scattered(data: &Array, updates: &Array, places: &[usize], size: usize, call: &Call<'_>) -> Result<Array> {
    if updates.element_type() != data.element_type() {
        bail!(
            InvalidInput,
            "updates: expected type {}, found {}",
            data.element_type().name(),
            updates.element_type().name()
        );
    }
    let reduction = call.node.text("reduction")?.unwrap_or("none");
    if reduction == "none" {
        return Ok(for_any!(&*data.data, v => put(v, data, updates, places, size, |_, new| new)));
    }
    fn reduced<T: Element + Number>(
        v: &[T],
        data: &Array,
        updates: &Array,
        places: &[usize],
        size: usize,
        reduction: &str,
    ) -> Result<Array> {
        let f = match reduction {
            "add" => T::add,
            "mul" => T::mul,
            "max" => T::larger,
            "min" => T::smaller,
            other => bail!(Unsupported, "reduction: expected none, add, mul, max or min, found {other:?}"),
        };
        Ok(put(v, data, updates, places, size, f))
    }
    for_numbers!(
        &*data.data,
        v => reduced(v, data, updates, places, size, reduction),
        other => bail!(InvalidInput, "reduction: expected numbers, found {}", other.type_name())
    )
}

fn put<T: Element>(
    values: &[T],
    data: &Array,
    updates: &Array,
    places: &[usize],
    size: usize,
    f: impl Fn(T, T) -> T,
) -> Array {
    let mut values = values.to_vec();
    let updates = updates.of::<T>().unwrap_or_default();
    for (&place, block) in places.iter().zip(updates.chunks_exact(size.max(1))) {
        for (old, &new) in values[place..].iter_mut().zip(block) {
            *old = f(*old, new);
        }
    }
    Array::new(data.shape.clone(), values)
}

pub(super) fn scatter_elements(call: &Call<'_>) -> Outputs {
    let (data, indices, updates) = (call.array(0)?, call.array(1)?, call.array(2)?);
    let axis = call.axis(0, data.rank())?;
    if updates.shape != indices.shape {
        bail!(InvalidInput, "updates: expected the shape of indices {:?}, found {:?}", indices.shape, updates.shape);
    }
    let places = element_places(&data.shape, indices, axis)?;
    one(scattered(data, updates, &places, 1, call)?)
}

pub(super) fn scatter_nd(call: &Call<'_>) -> Outputs {
    let (data, indices, updates) = (call.array(0)?, call.array(1)?, call.array(2)?);
    let (places, size) = blocks(&data.shape, indices, 0)?;
    let depth = indices.shape.last().copied().unwrap_or(0);
    let expected: Vec<usize> =
        indices.shape[..indices.rank() - 1].iter().chain(&data.shape[depth..]).copied().collect();
    if updates.shape != expected {
        bail!(InvalidInput, "updates: expected shape {expected:?}, found {:?}", updates.shape);
    }
    one(scattered(data, updates, &places, size, call)?)
}

/// Where: elements of one array or the other.
pub(super) fn choose(call: &Call<'_>) -> Outputs {
    let (condition, a, b) = (call.array(0)?, call.array(1)?, call.array(2)?);
    let Some(truths) = condition.of::<bool>() else {
        bail!(InvalidInput, "condition: expected bool, found {}", condition.element_type().name())
    };
    if a.element_type() != b.element_type() {
        bail!(
            InvalidInput,
            "expected inputs of one type, found {} and {}",
            a.element_type().name(),
            b.element_type().name()
        );
    }
    let shape = broadcast_shape(&broadcast_shape(&condition.shape, &a.shape)?, &b.shape)?;
    call.limits.elements(&shape)?;
    let truths = copy(truths, 0, &shape, &broadcast_strides(&condition.shape, &shape));
    fn chosen<T: Element>(x: &[T], a: &Array, b: &Array, truths: &[bool], shape: Vec<usize>) -> Array {
        let y = b.of::<T>().unwrap_or_default();
        let x = copy(x, 0, &shape, &broadcast_strides(&a.shape, &shape));
        let y = copy(y, 0, &shape, &broadcast_strides(&b.shape, &shape));
        let values = truths.iter().zip(x.iter().zip(&y)).map(|(&c, (&x, &y))| if c { x } else { y }).collect();
        Array::new(shape, values)
    }
    one(for_any!(&*a.data, x => chosen(x, a, b, &truths, shape)))
}

pub(super) fn compress(call: &Call<'_>) -> Outputs {
    let (data, condition) = (call.array(0)?, call.array(1)?);
    let Some(truths) = condition.of::<bool>() else {
        bail!(InvalidInput, "condition: expected bool, found {}", condition.element_type().name())
    };
    let (data, axis) = match call.node.int("axis")? {
        Some(axis) => (data.clone(), axis_of(axis, data.rank())?),
        None => (data.reshaped(vec![data.len()]), 0),
    };
    let [outer, size, inner] = around(&data.shape, axis);
    if truths.len() > size {
        bail!(InvalidInput, "condition: expected at most {size}, found {}", truths.len());
    }
    let kept: Vec<usize> = (0..truths.len()).filter(|&i| truths[i]).collect();
    let mut shape = data.shape.clone();
    shape[axis] = kept.len();
    one(for_any!(&*data.data, v => {
        let mut values = Vec::new();
        for row in 0..outer {
            for &i in &kept {
                values.extend_from_slice(&v[(row * size + i) * inner..][..inner]);
            }
        }
        Array::new(shape, values)
    }))
}

pub(super) fn non_zero(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    fn of<T: Element>(v: &[T]) -> Vec<usize> {
        (0..v.len()).filter(|&i| v[i] != T::default()).collect()
    }
    let found = for_any!(&*data.data, v => of(v));
    let own = strides(&data.shape);
    let mut values = Vec::with_capacity(data.rank() * found.len());
    for (axis, &size) in data.shape.iter().enumerate() {
        values.extend(found.iter().map(|&i| (i / own[axis] as usize % size) as i64));
    }
    one(Array::new(vec![data.rank(), found.len()], values))
}

pub(super) fn one_hot(call: &Call<'_>) -> Outputs {
    let (indices, values) = (call.array(0)?, call.array(2)?);
    let depth = match &*call.array(1)?.data {
        TensorData::F32(v) if v.len() == 1 => v[0] as i64,
        TensorData::F64(v) if v.len() == 1 => v[0] as i64,
        _ => call.array(1)?.integer("depth")?,
    };
    let Some(depth) = usize::try_from(depth).ok().filter(|&d| d > 0) else {
        bail!(InvalidInput, "depth: expected at least 1, found {depth}")
    };
    let axis = axis_of(call.node.int("axis")?.unwrap_or(-1), indices.rank() + 1)?;
    let mut shape = indices.shape.clone();
    shape.insert(axis, depth);
    let elements = call.limits.elements(&shape)?;
    let wanted: Vec<i64> = match &*indices.data {
        TensorData::F32(v) => v.iter().map(|&x| x as i64).collect(),
        TensorData::F64(v) => v.iter().map(|&x| x as i64).collect(),
        _ => indices.integers("indices")?,
    };
    let [_, _, inner] = around(&shape, axis);
    let wide = depth as i64;
    // An index outside of the depth has no place that is on.
    let at = |place: usize| {
        let (outer, k, i) = (place / (depth * inner), place / inner % depth, place % inner);
        let index = wanted[outer * inner + i];
        (if index < 0 { index.saturating_add(wide) } else { index }) == k as i64
    };
    if values.len() != 2 {
        bail!(InvalidInput, "values: expected off and on, found {}", values.len());
    }
    one(for_any!(&*values.data, v => Array::new(shape, (0..elements).map(|i| v[usize::from(at(i))]).collect())))
}

pub(super) fn unique(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let (data, axis) = match call.node.int("axis")? {
        Some(axis) => (data.clone(), axis_of(axis, data.rank())?),
        None => (data.reshaped(vec![data.len()]), 0),
    };
    let sorted = call.node.flag("sorted", true)?;
    call.limits.pieces(data.shape[axis])?;
    let slices: Vec<Array> = (0..data.shape[axis]).map(|i| part(&data, axis, i, 1)).collect();
    fn order<T: Element>(a: &[T], b: &Array) -> Ordering {
        a.partial_cmp(b.of::<T>().unwrap_or_default()).unwrap_or(Ordering::Equal)
    }
    let compare = |a: &Array, b: &Array| for_any!(&*a.data, v => order(v, b));
    // Equal slices side by side, each group led by its first.
    let mut by_value: Vec<usize> = (0..slices.len()).collect();
    by_value.sort_by(|&a, &b| compare(&slices[a], &slices[b]).then(a.cmp(&b)));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for i in by_value {
        match groups.last_mut() {
            Some(group) if compare(&slices[group[0]], &slices[i]).is_eq() => group.push(i),
            _ => groups.push(vec![i]),
        }
    }
    if !sorted {
        groups.sort_by_key(|group| group[0]);
    }
    let mut inverse = vec![0i64; slices.len()];
    for (g, group) in groups.iter().enumerate() {
        group.iter().for_each(|&i| inverse[i] = g as i64);
    }
    let firsts: Vec<&Array> = groups.iter().map(|group| &slices[group[0]]).collect();
    let values = match firsts.is_empty() {
        true => data.clone(),
        false => super::movement::joined(&firsts, axis, call.limits)?,
    };
    let of = |v: Vec<i64>| Array::new(vec![v.len()], v).into();
    let mut outputs = vec![
        values.into(),
        of(groups.iter().map(|g| g[0] as i64).collect()),
        of(inverse),
        of(groups.iter().map(|g| g.len() as i64).collect()),
    ];
    outputs.truncate(call.node.outputs.len().max(1));
    Ok(outputs)
}
