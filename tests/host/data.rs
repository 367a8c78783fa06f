//! The data and the judgement: every mistake that is easily made in an LSTM is beyond the bounds, and the test
//! weights contract.

use wgpu_lstm::{BatchOutput, CellWeights, Direction, Layout, LstmSpec, LstmWeights, Merge, SequenceBatch, reference};

use crate::fixture::{Case, variant_layers};
use crate::support::data::distinct_weights;
use crate::support::tolerance::{CPU, GPU, Judgement, one_step, sample_step, whole_run};

/// Square in everything, so that a swap finds no shape to trip over: I = H = 8, bidirectional, D·P = I.
fn square() -> Case {
    let spec = LstmSpec::stack(8, 8, 3).direction(Direction::Bidirectional).projection(4).build().unwrap();
    Case::new("square", &spec, &[11, 0, 4, 7, 11, 1], 12, true, 1)
}

/// Without projection, one direction, so that h and c have the same shape.
fn plain() -> Case {
    let spec = LstmSpec::stack(8, 8, 3).build().unwrap();
    Case::new("plain", &spec, &[11, 0, 4, 7, 11, 1], 12, true, 2)
}

fn judge(case: &Case) -> Judgement {
    whole_run(&case.weights, &case.batch(), GPU)
}

fn run(weights: &LstmWeights, batch: &SequenceBatch<'_>) -> BatchOutput {
    reference::run::<f32>(weights, batch).unwrap().into_batch_output()
}

/// A mistake must move `output` by at least three bounds.
fn must_be_caught(mistake: &str, case: &Case, found: &BatchOutput) {
    let judgement = judge(case);
    judgement.check(found).expect_err(mistake);
    let share = |found: &Option<Vec<f32>>, expected: &Option<Vec<f64>>, bounds: &Option<Vec<f64>>| {
        let (found, expected, bounds) = (found.as_ref().unwrap(), expected.as_ref().unwrap(), bounds.as_ref().unwrap());
        assert_eq!(found.len(), expected.len());
        let shares = found.iter().zip(expected).zip(bounds).map(|((f, e), b)| (f64::from(*f) - e).abs() / b.max(1e-9));
        shares.fold(0.0, f64::max)
    };
    let share = share(&found.output, &judgement.expected.output, &judgement.bounds.output);
    assert!(share > 3.0, "{}: {mistake}: only {share:.1} bounds off", case.name);
}

/// Runs with the cells changed.
fn with_cells(case: &Case, change: impl FnOnce(&mut Vec<CellWeights>)) -> BatchOutput {
    let mut cells = case.weights.cells().to_vec();
    change(&mut cells);
    run(&LstmWeights::new(case.spec().clone(), cells).unwrap(), &case.batch())
}

/// The tensors of a cell, each with its number of columns.
fn tensors(cell: &mut CellWeights) -> Vec<(&'static str, &mut Vec<f32>, usize)> {
    let rows = cell.weight_ih.len() / 8; // I = 8
    let columns_hh = cell.weight_hh.len() / rows;
    vec![
        ("weight_ih", &mut cell.weight_ih, 8),
        ("weight_hh", &mut cell.weight_hh, columns_hh),
        ("bias_ih", cell.bias_ih.as_mut().unwrap(), 1),
        ("bias_hh", cell.bias_hh.as_mut().unwrap(), 1),
    ]
}

#[test]
fn the_reference_itself_passes() {
    for case in [square(), plain()] {
        for report in judge(&case).check(&run(&case.weights, &case.batch())).unwrap() {
            assert!(report.headroom >= 4.0, "{report}");
        }
    }
}

#[test]
fn swapped_gates_are_caught() {
    for case in [square(), plain()] {
        for (a, b) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
            for (n, cell) in [(0, 0), (1, 0), (2, 0), (3, 0), (0, 2), (1, 2)] {
                let found = with_cells(&case, |cells| {
                    let mut tensors = tensors(&mut cells[cell]);
                    let (_, tensor, columns) = &mut tensors[n];
                    for k in 0..8 * *columns {
                        tensor.swap(a * 8 * *columns + k, b * 8 * *columns + k);
                    }
                });
                must_be_caught(&format!("gates {a} and {b} of tensor {n} of cell {cell} swapped"), &case, &found);
            }
        }
    }
}

