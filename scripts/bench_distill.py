"""What a step of distillation costs beside its two halves: the teacher's forward pass and the student's own step.

    python -m scripts.bench_distill --out results/distill_step.csv

All on the same batch (full, random tokens), compute type and process. The student's own step is fine-tuning on the true
answers; the teacher's forward pass gives start and end logits. `ratio` is the step's time divided by the sum of both:
at most 1.6 without attention scores or with relations, at most 2.2 with TinyBERT's attention loss, which has to write
the scores. Times are medians over repetitions of several steps each; compare rows of one run only.
"""

import csv
import datetime
import time
from dataclasses import dataclass, replace
from pathlib import Path

import train.environment  # noqa: F401  isort: skip - before TensorFlow

import numpy as np
import tensorflow as tf

from configs import command
from configs.options import setting
from distill import student
from distill.config import DistillConfig
from distill.objective import Objective, teacher_outputs
from distill.prepare import make_objective_step, recipe
from distill.projection import Projections, choose
from heads import default
from model import weights
from model.config import NAMED
from model.heads import HeadModel
from scripts.bench_train_step import device_name
from train import hardware, precision
from train.compiled import ByLayout
from train.epoch import fed

COLUMNS = [
    "teacher", "student", "precision", "xla", "what", "step_ms", "ratio", "allowed", "batch", "tokens", "peak_gib",
    "first_step_s", "device", "tensorflow", "date",
]  # fmt: skip
NONE = {"embedding_weight": 0.0, "hidden_weight": 0.0, "attention_weight": 0.0, "relation_weight": 0.0}
# What is learnt -> stage, weights, the ratio allowed.
LEARNT = {
    "student alone": ("prediction", {"prediction_weight": 0.0, "hard_weight": 1.0}, None),
    "prediction": ("prediction", {}, 1.6),
    "hidden states": ("task", NONE | {"embedding_weight": 1.0, "hidden_weight": 1.0}, 1.6),
    "relations": ("task", NONE | {"relation_weight": 1.0}, 1.6),
    "hidden states and relations": ("task", {"attention_weight": 0.0, "relation_weight": 1.0}, 1.6),
    "hidden states and attention": ("task", {}, 2.2),
}


@dataclass(frozen=True)
class BenchConfig:
    """Time distillation steps and their halves, and write a CSV."""

    out: str = setting("results/distill_step.csv", help="CSV to write")
    teacher: str = setting("minilm-l6", choices=tuple(NAMED), help="size by name")
    student: str = setting("minilm-3l-384", choices=tuple(student.NAMED), help="size by name")
    precisions: tuple[str, ...] = setting(("float16", "bfloat16"), help="compute types")
    jit: bool | None = setting(None, help="XLA; none: on a GPU")
    batch: int = setting(32, least=1, help="sequences a step")
    tokens: int = setting(384, least=8, most=512, help="tokens a sequence")
    steps: int = setting(20, least=1, help="steps a repetition")
    repetitions: int = setting(7, least=1, help="the median counts")


def main(config: BenchConfig) -> dict:
    machine = hardware.prepare("auto", "none", False, 1)
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    metrics = {}
    with open(out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for kind in config.precisions:
            halves = 0.0
            for row in measure(config, machine, kind):
                if row["what"] in ("teacher forward", "student alone"):
                    halves += row["step_ms"]
                else:
                    row["ratio"] = round(row["step_ms"] / halves, 3)
                    metrics[f"{kind} {row['what']}"] = row["ratio"]
                writer.writerow(row)
                file.flush()
                print(", ".join(f"{key} {row[key]}" for key in COLUMNS[2:8]), flush=True)
    return {"out": str(out), "metrics": metrics}


def measure(config: BenchConfig, machine: hardware.Hardware, kind: str):
    """Rows of one compute type, the two halves first."""
    chosen = precision.choose(kind, machine.gpu)
    jit, _ = hardware.use_xla(config.jit, machine.gpu)
    fused, _ = hardware.use_fused_attention(machine.gpu, jit, chosen, 0.0)
    settings = DistillConfig(teacher=config.teacher, student=config.student, data="-", out="-", batch_size=config.batch)
    theirs = replace(NAMED[config.teacher], dropout=0.0, attention_dropout=0.0)
    plan = student.plan(
        replace(settings, attention_dropout=0.0), weights.Published(theirs, {}, [], Path(), {}, "random"),
        default(),
    )
    teacher = HeadModel(default(), theirs, chosen.policy, fused)
    (batch,) = fed(iter([random_rows(config, theirs.vocabulary)]), machine)

    answers = recipe(settings, "prediction", plan, theirs, default())
    forward = ByLayout(lambda tensors: teacher_outputs(teacher, tensors, answers), jit=jit)
    yield timed(config, machine, kind, jit, "teacher forward", None, lambda number: forward(batch)["teacher.start"])
    for what, (stage, given, allowed) in LEARNT.items():
        learnt = recipe(replace(settings, **given), stage, plan, theirs, default())
        model = HeadModel(default(), plan.config, chosen.policy, fused)
        width, target = plan.config.hidden, theirs.hidden
        projections = Projections(choose(None, width, target)[0], plan.config.layers + 1, width, target)
        projections.restart(1)
        objective = Objective(model, teacher, learnt, projections)
        step, _ = make_objective_step(settings, stage, 1000, objective, chosen, jit, machine)
        yield timed(config, machine, kind, jit, what, allowed, lambda number, step=step: step(batch, number))


def random_rows(config: BenchConfig, vocabulary: int) -> dict[str, np.ndarray]:
    random, shape = np.random.default_rng(1), (config.batch, config.tokens)
    return {
        "token_ids": random.integers(1000, vocabulary, shape).astype(np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "padding_mask": np.ones(shape, np.int32),
        "start_positions": random.integers(0, config.tokens, config.batch).astype(np.int32),
        "end_positions": random.integers(0, config.tokens, config.batch).astype(np.int32),
        "weight": np.ones(config.batch, np.float32),
    }


def timed(config: BenchConfig, machine, kind: str, jit: bool, what: str, allowed: float | None, call) -> dict:
    """One row; `call(number)` starts a step and returns a tensor of it."""
    start = time.perf_counter()
    call(0).numpy()
    first = time.perf_counter() - start
    for number in range(3):
        call(number).numpy()
    if machine.gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")
    seconds = []
    for _ in range(config.repetitions):
        start = time.perf_counter()
        for number in range(config.steps):
            result = call(number)
        result.numpy()  # waits for the device
        seconds.append((time.perf_counter() - start) / config.steps)
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**30 if machine.gpu else float("nan")
    return {
        "teacher": config.teacher,
        "student": config.student,
        "precision": kind,
        "xla": "on" if jit else "off",
        "what": what,
        "step_ms": round(float(np.median(seconds)) * 1e3, 3),
        "ratio": "",
        "allowed": allowed or "",
        "batch": config.batch,
        "tokens": config.tokens,
        "peak_gib": round(peak, 2),
        "first_step_s": round(first, 1),
        "device": device_name(machine.gpu),
        "tensorflow": tf.__version__,
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    command.run("scripts.bench_distill", BenchConfig, main)
