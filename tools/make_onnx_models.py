#!/usr/bin/env python3
"""Writes tests/data/onnx: small ONNX models as exporters make them, with inputs and the outputs of onnxruntime.

    pip install -r tools/requirements.txt
    python tools/make_onnx_models.py

For each model NAME.onnx and NAME.safetensors, whose tensors are "in.X" and "out.Y" by the names of the graph. The six
node tests test_lstm_* come from the `onnx` package as it is (Apache-2.0, see LICENSE beside them); all others are
made here with fixed seeds. Where onnxruntime refuses a model (layout 1) or departs from the operator's text, the outputs
are made from those of an equal model, as the functions say.
"""
import argparse
import pathlib

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "onnx"
F, I64, I32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class Maker:
    """Collects nodes and initialisers of one graph."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.initializers, self.count = [], [], 0

    def values(self, *shape, scale=0.5):
        return self.rng.uniform(-scale, scale, shape).astype(np.float32)

    def const(self, array, name=None):
        name = name or f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op, inputs, outputs=1, name=None, **attributes):
        self.count += 1
        made = [f"{op.lower()}_{self.count}_{i}" for i in range(outputs)] if isinstance(outputs, int) else outputs
        self.nodes.append(helper.make_node(op, inputs, made, name or f"{op}_{self.count}", **attributes))
        return made[0] if len(made) == 1 else made

    def weights(self, op, directions, inputs, hidden, bias=True, peephole=False):
        g = GATES[op]
        names = [
            self.const(self.values(directions, g * hidden, inputs)),
            self.const(self.values(directions, g * hidden, hidden)),
            self.const(self.values(directions, 2 * g * hidden)) if bias else "",
        ]
        return names, (self.const(self.values(directions, 3 * hidden)) if peephole else "")

    def model(self, inputs, outputs, opset=17):
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info(*i) for i in inputs],
            [helper.make_tensor_value_info(*o) for o in outputs],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="wgpu-lstm tests")
        model.ir_version = 8
        return model


def run(model, feeds):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds)))


def write(name, model, feeds, expected=None):
    expected = expected or run(model, feeds)
    (OUT / f"{name}.onnx").write_bytes(model.SerializeToString())
    tensors = {f"in.{k}": np.ascontiguousarray(v) for k, v in feeds.items()}
    tensors |= {f"out.{k}": np.ascontiguousarray(v) for k, v in expected.items()}
    save_file(tensors, OUT / f"{name}.safetensors")
    print(f"{name}: {', '.join(f'{k} {list(v.shape)}' for k, v in expected.items())}")


def exported_stack(layers, directions, seed, batch_first):
    """nn.LSTM as torch.onnx.export writes it with dynamic axes: states made from Shape, layers cut out by Slice."""
    m = Maker(seed)
    hidden, width = 5, 4
    x = "x"
    if batch_first:
        x = m.node("Transpose", [x], perm=[1, 0, 2])
    shape = m.node("Shape", [x])
    batch = m.node("Gather", [shape, m.const(np.array(1, np.int64))], axis=0)
    batch = m.node("Unsqueeze", [batch, m.const(np.array([0], np.int64))])
    first = m.const(np.array([layers * directions], np.int64))
    size = m.node("Concat", [first, batch, m.const(np.array([hidden], np.int64))], axis=0)
    zero = helper.make_tensor("value", F, [1], [0.25])
    h0 = m.node("ConstantOfShape", [size], value=zero)
    c0 = m.node("Expand", [m.const(np.full((1, 1, 1), -0.5, np.float32)), size])
    finals = [[], []]
    for layer in range(layers):
        ends = [m.const(np.array([e], np.int64)) for e in (layer * directions, (layer + 1) * directions, 0)]
        states = [m.node("Slice", [s, ends[0], ends[1], ends[2]]) for s in (h0, c0)]
        (w, r, b), _ = m.weights("LSTM", directions, width, hidden)
        direction = "bidirectional" if directions == 2 else "forward"
        y, y_h, y_c = m.node(
            "LSTM", [x, w, r, b, "", *states], 3, f"/lstm/LSTM_{layer}", hidden_size=hidden, direction=direction
        )
        if directions == 2:
            y = m.node("Transpose", [y], perm=[0, 2, 1, 3])
            x = m.node("Reshape", [y, m.const(np.array([0, 0, -1], np.int64))])
        else:
            x = m.node("Squeeze", [y, m.const(np.array([1], np.int64))])
        finals[0].append(y_h)
        finals[1].append(y_c)
        width = directions * hidden
    if batch_first:
        m.node("Transpose", [x], ["y"], perm=[1, 0, 2])
    else:
        m.node("Identity", [x], ["y"])
    for states, name in zip(finals, ["h_n", "c_n"]):
        m.node("Concat", states, [name], axis=0)
    model = m.model(
        [("x", F, ["batch", "time", 4] if batch_first else ["time", "batch", 4])],
        [(n, F, None) for n in ("y", "h_n", "c_n")],
    )
    return model, {"x": m.values(3, 7, 4, scale=1)}


def keras_like():
    """An LSTM as tf2onnx writes it: batch-major around, initial states from ConstantOfShape, last step by Squeeze of Y_h."""
    m = Maker(20)
    x = m.node("Transpose", ["x"], perm=[1, 0, 2])
    (w, r, b), _ = m.weights("GRU", 1, 3, 6)
    outputs = m.node("GRU", [x, w, r, b, "lengths"], ["", "gru_h"], "gru", hidden_size=6, linear_before_reset=1)
    h = m.node("Squeeze", ["gru_h", m.const(np.array([0], np.int64))])
    h = m.node("Gemm", [h, m.const(m.values(6, 4)), m.const(m.values(4))])
    m.node("Softmax", [h], ["probabilities"], axis=-1)
    model = m.model(
        [("x", F, ["n", "t", 3]), ("lengths", I32, ["n"])], [("probabilities", F, ["n", 4])]
    )
    return model, {"x": m.values(4, 6, 3, scale=1), "lengths": np.array([6, 2, 4, 1], np.int32)}


def convolution():
    """Conv, LSTM, Gemm, Softmax: what is not recurrent runs elsewhere."""
    m = Maker(21)
    c = m.node("Conv", ["x", m.const(m.values(6, 2, 3)), m.const(m.values(6))], kernel_shape=[3], pads=[1, 1])
    c = m.node("Relu", [c])
    c = m.node("Transpose", [c], perm=[2, 0, 1])
    (w, r, b), _ = m.weights("LSTM", 2, 6, 5)
    y = m.node("LSTM", [c, w, r, b], 1, hidden_size=5, direction="bidirectional")
    y = m.node("Transpose", [y], perm=[2, 0, 1, 3])
    y = m.node("Reshape", [y, m.const(np.array([0, 0, 10], np.int64))])
    y = m.node("MatMul", [y, m.const(m.values(10, 3))])
    y = m.node("Add", [y, m.const(m.values(3))])
    m.node("Softmax", [y], ["y"], axis=-1)
    model = m.model([("x", F, ["n", 2, "t"])], [("y", F, ["n", "t", 3])])
    return model, {"x": m.values(2, 2, 9, scale=1)}


def constants_of_all_kinds():
    """Weights from a Constant node, through Transpose and Cast, and behind Identity; sequence_lens from a Constant."""
    m = Maker(22)
    w = m.node("Constant", [], value=numpy_helper.from_array(m.values(1, 16, 3)))
    r = m.node("Transpose", [m.const(m.values(1, 4, 16))], perm=[0, 2, 1])
    b = m.node("Cast", [m.const(m.values(1, 32).astype(np.float64))], to=F)
    b = m.node("Identity", [b])
    lens = m.node("Constant", [], value=numpy_helper.from_array(np.array([2, 5], np.int32)))
    m.node("LSTM", ["x", w, r, b, lens], ["y", "y_h"], "constants", hidden_size=4)
    model = m.model([("x", F, [5, 2, 3])], [("y", F, None), ("y_h", F, None)])
    return model, {"x": m.values(5, 2, 3, scale=1)}


def weights_at_run_time():
    """R is the product of two inputs of the graph."""
    m = Maker(23)
    (w, _, b), _ = m.weights("RNN", 1, 3, 4)
    r = m.node("MatMul", ["a", "b"])
    r = m.node("Unsqueeze", [r, m.const(np.array([0], np.int64))])
    m.node("RNN", ["x", w, r, b], ["y", "y_h"], hidden_size=4)
    model = m.model(
        [("x", F, ["t", "n", 3]), ("a", F, [4, 2]), ("b", F, [2, 4])], [("y", F, None), ("y_h", F, None)]
    )
    return model, {"x": m.values(5, 2, 3, scale=1), "a": m.values(4, 2), "b": m.values(2, 4)}


def two_in_parallel():
    """Two nodes on one input, their outputs added to what was before them, and a third on top."""
    m = Maker(24)
    before = m.node("Tanh", ["x"])
    ys = []
    for op, extra in [("LSTM", {}), ("GRU", {"linear_before_reset": 0, "direction": "reverse"})]:
        (w, r, b), _ = m.weights(op, 1, 4, 4)
        y = m.node(op, [before, w, r, b], 1, hidden_size=4, **extra)
        ys.append(m.node("Squeeze", [y, m.const(np.array([1], np.int64))]))
    top = m.node("Add", [m.node("Mul", ys), before])
    (w, r, _), _ = m.weights("RNN", 1, 4, 3, bias=False)
    m.node("RNN", [top, w, r], ["", "top_h"], hidden_size=3)
    # A node may have the name of a value.
    m.node("Sub", [top, before], ["difference"], name="x")
    model = m.model([("x", F, ["t", "n", 4])], [("top_h", F, None), ("difference", F, None)])
    return model, {"x": m.values(6, 3, 4, scale=1)}


def every_attribute(op, seed, layout=0):
    """Everything that onnxruntime computes as the text says; for layout 1 its outputs are transposed, since it refuses it."""
    m = Maker(seed)
    hidden = 5
    (w, r, b), p = m.weights(op, 2, 3, hidden, peephole=op == "LSTM")
    names = {"LSTM": ["HardSigmoid", "LeakyRelu", "Tanh"], "GRU": ["Sigmoid", "Elu"], "RNN": ["Softsign"]}[op]
    other = {"LSTM": ["Sigmoid", "Tanh", "Softplus"], "GRU": ["HardSigmoid", "Tanh"], "RNN": ["Affine"]}[op]
    attributes = dict(hidden_size=hidden, direction="bidirectional", activations=names + other)
    attributes |= {
        "LSTM": dict(activation_alpha=[0.3, 0.1], activation_beta=[0.45], input_forget=0),
        "GRU": dict(activation_alpha=[0.7, 0.25], activation_beta=[0.5], clip=0.6, linear_before_reset=0),
        "RNN": dict(activation_alpha=[0.5], activation_beta=[0.1], clip=0.6),
    }[op]
    inputs = ["x", w, r, b, "lengths", "state_h"] + (["state_c", p] if op == "LSTM" else [])
    outputs = ["y", "y_h"] + (["y_c"] if op == "LSTM" else [])
    m.node(op, inputs, outputs, "everything", **attributes)
    declared = [("x", F, [6, 3, 3]), ("lengths", I32, [3]), ("state_h", F, [2, 3, hidden])]
    feeds = {"x": m.values(6, 3, 3, scale=1), "lengths": np.array([6, 0, 3], np.int32), "state_h": m.values(2, 3, hidden)}
    if op == "LSTM":
        declared.append(("state_c", F, [2, 3, hidden]))
        feeds["state_c"] = m.values(2, 3, hidden)
    model = m.model(declared, [(o, F, None) for o in outputs])
    expected = run(model, feeds)
    if layout == 1:
        swap = lambda a: np.swapaxes(a, 0, 1)
        m.nodes[-1].attribute.append(helper.make_attribute("layout", 1))
        feeds = {k: v if k == "lengths" else swap(v) for k, v in feeds.items()}
        declared = [(n, t, list(feeds[n].shape)) for n, t, _ in declared]
        model = m.model(declared, [(o, F, None) for o in outputs])
        y = np.transpose(expected["y"], (2, 0, 1, 3))
        expected = {"y": y} | {k: swap(v) for k, v in expected.items() if k != "y"}
    return model, feeds, expected


def decomposed():
    """Two steps of an LSTM as matrix products: no recurrent node."""
    m = Maker(25)
    h = c = m.const(np.zeros((2, 3), np.float32))
    w, r = m.const(m.values(4, 12)), m.const(m.values(3, 12))
    splits = m.const(np.array([3, 3, 3, 3], np.int64))
    for t in range(2):
        x = m.node("Gather", ["x", m.const(np.array(t, np.int64))], axis=0)
        gates = m.node("Add", [m.node("MatMul", [x, w]), m.node("MatMul", [h, r])])
        i, f, g, o = m.node("Split", [gates, splits], 4, axis=1)
        i, f, o = (m.node("Sigmoid", [v]) for v in (i, f, o))
        c = m.node("Add", [m.node("Mul", [f, c]), m.node("Mul", [i, m.node("Tanh", [g])])])
        h = m.node("Mul", [o, m.node("Tanh", [c])])
    m.node("Identity", [h], ["h"])
    model = m.model([("x", F, [2, 2, 4])], [("h", F, None)])
    return model, {"x": m.values(2, 2, 4, scale=1)}


def wide_integers():
    """sequence_lens is int64, as some exporters write it; onnxruntime gets the same model with int32."""
    models = []
    for kind in (I32, I64):
        m = Maker(26)
        (w, r, b), _ = m.weights("LSTM", 1, 3, 4)
        m.node("LSTM", ["x", w, r, b, "lengths"], ["y", "", "y_c"], hidden_size=4)
        models.append(m.model([("x", F, ["t", "n", 3]), ("lengths", kind, ["n"])], [("y", F, None), ("y_c", F, None)]))
    x = m.values(4, 3, 3, scale=1)
    expected = run(models[0], {"x": x, "lengths": np.array([4, 1, 2], np.int32)})
    return models[1], {"x": x, "lengths": np.array([4, 1, 2], np.int64)}, expected


def half_weights():
    """Initialisers of float16, as raw bytes and as words; the expected outputs are those of the rounded weights."""
    m, plain = Maker(27), Maker(27)
    names = []
    for n, shape in enumerate([(1, 16, 3), (1, 16, 4), (1, 32)]):
        values = m.values(*shape).astype(np.float16)
        plain.values(*shape)
        if n == 1:
            words = [int(v) for v in values.view(np.uint16).ravel()]
            half = TensorProto(name=f"c{n}", data_type=TensorProto.FLOAT16, dims=shape, int32_data=words)
            m.initializers.append(half)
        else:
            m.initializers.append(numpy_helper.from_array(values, f"c{n}"))
        names.append(plain.const(values.astype(np.float32), f"c{n}"))
    models = []
    for maker in (m, plain):
        maker.node("LSTM", ["x", *names], ["y"], hidden_size=4)
        models.append(maker.model([("x", F, ["t", "n", 3])], [("y", F, None)]))
    x = m.values(4, 2, 3, scale=1)
    return models[0], {"x": x}, run(models[1], {"x": x})


def first_version():
    """LSTM of operator set 1, with its attribute output_sequence, and initialisers that are inputs too."""
    m = Maker(28)
    (w, r, b), _ = m.weights("LSTM", 1, 3, 4)
    m.node("LSTM", ["x", w, r, b], ["y", "y_h"], hidden_size=4)
    model = m.model([("x", F, [4, 2, 3]), (w, F, [1, 16, 3])], [("y", F, None), ("y_h", F, None)], opset=7)
    feeds = {"x": m.values(4, 2, 3, scale=1)}
    expected = run(model, feeds)
    model.opset_import[0].version = 1
    model.graph.node[0].attribute.append(helper.make_attribute("output_sequence", 1))
    return model, feeds, expected


def departures(kind):
    """Where onnxruntime departs from the operator's text: it does not clamp c before h, and has no default of Affine."""
    m = Maker(33)
    (w, r, b), _ = m.weights("LSTM", 1, 3, 4)
    attributes = {
        "clip": dict(clip=0.2),
        "defaults": dict(activations=["Sigmoid", "Tanh", "ThresholdedRelu"]),
    }[kind]
    m.node("LSTM", ["x", w, r, b, "", "state_h", "state_c"], ["y"], hidden_size=4, **attributes)
    declared = [("x", F, [5, 2, 3]), ("state_h", F, [1, 2, 4]), ("state_c", F, [1, 2, 4])]
    model = m.model(declared, [("y", F, None)])
    return model, {n: m.values(*shape, scale=1) for n, _, shape in declared}