#[test]
fn swapped_rows_columns_and_axes_are_caught() {
    let case = plain();
    for n in 0..4 {
        let name = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"][n];
        let found = with_cells(&case, |cells| {
            let (_, tensor, columns) = &mut tensors(&mut cells[1])[n];
            (0..*columns).for_each(|k| tensor.swap(17 * *columns + k, 22 * *columns + k));
        });
        must_be_caught(&format!("rows 17 and 22 of {name} swapped"), &case, &found);
        let found = with_cells(&case, |cells| tensors(&mut cells[1])[n].1.fill(0.0));
        must_be_caught(&format!("{name} left out"), &case, &found);
        if n < 2 {
            let found = with_cells(&case, |cells| {
                let (_, tensor, _) = &mut tensors(&mut cells[1])[n];
                (0..32).for_each(|row| tensor.swap(row * 8 + 1, row * 8 + 6));
            });
            must_be_caught(&format!("columns 1 and 6 of {name} swapped"), &case, &found);
            let found = with_cells(&case, |cells| {
                let (_, tensor, _) = &mut tensors(&mut cells[1])[n];
                for gate in tensor.chunks_exact_mut(64) {
                    (0..8).for_each(|r| (0..r).for_each(|c| gate.swap(r * 8 + c, c * 8 + r)));
                }
            });
            must_be_caught(&format!("gates of {name} transposed"), &case, &found);
        }
    }
}

#[test]
fn swapped_directions_layers_and_tensors_are_caught() {
    let case = square();
    for (a, b) in [(0, 1), (2, 3), (0, 2), (1, 3), (2, 4)] {
        let found = with_cells(&case, |cells| cells.swap(a, b));
        must_be_caught(&format!("cells {a} and {b} swapped"), &case, &found);
    }
    let case = plain();
    let found = with_cells(&case, |cells| {
        let cell = &mut cells[1];
        std::mem::swap(&mut cell.weight_ih, &mut cell.weight_hh);
    });
    must_be_caught("weight_ih and weight_hh swapped", &case, &found);
}

#[test]
fn mistakes_with_time_and_batch_are_caught() {
    for case in [square(), plain()] {
        let changed = |change: &dyn Fn(&mut Case)| {
            let mut other = case.clone();
            change(&mut other);
            run(&other.weights, &other.batch())
        };
        let row = |case: &Case, t: usize, b: usize, k: usize| (b * case.seq_len + t) * 8 + k;
        let found = changed(&|c| (0..8).for_each(|k| c.x.swap(row(&case, 2, 0, k), row(&case, 3, 0, k))));
        must_be_caught("timesteps 2 and 3 swapped", &case, &found);
        let found = changed(&|c| (0..8).for_each(|k| c.x.swap(row(&case, 2, 3, k), row(&case, 2, 4, k))));
        must_be_caught("sequences 3 and 4 swapped at one timestep", &case, &found);
        let found = changed(&|c| c.lengths[3] += 1);
        must_be_caught("one step too many", &case, &found);
        let found = changed(&|c| c.lengths[3] -= 1);
        must_be_caught("one step too few", &case, &found);
        let found = changed(&|c| c.lengths.fill(c.seq_len));
        must_be_caught("lengths ignored", &case, &found);
        let found = changed(&|c| c.h_0 = None);
        must_be_caught("h_0 ignored", &case, &found);
        let found = changed(&|c| c.c_0 = None);
        must_be_caught("c_0 ignored", &case, &found);
        let found = changed(&|c| {
            let h_size = c.spec().last_layer().h_size();
            c.h_0.as_mut().unwrap().rotate_left(h_size);
        });
        must_be_caught("h_0 of the next sequence", &case, &found);
        let found = changed(&|c| {
            let block = 6 * c.spec().last_layer().hidden_size;
            c.c_0.as_mut().unwrap().rotate_left(block);
        });
        must_be_caught("c_0 of the next cell", &case, &found);
    }
    let case = plain();
    let mut other = case.clone();
    std::mem::swap(&mut other.h_0, &mut other.c_0);
    must_be_caught("h_0 and c_0 swapped", &case, &run(&other.weights, &other.batch()));
}

