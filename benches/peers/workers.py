"""One peer on one case, in a process of its own, driven by compare.py through lines.

In:  the directory of a case (case.json, weights.safetensors, model.onnx, x.f32, lengths.json), as compare.py writes it.
Out: the output of the first run as a file; then, for every number N read, a line with the times of N runs in seconds.
A worker loads the model once, and every timed run goes from arrays in host memory to arrays in host memory: all hidden
states and the final states.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np


class Case:
    def __init__(self, folder):
        self.folder = Path(folder)
        for name, value in json.loads((self.folder / "case.json").read_text()).items():
            setattr(self, name, value)
        self.lengths = np.array(json.loads((self.folder / "lengths.json").read_text()))
        self.x = np.fromfile(self.folder / "x.f32", "<f4").reshape(self.len, self.batch, self.input)
        self.ragged = bool((self.lengths != self.len).any())
        self.num_directions = 2 if self.direction == "bidirectional" else 1

    def state_shape(self):
        return (self.layers * self.num_directions, self.batch, self.hidden)


class Onnxruntime:
    """onnxruntime, CPU execution provider."""

    def __init__(self, case, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.version = onnxruntime.__version__
        self.case = case
        path = str(case.folder / "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.feed = {"x": case.x, "h_0": np.zeros(case.state_shape(), np.float32), "c_0": np.zeros(case.state_shape(), np.float32)}
        if case.ragged:
            self.feed["lengths"] = case.lengths.astype(np.int32)

    def run(self):
        y, h, c = self.session.run(None, self.feed)
        if self.case.carried:
            self.feed["h_0"], self.feed["c_0"] = h, c
        return y


class Openvino:
    """OpenVINO, CPU plugin, the same ONNX file."""

    def __init__(self, case, threads):
        import openvino

        self.version = openvino.__version__
        self.case = case
        core = openvino.Core()
        config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        model = core.compile_model(core.read_model(case.folder / "model.onnx"), "CPU", config)
        self.request = model.create_infer_request()
        zeros = np.zeros(case.state_shape(), np.float32)
        self.feed = {"x": case.x, "h_0": zeros, "c_0": zeros}
        if case.ragged:
            self.feed["lengths"] = case.lengths.astype(np.int32)

    def run(self):
        found = self.request.infer(self.feed, share_inputs=True)
        y, h, c = found["y"], found["h_n"], found["c_n"]
        if self.case.carried:
            self.feed["h_0"], self.feed["c_0"] = h.copy(), c.copy()
        return y


class Torch:
    """PyTorch's nn.LSTM; on a GPU cuDNN, whose settings are chosen by `mode`."""

    def __init__(self, case, threads, device="cpu", mode="strict"):
        import torch
        from safetensors.torch import load_file

        self.torch, self.case, self.device = torch, case, device
        self.version = torch.__version__
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        if mode == "strict":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        if device == "cuda":
            self.version += f" cuDNN {torch.backends.cudnn.version()} {torch.cuda.get_device_name()}"
        self.dtype = torch.float16 if mode == "f16" else torch.float32
        bidirectional = case.direction == "bidirectional"
        self.lstm = torch.nn.LSTM(case.input, case.hidden, case.layers, bidirectional=bidirectional)
        self.lstm.load_state_dict(load_file(case.folder / "weights.safetensors"))
        self.lstm.to(device, self.dtype).eval()
        self.x = torch.from_numpy(case.x)
        self.lengths = torch.from_numpy(case.lengths)
        zeros = torch.zeros(case.state_shape(), device=device, dtype=self.dtype)
        self.state = (zeros, zeros)

    def run(self):
        torch, rnn = self.torch, self.torch.nn.utils.rnn
        x = self.x.to(self.device, self.dtype)
        if self.case.ragged:
            x = rnn.pack_padded_sequence(x, self.lengths, enforce_sorted=False)
        y, state = self.lstm(x, self.state)
        if self.case.ragged:
            y, _ = rnn.pad_packed_sequence(y, total_length=self.case.len)
        if self.case.carried:
            self.state = state
        _ = [s.float().cpu() for s in state]
        return y.float().cpu().numpy()


def make(peer, case, threads):
    match peer:
        case "onnxruntime":
            return Onnxruntime(case, threads)
        case "openvino":
            return Openvino(case, threads)
        case "torch":
            return Torch(case, threads)
        case "cudnn-strict" | "cudnn-tf32" | "cudnn-f16":
            return Torch(case, threads, "cuda", peer.removeprefix("cudnn-"))
    raise SystemExit(f"unknown peer: {peer}")


def main():
    peer, folder, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    case = Case(folder)
    begin = time.perf_counter()
    worker = make(peer, case, threads)
    loaded = time.perf_counter()
    y = worker.run()
    first = time.perf_counter()
    np.ascontiguousarray(y, dtype="<f4").tofile(case.folder / f"y-{peer}.f32")
    print(json.dumps({"version": worker.version, "load": loaded - begin, "first": first - loaded}), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            worker.run()
            times.append(time.perf_counter() - start)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
