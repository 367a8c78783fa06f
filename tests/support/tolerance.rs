//! What a correct f32 implementation may be off by; derived in docs/numerics.md, "tolerances".
//!
//! Two judgements. [`one_step`] is rigorous: from a given state, one timestep lies within a bound that follows
//! from the roundings, for any T. [`whole_run`] compares with the error of the f32 reference itself.

use wgpu_lstm::reference::{self, ReferenceOutput};
use wgpu_lstm::{
    BatchOutput, CellWeights, LayerSpec, Layout, LstmSpec, LstmWeights, Outputs, SequenceBatch, SequenceOutput,
};

use super::comparer::{Bound, Report, compare, expect_empty};

/// The unit roundoff of f32.
const U: f64 = 1.0 / (1u64 << 24) as f64;

/// What is known about the arithmetic under test.
#[derive(Debug, Clone, Copy)]
pub struct Arithmetic {
    /// Through how many roundings a product of a sum over k elements may pass.
    depth: fn(usize) -> usize,
    /// Absolute error of sigmoid and tanh.
    activation_error: f64,
}

/// Sums in segments of 32 in order, then the segments in order, at most two of them short; activations as
/// `shaders/lib/activation.wgsl` promises.
pub const GPU: Arithmetic =
    Arithmetic { depth: |k| (k.min(32) + 1) + (k.div_ceil(32) + 2), activation_error: 10.0 * U };

/// Sums in any order; activations within 3 ulps of a result that is at most 1.
pub const CPU: Arithmetic = Arithmetic { depth: |k| k + 1, activation_error: 3.0 * U };

/// γ_n, the relative error after n roundings (Higham 2002, lemma 3.1).
fn gamma(roundings: usize) -> f64 {
    let n = roundings as f64 * U;
    n / (1.0 - n)
}

/// What a result must be, element by element.
#[derive(Debug, Clone)]
pub struct Judgement {
    spec: LstmSpec,
    layout: Layout,
    seq_len: usize,
    batch_size: usize,
    pub expected: ReferenceOutput<f64>,
    /// In the same shapes.
    pub bounds: ReferenceOutput<f64>,
}

impl Judgement {
    /// Checks every array that was asked for, and that no other is there.
    ///
    /// # Errors
    /// The message of the first comparison that fails.
    pub fn check(&self, found: &BatchOutput) -> Result<Vec<Report>, String> {
        let last = self.spec.last_layer();
        let (t, b) = (("t", self.seq_len), ("b", self.batch_size));
        let rows = |width| {
            let [first, second] = match self.layout {
                Layout::TimeMajor => [t, b],
                Layout::BatchMajor => [b, t],
            };
            vec![first, second, ("direction", last.num_directions()), ("j", width)]
        };
        let last_axes = vec![b, ("direction", last.num_directions()), ("j", last.h_size())];
        let (expected, bounds) = (&self.expected, &self.bounds);
        let mut reports = Vec::new();
        for (what, found, expected, bounds, axes) in [
            ("output", &found.output, &expected.output, &bounds.output, rows(last.h_size())),
            ("cells", &found.cells, &expected.cells, &bounds.cells, rows(last.hidden_size)),
            ("last", &found.last, &expected.last, &bounds.last, last_axes),
        ] {
            if let Some((found, expected, bounds)) = present(what, found, expected, bounds)? {
                reports.extend(compare_or_empty(what, &axes, found, expected, bounds)?);
            }
        }
        for (what, found, expected, bounds, width) in [
            ("h_n", &found.h_n, &expected.h_n, &bounds.h_n, LayerSpec::h_size as fn(&LayerSpec) -> usize),
            ("c_n", &found.c_n, &expected.c_n, &bounds.c_n, |layer| layer.hidden_size),
        ] {
            let Some((found, expected, bounds)) = present(what, found, expected, bounds)? else { continue };
            if found.len() != expected.len() {
                return Err(format!("{what}: found has {} elements, expected {}", found.len(), expected.len()));
            }
            let mut start = 0;
            for (l, layer, reverse) in self.spec.cells() {
                let block = start..start + self.batch_size * width(layer);
                start = block.end;
                let what = format!("{what} of layer {l} {}", if reverse { "reverse" } else { "forward" });
                let axes = [("b", self.batch_size), ("j", width(layer))];
                reports.extend(compare_or_empty(
                    &what,
                    &axes,
                    &found[block.clone()],
                    &expected[block.clone()],
                    &bounds[block],
                )?);
            }
        }
        Ok(reports)
    }
}

