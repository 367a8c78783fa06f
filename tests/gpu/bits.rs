//! Equal bits: whoever the neighbours, whatever the padding, chunks, tiles and outputs asked for.

use libtest_mimic::Failed;
use wgpu_lstm::internals::{Fixed, Kernel, LANE_TILES, ROW_TILES, SLICE_TILES, TileOverride, plan, run_fixed};
use wgpu_lstm::{
    BatchOutput, CellSpec, Direction, Engine, GruCell, LayerSpec, LstmCell, LstmSpec, Merge, Outputs, Precision,
    RnnCell, SequenceOutput,
};

use crate::fixture::{Case, select_state, valid_rows, variant_layers};
use crate::{Subject, Test};

pub const TESTS: &[(&str, Test)] = &[
    ("bits_do_not_depend_on_batch_neighbours", neighbours),
    ("bits_do_not_depend_on_padding_or_axis_order", padding),
    ("bits_do_not_depend_on_chunks", chunks),
    ("bits_do_not_depend_on_tiles", tiles),
    ("weights_as_halves_are_the_rounded_weights", halves),
    ("bits_do_not_depend_on_what_is_asked_for", outputs),
    ("two_runs_with_carried_state_equal_one", carried_state),
    ("repeated_runs_are_equal", repeated),
];

/// Models whose sums have several segments and whose rows use every tile.
fn models() -> Vec<LstmSpec> {
    let stack = |input, hidden, layers| LstmSpec::stack(input, hidden, layers);
    let norm = LstmCell { layer_norm: true, peepholes: true, ..LstmCell::default() };
    let gru = GruCell { activation_clip: Some(0.5), ..GruCell::default() };
    [
        stack(40, 37, 1).cell(CellSpec::Lstm(norm)).direction(Direction::Bidirectional).projection(9),
        stack(7, 35, 2).cell(CellSpec::Gru(gru)).direction(Direction::Bidirectional).merge(Merge::Sum),
        stack(7, 35, 2).cell(CellSpec::Gru(GruCell { linear_before_reset: false, ..gru })),
        stack(9, 66, 2).cell(CellSpec::Rnn(RnnCell::default())).direction(Direction::Bidirectional),
        stack(70, 67, 2),
        stack(13, 40, 1).direction(Direction::Bidirectional),
        stack(9, 50, 2).direction(Direction::Bidirectional).projection(35),
        stack(40, 33, 1).direction(Direction::Reverse).projection(17),
    ]
    .map(|s| s.build().expect("sizes are valid"))
    .into()
}

/// Lengths of a batch that is large enough for the widest tile.
const LENGTHS: [usize; 37] =
    [9, 3, 0, 9, 1, 7, 7, 2, 5, 8, 9, 4, 6, 1, 3, 0, 9, 2, 2, 7, 5, 5, 8, 1, 9, 6, 4, 3, 2, 9, 8, 7, 1, 1, 5, 6, 9];

pub fn equal_bits(what: &str, found: &[f32], expected: &[f32]) -> Result<(), Failed> {
    if found.len() != expected.len() {
        return Err(format!("{what}: expected {} elements, found {}", expected.len(), found.len()).into());
    }
    let differs = |(f, e): (&f32, &f32)| f.to_bits() != e.to_bits();
    match found.iter().zip(expected).position(differs) {
        None => Ok(()),
        Some(i) => {
            let count = found.iter().zip(expected).filter(|&pair| differs(pair)).count();
            Err(format!(
                "{what}: {count} of {} differ, first at {i}: {:e} and {:e}",
                found.len(),
                found[i],
                expected[i]
            )
            .into())
        }
    }
}

pub fn equal_outputs(what: &str, found: &BatchOutput, expected: &BatchOutput) -> Result<(), Failed> {
    let parts = |o: &BatchOutput| [&o.output, &o.last, &o.pooled, &o.h_n, &o.c_n, &o.cells].map(Option::clone);
    let names = ["output", "last", "pooled", "h_n", "c_n", "cells"];
    for ((f, e), name) in parts(found).into_iter().zip(parts(expected)).zip(names) {
        match (f, e) {
            (Some(f), Some(e)) => equal_bits(&format!("{what}: {name}"), &f, &e)?,
            (None, None) => {}
            (f, e) => return Err(format!("{what}: {name}: present {} and {}", f.is_some(), e.is_some()).into()),
        }
    }
    Ok(())
}

