//! What a correct f32 implementation may be off by; derived in docs/numerics.md, "tolerances".
//!
//! Two judgements. [`one_step`] is rigorous: from a given state, one timestep lies within a bound that follows
//! from the roundings, for any T. [`whole_run`] compares with the error of the f32 reference itself.

use wgpu_lstm::reference::{self, ReferenceOutput};
use wgpu_lstm::{
    Activation, BatchOutput, CellSpec, CellWeights, GruCell, LayerSpec, Layout, LstmCell, LstmSpec, LstmWeights, Merge,
    Outputs, SequenceBatch, SequenceOutput,
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
    /// Error of Elu, Softsign and Softplus, relative to the larger of 1 and the result.
    other_error: f64,
    /// Roundings that a quotient or a square root amounts to: WGSL allows 2.5 ulp.
    quotient: usize,
}

/// Sums in segments of 32 in order, then the segments in order, at most two of them short; activations as
/// `shaders/lib/activation.wgsl` promises.
pub const GPU: Arithmetic = Arithmetic {
    depth: |k| (k.min(32) + 1) + (k.div_ceil(32) + 2),
    activation_error: 10.0 * U,
    other_error: 16.0 * U,
    quotient: 5,
};

/// Sums in any order; activations within 3 ulps of a result that is at most 1.
pub const CPU: Arithmetic =
    Arithmetic { depth: |k| k + 1, activation_error: 3.0 * U, other_error: 5.0 * U, quotient: 1 };

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
        let rows = {
            let [first, second] = match self.layout {
                Layout::TimeMajor => [t, b],
                Layout::BatchMajor => [b, t],
            };
            move |directions, width| vec![first, second, ("direction", directions), ("j", width)]
        };
        let last_axes = vec![b, ("direction", last.num_outputs()), ("j", last.h_size())];
        let (expected, bounds) = (&self.expected, &self.bounds);
        let mut reports = Vec::new();
        for (what, found, expected, bounds, axes) in [
            ("output", &found.output, &expected.output, &bounds.output, rows(last.num_outputs(), last.h_size())),
            ("cells", &found.cells, &expected.cells, &bounds.cells, rows(last.num_directions(), last.c_size())),
            ("last", &found.last, &expected.last, &bounds.last, last_axes),
        ] {
            if let Some((found, expected, bounds)) = present(what, found, expected, bounds)? {
                reports.extend(compare_or_empty(what, &axes, found, expected, bounds)?);
            }
        }
        for (what, found, expected, bounds, width) in [
            ("h_n", &found.h_n, &expected.h_n, &bounds.h_n, LayerSpec::h_size as fn(&LayerSpec) -> usize),
            ("c_n", &found.c_n, &expected.c_n, &bounds.c_n, LayerSpec::c_size),
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
    // The largest state that can be seen without another run; |h| is larger than |c| only with other activations.
    let states = [&expected.c_n, &expected.cells, &expected.h_n, &expected.output].into_iter().flatten().flatten();
    let c_max = states.fold(1.0f64, |m, c| m.max(c.abs()));
    let floor = floor(weights.spec(), c_max, arithmetic);
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
/// them in h, and at most doubles them in c: 7 times in all, and twice that where two directions are summed. e is that of
/// the functions of the spec, at results up to the largest state.
fn floor(spec: &LstmSpec, c_max: f64, arithmetic: Arithmetic) -> f64 {
    let functions = spec.layers().iter().flat_map(|layer| (0..2).flat_map(|d| layer.cell.activations(d)));
    let errors = functions.map(|(_, f)| match f {
        Activation::Sigmoid | Activation::Tanh => arithmetic.activation_error,
        _ => {
            let (alpha, beta) = f.parameters();
            let scale = [alpha, beta].into_iter().flatten().fold(c_max, |m, p| m.max(f64::from(p).abs()));
            arithmetic.other_error * scale
        }
    });
    let sums = spec.layers().iter().filter(|layer| layer.merge == Merge::Sum).count() as i32;
    2.0f64.powi(sums)
        * 7.0
        * spec.num_layers() as f64
        * (c_max + 4.0)
        * errors.fold(arithmetic.activation_error, f64::max)
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
        for (array, width) in
            [(&mut bounds.h_n, LayerSpec::h_size as fn(&LayerSpec) -> usize), (&mut bounds.c_n, LayerSpec::c_size)]
        {
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
    /// Whether the last layer has a cell state.
    pub cells: bool,
}

impl StepSample {
    pub fn batch(&self, input_size: usize) -> SequenceBatch<'_> {
        SequenceBatch::new(&self.x, [self.lengths.len(), 1, input_size], Layout::BatchMajor)
            .and_then(|b| b.lengths(&self.lengths))
            .expect("one row per sequence")
            .h_0(&self.h_0)
            .c_0(&self.c_0)
            .outputs(Outputs { sequence: SequenceOutput::All, final_state: true, cells: self.cells })
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
        take(&mut c_0, c, layer.c_size());
    }
    let lengths: Vec<usize> = lengths.iter().map(|&length| usize::from(t < length)).collect();
    let mut x = vec![0.0; lengths.len() * input_size];
    for (b, row) in x.chunks_exact_mut(input_size).enumerate().filter(|(b, _)| lengths[*b] == 1) {
        row.copy_from_slice(batch.input_row(t, b));
    }
    StepSample { t, x, h_0, c_0, lengths, cells: spec.last_layer().c_size() > 0 }
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
            let mut output: Vec<Tracked> = Vec::new();
            let mut output_cells = Vec::new();
            for d in 0..layer.num_directions() {
                let cell = cells.next().expect("one cell per layer and direction");
                let state = |given: Option<&[f32]>, start: usize, width: usize| -> Vec<Tracked> {
                    let values = given.map(|g| &g[start + b * width..][..width]);
                    (0..width).map(|j| Tracked::exact(values.map_or(0.0, |v| v[j]))).collect()
                };
                let h = state(batch.initial_h(), h_start, layer.h_size());
                let c = state(batch.initial_c(), c_start, layer.c_size());
                let (h, c) = Step { layer, weights: cell, direction: d, arithmetic }.run(&x, &h, &c);
                put(&mut bounds.h_n, &expected.h_n, h_start + b * layer.h_size(), &h);
                put(&mut bounds.c_n, &expected.c_n, c_start + b * layer.c_size(), &c);
                h_start += batch_size * layer.h_size();
                c_start += batch_size * layer.c_size();
                match layer.merge {
                    Merge::Sum if d > 0 => output.iter_mut().zip(h).for_each(|(sum, h)| *sum = sum.plus(h).rounded(1)),
                    _ => output.extend(h),
                }
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

/// One cell, for one timestep: the equations once more, each number with its error.
struct Step<'a> {
    layer: &'a LayerSpec,
    weights: &'a CellWeights,
    direction: usize,
    arithmetic: Arithmetic,
}

impl Step<'_> {
    /// h and c after the step.
    fn run(&self, x: &[Tracked], h: &[Tracked], c: &[Tracked]) -> (Vec<Tracked>, Vec<Tracked>) {
        match &self.layer.cell {
            CellSpec::Lstm(cell) => self.lstm(cell, x, h, c),
            CellSpec::Gru(cell) => (self.gru(cell, x, h), Vec::new()),
            CellSpec::Rnn(cell) => {
                let gates = (0..self.layer.hidden_size).map(|j| self.gate_sum(j, x, h));
                let f = cell.activations[self.direction];
                (gates.map(|z| self.activate(f, cell.activation_clip, z)).collect(), Vec::new())
            }
        }
    }

    fn lstm(&self, cell: &LstmCell, x: &[Tracked], h: &[Tracked], c: &[Tracked]) -> (Vec<Tracked>, Vec<Tracked>) {
        let hidden_size = self.layer.hidden_size;
        let (functions, clip) = (cell.activations[self.direction], cell.activation_clip);
        // A gate's sums, with the peephole on `state`, normalised, activated.
        let gate = |gate: usize, peephole: Option<usize>, state: &[Tracked], f: Activation| -> Vec<Tracked> {
            let sums = (0..hidden_size).map(|j| {
                let row = gate * hidden_size + j;
                let sum = if cell.layer_norm { self.products(row, x, h) } else { self.gate_sum(row, x, h) };
                match (peephole, &self.weights.weight_peephole) {
                    (Some(part), Some(p)) => {
                        let seen = Tracked::exact(p[part * hidden_size + j]).times(state[j]).rounded(2);
                        sum.rounded(1).plus(seen)
                    }
                    _ => sum,
                }
            });
            let mut sums: Vec<Tracked> = sums.collect();
            if cell.layer_norm {
                sums = self.normalised(gate, &sums);
            }
            sums.into_iter().map(|z| self.activate(f, clip, z)).collect()
        };
        let i = gate(0, Some(0), c, functions.f);
        let f = match cell.coupled_input_forget {
            true => i.iter().map(|i| Tracked { value: 1.0 - i.value, error: i.error }.rounded(1)).collect(),
            false => gate(1, Some(1), c, functions.f),
        };
        let g = gate(2, None, c, functions.g);
        let c_next: Vec<Tracked> = (0..hidden_size)
            .map(|j| {
                let c = f[j].times(c[j]).rounded(2).plus(i[j].times(g[j]).rounded(2));
                let limit = cell.cell_clip.map_or(f64::INFINITY, f64::from);
                Tracked { value: c.value.clamp(-limit, limit), ..c }
            })
            .collect();
        let o = gate(3, Some(2), &c_next, functions.f);
        let output_clip = clip.filter(|_| cell.clip_output_activation);
        let seen = c_next.iter().map(|c| self.activate(functions.h, output_clip, *c));
        let m: Vec<Tracked> = seen.zip(o).map(|(h, o)| o.times(h).rounded(1)).collect();
        let h = match &self.weights.weight_hr {
            None => m,
            Some(weight_hr) => {
                let rows = weight_hr.chunks_exact(hidden_size).enumerate();
                rows.map(|(p, row)| match &self.weights.bias_hr {
                    None => dot(row, &m, 0, self.arithmetic),
                    Some(bias) => dot(row, &m, 1, self.arithmetic).plus(Tracked::exact(bias[p]).rounded(1)),
                })
                .collect()
            }
        };
        (h, c_next)
    }

    fn gru(&self, cell: &GruCell, x: &[Tracked], h: &[Tracked]) -> Vec<Tracked> {
        let hidden_size = self.layer.hidden_size;
        let (functions, clip) = (cell.activations[self.direction], cell.activation_clip);
        let gate = |row: usize| self.activate(functions.f, clip, self.gate_sum(row, x, h));
        let r: Vec<Tracked> = (0..hidden_size).map(gate).collect();
        let reset: Vec<Tracked> = r.iter().zip(h).map(|(r, h)| r.times(*h).rounded(1)).collect();
        (0..hidden_size)
            .map(|j| {
                let row = 2 * hidden_size + j;
                let sum = if cell.linear_before_reset {
                    let from_x = self.input_product(row, x, 2).plus(self.bias(&self.weights.bias_ih, row).rounded(2));
                    let from_h = self.hidden_product(row, h, 1).plus(self.bias(&self.weights.bias_hh, row).rounded(1));
                    from_x.plus(r[j].times(from_h).rounded(2))
                } else {
                    let from_x = self.input_product(row, x, 2).plus(self.biases(row));
                    from_x.plus(self.hidden_product(row, &reset, 1))
                };
                let n = self.activate(functions.g, clip, sum);
                let z = gate(hidden_size + j);
                let rest = Tracked { value: 1.0 - z.value, error: z.error }.rounded(1);
                rest.times(n).rounded(2).plus(z.times(h[j]).rounded(2))
            })
            .collect()
    }

    /// (Σ x·W_ih + bias) + Σ h·W_hh: two roundings after the first sum, one after the second, and the biases are added
    /// to each other before.
    fn gate_sum(&self, row: usize, x: &[Tracked], h: &[Tracked]) -> Tracked {
        self.input_product(row, x, 2).plus(self.biases(row)).plus(self.hidden_product(row, h, 1))
    }

    fn products(&self, row: usize, x: &[Tracked], h: &[Tracked]) -> Tracked {
        self.input_product(row, x, 1).plus(self.hidden_product(row, h, 1))
    }

    fn input_product(&self, row: usize, x: &[Tracked], more: usize) -> Tracked {
        let columns = self.layer.input_size;
        dot(&self.weights.weight_ih[row * columns..][..columns], x, more, self.arithmetic)
    }

    fn hidden_product(&self, row: usize, h: &[Tracked], more: usize) -> Tracked {
        let columns = self.layer.h_size();
        dot(&self.weights.weight_hh[row * columns..][..columns], h, more, self.arithmetic)
    }

    fn bias(&self, bias: &Option<Vec<f32>>, row: usize) -> Tracked {
        Tracked::exact(bias.as_ref().map_or(0.0, |b| b[row]))
    }

    fn biases(&self, row: usize) -> Tracked {
        let CellWeights { bias_ih, bias_hh, .. } = self.weights;
        self.bias(bias_ih, row).rounded(3).plus(self.bias(bias_hh, row).rounded(3))
    }

    /// (z − mean) / √(variance + 1e-8) · scale + bias of one gate.
    fn normalised(&self, gate: usize, sums: &[Tracked]) -> Vec<Tracked> {
        let count = sums.len() as f64;
        let quotient = self.arithmetic.quotient;
        // A mean in any order: each number passes through at most count + 8 additions, and one division.
        let mean_of = |values: &[Tracked]| {
            let sum = values.iter().fold(Tracked { value: 0.0, error: 0.0 }, |sum, v| {
                sum.plus(Tracked { error: v.error + gamma(sums.len() + 8) * v.magnitude(), ..*v })
            });
            Tracked { value: sum.value / count, error: sum.error / count }.rounded(quotient)
        };
        let mean = mean_of(sums);
        let deviations: Vec<Tracked> = sums
            .iter()
            .map(|z| Tracked { value: z.value - mean.value, error: z.error + mean.error }.rounded(1))
            .collect();
        let squares: Vec<Tracked> = deviations.iter().map(|d| d.times(*d).rounded(1)).collect();
        let mut variance = mean_of(&squares);
        variance = Tracked { value: variance.value + f64::from(1e-8f32), ..variance }.rounded(1);
        let value = variance.value.sqrt();
        // √ is concave: the error is largest towards smaller values.
        let lowest = (variance.value - variance.error).max(0.0).sqrt();
        let root = Tracked { value, error: value - lowest }.rounded(2 * quotient);
        let scale = self.weights.weight_norm.as_ref().expect("present with layer_norm");
        deviations
            .iter()
            .enumerate()
            .map(|(j, d)| {
                let row = gate * sums.len() + j;
                let smallest = root.value - root.error;
                let ratio = d.value / root.value;
                let error = (d.error + ratio.abs() * root.error) / smallest;
                let error = if smallest > 0.0 { error } else { f64::INFINITY };
                let scaled = Tracked { value: ratio, error }.rounded(quotient + 1).times(Tracked::exact(scale[row]));
                scaled.rounded(2).plus(self.biases(row))
            })
            .collect()
    }

    /// f(z), z clamped before.
    fn activate(&self, f: Activation, clip: Option<f32>, z: Tracked) -> Tracked {
        let limit = clip.map_or(f64::INFINITY, f64::from);
        let z = Tracked { value: z.value.clamp(-limit, limit), ..z };
        let x = z.value;
        let (e, other) = (self.arithmetic.activation_error, self.arithmetic.other_error);
        let wide = |v: f32| f64::from(v);
        // A function whose slope is at most `slope`, computed with an error of `own`.
        let smooth = |value: f64, slope: f64, own: f64| Tracked { value, error: slope * z.error + own };
        match f {
            Activation::Sigmoid => smooth(1.0 / (1.0 + (-x).exp()), 0.25, e),
            Activation::Tanh => smooth(x.tanh(), 1.0, e),
            Activation::Relu => smooth(x.max(0.0), 1.0, 0.0),
            Activation::Affine { alpha, beta } => {
                let own = gamma(2) * (wide(alpha).abs() * z.magnitude() + wide(beta).abs());
                smooth(wide(alpha) * x + wide(beta), wide(alpha).abs(), own)
            }
            Activation::LeakyRelu { alpha } => {
                let alpha = wide(alpha);
                let value = if x < 0.0 { alpha * x } else { x };
                smooth(value, alpha.abs().max(1.0), gamma(1) * alpha.abs() * z.magnitude())
            }
            Activation::ThresholdedRelu { alpha } => {
                let alpha = wide(alpha);
                // Where it is not known on which side of the step the number lies, it may be off by all of it.
                let step = if (x - alpha).abs() <= z.error { x.abs().max(alpha.abs()) } else { 0.0 };
                smooth(if x < alpha { 0.0 } else { x }, 1.0, step)
            }
            Activation::ScaledTanh { alpha, beta } => {
                let (alpha, beta) = (wide(alpha), wide(beta));
                // Rounding β·x changes tanh by at most |y|·(1 − tanh² y) ≤ 1/2 of a rounding.
                smooth(alpha * (beta * x).tanh(), (alpha * beta).abs(), alpha.abs() * (e + gamma(2)))
            }
            Activation::HardSigmoid { alpha, beta } => {
                let own = gamma(2) * (wide(alpha).abs() * z.magnitude() + wide(beta).abs());
                smooth((wide(alpha) * x + wide(beta)).clamp(0.0, 1.0), wide(alpha).abs(), own)
            }
            Activation::Elu { alpha } => {
                let alpha = wide(alpha);
                let value = if x < 0.0 { alpha * x.exp_m1() } else { x };
                smooth(value, alpha.abs().max(1.0), if x - z.error < 0.0 { alpha.abs() * other } else { 0.0 })
            }
            Activation::Softsign => smooth(x / (1.0 + x.abs()), 1.0, other),
            Activation::Softplus => {
                let value = x.max(0.0) + (-x.abs()).exp().ln_1p();
                smooth(value, 1.0, other * value.max(1.0))
            }
        }
    }
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
