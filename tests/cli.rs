//! The binaries, from outside: what they print, what they write, and how they end. No adapter is needed.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use npyz::WriterBuilder;
use npyz::npz::{NpzArchive, NpzWriter};
use npyz::zip::write::FileOptions;
use safetensors::tensor::{Dtype, TensorView};
use wgpu_lstm::weights::safetensors::read_tensor;
use wgpu_lstm::{Direction, Layout, LstmSpec, LstmWeights, SequenceBatch, reference};

/// A folder for one test, and the files in it.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn bytes(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// Weights under `prefix`, with PyTorch's names.
    fn model(&self, name: &str, prefix: &str, weights: &LstmWeights) -> String {
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for ((l, layer, reverse), cell) in weights.spec().cells().zip(weights.cells()) {
            let mut add = |kind: &str, shape: Vec<usize>, values: &[f32]| {
                let suffix = if reverse { "_reverse" } else { "" };
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                tensors.push((format!("{prefix}{kind}_l{l}{suffix}"), shape, bytes));
            };
            let gates = 4 * layer.hidden_size;
            add("weight_ih", vec![gates, layer.input_size], &cell.weight_ih);
            add("weight_hh", vec![gates, layer.h_size()], &cell.weight_hh);
            for (kind, bias) in [("bias_ih", &cell.bias_ih), ("bias_hh", &cell.bias_hh)] {
                bias.iter().for_each(|bias| add(kind, vec![gates], bias));
            }
            if let (Some(weight_hr), Some(p)) = (&cell.weight_hr, layer.projection_size) {
                add("weight_hr", vec![p, layer.hidden_size], weight_hr);
            }
        }
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        self.bytes(name, &safetensors::serialize(views, None).unwrap())
    }

    fn npz(&self, name: &str, arrays: &[(&str, Array)]) -> String {
        let mut bytes = Cursor::new(Vec::new());
        let mut npz = NpzWriter::new(&mut bytes);
        for (name, array) in arrays {
            macro_rules! write {
                ($shape:expr, $values:expr) => {{
                    let shape: Vec<u64> = $shape.iter().map(|&n| n as u64).collect();
                    let array = npz.array(name, FileOptions::default()).unwrap();
                    let mut writer = array.default_dtype().shape(&shape).begin_nd().unwrap();
                    writer.extend($values.iter()).unwrap();
                    writer.finish().unwrap();
                }};
            }
            match array {
                Array::F32(shape, values) => write!(shape, values),
                Array::F64(shape, values) => write!(shape, values),
                Array::U8(shape, values) => write!(shape, values),
                Array::I32(values) => write!([values.len()], values),
                Array::I64(values) => write!([values.len()], values),
            }
        }
        drop(npz);
        self.bytes(name, &bytes.into_inner())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

enum Array {
    F32(Vec<usize>, Vec<f32>),
    F64(Vec<usize>, Vec<f64>),
    U8(Vec<usize>, Vec<u8>),
    I32(Vec<i32>),
    I64(Vec<i64>),
}

/// Shape and values of a float32 array of a `.npz` file.
fn read(path: &str, name: &str) -> (Vec<u64>, Vec<f32>) {
    let mut npz = NpzArchive::open(path).unwrap();
    let npy = npz.by_name(name).unwrap().unwrap_or_else(|| panic!("no array {name}"));
    (npy.shape().to_vec(), npy.into_vec().unwrap())
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.7).sin()).collect()
}

/// Runs a binary where no Vulkan driver is to be found.
fn command(binary: &str) -> Command {
    let mut command = Command::new(binary);
    let nothing = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-driver.json");
    command.env("WGPU_BACKEND", "vulkan").env("VK_DRIVER_FILES", &nothing).env("VK_ICD_FILENAMES", &nothing);
    command.env_remove("VK_ADD_DRIVER_FILES").env_remove("RUST_BACKTRACE").stdin(Stdio::null());
    command
}

