//! What a run takes: sums of a few terms with measured factors.
//!
//! A timestep of a layer reads its weights and multiplies them with the rows that are active. The CPU backend does the
//! longer of the two, since reading hides behind arithmetic; on a GPU they are added to the gap between dependent
//! dispatches, since both wait for the slowest invocation. The input projection is a matrix product on both.

use crate::plan::{PlanLimits, Stack, TileOverride, WAVE_ROWS, tiles};
use crate::spec::{LayerSpec, LstmSpec};

const F32: f64 = 4.0;

/// What timesteps of a model take, counted once when it is loaded.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    layers: Vec<LayerWork>,
    input_width: f64,
    output_width: f64,
    state_width: f64,
    cells_width: f64,
}

#[derive(Debug, Clone)]
struct LayerWork {
    directions: f64,
    hidden: f64,
    /// Of a timestep; directions share them.
    dispatches: f64,
    /// Of a timestep, all directions.
    step_bytes: f64,
    /// Of a timestep and a sequence, all directions.
    step_flops: f64,
    /// Of the input projection.
    input_bytes: f64,
    /// Of a row.
    input_flops: f64,
    /// Whether a GPU sums over the input in the steps.
    narrow: bool,
    /// Whether a GPU runs many timesteps in one dispatch.
    many_steps: bool,
    /// Whether a GPU runs it beside the layer below, and the layer above beside it, for few sequences.
    beside: [bool; 2],
}

impl LayerWork {
    fn new(layers: &[LayerSpec], l: usize, limits: &PlanLimits) -> Self {
        let layer = &layers[l];
        let (gates, h, hidden) = (layer.gate_rows() as f64, layer.h_size() as f64, layer.hidden_size as f64);
        let directions = layer.num_directions() as f64;
        let projection = layer.projection_size.map_or(0.0, |p| p as f64 * hidden);
        let step = directions * (gates * h + projection);
        let input = directions * gates * layer.input_size as f64;
        let lstm = layer.cell.lstm();
        let normalized = lstm.is_some_and(|cell| cell.layer_norm);
        let layout = limits.layout(layers, l);
        Self {
            directions,
            hidden,
            dispatches: 1.0 + f64::from(u8::from(projection > 0.0)) + f64::from(u8::from(normalized)),
            step_bytes: F32 * step,
            step_flops: 2.0 * step,
            input_bytes: F32 * input,
            input_flops: 2.0 * input,
            narrow: tiles::takes_narrow(&layout, limits, TileOverride::default()),
            many_steps: tiles::takes_sequence(&layout, limits, TileOverride::default()),
            beside: [false; 2],
        }
    }
}

impl Work {
    pub(crate) fn new(spec: &LstmSpec, limits: &PlanLimits) -> Self {
        let (h, c) = spec.state_sizes();
        let last = spec.last_layer();
        let specs = spec.layers();
        let mut layers: Vec<_> = (0..specs.len()).map(|l| LayerWork::new(specs, l, limits)).collect();
        for stack in Stack::all(specs, limits) {
            if stack.takes_wave(1, limits, TileOverride::default()) {
                for l in stack.layers.clone() {
                    layers[l].beside = [l > stack.layers.start, l + 1 < stack.layers.end];
                }
            }
        }
        Self {
            layers,
            input_width: spec.input_size() as f64,
            output_width: spec.output_size() as f64,
            state_width: (h + c) as f64,
            cells_width: (last.num_directions() * last.c_size()) as f64,
        }
    }
}

/// The shape of a batch, and what it returns.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Longest first, without those of length 0.
    lengths: Vec<usize>,
    rows: f64,
    steps: f64,
    rows_out: f64,
    states: bool,
    cells: bool,
}

impl Shape {
    /// Of sequences of these lengths, of which so many rows are returned.
    pub(crate) fn new(lengths: &[usize], rows_out: usize, states: bool, cells: bool) -> Self {
        let mut lengths: Vec<usize> = lengths.iter().copied().filter(|&length| length > 0).collect();
        if lengths.windows(2).any(|pair| pair[0] != pair[1]) {
            lengths.sort_unstable_by_key(|&length| std::cmp::Reverse(length));
        }
        let rows = lengths.iter().map(|&length| length as f64).sum();
        let steps = lengths.first().map_or(0.0, |&length| length as f64);
        Self { lengths, rows, steps, rows_out: rows_out as f64, states, cells }
    }

    /// The timesteps with more than `active` sequences, and their rows.
    fn steps_beyond(&self, active: f64) -> (f64, f64) {
        let Some(&steps) = self.lengths.get(active.min(self.lengths.len() as f64) as usize) else { return (0.0, 0.0) };
        (steps as f64, self.lengths.iter().map(|&length| length.min(steps) as f64).sum())
    }

    fn values_out(&self, work: &Work) -> f64 {
        let cells = if self.cells { self.rows * work.cells_width } else { 0.0 };
        let states = if self.states { self.lengths.len() as f64 * work.state_width } else { 0.0 };
        self.rows_out * work.output_width + cells + states
    }
}