#[test]
fn lost_precision_is_caught() {
    let bits = |v: f32, kept: u32| f32::from_bits((v.to_bits() + (1 << (22 - kept))) & (u32::MAX << (23 - kept)));
    for case in [square(), plain()] {
        for (name, kept) in [("bf16", 7), ("f16 or tf32", 10)] {
            let found = with_cells(&case, |cells| {
                for cell in cells {
                    for (_, tensor, _) in tensors(cell) {
                        tensor.iter_mut().for_each(|v| *v = bits(*v, kept));
                    }
                }
            });
            judge(&case).check(&found).expect_err(name);
        }
    }
}

#[test]
fn wrong_results_outside_output_are_caught() {
    let case = square();
    let good = run(&case.weights, &case.batch());
    let judgement = judge(&case);
    judgement.check(&good).unwrap();
    let refused = |change: &dyn Fn(&mut BatchOutput), needle: &str| {
        let mut found = good.clone();
        change(&mut found);
        let message = judgement.check(&found).unwrap_err();
        assert!(message.contains(needle), "{message}");
    };
    // Past a length and for a sequence of length 0 nothing but the exact value passes.
    refused(&|o| o.output.as_mut().unwrap()[(2 * 12 + 4) * 8] = 1e-30, "(b 2, t 4, direction 0, j 0)");
    refused(&|o| o.cells.as_mut().unwrap()[(12 + 11) * 16 + 15] = -1e-30, "(b 1, t 11, direction 1, j 7)");
    refused(&|o| o.h_n.as_mut().unwrap()[4] += 1e-6, "h_n of layer 0 forward");
    refused(&|o| o.c_n.as_mut().unwrap()[5 * 48 + 8] += 1e-6, "c_n of layer 2 reverse");
    refused(&|o| o.h_n.as_mut().unwrap()[3 * 24] += 1e-3, "h_n of layer 1 reverse");
    refused(&|o| o.c_n = None, "c_n: found false, expected true");
    refused(&|o| o.last = Some(vec![]), "last: found true, expected false");
    refused(&|o| o.output.as_mut().unwrap().truncate(5), "found has 5 elements");
    refused(&|o| o.h_n.as_mut().unwrap().push(0.0), "h_n: found has");
}

/// The largest difference between two trajectories at each timestep.
struct Distances {
    h: Vec<f64>,
    /// Of h and c.
    both: Vec<f64>,
}

fn distances(case: &Case, other: &Case) -> Distances {
    let run = |c: &Case| reference::run::<f64>(&c.weights, &c.batch()).unwrap();
    let (a, b) = (run(case), run(other));
    let largest = |a: &Option<Vec<f64>>, b: &Option<Vec<f64>>| {
        let (a, b) = (a.as_ref().unwrap(), b.as_ref().unwrap());
        let width = a.len() / case.seq_len / case.batch_size();
        let mut largest = vec![0.0f64; case.seq_len];
        for (row, (a, b)) in a.chunks(width).zip(b.chunks(width)).enumerate() {
            let t = row % case.seq_len;
            largest[t] = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(largest[t], f64::max);
        }
        largest
    };
    let h = largest(&a.output, &b.output);
    let c = if a.cells.is_some() { largest(&a.cells, &b.cells) } else { h.clone() };
    let both = h.iter().zip(&c).map(|(h, c)| h.max(*c)).collect();
    Distances { h, both }
}

