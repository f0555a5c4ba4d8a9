"""A request on its way through the batcher: what it brought, what it has got so far, and the words for how it ends."""

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.errors import UserError
from heads import Head
from heads.head import characters
from serve.answerer import Answerer
from serve.packed import Packed
from serve.queue import Window


class QueueFull(Exception):  # noqa: N818
    """Too much waits already; the client should try again later."""


class DeadlinePassed(Exception):  # noqa: N818
    """There was no answer by the request's deadline."""

    def __init__(self, said: str = "the answer was not there by its deadline") -> None:
        super().__init__(said)


class Draining(Exception):  # noqa: N818
    """The server is stopping."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went. Of a text in several batches, `batch_*` and `compute_ms` are the last one's."""

    queue_ms: float  # waiting for a tokenising thread, and then for the last of its batches
    tokenise_ms: float
    compute_ms: float  # from the launch of the batch to its logits
    total_ms: float  # from submit to the response
    batch_tokens: int
    batch_sequences: int


@dataclass(frozen=True, slots=True)
class Served:
    response: dict[str, Any]  # as the engine's head has it (`Head.response`), with "runners_up" if asked for
    timing: Timing


@dataclass(frozen=True, slots=True)
class BatchReport:
    """A batch that was computed, or failed, for metrics."""

    tokens: int
    sequences: int
    requests: int
    slots: int  # tokens with padding
    begin: float  # time.perf_counter() at its launch
    queue_ms: float  # that its first window waited
    compute_ms: float
    failed: bool

    @classmethod
    def of(cls, windows: list[Window], padded: bool, begin: float, end: float, error: object) -> "BatchReport":
        tokens, waited = sum(w.length for w in windows), begin - min(w.ready for w in windows)
        slots = len(windows) * max(w.length for w in windows) if padded else tokens
        owners = len({id(w.owner) for w in windows})
        times = (begin, 1000 * max(waited, 0.0), 1000 * (end - begin))
        return cls(tokens, len(windows), owners, slots, *times, error is not None)


class Request:
    """Changed only by whoever holds the batcher's lock."""

    def __init__(
        self, tokens: int, deadline_ms: float | None, priority: int, dataset: Any = None, runners_up: int = 0
    ) -> None:
        """dataset: of the engine's head, with one example; None where ids come instead of texts."""
        self.future: Future = Future()
        self.arrived = time.perf_counter()
        # not "> 0" for what is no number either
        seconds = None if deadline_ms is None else deadline_ms / 1000 if deadline_ms > 0 else 0.0
        self.deadline = None if seconds is None or seconds > 1e6 else self.arrived + seconds
        self.priority, self.dataset, self.tokens = priority, dataset, tokens  # tokens charged to the queue's limit
        self.features: Any = None  # the dataset's
        self.runners_up = runners_up
        self.packed: Packed | None = None
        self.windows: list[Window] = []
        self.outputs: list = []  # of every window an array for each output; None where it has not come
        self.left = 0
        self.over = False  # answered, failed, or not wanted any more
        self.turn = self.ready = self.text_ms = self.tokenise_ms = 0.0
        self._report: BatchReport | None = None

    @classmethod
    def of(
        cls, head: Head, fields: Mapping[str, Any], deadline_ms: float | None, priority: int, runners_up: int
    ) -> "Request":
        """A head's request. Raises: UserError where it is none."""
        if not 0 <= runners_up <= head.most_runners_up:
            most = head.most_runners_up
            raise UserError(f"runners_up is {runners_up}; an engine for {head.title} has 0 to {most} of them")
        tokens = characters(fields) // 4 + 3  # until they are counted
        return cls(tokens, deadline_ms, priority, head.dataset([head.example(fields)]), runners_up)

    def expect(self, windows: int) -> None:
        self.outputs, self.left = [None] * windows, windows

    def take(self, index: int, outputs: list[np.ndarray], report: BatchReport) -> bool:
        """The outputs of one window; True: they are all there."""
        self.left -= self.outputs[index] is None
        self.outputs[index] = outputs
        self._report = report
        return not self.left

    def late(self) -> bool:
        return self.deadline is not None and time.perf_counter() >= self.deadline

    def forget(self) -> None:
        """Its arrays; entries of queues may live on for a while."""
        self.dataset = self.features = self.packed = None
        self.windows = []

    def timing(self) -> Timing:
        report = self._report
        assert report is not None
        now = time.perf_counter()
        waited = 1000 * (self.text_ms + max(report.begin - self.ready, 0.0))
        total = 1000 * (now - self.arrived)
        return Timing(waited, 1000 * self.tokenise_ms, report.compute_ms, total, report.tokens, report.sequences)


def finished(reader: Answerer, request: Request, dataset: Any, features: Any, packed: Packed | None) -> object:
    """What a request's future gets, all of its outputs being there: a Served, or the outputs of one without text.

    The last three are the request's own, taken with the lock held: without it they may be forgotten at any time.
    """
    if packed is None:
        return None  # cancelled meanwhile
    outputs = list(zip(*request.outputs, strict=True))
    if dataset is None:
        kinds = zip(reader.manifest.outputs, outputs, strict=True)
        return tuple(np.concatenate(rows) if output.per == "token" else np.stack(rows) for output, rows in kinds)
    (found,) = reader.head.decode(features, dataset, outputs).values()
    response = reader.head.response(found, reader.manifest.no_answer_threshold)
    if request.runners_up:
        response["runners_up"] = reader.head.runners_up(features, dataset, outputs, request.runners_up)
    return Served(response, request.timing())


def joined(parts: list[Packed]) -> Packed:
    """Packed sequences behind each other in one batch."""
    if len(parts) == 1:
        return parts[0]
    token_ids, segment_ids, position_ids = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("token_ids", "segment_ids", "position_ids")
    )
    starts = np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part in parts]))])
    return Packed(token_ids, segment_ids, position_ids, starts.astype(np.int32))
