#!/usr/bin/env python3
"""wgpu-lstm beside other libraries on the shapes of benches/cases.toml, in one run.

Every library runs in a process of its own and each alone in its turn; the turns of all libraries on a case are
interleaved, round after round. Before anything is timed, its output must agree with an f64 computation. Ratios are of
the medians of the rounds; their interval is the middle half of the ratios of single rounds.

    python benches/peers/compare.py --cases W1,W2 --threads 1,2 --peers wgpu-lstm:cpu,onnxruntime,openvino,torch

Needs the packages of requirements.txt, and builds the workers in rust/ with cargo. Exit codes: 0, or 1 if a library
failed or gave wrong numbers, 2 for a mistake in the arguments.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Absolute, of outputs between -1 and 1; half precision has 11 bits.
TOLERANCE = {"cudnn-tf32": 2e-2, "cudnn-f16": 2e-2, "wgpu-lstm:cpu:f16": 2e-2, "wgpu-lstm:gpu:f16": 2e-2}
DEFAULT_TOLERANCE = 1e-5
PYTHON_PEERS = ["onnxruntime", "openvino", "torch", "cudnn-strict", "cudnn-tf32", "cudnn-f16"]
RUST_PEERS = ["rten", "tract", "burn"]
ONNX_PEERS = ["onnxruntime", "openvino", "rten", "tract"]


def main():
    arguments = parse()
    if arguments.table:
        for path in arguments.table:
            print_table(json.loads(path.read_text()))
        return 0
    binary = build(arguments)
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as scratch:
        for case in arguments.cases:
            folder = Path(scratch) / case["name"].replace(" ", "-")
            folder.mkdir()
            expected = write(case, folder, arguments.peers)
            for threads in arguments.threads:
                found, wrong = compare(case, folder, expected, threads, arguments, binary)
                rows += found
                failed |= wrong
    record = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "commit": commit(), "rows": rows}
    print_table(record)
    if arguments.record:
        Path(arguments.record).write_text(json.dumps(record, indent=1) + "\n")
    return 1 if failed else 0


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="W1,W2,W3,W4,W5,W6,W7", help="names in benches/cases.toml, or `all` for its group `shapes`")
    parser.add_argument("--peers", default="wgpu-lstm:cpu,onnxruntime,openvino,torch", help=f"of wgpu-lstm:DEVICE, {', '.join(PYTHON_PEERS + RUST_PEERS)}")
    parser.add_argument("--threads", default="2", help="numbers of threads, e.g. 1,2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a library's turn in a round")
    parser.add_argument("--worker", metavar="FILE", type=Path, help="rust/'s program, built before; cargo is not called")
    parser.add_argument("--record", metavar="FILE", help="write all times as JSON")
    parser.add_argument("--table", metavar="FILE", nargs="+", type=Path, help="print the tables of records and measure nothing")
    arguments = parser.parse_args()
    table = {c["name"]: c for c in tomllib.loads((ROOT / "benches/cases.toml").read_text())["case"] if "name" in c}
    all_names = [name for name, case in table.items() if case["group"] == "shapes"]
    names = all_names if arguments.cases == "all" else arguments.cases.split(",")
    if unknown := [name for name in names if name not in table]:
        parser.error(f"unknown case {unknown[0]!r}; benches/cases.toml has {', '.join(table)}")
    defaults = {"layers": 1, "direction": "forward", "carried": False, "min_len": None}
    arguments.cases = [defaults | table[name] for name in names]
    arguments.peers = arguments.peers.split(",")
    for peer in arguments.peers:
        if peer not in PYTHON_PEERS + RUST_PEERS and not peer.startswith("wgpu-lstm:"):
            parser.error(f"unknown peer {peer!r}")
    try:
        arguments.threads = [int(n) for n in arguments.threads.split(",")]
    except ValueError:
        parser.error(f"--threads: expected numbers, found {arguments.threads!r}")
    files = [("--worker", arguments.worker)] if arguments.worker else []
    for option, file in files + [("--table", file) for file in arguments.table or []]:
        if not file.is_file():
            parser.error(f"{option}: there is no file {file}")
    if arguments.record and not Path(arguments.record).absolute().parent.is_dir():
        parser.error(f"--record: there is no folder for {arguments.record}")
    return arguments


def build(arguments):
    # All or none of them: another choice of features builds their shared dependencies anew.
    features = RUST_PEERS if any(peer in RUST_PEERS for peer in arguments.peers) else []
    needed = features or any(peer.startswith("wgpu-lstm") for peer in arguments.peers)
    if not needed:
        return None
    if arguments.worker:
        return arguments.worker
    manifest = HERE / "rust/Cargo.toml"
    command = ["cargo", "build", "--release", "--no-default-features", "--features", ",".join(features), "--manifest-path", manifest]
    subprocess.run(command, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", manifest.parent / "target")) / "release/lstm-peers"


# Cases ----------------------------------------------------------------------------------------------------------------


def write(case, folder, peers):
    """Writes a case's model and input; returns the output that an f64 computation gives."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(20261125)
    batch, seq_len, hidden = case["batch"], case["len"], case["hidden"]
    directions = 2 if case["direction"] == "bidirectional" else 1
    bound = hidden**-0.5
    uniform = lambda *shape: random.uniform(-bound, bound, shape).astype(np.float32)
    weights = {}
    for layer in range(case["layers"]):
        width = case["input"] if layer == 0 else directions * hidden
        for suffix in ["", "_reverse"][:directions]:
            weights[f"weight_ih_l{layer}{suffix}"] = uniform(4 * hidden, width)
            weights[f"weight_hh_l{layer}{suffix}"] = uniform(4 * hidden, hidden)
            weights[f"bias_ih_l{layer}{suffix}"] = uniform(4 * hidden)
            weights[f"bias_hh_l{layer}{suffix}"] = uniform(4 * hidden)
    x = random.uniform(-1, 1, (seq_len, batch, case["input"])).astype(np.float32)
    lengths = np.full(batch, seq_len)
    if case["min_len"] is not None:
        lengths = random.integers(case["min_len"], seq_len + 1, batch)
        lengths[0] = seq_len
    save_file(weights, folder / "weights.safetensors")
    if any(peer in ONNX_PEERS for peer in peers):
        (folder / "model.onnx").write_bytes(onnx_model(case, weights, ragged=bool((lengths != seq_len).any())))
    x.astype("<f4").tofile(folder / "x.f32")
    (folder / "lengths.json").write_text(json.dumps(lengths.tolist()))
    (folder / "case.json").write_text(json.dumps(case))
    return in_f64(case, weights, x, lengths)


