//! The CPU backend against the reference.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use wgpu_lstm::{
    BatchOutput, DeviceChoice, Direction, Engine, EngineOptions, LayerSpec, Layout, LstmSpec, LstmWeights, Merge,
    Outputs, Precision, SequenceBatch, SequenceOutput,
};

use crate::fixture::{Case, parity_cases, valid_rows, variant_cases};
use crate::support::tolerance::{CPU, one_step, sample_step, whole_run};

fn run(weights: &LstmWeights, batch: &SequenceBatch<'_>) -> wgpu_lstm::Result<BatchOutput> {
    let engine = Engine::open_blocking(EngineOptions::on(DeviceChoice::Cpu))?;
    engine.load_blocking(weights)?.run_blocking(batch)
}

fn check(case: &Case) -> Result<(), String> {
    let found = run(&case.weights, &case.batch()).map_err(|e| e.to_string())?;
    let judgement = whole_run(&case.weights, &case.batch(), CPU);
    judgement.check(&found).map(|_| ()).map_err(|e| format!("{}: {e}", case.name))
}

#[test]
fn pairs_of_options_and_sizes_agree_with_the_reference() {
    for case in parity_cases() {
        check(&case).unwrap();
    }
}

#[test]
fn every_cell_and_option_agrees_with_the_reference() {
    for case in variant_cases() {
        check(&case).unwrap();
        let longest = case.lengths.iter().max().copied().unwrap();
        for t in [0, longest / 2, longest - 1] {
            let sample = sample_step(&case.weights, &case.batch(), t);
            let batch = sample.batch(case.spec().input_size());
            let found = run(&case.weights, &batch).unwrap();
            let judgement = one_step(&case.weights, &batch, CPU);
            judgement.check(&found).unwrap_or_else(|e| panic!("{}, step {t}: {e}", case.name));
        }
    }
}

#[test]
fn single_steps_lie_within_the_rigorous_bound() {
    for (hidden_size, projection, layers) in [(5, None, 1), (64, None, 2), (70, Some(33), 2), (300, None, 1)] {
        let spec = LstmSpec::stack(40, hidden_size, layers).direction(Direction::Bidirectional).projection(projection);
        let case = Case::new("steps", &spec.build().unwrap(), &[9, 0, 4, 9, 1], 9, true, 7);
        for t in [0, 3, 8] {
            let sample = sample_step(&case.weights, &case.batch(), t);
            let batch = sample.batch(40);
            let found = run(&case.weights, &batch).unwrap();
            let judgement = one_step(&case.weights, &batch, CPU);
            judgement.check(&found).unwrap_or_else(|e| panic!("hidden_size {hidden_size}, t {t}: {e}"));
        }
    }
}

#[test]
fn large_batches_use_every_path() {
    // Groups, rows in parallel, products with several threads, also of a single row.
    use Direction::{Bidirectional, Forward};
    for (input, hidden, direction, batch_size, steps) in [
        (30, 130, Bidirectional, 90, 12),
        (3, 520, Forward, 1, 5),
        (3, 520, Bidirectional, 2, 5),
        (260, 40, Forward, 40, 30),
    ] {
        let spec = LstmSpec::stack(input, hidden, 1).direction(direction).build().unwrap();
        let lengths: Vec<usize> = (0..batch_size).map(|b| steps - b * 7 % (steps + 1)).collect();
        check(&Case::new(&format!("h{hidden} b{batch_size}"), &spec, &lengths, steps, true, 8)).unwrap();
    }
}

#[test]
fn weights_as_halves_are_the_rounded_weights() {
    let open = |precision| Engine::open_blocking(EngineOptions::on(DeviceChoice::Cpu).precision(precision)).unwrap();
    let (singles, halves) = (open(Precision::F32), open(Precision::F16Weights));
    let cases = variant_cases();
    let (all, mut changed) = (cases.len(), 0);
    for mut case in cases {
        let exact = singles.load_blocking(&case.weights).unwrap().run_blocking(&case.batch()).unwrap();
        let found = halves.load_blocking(&case.weights).unwrap().run_blocking(&case.batch()).unwrap();
        changed += usize::from(found != exact);
        case.weights = case.weights.rounded_to_f16().unwrap();
        let expected = singles.load_blocking(&case.weights).unwrap().run_blocking(&case.batch()).unwrap();
        assert_eq!(found, expected, "{}", case.name);
    }
    // But for a layer-normalised unit, which is always 0.
    assert!(changed >= all - 2, "rounding changed {changed} of {all}");
}

