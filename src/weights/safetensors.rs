//! PyTorch's tensor names in a [safetensors](https://github.com/huggingface/safetensors) file → [`LstmWeights`].
//!
//! In:  a file as `safetensors.torch.save_file(module.state_dict(), path)` writes it, holding one or more
//!      `torch.nn.LSTM` or `torch.nn.LSTMCell` at any depth; f32, f16, bf16 or f64.
//! Out: [`LstmWeights`]; layers, directions, projection and biases are inferred from names and shapes.
//! Afterwards every error has named the tensor, the expected and the found shape.
//! Not here: other formats; what the rest of the network means (its tensors are ignored).
//!
//! A *prefix* is what stands before PyTorch's own name: `encoder.lstm.` in `encoder.lstm.weight_ih_l0`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::{CellWeights, LstmWeights};
use crate::error::{Error, ErrorKind, Result, bail};
use crate::spec::{Direction, LayerSpec, LstmSpec};

/// Reads the LSTM under `prefix`, or the only one in the file if `prefix` is `None`.
///
/// `prefix` may be given with or without its last dot; `Some("")` means the top level.
///
/// # Errors
/// [`InvalidFile`](ErrorKind::InvalidFile) if the bytes are not a complete safetensors file;
/// [`InvalidWeights`](ErrorKind::InvalidWeights) if no LSTM or several fit, a tensor is missing, surplus, of the
/// wrong shape, not finite or too large for f32; [`Unsupported`](ErrorKind::Unsupported) if its type is another.
pub fn read(bytes: &[u8], prefix: Option<&str>) -> Result<LstmWeights> {
    let file = parse(bytes)?;
    let prefix = choose(&file, prefix)?;
    assemble(&collect(&file, &prefix)?)
}

/// Reads the LSTM under `prefix` from the file at `path`, see [`read`].
///
/// # Errors
/// As [`read`]; [`InvalidFile`](ErrorKind::InvalidFile) also if the file is missing or is a directory.
pub fn read_file(path: impl AsRef<Path>, prefix: Option<&str>) -> Result<LstmWeights> {
    let path = path.as_ref();
    read_bytes(path).and_then(|bytes| read(&bytes, prefix)).map_err(|e| e.context(path.display()))
}

/// The prefixes under which the file holds an LSTM, sorted; the top level is the empty one.
///
/// # Errors
/// [`InvalidFile`](ErrorKind::InvalidFile) if the bytes are not a complete safetensors file.
pub fn list_prefixes(bytes: &[u8]) -> Result<Vec<String>> {
    let file = parse(bytes)?;
    Ok(candidates(&file).into_iter().filter(|(_, network)| *network == "LSTM").map(|(prefix, _)| prefix).collect())
}

/// Reads one tensor by its full name: its shape and its values as f32.
///
/// # Errors
/// [`InvalidFile`](ErrorKind::InvalidFile) if the bytes are not a complete safetensors file or have no such
/// tensor; [`Unsupported`](ErrorKind::Unsupported) if it is not f32, f16, bf16 or f64;
/// [`InvalidWeights`](ErrorKind::InvalidWeights) if a finite f64 is too large for f32.
pub fn read_tensor(bytes: &[u8], name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
    let file = parse(bytes)?;
    let view = find(&file, name)?;
    Ok((view.shape().to_vec(), to_f32(name, &view)?))
}

/// Reads one tensor of i64 or i32 by its full name: its shape and its values.
///
/// # Errors
/// As [`read_tensor`].
pub fn read_tensor_i64(bytes: &[u8], name: &str) -> Result<(Vec<usize>, Vec<i64>)> {
    let file = parse(bytes)?;
    let view = find(&file, name)?;
    let values = match view.dtype() {
        Dtype::I64 => words(&view).map(i64::from_le_bytes).collect(),
        Dtype::I32 => words(&view).map(|w| i32::from_le_bytes(w).into()).collect(),
        other => bail!(Unsupported, "{name}: expected type I64 or I32, found {other}"),
    };
    Ok((view.shape().to_vec(), values))
}

