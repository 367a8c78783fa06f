//! Tensors that a model holds, in its bytes or in files beside it.

use std::path::{Component, Path, PathBuf};

use super::element::{Element, ElementType};
use super::proto::TensorHead;
use super::tensor::{Tensor, TensorData, type_name};
use super::{proto, wire};
use crate::error::{Error, ErrorKind, Result, bail};

/// A tensor in the model's bytes.
#[derive(Debug, Clone)]
pub(super) struct StoredTensor<'a> {
    pub(super) head: TensorHead,
    message: &'a [u8],
}

/// Fields of `TensorProto` that hold elements.
mod content {
    pub(super) const FLOAT: u64 = 4;
    pub(super) const INT32: u64 = 5;
    pub(super) const INT64: u64 = 7;
    pub(super) const RAW: u64 = 9;
    pub(super) const DOUBLE: u64 = 10;
    pub(super) const UINT64: u64 = 11;
}

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
    fn external(&self) -> Option<&str> {
        let entry = |key: &str| self.head.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        if self.head.data_location == 1 { Some(entry("location").unwrap_or_default()) } else { None }
    }

    /// The tensor, its elements in their own type.
    ///
    /// # Errors
    /// [`InvalidFile`](ErrorKind::InvalidFile) if the content is not of the size that the shape asks for;
    /// [`Unsupported`](ErrorKind::Unsupported) if its type is not read.
    pub(super) fn tensor(&self, files: &ExternalFiles) -> Result<Tensor> {
        let name = format!("initializer {}", self.head.name);
        let shape: Option<Vec<usize>> = self.head.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        let elements = shape.as_ref().and_then(|s| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d)));
        let (Some(shape), Some(elements)) = (shape, elements) else {
            bail!(InvalidFile, "{name}: expected sizes of axes whose product fits, found others");
        };
        let Some(element) = ElementType::of(self.head.data_type) else {
            bail!(Unsupported, "{name}: type {} is not computed", type_name(self.head.data_type));
        };
        let width = element.size_bytes();
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
                use ElementType as E;
                match (field.number, element) {
                    (content::RAW, _) => raw = field.value,
                    (content::FLOAT, E::F32) | (content::DOUBLE, E::F64) => typed.extend_from_slice(field.value),
                    (content::INT32, E::F32 | E::F64 | E::I64 | E::U32 | E::U64) => {}
                    (content::INT32, _) | (content::INT64, E::I64) | (content::UINT64, E::U32 | E::U64) => {
                        words(&name, field.value, field.has_length, element, &mut typed)?;
                    }
                    _ => {}
                }
            }
            if raw.is_empty() { &typed } else { raw }
        };
        if raw.len() != size_bytes {
            return wrong_size(raw.len());
        }
        Tensor::new(shape, elements_of(element, raw))
    }
}

/// Elements from their little-endian bytes.
fn elements_of(element: ElementType, raw: &[u8]) -> TensorData {
    fn read<const N: usize, T: Element>(raw: &[u8], from: impl Fn([u8; N]) -> T) -> TensorData {
        T::wrap(raw.as_chunks().0.iter().map(|w| from(*w)).collect())
    }
    match element {
        ElementType::F32 => read(raw, f32::from_le_bytes),
        ElementType::F64 => read(raw, f64::from_le_bytes),
        ElementType::F16 => read(raw, half::f16::from_le_bytes),
        ElementType::BF16 => read(raw, half::bf16::from_le_bytes),
        ElementType::I8 => read(raw, i8::from_le_bytes),
        ElementType::I16 => read(raw, i16::from_le_bytes),
        ElementType::I32 => read(raw, i32::from_le_bytes),
        ElementType::I64 => read(raw, i64::from_le_bytes),
        ElementType::U8 => read(raw, u8::from_le_bytes),
        ElementType::U16 => read(raw, u16::from_le_bytes),
        ElementType::U32 => read(raw, u32::from_le_bytes),
        ElementType::U64 => read(raw, u64::from_le_bytes),
        ElementType::Bool => read(raw, |[byte]: [u8; 1]| byte != 0),
    }
}

/// Appends the elements that ONNX stores as varints, packed or one by one, as little-endian bytes.
fn words(name: &str, value: &[u8], packed: bool, element: ElementType, out: &mut Vec<u8>) -> Result<()> {
    let width = element.size_bytes();
    let mut rest = value;
    while let Some(word) = wire::varint(&mut rest) {
        let fits = match element {
            ElementType::I8 | ElementType::I16 | ElementType::I32 => {
                let bits = 8 * width as u32;
                // A negative int32 is a varint of 64 bits, or of 32 where a writer was careless.
                let wide = if element == ElementType::I32 { i64::from(word as i32) } else { word as i64 };
                let fits = wide >= -(1 << (bits - 1)) && wide < 1 << (bits - 1);
                fits && (element != ElementType::I32 || word as i64 == wide || u32::try_from(word).is_ok())
            }
            _ => width == 8 || word < 1 << (8 * width),
        };
        if !fits {
            bail!(InvalidFile, "{name}: expected elements of type {}, found {}", element.name(), word as i64);
        }
        out.extend_from_slice(&word.to_le_bytes()[..width]);
        if !packed {
            break;
        }
    }
    Ok(())
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
