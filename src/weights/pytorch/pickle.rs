//! Stage 1, read: the pickle of a PyTorch checkpoint → plain data and descriptions of tensors; nothing is executed.
//!
//! In:  the bytes of `data.pkl`, protocol 2 to 5.
//! Out: [`Pickle`]: nodes that refer to each other by number, strings that borrow from the bytes.
//! A pickle is a program for a stack machine that may call any function of any module. Here the functions are those
//! of [`GLOBALS`], of which a state dict is made, each described by what it would return; any other is refused by
//! name. Time is linear in the bytes, memory bounded by [`MAX_VALUES`]; nothing recurses.
//! Not here: the bytes of the tensors, names (`pytorch`).
//! Opcodes: [pickletools.py](https://github.com/python/cpython/blob/main/Lib/pickletools.py).

use std::collections::HashMap;

use crate::error::{Result, bail};
use crate::weights::tensor::ElementType;

/// The most values and memo entries that a pickle may make; about a hundred bytes each at worst.
const MAX_VALUES: usize = 1 << 22;

/// The most tensors; about a thousand bytes each at worst.
pub(super) const MAX_TENSORS: usize = 1 << 16;

/// PyTorch's own limit on axes.
const MAX_AXES: usize = 64;

/// What is on the stack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    /// Data that no tensor depends on: None, a truth value, a float, bytes, a set ...
    Plain,
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
    Dict { ordered: bool, entries: Vec<(Value<'a>, Value<'a>)> },
    Storage(Box<Storage<'a>>),
    Tensor(Box<TensorView<'a>>),
}

/// A persistent id: the record of the archive that holds a tensor's bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Storage<'a> {
    /// `None` for bytes without a type.
    pub(super) element: Option<ElementType>,
    pub(super) key: &'a str,
    /// Elements, or bytes if there is no type.
    pub(super) len: usize,
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
    /// (storage, offset, shape, strides, requires_grad, hooks[, metadata])
    RebuildTensor,
    /// The same with the element type after the hooks.
    RebuildTypedTensor,
    /// (tensor, requires_grad, hooks[, state])
    RebuildParameter,
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
    ("torch._utils", "_rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils", "_rebuild_tensor_v3", Global::RebuildTypedTensor),
    ("torch._utils", "_rebuild_parameter", Global::RebuildParameter),
    ("torch._utils", "_rebuild_parameter_with_state", Global::RebuildParameter),
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
    ("torch", "Size", Global::Plain),
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
}

/// Reads a pickle.
///
/// # Errors
/// `Unsupported` if it names a function or class that is not one of [`GLOBALS`], or an opcode that no state dict
/// needs; `InvalidFile` if it is no pickle, ends early, or makes too many values.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle<'_>> {
    let mut machine = Machine::new(bytes);
    loop {
        let opcode_at = machine.at;
        if let Some(root) = machine.step().map_err(|e| e.context(format!("byte {opcode_at}")))? {
            return Ok(Pickle { nodes: machine.nodes, root });
        }
    }
}

