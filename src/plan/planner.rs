//! How a plan is made: groups of layers, chunks of timesteps, buffers that fit, dispatches in order.
//!
//! Consecutive forward layers form a group that a chunk of timesteps passes through before the next chunk
//! starts; a layer with a reverse direction is a group of its own, whose forward chunk k runs together with its
//! reverse chunk n − 1 − k. The sequence between two groups lies on the device as a whole, inside a group only
//! a chunk of it does.

use std::collections::HashMap;
use std::ops::Range;

use super::layers::{self, sum_len, summed_part};
use super::planes::{self, Plane};
use super::tiles::Shape;
use super::wave::Stack;
use super::{
    BindGroup, BufferId, BufferRange, Content, Dispatch, GroupNote, LayerKernels, Plan, PlanRequest, Read, Readback,
    RowLayout, RowsAt, ScratchBuffer, StatesAt, Submit, Upload, tiles,
};
use crate::batch::SequenceOutput;
use crate::error::{Error, ErrorKind, Result, bail};
use crate::kernels::params::{CopyParams, DirectionStep, InputParams, Step, WaveStep};
use crate::kernels::{CellCode, Kernel, KernelId, LayerLayout, ModelPart, NONE, loop_trips, padded};
use crate::schedule::Schedule;
use crate::spec::LayerSpec;

pub(super) const F32: u64 = 4;
/// WebGPU's largest alignment of the offset of a binding.
pub(super) const ALIGNMENT: u64 = 256;
const VEC4: u64 = 16;
/// Gates of a chunk are kept to about this size: large enough to fill any device, small enough to stay near
/// its caches.
const GATES_TARGET_BYTES: u64 = 64 << 20;
/// The most timesteps of one submit, so that encoding the next overlaps the run of this one.
pub(super) const MAX_STEPS_PER_CHUNK: usize = 512;

/// A submit takes as long as this many of the longest dispatches: about a second, since some drivers reset a device after
/// two.
const DISPATCHES_PER_SUBMIT: u64 = 20;
/// The most timesteps that one dispatch pools: few enough for drivers that end loops.
pub(super) const POOL_STEPS: usize = 4096;
/// The most rows of an invocation.
const ROWS_OF_A_STEP: usize = 8;
/// Dispatches are split at multiples of the widest workgroup.
const LANES: usize = 64;
/// The fewest rows that an input projection is split into: those of a workgroup of the largest tile.
const FEWEST_ROWS: usize = 32;

/// Plans with the largest chunks that fit.
pub(super) fn plan(request: &PlanRequest<'_>) -> Result<Plan> {
    let schedule = Schedule::new(request.lengths);
    let (fewest, mut rows) = (schedule.active(0), schedule.num_rows());
    // An early group may take what a later one needs; smaller chunks in all of them leave more.
    loop {
        match Planner::new(request, schedule.clone(), rows).run() {
            Err(Refusal { over_budget: true, .. }) if rows > fewest => rows = (rows / 2).max(fewest),
            Err(refusal) => return Err(advise(request, &schedule, refusal.error)),
            Ok(plan) => return Ok(plan),
        }
    }
}

/// Where the rows that enter a layer lie.
#[derive(Debug, Clone)]
pub(super) struct RowSource {
    /// One plane per direction of the layer before; the second is absent for one direction. Both are cut alike.
    pub(super) planes: [Option<Plane>; 2],
    /// Width of a row of a plane in vec4.
    pub(super) k4: usize,
}

/// The buffers of one layer that live through the run.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerBuffers {
    pub(super) h: [BufferId; 2],
    pub(super) state: BufferId,
    /// The first f32 of the layer in `h` and in `state`; the layers of a stack share them.
    pub(super) h_first: usize,
    pub(super) state_first: usize,
    pub(super) is_stacked: bool,
    /// With a second product: its input.
    m: Option<BufferId>,
    /// With layer normalisation: the sums of the gates.
    sums: Option<BufferId>,
    /// f32 from one rank to the next of what lies first in the layer's part of `state`.
    pub(super) c_stride: usize,
    /// In f32 of the whole buffer.
    pub(super) state_h_n: usize,
    pub(super) state_last: Option<usize>,
}

struct Group {
    layers: Range<usize>,
    reverse: &'static [bool],
}

pub(super) struct Planner<'a> {
    pub(super) request: &'a PlanRequest<'a>,
    pub(super) layers: &'a [LayerSpec],
    pub(super) layouts: Vec<LayerLayout>,
    pub(super) layer_kernels: Vec<LayerKernels>,
    /// Whether the steps of a layer sum over its input themselves; known once its group is planned.
    narrow: Vec<bool>,
    /// Stacks whose layers run side by side.
    stacks: Vec<Stack>,
    pub(super) schedule: Schedule,
    max_chunk_rows: usize,
    pub(super) scratch: Vec<ScratchBuffer>,
    kernels: Vec<KernelId>,
    kernel_index: HashMap<KernelId, usize>,
    pub(super) bind_groups: Vec<BindGroup>,
    bind_group_index: HashMap<BindGroup, usize>,
    pub(super) submits: Vec<Submit>,
    pub(super) rows: RowLayout,
    notes: Vec<GroupNote>,
    /// The table of states by rank, if states or last rows move on the device.
    pub(super) state_table: Option<BufferId>,
    /// Pooled rows by rank, and the table that tells where rows are, if rows are pooled.
    pub(super) pool: Option<(BufferId, BufferId)>,
    /// Packed rows whose table a recording has uploaded.
    pub(super) row_tables: Vec<Range<usize>>,
    /// Bytes of uniforms that earlier chunks keep.
    uniform_bytes: u64,
    /// The buffers of chunks: one per role, shared by all groups and grown to the largest.
    slots: HashMap<Slot, usize>,
    /// Whole sequences that no later group reads; the next ones take their place.
    dead_planes: Vec<usize>,
}

/// The role of a buffer that holds a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Slot {
    Gates,
    Input,
    /// The sequence between two layers of a group, by parity of the layer.
    Inner(usize),
    Output,
    RowTable,
    Uniforms,
}

/// Adds to a refusal for a limit how many of the batch's sequences would fit, longest first, and up to which timestep all
/// of them would.
fn advise(request: &PlanRequest<'_>, schedule: &Schedule, error: Error) -> Error {
    // Looking for the numbers plans the batch some forty times; not worth it for a very long one.
    const MOST_STEPS: usize = 100_000;
    let batch_size = schedule.batch_size();
    if !request.advises
        || error.kind() != ErrorKind::DeviceLimit
        || schedule.num_steps() * request.spec.num_layers() > MOST_STEPS
    {
        return error;
    }
    let fits = |lengths: &[usize]| {
        let fewer = Schedule::new(lengths);
        let smallest_chunks = fewer.active(0);
        Planner::new(&PlanRequest { lengths, ..*request }, fewer, smallest_chunks).run().is_ok()
    };
    let longest = |n: u64| schedule.order()[..n as usize].iter().map(|&b| request.lengths[b]).collect::<Vec<_>>();
    let up_to = |steps: u64| request.lengths.iter().map(|&n| n.min(steps as usize)).collect::<Vec<_>>();
    let sequences = largest(batch_size as u64 - 1, |n| n == 0 || fits(&longest(n)));
    let steps = largest(schedule.num_steps() as u64 - 1, |n| n == 0 || fits(&up_to(n)));
    let batch = match sequences {
        0 => "not even the longest sequence alone would fit".to_owned(),
        n => format!("a batch of the {n} longest of these {batch_size} sequences would fit"),
    };
    let message = match steps {
        0 => format!("{error}; {batch}"),
        n => format!("{error}; {batch}, or all {batch_size} up to {n} timesteps"),
    };
    Error::new(ErrorKind::DeviceLimit, message)
}

