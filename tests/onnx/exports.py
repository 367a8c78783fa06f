#!/usr/bin/env python3
"""Models that PyTorch exports, through `lstm run`, against onnxruntime.

    python tests/onnx/exports.py target/release/lstm [--only TEXT] [--keep FOLDER]

LSTM, GRU and RNN with 1 to 3 layers, one or two directions, with and without a head, of every opset that the exporters
write, by both exporters, with fixed and with dynamic axes; and operators after a GRU. Prints one line for each model
that differs, is refused or cannot be exported, and a count; the exit code is 1 if one differs or is refused.

Needs torch, onnx, onnxscript, onnxruntime and numpy (tools/requirements.txt).
"""

import argparse
import collections
import itertools
import logging
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

LEGACY_OPSETS = range(9, 21)
DYNAMO_OPSETS = (18, 19, 20, 21, 22, 23)


class Recurrent(nn.Module):
    """A recurrent layer, and what may stand after it."""

    def __init__(self, kind, layers, bidirectional, head, batch_first, states):
        super().__init__()
        self.r = getattr(nn, kind)(3, 5, layers, bidirectional=bidirectional, batch_first=batch_first)
        self.head = nn.Linear(5 * (2 if bidirectional else 1), 4) if head else None
        self.states = states

    def forward(self, x):
        y, state = self.r(x)
        y = y if self.head is None else torch.softmax(self.head(F.relu(y)), -1)
        if not self.states:
            return y
        return (y, *state) if isinstance(state, tuple) else (y, state)


class After(nn.Module):
    """A GRU, and a function of what it returns ([B, T, 6])."""

    def __init__(self, function, module=None):
        super().__init__()
        self.r = nn.GRU(3, 6, batch_first=True)
        self.module = module
        self.function = function

    def forward(self, x):
        y, h = self.r(x)
        return self.function(y, h, self.module)


