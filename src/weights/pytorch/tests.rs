use std::path::PathBuf;

use super::*;
use crate::ErrorKind;
use crate::activation::Activation;
use crate::cell::{CellSpec, GruCell, RnnCell};
use crate::spec::{Direction, LstmSpec};
use crate::weights::{self, safetensors, uniform};

/// A file of `tests/data/checkpoints`, written by `tools/make_checkpoints.py`.
fn fixture(name: &str) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "data", "checkpoints", name].iter().collect();
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

const FIXTURES: [&str; 19] = [
    "lstm",
    "gru",
    "rnn_relu",
    "cells",
    "bf16",
    "f16",
    "f64",
    "views",
    "objects2",
    "objects4",
    "objects5",
    "module",
    "module_legacy",
    "legacy",
    "tar",
    "weight_norm",
    "parametrized",
    "pruned",
    "weight_drop",
];

fn error_of(bytes: &[u8]) -> String {
    read(bytes, None).unwrap_err().to_string()
}

/// A zip archive of stored entries.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut archive = rawzip::ZipArchiveWriter::new(&mut bytes);
    for (name, data) in entries {
        let (mut entry, config) =
            archive.new_file(name).compression_method(rawzip::CompressionMethod::STORE).start().unwrap();
        let mut writer = config.wrap(&mut entry);
        std::io::Write::write_all(&mut writer, data).unwrap();
        let (_, descriptor) = writer.finish().unwrap();
        entry.finish(descriptor).unwrap();
    }
    archive.finish().unwrap();
    bytes
}

/// A checkpoint with this pickle and one record of 64 bytes.
fn checkpoint(pickle: &[u8]) -> Vec<u8> {
    zip(&[("a/data.pkl", pickle), ("a/data/0", &[0; 64])])
}

/// The opcodes of a tensor in a storage of f32; `shape` and `strides` are opcodes too.
fn tensor(stored: u16, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let [low, high] = stored.to_le_bytes();
    let storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuM";
    let function = b"ctorch._utils\n_rebuild_tensor_v2\n(";
    [function, &storage[..], &[low, high, b't', b'Q', b'K', offset], shape, strides, b"\x89NtR"].concat()
}

/// The pickle of a dict with one tensor of one axis, 16 elements stored.
fn tensor_pickle(name: &str, offset: u8, shape: u8, stride: u8) -> Vec<u8> {
    let length = (name.len() as u32).to_le_bytes();
    let tensor = tensor(16, offset, &[b'K', shape, 0x85], &[b'K', stride, 0x85]);
    [b"\x80\x02}X", &length[..], name.as_bytes(), &tensor, b"s."].concat()
}

#[test]
fn checkpoints_hold_what_pytorch_says() {
    for name in FIXTURES {
        let golden = fixture(&format!("{name}.safetensors"));
        let prefix = match name {
            "cells" => Some("a"),
            _ => None,
        };
        let found = read(&fixture(&format!("{name}.pt")), prefix).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = safetensors::read(&golden, None).unwrap();
        if !matches!(name, "module_legacy" | "weight_norm" | "parametrized" | "pruned") {
            assert_eq!(found, expected, "{name}");
            continue;
        }
        // The activation is the module's; what PyTorch folds in f32 differs in the last bits.
        assert_eq!(found.spec().layers()[0].hidden_size, expected.spec().layers()[0].hidden_size, "{name}");
        for (found, expected) in found.cells().iter().zip(expected.cells()) {
            let all = |cell: &crate::weights::CellWeights| {
                let biases = [cell.bias_ih.clone(), cell.bias_hh.clone()].map(Option::unwrap);
                [cell.weight_ih.clone(), cell.weight_hh.clone(), biases.concat()].concat()
            };
            for (found, expected) in all(found).into_iter().zip(all(expected)) {
                assert!((found - expected).abs() <= 2e-7 * expected.abs().max(1e-3), "{name}: {found}, {expected}");
            }
        }
    }
    let spec = |name, prefix| read(&fixture(name), prefix).unwrap().spec().clone();
    let lstm = LstmSpec::stack(3, 5, 2).direction(Direction::Bidirectional).projection(2).build().unwrap();
    assert_eq!(spec("lstm.pt", None), lstm);
    let gru = LstmSpec::stack(4, 3, 2).cell(CellSpec::Gru(GruCell::default())).direction(Direction::Bidirectional);
    assert_eq!(spec("gru.pt", None), gru.build().unwrap());
    let gru_cell = LstmSpec::stack(4, 3, 1).cell(CellSpec::Gru(GruCell::default()));
    assert_eq!(spec("cells.pt", Some("model_state.a")), gru_cell.build().unwrap());
    assert_eq!(spec("cells.pt", Some("b")), LstmSpec::stack(4, 3, 1).build().unwrap());
    let rnn = LstmSpec::stack(4, 3, 1).cell(CellSpec::Rnn(RnnCell::default()));
    assert_eq!(spec("rnn_relu.pt", None), rnn.build().unwrap());
}