/// The bytes of the file at `path`, after a look at its head: a wrong file of many gigabytes is refused before
/// memory is taken for it.
fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::new(ErrorKind::InvalidFile, format!("cannot be read: {e}"));
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        bail!(InvalidFile, "expected a file, found a directory");
    }
    let mut bytes = Vec::new();
    file.by_ref().take(8).read_to_end(&mut bytes).map_err(failed)?;
    check_head(&bytes, metadata.len())?;
    bytes.reserve_exact(usize::try_from(metadata.len()).unwrap_or(0).saturating_sub(bytes.len()));
    file.read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Refuses what cannot be a safetensors file by its first eight bytes, the length of the header.
fn check_head(head: &[u8], file_bytes: u64) -> Result<()> {
    const OTHER_FORMATS: [(&[u8], &str); 5] = [
        (b"PK\x03\x04", "a zip archive, such as torch.save or numpy.savez write"),
        (b"\x80\x02", "a pickle, such as an old torch.save wrote"),
        (b"\x89HDF", "an HDF5 file, such as Keras writes"),
        (b"\x93NUMPY", "a numpy array"),
        (b"GGUF", "a GGUF file"),
    ];
    if let Some((_, name)) = OTHER_FORMATS.iter().find(|(magic, _)| head.starts_with(magic)) {
        bail!(
            InvalidFile,
            "expected a safetensors file, found {name}; convert with \
             safetensors.torch.save_file(module.state_dict(), path)"
        );
    }
    let Some(header_bytes) = head.first_chunk().map(|&word| u64::from_le_bytes(word)) else {
        bail!(InvalidFile, "expected a safetensors file, found {file_bytes} bytes: too short for a header");
    };
    if header_bytes > file_bytes.saturating_sub(8) {
        bail!(
            InvalidFile,
            "expected a safetensors file, found a header of {header_bytes} bytes in a file of {file_bytes}: truncated, \
             or another format"
        );
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> Result<SafeTensors<'_>> {
    check_head(&bytes[..bytes.len().min(8)], bytes.len() as u64)?;
    SafeTensors::deserialize(bytes)
        .map_err(|e| Error::new(ErrorKind::InvalidFile, format!("not a complete safetensors file: {e}")))
}

fn find<'a>(file: &SafeTensors<'a>, name: &str) -> Result<TensorView<'a>> {
    file.tensor(name).or_else(|_| bail!(InvalidFile, "{name}: no such tensor; found {}", first_names(file)))
}

/// The first few names of the file, for messages.
fn first_names(file: &SafeTensors<'_>) -> String {
    const SHOWN: usize = 6;
    let names: BTreeSet<&str> = file.names().into_iter().collect();
    let more = names.len().saturating_sub(SHOWN);
    let shown: Vec<&str> = names.into_iter().take(SHOWN).collect();
    match (shown.len(), more) {
        (0, _) => "no tensors".to_owned(),
        (_, 0) => shown.join(", "),
        _ => format!("{}, and {more} more", shown.join(", ")),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    WeightIh,
    WeightHh,
    BiasIh,
    BiasHh,
    WeightHr,
}

const KINDS: [(&str, Kind); 5] = [
    ("weight_hh", Kind::WeightHh),
    ("weight_ih", Kind::WeightIh),
    ("bias_ih", Kind::BiasIh),
    ("bias_hh", Kind::BiasHh),
    ("weight_hr", Kind::WeightHr),
];

/// Which tensor of an LSTM a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    /// `None` in the names of `torch.nn.LSTMCell`.
    layer: Option<usize>,
    reverse: bool,
    kind: Kind,
}

impl Slot {
    /// PyTorch's name.
    fn name(self) -> String {
        let kind = KINDS.iter().find(|(_, kind)| *kind == self.kind).expect("KINDS lists every kind").0;
        let layer = self.layer.map_or(String::new(), |l| format!("_l{l}"));
        format!("{kind}{layer}{}", if self.reverse { "_reverse" } else { "" })
    }
}

