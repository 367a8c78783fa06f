//! Stacks of layers that run side by side: the bits of one layer after another, wherever arrays and states lie.

use libtest_mimic::Failed;
use wgpu_lstm::internals::{Fixed, Kernel, TileOverride, plan, run_fixed, set_poison};
use wgpu_lstm::{BatchOutput, Chunk, Direction, LayerSpec, LstmSpec, Outputs, Precision, SequenceOutput, Tuning};

use crate::bits::{equal_bits, equal_outputs};
use crate::device_rows::{on_device, read};
use crate::fixture::Case;
use crate::{Subject, Test};

pub const TESTS: &[(&str, Test)] = &[
    ("layers_side_by_side_give_the_bits_of_one_after_another", batches),
    ("layers_side_by_side_go_on_from_stored_states", states),
];

fn side_by_side(wave: bool) -> Fixed {
    Fixed { tiles: TileOverride { wave: Some(wave), ..TileOverride::default() }, ..Fixed::default() }
}

/// Layers of different sizes, and a stack above a layer that is none.
fn specs() -> Result<[LstmSpec; 2], Failed> {
    let turning = LayerSpec { direction: Direction::Bidirectional, ..LayerSpec::new(5, 30) };
    Ok([
        LstmSpec::new(vec![LayerSpec::new(6, 100), LayerSpec::new(100, 37), LayerSpec::new(37, 50)])?,
        LstmSpec::new(vec![turning, LayerSpec::new(60, 110), LayerSpec::new(110, 9)])?,
    ])
}

fn batches(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    let halves = subject.open(|o| o.precision(Precision::F16Weights))?;
    set_poison(&engine, Some(f32::NAN));
    let mut most_submits = 0;
    for (n, spec) in specs()?.iter().enumerate() {
        for (lengths, initial) in [(&[6, 0, 11, 3, 11, 1][..], false), (&[6, 0, 11, 3, 11, 1], true), (&[23], true)] {
            let mut case = Case::new("stack", spec, lengths, 23, initial, n as u64);
            let lstm = engine.load_blocking(&case.weights)?;
            for (sequence, final_state, cells) in [
                (SequenceOutput::All, true, true),
                (SequenceOutput::Last, true, false),
                (SequenceOutput::Mean, false, false),
            ] {
                case.outputs = Outputs { sequence, final_state, cells };
                let what = format!("{n} {lengths:?} {initial} {:?}", case.outputs);
                let run = |fixed| -> Result<BatchOutput, Failed> {
                    Ok(run_fixed(&lstm, &case.batch(), fixed).ok_or("not on a GPU")??)
                };
                let expected = run(side_by_side(false))?;
                let whole = plan(&lstm, &case.batch(), side_by_side(true)).ok_or("not on a GPU")??;
                if !whole.kernels.iter().any(|id| id.kernel == Kernel::Wave) {
                    return Err(format!("{what}: the layers do not run side by side").into());
                }
                equal_outputs(&what, &run(side_by_side(true))?, &expected)?;
                // In the smallest chunks that fit a budget.
                let smaller = (60..100).find_map(|percent| {
                    let budget_bytes = Some(whole.scratch_bytes() * percent / 100);
                    let fixed = Fixed { budget_bytes, ..side_by_side(true) };
                    let plan = plan(&lstm, &case.batch(), fixed)?.ok()?;
                    Some((fixed, plan.submits.len()))
                });
                if let Some((fixed, submits)) = smaller {
                    most_submits = most_submits.max(submits);
                    equal_outputs(&format!("{what} in {submits} submits"), &run(fixed)?, &expected)?;
                }
                // As the device chooses; from and to its own memory.
                equal_outputs(&what, &lstm.run_blocking(&case.batch())?, &expected)?;
                let recorded = lstm.submit(&on_device(&engine, &case)?)?;
                equal_outputs(&format!("{what} recorded"), &read(&engine, &recorded)?, &expected)?;
            }
            let lstm = halves.load_blocking(&case.weights)?;
            let run = |wave| run_fixed(&lstm, &case.batch(), side_by_side(wave)).ok_or("not on a GPU");
            equal_outputs("halves", &run(true)??, &run(false)??)?;
        }
    }
    if most_submits < 4 {
        return Err(format!("at most {most_submits} chunks").into());
    }
    Ok(())
}

fn states(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    set_poison(&engine, Some(f32::NAN));
    let spec = LstmSpec::stack(4, 104, 3).build()?;
    let case = Case::new("stream", &spec, &[7, 5], 7, false, 3);
    let lstm = engine.load_blocking(&case.weights)?;
    let chosen = plan(&lstm, &case.batch(), Fixed::default()).ok_or("not on a GPU")??;
    if chosen.kernels.iter().any(|id| id.kernel == Kernel::Wave) != (subject.options.tuning == Tuning::ManyLanes)
        && subject.options.tuning != Tuning::Adapter
    {
        return Err("a device with many lanes runs few sequences side by side, another does not".into());
    }
    let expected = run_fixed(&lstm, &case.batch(), side_by_side(false)).ok_or("not on a GPU")??;
    let expected = expected.output.ok_or("no output")?;
    let mut stream = lstm.stream(3)?;
    // Rows of 4 and 104 values; the second sequence is in slot 0, the first joins later in slot 2.
    let rows = |b: usize, steps: std::ops::Range<usize>| &case.x[(b * 7 + steps.start) * 4..(b * 7 + steps.end) * 4];
    let mut found = [Vec::new(), Vec::new()];
    for (first, second) in [(0..0, 0..2), (0..3, 2..3), (3..4, 3..5), (4..7, 5..5)] {
        let chunks: Vec<(usize, Chunk<'_>)> = [(0, 2, first), (1, 0, second)]
            .into_iter()
            .filter(|(_, _, steps)| !steps.is_empty())
            .map(|(b, slot, steps)| (b, Chunk::new(slot, rows(b, steps))))
            .collect();
        let output = stream.push_blocking(&chunks.iter().map(|(_, chunk)| *chunk).collect::<Vec<_>>())?;
        for (i, (b, _)) in chunks.iter().enumerate() {
            found[*b].extend_from_slice(output.chunk(i));
        }
    }
    equal_bits("first", &found[0], &expected[..7 * 104])?;
    equal_bits("second", &found[1], &expected[7 * 104..12 * 104])
}
