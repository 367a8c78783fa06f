//! What goes into a plan and what comes out of it: rows and states, between the host, the caller's buffers on the
//! device, and packed rows.

use std::ops::Range;

use super::planes::{Piece, Plane};
use super::planner::{Chunk, F32, LayerBuffers, POOL_STEPS, Planner, RowSource};
use super::tiles::Shape;
use super::{BufferId, BufferRange, Caller, Content, Dispatch, Read, Readback, RowsAt, StatesAt, Submit, Upload};
use crate::batch::SequenceOutput;
use crate::kernels::params::{CopyParams, PoolParams};
use crate::kernels::{Binding, BindingKind, CellCode, Kernel, padded};
use crate::spec::Merge;

/// How `copy_rows` goes through its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Gather = 0,
    Scatter = 1,
    ScatterAdd = 2,
}

/// The rows of one side of a copy, in f32.
#[derive(Debug, Clone, Copy)]
struct Rows {
    buffer: BufferId,
    first: usize,
    stride: usize,
}

/// Rows of a buffer of the caller that one binding reaches, and where it starts.
struct Window {
    rows: Range<usize>,
    /// Bytes of the buffer, from a multiple of [`BINDING_ALIGN`].
    bytes: Range<u64>,
    /// First f32 of the first of the rows in the binding.
    first: usize,
}

/// `min_storage_buffer_offset_alignment` of WebGPU's default limits, the largest there is.
const BINDING_ALIGN: u64 = 256;

/// A copy through entries of a table.
#[derive(Debug, Clone, Copy)]
struct Copy {
    way: Way,
    table: (BufferId, usize),
    rows: usize,
    from: Rows,
    to: Rows,
    /// f32 of a row.
    width: usize,
    /// f32 of a row with the zeros that pad it.
    to_width: usize,
}

/// The parts of the table of states.
#[derive(Debug, Clone, Copy)]
enum StatePart {
    From = 0,
    To = 1,
    Sequence = 2,
}

