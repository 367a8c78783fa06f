//! The reference against PyTorch's numbers and against laws that hold for any LSTM.

use wgpu_lstm::{
    Activation, BatchOutput, CellSpec, CellWeights, DeviceChoice, Direction, Engine, EngineOptions, GruCell, LayerSpec,
    Layout, LstmActivations, LstmCell, LstmSpec, LstmWeights, Merge, Outputs, RnnCell, SequenceBatch, SequenceOutput,
    reference,
};

use crate::fixture::{Case, select_state};
use crate::support::data::distinct_weights;

/// The f32 run; equal bits are asked for below, so states can be carried over without loss.
pub fn run(case: &Case) -> BatchOutput {
    reference::run::<f32>(&case.weights, &case.batch()).unwrap().into_batch_output()
}

fn stack(direction: Direction, layers: usize, projection: Option<usize>) -> LstmSpec {
    LstmSpec::stack(5, 9, layers).direction(direction).projection(projection).build().unwrap()
}

const LENGTHS: [usize; 6] = [7, 0, 12, 1, 12, 5];

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for direction in [Direction::Forward, Direction::Reverse, Direction::Bidirectional] {
        for (layers, projection) in [(1, None), (2, Some(4)), (3, None)] {
            for initial in [true, false] {
                let name = format!("{direction:?}, {layers} layers, projection {projection:?}, initial {initial}");
                cases.push(Case::new(&name, &stack(direction, layers, projection), &LENGTHS, 13, initial, 40));
            }
        }
    }
    cases
}

/// Rows of `output` of sequence `b`, [T, D·H].
fn rows(case: &Case, output: &[f32], b: usize) -> Vec<Vec<f32>> {
    let width = output.len() / (case.seq_len * case.batch_size());
    let row = |t| case.layout.row(t, b, case.seq_len, case.batch_size());
    (0..case.seq_len).map(|t| output[row(t) * width..][..width].to_vec()).collect()
}

#[cfg(feature = "safetensors")]
mod goldens {
    use super::*;
    use crate::support::comparer::{Bound, compare};
    use crate::support::goldens::{Golden, all};
    use crate::support::tolerance::{CPU, whole_run};

    #[test]
    fn every_kind_of_golden_is_there() {
        let goldens = all();
        let has = |what: &str, is: &dyn Fn(&Golden) -> bool| assert!(goldens.iter().any(is), "no golden with {what}");
        let layer = |g: &Golden| *g.weights.spec().last_layer();
        for is_f64 in [false, true] {
            has("batch > 1 and ragged lengths", &|g| g.is_f64 == is_f64 && g.lengths.windows(2).any(|w| w[0] != w[1]));
            has("two layers", &|g| g.is_f64 == is_f64 && g.weights.spec().num_layers() == 2);
            has("both directions", &|g| g.is_f64 == is_f64 && layer(g).num_directions() == 2);
            has("one direction", &|g| g.is_f64 == is_f64 && layer(g).num_directions() == 1);
            has("biases", &|g| g.is_f64 == is_f64 && layer(g).bias);
            has("no biases", &|g| g.is_f64 == is_f64 && !layer(g).bias);
            has("a projection", &|g| g.is_f64 == is_f64 && layer(g).projection_size.is_some());
            has("an initial state", &|g| g.is_f64 == is_f64 && g.h_0.is_some() && g.c_0.is_some());
            has("no initial state", &|g| g.is_f64 == is_f64 && g.h_0.is_none());
        }
    }

    #[test]
    fn pytorch_in_f64_agrees_to_the_last_digits() {
        for golden in all().into_iter().filter(|g| g.is_f64) {
            let found = reference::run::<f64>(&golden.weights, &golden.batch()).unwrap();
            for (what, found, expected) in [
                ("output", found.output, &golden.output),
                ("h_n", found.h_n, &golden.h_n),
                ("c_n", found.c_n, &golden.c_n),
            ] {
                let axes = [(what, expected.len())];
                let report = compare(&golden.name, &axes, &found.unwrap(), expected, Bound::Same(1e-13));
                report.unwrap_or_else(|e| panic!("{what}: {e}"));
            }
        }
    }

