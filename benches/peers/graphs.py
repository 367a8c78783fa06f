#!/usr/bin/env python3
"""Whole ONNX graphs: `lstm bench` beside onnxruntime, in turn, outputs compared first.

    python benches/peers/graphs.py target/release/lstm model.onnx in.npz [--rounds 9] [--threads 2] [--record FILE.json]

A round is a process of `lstm bench` on the CPU backend and as many runs of one onnxruntime session in this process; each
gives a median. Printed are the medians over the rounds and the ratio onnxruntime / lstm of each round, with its spread.

Needs onnxruntime and numpy (benches/peers/requirements.txt).
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lstm")
    parser.add_argument("model")
    parser.add_argument("arrays")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record")
    options = parser.parse_args()

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(options.model, settings, providers=["CPUExecutionProvider"])
    feeds = dict(np.load(options.arrays))
    names = [o.name for o in session.get_outputs()]
    expected = dict(zip(names, session.run(names, feeds)))
    environment = {**os.environ, "RAYON_NUM_THREADS": str(options.threads), "RTEN_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out.npz"
        command = [options.lstm, "run", options.model, "-i", options.arrays, "-o", out, "--device", "cpu", "--quiet"]
        subprocess.run(command, check=True, env=environment)
        found = np.load(out)
        worst = max(float(np.abs(found[n].astype("f8") - e).max(initial=0)) for n, e in expected.items())
    if worst > 1e-4:
        sys.exit(f"the outputs differ by {worst}")

    rounds = []
    for _ in range(options.rounds):
        times = []
        for _ in range(options.runs):
            start = time.perf_counter()
            session.run(names, feeds)
            times.append(time.perf_counter() - start)
        command = [options.lstm, "bench", options.model, "-i", options.arrays, "--device", "cpu", "--json"]
        done = subprocess.run(
            [*command, "--runs", str(options.runs)], check=True, capture_output=True, text=True, env=environment
        )
        rounds.append({
            "onnxruntime_ms": statistics.median(times) * 1e3,
            "lstm_ms": json.loads(done.stdout)["rows"][0]["median_ms"],
        })
    ratios = sorted(r["onnxruntime_ms"] / r["lstm_ms"] for r in rounds)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "model": pathlib.Path(options.model).name,
        "shapes": {name: list(array.shape) for name, array in feeds.items()},
        "threads": options.threads,
        "runs": options.runs,
        "onnxruntime": onnxruntime.__version__,
        "largest_difference": worst,
        "rounds": rounds,
        "ratio": {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]},
    }
    if options.record:
        pathlib.Path(options.record).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    middle = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    print(
        f"{result['model']}: onnxruntime {middle['onnxruntime_ms']:.3f} ms, lstm {middle['lstm_ms']:.3f} ms, "
        f"ratio {result['ratio']['median']:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
