//! A service with many live streams: whatever has arrived by a tick goes to the device in one push.
//!
//! Callers (the load generator) send a chunk every frame through a bounded queue; where it is full, the chunk is dropped
//! and counted, so that a slow device delays nobody without limit. The server keeps h and c on the device, saves them
//! every second, and after a loss of the device goes on from there on a new one.
//!
//! `cargo run --release --example serve -- --streams 64 --frame-ms 10`; `--help` lists the options.
//! Exit codes: 0 good, 1 a result was wrong or nothing was served, 2 usage.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, Instant};

use clap::Parser;
use wgpu_lstm::{
    Chunk, DeviceChoice, Engine, EngineOptions, ErrorKind, Layout, LstmSpec, LstmWeights, SequenceBatch,
    SequenceOutput, SlotState, Stream,
};

#[derive(Debug, Clone, Parser)]
#[command(about = "Serves many LSTM streams under load and prints latencies")]
struct Options {
    /// Device, as `lstm run --device` takes it
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Callers, each with a stream of its own
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    streams: u32,
    /// Time from one chunk of a caller to the next
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    frame_ms: u64,
    /// How long a push waits for more chunks after its first
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    tick_ms: u64,
    /// Timesteps of a chunk: 1 to this, in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps_per_chunk: u32,
    /// Input size of the model
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=4096))]
    input: u32,
    /// Hidden size of the model
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    hidden: u32,
    /// Layers of the model
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    layers: u32,
    /// Chunks that may wait for the server
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    queue: u32,
    /// How long to serve
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    /// Destroy the device after so many seconds, to see the service go on (GPU only)
    #[arg(long, value_parser = seconds)]
    lose_device_after: Option<f64>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (0.0..=86_400.0).contains(&value) => Ok(value),
        _ => Err(format!("expected seconds from 0 to 86400, found {text:?}")),
    }
}

/// The next timesteps of a caller.
struct Request {
    slot: usize,
    /// [steps, I]
    x: Vec<f32>,
    sent: Instant,
}

/// What a caller hears: the hidden state after its chunk, or the saved state that its stream fell back to.
enum Answer {
    Last { x: Vec<f32>, y: Vec<f32>, latency: Duration },
    Restored(SlotState),
}

/// What the server did.
#[derive(Debug, Default)]
struct Report {
    pushes: u64,
    chunks: u64,
    losses: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match serve(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("serve: {e}");
            ExitCode::from(if e.kind() == ErrorKind::DeviceNotFound { 2 } else { 1 })
        }
    }
}