    #[test]
    fn pytorch_in_f32_passes_the_judgement_of_a_whole_run() {
        for golden in all().into_iter().filter(|g| !g.is_f64) {
            let narrow = |values: &[f64]| Some(values.iter().map(|v| *v as f32).collect());
            let pytorch = BatchOutput {
                output: narrow(&golden.output),
                h_n: narrow(&golden.h_n),
                c_n: narrow(&golden.c_n),
                ..BatchOutput::default()
            };
            let judgement = whole_run(&golden.weights, &golden.batch(), CPU);
            judgement.check(&pytorch).unwrap_or_else(|e| panic!("{}: {e}", golden.name));
        }
    }
}

#[test]
fn two_runs_with_carried_state_equal_one() {
    for case in cases().into_iter().filter(|c| c.spec().layers()[0].direction == Direction::Forward) {
        let whole = run(&case);
        for cut in [0, 1, 6, 13] {
            let mut first = case.clone();
            first.lengths = case.lengths.iter().map(|&n| n.min(cut)).collect();
            let first_out = run(&first);
            let mut second = case.clone();
            second.lengths = case.lengths.iter().map(|&n| n - n.min(cut)).collect();
            let feature_rows = case.seq_len * 5;
            for (to, from) in second.x.chunks_mut(feature_rows).zip(case.x.chunks(feature_rows)) {
                to[..feature_rows - cut * 5].copy_from_slice(&from[cut * 5..]);
            }
            (second.h_0, second.c_0) = (first_out.h_n.clone(), first_out.c_n.clone());
            let second_out = run(&second);
            assert_eq!((&second_out.h_n, &second_out.c_n), (&whole.h_n, &whole.c_n), "{} cut at {cut}", case.name);
            for b in 0..case.batch_size() {
                let joined: Vec<_> = rows(&first, first_out.output.as_ref().unwrap(), b)[..cut]
                    .iter()
                    .chain(&rows(&second, second_out.output.as_ref().unwrap(), b)[..13 - cut])
                    .cloned()
                    .collect();
                assert_eq!(joined, rows(&case, whole.output.as_ref().unwrap(), b), "{} cut at {cut}", case.name);
            }
        }
    }
}

#[test]
fn a_permuted_batch_gives_permuted_results() {
    for case in cases() {
        let order = [4, 2, 5, 0, 1, 3];
        let whole = run(&case);
        let permuted = case.select(&order, case.seq_len);
        let found = run(&permuted);
        let pick = |state: &Option<Vec<f32>>, width: fn(&LayerSpec) -> usize| {
            Some(select_state(case.spec(), state.as_ref().unwrap(), 6, &order, width))
        };
        assert_eq!(found.h_n, pick(&whole.h_n, LayerSpec::h_size));
        assert_eq!(found.c_n, pick(&whole.c_n, LayerSpec::c_size));
        for (to, &from) in order.iter().enumerate() {
            for (found, whole) in [(&found.output, &whole.output), (&found.cells, &whole.cells)] {
                let (found, whole) = (found.as_ref().unwrap(), whole.as_ref().unwrap());
                assert_eq!(rows(&permuted, found, to), rows(&case, whole, from), "{}", case.name);
            }
        }
    }
}

#[test]
fn padding_and_axis_order_never_matter() {
    for case in cases() {
        let expected = run(&case);
        for other in [case.select(&[0, 1, 2, 3, 4, 5], 30), case.select(&[0, 1, 2, 3, 4, 5], 12), case.time_major()] {
            let found = run(&other);
            assert_eq!((&found.h_n, &found.c_n), (&expected.h_n, &expected.c_n), "{}", case.name);
            for b in 0..6 {
                let found = rows(&other, found.output.as_ref().unwrap(), b);
                let expected = rows(&case, expected.output.as_ref().unwrap(), b);
                assert_eq!(found[..LENGTHS[b]], expected[..LENGTHS[b]], "{}", case.name);
                assert!(found[LENGTHS[b]..].iter().flatten().all(|v| v.to_bits() == 0), "{}", case.name);
            }
        }
    }
}