/// Why there is no plan.
struct Refusal {
    error: Error,
    /// Whether it was for the memory budget, so that smaller chunks may help.
    over_budget: bool,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, over_budget: false }
    }
}

impl<'a> Planner<'a> {
    /// A planner whose chunks have at most `max_chunk_rows` rows.
    fn new(request: &'a PlanRequest<'a>, schedule: Schedule, max_chunk_rows: usize) -> Self {
        let layers = request.spec.layers();
        debug_assert!(schedule.num_rows() > 0, "empty batches never reach the plan");
        // What is pooled is stored too, a chunk at a time.
        let sequence = request.outputs.sequence;
        let all = sequence == SequenceOutput::All || sequence.is_pooled();
        let rows = RowLayout::new(request.spec.last_layer(), all, request.outputs.cells);
        Self {
            request,
            layers,
            layouts: (0..layers.len()).map(|l| request.limits.layout(layers, l)).collect(),
            layer_kernels: (0..layers.len()).map(|l| LayerKernels::new(layers, l)).collect(),
            narrow: vec![false; layers.len()],
            stacks: Vec::new(),
            schedule,
            max_chunk_rows,
            scratch: Vec::new(),
            kernels: Vec::new(),
            kernel_index: HashMap::new(),
            bind_groups: Vec::new(),
            bind_group_index: HashMap::new(),
            submits: Vec::new(),
            rows,
            notes: Vec::new(),
            state_table: None,
            pool: None,
            row_tables: Vec::new(),
            uniform_bytes: 0,
            slots: HashMap::new(),
            dead_planes: Vec::new(),
        }
    }

    fn run(mut self) -> Result<Plan, Refusal> {
        let buffers = self.allocate_states()?;
        let mut source = None;
        for group in self.groups() {
            source = Some(self.plan_group(&group, source, &buffers)?);
        }
        self.read_states(&buffers);
        self.read_in_place();
        if self.request.recorded {
            self.check_budget()?;
        }
        Ok(Plan {
            schedule: self.schedule,
            scratch: self.scratch,
            kernels: self.kernels,
            bind_groups: self.bind_groups,
            submits: self.submits,
            rows: self.rows,
            groups: self.notes,
        })
    }

    fn groups(&self) -> Vec<Group> {
        let group = |layers: Range<usize>| Group { reverse: self.layers[layers.start].direction.is_reverse(), layers };
        layers::groups(self.layers).into_iter().map(group).collect()
    }

    fn allocate(&mut self, label: String, size_bytes: u64, uniform: bool) -> Result<BufferId> {
        let size_bytes = size_bytes.next_multiple_of(VEC4).max(VEC4);
        let limits = &self.request.limits;
        let (other, name) = match uniform {
            // Dynamic offsets are u32.
            true => (u64::from(u32::MAX), "the largest dynamic offset"),
            false => (limits.binding_bytes, "max_storage_buffer_binding_size"),
        };
        let (limit, name) =
            if limits.buffer_bytes <= other { (limits.buffer_bytes, "max_buffer_size") } else { (other, name) };
        if size_bytes > limit {
            bail!(
                DeviceLimit,
                "{name}: {label} needs {size_bytes} bytes for batch_size {}, {} steps; the device has {limit}",
                self.schedule.batch_size(),
                self.schedule.num_steps()
            );
        }
        self.scratch.push(ScratchBuffer { label, size_bytes, uniform, mapped: false });
        Ok(BufferId::Scratch(self.scratch.len() - 1))
    }

    /// The buffer of a role, grown to `size_bytes`.
    fn allocate_slot(&mut self, slot: Slot, size_bytes: u64) -> Result<BufferId> {
        let label = match slot {
            Slot::Gates => "x_gates".to_owned(),
            Slot::Input => "x".to_owned(),
            Slot::Inner(parity) => format!("y_inner{parity}"),
            Slot::Output => "y".to_owned(),
            Slot::RowTable => "row_table".to_owned(),
            Slot::Uniforms => "uniforms".to_owned(),
        };
        let before = self.slots.get(&slot).copied();
        let fresh = self.allocate(label, size_bytes, slot == Slot::Uniforms)?;
        let index = match before {
            Some(index) => {
                let grown = self.scratch.pop().expect("just pushed").size_bytes;
                self.scratch[index].size_bytes = self.scratch[index].size_bytes.max(grown);
                index
            }
            None => self.scratch.len() - 1,
        };
        self.slots.insert(slot, index);
        Ok(if before.is_some() { BufferId::Scratch(index) } else { fresh })
    }

    /// Buffers for a whole sequence, as few as bindings allow.
    fn allocate_plane(&mut self, label: &str, row_bytes: u64) -> Result<Plane> {
        let limit = self.request.limits.buffer_bytes.min(self.request.limits.binding_bytes);
        let cuts = planes::cut(&self.schedule, (limit / row_bytes) as usize);
        let mut buffers = Vec::with_capacity(cuts.len());
        for (i, rows) in cuts.iter().enumerate() {
            let label = if i == 0 { label.to_owned() } else { format!("{label}.{i}") };
            buffers.push(self.allocate_piece(label, rows.len() as u64 * row_bytes)?);
        }
        Ok(Plane::of(buffers, &cuts))
    }

    /// A buffer for a part of a whole sequence: a dead one that has to grow least, or a new one.
    fn allocate_piece(&mut self, label: String, size_bytes: u64) -> Result<BufferId> {
        let fresh = self.allocate(label, size_bytes, false)?;
        let growth = |&i: &usize| size_bytes.saturating_sub(self.scratch[i].size_bytes);
        let Some(index) = self.dead_planes.iter().copied().min_by_key(growth) else { return Ok(fresh) };
        self.dead_planes.retain(|&i| i != index);
        let grown = self.scratch.pop().expect("just pushed");
        let reused = &mut self.scratch[index];
        reused.label = format!("{}+{}", reused.label, grown.label);
        reused.size_bytes = reused.size_bytes.max(grown.size_bytes);
        Ok(BufferId::Scratch(index))
    }

    /// Bytes of all buffers if the slots have at least these sizes.
    fn bytes_with(&self, slots: &[(Slot, u64)]) -> u64 {
        let now: u64 = self.scratch.iter().map(|b| b.size_bytes).sum();
        let growth = slots.iter().filter(|(_, size)| *size > 0).map(|(slot, size)| {
            let has = self.slots.get(slot).map_or(0, |&i| self.scratch[i].size_bytes);
            size.next_multiple_of(VEC4).max(VEC4).saturating_sub(has)
        });
        now + growth.sum::<u64>()
    }

