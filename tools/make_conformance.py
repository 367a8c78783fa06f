"""Writes the conformance corpus, tests/data/conformance: cases of ONNX's LSTM, GRU and RNN, and of what ONNX lacks.

In:  nothing; every case follows from the tables and seeds below. Versions: tools/requirements.txt.
Out: {lstm,gru,rnn,stack}.json with the cases, .safetensors with the expected results, and the tables of README.md.

The judge is in here: numpy in float64, written from the text of the operators. It is compared with onnxruntime
wherever that follows the text, and where it does not, with a judge that departs from the text in the same way; and
with PyTorch in float64. A case is only written if every option it has changes its result by more than 1e-3, if its
states contract, and if nothing is saturated or near a jump; otherwise it is drawn again.

`--check` writes nothing and compares with the files. Floating point differs in last bits between machines, so
results are compared to 1e-12 and tolerances to a factor of two.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save

import conformance
from conformance import DEFAULT_ACTIVATIONS, FUNCTIONS, Case, Refused, materialise

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "data" / "conformance"
# Where the text names an operator, that operator's defaults; ScaledTanh and Affine without scaling.
DEFAULTS = {
    "Affine": (1.0, 0.0),
    "LeakyRelu": (0.01, None),
    "ThresholdedRelu": (1.0, None),
    "ScaledTanh": (1.0, 1.0),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, None),
}
# What the cases give, before the small shift of each place; multiples of 1/64, exact in f32.
PARAMETERS = {
    "Affine": (0.375, 0.25),
    "LeakyRelu": (0.25, None),
    "ThresholdedRelu": (0.125, None),
    "ScaledTanh": (0.75, 0.875),
    "HardSigmoid": (0.375, 0.4375),
    "Elu": (0.625, None),
}

EFFECT = 1e-3
# A float32 implementation may be off by 4 times the error of this one, plus this, relative to the larger of 1 and
# the result: activations of a few ulps, and sums in another order.
FLOOR = 32 * 2.0**-24
# onnxruntime computes in float32, with rational approximations of sigmoid and tanh.
ONNXRUNTIME_ERROR = 1e-5
PYTORCH_ERROR = 1e-13


# --- Arithmetic in either precision ------------------------------------------------------------------------------


class Arithmetic:
    """Products and functions in one precision."""

    def __init__(self, dtype):
        self.dtype = dtype

    def array(self, a):
        return np.asarray(a, dtype=self.dtype)

    def product(self, x, w):
        """x·wᵀ; in float32 term by term in order, so that it is the same on every machine."""
        if self.dtype == np.float64:
            return x @ w.T
        total = np.zeros((x.shape[0], w.shape[0]), dtype=self.dtype)
        for k in range(x.shape[1]):
            total += x[:, k : k + 1] * w[:, k]
        return total

    def function(self, name, alpha, beta, x, inclusive=True):
        alpha, beta = (None if v is None else self.dtype(np.float32(v)) for v in (alpha, beta))
        one = self.dtype(1)
        match name:
            case "Sigmoid":
                return one / (one + np.exp(-x))
            case "Tanh":
                return np.tanh(x)
            case "Relu":
                return np.maximum(x, 0)
            case "Affine":
                return alpha * x + beta
            case "LeakyRelu":
                return np.where(x >= 0, x, alpha * x)
            case "ThresholdedRelu":
                return np.where(x >= alpha if inclusive else x > alpha, x, self.dtype(0))
            case "ScaledTanh":
                return alpha * np.tanh(beta * x)
            case "HardSigmoid":
                return np.minimum(np.maximum(alpha * x + beta, 0), 1).astype(self.dtype)
            case "Elu":
                return np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0)))
            case "Softsign":
                return x / (one + np.abs(x))
            case "Softplus":
                return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)
        raise ValueError(name)


DOUBLE, SINGLE = Arithmetic(np.float64), Arithmetic(np.float32)


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How an implementation departs from the text; the default does not."""

    clip_of_h: bool = True  # clip also bounds C where it enters h
    threshold_inclusive: bool = True  # ThresholdedRelu keeps x = alpha
    defaults: bool = True  # activation_alpha and activation_beta default to those of the operators
    # Departures of nobody known; they are mistakes that the cases must tell apart.
    second_direction_forward: bool = False
    old_c_for_o: bool = False


TEXT = Dialect()
# Name in the files -> (dialect field, value, what the text says, what onnxruntime does)
DEPARTURES = {
    "clip_of_h": (
        False,
        "`clip` is applied to the input of activations; `h` is one of them",
        "does not clip C where it enters `h`",
    ),
    "threshold_inclusive": (
        False,
        "ThresholdedRelu keeps x ≥ alpha (the operator of this name: x > alpha)",
        "keeps x > alpha",
    ),
    "defaults": (
        False,
        "alpha and beta default to those of the operators; 1, and 1 and 0, for ThresholdedRelu, ScaledTanh, Affine",
        "0 for ThresholdedRelu, ScaledTanh and Affine",
    ),
}
REFUSALS = {
    "layout": ("`layout` = 1 has the batch first", "refused; checked with the axes exchanged outside"),
    "hidden_size": ("`hidden_size` may be left out", "refused; checked with the attribute"),
    "spelling": (
        "names of functions are as in the text; it is silent about upper and lower case",
        "takes any case in LSTM and GRU, refuses in RNN; checked with the names of the text",
    ),
}


def functions_of(operator, attributes, directions, dialect=TEXT):
    """(name, alpha, beta) per direction and role; alpha and beta are taken in order by those that have one."""
    default = DEFAULT_ACTIVATIONS[operator]
    names = attributes.get("activations", default * directions)
    alphas, betas = (iter(attributes.get(f"activation_{key}", [])) for key in ("alpha", "beta"))
    known = {name.lower(): name for name in FUNCTIONS}
    found = []
    for name in (known[n.lower()] for n in names):
        alpha, beta = DEFAULTS.get(name, (None, None))
        if not dialect.defaults and name in ("Affine", "ThresholdedRelu", "ScaledTanh"):
            alpha, beta = (None if v is None else 0.0 for v in (alpha, beta))
        alpha = alpha if alpha is None else next(alphas, alpha)
        beta = beta if beta is None else next(betas, beta)
        found.append((name, alpha, beta))
    roles = len(default)
    return [found[d * roles : (d + 1) * roles] for d in range(directions)]


# --- The judge of the ONNX operators -----------------------------------------------------------------------------


def judge_onnx(operator, attributes, inputs, arithmetic=DOUBLE, dialect=TEXT, trace=None):
    """All outputs of the operator. `trace` collects (role, function, what it was applied to)."""
    batch_major = attributes.get("layout", 0) == 1
    # [T, B, I], [D, B, H]
    to_text = lambda a: a.swapaxes(0, 1) if batch_major else a
    x = arithmetic.array(to_text(inputs["X"]))
    steps, batch = x.shape[:2]
    w, r = arithmetic.array(inputs["W"]), arithmetic.array(inputs["R"])
    directions, hidden = w.shape[0], r.shape[2]
    gates = w.shape[1] // hidden
    zeros = lambda *shape: np.zeros(shape, dtype=arithmetic.dtype)
    given = lambda name, *shape: arithmetic.array(inputs[name]) if name in inputs else zeros(*shape)
    state = lambda name: to_text(arithmetic.array(inputs[name])) if name in inputs else zeros(directions, batch, hidden)
    b = given("B", directions, 2 * gates * hidden)
    p = given("P", directions, 3 * hidden)
    lengths = inputs.get("sequence_lens", np.full(batch, steps))
    h_0, c_0 = state("initial_h"), state("initial_c")
    functions = functions_of(operator, attributes, directions, dialect)
    clip = attributes.get("clip")
    clip = np.inf if clip is None else arithmetic.dtype(np.float32(clip))

    y = zeros(steps, directions, batch, hidden)
    y_h, y_c = zeros(directions, batch, hidden), zeros(directions, batch, hidden)
    for d in range(directions):
        reverse = attributes.get("direction") == "reverse" or (d == 1 and not dialect.second_direction_forward)
        wb, rb = b[d][: gates * hidden], b[d][gates * hidden :]
        part = lambda a, gate: a[gate * hidden : (gate + 1) * hidden]

        def activate(role, z, mask, clipped=True):
            name, alpha, beta = functions[d]["fgh".index(role)]
            if trace is not None:
                trace.append((role, (name, alpha, beta), z[mask], clipped))
            bounded = np.clip(z, -clip, clip) if clipped else z
            return arithmetic.function(name, alpha, beta, bounded, dialect.threshold_inclusive)

        h, c = h_0[d], c_0[d]
        for t in reversed(range(steps)) if reverse else range(steps):
            valid = t < lengths
            xt = np.where(valid[:, None], x[t], 0).astype(arithmetic.dtype)
            product = lambda gate: arithmetic.product(xt, part(w[d], gate))
            recurrent = lambda gate, h: arithmetic.product(h, part(r[d], gate))
            if operator == "LSTM":
                i, o, f, g = range(4)
                peephole = lambda gate, c: part(p[d], gate) * c  # the order of P is i o f
                pre = lambda gate: product(gate) + recurrent(gate, h) + (part(wb, gate) + part(rb, gate))
                it = activate("f", pre(i) + peephole(i, c), valid)
                if attributes.get("input_forget", 0):
                    ft = 1 - it
                else:
                    ft = activate("f", pre(f) + peephole(f, c), valid)
                new_c = ft * c + it * activate("g", pre(g), valid)
                ot = activate("f", pre(o) + peephole(o, c if dialect.old_c_for_o else new_c), valid)
                new_h = ot * activate("h", new_c, valid, dialect.clip_of_h)
            elif operator == "GRU":
                z, r_, n = range(3)
                pre = lambda gate: product(gate) + recurrent(gate, h) + (part(wb, gate) + part(rb, gate))
                zt = activate("f", pre(z), valid)
                rt = activate("f", pre(r_), valid)
                if attributes.get("linear_before_reset", 0):
                    candidate = product(n) + rt * (recurrent(n, h) + part(rb, n)) + part(wb, n)
                else:
                    candidate = product(n) + recurrent(n, rt * h) + part(rb, n) + part(wb, n)
                new_h, new_c = (1 - zt) * activate("g", candidate, valid) + zt * h, c
            else:
                new_h, new_c = activate("f", product(0) + recurrent(0, h) + (wb + rb), valid), c
            h = np.where(valid[:, None], new_h, h)
            c = np.where(valid[:, None], new_c, c)
            y[t, d] = np.where(valid[:, None], h, 0)
        # The text is silent about a sequence of length 0; zero is what onnxruntime gives.
        some = (lengths > 0)[:, None]
        y_h[d], y_c[d] = np.where(some, h, 0), np.where(some, c, 0)
    outputs = {"Y": y.transpose(2, 0, 1, 3) if batch_major else y, "Y_h": to_text(y_h)}
    return outputs | ({"Y_c": to_text(y_c)} if operator == "LSTM" else {})