/// Alone, in small company, among many, and cut in two with carried state.
#[test]
fn bits_do_not_depend_on_neighbours_or_pieces() {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for case in variant_cases() {
        let many: Vec<usize> = (0..41).map(|n| n % case.batch_size()).collect();
        let large = case.select(&many, case.seq_len);
        let whole = run(&large.weights, &large.batch()).unwrap();
        let rows = |case: &Case, output: &BatchOutput, chosen: &[usize]| {
            bits(&valid_rows(output.output.as_ref().unwrap(), &case.lengths, case.seq_len, case.layout, chosen))
        };
        for chosen in [vec![0], vec![many.len() - 1], vec![3, 1], (0..7).collect(), (0..20).rev().collect()] {
            let few = large.select(&chosen, case.seq_len);
            let output = run(&few.weights, &few.batch()).unwrap();
            let everyone: Vec<usize> = (0..chosen.len()).collect();
            let what = format!("{}: {chosen:?}", case.name);
            assert_eq!(rows(&few, &output, &everyone), rows(&large, &whole, &chosen), "{what}");
        }
    }
}

#[test]
fn only_what_is_asked_for_is_returned() {
    for direction in [Direction::Forward, Direction::Reverse, Direction::Bidirectional] {
        let spec = LstmSpec::stack(6, 10, 2).direction(direction).projection(3).build().unwrap();
        let mut case = Case::new("outputs", &spec, &[4, 0, 8, 1, 8], 9, true, 9);
        for sequence in [SequenceOutput::None, SequenceOutput::Last, SequenceOutput::All] {
            for (final_state, cells) in [(false, false), (true, false), (false, true), (true, true)] {
                case.outputs = Outputs { sequence, final_state, cells };
                check(&case).unwrap();
            }
        }
    }
}

#[test]
fn pooled_rows_are_those_of_the_definition() {
    for merge in [Merge::Concat, Merge::Sum] {
        let spec = LstmSpec::stack(3, 7, 1).direction(Direction::Bidirectional).merge(merge).build().unwrap();
        for case in [Case::new("pooled", &spec, &[4, 0, 6, 1], 7, true, 2)].map(|c| [c.time_major(), c]).concat() {
            for device in [DeviceChoice::Cpu, DeviceChoice::Reference] {
                let engine = Engine::open_blocking(EngineOptions::on(device)).unwrap();
                let lstm = engine.load_blocking(&case.weights).unwrap();
                let asked = |sequence| {
                    let outputs = Outputs { sequence, final_state: false, cells: false };
                    lstm.run_blocking(&case.batch().outputs(outputs)).unwrap()
                };
                let all = asked(SequenceOutput::All).output.unwrap();
                let features = spec.output_size();
                let [mean, max] = [SequenceOutput::Mean, SequenceOutput::Max].map(|how| {
                    let output = asked(how);
                    assert!(output.output.is_none() && output.last.is_none());
                    output.pooled.unwrap()
                });
                for (b, &length) in case.lengths.iter().enumerate() {
                    let rows = valid_rows(&all, &case.lengths, case.seq_len, case.layout, &[b]);
                    for u in 0..features {
                        let column: Vec<f32> = rows.iter().skip(u).step_by(features).copied().collect();
                        assert_eq!(column.len(), length);
                        let (sum, largest) = column.iter().fold((0.0, f32::MIN), |(s, m), &v| (s + v, v.max(m)));
                        let expected = if length == 0 { [0.0, 0.0] } else { [sum / length as f32, largest] };
                        assert_eq!([mean[b * features + u], max[b * features + u]], expected, "sequence {b}, unit {u}");
                    }
                }
            }
        }
    }
}

#[test]
fn empty_batches_return_the_initial_state() {
    let spec = LstmSpec::stack(5, 9, 2).direction(Direction::Bidirectional).build().unwrap();
    for (lengths, seq_len) in [(&[][..], 0), (&[], 4), (&[0, 0, 0], 0), (&[0, 0], 6)] {
        for initial in [false, true] {
            check(&Case::new("empty", &spec, lengths, seq_len, initial, 10)).unwrap();
        }
    }
}