impl Planner<'_> {
    /// The rows that a buffer of the caller has.
    fn caller_rows(&self, caller: Caller) -> usize {
        match caller {
            Caller::Input | Caller::Output | Caller::Cells => self.request.array_rows,
            Caller::Last | Caller::H0 | Caller::C0 | Caller::HN | Caller::CN => self.schedule.batch_size(),
            Caller::Slots => match (self.request.initial, self.request.finals) {
                (Some(StatesAt::Slots { num_slots }), _) | (_, StatesAt::Slots { num_slots }) => num_slots,
                _ => 0,
            },
        }
    }

    /// Bytes that a binding has for the rows of a window.
    fn window_bytes(&self) -> u64 {
        self.request.limits.binding_bytes.saturating_sub(BINDING_ALIGN)
    }

    /// The most windows that a copy between the caller's rows and packed ones takes.
    pub(super) fn most_windows(&self) -> usize {
        let (h_size, c_size) = self.request.spec.state_sizes();
        let last = self.request.spec.last_layer();
        let widest =
            [self.layers[0].input_size, last.num_directions() * last.c_size().max(last.h_size()), h_size + c_size];
        let row = widest.into_iter().max().unwrap_or(1) as u64 * F32;
        let rows = Caller::ALL.map(|caller| self.caller_rows(caller)).into_iter().max().unwrap_or(1) as u64;
        // A window holds whole rows from wherever its first one starts.
        rows.div_ceil((self.window_bytes() / row).saturating_sub(1).max(1)) as usize
    }

    /// The windows through which a copy reaches all rows of a buffer of the caller.
    fn windows(&self, caller: Caller, rows: Rows, width: usize) -> Vec<Window> {
        let num_rows = self.caller_rows(caller);
        let per_window =
            ((self.window_bytes() / F32).saturating_sub(width as u64) / rows.stride as u64).max(1) as usize;
        let starts = (0..num_rows).step_by(per_window);
        let window = |start: usize| {
            let end = num_rows.min(start + per_window);
            let first = (rows.first + start * rows.stride) as u64 * F32;
            let bytes =
                first / BINDING_ALIGN * BINDING_ALIGN..(rows.first + (end - 1) * rows.stride + width) as u64 * F32;
            Window { rows: start..end, first: ((first - bytes.start) / F32) as usize, bytes }
        };
        starts.map(window).collect()
    }

    /// A buffer of the caller, its rows starting `first` f32 after its own start.
    fn caller(&self, caller: Caller, first: usize, stride: usize) -> Rows {
        let origin = self.request.caller_first[caller.index()] as usize;
        Rows { buffer: BufferId::Caller(caller), first: origin + first, stride }
    }

    /// Brings the input rows of a plane to the device, or gathers them there.
    pub(super) fn plan_input(&mut self, chunk: &mut Chunk, input: &RowSource, table: Option<BufferId>) {
        let stride = input.k4 * 4;
        let plane = input.planes[0].as_ref().expect("the input has a plane");
        for Piece { buffer, rows } in plane.pieces().iter().cloned() {
            match (self.request.input, table) {
                (RowsAt::Device, Some(table)) => {
                    let width = self.layers[0].input_size;
                    let copy = Copy {
                        way: Way::Gather,
                        table: (table, self.row_table(chunk, table, &rows)),
                        rows: rows.len(),
                        from: self.caller(Caller::Input, 0, width),
                        to: Rows { buffer, first: 0, stride },
                        width,
                        to_width: stride,
                    };
                    self.push_copy(chunk, copy);
                }
                _ => chunk.submit.uploads.push(Upload::InputRows { buffer, rows, stride }),
            }
        }
    }

    /// Takes rows of the last layer back to the host, or scatters them on the device.
    pub(super) fn plan_output(&mut self, chunk: &mut Chunk, planes: &[Option<Plane>; 2], table: Option<BufferId>) {
        let layer = *self.request.spec.last_layer();
        let rows_wanted = self.request.outputs.sequence == SequenceOutput::All;
        if !rows_wanted && !self.request.outputs.cells {
            return;
        }
        let h_column = self.rows.h_column.filter(|_| rows_wanted);
        let parts = [
            (Caller::Output, h_column, layer.h_size(), layer.merge),
            (Caller::Cells, self.rows.c_column, layer.c_size(), Merge::Concat),
        ];
        for (d, plane) in planes.iter().flatten().enumerate() {
            for Piece { buffer, rows } in plane.pieces().iter().cloned() {
                let (RowsAt::Device, Some(table)) = (self.request.output, table) else {
                    let size_bytes = (rows.len() * self.rows.stride) as u64 * F32;
                    let range = BufferRange { buffer, offset_bytes: 0, size_bytes };
                    chunk.push_read(Content::Rows { direction: d, rows }, range);
                    continue;
                };
                let table = (table, self.row_table(chunk, table, &rows));
                for (caller, column, width, merge) in parts {
                    let Some(column) = column else { continue };
                    // Rows at or past a length are zero.
                    if d == 0 && rows.start == 0 && self.request.array_rows > self.schedule.num_rows() {
                        chunk.submit.uploads.push(Upload::Clear { buffer: BufferId::Caller(caller) });
                    }
                    let (way, place) = self.merged(merge, d);
                    let copy = Copy {
                        way,
                        table,
                        rows: rows.len(),
                        from: Rows { buffer, first: column, stride: self.rows.stride },
                        to: self.caller(caller, place * width, merge.num_outputs(layer.num_directions()) * width),
                        width,
                        to_width: width,
                    };
                    self.push_copy(chunk, copy);
                }
            }
        }
    }

    /// How a direction's row comes into a row of the output, and as which part of it. Of a sum, the first direction is
    /// written, the second added.
    fn merged(&self, merge: Merge, d: usize) -> (Way, usize) {
        match (merge, d) {
            (Merge::Concat, d) => (Way::Scatter, d),
            (Merge::Sum, 0) => (Way::Scatter, 0),
            (Merge::Sum, _) => (Way::ScatterAdd, 0),
        }
    }

    /// Where states of cell (`l`, `d`) lie in buffers of the caller: rows of h and of c, by entry of the table.
    fn states(&self, at: StatesAt, h: Caller, c: Caller, l: usize, d: usize) -> Option<[Rows; 2]> {
        let batch = self.schedule.batch_size();
        let before = self.layers[..l].iter().fold((0, 0), |(h, c), layer| {
            (h + layer.num_directions() * layer.h_size(), c + layer.num_directions() * layer.c_size())
        });
        let layer = &self.layers[l];
        let (h_first, c_first) = (before.0 + d * layer.h_size(), before.1 + d * layer.c_size());
        match at {
            StatesAt::Host => None,
            StatesAt::Arrays => {
                Some([self.caller(h, h_first * batch, layer.h_size()), self.caller(c, c_first * batch, layer.c_size())])
            }
            StatesAt::Slots { .. } => {
                let (h_size, c_size) = self.request.spec.state_sizes();
                let row = h_size + c_size;
                Some([self.caller(Caller::Slots, h_first, row), self.caller(Caller::Slots, h_size + c_first, row)])
            }
        }
    }

    /// Gathers initial states from buffers of the caller.
    pub(super) fn plan_initial(&mut self, chunk: &mut Chunk, buffers: &[LayerBuffers]) {
        let Some(at) = self.request.initial else { return };
        let batch = self.schedule.batch_size();
        let some_empty = self.request.lengths.contains(&0);
        for (l, layer) in self.layers.iter().enumerate() {
            let b = &buffers[l];
            let h_stride = padded(layer.h_size());
            for d in 0..layer.num_directions() {
                let Some([h, c]) = self.states(at, Caller::H0, Caller::C0, l, d) else { continue };
                // A reverse sequence joins at any step and a layer of a stack some waves later, so both buffers hold the
                // initial h until then.
                let mut places = vec![(h, b.h[0], b.h_first, layer.h_size(), h_stride)];
                if layer.direction.is_reverse()[d] || b.is_stacked {
                    places.push((h, b.h[1], b.h_first, layer.h_size(), h_stride));
                }
                // The final h of a sequence without a step.
                if some_empty {
                    places.push((h, b.state, b.state_h_n, layer.h_size(), h_stride));
                }
                if layer.cell.has_cell_state() {
                    places.push((c, b.state, b.state_first, layer.c_size(), b.c_stride));
                }
                for (from, buffer, first, width, stride) in places {
                    let copy = Copy {
                        way: Way::Gather,
                        table: self.state_part(StatePart::From),
                        rows: batch,
                        from,
                        to: Rows { buffer, first: first + d * batch * stride, stride },
                        width,
                        to_width: stride,
                    };
                    self.push_copy(chunk, copy);
                }
            }
        }
    }

    /// Scatters final states and last rows to buffers of the caller.
    pub(super) fn plan_finals(&mut self, chunk: &mut Chunk, buffers: &[LayerBuffers]) {
        let batch = self.schedule.batch_size();
        let of_rank =
            |buffer, first: usize, d: usize, stride: usize| Rows { buffer, first: first + d * batch * stride, stride };
        for (l, layer) in self.layers.iter().enumerate() {
            let b = &buffers[l];
            let h_stride = padded(layer.h_size());
            for d in 0..layer.num_directions() {
                let to = match self.request.outputs.final_state {
                    true => self.states(self.request.finals, Caller::HN, Caller::CN, l, d),
                    false => None,
                };
                let Some([h, c]) = to else { continue };
                let mut places = vec![(of_rank(b.state, b.state_h_n, d, h_stride), h, layer.h_size())];
                if layer.cell.has_cell_state() {
                    places.push((of_rank(b.state, b.state_first, d, b.c_stride), c, layer.c_size()));
                }
                for (from, to, width) in places {
                    let table = self.state_part(StatePart::To);
                    let copy = Copy { way: Way::Scatter, table, rows: batch, from, to, width, to_width: width };
                    self.push_copy(chunk, copy);
                }
            }
        }
        let layer = *self.request.spec.last_layer();
        let (source, planes, merge) = self.per_sequence(&buffers[self.layers.len() - 1]);
        if let (Some((buffer, first)), RowsAt::Device) = (source, self.request.output) {
            let width = layer.h_size();
            for d in 0..planes {
                let (way, place) = self.merged(merge, d);
                let copy = Copy {
                    way,
                    table: self.state_part(StatePart::Sequence),
                    rows: batch,
                    from: of_rank(buffer, first, d, padded(width)),
                    to: self.caller(Caller::Last, place * width, layer.output_size()),
                    width,
                    to_width: width,
                };
                self.push_copy(chunk, copy);
            }
        }
    }

    /// Where the one row of each sequence lies that is asked for, last or pooled, by rank; in how many planes; and how
    /// these become one row.
    fn per_sequence(&self, b: &LayerBuffers) -> (Option<(BufferId, usize)>, usize, Merge) {
        let layer = self.request.spec.last_layer();
        match self.pool {
            Some((pooled, _)) => (Some((pooled, 0)), layer.num_outputs(), Merge::Concat),
            None => (b.state_last.map(|first| (b.state, first)), layer.num_directions(), layer.merge),
        }
    }

    /// Pools the rows of the last layer that lie in `planes`.
    pub(super) fn plan_pool(&mut self, chunk: &mut Chunk, planes: &[Option<Plane>; 2]) {
        let (Some((pooled, table)), [Some(y0), y1]) = (self.pool, planes) else { return };
        let layer = *self.request.spec.last_layer();
        let width = padded(layer.h_size());
        let batch = self.schedule.batch_size();
        let kernel = self.tile(Kernel::PoolRows, CellCode::default(), Shape { rows: batch, columns: width / 4, k: 0 });
        let index = self.kernel(kernel);
        let sums_planes = layer.merge == Merge::Sum && y1.is_some();
        let outputs: Vec<&Plane> = match y1 {
            Some(y1) if !sums_planes => vec![y0, y1],
            _ => vec![y0],
        };
        for (d, plane) in outputs.into_iter().enumerate() {
            for (i, Piece { buffer, rows }) in plane.pieces().iter().cloned().enumerate() {
                let steps = self.schedule.steps_of(&rows);
                let reach = self.request.limits.workgroups as usize * kernel.rows_per_workgroup() as usize;
                let runs = steps.clone().step_by(POOL_STEPS);
                for (t_first, rank_first) in runs.flat_map(|t| (0..batch).step_by(reach).map(move |rank| (t, rank))) {
                    let t_end = steps.end.min(t_first + POOL_STEPS);
                    let rank_end = batch.min(rank_first + reach);
                    let params = PoolParams {
                        ranks: batch as u32,
                        rank_first: rank_first as u32,
                        width4: (width / 4) as u32,
                        t_first: t_first as u32,
                        t_end: t_end as u32,
                        row_first: rows.start as u32,
                        y_stride: (self.rows.stride / 4) as u32,
                        y_h: (self.rows.h_column.unwrap_or(0) / 4) as u32,
                        pooled_first: (d * batch * width / 4) as u32,
                        is_max: u32::from(self.request.outputs.sequence == SequenceOutput::Max),
                        sums_planes: u32::from(sums_planes),
                        is_end: u32::from(t_end == self.schedule.num_steps()),
                    };
                    let second = y1.as_ref().filter(|_| sums_planes).map_or(buffer, |y1| y1.pieces()[i].buffer);
                    let record_offset_bytes = chunk.push_uniform(bytemuck::bytes_of(&params));
                    let uniform = chunk.uniform_range(size_of::<PoolParams>());
                    let ranges = vec![uniform, table.into(), buffer.into(), second.into(), pooled.into()];
                    let bind_group = self.bind_group(Kernel::PoolRows, ranges);
                    let workgroups = [
                        params.width4.div_ceil(kernel.lanes),
                        ((rank_end - rank_first) as u32).div_ceil(kernel.rows_per_workgroup()),
                        1,
                    ];
                    let bytes = 16 * u64::from(params.width4) * (rank_end - rank_first) as u64;
                    let dispatch =
                        Dispatch { kernel: index, bind_group, record_offset_bytes, workgroups, flops: 0, bytes };
                    chunk.submit.dispatches.push(dispatch);
                }
            }
        }
    }

    fn state_part(&self, part: StatePart) -> (BufferId, usize) {
        let table = self.state_table.expect("allocated where states or last rows move on the device");
        (table, part as usize * self.schedule.batch_size())
    }

    /// The first entry of the table of these packed rows, which is uploaded before the chunk unless it was.
    fn row_table(&mut self, chunk: &mut Chunk, buffer: BufferId, rows: &Range<usize>) -> usize {
        let first = if chunk.table_by_row { rows.start } else { 0 };
        let upload = Upload::RowTable { buffer, first, rows: rows.clone() };
        if !self.request.recorded {
            if !chunk.submit.uploads.contains(&upload) {
                chunk.submit.uploads.push(upload);
            }
        } else if !self.row_tables.contains(rows) {
            self.row_tables.push(rows.clone());
            chunk.submit.uploads.push(upload);
        }
        first
    }

    /// Adds a copy, in as many dispatches as the limits of workgroups and bindings ask for.
    fn push_copy(&mut self, chunk: &mut Chunk, copy: Copy) {
        let kernel =
            self.tile(Kernel::CopyRows, CellCode::default(), Shape { rows: copy.rows, columns: copy.to_width, k: 0 });
        let reach = (self.request.limits.workgroups as usize).saturating_mul(kernel.rows_per_workgroup() as usize);
        let index = self.kernel(kernel);
        // One side is the caller's, the other packed.
        let (listed, packed) = if copy.way == Way::Gather { (copy.from, copy.to) } else { (copy.to, copy.from) };
        let BufferId::Caller(caller) = listed.buffer else { unreachable!("rows are listed in buffers of the caller") };
        for window in self.windows(caller, listed, copy.width) {
            let size_bytes = window.bytes.end - window.bytes.start;
            let range = BufferRange { buffer: listed.buffer, offset_bytes: window.bytes.start, size_bytes };
            let listed = (Rows { first: window.first, ..listed }, range);
            let packed = (packed, BufferRange::from(packed.buffer));
            let (from, to) = if copy.way == Way::Gather { (listed, packed) } else { (packed, listed) };
            for first_row in (0..copy.rows).step_by(reach) {
                let end = copy.rows.min(first_row + reach);
                let params = CopyParams {
                    rows: end as u32,
                    width: copy.width as u32,
                    dst_width: copy.to_width as u32,
                    scatter: copy.way as u32,
                    src_first: from.0.first as u32,
                    src_stride: from.0.stride as u32,
                    dst_first: to.0.first as u32,
                    dst_stride: to.0.stride as u32,
                    first_row: first_row as u32,
                    table_first: copy.table.1 as u32,
                    listed_first: window.rows.start as u32,
                    listed_end: window.rows.end as u32,
                };
                let record_offset_bytes = chunk.push_uniform(bytemuck::bytes_of(&params));
                let uniform = chunk.uniform_range(size_of::<CopyParams>());
                let bind_group = self.bind_group(Kernel::CopyRows, vec![uniform, copy.table.0.into(), from.1, to.1]);
                let workgroups = [
                    params.dst_width.div_ceil(kernel.lanes),
                    ((end - first_row) as u32).div_ceil(kernel.rows_per_workgroup()),
                    1,
                ];
                chunk.submit.dispatches.push(Dispatch {
                    kernel: index,
                    bind_group,
                    record_offset_bytes,
                    workgroups,
                    flops: 0,
                    bytes: 2 * F32 * u64::from(params.dst_width) * (end - first_row) as u64,
                });
            }
        }
    }

    /// Final states and last rows for the host, read with the last submit.
    pub(super) fn read_states(&mut self, buffers: &[LayerBuffers]) {
        let batch = self.schedule.batch_size();
        let (source, planes, _) = self.per_sequence(&buffers[buffers.len() - 1]);
        let submit = self.submits.last_mut().expect("there is a first submit");
        let mut chunk_reads = Chunk::reads_of(std::mem::take(submit), self.request.limits.buffer_bytes);
        for (layer, b) in buffers.iter().enumerate() {
            let spec = &self.layers[layer];
            let rows = spec.num_directions() * batch;
            let h_bytes = (rows * padded(spec.h_size())) as u64 * F32;
            let range = |first: usize, size_bytes: u64| BufferRange {
                buffer: b.state,
                offset_bytes: first as u64 * F32,
                size_bytes,
            };
            if self.request.outputs.final_state && self.request.finals == StatesAt::Host {
                if spec.cell.has_cell_state() {
                    let c_bytes = (b.state_h_n - b.state_first) as u64 * F32;
                    chunk_reads.push_read(Content::CellN { layer }, range(b.state_first, c_bytes));
                }
                chunk_reads.push_read(Content::HiddenN { layer }, range(b.state_h_n, h_bytes));
            }
        }
        let last = *self.request.spec.last_layer();
        if let (Some((buffer, first)), RowsAt::Host) = (source, self.request.output) {
            let size_bytes = (planes * batch * padded(last.h_size())) as u64 * F32;
            chunk_reads.push_read(Content::Last, BufferRange { buffer, offset_bytes: first as u64 * F32, size_bytes });
        }
        *submit = chunk_reads.submit;
    }

    /// Has the rows of the last submit read where they lie, if that memory is shared with the host: those of another would be
    /// in the way of the chunks after it. What kernels read too is copied all the same, states above all: memory that the host
    /// maps may be slower for that, while a row is written once either way. wgpu 30 makes no barrier for the host after a
    /// kernel, nor after a copy; both rely on what ends a submission.
    pub(super) fn read_in_place(&mut self) {
        if !self.request.limits.shared_memory {
            return;
        }
        let submit = self.submits.last_mut().expect("there is a first submit");
        let read_by_kernels = |buffer: BufferId| {
            let reads = |(_, binding, range): (u32, &Binding, &BufferRange)| {
                range.buffer == buffer && binding.kind == BindingKind::Read
            };
            self.bind_groups.iter().any(|group| group.bound().any(reads))
        };
        let mut reads = Chunk::reads_of(Submit::default(), self.request.limits.buffer_bytes);
        for read in std::mem::take(&mut submit.reads) {
            match (&read.content, read.range.buffer.scratch()) {
                (Content::Rows { .. }, Some(index)) if !read_by_kernels(read.range.buffer) => {
                    self.scratch[index].mapped = true;
                    reads.submit.reads.push(Read { way: Readback::InPlace, ..read });
                }
                _ => reads.push_read(read.content, read.range),
            }
        }
        submit.reads = reads.submit.reads;
        submit.staging_bytes = reads.submit.staging_bytes;
    }
}
