//! `--streams`: what a push costs, and how many live streams a device serves.
//!
//! In:  the devices, hidden sizes and numbers of slots of the command line; a model of one layer whose input is as wide as
//!      its hidden state, random weights.
//! Out: for each the time of pushing one frame (a timestep) to every slot in one call, last hidden states read back; and for
//!      each frame time the most slots for which the 99th percentile of a push stays below it.
//! Results are compared with whole runs before they are timed, to the last bit.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wgpu_lstm::{
    Chunk, DeviceChoice, Engine, Layout, Lstm, LstmSpec, LstmWeights, SequenceBatch, SequenceOutput, Stream,
};

use crate::args::Arguments;
use crate::common::failure::{Failure, Result, fail, say};
use crate::common::random::Random;
use crate::common::table;
use crate::common::timing::{Repeat, Times};
use crate::common::units::significant;
use crate::machine::Machine;
use crate::phases;
use crate::report::{self, Format};

/// No search goes beyond.
const MOST_SLOTS: usize = 65_536;
/// Pushes that a 99th percentile stands on, and the time after which the fewest are enough.
const PUSHES: usize = 100;
const FEWEST_PUSHES: usize = 40;
const PROBE_TIME: Duration = Duration::from_secs(2);

/// What was measured on a device.
struct Row {
    device: DeviceChoice,
    engine: Engine,
    hidden: usize,
    slots: usize,
    /// The frame time that was to be kept, for a search.
    frame_ms: Option<u64>,
    times: Times,
}

pub(crate) fn bench(options: &Arguments) -> Result<()> {
    if options.record.as_deref().is_some_and(|path| path.extension().is_none_or(|e| e != "csv")) {
        return Err(Failure::Usage("--record: with --streams, expected a file ending in .csv".into()));
    }
    let machine = Machine::of_this_run();
    let quiet = options.format != Format::Text;
    if !quiet {
        say!("{}", machine.describe())?;
    }
    let mut rows = Vec::new();
    let mut unavailable = None;
    for choice in &options.device {
        let engine = match phases::open(choice, options) {
            Ok(engine) => engine,
            Err(failure) => {
                if !quiet {
                    say!("{choice}: unavailable: {failure}")?;
                }
                unavailable = Some(failure.context(choice));
                continue;
            }
        };
        if !quiet {
            say!("{choice}: {}", report::describe(engine.device()))?;
        }
        for &hidden in &options.stream_hidden {
            let spec = LstmSpec::stack(hidden, hidden, 1).build()?;
            let lstm = engine.load_blocking(&LstmWeights::random(&spec, 1))?;
            verify(&lstm)?;
            let mut add = |slots, frame_ms, times| {
                rows.push(Row { device: choice.clone(), engine: engine.clone(), hidden, slots, frame_ms, times });
            };
            for &slots in &options.stream_slots {
                let repeat =
                    Repeat { runs: options.runs.map(|n| n as usize), budget: Duration::from_secs_f64(options.seconds) };
                let mut push = Pushes::new(&lstm, slots)?;
                add(slots, None, repeat.measure(|| push.once())?);
            }
            for &frame_ms in &options.stream_frame_ms {
                let frame = Duration::from_millis(frame_ms).as_secs_f64();
                let mut best = None;
                let probe = |slots: usize| {
                    let mut push = Pushes::new(&lstm, slots)?;
                    let begun = Instant::now();
                    let mut seconds = Vec::new();
                    while seconds.len() < PUSHES && (seconds.len() < FEWEST_PUSHES || begun.elapsed() < PROBE_TIME) {
                        let start = Instant::now();
                        push.once()?;
                        seconds.push(start.elapsed().as_secs_f64());
                        // More than one in a hundred is late already.
                        if seconds.iter().filter(|&&s| s >= frame).count() > 1 {
                            return Ok(false);
                        }
                    }
                    let times = Times::new(seconds);
                    let is_live = times.percentile(99.0) < frame;
                    if is_live {
                        best = Some((slots, times));
                    }
                    Ok(is_live)
                };
                search(probe)?;
                if let Some((slots, times)) = best {
                    add(slots, Some(frame_ms), times);
                }
            }
        }
    }
    if rows.is_empty() {
        return Err(unavailable.unwrap_or_else(|| crate::Failure::Data("nothing was measured".into())));
    }
    let fields: Vec<_> = rows.iter().map(|row| fields(&machine, row)).collect();
    match options.format {
        Format::Text => {
            for line in table::lines(&text(&rows), &[0, 3]) {
                say!("{line}")?;
            }
        }
        Format::Csv => say!("{}", report::csv_of(&fields).trim_end())?,
        Format::Json => say!("{:#}", report::json_of(&fields))?,
    }
    if let Some(path) = &options.record {
        report::append(path, &report::csv_of(&fields))?;
        if !quiet {
            say!("recorded in {}", path.display())?;
        }
    }
    Ok(())
}

