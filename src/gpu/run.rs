//! Record, submit, read back: a loop over the plan.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering;
#[cfg(not(target_family = "wasm"))]
use std::time::Instant;

use super::device::{Scratch, Wanted};
use super::job::{CallerRange, Job, SlotsOf};
use super::kept::{Asked, Kept, Prepared};
use super::model::GpuLstm;
use super::timestamps::{self, Timestamps};
use super::wait::{Signal, Waiting, map};
use crate::batch::{BatchOutput, SequenceOutput};
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::padded;
use crate::kernels::params::Step;
use crate::pack::{
    Plane, pack_input_rows, pack_state, pack_state_buffer, put_row, row_table, scatter_plane, unpack_state,
};
use crate::plan::{BufferId, BufferRange, Caller, Content, Plan, Read, Readback, Submit, Upload};
use crate::spec::Merge;
use crate::trace::span;

/// Submits whose results are awaited before more are made, so that memory stays bounded.
const MAX_IN_FLIGHT: usize = 2;

/// A submit whose results are on their way.
struct InFlight {
    submit: usize,
    index: wgpu::SubmissionIndex,
    /// The mappings of `staging`, of scratch that is read in place, and of `times`.
    signal: Signal,
    staging: Vec<Scratch>,
    times: Option<wgpu::Buffer>,
    #[cfg(not(target_family = "wasm"))]
    begun: Instant,
}

impl GpuLstm {
    /// Runs a validated job with at least one valid row.
    pub(crate) async fn run(
        &self,
        job: Job<'_>,
        waiting: Waiting,
        progress: &(dyn Fn(f64) + Sync),
    ) -> Result<BatchOutput> {
        self.run_keeping(job, &self.kept, waiting, progress).await
    }

    /// [`run`](Self::run) with what the last job like it has `kept`.
    pub(super) async fn run_keeping(
        &self,
        job: Job<'_>,
        kept: &Kept,
        waiting: Waiting,
        progress: &(dyn Fn(f64) + Sync),
    ) -> Result<BatchOutput> {
        let asked = Asked::new(&self.request(&job, false), &job.callers);
        let mut run = match kept.take(&asked) {
            Some(prepared) => Run::resume(self, job, prepared)?,
            None => Run::start(self, job).await?,
        };
        while !run.is_submitted() {
            if run.num_in_flight() >= MAX_IN_FLIGHT {
                run.finish_oldest(waiting).await?;
                progress(run.progress());
            }
            run.submit_next().await?;
        }
        while run.num_in_flight() > 0 {
            run.finish_oldest(waiting).await?;
            progress(run.progress());
        }
        let Run { prepared, results, .. } = run;
        kept.put(&self.context, asked, prepared);
        Ok(results)
    }

    /// Records a validated job with at least one valid row, all of whose results stay on the device.
    pub(crate) fn record(&self, job: &Job<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let context = &self.context;
        context.faults.check()?;
        let plan = self.plan(job, true)?;
        let mut pipelines = Vec::with_capacity(plan.kernels.len());
        for &id in &plan.kernels {
            pipelines.push(context.pipeline_now(id)?);
        }
        let scratch = context.acquire_now(&wanted(&plan))?;
        let resources = Resources { model: self, plan: &plan, job, scratch: &scratch };
        let _span = span!("lstm.record", rows = plan.schedule.num_rows(), submits = plan.submits.len()).entered();
        let recorded = context.guarded_now("recording", || {
            let bind_groups = resources.bind_groups();
            for submit in &plan.submits {
                debug_assert!(submit.reads.is_empty(), "what is recorded stays on the device");
                resources.encode(submit, &pipelines, &bind_groups, encoder, None);
            }
        });
        // The scratch is in use until the commands are done, or dropped without a submit: then the callback is dropped. After an
        // error too, since the encoder may be submitted all the same.
        #[cfg(not(target_family = "wasm"))]
        encoder.on_submitted_work_done(move || drop(scratch));
        #[cfg(target_family = "wasm")]
        scratch.into_iter().for_each(Scratch::forget);
        recorded
    }
}

/// A job under way: submits are made and finished one at a time, so that several runs can take turns.
pub(crate) struct Run<'a> {
    model: &'a GpuLstm,
    job: Job<'a>,
    prepared: Prepared,
    in_flight: VecDeque<InFlight>,
    submitted: usize,
    finished: usize,
    /// The output in the making.
    results: BatchOutput,
}