/// What a batch of `case` says about the sequences `chosen`: valid rows and states.
fn about(case: &Case, output: &BatchOutput, chosen: &[usize]) -> BatchOutput {
    let rows =
        |o: &Option<Vec<f32>>| o.as_ref().map(|o| valid_rows(o, &case.lengths, case.seq_len, case.layout, chosen));
    let states = |s: &Option<Vec<f32>>, width: fn(&LayerSpec) -> usize| {
        s.as_ref().map(|s| select_state(case.spec(), s, case.batch_size(), chosen, width))
    };
    BatchOutput {
        output: rows(&output.output),
        cells: rows(&output.cells),
        h_n: states(&output.h_n, LayerSpec::h_size),
        c_n: states(&output.c_n, LayerSpec::c_size),
        last: None,
        pooled: None,
    }
}

fn everyone(case: &Case) -> Vec<usize> {
    (0..case.batch_size()).collect()
}

fn neighbours(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    for spec in models() {
        let case = Case::new("neighbours", &spec, &LENGTHS, 9, true, 1);
        let lstm = engine.load_blocking(&case.weights)?;
        let whole = lstm.run_blocking(&case.batch())?;
        // Alone, in small company, and in another order.
        let mut companies: Vec<Vec<usize>> = [0, 2, 4, 8, 36].map(|b| vec![b]).into();
        companies.push(vec![5, 1]);
        companies.push(vec![7, 2, 30, 11, 20]);
        companies.push((0..37).rev().collect());
        for chosen in companies {
            let few = case.select(&chosen, 9);
            let output = lstm.run_blocking(&few.batch())?;
            let what = format!("{:?}, sequences {chosen:?}", spec.layers()[0]);
            equal_outputs(&what, &about(&few, &output, &everyone(&few)), &about(&case, &whole, &chosen))?;
        }
    }
    Ok(())
}

fn padding(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    for spec in models() {
        let case = Case::new("padding", &spec, &LENGTHS[..12], 9, true, 2);
        let lstm = engine.load_blocking(&case.weights)?;
        let expected = about(&case, &lstm.run_blocking(&case.batch())?, &everyone(&case));
        let longer = case.select(&everyone(&case), 14);
        let output = lstm.run_blocking(&longer.batch())?;
        equal_outputs("more padding", &about(&longer, &output, &everyone(&case)), &expected)?;
        for (b, &length) in longer.lengths.iter().enumerate() {
            let features = spec.output_size();
            let all = output.output.as_ref().ok_or("no output")?;
            let past = &all[longer.layout.row(length, b, 14, 12) * features..][..(14 - length) * features];
            if past.iter().any(|v| v.to_bits() != 0) {
                return Err(format!("sequence {b}: output past its length is not zero").into());
            }
        }
        let turned = case.time_major();
        let output = lstm.run_blocking(&turned.batch())?;
        equal_outputs("time-major", &about(&turned, &output, &everyone(&case)), &expected)?;
    }
    Ok(())
}

fn chunks(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    for spec in models() {
        let mut lengths = LENGTHS.to_vec();
        lengths[3] = 60;
        let case = Case::new("chunks", &spec, &lengths, 60, true, 3);
        let lstm = engine.load_blocking(&case.weights)?;
        let expected = lstm.run_blocking(&case.batch())?;
        let whole = plan(&lstm, &case.batch(), Fixed::default()).ok_or("not on a GPU")??;
        // All budgets that work; the smallest makes chunks of one timestep.
        let budgets = (1..100).filter_map(|percent| {
            let fixed = Fixed { budget_bytes: Some(whole.scratch_bytes() * percent / 100), ..Fixed::default() };
            let plan = plan(&lstm, &case.batch(), fixed)?.ok()?;
            Some((fixed, plan.submits.len()))
        });
        let budgets: Vec<_> = budgets.collect();
        let smallest = budgets.first().ok_or("no smaller budget works")?;
        if smallest.1 < whole.submits.len() + 3 {
            return Err(format!("{:?}: at most {} submits", spec.layers()[0], smallest.1).into());
        }
        for (fixed, submits) in [smallest, &budgets[budgets.len() / 2]] {
            let output = run_fixed(&lstm, &case.batch(), *fixed).ok_or("not on a GPU")??;
            equal_outputs(&format!("{submits} submits"), &output, &expected)?;
        }
    }
    Ok(())
}

