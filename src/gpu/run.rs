//! Record, submit, read back: a loop over the plan.

use std::collections::VecDeque;

use super::device::{Context, Scratch, Wanted};
use super::model::GpuLstm;
use super::wait::{Signal, Waiting, map};
use crate::batch::{BatchOutput, Layout, SequenceBatch, SequenceOutput};
use crate::error::{Error, ErrorKind, Result, bail};
use crate::kernels::padded;
use crate::pack::{
    Plane, pack_input_rows, pack_state, pack_state_buffer, put_row, row_table, scatter_plane, unpack_state,
};
use crate::spec::Merge;
use crate::plan::{BufferId, BufferRange, Content, Plan, PlanRequest, RowsAt, TileOverride, Upload};

/// Submits whose results are awaited before more are made, so that memory stays bounded.
const MAX_IN_FLIGHT: usize = 2;

/// Where rows lie, and what tests fix instead of leaving it to the plan.
#[derive(Clone, Copy, Default)]
pub(crate) struct RunOptions<'a> {
    /// Rows on the device.
    pub(crate) rows: DeviceRows<'a>,
    /// Tiles.
    pub(crate) tiles: TileOverride,
    /// The memory budget of this run instead of the context's.
    pub(crate) budget_bytes: Option<u64>,
}

/// Buffers of the caller that hold input or output rows on the device, dense, in the batch's layout.
#[derive(Clone, Copy, Default)]
pub(crate) struct DeviceRows<'a> {
    /// Read instead of the batch's input.
    pub(crate) input: Option<&'a wgpu::Buffer>,
    /// Written instead of [`BatchOutput::output`].
    pub(crate) output: Option<&'a wgpu::Buffer>,
}

/// A submit whose results are on their way.
struct InFlight {
    submit: usize,
    index: wgpu::SubmissionIndex,
    /// The mappings of `staging`.
    signal: Signal,
    staging: Vec<wgpu::Buffer>,
}

impl GpuLstm {
    /// The plan for a batch.
    pub(crate) fn plan(&self, batch: &SequenceBatch<'_>, options: &RunOptions<'_>) -> Result<Plan> {
        let mut limits = self.context.limits;
        limits.budget_bytes = options.budget_bytes.unwrap_or(limits.budget_bytes);
        let at = |device: bool| if device { RowsAt::Device } else { RowsAt::Host };
        Plan::new(&PlanRequest {
            spec: &self.spec,
            lengths: batch.sequence_lengths(),
            seq_len: batch.seq_len(),
            layout: batch.layout(),
            outputs: batch.requested(),
            initial_state: batch.initial_h().is_some() || batch.initial_c().is_some(),
            input: at(options.rows.input.is_some()),
            output: at(options.rows.output.is_some()),
            limits,
            tiles: options.tiles,
        })
    }

