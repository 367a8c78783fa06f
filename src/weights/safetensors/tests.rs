use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::tensor::TensorView;

use super::*;
use crate::cell::{CellSpec, GruCell, RnnCell};
use crate::spec::{Direction, LstmSpec};
use crate::weights::uniform;

/// A file under construction.
#[derive(Clone, Default)]
struct Builder(BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Builder {
    fn f32(mut self, name: &str, shape: &[usize]) -> Self {
        self.set(name, shape);
        self
    }

    /// Values that differ between tensors: the sum of the name's bytes, then counting up.
    fn set(&mut self, name: &str, shape: &[usize]) {
        let start: u32 = name.bytes().map(u32::from).sum();
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| start as f32 + i as f32 / 64.0).collect();
        self.raw(name, Dtype::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }

    fn raw(&mut self, name: &str, dtype: Dtype, shape: &[usize], data: Vec<u8>) {
        self.0.insert(name.to_owned(), (dtype, shape.to_vec(), data));
    }

    fn without(mut self, name: &str) -> Self {
        self.0.remove(name).unwrap_or_else(|| panic!("{name} is not there"));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let views = self.0.iter().map(|(n, (t, s, d))| (n, TensorView::new(*t, s.clone(), d).unwrap()));
        ::safetensors::serialize(views, None).unwrap()
    }

    fn read(&self) -> Result<LstmWeights> {
        read(&self.bytes(), None)
    }

    fn error(&self) -> String {
        self.read().unwrap_err().to_string()
    }
}

/// Two layers, bidirectional, I=3, H=4, with biases, and a classifier beside them unless they are at the top level.
fn stack(prefix: &str) -> Builder {
    let mut file = Builder::default();
    if !prefix.is_empty() {
        let parent =
            prefix.trim_end_matches('.').rsplit_once('.').map_or(String::new(), |(parent, _)| format!("{parent}."));
        file = file.f32(&format!("{parent}linear.weight"), &[2, 8]).f32("step", &[]);
    }
    for (layer, input_size) in [(0, 3), (1, 8)] {
        for suffix in ["", "_reverse"] {
            for (stem, shape) in
                [("weight_ih", &[16, input_size][..]), ("weight_hh", &[16, 4]), ("bias_ih", &[16]), ("bias_hh", &[16])]
            {
                file.set(&format!("{prefix}{stem}_l{layer}{suffix}"), shape);
            }
        }
    }
    file
}

#[test]
fn a_stack_is_read_whatever_its_prefix() {
    for prefix in ["", "encoder.lstm.", "module.0.", "rnn_"] {
        let bytes = stack(prefix).bytes();
        let expected = LstmSpec::stack(3, 4, 2).direction(Direction::Bidirectional).build().unwrap();
        assert_eq!(list_prefixes(&bytes).unwrap(), [prefix]);
        for asked in [None, Some(prefix), Some(prefix.trim_end_matches('.'))] {
            let weights = read(&bytes, asked).unwrap();
            assert_eq!(*weights.spec(), expected);
            // Every tensor lands in its own place.
            for (cell, suffix) in weights.cells().iter().zip(["l0", "l0_reverse", "l1", "l1_reverse"]) {
                let first =
                    |stem: &str| Some(format!("{prefix}{stem}_{suffix}").bytes().map(u32::from).sum::<u32>() as f32);
                assert_eq!(cell.weight_ih.first().copied(), first("weight_ih"));
                assert_eq!(cell.weight_hh.first().copied(), first("weight_hh"));
                assert_eq!(cell.bias_ih.as_ref().map(|b| b[0]), first("bias_ih"));
                assert_eq!(cell.bias_hh.as_ref().map(|b| b[0]), first("bias_hh"));
                assert_eq!(cell.weight_ih[1], cell.weight_ih[0] + 1.0 / 64.0);
            }
        }
    }
}

#[test]
fn projection_missing_bias_and_single_cells_are_inferred() {
    let file =
        Builder::default().f32("weight_ih_l0", &[16, 3]).f32("weight_hh_l0", &[16, 2]).f32("weight_hr_l0", &[2, 4]);
    let spec = LstmSpec::stack(3, 4, 1).bias(false).projection(2).build().unwrap();
    assert_eq!(*file.read().unwrap().spec(), spec);

    let file = Builder::default().f32("c.weight_ih", &[16, 3]).f32("c.weight_hh", &[16, 4]);
    assert_eq!(*file.read().unwrap().spec(), LstmSpec::stack(3, 4, 1).bias(false).build().unwrap());
    let file = file.f32("c.bias_ih", &[16]).f32("c.bias_hh", &[16]);
    assert_eq!(*file.read().unwrap().spec(), LstmSpec::stack(3, 4, 1).build().unwrap());
}

#[test]
fn the_prefix_decides_between_several() {
    let mut file = stack("encoder.");
    file.0.extend(stack("decoder.").0);
    file.set("post.gru.weight_ih_l0", &[12, 3]);
    file.set("post.gru.weight_hh_l0", &[12, 4]);
    assert_eq!(
        file.error(),
        "prefix: the file holds several networks: \"decoder.\" (LSTM), \"encoder.\" (LSTM), \"post.gru.\" (GRU); choose \
         one (`--prefix` on the command line)"
    );
    let bytes = file.bytes();
    let first = |prefix| read(&bytes, Some(prefix)).unwrap().cells()[0].weight_ih[0];
    assert_ne!(first("encoder"), first("decoder."));
    let error = |prefix| read(&bytes, Some(prefix)).unwrap_err().to_string();
    assert!(error("enc").ends_with("\"post.gru.\" (GRU), found \"enc\""), "{}", error("enc"));
    assert!(error("").starts_with("prefix: expected one of \"decoder.\" (LSTM), \"encoder.\" (LSTM)"), "{}", error(""));
    assert_eq!(read(&bytes, Some("post.gru")).unwrap().spec().layers()[0].cell.name(), "GRU");

    // The top level can be named.
    let mut file = stack("");
    file.0.extend(stack("decoder.").without("linear.weight").without("step").0);
    assert!(file.error().contains("\"\" (the top level, LSTM), \"decoder.\" (LSTM)"), "{}", file.error());
    assert!(read(&file.bytes(), Some("")).is_ok());
}

/// A stack of another network than an LSTM: two layers, I=3, H=4.
fn other(prefix: &str, gates: usize, suffixes: &[&str]) -> Builder {
    let mut file = Builder::default();
    for (layer, input_size) in [(0, 3), (1, 4 * suffixes.len())] {
        for suffix in suffixes {
            for (stem, shape) in [
                ("weight_ih", &[4 * gates, input_size][..]),
                ("weight_hh", &[4 * gates, 4]),
                ("bias_ih", &[4 * gates]),
                ("bias_hh", &[4 * gates]),
            ] {
                file.set(&format!("{prefix}{stem}_l{layer}{suffix}"), shape);
            }
        }
    }
    file
}

#[test]
fn the_rows_of_weight_hh_tell_the_networks_apart() {
    let gru = LstmSpec::stack(3, 4, 2).cell(CellSpec::Gru(GruCell::default()));
    let rnn = LstmSpec::stack(3, 4, 2).cell(CellSpec::Rnn(RnnCell::default()));
    for prefix in ["", "net.gru."] {
        let both = ["", "_reverse"];
        assert_eq!(*other(prefix, 3, &[""]).read().unwrap().spec(), gru.build().unwrap());
        let spec = gru.direction(Direction::Bidirectional).build().unwrap();
        assert_eq!(*other(prefix, 3, &both).read().unwrap().spec(), spec);
        assert_eq!(*other(prefix, 1, &[""]).read().unwrap().spec(), rnn.build().unwrap());
        let spec = rnn.direction(Direction::Bidirectional).build().unwrap();
        assert_eq!(*other(prefix, 1, &both).read().unwrap().spec(), spec);
    }
    let cell = Builder::default().f32("a.weight_ih", &[4, 3]).f32("a.weight_hh", &[4, 4]);
    let spec = LstmSpec::stack(3, 4, 1).cell(CellSpec::Rnn(RnnCell::default())).bias(false).build().unwrap();
    assert_eq!(*cell.read().unwrap().spec(), spec);

    // The first layer decides; a shape of another network in a later one is an error.
    let error = other("", 3, &[""]).f32("weight_hh_l1", &[16, 4]).error();
    assert_eq!(error, "weight_hh_l1: expected [3·hidden_size, hidden_size] = [12, 4], found [16, 4]");
    let error = other("", 3, &[""]).f32("weight_hh_l0_foo", &[1]).error();
    assert!(error.starts_with("weight_hh_l0_foo: not a tensor of torch.nn.GRU"), "{error}");
    let error = other("", 1, &[""]).without("bias_hh_l1").error();
    assert_eq!(error, "bias_hh_l1: missing, though bias_ih_l0 is there");
    // Projections are those of an LSTM, whatever the rows of weight_hh are to its columns.
    let file =
        Builder::default().f32("weight_ih_l0", &[24, 3]).f32("weight_hh_l0", &[24, 8]).f32("weight_hr_l0", &[8, 6]);
    assert!(file.error().contains("projection_size: expected less than hidden_size 6, found 8"), "{}", file.error());
}

#[test]
fn the_activation_of_an_rnn_is_chosen_and_that_of_others_refused() {
    use crate::activation::Activation;
    use crate::weights::{self, ReadOptions};
    let relu = ReadOptions { rnn_activation: Some(Activation::Relu), ..ReadOptions::default() };
    let rnn = other("", 1, &[""]).bytes();
    let cell = |options| weights::read(&rnn, options).unwrap().spec().layers()[1].cell;
    let default = ReadOptions::default();
    assert_eq!(cell(&default).activations(0), [("f", Activation::Tanh)]);
    assert_eq!(cell(&relu).activations(1), [("f", Activation::Relu)]);
    for (bytes, network) in [(stack("a.").bytes(), "an LSTM"), (other("a.", 3, &[""]).bytes(), "a GRU")] {
        let error = weights::read(&bytes, &relu).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.to_string(), format!("rnn_activation: expected none for \"a.\", {network}, found Relu"));
    }
}

