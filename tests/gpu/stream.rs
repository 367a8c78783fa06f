//! Streams: sequences in pieces, whose results equal those of whole sequences to the last bit.

use std::future::Future;
use std::task::{Context, Poll, Waker};

use libtest_mimic::Failed;
use wgpu_lstm::internals::{pooled_bytes, set_poison};
use wgpu_lstm::{
    CellSpec, Chunk, Direction, ErrorKind, GruCell, LstmCell, LstmSpec, Outputs, PushOutput, RnnCell, SequenceOutput,
    SlotState, Stream,
};

use crate::bits::equal_bits;
use crate::fixture::Case;
use crate::support::data::Rng;
use crate::{Subject, Test};

pub const TESTS: &[(&str, Test)] = &[
    ("streams_in_any_pieces_equal_whole_runs", any_pieces),
    ("a_reset_inside_a_chunk_begins_a_new_sequence", resets),
    ("slots_are_reset_forked_saved_and_restored", slots),
    ("a_dropped_push_has_happened_as_a_whole_or_not_at_all", dropped),
    ("a_recorded_push_equals_a_push", recorded),
    ("a_stream_that_does_not_fit_says_how_many_slots_would", too_many),
    ("streams_do_not_grow", no_growth),
];

fn models() -> Result<Vec<LstmSpec>, Failed> {
    let norm = LstmCell { layer_norm: true, peepholes: true, ..LstmCell::default() };
    let stack = |layers| LstmSpec::stack(7, 35, layers);
    let specs = [
        stack(2),
        stack(1).projection(9),
        stack(2).cell(CellSpec::Lstm(norm)).projection(17),
        stack(2).cell(CellSpec::Gru(GruCell::default())),
        stack(2).cell(CellSpec::Gru(GruCell { linear_before_reset: false, ..GruCell::default() })),
        stack(3).cell(CellSpec::Rnn(RnnCell::default())),
    ];
    Ok(specs.into_iter().map(|s| s.build()).collect::<Result<Vec<_>, _>>()?)
}

/// Sequences of a batch-major case and what a whole run says about each: rows, and the final state.
struct Whole {
    case: Case,
    rows: Vec<Vec<f32>>,
    states: Vec<SlotState>,
}

impl Whole {
    fn new(subject: &Subject, spec: &LstmSpec, lengths: &[usize], seed: u64) -> Result<Self, Failed> {
        let seq_len = lengths.iter().copied().max().unwrap_or(0);
        let mut case = Case::new("whole", spec, lengths, seq_len, false, seed);
        case.outputs = Outputs { sequence: SequenceOutput::All, final_state: true, cells: false };
        let output = subject.engine()?.load_blocking(&case.weights)?.run_blocking(&case.batch())?;
        let (y, features) = (output.output.ok_or("no output")?, spec.output_size());
        let rows = (0..lengths.len()).map(|b| y[b * seq_len * features..][..lengths[b] * features].to_vec()).collect();
        let (h, c) = (output.h_n.ok_or("no h_n")?, output.c_n.ok_or("no c_n")?);
        let of = |state: &[f32], b: usize, width: fn(&wgpu_lstm::LayerSpec) -> usize| {
            crate::fixture::select_state(spec, state, lengths.len(), &[b], width)
        };
        let states = (0..lengths.len())
            .map(|b| SlotState::new(of(&h, b, wgpu_lstm::LayerSpec::h_size), of(&c, b, wgpu_lstm::LayerSpec::c_size)));
        let states = states.collect();
        Ok(Self { case, rows, states })
    }

    fn x(&self, b: usize, steps: std::ops::Range<usize>) -> &[f32] {
        let width = self.case.spec().input_size();
        &self.case.x[(b * self.case.seq_len + steps.start) * width..][..steps.len() * width]
    }

    fn stream(&self, subject: &Subject, num_slots: usize) -> Result<Stream, Failed> {
        let engine = subject.engine()?;
        set_poison(&engine, Some(f32::NAN));
        Ok(engine.load_blocking(&self.case.weights)?.stream(num_slots)?)
    }
}

fn equal_states(what: &str, found: &SlotState, expected: &SlotState) -> Result<(), Failed> {
    equal_bits(&format!("{what}: h"), found.h(), expected.h())?;
    equal_bits(&format!("{what}: c"), found.c(), expected.c())
}

