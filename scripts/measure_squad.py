"""Train one recipe with several seeds and put the scores into a CSV, a line a run.

    python -m scripts.measure_squad --recipe minilm-squad11 --flags amp --seeds 1 2 3 \\
        --train train-v1.1.json.gz --dev dev-v1.1.json.gz --out results/squad.csv

The seeds share one process and one compiled step, because XLA takes half a minute a batch shape; each starts from the
same pre-trained weights, its own head, its own order of the data and its own dropout, as `train.py --seed N` does.
Scores are those after the last epoch; the best of all epochs stands beside them.
"""

import csv
import datetime
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import train.environment  # noqa: F401  isort: skip - before TensorFlow

import numpy as np

from configs import command, options
from configs.options import setting
from model import run_folder
from scripts.bench_train_step import device_name
from train import hardware, loop
from train.config import TrainConfig
from train.out_folder import empty
from train.prepare import prepare


@dataclass(frozen=True)
class MeasureConfig:
    """Several seeds of one recipe, one after the other, with one compiled step."""

    recipe: str = setting(required=True, help="name in configs/")
    flags: str = setting("amp", help='flags of train.py without their dashes: "amp attention-dropout=0.1"')
    train: str = setting(required=True, help="training questions")
    dev: str = setting(required=True, help="dev questions")
    model: str = setting("minilm-l6", help="weights, as for train.py")
    seeds: tuple[int, ...] = setting((1, 2, 3), help="seeds")
    out: str = setting("results/squad.csv", help="CSV to add to")
    runs: str = setting("runs/measure", help="folder for the run folders")


def main(config: MeasureConfig) -> dict:
    name = re.sub(r"[^\w.]+", "-", f"{Path(config.recipe).stem} {config.flags}").strip("-")
    argv = ["--config", config.recipe, "--model", config.model, "--data", config.train, "--dev", config.dev]
    argv += ["--out", f"{config.runs}/{name}", *(f"--{word}" for word in config.flags.split())]
    first = options.parse(TrainConfig, argv, "train")
    machine = hardware.prepare(first.device, first.distribute, first.deterministic, first.seed)
    prepared = prepare(first, machine, print)
    rows = []
    for seed in config.seeds:
        settings = replace(first, seed=seed, out=f"{first.out}-{seed}")
        job = prepared.job(settings)
        empty(job.out)
        run_folder.write(job.out, job.info)
        metrics = loop.run(job)
        summary = prepared.step.summary()
        row = {
            "recipe": config.recipe,
            "flags": config.flags,
            "seed": seed,
            "exact": round(metrics["exact"], 2),
            "f1": round(metrics["f1"], 2),
            "best_f1": round(metrics["best"]["f1"], 2),
            "threshold": metrics.get("threshold"),
            "updates": summary["updates"],
            "skipped_steps": summary["skipped_steps"],
            "skips_after_100": skips_after(job.out, 100),
            "loss_scale": summary["loss_scale"],
            "device": device_name(machine.gpu),
            "date": datetime.date.today().isoformat(),
        }
        append(Path(config.out), row)  # at once: what was measured is not lost with what comes after
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        rows.append(row)
    scores = [row["f1"] for row in rows]
    return {"out": config.out, "metrics": {"mean_f1": float(np.mean(scores)), "std_f1": float(np.std(scores))}}


def append(path: Path, row: dict) -> None:
    """Add a line to the CSV, headed by the row's names if the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def skips_after(folder: Path, step: int) -> int:
    """Skipped steps that metrics.jsonl counts after the given step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    counts = [(line["step"], line["skipped_steps"]) for line in lines if "skipped_steps" in line]
    early = max((count for at, count in counts if at <= step), default=0)
    return counts[-1][1] - early


if __name__ == "__main__":
    command.run("scripts.measure_squad", MeasureConfig, main)
