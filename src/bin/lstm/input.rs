//! The arrays `x`, `lengths`, `h_0`, `c_0` of a file → a batch, with errors that say what would fit.

use std::path::Path;

use wgpu_lstm::{Layout, LstmSpec, SequenceBatch};

use crate::common::failure::{Failure, Result, fail};
use crate::npz::{Array, ArrayFile, Data};

/// Arrays of results; a file may hold them beside its input.
const RESULTS: [&str; 3] = ["output", "h_n", "c_n"];

/// What was read, in the layout of the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Input {
    x: Vec<f32>,
    /// As `layout` says; an unbatched x [T, I] has B = 1.
    shape: [usize; 3],
    pub(crate) layout: Layout,
    /// x was [T, I]; results have no batch axis either.
    pub(crate) unbatched: bool,
    lengths: Option<Vec<usize>>,
    h_0: Option<Vec<f32>>,
    c_0: Option<Vec<f32>>,
}

impl Input {
    /// Reads and checks a file for a model.
    pub(crate) fn read(path: &Path, layout: Layout, spec: &LstmSpec) -> Result<Self> {
        let mut file = ArrayFile::open(path, "x")?;
        let named = |failure: Failure| failure.context(path.display());
        let names = file.names();
        let known = |name: &str| ["x", "lengths", "h_0", "c_0"].contains(&name) || RESULTS.contains(&name);
        if let Some(name) = names.iter().find(|name| !known(name)) {
            fail!("{}: unknown array {name}; x, lengths, h_0 and c_0 are read", path.display());
        }
        let Some(x) = file.read("x")? else {
            fail!("{}: the array x is missing; found {}", path.display(), list(&names));
        };
        let mut arrays = [file.read("lengths")?, file.read("h_0")?, file.read("c_0")?].into_iter();
        let mut next = || arrays.next().flatten();
        Self::check(x, next(), next(), next(), layout, spec).map_err(named)
    }

    fn check(
        x: Array,
        lengths: Option<Array>,
        h_0: Option<Array>,
        c_0: Option<Array>,
        layout: Layout,
        spec: &LstmSpec,
    ) -> Result<Self> {
        let unbatched = x.shape.len() == 2;
        let (shape, layout) = match *x.shape {
            [seq_len, features] => ([1, seq_len, features], Layout::BatchMajor),
            [first, second, features] => ([first, second, features], layout),
            _ => fail!("x: expected {} or [T, I], found shape {:?}", axes(layout), x.shape),
        };
        check_input_size(&x.shape, layout, spec.input_size())?;
        let mut input = Self { x: x.into_f32("x")?, shape, layout, unbatched, lengths: None, h_0: None, c_0: None };
        input.lengths = lengths.map(|array| input.check_lengths(&array)).transpose()?;
        let [h_widths, c_widths] = state_widths(spec);
        if c_0.is_some() && c_widths.is_empty() {
            fail!("c_0: expected none, since no layer of this model has a cell state, found an array");
        }
        input.h_0 = h_0.map(|array| input.check_state("h_0", array, &h_widths)).transpose()?;
        input.c_0 = c_0.map(|array| input.check_state("c_0", array, &c_widths)).transpose()?;
        Ok(input)
    }

    pub(crate) fn batch_size(&self) -> usize {
        if self.layout == Layout::BatchMajor { self.shape[0] } else { self.shape[1] }
    }

    pub(crate) fn seq_len(&self) -> usize {
        if self.layout == Layout::BatchMajor { self.shape[1] } else { self.shape[0] }
    }

