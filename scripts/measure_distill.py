"""Distil and fine-tune the same student in several ways, seeds and learning rates, and put every run into a CSV.

    python -m scripts.measure_distill --teacher runs/minilm-squad11 --train train-v1.1.json.gz --dev dev-v1.1.json.gz \\
        --variants alone distilled augmented --seeds 1 2 3 --out results/distill.csv

A variant is a recipe with flags of distill.py (`VARIANTS`; --flags adds more to each). "alone" learns the true answers
only, from the same first values and for as many updates as all stages of "distilled" together. The best epoch is picked
on the held-out part of the training questions, and so are the learning rates, by the first seed; the other seeds run
with these alone. Dev is scored once a run and picks nothing. The runs of a variant share one process and one compiled
step a stage, because XLA takes half a minute a batch shape; each starts as `distill.py --seed N` does, but all learn
from the same augmented questions.
"""

import datetime
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import train.environment  # noqa: F401  isort: skip - before TensorFlow

import numpy as np

from configs import command, options
from configs.errors import UsageError
from configs.options import setting
from distill.__main__ import begin
from distill.config import DistillConfig
from distill.prepare import prepare
from distill.stages import run
from model import run_folder
from scripts.bench_train_step import device_name
from scripts.measure_squad import append
from train import hardware

# Learns the true answers alone; the epochs are those of both stages of the recipe together.
ALONE = "stages=prediction prediction-weight=0 hard-weight=1"
MINILM, TINY = "config=distill-minilm-squad11", "config=distill-tinybert-squad11"
# Name -> flags of distill.py, and the pairs of learning rates (task stage, prediction stage) that are tried.
VARIANTS = {
    "alone": (f"{MINILM} {ALONE}", ((None, 1e-4), (None, 2e-4), (None, 4e-4))),
    "prediction": (f"{MINILM} stages=prediction prediction-epochs=18", ((None, 2e-4), (None, 4e-4))),
    "distilled": (MINILM, ((2e-4, 2e-4), (4e-4, 2e-4))),
    "relations": ("config=distill-minilm-relations-squad11", ((2e-4, 2e-4), (4e-4, 2e-4))),
    "augmented": (f"{MINILM} augment=10 task-epochs=3", ((2e-4, 2e-4), (4e-4, 2e-4))),
    "augmented-both": (
        f"{MINILM} augment=10 task-epochs=4 augment-prediction prediction-epochs=2",
        ((4e-4, 2e-4), (4e-4, 4e-4)),
    ),
    "augmented-relations": ("config=distill-minilm-augmented-squad11", ((4e-4, 2e-4), (4e-4, 4e-4))),
    "kept": (f"{MINILM} keep-intermediate=1", ((4e-4, 2e-4),)),
    "tiny-alone": (f"{TINY} {ALONE}", ((None, 1e-4), (None, 2e-4), (None, 4e-4))),
    "tiny-distilled": (TINY, ((2e-4, 2e-4), (4e-4, 2e-4))),
}


@dataclass(frozen=True)
class MeasureConfig:
    """Variants by seeds by learning rates, one after the other."""

    teacher: str = setting(required=True, help="run folder of the teacher")
    train: str = setting(required=True, help="training questions")
    dev: str = setting(required=True, help="dev questions, scored once a run")
    variants: tuple[str, ...] = setting(("alone", "distilled"), choices=tuple(VARIANTS), help="what to measure")
    flags: str = setting("amp", help='flags of distill.py for all, without their dashes: "amp task-epochs=4"')
    rates: tuple[str, ...] = setting(
        (), help="learning rates in place of the variant's, TASK:PREDICTION as in 4e-4:2e-4"
    )
    seeds: tuple[int, ...] = setting((1, 2, 3), help="seeds")
    holdout: float = setting(0.1, above=0.0, most=0.5, help="share of the training questions to pick on")
    out: str = setting("results/distill.csv", help="CSV to add to")
    runs: str = setting("runs/measure-distill", help="folder for the run folders")


def main(config: MeasureConfig) -> dict:
    machine, found = None, {}
    for variant in config.variants:
        settings = variant_settings(config, variant)
        machine = machine or hardware.prepare(
            settings.device, settings.distribute, settings.deterministic, settings.seed
        )
        print(f"variant {variant}: {VARIANTS[variant][0]} {config.flags}", flush=True)
        found[variant] = measure(config, variant, settings, machine)
    return {"out": config.out, "metrics": table(found)}


def variant_settings(config: MeasureConfig, variant: str) -> DistillConfig:
    """The settings of distill.py; "alone" gets the epochs of all stages of its recipe together."""
    words = f"{VARIANTS[variant][0]} {config.flags}".split()
    argv = ["--teacher", config.teacher, "--data", config.train, "--dev", config.dev, "--holdout", str(config.holdout)]
    argv += ["--out", f"{config.runs}/{variant}", *(f"--{word}" for word in words)]
    settings = options.parse(DistillConfig, argv, "distill")
    if variant.endswith("alone"):
        settings = replace(settings, prediction_epochs=settings.task_epochs + settings.prediction_epochs)
    return settings