fn serve(options: &Options) -> wgpu_lstm::Result<bool> {
    let spec = LstmSpec::stack(options.input as usize, options.hidden as usize, options.layers as usize).build()?;
    let weights = LstmWeights::random(&spec, 1);
    let mut stream = open(options, &weights)?;
    println!("device: {}", stream.lstm().engine().device().name);
    // Kernels compile at their first use on some drivers; no caller should wait for that.
    let x = vec![0.0; options.input as usize];
    let warm_up: Vec<Chunk<'_>> = (0..options.streams as usize).map(|slot| Chunk::new(slot, &x)).collect();
    stream.push_blocking(&warm_up)?;
    (0..options.streams as usize).try_for_each(|slot| stream.reset(slot))?;

    let stop = AtomicBool::new(false);
    let refused = AtomicU64::new(0);
    let (requests, queue) = sync_channel::<Request>(options.queue as usize);
    let begun = Instant::now();
    let (report, callers) = std::thread::scope(|scope| {
        let mut answers = Vec::new();
        let callers: Vec<_> = (0..options.streams as usize)
            .map(|slot| {
                let (to_caller, from_server) = channel();
                answers.push(to_caller);
                let (requests, stop, refused) = (requests.clone(), &stop, &refused);
                scope.spawn(move || call(options, slot, requests, &from_server, stop, refused))
            })
            .collect();
        drop(requests);
        let ender = scope.spawn(|| {
            std::thread::sleep(Duration::from_secs_f64(options.seconds));
            stop.store(true, Ordering::Relaxed);
        });
        let report = answer_all(options, &weights, &mut stream, &queue, &answers);
        // After an error the callers must not wait for answers that never come.
        stop.store(true, Ordering::Relaxed);
        drop((queue, answers));
        let callers: Vec<Heard> = callers.into_iter().filter_map(|c| c.join().ok()).collect();
        let _ = ender.join();
        (report, callers)
    });
    let (report, took) = (report?, begun.elapsed().as_secs_f64());

    let mut latencies: Vec<Duration> = callers.iter().flat_map(|c| c.latencies.iter().copied()).collect();
    latencies.sort_unstable();
    let Some(&longest) = latencies.last() else {
        println!("nothing was served");
        return Ok(false);
    };
    let percentile = |p: usize| latencies[(latencies.len() * p / 100).min(latencies.len() - 1)];
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    println!(
        "{} chunks in {} pushes ({:.1} each, {:.0} pushes/s); {} refused by the full queue; {} losses of the device",
        report.chunks,
        report.pushes,
        report.chunks as f64 / report.pushes.max(1) as f64,
        report.pushes as f64 / took,
        refused.load(Ordering::Relaxed),
        report.losses
    );
    println!(
        "latency: p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms; p99 is {} the frame of {} ms",
        ms(percentile(50)),
        ms(percentile(99)),
        ms(longest),
        if ms(percentile(99)) < options.frame_ms as f64 { "below" } else { "NOT below" },
        options.frame_ms
    );

    // One caller's answers against a run of all that was served to it, on the device that served it.
    let Some(heard) = callers.iter().max_by_key(|c| c.answered.len()) else { return Ok(false) };
    let x: Vec<f32> = heard.answered.iter().flat_map(|(x, _)| x).copied().collect();
    let shape = [1, x.len() / options.input as usize, options.input as usize];
    let mut batch = SequenceBatch::new(&x, shape, Layout::BatchMajor)?;
    if let Some(state) = &heard.from {
        batch = batch.h_0(state.h()).c_0(state.c());
    }
    let whole = stream.lstm().run_blocking(&batch)?;
    let rows = whole.output.unwrap_or_default();
    let (mut row, mut equal) = (0, true);
    for (x, y) in &heard.answered {
        row += x.len() / options.input as usize;
        let expected = &rows[(row - 1) * options.hidden as usize..row * options.hidden as usize];
        equal &= expected.iter().zip(y).all(|(e, y)| e.to_bits() == y.to_bits());
    }
    println!(
        "{} answers to one caller against one run of its {row} timesteps: {}",
        heard.answered.len(),
        if equal { "equal bits" } else { "NOT EQUAL" }
    );
    Ok(equal)
}

fn open(options: &Options, weights: &LstmWeights) -> wgpu_lstm::Result<Stream> {
    let engine = Engine::open_blocking(EngineOptions::on(options.device.clone()))?;
    engine.load_blocking(weights)?.stream(options.streams as usize)
}

