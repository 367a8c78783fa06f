//! Trouble: empty batches, limits, a lost device, dropped futures, many threads.

use std::future::Future;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use wgpu_lstm::internals::{Content, Fixed, Read, Readback, Submit, plan, pooled_bytes};
use wgpu_lstm::wgpu::{DeviceType, Features};
use wgpu_lstm::{Direction, Engine, EngineOptions, ErrorKind, LimitsProfile, LstmSpec, Outputs, SequenceOutput};

use crate::bits::equal_outputs;
use crate::fixture::Case;
use crate::{Subject, Test};

pub const TESTS: &[(&str, Test)] = &[
    ("empty_batches_return_their_initial_state", empty),
    ("a_batch_that_does_not_fit_is_refused", too_large),
    ("a_lost_device_is_an_error_and_no_hang", lost),
    ("threads_share_an_engine", threads),
    ("loading_while_another_thread_runs_never_hangs", load_while_running),
    ("async_runs_are_woken_without_a_poller", woken),
    ("a_dropped_future_leaves_the_engine_usable", dropped),
    ("the_self_test_takes_less_than_50_ms_once_compiled", self_test_time),
    ("memory_does_not_grow_over_runs", no_growth),
    ("a_profile_asks_for_no_more_than_it_says", profile),
    ("rows_are_read_where_they_lie_in_shared_memory", in_place),
    ("submits_are_timed_by_the_device", timestamps),
    ("limits_are_measured", limits),
    ("runs_that_are_dropped_midway_leave_nothing", dropped_midway),
];

fn small(seed: u64) -> Case {
    let spec = LstmSpec::stack(5, 9, 2).direction(Direction::Bidirectional).build().expect("sizes are valid");
    Case::new("small", &spec, &[4, 0, 6, 2], 6, true, seed)
}

fn empty(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let spec = LstmSpec::stack(5, 9, 2).build()?;
    for (lengths, seq_len) in [(&[][..], 3), (&[0, 0], 0), (&[0, 0, 0], 4)] {
        let case = Case::new("empty", &spec, lengths, seq_len, true, 1);
        let lstm = engine.load_blocking(&case.weights)?;
        let output = lstm.run_blocking(&case.batch())?;
        if output.h_n != case.h_0 || output.c_n != case.c_0 {
            return Err(format!("{lengths:?}: the final state is not the initial state").into());
        }
        let rows = output.output.ok_or("no output")?;
        if rows.len() != seq_len * lengths.len() * 9 || rows.iter().any(|&v| v != 0.0) {
            return Err(format!("{lengths:?}: the output is not zeros of the right number").into());
        }
    }
    Ok(())
}

fn too_large(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o: EngineOptions| o.memory_budget_bytes(64 << 10))?;
    let spec = LstmSpec::stack(8, 64, 1).build()?;
    let case = Case::new("large", &spec, &[2; 100], 2, false, 1);
    let lstm = engine.load_blocking(&case.weights)?;
    match lstm.run_blocking(&case.batch()) {
        Err(e) if e.kind() == ErrorKind::DeviceLimit && e.to_string().contains("memory budget") => {
            // What the message says would fit does fit, and one more does not.
            let words: Vec<String> = e.to_string().split(' ').map(str::to_owned).collect();
            let at = words.iter().position(|w| w == "longest").ok_or("no advice")?;
            let fits: usize = words[at - 1].parse()?;
            let of = |n: usize| Case::new("advice", &spec, &vec![2; n], 2, false, 1);
            lstm.run_blocking(&of(fits).batch())?;
            if fits == 0 || lstm.run_blocking(&of(fits + 1).batch()).is_ok() {
                return Err(format!("more than the advised {fits} sequences fit").into());
            }
            Ok(())
        }
        other => Err(format!("expected a DeviceLimit, found {other:?}").into()),
    }
}

fn lost(subject: &Subject) -> Result<(), Failed> {
    let case = small(1);
    // The loss is found by the async wait once, by the blocking one once.
    for order in [["async", "blocking"], ["blocking", "async"]] {
        let engine = subject.open(|o| o)?;
        let lstm = engine.load_blocking(&case.weights)?;
        lstm.run_blocking(&case.batch())?;
        engine.device_and_queue().ok_or("not on a GPU")?.0.destroy();
        let begun = Instant::now();
        for waiting in order.repeat(2) {
            let output = match waiting {
                "async" => pollster::block_on(lstm.run(&case.batch())),
                _ => lstm.run_blocking(&case.batch()),
            };
            match output {
                Err(e) if e.kind() == ErrorKind::DeviceLost => {}
                other => return Err(format!("{waiting}: expected DeviceLost, found {other:?}").into()),
            }
        }
        if engine.load_blocking(&case.weights).is_ok() {
            return Err("loading on a lost device succeeded".into());
        }
        if begun.elapsed() > Duration::from_secs(10) {
            return Err(format!("the errors took {:?}", begun.elapsed()).into());
        }
    }
    // A new engine on the same adapter works.
    let again = subject.open(|o| o)?;
    again.load_blocking(&case.weights)?.run_blocking(&case.batch())?;
    Ok(())
}

