#!/usr/bin/env python3
"""Random graphs of common operators and recurrent nodes through `lstm run`, against onnxruntime.

    python tests/onnx/random_graphs.py target/release/lstm [--count 1000] [--seed 1] [--keep FOLDER]

A graph has 3 to 25 nodes, tensors of several types and shapes, fixed or symbolic axes, constants, values that are read
several times or are outputs as well, and now and then an LSTM, GRU or RNN. It counts only if onnxruntime runs it. Graphs
that differ, or are refused though onnxruntime runs them, are printed with their seed and kept if a folder is given. The
exit code is 1 if one differs or ends in another way than with an error.

Needs onnx, onnxruntime and numpy (tools/requirements.txt).
"""

import argparse
import collections
import concurrent.futures
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

FLOATS = (np.float32, np.float64)
INTEGERS = (np.int64, np.int32)


class Graph:
    """A graph that grows; every value has its array, so that shapes and types are known."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.opset = int(self.rng.choice([11, 12, 13, 14, 16, 17, 18, 20, 21, 22]))
        self.nodes, self.constants, self.values = [], [], {}
        self.inputs = []
        for i in range(int(self.rng.integers(1, 4))):
            kind = self.rng.choice(["f", "f", "f", "i", "d"])
            shape = tuple(int(n) for n in self.rng.integers(1, 6, size=self.rng.integers(1, 5)))
            self.inputs.append(f"x{i}")
            self.values[f"x{i}"] = self.array(shape, {"f": np.float32, "i": np.int64, "d": np.float64}[kind])

    def array(self, shape, dtype):
        if dtype in FLOATS:
            return self.rng.normal(size=shape).astype(dtype)
        if dtype is np.bool_:
            return self.rng.integers(0, 2, size=shape).astype(bool)
        return self.rng.integers(-4, 5, size=shape).astype(dtype)

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def pick(self, dtypes, rank=None):
        """A value of these types, or None."""
        names = [
            n for n, a in self.values.items()
            if a.dtype.type in dtypes and (rank is None or a.ndim in rank) and 0 < a.size < 4000
        ]
        return str(self.rng.choice(names)) if names else None

    def add(self, op, inputs, outputs=1, **attributes):
        """Appends a node; the arrays come from onnxruntime, of this node alone."""
        names = [f"v{len(self.nodes)}_{k}" for k in range(outputs)]
        node = helper.make_node(op, inputs, names, name=f"n{len(self.nodes)}", **attributes)
        known = {n: self.values[n] for n in inputs if n in self.values}
        constants = [c for c in self.constants if c.name in inputs]
        graph = helper.make_graph(
            [node], "one", [value_info(n, a, False) for n, a in known.items()],
            [helper.make_empty_tensor_value_info(n) for n in names], constants,
        )
        arrays = evaluate(self.model_of(graph), known)
        self.nodes.append(node)
        self.values.update(zip(names, arrays))

    def model_of(self, graph):
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def model(self):
        """The whole model with some of its values as outputs."""
        made = [n for node in self.nodes for n in node.output if n]
        chosen = {made[-1], *(str(n) for n in self.rng.choice(made, size=min(2, len(made))))}
        if self.constants and self.rng.random() < 0.1:
            constant = self.constants[int(self.rng.integers(len(self.constants)))]
            chosen.add(constant.name)
            self.values[constant.name] = numpy_helper.to_array(constant)
        symbolic = bool(self.rng.integers(2))
        nodes = list(self.nodes)
        graph = helper.make_graph(
            nodes, "random", [value_info(n, self.values[n], symbolic) for n in self.inputs],
            [value_info(n, self.values[n], symbolic) for n in sorted(chosen)], self.constants,
        )
        return self.model_of(graph)


def value_info(name, array, symbolic):
    shape = [f"{name}_{i}" if symbolic and n > 1 else n for i, n in enumerate(array.shape)]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)


def evaluate(model, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def grow(g):
    """Adds one node of a random kind."""
    rng = g.rng
    axis = lambda a: int(rng.integers(-a.ndim, a.ndim))  # noqa: E731
    kind = str(rng.choice(list(KINDS)))
    KINDS[kind](g, rng, axis)


def unary(g, rng, _):
    name = g.pick((np.float32,))
    op = rng.choice(["Relu", "Tanh", "Sigmoid", "Abs", "Neg", "Exp", "Erf", "Floor", "Ceil", "Round", "Softplus", "Sin", "Cos"])
    g.add(str(op), [name])


def unary_any(g, rng, _):
    name = g.pick(FLOATS + INTEGERS)
    g.add(str(rng.choice(["Abs", "Neg", "Sign", "Identity"])), [name])


def activation(g, rng, _):
    op, attributes = [
        ("LeakyRelu", {"alpha": 0.1}), ("Elu", {"alpha": 0.7}), ("HardSigmoid", {}), ("Selu", {}),
        ("ThresholdedRelu", {"alpha": 0.3}), ("Softsign", {}), ("Celu", {"alpha": 0.8}),
    ][rng.integers(7)]
    g.add(op, [g.pick((np.float32,))], **attributes)


def binary(g, rng, _):
    name = g.pick(FLOATS + INTEGERS)
    a = g.values[name]
    same = [n for n, b in g.values.items() if b.dtype == a.dtype and compatible(a.shape, b.shape)]
    other = str(rng.choice(same))
    if rng.random() < 0.5:
        shape = tuple(n if rng.random() < 0.6 else 1 for n in a.shape)[int(rng.integers(0, a.ndim + 1)):]
        other = g.constant(g.array(shape, a.dtype.type) + (5 if a.dtype.kind == "i" else 0))
    op = str(rng.choice(["Add", "Sub", "Mul", "Div", "Max", "Min"]))
    if op == "Div" and a.dtype.kind == "i" and other in g.values and (g.values[other] == 0).any():
        op = "Sub"
    g.add(op, [name, other])


def compatible(a, b):
    return all(x == y or 1 in (x, y) for x, y in zip(a[::-1], b[::-1]))


def compare(g, rng, _):
    name = g.pick(FLOATS + INTEGERS)
    other = g.constant(g.array((1,), g.values[name].dtype.type))
    ops = ["Greater", "Less", "Equal"] + (["GreaterOrEqual", "LessOrEqual"] if g.opset >= 12 else [])
    g.add(str(rng.choice(ops)), [name, other])


def logic(g, rng, _):
    name = g.pick((np.bool_,))
    if name is None:
        return compare(g, rng, _)
    g.add(str(rng.choice(["Not", "And", "Or", "Xor"])) if False else "Not", [name])


def where(g, rng, _):
    name = g.pick(FLOATS + INTEGERS)
    a = g.values[name]
    condition = g.constant(g.array(a.shape, np.bool_))
    g.add("Where", [condition, name, g.constant(g.array((1,), a.dtype.type))])


def cast(g, rng, _):
    name = g.pick(FLOATS + INTEGERS + (np.bool_,))
    to = [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL][rng.integers(5)]
    g.add("Cast", [name], to=to)


def reduce(g, rng, axis):
    name = g.pick((np.float32,))
    a = g.values[name]
    op = str(rng.choice(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd"]))
    axes = [axis(a)]
    keep = int(rng.integers(2))
    if (op == "ReduceSum" and g.opset >= 13) or g.opset >= 18:
        g.add(op, [name, g.constant(np.array(axes, "i8"))], keepdims=keep)
    else:
        g.add(op, [name], axes=axes, keepdims=keep)


def arg(g, rng, axis):
    name = g.pick((np.float32,) + INTEGERS)
    a = g.values[name]
    attributes = {"select_last_index": int(rng.integers(2))} if g.opset >= 12 else {}
    g.add(str(rng.choice(["ArgMax", "ArgMin"])), [name], axis=axis(a), keepdims=int(rng.integers(2)), **attributes)


def softmax(g, rng, axis):
    name = g.pick((np.float32,))
    g.add(str(rng.choice(["Softmax", "LogSoftmax"])), [name], axis=axis(g.values[name]))


def transpose(g, rng, _):
    name = g.pick(FLOATS + INTEGERS + (np.bool_,))
    g.add("Transpose", [name], perm=[int(i) for i in rng.permutation(g.values[name].ndim)])


def reshape(g, rng, _):
    name = g.pick(FLOATS + INTEGERS)
    a = g.values[name]
    cut = int(rng.integers(0, a.ndim + 1))
    shape = [int(np.prod(a.shape[:cut], dtype=int)), -1] if a.size else [-1]
    g.add("Reshape", [name, g.constant(np.array(shape, "i8"))])


def reshape_by_shape(g, rng, _):
    """The chain that exporters write: Shape, Gather, Concat, Reshape."""
    name = g.pick((np.float32,), rank=(2, 3, 4))
    if name is None:
        return
    g.add("Shape", [name])
    shape = g.nodes[-1].output[0]
    g.add("Gather", [shape, g.constant(np.array([0], "i8"))], axis=0)
    g.add("Concat", [g.nodes[-1].output[0], g.constant(np.array([-1], "i8"))], axis=0)
    g.add("Reshape", [name, g.nodes[-1].output[0]])


def expand(g, rng, _):
    name = g.pick(FLOATS + INTEGERS)
    a = g.values[name]
    g.add("Expand", [name, g.constant(np.array([int(rng.integers(1, 3)), *a.shape], "i8"))])


def tile(g, rng, _):
    name = g.pick(FLOATS + INTEGERS)
    g.add("Tile", [name, g.constant(rng.integers(1, 3, size=g.values[name].ndim).astype("i8"))])


def squeeze(g, rng, axis):
    name = g.pick(FLOATS + INTEGERS)
    a = g.values[name]
    place = int(rng.integers(0, a.ndim + 1))
    if g.opset >= 13:
        g.add("Unsqueeze", [name, g.constant(np.array([place], "i8"))])
    else:
        g.add("Unsqueeze", [name], axes=[place])


def slice_(g, rng, _):
    name = g.pick(FLOATS + INTEGERS + (np.bool_,))
    a = g.values[name]
    at = int(rng.integers(0, a.ndim))
    n = a.shape[at]
    step = int(rng.choice([1, 1, 2, -1]))
    start, end = (int(rng.integers(0, n)), n) if step > 0 else (-1, -n - 1)
    of = lambda v: g.constant(np.array([v], "i8"))  # noqa: E731
    g.add("Slice", [name, of(start), of(end), of(at), of(step)])


def concat(g, rng, axis):
    name = g.pick(FLOATS + INTEGERS)
    a = g.values[name]
    same = [n for n, b in g.values.items() if b.shape == a.shape and b.dtype == a.dtype]
    g.add("Concat", [name, str(rng.choice(same))], axis=axis(a))


def split(g, rng, axis):
    name = g.pick(FLOATS + INTEGERS)
    a = g.values[name]
    at = int(rng.integers(0, a.ndim))
    if a.shape[at] < 2:
        return
    first = int(rng.integers(1, a.shape[at]))
    sizes = [first, a.shape[at] - first]
    if g.opset >= 13:
        g.add("Split", [name, g.constant(np.array(sizes, "i8"))], outputs=2, axis=at)
    else:
        g.add("Split", [name], outputs=2, axis=at, split=sizes)


def gather(g, rng, _):
    name = g.pick(FLOATS + INTEGERS)
    a = g.values[name]
    at = int(rng.integers(0, a.ndim))
    indices = rng.integers(-a.shape[at], a.shape[at], size=rng.integers(1, 4)).astype("i8")
    g.add("Gather", [name, g.constant(indices)], axis=at)


def pad(g, rng, _):
    name = g.pick((np.float32,))
    a = g.values[name]
    mode = str(rng.choice(["constant", "edge", "reflect"]))
    pads = rng.integers(0, 2, size=2 * a.ndim)
    if mode == "reflect":
        pads = np.minimum(pads, np.array([n - 1 for n in a.shape] * 2))
    g.add("Pad", [name, g.constant(pads.astype("i8"))], mode=mode)


def matmul(g, rng, _):
    name = g.pick(FLOATS, rank=(1, 2, 3, 4))
    a = g.values[name]
    columns = int(rng.integers(1, 5))
    shape = [(a.shape[-1],), (a.shape[-1], columns)][rng.integers(2)]
    g.add("MatMul", [name, g.constant(g.array(shape, a.dtype.type))])


def gemm(g, rng, _):
    name = g.pick((np.float32,), rank=(2,))
    if name is None:
        return
    a = g.values[name]
    transposed = int(rng.integers(2))
    shape = (4, a.shape[1]) if transposed else (a.shape[1], 4)
    g.add(
        "Gemm", [name, g.constant(g.array(shape, np.float32)), g.constant(g.array((4,), np.float32))],
        transB=transposed, alpha=0.5, beta=float(rng.choice([1.0, 2.0])),
    )


def conv(g, rng, _):
    name = g.pick((np.float32,), rank=(3, 4))
    if name is None:
        return
    a = g.values[name]
    axes = a.ndim - 2
    kernel = [int(rng.integers(1, min(4, n + 1))) for n in a.shape[2:]]
    attributes = {}
    if rng.random() < 0.5:
        attributes["pads"] = [int(rng.integers(0, k)) for k in kernel] * 2
    elif rng.random() < 0.5:
        attributes["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    if rng.random() < 0.5:
        attributes["strides"] = [int(rng.integers(1, 3)) for _ in range(axes)]
    weights = g.array((3, a.shape[1], *kernel), np.float32)
    bias = [g.constant(g.array((3,), np.float32))] if rng.random() < 0.7 else []
    g.add("Conv", [name, g.constant(weights), *bias], **attributes)


def conv_transpose(g, rng, _):
    name = g.pick((np.float32,), rank=(3, 4))
    if name is None:
        return
    a = g.values[name]
    axes = a.ndim - 2
    kernel = [int(rng.integers(1, 4)) for _ in range(axes)]
    attributes = {"strides": [int(rng.integers(1, 3)) for _ in range(axes)]} if rng.random() < 0.6 else {}
    g.add("ConvTranspose", [name, g.constant(g.array((a.shape[1], 2, *kernel), np.float32))], **attributes)


def pool(g, rng, _):
    name = g.pick((np.float32,), rank=(3, 4))
    if name is None:
        return
    a = g.values[name]
    kernel = [int(rng.integers(1, min(4, n + 1))) for n in a.shape[2:]]
    attributes = {"kernel_shape": kernel}
    if rng.random() < 0.5:
        attributes["strides"] = [int(rng.integers(1, 3)) for _ in kernel]
    if rng.random() < 0.3:
        attributes["pads"] = [int(rng.integers(0, k)) for k in kernel] * 2
    if rng.random() < 0.3:
        attributes["ceil_mode"] = 1
    op = str(rng.choice(["MaxPool", "AveragePool"]))
    g.add(op, [name], **attributes)


def norm(g, rng, _):
    name = g.pick((np.float32,), rank=(3, 4))
    if name is None:
        return
    c = g.values[name].shape[1]
    of = lambda: g.constant(g.array((c,), np.float32))  # noqa: E731
    if rng.random() < 0.5:
        g.add("InstanceNormalization", [name, of(), of()])
    else:
        variance = g.constant(np.abs(g.array((c,), np.float32)) + 0.1)
        g.add("BatchNormalization", [name, of(), of(), of(), variance])


def layer_norm(g, rng, _):
    name = g.pick((np.float32,))
    if g.opset < 17:
        return
    n = g.values[name].shape[-1]
    g.add("LayerNormalization", [name, g.constant(g.array((n,), np.float32)), g.constant(g.array((n,), np.float32))], axis=-1)


def clip(g, rng, _):
    name = g.pick((np.float32,))
    g.add("Clip", [name, g.constant(np.float32(-0.5)), g.constant(np.float32(0.7))])


def cumsum(g, rng, _):
    name = g.pick(FLOATS + INTEGERS)
    at = int(rng.integers(0, g.values[name].ndim))
    g.add("CumSum", [name, g.constant(np.int64(at))], exclusive=int(rng.integers(2)), reverse=int(rng.integers(2)))


def top_k(g, rng, axis):
    name = g.pick((np.float32,))
    a = g.values[name]
    at = int(rng.integers(0, a.ndim))
    k = int(rng.integers(1, a.shape[at] + 1))
    g.add("TopK", [name, g.constant(np.array([k], "i8"))], outputs=2, axis=at, largest=int(rng.integers(2)))


def recurrent(g, rng, _):
    name = g.pick((np.float32,), rank=(3,))
    if name is None:
        return
    t, b, i = g.values[name].shape
    op, gates = [("LSTM", 4), ("GRU", 3), ("RNN", 1)][rng.integers(3)]
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    d, h = (2 if direction == "bidirectional" else 1), int(rng.integers(1, 5))
    of = lambda *shape: g.constant(g.array(shape, np.float32))  # noqa: E731
    attributes = {"linear_before_reset": int(rng.integers(2))} if op == "GRU" else {}
    g.add(
        op, [name, of(d, gates * h, i), of(d, gates * h, h), of(d, 2 * gates * h)],
        outputs=2, hidden_size=h, direction=direction, **attributes,
    )


KINDS = {
    f.__name__: f
    for f in (
        unary, unary_any, activation, binary, compare, logic, where, cast, reduce, arg, softmax, transpose, reshape,
        reshape_by_shape, expand, tile, squeeze, slice_, concat, split, gather, pad, matmul, gemm, conv, conv_transpose,
        pool, norm, layer_norm, clip, cumsum, top_k, recurrent, recurrent,
    )
}


def usable(array):
    """Whether numbers can be compared: a cast of what is not finite is anyone's, huge ones overflow by order of sums."""
    return array.dtype.kind not in "f" or (np.isfinite(array).all() and (np.abs(array) < 1e6).all())