/// The same sequences from last to first valid step.
fn reversed(case: &Case) -> Case {
    let mut other = case.clone();
    for (b, &length) in case.lengths.iter().enumerate() {
        for t in 0..length {
            let (to, from) = ((b * case.seq_len + t) * 5, (b * case.seq_len + length - 1 - t) * 5);
            other.x[to..to + 5].copy_from_slice(&case.x[from..from + 5]);
        }
    }
    other
}

fn flip(rows: &[Vec<f32>], length: usize) -> Vec<Vec<f32>> {
    rows[..length].iter().rev().chain(&rows[length..]).cloned().collect()
}

#[test]
fn reverse_is_forward_on_the_reversed_sequence() {
    for projection in [None, Some(4)] {
        let reverse = stack(Direction::Reverse, 1, projection);
        let case = Case::new("reverse", &reverse, &LENGTHS, 13, true, 50);
        let mut forward = reversed(&case);
        let forward_spec = stack(Direction::Forward, 1, projection);
        forward.weights = LstmWeights::new(forward_spec, case.weights.cells().to_vec()).unwrap();
        let (found, expected) = (run(&case), run(&forward));
        assert_eq!((&found.h_n, &found.c_n), (&expected.h_n, &expected.c_n));
        for (b, &length) in LENGTHS.iter().enumerate() {
            for (found, expected) in [(&found.output, &expected.output), (&found.cells, &expected.cells)] {
                let expected = rows(&forward, expected.as_ref().unwrap(), b);
                assert_eq!(rows(&case, found.as_ref().unwrap(), b), flip(&expected, length));
            }
        }
    }
}

#[test]
fn bidirectional_is_two_unidirectional_layers() {
    for projection in [None, Some(4)] {
        let case = Case::new("both", &stack(Direction::Bidirectional, 1, projection), &LENGTHS, 13, true, 60);
        let found = run(&case);
        for (d, direction) in [Direction::Forward, Direction::Reverse].into_iter().enumerate() {
            let mut single = case.clone();
            let cell = case.weights.cells()[d].clone();
            single.weights = LstmWeights::new(stack(direction, 1, projection), vec![cell]).unwrap();
            let half =
                |state: &Option<Vec<f32>>| state.as_ref().map(|s| s[d * s.len() / 2..(d + 1) * s.len() / 2].to_vec());
            (single.h_0, single.c_0) = (half(&case.h_0), half(&case.c_0));
            let expected = run(&single);
            assert_eq!((half(&found.h_n), half(&found.c_n)), (expected.h_n, expected.c_n));
            for (found, expected) in [(&found.output, &expected.output), (&found.cells, &expected.cells)] {
                let (found, expected) = (found.as_ref().unwrap(), expected.as_ref().unwrap());
                let width = found.len() / (13 * 6);
                let side = found.chunks(width).flat_map(|row| &row[d * width / 2..(d + 1) * width / 2]);
                assert!(side.eq(expected));
            }
        }
    }
}

#[test]
fn layers_are_runs_one_after_the_other() {
    let case = Case::new("stack", &stack(Direction::Bidirectional, 2, Some(4)), &LENGTHS, 13, false, 70);
    let whole = run(&case);
    let mut input = case.clone();
    for l in 0..2 {
        let layer = case.spec().layers()[l];
        let cells = case.weights.cells()[2 * l..2 * l + 2].to_vec();
        input.weights = LstmWeights::new(LstmSpec::new(vec![layer]).unwrap(), cells).unwrap();
        let output = run(&input);
        if l == 1 {
            assert_eq!((&output.output, &output.cells), (&whole.output, &whole.cells));
        }
        let (h_n, c_n) = (whole.h_n.as_ref().unwrap(), whole.c_n.as_ref().unwrap());
        assert_eq!(output.h_n.unwrap(), h_n[l * h_n.len() / 2..(l + 1) * h_n.len() / 2]);
        assert_eq!(output.c_n.unwrap(), c_n[l * c_n.len() / 2..(l + 1) * c_n.len() / 2]);
        input.x = output.output.unwrap();
    }
}

