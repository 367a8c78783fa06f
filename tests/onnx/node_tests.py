#!/usr/bin/env python3
"""ONNX's own node tests through `lstm run`.

    python tests/onnx/node_tests.py target/release/lstm [--only TEXT] [--update] [--list]

Every case of `onnx.backend.test.case.node` is a model of one operator with inputs and the outputs that its text asks
for. A case is right (same types, shapes and numbers within the tolerance of the case), refused (an error, exit code 1),
or WRONG (other numbers with exit code 0, a crash, a hang). Cases whose inputs or outputs are not tensors of numbers
that numpy has are not carried by .npz files and not run.

The exit code is 1 if a case is WRONG, or if one that `node_tests.tsv` calls right is right no more. `--update` writes
that table, which also has the reason of each refusal.

Needs onnx and numpy (tools/requirements.txt).
"""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import onnx

warnings.filterwarnings("ignore")
TABLE = pathlib.Path(__file__).with_name("node_tests.tsv")
# Their numbers are drawn at random: whoever draws others is not wrong.
RANDOM = {"Bernoulli", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial"}
SECONDS = 60


def carried(values, infos):
    """The values as arrays by name, or None if one is no array of numbers that numpy has."""
    arrays = {}
    for info, value in zip(infos, values):
        if value is None or isinstance(value, (list, tuple, dict)):
            return None
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" or array.dtype.name in ("bfloat16",) or array.dtype.isbuiltin != 1:
            return None
        arrays[info.name] = array
    return arrays


def difference(found, expected, rtol, atol):
    """What differs between the arrays, or None."""
    for name, want in expected.items():
        if name not in found:
            return f"{name}: missing"
        got = found[name]
        if got.dtype != want.dtype or got.shape != want.shape:
            return f"{name}: expected {want.dtype} {want.shape}, found {got.dtype} {got.shape}"
        if want.dtype.kind == "f":
            # Half precision has three digits.
            tolerance = max(rtol, 5e-3) if want.dtype == np.float16 else rtol
            if not np.allclose(got.astype("f8"), want.astype("f8"), rtol=tolerance, atol=atol, equal_nan=True):
                return f"{name}: differs by {np.nanmax(np.abs(got.astype('f8') - want)):.3g}"
        elif not np.array_equal(got, want):
            return f"{name}: differs"
    return None


def run(case, lstm, folder):
    """(outcome, reason)"""
    inputs, outputs = case.data_sets[0]
    inputs, outputs = carried(inputs, case.model.graph.input), carried(outputs, case.model.graph.output)
    if any(node.op_type in RANDOM for node in case.model.graph.node):
        return "not compared", "random numbers"
    if inputs is None or outputs is None:
        return "not carried", ""
    folder = pathlib.Path(tempfile.mkdtemp(dir=folder))
    onnx.save(case.model, folder / "model.onnx")
    np.savez(folder / "in.npz", **inputs)
    command = [lstm, "run", folder / "model.onnx", "-i", folder / "in.npz", "-o", folder / "out.npz", "--quiet"]
    try:
        done = subprocess.run(
            [*command, "--device", "cpu"], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "WRONG", f"does not end within {SECONDS} s"
    if done.returncode == 1:
        return "refused", done.stderr.strip().replace(f"{folder}{os.sep}", "").removeprefix("lstm: ")
    if done.returncode:
        return "WRONG", f"exit code {done.returncode}: {done.stderr.strip()[:200]}"
    atol = case.atol
    if any(node.op_type in ("DFT", "STFT") for node in case.model.graph.node):
        # Terms cancel to zeros that are as far off as the rounding of the inputs, 2^-24 of each, adds up to.
        atol = max(atol, 2**-24 * sum(np.abs(a).sum() for a in inputs.values() if a.dtype.kind == "f"))
    with np.load(folder / "out.npz") as found:
        what = difference(found, outputs, case.rtol, atol)
    return ("WRONG", what) if what else ("right", "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lstm", help="the program")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--update", action="store_true", help="write the table")
    parser.add_argument("--list", action="store_true", help="print every case")
    options = parser.parse_args()
    if options.update and options.only:
        parser.error("--update: expected all cases, found --only")

    from onnx.backend.test.case.node import collect_testcases

    cases = {case.name: case for case in collect_testcases(None) if options.only in case.name}
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(cases, pool.map(lambda case: run(case, options.lstm, folder), cases.values())))

    known = {}
    if TABLE.exists():
        for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]:
            name, outcome, *_ = line.split("\t")
            known[name] = outcome
    lost = [name for name, (outcome, _) in results.items() if known.get(name) == "right" and outcome != "right"]
    for name, (outcome, reason) in results.items():
        if outcome == "WRONG" or name in lost or options.list:
            print(f"{outcome}: {name}: {reason}")
    if options.update:
        lines = [f"{name}\t{outcome}\t{reason}" for name, (outcome, reason) in sorted(results.items())]
        header = f"case of onnx {onnx.__version__}\toutcome\treason"
        TABLE.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    counts = collections.Counter(outcome for outcome, _ in results.values())
    print(f"{len(results)} cases: " + ", ".join(f"{n} {what}" for what, n in counts.most_common()))
    sys.exit(1 if counts["WRONG"] or lost or not counts["right"] else 0)


if __name__ == "__main__":
    main()
