"""How fast a training step is: sequences a second and peak memory, by model, precision and XLA.

    python -m scripts.bench_train --out results/train.csv

The step is that of train.py: dropout 0.1 (of attention probabilities: --attention-dropout), loss scale under float16,
clipping, AdamW. Batches are full (no padding) random tokens, the same for every row of the table. Times are medians
over repetitions of several steps each; the first step, which traces and compiles, is given apart. Compare rows of one
run only.
"""

import csv
import dataclasses
import datetime
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import train.environment  # noqa: F401  isort: skip - before TensorFlow

import numpy as np
import tensorflow as tf

from configs import command
from configs.options import setting
from model.config import NAMED
from model.heads import SpanModel
from train import hardware, precision
from train.config import TrainConfig
from train.prepare import make_step

COLUMNS = [
    "model", "precision", "xla", "attention", "attention_dropout", "batch", "tokens", "seq_per_s", "step_ms",
    "peak_gib", "first_step_s", "device", "tensorflow", "date",
]  # fmt: skip


@dataclass(frozen=True)
class BenchConfig:
    """Time the training step by model, precision and XLA, and write a CSV."""

    out: str = setting("results/train.csv", help="CSV to write")
    models: tuple[str, ...] = setting(("minilm-l6", "bert-base"), help="sizes by name")
    precisions: tuple[str, ...] = setting(("float32", "float16", "bfloat16"), help="compute types")
    xla: tuple[str, ...] = setting(("off", "on"), help="off, on or both")
    attention_dropout: float = setting(0.0, least=0.0, most=0.9, help="rate of attention probabilities")
    batch: int = setting(32, least=1, help="sequences a step")
    tokens: int = setting(384, least=8, most=512, help="tokens a sequence")
    steps: int = setting(10, least=1, help="steps a repetition")
    repetitions: int = setting(5, least=1, help="the median counts")


def main(config: BenchConfig) -> dict:
    machine = hardware.prepare("auto", "none", False, 1)
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with open(out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for name, kind, xla in itertools.product(config.models, config.precisions, config.xla):
            row = measure(config, machine, name, kind, xla == "on")
            writer.writerow(row)
            file.flush()
            rows.append(row)
            print(", ".join(f"{key} {row[key]}" for key in COLUMNS[:11]), flush=True)
    return {"out": str(out), "metrics": {f"{r['model']} {r['precision']} xla {r['xla']}": r["seq_per_s"] for r in rows}}


def measure(config: BenchConfig, machine: hardware.Hardware, name: str, kind: str, jit: bool) -> dict:
    """One row of the table."""
    chosen = precision.choose(kind, machine.gpu)
    size = dataclasses.replace(NAMED[name], attention_dropout=config.attention_dropout)
    fused, _ = hardware.use_fused_attention(machine.gpu, jit, chosen, size.attention_dropout)
    model = SpanModel(size, chosen.policy, fused)
    settings = TrainConfig(model=name, data="-", out="-", batch_size=config.batch)
    step = make_step(model, settings, chosen, jit, machine, 1000)
    random = np.random.default_rng(1)
    shape = (config.batch, config.tokens)
    batch = {
        "token_ids": tf.constant(random.integers(1000, size.vocabulary, shape), tf.int32),
        "segment_ids": tf.zeros(shape, tf.int32),
        "padding_mask": tf.ones(shape, tf.int32),
        "start_positions": tf.constant(random.integers(0, config.tokens, config.batch), tf.int32),
        "end_positions": tf.constant(random.integers(0, config.tokens, config.batch), tf.int32),
        "weight": tf.ones(config.batch),
    }
    start = time.perf_counter()
    step(batch, 0).numpy()
    first = time.perf_counter() - start
    for number in range(3):
        step(batch, number)
    if machine.gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")
    seconds = []
    for _ in range(config.repetitions):
        start = time.perf_counter()
        for number in range(config.steps):
            numbers = step(batch, number)
        numbers.numpy()  # waits for the device
        seconds.append((time.perf_counter() - start) / config.steps)
    median = float(np.median(seconds))
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**30 if machine.gpu else float("nan")
    return {
        "model": name,
        "precision": kind,
        "xla": "on" if jit else "off",
        "attention": "fused" if fused and not size.attention_dropout else "blocks",
        "attention_dropout": size.attention_dropout,
        "batch": config.batch,
        "tokens": config.tokens,
        "seq_per_s": round(config.batch / median, 1),
        "step_ms": round(median * 1e3, 2),
        "peak_gib": round(peak, 2),
        "first_step_s": round(first, 1),
        "device": device_name(machine.gpu),
        "tensorflow": tf.__version__,
        "date": datetime.date.today().isoformat(),
    }


def device_name(gpu: bool) -> str:
    """The GPU's name, or "CPU"."""
    if not gpu:
        return "CPU"
    return tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0]).get(
        "device_name", "GPU"
    )


if __name__ == "__main__":
    command.run("scripts.bench_train", BenchConfig, main)
