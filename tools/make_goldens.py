"""Freezes what PyTorch computes for small random LSTMs, as goldens for the tests of this crate.

Each case becomes tests/data/goldens/NAME.safetensors with

    weight_ih_l0, weight_hh_l0_reverse, ...   the state dict under PyTorch's names
    x [B, T, I], lengths [B]                  batch-major; past its length a sequence holds junk near 1e3
    h_0 [L*D, B, H or P], c_0 [L*D, B, H]     absent in the cases named nostate
    output [B, T, D*(H or P)], h_n, c_n       PyTorch's answers, run packed; output is 0 past a length

and string metadata: case, dtype, seed, torch. Weights, x and states are rounded to f32 in every case,
so that a reader of f32 loses nothing; an f64 case holds the same numbers and computes in f64. The cases
named cell_* come from nn.LSTMCell, stepped by a loop: names without a suffix, all lengths T, one row of
state [1, B, H].

Layers, directions, gates and biases differ in scale, so that a swap shows.

    python3 tools/make_goldens.py            writes all files (pip install -r tools/requirements.txt)
    python3 tools/make_goldens.py --check    compares the files with a fresh computation, bit for bit

Other versions or processors may differ in the last bits; commit such a change only on purpose.
"""

import argparse
import json
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn

from dump_expected import run_lstm

GOLDENS = Path(__file__).resolve().parent.parent / "tests" / "data" / "goldens"
DTYPES = {"f32": torch.float32, "f64": torch.float64}

# Factors on what nn.LSTM would draw, U(-1/sqrt(H), 1/sqrt(H)). They keep the layers about contractive:
# trajectories from different initial states approach each other.
GATE_SCALES = {"i": 0.7, "f": 1.0, "g": 1.3, "o": 0.5}
LAYER_SCALES = (1.0, 1.25, 0.8)
REVERSE_SCALE = 0.85
TENSOR_SCALES = {"weight_ih": 1.2, "weight_hh": 1.0, "weight_hr": 1.5, "bias_ih": 1.5, "bias_hh": 0.6}
JUNK = 1e3


@dataclass
class Case:
    name: str  # without the dtype
    seed: int
    input_size: int
    hidden_size: int
    lengths: tuple
    seq_len: int
    num_layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0
    bias: bool = True
    state: bool = True
    cell: bool = False
    dtypes: tuple = ("f32",)

    def describe(self):
        kind = "nn.LSTMCell" if self.cell else "nn.LSTM"
        return (
            f"{kind}: input_size {self.input_size}, hidden_size {self.hidden_size}, "
            f"num_layers {self.num_layers}, bidirectional {self.bidirectional}, "
            f"proj_size {self.proj_size}, bias {self.bias}, initial state {self.state}, "
            f"lengths {list(self.lengths)} of {self.seq_len}"
        )


BOTH = ("f32", "f64")
CASES = [
    Case("l1_fwd", 1, 5, 7, (9, 1, 6), 9, dtypes=BOTH),
    Case("l1_fwd_aligned", 2, 8, 16, (3, 17, 8, 17, 1), 17),
    Case("l1_bi", 3, 13, 25, (4, 20, 1, 13), 20, bidirectional=True, dtypes=BOTH),
    Case("l2_fwd", 4, 8, 16, (6, 2, 11), 12, num_layers=2),  # no sequence reaches T
    Case("l2_bi", 5, 5, 7, (7, 15, 3, 1), 15, num_layers=2, bidirectional=True, dtypes=BOTH),
    Case("l2_bi_aligned", 6, 8, 16, (10, 5), 10, num_layers=2, bidirectional=True),
    Case("l3_fwd", 7, 13, 25, (5, 18, 11), 18, num_layers=3),
    Case("l3_bi", 8, 3, 5, (1, 12, 7), 12, num_layers=3, bidirectional=True, dtypes=BOTH),
    Case("l1_fwd_proj", 9, 8, 16, (14, 2, 9), 14, proj_size=4),
    Case("l1_bi_proj_nobias", 10, 5, 7, (8, 1, 4, 11), 11, bidirectional=True, proj_size=3, bias=False),
    Case("l2_fwd_proj_nobias", 11, 5, 9, (2, 13, 6), 13, num_layers=2, proj_size=5, bias=False, dtypes=BOTH),
    Case("l2_bi_proj", 12, 6, 13, (3, 16, 9), 16, num_layers=2, bidirectional=True, proj_size=5, dtypes=BOTH),
    Case("l2_bi_nobias", 13, 5, 7, (12, 4, 7), 12, num_layers=2, bidirectional=True, bias=False),
    Case("l1_fwd_nostate", 14, 13, 25, (2, 10, 5, 10), 10, state=False),
    Case("l2_bi_nostate", 15, 5, 7, (6, 14, 1), 14, num_layers=2, bidirectional=True, state=False, dtypes=BOTH),
    Case("l2_bi_proj_nostate", 16, 8, 12, (9, 3), 9, num_layers=2, bidirectional=True, proj_size=4, state=False),
    Case("cell", 17, 5, 7, (8, 8, 8), 8, cell=True),
    Case("cell_nobias", 18, 8, 16, (6, 6), 6, cell=True, bias=False, dtypes=("f64",)),
]


