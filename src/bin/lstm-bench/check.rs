//! Whether a result is right, before it counts.
//!
//! At full size: every number finite, zeros past the lengths, agreement with the device before. Against the f64
//! reference: chosen sequences, and for large cases only their first timesteps, run again on the same device.

use wgpu_lstm::{BatchOutput, Lstm};

use crate::cases::Inputs;
use crate::common::failure::{Result, fail};
use crate::common::spec_text::multiply_adds_per_row;
use crate::common::verify;

/// Work of the reference per case, in multiply-adds: about a second.
const MULTIPLY_ADDS: f64 = 1e9;
/// How far two devices may be apart at full size. Each is held to the reference where it can be afforded; this is
/// to find steps that went wrong later, and those are off by far more.
const AGREEMENT: f32 = 1e-4;

/// Checks the result of `inputs` on a loaded model.
pub(crate) fn check(lstm: &Lstm, inputs: &Inputs, result: &BatchOutput) -> Result<()> {
    let batch = inputs.batch(inputs.state.as_ref())?;
    let width = lstm.spec().output_size();
    for (name, array) in [("output", &result.output), ("h_n", &result.h_n), ("c_n", &result.c_n)] {
        let Some(array) = array else { fail!("{name}: expected an array, found none") };
        if let Some(i) = array.iter().position(|v| !v.is_finite()) {
            fail!("{name}: expected finite numbers, found {} at element {i}", array[i]);
        }
    }
    let output = result.output.as_deref().unwrap_or_default();
    for (row, values) in output.chunks_exact(width).enumerate() {
        let (b, t) = (row / batch.seq_len(), row % batch.seq_len());
        if t >= inputs.lengths()[b] && values.iter().any(|&v| v != 0.0) {
            fail!("output: expected zeros past the length of sequence {b}, found others at step {t}");
        }
    }

    let sequences = verify::sample(lstm.spec(), inputs.lengths(), MULTIPLY_ADDS);
    let rows: usize = sequences.iter().map(|&b| inputs.lengths()[b]).sum();
    let affordable = MULTIPLY_ADDS / multiply_adds_per_row(lstm.spec());
    let verdict = if rows as f64 <= affordable {
        verify::verify(&inputs.weights, &batch, result, &sequences)?
    } else {
        let steps = (affordable / sequences.len().max(1) as f64).ceil() as usize;
        let short = inputs.truncated(steps.max(2));
        let batch = short.batch(short.state.as_ref())?;
        let result = lstm.run_blocking(&batch)?;
        verify::verify(&inputs.weights, &batch, &result, &sequences)?
    };
    verdict.check()
}

/// Checks that two devices agree.
pub(crate) fn agree(first: &BatchOutput, second: &BatchOutput) -> Result<()> {
    for (name, a, b) in
        [("output", &first.output, &second.output), ("h_n", &first.h_n, &second.h_n), ("c_n", &first.c_n, &second.c_n)]
    {
        let (Some(a), Some(b)) = (a, b) else { continue };
        let far = |(a, b): (&f32, &f32)| !((a - b).abs() <= AGREEMENT * a.abs().max(1.0));
        if a.len() != b.len() {
            fail!("{name}: {} elements, {} on the device before", b.len(), a.len());
        }
        if let Some(i) = a.iter().zip(b).position(far) {
            fail!("{name}: found {:e} at element {i}, {:e} on the device before", b[i], a[i]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{TABLE, parse};
    use wgpu_lstm::{DeviceChoice, Engine, EngineOptions};

    /// Whether a ragged case on the CPU backend passes with its result changed by `change`.
    fn outcome(change: impl Fn(&mut BatchOutput)) -> Result<()> {
        let case = parse(TABLE).unwrap().into_iter().find(|c| c.min_len == Some(0)).unwrap();
        let inputs = case.inputs().unwrap();
        let engine = Engine::open_blocking(EngineOptions::on(DeviceChoice::Cpu)).unwrap();
        let lstm = engine.load_blocking(&inputs.weights).unwrap();
        let mut result = lstm.run_blocking(&inputs.batch(None).unwrap()).unwrap();
        change(&mut result);
        check(&lstm, &inputs, &result)
    }

    #[test]
    fn wrong_results_do_not_pass() {
        let message = |change: fn(&mut BatchOutput)| outcome(change).unwrap_err().to_string();
        assert_eq!(outcome(|_| ()), Ok(()));
        assert!(message(|r| r.output.as_mut().unwrap()[0] += 1e-3).contains("f64 reference: output"));
        assert!(message(|r| r.h_n.as_mut().unwrap()[5] = f32::NAN).contains("h_n: expected finite"));
        assert!(message(|r| r.c_n = None).contains("c_n: expected an array"));
        // The last zero is past a length.
        let past = |r: &mut BatchOutput| *r.output.as_mut().unwrap().iter_mut().rfind(|v| **v == 0.0).unwrap() = 0.5;
        assert!(message(past).contains("past the length"));
    }

    #[test]
    fn devices_that_disagree_are_told_apart() {
        let result = |v: f32| BatchOutput { output: Some(vec![0.5, v]), ..BatchOutput::default() };
        assert!(agree(&result(0.25), &result(0.250_01)).is_ok());
        assert!(agree(&result(0.25), &result(0.26)).is_err());
        assert!(agree(&result(0.25), &result(f32::NAN)).is_err());
    }
}
