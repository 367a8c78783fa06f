"""Runs the conformance corpus on an engine: every case of LSTM, GRU and RNN with expected results and tolerances.

In:  the folder tests/data/conformance (its README.md has the format) and an engine.
Out: a table of what passed, failed and was refused, by option; exit code 1 if anything failed.

This file needs numpy and safetensors and nothing else of the repository; a copy of it inside a copy of the folder
works. An engine is a function `run(case) -> {output name: array}` that raises `Refused` where it does not do what
the case asks for. To test your own:

    import conformance
    def run(case):
        # case.operator, case.attributes, case.inputs (name -> array), case.outputs (names)
        return {"Y": ..., "Y_h": ...}
    conformance.main(run)

As it is, it runs onnxruntime (packages onnx, onnxruntime): `python3 conformance.py`.
"""

import argparse
import collections
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

GROUPS = ("lstm", "gru", "rnn", "stack")
ONNX_OPERATORS = ("LSTM", "GRU", "RNN")
# What rows of X hold at or past a sequence's length: reading it would be seen.
PADDING = np.float32(1000)


class Refused(Exception):
    """The engine does not do what the case asks for."""


# --- The generator -----------------------------------------------------------------------------------------------


def splitmix64(seed, count):
    """The first `count` numbers of SplitMix64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, count + 1, dtype=np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def odd_numbers(seed, count):
    """Odd integers between -4096 and 4096."""
    return 2 * (splitmix64(seed, count) >> np.uint64(52)).astype(np.int64) + 1 - 4096


def tensor(description):
    """A tensor from its description: exact in f32."""
    count = int(np.prod(description["shape"]))
    scale, offset = (np.array(description.get(key, [0]), dtype=np.int64) for key in ("scale", "offset"))
    spread = lambda values: np.repeat(values, count // len(values))
    values = spread(scale) * odd_numbers(description["seed"], count) + 4096 * spread(offset)
    return (values / 2.0**22).astype(np.float32).reshape(description["shape"])


# Where of a large array not every element is stored: some elements, and one weighted sum of each row.
STORED_WHOLE = 256
ELEMENTS = 48


def chosen_elements(size):
    return (splitmix64(1, ELEMENTS) % np.uint64(size)).astype(np.int64)


def row_weights(width):
    """Between 1/2 and 1, of either sign: no element counts for little."""
    odd = odd_numbers(2, width)
    return (odd + 4096 * np.sign(odd)) / 8192.0


def parts(array):
    """What is stored of an array, by the ending of its name in the file."""
    array = np.asarray(array, dtype=np.float64)
    if array.size <= STORED_WHOLE:
        return {"": array}
    return {".elements": array.reshape(-1)[chosen_elements(array.size)], ".rows": array @ row_weights(array.shape[-1])}


# --- Cases -------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One case; everything an engine needs, and what it must give."""

    id: str
    group: str
    operator: str
    attributes: dict
    inputs: dict
    outputs: dict  # name -> {"shape": ..., "tolerance": ...}
    record: dict  # the case as it stands in the file
    expected: dict = field(default_factory=dict, repr=False)  # name and ending -> array

    def lengths(self):
        batch, steps = self.batch_size(), self.seq_len()
        return np.asarray(self.inputs.get("sequence_lens", np.full(batch, steps)))

    def batch_major(self):
        return self.operator == "Stack" or self.attributes.get("layout", 0) == 1

    def batch_size(self):
        return self.inputs["X"].shape[0 if self.batch_major() else 1]

    def seq_len(self):
        return self.inputs["X"].shape[1 if self.batch_major() else 0]


def materialise(record):
    """The arrays of a case."""
    inputs = {}
    for name, description in record["inputs"].items():
        if isinstance(description, list):
            inputs[name] = np.array(description, dtype=np.int32)
        else:
            inputs[name] = tensor(description)
    if "sequence_lens" in inputs:
        batch_major = record["operator"] == "Stack" or record["attributes"].get("layout", 0) == 1
        x = inputs["X"] if batch_major else inputs["X"].swapaxes(0, 1)
        for b, length in enumerate(inputs["sequence_lens"]):
            x[b, length:] = PADDING
    return inputs