#[test]
fn every_option_reaches_the_weights() {
    let options = ReadOptions { rnn_activation: Some(Activation::Relu), ..ReadOptions::default() };
    let relu = weights::read(&fixture("rnn_relu.pt"), &options).unwrap();
    assert_eq!(relu.spec().layers()[0].cell.activations(0), [("f", Activation::Relu)]);
    let error = weights::read(&fixture("gru.pt"), &options).unwrap_err().to_string();
    assert_eq!(error, "rnn_activation: expected none for \"\", a GRU, found Relu");
}

#[test]
fn prefixes_are_found_with_and_without_wrappers() {
    let bytes = fixture("lstm.pt");
    assert_eq!(list_prefixes(&bytes).unwrap(), ["state_dict.module.encoder."]);
    for prefix in ["encoder", "encoder.", "module.encoder", "state_dict.module.encoder"] {
        assert!(read(&bytes, Some(prefix)).is_ok(), "{prefix}");
    }
    assert_eq!(
        read(&bytes, Some("decoder")).unwrap_err().to_string(),
        "prefix: expected one of \"state_dict.module.encoder.\" (LSTM), found \"decoder\""
    );
    assert!(error_of(&fixture("cells.pt")).contains("\"model_state.a.\" (GRU), \"model_state.b.\" (LSTM)"));
}

