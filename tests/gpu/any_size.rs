//! Sequences and weights beyond a binding, and batches beyond the budget: the same bits on artificially small devices.

use libtest_mimic::Failed;
use wgpu_lstm::internals::{BufferId, Plan, plan, set_poison};
use wgpu_lstm::{
    CellSpec, Direction, Engine, EngineOptions, ErrorKind, GruCell, LstmCell, LstmSpec, Merge, Outputs, RnnCell,
    SequenceOutput,
};

use crate::bits::equal_outputs;
use crate::device_rows::{on_device, read};
use crate::fixture::Case;
use crate::{Subject, Test};

pub const TESTS: &[(&str, Test)] = &[
    ("sequences_beyond_a_binding_are_split_without_moving_a_bit", sequences),
    ("weights_beyond_a_binding_are_split_without_moving_a_bit", weights),
    ("one_mebibyte_bindings_and_four_of_budget_are_enough", tiny),
    ("what_does_not_fit_says_what_would", advice),
];

fn planned(engine: &Engine, case: &Case) -> Result<Plan, Failed> {
    let lstm = engine.load_blocking(&case.weights)?;
    Ok(plan(&lstm, &case.batch(), Default::default()).ok_or("not on a GPU")??)
}

/// Runs and records the case on a small device and on the whole one.
fn equal_on(subject: &Subject, small: &Engine, case: &Case, records: bool) -> Result<(), Failed> {
    let expected = subject.engine()?.load_blocking(&case.weights)?.run_blocking(&case.batch())?;
    set_poison(small, Some(f32::NAN));
    let lstm = small.load_blocking(&case.weights)?;
    let what = format!("{} {:?}", case.name, case.outputs);
    equal_outputs(&what, &lstm.run_blocking(&case.batch())?, &expected)?;
    // A recording keeps more than a run; on the smallest devices it does not fit.
    if records {
        let output = lstm.submit(&on_device(small, case)?)?;
        equal_outputs(&format!("{what}, recorded"), &read(small, &output)?, &expected)?;
    }
    Ok(())
}

fn sequences(subject: &Subject) -> Result<(), Failed> {
    let stack = LstmSpec::stack(12, 20, 2).direction(Direction::Bidirectional);
    let after_reset = GruCell { linear_before_reset: false, ..GruCell::default() };
    let lengths = [90, 61, 90, 3, 0, 44];
    for (n, spec) in [
        stack,
        stack.projection(9),
        stack.merge(Merge::Sum),
        stack.cell(CellSpec::Gru(after_reset)),
        stack.cell(CellSpec::Rnn(RnnCell::default())),
        LstmSpec::stack(12, 20, 2).direction(Direction::Reverse),
    ]
    .into_iter()
    .enumerate()
    {
        let mut case = Case::new("sequences", &spec.build()?, &lengths, 91, true, n as u64);
        // Weights of 20 units fit 8 KiB in few ranges; 288 rows of 80 bytes and more do not.
        let small = subject.open(|o: EngineOptions| o.max_binding_bytes(8 << 10))?;
        let pieces = planned(&small, &case)?.scratch.iter().filter(|b| b.label.starts_with("y0.l0")).count();
        if pieces < 2 {
            return Err(format!("expected a sequence in several pieces, found {pieces}").into());
        }
        equal_on(subject, &small, &case, true)?;
        case.outputs = Outputs { sequence: SequenceOutput::Last, final_state: true, cells: case.outputs.cells };
        equal_on(subject, &small, &case, true)?;
    }
    Ok(())
}

fn weights(subject: &Subject) -> Result<(), Failed> {
    let norm = CellSpec::Lstm(LstmCell { layer_norm: true, peepholes: true, ..LstmCell::default() });
    let peepholes = CellSpec::Lstm(LstmCell { peepholes: true, ..LstmCell::default() });
    let after_reset = CellSpec::Gru(GruCell { linear_before_reset: false, ..GruCell::default() });
    let stack = LstmSpec::stack(70, 131, 2);
    for (n, spec) in [
        stack,
        stack.projection(70),
        stack.direction(Direction::Bidirectional),
        stack.cell(peepholes),
        stack.cell(norm).projection(70),
        stack.cell(CellSpec::Gru(GruCell::default())).direction(Direction::Bidirectional),
        stack.cell(after_reset),
        stack.cell(CellSpec::Rnn(RnnCell::default())).direction(Direction::Bidirectional),
    ]
    .into_iter()
    .enumerate()
    {
        let case = Case::new("weights", &spec.build()?, &[3, 2, 4], 4, true, n as u64);
        // 131 units have 137 KiB of weights_hh or, in an RNN, a quarter; ranges of 1 to 64 columns.
        for kib in [160, 24] {
            let small = subject.open(|o: EngineOptions| o.max_binding_bytes(kib << 10))?;
            let split = planned(&small, &case)?.bind_groups.iter().any(|group| {
                group.ranges.iter().any(|r| matches!(r.buffer, BufferId::Model { range, .. } if range > 0))
            });
            if kib == 24 && !split {
                return Err(format!("expected ranges of weights in {:?}", case.spec().layers()[0]).into());
            }
            equal_on(subject, &small, &case, true)?;
        }
    }
    Ok(())
}

fn tiny(subject: &Subject) -> Result<(), Failed> {
    let small = subject.open(|o: EngineOptions| o.max_binding_bytes(1 << 20).memory_budget_bytes(4 << 20))?;
    for direction in [Direction::Forward, Direction::Bidirectional] {
        let spec = LstmSpec::stack(40, 150, 2).direction(direction).build()?;
        let case = Case::new("tiny", &spec, &[300, 211, 300, 9], 300, false, 1);
        let plan = planned(&small, &case)?;
        if plan.scratch_bytes() > 4 << 20 || plan.submits.len() < 2 {
            return Err(format!("{} bytes in {} submits", plan.scratch_bytes(), plan.submits.len()).into());
        }
        equal_on(subject, &small, &case, false)?;
    }
    Ok(())
}

fn advice(subject: &Subject) -> Result<(), Failed> {
    let small = subject.open(|o: EngineOptions| o.max_binding_bytes(1 << 20).memory_budget_bytes(4 << 20))?;
    let spec = LstmSpec::stack(40, 150, 1).direction(Direction::Bidirectional).build()?;
    let case = |batch: usize, steps: usize| Case::new("large", &spec, &vec![steps; batch], steps, false, 1);
    let lstm = small.load_blocking(&case(1, 1).weights)?;
    let run = |batch, steps| lstm.run_blocking(&case(batch, steps).batch());
    let error = match run(16, 400) {
        Err(e) if e.kind() == ErrorKind::DeviceLimit => e.to_string(),
        other => return Err(format!("expected a DeviceLimit, found {:?}", other.map(|_| ())).into()),
    };
    let number = |before: &str| -> Result<usize, Failed> {
        let rest = error.split(before).nth(1).ok_or_else(|| format!("{error:?} does not say {before:?}"))?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    };
    // What the message says would fit does fit, and one more does not.
    let batch = number("a batch of the ")?;
    run(batch, 400)?;
    let steps = number("all 16 up to ")?;
    run(16, steps)?;
    if run(batch + 1, 400).is_ok() || run(16, steps + 1).is_ok() {
        return Err(format!("more fits than {error:?} says").into());
    }
    Ok(())
}
