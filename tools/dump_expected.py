"""Computes with PyTorch what a recurrent network should answer, for comparison with this crate.

Given a PyTorch state dict and sequences, writes the `output`, `h_n` and `c_n` of `torch.nn.LSTM`, or the `output` and
`h_n` of `torch.nn.GRU` or `torch.nn.RNN`:

    python3 tools/dump_expected.py --weights model.safetensors --prefix lstm in.npz --out expected.npz

The weights are a safetensors file, the index of one in several files (model.safetensors.index.json), or a checkpoint
(.pt, .pth, .ckpt). `--prefix` is what `lstm run --prefix` takes: with or without its last dot, and without what wrappers
put into names (`encoder` finds `state_dict.module.encoder.`); absent, the file's only network. A checkpoint is loaded
with `weights_only=True`; `--trust` loads one that needs more, which runs the code that it names.

`in.npz` holds `x` [B, T, I] ([T, B, I] with `--layout time`) and, if wanted, `lengths` [B],
`h_0` [L*D, B, H or P] and `c_0` [L*D, B, H]; what is absent means full length, zero state.
`output` comes back in the layout of `x`, with zeros past each length. The network, the sizes, the directions, the
projection and the biases follow from the tensors' names and shapes. PyTorch refuses sequences of
length 0; here they keep their initial state and their output is zero.

Without a model at hand, `--random` draws one together with ragged input and initial states:

    python3 tools/dump_expected.py --random --input-size 5 --hidden-size 7 --layers 2 --bidirectional \\
        --batch 3 --len 11 --seed 1 --dir DIR

which writes DIR/model.safetensors, DIR/in.npz and DIR/expected.npz.

Exit code: 0 done, 1 a file or an array in it is not usable, 2 wrong arguments.
Needs tools/requirements.txt (torch, numpy, safetensors).
"""

import argparse
import json
import pickle
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

TENSOR = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(?:_l(\d+)(_reverse)?)?")
GOLDEN = {"x", "lengths", "h_0", "c_0", "output", "h_n", "c_n"}
WHOLE_NAME = re.compile(rf"(.*?)({TENSOR.pattern})")
DTYPES = {"f32": torch.float32, "f64": torch.float64}
NETWORKS = {4: nn.LSTM, 3: nn.GRU, 1: nn.RNN}  # by the rows of weight_hh, in hidden sizes

# Components of names that wrappers and checkpoints add; those of src/weights/state_dict.rs.
WRAPPERS = {
    "module",
    "_orig_mod",
    "model",
    "net",
    "state_dict",
    "model_state_dict",
    "model_state",
    "module_state_dict",
}


class DataError(Exception):
    """A file or an array that cannot be used; the message names it."""


def network_from_tensors(tensors, dtype, nonlinearity=None):
    """An nn.LSTM, GRU or RNN (batch_first) that holds `tensors`, its options read off their names and shapes."""
    state, layers, directions = {}, set(), set()
    for name, tensor in tensors.items():
        found = TENSOR.fullmatch(name)
        if not found:
            raise DataError(f"{name}: not the name of a tensor of nn.LSTM, GRU or RNN; what it changes is not known")
        if not tensor.is_floating_point():
            raise DataError(f"{name}: expected floating point, found {tensor.dtype}")
        kind, layer, reverse = found.groups(default="")
        state[f"{kind}_l{layer or 0}{reverse}"] = tensor.to(dtype)  # names of cells have no suffix
        layers.add(int(layer or 0))
        directions.add(reverse)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        if name not in state:
            raise DataError(f"{name}: not found")
        if state[name].dim() != 2:
            raise DataError(f"{name}: expected 2 axes, found shape {list(state[name].shape)}")
    if layers != set(range(len(layers))):
        raise DataError(f"layers 0 to {max(layers)} expected, found {sorted(layers)}")

    rows, input_size = state["weight_ih_l0"].shape
    columns = state["weight_hh_l0"].shape[1]
    # Only nn.LSTM has projections, and with one the columns of weight_hh are fewer.
    gates = 4 if "weight_hr_l0" in state else rows // columns if columns else 0
    if gates not in NETWORKS or rows == 0 or rows % gates:
        raise DataError(
            f"weight_ih_l0: expected 4, 3 or 1 * hidden_size rows, found {rows}, with weight_hh of {columns} columns"
        )
    options = {}
    if gates == 1:
        options["nonlinearity"] = nonlinearity or "tanh"
    elif nonlinearity:
        raise DataError(f"--rnn-activation: expected none for nn.{NETWORKS[gates].__name__}, found {nonlinearity}")
    if "weight_hr_l0" in state:
        options["proj_size"] = state["weight_hr_l0"].shape[0]
    try:
        network = NETWORKS[gates](
            input_size,
            rows // gates,
            num_layers=len(layers),
            bias="bias_ih_l0" in state,
            batch_first=True,
            bidirectional="_reverse" in directions,
            dtype=dtype,
            **options,
        )
        network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"the tensors do not fit together: {error}") from error
    return network.eval()