impl<'a> Run<'a> {
    /// Plans a validated job with at least one valid row and acquires what it needs; submits nothing yet.
    pub(crate) async fn start(model: &'a GpuLstm, job: Job<'a>) -> Result<Self> {
        let context = &model.context;
        context.faults.check()?;
        let plan = model.plan(&job, false)?;
        let mut pipelines = Vec::with_capacity(plan.kernels.len());
        for &id in &plan.kernels {
            pipelines.push(context.pipeline(id).await?);
        }
        let scratch = context.acquire(&wanted(&plan)).await?;
        let resources = Resources { model, plan: &plan, job: &job, scratch: &scratch };
        let bind_groups = context.guarded("binding", || resources.bind_groups()).await?;
        Ok(Self::new(model, job, Prepared { plan, pipelines, scratch, bind_groups }))
    }

    /// A run of a job with what one like it has left.
    fn resume(model: &'a GpuLstm, job: Job<'a>, prepared: Prepared) -> Result<Self> {
        model.context.faults.check()?;
        Ok(Self::new(model, job, prepared))
    }

    fn new(model: &'a GpuLstm, job: Job<'a>, prepared: Prepared) -> Self {
        let results = empty_results(&job, model);
        Self { model, job, prepared, in_flight: VecDeque::new(), submitted: 0, finished: 0, results }
    }

    /// Whether every submit was made.
    pub(crate) fn is_submitted(&self) -> bool {
        self.submitted == self.prepared.plan.submits.len()
    }

    /// Submits that were made and not finished.
    pub(crate) fn num_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn progress(&self) -> f64 {
        self.finished as f64 / self.prepared.plan.submits.len() as f64
    }

    /// What the run returned, once nothing is left to submit or to finish.
    pub(crate) fn take_output(&mut self) -> BatchOutput {
        std::mem::take(&mut self.results)
    }

    /// Makes the next submit. What was submitted is on record before anything is awaited, so that a future that is dropped
    /// leaves the run as it is.
    pub(crate) async fn submit_next(&mut self) -> Result<()> {
        let Self { model, job, prepared, in_flight, submitted, .. } = self;
        let Prepared { plan, pipelines, scratch, bind_groups } = &*prepared;
        let resources = Resources { model, plan, job, scratch };
        let submit = || {
            in_flight.push_back(resources.submit(*submitted, pipelines, bind_groups));
            *submitted += 1;
            if let Some(committed) = job.committed.filter(|_| *submitted == plan.submits.len()) {
                committed.store(true, Ordering::SeqCst);
            }
            model.context.tally.submitted();
        };
        let result = model.context.guarded("submitting", submit).await;
        if let (Err(_), Some(committed)) = (&result, job.committed) {
            // What wgpu refuses does not run.
            committed.store(false, Ordering::SeqCst);
        }
        if matches!(&result, Err(e) if e.kind() == ErrorKind::OutOfMemory) {
            // So that there may be room for the next try.
            model.context.free_idle();
        }
        result
    }

    /// Waits for the oldest submit and takes what it read. A future that is dropped leaves the run as it is.
    pub(crate) async fn finish_oldest(&mut self, waiting: Waiting) -> Result<()> {
        let Some(oldest) = self.in_flight.front() else { return Ok(()) };
        let context = &self.model.context;
        context.may_be_lost();
        oldest.signal.finish(&context.waiter, &oldest.index, waiting).await?;
        let Some(done) = self.in_flight.pop_front() else { return Ok(()) };
        let plan = &self.prepared.plan;
        let submit = &plan.submits[done.submit];
        context.may_be_lost();
        let bytes: u64 = submit.reads.iter().map(|r| r.range.size_bytes).sum();
        let _span = span!("lstm.read_back", submit = done.submit, bytes = bytes).entered();
        context.tally.read_back(bytes);
        // The time since the submit was made is at least what the device took.
        #[cfg(not(target_family = "wasm"))]
        context.pace.note(submit.flops(), done.begun.elapsed());
        if let Some(times) = &done.times {
            context.tally.computed(timestamps::elapsed(&mapped_bytes(times)?, context.queue.get_timestamp_period()));
        }
        let mut results = Results { job: &self.job, model: self.model, output: &mut self.results };
        for read in &submit.reads {
            let (buffer, offset) = match (read.way, read.range.buffer) {
                (Readback::Staged { buffer, offset_bytes }, _) => (done.staging[buffer].buffer(), offset_bytes),
                (Readback::InPlace, BufferId::Scratch(index)) => {
                    (self.prepared.scratch[index].buffer(), read.range.offset_bytes)
                }
                (Readback::InPlace, other) => unreachable!("{other:?} is not read in place"),
            };
            let view = mapped_view(buffer, offset..offset + read.range.size_bytes)?;
            results.take(read, plan, &view);
        }
        done.staging.iter().chain(in_place(submit, &self.prepared.scratch)).for_each(Scratch::unmap);
        self.finished += 1;
        Ok(())
    }
}

