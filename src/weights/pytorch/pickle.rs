//! Stage 1, read: the pickle of a PyTorch checkpoint → plain data and descriptions of tensors; nothing is executed.
//!
//! In:  the bytes of a pickle, protocol 0 to 5.
//! Out: [`Pickle`]: nodes that refer to each other by number, strings that borrow from the bytes.
//! A pickle is a program for a stack machine that may call any function of any module. Here the functions are those
//! of [`GLOBALS`], of which a state dict is made, each described by what it would return; what any other would make is
//! an [`Object`], known by its class alone. Time is linear in the bytes, memory bounded by [`MAX_VALUES`]; nothing
//! recurses.
//! Not here: the bytes of the tensors, names (`pytorch`).
//! Opcodes: [pickletools.py](https://github.com/python/cpython/blob/main/Lib/pickletools.py).

use std::collections::{BTreeMap, HashMap};

use crate::error::{Result, bail};
use crate::weights::source::shown;
use crate::weights::tensor::ElementType;

/// The most values and memo entries that a pickle may make; about a hundred bytes each at worst.
const MAX_VALUES: usize = 1 << 22;

/// The most tensors; about a thousand bytes each at worst.
pub(super) const MAX_TENSORS: usize = 1 << 16;

/// The longest name of a module or class, in bytes.
const MAX_NAME: usize = 1024;

/// More than any of [`GLOBALS`] takes; those beyond are not looked at.
const MAX_ARGUMENTS: usize = 16;

/// PyTorch's own limit on axes.
const MAX_AXES: usize = 64;

/// What is on the stack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    /// Data that no tensor depends on: None, a float, bytes, a set ...
    Plain,
    Bool(bool),
    Int(i64),
    Str(&'a str),
    Global(Global),
    /// The number of a node.
    Node(usize),
}

/// What values refer to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node<'a> {
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    Dict {
        ordered: bool,
        entries: Vec<(Value<'a>, Value<'a>)>,
    },
    Storage(Box<Storage<'a>>),
    Tensor(Box<TensorView<'a>>),
    /// A function or class that is not one of [`GLOBALS`].
    Class(Class<'a>),
    Object(Box<Object<'a>>),
}

/// The name of a function or class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Class<'a> {
    pub(super) module: &'a str,
    pub(super) name: &'a str,
}

impl Class<'_> {
    /// Whether what it makes stands for a tensor.
    pub(super) fn makes_tensors(self) -> bool {
        self.module == "torch._utils" && self.name.starts_with("_rebuild")
    }
}

/// What a function or class that is not one of [`GLOBALS`] would make.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Object<'a> {
    pub(super) class: Class<'a>,
    /// What BUILD gives it, most often the dict of its attributes.
    pub(super) state: Option<Value<'a>>,
}

/// A persistent id: where a tensor's bytes are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Storage<'a> {
    /// `None` for bytes without a type.
    pub(super) element: Option<ElementType>,
    pub(super) key: Key<'a>,
    /// Of what is stored under the key; elements, or bytes if there is no type.
    pub(super) stored: usize,
    /// The part of it that this storage is.
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Storage<'_> {
    pub(super) fn element_bytes(&self) -> usize {
        self.element.map_or(1, ElementType::size_bytes)
    }
}

/// The name of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key<'a> {
    Name(&'a str),
    /// In the format before PyTorch 0.2.
    Number(i64),
}

/// The arguments of `_rebuild_tensor_v2`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorView<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) element: ElementType,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// The functions and classes that a state dict is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    /// (the factory of missing values); a dict.
    DefaultDict,
    /// (storage, offset, shape, strides)
    RebuildFirst,
    /// (storage, offset, shape, strides, requires_grad, hooks[, metadata])
    RebuildTensor,
    /// The same with the element type after the hooks.
    RebuildTypedTensor,
    /// (tensor, requires_grad, hooks[, state])
    RebuildParameter,
    /// (one of the functions above, class, its arguments, attributes)
    RebuildFromType,
    /// A class whose objects are tensors and nothing more.
    TensorClass,
    /// (shape), which is a tuple.
    Size,
    /// The type of a storage.
    Storage(Option<ElementType>),
    /// `torch.float32` and so on.
    Element(ElementType),
    /// Makes plain data out of plain data.
    Plain,
}

const fn other(name: &'static str, size_bytes: usize) -> ElementType {
    ElementType::Other { name, size_bytes }
}

