//! Element types: their names, and one way to write code for all of them.
//!
//! Not here: tensors (`tensor.rs`), conversion between types (`host/cast.rs`).

use half::{bf16, f16};

use super::tensor::TensorData;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ElementType {
    F32,
    F64,
    F16,
    BF16,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
}

impl ElementType {
    /// Of a `TensorProto.DataType`; `None` for types that are not read (strings, complex numbers, 8-bit floats ...).
    pub(super) fn of(data_type: i32) -> Option<Self> {
        Some(match data_type {
            1 => Self::F32,
            2 => Self::U8,
            3 => Self::I8,
            4 => Self::U16,
            5 => Self::I16,
            6 => Self::I32,
            7 => Self::I64,
            9 => Self::Bool,
            10 => Self::F16,
            11 => Self::F64,
            12 => Self::U32,
            13 => Self::U64,
            16 => Self::BF16,
            _ => return None,
        })
    }

    /// By ONNX's name.
    pub(super) fn named(name: &str) -> Option<Self> {
        (1..=16).filter_map(Self::of).find(|element| element.name() == name)
    }

    /// ONNX's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::F64 => "double",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::I8 => "int8",
            Self::I16 => "int16",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::U8 => "uint8",
            Self::U16 => "uint16",
            Self::U32 => "uint32",
            Self::U64 => "uint64",
            Self::Bool => "bool",
        }
    }

    pub(super) fn size_bytes(self) -> usize {
        match self {
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    pub(super) fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }

    /// A float of 16 bits: stored as such, computed as f32.
    pub(super) fn is_half(self) -> bool {
        matches!(self, Self::F16 | Self::BF16)
    }
}

/// A type of elements.
pub(super) trait Element: Copy + Default + PartialEq + PartialOrd + Send + Sync + 'static {
    fn wrap(values: Vec<Self>) -> TensorData;
    fn of(data: &TensorData) -> Option<&[Self]>;
}

macro_rules! elements {
    ($($variant:ident $type:ty),* $(,)?) => {
        $(impl Element for $type {
            fn wrap(values: Vec<Self>) -> TensorData {
                TensorData::$variant(values)
            }

            fn of(data: &TensorData) -> Option<&[Self]> {
                match data {
                    TensorData::$variant(values) => Some(values),
                    _ => None,
                }
            }
        })*
    };
}

elements!(
    F32 f32, F64 f64, F16 f16, BF16 bf16, I8 i8, I16 i16, I32 i32, I64 i64, U8 u8, U16 u16, U32 u32, U64 u64, Bool bool,
);

/// Evaluates an expression with the elements of a tensor, whatever their type.
macro_rules! for_any {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            $crate::onnx::tensor::TensorData::F32($values) => $body,
            $crate::onnx::tensor::TensorData::F64($values) => $body,
            $crate::onnx::tensor::TensorData::F16($values) => $body,
            $crate::onnx::tensor::TensorData::BF16($values) => $body,
            $crate::onnx::tensor::TensorData::I8($values) => $body,
            $crate::onnx::tensor::TensorData::I16($values) => $body,
            $crate::onnx::tensor::TensorData::I32($values) => $body,
            $crate::onnx::tensor::TensorData::I64($values) => $body,
            $crate::onnx::tensor::TensorData::U8($values) => $body,
            $crate::onnx::tensor::TensorData::U16($values) => $body,
            $crate::onnx::tensor::TensorData::U32($values) => $body,
            $crate::onnx::tensor::TensorData::U64($values) => $body,
            $crate::onnx::tensor::TensorData::Bool($values) => $body,
        }
    };
}

/// The same for numbers that are computed with: not for 16-bit floats, which are widened before, and bool.
macro_rules! for_numbers {
    ($data:expr, $values:ident => $body:expr, $other:ident => $refused:expr) => {
        match $data {
            $crate::onnx::tensor::TensorData::F32($values) => $body,
            $crate::onnx::tensor::TensorData::F64($values) => $body,
            $crate::onnx::tensor::TensorData::I8($values) => $body,
            $crate::onnx::tensor::TensorData::I16($values) => $body,
            $crate::onnx::tensor::TensorData::I32($values) => $body,
            $crate::onnx::tensor::TensorData::I64($values) => $body,
            $crate::onnx::tensor::TensorData::U8($values) => $body,
            $crate::onnx::tensor::TensorData::U16($values) => $body,
            $crate::onnx::tensor::TensorData::U32($values) => $body,
            $crate::onnx::tensor::TensorData::U64($values) => $body,
            $other => $refused,
        }
    };
}

pub(super) use {for_any, for_numbers};
