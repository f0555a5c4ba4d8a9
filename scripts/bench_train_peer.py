"""PyTorch's side of `bench_train`: files for its process, its process, what came back."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np

from configs.errors import UserError
from model.config import NAMED
from scripts.bench_train_step import Variant, random_rows

LIMIT_S = 300  # for a process that compiles and times a step; ten times what it takes


def check() -> None:
    """Raise a UserError where torch is missing."""
    if importlib.util.find_spec("torch") is None:
        raise UserError("torch is not installed here; install it, or take --compare none")


def step(variant: Variant, steps: int, repetitions: int) -> dict:
    """The step on one batch: {"step_ms", "peak_gib", "first_step_s", "torch", "device"}."""
    sizes = dataclasses.replace(NAMED[variant.model], attention_dropout=variant.attention_dropout)
    job = {"sizes": sizes.to_dict(), "precision": variant.precision, "epochs": 0, "weights": None, "seed": 1}
    job |= {"lr": 3e-5, "warmup": 100, "total": 1000, "steps": steps, "repetitions": repetitions}
    rows = random_rows(variant)
    del rows["weight"]
    return run(job, rows)[0]


def run(
    job: dict, rows: dict[str, np.ndarray], weights: dict[str, np.ndarray] | None = None, limit_s: float = LIMIT_S
) -> tuple[dict, dict]:
    """Run a job in a process of its own.

    Returns: its result and the arrays it wrote ("logits" float32 [windows, S, 2] after epochs).
    Raises: UserError where torch is missing, or the process failed or took longer than limit_s.
    """
    check()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if weights:
            np.savez(folder / "weights.npz", **cast(Any, weights))
            job = job | {"weights": "weights.npz"}
        np.savez(folder / "rows.npz", **cast(Any, rows))
        (folder / "job.json").write_text(json.dumps({"compile": True} | job), encoding="utf-8")
        words = [sys.executable, "-m", "scripts.bench_train_torch", str(folder)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"the PyTorch process was not done after {limit_s:g} s and was ended") from error
        if done.returncode:
            raise UserError(f"the PyTorch process ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
        arrays = {}
        if (folder / "logits.npz").exists():
            with np.load(folder / "logits.npz") as file:
                arrays = {name: file[name] for name in file.files}
        return json.loads((folder / "result.json").read_text(encoding="utf-8")), arrays
