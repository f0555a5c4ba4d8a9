"""How fast training is: sequences a second, peak memory, time to the first step; ours and PyTorch's in one run.

    python -m scripts.bench_train --parts full --compare torch
    python -m scripts.bench_train --parts real --compare torch --train train-v1.1.json.gz --dev dev-v1.1.json.gz
    python -m scripts.bench_train --parts memory first input --train train-v1.1.json.gz --dev dev-v1.1.json.gz

    full    the step of train.py on full batches of random tokens, without padding, that stay on the device
    memory  the same with --recompute
    mirrored
            the same on all GPUs of the machine (train.py --distribute mirrored) with --batch rows on each, which is
            weak scaling, beside the step of one GPU
    real    the whole of train.py on SQuAD, batches by length bucket, beside a PyTorch loop that pads every window to
            384 tokens, from the same weights and settings; windows a second after the first epoch, F1 by seed
    input   what input, logging and evaluation add to the steps of `real`
    first   seconds from the start of a process to the end of its first step, without and with XLA's cache of compiled
            code

The step: dropout 0.1 (of attention probabilities: --attention-dropout), loss scale under float16, clipping, AdamW, loss
and gradient norm. PyTorch's is in scripts/bench_train_torch.py, compiled. Times are medians over repetitions of several
steps each. Rows are added to the CSV, in place of what the same device measured before; compare rows of one run.
Each row is in the file as soon as it is measured. What fails is named, the rest goes on, and the exit code tells.
"""

import csv
import dataclasses
import datetime
import itertools
import os
import statistics
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import train.environment  # noqa: F401  isort: skip - before TensorFlow

import tensorflow as tf

from configs import command
from configs.errors import UsageError, UserError
from configs.options import setting
from scripts import bench_train_first, bench_train_peer, bench_train_real
from scripts.bench_train_step import Variant, device_name, measure, refuse_idle_gpu
from train import hardware

COLUMNS = [
    "part", "framework", "model", "precision", "detail", "batch", "tokens", "seq_per_s", "step_ms", "host_ms",
    "peak_gib", "first_step_s", "compiled_shapes", "value", "device", "versions", "date",
]  # fmt: skip
KEY = ("part", "framework", "model", "precision", "detail", "batch", "tokens", "device")
PARTS = ("full", "memory", "mirrored", "real", "input", "first")
Job = tuple[str, Callable[[], Iterable[dict]]]  # what, and a function that measures it and gives its rows


@dataclass(frozen=True)
class BenchConfig:
    """Time training by part, model and precision, and write a CSV and a plot of it."""

    parts: tuple[str, ...] = setting(("full",), help=f"any of {', '.join(PARTS)}")
    compare: str = setting("none", choices=("none", "torch"), help="torch: PyTorch's compiled AMP step beside ours")
    out: str = setting("results/train_speed.csv", help="CSV to write; the plot stands beside it")
    models: tuple[str, ...] = setting(("bert-base", "minilm-l6"), help="sizes by name (all but real, input)")
    precisions: tuple[str, ...] = setting(("float16",), help="compute types")
    xla: tuple[str, ...] = setting(("on",), help="off, on or both (full)")
    attention_dropout: float = setting(0.0, least=0.0, most=0.9, help="rate of attention probabilities")
    batch: int = setting(32, least=1, help="sequences a step; of mirrored, on each GPU")
    tokens: int = setting(384, least=8, most=512, help="tokens a sequence")
    steps: int = setting(20, least=1, help="steps a repetition")
    repetitions: int = setting(5, least=1, help="the median counts")
    recipe: str = setting("minilm-squad11", help="recipe in configs/ (real, input)")
    weights: str = setting("minilm-l6", help="weights, as train.py's --model (real, input)")
    train: str | None = setting(None, help="training questions (real, input)")
    dev: str | None = setting(None, help="dev questions (real, input)")
    flags: str = setting("amp", help='more flags of train.py without their dashes: "amp buckets=3" (real, input)')
    seeds: tuple[int, ...] = setting((1, 2, 3), help="seeds (real)")
    profile: str | None = setting(
        None, help="folder: record a few steps of the first model and precision, print the first GPU's kernels and "
        "stop; with --parts mirrored on all GPUs"
    )