#[rustfmt::skip]
const GLOBALS: &[(&str, &str, Global)] = &[
    ("collections", "OrderedDict", Global::OrderedDict),
    ("collections", "defaultdict", Global::DefaultDict),
    ("torch._utils", "_rebuild_tensor", Global::RebuildFirst),
    ("torch._utils", "_rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils", "_rebuild_tensor_v3", Global::RebuildTypedTensor),
    ("torch._utils", "_rebuild_parameter", Global::RebuildParameter),
    ("torch._utils", "_rebuild_parameter_with_state", Global::RebuildParameter),
    ("torch._tensor", "_rebuild_from_type_v2", Global::RebuildFromType),
    ("torch", "Tensor", Global::TensorClass),
    ("torch.nn.parameter", "Parameter", Global::TensorClass),
    ("torch.nn.parameter", "Buffer", Global::TensorClass),
    ("torch", "DoubleStorage", Global::Storage(Some(ElementType::F64))),
    ("torch", "FloatStorage", Global::Storage(Some(ElementType::F32))),
    ("torch", "HalfStorage", Global::Storage(Some(ElementType::F16))),
    ("torch", "BFloat16Storage", Global::Storage(Some(ElementType::Bf16))),
    ("torch", "LongStorage", Global::Storage(Some(ElementType::I64))),
    ("torch", "IntStorage", Global::Storage(Some(ElementType::I32))),
    ("torch", "ShortStorage", Global::Storage(Some(other("I16", 2)))),
    ("torch", "CharStorage", Global::Storage(Some(other("I8", 1)))),
    ("torch", "ByteStorage", Global::Storage(Some(other("U8", 1)))),
    ("torch", "BoolStorage", Global::Storage(Some(other("BOOL", 1)))),
    ("torch", "ComplexFloatStorage", Global::Storage(Some(other("C64", 8)))),
    ("torch", "ComplexDoubleStorage", Global::Storage(Some(other("C128", 16)))),
    ("torch", "QInt8Storage", Global::Storage(Some(other("QI8", 1)))),
    ("torch", "QUInt8Storage", Global::Storage(Some(other("QU8", 1)))),
    ("torch", "QInt32Storage", Global::Storage(Some(other("QI32", 4)))),
    ("torch", "QUInt4x2Storage", Global::Storage(Some(other("QU4X2", 1)))),
    ("torch", "QUInt2x4Storage", Global::Storage(Some(other("QU2X4", 1)))),
    ("torch.storage", "UntypedStorage", Global::Storage(None)),
    ("torch", "UntypedStorage", Global::Storage(None)),
    ("torch", "float64", Global::Element(ElementType::F64)),
    ("torch", "float32", Global::Element(ElementType::F32)),
    ("torch", "float16", Global::Element(ElementType::F16)),
    ("torch", "bfloat16", Global::Element(ElementType::Bf16)),
    ("torch", "int64", Global::Element(ElementType::I64)),
    ("torch", "int32", Global::Element(ElementType::I32)),
    ("torch", "int16", Global::Element(other("I16", 2))),
    ("torch", "int8", Global::Element(other("I8", 1))),
    ("torch", "uint8", Global::Element(other("U8", 1))),
    ("torch", "uint16", Global::Element(other("U16", 2))),
    ("torch", "uint32", Global::Element(other("U32", 4))),
    ("torch", "uint64", Global::Element(other("U64", 8))),
    ("torch", "bool", Global::Element(other("BOOL", 1))),
    ("torch", "float8_e4m3fn", Global::Element(other("F8_E4M3", 1))),
    ("torch", "float8_e5m2", Global::Element(other("F8_E5M2", 1))),
    ("torch", "Size", Global::Size),
    ("torch", "device", Global::Plain),
    // How protocol 2 writes bytes, byte arrays, complex numbers and sets.
    ("_codecs", "encode", Global::Plain),
    ("__builtin__", "bytearray", Global::Plain),
    ("__builtin__", "complex", Global::Plain),
    ("__builtin__", "frozenset", Global::Plain),
    ("__builtin__", "set", Global::Plain),
    ("builtins", "bytearray", Global::Plain),
    ("builtins", "complex", Global::Plain),
    ("builtins", "frozenset", Global::Plain),
    ("builtins", "set", Global::Plain),
];

/// The data that a pickle makes.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    pub(super) nodes: Vec<Node<'a>>,
    pub(super) root: Value<'a>,
    /// Its length; more may follow it.
    pub(super) size: usize,
}