#[test]
fn a_file_lists_its_tensors_whatever_its_name() {
    let folder = std::env::temp_dir().join(format!("wgpu-lstm-pytorch-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("weights.bin");
    std::fs::write(&path, fixture("lstm.pt")).unwrap();
    let (weights, contents) = weights::read_file_with_contents(&path, &ReadOptions::default()).unwrap();
    assert_eq!(weights, read_file(&path, None).unwrap());
    assert_eq!((contents.format, contents.prefix.as_str()), ("PyTorch checkpoint", "state_dict.module.encoder."));
    assert_eq!(contents.tensors.len(), 20);
    assert_eq!(contents.tensors[0].name, "state_dict.module.encoder.bias_hh_l0");
    assert_eq!((contents.tensors[0].element_type.as_str(), contents.tensors[0].shape.as_slice()), ("F32", &[20][..]));
    let has = |name: &str| contents.others.iter().any(|tensor| tensor.name == name);
    assert!(has("state_dict.module.head.weight") && has("optimizer.state.0.exp_avg") && has("rng"));
    let counts = contents.others.iter().find(|tensor| tensor.name == "counts").unwrap();
    assert_eq!((counts.element_type.as_str(), counts.shape.as_slice()), ("U16", &[3][..]));

    let error = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = weights::read_file(&path, &ReadOptions::default()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{}: ", path.display())), "{error}");
        error
    };
    assert_eq!(error(b"").kind(), ErrorKind::InvalidFile);
    assert_eq!(error(b"PK\x03\x04 and no more").kind(), ErrorKind::InvalidFile);
    assert!(error(b"\x93NUMPY\x01").to_string().contains("a numpy array"));
    // These are Keras', whatever is wrong with them.
    for keras in [b"\x89HDF\r\n\x1a\n".to_vec(), zip(&[("config.json", b"{}"), ("model.weights.h5", b"")])] {
        let found = error(&keras);
        let kind = if cfg!(feature = "keras") { ErrorKind::InvalidFile } else { ErrorKind::Unsupported };
        assert_eq!(found.kind(), kind, "{found}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(weights::read_file(&path, &ReadOptions::default()).unwrap_err().kind(), ErrorKind::InvalidFile);
}

#[test]
fn code_is_refused_by_name() {
    for (name, offender) in [
        ("reduce", "os.system"),
        ("stack_global", "posix.system"),
        ("inst", "os.system"),
        ("obj", "os.system"),
        ("newobj", "subprocess.Popen"),
        ("build", "builtins.eval"),
        ("getattr", "__builtin__.getattr"),
        ("nested", "os.system"),
    ] {
        let error = read(&fixture(&format!("hostile_{name}.pt")), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
        let message = error.to_string();
        let place = if name == "nested" { "a" } else { "the whole file" };
        let expected = format!("objects are not, since their code is not run: {offender} (as {place})");
        assert!(message.contains(&expected), "{name}: {message}");
    }
    for name in ["obj_allowed", "newobj_allowed", "build_allowed", "extension"] {
        assert!(read(&fixture(&format!("hostile_{name}.pt")), None).is_err(), "{name}");
    }
    let error = error_of(&fixture("torchscript.pt"));
    assert!(error.contains("TorchScript") && error.contains("torch.jit.load"), "{error}");
}

#[test]
fn objects_beside_the_network_are_passed_over() {
    for name in ["objects2", "objects4", "objects5"] {
        let bytes = fixture(&format!("{name}.pt"));
        let contents = state_dict(&bytes).unwrap().read(&ReadOptions::default()).unwrap().1;
        assert_eq!(contents.prefix, "state_dict.lstm.");
        let class = |name: &str| contents.objects.iter().find(|o| o.name == name).map(|o| o.class.as_str());
        assert_eq!(class("hyper_parameters"), Some("settings.Config"));
        assert_eq!(class("args"), Some("argparse.Namespace"));
        assert_eq!(class("counts"), Some("collections.Counter"));
        assert_eq!(class("sparse"), Some("torch._utils._rebuild_sparse_tensor"));
        assert_eq!(class("negated"), Some("torch._utils._rebuild_tensor_v2"), "its sign is not yet applied");
        assert!(class("history").is_some_and(|class| class.starts_with("numpy.")), "{:?}", class("history"));
        assert_eq!(class("activation"), None, "a function is no object");
        assert!(contents.others.iter().any(|tensor| tensor.name == "callbacks.ModelCheckpoint.best"));
        assert_eq!(contents.beside, []);
    }
}

/// A pickle of a dict whose values are given as opcodes.
fn dict_of(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}".to_vec();
    for (name, value) in entries {
        pickle.extend([b"X", &(name.len() as u32).to_le_bytes()[..], name.as_bytes(), value, b"s"].concat());
    }
    pickle.push(b'.');
    pickle
}

/// An RNN of I=1, H=1 with what is added: opcodes by name.
fn rnn_with(prefix: &str, others: &[(&str, &[u8])]) -> Vec<u8> {
    let matrix = tensor(16, 0, b"K\x01K\x01\x86", b"K\x01K\x01\x86");
    let names = ["weight_ih_l0", "weight_hh_l0"].map(|name| format!("{prefix}{name}"));
    let mut entries: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (name.as_str(), matrix.clone())).collect();
    for (name, value) in others {
        entries.retain(|(other, _)| other != name);
        entries.push((*name, value.to_vec()));
    }
    checkpoint(&dict_of(&entries))
}

#[test]
fn an_object_is_refused_where_the_network_needs_it() {
    let sparse = b"ctorch._utils\n_rebuild_sparse_tensor\n)R";
    let array = b"cnumpy\nndarray\n)\x81N b".iter().copied().filter(|b| *b != b' ').collect::<Vec<u8>>();
    assert!(read(&rnn_with("a.", &[]), None).is_ok());
    for (name, object) in [
        ("a.weight_hh_l0", &sparse[..]),
        ("a.weight_ih_l0", &array),
        ("a.bias_ih_l0", &array),
        ("a.ln.weight", &sparse[..]),
        ("a._extra_state", &array),
        ("a.weight_hh_l0_raw", &array),
    ] {
        let error = read(&rnn_with("a.", &[(name, object)]), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().starts_with(&format!("{name}: expected a tensor, found an object of ")), "{error}");
    }
    // Elsewhere, or a thing that is no tensor, it is passed over.
    for (name, object) in [("b.weight", &sparse[..]), ("a.config", &array), ("config", &array), ("a.b.config", &array)]
    {
        assert!(read(&rnn_with("a.", &[(name, object)]), None).is_ok(), "{name}");
    }
    // The state dict itself is of a class with code of its own.
    let inside = rnn_with("a.", &[]);
    let (start, end) = (
        inside.windows(3).position(|w| w == b"\x80\x02}").unwrap(),
        inside.windows(2).position(|w| w == b"s.").unwrap(),
    );
    let hidden = [b"\x80\x02}X\x05\x00\x00\x00modelcsettings\nConfig\n)\x81", &inside[start + 3..=end], b"s."].concat();
    let error = error_of(&checkpoint(&hidden));
    assert!(error.contains("not run: settings.Config (as model)"), "{error}");
    let error = read(&checkpoint(&hidden), Some("model.a")).unwrap_err().to_string();
    assert!(error.contains("settings.Config"), "{error}");
    let both = dict_of(&[("x.weight_hh_l0", tensor(16, 0, b"K\x01K\x01\x86", b"K\x01K\x01\x86")), ("m", array)]);
    let error = read(&checkpoint(&both), Some("m.lstm")).unwrap_err().to_string();
    assert!(error.starts_with("m: expected a tensor, found an object of numpy.ndarray"), "{error}");
}

#[test]
fn tensors_whose_numbers_mean_something_else_are_not_read() {
    let plain = tensor(16, 0, b"K\x01K\x01\x86", b"K\x01K\x01\x86");
    let negated = [&plain[..plain.len() - 2], b"}X\x03\x00\x00\x00neg\x88stR"].concat();
    let with_state = [plain.as_slice(), b"}b"].concat();
    let arguments = &plain[b"ctorch._utils\n_rebuild_tensor_v2\n".len()..plain.len() - 1];
    let typed = |class: &str| {
        [
            b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n",
            class.as_bytes(),
            arguments,
            b"}tR",
        ]
        .concat()
    };
    for (object, accepted) in [
        (plain.clone(), true),
        ([&plain[..plain.len() - 2], b"}tR"].concat(), true),
        (typed("ctorch\nTensor\n"), true),
        (typed("ctorch.nn.parameter\nParameter\n"), true),
        (negated, false),
        (with_state, false),
        (typed("cfastai.torch_core\nTensorBase\n"), false),
    ] {
        let found = read(&rnn_with("a.", &[("a.weight_hh_l0", &object)]), None);
        assert_eq!(found.is_ok(), accepted, "{object:?}: {found:?}");
    }
}

#[test]
fn modules_are_read_if_they_are_pytorchs_own() {
    let legacy = state_dict(&fixture("module_legacy.pt")).unwrap().read(&ReadOptions::default()).unwrap();
    assert_eq!(legacy.1.prefix, "model.rnn.");
    // An RNN knows its activation.
    assert_eq!(legacy.0.spec().layers()[0].cell.activations(0), [("f", Activation::Relu)]);
    let asked = |activation| ReadOptions { rnn_activation: Some(activation), ..ReadOptions::default() };
    assert!(weights::read(&fixture("module_legacy.pt"), &asked(Activation::Relu)).is_ok());
    let error = weights::read(&fixture("module_legacy.pt"), &asked(Activation::Tanh)).unwrap_err().to_string();
    assert!(error.starts_with("rnn_activation: expected Relu, which the module"), "{error}");

    let matrix = tensor(16, 0, b"K\x01K\x01\x86", b"K\x01K\x01\x86");
    let module = |class: &str, attributes: &[(&str, Vec<u8>)]| {
        let parameters = dict_of(&[("weight_ih_l0", matrix.clone()), ("weight_hh_l0", matrix.clone())]);
        let parameters = parameters[2..parameters.len() - 1].to_vec();
        let mut all = vec![("_parameters", parameters), ("_modules", b"}".to_vec())];
        all.extend(attributes.iter().cloned());
        let state = dict_of(&all);
        checkpoint(&[b"\x80\x02c", class.as_bytes(), b"\n)\x81", &state[2..state.len() - 1], b"b."].concat())
    };
    assert!(read(&module("torch.nn.modules.rnn\nRNN", &[]), None).is_ok());
    let error = error_of(&module("speech.layers\nNormLSTM", &[]));
    assert!(error.contains("expected a module of torch.nn, found speech.layers.NormLSTM, whose code"), "{error}");
    let error = error_of(&module("torch.nn.modules.rnn\nGRU", &[]));
    assert!(error.contains("expected the tensors of torch.nn.modules.rnn.GRU, found those of an RNN"), "{error}");
    let hook = |class: &str| [b"}K\x01c", class.as_bytes(), b"\n)\x81s"].concat();
    for attribute in ["_forward_hooks", "_forward_pre_hooks"] {
        let with = |class| module("torch.nn.modules.rnn\nRNN", &[(attribute, hook(class))]);
        assert!(error_of(&with("mine\nScale")).contains("found hooks"), "{}", error_of(&with("mine\nScale")));
        assert!(read(&with("torch.nn.utils.weight_norm\nWeightNorm"), None).is_ok());
    }
    assert!(error_of(&module("torch.nn.modules.rnn\nRNN", &[("forward", b"N".to_vec())])).contains("found hooks"));
    let quantised = dict_of(&[("_parameters", b"}".to_vec()), ("_modules", b"}".to_vec())]);
    let class = b"\x80\x02ctorch.ao.nn.quantized.dynamic.modules.rnn\nLSTM\n)\x81";
    let error = error_of(&checkpoint(&[class, &quantised[2..quantised.len() - 1], b"b."].concat()));
    assert!(error.contains("found torch.ao.nn.quantized.dynamic.modules.rnn.LSTM (as the whole file)"), "{error}");
    // Modules in themselves.
    let mut itself = b"\x80\x02cm\nM\n)\x81q\x00".to_vec();
    let state = dict_of(&[("_parameters", b"}".to_vec()), ("_modules", b"}U\x01ah\x00s".to_vec())]);
    itself.extend([&state[2..state.len() - 1], b"b."].concat());
    assert!(error_of(&checkpoint(&itself)).contains("nested at most 64 deep"));
}

#[test]
fn lists_are_searched_if_nothing_else_has_a_network() {
    let rnn = dict_of(&[
        ("weight_ih_l0", tensor(16, 0, b"K\x01K\x01\x86", b"K\x01K\x01\x86")),
        ("weight_hh_l0", tensor(16, 0, b"K\x01K\x01\x86", b"K\x01K\x01\x86")),
    ]);
    let rnn = &rnn[2..rnn.len() - 1];
    let list = checkpoint(&[b"\x80\x02](", rnn, b"Ne."].concat());
    assert_eq!(list_prefixes(&list).unwrap(), ["0."]);
    let both = dict_of(&[("model", rnn.to_vec()), ("history", [b"](", rnn, b"e"].concat())]);
    assert_eq!(list_prefixes(&checkpoint(&both)).unwrap(), ["model."]);
}

#[test]
fn what_is_nested_beside_a_bare_network_is_told_from_its_parts() {
    let vector = tensor(16, 0, b"K\x01\x85", b"K\x01\x85");
    let inside = |key: &str| [b"}U", &[key.len() as u8][..], key.as_bytes(), &vector, b"s"].concat();
    for (name, value, accepted) in [
        ("optimizer", inside("exp_avg"), true),
        ("lr_scheduler", inside("last"), true),
        ("ln", inside("weight"), false),
        ("optimizer_gain", vector.clone(), false),
        ("epochs", b"K\x01".to_vec(), true),
    ] {
        let found = read(&rnn_with("", &[(name, &value)]), None);
        assert_eq!(found.is_ok(), accepted, "{name}: {found:?}");
    }
}

#[test]
fn the_rest_of_the_model_is_listed() {
    let bytes = fixture("lstm.pt");
    let contents = state_dict(&bytes).unwrap().read(&ReadOptions::default()).unwrap().1;
    let names: Vec<&str> = contents.beside.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["state_dict.module.head.bias", "state_dict.module.head.weight"]);
    assert_eq!(contents.beside[1].shape, [2, 4]);
    let bytes = fixture("weight_drop.pt");
    let contents = state_dict(&bytes).unwrap().read(&ReadOptions::default()).unwrap().1;
    assert_eq!(contents.others.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["0.rnns.0.module.weight_hh_l0"]);
    assert_eq!(contents.beside, []);
    assert!(contents.notes[0].starts_with("0.rnns.0.weight_hh_l0_raw is the weight"), "{:?}", contents.notes);
}

#[test]
fn older_formats_are_checked() {
    let legacy = fixture("legacy.pt");
    assert_eq!(state_dict(&legacy).unwrap().format, "PyTorch checkpoint (before 1.6)");
    for length in 0..legacy.len() {
        assert!(read(&legacy[..length], None).is_err(), "accepted the first {length} bytes");
    }
    // Protocol 1, which has its numbers in decimal; here with an empty object and no storages.
    let text = b"L119547037146038801333356L\n.M\xe9\x03.}U\x0dlittle_endianI01\ns.}.].";
    assert!(error_of(text).ends_with("found no tensors"), "{}", error_of(text));
    let text = b"L119547037146038801333356L\n.M\xe9\x03.}U\x0dlittle_endianI00\ns.}.].";
    assert!(error_of(text).contains("other byte order"), "{}", error_of(text));
    let tar = fixture("tar.pt");
    assert_eq!(state_dict(&tar).unwrap().format, "PyTorch checkpoint (before 0.2)");
    let changed = |find: &[u8], replace: &[u8], bytes: &[u8]| {
        let at = bytes.windows(find.len()).position(|w| w == find).unwrap();
        let mut bytes = bytes.to_vec();
        bytes[at..at + replace.len()].copy_from_slice(replace);
        error_of(&bytes)
    };
    assert!(changed(b"little_endianq\x02\x88", b"little_endianq\x02\x89", &legacy).contains("other byte order"));
    assert!(changed(b"M\xe9\x03.", b"M\xea\x03.", &legacy).contains("expected version 1001, found 1002"));
    assert!(changed(b"storages\0", b"storagez\0", &tar).contains("expected the header of an entry"));
    let mut other = vec![0; 1024];
    other[..4].copy_from_slice(b"a.md");
    other[124..135].copy_from_slice(b"00000000000");
    other[257..262].copy_from_slice(b"ustar");
    let sum: usize = other.iter().map(|&b| usize::from(b)).sum::<usize>() + 8 * 32;
    other[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert!(error_of(&other).contains("as torch.save wrote it before PyTorch 0.2"), "{}", error_of(&other));
    assert!(error_of(&other).ends_with("found a.md"), "{}", error_of(&other));
    let nemo = fixture("model.nemo");
    assert_eq!(read(&nemo, None).unwrap(), safetensors::read(&fixture("model.safetensors"), None).unwrap());
    let error = weights::read(b"\x80\x04\x95\x00", &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("a pickle that torch.save did not write"), "{error}");
}

#[test]
fn archives_that_lie_are_refused() {
    let good = tensor_pickle("t", 0, 16, 1);
    let storage = [0u8; 64];
    let error = |entries: &[(&str, &[u8])]| error_of(&zip(entries));
    let pickle = ("a/data.pkl", good.as_slice());
    // What stands in for a good file: its one tensor is no network.
    assert!(error(&[pickle, ("a/data/0", &storage)]).ends_with("found t"));

    assert_eq!(
        error(&[pickle, ("a/data/0", &storage), ("a/byteorder", b"big")]),
        "byteorder: expected \"little\", found \"big\""
    );
    assert_eq!(error(&[pickle]), "t: expected the record \"data/0\", found none");
    assert_eq!(
        error(&[pickle, ("a/data/0", &storage[..60])]),
        "t: data/0: expected 16 elements of 4 bytes, found 60 bytes"
    );
    assert!(error(&[("a.txt", b"")]).ends_with("as torch.save writes it, found a.txt"));
    assert!(error(&[("weights.npy", b"")]).contains("found arrays of numpy (weights.npy): a .npz file"));
    assert!(error(&[("m/archive_format", b"pt2"), ("m/version", b"0")]).contains("a program of torch.export"));
    assert!(error(&[pickle, ("a/code/__torch__.py", b"")]).contains("found TorchScript"));
    assert!(error(&[pickle, ("b/data.pkl", b"")]).contains("found two"));
    assert!(error(&[pickle, pickle]).contains("expected one entry of this name, found two"));
    assert!(error(&[("a/b/data.pkl", b"")]).contains("expected NAME/data.pkl"));

    // A bit of an entry's description in the central directory and locally.
    let archive = zip(&[pickle, ("a/data/0", &storage)]);
    let directory = archive.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let changed = |at: usize, value: u8| {
        let mut archive = archive.clone();
        archive[at] = value;
        error_of(&archive)
    };
    assert!(
        changed(directory + 10, 8).contains("data.pkl: expected a stored record"),
        "{}",
        changed(directory + 10, 8)
    );
    assert!(changed(directory + 8, 1).contains("encrypted"), "{}", changed(directory + 8, 1));
    assert!(changed(directory + 20, archive[directory + 20] + 40).contains("overlap"));
    assert!(changed(directory + 23, 0x7f).contains("not a complete zip archive"));
    let end = archive.len() - 22;
    assert!(changed(end + 10, 3).contains("expected 3 entries in the archive, found 2"), "{}", changed(end + 10, 3));
    assert!(error_of(&archive[..archive.len() - 1]).contains("not a complete zip archive"));
}

#[test]
fn views_outside_their_storage_are_refused() {
    let error = |offset, shape, stride| error_of(&checkpoint(&tensor_pickle("t", offset, shape, stride)));
    assert!(error(0, 16, 1).ends_with("found t"));
    assert!(error(15, 1, 200).ends_with("found t"));
    for (offset, shape, stride) in [(1, 16, 1), (0, 17, 1), (0, 2, 16), (16, 1, 1)] {
        let error = error(offset, shape, stride);
        assert!(error.starts_with("t: shape ") && error.contains("found it to end beyond"), "{error}");
    }
}

#[test]
fn plain_data_of_every_protocol_is_passed_over() {
    for plain in [
        &b"N"[..],
        b"\x88",
        b"J\xff\xff\xff\xff",
        b"M\x00\x01",
        b"\x8a\x00",
        b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01",
        b"\x8b\x01\x00\x00\x00\x80",
        b"G\x3f\xf0\x00\x00\x00\x00\x00\x00",
        b"X\x03\x00\x00\x00\xed\xa0\x80",
        b"\x8c\x01x",
        b"\x8d\x01\x00\x00\x00\x00\x00\x00\x00x",
        b"T\x01\x00\x00\x00x",
        b"U\x01x",
        b"B\x01\x00\x00\x00\xff",
        b"C\x01\xff",
        b"\x8e\x01\x00\x00\x00\x00\x00\x00\x00\xff",
        b"\x96\x01\x00\x00\x00\x00\x00\x00\x00\xff",
        b"](K\x01K\x02e",
        b"]Na",
        b"(NNl",
        b"(K\x01Nd",
        b")",
        b"N\x85",
        b"NN\x86",
        b"NNN\x87",
        b"\x8f(K\x01\x90",
        b"(K\x01\x91",
        b"N20",
        b"N(NN1",
        b"N\x940h\x00",
        b"Nr\x00\x01\x00\x000j\x00\x01\x00\x00",
        b"\x95\x01\x00\x00\x00\x00\x00\x00\x00N",
        b"c__builtin__\nset\n]\x85R",
        b"\x8c\x08builtins\x8c\x03set\x93]\x85R",
        b"c_codecs\nencode\nX\x01\x00\x00\x00xX\x06\x00\x00\x00latin1\x86R",
        b"ctorch\nSize\nK\x01\x85\x85R",
        b"ctorch\nfloat32\n",
        b"I01\n",
        b"I-5\n",
        b"L99999999999999999999L\n",
        b"F1.5\n",
        b"S'it'\n",
        b"V\\u0061\n",
        b"Np7\n0g7\n",
        b"cos\nsystem\nX\x01\x00\x00\x00x\x85R",
        b"(X\x01\x00\x00\x00xios\nsystem\n",
        b"(cos\nsystem\nX\x01\x00\x00\x00xo",
        b"csubprocess\nPopen\n)\x81}b",
        b"csubprocess\nPopen\n)}\x92",
        b"csettings\nList\n)\x81(NNe",
        b"csettings\nList\n)\x81Na",
        b"csettings\nDict\n)\x81(NNu",
        b"ccopy_reg\n_reconstructor\n(csettings\nList\nc__builtin__\nobject\nNtR}b",
        b"c__builtin__\ngetattr\n(NNtR)R",
        b"\x82\x01",
        b"\x83\x01\x02",
        b"\x84\x01\x02\x03\x04)R",
        b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R",
    ] {
        let root = [b"\x80\x04", plain, b"."].concat();
        pickle::read(&root).unwrap_or_else(|e| panic!("{plain:?}: {e}"));
        // Beside a tensor it changes nothing.
        let beside = tensor_pickle("t", 0, 16, 1);
        let end = beside.len() - 1;
        let both = [&beside[..end], b"X\x01\x00\x00\x00e", plain, b"s."].concat();
        let error = error_of(&checkpoint(&both));
        assert!(error.ends_with("found t") || error.contains("tensors are (t);"), "{plain:?}: {error}");
    }
}

#[test]
fn broken_pickles_are_named() {
    for (broken, message) in [
        (&b""[..], "expected 1 more bytes, found 0"),
        (b"N", "byte 1: expected 1 more bytes"),
        (b".", "expected 1 values on the stack, found 0"),
        (b"\x80\x06N.", "expected protocol 0 to 5, found 6"),
        (b"P1\n.", "PERSID: expected the persistent ids of protocol 1"),
        (b"gx\n.", "expected the number of a memo entry, found x"),
        (b"K\x01)\x81.", "NEWOBJ: expected a class, found a whole number"),
        (b"ca\nb\nN\x81.", "NEWOBJ: expected a tuple of arguments"),
        (b"(o.", "OBJ: expected a class, found none"),
        (b"\xff", "expected an opcode, found 0xff"),
        (b"t", "expected a mark on the stack, found none"),
        (b"N(\x85", "expected 1 values on the stack, found 0"),
        (b"(Nd", "expected keys and values, found 1 values"),
        (b"NNa", "expected a list to append to, found plain data"),
        (b")NNs", "expected a dict to set items of, found a tuple"),
        (b"h\x05", "memo: expected an entry 5, found none"),
        (b"X\xff\xff\xff\xffabc", "expected 4294967295 more bytes, found 3"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "more bytes, found 0"),
        (b"K\x01K\x02\x93", "STACK_GLOBAL: expected two strings"),
        (b"N)R", "REDUCE: expected a function, found plain data"),
        (b"ccollections\nOrderedDict\nNR", "REDUCE: expected a tuple of arguments"),
        (b"ctorch\nSize\n)R", "Size with 0 arguments is nothing torch writes"),
        (b"NQ", "persistent id: expected"),
        (b"ctorch", "found no end of it"),
        (b"c\xff\n\n", "expected a line in UTF-8"),
        (b"}b.", "expected 1 values on the stack"),
        (b"}}b.", "BUILD"),
    ] {
        let error = pickle::read(broken).unwrap_err().to_string();
        assert!(error.contains(message), "{broken:?}: {error}");
    }
    let with = |shape: &[u8]| {
        let pickle = tensor_pickle("t", 0, 16, 1);
        let at = pickle.windows(3).position(|w| w == [b'K', 16, 0x85]).unwrap();
        error_of(&checkpoint(&[&pickle[..at], shape, &pickle[at + 3..]].concat()))
    };
    for shape in [&b"J\xff\xff\xff\xff\x85"[..], b"N\x85", b"N", b"(Nt"] {
        assert!(with(shape).contains("tensor: expected offset, shape and strides"), "{shape:?}: {}", with(shape));
    }
    let axes = [&b"("[..], &b"K\x01".repeat(65), b"t"].concat();
    assert!(with(&axes).contains("at most 64 axes"));
}

#[test]
fn hostile_structures_end_in_bounded_time_and_memory() {
    let before = peak_bytes();
    let error = |pickle: &[u8]| error_of(&checkpoint(pickle));
    // A dict in itself, dicts nested deeply, dicts that hold the next twice.
    assert!(error(b"\x80\x02}q\x00U\x01ah\x00s.").contains("nested at most 64 deep"));
    let deep = [b"}U\x01a".repeat(100_000), b"}".to_vec(), b"s".repeat(100_000), b".".to_vec()].concat();
    assert!(error(&deep).contains("nested at most 64 deep"));
    let mut doubling = b"}q\x00".to_vec();
    for level in 0..60 {
        doubling.extend([b'}', b'U', 1, b'a', b'h', level, b's', b'U', 1, b'b', b'h', level, b's', b'q', level + 1]);
    }
    doubling.push(b'.');
    assert!(error(&doubling).contains("entries of dicts, found more"), "{}", error(&doubling));
    // More values than allowed, from as few bytes as possible.
    for opcode in [b'N', b']', b'}', b')', b'('] {
        let many = vec![opcode; 1 << 23];
        assert!(error(&many).contains("expected at most 4194304 values, found more"));
    }
    // More tensors than allowed, from one that is remembered with its arguments.
    let one = tensor(16, 0, b"K\x10\x85", b"K\x01\x85");
    let (function, arguments) = one.split_at(one.iter().position(|&b| b == b'(').unwrap());
    let arguments = &arguments[..arguments.len() - 1];
    let remembered = [function, b"q\x01", arguments, b"q\x02R", &b"h\x01h\x02R".repeat(70_000), b"."].concat();
    assert!(error(&remembered).contains("expected at most 65536 tensors"), "{}", error(&remembered));
    // A name as long as the file.
    let name = "x".repeat(2000);
    assert!(!error(&tensor_pickle(&name, 0, 16, 1)).contains("xx"));
    // Lists that hold the next twice, and one that holds itself.
    let mut doubling = b"]q\x00".to_vec();
    for level in 0..60 {
        doubling.extend([b']', b'(', b'h', level, b'h', level, b'e', b'q', level + 1]);
    }
    doubling.push(b'.');
    assert!(error(&doubling).contains("entries of dicts, found more"), "{}", error(&doubling));
    assert!(error(b"]2a.").contains("nested at most 64 deep"));
    // Objects made of one remembered class, with a state each; a list that is its own items many times over.
    let objects = [&b"ca\nb\nq\x00"[..], &b"h\x00)\x81}b".repeat(1 << 21), b"."].concat();
    assert!(error(&objects).contains("values, found more"), "{}", error(&objects));
    let own = [&b"]q\x00("[..], &b"h\x00".repeat(1 << 21), b"e."].concat();
    assert!(error(&own).contains("nested at most 64 deep"), "{}", error(&own));
    // Arguments by the million, looked at again and again.
    let arguments = [&b"("[..], &b"N".repeat(1 << 20), b"tq\x00"].concat();
    let calls = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\nh\x00tR";
    assert!(error(&[&arguments[..], &calls.repeat(20_000), b"."].concat()).contains("is nothing torch writes"));
    // Sizes that nothing stands behind.
    for huge in [
        &b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f"[..],
        b"\x8e\x00\x00\x00\x00\x00\x01\x00\x00",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8b\xff\xff\xff\x7f",
        b"\x8a\xff\x01",
        b"X\xff\xff\xff\xff",
        b"B\xff\xff\xff\xff",
    ] {
        assert!(error(huge).contains("more bytes, found"), "{huge:?}: {}", error(huge));
    }
    // A memo index far away.
    assert!(error(b"Nr\xff\xff\xff\xff.").contains("found no tensors"));
    // An RNN of 4000 layers whose matrices are one.
    let matrix = tensor(4096, 0, b"K\x40K\x40\x86", b"K\x40K\x01\x86");
    let mut sharing = [b"}", matrix.as_slice(), b"q\x000"].concat();
    for layer in 0..4000 {
        for stem in ["weight_ih", "weight_hh"] {
            let name = format!("{stem}_l{layer}");
            sharing.extend([&[b'U', name.len() as u8], name.as_bytes(), b"h\x00s"].concat());
        }
    }
    sharing.push(b'.');
    let sharing = error_of(&zip(&[("a/data.pkl", &sharing), ("a/data/0", &[0; 4 * 4096])]));
    assert!(sharing.contains("the network's tensors share storage"), "{sharing}");
    if let (Some(before), Some(after)) = (before, peak_bytes()) {
        assert!(after - before < 4 << 30, "took {} MiB", (after - before) >> 20);
    }
}

/// The most address space that this process has had.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmPeak:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Every function on bytes that may be damaged.
fn exercise(bytes: &[u8]) -> bool {
    let _ = list_prefixes(bytes);
    let _ = weights::read(bytes, &ReadOptions { prefix: Some("encoder".into()), ..ReadOptions::default() });
    read(bytes, None).is_ok()
}

#[test]
fn damaged_files_never_panic() {
    const OPCODES: &[u8] = b"(.}]tRbQsueahqjrcio\x81\x85\x86\x87\x93\x94NKJXU";
    let before = peak_bytes();
    let mut seed = 23;
    let mut draw = |n: usize| (uniform(&mut seed) * n as f32) as usize;
    let names = ["lstm", "gru", "rnn_relu", "cells", "bf16", "views", "hostile_nested", "module", "torchscript"];
    for name in names {
        let bytes = fixture(&format!("{name}.pt"));
        for _ in 0..100 {
            let length = draw(bytes.len());
            assert!(!exercise(&bytes[..length]), "{name}: accepted the first {length} of {} bytes", bytes.len());
        }
        // Where the structure is: headers of entries, the pickle, the central directory.
        let signatures: Vec<usize> = (0..bytes.len() - 4).filter(|&at| bytes[at..].starts_with(b"PK")).collect();
        let pickle = bytes.windows(2).position(|w| w == b"\x80\x02" || w == b"\x80\x04").unwrap_or(0);
        for round in 0..1200 {
            let mut damaged = bytes.clone();
            for _ in 0..1 + round % 4 {
                let at = match draw(3) {
                    0 => signatures[draw(signatures.len())] + draw(48),
                    1 => pickle + draw(1500),
                    _ => draw(bytes.len()),
                };
                let at = at.min(bytes.len() - 9);
                match draw(5) {
                    0 => damaged[at] = draw(256) as u8,
                    1 => damaged[at] ^= 1 << draw(8),
                    2 => damaged[at] = OPCODES[draw(OPCODES.len())],
                    3 => damaged[at..at + 4].copy_from_slice(&[u32::MAX, 1 << 31, 0, 1][draw(4)].to_le_bytes()),
                    _ => {
                        let (from, length) = (draw(bytes.len() - 8), draw(8));
                        damaged[at..at + length].copy_from_slice(&bytes[from..from + length]);
                    }
                }
            }
            exercise(&damaged);
        }
    }
    if let (Some(before), Some(after)) = (before, peak_bytes()) {
        assert!(after - before < 4 << 30, "took {} MiB", (after - before) >> 20);
    }
}
