"""Train the same recipe several times (seeds, precisions) at once on one GPU and put the scores into one CSV.

    python -m scripts.measure_squad --train train-v1.1.json.gz --dev dev-v1.1.json.gz --recipe minilm-squad11 \\
        --variants amp no-amp --seeds 1 2 3 --out results/squad11.csv

Each run is `train.py` in its own process; they share the GPU, so their times say nothing. Scores are those after the last
epoch; those of the best one stand beside them.
"""

import csv
import datetime
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs import command
from configs.errors import UserError
from configs.options import setting

COLUMNS = ["recipe", "variant", "seed", "exact", "f1", "best_f1", "threshold", "updates", "skipped_steps",
           "skips_after_100", "loss_scale", "date"]  # fmt: skip


@dataclass(frozen=True)
class MeasureConfig:
    """Seeds by variants of one recipe, side by side on one device."""

    recipe: str = setting(required=True, help="name in configs/")
    train: str = setting(required=True, help="training questions")
    dev: str = setting(required=True, help="dev questions")
    model: str = setting("minilm-l6", help="weights, as for train.py")
    variants: tuple[str, ...] = setting(("amp",), help="flags of a variant without their dashes, quoted if there are several")
    seeds: tuple[int, ...] = setting((1, 2, 3), help="seeds of each variant")
    out: str = setting(required=True, help="CSV to write (added to if it exists)")
    runs: str = setting("runs/measure", help="folder for the run folders")


def main(config: MeasureConfig) -> dict:
    started = []
    for index, variant in enumerate(config.variants):
        for seed in config.seeds:
            folder = Path(config.runs) / f"{config.recipe}-{index}-{seed}"
            flags = ["--config", config.recipe, "--model", config.model, "--data", config.train, "--dev", config.dev]
            flags += ["--out", str(folder), "--overwrite", "--seed", str(seed), *(f"--{word}" for word in variant.split())]
            log = folder.with_suffix(".log")
            log.parent.mkdir(parents=True, exist_ok=True)
            process = subprocess.Popen(
                [sys.executable, "-m", "train", *flags], stdout=subprocess.PIPE, stderr=open(log, "w"), text=True
            )
            started.append((variant, seed, folder, log, process))
    rows = []
    for variant, seed, folder, log, process in started:
        output, _ = process.communicate()
        lines = output.strip().splitlines()
        result = json.loads(lines[-1]) if lines else {"error": f"no output; see {log}"}
        if "error" in result:
            raise UserError(f"{variant} seed {seed}: {result['error']}")
        metrics = result["metrics"]
        rows.append(
            {
                "recipe": config.recipe, "variant": variant, "seed": seed, "exact": round(metrics["exact"], 2),
                "f1": round(metrics["f1"], 2), "best_f1": round(metrics["best"]["f1"], 2),
                "threshold": metrics.get("threshold"), "updates": metrics["updates"],
                "skipped_steps": metrics["skipped_steps"], "skips_after_100": skips_after(folder, 100),
                "loss_scale": metrics["loss_scale"], "date": datetime.date.today().isoformat(),
            }
        )  # fmt: skip
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = not out.exists()
    with open(out, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerows(rows)
    means = {v: float(np.mean([row["f1"] for row in rows if row["variant"] == v])) for v in config.variants}
    return {"out": str(out), "metrics": {f"mean f1 {variant}": mean for variant, mean in means.items()}}


def skips_after(folder: Path, step: int) -> int:
    """Skipped steps that metrics.jsonl counts after the given step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    counts = [(line["step"], line["skipped_steps"]) for line in lines if "skipped_steps" in line]
    early = max((count for at, count in counts if at <= step), default=0)
    return counts[-1][1] - early


if __name__ == "__main__":
    command.run("scripts.measure_squad", MeasureConfig, main)