def rates(config: MeasureConfig, variant: str, settings: DistillConfig) -> list[tuple[float, float]]:
    """(task stage's, prediction stage's) learning rates to try."""
    if not config.rates:
        return [(task or settings.task_lr, prediction) for task, prediction in VARIANTS[variant][1]]
    try:
        pairs = [tuple(float(word) for word in pair.split(":")) for pair in config.rates]
        return [(task, prediction) for task, prediction in pairs]
    except ValueError:
        raise UsageError(
            f"--rates {' '.join(config.rates)}: needed are pairs TASK:PREDICTION as in 4e-4:2e-4"
        ) from None


def measure(config: MeasureConfig, variant: str, first: DistillConfig, machine) -> list[dict]:
    """All runs of a variant, each written to the CSV as soon as it is done."""
    prepared = prepare(first, machine, print)
    run_one = partial(one, config, variant, first, prepared, device_name(machine.gpu))
    rows = [run_one(pair, config.seeds[0]) for pair in rates(config, variant, first)]
    best = max(rows, key=lambda row: row["held_out_f1"])
    chosen = (best["task_lr"] or first.task_lr, best["prediction_lr"])
    return rows + [run_one(chosen, seed) for seed in config.seeds[1:]]


def one(config: MeasureConfig, variant: str, first: DistillConfig, prepared, device: str, pair, seed: int) -> dict:
    """One run of a variant with a pair of learning rates, written to the CSV as soon as it is done."""
    task_lr, prediction_lr = pair
    out = f"{first.out}-{task_lr:g}-{prediction_lr:g}-{seed}"
    settings = replace(first, seed=seed, task_lr=task_lr, prediction_lr=prediction_lr, out=out)
    prepared.restart(settings)
    begin(Path(out), prepared, settings)
    start = time.monotonic()
    metrics = run(prepared, settings)
    row = {
        "variant": variant,
        "flags": f"{VARIANTS[variant][0]} {config.flags}",
        "student": run_size(Path(out)),
        "seed": seed,
        "task_lr": task_lr if "task" in settings.stages else "",
        "prediction_lr": prediction_lr,
        "best_step": metrics["best"]["step"],
        "held_out_f1": round(metrics["best"]["f1"], 2),
        "dev_exact": round(metrics["dev_exact"], 2),
        "dev_f1": round(metrics["dev_f1"], 2),
        "teacher_f1": round(prepared.figures["f1"], 2) if prepared.figures else "",
        "updates": metrics["updates"],
        "skipped_steps": metrics["skipped_steps"],
        "seconds": round(time.monotonic() - start, 1),
        "device": device,
        "date": datetime.date.today().isoformat(),
    }
    append(Path(config.out), row)
    for name in ("last", "last-task", "best-task"):  # half a gigabyte a run
        shutil.rmtree(Path(out) / name, ignore_errors=True)
    print(", ".join(f"{key} {value}" for key, value in row.items() if key != "flags"), flush=True)
    return row


def run_size(folder: Path) -> str:
    model = run_folder.read(folder).bert
    return f"{model.layers}l-{model.hidden}"


def table(found: dict[str, list[dict]]) -> dict[str, float]:
    """Print a line a variant: its best learning rate by the held-out part, and the mean over seeds on dev."""
    print(f"\n{'variant':20}{'rates':>16}{'seeds':>7}{'updates':>9}", end="")
    print(f"{'held-out F1':>13}{'dev EM':>9}{'dev F1':>9}{'std':>7}")
    metrics = {}
    for variant, rows in found.items():
        by_rate: dict[tuple, list[dict]] = {}
        for row in rows:
            by_rate.setdefault((row["task_lr"], row["prediction_lr"]), []).append(row)
        rate, best = max(by_rate.items(), key=lambda item: (len(item[1]), _mean(item[1], "held_out_f1")))
        told = ":".join(f"{one:g}" for one in rate if one != "")
        scores = [_mean(best, name) for name in ("held_out_f1", "dev_exact", "dev_f1")]
        deviation = float(np.std([row["dev_f1"] for row in best]))
        print(
            f"{variant:20}{told:>16}{len(best):>7}{best[0]['updates']:>9}{scores[0]:>13.2f}{scores[1]:>9.2f}"
            f"{scores[2]:>9.2f}{deviation:>7.2f}"
        )
        metrics |= {f"{variant} dev_exact": scores[1], f"{variant} dev_f1": scores[2]}
    return metrics


def _mean(rows: list[dict], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


if __name__ == "__main__":
    command.run("scripts.measure_distill", MeasureConfig, main)
