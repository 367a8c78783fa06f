"""Writes small PyTorch checkpoints, as goldens for the reader of `.pt` files.

Each `tests/data/checkpoints/NAME.pt` is what a training script might save. Beside it lies NAME.safetensors with the
same network under its bare names, the weights as f32, and for a whole network

    x [B, T, I], output [B, T, D*(H or P)]    batch-major; PyTorch's answer without initial state

The files `hostile_*.pt` hold pickles that would run code in PyTorch; none of it runs here or in this script, which
writes their opcodes by hand. Metadata of each golden: torch's version.

    python3 tools/make_checkpoints.py            writes all files (pip install -r tools/requirements.txt)
    python3 tools/make_checkpoints.py --check    compares the safetensors with a fresh computation, bit for bit

Archives hold no times, so the .pt files come out the same too, but for legacy.pt, module_legacy.pt and torchscript.pt.
"""

import argparse
import collections
import datetime
import enum
import functools
import io
import json
import pathlib
import pickle
import struct
import sys
import tarfile
import types
import warnings
import zipfile
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

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
    views = prefixed("lstm.", views)
    views["mask"] = torch.ones(1).expand(1 << 20, 1 << 20)
    yield "views", views, lstm, {}

    # Objects of other packages beside the state dict, as Lightning and training scripts save them.
    lstm = nn.LSTM(3, 2, batch_first=True)
    for protocol in (2, 4, 5):
        lightning = {
            "epoch": 3,
            "global_step": 1200,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": prefixed("lstm.", lstm.state_dict()),
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint": {"path": pathlib.PurePosixPath("a/b"), "best": torch.tensor(0.5)}},
            "hparams_name": "kwargs",
            **objects(),
        }
        yield f"objects{protocol}", lightning, lstm, {"pickle_protocol": protocol}

    # Whole modules, in both formats: their state is data, their code is not run.
    gru = nn.GRU(2, 2, batch_first=True)
    yield "module", gru, gru, {}
    rnn = nn.RNN(2, 3, nonlinearity="relu", batch_first=True)
    yield "module_legacy", {"model": Net(rnn=rnn), "epoch": 1}, rnn, LEGACY

    # The format before PyTorch 1.6: two tensors of one storage, one of half precision, objects.
    lstm = nn.LSTM(3, 2, batch_first=True)
    state = lstm.state_dict()
    biases = torch.cat([state["bias_ih_l0"], state["bias_hh_l0"]])
    state["bias_ih_l0"], state["bias_hh_l0"] = biases[:8], biases[8:]
    # This format has the source text of the classes of modules with it, which is long.
    others = {name: thing for name, thing in objects().items() if name not in ("loss", "class")}
    others["half"] = torch.ones(3, dtype=torch.float16)
    yield "legacy", {"net": {"l." + name: tensor for name, tensor in state.items()}, **others}, lstm, LEGACY

    # Weights in parts, each moved away from where it began.
    lstm = nn.LSTM(3, 2, batch_first=True)
    nn.utils.weight_norm(lstm, "weight_hh_l0")
    nn.utils.weight_norm(lstm, "weight_ih_l0", dim=None)
    nn.utils.weight_norm(lstm, "bias_hh_l0")
    yield "weight_norm", scaled(lstm, "_g"), lstm, {}
    gru = nn.GRU(3, 2, batch_first=True)
    nn.utils.parametrizations.weight_norm(gru, "weight_hh_l0")
    nn.utils.parametrizations.spectral_norm(gru, "weight_ih_l0")
    yield "parametrized", scaled(gru, "original0"), gru, {}
    lstm = nn.LSTM(3, 2, batch_first=True)
    prune.random_unstructured(lstm, "weight_hh_l0", 0.4)
    nn.utils.spectral_norm(lstm, "weight_ih_l0")
    yield "pruned", scaled(lstm, "_orig"), lstm, {}

    # fastai's WeightDropout: the weight in the outer module, in the inner one a copy with dropout.
    lstm = nn.LSTM(3, 2, batch_first=True)
    state = prefixed("0.rnns.0.module.", lstm.state_dict())
    state["0.rnns.0.weight_hh_l0_raw"] = lstm.weight_hh_l0
    state["0.rnns.0.module.weight_hh_l0"] = nn.functional.dropout(lstm.weight_hh_l0, 0.5)
    yield "weight_drop", state, lstm, {}


LEGACY = {"_use_new_zipfile_serialization": False}


