//! What a run leaves for the next one that is like it: it is used, and changes no result.

use std::future::Future;
use std::task::{Context, Poll, Waker};

use libtest_mimic::Failed;
use wgpu_lstm::internals::{Fixed, TripKind, arm_fault, disarm_fault, kept_bytes, plan, run_fixed, set_poison};
use wgpu_lstm::{
    BatchOutput, Chunk, Direction, Engine, ErrorKind, LimitsProfile, Lstm, LstmSpec, Outputs, SequenceOutput,
};

use crate::bits::{equal_bits, equal_outputs};
use crate::fixture::Case;
use crate::{Subject, Test};

pub const TESTS: &[(&str, Test)] = &[
    ("runs_like_the_last_change_no_bits", alike),
    ("only_runs_like_the_last_are_not_planned_again", planned_again),
    ("streams_and_models_keep_their_own", own),
    ("a_plan_of_short_dispatches_is_not_kept_for_long_ones", short_dispatches),
    ("many_streams_keep_no_more_than_their_share_of_the_budget", share),
    ("buffers_for_results_do_not_push_others_out_of_the_pool", full_pool),
];

fn spec() -> Result<LstmSpec, Failed> {
    Ok(LstmSpec::stack(7, 20, 2).direction(Direction::Bidirectional).build()?)
}

/// Batches of one model: alike, and other in lengths, layout, states, or what they return.
fn batches() -> Result<Vec<Case>, Failed> {
    let spec = spec()?;
    let new = |lengths: &[usize], initial, seed| {
        let mut case = Case::new("kept", &spec, lengths, 30, initial, 3);
        let values = Case::new("kept", &spec, lengths, 30, initial, seed);
        (case.x, case.h_0, case.c_0) = (values.x, values.h_0, values.c_0);
        case
    };
    let mut last = new(&[30, 4, 17], true, 8);
    last.outputs = Outputs { sequence: SequenceOutput::Last, final_state: true, cells: false };
    Ok(vec![
        new(&[30, 4, 17], true, 3),
        new(&[30, 4, 17], true, 4),
        // The same rows in each timestep, of other sequences.
        new(&[4, 17, 30], true, 5),
        new(&[30, 4, 17], false, 6),
        new(&[30, 4, 17, 1], true, 7),
        last,
    ])
}

fn load(engine: &Engine, case: &Case) -> Result<Lstm, Failed> {
    Ok(engine.load_blocking(&case.weights)?)
}

fn alike(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    set_poison(&engine, Some(f32::NAN));
    let cases = batches()?;
    // A model that has run nothing before.
    let expected = cases
        .iter()
        .map(|case| Ok(load(&engine, case)?.run_blocking(&case.batch())?))
        .collect::<Result<Vec<_>, Failed>>();
    let (expected, lstm) = (expected?, load(&engine, &cases[0])?);
    for n in [0, 0, 1, 0, 2, 1, 1, 3, 3, 0, 4, 5, 5, 0] {
        let (case, expected) = (&cases[n], &expected[n]);
        if n == 1 {
            // Dropped when its submits are made, and what it was to read is not there yet.
            let batch = case.batch();
            let mut future = Box::pin(lstm.run(&batch));
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                equal_outputs("already done", &output?, expected)?;
            }
        }
        equal_outputs(&format!("batch {n}"), &lstm.run_blocking(&case.batch())?, expected)?;
    }
    Ok(())
}

/// Where the first point of a run lies at which memory may run out.
fn first_point(engine: &Engine, run: impl FnOnce() -> Result<BatchOutput, wgpu_lstm::Error>) -> Result<String, Failed> {
    arm_fault(engine, TripKind::OutOfMemory, 0);
    let result = run();
    disarm_fault(engine);
    match result {
        // Buffers are asked for once more.
        Ok(_) => Ok("allocating".into()),
        Err(e) if e.kind() == ErrorKind::OutOfMemory => Ok(e.to_string().split(':').next().unwrap_or("").to_owned()),
        Err(e) => Err(e.into()),
    }
}

fn planned_again(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    let cases = batches()?;
    let lstm = load(&engine, &cases[0])?;
    // However fast the device turns out to be meanwhile.
    let fixed = Fixed { dispatch_flops: Some(1 << 40), ..Fixed::default() };
    let run = |case: &Case| run_fixed(&lstm, &case.batch(), fixed).expect("the model is on a GPU");
    for (n, then, expected) in [
        (0, 1, "submitting"),
        (0, 2, "allocating"),
        (2, 3, "allocating"),
        (3, 3, "submitting"),
        (3, 4, "allocating"),
        (1, 5, "allocating"),
    ] {
        run(&cases[n])?;
        let found = first_point(&engine, || run(&cases[then]))?;
        if found != expected {
            return Err(format!("batch {then} after {n}: expected {expected} first, found {found}").into());
        }
    }
    // What failed leaves nothing.
    run(&cases[0])?;
    for expected in ["submitting", "allocating"] {
        match first_point(&engine, || run(&cases[0]))? {
            found if found == expected => {}
            found => return Err(format!("expected {expected} first, found {found}").into()),
        }
    }
    // Nor do buffers of more than 8 MiB.
    run(&cases[0])?;
    let small = kept_bytes(&engine);
    let spec = spec()?;
    let large = Case::new("large", &spec, &[1000; 30], 1000, false, 3);
    run(&large)?;
    let after_large = kept_bytes(&engine);
    match engine.counters() {
        c if small > 0 && after_large == 0 && c.in_use_bytes == 0 && c.idle_bytes > 8 << 20 => Ok(()),
        c => Err(format!("kept {small}, then {after_large} bytes; {c:?}").into()),
    }
}

