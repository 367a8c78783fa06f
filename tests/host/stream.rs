//! Streams on the CPU backend and the reference, and what a push refuses.

use wgpu_lstm::{
    Chunk, DeviceChoice, Direction, Engine, EngineOptions, ErrorKind, Layout, LstmSpec, LstmWeights, SequenceBatch,
    SequenceOutput, SlotState, Stream,
};

use crate::support::data::{Rng, distinct_weights};

const STEPS: usize = 12;

fn stream(device: DeviceChoice, spec: &LstmSpec, num_slots: usize) -> Stream {
    let engine = Engine::open_blocking(EngineOptions::on(device)).unwrap();
    engine.load_blocking(&distinct_weights(spec, 1)).unwrap().stream(num_slots).unwrap()
}

fn input(spec: &LstmSpec, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..STEPS * spec.input_size()).map(|_| rng.symmetric(1.5)).collect()
}

/// The rows of a whole run, and its final state.
fn whole(stream: &Stream, x: &[f32]) -> (Vec<f32>, SlotState) {
    let width = stream.lstm().spec().input_size();
    let batch = SequenceBatch::new(x, [1, x.len() / width, width], Layout::BatchMajor).unwrap();
    let output = stream.lstm().run_blocking(&batch).unwrap();
    (output.output.unwrap(), SlotState::new(output.h_n.unwrap(), output.c_n.unwrap()))
}

fn equal(found: &[f32], expected: &[f32]) {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(found), bits(expected));
}

#[test]
fn pieces_equal_whole_sequences() {
    let spec = LstmSpec::stack(3, 8, 2).projection(5).build().unwrap();
    for device in [DeviceChoice::Reference, DeviceChoice::Cpu] {
        let mut stream = stream(device, &spec, 4);
        let (a, b) = (input(&spec, 1), input(&spec, 2));
        let (y_a, state_a) = whole(&stream, &a);
        let (y_b, _) = whole(&stream, &b);
        let (mut found_a, mut found_b) = (Vec::new(), Vec::new());
        for (n, steps) in [0..1, 1..1, 1..6, 6..STEPS].into_iter().enumerate() {
            let x = &a[steps.start * 3..steps.end * 3];
            let chunks = [Chunk::new(2, x), Chunk::new(0, &b[n * 9..(n + 1) * 9])];
            let output = stream.push_blocking(&chunks).unwrap();
            found_a.extend_from_slice(output.chunk(0));
            found_b.extend_from_slice(output.chunk(1));
        }
        equal(&found_a, &y_a);
        equal(&found_b, &y_b);
        let state = stream.save_blocking(2).unwrap();
        equal(state.h(), state_a.h());
        equal(state.c(), state_a.c());

        // Reset inside a chunk, fork, restore.
        let twice = [&a[..9], &a[..15]].concat();
        let output = stream.push_blocking(&[Chunk::new(1, &twice).resets(&[3])]).unwrap();
        equal(output.chunk(0), &[&y_a[..15], &y_a[..25]].concat());
        stream.fork(1, 3).unwrap();
        let saved = stream.save_blocking(1).unwrap();
        stream.reset(1).unwrap();
        let rest = &a[15..];
        let last = Chunk::new(3, rest).output(SequenceOutput::Last);
        let output = stream.push_blocking(&[last, Chunk::new(1, &a).output(SequenceOutput::None)]).unwrap();
        equal(output.chunk(0), &y_a[y_a.len() - 5..]);
        assert!(output.chunk(1).is_empty());
        stream.restore(0, &saved).unwrap();
        let output = stream.push_blocking(&[Chunk::new(0, rest)]).unwrap();
        equal(output.chunk(0), &y_a[25..]);
        assert_eq!(output.iter().count(), 1);
    }
}

#[test]
fn bad_pushes_name_the_offender_and_change_nothing() {
    let spec = LstmSpec::stack(3, 4, 1).build().unwrap();
    let mut stream = stream(DeviceChoice::Reference, &spec, 3);
    let x = [0.5; 6];
    stream.push_blocking(&[Chunk::new(1, &x)]).unwrap();
    let before = pollster::block_on(stream.save_all()).unwrap();
    let nan = [0.5, 0.5, 0.5, 0.5, f32::NAN, 0.5];
    for (chunks, part) in [
        (vec![Chunk::new(3, &x)], "slot: expected 0 to 2, found 3"),
        (vec![Chunk::new(1, &x), Chunk::new(1, &x)], "chunk 1: expected another slot than those before, found slot 1"),
        (vec![Chunk::new(0, &x), Chunk::new(1, &x[..4])], "chunk 1 of slot 1: expected rows of input_size 3, found 4"),
        (vec![Chunk::new(1, &nan)], "found NaN at step 1, feature 1"),
        (vec![Chunk::new(1, &x).resets(&[2])], "expected ascending resets below 2, found [2]"),
        (vec![Chunk::new(1, &x).resets(&[1, 1])], "found [1, 1]"),
        (vec![Chunk::new(1, &[]).resets(&[0])], "below 0"),
    ] {
        let error = stream.push_blocking(&chunks).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(stream.reset(3).is_err() && stream.fork(0, 3).is_err() && stream.fork(3, 0).is_err());
    assert!(stream.save_blocking(3).is_err());
    for (h, c, part) in [
        (vec![0.0; 5], vec![0.0; 4], "state.h: expected 4 elements"),
        (vec![0.0; 4], vec![], "state.c: expected 4 elements"),
        (vec![0.0; 4], vec![0.0, f32::INFINITY, 0.0, 0.0], "found inf at element 1"),
    ] {
        let error = stream.restore(1, &SlotState::new(h, c)).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(pollster::block_on(stream.save_all()).unwrap(), before);
    assert!(stream.push_blocking(&[]).unwrap().iter().next().is_none());

    let lstm = stream.lstm().clone();
    assert!(lstm.stream(0).unwrap_err().to_string().contains("slots: expected 1 to"));
    let reverse = LstmSpec::stack(3, 4, 1).direction(Direction::Reverse).build().unwrap();
    let engine = Engine::open_blocking(EngineOptions::on(DeviceChoice::Reference)).unwrap();
    let error = engine.load_blocking(&LstmWeights::random(&reverse, 1)).unwrap().stream(1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
