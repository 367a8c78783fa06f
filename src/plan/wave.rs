//! Stacks of forward layers that run side by side: which, and their dispatches.
//!
//! Layer i of a stack is i timesteps behind the first, so that one dispatch has a timestep of every layer: T + L − 1
//! dispatches of a chunk instead of L·T, for batches whose single steps would leave a device idle.

use std::ops::Range;

use super::planner::{
    ALIGNMENT, Chunk, F32, LayerBuffers, MAX_STEPS_PER_CHUNK, Planner, StepInput, StepRecord, Stored,
};
use super::tiles::{self, Shape};
use super::{BufferId, BufferRange, Dispatch, LayerKernels, PlanLimits, TileOverride, groups};
use crate::kernels::params::{Step, WaveStep};
use crate::kernels::{COLUMN, CellCode, Kernel, KernelId, LayerLayout, ModelPart, StackPlaces, loop_trips, padded};
use crate::spec::LayerSpec;

/// The most bytes of a stack's matrices: the device has them twice, and reads those of the input once a timestep.
const STACK_BYTES: usize = 4 << 20;
/// The most sequences of a stack whose layers run side by side: more of them fill a device with one layer.
pub(crate) const WAVE_ROWS: usize = 32;

/// Consecutive forward layers that the device has in one piece: plain LSTMs with the same options, of few weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Stack {
    /// Which.
    pub layers: Range<usize>,
    /// Their layouts.
    pub layouts: Vec<LayerLayout>,
    cell: CellCode,
}

impl Stack {
    /// The stacks of a model.
    pub fn all(layers: &[LayerSpec], limits: &PlanLimits) -> Vec<Stack> {
        let of_group = |group: Range<usize>| {
            let layouts = group.clone().map(|l| limits.layout(layers, l)).collect();
            let cell = LayerKernels::new(layers, group.start).cell;
            let same_cell = group.clone().all(|l| LayerKernels::new(layers, l).cell == cell);
            let stack = Stack { layers: group, layouts, cell };
            (same_cell && stack.is_possible(limits)).then_some(stack)
        };
        groups(layers).into_iter().filter_map(of_group).collect()
    }

    fn is_possible(&self, limits: &PlanLimits) -> bool {
        let layouts = &self.layouts;
        let able = |layout: &LayerLayout| {
            let whole = [ModelPart::WeightsIh, ModelPart::WeightsHh].iter().all(|&part| layout.num_ranges(part) == 1);
            tiles::is_plain(layout) && whole && layout.num_directions == 1
        };
        let Some(last) = self.places().pop() else { return false };
        let k4 = |layout: &LayerLayout| [layout.input_k() / 4, layout.k(ModelPart::WeightsHh) / 4];
        let trips = |layout: &LayerLayout| k4(layout).map(loop_trips).iter().sum::<usize>();
        let ends =
            layouts[1..].iter().all(|layout| limits.loop_trips.is_none_or(|most| trips(layout) <= most as usize));
        let bytes = last.matrices_end * COLUMN * size_of::<f32>();
        // The records of a chunk are one binding.
        let records = (MAX_STEPS_PER_CHUNK * layouts.len() + 1) as u64 * ALIGNMENT;
        layouts.len() > 1
            && layouts.iter().all(able)
            && ends
            && bytes <= STACK_BYTES
            && bytes as u64 <= limits.binding_bytes
            && records <= limits.binding_bytes
    }

    /// Where the layers lie in the stack's buffers.
    pub fn places(&self) -> Vec<StackPlaces> {
        StackPlaces::of(&self.layouts)
    }

    /// Whether the layers run side by side for so many sequences. Where single layers take many timesteps in a dispatch,
    /// that needs fewer dispatches still.
    pub fn takes_wave(&self, batch_size: usize, limits: &PlanLimits, fixed: TileOverride) -> bool {
        let sequences = || self.layouts.iter().all(|layout| tiles::takes_sequence(layout, limits, fixed));
        fixed.wave.unwrap_or_else(|| limits.wide && batch_size <= WAVE_ROWS && !sequences())
    }

    /// The variants for few sequences.
    pub fn variants(&self, limits: &PlanLimits) -> [KernelId; 3] {
        [1, 3, WAVE_ROWS].map(|rows| self.variant(rows, limits, TileOverride::default()))
    }

