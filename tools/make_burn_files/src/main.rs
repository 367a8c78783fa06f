//! Writes `tests/data/burn`: one safetensors file per recurrent module of Burn, as its `SafetensorsStore` saves it,
//! with an input `x` [B, T, I] and Burn's own `output` [B, T, D·H] from a zero state.
//!
//! Run in the folder the files belong in:
//! `cargo run --manifest-path ../../../tools/make_burn_files/Cargo.toml`.

use burn::module::{Module, Param};
use burn::nn::{BiGru, BiGruConfig, BiLstm, BiLstmConfig, Gru, GruConfig, Lstm, LstmConfig, Rnn, RnnConfig, Initializer};
use burn::store::{ModuleSnapshot, SafetensorsStore};
use burn::tensor::{Device, Distribution, Tensor};

#[derive(Module, Debug)]
struct Case<M: Module> {
    net: M,
    x: Param<Tensor<3>>,
    output: Param<Tensor<3>>,
}

fn save<M: Module>(name: &str, net: M, x: &Tensor<3>, output: Tensor<3>) where Case<M>: ModuleSnapshot {
    let case = Case { net, x: Param::from_tensor(x.clone()), output: Param::from_tensor(output) };
    let mut store = SafetensorsStore::from_file(format!("{name}.safetensors")).overwrite(true);
    case.save_into(&mut store).unwrap();
}

fn main() {
    let device = Device::default();
    device.seed(17);
    let init = || Initializer::Uniform { min: -0.6, max: 0.6 };
    let x = Tensor::<3>::random([2, 5, 3], Distribution::Uniform(-1.0, 1.0), &device);
    let m: Lstm = LstmConfig::new(3, 4, true).with_initializer(init()).init(&device);
    let y = m.forward(x.clone(), None).0;
    save("burn_lstm", m, &x, y);
    let m: Lstm = LstmConfig::new(3, 4, false).with_input_forget(true).with_initializer(init()).init(&device);
    let y = m.forward(x.clone(), None).0;
    save("burn_lstm_coupled", m, &x, y);
    let m: BiLstm = BiLstmConfig::new(3, 4, true).with_initializer(init()).init(&device);
    let y = m.forward(x.clone(), None).0;
    save("burn_bilstm", m, &x, y);
    let m: Gru = GruConfig::new(3, 4, true).with_initializer(init()).init(&device);
    let y = m.forward(x.clone(), None);
    save("burn_gru", m, &x, y);
    let m: BiGru = BiGruConfig::new(3, 4, true).with_initializer(init()).init(&device);
    let y = m.forward(x.clone(), None).0;
    save("burn_bigru", m, &x, y);
    let m: Rnn = RnnConfig::new(3, 4, true).with_initializer(init()).init(&device);
    let y = m.forward(x.clone(), None).0;
    save("burn_rnn", m, &x, y);
}