/// Takes a name apart: its prefix, and which tensor it means; `None` in place of the slot if the name only looks
/// like one of an LSTM (`weight_hh_l0_raw`), and no result if it does not.
fn take_apart(name: &str) -> Option<(&str, Option<Slot>)> {
    let (start, (stem, kind)) =
        KINDS.iter().filter_map(|entry| name.rfind(entry.0).map(|start| (start, *entry))).max_by_key(|e| e.0)?;
    let rest = &name[start + stem.len()..];
    let (number, reverse) = match rest.strip_suffix("_reverse") {
        Some(number) => (number, true),
        None => (rest, false),
    };
    let slot = if rest.is_empty() {
        (kind != Kind::WeightHr).then_some(Slot { layer: None, reverse: false, kind })
    } else {
        let number = number.strip_prefix("_l").and_then(|n| n.parse::<u16>().ok());
        let slot = number.map(|n| Slot { layer: Some(n.into()), reverse, kind });
        // `parse` reads "+1" and "01" too; only the canonical spelling is PyTorch's.
        slot.filter(|slot| slot.name() == name[start..])
    };
    Some((&name[..start], slot))
}

/// Each prefix with LSTM-like names, and the network that the shapes show: `LSTM`, `GRU` or `RNN`.
fn candidates(file: &SafeTensors<'_>) -> BTreeMap<String, &'static str> {
    let mut found = BTreeMap::new();
    for (name, view) in file.iter() {
        let Some((prefix, Some(slot))) = take_apart(name) else {
            continue;
        };
        let network = found.entry(prefix.to_owned()).or_insert("LSTM");
        if slot.kind == Kind::WeightHh {
            match *view.shape() {
                [rows, h] if h > 0 && rows == 3 * h => *network = "GRU",
                [rows, h] if h > 0 && rows == h => *network = "RNN",
                _ => {}
            }
        }
    }
    found
}

/// The prefix to read.
fn choose(file: &SafeTensors<'_>, wanted: Option<&str>) -> Result<String> {
    let candidates = candidates(file);
    let lstms: Vec<&String> = candidates.iter().filter(|(_, network)| **network == "LSTM").map(|(p, _)| p).collect();
    let list = || {
        let quoted = |p: &&String| {
            if p.is_empty() { "\"\" (the top level)".to_owned() } else { format!("{p:?}") }
        };
        lstms.iter().map(quoted).collect::<Vec<_>>().join(", ")
    };
    let chosen = match wanted {
        Some(wanted) => {
            let dotted = format!("{wanted}.");
            candidates.get_key_value(wanted).or_else(|| candidates.get_key_value(&dotted))
        }
        None if lstms.len() == 1 => candidates.get_key_value(lstms[0]),
        None if lstms.is_empty() && candidates.len() == 1 => candidates.first_key_value(),
        None if lstms.len() > 1 => bail!(
            InvalidWeights,
            "prefix: the file holds several LSTMs: {}; choose one (`--prefix` on the command line)",
            list()
        ),
        None => None,
    };
    match chosen {
        Some((prefix, &"LSTM")) => Ok(prefix.clone()),
        Some((prefix, network)) => {
            let rows = if *network == "GRU" { "3·hidden_size" } else { "hidden_size" };
            bail!(
                InvalidWeights,
                "{prefix}weight_hh: expected [4·hidden_size, hidden_size], found [{rows}, hidden_size]: this is \
                 torch.nn.{network}, not an LSTM"
            )
        }
        None => match wanted {
            Some(wanted) if !lstms.is_empty() => {
                bail!(InvalidWeights, "prefix: expected one of {}, found {wanted:?}", list())
            }
            _ => bail!(
                InvalidWeights,
                "no LSTM in the file: looked for weight_ih_l0 (torch.nn.LSTM) and weight_ih (torch.nn.LSTMCell) \
                 under any prefix, found {}",
                first_names(file)
            ),
        },
    }
}

/// The tensors of one LSTM by slot, each with its full name.
type Tensors<'a> = BTreeMap<Slot, (String, TensorView<'a>)>;