#[test]
fn wrappers_need_not_be_named() {
    for wrapper in ["module.", "model.", "_orig_mod.", "state_dict.module._orig_mod."] {
        let bytes = stack(&format!("{wrapper}encoder.lstm.")).bytes();
        for asked in ["encoder.lstm", "encoder.lstm.", "module.encoder.lstm"] {
            assert!(read(&bytes, Some(asked)).is_ok(), "{wrapper} {asked}");
        }
        assert!(read(&bytes, Some("lstm")).is_err());
        assert!(read(&stack(wrapper).bytes(), Some("")).is_ok(), "{wrapper}");
    }
    // An exact match goes before one without wrappers; two of those are one too many.
    let mut file = stack("model.lstm.");
    file.0.extend(stack("lstm.").0);
    assert!(read(&file.bytes(), Some("lstm")).is_ok());
    file.0.extend(stack("ema.module.lstm.").0);
    file.0.extend(stack("ema.model.lstm.").0);
    assert_eq!(
        read(&file.bytes(), Some("ema.lstm")).unwrap_err().to_string(),
        "prefix: \"ema.lstm\" fits \"ema.model.lstm.\" (LSTM), \"ema.module.lstm.\" (LSTM); give the whole prefix"
    );
}

/// Burn's module with these gates: I=3, H=4.
fn burn(prefix: &str, gates: &[&str]) -> Builder {
    let mut file = Builder::default();
    for gate in gates {
        for (transform, input_size) in [("input_transform", 3), ("hidden_transform", 4)] {
            file.set(&format!("{prefix}{gate}.{transform}.weight"), &[input_size, 4]);
            file.set(&format!("{prefix}{gate}.{transform}.bias"), &[4]);
        }
    }
    file
}

