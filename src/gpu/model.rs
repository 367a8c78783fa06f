//! A model on the device: packed weights, uploaded once.

use std::collections::BTreeSet;
use std::sync::Arc;

use half::f16;

use super::device::{Context, new_buffer};
use crate::error::{Result, bail};
use crate::kernels::{Kernel, KernelId, ModelPart, padded};
use crate::pack::pack_layer;
use crate::plan::{LayerKernels, PlanLimits, TileOverride, sum_len, tiles};
use crate::spec::LstmSpec;
use crate::weights::LstmWeights;

/// The buffers of a loaded model.
pub(crate) struct GpuLstm {
    pub(super) context: Arc<Context>,
    pub(super) spec: LstmSpec,
    /// Per layer, by [`ModelPart`], one per range; none for a part that the layer does not have.
    buffers: Vec<[Vec<wgpu::Buffer>; 7]>,
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
                            if layout.is_halved(part) {
                                let halves: Vec<f16> = content.iter().map(|&w| f16::from_f32(w)).collect();
                                context.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&halves));
                            } else {
                                context.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(content));
                            }
                            buffer
                        });
                        ranges.collect::<Vec<_>>()
                    })
                })
                .await?;
            buffers.push(uploaded);
        }
        // Writes are staged until a submit; without one the copies of all weights would wait for the first run.
        context.guarded("uploading weights", || context.queue.submit([])).await?;
        for id in kernels(&spec, &context.limits) {
            context.pipeline(id).await?;
        }
        Ok(Self { context: context.clone(), spec, buffers })
    }

    /// Bytes of working buffers of one run.
    pub(crate) fn budget_bytes(&self) -> u64 {
        self.context.limits.budget_bytes
    }

    pub(super) fn buffer(&self, layer: usize, part: ModelPart, range: usize) -> &wgpu::Buffer {
        let index = ModelPart::ALL.iter().position(|&p| p == part).expect("ALL lists every part");
        &self.buffers[layer][index][range]
    }
}

/// The variants that batches of any size of this model use.
fn kernels(spec: &LstmSpec, limits: &PlanLimits) -> BTreeSet<KernelId> {
    let mut ids = BTreeSet::new();
    for l in 0..spec.num_layers() {
        let LayerKernels { cell, input, step } = LayerKernels::new(spec.layers(), l);
        let layout = limits.layout(spec.layers(), l);
        // An input that lies in several pieces is projected all the same; that kernel is compiled when it comes to that.
        let narrow = tiles::takes_narrow(&layout, TileOverride::default());
        let of_input = |kernel: Kernel| if narrow { kernel.narrow().unwrap_or(kernel) } else { kernel };
        let projection = Some(input).filter(|_| !narrow);
        for (kernel, columns) in projection.into_iter().chain(step) {
            let kernel = of_input(kernel);
            ids.extend(tiles::variants(kernel, cell, columns, sum_len(&layout, kernel), limits));
        }
        if tiles::takes_sequence(&layout, limits, TileOverride::default()) {
            let (kernel, stride) = (of_input(Kernel::Sequence), padded(layout.hidden_size));
            ids.extend([1, 3].map(|sequences| tiles::sequence(kernel, cell, sequences, stride, limits)));
        }
    }
    ids
}
