//! A result against the f64 reference, on all or on chosen sequences.
//!
//! In:  weights, a batch, and what a device returned for it.
//! Out: [`Verdict`]: for each array the worst error and what was allowed.
//! Allowed is 4 × the error of the f32 reference on the same sequences, plus [`FLOOR`] (docs/numerics.md,
//! "whole run"); past a sequence's length exactly zero. NaN and infinity fail. What rounding alone can do is measured, see
//! [`AMPLIFIED`]: where that is too much there is no judgement.

use std::fmt;

use wgpu_lstm::reference::{self, SequenceResult};
use wgpu_lstm::{BatchOutput, LstmSpec, LstmWeights, SequenceBatch};

use super::failure::{Result, fail};
use super::random::Random;
use super::spec_text::multiply_adds_per_row;

/// What a difference may be beyond 4 × the f32 reference's own: 16 roundings of a number of the size of the
/// largest one in the array, or of 1 if that is larger.
pub(crate) const FLOOR: f64 = 16.0 * f32::EPSILON as f64;

/// A network amplifies rounding beyond judgement where an array moves by more than this, in proportion to its largest
/// number (or 1), when each weight moves by one unit in its last place: then two right runs in f32 have no digits in common
/// that would tell them from a wrong one.
pub(crate) const AMPLIFIED: f64 = 1e-2;

/// The outcome of one array.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ArrayVerdict {
    /// `output`, `last`, `h_n` or `c_n`.
    pub(crate) name: &'static str,
    /// The largest error; infinite if a number is not finite.
    pub(crate) error: f64,
    /// What was allowed.
    pub(crate) allowed: f64,
    /// By how much moved weights move it where that is too much for a judgement; infinite where f32 overflows.
    pub(crate) amplified: Option<f64>,
    /// Where the largest error is.
    pub(crate) place: String,
    /// There.
    pub(crate) found: f64,
    /// There.
    pub(crate) expected: f64,
}

impl ArrayVerdict {
    /// Not failed: within what is allowed, or without a judgement.
    pub(crate) fn passed(&self) -> bool {
        self.amplified.is_some() || self.error <= self.allowed
    }
}

impl fmt::Display for ArrayVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(response) = self.amplified {
            return write!(
                f,
                "{}: no judgement: the network amplifies rounding; moving each weight by one unit in its last place moves it by \
                 {response:.1e} (largest difference found: {:.1e}, at {})",
                self.name, self.error, self.place
            );
        }
        write!(f, "{}: largest error {:.1e}, allowed {:.1e}", self.name, self.error, self.allowed)?;
        if self.passed() {
            let headroom = self.allowed / self.error.max(f64::MIN_POSITIVE);
            let shown = if headroom < 1e6 { format!("{headroom:.1}") } else { "over 1000000".to_owned() };
            write!(f, " (headroom {shown} ×)")?;
        }
        write!(f, ", at {}: found {:.7e}, expected {:.7e}", self.place, self.found, self.expected)
    }
}

/// The outcome.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    /// One per array that was returned.
    pub(crate) arrays: Vec<ArrayVerdict>,
}

impl Verdict {
    /// Fails with the array that is worst in proportion to what was allowed.
    pub(crate) fn check(&self) -> Result<()> {
        let ratio = |a: &&ArrayVerdict| a.error / a.allowed;
        let failed = self.arrays.iter().filter(|a| !a.passed());
        match failed.max_by(|a, b| ratio(a).total_cmp(&ratio(b))) {
            Some(worst) => fail!("differs from the f64 reference: {worst}"),
            None => Ok(()),
        }
    }
}