const BURN_LSTM: [&str; 4] = ["input_gate", "forget_gate", "cell_gate", "output_gate"];

#[test]
fn the_modules_of_burn_are_read() {
    let lstm = burn("encoder.", &BURN_LSTM);
    assert_eq!(list_prefixes(&lstm.bytes()).unwrap(), ["encoder."]);
    let weights = read(&lstm.bytes(), Some("encoder")).unwrap();
    assert_eq!(*weights.spec(), LstmSpec::stack(3, 4, 1).build().unwrap());
    // Row 6 of weight_ih [4H, I] is unit 2 of the forget gate: column 2 of its [in, out].
    let (_, forget) = read_tensor(&lstm.bytes(), "encoder.forget_gate.input_transform.weight").unwrap();
    assert_eq!(weights.cells()[0].weight_ih[6 * 3..7 * 3], [forget[2], forget[6], forget[10]]);

    let gates = ["reset_gate", "update_gate", "new_gate"];
    let gru = burn("", &gates);
    let (_, update) = read_tensor(&gru.bytes(), "update_gate.hidden_transform.bias").unwrap();
    let weights = gru.read().unwrap();
    assert_eq!(weights.spec().layers()[0].cell, CellSpec::Gru(GruCell::default()));
    assert_eq!(weights.cells()[0].bias_hh.as_ref().unwrap()[4..8], update);

    let mut both = burn("m.forward.", &["gate"]);
    both.0.extend(burn("m.reverse.", &["gate"]).0);
    let spec = LstmSpec::stack(3, 4, 1).cell(CellSpec::Rnn(RnnCell::default())).direction(Direction::Bidirectional);
    assert_eq!(list_prefixes(&both.bytes()).unwrap(), ["m."]);
    assert_eq!(*both.read().unwrap().spec(), spec.build().unwrap());
    // One half alone is a module that happens to have that name; two of different kinds are two.
    assert_eq!(list_prefixes(&burn("m.forward.", &gates).bytes()).unwrap(), ["m.forward."]);
    both.0.extend(burn("m.reverse.", &gates).0);
    both.0.retain(|name, _| !name.starts_with("m.reverse.gate"));
    assert_eq!(list_prefixes(&both.bytes()).unwrap(), ["m.forward.", "m.reverse."]);
}

