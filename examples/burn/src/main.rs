//! Burn and the engine on one device: an LSTM reads a tensor of Burn and writes one, and nothing passes through the host.
//!
//! `cargo run --release --manifest-path examples/burn/Cargo.toml`. Burn 0.22 and this crate share wgpu 30; with another
//! version of wgpu the types would not be the same. Exit codes: 0 equal bits, 1 not equal, 2 an error.

use std::error::Error;
use std::process::ExitCode;

use burn::tensor::{Device, Distribution, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_wgpu::{AutoCompiler, Wgpu, WgpuResource};
use cubecl::wgpu::WgpuServer;
use wgpu_lstm::{
    Engine, GpuBatch, GpuTensor, Layout, LstmSpec, LstmWeights, Outputs, SequenceBatch, SequenceOutput, wgpu,
};

/// [B, T, I], and H.
const SHAPE: [usize; 3] = [8, 20, 12];
const HIDDEN: usize = 32;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("burn: {e}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, Box<dyn Error>> {
    // Burn opens the device; the engine shares it.
    let (device, setup) = Device::wgpu_options().init_with_setup()?;
    let (gpu, queue) = (setup.device.clone(), setup.queue.clone());
    let engine = pollster::block_on(Engine::from_device(&setup.adapter, gpu.clone(), queue.clone()))?;
    println!("device: {}", engine.device().name);
    let lstm = engine.load_blocking(&LstmWeights::random(&LstmSpec::stack(SHAPE[2], HIDDEN, 2).build()?, 1))?;

    // Burn computes the input on the device ...
    let x = Tensor::<3>::random(SHAPE, Distribution::Uniform(-1.0, 1.0), &device) * 0.5;
    // ... and makes room for the output there.
    let [b, t, _] = SHAPE;
    let y = Tensor::<3>::zeros([b, t, HIDDEN], &device);
    let (input, _input_memory) = lend(x.clone())?;
    let (output, _output_memory) = lend(y.clone())?;

    // Both are parts of larger buffers of Burn's, at offsets of their own.
    let batch = GpuBatch::new(&input, Layout::BatchMajor)?.output_into(&output);
    let batch = batch.outputs(Outputs { sequence: SequenceOutput::All, final_state: false, cells: false });
    let mut encoder = gpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    lstm.record(&mut encoder, &batch)?;
    // Burn's work up to here was flushed when the tensors were lent, so it comes first in the queue.
    queue.submit([encoder.finish()]);

    // Burn goes on with the result; its kernels come after ours in the queue.
    let found: Vec<f32> = (y * 2.0).into_data().try_to_vec()?;

    // The same through the host.
    let x: Vec<f32> = x.into_data().try_to_vec()?;
    let rows = lstm.run_blocking(&SequenceBatch::new(&x, SHAPE, Layout::BatchMajor)?)?.output.unwrap_or_default();
    let equal = found.len() == rows.len() && found.iter().zip(&rows).all(|(f, r)| f.to_bits() == (2.0 * r).to_bits());
    println!("Burn, LSTM, Burn on one device: {}", if equal { "equal bits" } else { "NOT EQUAL" });
    Ok(equal)
}

/// A tensor of Burn as the engine sees it, and what keeps its memory in place. Everything that Burn has queued for it is
/// submitted.
fn lend(tensor: Tensor<3>) -> Result<(GpuTensor, impl Sized), Box<dyn Error>> {
    let shape = tensor.dims();
    let primitive = tensor.try_into_primitive::<Wgpu>().map_err(|e| format!("{e:?}"))?;
    // Rows of a transposed or sliced tensor lie apart.
    let dense = into_contiguous(primitive);
    dense.client.flush().map_err(|e| format!("{e:?}"))?;
    let resource = dense.client.get_resource::<WgpuServer<AutoCompiler>>(dense.handle.clone());
    let memory = resource.map_err(|e| format!("{e:?}"))?;
    let WgpuResource { buffer, offset, .. } = memory.resource();
    Ok((GpuTensor::new(buffer, *offset, &shape)?, memory))
}
