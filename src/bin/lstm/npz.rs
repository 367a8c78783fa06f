//! Numpy arrays in and out: `.npz` and `.npy`.
//!
//! In:  floats of 16, 32 and 64 bits and integers, either byte order, C or Fortran order, stored or deflated.
//! Out: [`Array`]: C order. Sizes are checked against the file before memory is taken for them.
//! Not here: what the arrays mean (`input`, `run`).

use std::fs::File;
use std::io::{BufReader, BufWriter, Cursor, Read, Seek, SeekFrom, Write};
use std::path::Path;

use npyz::npz::{NpzWriter, array_name_from_file_name, file_name_from_array_name};
use npyz::zip::ZipArchive;
use npyz::zip::result::ZipError;
use npyz::zip::write::FileOptions;
use npyz::{DType, Deserialize, NpyFile, NpyHeader, Order, TypeChar, WriterBuilder};

use crate::common::failure::{Failure, Result, fail};

/// An array in C order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array {
    /// Slowest axis first.
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Data,
}

/// The elements of an [`Array`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Data {
    /// float16 and float32.
    F32(Vec<f32>),
    F64(Vec<f64>),
    /// All integer types and bool.
    Int(Vec<i64>),
    /// uint64 where a number is beyond int64.
    Uint(Vec<u64>),
}

impl Array {
    /// The elements as f32. Integers and numbers beyond the range of f32 are refused.
    pub(crate) fn into_f32(self, name: &str) -> Result<Vec<f32>> {
        match self.data {
            Data::F32(values) => Ok(values),
            Data::F64(values) => {
                let overflows = |v: &f64| v.is_finite() && (*v as f32).is_infinite();
                if let Some(i) = values.iter().position(overflows) {
                    fail!("{name}: expected numbers within the range of float32, found {:e} at element {i}", values[i]);
                }
                Ok(values.into_iter().map(|v| v as f32).collect())
            }
            Data::Int(_) | Data::Uint(_) => {
                fail!("{name}: expected floating point, found integers; convert with astype(\"float32\")")
            }
        }
    }

    /// The elements as f64, integers too.
    pub(crate) fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(values) => values.iter().map(|&v| v.into()).collect(),
            Data::F64(values) => values.clone(),
            Data::Int(values) => values.iter().map(|&v| v as f64).collect(),
            Data::Uint(values) => values.iter().map(|&v| v as f64).collect(),
        }
    }
}

/// A `.npz` file, or a `.npy` file whose only array has the name given by the reader; told apart by content.
pub(crate) struct ArrayFile {
    path: String,
    kind: Kind,
}

enum Kind {
    Npz { zip: ZipArchive<Source>, file_bytes: u64 },
    Npy { name: String, reader: Source, file_bytes: u64 },
}

/// A file, or all of the standard input.
type Source = Box<dyn ReadSeek>;

trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

/// The name of the standard input and output.
const STANDARD: &str = "-";

impl ArrayFile {
    /// Opens the file; `single` names the array of a `.npy` file.
    pub(crate) fn open(path: &Path, single: &str) -> Result<Self> {
        let named = |failure: Failure| failure.context(path.display());
        let kind = Kind::open(path, single).map_err(named)?;
        Ok(Self { path: path.display().to_string(), kind })
    }

    /// The names of all arrays, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        match &self.kind {
            Kind::Npz { zip, .. } => {
                let mut names: Vec<String> =
                    zip.file_names().filter_map(array_name_from_file_name).map(str::to_owned).collect();
                names.sort_unstable();
                names
            }
            Kind::Npy { name, .. } => vec![name.clone()],
        }
    }

    /// Reads an array; `None` if the file has none of this name.
    pub(crate) fn read(&mut self, name: &str) -> Result<Option<Array>> {
        let array = match &mut self.kind {
            Kind::Npz { zip, file_bytes } => read_entry(zip, *file_bytes, name),
            Kind::Npy { name: single, reader, file_bytes } if *single == name => {
                let size_bytes = *file_bytes;
                reader.seek(SeekFrom::Start(0)).map_err(unreadable).and_then(|_| read_npy(reader, size_bytes)).map(Some)
            }
            Kind::Npy { .. } => Ok(None),
        };
        array.map_err(|f| f.context(format!("{}: {name}", self.path)))
    }
}

