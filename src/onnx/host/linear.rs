//! Products of matrices.

use std::collections::BTreeMap;

use super::arithmetic::{Number, doubles, like};
use super::strides::{broadcast_shape, broadcast_strides, copy, strides, zip};
use super::{Array, Call, Outputs, one};
use crate::error::{Result, bail};
use crate::onnx::element::{Element, for_numbers};

/// Shapes of a product of stacks of matrices by numpy's rules, where a vector is a matrix of one row or column.
pub(in crate::onnx) struct Product {
    /// The axes before the matrices.
    lead: Vec<usize>,
    a: Vec<usize>,
    b: Vec<usize>,
    /// [rows, depth, columns]
    pub(in crate::onnx) sizes: [usize; 3],
    pub(in crate::onnx) shape: Vec<usize>,
}

impl Product {
    pub(in crate::onnx) fn new(a: &[usize], b: &[usize]) -> Result<Self> {
        let wide_a: Vec<usize> = if a.len() == 1 { vec![1, a[0]] } else { a.to_vec() };
        let wide_b: Vec<usize> = if b.len() == 1 { vec![b[0], 1] } else { b.to_vec() };
        let ([lead_a @ .., rows, depth], [lead_b @ .., other, columns]) = (&wide_a[..], &wide_b[..]) else {
            bail!(InvalidInput, "expected matrices, found {a:?} and {b:?}")
        };
        if depth != other {
            bail!(InvalidInput, "expected as many columns as rows of the second, found {a:?} and {b:?}");
        }
        let lead = broadcast_shape(lead_a, lead_b)?;
        let mut shape = lead.clone();
        if a.len() > 1 {
            shape.push(*rows);
        }
        if b.len() > 1 {
            shape.push(*columns);
        }
        Ok(Self { sizes: [*rows, *depth, *columns], lead, a: wide_a.clone(), b: wide_b.clone(), shape })
    }

    /// Refuses a product that is larger, or takes longer, than it may.
    fn check(&self, call: &Call<'_>) -> Result<()> {
        let elements = call.limits.elements(&self.shape)?;
        call.limits.work(elements as f64 * self.sizes[1] as f64)
    }
}

/// [rows, columns] → [columns, rows]
#[cfg(feature = "cpu")]
pub(in crate::onnx) fn transposed_matrix(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    copy(values, 0, &[columns, rows], &[1, columns as isize])
}

fn product_of<T: Number, U: Number, V: Element + Number>(
    (a, b): (&[T], &[U]),
    product: &Product,
    term: impl Fn(T, U) -> V,
) -> Array {
    let [rows, depth, columns] = product.sizes;
    let stacked = |shape: &[usize]| -> Vec<usize> {
        let lead = &shape[..shape.len() - 2];
        let size: usize = shape[shape.len() - 2..].iter().product();
        let places: Vec<usize> = (0..lead.iter().product()).map(|i| i * size).collect();
        copy(&places, 0, &product.lead, &broadcast_strides(lead, &product.lead))
    };
    let mut values = Vec::with_capacity(product.shape.iter().product());
    let mut row_of: Vec<V> = Vec::new();
    for (x, y) in stacked(&product.a).into_iter().zip(stacked(&product.b)) {
        for row in 0..rows {
            row_of.clear();
            row_of.resize(columns, V::ZERO);
            for k in 0..depth {
                let left = a[x + row * depth + k];
                for (sum, &right) in row_of.iter_mut().zip(&b[y + k * columns..][..columns]) {
                    *sum = sum.add(term(left, right));
                }
            }
            values.extend_from_slice(&row_of);
        }
    }
    Array::new(product.shape.clone(), values)
}

pub(super) fn matmul(call: &Call<'_>) -> Outputs {
    let (a, b) = (call.array(0)?, call.array(1)?);
    if a.element_type() != b.element_type() {
        bail!(InvalidInput, "expected one type, found {} and {}", a.element_type().name(), b.element_type().name());
    }
    let product = Product::new(&a.shape, &b.shape)?;
    product.check(call)?;
    if a.element_type().is_float() {
        let result = product_of((&doubles(a)?, &doubles(b)?), &product, |x: f64, y: f64| x * y);
        let values = result.of::<f64>().unwrap_or_default().to_vec();
        return one(like(a, product.shape.clone(), values));
    }
    fn same<T: Element + Number>(x: &[T], b: &Array, product: &Product) -> Array {
        product_of((x, b.of::<T>().unwrap_or_default()), product, T::mul)
    }
    one(for_numbers!(
        &*a.data,
        x => same(x, b, &product),
        other => bail!(InvalidInput, "expected numbers, found {}", other.type_name())
    ))
}