fn threads(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let cases: Vec<Case> = (0..4).map(small).collect();
    let models = cases.iter().map(|c| engine.load_blocking(&c.weights)).collect::<Result<Vec<_>, _>>()?;
    let expected = cases.iter().zip(&models).map(|(c, m)| m.run_blocking(&c.batch())).collect::<Result<Vec<_>, _>>()?;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|n| {
                let (case, model, expected) = (&cases[n % 4], &models[n % 4], &expected[n % 4]);
                scope.spawn(move || -> Result<(), String> {
                    for _ in 0..10 {
                        let output = if n % 2 == 0 {
                            model.run_blocking(&case.batch())
                        } else {
                            pollster::block_on(model.run(&case.batch()))
                        };
                        let output = output.map_err(|e| e.to_string())?;
                        equal_outputs(&format!("thread {n}"), &output, expected)
                            .map_err(|e| e.message().unwrap_or("differs").to_owned())?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|w| w.join().map_err(|_| "a thread panicked".to_owned())?)
    })?;
    Ok(())
}

/// Submits without reads, whose end must not be taken for that of another thread's work.
fn load_while_running(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o.memory_budget_bytes(48 << 10))?;
    let spec = LstmSpec::stack(40, 16, 1).direction(Direction::Bidirectional).build()?;
    let mut case = Case::new("many chunks", &spec, &[120, 80], 120, false, 1);
    case.outputs = Outputs { sequence: SequenceOutput::None, final_state: true, cells: false };
    let lstm = engine.load_blocking(&case.weights)?;
    let submits = plan(&lstm, &case.batch(), Fixed::default()).ok_or("not on a GPU")??.submits.len();
    if submits < 3 {
        return Err(format!("expected several submits, found {submits}").into());
    }
    let expected = lstm.run_blocking(&case.batch())?;
    let (sender, results) = std::sync::mpsc::channel();
    // Detached, so that a hang is a failure and not a hang of the tests.
    for waiting in ["blocking", "async"] {
        let (lstm, case, sender) = (lstm.clone(), case.clone(), sender.clone());
        std::thread::spawn(move || {
            for _ in 0..30 {
                let output = match waiting {
                    "blocking" => lstm.run_blocking(&case.batch()),
                    _ => pollster::block_on(lstm.run(&case.batch())),
                };
                if sender.send((waiting, output)).is_err() {
                    return;
                }
            }
        });
    }
    for _ in 0..60 {
        engine.load_blocking(&case.weights)?;
        let (waiting, output) =
            results.recv_timeout(Duration::from_secs(60)).map_err(|_| "a run hangs while another thread loads")?;
        equal_outputs(waiting, &output?, &expected)?;
    }
    Ok(())
}

/// A future that may move between threads, as an async server needs it.
fn sendable<F: Future + Send>(future: F) -> F {
    future
}

fn woken(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let case = small(2);
    let lstm = engine.load_blocking(&case.weights)?;
    let expected = lstm.run_blocking(&case.batch())?;
    let batch = case.batch();
    let output = pollster::block_on(sendable(lstm.run(&batch)))?;
    equal_outputs("async", &output, &expected)
}

fn dropped(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let case = small(3);
    let lstm = engine.load_blocking(&case.weights)?;
    let expected = lstm.run_blocking(&case.batch())?;
    for _ in 0..5 {
        let batch = case.batch();
        let mut future = Box::pin(lstm.run(&batch));
        // Polled once, it has submitted its work and waits.
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            equal_outputs("already done", &output?, &expected)?;
        }
        drop(future);
        equal_outputs("after a drop", &lstm.run_blocking(&case.batch())?, &expected)?;
    }
    Ok(())
}