fn lstm(arguments: &[&str]) -> Output {
    command(env!("CARGO_BIN_EXE_lstm")).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The standard output of a run that ends well and has nothing to complain about.
#[track_caller]
fn good(arguments: &[&str]) -> String {
    let output = lstm(arguments);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{arguments:?}");
    stdout(&output)
}

/// A run that ends with this code and one line on stderr, which contains the needle.
#[track_caller]
fn fails(code: i32, needle: &str, arguments: &[&str]) {
    let output = lstm(arguments);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    assert!(message.starts_with("lstm: ") && message.lines().count() == 1, "{arguments:?}: {message}");
    assert!(message.contains(needle), "{arguments:?}: expected {needle:?} in {message}");
}

/// Input 3, hidden 7, two layers, both directions, projection 4.
fn weights() -> LstmWeights {
    let spec = LstmSpec::stack(3, 7, 2).direction(Direction::Bidirectional).projection(4).build().unwrap();
    LstmWeights::random(&spec, 5)
}

const B: usize = 2;
const T: usize = 5;
const LENGTHS: [usize; B] = [5, 1];

/// A model and ragged input with initial states in a folder of its own.
fn set_up(test: &str) -> (Folder, String, String) {
    let folder = Folder::new(test);
    let model = folder.model("model.safetensors", "encoder.lstm.", &weights());
    let arrays = [
        ("x", Array::F32(vec![B, T, 3], values(B * T * 3))),
        ("lengths", Array::I64(LENGTHS.map(|n| n as i64).to_vec())),
        ("h_0", Array::F32(vec![4, B, 4], values(4 * B * 4))),
        ("c_0", Array::F32(vec![4, B, 7], values(4 * B * 7))),
    ];
    let input = folder.npz("in.npz", &arrays);
    (folder, model, input)
}

/// What the reference makes of [`set_up`]'s input.
fn expected() -> [Vec<f32>; 3] {
    let (x, h_0, c_0) = (values(B * T * 3), values(4 * B * 4), values(4 * B * 7));
    let batch = SequenceBatch::new(&x, [B, T, 3], Layout::BatchMajor).unwrap().lengths(&LENGTHS).unwrap();
    let result = reference::run::<f32>(&weights(), &batch.h_0(&h_0).c_0(&c_0)).unwrap();
    [result.output.unwrap(), result.h_n.unwrap(), result.c_n.unwrap()]
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= 1e-6, "element {i}: found {f}, expected {e}");
    }
}

#[test]
fn run_writes_the_results_in_pytorchs_shapes() {
    let (folder, model, input) = set_up("run");
    let [output, h_n, c_n] = expected();
    for device in ["cpu", "reference", "auto"] {
        let out = folder.path(&format!("{device}.npz"));
        let printed = good(&["run", &model, "-i", &input, "-o", &out, "--device", device]);
        assert!(printed.contains("x: B=2 T=5 I=3, ragged 1–5; initial state h_0, c_0"), "{printed}");
        assert!(printed.contains("LSTM 3 → 7, 2 layers, bidirectional, projection 4"), "{printed}");
        for (name, shape, expected) in
            [("output", vec![2, 5, 8], &output), ("h_n", vec![4, 2, 4], &h_n), ("c_n", vec![4, 2, 7], &c_n)]
        {
            let (found_shape, found) = read(&out, name);
            assert_eq!(found_shape, shape, "{name}");
            assert_close(&found, expected);
        }
    }
}

#[test]
fn the_time_major_layout_is_the_same_run_transposed() {
    let (folder, model, _) = set_up("layout");
    let transposed = |x: &[f32], width: usize| -> Vec<f32> {
        let rows = (0..T).flat_map(|t| (0..B).map(move |b| b * T + t));
        rows.flat_map(|row| x[row * width..][..width].to_vec()).collect()
    };
    let arrays = [
        ("x", Array::F32(vec![T, B, 3], transposed(&values(B * T * 3), 3))),
        ("lengths", Array::I32(vec![5, 1])),
        ("h_0", Array::F32(vec![4, B, 4], values(4 * B * 4))),
        ("c_0", Array::F32(vec![4, B, 7], values(4 * B * 7))),
    ];
    let input = folder.npz("time.npz", &arrays);
    let out = folder.path("out.npz");
    good(&["run", &model, "-i", &input, "-o", &out, "--device", "cpu", "--layout", "time"]);
    let [output, h_n, _] = expected();
    let (shape, found) = read(&out, "output");
    assert_eq!(shape, [5, 2, 8]);
    assert_close(&found, &transposed(&output, 8));
    assert_close(&read(&out, "h_n").1, &h_n);
}

#[test]
fn a_single_sequence_has_no_batch_axis_and_npy_holds_one_array() {
    let (folder, model, _) = set_up("npy");
    let x = values(T * 3);
    let mut bytes = Vec::new();
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(&[5, 3]).writer(&mut bytes).begin_nd().unwrap();
    writer.extend(x.iter()).unwrap();
    writer.finish().unwrap();
    let input = folder.bytes("x.npy", &bytes);
    let out = folder.path("out.npy");
    let printed = good(&["run", &model, "--input", &input, "--output", &out, "--device", "cpu"]);
    assert!(printed.contains("x: T=5 I=3, unbatched"), "{printed}");
    let npy = npyz::NpyFile::new(fs::File::open(&out).unwrap()).unwrap();
    assert_eq!(npy.shape(), [5, 8]);
    let batch = SequenceBatch::new(&x, [1, T, 3], Layout::BatchMajor).unwrap();
    let expected = reference::run::<f32>(&weights(), &batch).unwrap();
    assert_close(&npy.into_vec::<f32>().unwrap(), &expected.output.unwrap());

    let out = folder.path("out.npz");
    good(&["run", &model, "-i", &input, "-o", &out, "--device", "cpu"]);
    assert_eq!((read(&out, "h_n").0, read(&out, "c_n").0), (vec![4, 4], vec![4, 7]));
}