    /// Checks buffers of the caller: what they are for, their sizes and usages.
    fn check_rows(&self, batch: &SequenceBatch<'_>, rows: &DeviceRows<'_>) -> Result<()> {
        if rows.output.is_some() && batch.requested().sequence != SequenceOutput::All {
            bail!(InvalidInput, "output: rows on the device need Outputs::sequence = All");
        }
        let num_rows = (batch.seq_len() * batch.batch_size()) as u64;
        for (name, buffer, width) in
            [("input", rows.input, self.spec.input_size()), ("output", rows.output, self.spec.output_size())]
        {
            let Some(buffer) = buffer else { continue };
            let needs = num_rows * width as u64 * 4;
            if buffer.size() < needs {
                bail!(InvalidInput, "{name}: expected a buffer of {needs} bytes, found {}", buffer.size());
            }
            if buffer.size() > self.context.limits.binding_bytes {
                bail!(
                    DeviceLimit,
                    "max_storage_buffer_binding_size: {name} has {} bytes, the device allows {}",
                    buffer.size(),
                    self.context.limits.binding_bytes
                );
            }
            if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
                bail!(InvalidInput, "{name}: expected a buffer with usage STORAGE, found {:?}", buffer.usage());
            }
        }
        Ok(())
    }

    /// Runs a validated batch with at least one valid row.
    pub(crate) async fn run(
        &self,
        batch: &SequenceBatch<'_>,
        options: RunOptions<'_>,
        waiting: Waiting,
        progress: &(dyn Fn(f64) + Sync),
    ) -> Result<BatchOutput> {
        let context = &self.context;
        context.faults.check()?;
        let rows = options.rows;
        self.check_rows(batch, &rows)?;
        let plan = self.plan(batch, &options)?;
        let mut pipelines = Vec::with_capacity(plan.kernels.len());
        for &id in &plan.kernels {
            pipelines.push(context.pipeline(id).await?);
        }
        let scratch = acquire(context, &plan).await?;
        let resources = Resources { model: self, scratch: &scratch, rows };
        let bind_groups = context.guarded("binding", || resources.bind_groups(&plan)).await?;

        let mut results = Results::new(batch, self, &plan, rows.output.is_some());
        let mut in_flight: VecDeque<InFlight> = VecDeque::new();
        for submit in 0..plan.submits.len() {
            if in_flight.len() >= MAX_IN_FLIGHT
                && let Some(oldest) = in_flight.pop_front()
            {
                finish(context, oldest, waiting, &plan, &mut results).await?;
                progress((submit + 1 - MAX_IN_FLIGHT) as f64 / plan.submits.len() as f64);
            }
            let next = context
                .guarded("submitting", || resources.submit(&plan, submit, batch, &pipelines, &bind_groups))
                .await?;
            in_flight.push_back(next);
        }
        while let Some(oldest) = in_flight.pop_front() {
            finish(context, oldest, waiting, &plan, &mut results).await?;
        }
        progress(1.0);
        Ok(results.output)
    }
}

async fn finish(
    context: &Context,
    done: InFlight,
    waiting: Waiting,
    plan: &Plan,
    results: &mut Results<'_>,
) -> Result<()> {
    done.signal.finish(&context.waiter, done.index, waiting).await?;
    for (index, staging) in done.staging.iter().enumerate() {
        let view = mapped_view(staging)?;
        results.take(&plan.submits[done.submit].reads, index, plan, &view);
        drop(view);
        staging.unmap();
    }
    Ok(())
}

async fn acquire(context: &std::sync::Arc<Context>, plan: &Plan) -> Result<Vec<Scratch>> {
    use wgpu::BufferUsages as U;
    let labels: Vec<String> = plan.scratch.iter().map(|b| format!("lstm.{}", b.label)).collect();
    let wanted: Vec<Wanted<'_>> = plan
        .scratch
        .iter()
        .zip(&labels)
        .map(|(b, label)| Wanted {
            label,
            size_bytes: b.size_bytes,
            usage: if b.uniform { U::UNIFORM | U::COPY_DST } else { U::STORAGE | U::COPY_DST | U::COPY_SRC },
        })
        .collect();
    context.acquire(&wanted).await
}

/// What the plan's buffer names stand for in this run.
struct Resources<'a> {
    model: &'a GpuLstm,
    scratch: &'a [Scratch],
    rows: DeviceRows<'a>,
}

impl<'a> Resources<'a> {
    fn buffer(&self, id: BufferId) -> &wgpu::Buffer {
        match id {
            BufferId::Model { layer, part } => self.model.buffer(layer, part),
            BufferId::Scratch(index) => self.scratch[index].buffer(),
            BufferId::Dummy => &self.model.context.dummy,
            BufferId::CallerInput => self.rows.input.expect("planned only if given"),
            BufferId::CallerOutput => self.rows.output.expect("planned only if given"),
        }
    }

    /// The bytes of a range; the rest of the *planned* size where it says 0, since pooled buffers are larger.
    fn size(&self, plan: &Plan, range: &BufferRange) -> u64 {
        let whole = match range.buffer {
            BufferId::Scratch(index) => plan.scratch[index].size_bytes,
            other => self.buffer(other).size(),
        };
        if range.size_bytes == 0 { whole - range.offset_bytes } else { range.size_bytes }
    }