/// The longest sequence, the shortest that is not empty, an empty one, and seeded ones as long as the reference
/// has no more than `multiply_adds` to do; in ascending order.
pub(crate) fn sample(spec: &LstmSpec, lengths: &[usize], multiply_adds: f64) -> Vec<usize> {
    const SEED: u64 = 11;
    const MOST: usize = 8;
    let all = || 0..lengths.len();
    let mut chosen: Vec<usize> = Vec::new();
    chosen.extend(all().max_by_key(|&b| lengths[b]));
    chosen.extend(all().filter(|&b| lengths[b] > 0).min_by_key(|&b| lengths[b]));
    chosen.extend(all().find(|&b| lengths[b] == 0));
    chosen.sort_unstable();
    chosen.dedup();
    let work = |b: usize| lengths[b] as f64 * multiply_adds_per_row(spec);
    let mut left = multiply_adds - chosen.iter().map(|&b| work(b)).sum::<f64>();
    let mut random = Random::new(SEED);
    let mut others: Vec<usize> = all().filter(|b| !chosen.contains(b)).collect();
    while !others.is_empty() && chosen.len() < MOST {
        let b = others.swap_remove(random.below(others.len()));
        if work(b) > left {
            break;
        }
        left -= work(b);
        chosen.push(b);
    }
    chosen.sort_unstable();
    chosen
}

/// Compares `result` with the reference on the given sequences.
pub(crate) fn verify(
    weights: &LstmWeights,
    batch: &SequenceBatch<'_>,
    result: &BatchOutput,
    sequences: &[usize],
) -> Result<Verdict> {
    let exact = reference::run_sequences::<f64>(weights, batch, sequences)?;
    let rounded = reference::run_sequences::<f32>(weights, batch, sequences)?;
    let moved = reference::run_sequences::<f64>(&moved(weights)?, batch, sequences)?;
    judge(weights.spec(), batch, result, &exact, &rounded, &moved)
}

/// The weights, each moved by one unit in its last place, up or down in an order that looks like none. Zeros stay: they are
/// often no numbers that were rounded.
fn moved(weights: &LstmWeights) -> Result<LstmWeights> {
    let mut random = Random::new(17);
    let mut step = |values: &mut Vec<f32>| {
        for v in values.iter_mut().filter(|v| **v != 0.0) {
            let next = if random.below(2) == 0 { v.next_up() } else { v.next_down() };
            *v = if next.is_finite() { next } else { *v };
        }
    };
    let mut cells = weights.cells().to_vec();
    for cell in &mut cells {
        step(&mut cell.weight_ih);
        step(&mut cell.weight_hh);
        let others = [&mut cell.bias_ih, &mut cell.bias_hh, &mut cell.weight_hr, &mut cell.bias_hr];
        others.into_iter().flatten().for_each(&mut step);
    }
    Ok(LstmWeights::new(weights.spec().clone(), cells)?)
}

/// Where an element is.
#[derive(Debug, Clone, Copy)]
struct Place {
    sequence: usize,
    /// A timestep of `output`, a cell of `h_n` and `c_n`.
    row: usize,
    column: usize,
}

/// The largest error so far.
struct Tally {
    name: &'static str,
    row_name: &'static str,
    error: f64,
    found: f64,
    expected: f64,
    place: Option<Place>,
    rounding: f64,
    largest: f64,
    response: f64,
    /// Whether f32 cannot hold what the network computes.
    overflows: bool,
}

impl Tally {
    fn new(name: &'static str, row_name: &'static str) -> Self {
        let place = None;
        Self {
            name,
            row_name,
            error: 0.0,
            found: 0.0,
            expected: 0.0,
            place,
            rounding: 0.0,
            largest: 0.0,
            response: 0.0,
            overflows: false,
        }
    }

    /// One row: what was found, and the reference in f64, in f32 and with moved weights.
    fn row(&mut self, sequence: usize, row: usize, found: &[f32], exact: &[f64], rounded: &[f32], moved: &[f64]) {
        for (column, (((&found, &exact), &rounded), &moved)) in
            found.iter().zip(exact).zip(rounded).zip(moved).enumerate()
        {
            self.rounding = self.rounding.max((f64::from(rounded) - exact).abs());
            // Not `max`, which passes over NaN.
            let response = (moved - exact).abs();
            self.overflows |= !rounded.is_finite() || !response.is_finite();
            self.response = if self.overflows { f64::INFINITY } else { self.response.max(response) };
            self.largest = self.largest.max(exact.abs());
            let found = f64::from(found);
            let error = if found.is_finite() && exact.is_finite() { (found - exact).abs() } else { f64::INFINITY };
            self.element(error, found, exact, Place { sequence, row, column });
        }
    }

