"""A BERT that trains in seconds: weights as Hugging Face lays them out, a vocabulary, questions, ways to run it."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf
from safetensors.numpy import save_file

from configs import options
from data import builtin
from model.dropout import dropout
from model.run_folder import RunInfo
from train import __main__ as command
from train import loop
from train.config import TrainConfig
from train.hardware import Hardware
from train.optimizer import AdamW, learning_rate
from train.precision import LossScale
from train.step import Step

ROOT = Path(__file__).parent.parent
WIDTH, HEADS, FFN, POSITIONS = 32, 2, 64, 64
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
SMALL = ("--window", "64", "--stride", "32", "--query", "24", "--batch-size", "8", "--lr", "5e-3", "--buckets", "1")


def questions(path: Path, count: int, *, part: str = "train", version: str = "1.1") -> Path:
    """A SQuAD file of so many built-in questions, each with little more than the sentence that answers it."""
    raw = builtin.load(part, count=count, version=version)
    for article in raw["data"]:
        article["paragraphs"] = [
            _shortened(paragraph["context"], qa) for paragraph in article["paragraphs"] for qa in paragraph["qas"]
        ]
    path.write_text(json.dumps(raw), encoding="utf-8")
    return path


def _shortened(context: str, qa: dict, around: int = 30) -> dict:
    """One question with so many characters of context on both sides of its answer: one window, not a dozen."""
    answer = qa["answers"][0] if qa["answers"] else {"answer_start": around, "text": ""}
    first = max(answer["answer_start"] - around, 0)
    last = answer["answer_start"] + len(answer["text"]) + around
    answers = [answer | {"answer_start": answer["answer_start"] - first}] if qa["answers"] else []
    return {"context": context[first:last], "qas": [qa | {"answers": answers}]}


def vocabulary(size: int = 400) -> list[str]:
    """Special pieces, letters, and the words that the built-in questions use most."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ALPHABET, *(f"##{c}" for c in ALPHABET), *".,?!'-"]
    text = json.dumps(builtin.load("train", count=40)).lower()
    words = [word for word, _ in Counter(re.findall(r"[a-z]{2,}", text)).most_common(size)]
    return list(dict.fromkeys([*pieces, *words]))[:size]


def weights(folder: Path, *, layers: int = 1, seed: int = 0, rows: int = 400, pieces: int = 400) -> Path:
    """A folder with config.json, model.safetensors and vocab.txt; `rows` embeddings for `pieces` words."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {}

    def dense(name: str, inputs: int, outputs: int) -> None:  # Hugging Face keeps kernels as [outputs, inputs]
        tensors[f"{name}.weight"] = random.normal(0, 0.1, (outputs, inputs)).astype(np.float32)
        tensors[f"{name}.bias"] = np.zeros(outputs, np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)

    for name, count in (("word", rows), ("position", POSITIONS), ("token_type", 2)):
        tensors[f"embeddings.{name}_embeddings.weight"] = random.normal(0, 0.1, (count, WIDTH)).astype(np.float32)
    norm("embeddings.LayerNorm")
    for index in range(layers):
        stem = f"encoder.layer.{index}"
        for part in ("query", "key", "value"):
            dense(f"{stem}.attention.self.{part}", WIDTH, WIDTH)
        dense(f"{stem}.attention.output.dense", WIDTH, WIDTH)
        dense(f"{stem}.intermediate.dense", WIDTH, FFN)
        dense(f"{stem}.output.dense", FFN, WIDTH)
        norm(f"{stem}.attention.output.LayerNorm")
        norm(f"{stem}.output.LayerNorm")
    save_file(tensors, folder / "model.safetensors")
    sizes = {
        "vocab_size": rows, "hidden_size": WIDTH, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "intermediate_size": FFN, "max_position_embeddings": POSITIONS, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(vocabulary(pieces)) + "\n", encoding="utf-8")
    return folder


def arguments(folder: Path, out: str = "run", count: int = 60) -> list[str]:
    """Flags of a small run whose files all lie below `folder`."""
    model, data = folder / "model", folder / f"train-{count}.json"
    if not model.exists():
        weights(model)
    if not data.exists():
        questions(data, count)
    files = {"--model": model, "--data": data, "--out": folder / out, "--cache": folder / "cache"}
    return [str(word) for pair in files.items() for word in pair] + list(SMALL)


def settings(argv: list[str]) -> TrainConfig:
    """What `train.py` would understand by these flags."""
    return options.parse(TrainConfig, argv, "train")


def train(argv: list[str], machine: Hardware | None = None) -> dict:
    """The command in this process, whose TensorFlow is left as it is; returns the metrics."""
    config = settings(argv)
    tf.keras.utils.set_random_seed(config.seed)
    machine = machine or Hardware(False, None, rank=0, ranks=1, chief=True)
    with mock.patch.object(command.hardware, "prepare", return_value=machine):
        return command.main(config)["metrics"]


def start(argv: list[str], command: tuple[str, ...] = ("train.py",), **environment: str) -> subprocess.Popen:
    """The command in a process of its own, on the CPU; XLA compiles sooner what then runs slower."""
    quick = {"CUDA_VISIBLE_DEVICES": "-1", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.Popen(
        [sys.executable, *command, *argv], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, **quick, **environment},
    )  # fmt: skip


def finish(process: subprocess.Popen, timeout_s: float = 120) -> tuple[int, dict, str]:
    """(exit code, last line of stdout as JSON, everything on stdout and stderr); a process that hangs is killed."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"not done after {timeout_s} s\n{out}\n{err}") from None
    lines = out.strip().splitlines()
    last = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return process.returncode, last, f"{out}\n{err}"


