//! Layers that run many timesteps in one dispatch: which, and their dispatches.

use super::planner::{ALIGNMENT, Chunk, F32, LayerBuffers, Planner, StepInput, StepRecord, Stored};
use super::{BufferId, BufferRange, Dispatch, tiles};
use crate::kernels::params::Step;
use crate::kernels::{Kernel, ModelPart, padded};

/// What a dispatch of many timesteps computes, and the bytes of its rows.
#[derive(Clone, Copy, Default)]
struct RunWork {
    flops: u64,
    bytes: u64,
}

impl Planner<'_> {
    /// Whether layer `l` runs many timesteps in a dispatch; the same for all its chunks.
    pub(super) fn takes_sequence(&self, l: usize) -> bool {
        let limits = &self.request.limits;
        // A dispatch reaches fewer sequences than a step's.
        let workgroups = self.schedule.batch_size().div_ceil(tiles::SEQUENCE_ROWS as usize);
        workgroups <= limits.workgroups as usize && tiles::takes_sequence(&self.layouts[l], limits, self.request.tiles)
    }

    /// The timesteps of a chunk in as few dispatches as the places of the output and the length of a dispatch allow.
    pub(super) fn plan_sequence(
        &mut self,
        chunk: &mut Chunk,
        l: usize,
        reverse: &[bool],
        input: &StepInput,
        stored: &Stored,
        buffers: &LayerBuffers,
    ) {
        let kernel = input.kernel(Kernel::Sequence);
        let hidden_size = self.layers[l].hidden_size;
        let weights = self.layouts[l].range(ModelPart::WeightsHh, 0);
        let by_binding = (self.request.limits.binding_bytes - ALIGNMENT) / u64::from(chunk.record_bytes);
        let most_steps =
            tiles::steps_within_loops(&self.layouts[l], &self.request.limits).min(by_binding as usize).max(1);
        let mut run: Vec<Step> = Vec::new();
        let (mut run_y, mut run_work) = (None, RunWork::default());
        for s in chunk.steps.clone() {
            let StepRecord { step, y, most_active } = self.step_record(chunk, l, s, reverse, input, stored, buffers);
            let directions = reverse.len() as u64;
            let flops = directions * self.flops(l, kernel, most_active, hidden_size);
            let bytes = directions * self.row_bytes(l, kernel, most_active, hidden_size);
            let full = run.len() == most_steps || run_work.flops + flops > self.request.dispatch_flops;
            if !run.is_empty() && (full || run_y != Some(y)) {
                self.push_sequence(chunk, l, reverse, input, buffers, &run, run_y.expect("set with the run"), run_work);
                (run, run_work) = (Vec::new(), RunWork::default());
            }
            run.push(Step { weight_columns: weights.len() as u32, column_end: hidden_size as u32, ..step });
            run_y = Some(y);
            run_work = RunWork { flops: run_work.flops + flops, bytes: run_work.bytes + bytes };
        }
        if let Some(y) = run_y {
            self.push_sequence(chunk, l, reverse, input, buffers, &run, y, run_work);
        }
    }

    /// A dispatch of many timesteps.
    #[allow(clippy::too_many_arguments, reason = "the parts of a dispatch, named at its two calls")]
    fn push_sequence(
        &mut self,
        chunk: &mut Chunk,
        l: usize,
        reverse: &[bool],
        input: &StepInput,
        buffers: &LayerBuffers,
        run: &[Step],
        y: [BufferRange; 2],
        RunWork { flops, bytes }: RunWork,
    ) {
        let hidden_size = self.layers[l].hidden_size;
        let kernel = input.kernel(Kernel::Sequence);
        let bytes = bytes + reverse.len() as u64 * self.weight_bytes(l, kernel, hidden_size);
        let uniform = chunk.uniform_range(size_of::<Step>());
        // The records are a uniform for the first timestep and a storage buffer for all.
        let (record_offset_bytes, window) = (chunk.next_uniform(), chunk.window(run.len()));
        let record_first = (u64::from(record_offset_bytes) - window.offset_bytes) / F32;
        let record_words = chunk.record_bytes / F32 as u32;
        for step in run {
            let record = Step { num_steps: run.len() as u32, record_first: record_first as u32, record_words, ..*step };
            chunk.push_uniform(bytemuck::bytes_of(&record));
        }
        let model = |part| BufferRange::from(BufferId::Model { layer: l, part, range: 0 });
        // One buffer for h, since it is read before the first timestep and written after the last.
        let (h, state) = (buffers.h[0].into(), buffers.state.into());
        let mut ranges =
            vec![uniform, input.buffer().into(), model(ModelPart::WeightsHh), window, h, state, y[0], y[1]];
        if kernel.is_narrow() {
            ranges.push(model(ModelPart::NarrowInput));
        }
        let bind_group = self.bind_group(kernel, ranges);
        let batch_size = self.schedule.batch_size();
        let id = tiles::sequence(
            kernel,
            self.layer_kernels[l].cell,
            batch_size,
            padded(self.layers[l].hidden_size),
            &self.request.limits,
        );
        let workgroups = [(batch_size as u32).div_ceil(id.rows), 1, reverse.len() as u32];
        let kernel = self.kernel(id);
        chunk.submit.dispatches.push(Dispatch { kernel, bind_group, record_offset_bytes, workgroups, flops, bytes });
    }
}