type Arrays<'a> = (&'a [f32], &'a [f64], &'a [f64]);

fn present<'a>(
    what: &str,
    found: &'a Option<Vec<f32>>,
    expected: &'a Option<Vec<f64>>,
    bounds: &'a Option<Vec<f64>>,
) -> Result<Option<Arrays<'a>>, String> {
    match (found, expected, bounds) {
        (Some(found), Some(expected), Some(bounds)) => Ok(Some((found, expected, bounds))),
        (None, None, None) => Ok(None),
        _ => Err(format!("{what}: found {}, expected {}", found.is_some(), expected.is_some())),
    }
}

fn compare_or_empty(
    what: &str,
    axes: &[(&str, usize)],
    found: &[f32],
    expected: &[f64],
    bounds: &[f64],
) -> Result<Option<Report>, String> {
    if axes.iter().any(|(_, size)| *size == 0) {
        expect_empty(what, found, expected).map(|()| None)
    } else {
        compare(what, axes, found, expected, Bound::Each(bounds)).map(Some)
    }
}

/// The judgement of a whole run: the error against f64 is at most 4 times the largest error of the f32 reference,
/// plus a floor for activations that are not those of the reference. Exact where nothing may be computed: rows
/// past a length are zero, and a sequence of length 0 keeps its state.
pub fn whole_run(weights: &LstmWeights, batch: &SequenceBatch<'_>, arithmetic: Arithmetic) -> Judgement {
    let expected = reference::run::<f64>(weights, batch).expect("a valid batch");
    let own = reference::run::<f32>(weights, batch).expect("a valid batch");
    // The largest |c| that can be seen without another run.
    let c_max = [&expected.c_n, &expected.cells].into_iter().flatten().flatten().fold(1.0f64, |m, c| m.max(c.abs()));
    let floor = floor(weights.spec().num_layers(), c_max, arithmetic);
    let bound = |expected: &Option<Vec<f64>>, own: &Option<Vec<f32>>| -> Option<Vec<f64>> {
        let (expected, own) = (expected.as_ref()?, own.as_ref()?);
        let largest = expected.iter().zip(own).map(|(e, o)| (e - f64::from(*o)).abs()).fold(0.0, f64::max);
        Some(vec![4.0 * largest + floor; expected.len()])
    };
    let bounds = ReferenceOutput {
        output: bound(&expected.output, &own.output),
        last: bound(&expected.last, &own.last),
        h_n: bound(&expected.h_n, &own.h_n),
        c_n: bound(&expected.c_n, &own.c_n),
        cells: bound(&expected.cells, &own.cells),
    };
    judgement(weights.spec(), batch, expected, bounds)
}

/// What differing activations may add to a whole run. In one step an activation error e moves c by at most
/// (|c| + 2)·e, and h by 2·e more. With weights of `distinct_weights` a step keeps at most 0.7 of an error, so that
/// all steps together add 1 / (1 − 0.7) times as much, and a layer passes errors of its input on without enlarging
/// them in h, and at most doubles them in c: 7 times in all.
fn floor(num_layers: usize, c_max: f64, arithmetic: Arithmetic) -> f64 {
    7.0 * num_layers as f64 * (c_max + 4.0) * arithmetic.activation_error
}