def main(config: BenchConfig) -> dict:
    unknown = [part for part in config.parts if part not in PARTS]
    if unknown:
        raise UsageError(f"--parts {unknown[0]} is not known; choose from {', '.join(PARTS)}")
    if {"real", "input"} & set(config.parts) and not (config.train and config.dev):
        raise UsageError("the parts real and input need questions: --train FILE --dev FILE")
    gpus = len(tf.config.list_physical_devices("GPU"))
    if "mirrored" in config.parts and gpus < 2:
        raise UserError(
            f"the part mirrored needs at least 2 GPUs and TensorFlow sees {gpus}; run it on a machine with more, let "
            "CUDA_VISIBLE_DEVICES name them, or leave it out of --parts"
        )
    if config.compare == "torch":
        bench_train_peer.check()  # before minutes are spent on our side
    machine = hardware.prepare("auto", "none", False, 1)
    refuse_idle_gpu(machine)
    print(f"device: {device_name(machine.gpu)}", flush=True)
    if config.profile:
        from scripts import profile_step

        variant = one(config, config.models[0], config.precisions[0])
        if "mirrored" in config.parts:
            machine = hardware.prepare("auto", "mirrored", False, 1)
            variant = dataclasses.replace(variant, batch=variant.batch * machine.replicas)
        return profile_step.profile(variant, machine, Path(config.profile))
    out = Path(config.out)
    about = {"device": device_name(machine.gpu), "date": datetime.date.today().isoformat()}
    blank = dict.fromkeys(COLUMNS, "") | {"versions": f"tensorflow {tf.__version__}"} | about
    rows, failed = [], []
    for what, job in list(jobs(config, machine)):  # all at once: a mistaken flag ends the run before it has begun
        try:
            for row in map(blank.__or__, job()):
                write(out, row)  # at once: what was measured is not lost with what comes after
                print(", ".join(f"{name} {row[name]}" for name in COLUMNS[:14] if row[name] != ""), flush=True)
                rows.append(row)
        except Exception as error:  # of a framework, the driver, memory: none of them is the others' fault
            if not isinstance(error, UserError):
                traceback.print_exc()
            failed.append(f"{what} ({str(error)[:200] or type(error).__name__})")
            print(f"failed: {what}: {str(error)[-2000:]}", flush=True)
    print(table(rows), flush=True)
    if rows:
        draw(out)
    if failed:
        raise UserError(f"{len(failed)} failed: {'; '.join(failed)}; {len(rows)} rows are in {out}")
    name = "{part} {framework} {model} {precision} {detail}".format_map
    metrics = {name(row): row["seq_per_s"] if row["value"] == "" else row["value"] for row in rows}
    return {"out": str(out), "metrics": metrics}


def jobs(config: BenchConfig, machine: hardware.Hardware) -> Iterator[Job]:
    """All parts, each in pieces that can fail alone."""
    kinds = list(itertools.product(config.models, config.precisions))
    for part in config.parts:
        if part in ("real", "input"):
            yield from bench_train_real.jobs(part, config, machine)
            continue
        for name, kind in kinds:
            what, variant = f"{part} {name} {kind}", partial(one, config, name, kind)
            timed = partial(step_rows, part, config, machine)
            if part == "first":
                yield what, partial(bench_train_first.rows, variant())
            elif part == "memory":
                yield what, partial(timed, variant(xla=config.xla[0] == "on", recompute=True))
            elif part == "mirrored":
                by_one = variant(xla=config.xla[0] == "on")
                yield f"{what}, 1 GPU", partial(timed, by_one, "1 GPU")
                yield what, partial(mirrored_rows, config, by_one)
            else:
                for xla in config.xla:
                    yield f"{what}, XLA {xla}", partial(timed, variant(xla=xla == "on"))
                if config.compare == "torch":
                    yield f"{what}, PyTorch", partial(torch_rows, config, variant())


def one(config: BenchConfig, name: str, kind: str, xla: bool = True, recompute: bool = False) -> Variant:
    return Variant(name, kind, xla, recompute, config.attention_dropout, config.batch, config.tokens)


def about(variant: Variant, detail: str) -> dict:
    """The columns that say what was timed."""
    dropped = f", attention dropout {variant.attention_dropout:g}" if variant.attention_dropout else ""
    return {
        "model": variant.model,
        "precision": variant.precision,
        "detail": detail + dropped,
        "batch": variant.batch,
        "tokens": variant.tokens,
    }