/// The server: takes what has arrived, pushes it at once, answers; until every caller has hung up.
fn answer_all(
    options: &Options,
    weights: &LstmWeights,
    stream: &mut Stream,
    queue: &Receiver<Request>,
    answers: &[Sender<Answer>],
) -> wgpu_lstm::Result<Report> {
    const SAVE_EVERY: Duration = Duration::from_secs(1);
    let mut report = Report::default();
    let mut saved: Vec<SlotState> = pollster::block_on(stream.save_all())?;
    let (begun, mut last_save) = (Instant::now(), Instant::now());
    // A caller has one chunk in a push; a second one waits for the next.
    let mut held: Vec<Request> = Vec::new();
    let mut in_push = vec![false; options.streams as usize];
    loop {
        let mut batch: Vec<Request> = Vec::new();
        in_push.fill(false);
        if held.is_empty() {
            match queue.recv() {
                Ok(request) => held.push(request),
                Err(_) => return Ok(report),
            }
            std::thread::sleep(Duration::from_millis(options.tick_ms));
        }
        held.extend(queue.try_iter());
        held.retain_mut(|request| {
            let first = !std::mem::replace(&mut in_push[request.slot], true);
            if first {
                let x = std::mem::take(&mut request.x);
                batch.push(Request { slot: request.slot, x, sent: request.sent });
            }
            !first
        });

        if options.lose_device_after.is_some_and(|after| begun.elapsed().as_secs_f64() > after)
            && report.losses == 0
            && let Some((device, _)) = stream.lstm().engine().device_and_queue()
        {
            device.destroy();
        }
        let chunks: Vec<Chunk<'_>> =
            batch.iter().map(|r| Chunk::new(r.slot, &r.x).output(SequenceOutput::Last)).collect();
        match stream.push_blocking(&chunks) {
            Ok(output) => {
                report.pushes += 1;
                report.chunks += batch.len() as u64;
                for (Request { slot, x, sent }, y) in batch.into_iter().zip(output.iter()) {
                    // A caller that has hung up needs no answer.
                    let _ = answers[slot].send(Answer::Last { x, y: y.to_vec(), latency: sent.elapsed() });
                }
            }
            Err(e) if e.kind() == ErrorKind::DeviceLost => {
                report.losses += 1;
                *stream = open(options, weights)?;
                for (slot, (state, caller)) in saved.iter().zip(answers).enumerate() {
                    stream.restore(slot, state)?;
                    let _ = caller.send(Answer::Restored(state.clone()));
                }
            }
            Err(e) => return Err(e),
        }
        if last_save.elapsed() > SAVE_EVERY && report.losses == 0 {
            match pollster::block_on(stream.save_all()) {
                Ok(states) => saved = states,
                // The next push finds the loss too.
                Err(e) if e.kind() == ErrorKind::DeviceLost => {}
                Err(e) => return Err(e),
            }
            last_save = Instant::now();
        }
    }
}

/// What a caller was answered.
#[derive(Default)]
struct Heard {
    latencies: Vec<Duration>,
    /// The state that the stream fell back to, if it did.
    from: Option<SlotState>,
    /// Chunks with their answers, since the stream began or fell back.
    answered: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Heard {
    fn take(&mut self, answer: Answer) {
        match answer {
            Answer::Last { x, y, latency } => {
                self.latencies.push(latency);
                self.answered.push((x, y));
            }
            Answer::Restored(state) => {
                self.from = Some(state);
                self.answered.clear();
            }
        }
    }
}

/// A caller: a chunk every frame, whatever becomes of the one before.
fn call(
    options: &Options,
    slot: usize,
    requests: SyncSender<Request>,
    answers: &Receiver<Answer>,
    stop: &AtomicBool,
    refused: &AtomicU64,
) -> Heard {
    let frame = Duration::from_millis(options.frame_ms);
    let mut heard = Heard::default();
    // Callers are spread over the frame.
    let mut next = Instant::now() + frame.mul_f64(slot as f64 / f64::from(options.streams));
    let mut n = slot;
    while !stop.load(Ordering::Relaxed) {
        // A caller that is late sends once, not once for every frame that it missed.
        next = next.max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next += frame;
        answers.try_iter().for_each(|answer| heard.take(answer));
        n += 1;
        let steps = 1 + n % options.steps_per_chunk as usize;
        let x = (0..steps * options.input as usize).map(|i| ((n * 31 + i) as f32 * 0.13).sin()).collect();
        match requests.try_send(Request { slot, x, sent: Instant::now() }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                refused.fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Disconnected(_)) => break,
        }
    }
    // The server hangs up once all callers have, and every chunk was answered.
    drop(requests);
    answers.iter().for_each(|answer| heard.take(answer));
    heard
}