/// The scratch buffers of a plan.
fn wanted(plan: &Plan) -> Vec<Wanted> {
    use wgpu::BufferUsages as U;
    plan.scratch
        .iter()
        .map(|b| Wanted {
            label: format!("lstm.{}", b.label),
            size_bytes: b.size_bytes,
            usage: match (b.uniform, b.mapped) {
                (true, _) => U::UNIFORM | U::STORAGE | U::COPY_DST,
                (false, false) => U::STORAGE | U::COPY_DST | U::COPY_SRC,
                (false, true) => U::STORAGE | U::COPY_DST | U::COPY_SRC | U::MAP_READ,
            },
        })
        .collect()
}

/// The scratch buffers that the host reads in place after a submit, each once.
fn in_place<'a>(submit: &'a Submit, scratch: &'a [Scratch]) -> impl Iterator<Item = &'a Scratch> {
    let is_read = |index: usize| {
        let of = |r: &Read| r.way == Readback::InPlace && r.range.buffer == BufferId::Scratch(index);
        submit.reads.iter().any(of)
    };
    scratch.iter().enumerate().filter(move |(index, _)| is_read(*index)).map(|(_, scratch)| scratch)
}

/// What the plan's buffer names stand for in this run.
struct Resources<'a> {
    model: &'a GpuLstm,
    plan: &'a Plan,
    job: &'a Job<'a>,
    scratch: &'a [Scratch],
}

impl<'a> Resources<'a> {
    fn buffer(&self, id: BufferId) -> &wgpu::Buffer {
        match id {
            BufferId::Model { layer, part, range } => self.model.buffer(layer, part, range),
            BufferId::Stack { layer, vectors } => self.model.stack(layer, vectors),
            BufferId::Scratch(index) => self.scratch[index].buffer(),
            BufferId::Dummy => &self.model.context.dummy,
            BufferId::Caller(caller) => &self.caller(caller).buffer,
        }
    }

    fn caller(&self, caller: Caller) -> &CallerRange {
        self.job.callers.get(caller).expect("planned only if given")
    }

    /// First byte and bytes of a range; the rest of the *planned* size where it says 0, since pooled buffers are larger.
    fn extent(&self, range: &BufferRange) -> (u64, u64) {
        let whole = match range.buffer {
            BufferId::Scratch(index) => self.plan.scratch[index].size_bytes,
            BufferId::Caller(caller) => {
                let origin = self.caller(caller).binding_offset(self.model.context.storage_alignment);
                return (origin + range.offset_bytes, range.size_bytes);
            }
            other => self.buffer(other).size(),
        };
        let size = if range.size_bytes == 0 { whole - range.offset_bytes } else { range.size_bytes };
        (range.offset_bytes, size)
    }