def mirrored_rows(config: BenchConfig, by_one: Variant) -> Iterator[dict]:
    """All GPUs with as many rows each as one has."""
    machine = hardware.prepare("auto", "mirrored", False, 1)
    whole = dataclasses.replace(by_one, batch=by_one.batch * machine.replicas)
    yield from step_rows("mirrored", config, machine, whole, f"{machine.replicas} GPUs, mirrored")


def step_rows(
    part: str, config: BenchConfig, machine: hardware.Hardware, variant: Variant, where: str = ""
) -> Iterator[dict]:
    timed = measure(variant, machine, config.steps, config.repetitions)
    words = [*([f"{where},"] if where else []), timed.attention, "attention"]
    words += ["recompute"] if variant.recompute else []
    detail = " ".join(words) + ("" if variant.xla else ", no XLA")
    shapes = {"compiled_shapes": 1 if variant.xla else 0}
    yield {"part": part, "framework": "retort"} | about(variant, detail) | figures(variant, vars(timed)) | shapes


def torch_rows(config: BenchConfig, variant: Variant) -> Iterator[dict]:
    seen = bench_train_peer.step(variant, config.steps, config.repetitions)
    row = {"part": "full", "framework": "torch.compile"} | about(variant, "SDPA") | figures(variant, seen)
    yield row | {"versions": f"torch {seen['torch']}", "device": seen["device"]}


def figures(variant: Variant, seen: dict) -> dict:
    return {
        "seq_per_s": round(variant.batch / seen["step_ms"] * 1e3, 1),
        "step_ms": round(seen["step_ms"], 2),
        "host_ms": round(seen["host_ms"], 2) if "host_ms" in seen else "",
        "peak_gib": round(seen["peak_gib"], 2),
        "first_step_s": round(seen["first_step_s"], 1),
    }


def write(path: Path, row: dict) -> None:
    """Put a row into the CSV, in place of an earlier one of the same key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = read(path) if path.exists() else []
    key = tuple(str(row[name]) for name in KEY)
    kept = [old for old in kept if tuple(old[name] for name in KEY) != key]
    scratch = path.with_suffix(".new")
    with open(scratch, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows([*kept, row])
    os.replace(scratch, path)  # a kill in between leaves the earlier rows


def read(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(rows: list[dict]) -> str:
    """For a person: a line a row, and ours over PyTorch's where both were run."""
    lines = []
    for row in rows:
        speed = f"{row['seq_per_s']:>9} seq/s" if row["seq_per_s"] != "" else f"{row['value']:>15}"
        memory = f"{row['peak_gib']:>7} GiB" if row["peak_gib"] != "" else " " * 11
        first = f"{row['first_step_s']:>7} s to the first step" if row["first_step_s"] != "" else ""
        what = f"{row['part']:7}{row['framework']:14}{row['model']:11}{row['precision']:9}"
        lines.append(f"{what}{speed}{memory}{first}  {row['detail']}")
    for part, model, kind in sorted({(row["part"], row["model"], row["precision"]) for row in rows}):
        same = [row for row in rows if (row["part"], row["model"], row["precision"]) == (part, model, kind)]
        ours = [row["seq_per_s"] for row in same if row["framework"] == "retort" and row["seq_per_s"] != ""]
        peers = [row["seq_per_s"] for row in same if row["framework"] == "torch.compile"]
        one = [row["seq_per_s"] for row in same if row["detail"].startswith("1 GPU,")]
        for row in same:
            if one and " GPUs, mirrored" in row["detail"]:
                gpus = row["detail"].replace(", mirrored", "").rsplit(",", 1)[0]
                lines.append(f"{part} {model} {kind}, {gpus}: {row['seq_per_s'] / one[0]:.2f} x one")
        if ours and peers:
            best = max if part == "full" else statistics.mean  # of all XLA settings, or of all seeds
            lines.append(f"{part} {model} {kind}: {best(ours) / best(peers):.3f} x torch.compile")
    return "\n".join(lines)


def draw(path: Path) -> None:
    """The plot beside the CSV, where matplotlib is installed. The figures are in the CSV whatever happens here."""
    later = f"python -m scripts.plot_train --csv {path} draws it later"
    try:
        from scripts import plot_train

        print(f"plot: {plot_train.draw(read(path), path.with_suffix('.svg'))}")
    except ModuleNotFoundError as error:
        print(f"no plot: {error.name} is not installed here; {later}")
    except Exception as error:
        print(f"no plot: {type(error).__name__}: {error}; {later}")


if __name__ == "__main__":
    command.run("scripts.bench_train", BenchConfig, main)
