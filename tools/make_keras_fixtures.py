"""Writes tests/data/keras: small models saved by Keras 2 and Keras 3, and what Keras computes with them in float64.

    python3 -m venv venv && venv/bin/pip install tensorflow-cpu==2.19.0 tf_keras==2.19.0 keras==3.15.1
    venv/bin/python tools/make_keras_fixtures.py

Weights are representable in f32 and differ in scale by gate, so that a swapped pair shows. Each entry of expected.json
has the file, the layer or range to read (null: the only chain), what the reader shall report, an input [B, T, I] and the
output of the last layer. Layers of the cuDNN layout run on GPUs only; Keras itself converts their file to LSTM and GRU.
"""

import json
import os
import pathlib

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras as keras3
import numpy as np
import tf_keras as keras2
from tf_keras.src.layers.rnn.cudnn_gru import CuDNNGRU
from tf_keras.src.layers.rnn.cudnn_lstm import CuDNNLSTM

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "keras"
BATCH, STEPS, WIDTH = 2, 5, 3
expected = []
rng = np.random.default_rng(20261125)


def randomise(model):
    """Weights of distinct scale per column block; what is float64 is rounded to float32."""
    values = []
    for v in model.get_weights():
        scale = np.linspace(0.3, 0.9, v.shape[-1])
        values.append((rng.standard_normal(v.shape) * scale).astype(np.float32).astype(v.dtype))
    model.set_weights(values)
    return model


def save(model, file):
    path = str(OUT / file)
    if file.endswith(".keras"):
        model.save(path)
    elif "weights" in file:
        model.save_weights(path)
    else:
        model.save(path, include_optimizer=False)


def expect(file, layers, read=None, reversed=False, sequences=True, masked=False, stateful=False, names=None):
    """Runs `layers` one after the other, as the reader's chain does."""
    first = layers[0]
    width = WIDTH if first.name not in INPUT_WIDTHS else INPUT_WIDTHS[first.name]
    x = rng.standard_normal((BATCH, STEPS, width)).astype(np.float32)
    y = x.astype(np.float64)
    for layer in layers:
        y = layer(y)
        if isinstance(y, (list, tuple)):
            y = y[0]
    y = np.asarray(y)
    assert y.dtype == np.float64, y.dtype
    expected.append({
        "file": file, "read": read, "layers": names or [layer.name for layer in layers],
        "time_reversed": reversed, "returns_sequences": sequences, "masked": masked, "stateful": stateful,
        "x_shape": x.shape, "x": [float(v) for v in x.ravel()],
        "y_shape": y.shape, "y": [float(f"{v:.13g}") for v in y.ravel()],
    })  # fmt: skip


