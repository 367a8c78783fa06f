//! `lstm bench`: times a user's own model on random input, for each device, batch size and length.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wgpu_lstm::{Choice, DeviceChoice, Engine, Layout, Lstm, LstmWeights, SequenceBatch};

use crate::args::{BenchOptions, DeviceOption};
use crate::common::failure::{Failure, Result, fail, say};
use crate::common::random::Random;
use crate::common::spec_text::{describe, flops};
use crate::common::table;
use crate::common::timing::{Repeat, Times};
use crate::common::units::{milliseconds, significant};
use crate::devices::kind_name;
use crate::model;
use crate::progress::with_bar;
use crate::run::engine_options;

pub(crate) const BUDGET: Duration = Duration::from_secs(2);

/// A timed case, or why there is none.
struct Row {
    device: String,
    batch_size: usize,
    seq_len: usize,
    outcome: Result<Measured, String>,
}

struct Measured {
    /// What `auto` chose, where it had a choice.
    choice: Option<Choice>,
    first: f64,
    times: Times,
    flops: f64,
}

pub(crate) fn bench(options: &BenchOptions) -> Result<()> {
    if crate::onnx::is_onnx(&options.model.model) {
        return crate::onnx::bench(options);
    }
    if options.input.is_some() {
        return Err(Failure::Usage("--input: expected a model ending in .onnx".into()));
    }
    let weights = options.weights.weights.of(model::read(&options.model)?)?;
    if !options.json {
        say!("model: {}", describe(weights.spec()))?;
        say!(
            "random input; a run returns all hidden states and the final states; times are from host memory to host memory"
        )?;
    }
    let mut rows = Vec::new();
    let mut failures: Vec<Failure> = Vec::new();
    for choice in &options.device {
        match open(choice, options, &weights) {
            Ok(lstm) => {
                if !options.json {
                    say!("{choice}: {}: {}", lstm.engine().device().name, lstm.engine().device().reason)?;
                }
                for &batch_size in &options.batch {
                    for &seq_len in &options.len {
                        let outcome = measure(&lstm, batch_size, seq_len, options).map_err(|failure| {
                            let text = failure.to_string();
                            failures.push(failure);
                            text
                        });
                        rows.push(Row { device: choice.to_string(), batch_size, seq_len, outcome });
                    }
                }
            }
            Err(failure) => {
                if !options.json {
                    say!("{choice}: unavailable: {failure}")?;
                }
                rows.extend(options.batch.iter().flat_map(|&batch_size| {
                    let outcome = |&seq_len| Row {
                        device: choice.to_string(),
                        batch_size,
                        seq_len,
                        outcome: Err(failure.to_string()),
                    };
                    options.len.iter().map(outcome).collect::<Vec<_>>()
                }));
                failures.push(failure);
            }
        }
    }
    if options.json {
        say!("{:#}", to_json(&options.model.model.display().to_string(), &rows))?;
    } else {
        say!("")?;
        for line in table::lines(&text_rows(&rows), &[0]) {
            say!("{line}")?;
        }
        if cfg!(debug_assertions) {
            say!("this is a debug build; `cargo run --release -- bench` is faster")?;
        }
    }
    // A missing GPU is a row, not a failure, as long as something was measured.
    match failures.into_iter().next() {
        Some(first) if rows.iter().all(|row| row.outcome.is_err()) => Err(first),
        _ => Ok(()),
    }
}

fn open(choice: &DeviceChoice, options: &BenchOptions, weights: &LstmWeights) -> Result<Lstm> {
    let device = DeviceOption { device: choice.clone() };
    let engine = Engine::open_blocking(engine_options(&device, &options.weights, &options.budget))?;
    Ok(engine.load_blocking(weights)?)
}

fn measure(lstm: &Lstm, batch_size: usize, seq_len: usize, options: &BenchOptions) -> Result<Measured> {
    let input_size = lstm.spec().input_size();
    let elements = batch_size.checked_mul(seq_len).and_then(|n| n.checked_mul(input_size));
    let Some(elements) = elements.filter(|&n| Vec::<f32>::new().try_reserve_exact(n).is_ok()) else {
        fail!("batch {batch_size}, length {seq_len}: the input does not fit into memory");
    };
    let x = Random::new(1).values(elements);
    let batch = SequenceBatch::new(&x, [batch_size, seq_len, input_size], Layout::BatchMajor)?;
    with_bar("measuring", options.json, |_| {
        let start = Instant::now();
        lstm.run_blocking(&batch)?;
        let first = start.elapsed().as_secs_f64();
        let times = Repeat { runs: options.runs, budget: BUDGET }.measure(|| {
            lstm.run_blocking(&batch)?;
            Ok(())
        })?;
        Ok(Measured { choice: lstm.choice(&batch), first, times, flops: flops(lstm.spec(), batch.num_valid_rows()) })
    })
}

fn text_rows(rows: &[Row]) -> Vec<Vec<String>> {
    let heading = ["device", "B", "T", "median ms", "min", "max", "runs", "first ms", "µs/step", "GFLOP/s"];
    let mut text = vec![heading.map(str::to_owned).to_vec()];
    for row in rows {
        let choice = row.outcome.as_ref().ok().and_then(|m| m.choice);
        let device = choice.map_or(row.device.clone(), |choice| format!("{}: {}", row.device, kind_name(choice.kind)));
        let mut cells = vec![device, row.batch_size.to_string(), row.seq_len.to_string()];
        match &row.outcome {
            Ok(m) => {
                let median = m.times.median();
                cells.extend([median, m.times.min(), m.times.max()].map(milliseconds));
                cells.push(m.times.runs().to_string());
                cells.push(milliseconds(m.first));
                cells.push(significant(median * 1e6 / row.seq_len as f64));
                cells.push(significant(m.flops / median / 1e9));
            }
            Err(_) => cells.push("unavailable".into()),
        }
        text.push(cells);
    }
    text
}

fn to_json(path: &str, rows: &[Row]) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| match &row.outcome {
            Ok(m) => json!({
                "device": row.device,
                "chosen": m.choice.map(|choice| kind_name(choice.kind)),
                "estimates": m.choice.map(|choice| choice.to_string()),
                "batch_size": row.batch_size,
                "seq_len": row.seq_len,
                "median_ms": m.times.median() * 1e3,
                "min_ms": m.times.min() * 1e3,
                "max_ms": m.times.max() * 1e3,
                "runs": m.times.runs(),
                "first_ms": m.first * 1e3,
                "us_per_step": m.times.median() * 1e6 / row.seq_len as f64,
                "gflops": m.flops / m.times.median() / 1e9,
            }),
            Err(reason) => json!({
                "device": row.device,
                "batch_size": row.batch_size,
                "seq_len": row.seq_len,
                "unavailable": reason,
            }),
        })
        .collect();
    json!({ "model": path, "rows": rows })
}