# --- The judge of stacks and of what ONNX lacks ------------------------------------------------------------------


def cells_of(layers):
    """(layer index, layer, suffix of names, whether it runs in reverse) of every cell."""
    for n, layer in enumerate(layers):
        if layer["direction"] != "reverse":
            yield n, layer, f"_l{n}", False
        if layer["direction"] != "forward":
            # A layer of one direction has plain names whichever it is.
            yield n, layer, f"_l{n}_reverse" if layer["direction"] == "bidirectional" else f"_l{n}", True


def judge_stack(attributes, inputs, arithmetic=DOUBLE, dialect=TEXT, trace=None):
    """All outputs of a stack: output, cells, and h_n and c_n of every cell. One sequence at a time."""
    batch, steps = inputs["X"].shape[:2]
    layers = attributes["layers"]
    lengths = inputs.get("sequence_lens", np.full(batch, steps))
    rows_of = [arithmetic.array(inputs["X"][b, : lengths[b]]) for b in range(batch)]
    outputs = {}
    last_cells = None
    for n, layer in enumerate(layers):
        sides, cell_sides = [], []
        for _, _, suffix, reverse in (c for c in cells_of(layers) if c[0] == n):
            backwards = reverse and not (dialect.second_direction_forward and suffix.endswith("_reverse"))
            tensors = {
                key: arithmetic.array(inputs[key + suffix])
                for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "bias_hr",
                            "weight_peephole", "weight_norm", "h_0", "c_0")
                if key + suffix in inputs
            }  # fmt: skip
            width, hidden = layer.get("projection_size") or layer["hidden_size"], layer["hidden_size"]
            side, cell_side, h_n, c_n = [], [], [], []
            for b in range(batch):
                h = tensors["h_0"][b] if "h_0" in tensors else np.zeros(width, arithmetic.dtype)
                c = tensors["c_0"][b] if "c_0" in tensors else np.zeros(hidden, arithmetic.dtype)
                states = [None] * lengths[b]
                for t in reversed(range(lengths[b])) if backwards else range(lengths[b]):
                    h, c = step(layer, tensors, rows_of[b][t], h, c, arithmetic, trace)
                    states[t] = (h, c)
                side.append(np.array([s[0] for s in states], arithmetic.dtype).reshape(-1, width))
                cell_side.append(np.array([s[1] for s in states], arithmetic.dtype).reshape(-1, hidden))
                h_n.append(h)
                c_n.append(c)
            sides.append(side)
            cell_sides.append(cell_side)
            outputs["h_n" + suffix] = np.array(h_n)
            if layer["cell"] == "LSTM":
                outputs["c_n" + suffix] = np.array(c_n)
        merge = sum if layer["merge"] == "sum" else lambda parts: np.concatenate(parts, axis=-1)
        rows_of = [merge([side[b] for side in sides]) for b in range(batch)]
        last_cells = [np.concatenate([side[b] for side in cell_sides], axis=-1) for b in range(batch)]
    pad = lambda rows: np.stack([np.pad(row, ((0, steps - len(row)), (0, 0))) for row in rows])
    outputs["output"] = pad(rows_of)
    if layers[-1]["cell"] == "LSTM":
        outputs["cells"] = pad(last_cells)
    return outputs


def step(layer, tensors, x, h, c, arithmetic, trace):
    """One timestep of one sequence and cell, gates in PyTorch's order: i f g o, r z n, or one."""
    hidden = layer["hidden_size"]
    clip = layer.get("activation_clip")
    clip = np.inf if clip is None else arithmetic.dtype(clip)
    zero = np.zeros(1, arithmetic.dtype)
    gate = lambda name, k: tensors[name][k * hidden : (k + 1) * hidden] if name in tensors else zero
    times = lambda name, k, v: arithmetic.product(v[None], gate(name, k))[0]

    def activate(role, name, z):
        if trace is not None:
            trace.append((role, (name, None, None), z[None], True))
        return arithmetic.function(name, None, None, np.clip(z, -clip, clip))

    if layer["cell"] == "RNN":
        z = times("weight_ih", 0, x) + times("weight_hh", 0, h) + (gate("bias_ih", 0) + gate("bias_hh", 0))
        return activate("f", layer.get("activation", "Tanh"), z), c
    if layer["cell"] == "GRU":
        sigma = lambda k: activate(
            "f",
            "Sigmoid",
            times("weight_ih", k, x) + times("weight_hh", k, h) + (gate("bias_ih", k) + gate("bias_hh", k)),
        )
        reset, update = sigma(0), sigma(1)
        from_x = times("weight_ih", 2, x) + gate("bias_ih", 2)
        if layer["linear_before_reset"]:
            new = activate("g", "Tanh", from_x + reset * (times("weight_hh", 2, h) + gate("bias_hh", 2)))
        else:
            new = activate("g", "Tanh", from_x + times("weight_hh", 2, reset * h) + gate("bias_hh", 2))
        return (1 - update) * new + update * h, c

    def pre(k, peephole=None, cell=None):
        z = times("weight_ih", k, x) + times("weight_hh", k, h)
        if "weight_peephole" in tensors and peephole is not None:
            z = z + tensors["weight_peephole"][peephole] * cell
        bias = gate("bias_ih", k) + gate("bias_hh", k)
        if layer.get("layer_norm"):
            # NNAPI: the gate's sum to mean 0 and variance 1 over its units, scaled; then the bias.
            deviation = z - z.mean(dtype=arithmetic.dtype)
            variance = (deviation * deviation).mean(dtype=arithmetic.dtype)
            z = deviation / np.sqrt(variance + arithmetic.dtype(np.float32(1e-8))) * tensors["weight_norm"][k]
        return z + bias

    i = activate("f", "Sigmoid", pre(0, 0, c))
    f = 1 - i if layer.get("coupled_input_forget") else activate("f", "Sigmoid", pre(1, 1, c))
    c = f * c + i * activate("g", "Tanh", pre(2))
    if layer.get("cell_clip"):
        if trace is not None:
            trace.append(("cell_clip", layer["cell_clip"], c[None], False))
        c = np.clip(c, -arithmetic.dtype(layer["cell_clip"]), arithmetic.dtype(layer["cell_clip"]))
    o = activate("f", "Sigmoid", pre(3, 2, c))
    h = o * activate("h", "Tanh", c)
    if "weight_hr" in tensors:
        h = arithmetic.product(h[None], tensors["weight_hr"])[0] + tensors.get("bias_hr", zero)
    return h, c


def judge(record, attributes, inputs, *args, **kwargs):
    if record["operator"] == "Stack":
        return judge_stack(attributes, inputs, *args, **kwargs)
    return judge_onnx(record["operator"], attributes, inputs, *args, **kwargs)


# --- PyTorch in float64 ------------------------------------------------------------------------------------------

# ONNX's gates in PyTorch's order.
PERMUTATION = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}


def module_run(cell, nonlinearity, x, lengths, cells, h_0, c_0, bidirectional, reverse, projection=0):
    """PyTorch's module over x [B, T, I] of one layer; all lengths ≥ 1. Returns output [B, T, D·H], h_n, c_n [D, B, H]."""
    x = torch.tensor(np.asarray(x, dtype=np.float64))
    if reverse:
        x = flip(x, lengths)
    sizes = x.shape[2], cells[0]["weight_hh"].shape[0] // {"LSTM": 4, "GRU": 3, "RNN": 1}[cell]
    options = dict(batch_first=True, bidirectional=bidirectional, dtype=torch.float64, bias="bias_ih" in cells[0])
    if cell == "LSTM":
        module = torch.nn.LSTM(*sizes, proj_size=projection, **options)
    elif cell == "GRU":
        module = torch.nn.GRU(*sizes, **options)
    else:
        module = torch.nn.RNN(*sizes, nonlinearity=nonlinearity.lower(), **options)
    with torch.no_grad():
        for tensors, suffix in zip(cells, ("_l0", "_l0_reverse")):
            for key, value in tensors.items():
                parameter = getattr(module, key + suffix)
                assert parameter.shape == value.shape, (key, parameter.shape, value.shape)
                parameter.copy_(torch.tensor(np.asarray(value, dtype=np.float64)))
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        h_0, c_0 = (torch.tensor(np.asarray(s, dtype=np.float64)) for s in (h_0, c_0))
        output, state = module(packed, (h_0, c_0) if cell == "LSTM" else h_0)
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])
    if reverse:
        output = flip(output, lengths)
    h_n, c_n = state if cell == "LSTM" else (state, None)
    return output.numpy(), h_n.numpy(), None if c_n is None else c_n.numpy()


def flip(x, lengths):
    """Every sequence from its last valid step to its first."""
    flipped = x.clone()
    for b, length in enumerate(lengths):
        flipped[b, :length] = x[b, :length].flip(0)
    return flipped


def pytorch_onnx(record, attributes, inputs):
    """The outputs of the sequences that PyTorch accepts (length ≥ 1), with their indices; None if it has no module."""
    operator = record["operator"]
    directions = inputs["W"].shape[0]
    functions = functions_of(operator, attributes, directions)
    names = [[f[0] for f in side] for side in functions]
    plain = all(side == DEFAULT_ACTIVATIONS[operator] for side in names)
    if operator == "RNN":
        plain = names[0] == names[-1] and names[0][0] in ("Tanh", "Relu")
    if not plain or "clip" in attributes or "P" in inputs or attributes.get("input_forget", 0):
        return None
    if operator == "GRU" and not attributes.get("linear_before_reset", 0):
        return None
    batch_major = attributes.get("layout", 0) == 1
    x = inputs["X"] if batch_major else inputs["X"].swapaxes(0, 1)
    lengths = np.asarray(inputs.get("sequence_lens", np.full(x.shape[0], x.shape[1])))
    chosen = np.flatnonzero(lengths > 0)
    if len(chosen) == 0:
        return None
    hidden = inputs["R"].shape[2]
    order = PERMUTATION[operator]

    def reordered(a):
        return np.concatenate([a[g * hidden : (g + 1) * hidden] for g in order])

    cells = []
    for d in range(directions):
        cell = {"weight_ih": reordered(inputs["W"][d]), "weight_hh": reordered(inputs["R"][d])}
        if "B" in inputs:
            half = len(order) * hidden
            cell |= {"bias_ih": reordered(inputs["B"][d][:half]), "bias_hh": reordered(inputs["B"][d][half:])}
        cells.append(cell)

    def state(name):
        if name not in inputs:
            return np.zeros((directions, len(chosen), hidden))
        return (inputs[name].swapaxes(0, 1) if batch_major else inputs[name])[:, chosen]

    output, h_n, c_n = module_run(
        operator, names[0][0], x[chosen], torch.tensor(lengths[chosen]), cells, state("initial_h"), state("initial_c"),
        directions == 2, attributes.get("direction") == "reverse",
    )  # fmt: skip
    y = output.reshape(*output.shape[:2], directions, hidden)  # [B, T, D, H]
    found = {"Y": y if batch_major else y.transpose(1, 2, 0, 3)}
    found |= {"Y_h": h_n.swapaxes(0, 1) if batch_major else h_n}
    if c_n is not None:
        found["Y_c"] = c_n.swapaxes(0, 1) if batch_major else c_n
    axis = {"Y": 0 if batch_major else 2, "Y_h": 0 if batch_major else 1, "Y_c": 0 if batch_major else 1}
    return found, chosen, axis