    /// A row that must be zero.
    fn zero_row(&mut self, sequence: usize, row: usize, found: &[f32]) {
        for (column, &found) in found.iter().enumerate() {
            let error = if found == 0.0 { 0.0 } else { f64::INFINITY };
            self.element(error, found.into(), 0.0, Place { sequence, row, column });
        }
    }

    fn element(&mut self, error: f64, found: f64, expected: f64, place: Place) {
        if self.place.is_none() || error > self.error {
            (self.error, self.found, self.expected, self.place) = (error, found, expected, Some(place));
        }
    }

    fn verdict(self) -> ArrayVerdict {
        let place = self.place.map_or("nothing to compare".to_owned(), |p| {
            format!("sequence {}, {} {}, element {}", p.sequence, self.row_name, p.row, p.column)
        });
        let scale = self.largest.max(1.0);
        ArrayVerdict {
            name: self.name,
            error: self.error,
            allowed: 4.0 * self.rounding + FLOOR * scale,
            // What is no number where the reference has one is wrong whatever the network amplifies.
            amplified: (self.response > AMPLIFIED * scale && (self.overflows || self.error.is_finite()))
                .then_some(self.response),
            place,
            found: self.found,
            expected: self.expected,
        }
    }
}

fn judge(
    spec: &LstmSpec,
    batch: &SequenceBatch<'_>,
    result: &BatchOutput,
    exact: &[SequenceResult<f64>],
    rounded: &[SequenceResult<f32>],
    moved: &[SequenceResult<f64>],
) -> Result<Verdict> {
    let (seq_len, batch_size) = (batch.seq_len(), batch.batch_size());
    let (h_size, c_size) = spec.state_sizes();
    let width = spec.output_size();
    for (name, array, elements) in [
        ("output", &result.output, seq_len * batch_size * width),
        ("last", &result.last, batch_size * width),
        ("h_n", &result.h_n, batch_size * h_size),
        ("c_n", &result.c_n, batch_size * c_size),
    ] {
        if let Some(array) = array
            && array.len() != elements
        {
            fail!("verify: {name}: expected {elements} elements, found {}", array.len());
        }
    }
    let pairs = || exact.iter().zip(rounded).zip(moved).map(|((e, r), m)| (e.sequence, e, r, m));
    let mut arrays = Vec::new();

    if let Some(output) = &result.output {
        let mut tally = Tally::new("output", "step");
        for (b, e, r, m) in pairs() {
            for t in 0..seq_len {
                let found = &output[batch.layout().row(t, b, seq_len, batch_size) * width..][..width];
                let at = t * width..(t + 1) * width;
                match (e.output.get(at.clone()), r.output.get(at.clone()), m.output.get(at)) {
                    (Some(e), Some(r), Some(m)) => tally.row(b, t, found, e, r, m),
                    _ => tally.zero_row(b, t, found),
                }
            }
        }
        arrays.push(tally.verdict());
    }
    if let Some(last) = &result.last {
        let mut tally = Tally::new("last", "step");
        for (b, e, r, m) in pairs() {
            let found = &last[b * width..][..width];
            let rows = [&e.output, &m.output].map(|output| output.chunks_exact(width).next_back());
            match (rows, r.output.chunks_exact(width).next_back()) {
                ([Some(e_row), Some(m_row)], Some(r_row)) => {
                    tally.row(b, e.output.len() / width - 1, found, e_row, r_row, m_row)
                }
                _ => tally.zero_row(b, 0, found),
            }
        }
        arrays.push(tally.verdict());
    }
    let h_widths: Vec<usize> = spec.cells().map(|(_, layer, _)| layer.h_size()).collect();
    let c_widths: Vec<usize> = spec.cells().map(|(_, layer, _)| layer.c_size()).collect();
    if let Some(h_n) = &result.h_n {
        let mut tally = Tally::new("h_n", "cell");
        for (b, e, r, m) in pairs() {
            state_rows(&h_widths, batch_size, b, |cell, at, own| {
                tally.row(b, cell, &h_n[at], &e.h_n[own.clone()], &r.h_n[own.clone()], &m.h_n[own])
            });
        }
        arrays.push(tally.verdict());
    }
    if let Some(c_n) = &result.c_n
        && spec.state_sizes().1 > 0
    {
        let mut tally = Tally::new("c_n", "cell");
        for (b, e, r, m) in pairs() {
            state_rows(&c_widths, batch_size, b, |cell, at, own| {
                tally.row(b, cell, &c_n[at], &e.c_n[own.clone()], &r.c_n[own.clone()], &m.c_n[own])
            });
        }
        arrays.push(tally.verdict());
    }
    Ok(Verdict { arrays })
}