/// The measured factors of both devices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// Of the GPU.
    pub gpu: GpuCosts,
    /// Of the CPU backend with all of its threads.
    pub cpu: CpuCosts,
}

/// What the CPU backend takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuCosts {
    /// Seconds of a run, whatever it computes.
    pub run: f64,
    /// Seconds of a timestep of a layer, whatever it computes.
    pub step: f64,
    /// Bytes of weights per second that are read for one sequence, counted as f32: in a layer of 128 units, and of 512.
    pub bytes_per_second: [f64; 2],
    /// Floating-point operations per second for many sequences.
    pub flops: f64,
}

impl CpuCosts {
    /// Bytes of weights at which half of them are read at each of the two rates.
    const BETWEEN: f64 = 1e6;
    /// Rows of a projection that is done at once.
    const ROWS: f64 = 32.0;

    /// Seconds of a run.
    pub(crate) fn seconds(&self, work: &Work, shape: &Shape) -> f64 {
        let layers: f64 = work.layers.iter().map(|layer| self.layer_seconds(layer, shape)).sum();
        self.run + layers
    }

    fn layer_seconds(&self, layer: &LayerWork, shape: &Shape) -> f64 {
        let read = layer.step_bytes / self.rate(layer.step_bytes);
        let of_sequence = layer.step_flops / self.flops;
        // From so many sequences on, arithmetic takes longer than reading.
        let (busy_steps, busy_rows) = shape.steps_beyond((read / of_sequence).floor());
        let steps = self.step * shape.steps + read * (shape.steps - busy_steps) + of_sequence * busy_rows;
        let chunks = (shape.rows / Self::ROWS).ceil();
        let projected = (layer.input_flops * shape.rows / self.flops)
            .max(chunks * layer.input_bytes / self.rate(layer.input_bytes));
        steps + projected
    }

    fn rate(&self, bytes: f64) -> f64 {
        let [near, far] = self.bytes_per_second;
        if bytes < Self::BETWEEN { near } else { far }
    }
}

/// What a GPU takes, from host memory to host memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GpuCosts {
    /// Seconds of a run, whatever it computes: planning, the submit, waiting for it.
    pub run: f64,
    /// Seconds from one dependent dispatch to the next, recording included.
    pub dispatch: f64,
    /// Bytes of weights per second that a timestep of few sequences reads, counted as f32.
    pub bytes_per_second: f64,
    /// Floating-point operations per second of a timestep of many sequences.
    pub step_flops: f64,
    /// Floating-point operations per second of an input projection.
    pub input_flops: f64,
    /// Seconds of a timestep of 64 units where many timesteps are one dispatch.
    pub sequence_step: f64,
    /// Bytes per second to the device.
    pub upload: f64,
    /// Bytes per second from the device.
    pub download: f64,
}

impl GpuCosts {
    /// Seconds of a run.
    pub(crate) fn seconds(&self, work: &Work, shape: &Shape) -> f64 {
        let layers: f64 = work.layers.iter().map(|layer| self.layer_seconds(layer, shape)).sum();
        let up = F32 * shape.rows * work.input_width / self.upload;
        let down = F32 * shape.values_out(work) / self.download;
        self.run + layers + up + down
    }

