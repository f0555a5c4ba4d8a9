"""Training on real windows: the whole of train.py beside a PyTorch loop that pads, and what is not the step itself.

Both start from the same weights, see the same windows, and follow the same schedule for the same number of updates.
Ours takes batches by length bucket. PyTorch's takes them shuffled, every window padded to the longest allowed, as the
usual fine-tuning script does; its windows lie in memory, ready made, so it is spared the cost of a data loader.
"""

import gc
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from configs import options
from data import batches
from data.answers import best_answers
from data.metric import score
from model import run_folder
from scripts import bench_train_peer
from scripts.bench_train_step import forget_peak, peak_gib
from train import hardware, loop
from train.config import TrainConfig
from train.epoch import epoch_batches
from train.journal import Journal
from train.out_folder import empty
from train.prepare import Prepared, initialise, prepare, steps_per_epoch

RUNS = Path("runs/bench_train")
ARRAYS = ("token_ids", "segment_ids", "padding_mask", "start_positions", "end_positions")


LIMIT_S = 600  # for PyTorch's whole run
REPETITIONS = 5  # of an epoch; the median counts


def jobs(part: str, config: Any, machine: hardware.Hardware) -> Iterator[tuple[str, Callable[[], Iterable[dict]]]]:
    """(what, a function that measures it and gives its rows) of the parts "real" and "input".

    config: `bench_train.BenchConfig`.
    """
    argv = ["--config", config.recipe, "--model", config.weights, "--data", config.train, "--dev", config.dev]
    argv += ["--out", str(RUNS), *(f"--{word}" for word in config.flags.split())]
    settings = options.parse(TrainConfig, argv, "train")
    prepared = cache(lambda: prepare(settings, machine, print))
    common = {
        "part": part,
        "framework": "retort",
        "model": config.weights if "/" not in config.weights else Path(config.weights).name,
        "precision": settings.amp if settings.amp not in (None, "auto") else ("float16" if settings.amp else "float32"),
        "batch": settings.batch_size,
    }

    def rows(measured: Callable[..., Iterator[dict]], *given: Any) -> Iterator[dict]:
        tokens = ", ".join(map(str, prepared().edges))
        yield from (common | {"tokens": tokens} | row for row in measured(prepared(), *given))

    if part == "input":
        yield "input", partial(rows, overheads, settings, machine)
        return
    for seed in config.seeds:
        out = str(RUNS / str(seed))
        yield f"real, seed {seed}", partial(rows, ours, replace(settings, seed=seed, out=out), machine)
    for seed in config.seeds if config.compare == "torch" else ():
        yield f"real, PyTorch, seed {seed}", partial(rows, theirs, replace(settings, seed=seed))