    /// State buffers of every layer, with their initial content in the first submit.
    fn allocate_states(&mut self) -> Result<Vec<LayerBuffers>> {
        let batch = self.schedule.batch_size();
        let mut first = Submit::default();
        let mut buffers: Vec<LayerBuffers> = Vec::with_capacity(self.layers.len());
        self.stacks = self.stacks();
        for (l, layer) in self.layers.iter().enumerate() {
            let rows = layer.num_directions() * batch;
            let layout = self.layouts[l];
            let (h_width, m_width) = (padded(layer.h_size()), padded(layer.hidden_size));
            let stack = self.stacks.iter().map(|stack| stack.layers.clone()).find(|layers| layers.contains(&l));
            // The layers of a stack share the buffers of the first.
            let before = stack.as_ref().filter(|layers| layers.start < l).map(|_| buffers[l - 1]);
            // What is carried from one half of a GRU's step to the other lies where an LSTM has c.
            let c_width = if layer.cell.has_cell_state() || layout.has_inner { m_width } else { 0 };
            let last = self.request.outputs.sequence == SequenceOutput::Last && l + 1 == self.layers.len();
            let h_len = |layer: &LayerSpec| rows * padded(layer.h_size());
            let (h_first, state_first) = before.map_or((0, 0), |before| {
                (before.h_first + h_len(&self.layers[l - 1]), before.state_h_n + h_len(&self.layers[l - 1]))
            });
            let state_h_n = state_first + rows * c_width;
            let state_last = last.then_some(state_h_n + rows * h_width);
            let state_end = state_h_n + rows * h_width * if last { 2 } else { 1 };
            let bytes = |len: usize| len as u64 * F32;
            let (h, state) = match before {
                Some(before) => (before.h, before.state),
                None => {
                    let layers = stack.clone().unwrap_or(l..l + 1);
                    let all_h: usize = self.layers[layers.clone()].iter().map(h_len).sum();
                    let all_c: usize = layers.clone().map(|l| rows * padded(self.layers[l].hidden_size)).sum();
                    // A stack's `last` belongs to its last layer.
                    let asked_last = self.request.outputs.sequence == SequenceOutput::Last;
                    let with_last = asked_last && layers.end == self.layers.len();
                    let last_len = if with_last { h_len(&self.layers[layers.end - 1]) } else { 0 };
                    let state_len = if stack.is_some() { all_c + all_h + last_len } else { state_end };
                    let h_a = self.allocate(format!("h_a.l{l}"), bytes(all_h), false)?;
                    let h_b = self.allocate(format!("h_b.l{l}"), bytes(all_h), false)?;
                    ([h_a, h_b], self.allocate(format!("state.l{l}"), bytes(state_len), false)?)
                }
            };
            let m = match layout.has_inner {
                true => Some(self.allocate(format!("m.l{l}"), bytes(rows * m_width), false)?),
                false => None,
            };
            let sums = match layout.is_normalized() {
                true => Some(self.allocate(format!("sums.l{l}"), (rows * layer.hidden_size) as u64 * VEC4, false)?),
                false => None,
            };
            // Either way `last` starts as zero: nothing else writes it for a sequence of length 0.
            match self.request.initial {
                Some(StatesAt::Host) => first.uploads.push(Upload::InitialState {
                    layer: l,
                    c_len: state_h_n - state_first,
                    h,
                    h_places: (h_first, h_len(layer)),
                    state,
                    state_places: (state_first, state_end - state_first),
                }),
                _ if before.is_some() => {}
                // What is gathered on the device covers all that a sequence with a step reads.
                Some(_) if self.request.lengths.iter().all(|&n| n > 0) => {}
                Some(_) => first.uploads.push(Upload::Clear { buffer: state }),
                None => first.uploads.extend([h[0], h[1], state].map(|buffer| Upload::Clear { buffer })),
            }
            buffers.push(LayerBuffers {
                h,
                state,
                h_first,
                state_first,
                is_stacked: stack.is_some(),
                m,
                sums,
                c_stride: c_width,
                state_h_n,
                state_last,
            });
        }
        if self.uses_state_table() {
            let buffer = self.allocate("state_table".into(), 3 * batch as u64 * F32, false)?;
            self.state_table = Some(buffer);
            first.uploads.push(Upload::StateTable { buffer });
        }
        if self.request.outputs.sequence.is_pooled() {
            let last = self.request.spec.last_layer();
            let len = last.num_outputs() * batch * padded(last.h_size());
            let pooled = self.allocate("pooled".into(), len as u64 * F32, false)?;
            let table_len = batch + self.schedule.num_steps() + 1;
            let buffer = self.allocate("pool_table".into(), table_len as u64 * F32, false)?;
            self.pool = Some((pooled, buffer));
            first.uploads.push(Upload::PoolTable { buffer });
        }
        self.submits.push(first);
        Ok(buffers)
    }