def load(folder, groups=GROUPS):
    """All cases of these groups."""
    cases = []
    for group in groups:
        records = json.loads((Path(folder) / f"{group}.json").read_text())
        arrays = load_file(Path(folder) / f"{group}.safetensors")
        for record in records:
            case = Case(
                id=record["id"],
                group=group,
                operator=record["operator"],
                attributes=record["attributes"],
                inputs=materialise(record),
                outputs=record["outputs"],
                record=record,
            )
            prefix = case.id + "/"
            case.expected = {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}
            cases.append(case)
    return cases


def compare(case, outputs):
    """Why these outputs are wrong; an empty list if they are not. Also returns the largest share of a tolerance."""
    wrong, largest = [], 0.0
    for name, output in case.outputs.items():
        if outputs.get(name) is None:
            wrong.append(f"{name}: missing")
            continue
        found = np.asarray(outputs[name], dtype=np.float64)
        if list(found.shape) != output["shape"]:
            wrong.append(f"{name}: shape {list(found.shape)}, expected {output['shape']}")
            continue
        for ending, part in parts(found).items():
            expected = case.expected[name + ending]
            tolerance = output["tolerance"]
            if ending == ".rows":
                tolerance *= np.abs(row_weights(found.shape[-1])).sum()
            error = np.abs(part - expected)
            share = float(np.max(np.where(np.isfinite(error), error, np.inf))) / tolerance
            largest = max(largest, share)
            if not share <= 1:
                wrong.append(f"{name}{ending}: {share:.3g} times the tolerance")
        if name in ("Y", "output") and not np.all(padding_of(case, found) == 0):
            wrong.append(f"{name}: not zero past a sequence's length")
    return wrong, largest


def padding_of(case, array):
    """The rows of Y at or past the lengths."""
    rows = array if case.batch_major() else array.transpose(2, 0, 1, 3)
    pieces = [rows[b, length:].reshape(-1) for b, length in enumerate(case.lengths())]
    return np.concatenate(pieces)


# --- What a case is about ----------------------------------------------------------------------------------------

FUNCTIONS = [
    "Sigmoid", "Tanh", "Relu", "Affine", "LeakyRelu", "ThresholdedRelu",
    "ScaledTanh", "HardSigmoid", "Elu", "Softsign", "Softplus",
]  # fmt: skip
DEFAULT_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def kind_of_lengths(case):
    lengths, steps = case.lengths(), case.seq_len()
    if "sequence_lens" not in case.inputs:
        return "absent"
    if (lengths == 0).all():
        return "all zero"
    if (lengths == 0).any():
        return "some zero"
    if (lengths == steps).all():
        return "full"
    return "all one" if (lengths == 1).all() else "ragged"


def options(case):
    """(option, value) pairs, for tables."""
    a = case.attributes
    found = [("lengths", kind_of_lengths(case)), ("batch", case.batch_size()), ("T", case.seq_len())]
    found.append(("input size", case.inputs["X"].shape[-1]))
    if case.operator == "Stack":
        layers = a["layers"]
        found.append(("layers", len(layers)))
        for layer in layers:
            found += [("cell", layer["cell"]), ("direction", layer["direction"]), ("hidden", layer["hidden_size"])]
            flags = {key: value for key, value in layer.items() if value is not False}
            for key in ("projection_size", "projection_bias", "cell_clip", "activation_clip", "layer_norm"):
                if key in flags:
                    found.append((key, "given"))
            for key in ("peepholes", "coupled_input_forget", "bias", "linear_before_reset"):
                if key in layer:
                    found.append((key, layer[key]))
            if layer["direction"] == "bidirectional":
                found.append(("merge", layer["merge"]))
        states = sorted({name[:3] for name in case.inputs if name[:3] in ("h_0", "c_0")})
        found.append(("initial", ", ".join(states) or "absent"))
        return list(dict.fromkeys(found))
    found.append(("direction", a.get("direction", "forward (default)")))
    found.append(("hidden", case.inputs["R"].shape[-1]))
    found.append(("layout", a.get("layout", "0 (default)")))
    found.append(("B", "given" if "B" in case.inputs else "absent"))
    found.append(("initial", ", ".join(n for n in ("initial_h", "initial_c") if n in case.inputs) or "absent"))
    found.append(("outputs", ", ".join(case.outputs)))
    found.append(("clip", "given" if "clip" in a else "absent"))
    if case.operator == "LSTM":
        found.append(("P", "given" if "P" in case.inputs else "absent"))
        found.append(("input_forget", a.get("input_forget", "0 (default)")))
    if case.operator == "GRU":
        found.append(("linear_before_reset", a.get("linear_before_reset", "0 (default)")))
    functions = a.get("activations")
    found.append(("activations", "given" if functions else "absent"))
    for key in ("activation_alpha", "activation_beta"):
        found.append((key, "given" if key in a else "absent"))
    roles = len(DEFAULT_ACTIVATIONS[case.operator])
    for n, function in enumerate(functions or DEFAULT_ACTIVATIONS[case.operator]):
        name = next(name for name in FUNCTIONS if name.lower() == function.lower())
        found.append((f"function {'fgh'[n % roles]}", name))
    return list(dict.fromkeys(found))