/// Calls `each(cell, its range in [cells][B, width], its range in one sequence's states)`.
fn state_rows(
    widths: &[usize],
    batch_size: usize,
    b: usize,
    mut each: impl FnMut(usize, std::ops::Range<usize>, std::ops::Range<usize>),
) {
    let mut before = 0;
    for (cell, &width) in widths.iter().enumerate() {
        let at = before * batch_size + b * width;
        each(cell, at..at + width, before..before + width);
        before += width;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpu_lstm::{Direction, Layout, Outputs, SequenceOutput};

    const LENGTHS: [usize; 4] = [3, 0, 5, 1];

    /// A result of the f32 reference, changed by `change`, in both layouts; whether it passes on all sequences.
    fn passes(change: impl Fn(&mut BatchOutput)) -> Vec<bool> {
        let spec = LstmSpec::stack(3, 6, 2).direction(Direction::Bidirectional).projection(4).build().unwrap();
        let weights = LstmWeights::random(&spec, 5);
        let x = Random::new(3).values(4 * 5 * 3);
        [Layout::BatchMajor, Layout::TimeMajor]
            .into_iter()
            .map(|layout| {
                let batch = SequenceBatch::new(&x, layout.shape(5, 4, 3), layout).unwrap().lengths(&LENGTHS).unwrap();
                let mut result = reference::run::<f32>(&weights, &batch).unwrap().into_batch_output();
                let last = batch.clone().outputs(Outputs { sequence: SequenceOutput::Last, ..Outputs::default() });
                result.last = reference::run::<f32>(&weights, &last).unwrap().last;
                change(&mut result);
                let verdict = verify(&weights, &batch, &result, &[0, 1, 2, 3]).unwrap();
                assert_eq!(verdict.arrays.len(), 4);
                verdict.check().is_ok()
            })
            .collect()
    }

    #[test]
    fn the_f32_reference_passes() {
        assert_eq!(passes(|_| ()), [true, true]);
    }

    #[test]
    fn one_wrong_element_of_any_array_fails() {
        for wrong in [1e-4, -1e-4, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 7, 31] {
                assert_eq!(passes(|r| r.h_n.as_mut().unwrap()[place] += wrong), [false, false], "h_n {wrong}");
                assert_eq!(passes(|r| r.c_n.as_mut().unwrap()[place] += wrong), [false, false], "c_n {wrong}");
                assert_eq!(passes(|r| r.last.as_mut().unwrap()[place] += wrong), [false, false], "last {wrong}");
            }
            for place in [0, 100, 159] {
                assert_eq!(passes(|r| r.output.as_mut().unwrap()[place] += wrong), [false, false], "output {wrong}");
            }
        }
    }

    #[test]
    fn the_failure_names_the_worst_array() {
        let array = |name, error| ArrayVerdict {
            name,
            error,
            allowed: 1e-6,
            amplified: None,
            place: "here".into(),
            found: 0.0,
            expected: 0.0,
        };
        let verdict = Verdict { arrays: vec![array("output", 2e-6), array("h_n", 3e-6), array("c_n", 0.0)] };
        assert!(
            verdict.check().unwrap_err().to_string().contains("h_n: largest error 3.0e-6, allowed 1.0e-6, at here")
        );
        assert!(Verdict { arrays: vec![array("output", f64::NAN)] }.check().is_err());
        assert!(Verdict { arrays: vec![array("output", 1e-6)] }.check().is_ok());
    }

    /// A network whose recurrent weights are 30 times as large as usual doubles a difference every other step: after 60
    /// steps there is nothing left to judge, and neither a right nor a wrong result is called right or wrong.
    #[test]
    fn a_network_that_amplifies_rounding_is_not_judged() {
        let spec = LstmSpec::stack(3, 24, 1).build().unwrap();
        let x = Random::new(3).values(400 * 3);
        let batch = SequenceBatch::new(&x, [1, 400, 3], Layout::BatchMajor).unwrap();
        let judged = |scale: f32| {
            let mut cells = LstmWeights::random(&spec, 5).cells().to_vec();
            cells[0].weight_hh.iter_mut().for_each(|w| *w *= scale);
            let weights = LstmWeights::new(spec.clone(), cells).unwrap();
            let result = reference::run::<f32>(&weights, &batch).unwrap().into_batch_output();
            verify(&weights, &batch, &result, &[0]).unwrap()
        };
        let verdict = judged(60.0);
        assert!(verdict.arrays[0].amplified.is_some_and(|r| r > 0.01), "{}", verdict.arrays[0]);
        assert!(verdict.arrays[0].to_string().contains("no judgement") && verdict.check().is_ok());
        assert!(judged(1.0).arrays.iter().all(|a| a.amplified.is_none()));
    }

    #[test]
    fn anything_past_a_length_fails() {
        // Sequence 1 is empty; in both layouts its last step is padding.
        let last_row_of_1 = |layout: Layout| layout.row(4, 1, 5, 4) * 8;
        for place in [last_row_of_1(Layout::BatchMajor), last_row_of_1(Layout::TimeMajor)] {
            let outcome = passes(|r| r.output.as_mut().unwrap()[place] = 1e-9);
            assert!(outcome.contains(&false), "{place}");
        }
    }

    #[test]
    fn a_wrong_number_of_elements_is_an_error() {
        let spec = LstmSpec::stack(3, 4, 1).build().unwrap();
        let weights = LstmWeights::random(&spec, 5);
        let x = vec![0.5; 2 * 5 * 3];
        let batch = SequenceBatch::new(&x, [2, 5, 3], Layout::BatchMajor).unwrap();
        let mut result = reference::run::<f32>(&weights, &batch).unwrap().into_batch_output();
        result.h_n.as_mut().unwrap().pop();
        assert!(verify(&weights, &batch, &result, &[0]).unwrap_err().to_string().contains("h_n: expected 8 elements"));
    }

    #[test]
    fn samples_have_the_extremes_and_stay_within_their_work() {
        let spec = LstmSpec::stack(3, 4, 1).build().unwrap();
        let mut lengths = vec![7; 100];
        (lengths[40], lengths[50], lengths[60]) = (9, 0, 2);
        let chosen = sample(&spec, &lengths, f64::INFINITY);
        assert_eq!(chosen.len(), 8);
        assert!([40, 50, 60].iter().all(|b| chosen.contains(b)), "{chosen:?}");
        assert_eq!(sample(&spec, &lengths, 0.0), [40, 50, 60]);
        assert_eq!(sample(&spec, &[5], f64::INFINITY), [0]);
        assert_eq!(sample(&spec, &[], 1.0), [0usize; 0]);
    }
}
