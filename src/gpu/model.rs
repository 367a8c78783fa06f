//! A model on the device: packed weights, uploaded once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use half::f16;

use super::device::{Context, new_buffer};
use super::kept::Kept;
use crate::error::{Result, bail};
use crate::kernels::{COLUMN, Kernel, KernelId, ModelPart, padded};
use crate::pack::{PackedLayer, pack_layer};
use crate::plan::{LayerKernels, PlanLimits, Stack, TileOverride, sum_len, tiles};
use crate::spec::LstmSpec;
use crate::weights::LstmWeights;

/// The buffers of a loaded model.
pub(crate) struct GpuLstm {
    pub(super) context: Arc<Context>,
    pub(super) spec: LstmSpec,
    /// Per layer, by [`ModelPart`], one per range; none for a part that the layer does not have.
    buffers: Vec<[Vec<wgpu::Buffer>; 7]>,
    /// By first layer: the matrices and the biases of a stack once more, for layers that run side by side.
    stacks: BTreeMap<usize, [wgpu::Buffer; 2]>,
    /// Of the last batch.
    pub(super) kept: Kept,
}

impl GpuLstm {
    /// Packs and uploads the weights and compiles the kernels.
    pub(crate) async fn load(context: &Arc<Context>, weights: &LstmWeights) -> Result<Self> {
        let spec = weights.spec().clone();
        let layers = spec.layers();
        for l in 0..layers.len() {
            let layout = context.limits.layout(layers, l);
            for part in ModelPart::ALL {
                for (name, size, limit) in [
                    ("max_storage_buffer_binding_size", layout.binding_bytes(part), context.limits.binding_bytes),
                    ("max_buffer_size", layout.largest_buffer(part), context.limits.buffer_bytes),
                ] {
                    if size > limit {
                        bail!(
                            DeviceLimit,
                            "{name}: {} of layer {l} needs {size} bytes, the device has {limit}; the CPU backend or a \
                             device with a larger limit would help",
                            part.name()
                        );
                    }
                }
            }
        }
        let mut cells = weights.cells();
        let mut buffers = Vec::with_capacity(layers.len());
        let stacks = Stack::all(layers, &context.limits);
        let mut stack_buffers = BTreeMap::new();
        for (l, layer) in layers.iter().enumerate() {
            let layout = context.limits.layout(layers, l);
            let (of_layer, rest) = cells.split_at(layer.num_directions());
            cells = rest;
            let packed = pack_layer(&layout, of_layer);
            let uploaded = context
                .guarded("uploading weights", || {
                    ModelPart::ALL.map(|part| {
                        let ranges = (0..layout.num_ranges(part)).map(|i| {
                            let bytes = layout.range_bytes(part, i);
                            let content = &packed.part(part)[(bytes.start / 4) as usize..(bytes.end / 4) as usize];
                            let size = layout.on_device(part, 0..bytes.end - bytes.start).end;
                            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
                            let buffer =
                                new_buffer(&context.device, &format!("lstm.{}.l{l}", part.name()), size, usage);
                            write_weights(context, &buffer, 0, content, layout.is_halved(part));
                            buffer
                        });
                        ranges.collect::<Vec<_>>()
                    })
                })
                .await?;
            buffers.push(uploaded);
            if let Some(stack) = stacks.iter().find(|stack| stack.layers.contains(&l)) {
                let upload = || {
                    let first = stack.layers.start;
                    let buffers = stack_buffers.entry(first).or_insert_with(|| new_stack(context, stack));
                    upload_to_stack(context, buffers, stack, l - first, &packed);
                };
                context.guarded("uploading weights", upload).await?;
            }
        }
        // Writes are staged until a submit; without one the copies of all weights would wait for the first run.
        context.guarded("uploading weights", || context.queue.submit([])).await?;
        for id in kernels(&spec, &context.limits) {
            context.pipeline(id).await?;
        }
        Ok(Self { context: context.clone(), spec, buffers, stacks: stack_buffers, kept: Kept::default() })
    }

    /// Bytes of working buffers of one run.
    pub(crate) fn budget_bytes(&self) -> u64 {
        self.context.limits.budget_bytes
    }