INPUT_WIDTHS = {}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for major, K in ((2, keras2), (3, keras3)):
        K.backend.set_floatx("float64")
        K.utils.set_random_seed(major)
        L = K.layers
        whole = ".h5" if major == 2 else ".keras"

        # Unequal widths, no bias in the second, a dropout between; saved in every way.
        model = K.Sequential(name="stack")
        for layer in (
            L.InputLayer((STEPS, WIDTH)),
            L.LSTM(4, return_sequences=True, dropout=0.2, name="first"),
            L.Dropout(0.5, name="drop"),
            L.LSTM(3, return_sequences=True, use_bias=False, name="second"),
        ):
            model.add(layer)
        randomise(model)
        lstms = [model.get_layer("first"), model.get_layer("second")]
        for file in (f"k{major}_stack.h5", f"k{major}_stack.keras"):
            save(model, file)
            expect(file, lstms)
            expect(file, lstms[:1], read="first")
        save(model, f"k{major}_stack.weights.h5")
        # Keras 2 writes no names of layers there.
        name = "first" if major == 3 else "lstm"
        expect(f"k{major}_stack.weights.h5", lstms[:1], read=name, names=[name])

        # Both merge modes; the last returns one vector.
        inputs = K.Input((STEPS, WIDTH), name="in")
        x = L.Masking(name="mask")(inputs)
        x = L.Bidirectional(L.LSTM(4, return_sequences=True), merge_mode="sum", name="bi_sum")(x)
        x = L.Bidirectional(L.GRU(2, return_sequences=True), name="bi_concat")(x)
        x = L.Bidirectional(L.SimpleRNN(3), merge_mode="concat", name="bi_last")(x)
        model = randomise(K.Model(inputs, L.Dense(2, name="out")(x), name="bi"))
        save(model, f"k{major}_bi{whole}")
        bis = [model.get_layer(n) for n in ("bi_sum", "bi_concat", "bi_last")]
        expect(f"k{major}_bi{whole}", bis, sequences=False, masked=True)
        expect(f"k{major}_bi{whole}", bis[:1], read="bi_sum", masked=True)

        # Both kinds of GRU, then three changes of direction.
        model = K.Sequential(name="gru")
        for layer in (
            L.InputLayer((STEPS, WIDTH)),
            L.GRU(4, return_sequences=True, reset_after=True, name="after"),
            L.GRU(3, return_sequences=True, reset_after=False, go_backwards=True, name="before"),
            L.SimpleRNN(4, return_sequences=True, activation="relu", name="flipped"),
            L.LSTM(2, return_sequences=True, go_backwards=True, name="unflipped"),
            L.GRU(3, return_sequences=True, use_bias=False, go_backwards=True, name="last"),
        ):
            model.add(layer)
        randomise(model)
        save(model, f"k{major}_gru{whole}")
        names = ["after", "before", "flipped", "unflipped", "last"]
        layers = [model.get_layer(n) for n in names]
        expect(f"k{major}_gru{whole}", layers, reversed=True)
        expect(f"k{major}_gru{whole}", layers[:2], read="after..before", reversed=True)
        expect(f"k{major}_gru{whole}", layers[:4], read="after..unflipped")

        # Activations: by name, and as an object.
        kinds = [("hard_sigmoid", "tanh"), ("sigmoid", "softsign"), ("hard_sigmoid", "elu"), ("sigmoid", "relu")]
        kinds += [("sigmoid", "linear"), ("sigmoid", "softplus"), ("sigmoid", L.LeakyReLU(0.25))]
        if major == 3:
            kinds += [("sigmoid", "leaky_relu")]
        inputs = K.Input((STEPS, WIDTH), name="in")
        x = inputs
        for i, (gates, cell) in enumerate(kinds):
            layer = (L.GRU if i % 2 else L.LSTM)(
                3, activation=cell, recurrent_activation=gates, return_sequences=True, name=f"act_{i}"
            )
            x = layer(x)
        model = randomise(K.Model(inputs, x, name="activations"))
        for layer in model.layers[1:]:
            layer.set_weights([(0.6 * w).astype(np.float32).astype(w.dtype) for w in layer.get_weights()])
        file = f"k{major}_activations{whole}"
        save(model, file)
        expect(file, model.layers[1:])

        # Two chains, a shared layer, states handed over, nested models, cells.
        inputs = K.Input((STEPS, WIDTH), name="in")
        embedded = L.Dense(4, name="embed")(inputs)
        encoder = L.LSTM(3, return_sequences=True, return_state=True, name="encoder")
        seq, h, c = encoder(embedded)
        inner = K.Sequential([L.InputLayer((STEPS, 3)), L.GRU(4, return_sequences=True, name="deep")], name="inner")
        nested = inner(L.BatchNormalization(name="norm")(seq))
        decoder = L.LSTM(3, return_sequences=True, stateful=False, name="decoder")
        y = decoder(nested, initial_state=[h, c])
        cells = [L.LSTMCell(2), L.GRUCell(3, reset_after=True), L.SimpleRNNCell(4)]
        stacked = L.RNN(cells, return_sequences=True, go_backwards=True, name="cells")
        y = stacked(L.Dense(3, name="between")(y))
        one = L.RNN(L.LSTMCell(3), return_sequences=True, name="one_cell")
        y = one(y)
        model = randomise(K.Model(inputs, y, name="graph"))
        INPUT_WIDTHS.update({"encoder": 4, "deep": 3, "decoder": 4, "cells": 3, "one_cell": 4})
        save(model, f"k{major}_graph{whole}")
        file = f"k{major}_graph{whole}"
        expect(file, [encoder], read="encoder")
        expect(file, [inner.layers[-1]], read="inner/deep", names=["inner/deep"])
        expect(file, [decoder], read="decoder")
        expect(file, [stacked], read="cells", reversed=True)
        expect(file, [stacked, one], read="cells..one_cell", reversed=True)

    # The layout of cuDNN, of layers that only GPUs run.
    keras2.backend.set_floatx("float32")
    model = keras2.Sequential(name="cudnn")
    model.add(keras2.layers.InputLayer((STEPS, WIDTH)))
    model.add(CuDNNLSTM(4, return_sequences=True, name="lstm"))
    model.add(CuDNNGRU(2, return_sequences=True, name="gru"))
    model.add(keras2.layers.Bidirectional(CuDNNLSTM(3, return_sequences=True), name="bi"))
    randomise(model)
    for file in ("k2_cudnn.h5", "k2_cudnn.keras"):
        save(model, file)
    save(model, "k2_cudnn.weights.hdf5")
    legacy = str(OUT / "k2_cudnn.weights.hdf5")
    keras2.backend.set_floatx("float64")
    plain = keras2.Sequential(name="plain")
    plain.add(keras2.layers.InputLayer((STEPS, WIDTH)))
    plain.add(keras2.layers.LSTM(4, return_sequences=True, name="lstm"))
    plain.add(keras2.layers.GRU(2, return_sequences=True, name="gru"))
    plain.add(keras2.layers.Bidirectional(keras2.layers.LSTM(3, return_sequences=True), name="bi"))
    plain.load_weights(legacy)
    for file in ("k2_cudnn.h5", "k2_cudnn.keras"):
        expect(file, plain.layers)
    expect("k2_cudnn.weights.hdf5", plain.layers, read="lstm..bi")

    with open(OUT / "expected.json", "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(e) for e in expected) + "\n]\n")


if __name__ == "__main__":
    main()