#[test]
fn zero_weights_halve_c() {
    let spec = stack(Direction::Forward, 1, None);
    let mut case = Case::new("zeros", &spec, &[3, 0, 5], 5, true, 80);
    let zeros = |n| vec![0.0; n];
    let cell = CellWeights {
        weight_ih: zeros(36 * 5),
        weight_hh: zeros(36 * 9),
        bias_ih: Some(zeros(36)),
        bias_hh: Some(zeros(36)),
        ..CellWeights::default()
    };
    case.weights = LstmWeights::new(spec, vec![cell]).unwrap();
    let found = run(&case);
    let expected: Vec<f32> =
        case.c_0.as_ref().unwrap().iter().enumerate().map(|(k, c)| c / [8.0, 1.0, 32.0][k / 9]).collect();
    assert_eq!(found.c_n.unwrap(), expected);
    for b in [0, 2] {
        for j in 0..9 {
            assert_eq!(found.h_n.as_ref().unwrap()[b * 9 + j], 0.5 * expected[b * 9 + j].tanh());
        }
    }
}

#[test]
fn length_0_changes_nothing() {
    for case in cases() {
        let found = run(&case);
        let (h_size, c_size) = case.spec().state_sizes();
        let h_0 = case.h_0.clone().unwrap_or(vec![0.0; h_size * 6]);
        let c_0 = case.c_0.clone().unwrap_or(vec![0.0; c_size * 6]);
        let of_1 = |state: &[f32], width: fn(&LayerSpec) -> usize| select_state(case.spec(), state, 6, &[1], width);
        assert_eq!(of_1(&found.h_n.unwrap(), LayerSpec::h_size), of_1(&h_0, LayerSpec::h_size));
        assert_eq!(of_1(&found.c_n.unwrap(), LayerSpec::c_size), of_1(&c_0, LayerSpec::c_size));
        assert!(rows(&case, &found.output.unwrap(), 1).iter().flatten().all(|v| v.to_bits() == 0));
    }
}

#[test]
fn empty_batches_return_the_initial_state() {
    let spec = stack(Direction::Bidirectional, 2, Some(4));
    let weights = distinct_weights(&spec, 1);
    let no_steps = SequenceBatch::new(&[], [3, 0, 5], Layout::BatchMajor).unwrap();
    let (h_0, c_0): (Vec<f32>, Vec<f32>) =
        ((0..48).map(|v| v as f32).collect(), (0..108).map(|v| -(v as f32)).collect());
    let all = Outputs { sequence: SequenceOutput::All, final_state: true, cells: true };
    let found = reference::run::<f32>(&weights, &no_steps.clone().h_0(&h_0).c_0(&c_0).outputs(all)).unwrap();
    assert_eq!((found.h_n, found.c_n), (Some(h_0), Some(c_0)));
    assert_eq!((found.output, found.cells, found.last), (Some(vec![]), Some(vec![]), None));
    let found = reference::run::<f32>(&weights, &no_steps).unwrap();
    assert_eq!((found.h_n, found.c_n), (Some(vec![0.0; 48]), Some(vec![0.0; 108])));
    let no_sequences = SequenceBatch::new(&[], [4, 0, 5], Layout::TimeMajor).unwrap();
    let found = reference::run::<f32>(&weights, &no_sequences.outputs(all)).unwrap();
    assert_eq!(
        (found.h_n, found.c_n, found.output, found.cells),
        (Some(vec![]), Some(vec![]), Some(vec![]), Some(vec![]))
    );
}

