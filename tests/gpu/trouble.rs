//! Trouble at every point where it is possible: typed errors, no hang, nothing left behind, and a way on.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use wgpu_lstm::internals::{TripKind, arm_fault, device_watch, disarm_fault};
use wgpu_lstm::{BatchOutput, Chunk, Direction, Engine, Error, ErrorKind, Lstm, LstmSpec, Stream, Tuning};

use crate::bits::{equal_bits, equal_outputs};
use crate::device_rows::{on_device, read};
use crate::fixture::Case;
use crate::{Subject, Test, is_full};

pub const TESTS: &[(&str, Test)] = &[
    ("a_device_lost_at_any_point_is_an_error_and_streams_go_on_elsewhere", lost_anywhere),
    ("memory_that_runs_out_at_any_point_is_an_error_and_the_engine_goes_on", out_of_memory_anywhere),
    ("a_recording_that_failed_keeps_its_buffers_with_the_encoder", failed_recording),
    ("an_engine_leaves_nothing_behind", nothing_left),
    ("sixteen_threads_share_an_engine", sixteen_threads),
    ("counters_count_what_was_done", counters),
    ("plans_are_explained", explained),
    #[cfg(feature = "tracing")]
    ("spans_tell_what_happens", spans),
];

/// More points than any of the runs below has.
const MANY: u32 = 400;

fn case() -> Result<Case, Failed> {
    let spec = LstmSpec::stack(5, 9, 2).direction(Direction::Bidirectional).build()?;
    Ok(Case::new("trouble", &spec, &[40, 0, 60, 22], 60, true, 1))
}

/// The ways to use a model, each from loading it on.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Blocking,
    /// With what a run before has left.
    Again,
    Async,
    Record,
    Many,
    Push,
}

const WAYS: [Way; 6] = [Way::Blocking, Way::Again, Way::Async, Way::Record, Way::Many, Way::Push];

/// Loads the case's model and runs it so.
fn go(engine: &Engine, case: &Case, way: Way) -> Result<BatchOutput, Error> {
    let lstm = engine.load_blocking(&case.weights)?;
    match way {
        Way::Blocking => lstm.run_blocking(&case.batch()),
        Way::Again => {
            lstm.run_blocking(&case.batch())?;
            lstm.run_blocking(&case.batch())
        }
        Way::Async => pollster::block_on(lstm.run(&case.batch())),
        Way::Many => lstm.run_many([case.batch(), case.batch()]).try_fold(BatchOutput::default(), |_, output| output),
        Way::Record => {
            let output = lstm.submit(&on_device(engine, case)?)?;
            read(engine, &output)
        }
        Way::Push => {
            push_twice(&mut lstm.stream(3)?).map(|rows| BatchOutput { output: Some(rows), ..Default::default() })
        }
    }
}

/// The inputs of a stream's first and second push.
fn pushes() -> [Vec<f32>; 2] {
    [8, 3].map(|steps| (0..steps * 5).map(|n| (n as f32 * 0.7).sin()).collect())
}

fn push_twice(stream: &mut Stream) -> Result<Vec<f32>, Error> {
    let [first, second] = pushes();
    let mut rows = stream.push_blocking(&[Chunk::new(1, &first)])?.chunk(0).to_vec();
    rows.extend_from_slice(stream.push_blocking(&[Chunk::new(1, &second)])?.chunk(0));
    Ok(rows)
}

/// The case for a way: a stream needs a model without a reverse direction.
fn case_for(way: Way) -> Result<Case, Failed> {
    let spec = LstmSpec::stack(5, 9, 2).build()?;
    Ok(if way == Way::Push { Case::new("trouble", &spec, &[3], 3, false, 1) } else { case()? })
}