def external():
    """Weights in a file beside the model, once as it should be, and once with a location outside of the folder."""
    folder = OUT / "external"
    folder.mkdir(exist_ok=True)
    m = Maker(34)
    (w, r, b), _ = m.weights("LSTM", 1, 3, 4)
    m.node("LSTM", ["x", w, r, b], ["lstm_y"], hidden_size=4)
    y = m.node("Squeeze", ["lstm_y", m.const(np.array([1], np.int64))])
    m.node("MatMul", [y, m.const(m.values(4, 2))], ["y"])
    model = m.model([("x", F, ["t", "n", 3])], [("y", F, None)])
    feeds = {"x": m.values(5, 2, 3, scale=1)}
    expected = run(model, feeds)
    data = b""
    for tensor in model.graph.initializer:
        if tensor.data_type == F:
            entry = {"location": "weights.bin", "offset": str(len(data)), "length": str(len(tensor.raw_data))}
            data += tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in entry.items():
                tensor.external_data.add(key=key, value=value)
    (folder / "weights.bin").write_bytes(data)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    tensors = {"in.x": feeds["x"], "out.y": np.ascontiguousarray(expected["y"])}
    save_file(tensors, folder / "model.safetensors")
    model.graph.initializer[0].external_data[0].value = "../external/weights.bin"
    (folder / "outside.onnx").write_bytes(model.SerializeToString())