def operators():
    """Name -> a model of an operator after a GRU."""
    plain = {
        "layer_norm": (lambda y, h, m: m(y), nn.LayerNorm(6)),
        "batch_norm": (lambda y, h, m: m(y.transpose(1, 2)), nn.BatchNorm1d(6)),
        "instance_norm": (lambda y, h, m: m(y.transpose(1, 2)), nn.InstanceNorm1d(6, affine=True)),
        "group_norm": (lambda y, h, m: m(y.transpose(1, 2)), nn.GroupNorm(3, 6)),
        "conv1d": (lambda y, h, m: m(y.transpose(1, 2)), nn.Conv1d(6, 4, 3)),
        "conv1d_same": (lambda y, h, m: m(y.transpose(1, 2)), nn.Conv1d(6, 4, 3, padding="same")),
        "conv1d_dilated": (lambda y, h, m: m(y.transpose(1, 2)), nn.Conv1d(6, 4, 2, dilation=2, stride=2)),
        "conv1d_groups": (lambda y, h, m: m(y.transpose(1, 2)), nn.Conv1d(6, 6, 3, groups=3, padding=1)),
        "conv1d_reflect": (lambda y, h, m: m(y.transpose(1, 2)), nn.Conv1d(6, 4, 3, padding=1, padding_mode="reflect")),
        "conv2d": (lambda y, h, m: m(y.unsqueeze(1)), nn.Conv2d(1, 2, 3, padding=1)),
        "conv_transpose1d": (lambda y, h, m: m(y.transpose(1, 2)), nn.ConvTranspose1d(6, 4, 3, stride=2)),
        "conv_transpose1d_out": (
            lambda y, h, m: m(y.transpose(1, 2)),
            nn.ConvTranspose1d(6, 4, 3, stride=2, padding=1, output_padding=1),
        ),
        "max_pool": (lambda y, h, m: F.max_pool1d(y.transpose(1, 2), 2), None),
        "avg_pool": (lambda y, h, m: F.avg_pool1d(y.transpose(1, 2), 3, 2, 1), None),
        "avg_pool_ceil": (lambda y, h, m: F.avg_pool1d(y.transpose(1, 2), 2, 2, ceil_mode=True), None),
        "adaptive_avg": (lambda y, h, m: F.adaptive_avg_pool1d(y.transpose(1, 2), 1), None),
        "prelu": (lambda y, h, m: m(y), nn.PReLU()),
        "embedding": (lambda y, h, m: m((y[..., 0] * 3).abs().long()), nn.Embedding(7, 4)),
        "linear": (lambda y, h, m: m(y), nn.Linear(6, 3)),
        "bilinear": (lambda y, h, m: m(y, y), nn.Bilinear(6, 6, 2)),
        "multihead": (lambda y, h, m: m(y, y, y, need_weights=False)[0], nn.MultiheadAttention(6, 2, batch_first=True)),
        "encoder_layer": (lambda y, h, m: m(y), nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)),
        "gru_again": (lambda y, h, m: m(y)[0], nn.GRU(6, 4, batch_first=True)),
        "lstm_of_state": (lambda y, h, m: m(y, (h, h))[0], nn.LSTM(6, 6, batch_first=True)),
        "lstm_repeat": (lambda y, h, m: m(h[-1].unsqueeze(1).repeat(1, 4, 1))[0], nn.LSTM(6, 4, batch_first=True)),
        "lstm_expand": (
            lambda y, h, m: m(h[-1].unsqueeze(1).expand(-1, y.shape[1], -1))[0],
            nn.LSTM(6, 4, batch_first=True),
        ),
        "cell": (lambda y, h, m: m(y[:, 0], (h[0], h[0]))[0], nn.LSTMCell(6, 6)),
        "weight_norm": (lambda y, h, m: m(y), nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))),
        "attention_pool": (lambda y, h, m: (torch.softmax(m(y), 1) * y).sum(1), nn.Linear(6, 1)),
    }
    functions = {
        "relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"), "silu": F.silu,
        "mish": F.mish, "elu": F.elu, "selu": F.selu, "celu": F.celu, "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid, "hardtanh": F.hardtanh, "softplus": F.softplus, "softsign": F.softsign,
        "leaky_relu": F.leaky_relu, "logsigmoid": F.logsigmoid, "tanhshrink": F.tanhshrink,
        "softshrink": F.softshrink, "relu6": F.relu6, "log_softmax": lambda y: F.log_softmax(y, 1),
        "softmax_first": lambda y: F.softmax(y, 0), "glu": lambda y: F.glu(y, -1),
        "normalize": lambda y: F.normalize(y, dim=-1), "pixel": lambda y: F.pad(y, (1, 2), value=0.5),
        "pad_reflect": lambda y: F.pad(y, (1, 1), mode="reflect"),
        "pad_edge": lambda y: F.pad(y, (2, 1), mode="replicate"),
        "mean": lambda y: y.mean(1), "amax": lambda y: y.amax(1), "std": lambda y: y.std(1),
        "var": lambda y: y.var(-1, unbiased=False), "norm": lambda y: y.norm(dim=-1), "sum_all": lambda y: y.sum(),
        "prod": lambda y: y.prod(-1), "logsumexp": lambda y: y.logsumexp(-1), "cumsum": lambda y: y.cumsum(1),
        "argmax": lambda y: y.argmax(-1), "topk": lambda y: y.topk(2, -1)[0], "sort": lambda y: y.sort(-1)[0],
        "flip": lambda y: y.flip(1), "roll": lambda y: y.roll(1, 1), "transpose": lambda y: y.permute(2, 0, 1),
        "reshape": lambda y: y.reshape(y.shape[0], -1), "flatten": lambda y: y.flatten(1),
        "split": lambda y: torch.cat(y.split(2, -1)[::-1], -1), "chunk": lambda y: y.chunk(3, -1)[1],
        "stack": lambda y: torch.stack([y, y * 2], 1), "last": lambda y: y[:, -1], "steps": lambda y: y[:, ::2],
        "where": lambda y: torch.where(y > 0, y, y * 0.1), "clamp": lambda y: y.clamp(-0.2, 0.3),
        "masked_fill": lambda y: y.masked_fill(y < 0, -1e9), "pow": lambda y: y.abs() ** 1.5,
        "rsqrt": lambda y: torch.rsqrt(y.abs() + 1), "floor": lambda y: torch.floor(y * 5), "round": lambda y: torch.round(y * 5),
        "sign": torch.sign, "erf": torch.erf, "exp": torch.exp, "log1p": lambda y: torch.log1p(y.abs()),
        "sin": torch.sin, "atan": torch.atan, "einsum": lambda y: torch.einsum("btc,bsc->bts", y, y),
        "bmm": lambda y: torch.bmm(y, y.transpose(1, 2)), "matvec": lambda y: y @ y[0, 0],
        "outer": lambda y: y[..., :, None] * y[..., None, :], "gather": lambda y: y.gather(-1, y.argmax(-1, keepdim=True)),
        "index_select": lambda y: y.index_select(1, torch.tensor([0, 2])), "tril": lambda y: y.tril(),
        "cast": lambda y: (y * 10).long(), "half": lambda y: y.half().float(), "double": lambda y: y.double() * 2,
        "arange": lambda y: y * torch.arange(y.shape[1], dtype=torch.float32)[None, :, None],
        "fmod": lambda y: torch.fmod(y * 5, 2.0), "remainder": lambda y: torch.remainder(y * 5, 2.0),
        "floor_div": lambda y: (y.argmax(-1) - 3) // 2, "bool_and": lambda y: ((y > 0) & (y < 0.2)).float(),
        "onehot": lambda y: F.one_hot(y.argmax(-1), 6).float(), "scatter": lambda y: y.scatter(-1, y.argmax(-1, keepdim=True), 0.0),
        "unfold": lambda y: y.unfold(1, 2, 1), "isnan": lambda y: torch.isnan(y).float(),
        "interpolate": lambda y: F.interpolate(y.transpose(1, 2), scale_factor=2, mode="nearest"),
        "interpolate_linear": lambda y: F.interpolate(y.transpose(1, 2), scale_factor=2, mode="linear"),
        "cosine": lambda y: F.cosine_similarity(y[:, :1], y, dim=-1), "dist": lambda y: torch.cdist(y, y),
        "sdpa": lambda y: F.scaled_dot_product_attention(y, y, y),
    }
    models = {name: After(function, module) for name, (function, module) in plain.items()}
    models |= {name: After(lambda y, h, m, f=f: f(y)) for name, f in functions.items()}
    return models


