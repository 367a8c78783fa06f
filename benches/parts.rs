//! Criterion benches of the parts: what the host does for a run, stage by stage, and small runs as a whole.
//!
//! `cargo bench --bench parts`; a part of a name after `--` chooses. Whole shapes are `lstm-bench`'s business.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wgpu_lstm::internals::{
    LayerLayout, Plan, PlanLimits, PlanRequest, RowOrder, Schedule, pack_input_rows, pack_layer, padded,
};
use wgpu_lstm::{DeviceChoice, Direction, Engine, EngineOptions, Layout, Lstm, LstmSpec, LstmWeights, SequenceBatch};

/// WebGPU's defaults, and the default budget.
const LIMITS: PlanLimits = PlanLimits {
    binding_bytes: 128 << 20,
    buffer_bytes: 256 << 20,
    workgroups: 65_535,
    uniform_alignment: 256,
    budget_bytes: 1 << 30,
    loop_trips: None,
    wide: true,
    halves: false,
    immediates: false,
    shared_memory: false,
};

const BATCH_SIZE: usize = 32;
const SEQ_LEN: usize = 100;

/// Input 40, hidden 64, two layers, both directions.
fn spec() -> LstmSpec {
    LstmSpec::stack(40, 64, 2).direction(Direction::Bidirectional).build().expect("the sizes are valid")
}

/// 1 to `SEQ_LEN`, far from sorted.
fn ragged_lengths() -> Vec<usize> {
    (0..BATCH_SIZE).map(|b| b * 37 % SEQ_LEN + 1).collect()
}

fn input(rows: usize, width: usize) -> Vec<f32> {
    (0..rows * width).map(|i| (i as f32 * 0.37).sin()).collect()
}

fn plan(c: &mut Criterion) {
    let (spec, lengths) = (spec(), ragged_lengths());
    let mut group = c.benchmark_group("plan");
    group.bench_function("schedule_b32_t100", |b| b.iter(|| Schedule::new(black_box(&lengths))));
    let request = PlanRequest::new(&spec, &lengths, LIMITS);
    group.bench_function("plan_b32_t100_i40_h64_l2_bi", |b| b.iter(|| Plan::new(black_box(&request))));
    group.finish();
}

fn pack(c: &mut Criterion) {
    let spec = spec();
    let weights = LstmWeights::random(&spec, 1);
    let layout = LayerLayout::new(spec.layers(), 1);
    let layer_cells = &weights.cells()[2..];
    let mut group = c.benchmark_group("pack");
    group.throughput(Throughput::Elements(spec.layers()[1].num_parameters() as u64));
    group.bench_function("weights_i128_h64_bi", |b| b.iter(|| pack_layer(black_box(&layout), layer_cells)));

    let lengths = ragged_lengths();
    let x = input(BATCH_SIZE * SEQ_LEN, spec.input_size());
    let order = RowOrder::Layout { layout: Layout::BatchMajor, seq_len: SEQ_LEN, batch_size: BATCH_SIZE, first: 0 };
    let schedule = Schedule::new(&lengths);
    let stride = padded(spec.input_size());
    group.throughput(Throughput::Elements((schedule.num_rows() * spec.input_size()) as u64));
    group.bench_function("input_b32_t100_i40", |b| {
        b.iter(|| pack_input_rows(black_box(&x), 40, order, &schedule, 0..schedule.num_rows(), stride));
    });
    group.finish();
}

/// Whole runs of a loaded model: one step of one sequence, and a small batch.
fn run(c: &mut Criterion, device: &str, lstm: &Lstm) {
    let mut group = c.benchmark_group(device);
    group.sample_size(20);
    let width = lstm.spec().input_size();
    for (name, batch_size, seq_len) in [("step_b1_t1_i64_h64_fwd", 1, 1), ("run_b4_t20_i64_h64_fwd", 4, 20)] {
        let x = input(batch_size * seq_len, width);
        let batch = SequenceBatch::new(&x, [batch_size, seq_len, width], Layout::BatchMajor)
            .expect("the shape is that of the input");
        group.bench_function(name, |b| {
            b.iter(|| lstm.run_blocking(black_box(&batch)).expect("the batch fits the model"));
        });
    }
    // Eight batches, one after another and overlapping; all hidden states come back.
    let x = input(BATCH_SIZE * SEQ_LEN, width);
    let batch = || {
        SequenceBatch::new(&x, [BATCH_SIZE, SEQ_LEN, width], Layout::BatchMajor)
            .expect("the shape is that of the input")
    };
    group.bench_function("eight_runs_b32_t100_i64_h64_fwd", |b| {
        b.iter(|| (0..8).for_each(|_| drop(lstm.run_blocking(black_box(&batch())).expect("the batch fits"))));
    });
    group.bench_function("run_many_8_b32_t100_i64_h64_fwd", |b| {
        b.iter(|| lstm.run_many((0..8).map(|_| black_box(batch()))).for_each(|o| drop(o.expect("the batch fits"))));
    });
    group.finish();
}

fn load(device: DeviceChoice) -> wgpu_lstm::Result<Lstm> {
    let weights = LstmWeights::random(&LstmSpec::stack(64, 64, 1).build()?, 1);
    Engine::open_blocking(EngineOptions::on(device))?.load_blocking(&weights)
}

fn cpu(c: &mut Criterion) {
    let lstm = load(DeviceChoice::Cpu).expect("the CPU backend is built in");
    run(c, "cpu", &lstm);
}

fn gpu(c: &mut Criterion) {
    match load(DeviceChoice::Gpu) {
        Ok(lstm) => {
            println!("gpu: {}", lstm.engine().device().name);
            run(c, "gpu", &lstm);
        }
        Err(e) => println!("gpu: skipped: {e}"),
    }
}

criterion_group!(parts, plan, pack, cpu, gpu);
criterion_main!(parts);
