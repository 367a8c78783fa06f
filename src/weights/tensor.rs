//! Stage 1, read: a tensor as a file holds it → its numbers.
//!
//! In:  element type, shape, strides, and the bytes they index, little-endian.
//! Out: [`Tensor`], checked against its bytes; [`Tensor::to_f32`] and [`Tensor::to_i64`] in row-major order.
//! Afterwards no code asks about element types, strides or offsets again.
//! Not here: the formats of files; what a name means (`state_dict`).

use std::fmt;

use half::{bf16, f16};

use super::source::shown;
use crate::error::{Result, bail};

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ElementType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    /// One that is listed but not converted; `size_bytes` is 0 if it is less than a byte.
    Other {
        name: &'static str,
        size_bytes: usize,
    },
}

impl ElementType {
    pub(crate) fn size_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other { size_bytes, .. } => size_bytes,
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::Other { name, .. } => name,
        })
    }
}

/// A tensor in a file: a view of bytes.
#[derive(Debug, Clone)]
pub(crate) struct Tensor<'a> {
    element: ElementType,
    shape: Vec<usize>,
    /// In elements, as many as sizes.
    strides: Vec<usize>,
    /// Of the first element, in elements.
    offset: usize,
    num_elements: usize,
    bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// A row-major tensor that begins with its bytes.
    #[cfg(any(test, feature = "safetensors"))]
    pub(crate) fn contiguous(element: ElementType, shape: Vec<usize>, bytes: &'a [u8]) -> Result<Self> {
        let mut strides = vec![1usize; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
        }
        Self::strided(element, shape, strides, 0, bytes)
    }

    /// A view of `bytes` that begins `offset` elements in; a step along an axis is one of its stride.
    pub(crate) fn strided(
        element: ElementType,
        shape: Vec<usize>,
        mut strides: Vec<usize>,
        offset: usize,
        bytes: &'a [u8],
    ) -> Result<Self> {
        if shape.len() != strides.len() {
            bail!(InvalidFile, "expected one stride per axis of {shape:?}, found {strides:?}");
        }
        let num_elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let Some(num_elements) = num_elements else {
            bail!(InvalidFile, "expected a shape within {} elements, found {shape:?}", usize::MAX);
        };
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(offset, |at, (&size, &stride)| at.checked_add(size.saturating_sub(1).checked_mul(stride)?));
        // Elements smaller than a byte are not converted, and not counted.
        let stored = bytes.len().checked_div(element.size_bytes()).unwrap_or(usize::MAX);
        if num_elements > 0 && last.is_none_or(|last| last >= stored) {
            bail!(
                InvalidFile,
                "shape {shape:?} with strides {strides:?} and offset {offset}: expected to lie in the {stored} elements \
                 stored, found it to end beyond"
            );
        }
        // An axis of one element is never stepped along; its stride may be anything.
        strides.iter_mut().zip(&shape).filter(|(_, size)| **size < 2).for_each(|(stride, _)| *stride = 0);
        Ok(Self { element, shape, strides, offset, num_elements, bytes })
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(crate) fn element(&self) -> ElementType {
        self.element
    }

    pub(crate) fn num_elements(&self) -> usize {
        self.num_elements
    }

    /// Whether the elements lie side by side in row-major order, as most do.
    fn is_row_major(&self) -> bool {
        let mut stride = 1usize;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &found)| {
            let expected = stride;
            stride = stride.saturating_mul(size);
            size < 2 || found == expected
        })
    }

    /// The numbers as f32, rounded to nearest; `name` is for messages.
    pub(crate) fn to_f32(&self, name: &str) -> Result<Vec<f32>> {
        match self.element {
            ElementType::F32 => self.elements(name, f32::from_le_bytes),
            ElementType::F16 => self.elements(name, |w| f16::from_le_bytes(w).to_f32()),
            ElementType::Bf16 => self.elements(name, |w| bf16::from_le_bytes(w).to_f32()),
            ElementType::F64 => {
                let values = self.elements(name, f64::from_le_bytes)?;
                if let Some(i) = values.iter().position(|&v| v.is_finite() && (v as f32).is_infinite()) {
                    bail!(
                        InvalidWeights,
                        "{}: expected values within the range of f32, found one beyond at element {i}",
                        shown(name)
                    );
                }
                Ok(values.into_iter().map(|v| v as f32).collect())
            }
            ElementType::I64 | ElementType::I32 | ElementType::Other { .. } => {
                bail!(Unsupported, "{}: expected type F32, F16, BF16 or F64, found {}", shown(name), self.element)
            }
        }
    }

    /// As [`Tensor::to_f32`], and every number finite.
    pub(crate) fn to_finite_f32(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.to_f32(name)?;
        match values.iter().position(|v| !v.is_finite()) {
            Some(i) => {
                bail!(InvalidWeights, "{}: expected finite values, found {} at element {i}", shown(name), values[i])
            }
            None => Ok(values),
        }
    }

    /// The numbers of any type but complex ones, as f64; whole numbers beyond 2^53 are rounded.
    pub(crate) fn to_finite_f64(&self, name: &str) -> Result<Vec<f64>> {
        let values = match self.element {
            ElementType::F64 => self.elements(name, f64::from_le_bytes)?,
            ElementType::I64 => self.elements(name, |w| i64::from_le_bytes(w) as f64)?,
            ElementType::I32 => self.elements(name, |w| i32::from_le_bytes(w).into())?,
            ElementType::Other { name: "BOOL" | "U8", .. } => self.elements(name, |[w]: [u8; 1]| w.into())?,
            _ => self.to_f32(name)?.into_iter().map(f64::from).collect(),
        };
        match values.iter().position(|v| !v.is_finite()) {
            Some(i) => {
                bail!(InvalidWeights, "{}: expected finite values, found {} at element {i}", shown(name), values[i])
            }
            None => Ok(values),
        }
    }

    /// The numbers of a tensor of whole numbers; `name` is for messages.
    #[cfg(feature = "safetensors")]
    pub(crate) fn to_i64(&self, name: &str) -> Result<Vec<i64>> {
        match self.element {
            ElementType::I64 => self.elements(name, i64::from_le_bytes),
            ElementType::I32 => self.elements(name, |w| i32::from_le_bytes(w).into()),
            _ => bail!(Unsupported, "{}: expected type I64 or I32, found {}", shown(name), self.element),
        }
    }

    /// The elements in row-major order. A view that repeats elements could ask for any amount of memory, so it is
    /// refused if it has more of them than are stored.
    fn elements<const N: usize, T>(&self, name: &str, convert: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let words = self.bytes.as_chunks::<N>().0;
        if self.num_elements > words.len() {
            bail!(
                Unsupported,
                "{}: expected as many elements as are stored, found {} of {} stored: an expanded view",
                shown(name),
                self.num_elements,
                words.len()
            );
        }
        // In range, both ways: `strided` has checked the last element, and no sum below exceeds twice its place.
        if self.is_row_major() {
            let words = words.get(self.offset..).unwrap_or_default();
            return Ok(words.iter().take(self.num_elements).map(|&word| convert(word)).collect());
        }
        let mut values = Vec::with_capacity(self.num_elements);
        let mut index = vec![0; self.shape.len()];
        let mut at = self.offset;
        for _ in 0..self.num_elements {
            values.push(convert(words[at]));
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect()
    }

    #[test]
    fn a_view_is_read_in_row_major_order() {
        let bytes = bytes(24);
        let read = |shape: &[usize], strides: &[usize], offset| {
            let tensor = Tensor::strided(ElementType::F32, shape.to_vec(), strides.to_vec(), offset, &bytes).unwrap();
            tensor.to_f32("t").unwrap()
        };
        assert_eq!(read(&[2, 3], &[3, 1], 0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(read(&[3, 2], &[1, 3], 0), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(read(&[2, 2, 2], &[12, 2, 5], 3), [3.0, 8.0, 5.0, 10.0, 15.0, 20.0, 17.0, 22.0]);
        assert_eq!(read(&[], &[], 7), [7.0]);
        assert!(read(&[0, 5], &[5, 1], 99).is_empty());
        // An axis of size 1 may have any stride.
        assert_eq!(read(&[1, 2], &[usize::MAX, 1], 1), [1.0, 2.0]);
        let tensor = Tensor::contiguous(ElementType::F32, vec![2, 3, 4], &bytes).unwrap();
        assert_eq!(tensor.to_f32("t").unwrap()[23], 23.0);
    }

    #[test]
    fn a_view_stays_within_its_bytes() {
        let bytes = bytes(24);
        for (shape, strides, offset) in [
            (vec![25], vec![1], 0),
            (vec![2], vec![1], 23),
            (vec![3, 2], vec![1, 22], 0),
            (vec![2], vec![usize::MAX], 1),
            (vec![usize::MAX, 2], vec![0, 0], 0),
            (vec![2, 2], vec![1], 0),
            (vec![], vec![], 24),
        ] {
            let error = Tensor::strided(ElementType::F32, shape, strides, offset, &bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidFile, "{error}");
        }
        // 2^50 elements over one: legal in PyTorch, but not to be converted.
        let huge = Tensor::strided(ElementType::F32, vec![1 << 25, 1 << 25], vec![0, 0], 0, &bytes).unwrap();
        assert_eq!(
            huge.to_f32("mask").unwrap_err().to_string(),
            "mask: expected as many elements as are stored, found 1125899906842624 of 24 stored: an expanded view"
        );
    }
}