def build(seed):
    g = Graph(seed)
    for _ in range(int(g.rng.integers(3, 26))):
        state = g.rng.bit_generator.state
        before = len(g.nodes)
        try:
            grow(g)
        except Exception:  # noqa: BLE001 - onnxruntime refuses the node, or there is no value for it
            g.rng.bit_generator.state = state
            g.rng.integers(2)
        for node in g.nodes[before:]:
            if not all(usable(g.values[n]) for n in node.output):
                del g.nodes[before:]
                g.values = {n: a for n, a in g.values.items() if n in g.inputs or any(n in k.output for k in g.nodes)}
                break
    return g if g.nodes else None


def judge(seed, lstm, keep):
    g = build(seed)
    if g is None:
        return seed, "empty", ""
    model = g.model()
    feeds = {n: g.values[n] for n in g.inputs}
    try:
        expected = dict(zip([o.name for o in model.graph.output], evaluate(model, feeds)))
    except Exception:  # noqa: BLE001
        return seed, "not run by onnxruntime", ""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        onnx.save(model, folder / "model.onnx")
        np.savez(folder / "in.npz", **feeds)
        command = [lstm, "run", folder / "model.onnx", "-i", folder / "in.npz", "-o", folder / "out.npz", "-q"]
        try:
            done = subprocess.run(
                [*command, "--device", "cpu"], capture_output=True, text=True, timeout=60, check=False
            )
        except subprocess.TimeoutExpired:
            done = None
        if done is None:
            outcome, reason = "WRONG", "does not end"
        elif done.returncode == 1:
            outcome, reason = "refused", done.stderr.strip().replace(str(folder), "")
        elif done.returncode:
            outcome, reason = "WRONG", f"exit code {done.returncode}: {done.stderr.strip()[:200]}"
        else:
            with np.load(folder / "out.npz") as found:
                reason = next((r for n, w in expected.items() if (r := different(n, found[n], w))), "")
                if reason and by_reference(model, feeds, found):
                    return seed, "right, and onnxruntime is not", ""
            outcome = "WRONG" if reason else "right"
        if outcome in ("WRONG", "refused") and keep:
            target = pathlib.Path(keep) / f"{seed}"
            target.mkdir(parents=True, exist_ok=True)
            onnx.save(model, target / "model.onnx")
            np.savez(target / "in.npz", **feeds)
            np.savez(target / "exp.npz", **expected)
    return seed, outcome, reason