def scaled(module, end):
    """The state of a module after its tensors with names that end in `end` were scaled."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(end):
                parameter.mul_(1 + torch.rand_like(parameter))
    module.eval()
    # Hooks set the weight when the module runs.
    if isinstance(module, nn.RNNBase):
        module(torch.zeros(1, 1, module.input_size))
    return module.state_dict()


class Config(dict):
    """As omegaconf and Lightning have: a dict with attributes of its own."""

    def __init__(self, **entries):
        super().__init__(**entries)
        self.flags = {"readonly": True}


class Color(enum.Enum):
    RED = 1


class Slots:
    __slots__ = ("size",)

    def __init__(self):
        self.size = 3


def objects():
    """Objects that a state dict is not made of, under names of their own."""
    settings = sys.modules.setdefault("settings", types.ModuleType("settings"))
    for thing in (Config, Color, Slots):
        thing.__module__ = "settings"
        setattr(settings, thing.__name__, thing)
    return {
        "hyper_parameters": Config(lr=1e-3, color=Color.RED, nested={"weight_ih_l0": Slots()}),
        "args": argparse.Namespace(lr=0.1, layers=[2, 3]),
        "score": numpy.float64(0.5),
        "history": numpy.arange(6, dtype=numpy.float32).reshape(2, 3),
        "counts": collections.Counter("abca"),
        "groups": collections.defaultdict(list, a=[1]),
        "since": datetime.datetime(2024, 1, 2),
        "decay": functools.partial(max, 1),
        "activation": nn.functional.relu,
        "loss": nn.CrossEntropyLoss(),
        "sparse": torch.eye(2).to_sparse(),
        "negated": torch.view_as_complex(torch.ones(2, 2)).conj().imag,
        "deque": collections.deque([1, 2]),
        "class": nn.LSTM,
    }


def tar(state):
    """A state dict of f32 as torch.save wrote it before PyTorch 0.2; its two biases are views of one storage."""
    storages, tensors, pickled = io.BytesIO(), io.BytesIO(), io.BytesIO()
    biases = torch.cat([state["bias_ih_l0"], state["bias_hh_l0"]])
    stored = {"weight_ih_l0": state["weight_ih_l0"], "weight_hh_l0": state["weight_hh_l0"], "biases": biases}
    keys = {name: 10 + i for i, name in enumerate(stored)}
    pickle.dump(len(stored), storages, 2)
    for name, tensor in stored.items():
        pickle.dump((keys[name], "cpu", torch.FloatStorage), storages, 2)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.contiguous().numpy().tobytes())
    half = biases.numel() // 2
    keys["bias_ih_l0"], keys["bias_hh_l0"] = 20, 21
    pickle.dump([(20, keys["biases"], 0, half), (21, keys["biases"], half, half)], storages, 2)
    pickle.dump(len(state), tensors, 2)
    for i, (name, tensor) in enumerate(state.items()):
        pickle.dump((140000000000000 + i, keys[name], torch.FloatTensor), tensors, 2)
        tensors.write(struct.pack("<ii", tensor.dim(), 0))
        tensors.write(struct.pack(f"<{2 * tensor.dim() + 1}q", *tensor.shape, *tensor.stride(), 0))

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            found = [i for i, tensor in enumerate(state.values()) if tensor is thing]
            return str(140000000000000 + found[0]) if found else None

    Pickler(pickled, 2).dump(collections.OrderedDict(state))
    files = {"pickle": pickled, "tensors": tensors, "storages": storages}
    return archive_of({"sys_info": pickle.dumps({}, 2), **{name: file.getvalue() for name, file in files.items()}})


def archive_of(files):
    """A tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:", format=tarfile.PAX_FORMAT) as file:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return archive.getvalue().rstrip(b"\0") + bytes(1024)


def containers():
    """(name of the file, bytes, the recurrent module): checkpoints in other containers"""
    lstm = nn.LSTM(3, 2, batch_first=True)
    state = dict(lstm.state_dict())
    yield "tar.pt", tar(state), lstm
    checkpoint = io.BytesIO()
    torch.save(prefixed("decoder.lstm.", lstm.state_dict()), checkpoint)
    config = b"target: nemo.collections.asr.models.EncDecRNNTModel\n"
    yield "model.nemo", archive_of({"./model_config.yaml": config, "./model_weights.ckpt": checkpoint.getvalue()}), lstm


def shards():
    """Writes a model in two files with an index, in both formats."""
    lstm = nn.LSTM(3, 2, batch_first=True)
    state = prefixed("encoder.", lstm.state_dict())
    for stem, end, save in (("model", "safetensors", save_file), ("pytorch_model", "bin", torch.save)):
        folder = FOLDER / f"sharded_{end}"
        folder.mkdir(exist_ok=True)
        index = {"metadata": {"total_size": sum(4 * tensor.numel() for tensor in state.values())}, "weight_map": {}}
        for number, kind in ((1, "weight"), (2, "bias")):
            shard = {name: tensor for name, tensor in state.items() if f".{kind}_" in name}
            file = f"{stem}-{number:05}-of-00002.{end}"
            save(shard, folder / file)
            index["weight_map"] |= {name: file for name in shard}
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    save_file(golden(lstm), FOLDER / "sharded.safetensors", {"torch": torch.__version__})


def golden(module):
    # The weights as the module uses them, where it keeps them in parts.
    names = [name for group in getattr(module, "_all_weights", [list(module.state_dict())]) for name in group]
    tensors = {name: getattr(module, name).detach().to(torch.float32).clone() for name in names}
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
    warnings.simplefilter("ignore")  # weight_norm and others are deprecated, and found in checkpoints
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
        for name, content, module in containers():
            (FOLDER / name).write_bytes(content)
            save_file(golden(module), FOLDER / f"{name.split('.')[0]}.safetensors", {"torch": torch.__version__})
        shards()
        torch.jit.script(nn.GRU(2, 2)).save(str(FOLDER / "torchscript.pt"))
    for name in different:
        print(f"{name}.safetensors: differs from a fresh computation", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
