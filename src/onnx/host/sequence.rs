//! Sequences of tensors.

use super::movement::{even_parts, joined, part, sizes, stacked};
use super::{Array, Call, Outputs, Value, axis_of, one};
use crate::error::{Result, bail};

/// A sequence that is an input.
fn items<'a>(call: &Call<'a>, index: usize) -> Result<&'a [Array]> {
    match call.value(index)? {
        Value::Sequence(items) => Ok(items),
        Value::Array(_) => bail!(InvalidInput, "input {index}: expected a sequence of tensors, found a tensor"),
    }
}

/// A position in a sequence of `count`, `end` included or not.
fn position(index: &Array, count: usize, end: usize) -> Result<usize> {
    let index = index.integer("position")?;
    let wide = count as i64;
    match if index < 0 { index + wide } else { index } {
        n if (0..wide + end as i64).contains(&n) => Ok(n as usize),
        _ => bail!(InvalidInput, "position: expected one in a sequence of {count}, found {index}"),
    }
}

pub(super) fn construct(call: &Call<'_>) -> Outputs {
    Ok(vec![Value::Sequence(call.arrays()?.into_iter().cloned().collect())])
}

pub(super) fn empty(_: &Call<'_>) -> Outputs {
    Ok(vec![Value::Sequence(Vec::new())])
}

pub(super) fn at(call: &Call<'_>) -> Outputs {
    let items = items(call, 0)?;
    one(items[position(call.array(1)?, items.len(), 0)?].clone())
}

pub(super) fn insert(call: &Call<'_>) -> Outputs {
    let mut items = items(call, 0)?.to_vec();
    let place = call.optional(2)?.map_or(Ok(items.len()), |p| position(p, items.len(), 1))?;
    items.insert(place, call.array(1)?.clone());
    call.limits.pieces(items.len())?;
    Ok(vec![Value::Sequence(items)])
}

pub(super) fn erase(call: &Call<'_>) -> Outputs {
    let mut items = items(call, 0)?.to_vec();
    let Some(last) = items.len().checked_sub(1) else { bail!(InvalidInput, "expected an item to erase, found none") };
    items.remove(call.optional(1)?.map_or(Ok(last), |p| position(p, items.len(), 0))?);
    Ok(vec![Value::Sequence(items)])
}

pub(super) fn length(call: &Call<'_>) -> Outputs {
    one(Array::scalar(items(call, 0)?.len() as i64))
}

pub(super) fn split(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let axis = call.axis(0, data.rank())?;
    let size = data.shape[axis];
    let (parts, keep) = match call.optional(1)? {
        // One number is the size of every part.
        Some(split) if split.rank() == 0 => {
            let each = sizes(&[split.integer("split")?], "split")?[0];
            if each == 0 {
                bail!(InvalidInput, "split: expected at least 1, found 0");
            }
            (even_parts_of(size, each), true)
        }
        Some(split) => (sizes(&split.integers("split")?, "split")?, true),
        None => (even_parts(size, size.max(1))?, call.node.flag("keepdims", true)?),
    };
    if parts.iter().try_fold(0usize, |n, &p| n.checked_add(p)) != Some(size) {
        bail!(InvalidInput, "split: expected parts that add up to {size}, found {parts:?}");
    }
    call.limits.pieces(parts.len())?;
    let mut first = 0;
    let mut items = Vec::with_capacity(parts.len());
    for each in parts {
        let item = part(data, axis, first, each);
        first += each;
        let mut shape = item.shape.clone();
        if !keep {
            shape.remove(axis);
        }
        items.push(item.reshaped(shape));
    }
    Ok(vec![Value::Sequence(items)])
}

/// Parts of `each` elements, the last one smaller.
fn even_parts_of(size: usize, each: usize) -> Vec<usize> {
    (0..size.div_ceil(each)).map(|i| each.min(size - i * each)).collect()
}

pub(super) fn concat(call: &Call<'_>) -> Outputs {
    let items = items(call, 0)?;
    let Some(first) = items.first() else { bail!(InvalidInput, "expected items, found an empty sequence") };
    let Some(axis) = call.node.int("axis")? else { bail!(InvalidFile, "axis: expected one, found none") };
    if !call.node.flag("new_axis", false)? {
        let axis = axis_of(axis, first.rank())?;
        return one(joined(&items.iter().collect::<Vec<_>>(), axis, call.limits)?);
    }
    let axis = axis_of(axis, first.rank() + 1)?;
    one(stacked(&items.iter().collect::<Vec<_>>(), axis, call.limits)?)
}