#[test]
fn what_is_wrong_with_a_module_of_burn_is_named() {
    let lstm = || burn("", &BURN_LSTM);
    for (name, message) in [
        ("cell_gate.input_transform.weight", "cell_gate.input_transform.weight: missing, though "),
        ("output_gate.hidden_transform.bias", "output_gate.hidden_transform.bias: missing, though "),
        ("input_gate.input_transform.weight", "input_gate.input_transform.weight: missing, though "),
        ("forget_gate.input_transform.weight", "forget_gate.input_transform.weight: missing, though "),
    ] {
        let error = lstm().without(name).error();
        assert!(error.starts_with(message), "{error}");
    }
    let mut one_coupled = burn("forward.", &BURN_LSTM);
    one_coupled.0.extend(burn("reverse.", &["input_gate", "cell_gate", "output_gate"]).0);
    let error = one_coupled.error();
    assert!(error.starts_with("reverse.forget_gate.input_transform.weight: missing"), "{error}");
    let error = lstm().f32("forget_gate.input_transform.weight", &[5, 4]).error();
    assert!(error.contains("expected [input_size, hidden_size] = [3, 4], found [5, 4]"), "{error}");
    let error = lstm().f32("cell_gate.hidden_transform.weight", &[4, 5]).error();
    assert_eq!(error, "cell_gate.hidden_transform.weight: expected [hidden_size, hidden_size] = [4, 4], found [4, 5]");
    // What BurnToPyTorchAdapter writes is [out, in].
    let mut turned = lstm();
    for gate in BURN_LSTM {
        turned.set(&format!("{gate}.input_transform.weight"), &[4, 3]);
    }
    assert!(turned.error().contains("saved through BurnToPyTorchAdapter?"), "{}", turned.error());
}

#[test]
fn a_header_whose_length_looks_like_another_format_is_read() {
    let bytes = Builder::default().f32("l.weight_ih", &[16, 3]).f32("l.weight_hh", &[16, 4]).bytes();
    let (header, data) = bytes[8..].split_at(u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize);
    let padding = b" ".repeat(640 - header.len());
    let padded = [&640u64.to_le_bytes()[..], header, &padding, data].concat();
    assert!(padded.starts_with(b"\x80\x02"), "the first bytes of a pickle");
    let weights = read(&padded, None).unwrap();
    assert_eq!(crate::weights::read(&padded, &ReadOptions::default()).unwrap(), weights);
}

#[test]
fn long_lists_of_networks_are_cut() {
    let mut file = Builder::default();
    for i in 10..40 {
        file.set(&format!("n{i}.weight_ih"), &[16, 3]);
        file.set(&format!("n{i}.weight_hh"), &[16, 4]);
    }
    assert!(file.error().contains("\"n15.\" (LSTM), and 24 more; choose one"), "{}", file.error());
}

#[test]
fn a_file_without_a_network_lists_what_it_has() {
    let linear = Builder::default().f32("linear.weight", &[4, 3]).f32("linear.bias", &[4]);
    assert_eq!(
        linear.error(),
        "no LSTM, GRU or RNN in the file: looked for weight_ih_l0 (torch.nn.LSTM), weight_ih (torch.nn.LSTMCell) and \
         input_gate.input_transform.weight (Burn) under any prefix, found linear.bias, linear.weight"
    );
    assert!(Builder::default().error().ends_with("found no tensors"));
}

#[test]
fn missing_tensors_are_named() {
    for (name, message) in [
        ("weight_ih_l0", "weight_ih_l0: missing, though weight_hh_l0 is there"),
        ("weight_hh_l1", "weight_hh_l1: missing, though weight_ih_l0 is there"),
        ("weight_hh_l1_reverse", "weight_hh_l1_reverse: missing, though weight_ih_l0_reverse is there"),
        ("bias_hh_l0", "bias_hh_l0: missing, though bias_ih_l0 is there"),
        ("bias_ih_l1_reverse", "bias_ih_l1_reverse: missing, though bias_ih_l0 is there"),
    ] {
        assert_eq!(stack("").without(name).error(), message);
        assert_eq!(
            stack("a.b.").without(&format!("a.b.{name}")).error(),
            message.replace("though ", "though a.b.").replacen("", "a.b.", 1)
        );
    }
    let gap = stack("").f32("weight_ih_l3", &[16, 8]).error();
    assert_eq!(gap, "weight_ih_l2: missing, though weight_ih_l3 is there");
    let projected = stack("").f32("weight_hr_l1", &[2, 4]).error();
    assert_eq!(projected, "weight_hr_l0: missing, though weight_hr_l1 is there");
    let cell = Builder::default().f32("weight_ih", &[16, 3]).f32("weight_hh", &[16, 4]).f32("bias_hh", &[16]);
    assert_eq!(cell.error(), "bias_ih: missing, though bias_hh is there");
}

