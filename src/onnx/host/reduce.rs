//! Operators that reduce along axes, or run along one.

use std::cmp::Ordering;

use super::arithmetic::Number;
use super::movement::axes_of;
use super::strides::{around, permuted};
use super::{Array, Call, Outputs, one};
use crate::error::{Result, bail};
use crate::onnx::element::{Element, for_numbers};
use crate::onnx::tensor::TensorData;

/// The axes of a reduction, and whether it is one.
pub(in crate::onnx) fn reduced_axes(axes: Option<&[i64]>, noop: bool, rank: usize) -> Result<Option<Vec<usize>>> {
    match axes {
        Some(axes) if !axes.is_empty() => Ok(Some(axes_of(axes, rank)?)),
        _ if noop => Ok(None),
        _ => Ok(Some((0..rank).collect())),
    }
}

/// The shape after a reduction.
pub(in crate::onnx) fn reduced_shape(shape: &[usize], axes: &[usize], keep: bool) -> Vec<usize> {
    let size = |(axis, &n): (usize, &usize)| match axes.contains(&axis) {
        true if keep => Some(1),
        true => None,
        false => Some(n),
    };
    shape.iter().enumerate().filter_map(size).collect()
}

pub(super) fn reduce(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let axes = call.integers(1, "axes")?;
    let noop = call.node.flag("noop_with_empty_axes", false)?;
    let keep = call.node.flag("keepdims", true)?;
    let Some(axes) = reduced_axes(axes.as_deref(), noop, data.rank())? else {
        // Each element is reduced alone.
        return one(rows_reduced(data, data.shape.clone(), 1, &call.node.op_type)?);
    };
    let kept: Vec<usize> = (0..data.rank()).filter(|axis| !axes.contains(axis)).collect();
    let order: Vec<usize> = kept.iter().chain(&axes).copied().collect();
    let length: usize = axes.iter().map(|&axis| data.shape[axis]).product();
    let shape = reduced_shape(&data.shape, &axes, keep);
    call.limits.elements(&shape)?;
    let sorted = order.is_sorted();
    let arranged = if sorted { data.clone() } else { arrange(data, &order) };
    one(rows_reduced(&arranged, shape, length, &call.node.op_type)?)
}

fn arrange(data: &Array, order: &[usize]) -> Array {
    use crate::onnx::element::for_any;
    for_any!(&*data.data, v => { let (shape, values) = permuted(v, &data.shape, order); Array::new(shape, values) })
}

/// Every `length` elements reduced to one.
fn rows_reduced(data: &Array, shape: Vec<usize>, length: usize, op_type: &str) -> Result<Array> {
    if let TensorData::Bool(v) = &*data.data {
        let f: fn(&[bool]) -> bool = match op_type {
            "ReduceMax" => |row| row.contains(&true),
            "ReduceMin" => |row| !row.contains(&false),
            _ => bail!(InvalidInput, "expected numbers, found bool"),
        };
        let values = (0..shape.iter().product()).map(|i| f(&v[i * length..][..length])).collect();
        return Ok(Array::new(shape, values));
    }
    for_numbers!(
        &*data.data,
        v => reduced_rows_of(v, shape, length, op_type),
        other => bail!(InvalidInput, "expected numbers, found {}", other.type_name())
    )
}

fn reduced_rows_of<T: Element + Number>(
    values: &[T],
    shape: Vec<usize>,
    length: usize,
    op_type: &str,
) -> Result<Array> {
    let count: usize = shape.iter().product();
    // Sums of floats are taken in f64, those of integers wrap.
    let sum = |row: &[T], f: fn(f64) -> f64| row.iter().map(|v| f(v.to_f64())).sum::<f64>();
    let exact = |row: &[T], f: fn(T) -> T| row.iter().fold(T::ZERO, |total, &v| total.add(f(v)));
    let added = |row: &[T], exactly: fn(T) -> T, float: fn(f64) -> f64| match T::IS_FLOAT {
        true => T::from_f64(sum(row, float)),
        false => exact(row, exactly),
    };
    let same = |x: f64| x;
    let of = |row: &[T]| -> T {
        match op_type {
            "ReduceSum" => added(row, |v| v, same),
            "ReduceMean" if T::IS_FLOAT => T::from_f64(sum(row, same) / length as f64),
            // Of integers: towards zero.
            "ReduceMean" => T::from_f64((sum(row, same) / length as f64).trunc()),
            "ReduceL1" => added(row, T::abs, f64::abs),
            "ReduceSumSquare" => added(row, |v| v.mul(v), |v| v * v),
            "ReduceL2" => T::from_f64(sum(row, |v| v * v).sqrt()),
            "ReduceLogSum" => T::from_f64(sum(row, same).ln()),
            "ReduceLogSumExp" => {
                let most = row.iter().map(|v| v.to_f64()).fold(f64::NEG_INFINITY, f64::max);
                let shift = if most.is_finite() { most } else { 0.0 };
                T::from_f64(row.iter().map(|v| (v.to_f64() - shift).exp()).sum::<f64>().ln() + shift)
            }
            "ReduceProd" if T::IS_FLOAT => T::from_f64(row.iter().map(|v| v.to_f64()).product()),
            "ReduceProd" => row.iter().fold(T::ONE, |product, &v| product.mul(v)),
            "ReduceMax" => row.iter().fold(T::LOWEST, |most, &v| most.larger(v)),
            _ => row.iter().fold(T::HIGHEST, |least, &v| least.smaller(v)),
        }
    };
    // Nothing has a mean, nor, as an integer, a logarithm.
    if length == 0 && count > 0 && !T::IS_FLOAT && matches!(op_type, "ReduceMean" | "ReduceLogSum" | "ReduceLogSumExp")
    {
        bail!(InvalidInput, "expected elements to reduce, found none");
    }
    let result = (0..count).map(|i| of(&values[i * length..][..length])).collect();
    Ok(Array::new(shape, result))
}

