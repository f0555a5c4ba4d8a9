"""An engine on TensorRT: several batches at a time on the GPU, two unless said, and no Python between their kernels.

    slot 0   | copy in | compute 1           | copy out |        | copy in | compute 3 ...
    slot 1             | copy in | compute 2           | copy out |

A slot is a stream, an execution context, pinned buffers on the host and buffers on the GPU for the profile's largest
batch, made once. Copies of one slot overlap the other's kernels, and so do kernels, of which few fill the GPU to their
very end: BERT-large's windows one by one come to 1,590 a second on an H200, 1,236 before (`results/real_lengths.csv`);
large batches gain a few percent at most. It costs a second context's memory, and a batch is done later where another
one is beside it: `--contexts 1` is for whom that matters more.

A batch is rounded up to a bucket (`serve/buckets.py`). The first batch of a bucket runs plainly, since TensorRT and the
plugins prepare themselves for its shape then; later ones replay a CUDA graph, copies included, captured once for each
slot.
"""

import atexit
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
from absl import logging

from plugins.profile import HEAD_START, Row, recording
from serve.buckets import Bucket, Buckets
from serve.cuda import Cuda, CudaError
from serve.fitting import Fitted, take_choices
from serve.manifest import Manifest
from serve.packed import Packed, check
from serve.session import CONTEXTS, Logits, Session, Ticket

WARM = 2  # runs before those that a profile counts
SCRATCH = 256 << 20  # bytes that a profile sets over and over to keep the GPU busy while the host prepares a run
FILL_RATE = 8e12  # bytes a second that no GPU of today sets
MOST_FILLS = 600  # the first run waits for more than launches
# Each takes some 100 kB to a few MB of the GPU; beyond it the one unused for longest goes. Windows of 16 to 384 tokens
# in batches of up to 32 make some 150 shapes, and each slot has graphs of its own.
MOST_GRAPHS = 512


class _Slot:
    """What a batch under way has for itself: a stream, a context, buffers, and the event that tells when it is done."""

    def __init__(self, cuda: Any, context: Any, largest: Bucket) -> None:
        self.stream, self.context = cuda.stream(), context
        self.host_in, words = cuda.pinned(4 * largest.input_words)
        self.host_out, floats = cuda.pinned(4 * largest.output_words)
        self.words, self.floats = words.view(np.int32), floats.view(np.float32)
        self.gpu_in, self.gpu_out = cuda.memory(4 * largest.input_words), cuda.memory(4 * largest.output_words)
        self.fetched = cuda.event()
        self.ticket: Ticket | None = None
        self.batch: Packed | None = None
        self.bucket: Bucket | None = None