def by_reference(model, feeds, found):
    """Whether the numbers are those of ONNX's own evaluator: onnxruntime's fusions have faults of their own, such as a
    transposed double by a vector."""
    try:
        values = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # noqa: BLE001
        return False
    return all(different(o.name, found[o.name], np.asarray(v)) is None for o, v in zip(model.graph.output, values))


def different(name, got, want):
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{name}: expected {want.dtype} {want.shape}, found {got.dtype} {got.shape}"
    if want.dtype.kind == "f":
        scale = max(1.0, float(np.abs(want).max(initial=0)))
        if not np.allclose(got, want, rtol=1e-3, atol=1e-4 * scale):
            return f"{name}: differs by {np.abs(got.astype('f8') - want).max():.3g}"
    elif not np.array_equal(got, want):
        # Where a rounding decides an index or a whole number, a few may differ; more than a few may not.
        if (got != want).mean() > 0.02:
            return f"{name}: {int((got != want).sum())} of {want.size} differ"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lstm", help="the program")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", help="a folder for what is not right")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    counts = collections.Counter()
    seeds = range(options.seed, options.seed + options.count)
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        for seed, outcome, reason in pool.map(
            judge, seeds, [options.lstm] * options.count, [options.keep] * options.count, chunksize=8
        ):
            counts[outcome] += 1
            if outcome in ("WRONG", "refused"):
                print(f"{outcome}: seed {seed}: {reason}", flush=True)
    print(", ".join(f"{n} {what}" for what, n in counts.most_common()))
    sys.exit(1 if counts["WRONG"] or not counts["right"] else 0)


if __name__ == "__main__":
    main()