#[test]
fn empty_batches_and_empty_sequences_run() {
    let (folder, model, _) = set_up("empty");
    for (name, shape, lengths) in
        [("b0", [0, 5, 3], vec![]), ("t0", [2, 0, 3], vec![0, 0]), ("zero", [2, 5, 3], vec![0, 0])]
    {
        let x = Array::F32(shape.to_vec(), values(shape.iter().product()));
        let input = folder.npz(&format!("{name}.npz"), &[("x", x), ("lengths", Array::I64(lengths))]);
        let out = folder.path("out.npz");
        good(&["run", &model, "-i", &input, "-o", &out, "--device", "cpu", "--verify=all"]);
        let (found_shape, found) = read(&out, "output");
        assert_eq!(found_shape, [shape[0] as u64, shape[1] as u64, 8]);
        assert!(found.iter().all(|&v| v == 0.0), "{name}");
        assert_eq!(read(&out, "c_n").0, [4, shape[0] as u64, 7]);
    }
}

#[test]
fn verify_passes_and_says_how_far_from_the_bound() {
    let (_folder, model, input) = set_up("verify");
    for which in ["--verify", "--verify=all"] {
        for device in ["cpu", "reference"] {
            let printed = good(&["run", &model, "-i", &input, which, "--device", device]);
            assert!(printed.contains("verify: all 2 sequences"), "{printed}");
            for name in ["output", "h_n", "c_n"] {
                let line = printed.lines().find(|l| l.trim_start().starts_with(name)).unwrap();
                assert!(line.contains("headroom") && line.contains("at sequence"), "{line}");
            }
        }
    }
}

#[test]
fn expect_tells_equal_from_different() {
    let (folder, model, input) = set_up("expect");
    let [output, h_n, c_n] = expected();
    let file = |name: &str, output: Vec<f32>, h_n: Vec<f32>| {
        let arrays = [
            ("output", Array::F64(vec![2, 5, 8], output.into_iter().map(f64::from).collect())),
            ("h_n", Array::F32(vec![4, 2, 4], h_n)),
            ("c_n", Array::F32(vec![4, 2, 7], c_n.clone())),
        ];
        folder.npz(name, &arrays)
    };
    let fails_on = |path: &str, needle: &str| {
        fails(1, needle, &["run", &model, "-i", &input, "--device", "cpu", "--expect", path]);
    };
    let same = file("same.npz", output.clone(), h_n.clone());
    let printed = good(&["run", &model, "-i", &input, "--device", "cpu", "--expect", &same]);
    assert!(printed.contains("output [2, 5, 8]: all 80 elements agree"), "{printed}");

    for (wrong, name) in [(1e-3, "far"), (-1e-3, "near"), (f32::NAN, "nan"), (f32::INFINITY, "inf")] {
        let mut changed = h_n.clone();
        changed[9] += wrong;
        let path = file(&format!("{name}.npz"), output.clone(), changed);
        fails_on(&path, "h_n [4, 2, 4]: 1 of 32 elements differ, worst [1, 0, 1]");
    }
    let mut nearly = output.clone();
    nearly[3] += 1e-3;
    let path = file("nearly.npz", nearly, h_n.clone());
    fails_on(&path, "worst [0, 0, 3]");
    good(&["run", &model, "-i", &input, "--device", "cpu", "--expect", &path, "--atol", "1e-2"]);

    // What a framework writes past a length if it is not told the lengths.
    let mut padded = output.clone();
    padded[5 * 8 + 8..].fill(0.25);
    fails_on(&file("padded.npz", padded, h_n.clone()), "all past the lengths");

    let shape = folder.npz("shape.npz", &[("output", Array::F32(vec![5, 2, 8], output.clone()))]);
    fails_on(&shape, "output: expected shape [5, 2, 8], found [2, 5, 8]");
    let none = folder.npz("none.npz", &[("y", Array::F32(vec![1], vec![0.0]))]);
    fails_on(&none, "expected at least one of output, h_n and c_n, found y");
}

#[test]
fn quiet_prints_failures_only() {
    let (folder, model, input) = set_up("quiet");
    let out = folder.path("out.npz");
    let arguments = ["run", &model, "-i", &input, "-o", &out, "--device", "cpu", "--verify", "--quiet"];
    assert_eq!(good(&arguments), "");
    assert_eq!(read(&out, "output").0, [2, 5, 8]);
    let wrong = folder.npz("wrong.npz", &[("output", Array::F32(vec![2, 5, 8], vec![9.0; 80]))]);
    let output = lstm(&["run", &model, "-i", &input, "--device", "cpu", "--expect", &wrong, "-q"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""));
    assert!(stderr(&output).contains("80 of 80 elements differ"), "{}", stderr(&output));
}

