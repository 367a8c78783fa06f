//! An application and the engine on one device: the application's kernel, two LSTMs, the application's kernel, in one
//! submit and without a copy to the host.
//!
//! `cargo run --release --example shared_device`. Prints the device and whether the bits are those of separate runs.
//! Exit codes: 0 equal, 1 not equal, 2 no adapter or an error.

use std::process::ExitCode;

use wgpu_lstm::{
    Engine, GpuBatch, GpuTensor, Layout, LstmSpec, LstmWeights, Outputs, SequenceBatch, SequenceOutput, wgpu,
};

/// [B, T, I] of the raw features, and the hidden sizes of the two models.
const SHAPE: [usize; 3] = [16, 50, 12];
const HIDDEN: [usize; 2] = [64, 24];
const LENGTHS: [usize; 16] = [50, 3, 47, 12, 50, 50, 1, 30, 22, 8, 49, 50, 33, 2, 17, 40];
/// Where the application keeps features inside a larger buffer, in f32.
const OFFSET: usize = 1000;

/// What an application has: features are scaled on the way in, scores on the way out.
const KERNEL: &str = "
override SCALE: f32;
override FIRST: u32;
override COUNT: u32;
@group(0) @binding(0) var<storage, read> src: array<f32>;
@group(0) @binding(1) var<storage, read_write> dst: array<f32>;
@compute @workgroup_size(64)
fn scale(@builtin(global_invocation_id) id: vec3u) {
    if id.x < COUNT { dst[FIRST + id.x] = SCALE * src[id.x]; }
}";

fn main() -> ExitCode {
    match pollster::block_on(run()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("shared_device: {e}");
            ExitCode::from(2)
        }
    }
}

async fn run() -> Result<bool, Box<dyn std::error::Error>> {
    // The application opens its device, with what the engine needs among its own requirements.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
    let (device, queue) = adapter
        .request_device(&wgpu::DeviceDescriptor {
            required_limits: Engine::required_limits(&adapter),
            required_features: Engine::required_features(&adapter),
            ..Default::default()
        })
        .await?;
    let engine = Engine::from_device(&adapter, device.clone(), queue.clone()).await?;
    println!("device: {}", engine.device().name);

    let [b, t, i] = SHAPE;
    let lower = engine.load(&LstmWeights::random(&LstmSpec::stack(i, HIDDEN[0], 2).build()?, 1)).await?;
    let upper = engine.load(&LstmWeights::random(&LstmSpec::stack(HIDDEN[0], HIDDEN[1], 1).build()?, 2)).await?;

    let raw: Vec<f32> = (0..b * t * i).map(|n| (n as f32 * 0.37).sin() * 100.0).collect();
    let features = buffer(&device, "features", raw.len());
    let shared = buffer(&device, "shared", OFFSET + raw.len());
    let scores = buffer(&device, "scores", b * HIDDEN[1]);
    queue.write_buffer(&features, 0, bytemuck::cast_slice(&raw));

    // One encoder: scale, LSTM, LSTM, scale. The first LSTM reads the application's buffer where the features lie; the
    // second reads the first one's output. Nothing is submitted until the application does it.
    let mut encoder = device.create_command_encoder(&Default::default());
    scale(&device, &mut encoder, 0.01, &features, &shared, OFFSET, raw.len());
    let input = GpuTensor::new(&shared, 4 * OFFSET as u64, &SHAPE)?;
    let all = Outputs { sequence: SequenceOutput::All, final_state: false, cells: false };
    let batch = GpuBatch::new(&input, Layout::BatchMajor)?.lengths(&LENGTHS)?.outputs(all);
    let middle = lower.record(&mut encoder, &batch)?.output.ok_or("all hidden states were asked for")?;
    let last = Outputs { sequence: SequenceOutput::Last, ..all };
    let batch = GpuBatch::new(&middle, Layout::BatchMajor)?.lengths(&LENGTHS)?.outputs(last);
    let rows = upper.record(&mut encoder, &batch)?.last.ok_or("last hidden states were asked for")?;
    scale(&device, &mut encoder, 2.0, rows.buffer(), &scores, 0, rows.num_elements());
    queue.submit([encoder.finish()]);
    let found = engine.read_back(&GpuTensor::new(&scores, 0, &[b, HIDDEN[1]])?).await?;

    // The same by separate runs, through the host.
    let scaled: Vec<f32> = raw.iter().map(|v| 0.01 * v).collect();
    let batch = SequenceBatch::new(&scaled, SHAPE, Layout::BatchMajor)?.lengths(&LENGTHS)?.outputs(all);
    let middle = lower.run(&batch).await?.output.ok_or("all hidden states were asked for")?;
    let batch = SequenceBatch::new(&middle, [b, t, HIDDEN[0]], Layout::BatchMajor)?.lengths(&LENGTHS)?.outputs(last);
    let rows = upper.run(&batch).await?.last.ok_or("last hidden states were asked for")?;
    let equal = found.iter().zip(&rows).all(|(f, r)| f.to_bits() == (2.0 * r).to_bits()) && found.len() == rows.len();
    println!("scale, LSTM, LSTM, scale in one submit: {}", if equal { "equal bits" } else { "NOT EQUAL" });
    Ok(equal)
}

fn buffer(device: &wgpu::Device, label: &str, len: usize) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: 4 * len as u64,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

/// Records the application's kernel: `count` numbers of `src`, scaled, to `dst` from `first` on.
fn scale(
    device: &wgpu::Device,
    encoder: &mut wgpu::CommandEncoder,
    factor: f64,
    src: &wgpu::Buffer,
    dst: &wgpu::Buffer,
    first: usize,
    count: usize,
) {
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some("application"),
        source: wgpu::ShaderSource::Wgsl(KERNEL.into()),
    });
    let constants = [("SCALE", factor), ("FIRST", first as f64), ("COUNT", count as f64)];
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("application"),
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: wgpu::PipelineCompilationOptions { constants: &constants, ..Default::default() },
        cache: None,
    });
    let entries = [src, dst].into_iter().zip(0..);
    let entries: Vec<_> =
        entries.map(|(b, binding)| wgpu::BindGroupEntry { binding, resource: b.as_entire_binding() }).collect();
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("application"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    });
    let mut pass = encoder.begin_compute_pass(&Default::default());
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(count.div_ceil(64) as u32, 1, 1);
}