#[test]
fn only_what_is_asked_for_is_returned_and_last_is_the_last_valid_row() {
    for mut case in cases() {
        let everything = run(&case);
        for sequence in [SequenceOutput::None, SequenceOutput::Last, SequenceOutput::All] {
            for (final_state, cells) in [(false, false), (true, false), (false, true)] {
                case.outputs = Outputs { sequence, final_state, cells };
                let found = run(&case);
                let expected = BatchOutput {
                    output: (sequence == SequenceOutput::All).then(|| everything.output.clone().unwrap()),
                    last: (sequence == SequenceOutput::Last).then(|| {
                        let row = |b: usize| {
                            let rows = rows(&case, everything.output.as_ref().unwrap(), b);
                            rows[LENGTHS[b].saturating_sub(1)].clone()
                        };
                        (0..6).flat_map(row).collect()
                    }),
                    h_n: final_state.then(|| everything.h_n.clone().unwrap()),
                    c_n: final_state.then(|| everything.c_n.clone().unwrap()),
                    cells: cells.then(|| everything.cells.clone().unwrap()),
                    pooled: None,
                };
                assert_eq!(found, expected, "{}", case.name);
            }
        }
    }
}

#[test]
fn every_option_changes_the_result() {
    let base = Case::new("base", &stack(Direction::Forward, 1, None), &LENGTHS, 13, true, 90);
    let expected = run(&base);
    let cell = base.weights.cells()[0].clone();
    let mut reverse = base.clone();
    reverse.weights = LstmWeights::new(stack(Direction::Reverse, 1, None), vec![cell.clone()]).unwrap();
    assert_ne!(run(&reverse).output, expected.output);
    let mut no_bias = base.clone();
    let spec = LstmSpec::stack(5, 9, 1).bias(false).build().unwrap();
    let cell = CellWeights { bias_ih: None, bias_hh: None, ..cell };
    no_bias.weights = LstmWeights::new(spec, vec![cell]).unwrap();
    assert_ne!(run(&no_bias).output, expected.output);
}