def run_network(network, x, lengths, h_0=None, c_0=None):
    """`output`, `h_n` and, of an LSTM, `c_n` of a batch_first network for `x` [B, T, I] and `lengths` [B]."""
    batch_size, seq_len, _ = x.shape
    has_c = isinstance(network, nn.LSTM)
    directions = 2 if network.bidirectional else 1
    width = network.proj_size or network.hidden_size
    stack = network.num_layers * directions
    if h_0 is None:
        h_0 = x.new_zeros(stack, batch_size, width)
    if c_0 is None:
        c_0 = x.new_zeros(stack, batch_size, network.hidden_size)

    output = x.new_zeros(batch_size, seq_len, directions * width)
    h_n, c_n = h_0.clone(), c_0.clone()
    rows = lengths > 0
    if rows.any():
        packed = pack_padded_sequence(x[rows], lengths[rows], batch_first=True, enforce_sorted=False)
        h, c = h_0[:, rows].contiguous(), c_0[:, rows].contiguous()
        with torch.no_grad():
            packed, state = network(packed, (h, c) if has_c else h)
        h_n[:, rows] = state[0] if has_c else state
        if has_c:
            c_n[:, rows] = state[1]
        output[rows], _ = pad_packed_sequence(packed, batch_first=True, total_length=seq_len)
    return output, h_n, c_n if has_c else None


def load_tensors(path, trust):
    """All tensors of a file by name; the keys of nested dicts are joined by dots."""
    try:
        if path.name.endswith(".index.json"):
            files = sorted(set(json.loads(path.read_text())["weight_map"].values()))
            if any(Path(file).name != file for file in files):
                raise DataError(f"{path}: expected files of its own folder, found {files}")
            shards = [load_tensors(path.parent / file, trust) for file in files]
            return {name: tensor for shard in shards for name, tensor in shard.items()}
        with open(path, "rb") as file:
            head = file.read(9)
        if head[8:] == b"{":
            return load_file(path)
        saved = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        why = re.search(r"Unsupported [^\n]*?(?= was not| by default|\n|$)", str(error))
        why = why.group(0) if why else str(error).splitlines()[0]
        raise DataError(f"{path}: {why}; --trust loads it and runs the code that it names") from error
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path}: {error}") from error

    tensors, path_of = {}, []

    def collect(thing):
        if isinstance(thing, nn.Module):
            thing = thing.state_dict()
        if isinstance(thing, torch.Tensor):
            tensors[".".join(path_of)] = thing.detach()
        elif isinstance(thing, dict):
            for key, value in thing.items():
                path_of.append(str(key))
                collect(value)
                path_of.pop()

    collect(saved)
    return tensors


def without_wrappers(prefix):
    return ".".join(part for part in prefix.split(".") if part not in WRAPPERS)


def read_tensors(path, prefix, trust):
    """The tensors of the network at `prefix`, or of the only one, without the prefix."""
    tensors = load_tensors(path, trust)
    matches = (WHOLE_NAME.fullmatch(name) for name in tensors)
    prefixes = sorted({found.group(1) for found in matches if found})
    shown = ", ".join(repr(found) for found in prefixes) or f"none; the file has {', '.join(sorted(tensors)[:8])}"
    fitting = prefixes
    if prefix is not None:
        wanted = prefix.removesuffix(".")
        fitting = [found for found in prefixes if found.removesuffix(".") == wanted]
        if not fitting:
            wanted = without_wrappers(wanted)
            fitting = [found for found in prefixes if without_wrappers(found.removesuffix(".")) == wanted]
    if len(fitting) != 1:
        asked = "one network, or --prefix to choose" if prefix is None else f"one network at {prefix!r}"
        raise DataError(f"{path}: expected {asked}, found {shown}")
    start = fitting[0]
    # Names that only begin alike are of other modules; those inside a module may be a part of it.
    others = tuple(found for found in prefixes if found != start and found.startswith(start) and start[-1:] != ".")
    own = {name: t for name, t in tensors.items() if name.startswith(start) and not name.startswith(others)}
    below = {name[len(start) :]: tensor for name, tensor in own.items()}
    # Weight drop of fastai keeps the weight in the module around the network, and a copy with dropout in it.
    for outside in (start, start.removesuffix("module.")):
        for name, tensor in tensors.items():
            inner = name.removeprefix(outside).removesuffix("_raw")
            if name == f"{outside}{inner}_raw" and TENSOR.fullmatch(inner):
                below.pop(f"{inner}_raw", None)
                below[inner] = tensor
    # What a golden holds beside its weights.
    if {"x", "output"} <= below.keys():
        below = {name: t for name, t in below.items() if name not in GOLDEN}
    return below