def onnx_model(case, weights, ragged):
    from onnx import TensorProto, helper, numpy_helper

    hidden, directions = case["hidden"], 2 if case["direction"] == "bidirectional" else 1
    order = [0, 3, 1, 2]  # ONNX has i o f c
    gates = lambda w: np.concatenate([w[g * hidden : (g + 1) * hidden] for g in order])
    nodes, constants, rows = [], {}, "x"
    states = [case["layers"] * directions, case["batch"], hidden]
    for name in ["h", "c"]:
        sizes = np.full(case["layers"], directions)
        constants["parts"] = sizes
        parts = [f"{name}_0_l{l}" for l in range(case["layers"])]
        nodes.append(helper.make_node("Split", [f"{name}_0", "parts"], parts, axis=0))
    for l in range(case["layers"]):
        suffixes = ["", "_reverse"][:directions]
        stack = lambda name: np.stack([gates(weights[f"{name}_l{l}{s}"]) for s in suffixes])
        constants[f"w{l}"] = stack("weight_ih")
        constants[f"r{l}"] = stack("weight_hh")
        constants[f"b{l}"] = np.concatenate([stack("bias_ih"), stack("bias_hh")], axis=1)
        inputs = [rows, f"w{l}", f"r{l}", f"b{l}", "lengths" if ragged else "", f"h_0_l{l}", f"c_0_l{l}"]
        outputs = [f"y{l}", f"h_n_l{l}", f"c_n_l{l}"]
        direction = "bidirectional" if directions == 2 else "forward"
        nodes.append(helper.make_node("LSTM", inputs, outputs, hidden_size=hidden, direction=direction))
        last = l + 1 == case["layers"]
        rows = "y" if last else f"rows{l + 1}"
        constants["shape"] = np.array([0, 0, directions * hidden])
        nodes.append(helper.make_node("Transpose", [f"y{l}"], [f"t{l}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"t{l}", "shape"], [rows]))
    for name in ["h", "c"]:
        nodes.append(helper.make_node("Concat", [f"{name}_n_l{l}" for l in range(case["layers"])], [f"{name}_n"], axis=0))
    value = lambda name, shape, kind=TensorProto.FLOAT: helper.make_tensor_value_info(name, kind, shape)
    inputs = [value("x", [case["len"], case["batch"], case["input"]]), value("h_0", states), value("c_0", states)]
    inputs += [value("lengths", [case["batch"]], TensorProto.INT32)] if ragged else []
    outputs = [value("y", [case["len"], case["batch"], directions * hidden]), value("h_n", states), value("c_n", states)]
    initializers = [numpy_helper.from_array(v, n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "lstm", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def in_f64(case, weights, x, lengths):
    """The output by the equations of torch.nn.LSTM; zero past the lengths."""
    sigmoid = lambda v: 1 / (1 + np.exp(-v))
    rows, hidden = x.astype(np.float64), case["hidden"]
    directions = 2 if case["direction"] == "bidirectional" else 1
    for layer in range(case["layers"]):
        outputs = []
        for suffix in ["", "_reverse"][:directions]:
            get = lambda name: weights[f"{name}_l{layer}{suffix}"].astype(np.float64)
            projected = rows @ get("weight_ih").T + get("bias_ih") + get("bias_hh")
            weight_hh = get("weight_hh").T
            h, c = np.zeros((2, case["batch"], hidden))
            output = np.zeros((case["len"], case["batch"], hidden))
            for t in range(case["len"]) if suffix == "" else reversed(range(case["len"])):
                live = (t < lengths)[:, None]
                i, f, g, o = np.split(projected[t] + h @ weight_hh, 4, axis=1)
                c = np.where(live, sigmoid(f) * c + sigmoid(i) * np.tanh(g), c)
                h = np.where(live, sigmoid(o) * np.tanh(c), h)
                output[t] = np.where(live, h, 0)
            outputs.append(output)
        rows = np.concatenate(outputs, axis=2)
    return rows


# Measuring ------------------------------------------------------------------------------------------------------------


class Worker:
    """A library on one case, in a process."""

    def __init__(self, peer, folder, threads, binary):
        self.peer, self.folder, self.log = peer, folder, folder / f"{peer.replace(':', '-')}.log"
        command = [binary] if peer not in PYTHON_PEERS else [sys.executable, HERE / "workers.py"]
        names = ["OMP_NUM_THREADS", "RAYON_NUM_THREADS", "RTEN_NUM_THREADS", "MKL_NUM_THREADS"]
        environment = os.environ | {name: str(threads) for name in names}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [*command, peer, folder, str(threads)], stdin=pipe, stdout=pipe, stderr=self.log.open("w"), env=environment, text=True
        )

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError((self.log.read_text().strip().splitlines() or ["no output"])[-1])
        return json.loads(line)

    def times(self, runs):
        self.process.stdin.write(f"{runs}\n")
        self.process.stdin.flush()
        return self.answer()

    def error(self, expected):
        found = np.fromfile(self.folder / f"y-{self.peer}.f32", "<f4")
        if found.size != expected.size:
            return float("inf")
        return float(np.max(np.abs(found - expected.ravel()))) if found.size else 0.0

    def stop(self):
        self.process.kill()
        self.process.wait()


def compare(case, folder, expected, threads, arguments, binary):
    workers, rows, wrong = [], [], False
    for peer in arguments.peers:
        worker = Worker(peer, folder, threads, binary)
        try:
            ready = worker.answer()
            error = worker.error(expected)
            if not error <= TOLERANCE.get(peer, DEFAULT_TOLERANCE):
                raise RuntimeError(f"wrong by {error:.1e}")
        except RuntimeError as e:
            worker.stop()
            wrong = True
            print(f"{case['name']:10} {peer:20} {threads} threads: {e}", flush=True)
            rows.append({"case": case["name"], "peer": peer, "threads": threads, "failed": str(e)})
            continue
        # One run to warm up says how many fill a turn.
        once = min(worker.times(2))
        worker.runs = int(np.clip(arguments.seconds / once, 1, 2000))
        worker.row = {"case": case["name"], "peer": peer, "threads": threads, "error": error, **ready, "rounds": []}
        workers.append(worker)
        rows.append(worker.row)
    for round in range(arguments.rounds):
        # Each goes first in its turn.
        order = workers[round % len(workers) :] + workers[: round % len(workers)] if workers else []
        for worker in order:
            time.sleep(0.05)  # threads of the one before stop spinning
            worker.row["rounds"].append(statistics.median(worker.times(worker.runs)))
    for worker in workers:
        worker.stop()
    report(case, threads, rows)
    return rows, wrong


def ratio(ours, row):
    """The median of a library's times in times of ours, and the middle half."""
    ratios = sorted(b / a for a, b in zip(ours["rounds"], row["rounds"]))
    quarter = len(ratios) // 4
    return statistics.median(ratios), f"{ratios[quarter]:.2f}–{ratios[-1 - quarter]:.2f}"


def milliseconds(seconds):
    value = seconds * 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def print_table(record):
    """Markdown: our median in ms, then for each library its time in times of ours."""
    print(f"\n{record['machine']['cpu']}, {record['machine']['cpus']} CPUs, {record['date']}, {record['commit']}")
    for threads in sorted({row["threads"] for row in record["rows"]}, reverse=True):
        of_threads = [row for row in record["rows"] if row["threads"] == threads]
        peers = list(dict.fromkeys(row["peer"] for row in of_threads))
        versions = {row["peer"]: row["version"].split("-")[0] for row in of_threads if "version" in row}
        print(f"\n{threads} thread{'s' * (threads > 1)}\n")
        print(f"| | {peers[0]}, ms | " + " | ".join(f"{peer} {versions.get(peer, '')}" for peer in peers[1:]) + " |")
        print("|---" * (len(peers) + 1) + "|")
        for case in dict.fromkeys(row["case"] for row in of_threads):
            rows = {row["peer"]: row for row in of_threads if row["case"] == case}
            ours = rows.get(peers[0], {})
            cells = [milliseconds(ours["median"]) if "median" in ours else "failed"]
            for peer in peers[1:]:
                row = rows.get(peer, {})
                if "failed" in row:
                    cells.append("wrong numbers" if row["failed"].startswith("wrong") else "failed")
                elif "rounds" not in row or "rounds" not in ours:
                    cells.append("–")
                else:
                    cells.append("{:.2f} ({})".format(*ratio(ours, row)))
            print(f"| {case} | " + " | ".join(cells) + " |")


def report(case, threads, rows):
    rows = [row for row in rows if "rounds" in row]
    if not rows:
        return
    ours = rows[0]
    for row in rows:
        row["median"] = statistics.median(row["rounds"])
        row["ratio"], interval = ratio(ours, row)
        print(
            f"{case['name']:10} {row['peer']:20} {threads} threads  {row['median'] * 1e3:10.3f} ms  "
            f"{row['ratio']:6.2f} x {ours['peer']} ({interval})  error {row['error']:.0e}  {row['version']}",
            flush=True,
        )


def machine():
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")] if Path("/proc/cpuinfo").exists() else []
    return {"cpu": names[0] if names else platform.processor(), "cpus": os.cpu_count(), "system": platform.platform()}


def commit():
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
