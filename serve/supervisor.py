"""Several copies of the server behind one port, each replaced when it dies or hangs: `serve.py --workers 2`.

The supervisor binds the port and hands it to its workers, processes that open the engine each for itself. Whoever of
them is free takes the next connection; when one is killed, those that nobody had taken yet are the others'. So a client
of the dead one has to ask again, and everyone else notices nothing.

A worker reports through a pipe: once it can answer, and from then on as long as it does, which is a real inference
every few seconds. One that dies is replaced, at once if it had answered for a while, else after a pause that doubles.
One that is silent for --hang-s is killed and replaced. SIGHUP replaces all of them, one after the other, each with one
that answers before the old one goes: so a new engine is put into its folder. SIGTERM and Ctrl-C have them finish what
they have begun. If the supervisor itself is killed, the pipe breaks, and its workers stop in the same way.
"""

import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from configs.errors import UserError
from serve import gpu
from serve.config import ServerConfig
from serve.guard import log

STEADY_S = 10.0  # a worker that answered for so long did not die of its start
PAUSE_S = (1.0, 15.0)  # before one that died of its start is replaced: at first, and at the most
START_S = 600.0  # for a worker to open its engine
LOOK_S = 0.5  # between two looks at whoever is due
SPARE_S = 10.0  # beyond --drain-s for a worker to end
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's: where processes put their numbers together


@dataclass(eq=False)
class Worker:
    """One process, alive or about to be replaced."""

    place: int
    process: Any
    pipe: Connection
    started: float = field(default_factory=time.monotonic)
    ready: float = 0.0  # when it first answered
    heard: float = 0.0  # when it last said so
    error: str = ""
    replaces: "Worker | None" = None  # goes when this one answers

    @property
    def silent_s(self) -> float:
        return time.monotonic() - (self.heard or self.started)