/// Sets the bounds to 0 where nothing may be computed.
fn judgement(
    spec: &LstmSpec,
    batch: &SequenceBatch<'_>,
    expected: ReferenceOutput<f64>,
    mut bounds: ReferenceOutput<f64>,
) -> Judgement {
    let (lengths, seq_len, batch_size) = (batch.sequence_lengths(), batch.seq_len(), batch.batch_size());
    for array in [&mut bounds.output, &mut bounds.cells].into_iter().flatten() {
        let width = array.len() / (seq_len * batch_size).max(1);
        for (b, &length) in lengths.iter().enumerate() {
            for t in length..seq_len {
                array[batch.layout().row(t, b, seq_len, batch_size) * width..][..width].fill(0.0);
            }
        }
    }
    for (b, _) in lengths.iter().enumerate().filter(|(_, length)| **length == 0) {
        if let Some(last) = &mut bounds.last {
            last[b * spec.output_size()..][..spec.output_size()].fill(0.0);
        }
        for (array, width) in [
            (&mut bounds.h_n, LayerSpec::h_size as fn(&LayerSpec) -> usize),
            (&mut bounds.c_n, |layer: &LayerSpec| layer.hidden_size),
        ] {
            let Some(array) = array else { continue };
            let mut start = 0;
            for (_, layer, _) in spec.cells() {
                array[start + b * width(layer)..][..width(layer)].fill(0.0);
                start += batch_size * width(layer);
            }
        }
    }
    Judgement { spec: spec.clone(), layout: batch.layout(), seq_len, batch_size, expected, bounds }
}

/// One timestep of every cell, from states that a run passes through.
#[derive(Debug, Clone)]
pub struct StepSample {
    pub t: usize,
    /// [B, 1, I]
    pub x: Vec<f32>,
    pub h_0: Vec<f32>,
    pub c_0: Vec<f32>,
    /// 1, or 0 where the sequence has ended.
    pub lengths: Vec<usize>,
}

impl StepSample {
    pub fn batch(&self, input_size: usize) -> SequenceBatch<'_> {
        SequenceBatch::new(&self.x, [self.lengths.len(), 1, input_size], Layout::BatchMajor)
            .and_then(|b| b.lengths(&self.lengths))
            .expect("one row per sequence")
            .h_0(&self.h_0)
            .c_0(&self.c_0)
            .outputs(Outputs { sequence: SequenceOutput::All, final_state: true, cells: true })
    }
}

/// The timestep `t` of a run on its own: the input row, and the states before it, in f64 rounded to f32. A forward
/// cell has seen the steps before `t`, a reverse cell those after it.
pub fn sample_step(weights: &LstmWeights, batch: &SequenceBatch<'_>, t: usize) -> StepSample {
    let (spec, lengths, input_size) = (weights.spec(), batch.sequence_lengths(), batch.input_size());
    let states_after = |range: fn(usize, usize) -> std::ops::Range<usize>| {
        let ranges: Vec<_> = lengths.iter().map(|&length| range(t, length)).collect();
        let seq_len = ranges.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        let mut x = vec![0.0; batch.batch_size() * seq_len * input_size];
        for (b, range) in ranges.iter().enumerate() {
            for (to, from) in range.clone().enumerate() {
                x[(b * seq_len + to) * input_size..][..input_size].copy_from_slice(batch.input_row(from, b));
            }
        }
        let part =
            SequenceBatch::new(&x, [batch.batch_size(), seq_len, input_size], Layout::BatchMajor).expect("sizes");
        let part = part.lengths(&ranges.iter().map(ExactSizeIterator::len).collect::<Vec<_>>()).expect("lengths");
        let part = batch.initial_h().into_iter().fold(part, SequenceBatch::h_0);
        let part = batch.initial_c().into_iter().fold(part, SequenceBatch::c_0);
        let result = reference::run::<f64>(weights, &part).expect("a valid batch");
        (result.h_n.expect("the default"), result.c_n.expect("the default"))
    };
    let before = states_after(|t, length| 0..t.min(length));
    let after = states_after(|t, length| (t + 1).min(length)..length);
    let (mut h_0, mut c_0) = (Vec::new(), Vec::new());
    for (_, layer, reverse) in spec.cells() {
        let (h, c) = if reverse { &after } else { &before };
        let take = |to: &mut Vec<f32>, from: &[f64], width: usize| {
            let start = to.len();
            to.extend(from[start..start + batch.batch_size() * width].iter().map(|v| *v as f32));
        };
        take(&mut h_0, h, layer.h_size());
        take(&mut c_0, c, layer.hidden_size);
    }
    let lengths: Vec<usize> = lengths.iter().map(|&length| usize::from(t < length)).collect();
    let mut x = vec![0.0; lengths.len() * input_size];
    for (b, row) in x.chunks_exact_mut(input_size).enumerate().filter(|(b, _)| lengths[*b] == 1) {
        row.copy_from_slice(batch.input_row(t, b));
    }
    StepSample { t, x, h_0, c_0, lengths }
}

