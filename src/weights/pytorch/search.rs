//! Stage 1, read: the data of a pickle → tensors by name.
//!
//! In:  a [`Pickle`], and where the bytes of its storages are.
//! Out: [`StateDict`]: the tensors of dicts at any depth, the keys joined by dots; of pickled modules under the names
//!      that `state_dict()` gives them; and the names of the objects that were passed over.
//! A pickled module is an object whose attributes have `_parameters`, `_buffers` and `_modules`. They are data; the class
//! is not, so its name is kept for `state_dict` to judge.
//! Not here: what names mean (`state_dict`).

use std::collections::BTreeMap;

use super::archive::Archive;
use super::pickle::{Class, Key, MAX_TENSORS, Node, Object, Pickle, TensorView, Value};
use crate::error::{Result, bail};
use crate::weights::source::shown;
use crate::weights::state_dict::{Module, Opaque, StateDict};
use crate::weights::tensor::Tensor;

/// The deepest nesting of dicts that is searched.
const MAX_DEPTH: usize = 64;

/// The most entries of dicts that are looked at; one dict may be found in several places.
const MAX_VISITS: usize = 1 << 23;

/// The longest name, in bytes.
const MAX_NAME: usize = 1024;

/// Where the bytes of storages are.
pub(super) enum Records<'p, 'a> {
    Archive(&'p Archive<'a>),
    Table(&'p BTreeMap<Key<'a>, &'a [u8]>),
}

impl<'a> Records<'_, 'a> {
    /// The bytes of a storage, and its name for messages.
    fn get(&self, key: Key<'a>) -> Result<(String, Option<&'a [u8]>)> {
        let name = match key {
            Key::Name(key) => format!("data/{key}"),
            Key::Number(key) => format!("data/{key}"),
        };
        let bytes = match self {
            Records::Archive(archive) => archive.get(&name)?,
            Records::Table(table) => table.get(&key).copied(),
        };
        Ok((name, bytes))
    }
}

/// Finds the tensors of a checkpoint of `file_bytes` bytes. Lists are searched only if nothing else holds a network:
/// training scripts keep copies of weights in them.
pub(super) fn search<'a>(
    pickle: &Pickle<'a>,
    records: &Records<'_, 'a>,
    format: &'static str,
    file_bytes: usize,
) -> Result<StateDict<'a>> {
    let mut dict = StateDict::new(format, file_bytes);
    for lists in [false, true] {
        dict = StateDict::new(format, file_bytes);
        let mut search = Search { pickle, records, lists, name: String::new(), visits: 0, scope: 0, dict: &mut dict };
        search.collect(pickle.root, 0)?;
        if dict.has_network() {
            break;
        }
    }
    Ok(dict)
}

struct Search<'p, 'a> {
    pickle: &'p Pickle<'a>,
    records: &'p Records<'p, 'a>,
    /// Whether lists and tuples are searched.
    lists: bool,
    /// Of the value looked at.
    name: String,
    visits: usize,
    /// The length of the name of the dict or outermost module looked at, with its dot.
    scope: usize,
    dict: &'p mut StateDict<'a>,
}

