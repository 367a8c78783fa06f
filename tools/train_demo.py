"""Trains the small speaker classifier that the demo and the tests use, and writes its data.

JapaneseVowels (Kudo, Toyama, Shimbo 1999): 270 training and 370 test utterances of 12 LPC cepstrum
coefficients, 7 to 29 frames long, from 9 speakers. The model is one forward LSTM layer and a linear
layer on the hidden state after the last valid frame. Writes into data/japanese_vowels:

    model.safetensors   lstm.weight_ih_l0 ..., linear.weight [9, H], linear.bias [9]; f32. The inputs'
                        standardisation is folded into weight_ih and bias_ih: raw coefficients go in
    test.safetensors    x f32 [370, 29, 12] (zeros past a length), lengths and labels int64 [370]

    python3 tools/train_demo.py                     trains, writes, prints the test accuracy
    python3 tools/train_demo.py --cross-validate    compares the candidates on the training set only

CHOSEN won that comparison (lowest cross-validated loss); the test utterances serve for the final
figure alone. Needs tools/requirements.txt; of `aeon` only two data files are read. One CPU thread,
fixed seed; other versions or processors may give slightly different weights.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

FOLDER = Path(__file__).resolve().parent.parent / "data" / "japanese_vowels"
SEED = 20
CLASSES = 9
FOLDS = 5


@dataclass(frozen=True)
class Config:
    """Hyperparameters; noise and shift are in standard deviations of the inputs."""

    hidden_size: int = 32
    epochs: int = 120
    batch_size: int = 30
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    noise: float = 0.0  # drawn anew for every coefficient of every frame
    shift: float = 0.0  # drawn per utterance and coefficient: another day, another microphone
    dropout: float = 0.2  # on the hidden state that the linear layer sees


CANDIDATES = [
    Config(noise=noise, shift=shift, dropout=dropout)
    for dropout in (0.2, 0.5)
    for noise in (0.0, 0.3)
    for shift in (0.0, 0.2, 0.4, 0.6)
]
CHOSEN = Config(shift=0.4, dropout=0.5)


class Classifier(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.linear = nn.Linear(hidden_size, CLASSES)

    def forward(self, x, lengths, dropout=0.0):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, (h_n, _) = self.lstm(packed)
        return self.linear(nn.functional.dropout(h_n[-1], dropout))


def read_split(split):
    """x [N, T, 12] zero-padded, lengths [N], labels [N] from 0, out of the package's .ts text.

    After @data a line is one utterance: the coefficients' series, colon after colon, then the label.
    """
    wanted = f"JapaneseVowels_{split}.ts"
    files = [file for file in metadata.files("aeon") or [] if file.name == wanted]
    if not files:
        raise FileNotFoundError(f"{wanted} is not in the installed package aeon")
    lines = files[0].locate().read_text(encoding="utf-8").split("@data\n")[1].splitlines()
    utterances, labels = [], []
    for line in lines:
        *series, label = line.split(":")
        utterances.append(torch.tensor([[float(v) for v in s.split(",")] for s in series]).T)
        labels.append(int(label) - 1)
    lengths = torch.tensor([len(utterance) for utterance in utterances])
    return pad_sequence(utterances, batch_first=True), lengths, torch.tensor(labels)


def valid_frames(x, lengths):
    return torch.arange(x.shape[1]) < lengths[:, None]


def fold_standardisation(lstm, mean, std):
    """Changes weights for (x - mean) / std into weights for x; zero padding needs no care."""
    with torch.no_grad():
        lstm.weight_ih_l0.div_(std)
        lstm.bias_ih_l0.sub_(lstm.weight_ih_l0 @ mean)


def train(config, x, lengths, labels, seed):
    """A classifier of raw coefficients."""
    torch.manual_seed(seed)
    frames = x[valid_frames(x, lengths)]
    mean, std = frames.mean(dim=0), frames.std(dim=0)
    x = (x - mean) / std  # the padding is no longer zero, and never read

    model = Classifier(x.shape[2], config.hidden_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    batches = -(-len(x) // config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.epochs * batches)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(x)).split(config.batch_size):
            batch = x[rows] + config.noise * torch.randn_like(x[rows])
            batch = batch + config.shift * torch.randn(len(rows), 1, x.shape[2])
            loss = nn.functional.cross_entropy(model(batch, lengths[rows], config.dropout), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    fold_standardisation(model.lstm, mean, std)
    return model


def evaluate(model, x, lengths, labels):
    """Correct answers and mean loss."""
    with torch.no_grad():
        scores = model(x, lengths)
    correct = (scores.argmax(dim=1) == labels).sum().item()
    return correct, nn.functional.cross_entropy(scores, labels).item()


def cross_validate(config, x, lengths, labels):
    """Accuracy and mean loss over FOLDS folds.

    A fold is a run of consecutive utterances of every speaker, so that the held-out ones were not
    spoken between those trained on.
    """
    position = torch.empty_like(labels)
    for label in range(CLASSES):
        rows = labels == label
        position[rows] = torch.arange(rows.sum().item()) * FOLDS // rows.sum()
    correct, loss = 0, 0.0
    for fold in range(FOLDS):
        held_out = position == fold
        model = train(config, x[~held_out], lengths[~held_out], labels[~held_out], SEED + fold)
        fold_correct, fold_loss = evaluate(model, x[held_out], lengths[held_out], labels[held_out])
        correct += fold_correct
        loss += fold_loss * held_out.sum().item() / len(x)
    return correct / len(x), loss


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cross-validate", action="store_true", help="compare the candidates; write nothing")
    parser.add_argument("--dir", type=Path, default=FOLDER, help="default: data/japanese_vowels")
    args = parser.parse_args()

    torch.set_num_threads(1)
    try:
        training = read_split("TRAIN")
    except (metadata.PackageNotFoundError, FileNotFoundError) as error:
        print(f"error: {error}; pip install --no-deps aeon, version in tools/requirements.txt", file=sys.stderr)
        return 1

    if args.cross_validate:
        results = []
        for config in CANDIDATES:
            start = time.monotonic()
            accuracy, loss = cross_validate(config, *training)
            results.append((loss, accuracy, config))
            print(f"loss {loss:.4f}  accuracy {accuracy:.2%}  {time.monotonic() - start:.0f} s  {config}", flush=True)
        print(f"lowest loss: {min(results, key=lambda result: result[0])[2]}")
        return 0

    start = time.monotonic()
    model = train(CHOSEN, *training, SEED)
    print(f"trained in {time.monotonic() - start:.0f} s: {CHOSEN}")
    args.dir.mkdir(parents=True, exist_ok=True)
    x, lengths, labels = read_split("TEST")
    save_file({"x": x, "lengths": lengths, "labels": labels}, args.dir / "test.safetensors")
    save_file(model.state_dict(), args.dir / "model.safetensors")

    # The figures are of the files as written.
    model.load_state_dict(load_file(args.dir / "model.safetensors"))
    for name, split in (("training", training), ("test", (x, lengths, labels))):
        correct, loss = evaluate(model, *split)
        print(f"{name}: {correct} of {len(split[0])} correct = {correct / len(split[0]):.2%}, loss {loss:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
