//! One library on one case, in a process of its own, driven by compare.py through lines; see workers.py.

mod case;
#[cfg(feature = "burn")]
mod with_burn;
#[cfg(feature = "rten")]
mod with_rten;
#[cfg(feature = "tract")]
mod with_tract;
mod with_wgpu_lstm;

use std::error::Error;
use std::io::BufRead;
use std::time::Instant;

use case::Case;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A loaded model.
pub trait Worker {
    /// All hidden states [T, B, D·H]; the final states are computed too, and kept where the case carries them.
    fn run(&mut self) -> Result<Vec<f32>>;
}

fn worker(peer: &str, case: &Case) -> Result<(Box<dyn Worker>, String)> {
    match peer {
        #[cfg(feature = "burn")]
        "burn" => {
            let (worker, name) = with_burn::Burn::new(case)?;
            Ok((Box::new(worker), name))
        }
        #[cfg(feature = "tract")]
        "tract" => Ok((Box::new(with_tract::Tract::new(case)?), "0.23".to_owned())),
        #[cfg(feature = "rten")]
        "rten" => Ok((Box::new(with_rten::Rten::new(case)?), "0.27".to_owned())),
        _ => match peer.strip_prefix("wgpu-lstm:") {
            Some(device) => {
                let (worker, name) = with_wgpu_lstm::WgpuLstm::new(case, device)?;
                Ok((Box::new(worker), name))
            }
            None => Err(format!("{peer}: not built in").into()),
        },
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, peer, folder, _threads] = arguments.as_slice() else { return Err("usage: PEER FOLDER THREADS".into()) };
    let case = Case::read(folder.as_ref())?;
    let begin = Instant::now();
    let (mut worker, version) = worker(peer, &case)?;
    let load = begin.elapsed().as_secs_f64();
    let y = worker.run()?;
    let first = begin.elapsed().as_secs_f64() - load;
    let bytes: Vec<u8> = y.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(case.folder.join(format!("y-{peer}.f32")), bytes)?;
    println!("{}", serde_json::json!({ "version": version, "load": load, "first": first }));
    for line in std::io::stdin().lock().lines() {
        let runs: usize = line?.trim().parse()?;
        let mut times = Vec::with_capacity(runs);
        for _ in 0..runs {
            let start = Instant::now();
            std::hint::black_box(worker.run()?);
            times.push(start.elapsed().as_secs_f64());
        }
        println!("{}", serde_json::json!(times));
    }
    Ok(())
}