def make_module(case):
    """The nn.LSTM (batch_first) or nn.LSTMCell of a case, with scaled random weights, in f64."""
    if case.cell:
        module = nn.LSTMCell(case.input_size, case.hidden_size, bias=case.bias, dtype=torch.float64)
    else:
        module = nn.LSTM(
            case.input_size,
            case.hidden_size,
            num_layers=case.num_layers,
            bias=case.bias,
            batch_first=True,
            bidirectional=case.bidirectional,
            proj_size=case.proj_size,
            dtype=torch.float64,
        )
    gates = torch.tensor(list(GATE_SCALES.values()), dtype=torch.float64)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            layer = 0 if case.cell else int(name.removesuffix("_reverse").rpartition("_l")[2])
            kind = "_".join(name.split("_")[:2])
            tensor.uniform_(-1, 1).mul_(case.hidden_size**-0.5 * TENSOR_SCALES[kind] * LAYER_SCALES[layer])
            if name.endswith("_reverse"):
                tensor.mul_(REVERSE_SCALE)
            if kind != "weight_hr":  # [P, H], the only one without gate rows
                scales = gates.repeat_interleave(case.hidden_size)
                tensor.mul_(scales if tensor.dim() == 1 else scales[:, None])
    return module


def run_cell(cell, x, h, c):
    """Steps an nn.LSTMCell over x [B, T, I] from h, c [1, B, H]."""
    h, c, output = h[0], c[0], []
    with torch.no_grad():
        for t in range(x.shape[1]):
            h, c = cell(x[:, t], (h, c))
            output.append(h)
    return torch.stack(output, dim=1), h[None], c[None]


def make_golden(case, dtype):
    """All tensors of one file."""
    torch.manual_seed(case.seed)
    module = make_module(case).float().to(DTYPES[dtype])
    batch_size = len(case.lengths)
    lengths = torch.tensor(case.lengths)
    x = torch.randn(batch_size, case.seq_len, case.input_size, dtype=torch.float64)
    padding = torch.arange(case.seq_len) >= lengths[:, None]
    x[padding] = JUNK * (1 + x[padding].abs())
    stack = case.num_layers * (2 if case.bidirectional else 1)
    h_0 = 0.5 * torch.randn(stack, batch_size, case.proj_size or case.hidden_size, dtype=torch.float64)
    c_0 = torch.randn(stack, batch_size, case.hidden_size, dtype=torch.float64)

    x, h_0, c_0 = (tensor.float().to(DTYPES[dtype]) for tensor in (x, h_0, c_0))
    tensors = dict(module.state_dict()) | {"x": x, "lengths": lengths}
    if case.state:
        tensors |= {"h_0": h_0, "c_0": c_0}
    if case.cell:
        answers = run_cell(module, x, h_0, c_0)
    else:
        answers = run_lstm(module, x, lengths, tensors.get("h_0"), tensors.get("c_0"))
    tensors |= dict(zip(("output", "h_n", "c_n"), answers))
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def file_bytes(case, dtype):
    """The golden as a safetensors file whose header is in a fixed order, so that reruns are equal."""
    metadata = {
        "case": case.describe(),
        "dtype": dtype,
        "seed": str(case.seed),
        "torch": torch.__version__.partition("+")[0],
    }
    plain = save(make_golden(case, dtype))
    size = struct.unpack("<Q", plain[:8])[0]
    header = {"__metadata__": metadata} | json.loads(plain[8 : 8 + size])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + plain[8 + size :]


def describe_difference(old, new):
    """Which tensor of two files differs most, for the message of --check."""
    old, new = load(old), load(new)
    if old.keys() != new.keys() or any(old[n].shape != new[n].shape for n in old):
        return "other tensors"
    worst = {n: (old[n].double() - new[n].double()).abs().max().item() for n in old}
    name = max(worst, key=worst.get)
    return f"{name} by up to {worst[name]:.1e}" if worst[name] else "metadata only"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file differs")
    parser.add_argument("--dir", type=Path, default=GOLDENS, help="default: tests/data/goldens")
    args = parser.parse_args()

    torch.set_num_threads(1)
    args.dir.mkdir(parents=True, exist_ok=True)
    differing, total_bytes = 0, 0
    for case in CASES:
        for dtype in case.dtypes:
            path = args.dir / f"{case.name}_{dtype}.safetensors"
            data = file_bytes(case, dtype)
            total_bytes += len(data)
            if not args.check:
                path.write_bytes(data)
            elif not path.exists():
                differing += 1
                print(f"{path.name}: missing")
            elif path.read_bytes() != data:
                differing += 1
                print(f"{path.name}: differs, {describe_difference(path.read_bytes(), data)}")
    files = sum(len(case.dtypes) for case in CASES)
    print(f"{files} goldens, {total_bytes} bytes" + (f", {differing} differing" if args.check else ""))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