    fn bind_groups(&self) -> Vec<wgpu::BindGroup> {
        let context = &self.model.context;
        self.plan
            .bind_groups
            .iter()
            .map(|group| {
                let entries: Vec<_> = group
                    .bound()
                    .map(|(binding, _, range)| {
                        let (offset, size) = self.extent(range);
                        let size = std::num::NonZeroU64::new(size);
                        wgpu::BindGroupEntry {
                            binding,
                            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                                buffer: self.buffer(range.buffer),
                                offset,
                                size,
                            }),
                        }
                    })
                    .collect();
                context.device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some(&format!("lstm.{}", group.kernel.name())),
                    layout: context.pipelines.bind_group_layout(group.kernel),
                    entries: &entries,
                })
            })
            .collect()
    }

    /// Uploads for one submit of the plan, and records it up to its reads.
    fn encode(
        &self,
        submit: &Submit,
        pipelines: &[wgpu::ComputePipeline],
        bind_groups: &[wgpu::BindGroup],
        encoder: &mut wgpu::CommandEncoder,
        timestamps: Option<&Timestamps>,
    ) {
        let uploaded = submit.uploads.iter().map(|u| self.plan.upload_bytes(u)).sum();
        self.model.context.tally.recorded(submit.dispatches.len(), submit.flops(), submit.bytes(), uploaded);
        for upload in &submit.uploads {
            match upload {
                Upload::Clear { buffer: BufferId::Caller(caller) } => {
                    let range = self.caller(*caller);
                    encoder.clear_buffer(&range.buffer, range.offset_bytes, Some(range.size_bytes));
                }
                Upload::Clear { buffer } => {
                    let (_, size) = self.extent(&BufferRange::from(*buffer));
                    encoder.clear_buffer(self.buffer(*buffer), 0, Some(size));
                }
                other => self.upload(other),
            }
        }
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("lstm.run"),
            timestamp_writes: timestamps.map(Timestamps::writes),
        });
        if let Some(group) = self.model.context.pipelines.watch_group() {
            pass.set_bind_group(1, group, &[]);
        }
        let mut current = None;
        for dispatch in &submit.dispatches {
            if current != Some(dispatch.kernel) {
                pass.set_pipeline(&pipelines[dispatch.kernel]);
                current = Some(dispatch.kernel);
            }
            let group = &bind_groups[dispatch.bind_group];
            if self.plan.bind_groups[dispatch.bind_group].takes_immediates() {
                pass.set_bind_group(0, group, &[]);
                pass.set_immediates(
                    0,
                    &submit.immediates[dispatch.record_offset_bytes as usize..][..size_of::<Step>()],
                );
            } else {
                pass.set_bind_group(0, group, &[dispatch.record_offset_bytes]);
            }
            let [x, y, z] = dispatch.workgroups;
            pass.dispatch_workgroups(x, y, z);
        }
    }

    /// Uploads, records and submits one submit of the plan.
    fn submit(&self, index: usize, pipelines: &[wgpu::ComputePipeline], bind_groups: &[wgpu::BindGroup]) -> InFlight {
        let context = &self.model.context;
        let submit = &self.plan.submits[index];
        let _span = span!("lstm.submit", submit = index, dispatches = submit.dispatches.len()).entered();
        let mut encoder =
            context.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("lstm.run") });
        let timestamps = context.timestamps.load(Ordering::Relaxed).then(|| Timestamps::new(&context.device));
        self.encode(submit, pipelines, bind_groups, &mut encoder, timestamps.as_ref());
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let wanted =
            submit.staging_bytes.iter().map(|&size_bytes| Wanted { label: "lstm.staging".into(), size_bytes, usage });
        let staging = context.take(&wanted.collect::<Vec<_>>());
        for read in &submit.reads {
            if let Readback::Staged { buffer, offset_bytes } = read.way {
                let BufferRange { buffer: from, offset_bytes: first, size_bytes } = read.range;
                let (from, to) = (self.buffer(from), staging[buffer].buffer());
                encoder.copy_buffer_to_buffer(from, first, to, offset_bytes, size_bytes);
            }
        }
        let times = timestamps.map(|timestamps| timestamps.read(&context.device, &mut encoder));
        let commands = encoder.finish();
        #[cfg(not(target_family = "wasm"))]
        let begun = Instant::now();
        let submission = context.queue.submit([commands]);
        InFlight {
            submit: index,
            index: submission,
            signal: map(staging.iter().chain(in_place(submit, self.scratch)).map(Scratch::buffer_to_map).chain(&times)),
            staging,
            times,
            #[cfg(not(target_family = "wasm"))]
            begun,
        }
    }

    fn upload(&self, upload: &Upload) {
        let (job, schedule) = (self.job, &self.plan.schedule);
        let write_at = |buffer: BufferId, offset_bytes: u64, bytes: &[u8]| {
            self.model.context.queue.write_buffer(self.buffer(buffer), offset_bytes, bytes);
        };
        let write = |buffer: BufferId, bytes: &[u8]| write_at(buffer, 0, bytes);
        match upload {
            Upload::Uniforms { buffer, offset_bytes, bytes } => write_at(*buffer, *offset_bytes, bytes),
            Upload::InputRows { buffer, rows, stride } => {
                let input = job.input.expect("planned for rows on the host");
                let width = self.model.spec.input_size();
                let packed = pack_input_rows(input, width, job.input_order, schedule, rows.clone(), *stride);
                write(*buffer, bytemuck::cast_slice(&packed));
            }
            Upload::RowTable { buffer, first, rows } => {
                // Input and output of the caller lie alike.
                let table = row_table(schedule, rows.clone(), job.output_order);
                write_at(*buffer, 4 * *first as u64, bytemuck::cast_slice(&table));
            }
            Upload::StateTable { buffer } => {
                let sequences = schedule.order();
                let own: Vec<u32> = sequences.iter().map(|&b| b as u32).collect();
                let slots = |of: &[u32]| sequences.iter().map(|&b| of[b]).collect::<Vec<u32>>();
                let table = match job.slots {
                    Some(SlotsOf { from, to, .. }) => [slots(from), slots(to), own].concat(),
                    None => [own.clone(), own.clone(), own].concat(),
                };
                write(*buffer, bytemuck::cast_slice(&table));
            }
            Upload::PoolTable { buffer } => {
                let lengths = schedule.order().iter().map(|&b| job.lengths[b]);
                let table: Vec<u32> = lengths.chain(schedule.row_offsets().iter().copied()).map(|n| n as u32).collect();
                write(*buffer, bytemuck::cast_slice(&table));
            }
            Upload::InitialState { layer, c_len, h, h_places, state, state_places } => {
                let batch_size = job.lengths.len();
                let (h_first, c_first) = state_offsets(self.model, *layer, batch_size);
                let spec = &self.model.spec.layers()[*layer];
                let directions = spec.num_directions();
                let of_layer = |s: Option<&[f32]>, first: usize, width: usize| {
                    let s = s.map(|s| s[first..][..directions * batch_size * width].to_vec());
                    pack_state(s.as_deref(), schedule, directions, width)
                };
                let h_0 = of_layer(job.h_0.as_deref(), h_first, spec.h_size());
                let mut c_0 = of_layer(job.c_0.as_deref(), c_first, spec.c_size());
                c_0.resize(*c_len, 0.0);
                let first_byte = |(first, _): (usize, usize)| 4 * first as u64;
                for &h in h {
                    write_at(h, first_byte(*h_places), bytemuck::cast_slice(&h_0));
                }
                let packed = pack_state_buffer(&c_0, &h_0, state_places.1);
                write_at(*state, first_byte(*state_places), bytemuck::cast_slice(&packed));
            }
            Upload::Clear { .. } => unreachable!("clears are recorded by the caller"),
        }
    }
}