fn any_pieces(subject: &Subject) -> Result<(), Failed> {
    let mut rng = Rng::new(5);
    for (n, spec) in models()?.iter().enumerate() {
        let lengths = [23, 9, 40, 1, 17, 30, 2, 11];
        let whole = Whole::new(subject, spec, &lengths, n as u64)?;
        let features = spec.output_size();
        // Sequence b lies in slot 3·b; the other slots are never used.
        let mut stream = whole.stream(subject, 24)?;
        let mut at = [0usize; 8];
        while at.iter().zip(&lengths).any(|(a, l)| a < l) {
            // A random subset, each with a chunk of its own length, in random order, and one empty chunk.
            let mut chosen: Vec<usize> = (0..8).filter(|_| rng.below(3) > 0).collect();
            let turn = rng.below(chosen.len().max(1));
            chosen.rotate_left(turn);
            let parts: Vec<_> = chosen.iter().map(|&b| (b, at[b]..lengths[b].min(at[b] + rng.below(12)))).collect();
            let kinds = [SequenceOutput::All, SequenceOutput::Last, SequenceOutput::None];
            let only_last = rng.below(4) == 0;
            let chunks: Vec<Chunk<'_>> = parts
                .iter()
                .map(|(b, steps)| {
                    let kind = if only_last { SequenceOutput::Last } else { kinds[rng.below(6).saturating_sub(3)] };
                    Chunk::new(3 * b, whole.x(*b, steps.clone())).output(kind)
                })
                .collect();
            let output = stream.push_blocking(&chunks)?;
            for (i, (b, steps)) in parts.iter().enumerate() {
                let what = format!("{:?}: sequence {b}, steps {steps:?}", spec.layers()[0].cell);
                let rows = &whole.rows[*b][steps.start * features..steps.end * features];
                let expected = match output.chunk(i).len() {
                    n if n == rows.len() => rows,
                    n if n == features => &rows[rows.len() - features..],
                    0 => &[],
                    n => return Err(format!("{what}: {n} values").into()),
                };
                equal_bits(&what, output.chunk(i), expected)?;
                at[*b] = steps.end;
            }
        }
        let states = pollster::block_on(stream.save_all())?;
        for (b, expected) in whole.states.iter().enumerate() {
            equal_states(&format!("final state {b}"), &states[3 * b], expected)?;
            if states[3 * b + 1].h().iter().any(|&v| v != 0.0) {
                return Err("a slot that was never pushed is not zero".into());
            }
        }
    }
    Ok(())
}

fn resets(subject: &Subject) -> Result<(), Failed> {
    for (n, spec) in models()?.iter().enumerate() {
        let whole = Whole::new(subject, spec, &[10, 10], 20 + n as u64)?;
        let features = spec.output_size();
        let mut stream = whole.stream(subject, 2)?;
        // Steps 0..4, reset, 0..7, reset, 0..1 of sequence 0 in one chunk, beside sequence 1 without a reset.
        stream.push_blocking(&[Chunk::new(0, whole.x(1, 0..3)), Chunk::new(1, whole.x(1, 0..2))])?;
        let x = [whole.x(0, 0..4), whole.x(0, 0..7), whole.x(0, 0..1)].concat();
        let output = stream.push_blocking(&[
            Chunk::new(0, &x).resets(&[0, 4, 11]),
            Chunk::new(1, whole.x(1, 2..10)).output(SequenceOutput::Last),
        ])?;
        let part = |steps: usize| &whole.rows[0][..steps * features];
        equal_bits("resets", output.chunk(0), &[part(4), part(7), part(1)].concat())?;
        equal_bits("its neighbour", output.chunk(1), &whole.rows[1][9 * features..])?;
        let output = stream.push_blocking(&[Chunk::new(0, whole.x(0, 1..10))])?;
        equal_bits("after a reset", output.chunk(0), &whole.rows[0][features..])?;
        equal_states("the state after a reset", &stream.save_blocking(0)?, &whole.states[0])?;
    }
    Ok(())
}