/// All tensors under `prefix`, after refusing names that only look right.
fn collect<'a>(file: &'a SafeTensors<'_>, prefix: &str) -> Result<Tensors<'a>> {
    let mut tensors = Tensors::new();
    let parametrized = format!("{prefix}parametrizations.");
    for (name, view) in file.iter() {
        match take_apart(name) {
            Some((p, Some(slot))) if p == prefix => {
                tensors.insert(slot, (name.to_owned(), view));
            }
            Some((p, _)) if p == prefix || p == parametrized => bail!(
                InvalidWeights,
                "{name}: not a tensor of torch.nn.LSTM; fold weight_norm, weight drop and other parametrizations into \
                 the weights before saving"
            ),
            _ => {}
        }
    }
    let of_cell = tensors.values().zip(tensors.keys()).find(|(_, slot)| slot.layer.is_none());
    let of_stack = tensors.values().zip(tensors.keys()).find(|(_, slot)| slot.layer.is_some());
    if let (Some(((cell, _), _)), Some(((stack, _), _))) = (of_cell, of_stack) {
        bail!(InvalidWeights, "{cell}, {stack}: names of torch.nn.LSTMCell and of torch.nn.LSTM under one prefix");
    }
    Ok(tensors)
}

/// Infers the spec and converts the tensors.
fn assemble(tensors: &Tensors<'_>) -> Result<LstmWeights> {
    let (layers, reverse, bias, projection) = check_complete(tensors)?;
    let mut specs: Vec<LayerSpec> = Vec::new();
    let mut cells = Vec::new();
    for &layer in &layers {
        let spec = infer_layer(tensors, layer, specs.last(), [reverse, bias, projection])?;
        specs.push(spec);
        for &reverse in spec.direction.is_reverse() {
            let get = |kind| {
                let (name, view) = &tensors[&Slot { layer, reverse, kind }];
                to_finite_f32(name, view)
            };
            cells.push(CellWeights {
                weight_ih: get(Kind::WeightIh)?,
                weight_hh: get(Kind::WeightHh)?,
                bias_ih: bias.then(|| get(Kind::BiasIh)).transpose()?,
                bias_hh: bias.then(|| get(Kind::BiasHh)).transpose()?,
                weight_hr: projection.then(|| get(Kind::WeightHr)).transpose()?,
                ..CellWeights::default()
            });
        }
    }
    LstmWeights::new(LstmSpec::new(specs)?, cells)
}

/// The layers in order and whether there are reverse directions, biases and projections, after checking that
/// each layer has them like the others.
fn check_complete(tensors: &Tensors<'_>) -> Result<(Vec<Option<usize>>, bool, bool, bool)> {
    let layers: Vec<Option<usize>> = {
        let set: BTreeSet<_> = tensors.keys().map(|slot| slot.layer).collect();
        set.into_iter().collect()
    };
    let (first, (any_name, _)) = tensors.first_key_value().expect("a chosen prefix has a tensor");
    let prefix = any_name.strip_suffix(&first.name()).unwrap_or_default();
    let missing =
        |slot: Slot, why: &str| bail!(InvalidWeights, "{prefix}{}: missing, though {why} is there", slot.name());

    // Why a tensor must be there: the first one that shows the property.
    let shows = |has: fn(&Slot) -> bool| tensors.iter().find(|(slot, _)| has(slot)).map(|(_, (name, _))| name.as_str());
    let reverse = shows(|slot| slot.reverse);
    let bias = shows(|slot| matches!(slot.kind, Kind::BiasIh | Kind::BiasHh));
    let projection = shows(|slot| slot.kind == Kind::WeightHr);
    for (l, &layer) in layers.iter().enumerate() {
        if layer.is_some_and(|found| found != l) {
            let why = &tensors.iter().find(|(slot, _)| slot.layer == layer).expect("layers are those of tensors").1.0;
            return missing(Slot { layer: Some(l), reverse: false, kind: Kind::WeightIh }, why);
        }
        for backwards in [false, true] {
            if backwards && reverse.is_none() {
                continue;
            }
            for (_, kind) in KINDS {
                let slot = Slot { layer, reverse: backwards, kind };
                let why = match kind {
                    Kind::BiasIh | Kind::BiasHh => bias,
                    Kind::WeightHr => projection,
                    Kind::WeightIh | Kind::WeightHh if backwards => reverse,
                    Kind::WeightIh | Kind::WeightHh => Some(any_name.as_str()),
                };
                if let Some(why) = why
                    && !tensors.contains_key(&slot)
                {
                    return missing(slot, why);
                }
            }
        }
    }
    Ok((layers, reverse.is_some(), bias.is_some(), projection.is_some()))
}