pub(super) fn gemm(call: &Call<'_>) -> Outputs {
    let (a, b) = (call.array(0)?, call.array(1)?);
    let side = |array: &Array, name: &str| -> Result<([usize; 2], Vec<f64>)> {
        let [rows, columns] = *array.shape else {
            bail!(InvalidInput, "expected matrices, found shape {:?}", array.shape)
        };
        let values: Vec<f64> = for_numbers!(
            &*array.data,
            v => v.iter().map(|x| x.to_f64()).collect(),
            other => bail!(InvalidInput, "expected numbers, found {}", other.type_name())
        );
        Ok(match call.node.flag(name, false)? {
            false => ([rows, columns], values),
            true => ([columns, rows], copy(&values, 0, &[columns, rows], &[1, columns as isize])),
        })
    };
    let ((a_shape, x), (b_shape, y)) = (side(a, "transA")?, side(b, "transB")?);
    let product = Product::new(&a_shape, &b_shape)?;
    product.check(call)?;
    let alpha = call.node.float("alpha")?.map_or(1.0, f64::from);
    let beta = call.node.float("beta")?.map_or(1.0, f64::from);
    let result = product_of((&x, &y), &product, |x: f64, y: f64| x * y);
    let mut values: Vec<f64> = result.of::<f64>().unwrap_or_default().iter().map(|v| alpha * v).collect();
    if let Some(c) = call.optional(2)? {
        let added: Vec<f64> = for_numbers!(
            &*c.data,
            v => v.iter().map(|x| x.to_f64()).collect(),
            other => bail!(InvalidInput, "expected numbers, found {}", other.type_name())
        );
        let (shape, sums) =
            zip((&values, &product.shape), (&added, &c.shape), call.limits, |sum: f64, c: f64| sum + beta * c)?;
        if shape != product.shape {
            bail!(InvalidInput, "C: expected a shape that broadcasts to {:?}, found {:?}", product.shape, c.shape);
        }
        values = sums;
    }
    one(super::cast::converted(&Array::new(product.shape.clone(), values), a.element_type())?)
}

pub(super) fn matmul_integer(call: &Call<'_>) -> Outputs {
    let (a, b) = (call.array(0)?, call.array(1)?);
    let product = Product::new(&a.shape, &b.shape)?;
    product.check(call)?;
    // A zero point for everything, or for each row of a or column of b.
    let centred = |array: &Array, zero: Option<&Array>, per_row: bool| -> Result<Vec<i32>> {
        let values: Vec<i32> = array.integers("input")?.into_iter().map(|v| v as i32).collect();
        let Some(zero) = zero else { return Ok(values) };
        let points: Vec<i32> = zero.integers("zero point")?.into_iter().map(|v| v as i32).collect();
        let shape = match (zero.rank(), per_row) {
            (1, true) if points.len() > 1 => vec![points.len(), 1],
            _ => zero.shape.clone(),
        };
        let (found, values) = zip((&values, &array.shape), (&points, &shape), call.limits, |v: i32, z: i32| v - z)?;
        if found != array.shape {
            bail!(
                InvalidInput,
                "zero point: expected one that broadcasts to {:?}, found {:?}",
                array.shape,
                zero.shape
            );
        }
        Ok(values)
    };
    let x = centred(a, call.optional(2)?, true)?;
    let y = centred(b, call.optional(3)?, false)?;
    one(product_of((&x, &y), &product, i32::mul))
}

/// Sums of products over letters, as written.
pub(super) fn einsum(call: &Call<'_>) -> Outputs {
    let arrays = call.arrays()?;
    let equation: String = call.node.text("equation")?.unwrap_or_default().chars().filter(|c| *c != ' ').collect();
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left.to_owned(), Some(right.to_owned())),
        None => (equation.clone(), None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != arrays.len() {
        bail!(InvalidInput, "equation {equation:?}: expected {} terms, found {}", arrays.len(), terms.len());
    }
    let (sizes, output) = letters(&equation, &terms, right.as_deref(), &arrays)?;
    let inner: Vec<char> = sizes.keys().copied().filter(|c| !output.contains(c)).collect();
    let order: Vec<char> = output.iter().chain(&inner).copied().collect();
    let shape: Vec<usize> = output.iter().map(|c| sizes[c]).collect();
    let all: Vec<usize> = order.iter().map(|c| sizes[c]).collect();
    let elements = call.limits.elements(&shape)?;
    let depth: usize = all[shape.len()..].iter().product();
    call.limits.elements(&all)?;
    let mut product = vec![1.0f64; elements * depth];
    for (array, term) in arrays.iter().zip(&terms) {
        let own = strides(&array.shape);
        let axes = expanded(term, array.rank());
        let of =
            |c: &char| -> isize { axes.iter().zip(&own).filter(|(a, _)| *a == c).map(|(_, stride)| *stride).sum() };
        // An axis of size 1 may stand for a longer one in the ellipsis.
        let of = |c: &char| if axes.iter().zip(&array.shape).any(|(a, n)| a == c && *n == 1) { 0 } else { of(c) };
        let steps: Vec<isize> = order.iter().map(of).collect();
        let values = copy(&doubles(array)?, 0, &all, &steps);
        product.iter_mut().zip(values).for_each(|(p, v)| *p *= v);
    }
    let sums = product.chunks_exact(depth.max(1)).map(|row| row.iter().sum()).collect();
    let sums: Vec<f64> = if depth == 0 { vec![0.0; elements] } else { sums };
    one(like(arrays[0], shape, sums))
}