    /// The batch over the arrays.
    pub(crate) fn batch(&self) -> Result<SequenceBatch<'_>> {
        let mut batch = SequenceBatch::new(&self.x, self.shape, self.layout)?;
        if let Some(lengths) = &self.lengths {
            batch = batch.lengths(lengths)?;
        }
        if let Some(h_0) = &self.h_0 {
            batch = batch.h_0(h_0);
        }
        if let Some(c_0) = &self.c_0 {
            batch = batch.c_0(c_0);
        }
        Ok(batch)
    }

    /// `x: B=2 T=5 I=3, ragged 1–5; initial state h_0, c_0`.
    pub(crate) fn summary(&self) -> String {
        let mut text = if self.unbatched {
            format!("x: T={} I={}, unbatched", self.shape[1], self.shape[2])
        } else {
            format!("x: B={} T={} I={}", self.batch_size(), self.seq_len(), self.shape[2])
        };
        match self.lengths.as_deref().and_then(|l| Some((l.iter().min()?, l.iter().max()?))) {
            Some((shortest, longest)) if shortest == longest => text += &format!(", lengths {longest}"),
            Some((shortest, longest)) => text += &format!(", ragged {shortest}–{longest}"),
            None => {}
        }
        let states = [("h_0", &self.h_0), ("c_0", &self.c_0)];
        let given: Vec<&str> = states.iter().filter(|(_, state)| state.is_some()).map(|(name, _)| *name).collect();
        if !given.is_empty() {
            text += &format!("; initial state {}", given.join(", "));
        }
        text
    }

    fn other_layout_hint(&self, found_batch_size: usize) -> String {
        if found_batch_size == self.seq_len() && !self.unbatched {
            format!("; `--layout {}` would fit", option_name(other(self.layout)))
        } else {
            String::new()
        }
    }

    fn check_lengths(&self, array: &Array) -> Result<Vec<usize>> {
        let (batch_size, seq_len) = (self.batch_size(), self.seq_len());
        let count: usize = array.shape.iter().product();
        let one_axis = array.shape.len() == 1 || (self.unbatched && array.shape.is_empty());
        if !one_axis || count != batch_size {
            fail!(
                "lengths: expected [B] = [{batch_size}] for x {:?}, found shape {:?}{}",
                self.shape,
                array.shape,
                if one_axis { self.other_layout_hint(count) } else { String::new() }
            );
        }
        let good = |value: f64| value >= 0.0 && value <= seq_len as f64 && value.fract() == 0.0;
        match &array.data {
            Data::Int(values) => {
                if let Some(b) = values.iter().position(|&n| n < 0 || n as u64 > seq_len as u64) {
                    fail!("lengths[{b}]: expected 0 to {seq_len} (T of x), found {}", values[b]);
                }
                Ok(values.iter().map(|&n| n as usize).collect())
            }
            // Numpy makes floats easily; whole ones are clear.
            Data::F32(_) | Data::F64(_) | Data::Uint(_) => {
                let values = array.to_f64();
                if let Some(b) = values.iter().position(|&n| !good(n)) {
                    fail!("lengths[{b}]: expected a whole number from 0 to {seq_len} (T of x), found {}", values[b]);
                }
                Ok(values.iter().map(|&n| n as usize).collect())
            }
        }
    }

    /// `widths` has one entry per layer and direction.
    fn check_state(&self, name: &str, array: Array, widths: &[usize]) -> Result<Vec<f32>> {
        let batch_size = self.batch_size();
        let Some(expected) = state_shape(widths, batch_size, self.unbatched) else {
            // No common shape: blocks [B, width] one after the other, as they are returned.
            let elements = batch_size * widths.iter().sum::<usize>();
            if array.shape.iter().product::<usize>() != elements {
                fail!(
                    "{name}: expected {elements} elements, one block [B, width] per layer and direction, found shape {:?}",
                    array.shape
                );
            }
            return array.into_f32(name);
        };
        if array.shape == expected {
            return array.into_f32(name);
        }
        let hint = match (expected.as_slice(), array.shape.as_slice()) {
            (&[cells, batch, width], &[a, b, c]) if (a, b, c) == (batch, cells, width) => {
                "; the first two axes are swapped: states are [L·D, B, width] in every layout".to_owned()
            }
            (&[cells, _, width], &[a, b, c]) if (a, c) == (cells, width) => self.other_layout_hint(b),
            _ => String::new(),
        };
        fail!(
            "{name}: expected [layers·directions, B, width] = {expected:?} for x {:?}, found {:?}{hint}",
            self.shape,
            array.shape
        )
    }
}

/// The widths of the blocks of h, and of c, which only cells with a cell state have.
pub(crate) fn state_widths(spec: &LstmSpec) -> [Vec<usize>; 2] {
    let widths = |width: fn(&wgpu_lstm::LayerSpec) -> usize| {
        spec.cells().map(|(_, layer, _)| width(layer)).filter(|&w| w > 0).collect()
    };
    [widths(wgpu_lstm::LayerSpec::h_size), widths(wgpu_lstm::LayerSpec::c_size)]
}

/// PyTorch's shape of a state, [L·D, B, width] or [L·D, width]; `None` if widths differ.
pub(crate) fn state_shape(widths: &[usize], batch_size: usize, unbatched: bool) -> Option<Vec<usize>> {
    let width = *widths.first()?;
    if widths.iter().any(|&w| w != width) {
        return None;
    }
    Some(if unbatched { vec![widths.len(), width] } else { vec![widths.len(), batch_size, width] })
}

fn check_input_size(shape: &[usize], layout: Layout, input_size: usize) -> Result<()> {
    let last = shape.len() - 1;
    if shape[last] == input_size {
        return Ok(());
    }
    let hint = match shape.iter().position(|&n| n == input_size) {
        Some(axis) => format!("; axis {axis} would fit: are the axes in another order?"),
        None => String::new(),
    };
    let axes = if last == 1 { "[T, I]" } else { axes(layout) };
    fail!("x: expected {axes} with I = {input_size} for this model, found {shape:?}{hint}")
}

fn axes(layout: Layout) -> &'static str {
    match layout {
        Layout::BatchMajor => "[B, T, I]",
        Layout::TimeMajor => "[T, B, I]",
    }
}

fn other(layout: Layout) -> Layout {
    match layout {
        Layout::BatchMajor => Layout::TimeMajor,
        Layout::TimeMajor => Layout::BatchMajor,
    }
}

