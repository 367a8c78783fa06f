//! Judging results against the f64 reference, in the two ways of docs/numerics.md: one step, and a whole run.

use libtest_mimic::Failed;
use wgpu_lstm::reference::{self, ReferenceOutput};
use wgpu_lstm::{BatchOutput, CellWeights, LayerSpec};

use crate::fixture::Case;

const EPS: f64 = (f32::EPSILON / 2.0) as f64;
/// Absolute error of sigmoid and tanh; docs/numerics.md, "activations".
const ACTIVATION: f64 = 5.0 * f32::EPSILON as f64;
/// A whole run may be this many times as far from f64 as the equations in f32 are, plus a floor of four
/// activation errors, which the f32 reference does not have.
const WHOLE_RUN_FACTOR: f64 = 4.0;
const WHOLE_RUN_FLOOR: f64 = 4.0 * ACTIVATION;

/// The worst element of a comparison that passed: its share of the tolerance.
#[derive(Debug, Clone, Copy, Default)]
pub struct Headroom(pub f64);

impl Headroom {
    fn note(&mut self, share: f64) {
        self.0 = self.0.max(share);
    }
}

/// Compares a whole run of the case, which asked for everything but `last`, with the reference.
pub fn whole_run(case: &Case, found: &BatchOutput) -> Result<Headroom, Failed> {
    let exact: ReferenceOutput<f64> = reference::run(&case.weights, &case.batch())?;
    let single: ReferenceOutput<f32> = reference::run(&case.weights, &case.batch())?;
    let mut headroom = Headroom::default();
    for (name, found, exact, single) in [
        ("output", &found.output, &exact.output, &single.output),
        ("last", &found.last, &exact.last, &single.last),
        ("h_n", &found.h_n, &exact.h_n, &single.h_n),
        ("c_n", &found.c_n, &exact.c_n, &single.c_n),
        ("cells", &found.cells, &exact.cells, &single.cells),
    ] {
        let (Some(found), Some(exact), Some(single)) = (found, exact, single) else {
            if found.is_some() != exact.is_some() {
                return Err(format!("{}: {name}: present {}", case.name, found.is_some()).into());
            }
            continue;
        };
        if found.len() != exact.len() {
            return Err(
                format!("{}: {name}: expected {} elements, found {}", case.name, exact.len(), found.len()).into()
            );
        }
        let own = single.iter().zip(exact).map(|(s, e)| (f64::from(*s) - e).abs()).fold(0.0, f64::max);
        let tolerance = WHOLE_RUN_FACTOR * own + WHOLE_RUN_FLOOR;
        for (i, (f, e)) in found.iter().zip(exact).enumerate() {
            let error = (f64::from(*f) - e).abs();
            if !(error <= tolerance) {
                return Err(format!(
                    "{}: {name}[{i}] of {}: expected {e:e}, found {f:e}, error {error:e} above {tolerance:e}",
                    case.name,
                    exact.len()
                )
                .into());
            }
            headroom.note(error / tolerance);
        }
    }
    Ok(headroom)
}

/// One step of one cell from given rows and states: the f64 result and its rounding bound, for h and c.
///
/// With S = Σ|w||x| + |b| over both sums of a gate and K its number of terms, the gate is off by at most
/// (K + 8)·eps·S; σ passes on a quarter of that, tanh all of it, each adding the activation's own error; c and m
/// follow by the product rule, the projection like a gate.
pub struct Step {
    pub h: Vec<f64>,
    pub c: Vec<f64>,
    pub h_bound: Vec<f64>,
    pub c_bound: Vec<f64>,
}

/// See [`Step`].
pub fn step(layer: &LayerSpec, cell: &CellWeights, x: &[f32], h_0: &[f32], c_0: &[f32]) -> Step {
    let hidden = layer.hidden_size;
    let dot = |w: &[f32], v: &[f32]| {
        w.iter().zip(v).fold((0.0f64, 0.0f64), |(sum, size), (w, v)| {
            let term = f64::from(*w) * f64::from(*v);
            (sum + term, size + term.abs())
        })
    };
    let terms = (layer.input_size + layer.h_size() + 8) as f64;
    let gate = |g: usize, j: usize| {
        let row = g * hidden + j;
        let ih = dot(&cell.weight_ih[row * layer.input_size..][..layer.input_size], x);
        let hh = dot(&cell.weight_hh[row * layer.h_size()..][..layer.h_size()], h_0);
        let bias = |b: &Option<Vec<f32>>| b.as_ref().map_or(0.0, |b| f64::from(b[row]));
        let biases = [bias(&cell.bias_ih), bias(&cell.bias_hh)];
        let sum = ih.0 + hh.0 + biases[0] + biases[1];
        (sum, terms * EPS * (ih.1 + hh.1 + biases[0].abs() + biases[1].abs()))
    };
    let sigmoid = |(x, d): (f64, f64)| (1.0 / (1.0 + (-x).exp()), d / 4.0 + ACTIVATION);
    let tanh = |(x, d): (f64, f64)| (x.tanh(), d + ACTIVATION);
    let mul =
        |(a, da): (f64, f64), (b, db): (f64, f64)| (a * b, a.abs() * db + b.abs() * da + da * db + EPS * (a * b).abs());
    let (mut m, mut c) = (Vec::new(), Vec::new());
    for j in 0..hidden {
        let (i, f, g, o) = (sigmoid(gate(0, j)), sigmoid(gate(1, j)), tanh(gate(2, j)), sigmoid(gate(3, j)));
        let (kept, new) = (mul(f, (f64::from(c_0[j]), 0.0)), mul(i, g));
        let next = (kept.0 + new.0, kept.1 + new.1 + EPS * (kept.0.abs() + new.0.abs()));
        c.push(next);
        m.push(mul(o, tanh(next)));
    }
    let h: Vec<(f64, f64)> = match &cell.weight_hr {
        None => m,
        Some(weight_hr) => weight_hr
            .chunks_exact(hidden)
            .map(|row| {
                row.iter().zip(&m).fold((0.0, 0.0), |(sum, bound), (w, (m, d))| {
                    let w = f64::from(*w);
                    (sum + w * m, bound + w.abs() * d + (hidden + 8) as f64 * EPS * (w * m).abs())
                })
            })
            .collect(),
    };
    Step {
        h: h.iter().map(|v| v.0).collect(),
        c: c.iter().map(|v| v.0).collect(),
        h_bound: h.iter().map(|v| v.1).collect(),
        c_bound: c.iter().map(|v| v.1).collect(),
    }
}

/// Whether `found` lies within `bound` of `expected`.
pub fn within(
    what: &str,
    found: &[f32],
    expected: &[f64],
    bound: &[f64],
    headroom: &mut Headroom,
) -> Result<(), Failed> {
    if found.len() != expected.len() {
        return Err(format!("{what}: expected {} elements, found {}", expected.len(), found.len()).into());
    }
    for (j, ((f, e), bound)) in found.iter().zip(expected).zip(bound).enumerate() {
        let error = (f64::from(*f) - e).abs();
        if !(error <= *bound) {
            return Err(format!("{what}[{j}]: expected {e:e}, found {f:e}, error {error:e} above {bound:e}").into());
        }
        headroom.note(error / bound);
    }
    Ok(())
}