/// The letters of a term for each axis; those of the ellipsis are numbered from the end, from `\u{e000}` on.
fn expanded(term: &str, rank: usize) -> Vec<char> {
    let Some((before, after)) = term.split_once("...") else { return term.chars().collect() };
    let hidden = rank.saturating_sub(before.chars().count() + after.chars().count());
    let ellipsis = (0..hidden).rev().map(|i| char::from_u32(0xe000 + i as u32).unwrap_or('?'));
    before.chars().chain(ellipsis).chain(after.chars()).collect()
}

/// The size of every letter, and the letters of the output.
fn letters(
    equation: &str,
    terms: &[&str],
    right: Option<&str>,
    arrays: &[&Array],
) -> Result<(BTreeMap<char, usize>, Vec<char>)> {
    let mut sizes: BTreeMap<char, usize> = BTreeMap::new();
    let mut counts: BTreeMap<char, usize> = BTreeMap::new();
    for (term, array) in terms.iter().zip(arrays) {
        let axes = expanded(term, array.rank());
        if axes.len() != array.rank() || term.chars().any(|c| !c.is_ascii_alphabetic() && c != '.') {
            bail!(InvalidInput, "equation {equation:?}: expected the axes of {:?}, found {term:?}", array.shape);
        }
        for (&letter, &size) in axes.iter().zip(&array.shape) {
            *counts.entry(letter).or_default() += 1;
            let known = sizes.entry(letter).or_insert(size);
            if *known == 1 {
                *known = size;
            } else if *known != size && size != 1 {
                bail!(InvalidInput, "equation {equation:?}: expected one size of {letter}, found {known} and {size}");
            }
        }
    }
    let hidden: Vec<char> = sizes.keys().copied().filter(|c| *c >= '\u{e000}').rev().collect();
    let output: Vec<char> = match right {
        Some(right) => match right.split_once("...") {
            Some((before, after)) => before.chars().chain(hidden).chain(after.chars()).collect(),
            None => right.chars().collect(),
        },
        None => hidden
            .into_iter()
            .chain(counts.iter().filter(|(c, n)| **n == 1 && **c < '\u{e000}').map(|(c, _)| *c))
            .collect(),
    };
    match output.iter().find(|c| !sizes.contains_key(c)) {
        Some(letter) => bail!(InvalidInput, "equation {equation:?}: no term has {letter:?}"),
        None => Ok((sizes, output)),
    }
}

/// Determinants, by elimination with the largest pivot.
pub(super) fn det(call: &Call<'_>) -> Outputs {
    let data = call.array(0)?;
    let [lead @ .., n, other] = &data.shape[..] else {
        bail!(InvalidInput, "expected square matrices, found {:?}", data.shape)
    };
    if n != other {
        bail!(InvalidInput, "expected square matrices, found {:?}", data.shape);
    }
    let mut values = doubles(data)?;
    let n = *n;
    call.limits.work(values.len() as f64 * n as f64)?;
    let determinant = |m: &mut [f64]| {
        let mut result = 1.0;
        for k in 0..n {
            let pivot = (k..n).fold(k, |best, i| if m[i * n + k].abs() > m[best * n + k].abs() { i } else { best });
            if m[pivot * n + k] == 0.0 {
                return 0.0;
            }
            if pivot != k {
                (0..n).for_each(|j| m.swap(pivot * n + j, k * n + j));
                result = -result;
            }
            result *= m[k * n + k];
            for i in k + 1..n {
                let factor = m[i * n + k] / m[k * n + k];
                (k..n).for_each(|j| m[i * n + j] -= factor * m[k * n + j]);
            }
        }
        result
    };
    let result = match n {
        0 => vec![1.0; lead.iter().product()],
        _ => values.chunks_exact_mut(n * n).map(determinant).collect(),
    };
    one(like(data, lead.to_vec(), result))
}