/// The sizes of a layer, after checking every shape against them.
fn infer_layer(
    tensors: &Tensors<'_>,
    layer: Option<usize>,
    before: Option<&LayerSpec>,
    [reverse, bias, projection]: [bool; 3],
) -> Result<LayerSpec> {
    let get = |kind| &tensors[&Slot { layer, reverse: false, kind }];
    let (hh_name, hh) = get(Kind::WeightHh);
    let (ih_name, ih) = get(Kind::WeightIh);
    let hh = two_sizes(hh_name, "[4·hidden_size, hidden_size]", hh)?;
    let ih = two_sizes(ih_name, "[4·hidden_size, input_size]", ih)?;
    let (hidden_size, projection_size) = if projection {
        let (name, view) = get(Kind::WeightHr);
        let [p, hidden_size] = two_sizes(name, "[projection_size, hidden_size]", view)?;
        (hidden_size, Some(p))
    } else {
        // Rows are the better witness: weight_ih and the biases have them too.
        (if hh[0].is_multiple_of(4) { hh[0] / 4 } else { hh[1] }, None)
    };
    let spec = LayerSpec {
        direction: if reverse { Direction::Bidirectional } else { Direction::Forward },
        bias,
        projection_size,
        ..LayerSpec::new(before.map_or(ih[1], LayerSpec::output_size), hidden_size)
    };
    let gates = hidden_size.saturating_mul(4);
    let input = if before.is_some() { "output size of the layer before" } else { "input_size" };
    let h = if projection { "projection_size" } else { "hidden_size" };
    for &reverse in spec.direction.is_reverse() {
        for (_, kind) in KINDS {
            let Some((name, view)) = tensors.get(&Slot { layer, reverse, kind }) else {
                continue;
            };
            let (meaning, expected) = match kind {
                Kind::WeightIh => (format!("[4·hidden_size, {input}]"), vec![gates, spec.input_size]),
                Kind::WeightHh => (format!("[4·hidden_size, {h}]"), vec![gates, spec.h_size()]),
                Kind::BiasIh | Kind::BiasHh => ("[4·hidden_size]".to_owned(), vec![gates]),
                Kind::WeightHr => ("[projection_size, hidden_size]".to_owned(), vec![spec.h_size(), hidden_size]),
            };
            if view.shape() != expected {
                bail!(InvalidWeights, "{name}: expected {meaning} = {expected:?}, found {:?}", view.shape());
            }
        }
    }
    Ok(spec)
}

fn two_sizes(name: &str, meaning: &str, view: &TensorView<'_>) -> Result<[usize; 2]> {
    match *view.shape() {
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => bail!(InvalidWeights, "{name}: expected {meaning}, found {:?}", view.shape()),
    }
}

fn to_finite_f32(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    let values = to_f32(name, view)?;
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => bail!(InvalidWeights, "{name}: expected finite values, found {} at element {i}", values[i]),
        None => Ok(values),
    }
}

fn to_f32(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    Ok(match view.dtype() {
        Dtype::F32 => words(view).map(f32::from_le_bytes).collect(),
        Dtype::F16 => words(view).map(|w| f16::from_le_bytes(w).to_f32()).collect(),
        Dtype::BF16 => words(view).map(|w| bf16::from_le_bytes(w).to_f32()).collect(),
        Dtype::F64 => {
            let rounded: Vec<f32> = words(view).map(|w| f64::from_le_bytes(w) as f32).collect();
            let overflowed = |(r, w): (&f32, [u8; 8])| r.is_infinite() && f64::from_le_bytes(w).is_finite();
            if let Some(i) = rounded.iter().zip(words(view)).position(overflowed) {
                bail!(
                    InvalidWeights,
                    "{name}: expected values within the range of f32, found one beyond at element {i}"
                );
            }
            rounded
        }
        other => bail!(Unsupported, "{name}: expected type F32, F16, BF16 or F64, found {other}"),
    })
}

/// The elements of a tensor as little-endian words; the format has checked that N divides the size.
fn words<'a, const N: usize>(view: &TensorView<'a>) -> impl Iterator<Item = [u8; N]> + 'a {
    view.data().as_chunks::<N>().0.iter().copied()
}

#[cfg(test)]
mod tests;