    /// Plans all chunks of a group; returns where its output lies.
    fn plan_group(
        &mut self,
        group: &Group,
        source: Option<RowSource>,
        buffers: &[LayerBuffers],
    ) -> Result<RowSource, Refusal> {
        let limits = self.request.limits;
        let whole = group.reverse != [false];
        let total_rows = self.schedule.num_rows();
        let last_layer = self.layers.len() - 1;
        let is_last = group.layers.end == self.layers.len();

        for l in group.layers.clone() {
            self.check_loops(l)?;
            self.check_columns(l)?;
        }

        // The sequence that enters and leaves the group: as a whole, or a chunk at a time.
        let is_first = source.is_none();
        let input_k4 = source.as_ref().map_or(padded(self.layers[0].input_size) / 4, |source| source.k4);
        let input_row = input_k4 as u64 * VEC4;
        let whole_input = match source {
            Some(source) => Some(source.planes),
            None if whole => Some([Some(self.allocate_plane("x", input_row)?), None]),
            None => None,
        };
        let (layers, last_rows) = (self.layers, self.rows);
        let out_layout = |l: usize| {
            if l == last_layer { last_rows } else { RowLayout::new(&layers[l], true, false) }
        };
        let out_stride = out_layout(group.layers.end - 1).stride;
        // A forward group that another group follows leaves its whole output.
        let out_whole = whole || !is_last;
        let mut whole_output = [None, None];
        if out_whole && out_stride > 0 {
            for (d, plane) in whole_output.iter_mut().enumerate().take(group.reverse.len()) {
                let label = format!("y{d}.l{}", group.layers.end - 1);
                *plane = Some(self.allocate_plane(&label, out_stride as u64 * F32)?);
            }
        }
        let num_pieces = |planes: &[Option<Plane>; 2]| planes.iter().flatten().map(|p| p.pieces().len()).max();
        let input_pieces = whole_input.as_ref().and_then(num_pieces).unwrap_or(1);
        let output_pieces = num_pieces(&whole_output).unwrap_or(1);
        let stack = self.stacks.iter().find(|stack| stack.layers == group.layers).cloned();
        let is_stack = stack.is_some();
        for l in group.layers.clone() {
            // Inside a group the input is a buffer of the chunk.
            let in_one_piece = l > group.layers.start || input_pieces == 1;
            self.narrow[l] =
                !is_stack && in_one_piece && tiles::takes_narrow(&self.layouts[l], &limits, self.request.tiles);
        }

        // Bytes that one row of a chunk costs, and the widest of its bindings.
        let directions = group.reverse.len() as u64;
        let gates_of = |l: usize| directions * self.layouts[l].columns as u64 * VEC4;
        let has_gates = |&l: &usize| !(self.narrow[l] || is_stack && l > group.layers.start);
        let gates_row = group.layers.clone().filter(has_gates).map(gates_of).max().unwrap_or(0);
        // Chunks are as long whether gates are stored or not, so that uploads of one overlap with another.
        let widest_gates = group.layers.clone().map(gates_of).max().expect("a group has a layer");
        // The layers of a stack hand on their h.
        let inner: Vec<usize> = group.layers.clone().filter(|&l| !is_stack && l + 1 < group.layers.end).collect();
        let mut inner_row = [0u64; 2];
        for &l in &inner {
            inner_row[l % 2] = inner_row[l % 2].max(out_layout(l).stride as u64 * F32);
        }
        let out_row = if out_whole { 0 } else { out_stride as u64 * F32 };
        let row_table = self.uses_table() && (is_first || is_last);
        // A whole sequence goes through the table at once; a recording keeps the tables of all chunks.
        let keeps_all = whole || self.request.recorded;
        let table_bytes =
            |rows: u64| if row_table { F32 * if keeps_all { total_rows as u64 } else { rows } } else { 0 };
        let record_bytes = u64::from(self.record_bytes());
        let num_steps = self.schedule.num_steps().min(MAX_STEPS_PER_CHUNK);
        // One record per dispatch: of a step, of an input projection. Immediates need no room.
        let of_steps = |l: usize| {
            let many = is_stack || self.takes_sequence(l);
            let kernels = self.layer_kernels[l].step.iter().filter(|(k, _)| many || !self.takes_immediates(*k));
            let batch = self.schedule.active(0);
            let of_input = |kernel: Kernel| if self.narrow[l] { kernel.narrow().unwrap_or(kernel) } else { kernel };
            kernels.map(|&(kernel, columns)| self.column_runs(l, of_input(kernel), columns, batch).len()).sum::<usize>()
        };
        let step_records: usize = group.layers.clone().map(of_steps).sum();
        let input_runs = group.layers.clone().map(|l| {
            let (kernel, columns) = self.layer_kernels[l].input;
            let (column_runs, rows_per_run) = self.input_runs(l, kernel, columns);
            (column_runs.len(), rows_per_run)
        });
        let input_runs: Vec<(usize, usize)> = input_runs.collect();
        let input_records = |rows: usize| {
            let of_layer = |(columns, per_run): &(usize, usize)| columns * (rows.div_ceil(*per_run) + input_pieces);
            group.reverse.len() * input_runs.iter().map(of_layer).sum::<usize>()
        };
        let mut copies = match row_table {
            true => 5 * (total_rows / limits.workgroups as usize + input_pieces + output_pieces),
            false => 0,
        };
        if self.state_table.is_some() && (is_first || is_last) {
            // Per cell: both buffers of h, the final h, c; and at the end h and c, and the last rows.
            let per_copy = self.schedule.batch_size() / limits.workgroups as usize + 1;
            copies += (6 * self.request.spec.num_cells() + 2) * per_copy;
        }
        copies *= self.most_windows();
        if self.pool.is_some() && is_last {
            copies += 2
                * (output_pieces + self.schedule.num_steps() / POOL_STEPS + 1)
                * (self.schedule.batch_size() / limits.workgroups as usize + 1);
        }
        // Every timestep has a row, so a chunk has at most as many steps as rows.
        let records = |rows: u64| step_records * num_steps.min(rows as usize) + input_records(rows as usize) + copies;
        let slots = |rows: u64| {
            [
                (Slot::Gates, rows * gates_row),
                (Slot::Input, if whole_input.is_none() { rows * input_row } else { 0 }),
                (Slot::Inner(0), rows * inner_row[0]),
                (Slot::Inner(1), rows * inner_row[1]),
                (Slot::Output, rows * out_row),
                (Slot::RowTable, table_bytes(rows)),
                (Slot::Uniforms, records(rows) as u64 * record_bytes),
            ]
        };
        // There may be no such buffer: the input and the output as a whole, and no gates.
        let widest = slots(1)[..5].iter().map(|(_, bytes)| *bytes).max().unwrap_or(0).max(1);

        let active = self.schedule.active(0) as u64;
        let by_binding = limits.binding_bytes.min(limits.buffer_bytes) / widest;
        let by_workgroups = u64::from(limits.workgroups) * u64::from(tiles::rows_per_dispatch(self.request.tiles));
        let fits = |rows: u64| self.bytes_with(&slots(rows)) <= limits.budget_bytes;
        let by_budget = largest(total_rows as u64, fits);
        let hard = by_binding.min(by_budget).min(by_workgroups);
        if hard < active {
            let (name, has, needs) = if by_binding < active {
                ("max_storage_buffer_binding_size", limits.binding_bytes, active * widest)
            } else if by_budget < active {
                ("memory budget", limits.budget_bytes, self.bytes_with(&slots(active)))
            } else {
                ("max_compute_workgroups_per_dimension", by_workgroups, active)
            };
            let message = format!(
                "{name}: layer {} with {active} sequences needs {needs} {} for chunks of one timestep, the limit is {has}",
                group.layers.start,
                if name.starts_with("max_compute") { "rows" } else { "bytes" },
            );
            let error = Error::new(ErrorKind::DeviceLimit, message);
            return Err(Refusal { error, over_budget: name == "memory budget" });
        }
        let by_gates = (GATES_TARGET_BYTES / widest_gates).max(active);
        let row_flops: u64 = group.layers.clone().map(|l| directions * self.row_flops(l)).sum();
        let by_time = (self.request.dispatch_flops.saturating_mul(DISPATCHES_PER_SUBMIT) / row_flops).max(active);
        let capacity = hard.min(by_gates).min(by_time).min(self.max_chunk_rows as u64) as usize;
        let limited_by = match capacity as u64 {
            n if n < by_gates.min(by_time).min(hard) => "smaller chunks leave memory for later layers",
            n if n == by_time => "a submit is kept to about a second",
            n if n == by_gates => "a chunk is kept to as many rows as have 64 MiB of gates",
            n if n == by_budget => "more would exceed the memory budget",
            n if n == by_binding => "more would exceed a binding",
            _ => "more would exceed the workgroups of a dispatch",
        };
        let chunks = self.cut(group.reverse, capacity);
        let limited_by = match chunks.len() {
            1 => "all of it fits",
            _ if chunks[0].len() == MAX_STEPS_PER_CHUNK => "a submit has at most 512 timesteps",
            _ => limited_by,
        };
        let capacity = chunks
            .iter()
            .flat_map(|c| group.reverse.iter().map(|&r| self.direction_rows(c, r).len()))
            .max()
            .expect("a batch with a valid row has a chunk");
        let note = GroupNote { layers: group.layers.clone(), whole, chunks: chunks.len(), rows: capacity, limited_by };
        self.notes.push(note);

        let mut slot = |slot: Slot, size_bytes: u64| match size_bytes {
            0 => Ok(None),
            _ => self.allocate_slot(slot, size_bytes).map(Some),
        };
        let mut slot_buffers = Vec::new();
        for (role, size_bytes) in slots(capacity as u64) {
            slot_buffers.push(slot(role, size_bytes)?);
        }
        let gates = slot_buffers[0];
        let inner_buffers = [slot_buffers[2], slot_buffers[3]];
        let table = slot_buffers[5];
        let uniforms = slot_buffers[6].expect("there are input projections, or room for their records");
        let record_bytes = self.record_bytes();

        for (k, steps) in chunks.iter().enumerate() {
            let mut chunk = Chunk {
                submit: Submit::default(),
                uniforms,
                uniforms_first: self.uniform_bytes,
                uniform_bytes: Vec::new(),
                record_bytes,
                steps: steps.clone(),
                table_by_row: keeps_all,
                capacity,
                buffer_bytes: limits.buffer_bytes,
            };
            // A buffer of a chunk holds the rows of its only direction.
            let chunk_rows = self.schedule.rows(steps.clone());
            let of_chunk = |buffer: Option<BufferId>| [buffer.map(|b| Plane::one(b, chunk_rows.clone())), None];
            let planes = whole_input.clone().unwrap_or_else(|| of_chunk(slot_buffers[1]));
            let mut rows_in = RowSource { planes, k4: input_k4 };
            let output = if out_whole { whole_output.clone() } else { of_chunk(slot_buffers[4]) };
            if is_first && k == 0 {
                self.plan_initial(&mut chunk, buffers);
            }
            if is_first && (k == 0 || !whole) {
                self.plan_input(&mut chunk, &rows_in, table);
            }
            if let Some(stack) = &stack {
                let gates = gates.expect("allocated for the first layer");
                self.plan_input_projection(&mut chunk, group.layers.start, group.reverse, &rows_in, gates);
                let stored = Stored { planes: output.clone(), layout: out_layout(group.layers.end - 1) };
                self.plan_wave(&mut chunk, stack, gates, &stored, buffers);
            }
            for l in group.layers.clone().filter(|_| !is_stack) {
                let layout = out_layout(l);
                let is_end = l + 1 == group.layers.end;
                let planes = if is_end { output.clone() } else { of_chunk(inner_buffers[l % 2]) };
                let stored = Stored { planes, layout };
                self.plan_layer(&mut chunk, l, group.reverse, &rows_in, gates, &stored, &buffers[l]);
                rows_in = RowSource { planes: stored.planes, k4: padded(self.layers[l].h_size()) / 4 };
            }
            if is_last {
                let end = k + 1 == chunks.len();
                if end || !out_whole {
                    self.plan_pool(&mut chunk, &output);
                    self.plan_output(&mut chunk, &output, table);
                }
                if end {
                    self.plan_finals(&mut chunk, buffers);
                }
            }
            self.finish_chunk(chunk)?;
        }
        let read = whole_input.into_iter().flatten().flatten();
        let read: Vec<usize> =
            read.flat_map(|p| p.pieces().iter().filter_map(|p| p.buffer.scratch()).collect::<Vec<_>>()).collect();
        self.dead_planes.extend(read);
        Ok(RowSource { planes: whole_output, k4: padded(self.layers[group.layers.end - 1].h_size()) / 4 })
    }