impl<'a> Pickle<'a> {
    pub(super) fn node(&self, value: Value<'_>) -> Option<&Node<'a>> {
        match value {
            Value::Node(id) => self.nodes.get(id),
            _ => None,
        }
    }

    /// The items of a tuple or list.
    pub(super) fn items(&self, value: Value<'_>) -> Option<&[Value<'a>]> {
        match self.node(value) {
            Some(Node::Tuple(items) | Node::List(items)) => Some(items),
            _ => None,
        }
    }

    /// The entries of a dict.
    pub(super) fn entries(&self, value: Value<'_>) -> Option<&[(Value<'a>, Value<'a>)]> {
        match self.node(value) {
            Some(Node::Dict { entries, .. }) => Some(entries),
            _ => None,
        }
    }

    /// What a dict has under a name.
    pub(super) fn entry(&self, dict: Value<'_>, name: &str) -> Option<Value<'a>> {
        // The last one counts, as it does in Python.
        self.entries(dict)?.iter().rev().find(|(key, _)| *key == Value::Str(name)).map(|(_, value)| *value)
    }
}

/// Reads the pickle that `bytes` begin with.
///
/// # Errors
/// `InvalidFile` if it is no pickle, ends early, or makes too many values; `Unsupported` for the opcode of persistent
/// ids that no tensor has.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle<'_>> {
    read_with(bytes, &BTreeMap::new())
}

/// Reads a pickle whose persistent ids are the numbers of these nodes.
pub(super) fn read_with<'a>(bytes: &'a [u8], persistent: &BTreeMap<i64, Node<'a>>) -> Result<Pickle<'a>> {
    let mut machine = Machine::new(bytes, persistent);
    loop {
        let opcode_at = machine.at;
        if let Some(root) = machine.step().map_err(|e| e.context(format!("byte {opcode_at}")))? {
            return Ok(Pickle { nodes: machine.nodes, root, size: machine.at });
        }
    }
}

struct Machine<'p, 'a> {
    persistent: &'p BTreeMap<i64, Node<'a>>,
    bytes: &'a [u8],
    at: usize,
    num_values: usize,
    num_tensors: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<usize, Value<'a>>,
    nodes: Vec<Node<'a>>,
}

impl<'p, 'a> Machine<'p, 'a> {
    fn new(bytes: &'a [u8], persistent: &'p BTreeMap<i64, Node<'a>>) -> Self {
        let (stack, marks, memo, nodes) = (Vec::new(), Vec::new(), HashMap::new(), Vec::new());
        Self { persistent, bytes, at: 0, num_values: 0, num_tensors: 0, stack, marks, memo, nodes }
    }

