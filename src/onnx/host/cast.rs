//! Conversion between element types.
//!
//! As onnxruntime and numpy have it: to a narrower integer the low bits are kept, from a float the fraction is cut off,
//! to bool all but zero is true. What C leaves undefined, floats beyond an integer's range and NaN, saturates, NaN to 0.

use half::{bf16, f16};

use super::{Array, Call, ElementType, Outputs, Value, named_type, one};
use crate::error::{Result, bail};
use crate::onnx::element::Element;
use crate::onnx::tensor::TensorData;

/// Conversions of one element.
trait Convert: Copy {
    fn f64(self) -> f64;
    /// Rounded once.
    fn f32(self) -> f32;
    /// Wraps where it is an integer, saturates where it is a float.
    fn i64(self) -> i64;
    fn u64(self) -> u64;
    fn is_float() -> bool;
    fn truth(self) -> bool;
}

macro_rules! integers {
    ($($type:ty),*) => {
        $(impl Convert for $type {
            fn f64(self) -> f64 { self as f64 }
            fn f32(self) -> f32 { self as f32 }
            fn i64(self) -> i64 { self as i64 }
            fn u64(self) -> u64 { self as u64 }
            fn is_float() -> bool { false }
            fn truth(self) -> bool { self != 0 }
        })*
    };
}

integers!(i8, i16, i32, i64, u8, u16, u32, u64);

macro_rules! floats {
    ($($type:ty),*) => {
        $(impl Convert for $type {
            fn f64(self) -> f64 { self.into() }
            fn f32(self) -> f32 { f64::from(self) as f32 }
            fn i64(self) -> i64 { f64::from(self) as i64 }
            fn u64(self) -> u64 { f64::from(self) as u64 }
            fn is_float() -> bool { true }
            fn truth(self) -> bool { f64::from(self) != 0.0 }
        })*
    };
}

floats!(f32, f64, f16, bf16);

impl Convert for bool {
    fn f64(self) -> f64 {
        self.into()
    }

    fn f32(self) -> f32 {
        self.into()
    }

    fn i64(self) -> i64 {
        self.into()
    }

    fn u64(self) -> u64 {
        self.into()
    }

    fn is_float() -> bool {
        false
    }

    fn truth(self) -> bool {
        self
    }
}

fn all<T: Convert>(values: &[T], to: ElementType) -> TensorData {
    fn map<T: Copy, U: Element>(values: &[T], f: impl Fn(T) -> U) -> TensorData {
        U::wrap(values.iter().map(|&v| f(v)).collect())
    }
    macro_rules! integer {
        ($type:ty) => {
            // A float saturates to the type itself, an integer keeps its low bits.
            if T::is_float() { map(values, |v| v.f64() as $type) } else { map(values, |v| v.i64() as $type) }
        };
    }
    match to {
        ElementType::F32 => map(values, Convert::f32),
        ElementType::F64 => map(values, Convert::f64),
        ElementType::F16 => map(values, |v| f16::from_f64(v.f64())),
        ElementType::BF16 => map(values, |v| bf16::from_f64(v.f64())),
        ElementType::I8 => integer!(i8),
        ElementType::I16 => integer!(i16),
        ElementType::I32 => integer!(i32),
        ElementType::I64 => map(values, Convert::i64),
        ElementType::U8 => integer!(u8),
        ElementType::U16 => integer!(u16),
        ElementType::U32 => integer!(u32),
        ElementType::U64 => map(values, Convert::u64),
        ElementType::Bool => map(values, Convert::truth),
    }
}

/// The array with elements of another type.
pub(in crate::onnx) fn converted(array: &Array, to: ElementType) -> Result<Array> {
    use crate::onnx::element::for_any;
    if array.element_type() == to {
        return Ok(array.clone());
    }
    let data = for_any!(&*array.data, v => all(v, to));
    Ok(Array { shape: array.shape.clone(), data: data.into() })
}

/// 16-bit floats as f32, everything else as it is.
pub(in crate::onnx) fn widened(value: &Value) -> Value {
    match value {
        Value::Array(array) => Value::Array(to_f32(array).unwrap_or_else(|| array.clone())),
        Value::Sequence(arrays) => {
            Value::Sequence(arrays.iter().map(|a| to_f32(a).unwrap_or_else(|| a.clone())).collect())
        }
    }
}

/// A 16-bit float as f32; `None` for other types.
pub(in crate::onnx) fn to_f32(array: &Array) -> Option<Array> {
    let data = match &*array.data {
        TensorData::F16(v) => all(v, ElementType::F32),
        TensorData::BF16(v) => all(v, ElementType::F32),
        _ => return None,
    };
    Some(Array { shape: array.shape.clone(), data: data.into() })
}

/// f32 as a 16-bit float, everything else as it is.
pub(in crate::onnx) fn narrowed(value: Value, half: ElementType) -> Value {
    let narrow = |array: Array| match &*array.data {
        TensorData::F32(v) => Array { data: all(v, half).into(), shape: array.shape },
        _ => array,
    };
    match value {
        Value::Array(array) => Value::Array(narrow(array)),
        Value::Sequence(arrays) => Value::Sequence(arrays.into_iter().map(narrow).collect()),
    }
}

pub(super) fn cast(call: &Call<'_>) -> Outputs {
    let to = match (call.node.int("to")?, call.node.text("to")) {
        (Some(to), _) => named_type(to)?,
        // Before version 6 it was a name.
        (None, Ok(Some(name))) => bail!(Unsupported, "to: expected a number, found {name:?}, as before version 6"),
        _ => bail!(InvalidFile, "to: expected a type, found none"),
    };
    one(converted(call.array(0)?, to)?)
}

pub(super) fn cast_like(call: &Call<'_>) -> Outputs {
    one(converted(call.array(0)?, call.array(1)?.element_type())?)
}