fn lost_anywhere(subject: &Subject) -> Result<(), Failed> {
    for way in WAYS {
        let case = case_for(way)?;
        let expected = go(&subject.engine()?, &case, way)?;
        let mut n = 0;
        // Points are many and alike: the first, then every seventh.
        let points = loop {
            let engine = subject.open(|o| o)?;
            let watch = device_watch(&engine);
            arm_fault(&engine, TripKind::Loss, n);
            let begun = Instant::now();
            let result = go(&engine, &case, way);
            let took = begun.elapsed();
            let passed = disarm_fault(&engine);
            match &result {
                // After the last read-back a loss does not matter to what was read.
                Ok(output) => equal_outputs(&format!("{way:?}, point {n}"), output, &expected)?,
                Err(e) if e.kind() == ErrorKind::DeviceLost && !passed => {}
                Err(e) => {
                    return Err(format!("{way:?}, point {n}: expected DeviceLost, found {:?}: {e}", e.kind()).into());
                }
            }
            if took > Duration::from_secs(20) {
                return Err(format!("{way:?}, point {n}: the error took {took:?}").into());
            }
            drop((engine, result));
            if watch() {
                return Err(format!("{way:?}, point {n}: the device is still held").into());
            }
            if passed {
                break n;
            }
            n += if n < 8 || is_full() { 1 } else { 7 };
        };
        if points < 6 {
            return Err(format!("{way:?}: only {points} points were tried").into());
        }
    }

    // A stream goes on from what was saved, on a new engine.
    let case = case_for(Way::Push)?;
    let expected = go(&subject.engine()?, &case, Way::Push)?.output.ok_or("no output")?;
    let [first, second] = pushes();
    let engine = subject.open(|o| o)?;
    let mut stream = engine.load_blocking(&case.weights)?.stream(3)?;
    stream.push_blocking(&[Chunk::new(1, &first)])?;
    let saved = pollster::block_on(stream.save_all())?;
    engine.device_and_queue().ok_or("not on a GPU")?.0.destroy();
    match stream.push_blocking(&[Chunk::new(1, &second)]) {
        Err(e) if e.kind() == ErrorKind::DeviceLost => {}
        other => return Err(format!("expected DeviceLost, found {other:?}").into()),
    }
    let mut again = subject.open(|o| o)?.load_blocking(&case.weights)?.stream(3)?;
    for (slot, state) in saved.iter().enumerate() {
        again.restore(slot, state)?;
    }
    let rows = again.push_blocking(&[Chunk::new(1, &second)])?;
    equal_bits("after the loss", rows.chunk(0), &expected[expected.len() - 27..])
}

fn out_of_memory_anywhere(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    for way in WAYS {
        let case = case_for(way)?;
        let expected = go(&engine, &case, way)?;
        let mut failures = 0;
        for n in 0..MANY {
            arm_fault(&engine, TripKind::OutOfMemory, n);
            let result = go(&engine, &case, way);
            let passed = disarm_fault(&engine);
            match &result {
                // Working buffers are tried for once more after the idle ones were freed.
                Ok(output) => equal_outputs(&format!("{way:?}, point {n}"), output, &expected)?,
                Err(e) if e.kind() == ErrorKind::OutOfMemory && !passed => failures += 1,
                Err(e) => return Err(format!("{way:?}, point {n}: expected OutOfMemory, found {e}").into()),
            }
            if passed {
                break;
            }
            // What was submitted before the fault may still be under way; then nothing is in use.
            equal_outputs(&format!("{way:?}, after point {n}"), &go(&engine, &case, way)?, &expected)?;
            let in_use = engine.counters().in_use_bytes;
            if in_use != 0 {
                return Err(format!("{way:?}, after point {n}: {in_use} bytes are still in use").into());
            }
        }
        if failures < 4 {
            return Err(format!("{way:?}: only {failures} points failed").into());
        }
    }
    Ok(())
}

/// The encoder may hold commands of the recording, and its owner may submit them.
fn failed_recording(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    let case = case()?;
    let lstm = engine.load_blocking(&case.weights)?;
    let batch = on_device(&engine, &case)?;
    read(&engine, &lstm.submit(&batch)?)?;
    let (device, _) = engine.device_and_queue().ok_or("not on a GPU")?;
    let mut kept = 0;
    for n in 0..MANY {
        let mut encoder = device.create_command_encoder(&Default::default());
        arm_fault(&engine, TripKind::OutOfMemory, n);
        let failed = lstm.record(&mut encoder, &batch).is_err();
        if disarm_fault(&engine) {
            break;
        }
        kept += u32::from(failed && engine.counters().in_use_bytes > 0);
        drop(encoder);
        if engine.counters().in_use_bytes != 0 {
            return Err(format!("point {n}: buffers are in use without an encoder").into());
        }
    }
    if kept == 0 { Err("no recording failed after it had its buffers".into()) } else { Ok(()) }
}