def exports():
    """(name, model, input, keyword arguments of the exporter)."""
    kinds = itertools.product(("LSTM", "GRU", "RNN"), (1, 2, 3), (False, True), (False, True))
    for i, (kind, layers, bidirectional, head) in enumerate(kinds):
        for fixed in (True, False):
            for dynamo in (False, True):
                opsets = DYNAMO_OPSETS if dynamo else LEGACY_OPSETS
                # Every kind with some opsets; every opset with some kinds.
                for opset in [opsets[(i + k * 5) % len(opsets)] for k in range(2)]:
                    model = Recurrent(kind, layers, bidirectional, head, i % 2 == 0, True)
                    axes = "fixed" if fixed else "dynamic"
                    exporter = "dynamo" if dynamo else "legacy"
                    name = f"{kind}_L{layers}_bi{int(bidirectional)}_head{int(head)}_{axes}_{exporter}_{opset}"
                    yield name, model, torch.randn(2, 4, 3), dynamo, opset, fixed
    for name, model in operators().items():
        for dynamo, opset in ((False, 17), (False, 11), (True, 18)):
            exporter = "dynamo" if dynamo else "legacy"
            yield f"after_{name}_{exporter}_{opset}", model, torch.randn(2, 5, 3), dynamo, opset, name[0] < "m"


def export(model, x, dynamo, opset, fixed, path):
    options = {"opset_version": opset, "input_names": ["x"], "dynamo": dynamo}
    if not fixed:
        if dynamo:
            options["dynamic_shapes"] = {"x": {0: torch.export.Dim("b"), 1: torch.export.Dim("t")}}
        else:
            options["dynamic_axes"] = {"x": {0: "b", 1: "t"}}
    if dynamo:
        options.update(verbose=False, external_data=False)
    torch.onnx.export(model, (x,), str(path), **options)


def different(found, expected):
    """What differs between two lists of arrays, or None."""
    for name, want in expected.items():
        got = found[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"{name}: expected {want.dtype} {want.shape}, found {got.dtype} {got.shape}"
        if want.dtype.kind == "f":
            if not np.allclose(got, want, rtol=1e-3, atol=1e-5, equal_nan=True):
                return f"{name}: differs by {np.abs(got.astype('f8') - want).max():.3g}"
        elif not np.array_equal(got, want):
            return f"{name}: differs"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lstm", help="the program")
    parser.add_argument("--only", default="", help="models whose name has this text")
    parser.add_argument("--keep", help="a folder for the models")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(1)
    counts = collections.Counter()
    folder = pathlib.Path(options.keep or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    for name, model, x, dynamo, opset, fixed in exports():
        if options.only not in name:
            continue
        path = folder / f"{name}.onnx"
        try:
            export(model.eval(), x, dynamo, opset, fixed, path)
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            sizes = x.shape if fixed else (3, 6, 3)
            given = {session.get_inputs()[0].name: np.random.default_rng(2).normal(size=sizes).astype("f4")}
            outputs = session.run(None, given)
        except Exception as error:  # noqa: BLE001 - whatever the exporter or onnxruntime does not do
            counts["not exported"] += 1
            print(f"not exported  {name}: {str(error).strip().splitlines()[0][:120] if str(error) else type(error)}")
            continue
        expected = dict(zip([o.name for o in session.get_outputs()], outputs))
        np.savez(folder / "in.npz", **given)
        command = [options.lstm, "run", path, "-i", folder / "in.npz", "-o", folder / "out.npz", "--quiet"]
        done = subprocess.run(command + ["--device", options.device], capture_output=True, text=True, check=False)
        if done.returncode:
            counts["refused"] += 1
            print(f"refused       {name}: {done.stderr.strip()[-300:]}")
            continue
        with np.load(folder / "out.npz") as found:
            what = different(found, expected)
        counts["wrong" if what else "right"] += 1
        if what:
            print(f"WRONG         {name}: {what}")
        sys.stdout.flush()
    print(", ".join(f"{n} {what}" for what, n in counts.items()))
    sys.exit(1 if counts["wrong"] or counts["refused"] else 0)


if __name__ == "__main__":
    main()
