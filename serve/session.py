"""One way to run an engine, whichever runtime does it: `Session.open(folder)` chooses, and says what and why.

    session = Session.open("engines/student")
    print(session.why)                          # ONNX Runtime 1.32 on the CPU, 2 threads, float32 (no GPU: ...)
    start_logits, end_logits = session.run(batch)   # what the engine's head gives (`manifest.outputs`)

    for start_logits, end_logits in session.stream(batches): ...    # many: some are computed while the next is made

    first = session.submit(batch)               # the same in two steps
    second = session.submit(another)
    start_logits, end_logits = session.result(first)

`session.close()`, or a `with` block, gives back a GPU's memory and keeps what TensorRT-RTX compiled for the next time.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from configs.errors import UsageError, UserError
from serve import manifest as manifests
from serve.manifest import Manifest
from serve.packed import Packed, check

RUNTIMES = ("auto", "tensorrt", "onnxruntime")
CONTEXTS = 2  # of a plan, unless said
Logits = tuple[np.ndarray, ...]  # the head's outputs, float32 [T, ...] (per token) or [B, ...] (per sequence) each


class Ticket:
    """What `submit` gives for a batch, to be exchanged for its logits by `result`, once or more often."""

    __slots__ = ("pending", "place", "values")

    def __init__(self, values: Logits | None = None, place: int = -1, pending: "Future[Logits] | None" = None) -> None:
        self.values, self.place, self.pending = values, place, pending


class Session(ABC):
    """An open engine. `runtime`, `device` and `why` say what runs it where, and how that was chosen."""

    runtime: ClassVar[str]
    at_once: bool = False  # `submit` returns before the batch is computed
    slots: int = 2  # batches under way that keep the device busy
    device: str
    why: str
    abandoned = False  # a thread hangs in its device: closing it, even at the process's end, would hang as well

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @staticmethod
    def open(
        folder: str | Path,
        runtime: str = "auto",
        providers: list[str] | None = None,
        *,
        threads: int | None = None,
        calls: int = 1,
        contexts: int = CONTEXTS,
    ) -> "Session":
        """Check an engine folder (`serve/manifest.py`) and open it.

        Args:
            folder: what export.py wrote.
            runtime: "tensorrt" (model.plan on a GPU) or "onnxruntime" (model.onnx), each an error where it does not
                fit; or "auto": TensorRT where a GPU and a plan for it are there, else ONNX Runtime, with the reason in
                `why`.
            providers: ONNX Runtime's execution providers in the order of preference; None: CUDA where installed and a
                GPU is there, then the CPU.
            threads: ONNX Runtime's, of one call; None: the cores that this process may use, shared among the calls.
            calls: ONNX Runtime's at a time on a CPU; worth it where many batches are submitted.
            contexts: TensorRT's: batches at a time on the GPU, each with memory of its own.

        Raises: UserError where the folder is damaged, or the runtime asked for does not fit.
        """
        if runtime not in RUNTIMES:
            raise UsageError(f"runtime {runtime!r} is not known; choose one of {', '.join(RUNTIMES)}")
        manifest = manifests.read(folder)
        reason = ""
        if runtime != "onnxruntime":
            from serve import fitting
            from serve.tensorrt_session import TensorrtSession

            try:
                return TensorrtSession.opened(manifest, fitting.fit(manifest), contexts=contexts)
            except UserError as error:
                if runtime == "tensorrt":
                    raise
                reason = f"not TensorRT: {getattr(error, 'reason', error)}"
        from serve.onnx_session import OnnxSession

        return OnnxSession(manifest, reason=reason, providers=providers, threads=threads, calls=calls)

    def run(self, batch: Packed) -> Logits:
        """The head's outputs for every token or sequence. Raises: UserError where the batch does not fit."""
        return self.result(self.submit(batch))

    def stream(self, batches: Iterable[Packed]) -> Iterator[Logits]:
        """The logits of each batch as `run` gives them, in order, asking for further batches ahead of them.

        As many are under way as keep the device busy while another one is made from what `batches` iterates over.
        Raises: UserError at the first batch that does not fit.
        """
        under_way, most = deque[Ticket](), self.slots if self.at_once else 1
        for batch in batches:
            under_way.append(self.submit(batch))
            if len(under_way) > most:
                yield self.result(under_way.popleft())
        while under_way:
            yield self.result(under_way.popleft())

    def submit(self, batch: Packed) -> Ticket:
        """Begin a batch; on ONNX Runtime that computes it, on TensorRT it returns while the GPU is at work.

        Any number may be under way; `slots` of them overlap. Raises: UserError where the batch does not fit the engine.
        """
        check(batch, self.manifest)
        return Ticket(self._compute(batch))

    def result(self, ticket: Ticket) -> Logits:
        """Wait for a batch and return its logits as `run` does."""
        if ticket.pending is not None:
            return ticket.pending.result()
        assert ticket.values is not None
        return ticket.values

    def split(self, outputs: Logits, lengths: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        """A batch's outputs, sequence by sequence: lengths [B] are the tokens of each."""
        ends = np.cumsum(lengths).tolist()
        spans = [slice(first, last) for first, last in pairwise((0, *ends))]
        parts = [
            [values[span] for span in spans] if output.per == "token" else list(values)
            for output, values in zip(self.manifest.outputs, outputs, strict=True)
        ]
        return list(zip(*parts, strict=True))

    def warm(self, batches: Iterable[Packed], limit_s: float = float("inf")) -> None:
        """Have made what the first batches of these sizes would wait for; a device that makes nothing does nothing.

        limit_s: after which no further size is begun, which `notes` tells.
        """
        return None

    @abstractmethod
    def _compute(self, batch: Packed) -> Logits:
        """Logits of a checked batch."""

    @property
    def batch_tokens(self) -> int:
        """Tokens a batch, padding included, that whoever has many should give: as many as the engine takes."""
        profile = self.manifest.profile
        return profile.tokens.most if profile.tokens else profile.batch.most * self.manifest.longest

    @property
    def notes(self) -> list[str]:
        """What the session did otherwise than it meant to, and what it has captured: lines for a person."""
        return []

    def close(self) -> None:
        """Give back what the session holds; it is of no use afterwards."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