    /// Floating-point operations of the sums of a kernel of layer `l` over some rows and columns.
    pub(super) fn flops(&self, l: usize, kernel: Kernel, rows: usize, columns: usize) -> u64 {
        let k = self.k(l, kernel);
        // A column is four sums of k products.
        8 * rows as u64 * columns as u64 * k as u64
    }

    /// Products in the sums of a kernel of layer `l`, those over a narrow input included.
    fn k(&self, l: usize, kernel: Kernel) -> usize {
        let layout = &self.layouts[l];
        let narrow = if kernel.is_narrow() { layout.input_k() } else { 0 };
        narrow + summed_part(kernel).map_or(0, |part| layout.k(part))
    }

    /// Bytes that a kernel of layer `l` reads of its weights, each once.
    pub(super) fn weight_bytes(&self, l: usize, kernel: Kernel, columns: usize) -> u64 {
        let Some(part) = summed_part(kernel) else { return 0 };
        let layout = &self.layouts[l];
        let floats = |k: usize| 4 * F32 * columns as u64 * k as u64;
        let narrow = if kernel.is_narrow() { floats(layout.input_k() + 1) } else { 0 };
        narrow + if layout.is_halved(part) { floats(layout.k(part)) / 2 } else { floats(layout.k(part)) }
    }

    /// Bytes of the rows that a kernel of layer `l` reads and writes: what it sums over, the gates, and in a timestep the
    /// states before and after and the output.
    pub(super) fn row_bytes(&self, l: usize, kernel: Kernel, rows: usize, columns: usize) -> u64 {
        let projects = matches!(kernel, Kernel::InputProjection | Kernel::InputProjectionSum);
        let of_column = if projects || kernel.is_narrow() { 4 } else { 8 };
        F32 * rows as u64 * (self.k(l, kernel) + of_column * columns) as u64
    }

    /// Floating-point operations of a row in one direction of layer `l`, its step included; at least 1.
    fn row_flops(&self, l: usize) -> u64 {
        let LayerKernels { input, step, .. } = &self.layer_kernels[l];
        let kernels = std::iter::once(input).chain(step);
        kernels.map(|&(kernel, columns)| self.flops(l, kernel, 1, columns)).sum::<u64>().max(1)
    }

    /// The dispatches that a kernel of layer `l` with `columns` columns takes for `rows` rows at once: at least one per
    /// range of its weights, as many as it takes for none to be long.
    fn column_runs(&self, l: usize, kernel: Kernel, columns: usize, rows: usize) -> Vec<ColumnRun> {
        let Some(part) = summed_part(kernel) else {
            return vec![ColumnRun { range: 0, weights: 0..0, columns: 0..columns }];
        };
        let layout = &self.layouts[l];
        let most = self.request.dispatch_flops / self.flops(l, kernel, rows, 1).max(1);
        let most = (usize::try_from(most).unwrap_or(usize::MAX) / LANES * LANES).max(LANES);
        let num_ranges = layout.num_ranges(part);
        let mut runs = Vec::with_capacity(num_ranges);
        for range in 0..num_ranges {
            let weights = layout.range(part, range);
            // The last range has the columns that only pad a row too.
            let end = if range + 1 == num_ranges { columns } else { weights.end };
            for start in (weights.start..end).step_by(most) {
                let columns = start..end.min(start.saturating_add(most));
                runs.push(ColumnRun { range, weights: weights.clone(), columns });
            }
        }
        runs
    }

    /// The columns of the dispatches of an input projection, and the most rows of each.
    fn input_runs(&self, l: usize, kernel: Kernel, columns: usize) -> (Vec<ColumnRun>, usize) {
        let column_runs = self.column_runs(l, kernel, columns, FEWEST_ROWS);
        let widest = column_runs.iter().map(|run| run.columns.len()).max().unwrap_or(1);
        let rows = self.request.dispatch_flops / self.flops(l, kernel, 1, widest).max(1);
        let rows = usize::try_from(rows).unwrap_or(usize::MAX) / FEWEST_ROWS * FEWEST_ROWS;
        (column_runs, rows.max(FEWEST_ROWS))
    }

    fn uses_table(&self) -> bool {
        self.request.input == RowsAt::Device || self.request.output == RowsAt::Device
    }

    fn uses_state_table(&self) -> bool {
        let on_device = |states: StatesAt| states != StatesAt::Host;
        self.request.initial.is_some_and(on_device)
            || (self.request.outputs.final_state && on_device(self.request.finals))
            || (self.request.output == RowsAt::Device
                && (self.request.outputs.sequence == SequenceOutput::Last || self.request.outputs.sequence.is_pooled()))
    }

    /// What a recording keeps of every chunk is known only at its end.
    fn check_budget(&self) -> Result<(), Refusal> {
        let (needs, limit) = (self.bytes_with(&[]), self.request.limits.budget_bytes);
        if needs > limit {
            let message = format!(
                "memory budget: recording {} timesteps of {} sequences needs {needs} bytes, the limit is {limit}",
                self.schedule.num_steps(),
                self.schedule.batch_size()
            );
            return Err(Refusal { error: Error::new(ErrorKind::DeviceLimit, message), over_budget: true });
        }
        Ok(())
    }

    /// Bytes from one uniform record to the next.
    fn record_bytes(&self) -> u32 {
        let largest = size_of::<WaveStep>().max(size_of::<InputParams>()).max(size_of::<CopyParams>()) as u32;
        largest.next_multiple_of(self.request.limits.uniform_alignment)
    }

