"""Writes small PyTorch checkpoints, as goldens for the reader of `.pt` files.

Each `tests/data/checkpoints/NAME.pt` is what a training script might save. Beside it lies NAME.safetensors with the
same network under its bare names, the weights as f32, and for a whole network

    x [B, T, I], output [B, T, D*(H or P)]    batch-major; PyTorch's answer without initial state

The files `hostile_*.pt` hold pickles that would run code in PyTorch; none of it runs here or in this script, which
writes their opcodes by hand. Metadata of each golden: torch's version.

    python3 tools/make_checkpoints.py            writes all files (pip install -r tools/requirements.txt)
    python3 tools/make_checkpoints.py --check    compares the safetensors with a fresh computation, bit for bit

Archives hold no times, so the .pt files come out the same too, but for legacy.pt and torchscript.pt.
"""

import argparse
import collections
import io
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "data" / "checkpoints"


def prefixed(prefix, state):
    return collections.OrderedDict((prefix + name, tensor) for name, tensor in state.items())


class Net(nn.Module):
    """Nothing but a place for modules whose names a checkpoint has."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def checkpoints():
    """(name, what torch.save is given, the recurrent module, options of torch.save)"""
    torch.manual_seed(1)

    # A training script's checkpoint of a DataParallel model, optimizer state and plain data beside it.
    lstm = nn.LSTM(3, 5, 2, bidirectional=True, proj_size=2, batch_first=True)
    model = nn.DataParallel(Net(encoder=lstm, head=nn.Linear(4, 2)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    lstm(torch.ones(1, 2, 3))[0].sum().backward()
    optimizer.step()
    plain = {
        "epoch": 17,
        "best": -0.25,
        "done": False,
        "args": {"lr": 1e-3, "layers": [2, 3], "name": "naïve", "seed": 1 << 70, "shape": torch.Size([2, 3])},
        "classes": ("a", ("b", None)),
        "seen": {1, 2, 3},
        "raw": b"\x00\xff",
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "counts": torch.tensor([1, 2, 3], dtype=torch.uint16),  # a type without a storage class of its own
        "rng": torch.get_rng_state()[:16].clone(),
    }
    yield "lstm", {**plain, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, lstm, {}

    # A bare state dict, as torch.save(module.state_dict()) writes it.
    gru = nn.GRU(4, 3, 2, bidirectional=True, batch_first=True)
    yield "gru", gru.state_dict(), gru, {}

    # torch.compile's wrapper, and protocol 4.
    rnn = nn.RNN(4, 3, nonlinearity="relu", batch_first=True)
    yield "rnn_relu", {"model": prefixed("_orig_mod.rnn.", rnn.state_dict())}, rnn, {"pickle_protocol": 4}

    # Two cells, parameters instead of tensors.
    cell = nn.GRUCell(4, 3)
    other = nn.LSTMCell(4, 3)
    parameters = {"a": dict(cell.named_parameters()), "b": dict(other.named_parameters())}
    yield "cells", {"model_state": parameters}, cell, {}

    # Half precision, rounded before it computes.
    bf16 = nn.LSTM(4, 3, batch_first=True).to(torch.bfloat16)
    yield "bf16", bf16.state_dict(), bf16, {}
    f16 = nn.LSTM(4, 3, batch_first=True, bias=False).to(torch.float16)
    yield "f16", f16.state_dict(), f16, {}
    f64 = nn.LSTM(4, 3, batch_first=True).to(torch.float64)
    yield "f64", f64.state_dict(), f64, {}

    # One storage for all: offsets, a transposed view, a view with gaps.
    lstm = nn.LSTM(4, 3, batch_first=True)
    state = lstm.state_dict()
    shared = torch.empty(1000).fill_(float("nan"))
    views = collections.OrderedDict()
    views["weight_ih_l0"] = shared[7 : 7 + 48].view(4, 12).t()
    views["weight_hh_l0"] = shared[100 : 100 + 12 * 7].view(12, 7)[:, 1:7:2]
    views["bias_ih_l0"] = shared[200 : 200 + 36 : 3]
    views["bias_hh_l0"] = shared[300:312]
    for name, view in views.items():
        view.copy_(state[name])
    views["mask"] = torch.ones(1).expand(1 << 20, 1 << 20)
    yield "views", views, lstm, {}


def golden(module):
    tensors = {name: tensor.detach().to(torch.float32).clone() for name, tensor in module.state_dict().items()}
    if isinstance(module, nn.RNNBase):
        x = torch.randn(2, 5, module.input_size)
        with torch.no_grad():
            tensors["x"], tensors["output"] = x, module.to(torch.float32)(x)[0]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


# Opcodes of pickletools: c GLOBAL, R REDUCE, i INST, o OBJ, 0x81 NEWOBJ, 0x93 STACK_GLOBAL, b BUILD, . STOP.
ECHO = b"X\x09\x00\x00\x00echo boom"
HOSTILE = {
    "reduce": b"\x80\x02cos\nsystem\n" + ECHO + b"\x85R.",
    "stack_global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + ECHO + b"\x85R.",
    "inst": b"\x80\x02(" + ECHO + b"ios\nsystem\n.",
    "obj": b"\x80\x02(cos\nsystem\n" + ECHO + b"o.",
    "newobj": b"\x80\x02csubprocess\nPopen\n" + ECHO + b"\x85\x81.",
    "build": b"\x80\x02cbuiltins\neval\n)\x81}b.",
    # Allowed classes, asked for more than data.
    "obj_allowed": b"\x80\x02(ccollections\nOrderedDict\no.",
    "newobj_allowed": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "build_allowed": b"\x80\x02ctorch\nSize\n)R}b.",
    "getattr": b"\x80\x02c__builtin__\ngetattr\n" + ECHO + ECHO + b"\x86R.",
    "extension": b"\x80\x02\x82\x01.",
    "nested": b"\x80\x02}X\x01\x00\x00\x00acos\nsystem\n" + ECHO + b"\x85Rs.",
}


def archive(pickle):
    """A checkpoint around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        for name, data in (("data.pkl", pickle), ("byteorder", b"little"), ("version", b"3\n")):
            z.writestr(zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0)), data)
    return file.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    different = []
    for name, saved, module, options in checkpoints():
        file = io.BytesIO()
        torch.save(saved, file, **options)
        tensors = golden(module)
        path = FOLDER / f"{name}.safetensors"
        if arguments.check:
            old = load_file(path)
            if old.keys() != tensors.keys() or any(not torch.equal(old[k], tensors[k]) for k in old):
                different.append(name)
        else:
            save_file(tensors, path, {"torch": torch.__version__})
            (FOLDER / f"{name}.pt").write_bytes(file.getvalue())
    if not arguments.check:
        for name, pickle in HOSTILE.items():
            (FOLDER / f"hostile_{name}.pt").write_bytes(archive(pickle))
        gru = nn.GRU(2, 2).state_dict()
        torch.save(gru, FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)
        torch.jit.script(nn.GRU(2, 2)).save(str(FOLDER / "torchscript.pt"))
        torch.save(nn.GRU(2, 2), FOLDER / "module.pt")
    for name in different:
        print(f"{name}.safetensors: differs from a fresh computation", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