#[test]
fn one_of_the_two_initial_states_may_be_given() {
    let spec = LstmSpec::stack(5, 9, 1).projection(4).build().unwrap();
    for drop_h in [false, true] {
        let mut case = Case::new("half", &spec, &[3, 0, 5], 5, true, 11);
        *(if drop_h { &mut case.h_0 } else { &mut case.c_0 }) = None;
        check(&case).unwrap();
    }
}

#[test]
fn saturated_gates_stay_finite() {
    let spec = LstmSpec::stack(4, 6, 1).build().unwrap();
    let mut case = Case::new("saturated", &spec, &[9, 5], 9, true, 12);
    case.x.iter_mut().for_each(|v| *v *= 1e6);
    check(&case).unwrap();
    case.x.iter_mut().for_each(|v| *v *= 1e26); // products near the end of f32
    let found = run(&case.weights, &case.batch()).unwrap();
    assert!(found.output.unwrap().iter().all(|v| v.is_finite()));
}

#[test]
fn nan_propagates_within_its_sequence() {
    let spec = LstmSpec::stack(4, 6, 2).build().unwrap();
    let mut case = Case::new("nan", &spec, &[6, 6, 3], 6, true, 13);
    case.x[(6 + 2) * 4 + 1] = f32::NAN; // sequence 1, step 2
    case.x[(12 + 4) * 4] = f32::NAN; // past the length of sequence 2
    assert!(run(&case.weights, &case.batch()).unwrap_err().to_string().contains("sequence 1, step 2, feature 1"));
    let found = run(&case.weights, &case.batch().check_finite(false)).unwrap();
    let output = found.output.unwrap();
    for b in 0..3 {
        for t in 0..6 {
            let row = &output[(b * 6 + t) * 6..][..6];
            assert!(row.iter().all(|v| v.is_nan() == (b == 1 && t >= 2)), "sequence {b}, step {t}: {row:?}");
        }
    }
    let c_n = found.c_n.unwrap();
    assert!(c_n.iter().enumerate().all(|(k, v)| v.is_nan() == (k / 6 % 3 == 1)));
}

#[test]
fn a_model_serves_several_threads() {
    let spec = LstmSpec::stack(20, 40, 2).build().unwrap();
    let case = Case::new("threads", &spec, &[20, 3, 11], 20, true, 14);
    let engine = Engine::open_blocking(EngineOptions::on(DeviceChoice::Cpu)).unwrap();
    let model = engine.load_blocking(&case.weights).unwrap();
    let expected = model.run_blocking(&case.batch()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5).for_each(|_| assert_eq!(model.run_blocking(&case.batch()).unwrap(), expected)));
        }
    });
}

/// Up to three layers that chain, each with sizes, direction, bias and projection of its own.
fn specs() -> impl Strategy<Value = LstmSpec> {
    let layer = (1..40usize, 0..3usize, any::<bool>(), 0..40usize);
    (1..40usize, prop::collection::vec(layer, 1..4)).prop_map(|(input_size, layers)| {
        let mut width = input_size;
        let chained = layers.into_iter().map(|(hidden_size, direction, bias, projection)| {
            let layer = LayerSpec {
                direction: [Direction::Forward, Direction::Reverse, Direction::Bidirectional][direction],
                bias,
                projection_size: Some(projection).filter(|p| (1..hidden_size).contains(p)),
                ..LayerSpec::new(width, hidden_size)
            };
            width = layer.output_size();
            layer
        });
        LstmSpec::new(chained.collect()).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if std::env::var("LSTM_FULL").is_ok_and(|v| v == "1") { 1500 } else { 96 },
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(4),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_spec_and_batch_agree_with_the_reference(
        spec in specs(),
        lengths in prop::collection::vec(0..20usize, 0..12),
        padding in 0..4usize,
        initial in any::<bool>(),
        time_major in any::<bool>(),
        (sequence, final_state, cells) in (0..3usize, any::<bool>(), any::<bool>()),
        seed in any::<u64>(),
    ) {
        let seq_len = lengths.iter().max().map_or(0, |n| n + padding);
        let mut case = Case::new("any", &spec, &lengths, seq_len, initial, seed);
        case.outputs = Outputs {
            sequence: [SequenceOutput::None, SequenceOutput::Last, SequenceOutput::All][sequence],
            final_state,
            cells,
        };
        let case = if time_major { case.time_major() } else { case };
        prop_assert_eq!(case.layout == Layout::TimeMajor, time_major);
        check(&case).map_err(TestCaseError::fail)?;
    }
}
