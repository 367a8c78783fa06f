//! Tensors of a run, and what a graph declares of them.
//!
//! Not here: tensors that a model holds (`stored.rs`).

use half::{bf16, f16};

use super::element::{ElementType, for_any};
use super::host;
use super::proto;
use super::proto::ValueInfoProto;
use super::value::Array;
use crate::error::{Result, bail};

/// A dense tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Sizes of the axes, slowest first.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: TensorData,
}

/// Elements of a tensor.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TensorData {
    /// float
    F32(Vec<f32>),
    /// double
    F64(Vec<f64>),
    /// float16
    F16(Vec<f16>),
    /// bfloat16
    BF16(Vec<bf16>),
    /// int8
    I8(Vec<i8>),
    /// int16
    I16(Vec<i16>),
    /// int32
    I32(Vec<i32>),
    /// int64
    I64(Vec<i64>),
    /// uint8
    U8(Vec<u8>),
    /// uint16
    U16(Vec<u16>),
    /// uint32
    U32(Vec<u32>),
    /// uint64
    U64(Vec<u64>),
    /// bool
    Bool(Vec<bool>),
}

impl TensorData {
    /// The number of elements.
    pub fn len(&self) -> usize {
        for_any!(self, v => v.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// ONNX's name of the type.
    pub fn type_name(&self) -> &'static str {
        self.element_type().name()
    }

    pub(super) fn element_type(&self) -> ElementType {
        match self {
            TensorData::F32(_) => ElementType::F32,
            TensorData::F64(_) => ElementType::F64,
            TensorData::F16(_) => ElementType::F16,
            TensorData::BF16(_) => ElementType::BF16,
            TensorData::I8(_) => ElementType::I8,
            TensorData::I16(_) => ElementType::I16,
            TensorData::I32(_) => ElementType::I32,
            TensorData::I64(_) => ElementType::I64,
            TensorData::U8(_) => ElementType::U8,
            TensorData::U16(_) => ElementType::U16,
            TensorData::U32(_) => ElementType::U32,
            TensorData::U64(_) => ElementType::U64,
            TensorData::Bool(_) => ElementType::Bool,
        }
    }
}

impl Tensor {
    /// A tensor of this shape.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if the number of elements is another.
    pub fn new(shape: Vec<usize>, data: TensorData) -> Result<Self> {
        let expected = shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
        if expected != Some(data.len()) {
            bail!(InvalidInput, "tensor: expected the elements of shape {shape:?}, found {}", data.len());
        }
        Ok(Self { shape, data })
    }

    /// A tensor of floats.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn floats(shape: Vec<usize>, values: Vec<f32>) -> Result<Self> {
        Self::new(shape, TensorData::F32(values))
    }

    /// The elements, which have to be floats of 32 bits.
    pub(super) fn expect_floats(&self, name: &str) -> Result<&[f32]> {
        match &self.data {
            TensorData::F32(values) => Ok(values),
            other => bail!(InvalidInput, "{name}: expected type float, found {}", other.type_name()),
        }
    }
}

/// A size of an axis that a graph declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dimension {
    /// Always this.
    Fixed(usize),
    /// Given by each run; the name, which may be empty, stands for the same size everywhere.
    Symbolic(String),
}

/// What a graph declares of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueInfo {
    /// Its name.
    pub name: String,
    /// ONNX's name of the element type; empty if the graph does not say.
    pub type_name: &'static str,
    /// Its axes; `None` if the graph does not say.
    pub shape: Option<Vec<Dimension>>,
}

/// `x float [batch, 10, 40]`
impl std::fmt::Display for ValueInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, if self.type_name.is_empty() { "?" } else { self.type_name })?;
        let Some(shape) = &self.shape else { return Ok(()) };
        let axes: Vec<String> = shape
            .iter()
            .map(|d| match d {
                Dimension::Fixed(n) => n.to_string(),
                Dimension::Symbolic(name) if name.is_empty() => "?".to_owned(),
                Dimension::Symbolic(name) => name.clone(),
            })
            .collect();
        write!(f, " [{}]", axes.join(", "))
    }
}

impl ValueInfo {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let info: ValueInfoProto = proto::decode("value info", bytes)?;
        let tensor = info.r#type.and_then(|t| t.tensor_type);
        let dimension = |d: &proto::DimensionProto| match (d.dim_value, &d.dim_param) {
            // Exporters write 0 and -1 for "any".
            (Some(n), _) if n > 0 => Dimension::Fixed(usize::try_from(n).unwrap_or(usize::MAX)),
            (_, name) => Dimension::Symbolic(name.clone().unwrap_or_default()),
        };
        let shape = tensor.as_ref().and_then(|t| t.shape.as_ref()).map(|s| s.dim.iter().map(dimension).collect());
        Ok(Self { name: info.name, type_name: tensor.map_or("", |t| type_name(t.elem_type)), shape })
    }

    /// A tensor that a caller gives for this input, in the type that is declared: an integer or a truth value may be given
    /// in another integer type that holds it.
    pub(super) fn check(&self, tensor: &Tensor) -> Result<Tensor> {
        // The fields are the caller's to set, so what `Tensor::new` promises has to be seen again.
        let elements = tensor.shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
        if elements != Some(tensor.data.len()) {
            bail!(
                InvalidInput,
                "input {}: expected the elements of shape {:?}, found {}",
                self.name,
                tensor.shape,
                tensor.data.len()
            );
        }
        if let Some(shape) = &self.shape {
            let fits = |(expected, &found): (&Dimension, &usize)| match expected {
                Dimension::Fixed(n) => *n == found,
                Dimension::Symbolic(_) => true,
            };
            if shape.len() != tensor.shape.len() || !shape.iter().zip(&tensor.shape).all(fits) {
                bail!(InvalidInput, "input: expected {self}, found shape {:?}", tensor.shape);
            }
        }
        match ElementType::named(self.type_name) {
            Some(expected) if expected != tensor.data.element_type() => self.converted(tensor, expected),
            _ => Ok(tensor.clone()),
        }
    }

    fn converted(&self, tensor: &Tensor, expected: ElementType) -> Result<Tensor> {
        let found = tensor.data.element_type();
        if expected.is_float() || found.is_float() {
            bail!(InvalidInput, "input {}: expected type {}, found {}", self.name, expected.name(), found.name());
        }
        let given = Array::from(tensor.clone());
        let converted = host::converted(&given, expected)?;
        // What does not come back the same was not held by the type; a truth value is any number.
        if expected != ElementType::Bool && host::converted(&converted, found)? != given {
            bail!(InvalidInput, "input {}: expected numbers of type {}, found larger ones", self.name, expected.name());
        }
        Ok(converted.into_tensor())
    }
}

/// ONNX's name of an element type.
pub(super) fn type_name(elem_type: i32) -> &'static str {
    match elem_type {
        1 => "float",
        2 => "uint8",
        3 => "int8",
        4 => "uint16",
        5 => "int16",
        6 => "int32",
        7 => "int64",
        8 => "string",
        9 => "bool",
        10 => "float16",
        11 => "double",
        12 => "uint32",
        13 => "uint64",
        14 => "complex64",
        15 => "complex128",
        16 => "bfloat16",
        0 => "",
        _ => "another type",
    }
}