def pytorch_function(name, alpha, beta):
    """A function of the operators in PyTorch's operations."""
    functional = torch.nn.functional
    alpha, beta = (None if v is None else float(np.float32(v)) for v in (alpha, beta))
    return {
        "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh,
        "Relu": torch.relu,
        "Affine": lambda x: alpha * x + beta,
        "LeakyRelu": lambda x: functional.leaky_relu(x, alpha),
        "ThresholdedRelu": lambda x: torch.where(x < alpha, 0, x),
        "ScaledTanh": lambda x: alpha * torch.tanh(beta * x),
        "HardSigmoid": lambda x: (alpha * x + beta).clamp(0, 1),
        "Elu": lambda x: functional.elu(x, alpha),
        "Softsign": functional.softsign,
        "Softplus": lambda x: functional.softplus(x, threshold=50),
    }[name]


def pytorch_rnn(attributes, inputs):
    """RNN in PyTorch's operations; as `pytorch_onnx`."""
    batch_major = attributes.get("layout", 0) == 1
    as_double = lambda a: torch.tensor(np.asarray(a, dtype=np.float64))
    x = as_double(inputs["X"] if batch_major else inputs["X"].swapaxes(0, 1))
    lengths = np.asarray(inputs.get("sequence_lens", np.full(x.shape[0], x.shape[1])))
    chosen = np.flatnonzero(lengths > 0)
    if len(chosen) == 0:
        return None
    x, lengths = x[chosen], torch.tensor(lengths[chosen])
    directions, hidden = inputs["W"].shape[0], inputs["R"].shape[2]
    clip = attributes.get("clip", math.inf)
    sides, states = [], []
    for d in range(directions):
        reverse = attributes.get("direction") == "reverse" or d == 1
        f = pytorch_function(*functions_of("RNN", attributes, directions)[d][0])
        bias = as_double(inputs["B"][d]).reshape(2, hidden) if "B" in inputs else [None, None]
        h = torch.zeros(len(chosen), hidden, dtype=torch.float64)
        if "initial_h" in inputs:
            h = as_double(inputs["initial_h"][:, d] if batch_major else inputs["initial_h"][d])[chosen]
        rows = torch.nn.functional.linear(flip(x, lengths) if reverse else x, as_double(inputs["W"][d]), bias[0])
        output = []
        for t in range(x.shape[1]):
            z = rows[:, t] + torch.nn.functional.linear(h, as_double(inputs["R"][d]), bias[1])
            valid = (t < lengths)[:, None]
            h = torch.where(valid, f(z.clamp(-clip, clip)), h)
            output.append(torch.where(valid, h, 0))
        side = torch.stack(output, 1)
        sides.append(flip(side, lengths) if reverse else side)
        states.append(h)
    y, h_n = torch.stack(sides, 2).numpy(), torch.stack(states).numpy()  # [B, T, D, H], [D, B, H]
    if batch_major:
        return {"Y": y, "Y_h": h_n.swapaxes(0, 1)}, chosen, {"Y": 0, "Y_h": 0}
    return {"Y": y.transpose(1, 2, 0, 3), "Y_h": h_n}, chosen, {"Y": 2, "Y_h": 1}


PLAIN_KEYS = {"cell", "input_size", "hidden_size", "direction", "merge", "bias", "projection_size", "activation"}


def pytorch_stack(attributes, inputs):
    """Layer by layer: PyTorch's module where there is one, otherwise the equations in PyTorch's operations."""
    layers = attributes["layers"]
    batch, steps = inputs["X"].shape[:2]
    lengths = np.asarray(inputs.get("sequence_lens", np.full(batch, steps)))
    chosen = np.flatnonzero(lengths > 0)
    lengths = torch.tensor(lengths[chosen])
    x = inputs["X"][chosen].astype(np.float64)
    found, kinds, cells = {}, set(), None
    for n, layer in enumerate(layers):
        members = [c for c in cells_of(layers) if c[0] == n]
        width, hidden = layer.get("projection_size") or layer["hidden_size"], layer["hidden_size"]
        zeros = lambda size: np.zeros((len(chosen), size))
        h_0 = [inputs["h_0" + s][chosen] if "h_0" + s in inputs else zeros(width) for _, _, s, _ in members]
        c_0 = [inputs["c_0" + s][chosen] if "c_0" + s in inputs else zeros(hidden) for _, _, s, _ in members]
        keys = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "bias_hr", "weight_peephole", "weight_norm")
        tensors = [{k: inputs[k + s] for k in keys if k + s in inputs} for _, _, s, _ in members]
        has_module = not set(layer) - PLAIN_KEYS - ({"linear_before_reset"} if layer.get("linear_before_reset") else set())
        if has_module:
            kinds.add("modules")
            output, h_n, c_n = module_run(
                layer["cell"], layer.get("activation", "Tanh"), x, lengths, tensors, np.stack(h_0), np.stack(c_0),
                layer["direction"] == "bidirectional", layer["direction"] == "reverse", layer.get("projection_size", 0),
            )  # fmt: skip
            sides = np.split(output, len(members), axis=-1)
            # Modules return no cells but the last.
            cells = None
        else:
            kinds.add("operations")
            runs = [
                operations_run(layer, t, x, lengths, h, c, reverse)
                for t, h, c, (_, _, _, reverse) in zip(tensors, h_0, c_0, members)
            ]
            sides = [run[0] for run in runs]
            h_n, c_n = [run[2] for run in runs], [run[3] for run in runs]
            cells = np.concatenate([run[1] for run in runs], axis=-1)
        for k, (_, _, suffix, _) in enumerate(members):
            found["h_n" + suffix] = h_n[k]
            if layer["cell"] == "LSTM":
                found["c_n" + suffix] = c_n[k]
        x = sides[0] + sides[1] if layer["merge"] == "sum" else np.concatenate(sides, axis=-1)
    found["output"] = x
    if cells is not None and layers[-1]["cell"] == "LSTM":
        found["cells"] = cells
    whole = uniform_module(layers, inputs, chosen, lengths)
    return found, chosen, kinds, whole


def operations_run(layer, tensors, x, lengths, h, c, reverse):
    """A cell with options in PyTorch's operations; all sequences at once, those that have ended are masked."""
    as_double = lambda a: torch.tensor(np.asarray(a, dtype=np.float64))
    tensors = {k: as_double(v) for k, v in tensors.items()}
    x, h, c = as_double(x), as_double(h), as_double(c)
    x = flip(x, lengths) if reverse else x
    hidden = layer["hidden_size"]
    clip = layer.get("activation_clip", math.inf)
    bound = lambda z: z.clamp(-clip, clip)
    linear = torch.nn.functional.linear
    outputs, cells = [], []
    for t in range(x.shape[1]):
        if layer["cell"] == "GRU":
            from_x = linear(x[:, t], tensors["weight_ih"], tensors.get("bias_ih")).chunk(3, -1)
            from_h = linear(h, tensors["weight_hh"], tensors.get("bias_hh")).chunk(3, -1)
            reset = bound(from_x[0] + from_h[0]).sigmoid()
            update = bound(from_x[1] + from_h[1]).sigmoid()
            if layer["linear_before_reset"]:
                inner = reset * from_h[2]
            else:
                bias = tensors["bias_hh"][2 * hidden :] if "bias_hh" in tensors else None
                inner = linear(reset * h, tensors["weight_hh"][2 * hidden :], bias)
            new_h, new_c = torch.lerp(bound(from_x[2] + inner).tanh(), h, update), c
        elif layer["cell"] == "RNN":
            z = linear(x[:, t], tensors["weight_ih"], tensors.get("bias_ih"))
            z = bound(z + linear(h, tensors["weight_hh"], tensors.get("bias_hh")))
            new_h, new_c = torch.relu(z) if layer.get("activation") == "Relu" else z.tanh(), c
        else:
            sums = list((x[:, t] @ tensors["weight_ih"].T + h @ tensors["weight_hh"].T).chunk(4, -1))
            zero = torch.zeros(4 * hidden, dtype=torch.float64)
            bias = (tensors.get("bias_ih", zero) + tensors.get("bias_hh", zero)).chunk(4)
            peephole = tensors.get("weight_peephole", torch.zeros(3, hidden, dtype=torch.float64))

            def finish(k):
                if not layer.get("layer_norm"):
                    return bound(sums[k] + bias[k])
                scale = tensors["weight_norm"][k]
                epsilon = float(np.float32(1e-8))
                return bound(torch.nn.functional.layer_norm(sums[k], (hidden,), scale, bias[k], eps=epsilon))

            sums[0] = sums[0] + peephole[0] * c
            sums[1] = sums[1] + peephole[1] * c
            i = finish(0).sigmoid()
            f = 1 - i if layer.get("coupled_input_forget") else finish(1).sigmoid()
            new_c = torch.addcmul(f * c, i, finish(2).tanh())
            if layer.get("cell_clip"):
                new_c = new_c.clamp(-layer["cell_clip"], layer["cell_clip"])
            sums[3] = sums[3] + peephole[2] * new_c
            new_h = finish(3).sigmoid() * bound(new_c).tanh()
            if "weight_hr" in tensors:
                new_h = linear(new_h, tensors["weight_hr"], tensors.get("bias_hr"))
        valid = (t < lengths)[:, None]
        h, c = torch.where(valid, new_h, h), torch.where(valid, new_c, c)
        outputs.append(torch.where(valid, h, 0))
        cells.append(torch.where(valid, c, 0))
    outputs, cells = torch.stack(outputs, 1), torch.stack(cells, 1)
    if reverse:
        outputs, cells = flip(outputs, lengths), flip(cells, lengths)
    return outputs.numpy(), cells.numpy(), h.numpy(), c.numpy()


def uniform_module(layers, inputs, chosen, lengths):
    """The whole stack as one module of PyTorch; None if it is no such stack."""
    first = layers[0]
    same = ("cell", "hidden_size", "direction", "merge", "bias", "projection_size", "activation", "linear_before_reset")
    if any(layer.get(k) != first.get(k) for layer in layers for k in same) or first["direction"] == "reverse":
        return None
    lbr = {"linear_before_reset"} if first.get("linear_before_reset") else set()
    if any(set(layer) - PLAIN_KEYS - lbr for layer in layers) or first["merge"] == "sum":
        return None
    options = dict(
        num_layers=len(layers), batch_first=True, bidirectional=first["direction"] == "bidirectional",
        bias=first["bias"], dtype=torch.float64,
    )  # fmt: skip
    if first["cell"] == "LSTM":
        options["proj_size"] = first.get("projection_size", 0)
    if first["cell"] == "RNN":
        options["nonlinearity"] = first.get("activation", "Tanh").lower()
    module = getattr(torch.nn, first["cell"])(first["input_size"], first["hidden_size"], **options)
    as_double = lambda a: torch.tensor(np.asarray(a, dtype=np.float64))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(as_double(inputs[name]))
        suffixes = [c[2] for c in cells_of(layers)]
        width = first.get("projection_size") or first["hidden_size"]
        state = lambda key, size: torch.stack(
            [
                as_double(inputs[key + s][chosen]) if key + s in inputs else torch.zeros(len(chosen), size).double()
                for s in suffixes
            ]
        )
        h_0, c_0 = state("h_0", width), state("c_0", first["hidden_size"])
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            as_double(inputs["X"][chosen]), lengths, batch_first=True, enforce_sorted=False
        )
        output, _ = module(packed, (h_0, c_0) if first["cell"] == "LSTM" else h_0)
        steps = inputs["X"].shape[1]
        return torch.nn.utils.rnn.pad_packed_sequence(output, batch_first=True, total_length=steps)[0].numpy()