impl Kind {
    fn open(path: &Path, single: &str) -> Result<Self> {
        let (mut reader, file_bytes): (Source, u64) = if path == Path::new(STANDARD) {
            let bytes = read_standard_input()?;
            let count = bytes.len() as u64;
            (Box::new(Cursor::new(bytes)), count)
        } else {
            // Before it is opened: a pipe without a writer would wait for ever.
            let metadata = std::fs::metadata(path).map_err(unreadable)?;
            match metadata.file_type() {
                kind if kind.is_dir() => fail!("expected a .npz or .npy file, found a directory"),
                kind if !kind.is_file() => {
                    fail!("expected a .npz or .npy file, found a pipe or device; use - for the standard input")
                }
                _ => {}
            }
            (Box::new(BufReader::new(File::open(path).map_err(unreadable)?)), metadata.len())
        };
        let mut magic = Vec::new();
        reader.by_ref().take(6).read_to_end(&mut magic).map_err(unreadable)?;
        reader.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        if magic == *b"\x93NUMPY" {
            return Ok(Kind::Npy { name: single.to_owned(), reader, file_bytes });
        }
        if !magic.starts_with(b"PK") {
            fail!("not a .npz or .npy file");
        }
        match ZipArchive::new(reader) {
            Ok(zip) => Ok(Kind::Npz { zip, file_bytes }),
            Err(e) => fail!("not a complete .npz file: {e}"),
        }
    }
}

/// All of the standard input, which may not be endless.
fn read_standard_input() -> Result<Vec<u8>> {
    const MOST_BYTES: u64 = 16 << 30;
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MOST_BYTES {
        fail!("expected at most {MOST_BYTES} bytes, found more");
    }
    Ok(bytes)
}

fn unreadable(error: std::io::Error) -> Failure {
    Failure::Data(format!("cannot be read: {error}"))
}

fn damaged(error: impl std::fmt::Display) -> Failure {
    Failure::Data(format!("damaged: {error}"))
}

fn read_entry(zip: &mut ZipArchive<Source>, file_bytes: u64, name: &str) -> Result<Option<Array>> {
    /// Deflate turns at most 1032 bytes into one (RFC 1951: 258 bytes for two bits).
    const MOST_PER_BYTE: u64 = 1032;
    let entry = match zip.by_name(&file_name_from_array_name(name)) {
        Ok(entry) => entry,
        Err(ZipError::FileNotFound) => return Ok(None),
        Err(e) => return Err(damaged(e)),
    };
    let size_bytes = entry.size();
    if entry.compressed_size() > file_bytes || size_bytes > entry.compressed_size().saturating_mul(MOST_PER_BYTE) {
        fail!("damaged: it claims {size_bytes} bytes, more than the file can hold");
    }
    read_npy(BufReader::new(entry), size_bytes).map(Some)
}

