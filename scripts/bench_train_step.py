"""Our training step as the benches time it: that of train.py, built for one size, compute type and batch shape."""

import dataclasses
import gc
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import Any

import train.environment  # noqa: F401  isort: skip - before TensorFlow

import numpy as np
import tensorflow as tf

from configs.errors import UserError
from data.feed import Packed
from heads import default
from model.config import NAMED
from model.heads import HeadModel
from train import hardware, precision
from train.config import TrainConfig
from train.epoch import fed
from train.prepare import make_step

WARM_UP = 5  # steps after the first that are not counted


@dataclass(frozen=True)
class Variant:
    """What distinguishes one row of a table from another."""

    model: str
    precision: str
    xla: bool = True
    recompute: bool = False
    attention_dropout: float = 0.0
    batch: int = 32
    tokens: int = 384


@dataclass
class Timed:
    """What was seen of a variant."""

    step_ms: float  # median over repetitions
    host_ms: float  # the same until the call returned: what it takes to start a step; near step_ms, it is the limit
    peak_gib: float  # of device memory, by TensorFlow's or PyTorch's own count
    first_step_s: float  # tracing and compiling included
    attention: str = ""


def build(variant: Variant, machine: hardware.Hardware) -> tuple[Any, str]:
    """The step of fine-tuning on random weights, and how it computes attention."""
    chosen = precision.choose(variant.precision, machine.gpu)
    size = dataclasses.replace(NAMED[variant.model], attention_dropout=variant.attention_dropout)
    fused, _ = hardware.use_fused_attention(machine.gpu, variant.xla, chosen, size.attention_dropout)
    settings = TrainConfig(model=variant.model, data="-", out="-", batch_size=variant.batch)
    with machine.scope():
        model = HeadModel(default(), size, chosen.policy, fused, variant.recompute)
        step = make_step(model, settings, chosen, variant.xla, machine, 1000)
    return step, "fused" if fused and not size.attention_dropout else "blocks"


def random_rows(variant: Variant) -> dict[str, np.ndarray]:
    """A batch of random tokens without padding, the same for everything that is timed."""
    random, shape = np.random.default_rng(1), (variant.batch, variant.tokens)
    return {
        "token_ids": random.integers(1000, NAMED[variant.model].vocabulary, shape).astype(np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "padding_mask": np.ones(shape, np.int32),
        "start_positions": random.integers(0, variant.tokens, variant.batch).astype(np.int32),
        "end_positions": random.integers(0, variant.tokens, variant.batch).astype(np.int32),
        "weight": np.ones(variant.batch, np.float32),
    }


def on_devices(rows: dict[str, np.ndarray], machine: hardware.Hardware) -> Packed:
    """A batch on the device, or on all devices of this process its share, as the input of train.py leaves it there."""
    (batch,) = fed(iter([rows]), machine)
    return batch


def measure(variant: Variant, machine: hardware.Hardware, steps: int, repetitions: int) -> Timed:
    """Time the step on one batch that stays on the device or devices; the memory is that of the first."""
    gc.collect()  # models and steps refer to each other: what was timed before is not gone by itself
    before = used_bytes(machine)
    step, attention = build(variant, machine)
    batch = on_devices(random_rows(variant), machine)
    start = time.perf_counter()
    step(batch, 0).numpy()
    first = time.perf_counter() - start
    for number in range(WARM_UP):
        numbers = step(batch, number)
    numbers.numpy()
    forget_peak(machine)
    seconds = [timed(step, batch, steps) for _ in range(repetitions)]
    whole, host = np.median(seconds, axis=0) * 1e3
    return Timed(float(whole), float(host), peak_gib(machine, before), first, attention)


def timed(step, batch, steps: int) -> tuple[float, float]:
    """Seconds a step, of `steps` steps in a row and one wait at the end; and seconds until a call returned."""
    start = time.perf_counter()
    for number in range(steps):
        numbers = step(batch, number)
    started = time.perf_counter()
    numbers.numpy()  # waits for the device
    return (time.perf_counter() - start) / steps, (started - start) / steps


def used_bytes(machine: hardware.Hardware) -> int:
    """Bytes of device memory that tensors take now."""
    return tf.config.experimental.get_memory_info("GPU:0")["current"] if machine.gpu else 0


def forget_peak(machine: hardware.Hardware) -> None:
    """Let the peak count from here."""
    if machine.gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")


def peak_gib(machine: hardware.Hardware, before: int = 0) -> float:
    """The peak since `forget_peak`, less the bytes that were taken before by something else."""
    if not machine.gpu:
        return float("nan")
    return (tf.config.experimental.get_memory_info("GPU:0")["peak"] - before) / 2**30


def refuse_idle_gpu(machine: hardware.Hardware) -> None:
    """Raise a UserError where the machine has a GPU and TensorFlow does not see it: a bench would take hours."""
    if machine.gpu or not shutil.which("nvidia-smi"):
        return
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    if "GPU 0" in listed and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        raise UserError(
            f"TensorFlow sees no GPU, nvidia-smi shows {listed.splitlines()[0]}; set up with `make setup DEVICE=cuda`, "
            "or ask for the CPU with CUDA_VISIBLE_DEVICES=-1"
        )


def device_name(gpu: bool) -> str:
    """The GPU's name, or "CPU"."""
    if not gpu:
        return "CPU"
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
    return details.get("device_name", "GPU")