# --- onnxruntime as an example -----------------------------------------------------------------------------------

INPUT_ORDER = {
    "LSTM": ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"],
    "GRU": ["X", "W", "R", "B", "sequence_lens", "initial_h"],
    "RNN": ["X", "W", "R", "B", "sequence_lens", "initial_h"],
}
OUTPUT_ORDER = {"LSTM": ["Y", "Y_h", "Y_c"], "GRU": ["Y", "Y_h"], "RNN": ["Y", "Y_h"]}


def onnx_model(case):
    """A model of one node, with every input an input of the graph."""
    from onnx import TensorProto, helper

    kind = lambda array: TensorProto.INT32 if array.dtype == np.int32 else TensorProto.FLOAT
    inputs = [name if name in case.inputs else "" for name in INPUT_ORDER[case.operator]]
    outputs = [name if name in case.outputs else "" for name in OUTPUT_ORDER[case.operator]]
    for names in (inputs, outputs):
        while not names[-1]:
            names.pop()
    graph = helper.make_graph(
        [helper.make_node(case.operator, inputs, outputs, **case.attributes)],
        "case",
        [helper.make_tensor_value_info(n, kind(a), a.shape) for n, a in case.inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, o["shape"]) for n, o in case.outputs.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def run_onnxruntime(case):
    """The case on onnxruntime's CPU provider."""
    import onnxruntime

    if case.operator not in ONNX_OPERATORS:
        raise Refused("not an ONNX operator")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        model = onnx_model(case).SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        found = session.run(list(case.outputs), case.inputs)
    except Exception as error:  # onnxruntime has its own classes of errors, with no common base
        if type(error).__module__.startswith("onnxruntime"):
            raise Refused(str(error).splitlines()[0]) from error
        raise
    return dict(zip(case.outputs, found))


# --- The table ---------------------------------------------------------------------------------------------------


def default_folder():
    here = Path(__file__).resolve().parent
    return here if (here / "lstm.json").exists() else here.parent / "tests" / "data" / "conformance"


def main(run=run_onnxruntime, arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=default_folder(), help="the folder with the corpus")
    parser.add_argument("--group", action="append", choices=GROUPS, help="may be repeated; default: all")
    parser.add_argument("--case", help="only cases whose id contains this")
    args = parser.parse_args(arguments)

    counts = collections.defaultdict(lambda: [0, 0, 0])
    reasons = collections.Counter()
    totals = [0, 0, 0]
    worst = 0.0
    for case in load(args.dir, args.group or GROUPS):
        if args.case and args.case not in case.id:
            continue
        try:
            wrong, share = compare(case, run(case))
        except Refused as reason:
            outcome = 2
            reasons[str(reason)[-100:]] += 1
        else:
            outcome = 1 if wrong else 0
            if wrong:
                print(f"{case.id}: {'; '.join(wrong)}  {' '.join(case.record['departures'])}".rstrip())
            else:
                worst = max(worst, share)
        totals[outcome] += 1
        for option, value in options(case):
            counts[case.group, option, str(value)][outcome] += 1
    if not any(totals):
        print("no case has such an id")
        return 1
    print(f"\n{'group':6} {'option':22} {'value':24} {'passed':>7} {'failed':>7} {'refused':>7}")
    natural = lambda key: (GROUPS.index(key[0]), key[1], key[2].isdigit() and int(key[2]) or 0, key[2])
    for key in sorted(counts, key=natural):
        print(f"{key[0]:6} {key[1]:22} {key[2]:24} " + " ".join(f"{n:7}" for n in counts[key]))
    for reason, count in reasons.most_common():
        print(f"refused {count} times: {reason}")
    print(f"{totals[0]} passed (at most {worst:.2f} of a tolerance), {totals[1]} failed, {totals[2]} refused")
    return 1 if totals[1] else 0


if __name__ == "__main__":
    sys.exit(main())