class TensorrtSession(Session):
    """See `Session`. `submit` and `result` may be called from different threads."""

    runtime = "tensorrt"
    at_once = True
    memory = 2  # where the plan reads and writes, in DLPack's numbers: CUDA

    @classmethod
    def opened(
        cls, manifest: Manifest, fitted: Fitted, most_graphs: int = MOST_GRAPHS, contexts: int = CONTEXTS
    ) -> "TensorrtSession":
        """Open the plan of a manifest that `fitting.fit` found to fit. Raises: UserError, CudaError."""
        from serve.plan import Plan

        cuda = Cuda()
        note = take_choices(manifest, fitted.gpu.name)
        plan = Plan(manifest, fitted, contexts)
        session = cls(manifest, plan, cuda, most_graphs)
        session._notes += [said for said in (note, plan.note) if said]
        with_plugins = f"plugins {', '.join(manifest.plugins)}" if manifest.plugins else "no plugins"
        atexit.register(_close, weakref.ref(session))  # TensorRT's objects must go before CUDA does
        session.device = fitted.gpu.name
        session.why = (
            f"{manifest.target} {manifest.tensorrt} on {fitted.gpu.name} (sm_{fitted.gpu.architecture}), "
            f"{manifest.precision}, {with_plugins}"
        )
        return session

    def __init__(self, manifest: Manifest, plan: Any, cuda: Any, most_graphs: int = MOST_GRAPHS) -> None:
        """`plan` and `cuda` are a `serve.plan.Plan` and a `serve.cuda.Cuda`, or stand-ins. most_graphs 0: none."""
        super().__init__(manifest)
        self._plan, self._cuda, self._most_graphs = plan, cuda, most_graphs
        self._buckets = Buckets(manifest)
        self._lock = threading.Lock()
        self._slots = [_Slot(cuda, context, self._buckets.largest()) for context in plan.contexts]
        self.slots = len(self._slots)
        self._turn = 0
        self._seen: set[tuple[int, int]] = set()  # buckets that have run plainly
        self._graphs: OrderedDict[tuple[int, tuple[int, int]], Any] = OrderedDict()  # (slot, bucket's key) -> graph
        self._notes: list[str] = []

    def submit(self, batch: Packed) -> Ticket:
        check(batch, self.manifest)
        cuda = self._cuda
        with self._lock:
            if not self._slots:
                raise RuntimeError("this session is closed; open another one")
            place, self._turn = self._turn, (self._turn + 1) % len(self._slots)
            slot = self._slots[place]
            if slot.ticket:  # its logits must be out of the buffers before another batch comes in
                cuda.synchronise(slot.fetched)
                self._collect(slot)
            bucket = self._buckets.of(batch)
            bucket.write(batch, slot.words)
            self._compute_on_gpu(place, slot, bucket)
            cuda.record(slot.fetched, slot.stream)
            slot.ticket, slot.batch, slot.bucket = Ticket(place=place), batch, bucket
            return slot.ticket

    def result(self, ticket: Ticket) -> Logits:
        if ticket.values is None:
            slot = self._slots[ticket.place]
            self._cuda.synchronise(slot.fetched)  # without the lock: another thread may submit meanwhile
            with self._lock:
                if slot.ticket is ticket:  # or submit has collected it
                    self._collect(slot)
        assert ticket.values is not None
        return ticket.values

    def output_shapes(self, batch: Packed) -> dict[str, tuple[int, ...]]:
        """The arrays that `run_into` writes for a batch, which is rounded up: packed [T or more, ...]."""
        return {name: shape for name, (_, shape) in self._buckets.of(batch).outputs.items()}

    def run_into(self, batch: Packed, addresses: dict[str, int]) -> None:
        """Compute a batch, and write outputs to float32 memory of the GPU instead of the host: name -> address.

        The memory must hold `output_shapes` and not be in use by another stream. Raises: UserError as `submit`.
        """
        check(batch, self.manifest)
        with self._lock:
            if not self._slots:
                raise RuntimeError("this session is closed; open another one")
            slot, bucket, cuda = self._slots[0], self._buckets.of(batch), self._cuda
            if slot.ticket:
                cuda.synchronise(slot.fetched)
                self._collect(slot)
            bucket.write(batch, slot.words)
            cuda.copy_in(slot.gpu_in, slot.host_in, 4 * bucket.input_words, slot.stream)
            slot.context.prepare(bucket, slot.gpu_in, slot.gpu_out)
            slot.context.place(addresses)
            slot.context.execute(slot.stream)
            cuda.finish(slot.stream)

    def warm(self, batches: Iterable[Packed], limit_s: float = float("inf")) -> None:
        """See `Session`: each bucket runs plainly, then a graph is captured in every slot; no more than are kept."""
        begin, done = time.monotonic(), set[tuple[int, int]]()
        for batch in batches:
            key = self._buckets.of(batch).key
            if key in done or all((place, key) in self._graphs for place in range(self.slots)):
                continue
            if (late := time.monotonic() - begin > limit_s) or len(done) >= max(self._most_graphs // self.slots, 1):
                why = f"{limit_s:g} s were over" if late else f"{self._most_graphs} graphs are kept at most"
                self._notes.append(f"{len(done)} sizes were prepared, others not: {why}")
                return
            for _ in range(self.slots + 1):
                self.run(batch)
            done.add(key)

    def profile(self, batch: Packed, runs: int = 10) -> list[Row]:
        """How long each plugin takes for a batch, in plain runs without CUDA graphs. Nothing else may be under way."""
        check(batch, self.manifest)
        with self._lock, recording() as record:
            slot, bucket, cuda, stream = self._slots[0], self._buckets.of(batch), self._cuda, self._slots[0].stream
            bucket.write(batch, slot.words)
            cuda.copy_in(slot.gpu_in, slot.host_in, 4 * bucket.input_words, stream)
            scratch, fills = cuda.memory(SCRATCH), int(HEAD_START / SCRATCH)
            try:
                for _ in range(WARM + runs):
                    for _ in range(fills):
                        cuda.fill(scratch, SCRATCH, stream)
                    slot.context.prepare(bucket, slot.gpu_in, slot.gpu_out)
                    begin = time.perf_counter()
                    record.around_run(int(stream), lambda: slot.context.execute(stream))
                    # A host that needs longer than the fills last would have the GPU wait within what is timed.
                    needed = int((time.perf_counter() - begin) * FILL_RATE / SCRATCH)
                    fills = min(max(int(HEAD_START / SCRATCH), needed), MOST_FILLS)
                    cuda.finish(stream)
            finally:
                cuda.finish(stream)
                cuda.free(scratch)
            record.forget(WARM)
            return record.rows([int(length) for length in batch.lengths])

    def close(self) -> None:
        """Wait for what is under way, which can still be fetched afterwards, and give back memory of GPU and host."""
        with self._lock:
            if not self._slots:
                return
            for slot in self._slots:
                self._cuda.finish(slot.stream)
                if slot.ticket:
                    self._collect(slot)
            self._plan.save_cache()
            for graph in self._graphs.values():
                self._cuda.free_graph(graph)
            self._graphs.clear()
            for slot in self._slots:
                del slot.context  # before the stream and the buffers that it knows
            del self._plan
            for slot in self._slots:
                for address in (slot.gpu_in, slot.gpu_out):
                    self._cuda.free(address)
                slot.words = slot.floats = np.zeros(0)
                for address in (slot.host_in, slot.host_out):
                    self._cuda.free_pinned(address)
                self._cuda.free_event(slot.fetched)
                self._cuda.free_stream(slot.stream)
            self._slots = []

    @property
    def notes(self) -> list[str]:
        return [*self._notes, f"{len(self._graphs)} CUDA graphs captured for {len(self._seen)} shapes"]

    def _collect(self, slot: _Slot) -> None:
        """Logits that have arrived, from the slot's buffer into its ticket; the slot is free then."""
        assert slot.ticket is not None and slot.batch is not None and slot.bucket is not None  # noqa: PT018
        slot.ticket.values = slot.bucket.read(slot.batch, slot.floats)
        slot.ticket = slot.batch = slot.bucket = None

    def _compute_on_gpu(self, place: int, slot: _Slot, bucket: Bucket) -> None:
        """Put copies and kernels of the batch in the slot's buffers on the slot's stream."""
        key = (place, bucket.key)
        if graph := self._graphs.get(key):
            self._graphs.move_to_end(key)
            self._cuda.launch(graph, slot.stream)
            return

        def work() -> None:
            self._cuda.copy_in(slot.gpu_in, slot.host_in, 4 * bucket.input_words, slot.stream)
            slot.context.execute(slot.stream)
            self._cuda.copy_out(slot.host_out, slot.gpu_out, 4 * bucket.output_words, slot.stream)

        slot.context.prepare(bucket, slot.gpu_in, slot.gpu_out)
        work()
        if bucket.key in self._seen and len(self._graphs) <= self._most_graphs and self._most_graphs:
            # For the next batch of this shape. Right after a run of it: where the shape before was another one,
            # TensorRT waits for the stream, which no capture allows.
            try:
                graph = self._cuda.capture(slot.stream, work)
            except (CudaError, RuntimeError) as error:
                self._most_graphs = 0
                self._notes.append(f"CUDA graphs are off: the capture of {bucket.key} failed ({error})")
                logging.warning("%s", self._notes[-1])
            else:
                self._keep(key, graph)
        self._seen.add(bucket.key)

    def _keep(self, key: tuple[int, tuple[int, int]], graph: Any) -> None:
        self._graphs[key] = graph
        if len(self._graphs) > self._most_graphs:
            (place, _), oldest = self._graphs.popitem(last=False)
            self._cuda.finish(self._slots[place].stream)  # it may be running
            self._cuda.free_graph(oldest)

    def _compute(self, batch: Packed) -> Logits:
        return self.run(batch)


def _close(session: "weakref.ref[TensorrtSession]") -> None:
    if (opened := session()) and not opened.abandoned:
        opened.close()