fn tiles(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    // Besides, sums of more segments than there are slices.
    let long = LstmSpec::stack(5, 540, 1).build()?;
    let (mut num_sequences, mut num_narrow, mut num_stacks) = (0, 0, 0);
    for spec in models().into_iter().chain([long]) {
        let case = Case::new("tiles", &spec, &LENGTHS[..19], 9, true, 4);
        let lstm = engine.load_blocking(&case.weights)?;
        let expected = lstm.run_blocking(&case.batch())?;
        for rows in ROW_TILES {
            for lanes in LANE_TILES {
                let tiles = TileOverride { rows: Some(rows), lanes: Some(lanes), ..TileOverride::default() };
                let fixed = Fixed { tiles, ..Fixed::default() };
                let output = run_fixed(&lstm, &case.batch(), fixed).ok_or("not on a GPU")??;
                equal_outputs(&format!("rows {rows}, lanes {lanes}"), &output, &expected)?;
            }
        }
        for is_for_narrow in [true, false] {
            let tiles = TileOverride { narrow: Some(is_for_narrow), ..TileOverride::default() };
            let fixed = Fixed { tiles, ..Fixed::default() };
            let plan = plan(&lstm, &case.batch(), fixed).ok_or("not on a GPU")??;
            num_narrow += usize::from(plan.kernels.iter().any(|id| id.kernel.is_narrow()));
            let output = run_fixed(&lstm, &case.batch(), fixed).ok_or("not on a GPU")??;
            equal_outputs(&format!("a narrow input in the steps: {is_for_narrow}"), &output, &expected)?;
        }
        let tiles = TileOverride { wave: Some(true), ..TileOverride::default() };
        for slices in [None, Some(8)] {
            let fixed = Fixed { tiles: TileOverride { slices, ..tiles }, ..Fixed::default() };
            let plan = plan(&lstm, &case.batch(), fixed).ok_or("not on a GPU")??;
            num_stacks += usize::from(plan.kernels.iter().any(|id| id.kernel == Kernel::Wave));
            let output = run_fixed(&lstm, &case.batch(), fixed).ok_or("not on a GPU")??;
            equal_outputs(&format!("layers side by side, {slices:?} slices"), &output, &expected)?;
        }
        // A few sequences take the form of one row, many the form of four.
        let few = Case::new("few", &spec, &[7, 9], 9, true, 4);
        let of_few = lstm.run_blocking(&few.batch())?;
        let tiles = TileOverride { sequence: Some(true), ..TileOverride::default() };
        for (batch, expected) in [(case.batch(), &expected), (few.batch(), &of_few)] {
            let fixed = Fixed { tiles, ..Fixed::default() };
            let plan = plan(&lstm, &batch, fixed).ok_or("not on a GPU")??;
            let dispatches = plan.submits.iter().flat_map(|submit| &submit.dispatches);
            num_sequences += dispatches.filter(|d| plan.kernels[d.kernel].kernel.is_sequence()).count();
            let output = run_fixed(&lstm, &batch, fixed).ok_or("not on a GPU")??;
            equal_outputs("many timesteps in a dispatch", &output, expected)?;
            // One timestep at a time, then some: the state goes from dispatch to dispatch.
            for dispatch_flops in [Some(1), Some(400_000)] {
                let fixed = Fixed { tiles, dispatch_flops, ..Fixed::default() };
                let output = run_fixed(&lstm, &batch, fixed).ok_or("not on a GPU")??;
                equal_outputs(&format!("dispatches of {dispatch_flops:?}"), &output, expected)?;
            }
        }
        for slices in SLICE_TILES {
            let tiles = TileOverride { slices: Some(slices), ..TileOverride::default() };
            let fixed = Fixed { tiles, ..Fixed::default() };
            let output = run_fixed(&lstm, &case.batch(), fixed).ok_or("not on a GPU")??;
            equal_outputs(&format!("{slices} slices"), &output, &expected)?;
            let output = run_fixed(&lstm, &few.batch(), fixed).ok_or("not on a GPU")??;
            equal_outputs(&format!("{slices} slices of few rows"), &output, &of_few)?;
        }
    }
    // A GRU, an LSTM, one with a projection, and the long one, each once.
    if num_narrow != 4 {
        return Err(format!("expected 4 models with a narrow input, found {num_narrow}").into());
    }
    if num_stacks != 2 {
        return Err(format!("expected a stack in two runs, found {num_stacks}").into());
    }
    // Two of the models have three layers that can, in two batches each.
    if num_sequences != 6 {
        return Err(format!("expected 6 dispatches of many timesteps, found {num_sequences}").into());
    }
    Ok(())
}

/// Weights kept as halves are the rounded weights, to the last bit of the result; also in ranges of columns.
fn halves(subject: &Subject) -> Result<(), Failed> {
    let singles = subject.engine()?;
    let whole = subject.open(|o| o.precision(Precision::F16Weights))?;
    let split = subject.open(|o| o.precision(Precision::F16Weights).max_binding_bytes(8 << 10))?;
    for spec in models() {
        let mut case = Case::new("halves", &spec, &LENGTHS[..6], 9, true, 4);
        let exact = singles.load_blocking(&case.weights)?.run_blocking(&case.batch())?;
        let found = whole.load_blocking(&case.weights)?.run_blocking(&case.batch())?;
        if found == exact {
            return Err("rounding changed nothing".into());
        }
        let found_split = split.load_blocking(&case.weights)?.run_blocking(&case.batch())?;
        case.weights = case.weights.rounded_to_f16()?;
        let expected = singles.load_blocking(&case.weights)?.run_blocking(&case.batch())?;
        equal_outputs("halves", &found, &expected)?;
        equal_outputs("halves in ranges", &found_split, &expected)?;
    }
    Ok(())
}