/// Reads a `.npy` file that has `size_bytes` by the account of what contains it.
fn read_npy(mut reader: impl Read, size_bytes: u64) -> Result<Array> {
    let head = read_head(&mut reader)?;
    let header = NpyHeader::from_reader(&head[..]).map_err(damaged)?;
    if header.uses_pickled_array() {
        fail!("expected numbers, found Python objects");
    }
    let dtype = header.dtype();
    let DType::Plain(kind) = &dtype else { fail!("expected numbers, found a structured type {}", dtype.descr()) };
    let element_bytes = kind.size_field();
    let shape: Option<Vec<usize>> = header.shape().iter().map(|&n| usize::try_from(n).ok()).collect();
    let elements = header.shape().iter().try_fold(1u64, |n, &axis| n.checked_mul(axis));
    let claimed = elements.and_then(|n| n.checked_mul(element_bytes));
    let room = size_bytes.saturating_sub(head.len() as u64);
    let (Some(shape), Some(claimed)) = (shape, claimed) else {
        fail!("damaged: shape {:?} is too large", header.shape())
    };
    if claimed != room {
        fail!("damaged: shape {shape:?} of {} takes {claimed} bytes, found {room}", dtype.descr());
    }

    let of = Elements { header: &header, shape: &shape };
    let data = match (kind.type_char(), element_bytes) {
        (TypeChar::Float, 2) => Data::F32(of.read(&mut reader, half::f16::to_f32)?),
        (TypeChar::Float, 4) => Data::F32(of.read(&mut reader, |v: f32| v)?),
        (TypeChar::Float, 8) => Data::F64(of.read(&mut reader, |v: f64| v)?),
        (TypeChar::Bool, 1) => Data::Int(of.read(&mut reader, |v: bool| v.into())?),
        (TypeChar::Int, 1) => Data::Int(of.read(&mut reader, |v: i8| v.into())?),
        (TypeChar::Int, 2) => Data::Int(of.read(&mut reader, |v: i16| v.into())?),
        (TypeChar::Int, 4) => Data::Int(of.read(&mut reader, |v: i32| v.into())?),
        (TypeChar::Int, 8) => Data::Int(of.read(&mut reader, |v: i64| v)?),
        (TypeChar::Uint, 1) => Data::Int(of.read(&mut reader, |v: u8| v.into())?),
        (TypeChar::Uint, 2) => Data::Int(of.read(&mut reader, |v: u16| v.into())?),
        (TypeChar::Uint, 4) => Data::Int(of.read(&mut reader, |v: u32| v.into())?),
        (TypeChar::Uint, 8) => {
            let values = of.read(&mut reader, |v: u64| v)?;
            let small: Option<Vec<i64>> = values.iter().map(|&v| i64::try_from(v).ok()).collect();
            small.map_or(Data::Uint(values), Data::Int)
        }
        _ => fail!("expected floating point or integers, found type {}", dtype.descr()),
    };
    // A zip entry checks its sum when its end is read.
    match reader.read(&mut [0]) {
        Ok(0) => Ok(Array { shape, data }),
        Ok(_) => fail!("damaged: more data than the header claims"),
        Err(e) => Err(damaged(e)),
    }
}

/// Reads magic, version and header, and refuses what no array of numbers needs: the parser behind takes memory
/// for whatever length it is told, recurses with the brackets and multiplies the sizes unchecked.
fn read_head(reader: &mut impl Read) -> Result<Vec<u8>> {
    const LONGEST: usize = 1 << 16;
    const MOST_BRACKETS: usize = 16;
    let early = |_| Failure::Data("damaged: it ends within its header".into());
    let mut head = vec![0; 8];
    reader.read_exact(&mut head).map_err(early)?;
    if head[..6] != *b"\x93NUMPY" {
        fail!("damaged: expected a numpy array, found something else");
    }
    let mut size = [0; 4];
    let size_bytes = if head[6] == 1 { 2 } else { 4 };
    reader.read_exact(&mut size[..size_bytes]).map_err(early)?;
    head.extend_from_slice(&size[..size_bytes]);
    let length = u32::from_le_bytes(size) as usize;
    if length > LONGEST {
        fail!("damaged: a header of {length} bytes");
    }
    let start = head.len();
    head.resize(start + length, 0);
    reader.read_exact(&mut head[start..]).map_err(early)?;

    let text = String::from_utf8_lossy(&head[start..]);
    if text.matches(['(', '[', '{']).count() > MOST_BRACKETS {
        fail!("expected numbers, found a structured type");
    }
    // The product of all integers in the header bounds that of the shape.
    let mut product = 1u64;
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    for word in words.filter(|w| w.starts_with(|c: char| c.is_ascii_digit())) {
        let factor = word.parse::<u64>().ok().map(|n| n.max(1));
        match factor.and_then(|n| product.checked_mul(n)) {
            Some(n) => product = n,
            None => fail!("damaged: its sizes are too large: {}", text.trim()),
        }
    }
    Ok(head)
}

/// What the header says of the elements that follow it.
struct Elements<'a> {
    header: &'a NpyHeader,
    shape: &'a [usize],
}

