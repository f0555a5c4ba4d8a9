"""Several engines side by side, each with its batcher: loaded, unloaded and swapped while requests go on.

    engines = Engines(opener, root=Path("engines"))
    engines.load("student", Path("engines/student"))
    with engines.use("student") as engine:
        future = engine.batcher.submit({"text": "Where is my parcel?"})

A swap opens the new engine beside the old one, lets it answer a question, and only then changes the name over. Whoever
holds the old one keeps it: it is closed after the last of them is done. So for a moment both are in memory.

A device may hang, and then nothing can call back a thread that waits for it. So nothing here waits without a limit, and
an engine whose threads have not come back is left as it is: closing its session would take memory from under them.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import logging

from configs.errors import UserError
from heads import Head
from serve import gpu
from serve.answerer import Answerer
from serve.config import ServerConfig
from serve.session import Session

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
PROOF_S = 60.0  # for the first inference of an engine: a GPU's kernels may be compiled in it
FRESH_S = 1.0  # an inference so long ago still proves that an engine is ready
MOST_CALLS = 8  # of ONNX Runtime at a time, unless more are asked for
HANG_S = 5.0  # for the device to finish the batches that it has when an engine is closed


class UnknownEngineError(UserError):
    """There is no engine of that name."""


class BusyError(UserError):
    """Another engine is being loaded or unloaded."""


class Engine:
    """One engine folder, open: `reader`, `batcher`, and who is using them."""

    def __init__(self, name: str, folder: Path, reader: Any, batcher: Any) -> None:
        self.name, self.folder, self.reader, self.batcher = name, folder, reader, batcher
        self.proven = 0.0  # time.monotonic() of the last inference that went well
        self.head: Head = reader.head
        self.users = 0
        self._proof: Future | None = None
        self._asking = threading.Lock()

    def proof(self, timeout_s: float = PROOF_S) -> Future:
        """A real inference through the queue, ahead of all others; its future fails as the inference does.

        However many ask at once, there is one inference, and none where the last one was less than a second ago.
        Nobody may cancel the future, which is others' as well.
        """
        with self._asking:
            if self._proof is not None and not self._proof.done():
                return self._proof
            proof: Future = Future()
            if time.monotonic() - self.proven <= FRESH_S:
                proof.set_result(None)
            else:
                self._proof = proof = self.batcher.submit(self.head.proof(), deadline_ms=1000 * timeout_s, priority=-9)
                proof.add_done_callback(self._noted)
            return proof

    def _noted(self, proof: Future) -> None:
        if not proof.cancelled() and proof.exception() is None:
            self.proven = time.monotonic()

    def close(self, timeout_s: float) -> bool:
        """Let what is queued finish, for so long, and give everything back. False: the device hangs, see above."""
        self.batcher.drain(timeout_s)
        if self.batcher.close(HANG_S):
            self.reader.session.close()
            return True
        self.reader.session.abandoned = True
        logging.error("the device of %s has not come back for %g s; its engine stays in memory", self.name, HANG_S)
        return False


Opener = Callable[[str, Path], Engine]


class Engines:
    """Engines by name. Safe to use from several threads."""

    def __init__(
        self, opener: Opener, root: Path | None = None, drain_s: float = 30.0,
        on_change: Callable[[str, Engine | None], object] = lambda name, engine: None,
        settled: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        """Args:
            opener: (name, folder) -> an open Engine; raises UserError where the folder is no good.
            root: folder whose engine folders `load_below` may open; None: none at all.
            drain_s: how long the users of an engine that goes may take, its queue included.
            on_change: told each name with the engine that now has it, None where it is unloaded.
            settled: called after each of these, once the engine that had the name before is closed.
        """
        self._opener, self.root, self._drain_s, self._on_change = opener, root, drain_s, on_change
        self._settled = settled
        self._engines: dict[str, Engine] = {}
        self._changed = threading.Condition()  # guards _engines and every engine's users
        self._changing = threading.Lock()  # one load or unload at a time: each may need all of the memory
        self._closed = False
        self.default: str | None = None  # the first engine's name

    def names(self) -> list[str]:
        with self._changed:
            return list(self._engines)

    def engines(self) -> list[Engine]:
        with self._changed:
            return list(self._engines.values())

    @contextmanager
    def use(self, name: str | None = None) -> Iterator[Engine]:
        """The engine of a name, or the first one, open until the block is left. Raises: UnknownEngineError."""
        with self._changed:
            engine = self._engines.get(name or self.default or "")
            if engine is None:
                there = ", ".join(self._engines) or "none"
                wanted = (name or self.default or "")[:100]
                raise UnknownEngineError(f"no engine is called {wanted!r}; there is {there}")
            engine.users += 1
        try:
            yield engine
        finally:
            with self._changed:
                engine.users -= 1
                self._changed.notify_all()

    def load(self, name: str, folder: Path) -> Engine:
        """Open an engine, have it answer, and give it the name, in the place of whichever had it.

        The one before it is closed once its users are done, which this waits for. Raises: UserError where the name or
        the folder is no good, and BusyError; the engine before it stays in service then.
        """
        if not NAME.fullmatch(name):
            raise UserError(f"{name[:100]!r} is no engine's name; take letters, digits, '.', '_' and '-'")
        if not self._changing.acquire(blocking=False):
            raise BusyError("another engine is being loaded or unloaded; try again when that is done")
        try:
            engine = self._opener(name, folder)
            try:
                engine.proof().result(PROOF_S)
            except Exception as error:
                engine.close(0.0)
                raise UserError(f"{name} does not answer ({type(error).__name__}: {error}), so it was not put in "
                                "service; is the folder whole and the device free?") from error  # fmt: skip
            with self._changed:
                closed, before = self._closed, self._engines.get(name)
                if not closed:
                    self._engines[name] = engine
                    self.default = self.default or name
            if closed:
                engine.close(0.0)
                raise BusyError("the server is stopping and loads no engine any more")
            self._on_change(name, engine)
            if before:
                self._retire(before)
                del before
            self._settled()
            return engine
        finally:
            self._changing.release()

    def load_below(self, name: str, folder: str | None = None) -> Engine:
        """Load root/`folder`, or root/`name`. Raises: as `load`, and UnknownEngineError for no such folder."""
        wanted = folder or name
        if self.root is None:
            raise UserError("this server was started without --root, so it loads no further engines")
        path = self.root / wanted
        if not NAME.fullmatch(wanted) or not path.is_dir():
            raise UnknownEngineError(f"there is no engine folder {wanted[:100]!r} below the root")
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise UserError(f"{wanted} is a link that leads out of the root; put the folder itself there")
        return self.load(name, path)

    def unload(self, name: str) -> None:
        """Take the name out of service and close its engine once its users are done.

        Raises: UnknownEngineError, BusyError.
        """
        if not self._changing.acquire(blocking=False):
            raise BusyError("another engine is being loaded or unloaded; try again when that is done")
        try:
            with self._changed:
                if name not in self._engines:
                    raise UnknownEngineError(f"no engine is called {name[:100]!r}; there is {', '.join(self._engines)}")
                engine = self._engines.pop(name)
            self._on_change(name, None)
            self._retire(engine)
            del engine
            self._settled()
        finally:
            self._changing.release()

    def index(self) -> list[dict[str, str]]:
        """What is loaded and, below the root, what could be: as the Open Inference Protocol's repository index."""
        loaded = self.names()
        there = sorted(path.name for path in self.root.iterdir() if path.is_dir()) if self.root else []
        names = [*loaded, *(name for name in there if name not in loaded and NAME.fullmatch(name))]
        states = {name: "READY" if name in loaded else "UNAVAILABLE" for name in names}
        return [{"name": name, "version": "1", "state": state, "reason": ""} for name, state in states.items()]

    def close(self) -> None:
        """Close all of them for good, at once: whoever still waits is told that the server is stopping."""
        with self._changed:
            engines, self._engines = list(self._engines.values()), {}
            self._closed = True
            self._changed.notify_all()
        for engine in engines:
            engine.close(0.0)

    def _retire(self, engine: Engine) -> None:
        end = time.monotonic() + self._drain_s
        with self._changed:
            self._changed.wait_for(lambda: not engine.users or self._closed, self._drain_s)
        engine.close(0.0 if self._closed else max(end - time.monotonic(), 0.0))


def opener(config: ServerConfig) -> Opener:
    """How engines are opened by these settings."""

    def opened(name: str, folder: Path) -> Engine:
        from serve.batcher import Batcher

        cores = max(1, gpu.cores() // (config.workers or 1))
        calls = config.calls or min(cores, MOST_CALLS)
        threads = config.threads or max(1, cores // calls)
        providers = list(config.providers) or None
        session = Session.open(
            folder, config.runtime, providers, threads=threads, calls=calls, contexts=config.contexts
        )
        try:
            reader = Answerer(folder, session=session)
            batcher = Batcher(
                reader, token_budget=config.batch_tokens,
                most_sequences=config.most_sequences or session.manifest.profile.batch.most,
                max_delay_ms=config.max_delay_ms, queue_limit_tokens=config.queue_tokens,
                tokenisers=config.tokenisers or min(max(gpu.cores() // 2, 2), 8),
            )  # fmt: skip
        except BaseException:
            session.close()
            raise
        return Engine(name, folder, reader, batcher)

    return opened