fn slots(subject: &Subject) -> Result<(), Failed> {
    let spec = LstmSpec::stack(7, 35, 2).build()?;
    let whole = Whole::new(subject, &spec, &[12, 12], 31)?;
    let features = spec.output_size();
    let mut stream = whole.stream(subject, 5)?;
    let push = |stream: &mut Stream, slot: usize, b: usize, steps: std::ops::Range<usize>| -> Result<(), Failed> {
        let rows = &whole.rows[b][steps.start * features..steps.end * features];
        let output = stream.push_blocking(&[Chunk::new(slot, whole.x(b, steps.clone()))])?;
        equal_bits(&format!("slot {slot}: sequence {b}, steps {steps:?}"), output.chunk(0), rows)
    };
    push(&mut stream, 0, 0, 0..5)?;
    stream.fork(0, 3)?;
    push(&mut stream, 0, 0, 5..9)?;
    let saved = stream.save_blocking(0)?;
    push(&mut stream, 0, 0, 9..12)?;
    push(&mut stream, 3, 0, 5..12)?;
    equal_states("the fork", &stream.save_blocking(3)?, &whole.states[0])?;
    stream.restore(4, &saved)?;
    push(&mut stream, 4, 0, 9..12)?;
    stream.reset(3)?;
    push(&mut stream, 3, 1, 0..12)?;
    // A fork of a fresh slot is fresh; of itself, no change.
    stream.fork(2, 3)?;
    push(&mut stream, 3, 1, 0..2)?;
    stream.fork(3, 3)?;
    push(&mut stream, 3, 1, 2..12)?;
    // A saved state fits another engine and another number of slots.
    let other = subject.open(|o| o)?;
    let mut elsewhere = other.load_blocking(&whole.case.weights)?.stream(1)?;
    elsewhere.restore(0, &saved)?;
    push(&mut elsewhere, 0, 0, 9..12)
}

