"""Where an engine's time goes: how long each plugin ran on the GPU, beside the least that this GPU could need for it.

    with recording() as record:
        context.execute_async_v3(stream)        # plainly: in a CUDA graph no Python runs, and nothing is recorded
    for row in record.rows(lengths): ...

What TensorRT computes itself (the head, and whatever has no plugin) is not seen.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plugins import plugin
from plugins.launch import check, driver

HEAD_START = 25e9  # bytes to set before a run: some milliseconds, in which the host gets ahead of the GPU
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "int32": 4}
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Row:
    """All calls of one operator with the same shapes, in one run of the engine."""

    op: str
    shapes: str  # of its inputs
    calls: int
    microseconds: float  # of all calls, the median over the runs
    moved: float  # bytes that the calls must read and write at least
    operations: float  # multiplications and additions

    def floor(self, bandwidth: float, arithmetic: float) -> float:
        """Microseconds that the calls need at least, at bytes and operations per second."""
        return 1e6 * max(self.moved / bandwidth, self.operations / arithmetic)


@dataclass
class Record:
    """What was timed: per run a list of (op, shapes, dtype, event before, event after), in the order of launches."""

    runs: list[list[tuple[str, dict, str, Any, Any]]] = field(default_factory=list)

    def around(self, op: str, shapes: dict, dtype: str, stream: int, call: Callable[[], None]) -> None:
        cuda = driver()
        begin, end = (check(cuda.cuEventCreate(0), "making an event") for _ in range(2))
        check(cuda.cuEventRecord(begin, stream), "recording an event")
        call()
        check(cuda.cuEventRecord(end, stream), "recording an event")
        self.runs[-1].append((op, shapes, dtype, begin, end))

    def rows(self, lengths: Sequence[int]) -> list[Row]:
        """The slowest first. lengths: of the sequences that were run. Waits for the GPU."""
        cuda = driver()
        times: dict[tuple, list[float]] = {}
        about: dict[tuple, tuple[int, float, float]] = {}
        for run in self.runs:
            found: dict[tuple, list[float]] = {}
            for op, shapes, dtype, begin, end in run:
                check(cuda.cuEventSynchronize(end), "waiting for an event")
                key = (op, ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items() if name != "y"))
                found.setdefault(key, []).append(1000 * check(cuda.cuEventElapsedTime(begin, end), "reading the time"))
                done = operations(op, shapes, lengths)
                about[key] = (len(found[key]), moved(op, shapes, dtype), done)
                for event in (begin, end):
                    check(cuda.cuEventDestroy(event), "destroying an event")
            for key, values in found.items():
                times.setdefault(key, []).append(sum(values))
        rows = [
            Row(op, text, calls, float(np.median(times[op, text])), calls * size, calls * done)
            for (op, text), (calls, size, done) in about.items()
        ]
        return sorted(rows, key=lambda row: -row.microseconds)


def moved(op: str, shapes: Shapes, dtype: str) -> float:
    """Bytes of all inputs and of y, each once; of tables the rows that are looked up."""
    size, rows, kinds = BYTES[dtype], math.prod(shapes["y"][:-1]), {**plugin(op).inputs, **plugin(op).outputs}
    return sum(
        (1 if kinds[name] == "Q" else size) * (rows * shape[-1] if name.endswith("_table") else math.prod(shape))
        for name, shape in shapes.items()
    )


def operations(op: str, shapes: Shapes, lengths: Sequence[int]) -> float:
    """Multiplications and additions of an operator's products; those of the others are few. An 8-bit product's count
    half, because the GPU's rate is that of 16 bits.
    """
    if op.startswith("linear8"):
        return 1.0 * math.prod(shapes["y"]) * shapes["weight"][1]
    if "weight" in shapes:
        return 2.0 * math.prod(shapes["y"]) * shapes["weight"][0]
    if op in ("attention", "attention8"):
        return 4.0 * shapes["y"][-1] * sum(length * length for length in lengths)
    return 0.0


_current: Record | None = None


def current() -> Record | None:
    """What is being recorded in this process, if anything is."""
    return _current


@contextlib.contextmanager
def recording() -> Iterator[Record]:
    """Plugins that run inside the block are timed. For one thread."""
    global _current
    _current = Record()
    try:
        yield _current
    finally:
        _current = None