struct Machine<'a> {
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

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let (stack, marks, memo, nodes) = (Vec::new(), Vec::new(), HashMap::new(), Vec::new());
        Self { bytes, at: 0, num_values: 0, num_tensors: 0, stack, marks, memo, nodes }
    }

    /// Executes one opcode; the result is the root once it is STOP.
    fn step(&mut self) -> Result<Option<Value<'a>>> {
        let [opcode] = self.array()?;
        match opcode {
            // PROTO, FRAME: of the reader's own concern.
            0x80 => match self.array()? {
                [2..=5] => {}
                [found] => bail!(Unsupported, "expected protocol 2 to 5, found {found}"),
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
            b'N' | 0x88 | 0x89 => self.push(Value::Plain)?,
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
                self.list()?.push(item);
            }
            b'e' => {
                let items = self.pop_mark()?;
                // A set that ADDITEMS would fill is plain; a list is the only other thing with items.
                self.list()?.extend(items);
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
                self.dict()?.extend(entry);
            }
            b'u' => {
                let entries = pairs(&self.pop_mark()?)?;
                self.dict()?.extend(entries);
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
                let (module, name) = (self.line()?, self.line()?);
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
            // REDUCE, BUILD, BINPERSID
            b'R' => self.reduce()?,
            b'b' => {
                self.pop()?;
                // torch's state dicts carry `_metadata`, versions of modules that no tensor depends on.
                if !matches!(self.top_node()?, Some(Node::Dict { ordered: true, .. })) {
                    bail!(
                        Unsupported,
                        "BUILD: expected a collections.OrderedDict, found an object whose class decides"
                    );
                }
            }
            b'Q' => self.persistent_id()?,
            // Everything else that could execute. INST has the class with it; the others a class from a GLOBAL before.
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                return refuse(module, name);
            }
            b'o' => bail!(Unsupported, "OBJ: {REFUSED}"),
            0x81 => bail!(Unsupported, "NEWOBJ: {REFUSED}"),
            0x92 => bail!(Unsupported, "NEWOBJ_EX: {REFUSED}"),
            0x82..=0x84 => bail!(Unsupported, "EXT: a class from a registry: {REFUSED}"),
            b'P' | b'F' | b'I' | b'L' | b'S' | b'V' | b'g' | b'p' => bail!(
                Unsupported,
                "opcode {:?}: expected the binary opcodes of protocol 2 or later, found one of protocol 0",
                char::from(opcode)
            ),
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
        // Names of modules and classes are short; a search for the end stays so too.
        const MAX: usize = 1024;
        let rest = &self.bytes[self.at..];
        let Some(size) = rest.iter().take(MAX).position(|&byte| byte == b'\n') else {
            bail!(InvalidFile, "expected a name of at most {MAX} bytes, found no end of the line");
        };
        self.at += size + 1;
        match std::str::from_utf8(&rest[..size]) {
            Ok(line) => Ok(line),
            Err(_) => bail!(InvalidFile, "expected a name in UTF-8, found other bytes"),
        }
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

    fn push_node(&mut self, node: Node<'a>) -> Result<()> {
        self.nodes.push(node);
        self.push(Value::Node(self.nodes.len() - 1))
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
            (Value::Int(_), _) => "a whole number",
            (Value::Str(_), _) => "a string",
            (Value::Global(_), _) => "a function or class",
            (Value::Plain | Value::Node(_), _) => "plain data",
        }
    }

    fn top_node(&self) -> Result<Option<&Node<'a>>> {
        Ok(self.node(self.top()?))
    }

    fn list(&mut self) -> Result<&mut Vec<Value<'a>>> {
        let top = self.top()?;
        let found = self.kind_of(top);
        match self.node_mut(top) {
            Some(Node::List(items)) => Ok(items),
            _ => bail!(InvalidFile, "expected a list to append to, found {found}"),
        }
    }

    fn dict(&mut self) -> Result<&mut Vec<(Value<'a>, Value<'a>)>> {
        let top = self.top()?;
        let found = self.kind_of(top);
        match self.node_mut(top) {
            Some(Node::Dict { entries, .. }) => Ok(entries),
            _ => bail!(InvalidFile, "expected a dict to set items of, found {found}"),
        }
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

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        match GLOBALS.iter().find(|entry| (entry.0, entry.1) == (module, name)) {
            Some((_, _, global)) => self.push(Value::Global(*global)),
            None => refuse(module, name),
        }
    }

    /// Describes what a call would return.
    fn reduce(&mut self) -> Result<()> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let Some(Node::Tuple(arguments)) = self.node(arguments) else {
            bail!(InvalidFile, "REDUCE: expected a tuple of arguments, found {}", self.kind_of(arguments));
        };
        let Value::Global(function) = function else {
            bail!(InvalidFile, "REDUCE: expected a function, found {}", self.kind_of(function));
        };
        match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => self.push_node(Node::Dict { ordered: true, entries: Vec::new() }),
            (
                Global::RebuildTensor,
                &[storage, offset, shape, strides, _, _] | &[storage, offset, shape, strides, _, _, _],
            ) => self.tensor([storage, offset, shape, strides], None),
            (
                Global::RebuildTypedTensor,
                &[storage, offset, shape, strides, _, _, Value::Global(Global::Element(element)), ..],
            ) => self.tensor([storage, offset, shape, strides], Some(element)),
            (Global::RebuildParameter, &[tensor, _, ..]) => self.push(tensor),
            (Global::Plain, _) => self.push(Value::Plain),
            (function, arguments) => {
                bail!(InvalidFile, "REDUCE: {function:?} with {} arguments is nothing torch writes", arguments.len())
            }
        }
    }

    fn tensor(
        &mut self,
        [storage, offset, shape, strides]: [Value<'a>; 4],
        element: Option<ElementType>,
    ) -> Result<()> {
        let Some(Node::Storage(storage)) = self.node(storage) else {
            bail!(InvalidFile, "tensor: expected a storage, found {}", self.kind_of(storage));
        };
        let storage = **storage;
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
        if self.num_tensors > MAX_TENSORS {
            bail!(InvalidFile, "expected at most {MAX_TENSORS} tensors, found more");
        }
        self.push_node(Node::Tensor(Box::new(TensorView { storage, element, offset, shape, strides })))
    }

    /// ('storage', type, key, location, number of elements)
    fn persistent_id(&mut self) -> Result<()> {
        let id = self.pop()?;
        if let Some(Node::Tuple(items)) = self.node(id)
            && let &[
                Value::Str("storage"),
                Value::Global(Global::Storage(element)),
                Value::Str(key),
                _,
                Value::Int(len),
            ] = items.as_slice()
            && let Ok(len) = usize::try_from(len)
        {
            return self.push_node(Node::Storage(Box::new(Storage { element, key, len })));
        }
        bail!(InvalidFile, "persistent id: expected ('storage', type, key, location, size), found something else")
    }
}

const REFUSED: &str = "would run code, which is not done here; only tensors and plain data are read. In Python, save \
                       torch.save(module.state_dict(), path)";

fn refuse<T>(module: &str, name: &str) -> Result<T> {
    const SHOWN: usize = 100;
    let short = |text: &str| text.escape_debug().take(SHOWN).collect::<String>();
    bail!(Unsupported, "{}.{}: {REFUSED}", short(module), short(name))
}

fn pairs<'a>(values: &[Value<'a>]) -> Result<Vec<(Value<'a>, Value<'a>)>> {
    match values.as_chunks() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => bail!(InvalidFile, "expected keys and values, found {} values", values.len()),
    }
}
