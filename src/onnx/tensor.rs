//! Tensors: those of a run, and those that a model holds.

use std::path::{Component, Path, PathBuf};

use super::proto::{TensorHead, ValueInfoProto};
use super::{proto, wire};
use crate::error::{Error, ErrorKind, Result, bail};

/// A dense tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Sizes of the axes, slowest first.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: TensorData,
}

/// Elements of a tensor. The CPU runtime around recurrent nodes computes f32, i32, i8 and u8; i64 and bool pass through
/// it as i32, and come back as the graph declares them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TensorData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// 8-bit integers.
    I8(Vec<i8>),
    /// Bytes.
    U8(Vec<u8>),
    /// Truth values.
    Bool(Vec<bool>),
}

impl TensorData {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            TensorData::F32(v) => v.len(),
            TensorData::I32(v) => v.len(),
            TensorData::I64(v) => v.len(),
            TensorData::I8(v) => v.len(),
            TensorData::U8(v) => v.len(),
            TensorData::Bool(v) => v.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// ONNX's name of the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            TensorData::F32(_) => "float",
            TensorData::I32(_) => "int32",
            TensorData::I64(_) => "int64",
            TensorData::I8(_) => "int8",
            TensorData::U8(_) => "uint8",
            TensorData::Bool(_) => "bool",
        }
    }
}

impl Tensor {
    /// A tensor of this shape.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if the number of elements is another.
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

    /// Checks a tensor that a caller gives for this input, and its type.
    pub(super) fn check(&self, tensor: &Tensor) -> Result<()> {
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
        let found = tensor.data.type_name();
        // Integers and truth values are one type to the runtime, so either is taken for the other.
        let class = |name: &str| match name {
            "int32" | "int64" | "bool" => "integer",
            _ => "",
        };
        let same_class = class(self.type_name) == "integer" && class(found) == "integer";
        if !self.type_name.is_empty() && self.type_name != found && !same_class {
            bail!(InvalidInput, "input {}: expected type {}, found {found}", self.name, self.type_name);
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
        Ok(())
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

/// A tensor in the model's bytes.
#[derive(Debug, Clone)]
pub(super) struct StoredTensor<'a> {
    pub(super) head: TensorHead,
    message: &'a [u8],
}

const FLOAT_DATA: u64 = 4;
const INT32_DATA: u64 = 5;
const RAW_DATA: u64 = 9;
const DOUBLE_DATA: u64 = 10;

impl<'a> StoredTensor<'a> {
    pub(super) fn decode(message: &'a [u8]) -> Result<Self> {
        // Content is kept out of the decoder: it may be most of the file.
        let mut head = Vec::new();
        for field in wire::fields("tensor", message)? {
            if !matches!(field.number, 4..=7 | 9..=11) {
                head.extend_from_slice(field.raw);
            }
        }
        Ok(Self { head: proto::decode("tensor", &head)?, message })
    }

    /// Where its content lies outside the model file.
    pub(super) fn external(&self) -> Option<&str> {
        let entry = |key: &str| self.head.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        if self.head.data_location == 1 { Some(entry("location").unwrap_or_default()) } else { None }
    }

    /// Shape and values as f32.
    ///
    /// # Errors
    /// [`InvalidFile`](ErrorKind::InvalidFile) if the content is not of the size that the shape asks for;
    /// [`Unsupported`](ErrorKind::Unsupported) if it is no float type.
    pub(super) fn floats(&self, files: &ExternalFiles) -> Result<Tensor> {
        let name = format!("initializer {}", self.head.name);
        let shape: Option<Vec<usize>> = self.head.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        let elements = shape.as_ref().and_then(|s| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d)));
        let (Some(shape), Some(elements)) = (shape, elements) else {
            bail!(InvalidFile, "{name}: expected sizes of axes whose product fits, found others");
        };
        let width = match self.head.data_type {
            1 => 4,
            10 | 16 => 2,
            11 => 8,
            other => bail!(
                Unsupported,
                "{name}: expected type float, float16, bfloat16 or double, found {}",
                type_name(other)
            ),
        };
        let wrong_size = |found: usize| -> Result<Tensor> {
            bail!(
                InvalidFile,
                "{name}: expected {elements} elements of {width} bytes for shape {shape:?}, found {found} bytes"
            )
        };
        let Some(size_bytes) = elements.checked_mul(width) else { return wrong_size(self.message.len()) };
        let external;
        let mut typed = Vec::new();
        let raw: &[u8] = if self.external().is_some() {
            external = files.read(&name, &self.head, size_bytes)?;
            &external
        } else {
            let mut raw: &[u8] = &[];
            for field in wire::fields(&name, self.message)? {
                match (field.number, self.head.data_type) {
                    (RAW_DATA, _) => raw = field.value,
                    (FLOAT_DATA, 1) | (DOUBLE_DATA, 11) => typed.extend_from_slice(field.value),
                    (INT32_DATA, 10 | 16) => half_words(&name, field.value, field.has_length, &mut typed)?,
                    _ => {}
                }
            }
            if raw.is_empty() { &typed } else { raw }
        };
        if raw.len() != size_bytes {
            return wrong_size(raw.len());
        }
        let values = match self.head.data_type {
            1 => raw.as_chunks().0.iter().map(|w| f32::from_le_bytes(*w)).collect(),
            10 => raw.as_chunks().0.iter().map(|w| half::f16::from_le_bytes(*w).to_f32()).collect(),
            16 => raw.as_chunks().0.iter().map(|w| half::bf16::from_le_bytes(*w).to_f32()).collect(),
            _ => doubles(&name, raw)?,
        };
        Tensor::floats(shape, values)
    }
}