# --- Pairwise choice of options ----------------------------------------------------------------------------------


def pairwise(factors, valid, seed):
    """Rows such that every two values of different options occur together, if any valid row has both.

    Returns the rows and the pairs that no valid row was found for."""
    rng = random.Random(seed)
    names = list(factors)
    pair = lambda a, b, row: (a, row[a], b, row[b])
    missing = {
        (a, x, b, y)
        for a, b in itertools.combinations(names, 2)
        for x in factors[a]
        for y in factors[b]
    }  # fmt: skip
    impossible = set()
    rows = []
    while missing - impossible:
        a, x, b, y = rng.choice(sorted(missing - impossible, key=repr))
        best, best_gain = None, 0
        for _ in range(60):
            row = {a: x, b: y}
            rest = [n for n in names if n not in row]
            rng.shuffle(rest)
            for name in rest:
                scored = []
                for value in factors[name]:
                    gain = 0
                    for other in row:
                        first, second = sorted((name, other), key=names.index)
                        gain += pair(first, second, {**row, name: value}) in missing
                    scored.append((gain, rng.random(), value))
                row[name] = max(scored, key=lambda s: s[:2])[2]
            if rng.random() < 0.5:
                # Greedy rows may keep running into what is not valid.
                for name in rng.sample(rest, rng.randint(0, len(rest))):
                    row[name] = rng.choice(factors[name])
            if not valid(row):
                continue
            gain = sum(pair(p, q, row) in missing for p, q in itertools.combinations(names, 2))
            if gain > best_gain:
                best, best_gain = row, gain
        for _ in range(2000 if best is None else 0):
            row = {n: rng.choice(factors[n]) for n in names} | {a: x, b: y}
            if valid(row):
                best = row
                break
        if best is None:
            impossible.add((a, x, b, y))
            continue
        missing -= {pair(p, q, best) for p, q in itertools.combinations(names, 2)}
        rows.append({n: best[n] for n in names})
    return rows, sorted(impossible, key=repr)


# --- From a row of options to a case -----------------------------------------------------------------------------


def units(value):
    """A size in units of 1/1024, as scales and offsets are stored; at most what keeps tensors exact in f32."""
    return max(-2047, min(2047, round(1024 * value)))


def described(shape, seed, scale, offset=None):
    description = {"shape": list(shape), "seed": seed, "scale": [units(s) for s in scale]}
    if offset is not None:
        description["offset"] = [units(o) for o in offset]
    return description


# Factors of gates and offsets of their biases. f and z forget, so that states contract.
GATES = {
    "LSTM": {"i": (0.75, 0.3), "o": (0.55, 0.5), "f": (1.0, -0.5), "c": (1.3, 0.1)},
    "GRU": {"z": (0.75, -0.6), "r": (1.0, 0.3), "h": (0.9, 0.1)},
    "RNN": {"f": (0.8, 0.1)},
}
STACK_ORDER = {"LSTM": "ifco", "GRU": "rzh", "RNN": "f"}
PEEPHOLES = {"i": 0.3, "o": 0.45, "f": -0.2}
DIRECTION = (1.0, 0.85)


