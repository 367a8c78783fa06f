"""Writes more of tests/data/keras: what needs no TensorFlow. Layers that a model applies more than once, saved by Keras 3,
and files in the layout of Keras 1 and of Keras 2 before 2.3, written by hand, since neither runs on a current Python.

    python3 -m venv venv && venv/bin/pip install keras==3.15.1 jax==0.10.2 h5py==3.16.0
    venv/bin/python tools/make_keras_fixtures_more.py

expected_more.json has the entries that make_keras_fixtures.py describes, computed by the equations below in float64. Where
Keras computes the same, it agrees within 1e-6: on JAX it is not exact to float64.
"""

import json
import os
import pathlib

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_ENABLE_X64"] = "1"

import h5py
import keras
import numpy as np

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "keras"
BATCH, STEPS, WIDTH = 2, 5, 3
expected = []
rng = np.random.default_rng(20261201)


def draw(*shape):
    """Values of float32 that differ in scale by column."""
    return (rng.standard_normal(shape) * np.linspace(0.3, 0.9, shape[-1])).astype(np.float32)


def expect(file, layers, run, read=None, sequences=True, assumed=None, keras_run=None):
    x = rng.standard_normal((BATCH, STEPS, WIDTH)).astype(np.float32)
    y = np.asarray(run(x.astype(np.float64)))
    assert y.dtype == np.float64, y.dtype
    assert keras_run is None or np.abs(np.asarray(keras_run(x.astype(np.float64))) - y).max() < 1e-6
    expected.append({
        "file": file, "read": read, "layers": layers, "time_reversed": False, "returns_sequences": sequences,
        "masked": False, "stateful": False, "assumed": assumed or [],
        "x_shape": x.shape, "x": [float(v) for v in x.ravel()],
        "y_shape": y.shape, "y": [float(f"{v:.13g}") for v in y.ravel()],
    })  # fmt: skip


def applied_more_than_once():
    keras.backend.set_floatx("float64")
    K, L = keras, keras.layers
    # In a row, through a layer that does nothing, and once more through one that does.
    inputs = K.Input((STEPS, WIDTH), name="in")
    layer = L.LSTM(WIDTH, return_sequences=True, name="shared")
    drop = L.Dropout(0.5, name="drop")
    model = K.Model(inputs, layer(drop(layer(drop(inputs)))), name="twice")
    model.set_weights([draw(*w.shape).astype(np.float64) for w in model.get_weights()])
    model.save(str(OUT / "k3_twice.keras"))
    w = [np.asarray(w) for w in layer.get_weights()]
    once = lambda x: lstm(x, *w, gate=sigmoid)  # noqa: E731
    expect("k3_twice.keras", ["shared", "shared"], lambda x: once(once(x)), keras_run=lambda x: layer(layer(x)))
    note = "the model applies this layer 2 times, with the same weights; here it is applied once"
    expect("k3_twice.keras", ["shared"], once, read="shared", assumed=[f"shared: {note}"])
    # Side by side.
    left, right = K.Input((STEPS, WIDTH), name="left"), K.Input((STEPS, WIDTH), name="right")
    layer = L.GRU(4, reset_after=False, name="shared")
    out = L.Dense(1, name="out")(L.Concatenate(name="both")([layer(left), layer(right)]))
    model = K.Model([left, right], out, name="siamese")
    model.set_weights([draw(*w.shape).astype(np.float64) for w in model.get_weights()])
    model.save(str(OUT / "k3_siamese.keras"))
    others = "layers of the model that are not computed here: both (Concatenate), out (Dense)"
    v = [np.asarray(w) for w in layer.get_weights()]
    last = lambda x: gru(x, *v, gate=sigmoid)[:, -1]  # noqa: E731
    assumed = [f"shared: {note}", others]
    expect("k3_siamese.keras", ["shared"], last, sequences=False, assumed=assumed, keras_run=layer)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def hard_sigmoid(x):
    return np.clip(0.2 * x + 0.5, 0, 1)


def lstm(x, kernel, recurrent, bias, gate=hard_sigmoid, back=False):
    """Gates i, f, c, o."""
    units = recurrent.shape[0]
    h, c, out = np.zeros((len(x), units)), np.zeros((len(x), units)), np.zeros((*x.shape[:2], units))
    for t in reversed(range(x.shape[1])) if back else range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
        c = gate(f) * c + gate(i) * np.tanh(g)
        h = gate(o) * np.tanh(c)
        out[:, t] = h
    return out


def gru(x, kernel, recurrent, bias, gate=hard_sigmoid):
    """Gates z, r, h; r before the product."""
    units = recurrent.shape[0]
    h, out = np.zeros((len(x), units)), np.zeros((*x.shape[:2], units))
    for t in range(x.shape[1]):
        z, r, g = np.split(x[:, t] @ kernel + bias, 3, axis=1)
        z, r = gate(z + h @ recurrent[:, :units]), gate(r + h @ recurrent[:, units : 2 * units])
        h = z * h + (1 - z) * np.tanh(g + (r * h) @ recurrent[:, 2 * units :])
        out[:, t] = h
    return out