/// The largest number of slots for which `holds`, to about a twentieth: doubled, then halved between. The probe keeps what
/// it measured.
fn search(mut holds: impl FnMut(usize) -> Result<bool>) -> Result<usize> {
    let (mut good, mut bad) = (0, MOST_SLOTS + 1);
    let mut next = 1;
    while next <= MOST_SLOTS {
        if !holds(next)? {
            bad = next;
            break;
        }
        good = next;
        next *= 2;
    }
    while bad - good > (good / 20).max(1) {
        let middle = good + (bad - good) / 2;
        if middle > MOST_SLOTS {
            break;
        }
        if holds(middle)? {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Ok(good)
}

/// A stream with the same frame for every push.
struct Pushes {
    stream: Stream,
    frames: Vec<f32>,
    width: usize,
}

impl Pushes {
    /// Warmed up: kernels compile, buffers are allocated.
    fn new(lstm: &Lstm, slots: usize) -> Result<Self> {
        let width = lstm.spec().input_size();
        let mut pushes = Self { stream: lstm.stream(slots)?, frames: Random::new(7).values(slots * width), width };
        for _ in 0..3 {
            pushes.once()?;
        }
        Ok(pushes)
    }

    fn once(&mut self) -> Result<()> {
        let frames = self.frames.chunks_exact(self.width).enumerate();
        let chunks: Vec<_> = frames.map(|(slot, x)| Chunk::new(slot, x).output(SequenceOutput::Last)).collect();
        let output = self.stream.push_blocking(&chunks)?;
        match output.iter().all(|rows| rows.len() == self.stream.lstm().spec().output_size()) {
            true => Ok(()),
            false => fail!("a push returned rows of another size"),
        }
    }
}

/// Pieces of three streams against whole runs.
fn verify(lstm: &Lstm) -> Result<()> {
    const STEPS: usize = 7;
    let width = lstm.spec().input_size();
    let x = Random::new(3).values(3 * STEPS * width);
    let whole = lstm.run_blocking(&SequenceBatch::new(&x, [3, STEPS, width], Layout::BatchMajor)?)?;
    let expected = whole.output.unwrap_or_default();
    let mut stream = lstm.stream(3)?;
    for steps in [0..1, 1..4, 4..STEPS] {
        let of = |b: usize| (b * STEPS + steps.start) * width..(b * STEPS + steps.end) * width;
        let chunks: Vec<_> = (0..3).map(|b| Chunk::new(b, &x[of(b)])).collect();
        let output = stream.push_blocking(&chunks)?;
        for (b, found) in output.iter().enumerate() {
            let equal = found.iter().zip(&expected[of(b)]).all(|(f, e)| f.to_bits() == e.to_bits());
            if !equal || found.len() != steps.len() * width {
                fail!("stream {b}, steps {steps:?}: other bits than in a whole run");
            }
        }
    }
    Ok(())
}

fn text(rows: &[Row]) -> Vec<Vec<String>> {
    let heading = ["device", "H", "slots", "what", "median µs", "p99", "min", "max", "µs/frame", "pushes"];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    for row in rows {
        let us = |seconds: f64| significant(seconds * 1e6);
        let what = row.frame_ms.map_or("a push".to_owned(), |ms| format!("live at {ms} ms"));
        let t = &row.times;
        lines.push(vec![
            row.device.to_string(),
            row.hidden.to_string(),
            row.slots.to_string(),
            what,
            us(t.median()),
            us(t.percentile(99.0)),
            us(t.min()),
            us(t.max()),
            us(t.median() / row.slots as f64),
            t.runs().to_string(),
        ]);
    }
    lines
}

fn fields(machine: &Machine, row: &Row) -> Vec<(&'static str, Value)> {
    let us = |seconds: f64| json!((seconds * 1e9).round() / 1e3);
    let mut fields = machine.fields();
    fields.extend(report::device_fields(&row.device, Some(row.engine.device())));
    fields.extend([
        ("hidden_size", json!(row.hidden)),
        ("slots", json!(row.slots)),
        ("live_at_ms", json!(row.frame_ms)),
        ("push_us", us(row.times.median())),
        ("push_p99_us", us(row.times.percentile(99.0))),
        ("push_min_us", us(row.times.min())),
        ("push_max_us", us(row.times.max())),
        ("frame_us", us(row.times.median() / row.slots as f64)),
        ("pushes", json!(row.times.runs())),
    ]);
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_finds_the_limit_to_a_twentieth() {
        for limit in [0, 1, 2, 3, 17, 100, 1000, 40_000, MOST_SLOTS, 1_000_000] {
            let found = search(|n| Ok(n <= limit)).unwrap();
            let expected = limit.min(MOST_SLOTS);
            assert!(found <= expected && found + (found / 20).max(1) >= expected, "{limit}: {found}");
        }
    }
}