    fn variant(&self, rows: usize, limits: &PlanLimits, fixed: TileOverride) -> KernelId {
        // The input of the first layer is projected.
        let own = self.layouts.iter().map(|layout| layout.k(ModelPart::WeightsHh));
        let k = own.chain(self.layouts[1..].iter().map(LayerLayout::input_k)).max().unwrap_or(0);
        tiles::choose(Kernel::Wave, self.cell, Shape { rows, columns: self.columns(), k }, limits, fixed)
    }

    /// The most columns of a layer.
    fn columns(&self) -> usize {
        self.layouts.iter().map(|layout| padded(layout.hidden_size)).max().unwrap_or(0)
    }
}

impl Planner<'_> {
    /// The stacks whose layers run side by side for this batch.
    pub(super) fn stacks(&self) -> Vec<Stack> {
        let limits = &self.request.limits;
        // States have places for sequences without a timestep too.
        let batch_size = self.schedule.batch_size();
        let is_short = |stack: &Stack| {
            let first = stack.layers.start;
            let products = stack.layers.clone().flat_map(|l| self.wave_products(l, l > first).map(move |p| (l, p)));
            let flops = products.map(|(l, (kernel, columns))| self.flops(l, kernel, batch_size, columns));
            flops.sum::<u64>() <= self.request.dispatch_flops
        };
        let takes = |stack: &Stack| stack.takes_wave(batch_size, limits, self.request.tiles) && is_short(stack);
        Stack::all(self.layers, limits).into_iter().filter(takes).collect()
    }

    /// The products of a timestep of a layer, as kernels that compute the same, with their columns.
    fn wave_products(&self, l: usize, with_input: bool) -> impl Iterator<Item = (Kernel, usize)> + use<> {
        let hidden_size = self.layers[l].hidden_size;
        let input = with_input.then_some((Kernel::InputProjection, hidden_size));
        std::iter::once((Kernel::RecurrentStep, padded(hidden_size))).chain(input)
    }

    /// All timesteps of a chunk of a stack; `stored` is where the output of its last layer goes.
    pub(super) fn plan_wave(
        &mut self,
        chunk: &mut Chunk,
        stack: &Stack,
        gates: BufferId,
        stored: &Stored,
        buffers: &[LayerBuffers],
    ) {
        let (layers, places) = (stack.layers.clone(), stack.places());
        let (num_steps, num_layers) = (chunk.steps.len(), layers.len());
        let input = StepInput::Gates(gates);
        let nothing = Stored::nothing();

        // The records are a uniform for a dispatch's first layer and a storage buffer for all.
        let window = chunk.window(num_steps * num_layers);
        let uniform = chunk.uniform_range(size_of::<WaveStep>());
        let weights = |vectors| BufferRange::from(BufferId::Stack { layer: layers.start, vectors });

        for wave in 0..num_steps + num_layers - 1 {
            let under_way = (wave + 1).saturating_sub(num_steps)..num_layers.min(wave + 1);
            let record_offset_bytes = chunk.next_uniform();
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
                        record_first: ((u64::from(record_offset_bytes) - window.offset_bytes) / F32) as u32,
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
                for (kernel, columns) in self.wave_products(l, below.is_some()) {
                    flops += self.flops(l, kernel, most_active, columns);
                    bytes += self.weight_bytes(l, kernel, columns) + self.row_bytes(l, kernel, most_active, columns);
                }
            }
            // A layer's h alternates with the waves, not with its own timesteps: what it reads of the layer below is there too.
            let parity = (chunk.steps.start + wave) % 2;
            let of_first = &buffers[layers.start];
            let ranges = vec![
                uniform,
                gates.into(),
                weights(false),
                weights(true),
                window,
                of_first.h[parity].into(),
                of_first.h[1 - parity].into(),
                of_first.state.into(),
                y,
            ];
            let bind_group = self.bind_group(Kernel::Wave, ranges);
            let id = stack.variant(rows, &self.request.limits, self.request.tiles);
            let kernel = self.kernel(id);
            let workgroups = [
                (stack.columns() as u32).div_ceil(id.lanes),
                (rows as u32).div_ceil(id.rows_per_workgroup()),
                under_way.len() as u32,
            ];
            chunk.submit.dispatches.push(Dispatch {
                kernel,
                bind_group,
                record_offset_bytes,
                workgroups,
                flops,
                bytes,
            });
        }
        debug_assert_eq!(u64::from(chunk.next_uniform()), window.offset_bytes + window.size_bytes);
    }
}