fn nothing_left(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    let watch = device_watch(&engine);
    for way in WAYS {
        go(&engine, &case_for(way)?, way)?;
    }
    if !watch() {
        return Err("the device went away early".into());
    }
    drop(engine);
    if watch() {
        return Err("a dropped engine is still held".into());
    }
    Ok(())
}

/// All ways at once, for a while: equal bits, no deadlock, no growth.
fn sixteen_threads(subject: &Subject) -> Result<(), Failed> {
    let time = Duration::from_secs(if is_full() { 180 } else { 6 });
    let engine = subject.open(|o| o)?;
    let expected = WAYS
        .iter()
        .map(|&way| {
            let case = case_for(way)?;
            Ok((way, go(&engine, &case, way)?, engine.load_blocking(&case.weights)?, case))
        })
        .collect::<Result<Vec<(Way, BatchOutput, Lstm, Case)>, Failed>>()?;
    let stop = AtomicBool::new(false);
    let round = |n: usize| -> Result<(), String> {
        let (way, expected, lstm, case) = &expected[n % WAYS.len()];
        let message = |e: Failed| e.message().unwrap_or("differs").to_owned();
        let output = match way {
            Way::Push => {
                let rows = push_twice(&mut lstm.stream(3).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
                BatchOutput { output: Some(rows), ..Default::default() }
            }
            Way::Record => {
                let batch = on_device(lstm.engine(), case).map_err(|e| e.to_string())?;
                let output = lstm.submit(&batch).map_err(|e| e.to_string())?;
                read(lstm.engine(), &output).map_err(|e| e.to_string())?
            }
            way => go(lstm.engine(), case, *way).map_err(|e| e.to_string())?,
        };
        equal_outputs(&format!("{way:?} on thread {n}"), &output, expected).map_err(message)
    };
    let (sender, done) = std::sync::mpsc::channel();
    std::thread::scope(|scope| -> Result<(), Failed> {
        for n in 0..16 {
            let (stop, round, sender) = (&stop, &round, sender.clone());
            scope.spawn(move || {
                let mut rounds = 0;
                let mut result = Ok(());
                while result.is_ok() && !stop.load(Ordering::Relaxed) {
                    result = round(n);
                    rounds += 1;
                }
                let _ = sender.send(result.map(|()| rounds));
            });
        }
        std::thread::sleep(time / 2);
        let early = engine.counters();
        std::thread::sleep(time / 2);
        let late = engine.counters();
        stop.store(true, Ordering::Relaxed);
        let mut rounds = 0;
        for _ in 0..16 {
            // A thread that does not end hangs this test as well; the message names it before that.
            match done.recv_timeout(Duration::from_secs(120)) {
                Ok(result) => rounds += result.map_err(Failed::from)?,
                Err(_) => {
                    eprintln!("sixteen_threads: a thread does not end");
                    return Err("a thread does not end".into());
                }
            }
        }
        let held = |c: &wgpu_lstm::Counters| c.in_use_bytes + c.idle_bytes;
        if rounds < 32 || held(&late) > 4 * held(&early).max(1 << 20) {
            return Err(format!("{rounds} rounds; held {} bytes, then {}", held(&early), held(&late)).into());
        }
        Ok(())
    })?;
    match engine.counters() {
        c if c.in_use_bytes == 0 && c.errors == 0 => Ok(()),
        c => Err(format!("afterwards: {c:?}").into()),
    }
}

fn counters(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    let case = case()?;
    let lstm = engine.load_blocking(&case.weights)?;
    let before = engine.counters();
    if (before.batches, before.submits, before.rows, before.errors) != (0, 0, 0, 0) || before.pipelines < 3 {
        return Err(format!("before: {before:?}").into());
    }
    lstm.run_blocking(&case.batch())?;
    let one = engine.counters();
    // 40 + 60 + 22 rows; two layers of two directions, 8·k per column and row: k is 8 and 12, then 24 and 12; 9 columns.
    let flops: u64 = 122 * 2 * 8 * 9 * (8 + 12 + 24 + 12);
    if (one.batches, one.rows) != (1, 122) || one.flops < flops || one.flops > flops * 3 / 2 || one.submits == 0 {
        return Err(format!("after a run: {one:?}, {flops} operations").into());
    }
    // Both outputs of 122 rows, and states.
    if one.read_back_bytes < 122 * 24 * 4 || one.uploaded_bytes < 122 * 8 * 4 || one.idle_bytes == 0 {
        return Err(format!("after a run: {one:?}").into());
    }
    let mut bad = case.clone();
    bad.x[0] = f32::NAN;
    let _ = lstm.run_blocking(&bad.batch());
    lstm.run_many([case.batch(), bad.batch(), case.batch()]).for_each(drop);
    lstm.submit(&on_device(&engine, &case)?)?;
    let stack = case_for(Way::Push)?;
    push_twice(&mut engine.load_blocking(&stack.weights)?.stream(3)?)?;
    let all = engine.counters();
    let counted = (all.batches, all.pushes, all.recordings, all.errors, all.rows);
    match counted == (3, 2, 1, 2, 4 * 122 + 11) && all.flops > one.flops {
        true => Ok(()),
        false => Err(format!("at the end: {all:?}").into()),
    }
}

fn explained(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o.memory_budget_bytes(256 << 10))?;
    let case = case()?;
    let text = engine.load_blocking(&case.weights)?.explain(&case.batch())?;
    let mut seen = BTreeSet::new();
    let many_lanes = subject.options.tuning == Tuning::ManyLanes || text.contains("many timesteps of a small layer");
    for part in [
        "device: ",
        "122 rows are computed, padding would make them 240",
        "layer 1: the whole sequence",
        if many_lanes { "sequence.rows" } else { "recurrent_step" },
        "in the longest dispatch",
        "working memory: ",
        "of a budget of 256.0 KiB",
        "transfers: ",
    ] {
        if !text.contains(part) {
            seen.insert(part);
        }
    }
    match seen.is_empty() {
        true => Ok(()),
        false => Err(format!("{seen:?} is missing in:\n{text}").into()),
    }
}

