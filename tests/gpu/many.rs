//! Many batches in turn, batches cut to fit, dispatches kept short: the same bits.

use libtest_mimic::Failed;
use wgpu_lstm::internals::{Fixed, plan, pooled_bytes, run_fixed};
use wgpu_lstm::{CellSpec, Direction, EngineOptions, ErrorKind, GruCell, LstmSpec, Merge, Outputs, SequenceOutput};

use crate::bits::equal_outputs;
use crate::fixture::Case;
use crate::{Subject, Test};

pub const TESTS: &[(&str, Test)] = &[
    ("many_batches_in_turn_equal_single_runs", in_turn),
    ("a_batch_beyond_the_budget_is_cut_into_runs", cut),
    ("short_dispatches_move_no_bit", short_dispatches),
    ("many_batches_stay_within_the_budget", bounded),
];

fn in_turn(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o: EngineOptions| o.memory_budget_bytes(256 << 10))?;
    let spec = LstmSpec::stack(6, 20, 2).build()?;
    let shapes: [&[usize]; 8] =
        [&[5, 9, 2], &[40; 3], &[0, 0], &[1], &[90, 3, 0, 60], &[], &[7, 7, 7, 7, 7], &[120, 119]];
    let mut cases: Vec<Case> = Vec::new();
    for (n, lengths) in shapes.iter().enumerate() {
        let seq_len = lengths.iter().copied().max().unwrap_or(0);
        let mut case = Case::new("many", &spec, lengths, seq_len, n % 2 == 0, n as u64);
        case.weights = cases.first().map_or(case.weights.clone(), |c| c.weights.clone());
        cases.push(if n % 3 == 1 { case.time_major() } else { case });
    }
    let lstm = engine.load_blocking(&cases[0].weights)?;
    let expected = cases.iter().map(|c| lstm.run_blocking(&c.batch())).collect::<Result<Vec<_>, _>>()?;
    let found = lstm.run_many(cases.iter().map(Case::batch)).collect::<Result<Vec<_>, _>>()?;
    if found.len() != expected.len() {
        return Err(format!("expected {} outputs, found {}", expected.len(), found.len()).into());
    }
    for (n, (f, e)) in found.iter().zip(&expected).enumerate() {
        equal_outputs(&format!("batch {n}"), f, e)?;
    }
    // A batch that is refused is an error of its own; async, in between.
    let mut bad = cases[1].clone();
    bad.x[0] = f32::NAN;
    let order = [&cases[0], &bad, &cases[4], &bad, &bad, &cases[7]];
    let mut many = lstm.run_many(order.iter().map(|c| c.batch()));
    let mut outputs = Vec::new();
    while let Some(output) = pollster::block_on(many.next_output()) {
        outputs.push(output);
    }
    for (n, (index, output)) in [Some(0), None, Some(4), None, None, Some(7)].into_iter().zip(&outputs).enumerate() {
        match (index, output) {
            (Some(index), Ok(output)) => equal_outputs(&format!("batch {n}"), output, &expected[index])?,
            (None, Err(e)) if e.kind() == ErrorKind::InvalidInput => {}
            (_, other) => return Err(format!("batch {n}: {other:?}").into()),
        }
    }
    match outputs.len() {
        6 => Ok(()),
        n => Err(format!("expected 6 outputs, found {n}").into()),
    }
}