#[test]
fn wrong_shapes_are_named() {
    for (name, shape, message) in [
        ("weight_hh_l1_reverse", &[16, 2][..], "expected [4·hidden_size, hidden_size] = [16, 4], found [16, 2]"),
        ("weight_hh_l0", &[16, 8], "expected [4·hidden_size, hidden_size] = [16, 4], found [16, 8]"),
        ("weight_hh_l0", &[16], "expected [4·hidden_size, hidden_size], found [16]"),
        ("weight_hh_l0", &[0, 4], "expected [4·hidden_size, hidden_size], found [0, 4]"),
        ("weight_hh_l0", &[10, 3], "expected [4·hidden_size, hidden_size] = [12, 3], found [10, 3]"),
        ("weight_ih_l0", &[12, 3], "expected [4·hidden_size, input_size] = [16, 3], found [12, 3]"),
        ("weight_ih_l0_reverse", &[16, 5], "expected [4·hidden_size, input_size] = [16, 3], found [16, 5]"),
        (
            "weight_ih_l1",
            &[16, 4],
            "expected [4·hidden_size, output size of the layer before] = [16, 8], found [16, 4]",
        ),
        ("bias_ih_l0", &[4], "expected [4·hidden_size] = [16], found [4]"),
        ("bias_hh_l1", &[16, 1], "expected [4·hidden_size] = [16], found [16, 1]"),
    ] {
        let error = stack("").f32(name, shape).error();
        assert!(error.ends_with(message), "{name} {shape:?}: {error}");
    }
    let file =
        Builder::default().f32("weight_ih_l0", &[16, 3]).f32("weight_hh_l0", &[16, 2]).f32("weight_hr_l0", &[3, 4]);
    assert_eq!(file.error(), "weight_hh_l0: expected [4·hidden_size, projection_size] = [16, 3], found [16, 2]");
}

#[test]
fn names_that_only_look_right_are_refused() {
    for name in [
        "weight_ih_l0_foo",
        "weight_hh_l0.foo",
        "weight_ih_l01",
        "weight_ih_l+1",
        "weight_ih_l",
        "weight_ih_l99999",
        "bias_hh_l0_reverse_reverse",
        "weight_hr",
        "parametrizations.weight_hh_l0.original2",
        "parametrizations.weight_hh_l0.1.base",
    ] {
        let error = stack("").f32(name, &[16, 4]).error();
        assert!(error.starts_with(&format!("{name}: not a tensor of torch.nn.LSTM")), "{error}");
        assert!(stack("a.").f32(name, &[16, 4]).read().is_ok(), "{name} at the top level is no part of a.");
    }
    let error = stack("").f32("weight_ih", &[16, 4]).error();
    assert!(error.contains("names of torch.nn.LSTMCell and of torch.nn.LSTM under one prefix"), "{error}");
}

#[test]
fn what_stands_under_the_prefix_is_never_ignored() {
    for prefix in ["", "cell.", "rnn_"] {
        for name in [
            "ln_ih.weight",
            "ln_hh.bias",
            "ln_ho.weight",
            "layernorm_h.weight",
            "norms.0.weight",
            "bn.running_mean",
            "weight_ch",
            "weight_ci_l0",
            "alpha",
            "beta",
            "h0",
            "attention.weight",
        ] {
            let name = format!("{prefix}{name}");
            let error = stack(prefix).f32(&name, &[16]).error();
            assert!(
                error.starts_with(&format!("{name}: not a tensor of torch.nn.LSTM, though it stands under")),
                "{error}"
            );
            let is_norm = ["ln_", "norm", "bn"].iter().any(|part| name.contains(part));
            assert_eq!(error.contains("layer normalisation"), is_norm, "{error}");
        }
    }
    // One level up, or beside it under another name, it is another module.
    for name in ["ln_ih.weight", "a.norm.weight", "a.lstm2.alpha", "a.lst.alpha"] {
        assert!(stack("a.lstm.").f32(name, &[16]).read().is_ok(), "{name}");
    }
    // So are networks beside one at the top level. One inside a module may be a part of it.
    let with_inner = |prefix: &str| {
        let mut two = stack(prefix);
        two.0.extend(other(&format!("{prefix}inner."), 3, &[""]).0);
        read(&two.bytes(), Some(prefix)).map_err(|e| e.to_string())
    };
    assert!(with_inner("").is_ok() && with_inner("rnn_").is_ok());
    assert!(with_inner("a.").unwrap_err().starts_with("a.inner.bias_hh_l0: not a tensor of torch.nn.LSTM"));
    // What goldens hold, only if they hold all that makes them goldens.
    let golden = stack("").f32("x", &[2, 5, 3]).f32("output", &[2, 5, 8]).f32("h_0", &[4, 2, 4]);
    assert!(golden.read().is_ok());
    assert!(golden.without("x").error().starts_with("h_0: not a tensor"));
    let burn = burn("a.", &BURN_LSTM).f32("a.norm.gamma", &[4]).error();
    assert!(burn.starts_with("a.norm.gamma: not a tensor of Burn's LSTM"), "{burn}");
}