    fn check_loops(&self, l: usize) -> Result<()> {
        let layout = &self.layouts[l];
        // A step that sums over a narrow input does so for each of its rows.
        let narrow = if layout.is_narrow() { loop_trips(ROWS_OF_A_STEP * layout.input_k() / 4) } else { 0 };
        let k4 = layout.longest_sum() / 4;
        match self.request.limits.loop_trips {
            Some(limit) if loop_trips(k4) + narrow > limit as usize => bail!(
                Unsupported,
                "layer {l}: a sum over {} values needs {} loop trips, but the driver ends loops after {limit} \
                 without an error; a newer driver or another device would help",
                k4 * 4,
                loop_trips(k4) + narrow
            ),
            _ => Ok(()),
        }
    }

    /// The variant of a kernel for a shape.
    pub(super) fn tile(&self, kernel: Kernel, cell: CellCode, shape: Shape) -> KernelId {
        tiles::choose(kernel, cell, shape, &self.request.limits, self.request.tiles)
    }

    fn check_columns(&self, l: usize) -> Result<()> {
        let LayerKernels { cell, input, step } = &self.layer_kernels[l];
        for &(kernel, columns) in std::iter::once(input).chain(step) {
            let shape = Shape { rows: 1, columns, k: sum_len(&self.layouts[l], kernel) };
            let lanes = self.tile(kernel, *cell, shape).lanes;
            let workgroups = (columns as u64).div_ceil(u64::from(lanes));
            if workgroups > u64::from(self.request.limits.workgroups) {
                bail!(
                    DeviceLimit,
                    "max_compute_workgroups_per_dimension: hidden_size {} of layer {l} needs {workgroups}, the device has {}",
                    self.layers[l].hidden_size,
                    self.request.limits.workgroups
                );
            }
        }
        Ok(())
    }

    /// Cuts the timesteps into chunks of at most `capacity` rows in each direction.
    fn cut(&self, reverse: &[bool], capacity: usize) -> Vec<Range<usize>> {
        let steps = self.schedule.num_steps();
        let mut chunks: Vec<Range<usize>> = Vec::new();
        let mut start = 0;
        for s in 0..steps {
            let next = start..s + 1;
            let too_long = next.len() > MAX_STEPS_PER_CHUNK
                || reverse.iter().any(|&r| self.direction_rows(&next, r).len() > capacity);
            if too_long {
                chunks.push(start..s);
                start = s;
            }
        }
        chunks.push(start..steps);
        chunks
    }

    /// The timesteps that a direction walks in the chunk of steps `steps`, ascending.
    fn direction_steps(&self, steps: &Range<usize>, reverse: bool) -> Range<usize> {
        let n = self.schedule.num_steps();
        if reverse { n - steps.end..n - steps.start } else { steps.clone() }
    }

    fn direction_rows(&self, steps: &Range<usize>, reverse: bool) -> Range<usize> {
        self.schedule.rows(self.direction_steps(steps, reverse))
    }

    pub(super) fn kernel(&mut self, id: KernelId) -> usize {
        *self.kernel_index.entry(id).or_insert_with(|| {
            self.kernels.push(id);
            self.kernels.len() - 1
        })
    }

    /// Whether a kernel gets its record as immediates.
    fn takes_immediates(&self, kernel: Kernel) -> bool {
        self.request.limits.immediates && kernel.takes_immediates()
    }

    pub(super) fn bind_group(&mut self, kernel: Kernel, ranges: Vec<BufferRange>) -> usize {
        let as_immediates = usize::from(self.takes_immediates(kernel));
        debug_assert_eq!(ranges.len(), kernel.bindings().len() - as_immediates);
        let group = BindGroup { kernel, ranges };
        if let Some(&index) = self.bind_group_index.get(&group) {
            return index;
        }
        self.bind_groups.push(group.clone());
        self.bind_group_index.insert(group, self.bind_groups.len() - 1);
        self.bind_groups.len() - 1
    }

    /// One layer of one chunk: the input projection of each direction, then the steps.
    #[allow(clippy::too_many_arguments, reason = "the parts of a layer, named at the only call")]
    fn plan_layer(
        &mut self,
        chunk: &mut Chunk,
        l: usize,
        reverse: &[bool],
        input: &RowSource,
        gates: Option<BufferId>,
        stored: &Stored,
        buffers: &LayerBuffers,
    ) {
        let from = match (self.narrow[l], &input.planes[0], gates) {
            (true, Some(rows), _) => StepInput::Rows { plane: rows.clone(), k4: input.k4 },
            (_, _, gates) => {
                let gates = gates.expect("allocated for layers that are not narrow");
                self.plan_input_projection(chunk, l, reverse, input, gates);
                StepInput::Gates(gates)
            }
        };
        if self.takes_sequence(l) {
            self.plan_sequence(chunk, l, reverse, &from, stored, buffers);
        } else {
            for s in chunk.steps.clone() {
                self.plan_step(chunk, l, s, reverse, &from, stored, buffers);
            }
        }
    }

    /// The input's share of all gates of a chunk.
    fn plan_input_projection(
        &mut self,
        chunk: &mut Chunk,
        l: usize,
        reverse: &[bool],
        input: &RowSource,
        gates: BufferId,
    ) {
        let layout = self.layouts[l];
        let cell = self.layer_kernels[l].cell;
        let (input_kernel, columns) = self.layer_kernels[l].input;
        let k4 = input.k4 as u32;
        for (d, &r) in reverse.iter().enumerate() {
            let rows = self.direction_rows(&chunk.steps, r);
            let [x0, x1] = &input.planes;
            let x0 = x0.as_ref().expect("a layer has an input plane");
            for (piece, part) in x0.within(rows.clone()) {
                let from = &x0.pieces()[piece];
                let x1_buffer = x1.as_ref().map_or(from.buffer, |x1| x1.pieces()[piece].buffer);
                let shape = Shape { rows: part.len(), columns, k: sum_len(&layout, input_kernel) };
                let kernel = self.tile(input_kernel, cell, shape);
                let index = self.kernel(kernel);
                let (column_runs, rows_per_run) = self.input_runs(l, input_kernel, columns);
                for (run, row_run) in column_runs.iter().flat_map(|run| {
                    let starts = part.clone().step_by(rows_per_run);
                    starts.map(move |start| (run, start..part.end.min(start + rows_per_run)))
                }) {
                    let first = ((row_run.start - from.rows.start) * input.k4) as u32;
                    let params = InputParams {
                        rows: row_run.len() as u32,
                        columns: columns as u32,
                        x0_first: first,
                        x0_k4: k4,
                        x1_first: first,
                        x1_k4: if x1.is_some() { k4 } else { 0 },
                        gates_first: ((d * chunk.capacity + row_run.start - rows.start) * columns) as u32,
                        x0_stride: k4,
                        x1_stride: k4,
                        column_first: run.columns.start as u32,
                        column_end: run.columns.end as u32,
                        weight_first: run.weights.start as u32,
                        weight_columns: run.weights.len() as u32,
                    };
                    let model = |part, range, bytes: Range<u64>| BufferRange {
                        buffer: BufferId::Model { layer: l, part, range },
                        offset_bytes: bytes.start,
                        size_bytes: bytes.end - bytes.start,
                    };
                    let record_offset_bytes = chunk.push_uniform(bytemuck::bytes_of(&params));
                    let ranges = vec![
                        chunk.uniform_range(size_of::<InputParams>()),
                        from.buffer.into(),
                        x1_buffer.into(),
                        model(
                            ModelPart::WeightsIh,
                            run.range,
                            layout.on_device(ModelPart::WeightsIh, layout.weights_ih(run.range, d)),
                        ),
                        model(ModelPart::Bias, 0, layout.bias(d)),
                        gates.into(),
                    ];
                    let bind_group = self.bind_group(input_kernel, ranges);
                    let workgroups = [
                        (run.columns.len() as u32).div_ceil(kernel.lanes),
                        params.rows.div_ceil(kernel.rows_per_workgroup()),
                        1,
                    ];
                    let flops = self.flops(l, input_kernel, row_run.len(), run.columns.len());
                    let bytes = self.weight_bytes(l, input_kernel, run.columns.len())
                        + self.row_bytes(l, input_kernel, row_run.len(), run.columns.len());
                    chunk.submit.dispatches.push(Dispatch {
                        kernel: index,
                        bind_group,
                        record_offset_bytes,
                        workgroups,
                        flops,
                        bytes,
                    });
                }
            }
        }
    }