fn outputs(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    for spec in models() {
        let mut case = Case::new("outputs", &spec, &LENGTHS[..11], 10, true, 5);
        let lstm = engine.load_blocking(&case.weights)?;
        let all = lstm.run_blocking(&case.batch())?;
        let rows = all.output.as_ref().ok_or("no output")?;
        let features = spec.output_size();
        let last: Vec<f32> = case
            .lengths
            .iter()
            .enumerate()
            .flat_map(|(b, &length)| match length {
                0 => vec![0.0; features],
                n => rows[case.layout.row(n - 1, b, case.seq_len, 11) * features..][..features].to_vec(),
            })
            .collect();
        for sequence in [SequenceOutput::None, SequenceOutput::Last, SequenceOutput::All] {
            for final_state in [false, true] {
                for cells in [false, true] {
                    let cells = cells && spec.last_layer().c_size() > 0;
                    case.outputs = Outputs { sequence, final_state, cells };
                    let expected = BatchOutput {
                        output: (sequence == SequenceOutput::All).then(|| rows.clone()),
                        last: (sequence == SequenceOutput::Last).then(|| last.clone()),
                        h_n: all.h_n.clone().filter(|_| final_state),
                        c_n: all.c_n.clone().filter(|_| final_state),
                        cells: all.cells.clone().filter(|_| cells),
                        pooled: None,
                    };
                    equal_outputs(&format!("{:?}", case.outputs), &lstm.run_blocking(&case.batch())?, &expected)?;
                }
            }
        }
    }
    Ok(())
}

fn carried_state(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    carried_state_of(&engine, &LstmSpec::stack(13, 37, 3).projection(20).build()?)?;
    for (name, layers) in variant_layers() {
        let forward = layers.iter().all(|layer| layer.direction == Direction::Forward);
        if forward {
            let mut layers = layers;
            // The width of the input that this test cuts.
            layers[0].input_size = 13;
            let spec = LstmSpec::new(layers)?;
            carried_state_of(&engine, &spec).map_err(|e| format!("{name}: {}", e.message().unwrap_or("failed")))?;
        }
    }
    Ok(())
}

fn carried_state_of(engine: &Engine, spec: &LstmSpec) -> Result<(), Failed> {
    let lengths = [12, 7, 3, 12, 5];
    let case = Case::new("whole", spec, &lengths, 12, true, 6);
    let lstm = engine.load_blocking(&case.weights)?;
    let whole = lstm.run_blocking(&case.batch())?;
    // The first 5 steps, then the rest from the state they left.
    let cut = 5;
    let mut first = case.clone();
    first.lengths = lengths.map(|n| n.min(cut)).to_vec();
    let start = lstm.run_blocking(&first.batch())?;
    let mut rest = case.clone();
    rest.seq_len = 12 - cut;
    rest.lengths = lengths.map(|n| n.saturating_sub(cut)).to_vec();
    rest.x = (0..lengths.len()).flat_map(|b| case.x[(b * 12 + cut) * 13..(b + 1) * 12 * 13].to_vec()).collect();
    (rest.h_0, rest.c_0) = (start.h_n.clone(), start.c_n.clone());
    let end = lstm.run_blocking(&rest.batch())?;
    let all = everyone(&case);
    equal_bits("h_n", end.h_n.as_deref().ok_or("no h_n")?, whole.h_n.as_deref().ok_or("no h_n")?)?;
    if spec.state_sizes().1 > 0 {
        equal_bits("c_n", end.c_n.as_deref().ok_or("no c_n")?, whole.c_n.as_deref().ok_or("no c_n")?)?;
    }
    for b in all {
        let rows = |c: &Case, o: &BatchOutput| {
            o.output.as_ref().map(|o| valid_rows(o, &c.lengths, c.seq_len, c.layout, &[b])).unwrap_or_default()
        };
        let joined = [rows(&first, &start), rows(&rest, &end)].concat();
        equal_bits(&format!("output of sequence {b}"), &joined, &rows(&case, &whole))?;
    }
    Ok(())
}

fn repeated(subject: &Subject) -> Result<(), Failed> {
    let engine = subject.engine()?;
    for spec in models() {
        let case = Case::new("repeated", &spec, &LENGTHS, 9, false, 8);
        let lstm = engine.load_blocking(&case.weights)?;
        let expected = lstm.run_blocking(&case.batch())?;
        for n in 0..3 {
            equal_outputs(&format!("run {n}"), &lstm.run_blocking(&case.batch())?, &expected)?;
        }
    }
    Ok(())
}
