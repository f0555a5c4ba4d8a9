"""Where an engine's time goes: how long each plugin ran on the GPU, beside the least that this GPU could need for it.

    with recording() as record:
        context.execute_async_v3(stream)        # plainly: in a CUDA graph no Python runs, and nothing is recorded
    for row in record.rows(lengths): ...

What TensorRT computes itself (the head, and whatever has no plugin) is what the whole run takes beyond its plugins. A
time that CUDA does not give, or a floor that nobody has worked out, is nan and leaves the rest of the table as it is.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plugins import plugin
from plugins.launch import CudaError, check, driver

HEAD_START = 25e9  # bytes to set before a run: some milliseconds, in which the host gets ahead of the GPU
REST = "TensorRT's own"
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
        """Microseconds that the calls need at least, at bytes and operations per second; nan where not known."""
        if math.isnan(self.moved + self.operations + bandwidth + arithmetic):
            return math.nan
        return 1e6 * max(self.moved / bandwidth, self.operations / arithmetic)


@dataclass
class Record:
    """What was timed: per run a list of (op, shapes, dtype, events before and after), in the order of launches."""

    runs: list[list[tuple[str, dict, str, Any]]] = field(default_factory=list)
    whole: list[Any] = field(default_factory=list)  # events before and after a run

    def around(self, op: str, shapes: dict, dtype: str, stream: int, call: Callable[[], None]) -> None:
        """Run the call once, whatever becomes of its timing."""
        self.runs[-1].append((op, shapes, dtype, _timed(stream, call)))

    def around_run(self, stream: int, call: Callable[[], None]) -> None:
        """A run of the engine, in whose call `around` is called for its plugins."""
        self.runs.append([])
        self.whole.append(_timed(stream, call))

    def forget(self, runs: int) -> None:
        """The first runs, which warmed up, do not count."""
        del self.runs[:runs], self.whole[:runs]

    def rows(self, lengths: Sequence[int]) -> list[Row]:
        """The slowest first, what is no plugin last. lengths: of the sequences that were run. Waits for the GPU."""
        times: dict[tuple, list[float]] = {}
        about: dict[tuple, tuple[int, float, float]] = {}
        for run in self.runs:
            found: dict[tuple, list[float]] = {}
            for op, shapes, dtype, events in run:
                key = (op, ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items() if name != "y"))
                found.setdefault(key, []).append(_microseconds(events))
                least = _or_nan(moved, op, shapes, dtype), _or_nan(operations, op, shapes, lengths)
                about[key] = (len(found[key]), *least)
            for key, values in found.items():
                times.setdefault(key, []).append(len(values) * _mean(values))
        rows = [
            Row(op, text, calls, _median(times[op, text]), calls * size, calls * done)
            for (op, text), (calls, size, done) in about.items()
        ]
        rows.sort(key=lambda row: math.inf if math.isnan(row.microseconds) else -row.microseconds)
        if self.whole:
            seen = sum(row.microseconds for row in rows if not math.isnan(row.microseconds))
            rest = _median([_microseconds(events) for events in self.whole]) - seen
            rows.append(Row(REST, "head, copies and gaps", 1, rest, math.nan, math.nan))
        return rows


def _timed(stream: int, call: Callable[[], None]) -> Any:
    """Events recorded before and after a call; None where CUDA refuses them, and the call is made all the same."""
    cuda = driver()
    try:
        begin, end = (check(cuda.cuEventCreate(0), "making an event") for _ in range(2))
        check(cuda.cuEventRecord(begin, stream), "recording an event")
    except CudaError:
        call()
        return None
    call()
    try:
        check(cuda.cuEventRecord(end, stream), "recording an event")
    except CudaError:
        return None
    return begin, end


def _microseconds(events: Any) -> float:
    """Between two events, which go; nan where CUDA does not say."""
    if events is None:
        return math.nan
    cuda = driver()
    try:
        check(cuda.cuEventSynchronize(events[1]), "waiting for an event")
        return 1000 * check(cuda.cuEventElapsedTime(*events), "reading the time")
    except CudaError:
        return math.nan
    finally:
        for event in events:
            cuda.cuEventDestroy(event)


def _or_nan(count: Callable[..., float], *arguments: Any) -> float:
    """A floor is nice to have: an operator that nobody has taught `count` does not cost the table."""
    try:
        return count(*arguments)
    except (KeyError, IndexError, AttributeError, StopIteration):
        return math.nan


def _mean(values: Sequence[float]) -> float:
    """Of those that are numbers; nan where none is."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.median(known)) if known else math.nan


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