    /// What timestep `s` of layer `l` needs to know, but for its columns.
    #[allow(clippy::too_many_arguments, reason = "the parts of a layer, named at its three calls")]
    pub(super) fn step_record(
        &self,
        chunk: &Chunk,
        l: usize,
        s: usize,
        reverse: &[bool],
        input: &StepInput,
        stored: &Stored,
        buffers: &LayerBuffers,
    ) -> StepRecord {
        let layer = self.layers[l];
        let batch_size = self.schedule.batch_size() as u32;
        let mut directions = [bytemuck::Zeroable::zeroed(); 2];
        let mut most_active = 0;
        let dummy = |half: u64| BufferRange { buffer: BufferId::Dummy, offset_bytes: half * 256, size_bytes: 256 };
        let mut y = [dummy(0), dummy(1)];
        for (d, &r) in reverse.iter().enumerate() {
            let t = if r { self.schedule.num_steps() - 1 - s } else { s };
            let row = self.schedule.rows(t..t).start;
            let first_row = self.direction_rows(&chunk.steps, r).start;
            let active = self.schedule.active(t);
            let still_active = self.schedule.active(t + 1) as u32;
            most_active = most_active.max(active);
            let stored = stored.planes[d].as_ref().map(|plane| plane.at(row));
            if let Some(piece) = stored {
                y[d] = piece.buffer.into();
            }
            let (gates_first, x_k4) = match input {
                StepInput::Gates(_) => ((d * chunk.capacity + row - first_row) * self.layouts[l].columns, 0),
                StepInput::Rows { plane, k4 } => ((row - plane.at(row).rows.start) * k4, *k4),
            };
            directions[d] = DirectionStep {
                gates_first: gates_first as u32,
                x_k4: x_k4 as u32,
                num_active: active as u32,
                y_row: stored.map_or(0, |piece| (row - piece.rows.start) as u32),
                // Forward sequences end at their last valid step; reverse ones all end at t = 0.
                final_from: match (r, t) {
                    (false, _) => still_active,
                    (true, 0) => 0,
                    (true, _) => batch_size,
                },
                last_from: if buffers.state_last.is_some() { still_active } else { batch_size },
                ..bytemuck::Zeroable::zeroed()
            };
        }
        let column = |c: Option<usize>| c.map_or(NONE, |c| c as u32);
        let step = Step {
            hidden_size: layer.hidden_size as u32,
            hidden_stride: padded(layer.hidden_size) as u32,
            h_stride: padded(layer.h_size()) as u32,
            batch_size,
            y_stride: stored.layout.stride as u32,
            y_h: column(stored.layout.h_column),
            y_c: column(stored.layout.c_column),
            state_h_n: buffers.state_h_n as u32,
            state_last: buffers.state_last.unwrap_or(0) as u32,
            directions,
            ..bytemuck::Zeroable::zeroed()
        };
        StepRecord { step, y, most_active }
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of a layer, named at the only call")]
    fn plan_step(
        &mut self,
        chunk: &mut Chunk,
        l: usize,
        s: usize,
        reverse: &[bool],
        input: &StepInput,
        stored: &Stored,
        buffers: &LayerBuffers,
    ) {
        let StepRecord { step, y, most_active } = self.step_record(chunk, l, s, reverse, input, stored, buffers);
        let uniform = chunk.uniform_range(size_of::<Step>());
        let (h_prev, h_next) = (buffers.h[s % 2], buffers.h[(s + 1) % 2]);

        // Where a second product follows, the first half leaves its input.
        let next = || BufferRange::from(buffers.m.unwrap_or(h_next));
        let m = || BufferRange::from(buffers.m.expect("allocated for a second product"));
        let sums = || BufferRange::from(buffers.sums.expect("allocated for layer normalisation"));
        let (gates, state) = (BufferRange::from(input.buffer()), BufferRange::from(buffers.state));
        let (h_prev, h_next) = (BufferRange::from(h_prev), BufferRange::from(h_next));
        let kernels = self.layer_kernels[l].clone();
        let runs = kernels.step.into_iter().flat_map(|(kernel, columns)| {
            let kernel = input.kernel(kernel);
            let runs = self.column_runs(l, kernel, columns, most_active);
            runs.into_iter().map(move |run| (kernel, columns, run))
        });
        for (kernel, columns, run) in runs.collect::<Vec<_>>() {
            let summed = summed_part(kernel);
            let model = |part| {
                let range = if summed == Some(part) { run.range } else { 0 };
                BufferRange::from(BufferId::Model { layer: l, part, range })
            };
            let step = Step {
                column_first: run.columns.start as u32,
                column_end: run.columns.end as u32,
                weight_first: run.weights.start as u32,
                weight_columns: run.weights.len() as u32,
                ..step
            };
            let mut ranges = match kernel {
                Kernel::RecurrentStep | Kernel::RecurrentStepProjected | Kernel::GruStep => {
                    vec![uniform, gates, model(ModelPart::WeightsHh), h_prev, next(), state, y[0], y[1]]
                }
                Kernel::PeepholeStep | Kernel::PeepholeStepProjected => {
                    let (w_hh, peepholes) = (model(ModelPart::WeightsHh), model(ModelPart::CellVectors));
                    vec![uniform, gates, w_hh, h_prev, next(), state, y[0], y[1], peepholes]
                }
                Kernel::NarrowStep | Kernel::NarrowStepProjected | Kernel::NarrowGruStep => {
                    let (w_hh, narrow) = (model(ModelPart::WeightsHh), model(ModelPart::NarrowInput));
                    vec![uniform, gates, w_hh, h_prev, next(), state, y[0], y[1], narrow]
                }
                Kernel::GateSums => vec![uniform, gates, model(ModelPart::WeightsHh), h_prev, sums()],
                Kernel::NormalizedCell | Kernel::NormalizedCellProjected => {
                    vec![uniform, sums(), model(ModelPart::CellVectors), next(), state, y[0], y[1]]
                }
                Kernel::ProjectionStep => {
                    vec![uniform, model(ModelPart::WeightsInner), m(), h_next, state, y[0], y[1]]
                }
                Kernel::ProjectionStepBias => {
                    let (w_hr, b_hr) = (model(ModelPart::WeightsInner), model(ModelPart::BiasHr));
                    vec![uniform, w_hr, m(), h_next, state, y[0], y[1], b_hr]
                }
                Kernel::GruReset => vec![uniform, gates, model(ModelPart::WeightsHh), h_prev, m(), state],
                Kernel::GruCandidate => {
                    let w_hn = model(ModelPart::WeightsInner);
                    vec![uniform, gates, w_hn, m(), h_prev, h_next, state, y[0], y[1]]
                }
                Kernel::RnnStep => {
                    vec![uniform, gates, model(ModelPart::WeightsHh), h_prev, h_next, state, y[0], y[1]]
                }
                Kernel::InputProjection
                | Kernel::InputProjectionSum
                | Kernel::Sequence
                | Kernel::NarrowSequence
                | Kernel::Wave
                | Kernel::CopyRows
                | Kernel::PoolRows
                | Kernel::SelfTest
                | Kernel::Measure => {
                    unreachable!("LayerKernels: no part of a timestep")
                }
            };
            let record_offset_bytes = if self.takes_immediates(kernel) {
                ranges.remove(0);
                chunk.push_immediates(bytemuck::bytes_of(&step))
            } else {
                chunk.push_uniform(bytemuck::bytes_of(&step))
            };
            let bind_group = self.bind_group(kernel, ranges);
            let shape = Shape { rows: most_active, columns, k: sum_len(&self.layouts[l], kernel) };
            let id = self.tile(kernel, kernels.cell, shape);
            let directions = reverse.len() as u64;
            let flops = directions * self.flops(l, kernel, most_active, run.columns.len());
            let bytes = directions
                * (self.weight_bytes(l, kernel, run.columns.len())
                    + self.row_bytes(l, kernel, most_active, run.columns.len()));
            let most_active = most_active as u32;
            let workgroups = if id.kernel.is_tiled() {
                [
                    (run.columns.len() as u32).div_ceil(id.lanes),
                    most_active.div_ceil(id.rows_per_workgroup()),
                    reverse.len() as u32,
                ]
            } else {
                [most_active.min(self.request.limits.workgroups), 1, reverse.len() as u32]
            };
            let kernel = self.kernel(id);
            chunk.submit.dispatches.push(Dispatch {
                kernel,
                bind_group,
                record_offset_bytes,
                workgroups,
                flops,
                bytes,
            });
        }
    }

    /// Adds a chunk as a submit; the first one joins the submit that holds the initial states.
    fn finish_chunk(&mut self, chunk: Chunk) -> Result<()> {
        let Chunk { mut submit, uniforms, uniforms_first, uniform_bytes, .. } = chunk;
        if self.request.recorded {
            self.uniform_bytes += uniform_bytes.len() as u64;
            self.allocate_slot(Slot::Uniforms, self.uniform_bytes)?;
        }
        let room = uniforms.scratch().map_or(0, |index| self.scratch[index].size_bytes);
        debug_assert!(uniforms_first + uniform_bytes.len() as u64 <= room, "records beyond the {room} bytes for them");
        if !uniform_bytes.is_empty() {
            let bytes = uniform_bytes;
            submit.uploads.push(Upload::Uniforms { buffer: uniforms, offset_bytes: uniforms_first, bytes });
        }
        match self.submits.as_mut_slice() {
            [first] if first.dispatches.is_empty() => {
                let mut uploads = std::mem::take(&mut first.uploads);
                uploads.append(&mut submit.uploads);
                *first = Submit { uploads, ..submit };
            }
            _ => self.submits.push(submit),
        }
        Ok(())
    }
}

/// The largest number up to `most` that `fits`, which holds for all smaller ones; 0 if none does.
fn largest(most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut good, mut bad) = (0, most + 1);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    good
}