def lengths_of(kind, batch, steps, n):
    """Lengths of a kind; None if absent."""
    pattern = {"ragged": [steps, 1, (steps + 1) // 2, steps - 1], "zero": [0, steps, 1, steps - 1, 0]}
    match kind:
        case "absent":
            return None
        case "full":
            return [steps] * batch
        case "one":
            return [1] * batch
        case "short":  # no sequence reaches T
            return [max(1, steps - 1 - (b + n) % 3) for b in range(batch)]
        case "all zero":
            return [0] * batch
    chosen = [max(0, pattern[kind][b % len(pattern[kind])]) for b in range(batch)]
    shift = n % batch
    return chosen[shift:] + chosen[:shift]


def spell(name, n):
    return (name, name.lower(), name.upper())[n % 3] if n % 5 == 0 else name


def role_functions(row, operator, directions):
    """Names per direction and role: the row's, and in the second direction others."""
    roles = "fgh"[: len(DEFAULT_ACTIVATIONS[operator])]
    if "f" not in row:
        return None
    shift = {"f": 7, "g": 3, "h": 5}
    sides = [[row[role] for role in roles]]
    if directions == 2:
        sides.append([FUNCTIONS[(FUNCTIONS.index(row[role]) + shift[role]) % 11] for role in roles])
    return sides


def onnx_case(operator, row, number, attempt, id_):
    """The record of a case, without results."""
    direction = row["direction"]
    directions = 2 if direction == "bidirectional" else 1
    hidden, inputs, batch, steps = row["hidden"], row["input"], row["batch"], row["T"]
    gates = GATES[operator]
    size = (1.0, 1.0, 0.8, 1.2, 0.6, 1.4, 0.45)[attempt % 7]
    seed = lambda k: number * 4096 + attempt * 16 + k
    attributes = {}
    if direction != "omitted":
        attributes["direction"] = direction
    if row.get("hidden_size", "given") == "given":
        attributes["hidden_size"] = hidden
    if row["layout"] != "omitted":
        attributes["layout"] = row["layout"]
    batch_major = row["layout"] == 1
    if operator == "LSTM" and row["input_forget"] != "omitted":
        attributes["input_forget"] = row["input_forget"]
    if operator == "GRU" and row["linear_before_reset"] != "omitted":
        attributes["linear_before_reset"] = row["linear_before_reset"]
    if row["clip"]:
        attributes["clip"] = row["clip"]

    sides = role_functions(row, operator, directions)
    shifts = {}
    if sides is not None:
        flat = [name for side in sides for name in side]
        default = DEFAULT_ACTIVATIONS[operator] * directions
        parameters = row["parameters"]
        if flat != default or parameters != "default" or number % 2:
            attributes["activations"] = [spell(name, number) for name in flat]
        alphas, betas = [], []
        for place, name in enumerate(flat):
            alpha, beta = PARAMETERS.get(name, (None, None))
            if alpha is not None:
                alphas.append(alpha + (place % 4) / 32)
            if beta is not None:
                betas.append(beta - (place % 4) / 64)
        if parameters == "partial":
            # Fewer than there are functions that take one: the last ones have their defaults.
            alphas, betas = alphas[: len(alphas) // 2], betas[: (len(betas) + number % 2) // 2]
        if parameters != "default":
            if alphas:
                attributes["activation_alpha"] = alphas
            if betas:
                attributes["activation_beta"] = betas
        functions = functions_of(operator, attributes, directions)
        # A threshold lies amid what it is compared with.
        roles = {"LSTM": {"i": 0, "o": 0, "f": 0, "c": 1}, "GRU": {"z": 0, "r": 0, "h": 1}, "RNN": {"f": 0}}[operator]
        for d in range(directions):
            for gate, role in roles.items():
                name, alpha, _ = functions[d][role]
                if name == "ThresholdedRelu":
                    shifts[d, gate] = alpha
                elif name in ("Affine", "Relu", "LeakyRelu", "Elu", "Softplus") and gate in "fz":
                    shifts[d, gate] = -0.4
                elif name in ("Relu", "LeakyRelu", "Elu") and gate == "i" and row["input_forget"] == 1:
                    shifts[d, gate] = 0.7  # f = 1 − i

    blocks = [(d, gate) for d in range(directions) for gate in gates]
    scale = lambda d, gate: DIRECTION[d] * gates[gate][0] * size
    offset = lambda d, gate: shifts.get((d, gate), gates[gate][1] * DIRECTION[d])
    first_axis = batch if batch_major else steps
    tensors = {
        "X": described(
            (batch, steps, inputs) if batch_major else (steps, batch, inputs),
            seed(0),
            [1.2 + 0.7 * k / first_axis for k in range(first_axis)] if first_axis <= 17 else [1.5],
        ),
        "W": described(
            (directions, len(gates) * hidden, inputs),
            seed(1),
            [0.9 / math.sqrt(inputs) * scale(d, gate) for d, gate in blocks],
        ),
        "R": described(
            (directions, len(gates) * hidden, hidden),
            seed(2),
            [0.9 / math.sqrt(hidden) * scale(d, gate) for d, gate in blocks],
        ),
    }
    if row["B"]:
        tensors["B"] = described(
            (directions, 2 * len(gates) * hidden),
            seed(3),
            [part * scale(d, gate) for d in range(directions) for part in (0.4, 0.25) for gate in gates],
            [part * offset(d, gate) for d in range(directions) for part in (0.7, 0.3) for gate in gates],
        )
    lengths = lengths_of(row["lengths"], batch, steps, number)
    if lengths is not None:
        tensors["sequence_lens"] = lengths
    initial = row["initial"]
    state_shape = (batch, directions, hidden) if batch_major else (directions, batch, hidden)
    places = [(d, b) for d in range(directions) for b in range(batch)]
    if batch_major:
        places.sort(key=lambda place: place[1])
    for k, (name, wanted, bound, shift) in enumerate(
        [("initial_h", "h", 0.6, (0.25, -0.3)), ("initial_c", "c", 0.9, (-0.2, 0.25))]
    ):
        if wanted in initial:
            tensors[name] = described(
                state_shape,
                seed(4 + k),
                [bound * (0.7 + 0.15 * (b % 3)) for _, b in places],
                [shift[d] + 0.05 * (b % 4) for d, b in places],
            )
    if operator == "LSTM" and row["P"]:
        parts = [(d, gate) for d in range(directions) for gate in PEEPHOLES]
        tensors["P"] = described(
            (directions, 3 * hidden),
            seed(6),
            [0.5 * abs(PEEPHOLES[gate]) * DIRECTION[d] for d, gate in parts],
            [PEEPHOLES[gate] * DIRECTION[d] for d, gate in parts],
        )
    outputs = {name: {} for name in ("Y", "Y_h", "Y_c") if name in row["outputs"].split()}
    if "at_alpha" in row:
        # The candidate's sums are exactly alpha: no product contributes, one bias is alpha.
        gate = {"LSTM": "c", "GRU": "h", "RNN": "f"}[operator]
        role = 1 if operator == "LSTM" else -1
        for name in ("W", "R", "B"):
            per = len(tensors[name]["scale"]) // directions
            for d in (d for d in range(directions) if functions[d][role][0] == "ThresholdedRelu"):
                k = d * per + list(gates).index(gate)
                tensors[name]["scale"][k] = 0
                if name == "B":
                    tensors[name]["scale"][k + len(gates)] = 0
                    tensors[name]["offset"][k] = units(functions[d][role][1])
                    tensors[name]["offset"][k + len(gates)] = 0
    return {"id": id_, "operator": operator, "attributes": attributes, "inputs": tensors, "outputs": outputs}


def stack_case(row, number, attempt, id_):
    """The record of a stack, without results. Options of the row are those of its LSTM layers."""
    batch, steps = row["batch"], row["T"]
    size = (1.0, 1.0, 0.8, 1.2, 0.6, 1.4)[attempt % 6]
    seeds = itertools.count(number * 4096 + attempt * 64)
    clips = [(0.3125, 0.4375), (0.25, 0.25), (0.125, 0.1875)][attempt // 5]
    cells = row["cell"].split("+")
    layers, tensors = [], {}
    width = row["input"]
    tensors["X"] = described((batch, steps, width), next(seeds), [1.2 + 0.7 * b / batch for b in range(batch)])
    lengths = lengths_of(row["lengths"], batch, steps, number)
    if lengths is not None:
        tensors["sequence_lens"] = lengths
    for n in range(row["layers"]):
        cell = cells[n % len(cells)]
        hidden = row["hidden"] + (n if len(cells) > 1 else 0)
        merge = row["merge"] if row["direction"] == "bidirectional" else "concat"
        layer = {
            "cell": cell, "input_size": width, "hidden_size": hidden, "direction": row["direction"],
            "merge": merge, "bias": row["bias"],
        }  # fmt: skip
        if cell == "LSTM":
            projection = {"none": None, "small": max(1, hidden // 4), "large": hidden - 1}[row["projection"]]
            if projection and projection < hidden:
                layer["projection_size"] = projection
                if row["projection_bias"]:
                    layer["projection_bias"] = True
            for key, value in [
                ("cell_clip", clips[0]), ("activation_clip", clips[1]), ("layer_norm", True), ("peepholes", True),
                ("coupled_input_forget", True),
            ]:  # fmt: skip
                if row[key]:
                    layer[key] = value
        elif cell == "GRU":
            layer["linear_before_reset"] = row["linear_before_reset"]
            if row["activation_clip"]:
                layer["activation_clip"] = clips[1]
        else:
            layer["activation"] = row["activation"]
            if row["activation_clip"]:
                layer["activation_clip"] = clips[1]
        layers.append(layer)
        h_size = layer.get("projection_size", hidden)
        width = h_size * (2 if row["direction"] == "bidirectional" and merge == "concat" else 1)
    for n, layer, suffix, reverse in cells_of(layers):
        cell, hidden = layer["cell"], layer["hidden_size"]
        h_size = layer.get("projection_size", hidden)
        order = STACK_ORDER[cell]
        factor = size * (DIRECTION[1] if reverse else 1.0) * (1.0, 0.8, 1.15)[n % 3]
        gates = [GATES[cell][gate] for gate in order]
        scale = lambda bound: [bound * factor * g for g, _ in gates]
        spread = 1.6 if n else 0.9  # outputs of a layer are smaller than the input
        tensors["weight_ih" + suffix] = described(
            (len(order) * hidden, layer["input_size"]), next(seeds), scale(spread / math.sqrt(layer["input_size"]))
        )
        tensors["weight_hh" + suffix] = described(
            (len(order) * hidden, h_size), next(seeds), scale(0.9 / math.sqrt(h_size))
        )
        if layer["bias"]:
            for name, part, shift in [("bias_ih", 0.4, 0.7), ("bias_hh", 0.25, 0.3)]:
                tensors[name + suffix] = described(
                    (len(order) * hidden,), next(seeds), scale(part), [shift * factor * o for _, o in gates]
                )
        if "projection_size" in layer:
            tensors["weight_hr" + suffix] = described(
                (h_size, hidden), next(seeds), [1.5 * factor / math.sqrt(hidden)]
            )
            if layer.get("projection_bias"):
                tensors["bias_hr" + suffix] = described((h_size,), next(seeds), [0.15], [0.2])
        if layer.get("peepholes"):
            parts = [PEEPHOLES[gate] * factor for gate in "ifo"]
            tensors["weight_peephole" + suffix] = described(
                (3, hidden), next(seeds), [0.5 * abs(p) for p in parts], parts
            )
        if layer.get("layer_norm"):
            parts = [0.35 * factor * g for g, _ in gates]
            tensors["weight_norm" + suffix] = described((4, hidden), next(seeds), [0.4 * p for p in parts], parts)
        sign = -1 if reverse else 1
        if "h" in row["initial"]:
            tensors["h_0" + suffix] = described((batch, h_size), next(seeds), [0.5 * factor], [0.25 * sign + 0.1 * n])
        if "c" in row["initial"] and cell == "LSTM":
            tensors["c_0" + suffix] = described((batch, hidden), next(seeds), [0.8 * factor], [-0.3 * sign - 0.1 * n])
    states = [c[2] for c in cells_of(layers)]
    names = ["h_n" + s for s in states]
    names += ["c_n" + s for s, c in zip(states, cells_of(layers)) if c[1]["cell"] == "LSTM"]
    has_cells = layers[-1]["cell"] == "LSTM"
    wanted = {"all": ["output", *names] + ["cells"] * has_cells, "output": ["output"], "states": names}[row["outputs"]]
    return {
        "id": id_, "operator": "Stack", "attributes": {"layers": layers}, "inputs": tensors,
        "outputs": {name: {} for name in wanted},
    }  # fmt: skip


# --- What a case must show ---------------------------------------------------------------------------------------


def swapped_blocks(array, axis, block, a, b):
    """`array` with two blocks along `axis` exchanged."""
    index = np.arange(array.shape[axis])
    index[a * block : (a + 1) * block], index[b * block : (b + 1) * block] = (
        np.arange(b * block, (b + 1) * block),
        np.arange(a * block, (a + 1) * block),
    )
    return np.take(array, index, axis=axis)


def without(mapping, *names):
    return {k: v for k, v in mapping.items() if k not in names}


def mistakes_onnx(record, inputs):
    """(option, attributes, inputs, dialect) of what ignoring or mistaking each option would compute."""
    operator, attributes = record["operator"], record["attributes"]
    directions, hidden = inputs["W"].shape[0], inputs["R"].shape[2]
    gates = list(GATES[operator])
    batch_major = attributes.get("layout", 0) == 1
    direction_axis = {"initial_h": 1, "initial_c": 1} if batch_major else {}
    steps, batch = inputs["X"].shape[:2] if not batch_major else inputs["X"].shape[1::-1]
    lengths = inputs.get("sequence_lens", np.full(batch, steps))
    longest = int(max(lengths))
    change = lambda **new: {**inputs, **new}

    for name in ("initial_h", "initial_c", "B", "P"):
        if name in inputs:
            yield name, attributes, without(inputs, name), TEXT
            if directions == 2:
                flipped = np.flip(inputs[name], direction_axis.get(name, 0))
                yield f"{name} of directions", attributes, change(**{name: flipped}), TEXT
    for name in ("initial_h", "initial_c"):
        if name in inputs and batch > 1:
            rolled = np.roll(inputs[name], 1, 0 if batch_major else 1)
            if (lengths > 0).sum() > 1:
                yield f"{name} of sequences", attributes, change(**{name: rolled}), TEXT
    if "sequence_lens" in inputs and not (lengths == steps).all():
        yield "sequence_lens", attributes, without(inputs, "sequence_lens"), TEXT
    for a, b in itertools.combinations(range(len(gates)), 2):
        new = {name: swapped_blocks(inputs[name], 1, hidden, a, b) for name in ("W", "R")}
        if "B" in inputs:
            halves = np.split(inputs["B"], 2, axis=1)
            new["B"] = np.concatenate([swapped_blocks(half, 1, hidden, a, b) for half in halves], axis=1)
        yield "gate order", attributes, change(**new), TEXT
    if "P" in inputs:
        for a, b in itertools.combinations(range(3), 2):
            yield "order of P", attributes, change(P=swapped_blocks(inputs["P"], 1, hidden, a, b)), TEXT
        yield "P of o sees the new c", attributes, inputs, dataclasses.replace(TEXT, old_c_for_o=True)
    if longest > 1 or "initial_h" in inputs:
        yield "R", attributes, change(R=np.zeros_like(inputs["R"])), TEXT
    direction = attributes.get("direction", "forward")
    if directions == 2:
        flipped = {name: np.flip(inputs[name], 0) for name in ("W", "R")}
        yield "weights of directions", attributes, change(**flipped), TEXT
        if longest > 1:
            yield "direction", attributes, inputs, dataclasses.replace(TEXT, second_direction_forward=True)
    elif direction == "reverse" and longest > 1:
        yield "direction", {**attributes, "direction": "forward"}, inputs, TEXT
    if "clip" in attributes:
        yield "clip", without(attributes, "clip"), inputs, TEXT
    if attributes.get("input_forget", 0):
        yield "input_forget", without(attributes, "input_forget"), inputs, TEXT
    if operator == "GRU":
        other = 1 - attributes.get("linear_before_reset", 0)
        yield "linear_before_reset", {**attributes, "linear_before_reset": other}, inputs, TEXT
    functions = functions_of(operator, attributes, directions)
    default = DEFAULT_ACTIVATIONS[operator]
    if "activations" in attributes:
        names = [f[0] for side in functions for f in side]
        for place, name in enumerate(names):
            if name != default[place % len(default)]:
                # The parameters of the others stay with them.
                plain = names.copy()
                plain[place] = default[place % len(default)]
                kept = [f for k, f in enumerate(f for side in functions for f in side) if k != place]
                alphas = [f[1] for f in kept if f[1] is not None]
                betas = [f[2] for f in kept if f[2] is not None]
                new = {**attributes, "activations": plain, "activation_alpha": alphas, "activation_beta": betas}
                yield f"function {'fgh'[place % len(default)]}", new, inputs, TEXT
        if directions == 2 and functions[0] != functions[1]:
            both = [f for f in functions[0]] * 2
            new = {**attributes, "activations": [f[0] for f in both]}
            new["activation_alpha"] = [f[1] for f in both if f[1] is not None]
            new["activation_beta"] = [f[2] for f in both if f[2] is not None]
            yield "functions of directions", new, inputs, TEXT
    for key in ("activation_alpha", "activation_beta"):
        values = attributes.get(key, [])
        takers = [f[0] for side in functions for f in side if f[1 if key == "activation_alpha" else 2] is not None]
        for k in range(len(values)):
            changed = list(values)
            changed[k] = DEFAULTS[takers[k]][0 if key == "activation_alpha" else 1]
            yield key, {**attributes, key: changed}, inputs, TEXT


def mistakes_stack(record, inputs):
    layers = record["attributes"]["layers"]
    attributes = record["attributes"]

    def relayered(n, **new):
        changed = [dict(layer) for layer in layers]
        changed[n] = {k: v for k, v in {**changed[n], **new}.items() if v is not None}
        return {"layers": changed}

    batch, steps = inputs["X"].shape[:2]
    lengths = inputs.get("sequence_lens", np.full(batch, steps))
    if "sequence_lens" in inputs and not (lengths == steps).all():
        yield "sequence_lens", attributes, without(inputs, "sequence_lens"), TEXT
    for n, layer in enumerate(layers):
        for key in ("cell_clip", "activation_clip", "layer_norm", "coupled_input_forget"):
            if key in layer:
                yield key, relayered(n, **{key: None}), inputs, TEXT
        if "linear_before_reset" in layer:
            yield "linear_before_reset", relayered(n, linear_before_reset=not layer["linear_before_reset"]), inputs, TEXT
        if layer.get("activation", "Tanh") != "Tanh":
            yield "activation", relayered(n, activation="Tanh"), inputs, TEXT
    for n, layer, suffix, reverse in cells_of(layers):
        for key in ("bias_ih", "bias_hh", "bias_hr", "weight_peephole", "h_0", "c_0"):
            if key + suffix in inputs:
                yield key, attributes, without(inputs, key + suffix), TEXT
        for key, count in [("weight_peephole", 3), ("weight_norm", 4)]:
            if key + suffix in inputs:
                for a, b in itertools.combinations(range(count), 2):
                    swapped = swapped_blocks(inputs[key + suffix], 0, 1, a, b)
                    yield f"order of {key}", attributes, {**inputs, key + suffix: swapped}, TEXT
        gates, hidden = len(STACK_ORDER[layer["cell"]]), layer["hidden_size"]
        for a, b in itertools.combinations(range(gates), 2):
            new = {
                key + suffix: swapped_blocks(inputs[key + suffix], 0, hidden, a, b)
                for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                if key + suffix in inputs
            }
            yield "gate order", attributes, {**inputs, **new}, TEXT
        if "weight_hr" + suffix in inputs:
            rolled = np.roll(inputs["weight_hr" + suffix], 1, axis=1)
            yield "weight_hr", attributes, {**inputs, "weight_hr" + suffix: rolled}, TEXT
        if suffix.endswith("_reverse"):
            other = suffix.removesuffix("_reverse")
            keys = [k for k in inputs if k.endswith(suffix)]
            swapped = {k: inputs[k.removesuffix(suffix) + other] for k in keys}
            swapped |= {k.removesuffix(suffix) + other: inputs[k] for k in keys}
            if layer["merge"] != "sum" or "h_n_l0" in record["outputs"]:
                yield "weights of directions", attributes, {**inputs, **swapped}, TEXT
    if any(layer["direction"] == "bidirectional" for layer in layers) and max(lengths) > 1:
        yield "direction", attributes, inputs, dataclasses.replace(TEXT, second_direction_forward=True)
    if layers[0]["direction"] == "reverse" and max(lengths) > 1:
        yield "direction", relayered(0, direction="forward"), inputs, TEXT


def faults_of(record, inputs, expected, effects):
    """Why this draw does not make a good case; fills `effects` with the smallest effect of each option."""
    faults = []
    trace = []
    attributes = record["attributes"]
    judge(record, attributes, inputs, trace=trace)
    steps_exist = any(z.size for *_, z, _ in trace)
    if not steps_exist:
        return faults
    if record["id"].endswith("_at_alpha"):
        # Other options have other cases.
        strict = judge(record, attributes, inputs, dialect=dataclasses.replace(TEXT, threshold_inclusive=False))
        effects["threshold"] = max(difference(strict[name], expected[name]) for name in record["outputs"])
        return [] if effects["threshold"] > EFFECT else ["the threshold is not met"]

    mistakes = mistakes_stack if record["operator"] == "Stack" else mistakes_onnx
    for option, other_attributes, other_inputs, dialect in mistakes(record, inputs):
        with np.errstate(all="ignore"):
            other = judge(record, other_attributes, other_inputs, dialect=dialect)
        effect = max(difference(other[name], expected[name]) for name in record["outputs"])
        effects[option] = min(effect, effects.get(option, math.inf))
    faults += [f"{option} has an effect of {e:.1e}" for option, e in effects.items() if not e > EFFECT]

    # Nothing is saturated, no element is near a jump, and both sides of a bend are met.
    clip = attributes.get("clip", math.inf)
    by_function = collections.defaultdict(list)
    for role, function, z, clipped in trace:
        by_function[role, function, clipped].append(z.reshape(-1))
    for (role, function, clipped), values in by_function.items():
        z = np.concatenate(values)
        if role == "cell_clip":
            if not (np.abs(z) > function).any():
                faults.append("cell_clip clips nothing")
            continue
        name, alpha, beta = function
        if name == "ThresholdedRelu" and np.abs(z - alpha).min() < 1e-5:
            faults.append(f"{name} near its jump: {np.abs(z - alpha).min():.1e}")
        many = z.size >= 48
        low, high = {"HardSigmoid": (0, 1)}.get(name, (None, None))
        if low is not None:
            inside = (alpha * z + beta > 0) & (alpha * z + beta < 1)
            if inside.mean() < 0.5:
                faults.append(f"{name} of {role} saturated")
        elif name in ("Sigmoid", "Tanh", "ScaledTanh"):
            argument = z * (beta or 1) / (2 if name == "Sigmoid" else 1)
            if (np.abs(argument) > 2.2).mean() > 0.2:
                faults.append(f"{name} of {role} saturated")
        elif name in ("Relu", "LeakyRelu", "Elu", "ThresholdedRelu") and many:
            share = (z >= (alpha if name == "ThresholdedRelu" else 0)).mean()
            if not 0.03 <= share <= 0.97:
                faults.append(f"{name} of {role} is bent nowhere")
        if math.isfinite(clip) and many and role in "fg":
            share = (np.abs(z) > clip).mean()
            if not 0.02 <= share <= 0.9:
                faults.append(f"clip clips {share:.0%} of {role}")

    # States contract: what is done to the initial state does not grow.
    rng = np.random.default_rng(5)
    delta = 1e-6
    pushed = dict(inputs)
    if record["operator"] == "Stack":
        for _, layer, suffix, _ in cells_of(attributes["layers"]):
            width = layer.get("projection_size", layer["hidden_size"])
            for key, size in [("h_0", width), ("c_0", layer["hidden_size"])]:
                if layer["cell"] == "LSTM" or key == "h_0":
                    zero = np.zeros((inputs["X"].shape[0], size))
                    signs = rng.choice([-1.0, 1.0], zero.shape)
                    pushed[key + suffix] = pushed.get(key + suffix, zero).astype(np.float64) + delta * signs
    else:
        directions, hidden = inputs["W"].shape[0], inputs["R"].shape[2]
        shape = inputs["X"].shape[:2] if attributes.get("layout", 0) == 1 else inputs["X"].shape[1::-1]
        batch = shape[0]
        zero = np.zeros((batch, directions, hidden) if attributes.get("layout", 0) == 1 else (directions, batch, hidden))
        for key in ("initial_h", "initial_c")[: 2 if record["operator"] == "LSTM" else 1]:
            signs = rng.choice([-1.0, 1.0], zero.shape)
            pushed[key] = pushed.get(key, zero).astype(np.float64) + delta * signs
    moved = judge(record, attributes, pushed)
    everything = judge(record, attributes, inputs)
    gain = max(difference(moved[name], everything[name]) for name in everything) / delta
    if not gain <= 2.5:
        faults.append(f"states grow by a factor of {gain:.1f}")
    return faults


def difference(a, b):
    if a.shape != b.shape:
        return math.inf
    found = np.abs(a.astype(np.float64) - b)
    return math.inf if not np.isfinite(found).all() else float(found.max(initial=0))


# --- Checks by others --------------------------------------------------------------------------------------------


def check_onnxruntime(record, inputs):
    """Compares with onnxruntime. Returns (error, departures); the last are what it needs to agree."""
    attributes, departures = dict(record["attributes"]), []
    inputs = dict(inputs)
    batch_major = attributes.get("layout", 0) == 1
    if batch_major:
        departures.append("layout")
    if "hidden_size" not in attributes:
        departures.append("hidden_size")
    known = {name.lower(): name for name in FUNCTIONS}
    spelled = [known[name.lower()] for name in attributes.get("activations", [])]
    if record["operator"] == "RNN" and spelled != attributes.get("activations", []):
        departures.append("spelling")
    run = lambda a, i, outputs: conformance.run_onnxruntime(
        Case(record["id"], "", record["operator"], a, i, outputs, record)
    )
    shapes = {name: {"shape": output["shape"]} for name, output in record["outputs"].items()}
    if departures:
        try:
            run(attributes, inputs, shapes)
        except Refused:
            pass
        else:
            raise SystemExit(f"{record['id']}: onnxruntime was expected to refuse {departures}")
        attributes["hidden_size"] = inputs["R"].shape[2]
        if spelled:
            attributes["activations"] = spelled
        if batch_major:
            attributes["layout"] = 0
            for name in ("X", "initial_h", "initial_c"):
                if name in inputs:
                    inputs[name] = np.ascontiguousarray(inputs[name].swapaxes(0, 1))
            for name, output in shapes.items():
                b, second, *rest = output["shape"]
                output["shape"] = [second, rest[0], b, rest[1]] if name == "Y" else [second, b, *rest]
    found = run(attributes, inputs, shapes)
    fields = list(DEPARTURES)
    for count in range(len(fields) + 1):
        for chosen in itertools.combinations(fields, count):
            dialect = dataclasses.replace(TEXT, **{name: DEPARTURES[name][0] for name in chosen})
            expected = judge(record, attributes, inputs, dialect=dialect)
            size = max(1.0, max(float(np.abs(expected[name]).max(initial=0)) for name in shapes))
            error = max(difference(found[name], expected[name]) for name in shapes)
            if error <= ONNXRUNTIME_ERROR * size:
                return error, departures + list(chosen)
    text = judge(record, attributes, inputs)
    errors = {name: difference(found[name], text[name]) for name in shapes}
    raise SystemExit(f"{record['id']}: onnxruntime agrees with no dialect: {errors} {record}")


def check_pytorch(record, inputs, expected):
    """Compares with PyTorch. Returns (largest error, what of PyTorch), or None if it computes no such thing."""
    if record["operator"] == "Stack":
        found, chosen, kinds, whole = pytorch_stack(record["attributes"], inputs)
        errors = [difference(a, expected[name][chosen]) for name, a in found.items()]
        if whole is not None:
            errors.append(difference(whole, expected["output"][chosen]))
        return max(errors), " and ".join(sorted(kinds))
    result, kind = pytorch_onnx(record, record["attributes"], inputs), "modules"
    if result is None and record["operator"] == "RNN":
        result, kind = pytorch_rnn(record["attributes"], inputs), "operations"
    if result is None:
        return None
    found, chosen, axis = result
    return max(difference(a, np.take(expected[name], chosen, axis[name])) for name, a in found.items()), kind


# --- All cases ---------------------------------------------------------------------------------------------------


def factors_of(operator, functions):
    common = {
        "direction": ["forward", "reverse", "bidirectional"],
        "hidden": [1, 3, 25, 27, 64, 100, 256],
        "input": [1, 2, 5, 8, 17, 40],
        "batch": [2, 3, 5, 8],
        "T": [1, 2, 5, 9, 17],
        "lengths": ["absent", "full", "ragged", "zero", "one", "short"],
        "layout": ["omitted", 0, 1],
        "initial": ["none", "h"],
        "B": [True, False],
        "clip": [0, 0.375, 0.8125],
        "outputs": ["Y Y_h", "Y", "Y_h"],
    }
    if operator == "LSTM":
        common |= {
            "initial": ["none", "h c", "h", "c"],
            "P": [False, True],
            "input_forget": ["omitted", 0, 1],
            "outputs": ["Y Y_h Y_c", "Y", "Y_h", "Y_c", "Y Y_h", "Y Y_c", "Y_h Y_c"],
        }
    if operator == "GRU":
        common["linear_before_reset"] = ["omitted", 0, 1]
    if functions:
        common |= {role: FUNCTIONS for role in "fgh"[: len(DEFAULT_ACTIVATIONS[operator])]}
        common["parameters"] = ["default", "given", "partial"]
    return common


def valid_row(row):
    """Rows whose options can show; see README.md, "Pairs left out"."""
    one_step = row["T"] == 1 or row["lengths"] == "one"
    if "linear_before_reset" in row and row["hidden"] == 1 and not row["B"]:
        return False  # the same number either way
    if row["T"] == 1 and row["lengths"] not in ("absent", "full", "zero"):
        return False
    if row["T"] == 2 and row["lengths"] == "short":
        return False
    if one_step and row["initial"] not in ("h c", "h") or (one_step and "P" in row and row["initial"] != "h c"):
        return False
    if row["outputs"] == "Y_c":
        # o and h show in c only from the second step on.
        return not one_step and row["lengths"] not in ("one",) and row["T"] >= 5
    return True


STACK_COMMON = {
    "layers": [1, 2, 3],
    "direction": ["forward", "reverse", "bidirectional"],
    "merge": ["concat", "sum"],
    "bias": [True, False],
    "hidden": [1, 3, 25, 27, 64, 100],
    "input": [1, 5, 8, 17],
    "batch": [2, 3, 5],
    "T": [1, 2, 5, 9],
    "lengths": ["absent", "full", "ragged", "zero"],
    "initial": ["none", "h"],
    "outputs": ["all", "output", "states"],
    "activation_clip": [False, True],
}
STACK_LSTM = {
    "initial": ["none", "h c", "h", "c"],
    "projection": ["none", "small", "large"],
    "projection_bias": [False, True],
    "cell_clip": [False, True],
    "layer_norm": [False, True],
    "peepholes": [False, True],
    "coupled_input_forget": [False, True],
}
STACK_GRU = {"linear_before_reset": [True, False]}
STACK_RNN = {"activation": ["Tanh", "Relu"]}
STACK_FACTORS = {
    "LSTM": STACK_COMMON | STACK_LSTM,
    "GRU": STACK_COMMON | STACK_GRU,
    "RNN": STACK_COMMON | STACK_RNN,
    "RNN+GRU+LSTM": STACK_COMMON | STACK_LSTM | STACK_GRU | STACK_RNN | {"layers": [3], "hidden": [3, 27, 64]},
    "LSTM+RNN": STACK_COMMON | STACK_LSTM | STACK_RNN | {"layers": [2], "hidden": [3, 27, 64]},
}


def valid_stack(row):
    row = {**STACK_BASE, **row}
    has_lstm = "LSTM" in row["cell"]
    if row["projection_bias"] and row["projection"] == "none" or (row["hidden"] == 1 and row["projection"] != "none"):
        return False
    if "GRU" in row["cell"] and row["hidden"] == 1 and not row["bias"]:
        return False  # linear_before_reset makes no difference
    if row["merge"] == "sum" and row["direction"] != "bidirectional":
        return False
    if row["layer_norm"] and (row["hidden"] < 25 or not row["bias"]):
        return False
    if row["T"] == 1 and (row["lengths"] == "ragged" or row["initial"] != ("h c" if has_lstm else "h")):
        return False
    return not (row["layers"] == 3 and row["hidden"] in (1, 100))


def corners(operator):
    """(name, row) of what pairs do not reach."""
    base = {
        "direction": "forward", "hidden": 25, "input": 5, "batch": 3, "T": 5, "lengths": "ragged", "layout": "omitted",
        "initial": "h c" if operator == "LSTM" else "h", "B": True, "clip": 0,
        "outputs": "Y Y_h Y_c" if operator == "LSTM" else "Y Y_h", "P": False, "input_forget": "omitted",
        "linear_before_reset": "omitted",
    }  # fmt: skip
    only = lambda **new: {**base, **new}
    directions = ["forward", "reverse", "bidirectional"]
    for direction in directions:
        yield f"batch_1_{direction}", only(direction=direction, batch=1, T=17, lengths="absent")
        yield f"batch_1_shorter_{direction}", only(direction=direction, batch=1, T=9, lengths="short", hidden=3)
        yield f"all_lengths_zero_{direction}", only(direction=direction, lengths="all zero")
        yield f"long_{direction}", only(direction=direction, T=120, hidden=27, lengths="ragged")
    yield "one_of_everything", only(batch=1, T=1, hidden=1, input=1, lengths="absent")
    yield "one_step_without_a_state", only(batch=4, T=1, lengths="full", initial="none", direction="bidirectional")
    yield "direction_left_out", only(direction="omitted")
    yield "hidden_size_left_out", only(hidden_size="omitted", direction="bidirectional")
    # Sizes at which the axes of the two layouts cannot be told apart by their shapes.
    for layout in (0, 1):
        same = only(layout=layout, batch=2, T=2, direction="bidirectional", hidden=3, input=2, lengths="full")
        yield f"equal_axes_layout_{layout}", same
        yield f"square_layout_{layout}", only(layout=layout, batch=5, T=5, hidden=5, input=5, direction="reverse")
    yield "wide_input", only(input=300, hidden=3, direction="bidirectional")
    yield "wide_batch", only(batch=33, hidden=27, direction="bidirectional", lengths="zero")
    yield "wide_hidden", only(hidden=256, direction="bidirectional", T=5, batch=2, lengths="ragged")
    functions = {"f": "Sigmoid", "g": "ThresholdedRelu", "h": "Tanh", "parameters": "given"}
    if operator == "RNN":
        functions = {"f": "ThresholdedRelu", "parameters": "given"}
    for direction in ("forward", "bidirectional"):
        yield f"thresholded_relu_{direction}_at_alpha", only(direction=direction, at_alpha=True, **functions)
    if operator == "LSTM":
        everything = only(P=True, input_forget=1, clip=0.8125, direction="bidirectional", lengths="zero", hidden=27)
        yield "everything", everything
        yield "everything_batch_first", {**everything, "layout": 1}
        plain = only(P=True, clip=0.375, direction="bidirectional", lengths="ragged", T=9)
        yield "clip_and_peepholes", plain
        for role in "fgh":
            names = {"f": "Sigmoid", "g": "Tanh", "h": "Tanh", "parameters": "given"} | {role: "HardSigmoid"}
            yield f"hard_sigmoid_only_{role}", only(**names, direction="reverse")
    if operator == "GRU":
        for lbr in (0, 1):
            yield f"clip_linear_before_reset_{lbr}", only(linear_before_reset=lbr, clip=0.375, direction="bidirectional")
            yield f"no_bias_linear_before_reset_{lbr}", only(linear_before_reset=lbr, B=False, direction="reverse")


STACK_CORNERS = {
    "pytorch_lstm": dict(cell="LSTM", layers=2, direction="bidirectional", lengths="ragged"),
    "pytorch_lstm_projected": dict(cell="LSTM", layers=2, direction="bidirectional", projection="small", lengths="ragged"),
    "pytorch_gru": dict(cell="GRU", layers=3, direction="bidirectional", initial="h", lengths="ragged"),
    "pytorch_rnn": dict(cell="RNN", layers=2, direction="bidirectional", initial="h", activation="Relu"),
    "keras_sum": dict(cell="LSTM", layers=2, direction="bidirectional", merge="sum", lengths="zero"),
    "nnapi": dict(
        cell="LSTM", projection="small", projection_bias=True, cell_clip=True, layer_norm=True, peepholes=True,
        coupled_input_forget=True, lengths="ragged", direction="bidirectional",
    ),  # fmt: skip
    "both_clips": dict(cell="LSTM", cell_clip=True, activation_clip=True, direction="bidirectional", T=9),
    "layer_norm": dict(cell="LSTM", layer_norm=True, hidden=64, direction="reverse", lengths="ragged"),
    "layer_norm_peepholes": dict(cell="LSTM", layer_norm=True, peepholes=True, direction="forward", lengths="ragged"),
    "batch_1": dict(cell="LSTM", layers=3, batch=1, T=17),
    "wide": dict(cell="LSTM", hidden=256, projection="small", direction="bidirectional", batch=2),
}
STACK_BASE = dict(
    cell="LSTM", layers=1, direction="forward", merge="concat", bias=True, hidden=27, input=5, batch=3, T=5,
    lengths="absent", initial="h c", projection="none", projection_bias=False, cell_clip=False, activation_clip=False,
    layer_norm=False, peepholes=False, coupled_input_forget=False, linear_before_reset=True, activation="Tanh",
    outputs="all",
)  # fmt: skip


def rows_of(group):
    """(name, row) of all cases of a group, and the pairs left out."""
    operator = group.upper()
    if group == "stack":
        named, left_out = [], []
        for n, (cell, factors) in enumerate(STACK_FACTORS.items()):
            rows, more_left_out = pairwise(factors | {"cell": [cell]}, valid_stack, 20 + n)
            named += [(None, {**STACK_BASE, **row}) for row in rows]
            left_out += more_left_out
        return named + [(name, {**STACK_BASE, **row}) for name, row in STACK_CORNERS.items()], left_out
    number = {"LSTM": 1, "GRU": 2, "RNN": 3}[operator]
    plain, left_out = pairwise(factors_of(operator, False), valid_row, number)
    rows, more_left_out = pairwise(factors_of(operator, True), valid_row, 10 + number)
    named = [(None, row) for row in plain] + [(None, row) for row in rows] + list(corners(operator))
    return named, sorted(set(left_out) | set(more_left_out), key=repr)


def short_name(group, row):
    direction = {"forward": "fwd", "reverse": "rev", "bidirectional": "bi", "omitted": "fwd"}[row["direction"]]
    if group == "stack":
        return f"{row['cell'].lower().replace('+', '_')}_l{row['layers']}_{direction}_h{row['hidden']}"
    name = f"{direction}_h{row['hidden']}_b{row['batch']}_t{row['T']}"
    return name + ("_functions" if "f" in row else "")


ATTEMPTS = 14


def concession(row, faults, group, given_up):
    """(option, value) that a row gives up because no draw of it was good; README.md counts how often. None if nothing
    is left to give up."""
    text = "; ".join(faults)
    full = "h c" if group == "lstm" or (group == "stack" and "LSTM" in row["cell"]) else "h"
    fits = {
        "parameters": row.get("parameters") in ("default", "partial"),
        "initial": row["initial"] != full,
        "T": row["T"] != 5,
        "lengths": row["lengths"] in ("absent", "full", "one", "short") and row["T"] >= 5,
        "clip": bool(row.get("clip")),
        "B": row.get("B") is False,
        "hidden": row["hidden"] != 25,
        "outputs": row["outputs"] not in ("all", "Y Y_h", "Y Y_h Y_c"),
        "g": "g" in row,
        "f": "f" in row and "g" in row,
    }
    tight = "clip has an effect" in text or "clips 0%" in text or "clips 1%" in text
    values = {
        "parameters": "given", "initial": full, "T": 5, "lengths": "ragged", "clip": 0.375 if tight else 0.8125,
        "B": True, "hidden": 25, "outputs": "all" if group == "stack" else "Y Y_h" + " Y_c" * (group == "lstm"),
        "g": "Tanh", "f": "Sigmoid",
    }  # fmt: skip
    wanted = []
    for word, answers in [
        ("grow", ["parameters", "B"]), ("function", ["parameters"]), ("bent", ["parameters", "B"]),
        ("saturated", ["parameters"]), ("clip", ["parameters", "clip"]), ("initial", ["T", "lengths"]),
        ("h_0", ["T", "lengths"]), ("c_0", ["T", "lengths"]), ("jump", ["T", "hidden"]),
    ]:  # fmt: skip
        wanted += answers if word in text else []
    for key in wanted + list(fits):
        if fits[key] and key not in given_up and row[key] != values[key]:
            return key, values[key]
    return None


def finished_case(group, number, name, row, log):
    """The record with results, drawn until it is good."""
    id_ = f"{group}_{number % 1000:03}_{name or short_name(group, row)}"
    row, given_up = dict(row), []
    while True:
        for attempt in range(ATTEMPTS):
            if group == "stack":
                record = stack_case(row, number, attempt, id_)
            else:
                record = onnx_case(group.upper(), row, number, attempt, id_)
            inputs = materialise(record)
            effects = {}
            # Mistakes may overflow.
            with np.errstate(all="ignore"):
                expected = judge(record, record["attributes"], inputs)
                faults = faults_of(record, inputs, expected, effects)
            if not faults:
                break
        if not faults:
            break
        log(f"{id_}: {'; '.join(faults)}")
        given = concession(row, faults, group, given_up)
        if given is None:
            raise SystemExit(f"{id_}: {faults}\n{row}")
        row[given[0]] = given[1]
        given_up.append(given[0])
    if given_up:
        log(f"{id_}: gave up {given_up}")

    single = judge(record, record["attributes"], inputs, SINGLE)
    for output_name, output in record["outputs"].items():
        error = difference(single[output_name], expected[output_name])
        size = max(1.0, float(np.abs(expected[output_name]).max(initial=0)))
        output["shape"] = list(expected[output_name].shape)
        output["tolerance"] = rounded_up(4 * error + FLOOR * size)
        if not output["tolerance"] <= 4e-5 * size:
            raise SystemExit(f"{id_}: {output_name} has a tolerance of {output['tolerance']:.1e}")
    checks, departures = {}, []
    if group != "stack":
        error, departures = check_onnxruntime(record, inputs)
        checks["onnxruntime"] = rounded_up(error)
    result = check_pytorch(record, inputs, expected)
    if result is not None:
        error, kind = result
        if not error <= PYTORCH_ERROR:
            raise SystemExit(f"{id_}: PyTorch differs by {error:.1e}")
        checks["pytorch"] = kind
    if not checks:
        raise SystemExit(f"{id_}: nobody checked it")
    if given_up:
        record["given_up"] = given_up
    record["checks"] = checks
    record["departures"] = departures
    record["effects"] = {option: float(f"{min(effect, 1e9):.1e}") for option, effect in effects.items()}
    return record, {n: expected[n] for n in record["outputs"]}


def rounded_up(value):
    """To two digits."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit) * unit:.1e}")


# --- The tables of README.md -------------------------------------------------------------------------------------

TABLES = ("counts", "coverage", "effects", "departures", "versions")


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def tables(folder):
    """The text of each table."""
    cases = conformance.load(folder)
    groups = conformance.GROUPS
    by_group = {group: [c for c in cases if c.group == group] for group in groups}
    text = {}
    rows = []
    for group in groups:
        records = [c.record for c in by_group[group]]
        size = sum((folder / f"{group}.{ending}").stat().st_size for ending in ("json", "safetensors"))
        kinds = collections.Counter(r["checks"].get("pytorch", "") for r in records)
        largest = max(o["tolerance"] for r in records for o in r["outputs"].values())
        conceded = collections.Counter(key for r in records for key in r.get("given_up", []))
        conceded = ", ".join(f"{key} {n}" for key, n in sorted(conceded.items())) or "none"
        rows.append([
            group, len(records), f"{size / 1024:.0f} KiB",
            sum("onnxruntime" in r["checks"] for r in records),
            sum(n for kind, n in kinds.items() if kind),
            f"{largest:.1e}", len(rows_of(group)[1]), conceded,
        ])  # fmt: skip
    header = ["group", "cases", "size", "checked by onnxruntime", "by PyTorch", "largest tolerance", "pairs left out",
              "options given up"]  # fmt: skip
    text["counts"] = table(header, rows)

    counts = collections.defaultdict(collections.Counter)
    for case in cases:
        for option, value in conformance.options(case):
            counts[option, str(value)][case.group] += 1
    natural = lambda key: (key[0], int(key[1]) if key[1].isdigit() else 0, key[1])
    rows = [[*key, *(counts[key][group] or "" for group in groups)] for key in sorted(counts, key=natural)]
    text["coverage"] = table(["option", "value", *groups], rows)

    smallest = collections.defaultdict(dict)
    for case in cases:
        for option, effect in case.record["effects"].items():
            before = smallest[option].get(case.group, (0, math.inf))
            smallest[option][case.group] = (before[0] + 1, min(before[1], effect))
    show = lambda found: "" if found is None else f"{found[0]}, {found[1]:.1e}"
    rows = [[option, *(show(smallest[option].get(group)) for group in groups)] for option in sorted(smallest)]
    text["effects"] = table(["ignored or mistaken", *groups], rows)

    rows = []
    for name, (says, does) in ({k: v[1:] for k, v in DEPARTURES.items()} | REFUSALS).items():
        ids = [c.id for c in cases if name in c.record["departures"]]
        rows.append([f"`{name}`", says, does, len(ids), " ".join(f"`{i}`" for i in ids)])
    rows.sort()
    text["departures"] = table(["name", "the text", "onnxruntime", "cases", "ids"], rows)
    import onnx
    import onnxruntime

    versions = {"numpy": np.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    versions |= {"torch": torch.__version__.partition("+")[0]}
    text["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return text


def write_tables(folder):
    path = folder / "README.md"
    readme = path.read_text() if path.exists() else "".join(f"<!-- {n} -->\n<!-- end -->\n" for n in TABLES)
    for name, content in tables(folder).items():
        mark = f"<!-- {name} -->"
        before, rest = readme.split(mark, 1)
        readme = f"{before}{mark}\n{content}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    path.write_text(readme)


def with_the_others(folder, group, records, arrays):
    """These cases in place of those in the files."""
    new = {record["id"]: record for record in records}
    old = json.loads((folder / f"{group}.json").read_text())
    kept = {n: a for n, a in load_file(folder / f"{group}.safetensors").items() if n.split("/")[0] not in new}
    return [new.get(record["id"], record) for record in old], kept | arrays


def check(folder, group, records, arrays):
    """Names of cases that differ from the files; ends the program if there are any."""
    old = {r["id"]: r for r in json.loads((folder / f"{group}.json").read_text())}
    old_arrays = load_file(folder / f"{group}.safetensors")
    differing = set(old) ^ {r["id"] for r in records}
    if set(old_arrays) != set(arrays):
        differing.add("names of arrays")
    for record in records:
        before = old.get(record["id"])
        same = before is not None and all(before[k] == record[k] for k in ("operator", "attributes", "inputs"))
        same = same and all(
            before["outputs"][name]["shape"] == output["shape"]
            and 0.5 <= before["outputs"][name]["tolerance"] / output["tolerance"] <= 2
            for name, output in record["outputs"].items()
        )
        if not same:
            differing.add(record["id"])
    differing |= {n for n, a in arrays.items() if n in old_arrays and not difference(a, old_arrays[n]) <= 1e-12}
    if differing:
        raise SystemExit(f"{group}: differing: {', '.join(sorted(differing))}")
    print(f"{group}: {len(records)} cases are as in the files")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file differs")
    parser.add_argument("--group", action="append", choices=conformance.GROUPS, help="default: all")
    parser.add_argument("--dir", type=Path, default=FOLDER)
    parser.add_argument("--case", default="", help="only cases whose id contains this; the others stay as they are")
    parser.add_argument("--verbose", action="store_true", help="say why draws were rejected")
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = (lambda text: print(text, flush=True)) if args.verbose else (lambda text: None)
    for n, group in enumerate(conformance.GROUPS):
        if group not in (args.group or conformance.GROUPS):
            continue
        named, left_out = rows_of(group)
        records, arrays, conceded = [], {}, collections.Counter()
        for k, (name, row) in enumerate(named):
            if args.case not in f"{group}_{k:03}_{name or short_name(group, row)}":
                continue
            record, expected = finished_case(group, 1000 * (n + 1) + k, name, row, log)
            conceded.update(record.get("given_up", []))
            records.append(record)
            for output, array in expected.items():
                for ending, part in conformance.parts(array).items():
                    arrays[f"{record['id']}/{output}{ending}"] = np.ascontiguousarray(part)
        log(f"{group}: {len(records)} cases, {len(left_out)} pairs left out, {dict(conceded)}")
        if args.case:
            records, arrays = with_the_others(args.dir, group, records, arrays)
        lines = ",\n".join(json.dumps(record, separators=(",", ":"), allow_nan=False) for record in records)
        text, data = f"[\n{lines}\n]\n", save(arrays)
        if args.check:
            check(args.dir, group, records, arrays)
        else:
            args.dir.mkdir(parents=True, exist_ok=True)
            (args.dir / f"{group}.json").write_text(text)
            (args.dir / f"{group}.safetensors").write_bytes(data)
    if not args.check and all((args.dir / f"{group}.json").exists() for group in conformance.GROUPS):
        write_tables(args.dir)


if __name__ == "__main__":
    sys.exit(main())