/// What [`whole_run`]'s floor assumes of the test weights.
#[test]
fn test_weights_contract() {
    for (hidden_size, projection, bias) in
        [(8, None, true), (64, None, true), (64, None, false), (100, Some(30), true), (256, None, true)]
    {
        let spec = LstmSpec::stack(16, hidden_size, 1).projection(projection).bias(bias).build().unwrap();
        for seed in 0..3 {
            // Trajectories from different states come nearer at each step, to 0.7 of the distance on average over
            // eight steps.
            let case = Case::new("contraction", &spec, &[17, 17], 17, true, seed);
            let mut other = case.clone();
            other.h_0 = None;
            other.c_0 = None;
            let distance = distances(&case, &other);
            for t in [8, 16] {
                let rate = (distance.both[t] / distance.both[t - 8]).powf(1.0 / 8.0);
                assert!(rate <= 0.7, "hidden_size {hidden_size}, seed {seed}: {rate} a step after {t}");
            }
            // And errors of the input, of whatever signs, come out no larger in h, and at most doubled in c.
            let mut other = case.clone();
            other.x.iter_mut().enumerate().for_each(|(i, v)| *v += 1e-3 * [1.0, -1.0][(i * i + i / 3) % 2]);
            let distance = distances(&case, &other);
            let gain = |distance: &[f64]| distance.iter().fold(0.0f64, |m, d| m.max(*d)) / 1e-3;
            let (h, c) = (gain(&distance.h), gain(&distance.both));
            assert!(h <= 1.0 && c <= 2.0, "hidden_size {hidden_size}, seed {seed}: errors grow {h} and {c} times");
        }
    }
}

/// The same of every other cell.
#[test]
fn test_weights_of_every_cell_contract() {
    let mut message = String::new();
    for (name, layers) in variant_layers() {
        // Layer after layer, since a layer's errors are counted once each.
        for (l, layer) in layers.into_iter().enumerate() {
            let spec = LstmSpec::new(vec![layer]).unwrap();
            for seed in 0..3 {
                let mut case = Case::new(&name, &spec, &[17, 17], 17, true, seed);
                case.outputs.cells = spec.last_layer().c_size() > 0;
                let mut other = case.clone();
                other.h_0 = None;
                other.c_0 = None;
                let distance = distances(&case, &other);
                // Reverse cells are at their last step where t is 0.
                let (early, late) = if layer.direction == Direction::Reverse { (8, 0) } else { (8, 16) };
                let rate = (distance.both[late] / distance.both[early]).powf(1.0 / 8.0);
                let both_ways = layer.direction == Direction::Bidirectional;
                // A dead unit, or one that was clipped, has forgotten everything: 0 of 0.
                if !both_ways && distance.both[late] != 0.0 && !(rate <= 0.7) {
                    message += &format!("{name} layer {l} seed {seed}: {rate} a step\n");
                }
                let mut other = case.clone();
                other.x.iter_mut().enumerate().for_each(|(i, v)| *v += 1e-3 * [1.0, -1.0][(i * i + i / 3) % 2]);
                let distance = distances(&case, &other);
                let gain = |distance: &[f64]| distance.iter().fold(0.0f64, |m, d| m.max(*d)) / 1e-3;
                // Where two directions are summed, so are their errors.
                let sum = if layer.merge == Merge::Sum { 2.0 } else { 1.0 };
                let (h, c) = (gain(&distance.h), gain(&distance.both));
                // A function with a step enlarges any error that crosses it; no case's numbers lie so near to one.
                let has_step = layer.cell.activations(0).iter().any(|(_, f)| f.name() == "ThresholdedRelu");
                if !(has_step || h <= sum && c <= 2.0 * sum) {
                    message += &format!("{name} layer {l} seed {seed}: errors grow {h} and {c} times\n");
                }
            }
        }
    }
    assert!(message.is_empty(), "{message}");
}