def read_input(path, network, layout, dtype):
    """x [B, T, I], lengths [B], h_0 and c_0 (None if absent), checked against the network."""
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file: {error}") from error

    unknown = sorted(set(arrays) - {"x", "lengths", "h_0", "c_0"})
    if unknown:
        raise DataError(f"{path}: unknown array {unknown[0]}; x, lengths, h_0, c_0 are read")
    if "c_0" in arrays and not isinstance(network, nn.LSTM):
        raise DataError(f"c_0: expected none, since nn.{type(network).__name__} has no cell state")
    if "x" not in arrays:
        raise DataError(f"{path}: the array x is missing")
    x = arrays["x"]
    if x.ndim != 3 or x.shape[2] != network.input_size:
        axes = "[B, T, I]" if layout == "batch" else "[T, B, I]"
        raise DataError(f"x: expected {axes} with I = {network.input_size}, found {list(x.shape)}")
    if layout == "time":
        x = x.swapaxes(0, 1)
    batch_size, seq_len, _ = x.shape

    lengths = arrays.get("lengths", np.full(batch_size, seq_len))
    if lengths.shape != (batch_size,) or lengths.dtype.kind not in "iu":
        raise DataError(f"lengths: expected {batch_size} integers, found {lengths.dtype} {list(lengths.shape)}")
    for sequence, length in enumerate(lengths):
        if not 0 <= length <= seq_len:
            raise DataError(f"lengths[{sequence}]: expected 0 to {seq_len}, found {length}")

    stack = network.num_layers * (2 if network.bidirectional else 1)
    widths = {"h_0": network.proj_size or network.hidden_size, "c_0": network.hidden_size}
    states = []
    for name, width in widths.items():
        state, shape = arrays.get(name), (stack, batch_size, width)
        if state is not None and state.shape != shape:
            raise DataError(f"{name}: expected [L*D, B, width] = {list(shape)}, found {list(state.shape)}")
        states.append(None if state is None else as_tensor(name, state, dtype))
    return as_tensor("x", x, dtype), torch.tensor(lengths.astype(np.int64)), *states


def as_tensor(name, array, dtype):
    if array.dtype.kind != "f":
        raise DataError(f"{name}: expected floating point, found {array.dtype}")
    return torch.from_numpy(array.astype(np.float64)).to(dtype)


def write_npz(path, layout, batch_first, others):
    """Writes `others` and, in `layout`, the [B, T, ...] tensors of `batch_first`; None is left out."""
    arrays = {name: t.numpy() for name, t in others.items() if t is not None}
    for name, tensor in batch_first.items():
        arrays[name] = (tensor if layout == "batch" else tensor.transpose(0, 1)).numpy()
    try:
        with open(path, "wb") as file:  # a path given to savez would get .npz appended
            np.savez(file, **{name: np.ascontiguousarray(array) for name, array in arrays.items()})
    except OSError as error:
        raise DataError(f"{path}: {error}") from error