    pub(super) fn buffer(&self, layer: usize, part: ModelPart, range: usize) -> &wgpu::Buffer {
        let index = ModelPart::ALL.iter().position(|&p| p == part).expect("ALL lists every part");
        &self.buffers[layer][index][range]
    }

    /// The matrices or the biases of the stack that begins with a layer.
    pub(super) fn stack(&self, layer: usize, vectors: bool) -> &wgpu::Buffer {
        &self.stacks[&layer][usize::from(vectors)]
    }
}

/// Buffers for the matrices and the biases of a stack.
fn new_stack(context: &Context, stack: &Stack) -> [wgpu::Buffer; 2] {
    let end = *stack.places().last().expect("a stack has layers");
    let column = (COLUMN * size_of::<f32>()) as u64;
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    let matrices = stack.layouts[0].on_device(ModelPart::WeightsHh, 0..end.matrices_end as u64 * column).end;
    [("stack", matrices), ("stack_bias", end.bias_end as u64 * column)]
        .map(|(name, size)| new_buffer(&context.device, &format!("lstm.{name}.l{}", stack.layers.start), size, usage))
}

/// Writes the weights of layer `i` of a stack.
fn upload_to_stack(
    context: &Context,
    [matrices, biases]: &[wgpu::Buffer; 2],
    stack: &Stack,
    i: usize,
    packed: &PackedLayer,
) {
    let places = stack.places()[i];
    let mut parts = vec![(ModelPart::WeightsHh, places.w_hh)];
    if i > 0 {
        parts.push((ModelPart::WeightsIh, places.w_ih));
    }
    for (part, first) in parts {
        write_weights(context, matrices, first, packed.part(part), stack.layouts[i].is_halved(part));
    }
    write_weights(context, biases, places.bias, packed.part(ModelPart::Bias), false);
}

/// Writes columns from column `first` of a buffer on, as halves if it has them.
fn write_weights(context: &Context, buffer: &wgpu::Buffer, first: usize, content: &[f32], halved: bool) {
    let first_byte = (first * COLUMN * size_of::<f32>()) as u64;
    if halved {
        let halves: Vec<f16> = content.iter().map(|&w| f16::from_f32(w)).collect();
        context.queue.write_buffer(buffer, first_byte / 2, bytemuck::cast_slice(&halves));
    } else {
        context.queue.write_buffer(buffer, first_byte, bytemuck::cast_slice(content));
    }
}

/// The variants that batches of any size of this model use.
fn kernels(spec: &LstmSpec, limits: &PlanLimits) -> BTreeSet<KernelId> {
    let mut ids = BTreeSet::new();
    let stacks = Stack::all(spec.layers(), limits);
    let stacks: Vec<_> =
        stacks.into_iter().filter(|stack| stack.takes_wave(1, limits, TileOverride::default())).collect();
    for l in 0..spec.num_layers() {
        let LayerKernels { cell, input, step } = LayerKernels::new(spec.layers(), l);
        let layout = limits.layout(spec.layers(), l);
        // An input that lies in several pieces is projected all the same; that kernel is compiled when it comes to that.
        let narrow = tiles::takes_narrow(&layout, limits, TileOverride::default());
        let of_input = |kernel: Kernel| if narrow { kernel.narrow().unwrap_or(kernel) } else { kernel };
        let starts_stack = stacks.iter().any(|stack| stack.layers.start == l);
        let projection = Some(input).filter(|_| !narrow || starts_stack);
        for (kernel, columns) in projection.into_iter().chain(step) {
            let kernel = of_input(kernel);
            ids.extend(tiles::variants(kernel, cell, columns, sum_len(&layout, kernel), limits));
        }
        if tiles::takes_sequence(&layout, limits, TileOverride::default()) {
            let (kernel, stride) = (of_input(Kernel::Sequence), padded(layout.hidden_size));
            ids.extend([1, 3].map(|sequences| tiles::sequence(kernel, cell, sequences, stride, limits)));
        }
    }
    ids.extend(stacks.iter().flat_map(|stack| stack.variants(limits)));
    ids
}