/// Runs over the vectors along an axis, each gathered into a row.
fn each_vector<T: Copy>(values: &[T], [outer, size, inner]: [usize; 3], mut f: impl FnMut(usize, usize, &[T])) {
    let mut row = Vec::with_capacity(size);
    for o in 0..outer {
        for i in 0..inner {
            row.clear();
            row.extend((0..size).map(|k| values[(o * size + k) * inner + i]));
            f(o, i, &row);
        }
    }
}

pub(super) fn arg(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let axis = call.axis(0, data.rank())?;
    let keep = call.node.flag("keepdims", true)?;
    let last = call.node.flag("select_last_index", false)?;
    let want = if call.node.is("ArgMax") { Ordering::Greater } else { Ordering::Less };
    if data.shape[axis] == 0 {
        bail!(InvalidInput, "expected elements along axis {axis}, found none of {:?}", data.shape);
    }
    fn found<T: Element + Number>(v: &[T], around: [usize; 3], want: Ordering, last: bool) -> Vec<i64> {
        let mut result = Vec::with_capacity(around[0] * around[2]);
        each_vector(v, around, |_, _, row| {
            let mut best = 0;
            for (i, value) in row.iter().enumerate().skip(1) {
                let better = match value.partial_cmp(&row[best]) {
                    Some(Ordering::Equal) => last,
                    Some(order) => order == want,
                    // NaN is found as the largest and as the smallest, as in numpy.
                    None => !row[best].is_nan(),
                };
                if better {
                    best = i;
                }
            }
            result.push(best as i64);
        });
        result
    }
    let values = for_numbers!(
        &*data.data,
        v => found(v, around(&data.shape, axis), want, last),
        other => bail!(InvalidInput, "expected numbers, found {}", other.type_name())
    );
    one(Array::new(reduced_shape(&data.shape, &[axis], keep), values))
}

pub(super) fn cumulate(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let axis = super::axis_of(call.array(1)?.integer("axis")?, data.rank())?;
    let (exclusive, reverse) = (call.node.flag("exclusive", false)?, call.node.flag("reverse", false)?);
    let product = call.node.is("CumProd");
    fn run<T: Element + Number>(v: &[T], around: [usize; 3], exclusive: bool, reverse: bool, product: bool) -> Vec<T> {
        let [_, size, inner] = around;
        let (start, f) = if product { (T::ONE, T::mul as fn(T, T) -> T) } else { (T::ZERO, T::add as fn(T, T) -> T) };
        let mut result = v.to_vec();
        each_vector(v, around, |o, i, row| {
            let mut total = start;
            for step in 0..size {
                let k = if reverse { size - 1 - step } else { step };
                let next = f(total, row[k]);
                result[(o * size + k) * inner + i] = if exclusive { total } else { next };
                total = next;
            }
        });
        result
    }
    let around = around(&data.shape, axis);
    one(for_numbers!(
        &*data.data,
        v => Array::new(data.shape.clone(), run(v, around, exclusive, reverse, product)),
        other => bail!(InvalidInput, "expected numbers, found {}", other.type_name())
    ))
}

pub(super) fn top_k(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let axis = call.axis(-1, data.rank())?;
    let k = match call.optional(1)? {
        Some(k) => k.integer("k")?,
        None => call.node.int("k")?.unwrap_or(-1),
    };
    let size = data.shape[axis];
    let Some(k) = usize::try_from(k).ok().filter(|&k| k <= size) else {
        bail!(InvalidInput, "k: expected 0 to {size}, found {k}")
    };
    let largest = call.node.flag("largest", true)?;
    // In any case sorted: that is one of the orders that an unsorted result may have.
    call.node.flag("sorted", true)?;
    let mut shape = data.shape.clone();
    shape[axis] = k;
    let around = around(&data.shape, axis);
    fn run<T: Element + Number>(v: &[T], around: [usize; 3], k: usize, largest: bool) -> (Vec<T>, Vec<i64>) {
        let [outer, _, inner] = around;
        let mut values = vec![T::default(); outer * k * inner];
        let mut indices = vec![0i64; outer * k * inner];
        each_vector(v, around, |o, i, row| {
            let mut order: Vec<usize> = (0..row.len()).collect();
            // NaN counts as larger than every number; equal elements stay in their order.
            let compare = |a: T, b: T| match a.partial_cmp(&b) {
                Some(order) => order,
                None => a.is_nan().cmp(&b.is_nan()),
            };
            order.sort_by(|&a, &b| if largest { compare(row[b], row[a]) } else { compare(row[a], row[b]) });
            for (n, &index) in order[..k].iter().enumerate() {
                values[(o * k + n) * inner + i] = row[index];
                indices[(o * k + n) * inner + i] = index as i64;
            }
        });
        (values, indices)
    }
    let (values, indices) = for_numbers!(
        &*data.data,
        v => { let (values, indices) = run(v, around, k, largest); (Array::new(shape.clone(), values), indices) },
        other => bail!(InvalidInput, "expected numbers, found {}", other.type_name())
    );
    Ok(vec![values.into(), Array::new(shape, indices).into()])
}