class Supervisor:
    """Starts `work(config, listener, pipe)` in processes and looks after them."""

    def __init__(self, config: ServerConfig, listener: socket.socket, work: Callable[..., None]) -> None:
        self._config, self._listener, self._work = config, listener, work
        self._context = multiprocessing.get_context("spawn")
        self._places = range(config.workers or 1)
        self._gpus = gpu.visible()
        self._workers: list[Worker] = []
        self._old: list[Worker] = []  # that SIGHUP is still to replace
        self._due: dict[int, float] = {}  # place -> when its worker is started anew
        self._pauses = dict.fromkeys(self._places, 0.0)
        self._stopping = self._renewing = False
        self._serving = False
        self.restarts = 0

    def run(self, serving: Callable[[], None]) -> None:
        """Until told to stop. `serving` is called once all workers answer. Raises: UserError where none can start."""
        for name, does in (("SIGTERM", self._stop), ("SIGINT", self._stop), ("SIGHUP", self._renew)):
            signal.signal(getattr(signal, name), does)
        try:
            for place in self._places:
                self._start(place)
            while not self._stopping:
                self._listen()
                self._look_after()
                if not self._serving and all(worker.ready for worker in self._workers):
                    self._serving = True
                    serving()
                if self._renewing and self._serving and not any(worker.replaces for worker in self._workers):
                    self._renew_next()
        finally:
            self._end_all()

    def _stop(self, number: int, _: object) -> None:
        log("draining", signal=signal.Signals(number).name)
        self._stopping = True

    def _renew(self, *_: object) -> None:
        log("renewing")
        self._renewing, self._old = True, list(self._workers)

    def _renew_next(self) -> None:
        self._old = [worker for worker in self._old if worker in self._workers]
        if self._old:
            old = self._old.pop(0)
            self._start(old.place, old)
        else:
            self._renewing = False
            log("renewed")

    def _start(self, place: int, replaces: Worker | None = None) -> None:
        ours, theirs = self._context.Pipe()
        if len(self._gpus) > 1:  # a child's own environment, read when it first asks CUDA
            os.environ["CUDA_VISIBLE_DEVICES"] = self._gpus[place % len(self._gpus)]
        process = self._context.Process(target=self._work, args=(self._config, self._listener, theirs))
        process.start()
        theirs.close()
        self._workers.append(Worker(place, process, ours, replaces=replaces))
        log("worker started", worker=place, of=process.pid)

    def _listen(self) -> None:
        """Take what workers report, for LOOK_S at most."""
        by_pipe = {worker.pipe: worker for worker in self._workers if not worker.pipe.closed}
        dying = [worker.process.sentinel for worker in self._workers]
        for found in wait([*by_pipe, *dying], LOOK_S):
            worker = by_pipe.get(found)  # type: ignore[call-overload]
            if worker is None:
                continue
            try:
                said, text = worker.pipe.recv()
            except (EOFError, OSError):
                worker.pipe.close()
                continue
            if said == "failed":
                worker.error = text
                continue
            worker.heard = time.monotonic()
            if not worker.ready:
                worker.ready = worker.heard
                log("worker ready", worker=worker.place, of=worker.process.pid)
                if worker.replaces:
                    worker.replaces.process.terminate()

    def _look_after(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            limit = self._config.hang_s if worker.ready else START_S
            if worker.process.is_alive() and worker.silent_s > limit:
                log("worker hangs", worker=worker.place, of=worker.process.pid, silent_s=round(worker.silent_s, 1))
                worker.process.kill()
                worker.process.join()
            if not worker.process.is_alive():
                self._lost(worker, now)
        for place, when in list(self._due.items()):
            if now >= when:
                del self._due[place]
                self.restarts += 1
                self._start(place)

    def _lost(self, worker: Worker, now: float) -> None:
        self._workers.remove(worker)
        worker.pipe.close()
        heir = next((other for other in self._workers if other.replaces is worker), None)
        if heir:
            heir.replaces = None
        log("worker ended", worker=worker.place, of=worker.process.pid, exit_code=worker.process.exitcode,
            **({"error": worker.error} if worker.error else {}))  # fmt: skip
        if not self._serving:
            code = worker.process.exitcode
            raise UserError(worker.error or f"worker {worker.place} ended with exit code {code} before it could answer")
        if worker.replaces in self._workers:
            log("renewing stopped", reason="a new worker did not answer; the old ones go on")
            self._renewing = False
            return
        if heir or self._stopping:
            return
        if worker.ready and now - worker.ready > STEADY_S:
            self._pauses[worker.place] = 0.0
        pause = self._pauses[worker.place]
        self._pauses[worker.place] = min(max(2 * pause, PAUSE_S[0]), PAUSE_S[1])
        self._due[worker.place] = now + pause

    def _end_all(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        end = time.monotonic() + self._config.drain_s + SPARE_S
        for worker in self._workers:
            worker.process.join(max(end - time.monotonic(), 0.0))
            if worker.process.is_alive():
                log("worker killed", worker=worker.place, of=worker.process.pid)
                worker.process.kill()
                worker.process.join()


def supervise(
    config: ServerConfig, listener: socket.socket, work: Callable[..., None], serving: Callable[[], None]
) -> dict[str, Any]:
    """Run workers until told to stop; returns what is to be told of it. Raises: UserError where they cannot start."""
    folder = os.environ[METRICS_FOLDER] = tempfile.mkdtemp(prefix="retort-metrics-")
    try:
        supervisor = Supervisor(config, listener, work)
        supervisor.run(serving)
    finally:
        del os.environ[METRICS_FOLDER]
        shutil.rmtree(folder, ignore_errors=True)
    return {"workers": config.workers, "restarts": supervisor.restarts}


class Report:
    """A worker's end of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        threading.Thread(target=self._watch, daemon=True, name="supervisor-watch").start()

    def alive(self) -> None:
        self._say("alive", "")

    def failed(self, error: str) -> None:
        self._say("failed", error)

    def _say(self, word: str, text: str) -> None:
        try:
            self._pipe.send((word, text))
        except OSError:  # the supervisor is gone, which the watch has seen or will
            return

    def _watch(self) -> None:
        """Thread: the supervisor never writes, so whatever is read is the end of the pipe, and of it."""
        try:
            self._pipe.recv()
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGTERM)