def simple(x, kernel, recurrent, bias):
    h, out = np.zeros((len(x), recurrent.shape[0])), []
    for t in range(x.shape[1]):
        h = np.maximum(x[:, t] @ kernel + h @ recurrent + bias, 0)
        out.append(h)
    return np.stack(out, axis=1)


def cell(inputs, units, gates):
    return draw(inputs, gates * units), draw(units, gates * units), draw(gates * units)


def write(file, config, version, groups):
    """`groups` is a list of a layer's name and its variables, a list of a name and an array."""
    with h5py.File(OUT / file, "w") as f:
        if config is not None:
            f.attrs["model_config"] = json.dumps(config).encode()
        if version:
            f.attrs["keras_version"] = version.encode()
        root = f.create_group("model_weights") if config is not None else f
        root.attrs["layer_names"] = [name.encode() for name, _ in groups]
        for name, variables in groups:
            group = root.create_group(name)
            group.attrs["weight_names"] = [n.encode() for n, _ in variables]
            for n, value in variables:
                group.create_dataset(n, data=value)


def by_gate(prefix, weights, gates):
    """Keras 1's variables; its order is not that of the gates in one matrix."""
    parts = [np.split(w, len(gates), axis=-1) for w in weights]
    order = ["i", "c", "f", "o"] if len(gates) == 4 else gates
    names = [(f"{prefix}_{letter}_{g}", part[gates.index(g)]) for g in order for letter, part in zip("WUb", parts)]
    return names


def of_keras_1(name, units, **options):
    return {
        "name": name, "trainable": True, "output_dim": units, "return_sequences": True, "go_backwards": False,
        "stateful": False, "unroll": False, "consume_less": "cpu", "init": "glorot_uniform", "inner_init": "orthogonal",
        "activation": "tanh", "W_regularizer": None, "U_regularizer": None, "b_regularizer": None, "dropout_W": 0.2,
        "dropout_U": 0.0, "input_dim": WIDTH, "input_length": None, **options,
    }  # fmt: skip


def keras_1():
    gates = {"inner_activation": "hard_sigmoid"}
    a, b, c = cell(WIDTH, 4, 4), cell(4, 3, 3), cell(3, 2, 1)
    layers = [
        {"class_name": "LSTM", "config": of_keras_1("lstm_1", 4, forget_bias_init="one", **gates)},
        {"class_name": "Dropout", "config": {"name": "dropout_1", "trainable": True, "p": 0.5}},
        {"class_name": "GRU", "config": of_keras_1("gru_1", 3, **{**gates, "consume_less": "gpu"})},
        {"class_name": "SimpleRNN", "config": of_keras_1("simplernn_1", 2, activation="relu")},
        {"class_name": "Dense", "config": {"name": "dense_1", "output_dim": 1}},
    ]
    groups = [
        ("lstm_1", by_gate("lstm_1", a, ["i", "f", "c", "o"])),
        ("dropout_1", []),
        ("gru_1", [(f"gru_1_{letter}", w) for letter, w in zip("WUb", b)]),
        ("simplernn_1", [(f"simplernn_1_{letter}:0", w) for letter, w in zip("WUb", c)]),
        ("dense_1", [("dense_1_W", draw(2, 1)), ("dense_1_b", draw(1))]),
    ]
    write("k1_stack.h5", {"class_name": "Sequential", "config": layers}, "1.2.2", groups)
    others = ["layers of the model that are not computed here: dense_1 (Dense)"]
    names = ["lstm_1", "gru_1", "simplernn_1"]
    expect("k1_stack.h5", names, lambda x: simple(gru(lstm(x, *a), *b), *c), assumed=others)
    write("k1_stack_weights.h5", None, None, groups)

    # Functional, Keras 1.0: no version; each gate of a GRU has its own variables.
    a, b, c = cell(WIDTH, 4, 4), cell(WIDTH, 4, 4), cell(8, 2, 3)
    inner = {"class_name": "LSTM", "config": of_keras_1("lstm_2", 4, **gates)}
    node = lambda name: [[[name, 0, 0]]]  # noqa: E731
    layers = [
        {"class_name": "InputLayer", "name": "input_1", "inbound_nodes": [],
         "config": {"name": "input_1", "batch_input_shape": [None, STEPS, WIDTH], "input_dtype": "float32"}},
        {"class_name": "Bidirectional", "name": "bidirectional_1", "inbound_nodes": node("input_1"),
         "config": {"name": "bidirectional_1", "trainable": True, "merge_mode": "concat", "layer": inner}},
        {"class_name": "GRU", "name": "gru_2", "inbound_nodes": node("bidirectional_1"),
         "config": of_keras_1("gru_2", 2, inner_activation="sigmoid")},
    ]  # fmt: skip
    groups = [
        ("input_1", []),
        ("bidirectional_1", by_gate("forward_lstm_2", a, list("ifco")) + by_gate("backward_lstm_2", b, list("ifco"))),
        ("gru_2", by_gate("gru_2", c, ["z", "r", "h"])),
    ]
    config = {"class_name": "Model", "config": {
        "name": "model_1", "layers": layers, "input_layers": [["input_1", 0, 0]], "output_layers": [["gru_2", 0, 0]],
    }}  # fmt: skip
    write("k1_bi.h5", config, None, groups)

    def both(x):
        return np.concatenate([lstm(x, *a), lstm(x, *b, back=True)], axis=2)

    expect("k1_bi.h5", ["bidirectional_1", "gru_2"], lambda x: gru(both(x), *c, gate=sigmoid))


