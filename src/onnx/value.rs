//! Values while a graph is evaluated: tensors that share their elements, and sequences of them.

use std::sync::Arc;

use super::element::{Element, ElementType};
use super::tensor::{Tensor, TensorData};
use crate::error::{Result, bail};

/// A tensor whose elements may be shared, so that another shape costs nothing.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    pub(super) data: Arc<TensorData>,
}

/// What a name of a graph stands for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Array(Array),
    Sequence(Vec<Array>),
}

impl Array {
    /// The number of elements is that of the shape; callers see to it.
    pub(super) fn new<T: Element>(shape: Vec<usize>, values: Vec<T>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len());
        Self { shape, data: Arc::new(T::wrap(values)) }
    }

    pub(super) fn scalar<T: Element>(value: T) -> Self {
        Self::new(Vec::new(), vec![value])
    }

    pub(super) fn len(&self) -> usize {
        self.data.len()
    }

    pub(super) fn rank(&self) -> usize {
        self.shape.len()
    }

    pub(super) fn element_type(&self) -> ElementType {
        self.data.element_type()
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.len() * self.element_type().size_bytes()
    }

    /// The elements, if they are of this type.
    pub(super) fn of<T: Element>(&self) -> Option<&[T]> {
        T::of(&self.data)
    }

    /// The elements of integers of any width, as i64.
    pub(super) fn integers(&self, what: &str) -> Result<Vec<i64>> {
        Ok(match &*self.data {
            TensorData::I64(v) => v.clone(),
            TensorData::I32(v) => v.iter().map(|&n| n.into()).collect(),
            TensorData::I16(v) => v.iter().map(|&n| n.into()).collect(),
            TensorData::I8(v) => v.iter().map(|&n| n.into()).collect(),
            TensorData::U8(v) => v.iter().map(|&n| n.into()).collect(),
            TensorData::U16(v) => v.iter().map(|&n| n.into()).collect(),
            TensorData::U32(v) => v.iter().map(|&n| n.into()).collect(),
            other => bail!(InvalidInput, "{what}: expected integers, found {}", other.type_name()),
        })
    }

    /// The only element of integers.
    pub(super) fn integer(&self, what: &str) -> Result<i64> {
        match *self.integers(what)? {
            [value] => Ok(value),
            ref found => bail!(InvalidInput, "{what}: expected one integer, found {}", found.len()),
        }
    }

    /// The only element, a truth value.
    pub(super) fn truth(&self, what: &str) -> Result<bool> {
        match &*self.data {
            TensorData::Bool(v) if v.len() == 1 => Ok(v[0]),
            other => bail!(InvalidInput, "{what}: expected one bool, found {} of {}", other.len(), other.type_name()),
        }
    }

    /// The same elements in another shape of as many.
    pub(super) fn reshaped(&self, shape: Vec<usize>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), self.len());
        Self { shape, data: self.data.clone() }
    }

    pub(super) fn into_tensor(self) -> Tensor {
        Tensor { shape: self.shape, data: Arc::unwrap_or_clone(self.data) }
    }
}

impl From<Tensor> for Array {
    fn from(tensor: Tensor) -> Self {
        Self { shape: tensor.shape, data: Arc::new(tensor.data) }
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Value::Array(array)
    }
}

impl Value {
    pub(super) fn array(&self, what: &str) -> Result<&Array> {
        match self {
            Value::Array(array) => Ok(array),
            Value::Sequence(_) => bail!(InvalidInput, "{what}: expected a tensor, found a sequence of tensors"),
        }
    }

    pub(super) fn size_bytes(&self) -> usize {
        match self {
            Value::Array(array) => array.size_bytes(),
            Value::Sequence(arrays) => arrays.iter().map(Array::size_bytes).sum(),
        }
    }
}