def write_random_model(args, dtype):
    """Draws weights, ragged input and initial states; writes model.safetensors and in.npz."""
    torch.manual_seed(args.seed)
    kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[args.network]
    options = {"proj_size": args.proj_size} if kind is nn.LSTM else {}
    if kind is nn.RNN and args.rnn_activation:
        options["nonlinearity"] = args.rnn_activation
    network = kind(
        args.input_size,
        args.hidden_size,
        num_layers=args.layers,
        bias=not args.no_bias,
        bidirectional=args.bidirectional,
        dtype=dtype,
        **options,
    )
    stack = args.layers * (2 if args.bidirectional else 1)
    x = torch.randn(args.batch, args.len, args.input_size, dtype=dtype)
    lengths = torch.randint(args.min_len, args.len + 1, (args.batch,))
    if args.batch:
        lengths[torch.randint(args.batch, ())] = args.len
    h_0 = 0.5 * torch.randn(stack, args.batch, args.proj_size or args.hidden_size, dtype=dtype)
    c_0 = 0.5 * torch.randn(stack, args.batch, args.hidden_size, dtype=dtype)
    if args.no_state:
        h_0 = c_0 = None
    if kind is not nn.LSTM:
        c_0 = None

    try:
        args.dir.mkdir(parents=True, exist_ok=True)
        prefix = args.prefix or ""
        tensors = {prefix + name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        save_file(tensors, args.weights)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{args.dir}: {error}") from error
    write_npz(args.input, args.layout, {"x": x}, {"lengths": lengths, "h_0": h_0, "c_0": c_0})


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", nargs="?", type=Path, metavar="in.npz", help="x and, if wanted, lengths, h_0, c_0")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="safetensors, an index of them, or a checkpoint")
    parser.add_argument("--prefix", help="what precedes weight_ih_l0 in the tensors' names, e.g. lstm, as for lstm run")
    parser.add_argument("--rnn-activation", choices=("tanh", "relu"), help="of an RNN (default: tanh)")
    parser.add_argument("--trust", action="store_true", help="load a checkpoint that runs code, and run it")
    parser.add_argument(
        "--layout", choices=("batch", "time"), default="batch", help="axes of x and output (default: batch)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="arithmetic (default: f64 if the weights are f64, else f32)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: expected.npz")
    parser.add_argument("--random", action="store_true", help="draw a model and its input instead of reading them")

    drawn = parser.add_argument_group("with --random")
    sizes = [
        drawn.add_argument("--dir", type=Path, help="folder for the three files (required)"),
        drawn.add_argument("--network", choices=("lstm", "gru", "rnn"), help="default: lstm"),
        drawn.add_argument("--input-size", type=int, metavar="I", help="default: 5"),
        drawn.add_argument("--hidden-size", type=int, metavar="H", help="default: 7"),
        drawn.add_argument("--layers", type=int, metavar="L", help="default: 1"),
        drawn.add_argument("--proj-size", type=int, metavar="P", help="0 for none (default: 0)"),
        drawn.add_argument("--batch", type=int, metavar="B", help="default: 3"),
        drawn.add_argument("--len", type=int, metavar="T", help="longest sequence (default: 11)"),
        drawn.add_argument("--min-len", type=int, metavar="N", help="shortest sequence (default: 1, or 0 if T is 0)"),
        drawn.add_argument("--seed", type=int, help="default: 0"),
        drawn.add_argument("--bidirectional", action="store_true", default=None),
        drawn.add_argument("--no-bias", action="store_true", default=None),
        drawn.add_argument("--no-state", action="store_true", default=None, help="leave h_0 and c_0 out"),
    ]
    args = parser.parse_args()

    if not args.random:
        for option in sizes:
            if getattr(args, option.dest) is not None:
                parser.error(f"{option.option_strings[0]} needs --random")
        if args.weights is None or args.input is None:
            parser.error("--weights FILE and in.npz are required (or --random)")
        args.out = args.out or Path("expected.npz")
        return args

    if args.dir is None:
        parser.error("--random needs --dir DIR")
    if args.weights or args.input or args.out:
        parser.error("--random writes into --dir; it takes no --weights, no --out and no in.npz")
    defaults = {"network": "lstm", "input_size": 5, "hidden_size": 7, "layers": 1, "proj_size": 0}
    defaults |= {"batch": 3, "len": 11, "seed": 0}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.min_len is None:
        args.min_len = min(1, args.len)
    for name in ("input_size", "hidden_size", "layers"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, found {getattr(args, name)}")
    if args.batch < 0:
        parser.error(f"--batch: expected at least 0, found {args.batch}")
    if not 0 <= args.proj_size < args.hidden_size:
        parser.error(f"--proj-size: expected 0 to hidden_size - 1 = {args.hidden_size - 1}, found {args.proj_size}")
    if not 0 <= args.min_len <= args.len:
        parser.error(f"--min-len and --len: expected 0 <= min-len <= len, found {args.min_len} and {args.len}")
    if args.proj_size and args.network != "lstm":
        parser.error(f"--proj-size: expected none for {args.network}, found {args.proj_size}")
    args.weights = args.dir / "model.safetensors"
    args.input = args.dir / "in.npz"
    args.out = args.dir / "expected.npz"
    return args


def main():
    args = parse_arguments()
    try:
        if args.random:
            write_random_model(args, DTYPES[args.dtype or "f32"])
        tensors = read_tensors(args.weights, args.prefix, args.trust)
        dtype = DTYPES.get(args.dtype)
        if dtype is None:
            is_f64 = any(tensor.dtype == torch.float64 for tensor in tensors.values())
            dtype = torch.float64 if is_f64 else torch.float32
        network = network_from_tensors(tensors, dtype, args.rnn_activation)
        batch = read_input(args.input, network, args.layout, dtype)
        output, h_n, c_n = run_network(network, *batch)
        write_npz(args.out, args.layout, {"output": output}, {"h_n": h_n, "c_n": c_n})
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shape = list(output.shape if args.layout == "batch" else output.transpose(0, 1).shape)
    of_c = "" if c_n is None else f", c_n {list(c_n.shape)}"
    print(f"{args.out}: output {shape}, h_n {list(h_n.shape)}{of_c} of {network}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
