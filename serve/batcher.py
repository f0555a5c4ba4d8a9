"""Many people's requests to one engine: their windows share batches, which are cut by tokens and not by requests.

    with Batcher(reader) as batcher:
        future = batcher.submit({"text": "Where is my parcel?"}, deadline_ms=500)
        served = future.result()            # Served(response, timing); the response is what reader.respond would give

    submit -> texts -> workers: tokens -> lane: windows, Session.submit, Session.result -> workers: decoding -> future

Engines of every task are served alike; what a request holds and how outputs become a response, their head says.

A batch goes as soon as it is full. One that is not full waits for company only while there is a reason to: the device
is busy, or texts are being cut into tokens right now; and never longer than `max_delay_ms` since its first window.

Who goes first is one number, the turn: the time of arrival, plus `AGEING_S` for every step of priority, plus for the
later windows of a long text as long as a quarter of the device takes for those before. So a request is overtaken only
by what comes within a known time after it, and a book delays a question by little. The device is never idle for it.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Self

import numpy as np

from configs.errors import UsageError, UserError
from serve import budget as budgets
from serve.answerer import Answerer
from serve.lane import Hooks, Lane
from serve.packed import Packed, check
from serve.queue import Heap
from serve.request import BatchReport, DeadlinePassed, Draining, QueueFull, Request, Served, Timing, finished
from serve.warming import WARM_S, every_size

__all__ = ["BatchReport", "Batcher", "DeadlinePassed", "Draining", "QueueFull", "Served", "Timing"]
AGEING_S = 0.25  # a request of one priority goes before those of the next that came up to so much earlier
PRIORITIES = range(-9, 10)  # the less the sooner, as nice(1) has it


class Batcher:
    """See above. Every method may be called from any thread; futures are resolved in the batcher's threads."""

    def __init__(
        self, reader: Answerer, *, token_budget: int | str = "auto", most_sequences: int | None = None,
        max_delay_ms: float = 2.0, queue_limit_tokens: int = 1 << 20, tokenisers: int = 2, alike: bool = True,
    ) -> None:  # fmt: skip
        """Args:
            reader: whose session it uses, alone; it stays the caller's to close, after the batcher.
            token_budget: tokens a batch, of a padded engine with padding; "auto": measured (`serve/budget.py`).
            most_sequences: windows a batch; None: what the engine takes.
            max_delay_ms: see above.
            queue_limit_tokens: of all requests not yet answered; beyond it `submit` raises QueueFull.
            tokenisers: threads that cut text into tokens and choose spans.
            alike: on a padded engine, windows of like length go together.
        On TensorRT every size is prepared first, for seconds. Raises: UserError where a number is out of its range.
        """
        for name, value, least in (
            ("most_sequences", most_sequences or 1, 1), ("max_delay_ms", max_delay_ms, 0),
            ("queue_limit_tokens", queue_limit_tokens, 1), ("tokenisers", tokenisers, 1),
        ):  # fmt: skip
            if not least <= value <= 1e9:
                raise UsageError(f"{name} is {value}; needed is a number from {least} on")
        self.reader, self._limit = reader, queue_limit_tokens
        self.budget = budgets.chosen(reader.session, token_budget)
        reader.session.warm(every_size(reader.manifest, self.budget.tokens), WARM_S)
        most = reader.manifest.profile.batch.most
        self._lock = threading.Lock()
        self._work, self._clock, self._idle = (threading.Condition(self._lock) for _ in range(3))
        hooks = Hooks(self._company, self._whole, lambda request, error: self._settle(request, error=error))
        sizes = (self.budget, min(most_sequences or most, most))
        self._lane = Lane(reader, *sizes, max_delay_ms / 1000, alike, self._lock, hooks)
        self._texts: Heap[Request] = Heap(lambda request: request.over)
        self._deadlines: Heap[Request] = Heap(lambda request: request.over)
        self._answers, self._live = deque[Request](), set[Request]()
        self._charged = self._tokenising = 0
        self._alarm = float("inf")  # when the deadlines are looked at next, unless somebody notifies
        self._draining = self._closed = False
        self._counts: Counter[str] = Counter()
        loops = [*self._lane.loops, ("deadlines", self._watch)]
        loops += [(f"tokens-{place}", self._serve_texts) for place in range(tokenisers)]
        self._threads = [threading.Thread(target=loop, name=f"batcher-{name}", daemon=True) for name, loop in loops]
        for thread in self._threads:
            thread.start()

    def submit(
        self, fields: Mapping[str, Any], *, deadline_ms: float | None = None, priority: int = 0, runners_up: int = 0
    ) -> "Future[Served]":
        """Queue a request of the engine's head, {"question", "context"} or {"text"} for one; `future.cancel()` takes it
        back at any time before the response is there.

        Its future fails with UserError (an empty text, say), DeadlinePassed as soon as `deadline_ms` are over,
        Draining, or with what the runtime raised for it. Raises: QueueFull.
        """
        try:
            return self._enter(Request.of(self.reader.head, fields, deadline_ms, priority, runners_up))
        except UserError as error:
            return self._refused(error)

    def submit_packed(
        self, batch: Packed, *, deadline_ms: float | None = None, priority: int = 0
    ) -> "Future[tuple[np.ndarray, ...]]":
        """Queue sequences of ids; the future gets the engine's outputs, float32 [T, ...] or [B, ...], or an error."""
        try:
            check(batch, self.reader.manifest)
        except UserError as error:
            return self._refused(error)
        request = Request(batch.tokens, deadline_ms, priority)
        request.packed = batch
        return self._enter(request)

    def on_batch(self, observer: Callable[[BatchReport], object]) -> None:
        """Call `observer` with a BatchReport after every batch, in a thread that must not be kept."""
        self._lane.observers.append(observer)

    def stats(self) -> dict[str, float]:
        """Counts since the start, and what waits now."""
        with self._lock:
            names = ("answered", "failed", "cancelled", "expired", "refused", "batches", "sequences", "tokens", "slots")
            counts, lane = self._counts + self._lane.counts, self._lane
            found: dict[str, float] = {name: counts[name] for name in names}
            return found | {
                "requests": len(self._live), "windows_queued": lane.windows.count,
                "tokens_queued": lane.windows.tokens, "tokens_charged": self._charged,
                "tokens_limit": self._limit, "token_budget": self.budget.tokens, "under_way": lane.under_way,
                "seconds_a_token": lane.seconds_a_token,
            }  # fmt: skip

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take nothing more, and wait until all that is there is answered. False: the time was over before."""
        with self._lock:
            self._draining = True
            return self._idle.wait_for(lambda: not self._live, timeout_s)

    def close(self, timeout_s: float | None = None) -> bool:
        """Stop: what is not answered fails with Draining. Drain first to lose nothing.

        False: a thread has not come back from the device within the time. The session is in use then for as long as
        that hangs, and must not be closed.
        """
        with self._lock:
            self._draining, left = True, list(self._live)
        for request in left:
            self._settle(request, error=Draining("the server is stopping"))
        with self._lock:
            self._closed = True
            self._lane.close()
            self._work.notify_all()
            self._clock.notify_all()
        end = None if timeout_s is None else time.perf_counter() + timeout_s
        others = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in others:
            thread.join(None if end is None else max(end - time.perf_counter(), 0.0))
        return not any(thread.is_alive() for thread in others)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.drain()
        self.close()

    def _refused(self, error: Exception) -> Future:
        future: Future = Future()
        future.set_exception(error)
        with self._lock:
            self._counts["failed"] += 1
        return future

    def _enter(self, request: Request) -> Future:
        if request.priority not in PRIORITIES:
            return self._refused(UserError(f"priority is {request.priority}; needed is a whole number from -9 to 9"))
        with self._lock:
            draining, charged = self._draining, self._charged
            full = bool(self._live) and charged + request.tokens > self._limit
            if full:
                self._counts["refused"] += 1
            elif not draining:
                self._live.add(request)
                self._charged += request.tokens
                request.turn = request.arrived + AGEING_S * request.priority
        if draining:
            return self._refused(Draining("the server is stopping and takes no more questions"))
        if full:
            raise QueueFull(f"{charged} tokens wait already, {self._limit} may; try again later")
        future = request.future
        future.add_done_callback(lambda future: future.cancelled() and self._settle(request))
        with self._lock:
            if request.over:  # closed meanwhile
                return future
            if request.deadline is not None:
                self._deadlines.push(request.deadline, request)
                if request.deadline < self._alarm:  # nearly all of them leave long before
                    self._clock.notify()
            if request.packed is not None:
                self._lane.push(request)
            else:
                self._texts.push(request.turn, request)
                self._work.notify()
        return future

    def _settle(self, request: Request, result: object = None, error: BaseException | None = None) -> None:
        """Give a request its answer or error, once; without the lock, since a future's callbacks are others' code."""
        if not self._leave(request):
            return
        error = error or (DeadlinePassed() if request.late() else None)  # perhaps sooner than `_watch` says it
        future = request.future
        del request.future  # which knows the request: without the ring both are gone at once, and no garbage
        if not future.set_running_or_notify_cancel():
            outcome = "cancelled"
        elif error is None:
            outcome = "answered"
            future.set_result(result)
        else:
            outcome = "expired" if isinstance(error, DeadlinePassed) else "failed"
            future.set_exception(error)
        with self._lock:
            self._counts[outcome] += 1
            self._live.discard(request)
            if not self._live:
                self._idle.notify_all()

    def _company(self) -> bool:
        """Is a request on its way to the lane? With the lock."""
        return bool(self._tokenising or self._texts.first())

    def _whole(self, request: Request) -> None:
        """With the lock."""
        self._answers.append(request)
        self._work.notify()

    def _leave(self, request: Request) -> bool:
        """Forget a request wherever it waits. False: another thread did."""
        with self._lock:
            if request.over:
                return False
            request.over = True
            self._charged -= request.tokens
            self._lane.windows.drop(request.windows)
            self._deadlines.lost(request.deadline is not None)
            self._texts.lost(not request.windows and request.dataset is not None)
            request.forget()
            return True

    def _watch(self) -> None:
        """Thread: tells whoever's deadline is over."""
        while True:
            with self._lock:
                if self._closed:
                    return
                first = self._deadlines.first()
                wait = first[0] - time.perf_counter() if first else None
                if wait is None or wait > 0:
                    self._alarm = first[0] if first else float("inf")
                    self._clock.wait(None if wait is None else min(wait, 3600))
                    continue
                request = self._deadlines.pop()
            if request:
                self._settle(request, error=DeadlinePassed())

    def _serve_texts(self) -> None:
        """Threads: text to windows, and outputs to a response; that first, since somebody's wait ends with it."""
        while True:
            with self._lock:
                while not self._answers and self._texts.first() is None:
                    if self._closed:
                        return
                    self._work.wait()
                answer = self._answers.popleft() if self._answers else None
                request = answer or self._texts.pop()
                dataset = request.dataset if request else None
                if request is None or (dataset is None and answer is None):
                    continue
                features, packed = request.features, request.packed
                self._tokenising += not answer
                cutting = not answer
            try:
                if answer:
                    self._settle(request, finished(self.reader, request, dataset, features, packed))
                    continue
                begin = time.perf_counter()
                features = self.reader.features(dataset)
                packed = Packed.windows(features, np.arange(len(features)))
                request.text_ms, request.tokenise_ms = begin - request.arrived, time.perf_counter() - begin
                with self._lock:
                    self._tokenising, cutting = self._tokenising - 1, False  # else it is company that `go` waits for
                    if not request.over:
                        request.features, request.packed = features, packed
                        self._charged += packed.tokens - request.tokens  # what was guessed before
                        request.tokens = packed.tokens
                        self._lane.push(request, wake=False)
                self._lane.go()
            except Exception as error:
                self._settle(request, error=error)
            finally:
                if cutting:
                    with self._lock:
                        self._tokenising -= 1
                        self._lane.changed()