/// Each option of each cell, on the reference and on the CPU backend, which are then compared with the GPU case by case.
#[test]
fn every_option_of_every_cell_changes_the_result() {
    let everything = LstmCell {
        peepholes: true,
        coupled_input_forget: true,
        activation_clip: Some(0.4),
        cell_clip: Some(0.3),
        layer_norm: true,
        projection_bias: true,
        ..LstmCell::default()
    };
    let functions = |d: usize, f: fn(&mut LstmActivations)| {
        let mut cell = everything;
        f(&mut cell.activations[d]);
        CellSpec::Lstm(cell)
    };
    let lstm = |cell: LstmCell| CellSpec::Lstm(cell);
    let lstms = [
        lstm(everything),
        lstm(LstmCell { peepholes: false, ..everything }),
        lstm(LstmCell { coupled_input_forget: false, ..everything }),
        lstm(LstmCell { activation_clip: None, ..everything }),
        lstm(LstmCell { activation_clip: Some(0.5), ..everything }),
        lstm(LstmCell { clip_output_activation: false, activation_clip: Some(0.2), ..everything }),
        lstm(LstmCell { activation_clip: Some(0.2), ..everything }),
        lstm(LstmCell { cell_clip: None, ..everything }),
        lstm(LstmCell { cell_clip: Some(0.25), ..everything }),
        lstm(LstmCell { layer_norm: false, ..everything }),
        lstm(LstmCell { projection_bias: false, ..everything }),
        functions(0, |a| a.f = Activation::HardSigmoid { alpha: 0.2, beta: 0.5 }),
        functions(0, |a| a.f = Activation::HardSigmoid { alpha: 0.3, beta: 0.5 }),
        functions(0, |a| a.f = Activation::HardSigmoid { alpha: 0.2, beta: 0.4 }),
        functions(0, |a| a.g = Activation::Softsign),
        functions(0, |a| a.h = Activation::Softsign),
        functions(1, |a| a.f = Activation::Softsign),
        functions(1, |a| a.g = Activation::Softsign),
        functions(1, |a| a.h = Activation::Softsign),
    ];
    let gru = GruCell { activation_clip: Some(0.3), ..GruCell::default() };
    let mut other = [gru; 4];
    other[0].activations[0].f = Activation::Softsign;
    other[1].activations[0].g = Activation::Softsign;
    other[2].activations[1].f = Activation::Softsign;
    other[3].activations[1].g = Activation::Softsign;
    let mut grus: Vec<CellSpec> = other.map(CellSpec::Gru).into();
    grus.extend(
        [gru, GruCell { linear_before_reset: false, ..gru }, GruCell { activation_clip: None, ..gru }]
            .map(CellSpec::Gru),
    );
    let rnn = RnnCell { activation_clip: Some(0.3), ..RnnCell::default() };
    let functions = |d: usize| {
        let mut cell = rnn;
        cell.activations[d] = Activation::Relu;
        cell
    };
    let rnns = [rnn, RnnCell { activation_clip: None, ..rnn }, functions(0), functions(1)].map(CellSpec::Rnn);

    let engine = cfg!(feature = "cpu").then(|| Engine::open_blocking(EngineOptions::on(DeviceChoice::Cpu)).unwrap());
    for cells in [lstms.to_vec(), grus, rnns.to_vec()] {
        let mut seen: Vec<(String, Vec<f32>)> = Vec::new();
        let mut all_tensors = None;
        for cell in cells {
            let projection = cell.lstm().map(|_| 5);
            for merge in [Merge::Concat, Merge::Sum] {
                let spec = LstmSpec::stack(5, 9, 1).cell(cell).direction(Direction::Bidirectional);
                let spec = spec.merge(merge).projection(projection).build().unwrap();
                let mut case = Case::new("option", &spec, &LENGTHS, 13, true, 91);
                // The same tensors for all, less those that an option would need.
                let all = all_tensors.get_or_insert_with(|| case.weights.cells().to_vec()).clone();
                let own = all.into_iter().zip(case.weights.cells()).map(|(all, own)| CellWeights {
                    bias_hr: all.bias_hr.filter(|_| own.bias_hr.is_some()),
                    weight_peephole: all.weight_peephole.filter(|_| own.weight_peephole.is_some()),
                    weight_norm: all.weight_norm.filter(|_| own.weight_norm.is_some()),
                    ..all
                });
                case.weights = LstmWeights::new(spec.clone(), own.collect()).unwrap();
                let mut outputs = vec![run(&case).output.unwrap()];
                outputs.extend(engine.as_ref().map(|engine| {
                    let output = engine.load_blocking(&case.weights).unwrap().run_blocking(&case.batch()).unwrap();
                    output.output.unwrap()
                }));
                for output in outputs {
                    let differs = |other: &Vec<f32>| {
                        other.len() != output.len() || other.iter().zip(&output).any(|(a, b)| (a - b).abs() > 1e-4)
                    };
                    let name = format!("{:?} {merge:?}", spec.layers()[0].cell);
                    for (other, values) in seen.iter().filter(|(other, _)| *other != name) {
                        assert!(differs(values), "{name} has the result of {other}");
                    }
                    seen.push((name, output));
                }
            }
        }
    }
}

#[test]
fn chosen_sequences_are_those_of_the_whole_run() {
    for case in cases() {
        let whole = run(&case);
        let chosen = reference::run_sequences::<f32>(&case.weights, &case.batch(), &[3, 1, 2]).unwrap();
        assert_eq!(chosen.iter().map(|r| r.sequence).collect::<Vec<_>>(), [3, 1, 2]);
        for result in chosen {
            let b = result.sequence;
            let all_rows = rows(&case, whole.output.as_ref().unwrap(), b);
            assert!(all_rows[..LENGTHS[b]].iter().flatten().eq(&result.output), "{}", case.name);
            let all_cells = rows(&case, whole.cells.as_ref().unwrap(), b);
            assert!(all_cells[..LENGTHS[b]].iter().flatten().eq(&result.cells), "{}", case.name);
            let of_b = |s: &Option<Vec<f32>>, width| select_state(case.spec(), s.as_ref().unwrap(), 6, &[b], width);
            assert_eq!(result.h_n, of_b(&whole.h_n, LayerSpec::h_size));
            assert_eq!(result.c_n, of_b(&whole.c_n, LayerSpec::c_size));
        }
    }
}