    fn layer_seconds(&self, layer: &LayerWork, shape: &Shape) -> f64 {
        let beside = layer.beside.map(|beside| beside && shape.lengths.len() <= WAVE_ROWS);
        let in_steps = beside[0] || layer.narrow && !beside[1];
        let (dispatches, input_rate) =
            if in_steps { (0.0, self.step_flops) } else { (layer.directions, self.input_flops) };
        let projected = dispatches * self.dispatch + layer.input_flops * shape.rows / input_rate;
        let arithmetic = layer.step_flops * shape.rows / self.step_flops;
        if beside[0] {
            // The dispatches are those of the first layer, but the input is summed over step by step.
            let reading = shape.steps * (layer.step_bytes + layer.input_bytes) / self.bytes_per_second;
            return self.dispatch + reading + arithmetic + projected;
        }
        if layer.many_steps && !beside[1] {
            return projected + shape.steps * self.sequence_step * (layer.hidden / 64.0).max(0.5) + arithmetic;
        }
        let step = self.dispatch * layer.dispatches + layer.step_bytes / self.bytes_per_second;
        projected + shape.steps * step + arithmetic
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Direction;

    /// A server's GPU beside a desktop's CPU, in round numbers.
    const COSTS: Costs = Costs {
        gpu: GpuCosts {
            run: 60e-6,
            dispatch: 3e-6,
            bytes_per_second: 1e12,
            step_flops: 8e12,
            input_flops: 15e12,
            sequence_step: 1e-6,
            upload: 5e9,
            download: 5e9,
        },
        cpu: CpuCosts { run: 2e-6, step: 1e-6, bytes_per_second: [100e9, 30e9], flops: 150e9 },
    };

    fn gpu_wins(spec: &LstmSpec, lengths: &[usize]) -> bool {
        let work = Work::new(spec, &PlanLimits::defaults(true));
        let shape = Shape::new(lengths, lengths.iter().sum(), true, false);
        COSTS.gpu.seconds(&work, &shape) < COSTS.cpu.seconds(&work, &shape)
    }

    #[test]
    fn a_single_small_step_stays_on_the_cpu_and_a_large_batch_leaves_it() {
        let small = LstmSpec::stack(128, 128, 1).build().unwrap();
        let large = LstmSpec::stack(512, 512, 1).build().unwrap();
        assert!(!gpu_wins(&small, &[1]));
        assert!(!gpu_wins(&small, &[3, 1, 2]));
        assert!(gpu_wins(&large, &[64; 64]));
        let bidirectional = LstmSpec::stack(80, 256, 2).direction(Direction::Bidirectional).build().unwrap();
        assert!(gpu_wins(&bidirectional, &[100; 16]));
    }

    #[test]
    fn estimates_grow_with_everything_there_is_to_do() {
        let base = LstmSpec::stack(64, 256, 1).build().unwrap();
        let more = [
            LstmSpec::stack(128, 256, 1).build().unwrap(),
            LstmSpec::stack(64, 320, 1).build().unwrap(),
            LstmSpec::stack(64, 256, 2).build().unwrap(),
            LstmSpec::stack(64, 256, 1).direction(Direction::Bidirectional).build().unwrap(),
        ];
        let shape = |lengths: &[usize]| Shape::new(lengths, lengths.len(), true, false);
        let seconds = |spec: &LstmSpec, lengths: &[usize]| {
            let (work, shape) = (Work::new(spec, &PlanLimits::defaults(true)), shape(lengths));
            [COSTS.gpu.seconds(&work, &shape), COSTS.cpu.seconds(&work, &shape)]
        };
        let [gpu, cpu] = seconds(&base, &[50; 32]);
        for spec in more {
            let [more_gpu, more_cpu] = seconds(&spec, &[50; 32]);
            assert!(more_gpu > gpu && more_cpu > cpu, "{spec:?}");
        }
        for lengths in [&[51; 32], &[50; 33][..]] {
            let [more_gpu, more_cpu] = seconds(&base, lengths);
            assert!(more_gpu > gpu && more_cpu > cpu, "{lengths:?}");
        }
        let [ragged_gpu, ragged_cpu] = seconds(&base, &[[50; 16], [10; 16]].concat());
        assert!(ragged_gpu < gpu && ragged_cpu < cpu);
    }

    #[test]
    fn layers_side_by_side_share_dispatches() {
        let spec = LstmSpec::stack(64, 128, 3).build().unwrap();
        let seconds = |wide, batch_size| {
            let shape = Shape::new(&vec![100; batch_size], 0, false, false);
            COSTS.gpu.seconds(&Work::new(&spec, &PlanLimits::defaults(wide)), &shape)
        };
        // Two layers without a dispatch per timestep of their own.
        let saved = seconds(false, 4) - seconds(true, 4);
        assert!(saved > 1.5 * 100.0 * COSTS.gpu.dispatch && saved < 2.0 * 101.0 * COSTS.gpu.dispatch, "{saved}");
        assert_eq!(seconds(false, WAVE_ROWS + 1), seconds(true, WAVE_ROWS + 1));
    }

    #[test]
    fn a_step_on_the_cpu_takes_the_longer_of_reading_and_arithmetic() {
        let spec = LstmSpec::stack(64, 256, 1).build().unwrap();
        let lengths: Vec<usize> = (1..40).collect();
        let cpu = CpuCosts { flops: 20e9, ..COSTS.cpu };
        // 4·H·H weights of 4 bytes, read at the rate for far ones; 2 operations each.
        let weights: f64 = 4.0 * 256.0 * 256.0;
        let (read, of_sequence) = (4.0 * weights / 30e9, 2.0 * weights / 20e9);
        let active = |t: usize| lengths.iter().filter(|&&length| length > t).count() as f64;
        let steps: Vec<f64> = (0..39).map(|t| read.max(of_sequence * active(t))).collect();
        assert!(steps[0] > read && steps[38] == of_sequence.max(read), "both happen");
        let rows = (1..40).sum::<usize>() as f64;
        let expected = 2e-6 + 39.0 * 1e-6 + steps.iter().sum::<f64>() + 2.0 * 4.0 * 256.0 * 64.0 * rows / 20e9;
        let found = cpu.seconds(&Work::new(&spec, &PlanLimits::defaults(true)), &Shape::new(&lengths, 0, false, false));
        assert!((found / expected - 1.0).abs() < 1e-9, "{found} for {expected}");
    }

    #[test]
    fn ragged_steps_are_summed_as_one_by_one() {
        let lengths = [7, 0, 3, 9, 3, 1];
        let shape = Shape::new(&lengths, 0, false, false);
        assert_eq!((shape.steps, shape.rows), (9.0, 23.0));
        for active in 0..7 {
            let steps: Vec<usize> = (0..9).map(|t| lengths.iter().filter(|&&length| length > t).count()).collect();
            let beyond: Vec<usize> = steps.into_iter().filter(|&n| n > active).collect();
            let expected = (beyond.len() as f64, beyond.iter().sum::<usize>() as f64);
            assert_eq!(shape.steps_beyond(active as f64), expected, "more than {active}");
        }
    }
}