fn self_test_time(subject: &Subject) -> Result<(), Failed> {
    // Opening compiles and tests; a second dispatch of the same pipeline shows the test alone.
    let engine = subject.engine()?;
    let mut best = Duration::MAX;
    for _ in 0..5 {
        best = best.min(wgpu_lstm::internals::self_test_time(&engine).ok_or("not on a GPU")??);
    }
    if best > Duration::from_millis(50) {
        return Err(format!("the self-test took {best:?}").into());
    }
    Ok(())
}

fn no_growth(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    let case = small(4);
    let lstm = engine.load_blocking(&case.weights)?;
    lstm.run_blocking(&case.batch())?;
    let after_one = pooled_bytes(&engine);
    for _ in 0..50 {
        lstm.run_blocking(&case.batch())?;
    }
    let after_many = pooled_bytes(&engine);
    if after_one == 0 || after_many != after_one {
        return Err(format!("pooled bytes went from {after_one} to {after_many}").into());
    }
    Ok(())
}

/// The kernels need 64 invocations and 16 KiB of workgroup memory; with WebGPU's defaults nothing else is larger either.
fn profile(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    let limits = engine.device_and_queue().ok_or("not on a GPU")?.0.limits();
    let mut found = vec![
        ("invocations", u64::from(limits.max_compute_invocations_per_workgroup), 256),
        ("workgroup size", u64::from(limits.max_compute_workgroup_size_x), 256),
        ("workgroup memory", u64::from(limits.max_compute_workgroup_storage_size), 16 << 10),
        ("storage buffers", u64::from(limits.max_storage_buffers_per_shader_stage), 8),
    ];
    if subject.options.limits == wgpu_lstm::LimitsProfile::WebGpuDefaults {
        found.extend([
            ("bindings", limits.max_storage_buffer_binding_size, 128 << 20),
            ("buffers", limits.max_buffer_size, 256 << 20),
            ("storage alignment", u64::from(limits.min_storage_buffer_offset_alignment), 256),
            ("uniform alignment", u64::from(limits.min_uniform_buffer_offset_alignment), 256),
        ]);
    }
    // Records come as immediates wherever they can, so that the other tests run with them.
    let adapter = subject.adapter()?;
    let can = subject.options.limits == wgpu_lstm::LimitsProfile::Adapter
        && adapter.features().contains(Features::IMMEDIATES)
        && adapter.limits().max_immediate_size >= 128
        && adapter.get_info().backend != wgpu_lstm::wgpu::Backend::Gl;
    found.push(("immediates", u64::from(limits.max_immediate_size), if can { 128 } else { 0 }));
    found.push(("mappable buffers", u64::from(shares_memory(&engine)?), u64::from(can_share_memory(subject)?)));
    match found.iter().find(|(_, found, expected)| found != expected) {
        None => Ok(()),
        Some((name, found, expected)) => Err(format!("{name}: expected {expected}, found {found}").into()),
    }
}

/// Whether the host may read what kernels wrote where it lies.
fn shares_memory(engine: &Engine) -> Result<bool, Failed> {
    let features = engine.device_and_queue().ok_or("not on a GPU")?.0.features();
    Ok(features.contains(Features::MAPPABLE_PRIMARY_BUFFERS))
}

fn can_share_memory(subject: &Subject) -> Result<bool, Failed> {
    let adapter = subject.adapter()?;
    Ok(subject.options.limits == LimitsProfile::Adapter
        && matches!(adapter.get_info().device_type, DeviceType::Cpu | DeviceType::IntegratedGpu)
        && adapter.features().contains(Features::MAPPABLE_PRIMARY_BUFFERS))
}

/// The rows of the last submit are read where they lie; the results are the same as from copies.
fn in_place(subject: &Subject) -> Result<(), Failed> {
    let spec = LstmSpec::stack(5, 9, 1).direction(Direction::Bidirectional).build()?;
    let case = Case::new("one chunk", &spec, &[4, 0, 6, 2], 6, true, 9);
    let copied = subject.open(|o| o.limits(LimitsProfile::WebGpuDefaults))?;
    if shares_memory(&copied)? {
        return Err("WebGPU's defaults have no mappable buffers".into());
    }
    let lstm = subject.engine()?.load_blocking(&case.weights)?;
    let spec = LstmSpec::stack(5, 9, 2).build()?;
    let long = Case::new("chunks", &spec, &[1500, 1500], 1500, false, 1);
    let chunks = subject.engine()?.load_blocking(&long.weights)?;
    for (lstm, case, many) in [(&lstm, &case, false), (&chunks, &long, true)] {
        let plan = plan(lstm, &case.batch(), Fixed::default()).ok_or("not on a GPU")??;
        let rows = |read: &&Read| matches!(read.content, Content::Rows { .. });
        let ways = |submit: &Submit| submit.reads.iter().filter(rows).map(|r| r.way).collect::<Vec<_>>();
        let (last, before) = plan.submits.split_last().ok_or("no submit")?;
        let (last, before): (Vec<_>, Vec<_>) = (ways(last), before.iter().flat_map(ways).collect());
        let in_place = |ways: &[Readback]| ways.iter().filter(|&&way| way == Readback::InPlace).count();
        let expected = if can_share_memory(subject)? { last.len() } else { 0 };
        if before.is_empty() == many || last.is_empty() || in_place(&last) != expected || in_place(&before) != 0 {
            return Err(format!("expected {expected} in place, found {last:?} after {before:?}").into());
        }
    }
    for (lstm, case) in [(&lstm, &case), (&chunks, &long)] {
        let expected = copied.load_blocking(&case.weights)?.run_blocking(&case.batch())?;
        for _ in 0..3 {
            equal_outputs("in place", &lstm.run_blocking(&case.batch())?, &expected)?;
        }
    }
    Ok(())
}