/// The judgement of a batch of T = 1: every cell takes one step from the given state, and each element has a bound
/// that no correct implementation of `arithmetic` can exceed.
pub fn one_step(weights: &LstmWeights, batch: &SequenceBatch<'_>, arithmetic: Arithmetic) -> Judgement {
    assert_eq!(batch.seq_len(), 1, "one step has T = 1");
    let spec = weights.spec();
    let batch_size = batch.batch_size();
    let expected = reference::run::<f64>(weights, batch).expect("a valid batch");
    let zeros = |array: &Option<Vec<f64>>| array.as_ref().map(|a| vec![0.0; a.len()]);
    let mut bounds = ReferenceOutput {
        output: zeros(&expected.output),
        last: zeros(&expected.last),
        h_n: zeros(&expected.h_n),
        c_n: zeros(&expected.c_n),
        cells: zeros(&expected.cells),
    };
    for b in (0..batch_size).filter(|&b| batch.sequence_lengths()[b] == 1) {
        let mut x: Vec<Tracked> = batch.input_row(0, b).iter().map(|&v| Tracked::exact(v)).collect();
        let mut cells = weights.cells().iter();
        let (mut h_start, mut c_start) = (0, 0);
        for (l, layer) in spec.layers().iter().enumerate() {
            let mut output = Vec::new();
            let mut output_cells = Vec::new();
            for _ in 0..layer.num_directions() {
                let cell = cells.next().expect("one cell per layer and direction");
                let state = |given: Option<&[f32]>, start: usize, width: usize| -> Vec<Tracked> {
                    let values = given.map(|g| &g[start + b * width..][..width]);
                    (0..width).map(|j| Tracked::exact(values.map_or(0.0, |v| v[j]))).collect()
                };
                let h = state(batch.initial_h(), h_start, layer.h_size());
                let c = state(batch.initial_c(), c_start, layer.hidden_size);
                let (h, c) = step(layer, cell, &x, &h, &c, arithmetic);
                put(&mut bounds.h_n, &expected.h_n, h_start + b * layer.h_size(), &h);
                put(&mut bounds.c_n, &expected.c_n, c_start + b * layer.hidden_size, &c);
                h_start += batch_size * layer.h_size();
                c_start += batch_size * layer.hidden_size;
                output.extend(h);
                output_cells.extend(c);
            }
            if l + 1 == spec.num_layers() {
                put(&mut bounds.output, &expected.output, b * output.len(), &output);
                put(&mut bounds.last, &expected.last, b * output.len(), &output);
                put(&mut bounds.cells, &expected.cells, b * output_cells.len(), &output_cells);
            }
            x = output;
        }
    }
    judgement(spec, batch, expected, bounds)
}

/// A number and how far a computed one may be from it.
#[derive(Debug, Clone, Copy)]
struct Tracked {
    value: f64,
    error: f64,
}

impl Tracked {
    fn exact(value: f32) -> Self {
        Self { value: value.into(), error: 0.0 }
    }

    /// The largest magnitude that the computed number may have.
    fn magnitude(self) -> f64 {
        self.value.abs() + self.error
    }