fn cut(subject: &Subject) -> Result<(), Failed> {
    let small = subject.open(|o: EngineOptions| o.memory_budget_bytes(600 << 10))?;
    let stack = LstmSpec::stack(9, 50, 1).direction(Direction::Bidirectional);
    for (n, spec) in [
        stack.build()?,
        stack.projection(20).merge(Merge::Sum).build()?,
        LstmSpec::stack(9, 50, 2).cell(CellSpec::Gru(GruCell::default())).build()?,
    ]
    .iter()
    .enumerate()
    {
        // The middle has no valid row; one of the others needs more than half of the budget.
        let mut lengths = vec![60; 24];
        lengths[6..12].fill(0);
        lengths[3] = 300;
        let mut case = Case::new("cut", spec, &lengths, 300, true, n as u64);
        for time_major in [false, true] {
            case = if time_major { case.time_major() } else { case };
            for sequence in [SequenceOutput::All, SequenceOutput::Last] {
                case.outputs = Outputs { sequence, final_state: true, cells: spec.last_layer().c_size() > 0 };
                let expected = subject.engine()?.load_blocking(&case.weights)?.run_blocking(&case.batch())?;
                let lstm = small.load_blocking(&case.weights)?;
                if n == 0 {
                    match lstm.run_blocking(&case.batch()) {
                        Err(e) if e.kind() == ErrorKind::DeviceLimit => {}
                        other => return Err(format!("expected a DeviceLimit, found {:?}", other.map(|_| ())).into()),
                    }
                }
                let mut found = lstm.run_many([case.batch(), case.batch()]);
                for _ in 0..2 {
                    let output = found.next().ok_or("no output")??;
                    equal_outputs(&format!("{:?}", spec.layers()[0]), &output, &expected)?;
                }
                if found.next().is_some() {
                    return Err("more outputs than batches".into());
                }
            }
        }
    }
    // A sequence that does not fit even alone is refused, the next batch runs.
    let spec = stack.build()?;
    let large = Case::new("large", &spec, &[3, 2000, 5], 2000, false, 1);
    let mut fine = Case::new("fine", &spec, &[3, 4], 4, false, 2);
    fine.weights = large.weights.clone();
    let lstm = small.load_blocking(&large.weights)?;
    let found: Vec<_> = lstm.run_many([large.batch(), fine.batch()]).collect();
    match &found[..] {
        [Err(e), Ok(output)] if e.kind() == ErrorKind::DeviceLimit => {
            equal_outputs("the next batch", output, &lstm.run_blocking(&fine.batch())?)
        }
        other => Err(format!("expected a DeviceLimit and an output, found {} results", other.len()).into()),
    }
}

fn short_dispatches(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let after_reset = GruCell { linear_before_reset: false, ..GruCell::default() };
    let stack = LstmSpec::stack(70, 200, 1);
    for (n, spec) in [
        stack.build()?,
        stack.direction(Direction::Bidirectional).projection(70).build()?,
        stack.cell(CellSpec::Gru(after_reset)).build()?,
    ]
    .iter()
    .enumerate()
    {
        let case = Case::new("short", spec, &[30; 40], 30, true, n as u64);
        let lstm = engine.load_blocking(&case.weights)?;
        let whole = Fixed { dispatch_flops: Some(u64::MAX), ..Fixed::default() };
        let short = Fixed { dispatch_flops: Some(2_000_000), ..Fixed::default() };
        let planned = |fixed| plan(&lstm, &case.batch(), fixed).ok_or("not on a GPU");
        let (long_plan, short_plan) = (planned(whole)??, planned(short)??);
        let longest = |p: &wgpu_lstm::internals::Plan| {
            p.submits.iter().flat_map(|s| &s.dispatches).map(|d| d.flops).max().unwrap_or(0)
        };
        // 40 rows of 64 columns and 200 k, in two directions, are the shortest steps.
        if longest(&long_plan) < 20_000_000 || longest(&short_plan) > 8_200_000 {
            return Err(format!("dispatches of {} and {} operations", longest(&long_plan), longest(&short_plan)).into());
        }
        // A submit has about twenty of them, or what a timestep needs.
        let largest = |p: &wgpu_lstm::internals::Plan| p.submits.iter().map(|s| s.flops()).max().unwrap_or(0);
        if largest(&short_plan) > 90_000_000 || short_plan.submits.len() <= long_plan.submits.len() {
            return Err(format!("{} submits of up to {}", short_plan.submits.len(), largest(&short_plan)).into());
        }
        if long_plan.flops() != short_plan.flops() {
            return Err(format!("{} operations became {}", long_plan.flops(), short_plan.flops()).into());
        }
        let run = |fixed| run_fixed(&lstm, &case.batch(), fixed).ok_or("not on a GPU");
        equal_outputs(&format!("{:?}", spec.layers()[0]), &run(short)??, &run(whole)??)?;
    }
    Ok(())
}

fn bounded(subject: &Subject) -> Result<(), Failed> {
    let budget = 1 << 20;
    let engine = subject.open(|o: EngineOptions| o.memory_budget_bytes(budget))?;
    let spec = LstmSpec::stack(6, 40, 2).build()?;
    let case = Case::new("bounded", &spec, &[100; 12], 100, false, 1);
    let lstm = engine.load_blocking(&case.weights)?;
    let mut most = 0;
    for output in lstm.run_many((0..20).map(|_| case.batch())) {
        output?;
        most = most.max(pooled_bytes(&engine));
    }
    // Sizes are rounded up by at most an eighth.
    if most == 0 || most > budget + budget / 8 {
        return Err(format!("{most} idle bytes of a budget of {budget}").into());
    }
    Ok(())
}