#[test]
fn the_raw_weights_of_weight_drop_are_the_weights() {
    let first = |file: &Builder| read(&file.bytes(), None).unwrap().cells()[0].weight_hh[0];
    let start = |name: &str| name.bytes().map(u32::from).sum::<u32>() as f32;
    // In the module around it, in the module itself, and with or without the copy.
    for (module, raw) in [("a.module.", "a.weight_hh_l0_raw"), ("a.", "a.weight_hh_l0_raw"), ("", "weight_hh_l0_raw")] {
        let mut file = stack(module);
        file.0.remove("a.linear.weight");
        let file = file.f32(raw, &[16, 4]);
        assert_eq!(first(&file), start(raw), "{module}");
        let without = file.without(&format!("{module}weight_hh_l0"));
        assert_eq!(first(&without), start(raw), "{module}");
        assert_eq!(list_prefixes(&without.bytes()).unwrap(), [module]);
    }
    let error = stack("a.module.").f32("a.weight_hh_l0_raw", &[16, 5]).error();
    assert!(error.starts_with("a.weight_hh_l0_raw: expected the shape of a.module.weight_hh_l0 = [16, 4]"), "{error}");
    let error = stack("a.module.").f32("a.weight_hh_l0_foo", &[16, 4]).error();
    assert!(error.starts_with("a.weight_hh_l0_foo: not a tensor of torch.nn.LSTM"), "{error}");
    // A network of its own around another keeps what is its own.
    let mut both = stack("");
    both.0.extend(stack("module.").0);
    both.0.retain(|name, _| !matches!(name.as_str(), "linear.weight" | "step"));
    both.set("weight_hh_l0_raw", &[16, 4]);
    let weights = read(&both.bytes(), Some("module.")).unwrap();
    assert_eq!(weights.cells()[0].weight_hh[0], start("weight_hh_l0_raw"));
}

#[test]
fn weights_in_parts_are_put_together_or_refused() {
    let stack = || stack("").without("weight_hh_l0");
    let weight = |file: &Builder| read(&file.bytes(), None).unwrap().cells()[0].weight_hh.clone();
    let values = |file: &Builder, name: &str| -> Vec<f64> {
        read_tensor(&file.bytes(), name).unwrap().1.into_iter().map(f64::from).collect()
    };
    let check = |file: &Builder, expected: &dyn Fn(usize, usize) -> f64| {
        for (i, found) in weight(file).into_iter().enumerate() {
            assert_eq!(found, expected(i / 4, i % 4) as f32, "element {i}");
        }
    };
    for (g, v) in [
        ("weight_hh_l0_g", "weight_hh_l0_v"),
        ("parametrizations.weight_hh_l0.original0", "parametrizations.weight_hh_l0.original1"),
    ] {
        for shape in [&[16, 1][..], &[1, 4], &[]] {
            let file = stack().f32(g, shape).f32(v, &[16, 4]);
            let (magnitudes, vs) = (values(&file, g), values(&file, v));
            let group = |row, column| match shape {
                [_, 1] => row,
                [1, _] => column,
                _ => 0,
            };
            let norm = |wanted| {
                let of = vs.iter().enumerate().filter(|(i, _)| group(i / 4, i % 4) == wanted);
                of.map(|(_, v)| v * v).sum::<f64>().sqrt()
            };
            check(&file, &|row, column| {
                vs[row * 4 + column] * (magnitudes[group(row, column)] / norm(group(row, column)))
            });
        }
        let error = stack().f32(g, &[4, 1]).f32(v, &[16, 4]).error();
        assert_eq!(error, format!("{g}: expected shape [16, 1] or [1, 4] or [], found [4, 1]"));
        assert!(stack().f32(g, &[16, 1]).error().starts_with(&format!("{g}: expected a weight, or the parts of")));
        assert!(stack().f32(v, &[16, 4]).error().starts_with(&format!("{v}: expected a weight, or the parts of")));
        let both = stack().f32("weight_hh_l0", &[16, 4]).f32(g, &[16, 1]).f32(v, &[16, 4]).error();
        assert!(both.contains("expected a weight, or the parts of"), "{both}");
    }

    let mut pruned = stack().f32("weight_hh_l0_orig", &[16, 4]);
    pruned.raw("weight_hh_l0_mask", Dtype::BOOL, &[16, 4], (0..64).map(|i| i % 3 / 2).collect());
    let original = values(&pruned, "weight_hh_l0_orig");
    check(&pruned, &|row, column| if (row * 4 + column) % 3 == 2 { original[row * 4 + column] } else { 0.0 });
    let error = pruned.clone().f32("weight_hh_l0_mask", &[4, 16]).error();
    assert_eq!(error, "weight_hh_l0_mask: expected shape [16, 4], found [4, 16]");

    for [original, u, v] in [
        ["weight_hh_l0_orig", "weight_hh_l0_u", "weight_hh_l0_v"],
        ["original", "0._u", "0._v"].map(|part| ["parametrizations.weight_hh_l0.", part].concat().leak() as &str),
    ] {
        for turned in [false, true] {
            let [of_u, of_v] = if turned { [4, 16] } else { [16, 4] };
            let file = stack().f32(original, &[16, 4]).f32(u, &[of_u]).f32(v, &[of_v]);
            let [w, u, v] = [original, u, v].map(|name| values(&file, name));
            let (rows, columns) = if turned { (&v, &u) } else { (&u, &v) };
            let row = |r: usize| rows[r] * (0..4).map(|c| w[r * 4 + c] * columns[c]).sum::<f64>();
            let sigma: f64 = (0..16).map(row).sum();
            check(&file, &|row, column| w[row * 4 + column] / sigma);
        }
        assert!(stack().f32(original, &[16, 4]).f32(u, &[16]).error().contains("fold the parametrization"));
    }
    // A square matrix does not tell its axes apart.
    let mut rnn = other("", 1, &[""]).without("weight_hh_l0").f32("weight_hh_l0_orig", &[4, 4]);
    rnn = rnn.f32("weight_hh_l0_u", &[4]).f32("weight_hh_l0_v", &[4]);
    assert!(rnn.error().contains("a square matrix does not tell"), "{}", rnn.error());
    // A row of zeros has no direction.
    let mut zeros = stack().f32("weight_hh_l0_g", &[16, 1]);
    zeros.raw("weight_hh_l0_v", Dtype::F32, &[16, 4], vec![0; 256]);
    assert!(
        zeros.error().contains("weight_hh_l0_v: expected finite values once folded, found NaN"),
        "{}",
        zeros.error()
    );
}

