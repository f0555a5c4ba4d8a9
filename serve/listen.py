"""The server in a process: it opens its engines, listens, and on SIGTERM or Ctrl-C finishes what it has begun.

Once told to stop it takes no connection any more, answers what is under way, at most for --drain-s, closes the engines
and ends with 0. A load balancer needs no more than that its next request goes elsewhere.
"""

import asyncio
import ipaddress
import logging
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import uvicorn

from configs.errors import UserError
from serve import connection, quiet
from serve.config import ServerConfig
from serve.engines import Engines
from serve.guard import log
from serve.metrics import Metrics
from serve.server import create_app, opened, ready, secret
from serve.supervisor import Report, supervise

CONNECTIONS = 4096  # at the same time; each may hold a body of --max-bytes
KEEP_S = 75  # an idle connection is kept: longer than load balancers keep theirs, who would else send into a closed one
BACKLOG = 2048  # connections that nobody has taken yet
BEAT_S = 2.0  # between two reports of a worker that it answers


class JsonLines(logging.Handler):
    """uvicorn's own log lines in the form of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        trace = {"trace": logging.Formatter().formatException(record.exc_info)} if record.exc_info else {}
        log("uvicorn", level=record.levelname.lower(), message=record.getMessage(), **trace)


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.started_up()  # not before: whoever is told may ask at once

    def started_up(self) -> None:
        """Called in the server's loop once it listens."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets nobody in any more, and looks after whoever is at the door, before uvicorn closes it.

        asyncio takes a connection in one turn of its loop and gives it to a protocol in the next two. Where its server
        is closed in between, as uvicorn does, it drops the connection without a word.
        """
        loop = asyncio.get_running_loop()
        for listener in sockets or []:
            loop.remove_reader(listener)  # of no effect under uvloop, which takes connections in one turn
        for _ in range(3):
            await asyncio.sleep(0)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        log("draining", signal=signal.Signals(sig).name)
        super().handle_exit(sig, frame)


def run(config: ServerConfig) -> dict[str, Any]:
    """Serve until told to stop; returns {"out", "metrics"}. Raises: UserError where it cannot begin."""
    listener = _bound(config.host, config.port or 0)  # before the engines are opened, which takes longer
    with listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        secret(config.token_file)  # before the engines, too
        if not config.token_file and not ipaddress.ip_address(host).is_loopback:
            log("warning", message=f"anyone who reaches {shown}:{port} may ask; --token-file asks for a secret")

        def serving() -> None:
            print(f"serving on http://{shown}:{port}/ (Ctrl-C or SIGTERM ends it)", flush=True)

        if config.workers:
            told = supervise(config, listener, work, serving)
        else:
            told = {"requests": serve(config, listener, lambda _: serving())}
    log("stopped")
    return {"out": None, "metrics": {"host": host, "port": port} | told}


def serve(
    config: ServerConfig, listener: socket.socket, started: Callable[[Engines], object], *, shares: bool = False
) -> int:
    """Open the engines and answer until told to stop; `started(engines)` in the server's loop once it listens.

    `shares`: other processes listen at the same socket. Then connections are taken one by one, so that whoever is less
    busy takes more of them: uvloop, and asyncio with a long backlog, take all that are there.

    Returns the number of requests. Raises: UserError where an engine cannot be opened.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # 1,024 often, which is fewer than CONNECTIONS
    most = max(2 * CONNECTIONS, soft)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    metrics = Metrics()
    engines = opened(config, metrics)
    try:
        _log_in_json()
        way: dict[str, Any] = {"loop": "asyncio", "backlog": 1} if shares else {"backlog": BACKLOG}
        server = _Server(uvicorn.Config(
            create_app(config, engines, metrics), log_config=None, access_log=False, lifespan="on", ws="none",
            server_header=False, timeout_graceful_shutdown=max(1, round(config.drain_s)), timeout_keep_alive=KEEP_S,
            limit_concurrency=CONNECTIONS, http=connection.Connection, **way,
        ))  # fmt: skip
        # uvicorn raises the signal again once it is done, which would end the process by it and not with 0.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        for engine in engines.engines():
            print(f"{engine.name}: {engine.reader.session.why}", flush=True)
        def started_up() -> None:
            listener.listen(BACKLOG)  # the kernel's own queue is long in any case
            started(engines)

        quiet.settle()  # again, with the application
        server.started_up = started_up  # type: ignore[method-assign]
        server.run(sockets=[listener])
        return server.server_state.total_requests
    finally:
        engines.close()


def work(config: ServerConfig, listener: socket.socket, pipe: Connection) -> None:
    """A worker's process: the server, and reports to the supervisor as long as every engine answers."""
    report, beating = Report(pipe), list[asyncio.Task]()

    async def beat(engines: Engines) -> None:
        while True:
            with suppress(Exception):  # silence is what the supervisor listens for
                await asyncio.gather(*(ready(engines, name) for name in engines.names()))
                report.alive()
            await asyncio.sleep(BEAT_S)

    try:
        begin = lambda engines: beating.append(asyncio.ensure_future(beat(engines)))  # noqa: E731
        serve(config, listener, begin, shares=True)
    except UserError as error:
        report.failed(str(error))
        raise SystemExit(1) from None


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. Without it an answer in two pieces waits 40 ms for the client's delayed ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
    except OSError as error:
        raise UserError(f"cannot listen at {host} port {port} ({error.strerror}); choose another --port or --host"
                        ) from error  # fmt: skip
    return listener


def _log_in_json() -> None:
    logger = logging.getLogger("uvicorn")
    logger.handlers, logger.propagate = [JsonLines()], False
    logger.setLevel(logging.INFO)