/// The columns of a dispatch, in a range of the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ColumnRun {
    range: usize,
    /// All columns of the range.
    weights: Range<usize>,
    columns: Range<usize>,
}

/// What the steps of a layer know of its input.
pub(super) enum StepInput {
    /// Its share of the gates, which an input projection left here.
    Gates(BufferId),
    /// Its rows, in one piece, of so many vec4.
    Rows { plane: Plane, k4: usize },
}

impl StepInput {
    /// The buffer that the steps read.
    pub(super) fn buffer(&self) -> BufferId {
        match self {
            StepInput::Gates(buffer) => *buffer,
            StepInput::Rows { plane, .. } => plane.pieces()[0].buffer,
        }
    }

    /// The kernel in the place of one that reads gates.
    pub(super) fn kernel(&self, kernel: Kernel) -> Kernel {
        match self {
            StepInput::Gates(_) => kernel,
            StepInput::Rows { .. } => kernel.narrow().unwrap_or(kernel),
        }
    }
}

/// A timestep of a layer.
pub(super) struct StepRecord {
    pub(super) step: Step,
    /// Where its output goes, forward and reverse.
    pub(super) y: [BufferRange; 2],
    pub(super) most_active: usize,
}

/// Where a layer's output rows go.
pub(super) struct Stored {
    planes: [Option<Plane>; 2],
    layout: RowLayout,
}

impl Stored {
    /// For a layer whose output is not stored.
    pub(super) fn nothing() -> Self {
        Self { planes: [None, None], layout: RowLayout { stride: 0, h_column: None, c_column: None } }
    }
}

/// A submit in the making.
pub(super) struct Chunk {
    pub(super) submit: Submit,
    uniforms: BufferId,
    /// Where this chunk's uniforms start in their buffer.
    uniforms_first: u64,
    uniform_bytes: Vec<u8>,
    pub(super) record_bytes: u32,
    pub(super) steps: Range<usize>,
    /// Whether the row table has a place for every row (else for those of the chunk).
    pub(super) table_by_row: bool,
    /// Rows per direction that the gates buffer has room for.
    capacity: usize,
    /// The largest buffer that the device allows.
    buffer_bytes: u64,
}

impl Chunk {
    /// Only for adding reads to a finished submit.
    pub(super) fn reads_of(submit: Submit, buffer_bytes: u64) -> Self {
        Self {
            submit,
            uniforms: BufferId::Dummy,
            uniforms_first: 0,
            uniform_bytes: Vec::new(),
            record_bytes: 0,
            steps: 0..0,
            table_by_row: false,
            capacity: 0,
            buffer_bytes,
        }
    }

    /// The dynamic offset of the next record.
    pub(super) fn next_uniform(&self) -> u32 {
        (self.uniforms_first + self.uniform_bytes.len() as u64) as u32
    }

    /// Appends a record; returns its dynamic offset.
    pub(super) fn push_uniform(&mut self, record: &[u8]) -> u32 {
        let offset = self.uniform_bytes.len();
        self.uniform_bytes.extend_from_slice(record);
        self.uniform_bytes.resize(offset + self.record_bytes as usize, 0);
        (self.uniforms_first + offset as u64) as u32
    }

    /// Appends a record to the submit's immediates; returns its first byte there.
    fn push_immediates(&mut self, record: &[u8]) -> u32 {
        let first = self.submit.immediates.len();
        self.submit.immediates.extend_from_slice(record);
        first as u32
    }

    /// The next records as a storage buffer. The window starts at a multiple of [`ALIGNMENT`], so they may not be its first.
    pub(super) fn window(&self, num_records: usize) -> BufferRange {
        let first = u64::from(self.next_uniform());
        let offset_bytes = first / ALIGNMENT * ALIGNMENT;
        let end = first + num_records as u64 * u64::from(self.record_bytes);
        BufferRange { buffer: self.uniforms, offset_bytes, size_bytes: end - offset_bytes }
    }

    pub(super) fn uniform_range(&self, size_bytes: usize) -> BufferRange {
        BufferRange { buffer: self.uniforms, offset_bytes: 0, size_bytes: size_bytes as u64 }
    }

    pub(super) fn push_read(&mut self, content: Content, range: BufferRange) {
        let staging = &mut self.submit.staging_bytes;
        match staging.last_mut() {
            Some(size) if *size + range.size_bytes <= self.buffer_bytes => *size += range.size_bytes,
            _ => staging.push(range.size_bytes),
        }
        let index = staging.len() - 1;
        let staging_offset_bytes = staging[index] - range.size_bytes;
        let way = Readback::Staged { buffer: index, offset_bytes: staging_offset_bytes };
        self.submit.reads.push(Read { content, range, way });
    }
}
