"""A GPU made of numpy that is as treacherous as CUDA allows: for what a session must wait for.

Nothing put on a stream happens until somebody waits, and then in an order drawn by seed among all that events and the
streams' own order permit. A wait that is missing therefore shows as wrong numbers for some seed.
"""

import itertools
import threading

import numpy as np
import serve_kit

from serve.packed import Packed


class FakeCuda:
    """The methods of `serve.cuda.Cuda`. `alive` holds what is allocated, `captured` the graphs made so far."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._numbers = itertools.count(1)
        self._queues: dict[int, list] = {}
        self._records: dict[int, int] = {}  # event -> how often it was recorded
        self._happened: dict[int, int] = {}  # event -> the newest of those that has happened
        self._blocks: dict[int, np.ndarray] = {}  # first address -> bytes
        self._capturing: int | None = None
        self._taken: list = []
        self._graphs: dict[int, list] = {}
        self._lock = threading.RLock()
        self.alive: set = set()
        self.captured = self.launched = 0

    def _new(self, kind: str) -> int:
        number = next(self._numbers) << 24
        self.alive.add((kind, number))
        return number

    def memory(self, size: int) -> int:
        address = self._new("memory")
        self._blocks[address] = np.full(size, 0x7F, np.uint8)  # what was there before is no valid id
        return address

    def pinned(self, size: int) -> tuple[int, np.ndarray]:
        address = self.memory(size)
        self.alive.remove(("memory", address))
        self.alive.add(("pinned", address))
        return address, self._blocks[address]

    def free(self, address: int) -> None:
        self.alive.remove(("memory", address))

    def free_pinned(self, address: int) -> None:
        self.alive.remove(("pinned", address))

    def stream(self) -> int:
        stream = self._new("stream")
        self._queues[stream] = []
        return stream

    def event(self) -> int:
        return self._new("event")

    def free_stream(self, stream: int) -> None:
        assert not self._queues[stream]
        self.alive.remove(("stream", stream))

    def free_event(self, event: int) -> None:
        self.alive.remove(("event", event))

    def block(self, address: int, size: int) -> np.ndarray:
        """Bytes at an address, which may lie within a block."""
        first = max(place for place in self._blocks if place <= address)
        found = self._blocks[first][address - first : address - first + size]
        assert len(found) == size, "beyond the end of its memory"
        return found

    def copy_in(self, gpu: int, host: int, size: int, stream: int) -> None:
        self.put(stream, lambda: self._copy(gpu, host, size))

    def copy_out(self, host: int, gpu: int, size: int, stream: int) -> None:
        self.put(stream, lambda: self._copy(host, gpu, size))

    def _copy(self, to: int, source: int, size: int) -> None:
        self.block(to, size)[:] = self.block(source, size)

    def put(self, stream: int, work) -> None:
        if stream == self._capturing:
            self._taken.append(work)
        else:
            self._queues[stream].append(("work", work))

    def record(self, event: int, stream: int) -> None:
        self._records[event] = self._records.get(event, 0) + 1
        self._queues[stream].append(("record", event, self._records[event]))

    def synchronise(self, event: int) -> None:
        newest = self._records.get(event, 0)  # later ones are none of this call's business
        self._until(lambda: self._happened.get(event, 0) >= newest)

    def finish(self, stream: int) -> None:
        self._until(lambda: not self._queues[stream])

    def capture(self, stream: int, work) -> int:
        self._capturing, self._taken = stream, []
        try:
            work()
        finally:
            self._capturing = None
        self.captured += 1
        graph = self._new("graph")
        self._graphs[graph] = self._taken
        return graph

    def launch(self, graph: int, stream: int) -> None:
        assert ("graph", graph) in self.alive
        self.launched += 1
        for work in self._graphs[graph]:
            self.put(stream, work)

    def free_graph(self, graph: int) -> None:
        self.alive.remove(("graph", graph))

    def _until(self, done) -> None:
        while not done():
            with self._lock:
                ready = [stream for stream, queue in self._queues.items() if queue]
                if not ready:
                    assert done(), "deadlock"
                    return
                kind, *rest = self._queues[ready[self._random.integers(len(ready))]].pop(0)
                if kind == "work":
                    rest[0]()
                else:
                    self._happened[rest[0]] = rest[1]


class FakePlan:
    """The methods of `serve.plan.Plan`, for the tiny engine."""

    def __init__(self, cuda: FakeCuda, *, fail_in_capture: bool = False, contexts: int = 2) -> None:
        self.cuda, self.fail_in_capture = cuda, fail_in_capture
        self.executed: list[tuple[int, int]] = []  # the keys of buckets, one for each time Python was called
        self.saved = 0
        self.contexts = [FakeContext(self) for _ in range(contexts)]

    def save_cache(self) -> None:
        self.saved += 1


class FakeContext:
    """The methods of `serve.plan.Context`: what it computes depends on shapes and addresses.

    Between its two kernels the ids lie in the context's own memory, where a second batch on another stream would
    overwrite them.
    """

    def __init__(self, plan: FakePlan) -> None:
        self.plan, self.cuda = plan, plan.cuda
        self.between: dict[str, np.ndarray] = {}

    def prepare(self, bucket, inputs: int, outputs: int) -> None:
        self.ready = bucket, inputs, outputs

    def execute(self, stream: int) -> None:
        if self.plan.fail_in_capture and self.cuda._capturing is not None:
            raise RuntimeError("not capturable")
        bucket, inputs, outputs = self.ready
        self.plan.executed.append(bucket.key)
        self.cuda.put(stream, lambda: self._read(bucket, inputs))
        self.cuda.put(stream, lambda: self._work(bucket, outputs))

    def _read(self, bucket, inputs: int) -> None:
        self.between = {
            name: self.cuda.block(inputs + 4 * word, 4 * int(np.prod(shape))).view(np.int32).reshape(shape).copy()
            for name, (word, shape) in bucket.inputs.items()
        }

    def _work(self, bucket, outputs: int) -> None:
        arrays = self.between
        ids = arrays["token_ids"]
        assert 0 <= ids.min() <= ids.max() < serve_kit.ROWS, "ids that are none: the batch has not arrived"
        results = np.zeros((2, *next(iter(bucket.outputs.values()))[1]), np.float32)
        if "cu_seqlens" in arrays:
            ends = arrays["cu_seqlens"]
            lengths = np.diff(ends)
            assert (lengths >= 0).all()
            real = ends[np.concatenate([[True], lengths > 0])]  # sequences that fill up the count have no tokens
            ids, segments, places = (arrays[name][: ends[-1]] for name in ("token_ids", "segment_ids", "position_ids"))
            results[:, : ends[-1]] = serve_kit.expected(Packed(ids, segments, places, real))
        else:
            mask = arrays["padding_mask"].astype(bool)
            used = [place for place, row in enumerate(mask) if row.any()]
            rows = ([arrays[name][place][mask[place]] for place in used] for name in ("token_ids", "segment_ids"))
            results[:, mask] = serve_kit.expected(Packed.of(*rows))
        for (word, shape), result in zip(bucket.outputs.values(), results, strict=True):
            self.cuda.block(outputs + 4 * word, 4 * int(np.prod(shape))).view(np.float32).reshape(shape)[:] = result