#[test]
fn bad_files_are_refused_in_one_line() {
    let (folder, model, input) = set_up("files");
    let out = folder.path("out.npz");
    let missing = folder.path("missing");
    let run = |needle: &str, model: &str, input: &str| {
        fails(1, needle, &["run", model, "-i", input, "-o", &out, "--device", "cpu"]);
        assert!(!Path::new(&out).exists(), "{needle}: nothing is written");
    };
    run("missing: cannot be read", &missing, &input);
    run("missing: cannot be read", &model, &missing);
    run("directory", &folder.path(""), &input);
    run("directory", &model, &folder.path(""));
    run("not a .npz or .npy file", &model, &model);
    run("zip archive", &input, &input);

    let good_model = fs::read(&model).unwrap();
    run("safetensors", &folder.bytes("cut.safetensors", &good_model[..good_model.len() / 2]), &input);
    run("safetensors", &folder.bytes("empty.safetensors", b""), &input);
    run("safetensors", &folder.bytes("text.safetensors", b"this is not a model at all"), &input);
    let good_input = fs::read(&input).unwrap();
    run(".npz", &model, &folder.bytes("cut.npz", &good_input[..good_input.len() / 2]));
    run("not a .npz", &model, &folder.bytes("empty.npz", b""));
    let mut damaged = good_input.clone();
    damaged[90] ^= 0x40;
    run("damaged", &model, &folder.bytes("damaged.npz", &damaged));
    // A header that claims 2^40 elements in a file of a few bytes.
    let mut claim = b"\x93NUMPY\x01\x00\x46\x00".to_vec();
    claim.extend_from_slice(
        format!("{:<69}\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 1048576)}").as_bytes(),
    );
    run("damaged", &model, &folder.bytes("claim.npy", &claim));
    fails(1, "there is no folder", &["run", &model, "-i", &input, "-o", &folder.path("no/out.npz"), "--device", "cpu"]);
    fails(1, "missing: cannot be read", &["run", &model, "-i", &input, "--expect", &missing, "--device", "cpu"]);
    fails(1, "missing: cannot be read", &["info", &missing]);
    fails(1, "missing: cannot be read", &["bench", &missing]);
}