impl StoredTensor<'_> {
    /// The same tensor with its content in the message, where it lies in another file.
    ///
    /// # Errors
    /// [`InvalidFile`](ErrorKind::InvalidFile) if the file is not there or has not what is claimed of it.
    pub(super) fn inlined(&self, files: &ExternalFiles) -> Result<Vec<u8>> {
        const EXTERNAL_DATA: u64 = 13;
        const DATA_LOCATION: u64 = 14;
        let name = format!("initializer {}", self.head.name);
        let width = match self.head.data_type {
            2 | 3 | 9 => 1,
            4 | 5 | 10 | 16 => 2,
            1 | 6 | 12 => 4,
            7 | 11 | 13 => 8,
            other => bail!(Unsupported, "{name}: type {} in another file is not read", type_name(other)),
        };
        let sizes = self.head.dims.iter().map(|&d| usize::try_from(d).ok());
        let size_bytes = sizes.chain([Some(width)]).try_fold(1usize, |n, size| n.checked_mul(size?));
        let Some(size_bytes) = size_bytes else {
            bail!(InvalidFile, "{name}: expected sizes of axes whose product fits, found others");
        };
        let mut message = Vec::new();
        for field in wire::fields(&name, self.message)? {
            if !matches!(field.number, EXTERNAL_DATA | DATA_LOCATION | RAW_DATA) {
                message.extend_from_slice(field.raw);
            }
        }
        wire::push(&mut message, RAW_DATA, &files.read(&name, &self.head, size_bytes)?);
        Ok(message)
    }

    /// Shape and values of a type of integers, or bool.
    ///
    /// # Errors
    /// [`InvalidFile`](ErrorKind::InvalidFile) if the content is not of the size that the shape asks for.
    pub(super) fn integers(&self, files: &ExternalFiles) -> Result<Tensor> {
        const INT64_DATA: u64 = 7;
        let name = format!("initializer {}", self.head.name);
        let width = match self.head.data_type {
            7 => 8,
            6 => 4,
            _ => 1,
        };
        let shape: Option<Vec<usize>> = self.head.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        let elements = shape.as_ref().and_then(|s| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d)));
        let words = |bytes: &[u8]| -> Vec<i64> {
            match width {
                8 => bytes.as_chunks().0.iter().map(|w| i64::from_le_bytes(*w)).collect(),
                4 => bytes.as_chunks().0.iter().map(|w| i32::from_le_bytes(*w).into()).collect(),
                _ if self.head.data_type == 3 => bytes.iter().map(|&b| i64::from(b as i8)).collect(),
                _ => bytes.iter().map(|&b| b.into()).collect(),
            }
        };
        let mut values: Vec<i64> = Vec::new();
        if let (Some(_), Some(size_bytes)) = (self.external(), elements.and_then(|n| n.checked_mul(width))) {
            values = words(&files.read(&name, &self.head, size_bytes)?);
        }
        for field in wire::fields(&name, self.message)? {
            match field.number {
                RAW_DATA if field.value.len() % width == 0 => values.extend(words(field.value)),
                RAW_DATA => {
                    bail!(InvalidFile, "{name}: expected elements of {width} bytes, found {} bytes", field.value.len())
                }
                INT64_DATA | INT32_DATA => {
                    let mut rest = field.value;
                    while let Some(value) = wire::varint(&mut rest) {
                        values.push(value as i64);
                    }
                }
                _ => {}
            }
        }
        let (Some(shape), true) = (shape, elements == Some(values.len())) else {
            bail!(
                InvalidFile,
                "{name}: expected {} elements, found {}",
                elements.map_or("a possible number of".to_owned(), |n| n.to_string()),
                values.len()
            );
        };
        let data = match self.head.data_type {
            2 => TensorData::U8(values.iter().map(|&v| v as u8).collect()),
            3 => TensorData::I8(values.iter().map(|&v| v as i8).collect()),
            9 => TensorData::Bool(values.iter().map(|&v| v != 0).collect()),
            _ => TensorData::I64(values),
        };
        Tensor::new(shape, data)
    }
}

