//! Measures the factors of the cost model by running small models on both devices, once per adapter and process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use super::cost::{Costs, CpuCosts, GpuCosts};
use crate::batch::{Layout, Outputs, SequenceBatch, SequenceOutput};
use crate::cpu::CpuLstm;
use crate::error::Result;
use crate::gpu::{Context, GpuLstm, Job, Waiting};
use crate::options::{DeviceReport, EngineOptions, Precision};
use crate::spec::LstmSpec;
use crate::weights::LstmWeights;

/// Runs of each probe; the shortest counts, since all else is disturbance.
const RUNS: usize = 3;
/// A rate that is too high to be measured.
const UNMEASURABLE: f64 = 1e15;
const F32: f64 = 4.0;
/// The width of an input whose projection does not count.
const NARROW: usize = 4;
/// Values that are copied to the device and back.
const COPIED: usize = 1 << 19;

/// The factors of `context` and the CPU backend, measured unless they are known for this adapter and these options.
pub(super) async fn costs(context: &Arc<Context>, report: &DeviceReport, options: &EngineOptions) -> Result<Costs> {
    static KNOWN: OnceLock<Mutex<HashMap<String, Costs>>> = OnceLock::new();
    let known = || KNOWN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let EngineOptions { limits, tuning, precision, .. } = options;
    let key = format!("{:?} {limits:?} {tuning:?} {precision:?}", report.adapter);
    if let Some(costs) = known().get(&key) {
        return Ok(*costs);
    }
    let measured = Costs { gpu: gpu_costs(context, *precision).await?, cpu: cpu_costs(*precision)? };
    context.tally.forget_measuring();
    // Two threads may both measure; one result is kept, so that both choose alike.
    Ok(*known().entry(key).or_insert(measured))
}

/// Seconds of a timestep, from the times of runs of one and of so many more.
fn of_steps(times: [f64; 2], more: usize) -> f64 {
    ((times[1] - times[0]) / more as f64).max(1e-9)
}

fn cpu_costs(precision: Precision) -> Result<CpuCosts> {
    let times = |hidden_size: usize, batch_size: usize, more: usize| -> Result<[f64; 2]> {
        let model = CpuLstm::new(&weights(NARROW, hidden_size, precision)?, precision);
        let time = |seq_len: usize| {
            let input = vec![0.1; batch_size * seq_len * NARROW];
            let batch = probe(&input, batch_size, seq_len, NARROW)?;
            let mut shortest = Shortest::default();
            while shortest.wants_more() {
                let start = Instant::now();
                model.run(&batch)?;
                shortest.note(start);
            }
            Ok(shortest.seconds)
        };
        Ok([time(1)?, time(1 + more)?])
    };
    let tiny = times(16, 1, 64)?;
    let step = of_steps(tiny, 64);
    let near = of_steps(times(128, 1, 64)?, 64);
    let far = of_steps(times(512, 1, 16)?, 16);
    let busy = of_steps(times(256, 32, 8)?, 8);
    let rate = |hidden_size: usize, seconds: f64| step_bytes(hidden_size) / (seconds - step).max(seconds / 4.0);
    Ok(CpuCosts {
        run: (tiny[0] - step).max(0.0),
        step,
        bytes_per_second: [rate(128, near), rate(512, far)],
        flops: 32.0 * step_bytes(256) / 2.0 / busy,
    })
}

async fn gpu_costs(context: &Arc<Context>, precision: Precision) -> Result<GpuCosts> {
    let tiny = Probe::new(context, precision, NARROW, 64).await?;
    let near = Probe::new(context, precision, NARROW, 128).await?;
    let far = Probe::new(context, precision, NARROW, 512).await?;
    let wide = Probe::new(context, precision, 512, 512).await?;

    let sequence_step = of_steps([tiny.seconds(1, 1).await?, tiny.seconds(1, 65).await?], 64);
    let one = near.seconds(1, 1).await?;
    let near = of_steps([one, near.seconds(1, 65).await?], 64);
    let (first, few) = (far.seconds(1, 1).await?, far.seconds(1, 17).await?);
    let far_step = of_steps([first, few], 16);
    let (first, many) = (far.seconds(64, 1).await?, far.seconds(64, 5).await?);
    let busy = of_steps([first, many], 4);
    let projected = wide.seconds(64, 5).await?;

    let bytes_per_second = rate(step_bytes(512) - step_bytes(128), far_step - near);
    let dispatch = (near - step_bytes(128) / bytes_per_second).max(near / 4.0);
    let (upload, download) = copies(context).await?;
    // A wide device sums over the narrow input in the steps, another projects it in a dispatch of its own.
    let of_narrow = if context.limits.wide { 0.0 } else { dispatch };
    // What a wider input adds: its product, and bringing it there; on a wide device the dispatch too.
    let added = (512 - NARROW) as f64 * 64.0 * 5.0;
    let product = projected - many - (dispatch - of_narrow) - F32 * added / upload;
    Ok(GpuCosts {
        run: (one - dispatch - of_narrow).max(one / 4.0),
        dispatch,
        bytes_per_second,
        step_flops: rate(64.0 * step_bytes(512) / 2.0, busy - far_step),
        input_flops: rate(added * 2.0 * 4.0 * 512.0, product),
        sequence_step,
        upload,
        download,
    })
}

