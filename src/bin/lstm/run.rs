//! `lstm run`: sequences from a file through a model, results to a file, and what checks were asked for.

use std::path::Path;
use std::time::Instant;

use wgpu_lstm::{BatchOutput, Engine, EngineOptions, LstmSpec, LstmWeights, Outputs, SequenceBatch, SequenceOutput};

use crate::args::{BudgetOption, DeviceOption, RunOptions, Verify, WeightsOption};
use crate::common::failure::{Failure, Result, fail, say};
use crate::common::spec_text::describe;
use crate::common::units::milliseconds;
use crate::common::verify;
use crate::compare::Comparison;
use crate::input::{Input, state_shape, state_widths};
use crate::model;
use crate::npz::{self, Array, ArrayFile, Output, Values};
use crate::progress::with_bar;

/// Work of the reference in `--verify`, in multiply-adds: some ten seconds, beyond the two sequences that are
/// always checked.
const VERIFY_MULTIPLY_ADDS: f64 = 1e10;

pub(crate) fn run(options: &RunOptions) -> Result<()> {
    if crate::onnx::is_onnx(&options.model.model) {
        return crate::onnx::run(options);
    }
    if options.onnx_compat.is_some() {
        return Err(Failure::Usage("--onnx-compat: expected a model ending in .onnx".into()));
    }
    // All files first: nobody should wait for a long run to learn of a mistyped name.
    let (as_read, contents) = model::read_with_contents(&options.model)?;
    let weights = options.weights.weights.of(as_read.clone())?;
    let input = Input::read(&options.input, options.layout.into(), weights.spec())?;
    let expected = options.expect.as_deref().map(read_expected).transpose()?;
    if let Some(path) = &options.output {
        check_folder(path)?;
    }
    let states_wanted = options.output.as_deref().is_none_or(|path| path.extension().is_none_or(|e| e == "npz"))
        || options.verify.is_some()
        || expected.is_some();
    let batch =
        input.batch()?.outputs(Outputs { sequence: SequenceOutput::All, final_state: states_wanted, cells: false });
    batch.validate(weights.spec()).map_err(|e| Failure::from(e).context(options.input.display()))?;
    let say_unless_quiet = |line: String| if options.is_quiet() { Ok(()) } else { say!("{line}") };
    say_unless_quiet(format!("model: {}", describe(weights.spec())))?;
    for note in contents.notes.iter().cloned().chain(model::what_is_not_run(&contents)) {
        say_unless_quiet(format!("note: {note}"))?;
    }
    say_unless_quiet(input.summary())?;

    let engine = Engine::open_blocking(engine_options(&options.device, &options.weights, &options.budget))?;
    if !options.explain {
        say_unless_quiet(format!("device: {}: {}", engine.device().name, engine.device().reason))?;
    }
    let lstm = engine.load_blocking(&weights)?;
    if options.explain {
        // It begins with the device.
        say!("{}", lstm.explain(&batch)?.trim_end())?;
    } else if let Some(choice) = lstm.choice(&batch) {
        say_unless_quiet(format!("auto: {choice}"))?;
    }
    let start = Instant::now();
    let result = with_bar("running", options.is_quiet(), |progress| lstm.run_with_progress(&batch, progress))?;
    say_unless_quiet(format!("ran in {} ms, first-run set-up included", milliseconds(start.elapsed().as_secs_f64())))?;

    let results = Results::new(weights.spec(), &input, &result);
    if let Some(path) = &options.output {
        npz::write(path, &results.arrays())?;
        let written =
            if path.extension().is_some_and(|e| e == "npy") { &results.arrays()[..1] } else { &results.arrays() };
        let list: Vec<String> = written.iter().map(|a| format!("{} {:?}", a.name, a.shape)).collect();
        say_unless_quiet(format!("wrote {}: {}", path.display(), list.join(", ")))?;
    }
    let verified =
        options.verify.map(|which| verify_run([&weights, &as_read], &batch, &result, which, options.is_quiet()));
    let compared = expected.map(|arrays| compare_run(&arrays, &results, &batch, options));
    // Both are reported before the first failure ends the program.
    verified.unwrap_or(Ok(()))?;
    compared.unwrap_or(Ok(()))
}

/// The engine options that the command line asks for.
pub(crate) fn engine_options(device: &DeviceOption, weights: &WeightsOption, budget: &BudgetOption) -> EngineOptions {
    let options = EngineOptions::on(device.device.clone()).precision(weights.weights.precision());
    match budget.memory_budget {
        Some(bytes) => options.memory_budget_bytes(bytes),
        None => options,
    }
}

pub(crate) fn check_folder(path: &Path) -> Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) if !folder.is_dir() => fail!("{}: there is no folder {}", path.display(), folder.display()),
        _ => Ok(()),
    }
}

/// The arrays of a run in the shapes of `torch.nn.LSTM`.
struct Results<'a> {
    arrays: Vec<(&'static str, Vec<usize>, &'a [f32])>,
}