impl Elements<'_> {
    /// All elements in C order.
    fn read<T: Deserialize, U: Copy>(&self, reader: impl Read, convert: impl Fn(T) -> U) -> Result<Vec<U>> {
        let count: usize = self.shape.iter().product();
        let mut values = Vec::new();
        if values.try_reserve_exact(count).is_err() {
            fail!("out of memory: {count} elements");
        }
        for value in NpyFile::with_header(self.header.clone(), reader).data::<T>().map_err(damaged)? {
            values.push(convert(value.map_err(damaged)?));
        }
        Ok(match self.header.order() {
            Order::C => values,
            Order::Fortran => to_c_order(&values, self.shape),
        })
    }
}

/// Fortran order → C order.
fn to_c_order<T: Copy>(values: &[T], shape: &[usize]) -> Vec<T> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = 1;
    for &size in shape {
        strides.push(stride);
        stride *= size;
    }
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    let mut ordered = Vec::with_capacity(values.len());
    for _ in 0..values.len() {
        ordered.push(values[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    ordered
}

/// An array to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output<'a> {
    pub(crate) name: &'a str,
    pub(crate) shape: &'a [usize],
    pub(crate) values: Values<'a>,
}

/// The elements of an array to write.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Values<'a> {
    F16(&'a [half::f16]),
    F32(&'a [f32]),
    F64(&'a [f64]),
    I8(&'a [i8]),
    I16(&'a [i16]),
    I32(&'a [i32]),
    I64(&'a [i64]),
    U8(&'a [u8]),
    U16(&'a [u16]),
    U32(&'a [u32]),
    U64(&'a [u64]),
    Bool(&'a [bool]),
}

/// Binds the slice of any type of element to a name.
macro_rules! with_slice {
    ($values:expr, $slice:ident => $body:expr) => {
        match $values {
            Values::F16($slice) => $body,
            Values::F32($slice) => $body,
            Values::F64($slice) => $body,
            Values::I8($slice) => $body,
            Values::I16($slice) => $body,
            Values::I32($slice) => $body,
            Values::I64($slice) => $body,
            Values::U8($slice) => $body,
            Values::U16($slice) => $body,
            Values::U32($slice) => $body,
            Values::U64($slice) => $body,
            Values::Bool($slice) => $body,
        }
    };
}

/// Writes all arrays as `.npz`, or the first alone if the path ends in `.npy`.
pub(crate) fn write(path: &Path, arrays: &[Output<'_>]) -> Result<()> {
    if path == Path::new(STANDARD) {
        let mut bytes = Cursor::new(Vec::new());
        let written = write_npz(NpzWriter::new(&mut bytes), arrays);
        let written = written.and_then(|()| std::io::stdout().lock().write_all(bytes.get_ref()));
        return written.map_err(|e| Failure::Data(format!("standard output: cannot be written: {e}")));
    }
    let written = if path.extension().is_some_and(|e| e == "npy") {
        write_npy(path, &arrays[0])
    } else {
        NpzWriter::create(path).and_then(|npz| write_npz(npz, arrays))
    };
    written.map_err(|e| Failure::Data(format!("{}: cannot be written: {e}", path.display())))
}

fn write_npy(path: &Path, array: &Output<'_>) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let shape: Vec<u64> = array.shape.iter().map(|&n| n as u64).collect();
    with_slice!(array.values, values => {
        let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(&mut file).begin_nd()?;
        writer.extend(values)?;
        writer.finish()?;
    });
    file.flush()
}

fn write_npz<W: Write + Seek>(mut npz: NpzWriter<W>, arrays: &[Output<'_>]) -> std::io::Result<()> {
    for array in arrays {
        let shape: Vec<u64> = array.shape.iter().map(|&n| n as u64).collect();
        // Stored, as numpy.savez does; a fixed date, so that equal arrays give equal files.
        let options = FileOptions::default()
            .compression_method(npyz::zip::CompressionMethod::Stored)
            .last_modified_time(npyz::zip::DateTime::default())
            .large_file(array.shape.iter().product::<usize>() > (1 << 28));
        with_slice!(array.values, values => {
            let mut writer = npz.array(array.name, options)?.default_dtype().shape(&shape).begin_nd()?;
            writer.extend(values)?;
            writer.finish()?;
        });
    }
    npz.zip_writer().finish()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A file in the system's folder for such, removed at the end.
    struct Temporary(PathBuf);

    impl Temporary {
        fn new(name: &str, bytes: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("lstm-npz-{}-{name}", std::process::id()));
            std::fs::write(&path, bytes).unwrap();
            Self(path)
        }

        fn read(&self, name: &str) -> Result<Option<Array>> {
            ArrayFile::open(&self.0, "x")?.read(name)
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// A version 1 `.npy` file.
    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&u16::try_from(header.len() + 1).unwrap().to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        bytes.push(b'\n');
        bytes.extend_from_slice(data);
        bytes
    }

    fn dict(descr: &str, fortran: &str, shape: &str) -> String {
        format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}")
    }

    fn error(header: &str, data: &[u8]) -> String {
        let file = Temporary::new(&format!("{:x}", header.len() * 1000 + data.len()), &npy(header, data));
        file.read("x").unwrap_err().to_string()
    }

    #[test]
    fn types_and_byte_orders_are_read() {
        let read = |descr: &str, data: &[u8]| {
            let file = Temporary::new(&format!("type-{}", &descr[1..]), &npy(&dict(descr, "False", "(2,)"), data));
            let array = file.read("x").unwrap().unwrap();
            assert_eq!(array.shape, [2]);
            array.data
        };
        assert_eq!(read("<f4", &[0, 0, 128, 63, 0, 0, 0, 192]), Data::F32(vec![1.0, -2.0]));
        assert_eq!(read(">f4", &[63, 128, 0, 0, 192, 0, 0, 0]), Data::F32(vec![1.0, -2.0]));
        assert_eq!(read("<f2", &[0, 60, 0, 192]), Data::F32(vec![1.0, -2.0]));
        let doubles = [1.0f64.to_be_bytes(), (-2.5f64).to_be_bytes()].concat();
        assert_eq!(read(">f8", &doubles), Data::F64(vec![1.0, -2.5]));
        assert_eq!(read("<i4", &[3, 0, 0, 0, 255, 255, 255, 255]), Data::Int(vec![3, -1]));
        assert_eq!(read("|u1", &[3, 200]), Data::Int(vec![3, 200]));
        let large = [7u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat();
        assert_eq!(read("<u8", &large), Data::Uint(vec![7, u64::MAX]));
        assert_eq!(read("<u8", &7u64.to_le_bytes().repeat(2)), Data::Int(vec![7, 7]));
    }

    #[test]
    fn fortran_order_is_turned() {
        // arange(6).reshape(2, 3), column after column.
        let file = Temporary::new("fortran", &npy(&dict("|i1", "True", "(2, 3)"), &[0, 3, 1, 4, 2, 5]));
        assert_eq!(file.read("x").unwrap().unwrap().data, Data::Int(vec![0, 1, 2, 3, 4, 5]));
        let shape = [2, 3, 4];
        let c_order: Vec<usize> = (0..24).collect();
        let fortran: Vec<usize> = (0..24).map(|n| n % 2 * 12 + n / 2 % 3 * 4 + n / 6).collect();
        assert_eq!(to_c_order(&fortran, &shape), c_order);
    }

    #[test]
    fn what_is_written_reads_back() {
        let x: Vec<f32> = (0..24).map(|n| n as f32 - 7.5).collect();
        let output = |name, shape| Output { name, shape, values: Values::F32(&x) };
        for name in ["round.npz", "round.npy"] {
            let file = Temporary::new(name, b"");
            write(&file.0, &[output("x", &[2, 3, 4]), output("h_n", &[24])]).unwrap();
            let array = file.read("x").unwrap().unwrap();
            assert_eq!(array, Array { shape: vec![2, 3, 4], data: Data::F32(x.clone()) });
            assert_eq!(file.read("h_n").unwrap().is_some(), name == "round.npz");
            assert_eq!(file.read("c_n").unwrap(), None);
        }
        let empty = Temporary::new("empty.npz", b"");
        write(&empty.0, &[Output { name: "x", shape: &[0, 5, 3], values: Values::F32(&[]) }]).unwrap();
        assert_eq!(empty.read("x").unwrap().unwrap().shape, [0, 5, 3]);
        let nowhere = empty.0.join("no").join("such.npz");
        assert!(write(&nowhere, &[]).unwrap_err().to_string().contains("cannot be written"));
    }

    #[test]
    fn claims_beyond_the_file_are_refused_before_memory_is_taken() {
        for shape in
            ["(1000000000000,)", "(4294967295, 4294967295, 4294967295)", "(18446744073709551616,)", "(3,)", "(1,)"]
        {
            let message = error(&dict("<f4", "False", shape), &[0; 8]);
            assert!(message.contains("damaged"), "{shape}: {message}");
        }
        let deep = format!("{}{}", "(".repeat(50_000), ")".repeat(10_000));
        assert!(error(&deep, &[]).contains("structured"));
    }

    #[test]
    fn other_contents_are_refused_by_name() {
        for (descr, needle) in
            [("|O", "Python objects"), ("<c8", "<c8"), ("|b1", "|b1"), ("<M8[ns]", "M8"), ("<U3", "<U3")]
        {
            let message = error(&dict(descr, "False", "(1,)"), &[0; 12]);
            assert!(message.contains(needle) || message.contains("takes"), "{descr}: {message}");
        }
        for bytes in [&b""[..], b"PK", b"PK\x03\x04 not a zip", b"hello", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{"] {
            let file = Temporary::new(&format!("other-{}", bytes.len()), bytes);
            let message = file.read("x").unwrap_err().to_string();
            assert!(message.contains("not a") || message.contains("damaged"), "{message}");
        }
        assert!(ArrayFile::open(&std::env::temp_dir(), "x").err().unwrap().to_string().contains("directory"));
    }

    #[test]
    fn no_damage_panics() {
        let file = Temporary::new("damage.npz", b"");
        write(&file.0, &[Output { name: "x", shape: &[2, 3], values: Values::F32(&[0.5; 6]) }]).unwrap();
        let good = std::fs::read(&file.0).unwrap();
        for at in 0..good.len() {
            for flip in [0xff, 0x01, 0x80] {
                let mut bytes = good.clone();
                bytes[at] ^= flip;
                std::fs::write(&file.0, &bytes).unwrap();
                if let Ok(Some(array)) = file.read("x") {
                    assert_eq!(array.data, Data::F32(vec![0.5; 6]), "byte {at} ^ {flip:#x} went unnoticed");
                }
            }
            std::fs::write(&file.0, &good[..at]).unwrap();
            assert!(file.read("x").is_err(), "cut at {at}");
        }
    }

    #[test]
    fn doubles_beyond_f32_are_refused() {
        let array = |v: f64| Array { shape: vec![2], data: Data::F64(vec![1.0, v]) };
        assert!(array(1e39).into_f32("x").unwrap_err().to_string().contains("x: expected numbers within"));
        assert!(array(f64::INFINITY).into_f32("x").unwrap()[1].is_infinite(), "left to the check of finiteness");
        assert_eq!(array(0.1).into_f32("x").unwrap(), [1.0, 0.1]);
        assert!(Array { shape: vec![1], data: Data::Int(vec![1]) }.into_f32("x").is_err());
    }

    /// Truncated and changed files give arrays or an error, in bounded time and memory.
    #[test]
    fn damaged_files_never_panic() {
        let file = Temporary::new("damaged.npz", &[]);
        let x: Vec<f32> = (0..60).map(|i| i as f32).collect();
        let output = |name, shape, values| Output { name, shape, values };
        let arrays = [output("x", &[4, 5, 3], Values::F32(&x)), output("lengths", &[4], Values::I64(&[5, 2, 0, 1]))];
        write(&file.0, &arrays).unwrap();
        let whole = std::fs::read(&file.0).unwrap();
        let mut state = 7u64;
        let mut below = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let (mut refused, mut read) = (0, 0);
        for n in 0..3000 {
            let mut bytes = whole.clone();
            if n % 5 == 0 {
                bytes.truncate(below(whole.len()));
            } else {
                for _ in 0..1 + below(3) {
                    let at = below(bytes.len());
                    bytes[at] = below(256) as u8;
                }
            }
            std::fs::write(&file.0, &bytes).unwrap();
            let result =
                ArrayFile::open(&file.0, "x").and_then(|mut file| Ok((file.read("x")?, file.read("lengths")?)));
            if result.is_ok() { read += 1 } else { refused += 1 }
        }
        assert!(refused > 800 && read > 100, "{refused} refused, {read} read");
    }
}