    /// Executes one opcode; the result is the root once it is STOP.
    fn step(&mut self) -> Result<Option<Value<'a>>> {
        let [opcode] = self.array()?;
        match opcode {
            // PROTO, FRAME: of the reader's own concern.
            0x80 => match self.array()? {
                [0..=5] => {}
                [found] => bail!(Unsupported, "expected protocol 0 to 5, found {found}"),
            },
            0x95 => {
                self.take(8)?;
            }
            // STOP
            b'.' => return self.pop().map(Some),
            // MARK, POP, POP_MARK, DUP
            b'(' => {
                self.count()?;
                self.marks.push(self.stack.len());
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'2' => {
                let top = self.pop()?;
                self.push(top)?;
                self.push(top)?;
            }
            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.push(Value::Plain)?,
            0x88 | 0x89 => self.push(Value::Bool(opcode == 0x88))?,
            // BININT, BININT1, BININT2, LONG1, LONG4
            b'J' => {
                let int = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(int.into()))?;
            }
            b'K' => {
                let [int] = self.array()?;
                self.push(Value::Int(int.into()))?;
            }
            b'M' => {
                let int = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(int.into()))?;
            }
            0x8a => {
                let size = self.size::<1>()?;
                self.long(size)?;
            }
            0x8b => {
                let size = self.size::<4>()?;
                self.long(size)?;
            }
            // BINFLOAT
            b'G' => {
                self.take(8)?;
                self.push(Value::Plain)?;
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
            b'X' => {
                let size = self.size::<4>()?;
                self.string(size)?;
            }
            0x8c => {
                let size = self.size::<1>()?;
                self.string(size)?;
            }
            0x8d => {
                let size = self.size::<8>()?;
                self.string(size)?;
            }
            // BINSTRING, SHORT_BINSTRING: strings of Python 2
            b'T' => {
                let size = self.size::<4>()?;
                self.string(size)?;
            }
            b'U' => {
                let size = self.size::<1>()?;
                self.string(size)?;
            }
            // BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8
            b'B' => {
                let size = self.size::<4>()?;
                self.raw(size)?;
            }
            b'C' => {
                let size = self.size::<1>()?;
                self.raw(size)?;
            }
            0x8e | 0x96 => {
                let size = self.size::<8>()?;
                self.raw(size)?;
            }
            // EMPTY_LIST, APPEND, APPENDS, LIST
            b']' => self.push_node(Node::List(Vec::new()))?,
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b'l' => {
                let items = self.pop_mark()?;
                self.push_node(Node::List(items))?;
            }
            // EMPTY_TUPLE, TUPLE, TUPLE1, TUPLE2, TUPLE3
            b')' => self.push_node(Node::Tuple(Vec::new()))?,
            b't' => {
                let items = self.pop_mark()?;
                self.push_node(Node::Tuple(items))?;
            }
            0x85..=0x87 => {
                let start = self.height_below(usize::from(opcode - 0x84))?;
                let items = self.stack.split_off(start);
                self.push_node(Node::Tuple(items))?;
            }
            // EMPTY_DICT, DICT, SETITEM, SETITEMS
            b'}' => self.push_node(Node::Dict { ordered: false, entries: Vec::new() })?,
            b'd' => {
                let entries = pairs(&self.pop_mark()?)?;
                self.push_node(Node::Dict { ordered: false, entries })?;
            }
            b's' => {
                let start = self.height_below(2)?;
                let entry = pairs(&self.stack.split_off(start))?;
                self.set_items(entry)?;
            }
            b'u' => {
                let entries = pairs(&self.pop_mark()?)?;
                self.set_items(entries)?;
            }
            // EMPTY_SET, ADDITEMS, FROZENSET
            0x8f => self.push(Value::Plain)?,
            0x90 => {
                self.pop_mark()?;
                self.top()?;
            }
            0x91 => {
                self.pop_mark()?;
                self.push(Value::Plain)?;
            }
            // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'q' => {
                let index = self.size::<1>()?;
                self.put(index)?;
            }
            b'r' => {
                let index = self.size::<4>()?;
                self.put(index)?;
            }
            0x94 => self.put(self.memo.len())?,
            b'h' => {
                let index = self.size::<1>()?;
                self.get(index)?;
            }
            b'j' => {
                let index = self.size::<4>()?;
                self.get(index)?;
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.name()?, self.name()?);
                self.global(module, name)?;
            }
            0x93 => {
                let name = self.pop()?;
                let module = self.pop()?;
                let (Value::Str(module), Value::Str(name)) = (module, name) else {
                    let (module, name) = (self.kind_of(module), self.kind_of(name));
                    bail!(InvalidFile, "STACK_GLOBAL: expected two strings, found {module} and {name}");
                };
                self.global(module, name)?;
            }
            // EXT1, EXT2, EXT4: a class by its number in a registry
            0x82..=0x84 => {
                self.take(1 << (opcode - 0x82))?;
                self.push_node(Node::Class(Class { module: "copyreg", name: "extension" }))?;
            }
            // REDUCE, BUILD, NEWOBJ, NEWOBJ_EX, OBJ, INST
            b'R' => {
                let arguments = self.pop()?;
                let function = self.pop()?;
                let made = self.call(function, arguments)?;
                self.push(made)?;
            }
            b'b' => self.build()?,
            0x81 => {
                let arguments = self.pop()?;
                let class = self.pop()?;
                let made = self.instance(class, arguments)?;
                self.push(made)?;
            }
            0x92 => {
                self.pop()?;
                let arguments = self.pop()?;
                let class = self.pop()?;
                let made = self.instance(class, arguments)?;
                self.push(made)?;
            }
            b'o' => {
                let mut items = self.pop_mark()?.into_iter();
                let Some(class) = items.next() else {
                    bail!(InvalidFile, "OBJ: expected a class, found none");
                };
                let arguments = self.node_of(Node::Tuple(items.collect()))?;
                let made = self.instance(class, arguments)?;
                self.push(made)?;
            }
            b'i' => {
                let (module, name) = (self.name()?, self.name()?);
                let items = self.pop_mark()?;
                let arguments = self.node_of(Node::Tuple(items))?;
                self.global(module, name)?;
                let class = self.pop()?;
                let made = self.instance(class, arguments)?;
                self.push(made)?;
            }
            // BINPERSID, PERSID
            b'Q' => self.persistent_id()?,
            b'P' => bail!(
                Unsupported,
                "PERSID: expected the persistent ids of protocol 1 or later, found one of protocol 0"
            ),
            // INT, LONG, FLOAT, STRING, UNICODE of protocol 0: numbers, and text that may need unescaping
            b'I' | b'L' => {
                let line = self.line()?.trim_end_matches('L');
                self.push(line.parse().map_or(Value::Plain, Value::Int))?;
            }
            b'F' => {
                self.line()?;
                self.push(Value::Plain)?;
            }
            b'S' | b'V' => {
                let line = self.line()?;
                let quoted = |quote| line.strip_prefix(quote).and_then(|line| line.strip_suffix(quote));
                let text = if opcode == b'V' { Some(line) } else { quoted('\'').or_else(|| quoted('"')) };
                self.push(text.filter(|text| !text.contains('\\')).map_or(Value::Plain, Value::Str))?;
            }
            // GET, PUT
            b'g' | b'p' => {
                let line = self.line()?;
                let Ok(index) = line.parse() else {
                    bail!(InvalidFile, "expected the number of a memo entry, found {}", shown(line));
                };
                if opcode == b'g' { self.get(index)? } else { self.put(index)? }
            }
            _ => bail!(InvalidFile, "expected an opcode, found {opcode:#04x}: not a pickle"),
        }
        Ok(None)
    }

    fn take(&mut self, size: usize) -> Result<&'a [u8]> {
        match self.bytes[self.at..].split_at_checked(size) {
            Some((taken, _)) => {
                self.at += size;
                Ok(taken)
            }
            None => bail!(
                InvalidFile,
                "expected {size} more bytes, found {} before the pickle's end",
                self.bytes.len() - self.at
            ),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// A number of N bytes; one beyond the address space is beyond the pickle too.
    fn size<const N: usize>(&mut self) -> Result<usize> {
        let mut word = [0; 8];
        word[..N].copy_from_slice(&self.array::<N>()?);
        Ok(usize::try_from(u64::from_le_bytes(word)).unwrap_or(usize::MAX))
    }

    /// Text up to the end of the line.
    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let Some(size) = rest.iter().position(|&byte| byte == b'\n') else {
            bail!(InvalidFile, "expected a line, found no end of it before the pickle's");
        };
        self.at += size + 1;
        match std::str::from_utf8(&rest[..size]) {
            Ok(line) => Ok(line),
            Err(_) => bail!(InvalidFile, "expected a line in UTF-8, found other bytes"),
        }
    }

    /// The name of a module or class, and the end of its line.
    fn name(&mut self) -> Result<&'a str> {
        let name = self.line()?;
        if name.len() > MAX_NAME {
            bail!(InvalidFile, "expected a name of at most {MAX_NAME} bytes, found one of {}", name.len());
        }
        Ok(name)
    }

    fn count(&mut self) -> Result<()> {
        self.num_values += 1;
        if self.num_values > MAX_VALUES {
            bail!(InvalidFile, "expected at most {MAX_VALUES} values, found more");
        }
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        self.count()?;
        self.stack.push(value);
        Ok(())
    }

    fn node_of(&mut self, node: Node<'a>) -> Result<Value<'a>> {
        self.count()?;
        self.nodes.push(node);
        Ok(Value::Node(self.nodes.len() - 1))
    }

    fn push_node(&mut self, node: Node<'a>) -> Result<()> {
        let value = self.node_of(node)?;
        self.stack.push(value);
        Ok(())
    }

    fn object(&mut self, class: Class<'a>) -> Result<Value<'a>> {
        self.node_of(Node::Object(Box::new(Object { class, state: None })))
    }

    fn string(&mut self, size: usize) -> Result<()> {
        let bytes = self.take(size)?;
        // Python writes lone surrogates too; such a string names no tensor.
        self.push(std::str::from_utf8(bytes).map_or(Value::Plain, Value::Str))
    }

    fn raw(&mut self, size: usize) -> Result<()> {
        self.take(size)?;
        self.push(Value::Plain)
    }

    /// A whole number of `size` bytes, two's complement.
    fn long(&mut self, size: usize) -> Result<()> {
        let bytes = self.take(size)?;
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut word = [if negative { 0xff } else { 0 }; 8];
        if size > word.len() {
            return self.push(Value::Plain);
        }
        word[..size].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(word)))
    }

    /// The height of the stack `n` values down, none of them below the last mark.
    fn height_below(&self, n: usize) -> Result<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(n) {
            Some(height) if height >= floor => Ok(height),
            _ => bail!(InvalidFile, "expected {n} values on the stack, found {}", self.stack.len() - floor),
        }
    }

    fn top(&self) -> Result<Value<'a>> {
        Ok(self.stack[self.height_below(1)?])
    }

    fn pop(&mut self) -> Result<Value<'a>> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// All values above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Value<'a>>> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => bail!(InvalidFile, "expected a mark on the stack, found none"),
        }
    }

    fn node(&self, value: Value<'a>) -> Option<&Node<'a>> {
        match value {
            Value::Node(id) => self.nodes.get(id),
            _ => None,
        }
    }

    fn node_mut(&mut self, value: Value<'a>) -> Option<&mut Node<'a>> {
        match value {
            Value::Node(id) => self.nodes.get_mut(id),
            _ => None,
        }
    }

    /// For messages.
    fn kind_of(&self, value: Value<'a>) -> &'static str {
        match (value, self.node(value)) {
            (_, Some(Node::Tuple(_))) => "a tuple",
            (_, Some(Node::List(_))) => "a list",
            (_, Some(Node::Dict { .. })) => "a dict",
            (_, Some(Node::Storage(_))) => "a storage",
            (_, Some(Node::Tensor(_))) => "a tensor",
            (_, Some(Node::Class(_))) => "a function or class",
            (_, Some(Node::Object(_))) => "an object",
            (Value::Int(_), _) => "a whole number",
            (Value::Str(_), _) => "a string",
            (Value::Global(_), _) => "a function or class",
            (Value::Plain | Value::Bool(_) | Value::Node(_), _) => "plain data",
        }
    }

    /// Adds to the list on top. What is added to an object is of its class' concern, here it is dropped.
    fn append(&mut self, mut added: Vec<Value<'a>>) -> Result<()> {
        let top = self.top()?;
        let found = self.kind_of(top);
        match self.node_mut(top) {
            Some(Node::List(items)) => items.append(&mut added),
            Some(Node::Object(_)) => {}
            _ => bail!(InvalidFile, "expected a list to append to, found {found}"),
        }
        Ok(())
    }

    /// Sets items of the dict on top; those of an object are dropped.
    fn set_items(&mut self, mut added: Vec<(Value<'a>, Value<'a>)>) -> Result<()> {
        let top = self.top()?;
        let found = self.kind_of(top);
        match self.node_mut(top) {
            Some(Node::Dict { entries, .. }) => entries.append(&mut added),
            Some(Node::Object(_)) => {}
            _ => bail!(InvalidFile, "expected a dict to set items of, found {found}"),
        }
        Ok(())
    }

    fn put(&mut self, index: usize) -> Result<()> {
        self.count()?;
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn get(&mut self, index: usize) -> Result<()> {
        match self.memo.get(&index) {
            Some(&value) => self.push(value),
            None => bail!(InvalidFile, "memo: expected an entry {index}, found none"),
        }
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> Result<()> {
        match GLOBALS.iter().find(|entry| (entry.0, entry.1) == (module, name)) {
            Some((_, _, global)) => self.push(Value::Global(*global)),
            None => self.push_node(Node::Class(Class { module, name })),
        }
    }

    /// The class whose object a call of `function` makes, if it is not one of [`GLOBALS`].
    fn class_of(&self, function: Value<'a>, arguments: &[Value<'a>]) -> Option<Class<'a>> {
        const MAKERS: [(&str, &str); 6] = [
            ("copyreg", "_reconstructor"),
            ("copy_reg", "_reconstructor"),
            ("copyreg", "__newobj__"),
            ("copy_reg", "__newobj__"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        ];
        match self.node(function)? {
            Node::Class(class) if MAKERS.contains(&(class.module, class.name)) => {
                match arguments.first().and_then(|first| self.node(*first)) {
                    Some(Node::Class(made)) => Some(*made),
                    _ => Some(*class),
                }
            }
            Node::Class(class) => Some(*class),
            // What an unknown function returned is called in turn.
            Node::Object(object) => Some(object.class),
            _ => None,
        }
    }

    /// Describes what a call would return.
    fn call(&mut self, function: Value<'a>, arguments: Value<'a>) -> Result<Value<'a>> {
        let Some(Node::Tuple(items)) = self.node(arguments) else {
            bail!(InvalidFile, "REDUCE: expected a tuple of arguments, found {}", self.kind_of(arguments));
        };
        if let Some(class) = self.class_of(function, items) {
            return self.object(class);
        }
        let Value::Global(function) = function else {
            bail!(InvalidFile, "REDUCE: expected a function, found {}", self.kind_of(function));
        };
        match (function, items.as_slice()) {
            (
                Global::RebuildFromType,
                &[Value::Global(function), Value::Global(Global::TensorClass), arguments, ..],
            ) if function != Global::RebuildFromType => {
                let Some(Node::Tuple(items)) = self.node(arguments) else {
                    bail!(InvalidFile, "REDUCE: expected a tuple of arguments, found {}", self.kind_of(arguments));
                };
                let items: Vec<Value<'a>> = items.iter().take(MAX_ARGUMENTS).copied().collect();
                self.rebuild(function, &items)
            }
            (Global::RebuildFromType, &[_, class, ..]) => {
                let class = self.class_of(class, &[]);
                self.object(class.unwrap_or(Class { module: "torch._tensor", name: "_rebuild_from_type_v2" }))
            }
            (function, items) => {
                let items: Vec<Value<'a>> = items.iter().take(MAX_ARGUMENTS).copied().collect();
                self.rebuild(function, &items)
            }
        }
    }

    /// What one of [`GLOBALS`] returns.
    fn rebuild(&mut self, function: Global, arguments: &[Value<'a>]) -> Result<Value<'a>> {
        match (function, arguments) {
            // With arguments, its entries are the argument's.
            (Global::OrderedDict, []) => self.node_of(Node::Dict { ordered: true, entries: Vec::new() }),
            (Global::DefaultDict, [] | [_]) => self.node_of(Node::Dict { ordered: true, entries: Vec::new() }),
            (Global::OrderedDict, _) => self.object(Class { module: "collections", name: "OrderedDict" }),
            (Global::DefaultDict, _) => self.object(Class { module: "collections", name: "defaultdict" }),
            (Global::Size, &[shape]) => Ok(shape),
            (Global::RebuildFirst, &[storage, offset, shape, strides]) => {
                self.tensor([storage, offset, shape, strides], None)
            }
            (Global::RebuildTensor, &[storage, offset, shape, strides, _, _]) => {
                self.tensor([storage, offset, shape, strides], None)
            }
            (Global::RebuildTensor, &[storage, offset, shape, strides, _, _, metadata]) => {
                // Bits that change what the numbers mean, such as a sign not yet applied.
                match self.node(metadata) {
                    Some(Node::Dict { entries, .. }) if !entries.is_empty() => {
                        self.object(Class { module: "torch._utils", name: "_rebuild_tensor_v2" })
                    }
                    _ => self.tensor([storage, offset, shape, strides], None),
                }
            }
            (
                Global::RebuildTypedTensor,
                &[storage, offset, shape, strides, _, _, Value::Global(Global::Element(element)), ref metadata @ ..],
            ) if !metadata
                .iter()
                .any(|m| matches!(self.node(*m), Some(Node::Dict { entries, .. }) if !entries.is_empty())) =>
            {
                self.tensor([storage, offset, shape, strides], Some(element))
            }
            (Global::RebuildTypedTensor, &[_, _, _, _, _, _, _, ..]) => {
                self.object(Class { module: "torch._utils", name: "_rebuild_tensor_v3" })
            }
            (Global::RebuildParameter, &[tensor, _, ..]) | (Global::TensorClass, &[tensor, ..]) => Ok(tensor),
            (Global::Plain, _) => Ok(Value::Plain),
            (function, arguments) => {
                bail!(InvalidFile, "REDUCE: {function:?} with {} arguments is nothing torch writes", arguments.len())
            }
        }
    }

    /// Describes a new object of a class.
    fn instance(&mut self, class: Value<'a>, arguments: Value<'a>) -> Result<Value<'a>> {
        let Some(Node::Tuple(_)) = self.node(arguments) else {
            bail!(InvalidFile, "NEWOBJ: expected a tuple of arguments, found {}", self.kind_of(arguments));
        };
        match class {
            Value::Global(Global::OrderedDict | Global::DefaultDict) => {
                self.node_of(Node::Dict { ordered: true, entries: Vec::new() })
            }
            Value::Global(Global::Plain) => Ok(Value::Plain),
            Value::Global(global) => {
                let entry = GLOBALS.iter().find(|entry| entry.2 == global).expect("globals are those of GLOBALS");
                self.object(Class { module: entry.0, name: entry.1 })
            }
            _ => match self.class_of(class, &[]) {
                Some(class) => self.object(class),
                None => bail!(InvalidFile, "NEWOBJ: expected a class, found {}", self.kind_of(class)),
            },
        }
    }

    /// Gives the object on top its state.
    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        let is_tuple = matches!(self.node(state), Some(Node::Tuple(_)));
        let top = self.top()?;
        let found = self.kind_of(top);
        match (top, self.node_mut(top)) {
            (_, Some(Node::Object(object))) => object.state = Some(state),
            // torch's state dicts carry `_metadata`, versions of modules that no tensor depends on.
            (_, Some(Node::Dict { ordered: true, .. })) | (Value::Plain, _) => {}
            // The state of a parameter before PyTorch 0.4: whether it is trained, and hooks of that.
            (_, Some(Node::Tensor(_))) if is_tuple => {}
            // Attributes that a class of tensors interprets.
            (_, Some(node @ Node::Tensor(_))) => {
                let class = Class { module: "torch._utils", name: "_rebuild_tensor_v2" };
                *node = Node::Object(Box::new(Object { class, state: Some(state) }));
            }
            // Of classes that are made while reading.
            (_, Some(Node::Class(_))) => {}
            _ => bail!(InvalidFile, "BUILD: expected an object, found {found}"),
        }
        Ok(())
    }

    fn tensor(
        &mut self,
        [storage, offset, shape, strides]: [Value<'a>; 4],
        element: Option<ElementType>,
    ) -> Result<Value<'a>> {
        let storage = match self.node(storage) {
            Some(Node::Storage(storage)) => **storage,
            // Of a type that is not known.
            Some(Node::Object(object)) => {
                let class = object.class;
                return self.object(class);
            }
            _ => bail!(InvalidFile, "tensor: expected a storage, found {}", self.kind_of(storage)),
        };
        let Some(element) = element.or(storage.element) else {
            bail!(InvalidFile, "tensor: expected an element type, found a storage without one");
        };
        let size = |value: &Value<'a>| match *value {
            Value::Int(int) => usize::try_from(int).ok(),
            _ => None,
        };
        let sizes = |value: Value<'a>| match self.node(value) {
            Some(Node::Tuple(items)) if items.len() <= MAX_AXES => {
                items.iter().map(size).collect::<Option<Vec<usize>>>()
            }
            _ => None,
        };
        let (Some(offset), Some(shape), Some(strides)) = (size(&offset), sizes(shape), sizes(strides)) else {
            bail!(
                InvalidFile,
                "tensor: expected offset, shape and strides, at most {MAX_AXES} axes, found something else or a negative \
                 number"
            );
        };
        self.num_tensors += 1;
        self.check_tensors()?;
        self.node_of(Node::Tensor(Box::new(TensorView { storage, element, offset, shape, strides })))
    }

    /// ('storage', type, key, location, number of elements), before PyTorch 1.6 with `None` or (key, offset, number of
    /// elements) of the part that it is; or, of a module's class, the class and its source text.
    fn persistent_id(&mut self) -> Result<()> {
        let id = self.pop()?;
        if let Value::Str(key) = id
            && let Some(node) = key.parse().ok().and_then(|key: i64| self.persistent.get(&key))
        {
            let node = node.clone();
            self.num_tensors += usize::from(matches!(node, Node::Tensor(_)));
            self.check_tensors()?;
            return self.push_node(node);
        }
        let Some(Node::Tuple(items)) = self.node(id) else {
            bail!(InvalidFile, "persistent id: expected a tuple or the number of a tensor, found {}", self.kind_of(id));
        };
        match *items.as_slice() {
            [Value::Str("storage"), class, Value::Str(key), _, Value::Int(stored), ref view @ ..] if view.len() < 2 => {
                let element = match class {
                    Value::Global(Global::Storage(element)) => element,
                    _ => match self.class_of(class, &[]) {
                        Some(class) => {
                            let object = self.object(class)?;
                            self.stack.push(object);
                            return Ok(());
                        }
                        None => bail!(InvalidFile, "persistent id: expected a type, found {}", self.kind_of(class)),
                    },
                };
                let view = view.first().map_or(Some([0, stored]), |view| match (view, self.node(*view)) {
                    (Value::Plain, _) => Some([0, stored]),
                    (_, Some(Node::Tuple(view))) => match *view.as_slice() {
                        [_, Value::Int(start), Value::Int(len)] => Some([start, len]),
                        _ => None,
                    },
                    _ => None,
                });
                let sizes = view.map(|[start, len]| [stored, start, len].map(usize::try_from));
                let Some([Ok(stored), Ok(start), Ok(len)]) = sizes else {
                    bail!(InvalidFile, "persistent id: expected a storage's sizes, found others");
                };
                let storage = Storage { element, key: Key::Name(key), stored, start, len };
                self.push_node(Node::Storage(Box::new(storage)))
            }
            [Value::Str("module"), class, ..] => self.push(class),
            [class, _, _] if matches!(self.node(class), Some(Node::Class(_))) => self.push(class),
            _ => bail!(
                InvalidFile,
                "persistent id: expected ('storage', type, key, location, size), found something else"
            ),
        }
    }

    fn check_tensors(&self) -> Result<()> {
        if self.num_tensors > MAX_TENSORS {
            bail!(InvalidFile, "expected at most {MAX_TENSORS} tensors, found more");
        }
        Ok(())
    }
}

fn pairs<'a>(values: &[Value<'a>]) -> Result<Vec<(Value<'a>, Value<'a>)>> {
    match values.as_chunks() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => bail!(InvalidFile, "expected keys and values, found {} values", values.len()),
    }
}
