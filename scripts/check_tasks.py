"""Every task through train and export with the MiniLM weights: does the engine say what Keras says? On a GPU, its plan.

    python -m scripts.check_tasks --out results/tasks.csv --work runs/tasks

For each task a labelled set is written (`scripts/task_data.py`), all-MiniLM-L6-v2 is fine-tuned on it and exported, and
the engine is compared with Keras in float32 on the dev examples, by `export.py` itself: the predictions must agree on
99 % of the examples, and the paired bootstrap interval of the score's difference must hold 0. Without a GPU what is
compared is model.onnx on ONNX Runtime; the runtime stands in the CSV.
"""

import csv
import datetime
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import heads
from configs import command
from configs.errors import UserError
from configs.options import setting
from model import run_folder
from scripts.fetch_weights import minilm_folder
from scripts.task_data import MAKERS, write
from serve import gpu

AGREE = 99.0  # percent of the predictions


@dataclass(frozen=True)
class CheckConfig:
    """Fine-tune, export and compare, task by task; a row of a CSV for each."""

    out: str = setting("results/tasks.csv", help="CSV to write")
    work: str = setting("runs/tasks", help="folder for data, runs and engines")
    tasks: tuple[str, ...] = setting(tuple(MAKERS), choices=tuple(MAKERS), help="which of them")
    train: int = setting(3000, least=10, help="training examples a task")
    dev: int = setting(1000, least=10, help="examples to compare on")
    epochs: int = setting(3, least=1, help="passes over the training examples")
    precision: str = setting("float16", choices=("float16", "bfloat16", "float32"), help="of the plan")
    amp: bool = setting(True, help="train in mixed precision")


def main(config: CheckConfig) -> dict:
    work = Path(config.work)
    work.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in config.tasks:
        rows.append(check(config, task, work / task.replace("/", "-")))
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
        save(Path(config.out), rows)  # at once: what was measured is not lost with what comes after
    if missed := [row["task"] for row in rows if not row["passed"]]:
        raise UserError(f"not as Keras on {', '.join(missed)}; {config.out} says how far")
    return {"out": config.out, "metrics": {row["task"]: row["agreement"] for row in rows}}


def check(config: CheckConfig, task: str, folder: Path) -> dict:
    """One task from its data to a row of the CSV."""
    begin = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    train, dev = (write(task, part, count, folder) for part, count in (("train", config.train), ("dev", config.dev)))
    run, engine = folder / "run", folder / "engine"
    flags = ["--model", minilm_folder(), "--task", "csv" if task == "csv/pair" else task, "--data", train, "--dev", dev]
    flags += ["--second-column", "second"] if task == "csv/pair" else []
    flags += ["--epochs", config.epochs, "--lr", "2e-4", "--window", "256", "--stride", "128", "--out", run]
    call("train", [*flags, "--overwrite", *(["--amp"] if config.amp else [])])
    architecture = ["--arch", "89"] if isinstance(gpu.find(), str) else []
    flags = ["--run", run, "--out", engine, "--overwrite", "--dev", dev, "--precision", config.precision, *architecture]
    # What the gate would stop on is what is measured here: only its figures are wanted.
    call("export", [*flags, "--tolerance", "1000", "--tolerance-answers", "100", "--tolerance-f1", "100"])
    about = json.loads((engine / "engine.json").read_text(encoding="utf-8"))
    verified, score = about["verified"], heads.of_run(run_folder.read(run)).score
    low, high = verified[f"{score}_interval"]
    agreement = 100 - verified["answers_changed"]
    return {
        "task": task, "metric": score, "keras": round(verified[f"{score}_checkpoint"], 2),
        "engine": round(verified[score], 2), "interval_low": round(low, 3), "interval_high": round(high, 3),
        "agreement": round(agreement, 2), "largest_difference": float(f"{verified['largest_logit_difference']:.3g}"),
        "examples": verified["questions"], "runtime": verified["runtime"], "precision": about["precision"],
        "plugin_layers": sum(about.get("plugin_layers", {}).values()),
        "passed": agreement >= AGREE and low <= 0 <= high, "why": verified["why"],
        "minutes": round((time.monotonic() - begin) / 60, 1), "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def call(package: str, flags: list) -> None:
    """Run a command as a user would. Raises: UserError when it fails."""
    words = [str(flag) for flag in flags]
    print(f"\n$ python {package}.py {' '.join(words)}", flush=True)
    if code := subprocess.run([sys.executable, "-m", package, *words], check=False).returncode:
        raise UserError(f"{package}.py stopped with exit code {code}; its error stands above")


def save(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    command.run("scripts.check_tasks", CheckConfig, main)