    fn bind_groups(&self, plan: &Plan) -> Vec<wgpu::BindGroup> {
        let context = &self.model.context;
        plan.bind_groups
            .iter()
            .map(|group| {
                let entries: Vec<_> = group
                    .ranges
                    .iter()
                    .enumerate()
                    .map(|(binding, range)| wgpu::BindGroupEntry {
                        binding: binding as u32,
                        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                            buffer: self.buffer(range.buffer),
                            offset: range.offset_bytes,
                            size: std::num::NonZeroU64::new(self.size(plan, range)),
                        }),
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

    /// Uploads, records and submits one submit of the plan.
    fn submit(
        &self,
        plan: &Plan,
        index: usize,
        batch: &SequenceBatch<'_>,
        pipelines: &[wgpu::ComputePipeline],
        bind_groups: &[wgpu::BindGroup],
    ) -> InFlight {
        let context = &self.model.context;
        let submit = &plan.submits[index];
        let mut encoder =
            context.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("lstm.run") });
        for upload in &submit.uploads {
            match upload {
                Upload::Clear { buffer } => encoder.clear_buffer(self.buffer(*buffer), 0, None),
                other => self.upload(plan, batch, other),
            }
        }
        {
            let mut pass = encoder
                .begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("lstm.run"), timestamp_writes: None });
            let mut current = None;
            for dispatch in &submit.dispatches {
                if current != Some(dispatch.kernel) {
                    pass.set_pipeline(&pipelines[dispatch.kernel]);
                    current = Some(dispatch.kernel);
                }
                pass.set_bind_group(0, &bind_groups[dispatch.bind_group], &[dispatch.uniform_bytes]);
                let [x, y, z] = dispatch.workgroups;
                pass.dispatch_workgroups(x, y, z);
            }
        }
        let staging: Vec<wgpu::Buffer> = submit
            .staging_bytes
            .iter()
            .map(|&size| {
                context.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("lstm.staging"),
                    size,
                    usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            })
            .collect();
        for read in &submit.reads {
            encoder.copy_buffer_to_buffer(
                self.buffer(read.range.buffer),
                read.range.offset_bytes,
                &staging[read.staging],
                read.staging_offset_bytes,
                read.range.size_bytes,
            );
        }
        let submission = context.queue.submit([encoder.finish()]);
        InFlight { submit: index, index: submission, signal: map(&staging), staging }
    }

    fn upload(&self, plan: &Plan, batch: &SequenceBatch<'_>, upload: &Upload) {
        let write =
            |buffer: BufferId, bytes: &[u8]| self.model.context.queue.write_buffer(self.buffer(buffer), 0, bytes);
        match upload {
            Upload::Uniforms { buffer, bytes } => write(*buffer, bytes),
            Upload::InputRows { buffer, rows, stride } => {
                let packed = pack_input_rows(batch, &plan.schedule, rows.clone(), *stride);
                write(*buffer, bytemuck::cast_slice(&packed));
            }
            Upload::RowTable { buffer, rows } => {
                let table = row_table(&plan.schedule, rows.clone(), batch.layout(), batch.seq_len());
                write(*buffer, bytemuck::cast_slice(&table));
            }
            Upload::InitialState { layer, c_len, h, state } => {
                let (h_first, c_first) = state_offsets(self.model, *layer, batch.batch_size());
                let spec = &self.model.spec.layers()[*layer];
                let directions = spec.num_directions();
                let of_layer = |s: Option<&[f32]>, first: usize, width: usize| {
                    let s = s.map(|s| s[first..][..directions * batch.batch_size() * width].to_vec());
                    pack_state(s.as_deref(), &plan.schedule, directions, width)
                };
                let h_0 = of_layer(batch.initial_h(), h_first, spec.h_size());
                let mut c_0 = of_layer(batch.initial_c(), c_first, spec.c_size());
                c_0.resize(*c_len, 0.0);
                write(h[0], bytemuck::cast_slice(&h_0));
                write(h[1], bytemuck::cast_slice(&h_0));
                let len = self.size(plan, &BufferRange::from(*state)) as usize / 4;
                write(*state, bytemuck::cast_slice(&pack_state_buffer(&c_0, &h_0, len)));
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
    let view = mapped_view(buffer)?;
    Ok(view.to_vec())
}

fn mapped_view(buffer: &wgpu::Buffer) -> Result<wgpu::BufferView> {
    buffer.get_mapped_range(..).map_err(|e| Error::new(ErrorKind::DeviceFault, format!("reading back: {e}")))
}

/// The output in the making.
struct Results<'a> {
    batch: &'a SequenceBatch<'a>,
    model: &'a GpuLstm,
    output: BatchOutput,
}

impl<'a> Results<'a> {
    fn new(batch: &'a SequenceBatch<'a>, model: &'a GpuLstm, plan: &Plan, output_on_device: bool) -> Self {
        let wanted = batch.requested();
        let last = model.spec.last_layer();
        let rows = batch.seq_len() * batch.batch_size();
        let (h_size, c_size) = model.spec.state_sizes();
        let zeros = |wanted: bool, len: usize| wanted.then(|| vec![0.0; len]);
        debug_assert_eq!(plan.schedule.batch_size(), batch.batch_size());
        let output = BatchOutput {
            output: zeros(wanted.sequence == SequenceOutput::All && !output_on_device, rows * last.output_size()),
            last: zeros(wanted.sequence == SequenceOutput::Last, batch.batch_size() * last.output_size()),
            h_n: zeros(wanted.final_state, batch.batch_size() * h_size),
            c_n: zeros(wanted.final_state, batch.batch_size() * c_size),
            cells: zeros(wanted.cells, rows * last.num_directions() * last.c_size()),
        };
        Self { batch, model, output }
    }

    /// Unpacks what a submit read into staging buffer `index`.
    fn take(&mut self, reads: &[crate::plan::Read], index: usize, plan: &Plan, staging: &[u8]) {
        let batch = self.batch;
        let spec = &self.model.spec;
        let last = spec.last_layer();
        for read in reads.iter().filter(|r| r.staging == index) {
            let bytes = &staging[read.staging_offset_bytes as usize..][..read.range.size_bytes as usize];
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
                            let (layout, t_len, b_len): (Layout, _, _) =
                                (batch.layout(), batch.seq_len(), batch.batch_size());
                            let place = |t, b| {
                                (layout.row(t, b, t_len, b_len) * outputs + direction.min(&(outputs - 1))) * width
                            };
                            scatter_plane(&plane, &plan.schedule, rows.clone(), place, merge, out);
                        }
                    }
                }
                Content::HiddenN { layer } => {
                    let (first, _) = state_offsets(self.model, *layer, batch.batch_size());
                    put_state(
                        self.output.h_n.as_mut(),
                        first,
                        values,
                        plan,
                        spec,
                        *layer,
                        spec.layers()[*layer].h_size(),
                    );
                }
                Content::CellN { layer } => {
                    let (_, first) = state_offsets(self.model, *layer, batch.batch_size());
                    put_state(
                        self.output.c_n.as_mut(),
                        first,
                        values,
                        plan,
                        spec,
                        *layer,
                        spec.layers()[*layer].c_size(),
                    );
                }
                Content::Last => {
                    if let Some(out) = self.output.last.as_mut() {
                        let width = last.h_size();
                        let stride = padded(width);
                        for d in 0..last.num_directions() {
                            let column = d.min(last.num_outputs() - 1) * width;
                            for (rank, &b) in plan.schedule.order().iter().enumerate() {
                                let row = &values[(d * batch.batch_size() + rank) * stride..][..width];
                                put_row(last.merge, &mut out[b * last.output_size() + column..][..width], row);
                            }
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