/// The first elements of a layer in arrays of all hidden and all cell states.
fn state_offsets(model: &GpuLstm, layer: usize, batch_size: usize) -> (usize, usize) {
    model.spec.layers()[..layer].iter().fold((0, 0), |(h, c), spec| {
        let rows = spec.num_directions() * batch_size;
        (h + rows * spec.h_size(), c + rows * spec.c_size())
    })
}

/// The content of a mapped staging buffer.
pub(super) fn mapped_bytes(buffer: &wgpu::Buffer) -> Result<Vec<u8>> {
    let view = mapped_view(buffer, 0..buffer.size())?;
    Ok(view.to_vec())
}

fn mapped_view(buffer: &wgpu::Buffer, bytes: Range<u64>) -> Result<wgpu::BufferView> {
    buffer.get_mapped_range(bytes).map_err(|e| Error::new(ErrorKind::DeviceFault, format!("reading back: {e}")))
}

/// Arrays of zeros for what a job returns to the host.
fn empty_results(job: &Job<'_>, model: &GpuLstm) -> BatchOutput {
    let wanted = job.outputs;
    let last = model.spec.last_layer();
    let (rows, batch_size) = (job.array_rows, job.lengths.len());
    let (h_size, c_size) = model.spec.state_sizes();
    let zeros = |wanted: bool, len: usize| wanted.then(|| vec![0.0; len]);
    let (rows_here, states_here) = (!job.to_device, !job.to_device && job.slots.is_none());
    BatchOutput {
        output: zeros(rows_here && wanted.sequence == SequenceOutput::All, rows * last.output_size()),
        last: zeros(rows_here && wanted.sequence == SequenceOutput::Last, batch_size * last.output_size()),
        pooled: zeros(rows_here && wanted.sequence.is_pooled(), batch_size * last.output_size()),
        h_n: zeros(states_here && wanted.final_state, batch_size * h_size),
        c_n: zeros(states_here && wanted.final_state, batch_size * c_size),
        cells: zeros(rows_here && wanted.cells, rows * last.num_directions() * last.c_size()),
    }
}

