"""Every task through train and export with the MiniLM weights: does the engine say what Keras says? On a GPU, its plan.

    python -m scripts.check_tasks --out results/tasks.csv --work runs/tasks --at-once 5 --no-jit

For each task a labelled set is written (`scripts/task_data.py`), all-MiniLM-L6-v2 is fine-tuned on it and exported, and
the engine is compared with Keras in float32 on the dev examples, by `export.py` itself: the predictions must agree on
99 % of the examples, and the paired bootstrap interval of the score's difference must hold 0. Without a GPU what is
compared is model.onnx on ONNX Runtime; the runtime stands in the CSV.

A run is a few hundred steps, less than XLA takes to compile one: --no-jit. What takes the time is Python and the CPU's
side of the comparison, so tasks run beside each other, each on its share of the cores.
"""

import csv
import datetime
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import heads
from configs import command
from configs.errors import UserError
from configs.options import setting
from model import run_folder
from scripts.task_data import MAKERS, write
from serve import gpu

AGREE = 99.0  # percent of the predictions
RECIPES = {"conll": "minilm-conll", "embed": "minilm-embed"}  # of the other tasks minilm-classify


@dataclass(frozen=True)
class CheckConfig:
    """Fine-tune, export and compare, task by task; a row of a CSV for each."""

    out: str = setting("results/tasks.csv", help="CSV to write")
    work: str = setting("runs/tasks", help="folder for data, runs and engines")
    tasks: tuple[str, ...] = setting(tuple(MAKERS), choices=tuple(MAKERS), help="which of them")
    train: int = setting(2000, least=10, help="training examples a task")
    dev: int = setting(600, least=10, help="examples to compare on")
    epochs: int = setting(3, least=1, help="passes over the training examples")
    precision: str = setting("float16", choices=("float16", "bfloat16", "float32"), help="of the plan")
    amp: bool = setting(True, help="train in mixed precision")
    jit: bool | None = setting(None, help="train with XLA; none: on a GPU")
    model: str = setting("minilm-l6", help="weights to start from, as train.py takes them")
    at_once: int = setting(1, least=1, most=len(MAKERS), help="tasks beside each other, each with its share of cores")


def main(config: CheckConfig) -> dict:
    rows, failed = [], []
    seats = count()
    with ThreadPoolExecutor(config.at_once, initializer=lambda: sit(next(seats), config.at_once)) as pool:
        jobs = {pool.submit(check, config, task, Path(config.work) / task.replace("/", "-")): task
                for task in config.tasks}  # fmt: skip
        for job in as_completed(jobs):
            try:
                rows.append(job.result())
            except UserError as error:
                failed.append(f"{jobs[job]}: {error}")
                print(failed[-1], flush=True)
                continue
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
            rows.sort(key=lambda row: config.tasks.index(row["task"]))
            save(Path(config.out), rows)  # at once: what was measured is not lost with what comes after
    if failed:
        raise UserError("; ".join(failed))
    if missed := [row["task"] for row in rows if not row["passed"]]:
        raise UserError(f"not as Keras on {', '.join(missed)}; {config.out} says how far")
    return {"out": config.out, "metrics": {row["task"]: row["agreement"] for row in rows}}


def sit(seat: int, seats: int) -> None:
    """Give this thread, and what it starts, its share of the cores: threads of several tasks wait on each other."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[seat % len(cores) :: seats])


def check(config: CheckConfig, task: str, folder: Path) -> dict:
    """One task from its data to a row of the CSV."""
    begin = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    log.write_text("")
    train, dev = (write(task, part, count, folder) for part, count in (("train", config.train), ("dev", config.dev)))
    run, engine = folder / "run", folder / "engine"
    flags = ["--config", RECIPES.get(task, "minilm-classify"), "--model", config.model, "--data", train]
    flags += ["--second-column", "second"] if task == "csv/pair" else ["--task", task]
    flags += ["--epochs", config.epochs, "--window", "256", "--stride", "128", "--buckets", 1]
    flags += ["--amp"] if config.amp else []
    flags += [] if config.jit is None else ["--jit" if config.jit else "--no-jit"]
    call("train", [*flags, "--out", run, "--overwrite"], log)  # no --dev: the export scores the last weights anyway
    trained = time.monotonic()
    architecture = ["--arch", "89"] if isinstance(gpu.find(), str) else []
    flags = ["--run", run, "--out", engine, "--overwrite", "--dev", dev, "--precision", config.precision, *architecture]
    # What the gate would stop on is what is measured here: only its figures are wanted.
    call("export", [*flags, "--tolerance", "1000", "--tolerance-answers", "100", "--tolerance-f1", "100"], log)
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
        "train_s": round(trained - begin), "export_s": round(time.monotonic() - trained),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def call(package: str, flags: list, log: Path) -> None:
    """Run a command as a user would. Raises: UserError when it fails, with the last line of what it said."""
    words = [str(flag) for flag in flags]
    print(f"$ python {package}.py {' '.join(words)}", flush=True)
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, "-m", package, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False
        )
    if done.returncode:
        said = log.read_text(encoding="utf-8", errors="replace").strip().rsplit("\n", 1)[-1]
        raise UserError(f"{package}.py stopped with exit code {done.returncode}: {said[:1000]} ({log} has the rest)")


def save(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    command.run("scripts.check_tasks", CheckConfig, main)
