//! Measures the factors of the cost model by running small models on both devices, once per adapter and process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use super::cost::{Costs, CpuCosts, GpuCosts};
use crate::batch::{Layout, Outputs, SequenceBatch, SequenceOutput};
use crate::cpu::CpuLstm;
use crate::error::Result;
use crate::gpu::{Context, GpuLstm, Job, Waiting};
use crate::options::Precision;
use crate::spec::LstmSpec;
use crate::weights::LstmWeights;

/// Runs of each probe; the shortest counts, since all else is disturbance.
const RUNS: usize = 3;
/// A rate that is too high to be measured.
const UNMEASURABLE: f64 = 1e15;
const F32: f64 = 4.0;
/// Values that are copied to the device and back.
const COPIED: usize = 1 << 19;

/// The factors of `context` and the CPU backend, measured unless they are known; `key` names the adapter and the options.
pub(crate) async fn costs(context: &Arc<Context>, precision: Precision, key: String) -> Result<Costs> {
    static KNOWN: OnceLock<Mutex<HashMap<String, GpuCosts>>> = OnceLock::new();
    let known = KNOWN.get_or_init(Mutex::default);
    let found = known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
    let gpu = match found {
        Some(gpu) => gpu,
        None => {
            let gpu = gpu_costs(context, precision).await?;
            known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, gpu);
            gpu
        }
    };
    Ok(Costs { gpu, cpu: cpu_costs(precision) })
}

fn cpu_costs(precision: Precision) -> CpuCosts {
    static KNOWN: [OnceLock<CpuCosts>; 2] = [OnceLock::new(), OnceLock::new()];
    let known = match precision {
        Precision::F32 => &KNOWN[0],
        Precision::F16Weights => &KNOWN[1],
    };
    *known.get_or_init(|| {
        let time = |hidden_size: usize, batch_size: usize, lengths: [usize; 2]| {
            let model = CpuLstm::new(&weights(4, hidden_size), precision);
            lengths.map(|length| {
                let input = vec![0.1; batch_size * length * 4];
                shortest(|| {
                    let batch = probe(&input, batch_size, length, 4);
                    model.run(&batch).map(drop).expect("the CPU backend runs every valid batch");
                })
            })
        };
        let per_step =
            |times: [f64; 2], lengths: [usize; 2]| ((times[1] - times[0]) / (lengths[1] - lengths[0]) as f64).max(1e-9);
        let tiny = time(16, 1, [1, 65]);
        let near = per_step(time(128, 1, [1, 65]), [1, 65]);
        let far = per_step(time(512, 1, [1, 17]), [1, 17]);
        let busy = per_step(time(256, 32, [1, 9]), [1, 9]);
        let step = per_step(tiny, [1, 65]);
        let rate = |hidden_size: usize, seconds: f64| step_bytes(hidden_size) / (seconds - step).max(seconds / 4.0);
        CpuCosts {
            run: (tiny[0] - step).max(0.0),
            step,
            bytes_per_second: [rate(128, near), rate(512, far)],
            flops: 32.0 * step_bytes(256) / 2.0 / busy,
        }
    })
}

async fn gpu_costs(context: &Arc<Context>, precision: Precision) -> Result<GpuCosts> {
    let narrow = 4;
    let tiny = Probe::new(context, precision, narrow, 64).await?;
    let near = Probe::new(context, precision, narrow, 128).await?;
    let far = Probe::new(context, precision, narrow, 512).await?;
    let wide = Probe::new(context, precision, 512, 512).await?;

    let of_steps = |times: [f64; 2], steps: usize| ((times[1] - times[0]) / steps as f64).max(1e-9);
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
    // What a wider input adds: its product, and bringing it there.
    let added = (512 - narrow) as f64 * 64.0 * 5.0;
    let product = projected - many - F32 * added / upload;
    Ok(GpuCosts {
        run: (one - 2.0 * dispatch).max(one / 4.0),
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

fn weights(input_size: usize, hidden_size: usize) -> LstmWeights {
    let spec = LstmSpec::stack(input_size, hidden_size, 1).build().expect("the sizes are valid");
    LstmWeights::random(&spec, 1)
}

/// A batch that returns its final state alone.
fn probe(input: &[f32], batch_size: usize, seq_len: usize, input_size: usize) -> SequenceBatch<'_> {
    SequenceBatch::new(input, [batch_size, seq_len, input_size], Layout::BatchMajor)
        .expect("the array has the size of its shape")
        .outputs(Outputs { sequence: SequenceOutput::None, final_state: true, cells: false })
        .check_finite(false)
}

/// After one run to warm up.
fn shortest(mut run: impl FnMut()) -> f64 {
    run();
    let times = (0..RUNS).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

/// A model of one layer on the GPU.
struct Probe {
    model: GpuLstm,
    input_size: usize,
}

impl Probe {
    async fn new(context: &Arc<Context>, precision: Precision, input_size: usize, hidden_size: usize) -> Result<Self> {
        let mut weights = weights(input_size, hidden_size);
        if precision == Precision::F16Weights {
            weights = weights.rounded_to_f16()?;
        }
        Ok(Self { model: GpuLstm::load(context, &weights).await?, input_size })
    }

    async fn seconds(&self, batch_size: usize, seq_len: usize) -> Result<f64> {
        let input = vec![0.1; batch_size * seq_len * self.input_size];
        let mut shortest = f64::INFINITY;
        for run in 0..=RUNS {
            let batch = probe(&input, batch_size, seq_len, self.input_size);
            let start = Instant::now();
            self.model.run(Job::of(&batch), Waiting::Blocking, &|_| ()).await?;
            // The first one warms up.
            if run > 0 {
                shortest = shortest.min(start.elapsed().as_secs_f64());
            }
        }
        Ok(shortest)
    }
}

/// Bytes per second to the device and back.
async fn copies(context: &Arc<Context>) -> Result<(f64, f64)> {
    let values = vec![0.0; COPIED];
    let bytes = F32 * COPIED as f64;
    let (mut both, mut back) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..=RUNS {
        let start = Instant::now();
        let tensor = context.upload(&values, &[COPIED])?;
        context.read_back(&tensor, Waiting::Blocking).await?;
        both = both.min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        context.read_back(&tensor, Waiting::Blocking).await?;
        back = back.min(start.elapsed().as_secs_f64());
    }
    Ok((rate(bytes, (both - back).max(both / 8.0)), rate(bytes, back)))
}