fn dropped(subject: &Subject) -> Result<(), Failed> {
    let spec = LstmSpec::stack(7, 35, 1).build()?;
    let whole = Whole::new(subject, &spec, &[30], 41)?;
    let features = spec.output_size();
    let mut stream = whole.stream(subject, 1)?;
    let mut at = 0;
    let mut happened = [false; 2];
    for n in 0..5 {
        // Polled never, or once: then it has submitted its work and waits.
        let chunk = [Chunk::new(0, whole.x(0, at..at + 3))];
        let mut push = Box::pin(stream.push(&chunk));
        if n % 2 == 1 {
            let _: Poll<Result<PushOutput, _>> = push.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
        drop(push);
        let state = stream.save_blocking(0)?;
        let after = |steps: usize| -> Result<SlotState, Failed> {
            let mut other = whole.stream(subject, 1)?;
            other.push_blocking(&[Chunk::new(0, whole.x(0, 0..steps))])?;
            Ok(other.save_blocking(0)?)
        };
        let yes = state == after(at + 3)?;
        if !yes && state != after(at)? {
            return Err(format!("push {n} has happened in part").into());
        }
        happened[usize::from(yes)] = true;
        at += if yes { 3 } else { 0 };
        let output = stream.push_blocking(&[Chunk::new(0, whole.x(0, at..at + 1))])?;
        equal_bits("after a drop", output.chunk(0), &whole.rows[0][at * features..(at + 1) * features])?;
        at += 1;
    }
    if happened != [true, true] {
        return Err("expected pushes that happened and pushes that did not".into());
    }
    Ok(())
}

fn recorded(subject: &Subject) -> Result<(), Failed> {
    let spec = LstmSpec::stack(7, 35, 2).build()?;
    let whole = Whole::new(subject, &spec, &[9, 6], 51)?;
    let features = spec.output_size();
    let mut stream = whole.stream(subject, 4)?;
    let engine = stream.lstm().engine().clone();
    let (device, queue) = engine.device_and_queue().ok_or("not on a GPU")?;
    // Three pushes in one submit; the second leaves its output unread.
    let mut encoder = device.create_command_encoder(&Default::default());
    let upload = |parts: &[&[f32]]| {
        let x = parts.concat();
        engine.upload(&x, &[x.len() / 7, 7])
    };
    let first = upload(&[whole.x(0, 0..4), whole.x(1, 0..1)])?;
    let second = upload(&[whole.x(1, 1..5)])?;
    let third = upload(&[whole.x(1, 5..6), whole.x(0, 4..9)])?;
    let a = stream.record(&mut encoder, &first, &[(2, 4), (0, 1)], SequenceOutput::All)?.ok_or("no output")?;
    stream.record(&mut encoder, &second, &[(0, 4)], SequenceOutput::None)?;
    let c = stream.record(&mut encoder, &third, &[(0, 1), (2, 5)], SequenceOutput::Last)?.ok_or("no output")?;
    queue.submit([encoder.finish()]);
    let rows = |b: usize, steps: std::ops::Range<usize>| &whole.rows[b][steps.start * features..steps.end * features];
    equal_bits("first", &engine.read_back_blocking(&a)?, &[rows(0, 0..4), rows(1, 0..1)].concat())?;
    equal_bits("third", &engine.read_back_blocking(&c)?, &[rows(1, 5..6), rows(0, 8..9)].concat())?;
    equal_states("slot 2", &stream.save_blocking(2)?, &whole.states[0])?;
    equal_states("slot 0", &stream.save_blocking(0)?, &whole.states[1])?;
    let mut encoder = device.create_command_encoder(&Default::default());
    match stream.record(&mut encoder, &second, &[(0, 3)], SequenceOutput::All) {
        Err(e) if e.kind() == ErrorKind::InvalidInput && e.to_string().contains("expected shape [3, 7]") => Ok(()),
        other => Err(format!("expected an InvalidInput, found {other:?}").into()),
    }
}

fn too_many(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o.limits(wgpu_lstm::LimitsProfile::WebGpuDefaults))?;
    let spec = LstmSpec::stack(4, 1024, 1).build()?;
    let lstm = engine.load_blocking(&wgpu_lstm::LstmWeights::random(&spec, 1))?;
    // 256 MiB of 8 KiB each.
    match lstm.stream(32769) {
        Err(e) if e.kind() == ErrorKind::DeviceLimit && e.to_string().contains("; 32768 slots would fit") => {}
        other => return Err(format!("expected a DeviceLimit, found {other:?}").into()),
    }
    // More than a binding has: the last slot, the first, and one in the middle.
    let mut stream = lstm.stream(32768)?;
    let x = [[0.5; 4], [0.25; 4], [-0.5; 4]].concat();
    let slots = [32767, 0, 16384];
    let chunks =
        |at: &[usize]| -> Vec<Chunk<'_>> { at.iter().map(|&i| Chunk::new(slots[i], &x[4 * i..4 * i + 4])).collect() };
    let together: Vec<Vec<f32>> = stream.push_blocking(&chunks(&[0, 1, 2]))?.iter().map(<[f32]>::to_vec).collect();
    let again = stream.push_blocking(&chunks(&[2, 0, 1]))?;
    let mut few = lstm.stream(3)?;
    for (n, i) in [2, 0, 1].into_iter().enumerate() {
        for (step, found) in [(0, &together[i][..]), (1, again.chunk(n))] {
            let alone = few.push_blocking(&[Chunk::new(i, &x[4 * i..4 * i + 4])])?;
            equal_bits(&format!("slot {}, step {step}", slots[i]), found, alone.chunk(0))?;
        }
    }
    let two_ways = LstmSpec::stack(4, 8, 2).direction(Direction::Bidirectional).build()?;
    match engine.load_blocking(&wgpu_lstm::LstmWeights::random(&two_ways, 1))?.stream(1) {
        Err(e) if e.kind() == ErrorKind::Unsupported && e.to_string().contains("layer 0") => Ok(()),
        other => Err(format!("expected an Unsupported, found {other:?}").into()),
    }
}

fn no_growth(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.open(|o| o)?;
    let spec = LstmSpec::stack(7, 35, 2).build()?;
    let lstm = engine.load_blocking(&wgpu_lstm::LstmWeights::random(&spec, 1))?;
    let mut stream = lstm.stream(10)?;
    let x = [0.5; 7];
    let push = |stream: &mut Stream| stream.push_blocking(&[Chunk::new(1, &x), Chunk::new(4, &x)]);
    push(&mut stream)?;
    let after_one = pooled_bytes(&engine);
    for _ in 0..100 {
        push(&mut stream)?;
    }
    let after_many = pooled_bytes(&engine);
    if after_one == 0 || after_many != after_one {
        return Err(format!("pooled bytes went from {after_one} to {after_many}").into());
    }
    Ok(())
}
