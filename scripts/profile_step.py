"""Where a training step's time goes on a GPU: the kernels of a few steps, summed by name and by kind, as a table.

    python -m scripts.bench_train --models bert-base --precisions float16 --profile profiles/base

TensorFlow's profiler records them through CUPTI. Names of fusions are XLA's; XLA_FLAGS="--xla_dump_to=DIR
--xla_dump_hlo_as_text" beside it writes what each of them computes.
"""

import collections
import csv
import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from configs.errors import UserError
from scripts.bench_train_step import WARM_UP, Variant, build, on_devices, random_rows, timed
from train import hardware

STEPS, SHOWN = 5, 60
PAUSE_US, PAUSES = 20, 12  # what counts as the GPU standing still, and how many kinds of pauses are shown
# Kind -> what its kernels' names contain; the first that fits counts.
KINDS = {
    "collective": r"nccl",
    "attention": r"fmha|flash|cudnn|sdpa",
    "matrix product": r"gemm|cutlass|nvjet|xmma|cublas|splitk",
    "copy": r"memcpy|memset|MemcpyD2D|MemcpyH2D|MemcpyD2H",
    "scatter": r"scatter",
    "reduction": r"reduce",
    "elementwise": r"fusion|wrapped|loop|triton|convert|select",
}


@dataclass(frozen=True, order=True)
class Kernel:
    """A kernel or copy on the first GPU."""

    start_us: float
    us: float
    name: str


Kernels = list[Kernel]


def profile(variant: Variant, machine: hardware.Hardware, folder: Path) -> dict:
    """Record, print, return the share of each kind. Raises: UserError where no kernel was seen."""
    step, _ = build(variant, machine)
    batch = on_devices(random_rows(variant), machine)
    step(batch, 0).numpy()
    timed(step, batch, WARM_UP)
    plain, host = timed(step, batch, 20)
    # Known, whatever the profiler does.
    print(f"a step takes {plain * 1e3:.2f} ms, {host * 1e3:.2f} to start it; recording {STEPS}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    kernels = by_tensorflow(lambda: timed(step, batch, STEPS), folder)
    if not kernels and machine.gpu and importlib.util.find_spec("torch"):
        print("TensorFlow's profiler named no kernel; recording with PyTorch's", flush=True)
        kernels = by_torch(lambda: timed(step, batch, STEPS))
    if not kernels:
        raise UserError(
            f"the trace in {folder} names no kernel: there is no GPU, or its profiling library (CUPTI) was not found"
        )
    with open(folder / "kernels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("kernel", "start_us", "us"), *((k.name, k.start_us, k.us) for k in kernels)])
    print(summary(kernels, STEPS))
    print(pauses(kernels, STEPS))
    busy = sum(kernel.us for kernel in kernels) / STEPS / 1e3
    print(f"kernels {busy:.2f} ms a step; a step {plain * 1e3:.2f} ms when nothing is recorded")
    kinds = collections.defaultdict(float)
    for kernel in kernels:
        kinds[kind(kernel.name)] += kernel.us / STEPS / 1e3
    return {"out": str(folder), "metrics": {name: round(spent, 3) for name, spent in kinds.items()} | {"kernels": busy}}


def by_tensorflow(work: Callable[[], object], folder: Path) -> Kernels:
    """What TensorFlow's profiler sees; nothing, with a word why, where it cannot record."""
    try:
        tf.profiler.experimental.start(str(folder))
        try:
            work()
        finally:
            tf.profiler.experimental.stop()
        traces = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        return read(traces[-1]) if traces else []
    except (tf.errors.OpError, ImportError, OSError) as error:
        print(f"TensorFlow's profiler: {type(error).__name__}: {error}", flush=True)
        return []


def read(path: Path) -> Kernels:
    """All kernels and copies on GPU 0 in a trace."""
    space = protocol().XSpace()
    space.ParseFromString(path.read_bytes())
    kernels: Kernels = []
    for plane in space.planes:
        if not plane.name.startswith("/device:GPU:0"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):  # other lines group the same kernels by operation
                continue
            begin = line.timestamp_ns / 1e3
            kernels += [
                Kernel(begin + e.offset_ps / 1e6, e.duration_ps / 1e6, plane.event_metadata[e.metadata_id].name)
                for e in line.events
            ]
    return kernels


def by_torch(work: Callable[[], object]) -> Kernels:
    """What PyTorch's profiler sees of this process; it brings a CUPTI of its own."""
    profiler: Any = importlib.import_module("torch.profiler")
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as recording:
        work()
    return [
        Kernel(event.start_ns() / 1e3, event.duration_ns() / 1e3, event.name())
        for event in recording.profiler.kineto_results.events()
        if "CUDA" in str(event.device_type()) and event.device_index() == 0
    ]


def protocol() -> Any:
    """The module that knows the trace's format."""
    return importlib.import_module("tensorflow.tsl.profiler.protobuf.xplane_pb2")


def kind(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def summary(kernels: Kernels, steps: int) -> str:
    """Milliseconds a step by kind, then by name; numbers at the end of a fusion's name are left out."""
    kinds, names = collections.defaultdict(float), collections.defaultdict(float)
    count, number = collections.Counter(), collections.Counter()
    for kernel in kernels:
        for sums, counts, key in ((kinds, count, kind(kernel.name)), (names, number, short(kernel.name))):
            sums[key] += kernel.us
            counts[key] += 1
    lines = ["ms a step  kernels a step  kind"]
    lines += [f"{spent / steps / 1e3:9.3f}  {count[key] / steps:14.1f}  {key}" for key, spent in _largest(kinds)]
    lines += ["", "ms a step  kernels a step  us a kernel  name"]
    for key, spent in _largest(names)[:SHOWN]:
        each = spent / number[key]
        lines.append(f"{spent / steps / 1e3:9.3f}  {number[key] / steps:14.1f}  {each:11.1f}  {key[:90]}")
    return "\n".join(lines)


def pauses(kernels: Kernels, steps: int) -> str:
    """Milliseconds a step in which the GPU does nothing, by the kernel that it waits for; while recorded, so a little
    longer than otherwise."""
    waited, count = collections.defaultdict(float), collections.Counter()
    ordered = sorted(kernels)
    done = ordered[0].start_us
    for kernel in ordered:
        if (idle := kernel.start_us - done) >= PAUSE_US:
            waited[short(kernel.name)] += idle
            count[short(kernel.name)] += 1
        done = max(done, kernel.start_us + kernel.us)
    lines = ["", "ms a step  pauses a step  the GPU stands still before"]
    lines += [f"{spent / steps / 1e3:9.3f}  {count[key] / steps:13.1f}  {key[:90]}" for key, spent in _largest(waited)]
    return "\n".join([*lines[: 2 + PAUSES], f"{sum(waited.values()) / steps / 1e3:9.3f}  in all"])


def short(name: str) -> str:
    """Without the number at the end of a fusion's name."""
    return re.sub(r"[._]\d+$", "", name)


def _largest(sums: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(sums.items(), key=lambda item: -item[1])
