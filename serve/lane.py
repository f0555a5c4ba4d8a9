"""The device's side of the batcher: windows wait, are cut into batches, computed two at a time, and handed out.

    lane = Lane(reader, budget, most_sequences, delay_s, alike, lock, hooks)
    lane.push(request)          # its windows wait; hooks.whole(request) once all logits are there
    lane.go()                   # without the lock: what is due is cut and submitted in this very thread

Two threads: one cuts batches and gives them to `Session.submit`, one takes logits out with `Session.result`. To wake
the first takes longer than its work, so a thread that has pushed a request and may be kept that long does it itself.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from absl import logging

from serve.answerer import Answerer
from serve.budget import Budget
from serve.packed import Packed
from serve.queue import Window, WindowQueue
from serve.request import BatchReport, Request, joined
from serve.session import Ticket

SHARE = 0.25  # of the device that a long text gets while others wait


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a lane needs to know of whoever feeds it."""

    company: Callable[[], bool]  # is another request on its way to the lane? Called with the lock
    whole: Callable[[Request], None]  # all logits of it are there. Called with the lock
    failed: Callable[[Request, BaseException], None]  # called without


class Lane:
    """Methods without an underscore are called with the lock."""

    def __init__(
        self, reader: Answerer, budget: Budget, most_sequences: int, delay_s: float, alike: bool, lock, hooks: Hooks
    ) -> None:
        self.session, self.budget, self.most_sequences = reader.session, budget, most_sequences
        self.seconds_a_token = budget.seconds_a_token  # a moving average
        self.windows, self.counts, self.under_way = WindowQueue(), Counter[str](), 0
        self.observers: list[Callable[[BatchReport], object]] = []
        self._padded, self._alike = reader.manifest.layout == "padded", alike
        self._delay, self._lock, self._hooks = delay_s, lock, hooks
        self._cut, self._fetch = threading.Condition(lock), threading.Condition(lock)
        self._launched: deque = deque()
        self._sending = 0  # threads that have cut a batch and not yet submitted it
        self._closed = False
        self.loops = (("launch", self._launch), ("fetch", self._fetch_all))

    def push(self, request: Request, wake: bool = True) -> None:
        """Let all windows of a request wait, the later ones as if they had come later. wake False: `go` follows."""
        assert request.packed is not None
        request.ready, turn = time.perf_counter(), request.turn
        lengths = request.packed.lengths.tolist()
        request.expect(len(lengths))
        for index, length in enumerate(lengths):
            window = Window(request, index, length, turn, request.ready)
            request.windows.append(window)
            self.windows.push(window)
            turn += length * self.seconds_a_token / SHARE
        if wake and self._due(request.ready) < float("inf"):  # else whoever makes room says it
            self._cut.notify()

    def go(self) -> None:
        """Cut a batch and submit it, if one is due and the session computes it elsewhere. Without the lock."""
        with self._lock:
            due = self._due(now := time.perf_counter())
            if self._closed or not self.session.at_once or due > now:
                if due < float("inf"):
                    self._cut.notify()
                return
            taken = self._taken()
        self._send(*taken)

    def changed(self) -> None:
        """A batch may be due earlier than it was: there is room, or the answer of `hooks.company` is another one."""
        if self.windows.count:
            self._cut.notify()

    def close(self) -> None:
        """The threads end after what is under way."""
        self._closed = True
        self._cut.notify()

    def _due(self, now: float) -> float:
        """When the next batch is to go, if nothing more comes; with the lock."""
        queue = self.windows
        if not queue.count or self.under_way >= self.session.slots:
            return float("inf")
        full = queue.tokens >= self.budget.tokens or queue.count >= self.most_sequences
        company = self.under_way or self._hooks.company()
        return now if full or not company else queue.oldest() + self._delay

    def _launch(self) -> None:
        """Thread: cuts batches and gives them to the session, when they are due."""
        while True:
            with self._lock:
                while (due := self._due(now := time.perf_counter())) > now:
                    if self._closed and not self._sending:
                        self._launched.append(None)
                        self._fetch.notify()
                        return
                    self._cut.wait(min(due - now, 60) if due < float("inf") else None)
                taken = self._taken()
            self._send(*taken)

    def _taken(self) -> tuple[list[Window], list[Packed]]:
        """A batch out of the queue; with the lock."""
        windows = self.windows.cut(self.budget.tokens, self.most_sequences, padded=self._padded, alike=self._alike)
        # a request that is over has left the queue, so all of these have their sequences
        parts = [w.owner.packed.take(w.index, w.index + 1) for w in windows]
        self.under_way += 1
        self._sending += 1
        return windows, parts

    def _send(self, windows: list[Window], parts: list[Packed]) -> None:
        launched = time.perf_counter()  # what comes before is the queue's time, what follows the device's
        outcome = self._submitted(parts)
        with self._lock:
            self._sending -= 1
            self._launched.append((windows, parts, outcome, launched))
            self._fetch.notify()
            if self._closed:
                self._cut.notify()

    def _submitted(self, parts: list[Packed]) -> Ticket | Exception:
        """A ticket, or the exception."""
        try:
            return self.session.submit(joined(parts))
        except Exception as error:
            return error

    def _fetch_all(self) -> None:
        """Thread: takes logits out, one batch after the other, and hands requests that are whole to the workers."""
        last = 0.0
        while True:
            with self._lock:
                while not self._launched:
                    self._fetch.wait()
                item = self._launched.popleft()
            if item is None:
                return
            windows, parts, outcome, begin = item
            logits, error = None, None
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                logits = self.session.result(outcome)
            except Exception as raised:
                error = raised
            now = time.perf_counter()
            report = BatchReport.of(windows, self._padded, begin, now, error)
            with self._lock:
                self.under_way -= 1
                self.changed()
                self.counts.update(batches=1, sequences=len(windows), tokens=report.tokens, slots=report.slots)
                if error is None:
                    self.seconds_a_token += 0.1 * ((now - max(begin, last)) / report.tokens - self.seconds_a_token)
            last = now
            if logits is not None:
                self._hand_out(windows, logits, report)
            else:
                self._one_by_one(windows, parts, report, error)
            for observer in self.observers:
                try:
                    observer(report)
                except Exception as raised:
                    logging.error("an observer of batches failed", exc_info=raised)

    def _one_by_one(self, windows: list[Window], parts: list[Packed], report: BatchReport, error) -> None:
        """A batch has failed: each request's windows alone, so that only the request that caused it fails."""
        by_owner: dict[Request, list[int]] = {}
        for place, window in enumerate(windows):
            by_owner.setdefault(window.owner, []).append(place)
        for request, places in by_owner.items():
            if request.over:
                continue
            try:
                if len(by_owner) == 1:
                    raise error
                logits = self.session.run(joined([parts[place] for place in places]))
                self._hand_out([windows[place] for place in places], logits, report)
            except Exception as raised:
                self._hooks.failed(request, raised)

    def _hand_out(self, windows: list[Window], logits, report: BatchReport) -> None:
        parts = self.session.split(logits, np.array([window.length for window in windows]))
        with self._lock:
            for window, part in zip(windows, parts, strict=True):
                if not window.owner.over and window.owner.take(window.index, list(part), report):
                    self._hooks.whole(window.owner)
