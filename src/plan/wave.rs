//! Stacks of forward layers that run side by side: which, and their dispatches.
//!
//! Layer i of a stack is i timesteps behind the first, so that one dispatch has a timestep of every layer: T + L − 1
//! dispatches of a chunk instead of L·T, for batches whose single steps would leave a device idle.

use std::ops::Range;

use super::planner::{Chunk, F32, LayerBuffers, Planner, StepInput, StepRecord, Stored};
use super::tiles::{self, Shape};
use super::{BufferId, BufferRange, Dispatch};
use crate::kernels::params::{Step, WaveStep};
use crate::kernels::{Kernel, ModelPart, StackPlaces, padded};

/// WebGPU's largest alignment of the offset of a binding.
const ALIGNMENT: u64 = 256;

impl Planner<'_> {
    /// Whether the layers of a group run side by side.
    pub(super) fn takes_wave(&self, layers: &Range<usize>) -> bool {
        let cells: Vec<_> = self.layer_kernels[layers.clone()].iter().map(|kernels| kernels.cell).collect();
        let batch_size = self.schedule.active(0);
        let work = |l: usize| {
            let hidden_size = self.layers[l].hidden_size;
            self.flops(l, Kernel::InputProjection, batch_size, hidden_size)
                + self.flops(l, Kernel::RecurrentStep, batch_size, padded(hidden_size))
        };
        layers.clone().map(work).sum::<u64>() <= self.request.dispatch_flops
            && tiles::takes_wave(
                &self.layouts[layers.clone()],
                &cells,
                batch_size,
                &self.request.limits,
                self.request.tiles,
            )
    }

    /// All timesteps of a chunk of a stack; `stored` is where the output of its last layer goes.
    pub(super) fn plan_wave(
        &mut self,
        chunk: &mut Chunk,
        layers: Range<usize>,
        gates: BufferId,
        stored: &Stored,
        buffers: &[LayerBuffers],
    ) {
        let places = StackPlaces::of(&self.layouts[layers.clone()]);
        let (num_steps, num_layers) = (chunk.steps.len(), layers.len());
        let input = StepInput::Gates(gates);
        let nothing = Stored::nothing();
        let columns = layers.clone().map(|l| padded(self.layers[l].hidden_size)).max().unwrap_or(0);
        let k = layers.clone().map(|l| self.layouts[l].longest_sum()).max().unwrap_or(0);
        let cell = self.layer_kernels[layers.start].cell;

        // The records are a uniform for a dispatch's first layer and a storage buffer for all.
        let records_first = u64::from(chunk.next_uniform());
        let window_first = records_first / ALIGNMENT * ALIGNMENT;
        let records_bytes = (num_steps * num_layers) as u64 * u64::from(chunk.record_bytes);
        let uniform = chunk.uniform_range(size_of::<WaveStep>());
        let window = BufferRange {
            buffer: uniform.buffer,
            offset_bytes: window_first,
            size_bytes: records_first + records_bytes - window_first,
        };
        let stack = |vectors| BufferRange::from(BufferId::Stack { layer: layers.start, vectors });

        for wave in 0..num_steps + num_layers - 1 {
            let under_way = (wave + 1).saturating_sub(num_steps)..num_layers.min(wave + 1);
            let uniform_bytes = chunk.next_uniform();
            let (mut rows, mut flops, mut bytes) = (0, 0, 0);
            let mut y = BufferRange { buffer: BufferId::Dummy, offset_bytes: 0, size_bytes: 256 };
            for i in under_way.clone() {
                let (l, s) = (layers.start + i, chunk.steps.start + wave - i);
                let is_last = i + 1 == num_layers;
                let stored = if is_last { stored } else { &nothing };
                let record = self.step_record(chunk, l, s, &[false], &input, stored, &buffers[l]);
                let StepRecord { step, y: [own_y, _], most_active } = record;
                if is_last {
                    y = own_y;
                }
                let below = i.checked_sub(1).map(|_| &buffers[l - 1]);
                let record = WaveStep {
                    step: Step {
                        record_first: ((u64::from(uniform_bytes) - window_first) / F32) as u32,
                        record_words: chunk.record_bytes / F32 as u32,
                        num_steps: 1,
                        ..step
                    },
                    below_first: below.map_or(0, |below| below.h_first / 4) as u32,
                    below_k4: below.map_or(0, |_| self.layouts[l].input_k() / 4) as u32,
                    w_ih_first: places[i].w_ih as u32,
                    w_hh_first: places[i].w_hh as u32,
                    bias_first: places[i].bias as u32,
                    h_first: buffers[l].h_first as u32,
                    state_first: buffers[l].state_first as u32,
                    padding_0: 0,
                };
                chunk.push_uniform(bytemuck::bytes_of(&record));
                rows = rows.max(most_active);
                let hidden_size = self.layers[l].hidden_size;
                let products = [(Kernel::RecurrentStep, padded(hidden_size)), (Kernel::InputProjection, hidden_size)];
                for (kernel, columns) in &products[..if below.is_some() { 2 } else { 1 }] {
                    flops += self.flops(l, *kernel, most_active, *columns);
                    bytes +=
                        self.weight_bytes(l, *kernel, *columns) + self.row_bytes(l, *kernel, most_active, *columns);
                }
            }
            // A layer's h alternates with the waves, not with its own timesteps: what it reads of the layer below is there too.
            let parity = (chunk.steps.start + wave) % 2;
            let of_first = &buffers[layers.start];
            let ranges = vec![
                uniform,
                gates.into(),
                stack(false),
                stack(true),
                window,
                of_first.h[parity].into(),
                of_first.h[1 - parity].into(),
                of_first.state.into(),
                y,
            ];
            let bind_group = self.bind_group(Kernel::Wave, ranges);
            let id = self.tile(Kernel::Wave, cell, Shape { rows, columns, k });
            let kernel = self.kernel(id);
            let workgroups = [
                (columns as u32).div_ceil(id.lanes),
                (rows as u32).div_ceil(id.rows_per_workgroup()),
                under_way.len() as u32,
            ];
            chunk.submit.dispatches.push(Dispatch { kernel, bind_group, uniform_bytes, workgroups, flops, bytes });
        }
        debug_assert_eq!(u64::from(chunk.next_uniform()), records_first + records_bytes);
        debug_assert!(layers.clone().all(|l| self.layouts[l].num_ranges(ModelPart::WeightsHh) == 1));
    }
}
