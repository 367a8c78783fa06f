//! Shapes, strides and copies.

use super::Limits;
use crate::error::{Result, bail};

/// Distances between neighbours along each axis of a dense array.
pub(super) fn strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1isize; shape.len()];
    for axis in (0..shape.len().saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1] * shape[axis + 1] as isize;
    }
    strides
}

/// The shape that two arrays have together, by numpy's rules.
pub(in crate::onnx) fn broadcast_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    let mut shape = Vec::with_capacity(rank);
    for axis in 0..rank {
        shape.push(match (size(a, axis), size(b, axis)) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            _ => bail!(InvalidInput, "expected shapes that can be broadcast, found {a:?} and {b:?}"),
        });
    }
    Ok(shape)
}

/// Strides of an array of `shape` when it is read as one of shape `wide`, which it broadcasts to.
pub(super) fn broadcast_strides(shape: &[usize], wide: &[usize]) -> Vec<isize> {
    let own = strides(shape);
    let lead = wide.len() - shape.len();
    let of = |axis: usize| match axis.checked_sub(lead) {
        Some(i) if shape[i] != 1 => own[i],
        _ => 0,
    };
    (0..wide.len()).map(of).collect()
}

/// Calls `f` with the place of the first element of every row along the last axis, in order.
pub(super) fn each_row(shape: &[usize], strides: &[isize], offset: isize, mut f: impl FnMut(isize)) {
    if shape.contains(&0) {
        return;
    }
    let outer = shape.len().saturating_sub(1);
    let mut index = vec![0usize; outer];
    let mut place = offset;
    loop {
        f(place);
        let mut axis = outer;
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            place += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            place -= strides[axis] * shape[axis] as isize;
            index[axis] = 0;
        }
    }
}

/// A dense copy of a view: element `i` along an axis is `i` strides from the first, which is at `offset`.
pub(super) fn copy<T: Copy>(source: &[T], offset: usize, shape: &[usize], strides: &[isize]) -> Vec<T> {
    let mut copied = Vec::with_capacity(shape.iter().product());
    let (length, stride) = match (shape.last(), strides.last()) {
        (Some(&length), Some(&stride)) => (length, stride),
        _ => (1, 1),
    };
    each_row(shape, strides, offset as isize, |place| {
        if stride == 1 {
            copied.extend_from_slice(&source[place as usize..][..length]);
        } else {
            copied.extend((0..length as isize).map(|i| source[(place + i * stride) as usize]));
        }
    });
    copied
}

/// The elements with their axes in another order.
pub(super) fn permuted<T: Copy>(source: &[T], shape: &[usize], order: &[usize]) -> (Vec<usize>, Vec<T>) {
    let own = strides(shape);
    let new_shape: Vec<usize> = order.iter().map(|&axis| shape[axis]).collect();
    let new_strides: Vec<isize> = order.iter().map(|&axis| own[axis]).collect();
    let copied = copy(source, 0, &new_shape, &new_strides);
    (new_shape, copied)
}

/// [outer, axis, inner]: the products of the sizes before, at and after an axis.
pub(super) fn around(shape: &[usize], axis: usize) -> [usize; 3] {
    [shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()]
}

/// f of all pairs of elements, broadcast.
pub(super) fn zip<T: Copy, U: Copy, V>(
    (a, a_shape): (&[T], &[usize]),
    (b, b_shape): (&[U], &[usize]),
    limits: Limits,
    f: impl Fn(T, U) -> V,
) -> Result<(Vec<usize>, Vec<V>)> {
    if a_shape == b_shape {
        return Ok((a_shape.to_vec(), a.iter().zip(b).map(|(&x, &y)| f(x, y)).collect()));
    }
    let shape = broadcast_shape(a_shape, b_shape)?;
    let elements = limits.elements(&shape)?;
    let mut values = Vec::with_capacity(elements);
    let (sa, sb) = (broadcast_strides(a_shape, &shape), broadcast_strides(b_shape, &shape));
    let length = shape.last().copied().unwrap_or(1);
    let (ia, ib) = (sa.last().copied().unwrap_or(0) as usize, sb.last().copied().unwrap_or(0) as usize);
    let mut places = Vec::new();
    each_row(&shape, &sb, 0, |place| places.push(place as usize));
    let mut places = places.into_iter();
    each_row(&shape, &sa, 0, |place| {
        let (x, y) = (place as usize, places.next().unwrap_or(0));
        values.extend((0..length).map(|i| f(a[x + i * ia], b[y + i * ib])));
    });
    Ok((shape, values))
}
