"""What the tests of distill.py share: a tiny teacher, flags of a small run, and the command in this process."""

import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import tiny
from safetensors.numpy import save_file

from configs import options
from distill import __main__ as command
from distill.config import DistillConfig
from heads import default
from model import run_folder, weights
from train.hardware import Hardware

SPAN = default()

QUESTIONS = 20
# Two steps an epoch, the second not full: six of the task stage, four of the prediction stage.
SMALL = [
    "--layers", "1", "--hidden", "16", "--heads", "2", "--ffn", "32", "--batch-size", "12", "--buckets", "1",
    "--task-epochs", "3", "--prediction-epochs", "2", "--task-lr", "1e-2", "--prediction-lr", "1e-2",
    "--relation-weight", "1", "--log-every", "1", "--save-every", "2", "--check-questions", "0",
]  # fmt: skip
TASK, STEPS = 6, 10


def make_teacher(folder: Path, *, head: bool = True) -> Path:
    """A run folder with random weights, as train.py would have left it."""
    source = weights.load(str(tiny.weights(folder / "source", layers=2)), SPAN)
    random = np.random.default_rng(5)
    span = {"span.kernel": random.normal(size=(tiny.WIDTH, 2)), "span.bias": np.zeros(2)} if head else {}
    tensors = source.tensors | {name: array.astype(np.float32) for name, array in span.items()}
    (folder / "best").mkdir()
    save_file(tensors, folder / "best" / "model.safetensors")
    shutil.copyfile(folder / "source" / "vocab.txt", folder / "vocab.txt")
    run_folder.write(folder, run_folder.RunInfo(source.config.to_dict(), source.tokenizer, 64, 32, 24, 20))
    return folder


def flags(home: Path, out: Path) -> list[str]:
    files = {"--teacher": home / "teacher", "--data": home / "train.json", "--dev": home / "dev.json", "--out": out}
    return [str(word) for pair in (files | {"--cache": home / "cache"}).items() for word in pair] + SMALL


def distil(argv: list[str]) -> dict:
    """The command in this process, uncompiled; returns the metrics."""
    config = options.parse(DistillConfig, argv, "distill")
    machine = Hardware(False, None, rank=0, ranks=1, chief=True)
    with tiny.eager(), mock.patch.object(command.hardware, "prepare", return_value=machine):
        return command.main(config)["metrics"]