fn own(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    let spec = LstmSpec::stack(7, 20, 2).build()?;
    let case = Case::new("own", &spec, &[12, 12], 12, false, 2);
    let lstm = load(&engine, &case)?;
    let whole = lstm.run_blocking(&case.batch())?.output.ok_or("no output")?;
    let of_model = kept_bytes(&engine);
    let mut streams = [lstm.stream(2)?, lstm.stream(2)?];
    let row = |b: usize, t: usize| &case.x[(b * 12 + t) * 7..][..7];
    for t in 0..12 {
        for (s, stream) in streams.iter_mut().enumerate() {
            // Both slots in one stream, each alone in the other; the first push starts from zero, the others do not.
            let pushes: &[&[usize]] = if s == 0 { &[&[0, 1]] } else { &[&[0], &[1]] };
            for slots in pushes {
                let chunks: Vec<_> = slots.iter().map(|&b| Chunk::new(b, row(b, t))).collect();
                let output = stream.push_blocking(&chunks)?;
                for (i, &b) in slots.iter().enumerate() {
                    equal_bits(
                        &format!("stream {s}, slot {b}, step {t}"),
                        output.chunk(i),
                        &whole[(b * 12 + t) * 20..][..20],
                    )?;
                }
            }
        }
    }
    let of_all = kept_bytes(&engine);
    let held = |c: wgpu_lstm::Counters| c.idle_bytes;
    let idle = held(engine.counters());
    drop(streams);
    let (of_streams, after) = (of_all - of_model, kept_bytes(&engine));
    if of_model == 0 || of_streams == 0 || after != of_model || held(engine.counters()) != idle {
        return Err(format!("kept {of_model}, {of_all}, {after} bytes; idle {idle}, {:?}", engine.counters()).into());
    }
    drop(lstm);
    match kept_bytes(&engine) {
        0 => Ok(()),
        bytes => Err(format!("{bytes} bytes are kept for no model").into()),
    }
}

fn short_dispatches(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    let case = Case::new("short", &spec()?, &[25, 25, 20], 25, true, 4);
    let lstm = load(&engine, &case)?;
    let run = |flops: u64| -> Result<(BatchOutput, u64), Failed> {
        let before = engine.counters().dispatches;
        let fixed = Fixed { dispatch_flops: Some(flops), ..Fixed::default() };
        let output = run_fixed(&lstm, &case.batch(), fixed).ok_or("not on a GPU")??;
        Ok((output, engine.counters().dispatches - before))
    };
    let (expected, many) = run(10_000)?;
    let (long, few) = run(u64::MAX)?;
    equal_outputs("long dispatches", &long, &expected)?;
    let (_, again) = run(u64::MAX / 2)?;
    let (_, short) = run(10_000)?;
    match few < many && again == few && short == many {
        true => Ok(()),
        false => Err(format!("{many} short dispatches, then {few}, {again} and {short}").into()),
    }
}

fn share(subject: &Subject) -> Result<(), Failed> {
    let budget = 1 << 20;
    let engine = subject.open(|o| o.memory_budget_bytes(budget))?;
    let spec = LstmSpec::stack(7, 64, 2).build()?;
    let case = Case::new("share", &spec, &[1; 16], 1, false, 6);
    let lstm = load(&engine, &case)?;
    let expected = lstm.run_blocking(&case.batch())?.output.ok_or("no output")?;
    let chunks: Vec<_> = (0..16).map(|b| Chunk::new(b, &case.x[b * 7..][..7])).collect();
    let mut streams = Vec::new();
    let mut most = 0;
    for n in 0..30 {
        let mut stream = lstm.stream(16)?;
        let output = stream.push_blocking(&chunks)?;
        let rows: Vec<f32> = output.iter().flatten().copied().collect();
        equal_bits(&format!("stream {n}"), &rows, &expected)?;
        streams.push(stream);
        most = most.max(kept_bytes(&engine));
    }
    // The last one that fits is rounded up with the sizes of buffers.
    match most {
        0 => Err("nothing was kept".into()),
        most if most > budget / 8 * 9 / 8 => Err(format!("{most} bytes are kept, of a budget of {budget}").into()),
        _ => Ok(()),
    }
}

/// A run that takes all of its budget finds its buffers again, whatever its results need besides.
fn full_pool(subject: &Subject) -> Result<(), Failed> {
    let spec = LstmSpec::stack(8, 64, 1).build()?;
    let case = Case::new("full", &spec, &[64; 16], 64, false, 6);
    let needs = {
        let lstm = load(&subject.engine()?, &case)?;
        plan(&lstm, &case.batch(), Fixed::default()).ok_or("not on a GPU")??.scratch_bytes()
    };
    // Copies, so that there are buffers for results.
    let engine = subject.open(|o| o.memory_budget_bytes(needs).limits(LimitsProfile::WebGpuDefaults))?;
    let lstm = load(&engine, &case)?;
    let plan = plan(&lstm, &case.batch(), Fixed::default()).ok_or("not on a GPU")??;
    let results: u64 = plan.submits.iter().flat_map(|submit| &submit.staging_bytes).sum();
    if plan.scratch_bytes() < needs / 2 || results < needs / 8 {
        return Err(format!("{} of {needs} bytes, {results} of results", plan.scratch_bytes()).into());
    }
    for n in 0..3 {
        lstm.run_blocking(&case.batch())?;
        let idle = engine.counters().idle_bytes;
        if idle < plan.scratch_bytes() {
            return Err(format!("run {n}: expected {} idle bytes, found {idle}", plan.scratch_bytes()).into());
        }
    }
    Ok(())
}