def lines(run: Path, key: str = "loss") -> list[dict]:
    """The objects in metrics.jsonl that have `key`; Python's own NaN and Infinity are no JSON."""

    def refuse(word: str):
        raise AssertionError(f"{word} in metrics.jsonl")

    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    read = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    return [line for line in read if key in line]


def job(out: Path, *, epochs: int = 3, spoil: bool = False, scale: float = 2.0**15, **settings) -> loop.Job:
    """A loop over seven batches an epoch that learns y = x @ kernel in float16, with dropout, two batches an update.

    spoil: make the targets infinite, so that no step is ever taken.
    """
    random = np.random.default_rng(0)
    weights = {
        "w.kernel": tf.Variable(random.normal(size=(4, 3)).astype(np.float32)),
        "w.bias": tf.Variable(tf.zeros(3)),
    }

    def objective(given, seed):
        x = tf.cast(dropout(given["x"], 0.2, seed), tf.float16)
        product = tf.cast(x @ tf.cast(weights["w.kernel"], tf.float16), tf.float32) + weights["w.bias"]
        return {"loss": tf.reduce_sum(tf.reduce_sum(tf.square(product - given["y"]), axis=1) * given["weight"])}

    def batches(epoch: int, first: int):
        for number in range(first, 7):
            random = np.random.default_rng([epoch, number])
            arrays = {"x": random.normal(size=(4, 4)), "y": random.normal(size=(4, 3)), "weight": np.ones(4)}
            given = {name: tf.constant(value, tf.float32) for name, value in arrays.items()}
            if spoil:
                given["y"] *= np.inf
            yield given | {"token_ids": tf.zeros((4, 1), tf.int32)}, 4

    optimizer = AdamW(weights, lambda done: learning_rate(done, 0.05, 2, 10))
    step = Step(objective, optimizer, LossScale(True, scale, growth_interval=3), batch_size=4, accumulate=2)
    info = RunInfo({}, {}, 64, 32, 24, 30)
    every: dict[str, Any] = {"save_every": 3, "log_every": 1, **settings}
    return loop.Job(out, info, step, weights, {}, batches, 7, epochs, None, **every)


@contextlib.contextmanager
def eager():
    """Run what is compiled in earnest as plain Python: compiling a small step takes longer than all the tests of it."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)