/// So much work in so many seconds, which may be too few to be told from none.
fn rate(work: f64, seconds: f64) -> f64 {
    if seconds > work / UNMEASURABLE { work / seconds } else { UNMEASURABLE }
}

/// Bytes of the weights that a timestep of a layer reads; half as many as a sequence's floating-point operations times 4.
fn step_bytes(hidden_size: usize) -> f64 {
    F32 * 4.0 * (hidden_size * hidden_size) as f64
}

fn weights(input_size: usize, hidden_size: usize, precision: Precision) -> Result<LstmWeights> {
    let weights = LstmWeights::random(&LstmSpec::stack(input_size, hidden_size, 1).build()?, 1);
    match precision {
        Precision::F32 => Ok(weights),
        Precision::F16Weights => weights.rounded_to_f16(),
    }
}

/// A batch that returns its final state alone.
fn probe(input: &[f32], batch_size: usize, seq_len: usize, input_size: usize) -> Result<SequenceBatch<'_>> {
    let batch = SequenceBatch::new(input, [batch_size, seq_len, input_size], Layout::BatchMajor)?;
    Ok(batch.outputs(Outputs { sequence: SequenceOutput::None, final_state: true, cells: false }).check_finite(false))
}

/// The shortest of [`RUNS`] runs after one to warm up.
#[derive(Default)]
struct Shortest {
    runs: usize,
    seconds: f64,
}

impl Shortest {
    fn wants_more(&self) -> bool {
        self.runs <= RUNS
    }

    /// Takes note of a run that began at `start` and ends now.
    fn note(&mut self, start: Instant) {
        let seconds = start.elapsed().as_secs_f64();
        // The first one warms up.
        self.seconds = if self.runs <= 1 { seconds } else { self.seconds.min(seconds) };
        self.runs += 1;
    }
}

/// A model of one layer on the GPU.
struct Probe {
    model: GpuLstm,
    input_size: usize,
}

impl Probe {
    async fn new(context: &Arc<Context>, precision: Precision, input_size: usize, hidden_size: usize) -> Result<Self> {
        let weights = weights(input_size, hidden_size, precision)?;
        Ok(Self { model: GpuLstm::load(context, &weights).await?, input_size })
    }

    async fn seconds(&self, batch_size: usize, seq_len: usize) -> Result<f64> {
        let input = vec![0.1; batch_size * seq_len * self.input_size];
        let batch = probe(&input, batch_size, seq_len, self.input_size)?;
        let mut shortest = Shortest::default();
        while shortest.wants_more() {
            let start = Instant::now();
            self.model.run(Job::of(&batch), Waiting::Blocking, &|_| ()).await?;
            shortest.note(start);
        }
        Ok(shortest.seconds)
    }
}

/// Bytes per second to the device and back.
async fn copies(context: &Arc<Context>) -> Result<(f64, f64)> {
    let values = vec![0.0; COPIED];
    let bytes = F32 * COPIED as f64;
    let (mut both, mut back) = (Shortest::default(), Shortest::default());
    while both.wants_more() {
        let start = Instant::now();
        let tensor = context.upload(&values, &[COPIED])?;
        context.read_back(&tensor, Waiting::Blocking).await?;
        both.note(start);
        let start = Instant::now();
        context.read_back(&tensor, Waiting::Blocking).await?;
        back.note(start);
    }
    let (both, back) = (both.seconds, back.seconds);
    Ok((rate(bytes, (both - back).max(both / 8.0)), rate(bytes, back)))
}