def keras_2_before_3():
    a, b = cell(WIDTH, 4, 4), cell(4, 3, 3)
    layer = {"trainable": True, "return_sequences": True, "dropout": 0.1, "implementation": 1, "use_bias": True}
    layers = [
        {"class_name": "LSTM", "config": {**layer, "name": "lstm_1", "units": 4, "recurrent_activation": "hard_sigmoid"}},
        {"class_name": "GRU", "config": {**layer, "name": "gru_1", "units": 3}},
    ]
    named = lambda name, w: [(f"{name}/{n}:0", v) for n, v in zip(("kernel", "recurrent_kernel", "bias"), w)]  # noqa: E731
    groups = [("lstm_1", named("lstm_1", a)), ("gru_1", named("gru_1", b))]
    write("k20_stack.h5", {"class_name": "Sequential", "config": layers}, "2.1.6", groups)
    expect("k20_stack.h5", ["lstm_1", "gru_1"], lambda x: gru(lstm(x, *a), *b))


def hostile():
    """Files of a few kB that would take time or memory without end if a reader followed them."""

    def lstm_at(layers, name, units, **options):
        group = layers.create_group(name).create_group("cell").create_group("vars")
        group.create_dataset("0", (WIDTH, 4 * units), "f4", **options)
        group.create_dataset("1", (units, 4 * units), "f4", **options)
        group.create_dataset("2", (4 * units,), "f4", **options)
        return layers[name]

    with h5py.File(OUT / "hostile_cycle.weights.h5", "w") as f:
        layers = f.create_group("layers")
        group = layers.create_group("lstm")
        group["cell"], group["vars"], layers["model"] = layers, group, f["/"]
        group.create_group("forward_layer")["cell"] = group
        group["backward_layer"] = group["forward_layer"]
        layers["soft"] = h5py.SoftLink("/layers/soft/soft")
    with h5py.File(OUT / "hostile_bomb.weights.h5", "w") as f:
        layers = f.create_group("layers")
        group = lstm_at(layers, "lstm", 4)["cell/vars"]
        del group["1"]
        group.create_dataset("1", (1024, 4096), data=np.zeros((1024, 4096), "f4"), compression="gzip", chunks=(1024, 4096))
    with h5py.File(OUT / "hostile_shape.weights.h5", "w") as f:
        # Chunks that were never written take no space, in any number.
        group = lstm_at(f.create_group("layers"), "lstm", 4)["cell/vars"]
        del group["0"]
        group.create_dataset("0", (1 << 40, 16), "f4", chunks=(1, 1))
        del group["2"]
        group.create_dataset("2", (16,), "f4", chunks=(1 << 29,), maxshape=(None,))
    with h5py.File(OUT / "hostile_chunk.weights.h5", "w") as f:
        # Each chunk is small enough, all of them are not; and almost nothing of them is used.
        group = f.create_group("layers/lstm/cell/vars")
        for i, shape in enumerate([(WIDTH, 16), (4, 16), (16,)]):
            chunk = (200, 200) if len(shape) > 1 else (40_000,)
            sizes = {"chunks": chunk, "maxshape": (None,) * len(shape), "compression": "gzip"}
            group.create_dataset(str(i), data=np.zeros(shape, "f4"), **sizes)
    with h5py.File(OUT / "hostile_links.weights.h5", "w") as f:
        layers = f.create_group("layers")
        lstm = lstm_at(layers, "lstm", 16)
        for i in range(200):
            layers[f"lstm_{i + 1}"] = lstm


def weights_alone():
    """What a file of weights shows of layers inside others: the group of a wrapper or a model, or the name only."""
    a = cell(WIDTH, 4, 4)
    named = [(f"time_distributed_1/{n}:0", v) for n, v in zip(("kernel", "recurrent_kernel", "bias"), a)]
    write("k2_wrapped_weights.h5", None, "2.4.0", [("time_distributed_1", named)])
    with h5py.File(OUT / "k3_wrapped.weights.h5", "w") as f:
        for path in ("layers/lstm", "layers/functional/layers/lstm", "layers/time_distributed/layer"):
            group = f.create_group(f"{path}/cell/vars")
            for i, value in enumerate(a):
                group.create_dataset(str(i), data=value)
    with h5py.File(OUT / "k0_weights.h5", "w") as f:
        f.attrs["nb_layers"] = 1
        f.create_group("layer_0").create_dataset("param_0", data=a[0])


def main():
    hostile()
    weights_alone()
    applied_more_than_once()
    keras_1()
    keras_2_before_3()
    with open(OUT / "expected_more.json", "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(e) for e in expected) + "\n]\n")


if __name__ == "__main__":
    main()