impl Job<'_> {
    /// What the job returns if it has no valid row: zeros, and initial states.
    pub(crate) fn rest(&self, model: &GpuLstm) -> Option<BatchOutput> {
        if self.lengths.iter().any(|&n| n > 0) {
            return None;
        }
        let mut results = empty_results(self, model);
        for (state, initial) in [(&mut results.h_n, &self.h_0), (&mut results.c_n, &self.c_0)] {
            if let (Some(state), Some(initial)) = (state, initial) {
                state.copy_from_slice(initial);
            }
        }
        Some(results)
    }
}

/// The output in the making.
struct Results<'a> {
    job: &'a Job<'a>,
    model: &'a GpuLstm,
    output: &'a mut BatchOutput,
}

impl Results<'_> {
    /// Unpacks what a submit read.
    fn take(&mut self, read: &Read, plan: &Plan, bytes: &[u8]) {
        let batch_size = self.job.lengths.len();
        let spec = &self.model.spec;
        let last = spec.last_layer();
        // Mapped memory is aligned for f32 on every backend, but only the copy is promised to be.
        let copied;
        let values: &[f32] = match bytemuck::try_cast_slice(bytes) {
            Ok(values) => values,
            Err(_) => {
                copied = bytemuck::pod_collect_to_vec::<u8, f32>(bytes);
                &copied
            }
        };
        match &read.content {
            Content::Rows { direction, rows } => {
                let parts = [
                    (self.output.output.as_mut(), plan.rows.h_column, last.h_size(), last.merge),
                    (self.output.cells.as_mut(), plan.rows.c_column, last.c_size(), Merge::Concat),
                ];
                for (out, column, width, merge) in parts {
                    if let (Some(out), Some(column)) = (out, column) {
                        let plane = Plane { values, stride: plan.rows.stride, column, width };
                        let outputs = merge.num_outputs(last.num_directions());
                        let order = self.job.output_order;
                        let place = |t, b| (order.row(t, b) * outputs + direction.min(&(outputs - 1))) * width;
                        scatter_plane(&plane, &plan.schedule, rows.clone(), place, merge, out);
                    }
                }
            }
            Content::HiddenN { layer } => {
                let (first, _) = state_offsets(self.model, *layer, batch_size);
                put_state(self.output.h_n.as_mut(), first, values, plan, spec, *layer, spec.layers()[*layer].h_size());
            }
            Content::CellN { layer } => {
                let (_, first) = state_offsets(self.model, *layer, batch_size);
                put_state(self.output.c_n.as_mut(), first, values, plan, spec, *layer, spec.layers()[*layer].c_size());
            }
            Content::Last => {
                if let Some(out) = self.output.last.as_mut().or(self.output.pooled.as_mut()) {
                    let width = last.h_size();
                    let stride = padded(width);
                    // Pooled rows of two directions that are summed lie in one plane.
                    let planes = values.len() / (batch_size * stride);
                    let merge = if planes == 1 { Merge::Concat } else { last.merge };
                    for d in 0..planes {
                        let column = d.min(last.num_outputs() - 1) * width;
                        for (rank, &b) in plan.schedule.order().iter().enumerate() {
                            let row = &values[(d * batch_size + rank) * stride..][..width];
                            put_row(merge, &mut out[b * last.output_size() + column..][..width], row);
                        }
                    }
                }
            }
        }
    }
}

fn put_state(
    out: Option<&mut Vec<f32>>,
    first: usize,
    packed: &[f32],
    plan: &Plan,
    spec: &crate::spec::LstmSpec,
    layer: usize,
    width: usize,
) {
    if let Some(out) = out {
        let state = unpack_state(packed, &plan.schedule, spec.layers()[layer].num_directions(), width);
        out[first..][..state.len()].copy_from_slice(&state);
    }
}