impl<'a> Results<'a> {
    fn new(spec: &LstmSpec, input: &Input, result: &'a BatchOutput) -> Self {
        let batch_size = input.batch_size();
        let width = spec.output_size();
        let output_shape = if input.unbatched {
            vec![input.seq_len(), width]
        } else {
            input.layout.shape(input.seq_len(), batch_size, width).to_vec()
        };
        let shape_of = |widths: Vec<usize>| {
            let elements = batch_size * widths.iter().sum::<usize>();
            state_shape(&widths, batch_size, input.unbatched).unwrap_or(vec![elements])
        };
        let [h_shape, c_shape] = state_widths(spec).map(shape_of);
        let arrays =
            [("output", output_shape, &result.output), ("h_n", h_shape, &result.h_n), ("c_n", c_shape, &result.c_n)];
        let present = arrays.into_iter().filter_map(|(name, shape, array)| Some((name, shape, array.as_deref()?)));
        // A model without a cell state has no c_n, not an empty one.
        let has_c = spec.state_sizes().1 > 0;
        let present = present.filter(|(name, ..)| *name != "c_n" || has_c);
        Self { arrays: present.collect() }
    }

    fn arrays(&self) -> Vec<Output<'_>> {
        self.arrays.iter().map(|(name, shape, values)| Output { name, shape, values: Values::F32(values) }).collect()
    }
}

/// Judges a result by the weights that it was computed with; if they were rounded, says what that did to it.
fn verify_run(
    [weights, as_read]: [&LstmWeights; 2],
    batch: &SequenceBatch<'_>,
    result: &BatchOutput,
    which: Verify,
    quiet: bool,
) -> Result<()> {
    let sequences = match which {
        Verify::All => (0..batch.batch_size()).collect(),
        Verify::Some => verify::sample(weights.spec(), batch.sequence_lengths(), VERIFY_MULTIPLY_ADDS),
    };
    let verdict =
        with_bar("computing the f64 reference", quiet, |_| verify::verify(weights, batch, result, &sequences))?;
    if !quiet {
        let which = match sequences.len() == batch.batch_size() {
            true => format!("all {} sequences", sequences.len()),
            false => format!("sequences {sequences:?} of {}", batch.batch_size()),
        };
        say!("verify: {which} against the f64 reference")?;
        for array in &verdict.arrays {
            say!("  {array}")?;
        }
        if weights != as_read {
            say!("what rounding the weights to f16 changed")?;
            for array in verify::verify(as_read, batch, result, &sequences)?.arrays {
                say!("  {}: by {:.1e} at most", array.name, array.error)?;
            }
        }
    }
    verdict.check().map_err(|failure| failure.context("verify"))
}

/// The arrays of a file that a run returns too.
fn read_expected(path: &Path) -> Result<Vec<(&'static str, Array)>> {
    let mut file = ArrayFile::open(path, "output")?;
    let mut arrays = Vec::new();
    for name in ["output", "h_n", "c_n"] {
        if let Some(array) = file.read(name)? {
            arrays.push((name, array));
        }
    }
    if arrays.is_empty() {
        let names = file.names();
        let found = if names.is_empty() { "no arrays".to_owned() } else { names.join(", ") };
        fail!("{}: expected at least one of output, h_n and c_n, found {found}", path.display());
    }
    Ok(arrays)
}

fn compare_run(
    expected: &[(&'static str, Array)],
    results: &Results<'_>,
    batch: &SequenceBatch<'_>,
    options: &RunOptions,
) -> Result<()> {
    let mut failures = Vec::new();
    if !options.is_quiet() {
        say!("expect: rtol {:e}, atol {:e}", options.rtol, options.atol)?;
    }
    for (name, array) in expected {
        let Some(found) = results.arrays.iter().find(|(n, ..)| n == name) else {
            failures.push(format!(
                "{name}: expected an array of shape {:?}, found none: no layer has a cell state",
                array.shape
            ));
            continue;
        };
        if array.shape != found.1 {
            failures.push(format!("{name}: expected shape {:?}, found {:?}", array.shape, found.1));
            continue;
        }
        let comparison = Comparison::new(name, &found.1, found.2, &array.to_f64(), options.rtol, options.atol);
        if !options.is_quiet() {
            say!("  {comparison}")?;
        }
        if !comparison.passed() {
            failures.push(format!("{comparison}{}", padding_hint(&comparison, batch)));
        }
    }
    if failures.is_empty() { Ok(()) } else { fail!("expect: {}", failures.join("; ")) }
}

/// Whether `output` differs past the lengths only, which is what frameworks write there without packing.
fn padding_hint(comparison: &Comparison, batch: &SequenceBatch<'_>) -> &'static str {
    let (seq_len, batch_size) = (batch.seq_len(), batch.batch_size());
    let width = comparison.shape.last().copied().unwrap_or(1).max(1);
    let is_padding = |row: usize| {
        (0..batch_size).any(|b| {
            (batch.sequence_lengths()[b]..seq_len).any(|t| batch.layout().row(t, b, seq_len, batch_size) == row)
        })
    };
    let mut rows: Vec<usize> = comparison.differing.iter().map(|index| index / width).collect();
    rows.dedup();
    if comparison.name == "output" && rows.into_iter().all(is_padding) {
        "; all past the lengths: were the expected numbers made without lengths (in PyTorch: without packing)?"
    } else {
        ""
    }
}