def around(name, build, opset=17, feeds=None, inputs=None):
    """A GRU [T=5, B=3, I=4 -> H=4] and what `build(m, y)` makes of its output [T, 1, B, H]; `build` returns the names
    and types of the graph's outputs."""
    m = Maker(len(name) * 7 + opset)
    (w, r, b), _ = m.weights("GRU", 1, 4, 4)
    y = m.node("GRU", ["x", w, r, b], ["y", "y_h"], hidden_size=4)[0]
    made = build(m, m.node("Squeeze", [y], axes=[1]) if opset < 13 else m.node("Squeeze", [y, m.const(np.array([1]))]))
    model = m.model([("x", F, ["t", "b", 4]), *(inputs or [])], [(n, t, None) for n, t in made], opset)
    given = {"x": m.values(5, 3, 4, scale=1.0), **(feeds or {})}
    write(f"around_{name}", model, given)


def subgraph(m, nodes, inputs, outputs):
    return helper.make_graph(
        nodes, "body", [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
    )


def around_recurrent_nodes():
    """What other runtimes, and this one once, got wrong around recurrent nodes: one small graph for each kind."""
    i64 = lambda *v: np.array(v, np.int64)  # noqa: E731
    around("softmax_of_version_11", lambda m, y: [(m.node("Softmax", [y], axis=1), F)], opset=11)
    around("logsoftmax_of_version_11", lambda m, y: [(m.node("LogSoftmax", [y], axis=0), F)], opset=11)
    around("matrix_by_vector", lambda m, y: [(m.node("MatMul", [y, m.const(m.values(4))]), F)])
    around("float_to_bool", lambda m, y: [(m.node("Cast", [y], to=TensorProto.BOOL), TensorProto.BOOL)])
    around("ties_of_argmax", lambda m, y: [(m.node("ArgMax", [m.node("Sign", [y])], axis=2, keepdims=0), I64)])

    def wide_integers_inside(m, y):
        seven = m.node("Cast", [y], to=I64)
        total = m.node("Add", [m.node("Mul", [seven, m.const(i64(3_000_000_019))]), m.const(i64(5_000_000_123))])
        return [(total, I64), (m.node("Mod", [total, m.const(i64(1_000))]), I64)]

    around("integers_beyond_32_bits", wide_integers_inside)

    def doubles_inside(m, y):
        wide = m.node("Cast", [y], to=TensorProto.DOUBLE)
        large = m.const(np.array(1.6e9))
        back = m.node("Sub", [m.node("Add", [wide, large]), large])
        return [(m.node("Cast", [back], to=F), F)]

    around("doubles", doubles_inside)

    def convolutions(m, y):
        c = m.node("Transpose", [y], perm=[1, 2, 0])
        made = [
            m.node("Conv", [c, m.const(m.values(3, 4, 2))]),
            m.node("Conv", [c, m.const(m.values(3, 4, 2))], auto_pad="SAME_LOWER"),
            m.node("Conv", [c, m.const(m.values(3, 4, 3))], auto_pad="SAME_UPPER", strides=[2]),
            m.node("ConvTranspose", [c, m.const(m.values(4, 2, 3))]),
            m.node("MaxPool", [c], kernel_shape=[2]),
            m.node("AveragePool", [c], kernel_shape=[2], auto_pad="SAME_LOWER", strides=[2]),
        ]
        return [(name, F) for name in made]

    around("attributes_left_out", convolutions)

    def same_norms(m, y):
        scale, bias = m.const(m.values(4)), m.const(m.values(4))
        first = m.node("LayerNormalization", [y, m.node("Identity", [scale]), m.node("Identity", [bias])])
        return [(m.node("LayerNormalization", [first, scale, bias]), F)]

    around("one_norm_twice", same_norms)

    def folded(m, y):
        c = m.node("Mul", [m.const(m.values(4)), m.const(m.values(4))])
        return [(m.node("Add", [y, c]), F), (c, F)]

    around("constants_that_are_outputs", folded)

    def same_shapes(m, y):
        a, b = m.node("Shape", [y]), m.node("Shape", [y])
        return [(m.node("Reshape", [y, a]), F), (m.node("Reshape", [y, b]), F), (a, I64), (b, I64)]

    around("equal_nodes", same_shapes)

    def repeated(m, y):
        last = m.node("Gather", [y, m.const(i64(-1))], axis=0)
        long = m.node("Tile", [last, m.const(i64(6, 1, 1))])
        w, r, b = m.weights("LSTM", 2, 4, 3)[0]
        return [(m.node("LSTM", [long, w, r, b], direction="bidirectional", hidden_size=3), F)]

    around("repeat_between", repeated)

    def fixed_state(m, y):
        sizes = m.node("Concat", [m.const(i64(1)), m.node("Gather", [m.node("Shape", [y]), m.const(i64(1))]), m.const(i64(3))], axis=0)
        state = m.node("Expand", [m.const(np.zeros((1, 1, 3), np.float32)), sizes])
        w, r, b = m.weights("LSTM", 1, 4, 3)[0]
        return [(m.node("LSTM", [y, w, r, b, "", state, state], hidden_size=3), F)]

    around("state_of_the_size_of_the_batch", fixed_state)

    def branch(m, y):
        w, r, b = m.weights("RNN", 1, 4, 3)[0]
        then = subgraph(m, [helper.make_node("RNN", [y, w, r, b], ["t"], hidden_size=3)], [], [("t", F, None)])
        other = subgraph(m, [helper.make_node("Unsqueeze", [y, m.const(i64(1))], ["e"])], [], [("e", F, None)])
        flag = m.node("Greater", [m.node("ReduceMax", ["gate"], keepdims=0), m.const(np.float32(0))])
        return [(m.node("If", [flag], then_branch=then, else_branch=other), F)]

    for value in (1.0, -1.0):
        around(
            f"branch_{'taken' if value > 0 else 'left'}", branch, inputs=[("gate", F, [1])],
            feeds={"gate": np.array([value], np.float32)},
        )

    def cell_loop(m, y):
        w, r, b = m.weights("LSTM", 1, 4, 3)[0]
        zero = m.const(np.zeros((1, 3, 3), np.float32))
        nodes = [
            helper.make_node("Gather", [y, "i"], ["at"], axis=0),
            helper.make_node("Unsqueeze", ["at", m.const(i64(0))], ["step"]),
            helper.make_node("LSTM", ["step", w, r, b, "", "h", "c"], ["", "h_next", "c_next"], hidden_size=3),
            helper.make_node("Identity", ["go"], ["go2"]),
            helper.make_node("Squeeze", ["h_next", m.const(i64(0))], ["row"]),
        ]
        body = subgraph(
            m, nodes, [("i", I64, []), ("go", TensorProto.BOOL, []), ("h", F, None), ("c", F, None)],
            [("go2", TensorProto.BOOL, []), ("h_next", F, None), ("c_next", F, None), ("row", F, None)],
        )
        count = m.node("Gather", [m.node("Shape", [y]), m.const(np.array(0, np.int64))])
        made = m.node("Loop", [count, m.const(np.array(True)), zero, zero], 3, body=body)
        return [(name, F) for name in made]

    around("loop_over_a_cell", cell_loop)

    def scan(m, y):
        w, r, b = m.weights("GRU", 1, 4, 3)[0]
        nodes = [
            helper.make_node("Unsqueeze", ["at", m.const(i64(0))], ["step"]),
            helper.make_node("GRU", ["step", w, r, b, "", "h"], ["", "h_next"], hidden_size=3),
            helper.make_node("Squeeze", ["h_next", m.const(i64(0))], ["row"]),
        ]
        body = subgraph(m, nodes, [("h", F, None), ("at", F, None)], [("h_next", F, None), ("row", F, None)])
        zero = m.const(np.zeros((1, 3, 3), np.float32))
        made = m.node("Scan", [zero, y], 2, body=body, num_scan_inputs=1, scan_input_directions=[1])
        return [(name, F) for name in made]

    around("scan_over_a_cell", scan)

    def half_inside(m, y):
        half = m.node("Mul", [m.node("Cast", [y], to=TensorProto.FLOAT16), m.const(np.array(0.5, np.float16))])
        return [(half, TensorProto.FLOAT16), (m.node("Cast", [half], to=F), F)]

    around("halves", half_inside)

    # A default that a run replaces: the model's own constant for h_0 is another.
    m = Maker(61)
    (w, r, b), _ = m.weights("LSTM", 1, 4, 3)
    m.const(np.zeros((1, 2, 3), np.float32), "h_0")
    y = m.node("LSTM", ["x", w, r, b, "", "h_0"], 1, hidden_size=3)
    model = m.model([("x", F, [5, 2, 4]), ("h_0", F, [1, 2, 3])], [(y, F, None)])
    x = m.values(5, 2, 4)
    write("around_default_replaced", model, {"x": x, "h_0": m.values(1, 2, 3)})
    write("around_default_kept", model, {"x": x})

    # Nodes in another order than they run in, and a function of the model that holds a recurrent node.
    m = Maker(62)
    (w, r, b), _ = m.weights("GRU", 1, 4, 3)
    function = helper.make_function(
        "local", "Twice", ["a", "w", "r", "b"], ["out"],
        [
            helper.make_node("GRU", ["a", "w", "r", "b"], ["g"], hidden_size=3),
            helper.make_node("Add", ["g", "g"], ["out"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    m.nodes.append(helper.make_node("Twice", ["x", w, r, b], ["z"], domain="local"))
    m.nodes.append(helper.make_node("Relu", ["z"], ["y"]))
    model = m.model([("x", F, ["t", "b", 4])], [("y", F, None)])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    feeds = {"x": m.values(5, 2, 4)}
    expected = run(model, feeds)
    sorted_nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(sorted_nodes))
    write("around_function_unsorted", model, feeds, expected)


def hostile():
    """Small files that ask for more memory or time than there is."""
    folder = OUT / "hostile"
    folder.mkdir(exist_ok=True)
    i64 = lambda *v: np.array(v, np.int64)  # noqa: E731

    def save(name, m, made, opset=17):
        model = m.model([("x", F, ["n"])], [(made, F, None)], opset)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
        return model

    m = Maker(70)
    save("pad", m, m.node("Pad", ["x", m.const(i64(0, 1 << 40))]))
    m = Maker(71)
    index = m.node("Cast", ["x"], to=I64)
    save("one_hot", m, m.node("OneHot", [index, m.const(i64(1 << 40)), m.const(np.array([0, 1], np.float32))]))
    m = Maker(72)
    span = m.node("Range", [m.const(np.array(0, np.int64)), m.const(np.array(1 << 50)), m.const(np.array(1, np.int64))])
    save("range", m, m.node("Cast", [span], to=F))
    m = Maker(73)
    save("constant_of_shape", m, m.node("ConstantOfShape", [m.const(i64(1 << 20, 1 << 20))]))
    for op, name in (("Concat", "doublings"), ("Add", "additions")):
        m = Maker(74)
        y = "x"
        for _ in range(40):
            y = m.node("Concat", [y, y], axis=0) if op == "Concat" else m.node("Add", [y, m.node("Unsqueeze", [y, m.const(i64(-1))])])
        save(name, m, y)
    m = Maker(75)
    column = m.node("Expand", [m.node("Unsqueeze", ["x", m.const(i64(1))]), m.const(i64(3, 1 << 15))])
    save("outer_product", m, m.node("MatMul", [m.node("Reshape", [column, m.const(i64(-1, 1))]), m.node("Reshape", [column, m.const(i64(1, -1))])]))
    m = Maker(76)
    body = subgraph(
        m,
        [helper.make_node("Identity", ["go"], ["go_next"]), helper.make_node("Neg", ["v"], ["v_next"])],
        [("i", I64, []), ("go", TensorProto.BOOL, []), ("v", F, None)],
        [("go_next", TensorProto.BOOL, []), ("v_next", F, None)],
    )
    save("endless_loop", m, m.node("Loop", ["", m.const(np.array(True)), "x"], body=body))
    m = Maker(77)
    body = subgraph(
        m,
        [helper.make_node("Identity", ["go"], ["go_next"]), helper.make_node("Concat", ["v", "v"], ["v_next"], axis=0)],
        [("i", I64, []), ("go", TensorProto.BOOL, []), ("v", F, None)],
        [("go_next", TensorProto.BOOL, []), ("v_next", F, None)],
    )
    save("growing_loop", m, m.node("Loop", ["", m.const(np.array(True)), "x"], body=body))
    # Thirty functions, each of which calls the next one ten times.
    m = Maker(78)
    m.nodes.append(helper.make_node("F0", ["x"], ["y"], domain="local"))
    model = m.model([("x", F, ["n"])], [("y", F, None)])
    model.opset_import.append(helper.make_opsetid("local", 1))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for k in range(30):
        nodes = [helper.make_node(f"F{k + 1}", [f"v{i}"], [f"v{i + 1}"], domain="local") for i in range(10)]
        if k == 29:
            nodes = [helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(10)]
        model.functions.append(helper.make_function("local", f"F{k}", ["v0"], ["v10"], nodes, imports))
    (folder / "functions.onnx").write_bytes(model.SerializeToString())
    # A function that calls itself, and a value that is made from itself.
    del model.functions[1:]
    for node in model.functions[0].node:
        node.op_type = "F0"
    (folder / "recursion.onnx").write_bytes(model.SerializeToString())
    m = Maker(79)
    m.nodes.append(helper.make_node("Add", ["x", "b"], ["a"]))
    m.nodes.append(helper.make_node("Neg", ["a"], ["b"]))
    save("circle", m, "b")


def node_tests():
    for test in sorted(collect_testcases("LSTM"), key=lambda t: t.name):
        if test.name.startswith("test_lstm_") and "expanded" not in test.name:
            feeds, expected = test.data_sets[0]
            inputs = [i.name for i in test.model.graph.input]
            outputs = [o.name for o in test.model.graph.output]
            write(test.name, test.model, dict(zip(inputs, feeds)), dict(zip(outputs, expected)))


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    node_tests()
    write("exported_forward", *exported_stack(1, 1, 10, True))
    write("exported_two_layers_bidirectional", *exported_stack(2, 2, 11, False))
    write("keras_gru", *keras_like())
    write("convolution", *convolution())
    write("constants", *constants_of_all_kinds())
    write("weights_at_run_time", *weights_at_run_time())
    write("parallel", *two_in_parallel())
    for op, seed in [("LSTM", 30), ("GRU", 31), ("RNN", 32)]:
        write(f"everything_{op.lower()}", *every_attribute(op, seed))
        write(f"everything_{op.lower()}_batch_major", *every_attribute(op, seed, layout=1))
    # The names tell which compatibility their numbers are for.
    for kind in ("clip", "defaults"):
        write(f"{kind}_onnxruntime", *departures(kind))
    external()
    write("decomposed", *decomposed())
    write("lengths_int64", *wide_integers())
    write("float16_weights", *half_weights())
    write("first_version", *first_version())
    around_recurrent_nodes()
    hostile()


if __name__ == "__main__":
    main()