impl<'a> Search<'_, 'a> {
    fn collect(&mut self, value: Value<'a>, depth: usize) -> Result<()> {
        let pickle = self.pickle;
        match pickle.node(value) {
            Some(Node::Dict { entries, .. }) => {
                self.check_depth(depth)?;
                self.scoped(|search| {
                    for (key, value) in entries {
                        search.entry(*key, *value, depth)?;
                    }
                    Ok(())
                })
            }
            Some(Node::List(items) | Node::Tuple(items)) if self.lists => {
                self.check_depth(depth)?;
                self.scoped(|search| {
                    for (i, value) in (0..).zip(items) {
                        search.entry(Value::Int(i), *value, depth)?;
                    }
                    Ok(())
                })
            }
            Some(Node::Tensor(view)) => self.tensor(view),
            Some(Node::Object(object)) => match self.attributes(object) {
                Some(attributes) => self.scoped(|search| search.module(object.class, attributes, depth)),
                None => self.object(object.class),
            },
            _ => Ok(()),
        }
    }

    fn check_depth(&self, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            bail!(InvalidFile, "expected dicts nested at most {MAX_DEPTH} deep, found them deeper");
        }
        Ok(())
    }

    /// What `collect` finds belongs to one state dict.
    fn scoped(&mut self, collect: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let scope = std::mem::replace(&mut self.scope, self.name.len() + usize::from(!self.name.is_empty()));
        collect(self)?;
        self.scope = scope;
        Ok(())
    }

    fn entry(&mut self, key: Value<'a>, value: Value<'a>, depth: usize) -> Result<()> {
        self.visits += 1;
        if self.visits > MAX_VISITS {
            bail!(InvalidFile, "expected at most {MAX_VISITS} entries of dicts, found more");
        }
        if !matches!(value, Value::Node(_)) {
            return Ok(());
        }
        self.named(key, |search| search.collect(value, depth + 1))
    }

    /// Goes down to what is under `key`.
    fn named(&mut self, key: Value<'a>, collect: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let length = self.name.len();
        if length > 0 {
            self.name.push('.');
        }
        match key {
            Value::Str(key) if key.len() <= MAX_NAME => self.name.push_str(key),
            Value::Int(key) => self.name.push_str(&key.to_string()),
            // No name of a tensor that anyone could ask for.
            _ => {
                self.name.truncate(length);
                return Ok(());
            }
        }
        collect(self)?;
        self.name.truncate(length);
        Ok(())
    }

    /// The attributes of a pickled module.
    fn attributes(&self, object: &Object<'a>) -> Option<Value<'a>> {
        let attributes = object.state?;
        let is_module = ["_parameters", "_modules"]
            .iter()
            .all(|name| self.pickle.entry(attributes, name).is_some_and(|value| self.pickle.entries(value).is_some()));
        is_module.then_some(attributes)
    }

    fn module(&mut self, class: Class<'a>, attributes: Value<'a>, depth: usize) -> Result<()> {
        self.check_depth(depth)?;
        let pickle = self.pickle;
        let entries = |name| pickle.entry(attributes, name).and_then(|value| pickle.entries(value)).unwrap_or_default();
        let text = |name| match pickle.entry(attributes, name) {
            Some(Value::Str(text)) => Some(text),
            _ => None,
        };
        // Those that torch.nn.utils attaches compute the weight from tensors that are read instead of it.
        let harmless = |hook: &Value<'a>| matches!(pickle.node(*hook), Some(Node::Object(object)) if object.class.module.starts_with("torch.nn.utils."));
        let hooks = ["_forward_hooks", "_forward_pre_hooks"].map(entries);
        let module = Module {
            class: format!("{}.{}", class.module, class.name),
            nonlinearity: match text("mode").or_else(|| text("nonlinearity")) {
                Some("RNN_RELU" | "relu") => Some("relu"),
                Some("RNN_TANH" | "tanh") => Some("tanh"),
                _ => None,
            },
            // A module may have a method of its own in place of its class'.
            hooked: hooks.concat().iter().any(|(_, hook)| !harmless(hook))
                || pickle.entry(attributes, "forward").is_some(),
        };
        let prefix = if self.name.is_empty() { String::new() } else { format!("{}.", self.name) };
        if self.name.len() <= MAX_NAME && self.dict.modules.len() < MAX_TENSORS {
            self.dict.modules.insert(prefix, module);
        }
        for (key, value) in [entries("_parameters"), entries("_buffers")].concat() {
            self.entry(key, value, depth)?;
        }
        for (key, value) in entries("_modules") {
            self.visits += 1;
            match pickle.node(*value) {
                Some(Node::Object(object)) => match self.attributes(object) {
                    Some(attributes) => {
                        self.named(*key, |search| search.module(object.class, attributes, depth + 1))?;
                    }
                    None => self.named(*key, |search| search.object(object.class))?,
                },
                _ => self.entry(*key, *value, depth)?,
            }
        }
        Ok(())
    }

    /// Notes what is passed over.
    fn object(&mut self, class: Class<'a>) -> Result<()> {
        // Many, where a script keeps its data; names of weights are never dropped.
        let is_named_like_weights = ["weight", "bias"].iter().any(|part| self.name.contains(part));
        let is_wanted = self.name.len() <= MAX_NAME
            && (self.dict.objects.len() < MAX_TENSORS || is_named_like_weights || class.makes_tensors());
        if !is_wanted {
            return Ok(());
        }
        if self.dict.objects.len() >= 2 * MAX_TENSORS {
            bail!(InvalidFile, "expected at most {} objects beside tensors, found more", 2 * MAX_TENSORS);
        }
        let class = Opaque { class: format!("{}.{}", class.module, class.name), is_tensor: class.makes_tensors() };
        self.dict.objects.insert(self.name.clone(), class);
        Ok(())
    }

    fn tensor(&mut self, view: &TensorView<'a>) -> Result<()> {
        let name = &self.name;
        let shown_name = shown(name);
        if name.len() > MAX_NAME || self.dict.tensors.len() >= MAX_TENSORS {
            bail!(
                InvalidFile,
                "expected at most {MAX_TENSORS} tensors with names of at most {MAX_NAME} bytes, found more or longer ones"
            );
        }
        let storage = view.storage;
        if let Key::Name(key) = storage.key
            && key.len() > MAX_NAME
        {
            bail!(InvalidFile, "{shown_name}: expected the key of a record, found one of {} bytes", key.len());
        }
        let (record, bytes) = self.records.get(storage.key)?;
        let Some(bytes) = bytes else {
            bail!(InvalidFile, "{shown_name}: expected the record \"{}\", found none", shown(&record));
        };
        let unit = storage.element_bytes();
        if storage.stored.checked_mul(unit) != Some(bytes.len()) {
            bail!(
                InvalidFile,
                "{shown_name}: {}: expected {} elements of {unit} bytes, found {} bytes",
                shown(&record),
                storage.stored,
                bytes.len()
            );
        }
        let part = storage.start.checked_mul(unit).zip(storage.len.checked_mul(unit));
        let part = part.and_then(|(start, len)| bytes.get(start..)?.get(..len));
        let Some(bytes) = part else {
            bail!(
                InvalidFile,
                "{shown_name}: {}: expected a part of {} elements, found {} from {}",
                shown(&record),
                storage.stored,
                storage.len,
                storage.start
            );
        };
        let tensor = Tensor::strided(view.element, view.shape.clone(), view.strides.clone(), view.offset, bytes);
        let tensor = tensor.map_err(|e| e.context(shown_name))?;
        if self.dict.tensors.insert(name.clone(), tensor).is_some() {
            bail!(InvalidFile, "{shown_name}: expected one tensor of this name, found two");
        }
        if self.scope > 0 {
            self.dict.scopes.insert(name.clone(), self.scope);
        }
        Ok(())
    }
}