def ours(prepared: Prepared, settings: TrainConfig, machine: hardware.Hardware) -> Iterator[dict]:
    """One run of the loop, with its logging and checkpoints; evaluations do not count as training."""
    job = prepared.job(settings)
    empty(job.out)
    run_folder.write(job.out, job.info)
    gc.collect()
    forget_peak(machine)
    start = time.perf_counter()
    metrics = loop.run(job)
    whole = time.perf_counter() - start
    lines = [json.loads(line) for line in (job.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = [line for line in lines if "seconds" in line]
    later = [line for line in timed if line["step"] > job.steps_per_epoch + settings.log_every] or timed
    rate = sum(line["seq_per_s"] * line["seconds"] for line in later) / sum(line["seconds"] for line in later)
    yield {
        "detail": f"seed {settings.seed}, by bucket",
        "seq_per_s": round(rate, 1),
        "peak_gib": round(peak_gib(machine), 2),
        "compiled_shapes": len(prepared.step.shapes),
        "value": f"F1 {metrics['f1']:.2f}; {whole:.0f} s in all, {len(job.history)} evaluations among it",
    }


def theirs(prepared: Prepared, settings: TrainConfig) -> Iterator[dict]:
    """The PyTorch loop from the same weights; its logits are scored by our metric."""
    features, window = prepared.features, settings.window
    initialise(prepared.model, prepared.source, settings.seed)
    weights = {name: np.asarray(variable.numpy()) for name, variable in prepared.model.names().items()}
    every = features.assemble(np.arange(len(features)), window)
    per_epoch = steps_per_epoch(features, settings)
    total = per_epoch * settings.epochs
    plans = [
        batches.plan(features.length, settings.batch_size, (window,), seed=settings.seed, epoch=epoch)
        for epoch in range(settings.epochs)
    ]
    given = {name: every[name] for name in ARRAYS}
    given["order"] = np.stack([np.stack([places for _, places in plan]) for plan in plans])
    assert prepared.evaluate is not None
    dev: Any = prepared.evaluate.features
    given |= {f"dev_{name}": value for name, value in dev.assemble(np.arange(len(dev)), window).items()}
    job = {"sizes": prepared.model.config.to_dict(), "precision": settings.amp, "epochs": settings.epochs}
    job["precision"] = {None: "float32", "auto": "float16"}.get(settings.amp, settings.amp)
    job |= {"seed": settings.seed, "lr": settings.lr, "warmup": int(total * settings.warmup), "total": total}
    seen, arrays = bench_train_peer.run(job, given, weights, LIMIT_S)
    logits = [rows[:length] for rows, length in zip(arrays["logits"], dev.length, strict=True)]
    start, end = [rows[:, 0] for rows in logits], [rows[:, 1] for rows in logits]
    dataset = prepared.evaluate.dataset
    scores = score(dataset, best_answers(dev, dataset, start, end, max_answer_tokens=settings.max_answer_tokens))
    yield {
        "framework": "torch.compile",
        "detail": f"seed {settings.seed}, padded",
        "tokens": window,
        "seq_per_s": round(seen["seq_per_s"], 1),
        "peak_gib": round(seen["peak_gib"], 2),
        "first_step_s": round(seen["first_step_s"], 1),
        "compiled_shapes": "",
        "value": f"F1 {scores['f1']:.2f}",
        "versions": f"torch {seen['torch']}",
    }


def overheads(prepared: Prepared, settings: TrainConfig, machine: hardware.Hardware) -> Iterator[dict]:
    """Seconds an epoch takes with more and more of the loop around the step, the first epoch not counted."""
    job, step = prepared.job(settings), prepared.step
    feed = lambda epoch: epoch_batches(prepared.features, prepared.edges, settings, machine, epoch, 0)  # noqa: E731
    kept = list(feed(0))

    def steps(batches) -> float:
        nonlocal host
        start = time.perf_counter()
        for number, (batch, _) in enumerate(batches):
            numbers = step(batch, number)
        host = time.perf_counter() - start
        numbers.numpy()
        return time.perf_counter() - start

    def logged() -> float:
        empty(RUNS)
        journal = Journal(RUNS, step.measured, len(kept), 0, settings.log_every, "train")
        start = time.perf_counter()
        for number, (batch, rows) in enumerate(feed(2)):
            journal.step(step(batch, number), rows)
            if journal.due:
                loop.stop_if_stuck(job, batch, number + 1, journal.read())
        journal.read(end=True)
        journal.close()
        return time.perf_counter() - start

    host = 0.0  # seconds until the last step was started
    steps(kept)  # compiles
    repeated = {
        "batches ready made": lambda: steps(kept),
        "with the input": lambda: steps(feed(1)),
        "with input and logging": logged,
    }
    windows, base = len(prepared.features), 0.0
    for detail, measured in repeated.items():
        seconds = float(np.median([measured() for _ in range(REPETITIONS)]))
        base = base or seconds
        more = "" if seconds == base else f"{100 * (seconds / base - 1):+.1f} %"
        each = {"step_ms": round(seconds / len(kept) * 1e3, 2)}
        each |= {"host_ms": round(host / len(kept) * 1e3, 2)} if measured is not logged else {}
        yield {"detail": detail, "seq_per_s": round(windows / seconds, 1), "value": more} | each
    if prepared.evaluate is not None:
        prepared.evaluate()
        spent = []
        for run in (prepared.evaluate.logits, prepared.evaluate):
            start = time.perf_counter()
            run()
            spent.append(time.perf_counter() - start)
        value = f"{spent[1]:.2f} s, {spent[0]:.2f} for the model, {100 * spent[1] / base:.1f} %"
        yield {"detail": "an evaluation, against an epoch", "value": value}