#[cfg(feature = "tracing")]
fn spans(subject: &Subject) -> Result<(), Failed> {
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    /// The names of all spans of the crate.
    #[derive(Clone, Default)]
    struct Names(std::sync::Arc<std::sync::Mutex<Vec<&'static str>>>);

    impl Subscriber for Names {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == "wgpu_lstm"
        }
        fn new_span(&self, span: &Attributes<'_>) -> Id {
            let mut names = self.0.lock().unwrap_or_else(|e| e.into_inner());
            names.push(span.metadata().name());
            Id::from_u64(names.len() as u64)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    let engine = subject.engine()?;
    let names = Names::default();
    let go_every_way = || -> Result<(), Failed> {
        for way in [Way::Blocking, Way::Record, Way::Push] {
            go(&engine, &case_for(way)?, way)?;
        }
        Ok(())
    };
    // A span that another thread comes to first asks that thread's subscriber, and there is none: all are to be known
    // before this thread has one.
    go_every_way()?;
    tracing::subscriber::with_default(names.clone(), go_every_way)?;
    let found: BTreeSet<&str> = names.0.lock().map_err(|e| e.to_string())?.iter().copied().collect();
    let expected =
        BTreeSet::from(["lstm.run", "lstm.plan", "lstm.submit", "lstm.read_back", "lstm.record", "lstm.push"]);
    match found == expected {
        true => Ok(()),
        false => Err(format!("expected {expected:?}, found {found:?}").into()),
    }
}