fn dropped_midway(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o: EngineOptions| o.memory_budget_bytes(160 << 10))?;
    let spec = LstmSpec::stack(40, 16, 1).direction(Direction::Bidirectional).build()?;
    let case = Case::new("many chunks", &spec, &[120, 80], 120, false, 1);
    let lstm = engine.load_blocking(&case.weights)?;
    let expected = lstm.run_blocking(&case.batch())?;
    for taken in 0..4 {
        let mut many = lstm.run_many((0..6).map(|_| case.batch()));
        for output in many.by_ref().take(taken) {
            equal_outputs("before the drop", &output?, &expected)?;
        }
        // A future of it that has started something, too.
        let mut next = Box::pin(many.next_output());
        let mut left = 6 - taken;
        if let Poll::Ready(output) = next.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            equal_outputs("already done", &output.ok_or("no output")??, &expected)?;
            left -= 1;
        }
        drop(next);
        // Nothing is lost by that.
        if taken % 2 == 1 {
            let rest = many.by_ref().collect::<Result<Vec<_>, _>>()?;
            for output in &rest {
                equal_outputs("the rest", output, &expected)?;
            }
            if rest.len() != left {
                return Err(format!("expected {left} more outputs, found {}", rest.len()).into());
            }
        }
        drop(many);
        equal_outputs("after the drop", &lstm.run_blocking(&case.batch())?, &expected)?;
        let in_use = engine.counters().in_use_bytes;
        if in_use != 0 {
            return Err(format!("{in_use} bytes are still in use after {taken} outputs").into());
        }
    }
    Ok(())
}

/// Timed runs have the same bits, and their time lies between nothing and the wall's.
fn timestamps(subject: &Subject) -> Result<(), Failed> {
    let spec = LstmSpec::stack(12, 40, 2).direction(Direction::Bidirectional).build()?;
    let case = Case::new("timed", &spec, &[30, 7, 12], 30, true, 5);
    let expected = subject.engine()?.load_blocking(&case.weights)?.run_blocking(&case.batch())?;
    if subject.engine()?.counters().gpu_time != Duration::ZERO {
        return Err("timed unasked".into());
    }
    let engine = subject.open(|o| o.timestamps(true).memory_budget_bytes(160 << 10))?;
    let lstm = engine.load_blocking(&case.weights)?;
    let start = Instant::now();
    equal_outputs("timed", &lstm.run_blocking(&case.batch())?, &expected)?;
    let (wall, counters) = (start.elapsed(), engine.counters());
    let has = subject.adapter()?.features().contains(wgpu_lstm::wgpu::Features::TIMESTAMP_QUERY);
    let good =
        if has { counters.gpu_time > Duration::ZERO && counters.gpu_time <= wall } else { counters.gpu_time.is_zero() };
    match good && counters.submits > 1 {
        true => Ok(()),
        false => Err(format!("{:?} of {wall:?} in {} submits", counters.gpu_time, counters.submits).into()),
    }
}

fn limits(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o.memory_budget_bytes(16 << 20))?;
    let found = engine.measure_limits_blocking()?;
    // Neither a pocket calculator nor beyond any machine.
    let good = (1e7..1e16).contains(&found.flops)
        && (1e7..1e14).contains(&found.copy_bytes_per_second)
        && (0.0..0.1).contains(&found.dispatch_gap)
        && (1e-7..1.0).contains(&found.submit);
    if good { Ok(()) } else { Err(format!("{found:?}").into()) }
}