#[test]
fn bad_arrays_are_refused_by_name() {
    let (folder, model, _) = set_up("arrays");
    let out = folder.path("out.npz");
    let x = || ("x", Array::F32(vec![2, 5, 3], values(30)));
    let with = |array: (&'static str, Array)| [x(), array];
    let check = |needle: &str, arrays: &[(&str, Array)]| {
        let input = folder.npz("bad.npz", arrays);
        fails(1, needle, &["run", &model, "-i", &input, "-o", &out, "--device", "cpu"]);
        assert!(!Path::new(&out).exists(), "{needle}: nothing is written");
    };
    check("the array x is missing; found lengths", &[("lengths", Array::I64(vec![1]))]);
    check("unknown array length", &with(("length", Array::I64(vec![5, 1]))));
    check("x: expected [B, T, I] with I = 3", &[("x", Array::F32(vec![2, 5, 4], values(40)))]);
    check("axis 1 would fit", &[("x", Array::F32(vec![2, 3, 5], values(30)))]);
    check("found shape [30]", &[("x", Array::F32(vec![30], values(30)))]);
    check("x: expected floating point, found integers", &[("x", Array::U8(vec![2, 5, 3], vec![1; 30]))]);
    let mut nan = values(30);
    nan[4] = f32::NAN;
    check("found NaN at sequence 0, step 1, feature 1", &[("x", Array::F32(vec![2, 5, 3], nan))]);
    check("range of float32", &[("x", Array::F64(vec![2, 5, 3], vec![1e300; 30]))]);
    check("lengths[1]: expected 0 to 5 (T of x), found -1", &with(("lengths", Array::I64(vec![5, -1]))));
    check("lengths[0]: expected 0 to 5 (T of x), found 6", &with(("lengths", Array::I32(vec![6, 1]))));
    check("found NaN", &with(("lengths", Array::F64(vec![2], vec![1.0, f64::NAN]))));
    check("found 2.5", &with(("lengths", Array::F32(vec![2], vec![1.0, 2.5]))));
    check("lengths: expected [B] = [2]", &with(("lengths", Array::I64(vec![1, 2, 3]))));
    check("`--layout time` would fit", &with(("lengths", Array::I64(vec![1; 5]))));
    check(
        "h_0: expected [layers·directions, B, width] = [4, 2, 4]",
        &with(("h_0", Array::F32(vec![4, 2, 7], values(56)))),
    );
    check("first two axes are swapped", &with(("c_0", Array::F32(vec![2, 4, 7], values(56)))));
    check("c_0: expected finite values, found inf", &with(("c_0", Array::F32(vec![4, 2, 7], vec![f32::INFINITY; 56]))));
}

#[test]
fn mistyped_commands_end_with_2() {
    let (folder, model, input) = set_up("usage");
    let out = folder.path("out.npz");
    let run = |extra: &[&str]| {
        let output = lstm(&[&["run", &model, "-i", &input][..], extra].concat());
        assert_eq!(output.status.code(), Some(2), "{extra:?}: {}", stderr(&output));
        assert!(stdout(&output).is_empty() && !stderr(&output).contains("panicked"), "{extra:?}");
        stderr(&output)
    };
    assert!(run(&[]).contains("--output"));
    assert!(run(&["-o", &out, "--colour"]).contains("--colour"));
    assert!(run(&["-o", "out.txt"]).contains(".npz or .npy"));
    assert!(run(&["-o", &out, "--layout", "up"]).contains("batch, time"));
    assert!(run(&["-o", &out, "--device", "gpu:one"]).contains("gpu:one"));
    assert!(run(&["-o", &out, "--memory-budget", "512"]).contains("512MiB"));
    assert!(run(&["--expect", &out, "--rtol", "-1"]).contains("rtol"));
    assert_eq!(lstm(&[]).status.code(), Some(2));
    assert_eq!(lstm(&["dance"]).status.code(), Some(2));
    // A device that is not there is a mistake in the command, too.
    for device in ["gpuu", "gpu:3", "gpu"] {
        fails(2, device, &["run", &model, "-i", &input, "-o", &out, "--device", device]);
        fails(2, device, &["demo", "--device", device]);
    }
    assert!(lstm(&["--help"]).status.success() && lstm(&["run", "--help"]).status.success());
}

#[test]
fn prefixes_are_chosen_and_listed() {
    let (folder, model, input) = set_up("prefix");
    let out = folder.path("out.npz");
    for prefix in ["encoder.lstm", "encoder.lstm."] {
        good(&["run", &model, "--prefix", prefix, "-i", &input, "-o", &out, "--device", "cpu"]);
        assert!(good(&["info", &model, "--prefix", prefix]).contains("prefix \"encoder.lstm.\""));
    }
    fails(1, "encoder.lstm.", &["run", &model, "--prefix", "decoder", "-i", &input, "-o", &out, "--device", "cpu"]);
    fails(1, "encoder.lstm.", &["info", &model, "--prefix", "decoder"]);
}

#[test]
fn info_describes_the_model() {
    let (_folder, model, _) = set_up("info");
    let printed = good(&["info", &model]);
    for needle in ["LSTM 3 → 7, 2 layers, bidirectional, projection 4", "encoder.lstm.weight_hr_l1_reverse", "[4, 7]"]
    {
        assert!(printed.contains(needle), "{needle}: {printed}");
    }
    let json: serde_json::Value = serde_json::from_str(&good(&["info", &model, "--json"])).unwrap();
    assert_eq!(json["prefix"], "encoder.lstm.");
    assert_eq!(json["num_parameters"], weights().spec().num_parameters());
    assert_eq!(json["layers"][1]["input_size"], 8);
    assert_eq!(json["layers"][1]["direction"], "bidirectional");
    assert_eq!(json["tensors"].as_array().unwrap().len(), 20);
    assert_eq!(json["tensors"][0]["dtype"], "F32");
}

/// A file of `tests/data/checkpoints`, see `tools/make_checkpoints.py`.
fn checkpoint(name: &str) -> String {
    format!("{}/tests/data/checkpoints/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn checkpoints_of_pytorch_run_like_safetensors() {
    let folder = Folder::new("checkpoints");
    let golden = fs::read(checkpoint("lstm.safetensors")).unwrap();
    let [x, output] = ["x", "output"].map(|name| read_tensor(&golden, name).unwrap());
    let input = folder.npz("in.npz", &[("x", Array::F32(x.0, x.1))]);
    let out = folder.path("out.npz");
    for prefix in [&[][..], &["--prefix", "encoder"], &["--prefix", "state_dict.module.encoder."]] {
        let model = checkpoint("lstm.pt");
        good(&[&["run", &model, "-i", &input, "-o", &out, "--device", "cpu"], prefix].concat());
        let (shape, found) = read(&out, "output");
        assert_eq!(shape, output.0.iter().map(|&n| n as u64).collect::<Vec<_>>());
        assert_close(&found, &output.1);
    }
}

#[test]
fn info_describes_checkpoints_and_refuses_code() {
    let printed = good(&["info", &checkpoint("lstm.pt")]);
    for needle in ["LSTM 3 → 5, 2 layers", "PyTorch checkpoint, prefix \"state_dict.module.encoder.\"", "rng"] {
        assert!(printed.contains(needle), "{needle}: {printed}");
    }
    assert!(good(&["info", &checkpoint("gru.pt")]).contains("GRU 4 → 3, 2 layers, bidirectional"));
    let json: serde_json::Value = serde_json::from_str(&good(&["info", &checkpoint("gru.pt"), "--json"])).unwrap();
    assert_eq!((&json["layers"][1]["cell"], &json["format"]), (&"GRU".into(), &"PyTorch checkpoint".into()));
    fails(1, "not run: os.system (as the whole file)", &["info", &checkpoint("hostile_reduce.pt")]);
    assert!(good(&["info", &checkpoint("legacy.pt")]).contains("PyTorch checkpoint (before 1.6), prefix \"net.l.\""));
}

#[test]
fn the_activation_of_an_rnn_is_an_option_of_rnns_alone() {
    let model = checkpoint("rnn_relu.pt");
    assert!(good(&["info", &model]).contains("RNN 4 → 3, 1 layer, forward, Tanh"));
    assert!(good(&["info", &model, "--rnn-activation", "relu"]).contains("RNN 4 → 3, 1 layer, forward, Relu"));
    for command in ["info", "bench"] {
        let refused = [command, &checkpoint("gru.pt"), "--rnn-activation", "tanh"];
        fails(1, "rnn_activation: expected none for \"\", a GRU, found Tanh", &refused);
    }
}

#[test]
fn devices_works_without_adapters() {
    let printed = good(&["devices"]);
    assert!(printed.starts_with("auto: CPU backend") && printed.contains("no adapters"), "{printed}");
    let json: serde_json::Value = serde_json::from_str(&good(&["devices", "--json"])).unwrap();
    assert_eq!(json["auto"]["kind"], "cpu");
    assert_eq!(json["adapters"], serde_json::json!([]));
    assert!(json["gpus_without_adapter"].is_array());
}

#[test]
fn demo_is_accurate_on_every_device_without_adapters() {
    for device in ["auto", "cpu", "reference"] {
        let printed = good(&["demo", "--device", device]);
        let accuracy = printed.lines().find_map(|line| line.trim().strip_prefix("accuracy: ")).unwrap();
        let percent: f64 = accuracy.split(" %").next().unwrap().parse().unwrap();
        assert!(percent >= 96.0, "{accuracy}");
        assert!(printed.contains("largest difference from the f64 reference: "), "{printed}");
        assert_eq!(printed.contains("no adapter for the GPU path"), device == "auto", "{printed}");
    }
}

#[test]
fn bench_times_what_there_is() {
    let (_folder, model, _) = set_up("bench");
    let arguments = ["bench", &model, "--batch", "1,4", "--len", "3,6", "--runs", "3", "--device", "cpu,gpu", "--json"];
    let json: serde_json::Value = serde_json::from_str(&good(&arguments)).unwrap();
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 8);
    for row in &rows[..4] {
        assert!(row["median_ms"].as_f64().unwrap() > 0.0 && row["gflops"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["runs"], 3);
        assert!(row["chosen"].is_null() && row["estimates"].is_null(), "a device that was named is no choice: {row}");
    }
    assert!(rows[4..].iter().all(|row| row["unavailable"].as_str().unwrap().contains("no adapter")));
    let text = good(&["bench", &model, "--batch", "2", "--len", "4", "--runs", "3", "--device", "cpu,gpu"]);
    assert!(text.contains("gpu: unavailable: ") && text.contains("GFLOP/s"), "{text}");
    fails(2, "no adapter", &["bench", &model, "--device", "gpu"]);
    fails(1, "memory", &["bench", &model, "--device", "cpu", "--batch", "2000000000", "--len", "2000000000"]);
}

#[test]
fn the_benchmark_binary_verifies_and_reports() {
    let folder = Folder::new("lstm-bench");
    let record = folder.path("record.csv");
    let bench = |arguments: &[&str]| command(env!("CARGO_BIN_EXE_lstm-bench")).args(arguments).output().unwrap();
    let tiny = ["--group", "tiny", "--runs", "3", "--device", "cpu,reference,gpu"];
    let output = bench(&[&tiny[..], &["--format", "json", "--record", &record]].concat());
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    let document: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let rows = document["rows"].as_array().unwrap();
    assert_eq!((rows.len(), document["devices"].as_array().map(Vec::len)), (12, Some(3)));
    assert!(document["devices"][2]["unavailable"].as_str().is_some_and(|why| why.contains("adapter")), "{document}");
    for row in rows {
        let measured = row["device"] != "gpu";
        assert_eq!(row["steady_ms"].is_number(), measured, "{row}");
        assert_eq!(row["error"].is_null(), measured, "{row}");
    }
    let record = fs::read_to_string(record).unwrap();
    assert_eq!(record.lines().count(), 1 + 8, "{record}");

    let output = bench(&[&tiny[..], &["--format", "csv"]].concat());
    assert_eq!(stdout(&output).lines().count(), 1 + 12);
    let output = bench(&[&tiny[..], &["--filter", "b1_t3"]].concat());
    let text = stdout(&output);
    assert!(text.contains("gpu: unavailable") && text.contains("b1_t3_i5_h7_fwd"), "{text}");
    let output = bench(&["--group", "tiny", "--device", "gpu"]);
    assert_eq!((output.status.code(), stderr(&output).lines().count()), (Some(2), 1));
    let (json, chart) = (folder.path("record.json"), folder.path("chart.svg"));
    let sweep = ["--sweep", "length", "--filter", "_t4_", "--runs", "1", "--device", "cpu"];
    let output = bench(&[&sweep[..], &["--record", &json, "--plot", &chart]].concat());
    assert!(output.status.code() == Some(1) && stderr(&output).contains("nothing to draw"), "{}", stderr(&output));
    assert!(fs::read_to_string(&json).unwrap().contains("b16_t4_i256_h256_fwd"));
    let sweep = ["--sweep", "length", "--filter", "_t1", "--runs", "1", "--device", "cpu", "--plot", &chart];
    let output = bench(&sweep);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    assert!(fs::read_to_string(&chart).unwrap().contains("Growth with the length"));
    let output = bench(&[&tiny[..], &["--record", &json]].concat());
    assert!(output.status.code() == Some(2) && stderr(&output).contains("exists"), "{}", stderr(&output));
    for (option, file, expected) in [
        ("--record", "missing/record.json", "there is no folder"),
        ("--plot", "missing/chart.svg", "there is no folder"),
        ("--plot", "chart.png", "ending in .svg"),
    ] {
        let output = bench(&[&tiny[..], &[option, &folder.path(file)]].concat());
        let text = stderr(&output);
        assert!(output.status.code() == Some(2) && text.contains(option) && text.contains(expected), "{text}");
    }
    let output = bench(&["--group", "none"]);
    assert!(output.status.code() == Some(2) && stderr(&output).contains("tiny"), "{}", stderr(&output));
}

#[test]
fn the_benchmark_of_streams_verifies_and_reports() {
    let folder = Folder::new("lstm-bench-streams");
    let record = folder.path("record.csv");
    let bench = |arguments: &[&str]| command(env!("CARGO_BIN_EXE_lstm-bench")).args(arguments).output().unwrap();
    let tiny = ["--streams", "--stream-hidden", "4", "--stream-slots", "1,3", "--stream-frame-ms", "1", "--runs", "3"];
    let options = ["--device", "cpu,gpu", "--format", "json", "--record", &record];
    let output = bench(&[&tiny[..], &options].concat());
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    let rows: Vec<serde_json::Value> = serde_json::from_str(&stdout(&output)).unwrap();
    let slots: Vec<_> = rows.iter().filter(|r| r["live_at_ms"].is_null()).map(|r| r["slots"].as_u64()).collect();
    assert_eq!(slots, [Some(1), Some(3)]);
    for row in &rows {
        assert!(row["device"] == "cpu" && row["push_us"].as_f64() > Some(0.0), "{row}");
        assert!(row["push_p99_us"].as_f64() >= row["push_us"].as_f64(), "{row}");
        if row["live_at_ms"].is_number() {
            assert!(row["push_p99_us"].as_f64() < Some(1000.0) && row["pushes"].as_u64() >= Some(40), "{row}");
        }
    }
    let record = fs::read_to_string(record).unwrap();
    assert_eq!(record.lines().count(), 1 + rows.len(), "{record}");
    let output = bench(&[&tiny[..], &["--device", "gpu"]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let output = bench(&["--streams", "--stream-slots", "0"]);
    assert!(output.status.code() == Some(2) && stderr(&output).contains("1 to 65536"), "{}", stderr(&output));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for arguments in [&["devices"][..], &["demo", "--device", "cpu"]] {
        let mut child = command(env!("CARGO_BIN_EXE_lstm"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{arguments:?}");
    }
}

fn data(file: &str) -> String {
    format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"))
}

/// Arrays by the names of the graph, and the other options that a graph answers by itself.
#[test]
fn onnx_models_run_on_arrays_named_as_the_graph_names_them() {
    let folder = Folder::new("onnx");
    let model = data("onnx/keras_gru.onnx");
    let stored = fs::read(data("onnx/keras_gru.safetensors")).unwrap();
    let (shape, x) = read_tensor(&stored, "in.x").unwrap();
    let (_, probabilities) = read_tensor(&stored, "out.probabilities").unwrap();
    let lengths = Array::I64(vec![6, 2, 4, 1]);
    let input = folder.npz("in.npz", &[("x", Array::F32(shape.clone(), x.clone())), ("lengths", lengths)]);
    let out = folder.path("out.npz");
    for device in ["cpu", "reference"] {
        let printed = good(&["run", &model, "-i", &input, "-o", &out, "--device", device]);
        assert!(printed.contains("GRU \"gru\": GRU 3 → 6, 1 layer, forward"), "{printed}");
        assert!(printed.contains("probabilities [4, 4]"), "{printed}");
        let (shape, found) = read(&out, "probabilities");
        assert_eq!(shape, [4, 4]);
        for (f, e) in found.iter().zip(&probabilities) {
            assert!((f - e).abs() <= 1e-5, "found {f}, expected {e}");
        }
    }
    let right = folder.npz("right.npz", &[("probabilities", Array::F32(vec![4, 4], probabilities.clone()))]);
    good(&["run", &model, "-i", &input, "--device", "cpu", "--expect", &right]);
    let mut other = probabilities;
    other[5] += 0.01;
    let wrong = folder.npz("wrong.npz", &[("probabilities", Array::F32(vec![4, 4], other))]);
    fails(1, "expect: probabilities", &["run", &model, "-i", &input, "--device", "cpu", "--expect", &wrong]);

    let alone = folder.npz("alone.npz", &[("x", Array::F32(shape.clone(), x.clone()))]);
    let needle = "input \"lengths\": missing; the graph takes x float [n, t, 3]; lengths int32 [n]";
    fails(1, needle, &["run", &model, "-i", &alone, "-o", &out, "--device", "cpu"]);
    let surplus = folder.npz("surplus.npz", &[("x", Array::F32(shape, x)), ("z", Array::I32(vec![1]))]);
    fails(
        1,
        "array \"z\": the graph has no such input",
        &["run", &model, "-i", &surplus, "-o", &out, "--device", "cpu"],
    );
    fails(2, "--prefix: an ONNX graph", &["run", &model, "-i", &input, "-o", &out, "--prefix", "gru"]);
    fails(2, "--layout: an ONNX graph", &["run", &model, "-i", &input, "-o", &out, "--layout", "time"]);
    let printed = good(&["run", &model, "-i", &input, "--device", "cpu", "--verify", "--explain"]);
    for line in [
        "engine: GRU \"gru\"",
        "CPU runtime: ",
        "verify: every operator in f64",
        "probabilities [4, 4]: all 16 elements agree",
    ] {
        assert!(printed.contains(line), "{printed}");
    }
    let printed = good(&["bench", &model, "-i", &input, "--device", "cpu", "--runs", "2"]);
    assert!(printed.contains("the whole graph") && printed.contains("median ms"), "{printed}");
    let timed = good(&["bench", &model, "-i", &input, "--device", "cpu,reference", "--runs", "2", "--json"]);
    let timed: serde_json::Value = serde_json::from_str(&timed).unwrap();
    assert_eq!(timed["rows"].as_array().unwrap().len(), 2);
    assert!(timed["rows"][0]["median_ms"].as_f64().unwrap() > 0.0);
    fails(2, "--input: expected a file with arrays", &["bench", &model, "--device", "cpu"]);
    fails(1, "missing.onnx: cannot be read", &["info", &folder.path("missing.onnx")]);
    let broken = folder.bytes("broken.onnx", b"no model");
    fails(1, "broken.onnx", &["info", &broken]);
    let unnamed = folder.bytes("unnamed", &std::fs::read(&model).unwrap());
    fails(1, "known by a name ending in .onnx", &["info", &unnamed]);

    let printed = good(&["info", &model]);
    for line in [
        "input x float [n, t, 3]",
        "output probabilities float [n, 4]",
        "GRU \"gru\": GRU 3 → 6",
        "other nodes, on the CPU",
    ] {
        assert!(printed.contains(line), "{printed}");
    }
    assert!(good(&["info", &data("onnx/decomposed.onnx")]).contains("no LSTM, GRU or RNN node"));
    let json: serde_json::Value = serde_json::from_str(&good(&["info", "--json", &model])).unwrap();
    assert_eq!(json["format"], "ONNX");
}

/// Arrays from the standard input, results on the standard output, and nothing else there.
#[test]
fn arrays_pass_through_pipes() {
    let folder = Folder::new("pipes");
    let model = data("onnx/keras_gru.onnx");
    let stored = fs::read(data("onnx/keras_gru.safetensors")).unwrap();
    let (shape, x) = read_tensor(&stored, "in.x").unwrap();
    let input = folder.npz("in.npz", &[("x", Array::F32(shape, x)), ("lengths", Array::I64(vec![6, 2, 4, 1]))]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_lstm"))
        .args(["run", &model, "-i", "-", "-o", "-", "--device", "cpu"])
        .stdin(Stdio::from(fs::File::open(&input).unwrap()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    let piped = folder.bytes("piped.npz", &output.stdout);
    assert_eq!(read(&piped, "probabilities").0, [4, 4]);
    // What never ends, or waits for ever, is no file.
    #[cfg(unix)]
    {
        fails(1, "found a pipe or device", &["run", &model, "-i", "/dev/zero", "-o", "-"]);
    }
}

/// Files of PyTorch and Keras, by their content.
#[test]
fn checkpoints_and_keras_models_run() {
    let folder = Folder::new("formats");
    for (file, input_size, cell, note) in
        [("checkpoints/gru.pt", None, "GRU", ""), ("keras/k3_stack.keras", None, "LSTM", "note: layers: LSTM")]
    {
        let model = data(file);
        let json: serde_json::Value = serde_json::from_str(&good(&["info", "--json", &model])).unwrap();
        let width = input_size.unwrap_or(json["input_size"].as_u64().unwrap() as usize);
        assert_eq!(json["layers"][0]["cell"], cell, "{file}");
        assert!(good(&["info", &model]).contains(note), "{file}");
        let input = folder.npz("in.npz", &[("x", Array::F32(vec![2, 5, width], values(10 * width)))]);
        let out = folder.path("out.npz");
        good(&["run", &model, "-i", &input, "-o", &out, "--device", "cpu", "--verify=all"]);
        let (shape, _) = read(&out, "output");
        assert_eq!(shape[..2], [2, 5], "{file}");
        let has_c = NpzArchive::open(&out).unwrap().by_name("c_n").unwrap().is_some();
        assert_eq!(has_c, cell == "LSTM", "{file}: only a cell with a cell state has c_n");
    }
    let gru = data("checkpoints/gru.pt");
    let x = ("x", Array::F32(vec![1, 1, 1], vec![0.0]));
    let input = folder.npz("c.npz", &[x, ("c_0", Array::F32(vec![1, 1, 1], vec![0.0]))]);
    let out = folder.path("out.npz");
    let output = lstm(&["run", &gru, "-i", &input, "-o", &out, "--device", "cpu"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}