fn option_name(layout: Layout) -> &'static str {
    match layout {
        Layout::BatchMajor => "batch",
        Layout::TimeMajor => "time",
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "no arrays".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpu_lstm::Direction;

    fn floats(shape: &[usize]) -> Array {
        Array { shape: shape.to_vec(), data: Data::F32(vec![0.5; shape.iter().product()]) }
    }

    fn ints(values: &[i64]) -> Option<Array> {
        Some(Array { shape: vec![values.len()], data: Data::Int(values.to_vec()) })
    }

    /// Input 3, hidden 7, two layers, both directions: states [4, B, 7].
    fn check(x: &[usize], lengths: Option<Array>, h_0: Option<Array>, layout: Layout) -> Result<Input, String> {
        let spec = LstmSpec::stack(3, 7, 2).direction(Direction::Bidirectional).build().unwrap();
        Input::check(floats(x), lengths, h_0, None, layout, &spec).map_err(|f| f.to_string())
    }

    #[test]
    fn the_summary_says_what_was_understood() {
        let summary = |x: &[usize], lengths, h_0, layout| check(x, lengths, h_0, layout).unwrap().summary();
        let batch = Layout::BatchMajor;
        assert_eq!(summary(&[2, 5, 3], ints(&[1, 5]), None, batch), "x: B=2 T=5 I=3, ragged 1–5");
        assert_eq!(summary(&[2, 5, 3], None, None, Layout::TimeMajor), "x: B=5 T=2 I=3");
        assert_eq!(summary(&[2, 5, 3], ints(&[4, 4]), None, batch), "x: B=2 T=5 I=3, lengths 4");
        assert_eq!(summary(&[2, 5, 3], None, Some(floats(&[4, 2, 7])), batch), "x: B=2 T=5 I=3; initial state h_0");
        assert_eq!(summary(&[5, 3], ints(&[2]), None, Layout::TimeMajor), "x: T=5 I=3, unbatched, lengths 2");
        assert_eq!(summary(&[0, 5, 3], ints(&[]), None, batch), "x: B=0 T=5 I=3");
    }

    #[test]
    fn errors_say_what_would_fit() {
        let message = |x: &[usize], lengths, h_0, layout| check(x, lengths, h_0, layout).unwrap_err();
        let batch = Layout::BatchMajor;
        assert_eq!(
            message(&[2, 3, 5], None, None, batch),
            "x: expected [B, T, I] with I = 3 for this model, found [2, 3, 5]; axis 1 would fit: are the axes in another \
             order?"
        );
        assert!(message(&[2, 5, 4], None, None, batch).ends_with("found [2, 5, 4]"));
        assert!(message(&[3], None, None, batch).contains("or [T, I], found shape [3]"));
        let wrong_layout = message(&[5, 2, 3], ints(&[1, 5]), None, batch);
        assert!(wrong_layout.ends_with("found shape [2]; `--layout time` would fit"), "{wrong_layout}");
        let wrong_layout = message(&[2, 5, 3], ints(&[1, 5]), None, Layout::TimeMajor);
        assert!(wrong_layout.ends_with("`--layout batch` would fit"), "{wrong_layout}");
        let state = message(&[2, 5, 3], None, Some(floats(&[4, 5, 7])), batch);
        assert!(state.contains("= [4, 2, 7]") && state.ends_with("`--layout time` would fit"), "{state}");
        let swapped = message(&[2, 5, 3], None, Some(floats(&[2, 4, 7])), batch);
        assert!(swapped.contains("first two axes are swapped"), "{swapped}");
        assert!(message(&[5, 3], None, Some(floats(&[4, 1, 7])), batch).contains("= [4, 7]"));
    }

    #[test]
    fn bad_lengths_are_named() {
        let message = |lengths| check(&[2, 5, 3], Some(lengths), None, Layout::BatchMajor).unwrap_err();
        let int = |values: [i64; 2]| Array { shape: vec![2], data: Data::Int(values.to_vec()) };
        let float = |values: [f64; 2]| Array { shape: vec![2], data: Data::F64(values.to_vec()) };
        assert_eq!(message(int([2, -1])), "lengths[1]: expected 0 to 5 (T of x), found -1");
        assert_eq!(message(int([6, 1])), "lengths[0]: expected 0 to 5 (T of x), found 6");
        assert!(
            message(float([1.0, f64::NAN]))
                .ends_with("lengths[1]: expected a whole number from 0 to 5 (T of x), found NaN")
        );
        assert!(message(float([1.5, 2.0])).contains("found 1.5"));
        assert!(message(float([1.0, -2.0])).contains("found -2"));
        assert!(message(float([f64::INFINITY, 2.0])).contains("found inf"));
        assert!(message(Array { shape: vec![2, 1], data: Data::Int(vec![1, 1]) }).contains("shape [2, 1]"));
        let input = check(&[2, 5, 3], Some(float([3.0, 5.0])), None, Layout::BatchMajor).unwrap();
        assert_eq!(input.batch().unwrap().sequence_lengths(), [3, 5]);
    }
}