    /// The product, not rounded.
    fn times(self, other: Self) -> Self {
        let error = self.error * other.magnitude() + self.value.abs() * other.error;
        Self { value: self.value * other.value, error }
    }

    /// After `roundings` more.
    fn rounded(self, roundings: usize) -> Self {
        Self { error: self.error + gamma(roundings) * self.magnitude(), ..self }
    }

    fn plus(self, other: Self) -> Self {
        Self { value: self.value + other.value, error: self.error + other.error }
    }
}

/// Σ w·x, each product rounded `depth` + `more` times on its way to the result. Results below the normal numbers
/// may be flushed to zero.
fn dot(w: &[f32], x: &[Tracked], more: usize, arithmetic: Arithmetic) -> Tracked {
    let gamma = gamma((arithmetic.depth)(w.len()) + more);
    let mut sum = Tracked { value: 0.0, error: w.len() as f64 * f64::from(f32::MIN_POSITIVE) };
    for (&w, x) in w.iter().zip(x) {
        let w = f64::from(w);
        sum.value += w * x.value;
        sum.error += w.abs() * (x.error + gamma * x.magnitude());
    }
    sum
}

/// One timestep of one cell: h and c with their errors.
fn step(
    layer: &LayerSpec,
    weights: &CellWeights,
    x: &[Tracked],
    h: &[Tracked],
    c: &[Tracked],
    arithmetic: Arithmetic,
) -> (Vec<Tracked>, Vec<Tracked>) {
    let hidden_size = layer.hidden_size;
    let bias = |bias: &Option<Vec<f32>>, r: usize| Tracked::exact(bias.as_ref().map_or(0.0, |b| b[r]));
    let gate = |gate: usize, j: usize| {
        let r = gate * hidden_size + j;
        // gate = (Σ x·W_ih + bias) + Σ h·W_hh: two roundings after the first sum, one after the second, and the
        // biases are added to each other before.
        let from_x = dot(&weights.weight_ih[r * layer.input_size..][..layer.input_size], x, 2, arithmetic);
        let from_h = dot(&weights.weight_hh[r * layer.h_size()..][..layer.h_size()], h, 1, arithmetic);
        let bias = bias(&weights.bias_ih, r).rounded(3).plus(bias(&weights.bias_hh, r).rounded(3));
        from_x.plus(bias).plus(from_h)
    };
    // Sigmoid's slope is at most 1/4, that of tanh at most 1.
    let sigmoid = |z: Tracked| Tracked {
        value: 1.0 / (1.0 + (-z.value).exp()),
        error: z.error / 4.0 + arithmetic.activation_error,
    };
    let tanh = |z: Tracked| Tracked { value: z.value.tanh(), error: z.error + arithmetic.activation_error };
    let (mut c_next, mut m) = (Vec::new(), Vec::new());
    for (j, &c) in c.iter().enumerate() {
        let (i, f, g, o) = (sigmoid(gate(0, j)), sigmoid(gate(1, j)), tanh(gate(2, j)), sigmoid(gate(3, j)));
        let c = f.times(c).rounded(2).plus(i.times(g).rounded(2));
        m.push(o.times(tanh(c)).rounded(1));
        c_next.push(c);
    }
    let h = match &weights.weight_hr {
        None => m,
        Some(weight_hr) => weight_hr.chunks_exact(hidden_size).map(|row| dot(row, &m, 0, arithmetic)).collect(),
    };
    (h, c_next)
}

/// Stores the bounds of a row, after checking that this file and the reference agree on the values.
fn put(bounds: &mut Option<Vec<f64>>, expected: &Option<Vec<f64>>, start: usize, row: &[Tracked]) {
    if let (Some(bounds), Some(expected)) = (bounds, expected) {
        for (k, element) in row.iter().enumerate() {
            let difference = (expected[start + k] - element.value).abs();
            assert!(difference <= 1e-12 * element.value.abs().max(1.0), "the reference is off by {difference:e}");
            bounds[start + k] = element.error;
        }
    }
}