/// The halves that ONNX stores as varints of int32 data, packed or one by one.
fn half_words(name: &str, value: &[u8], packed: bool, out: &mut Vec<u8>) -> Result<()> {
    let mut rest = value;
    while !rest.is_empty() {
        let size = rest.iter().position(|b| *b < 0x80).map_or(rest.len(), |n| n + 1);
        let (word, after) = rest.split_at(size);
        let number = word.iter().rev().fold(0u64, |n, b| n << 7 | u64::from(b & 0x7f));
        let Ok(half) = u16::try_from(number) else {
            bail!(InvalidFile, "{name}: expected 16-bit words, found {number}");
        };
        out.extend_from_slice(&half.to_le_bytes());
        rest = after;
        if !packed {
            break;
        }
    }
    Ok(())
}

fn doubles(name: &str, raw: &[u8]) -> Result<Vec<f32>> {
    let mut values = Vec::with_capacity(raw.len() / 8);
    for word in raw.as_chunks().0 {
        let wide = f64::from_le_bytes(*word);
        if wide.is_finite() && !(wide as f32).is_finite() {
            bail!(InvalidWeights, "{name}: expected values that f32 can hold, found {wide:e}");
        }
        values.push(wide as f32);
    }
    Ok(values)
}

/// The folder that a model's external data lies in.
#[derive(Debug, Clone, Default)]
pub(super) struct ExternalFiles {
    folder: Option<PathBuf>,
}

impl ExternalFiles {
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// The path of a location, which must stay inside the model's folder.
    pub(super) fn path(&self, name: &str, location: &str) -> Result<PathBuf> {
        let Some(folder) = &self.folder else {
            bail!(
                Unsupported,
                "{name}: its data lies in another file, {location:?}; give the folder of the model \
                 (OnnxOptions::external_data), or load it from its file"
            );
        };
        let path = Path::new(location);
        if location.is_empty() || !path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
            bail!(InvalidFile, "{name}: expected a data file inside the model's folder, found {location:?}");
        }
        // A link in the folder must not lead out of it, nor to something that never ends.
        let resolved = |path: &Path| {
            path.canonicalize()
                .map_err(|e| Error::new(ErrorKind::InvalidFile, format!("{name}: {}: {e}", path.display())))
        };
        let (folder, file) = (resolved(folder)?, resolved(&folder.join(path))?);
        if !file.starts_with(&folder) || !file.is_file() {
            bail!(InvalidFile, "{name}: expected a data file inside the model's folder, found {location:?}");
        }
        Ok(file)
    }

    /// The bytes of a tensor in a file, as its entries `location`, `offset` and `length` say.
    fn read(&self, name: &str, head: &TensorHead, size_bytes: usize) -> Result<Vec<u8>> {
        use std::io::{Read, Seek, SeekFrom};
        let entry = |key: &str| head.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let number = |key: &str, default: u64| match entry(key).map(str::parse::<u64>) {
            None => Ok(default),
            Some(Ok(n)) => Ok(n),
            Some(Err(_)) => bail!(InvalidFile, "{name}: {key}: expected a number, found {:?}", entry(key)),
        };
        let (offset, length) = (number("offset", 0)?, number("length", size_bytes as u64)?);
        let path = self.path(name, entry("location").unwrap_or_default())?;
        let failed = |e: std::io::Error| Error::new(ErrorKind::InvalidFile, format!("{name}: {}: {e}", path.display()));
        let mut file = std::fs::File::open(&path).map_err(failed)?;
        let available = file.metadata().map_err(failed)?.len().saturating_sub(offset);
        if length != size_bytes as u64 || available < length {
            bail!(
                InvalidFile,
                "{name}: expected {size_bytes} bytes from {offset} of {}, found length {length} and {available} bytes",
                path.display()
            );
        }
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut bytes = vec![0; size_bytes];
        file.read_exact(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }
}