#[test]
fn names_in_messages_are_short_and_without_control_characters() {
    let name = format!("\u{1b}[2J{}", "x".repeat(500));
    let error = Builder::default().f32(&name, &[1]).error();
    assert!(error.contains("\\u{1b}[2Jxx") && error.contains("xx…"), "{error}");
    for file in [
        stack(&format!("{name}.")).without(&format!("{name}.bias_hh_l0")),
        stack(&format!("{name}.")).f32(&format!("{name}.weight_hh_l0"), &[3]),
        stack(&format!("{name}.")).f32(&format!("{name}.alpha\n"), &[3]),
        stack(&format!("{name}.")).f32(&format!("{name}.weight_hh_l0_foo\n"), &[3]),
    ] {
        let error = file.error();
        assert!(error.chars().all(|c| !c.is_control()) && error.len() < 800, "{error}");
    }
    let asked = read(&stack("a.").bytes(), Some(&name)).unwrap_err().to_string();
    assert!(asked.contains("\\u{1b}[2Jxx") && asked.len() < 300, "{asked}");
}

#[test]
fn types_are_converted_or_refused() {
    let values = [0.0, -0.0, 1.0, -2.5, 0.333_251_95, 65504.0, 5.960_464_5e-8];
    let mut file = Builder::default();
    file.raw("half", Dtype::F16, &[7], values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect());
    file.raw("brain", Dtype::BF16, &[7], values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect());
    file.raw("double", Dtype::F64, &[1, 7], values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect());
    file.raw("third", Dtype::F64, &[], (1.0f64 / 3.0).to_le_bytes().to_vec());
    file.raw("huge", Dtype::F64, &[2], [1.0, -1e39f64].iter().flat_map(|v| v.to_le_bytes()).collect());
    file.raw("infinite", Dtype::F64, &[1], f64::INFINITY.to_le_bytes().to_vec());
    file.raw("integers", Dtype::I64, &[2], [-3i64, 1 << 40].iter().flat_map(|v| v.to_le_bytes()).collect());
    file.raw("small", Dtype::I32, &[2], [-3i32, 7].iter().flat_map(|v| v.to_le_bytes()).collect());
    let bytes = file.bytes();

    assert_eq!(read_tensor(&bytes, "half").unwrap(), (vec![7], values.to_vec()));
    assert_eq!(read_tensor(&bytes, "double").unwrap(), (vec![1, 7], values.to_vec()));
    let brain: Vec<f32> = values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
    assert_eq!(read_tensor(&bytes, "brain").unwrap().1, brain);
    assert_eq!(read_tensor(&bytes, "third").unwrap(), (vec![], vec![1.0f32 / 3.0]));
    assert_eq!(read_tensor(&bytes, "infinite").unwrap().1, [f32::INFINITY]);
    let error = read_tensor(&bytes, "huge").unwrap_err().to_string();
    assert_eq!(error, "huge: expected values within the range of f32, found one beyond at element 1");
    assert_eq!(read_tensor_i64(&bytes, "integers").unwrap(), (vec![2], vec![-3, 1 << 40]));
    assert_eq!(read_tensor_i64(&bytes, "small").unwrap(), (vec![2], vec![-3, 7]));
    assert_eq!(read_tensor(&bytes, "integers").unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(read_tensor_i64(&bytes, "half").unwrap_err().kind(), ErrorKind::Unsupported);
    let error = read_tensor(&bytes, "absent").unwrap_err().to_string();
    assert_eq!(error, "absent: no such tensor; found brain, double, half, huge, infinite, integers, and 2 more");

    // In an LSTM, by full name.
    let mut file = stack("a.");
    file.raw("a.bias_ih_l1", Dtype::I8, &[16], vec![0; 16]);
    assert_eq!(file.error(), "a.bias_ih_l1: expected type F32, F16, BF16 or F64, found I8");
    let nan = (0..16).flat_map(|i| if i == 9 { f32::NAN } else { 0.0 }.to_le_bytes()).collect();
    file.raw("a.bias_ih_l1", Dtype::F32, &[16], nan);
    assert_eq!(file.error(), "a.bias_ih_l1: expected finite values, found NaN at element 9");
}

#[test]
fn other_files_are_named() {
    let error = |bytes: &[u8]| {
        let error = read(bytes, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidFile);
        error.to_string()
    };
    assert!(error(b"").contains("found an empty file"));
    assert!(error(&[1, 2, 3]).contains("found 3 bytes: too short"));
    assert!(error(b"PK\x03\x04 and so on").contains("found a zip archive"));
    assert!(error(b"\x80\x02\x8a\x0al\xfc").contains("found a pickle"));
    assert!(error(b"{\"weights\": 1}").contains("found JSON"));
    assert!(error(&u64::MAX.to_le_bytes()).contains("header of 18446744073709551615 bytes in a file of 8"));
    let claims = |header: &str| error(&[&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat());
    claims("");
    claims("{}}");
    claims(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#);
    claims(r#"{"a":{"dtype":"F32","shape":[18446744073709551615,16],"data_offsets":[0,0]}}"#);
    claims(r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[16,0]}}"#);
    claims(r#"{"a":{"dtype":"Q3","shape":[0],"data_offsets":[0,0]}}"#);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let directory = std::env::temp_dir().join(format!("wgpu-lstm-safetensors-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let error = |path: &Path| {
        let error = read_file(path, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidFile);
        let message = error.to_string();
        assert!(message.starts_with(&format!("{}: ", path.display())), "{message}");
        message
    };
    error(&directory.join("absent.safetensors"));
    error(&directory);
    let path = directory.join("model.safetensors");
    let bytes = stack("").bytes();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(error(&path).contains("not a complete safetensors file"));
    std::fs::write(&path, [1, 2, 3]).unwrap();
    assert!(error(&path).contains("found 3 bytes"));
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(read_file(&path, None).unwrap(), read(&bytes, None).unwrap());
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Every function on bytes that may be damaged.
fn exercise(bytes: &[u8]) -> bool {
    let _ = list_prefixes(bytes);
    let _ = read_tensor(bytes, "linear.weight");
    let _ = read_tensor_i64(bytes, "step");
    let _ = read(bytes, Some("encoder"));
    read(bytes, None).is_ok()
}

#[test]
fn damaged_files_never_panic() {
    let bytes = stack("").bytes();
    for length in 0..bytes.len() {
        assert!(!exercise(&bytes[..length]), "accepted the first {length} of {} bytes", bytes.len());
    }
    let mut seed = 11;
    let mut draw = |n: usize| (uniform(&mut seed) * n as f32) as usize;
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut accepted = 0;
    for round in 0..3000 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + round % 4 {
            let at = draw(header);
            damaged[at] = match round % 3 {
                0 => draw(256) as u8,
                1 => damaged[at] ^ (1 << draw(8)),
                _ => b"0123456789[]{},:\"-.eE_lr"[draw(24)],
            };
        }
        accepted += usize::from(exercise(&damaged));
    }
    assert!(accepted < 1500, "{accepted} of 3000 damaged headers were accepted");
}