#[test]
fn steps_of_the_reference_lie_within_the_rigorous_bound() {
    for case in [square(), plain()] {
        for t in [0, 3, 10] {
            let sample = sample_step(&case.weights, &case.batch(), t);
            let batch = sample.batch(8);
            for arithmetic in [CPU, GPU] {
                let judgement = one_step(&case.weights, &batch, arithmetic);
                let reports = judgement.check(&run(&case.weights, &batch)).unwrap();
                assert!(reports.iter().all(|r| r.headroom > 1.0));
                // The bound is a bound for rounding, not for mistakes.
                let largest = judgement.bounds.output.iter().flatten().fold(0.0f64, |m, &b| m.max(b));
                assert!(largest < 1e-4, "{largest}");
            }
        }
    }
}

#[test]
fn mistakes_in_one_step_are_caught() {
    let case = plain();
    let sample = sample_step(&case.weights, &case.batch(), 3);
    let batch = sample.batch(8);
    let judgement = one_step(&case.weights, &batch, GPU);
    for n in 0..4 {
        for cell in 0..3 {
            let mut cells = case.weights.cells().to_vec();
            let (name, tensor, columns) = &mut tensors(&mut cells[cell])[n];
            // A single weight of the output gate, off by a hundredth.
            tensor[25 * *columns] += 1e-2;
            let message = format!("{name} of cell {cell}");
            let found = run(&LstmWeights::new(case.spec().clone(), cells).unwrap(), &batch);
            judgement.check(&found).expect_err(&message);
        }
    }
}

#[test]
fn samples_are_the_states_that_a_run_passes_through() {
    let case = plain();
    let sample = sample_step(&case.weights, &case.batch(), 4);
    assert_eq!(sample.lengths, [1, 0, 0, 1, 1, 0]);
    let stepped = run(&case.weights, &sample.batch(8));
    let whole = run(&case.weights, &case.batch());
    for b in [0, 3, 4] {
        for j in 0..8 {
            let (stepped, whole) =
                (stepped.output.as_ref().unwrap()[b * 8 + j], whole.output.as_ref().unwrap()[(b * 12 + 4) * 8 + j]);
            assert!((stepped - whole).abs() < 1e-6);
        }
    }
    // Reverse: the steps after t have been seen.
    let spec = LstmSpec::stack(8, 8, 1).direction(Direction::Reverse).build().unwrap();
    let case = Case::new("reverse", &spec, &[11, 0, 4, 7], 12, true, 3);
    let stepped = run(&case.weights, &sample_step(&case.weights, &case.batch(), 3).batch(8)).output.unwrap();
    let whole = run(&case.weights, &case.batch()).output.unwrap();
    for b in [0, 2, 3] {
        for j in 0..8 {
            assert!((stepped[b * 8 + j] - whole[(b * 12 + 3) * 8 + j]).abs() < 1e-6);
        }
    }
}

#[test]
fn every_scale_is_its_own() {
    let spec = LstmSpec::stack(64, 64, 3).direction(Direction::Bidirectional).build().unwrap();
    let weights = distinct_weights(&spec, 5);
    assert_eq!(weights, distinct_weights(&spec, 5));
    assert_ne!(weights, distinct_weights(&spec, 6));
    let rms = |v: &[f32]| (v.iter().map(|v| v * v).sum::<f32>() / v.len() as f32).sqrt();
    let mut scales: Vec<f32> = weights.cells().iter().flat_map(|c| c.weight_hh.chunks(64 * 64).map(rms)).collect();
    scales.sort_by(f32::total_cmp);
    let nearest = scales.windows(2).map(|w| w[1] / w[0]).fold(f32::MAX, f32::min);
    assert!(nearest > 1.002, "two gates have scales {nearest} apart");
    assert!(weights.cells().iter().all(|c| c.weight_ih.iter().chain(&c.weight_hh).all(|v| *v != 0.0)));
    let case = Case::new("layout", &spec, &[2, 3], 3, true, 5);
    assert_eq!(case.layout, Layout::BatchMajor);
}
