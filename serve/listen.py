"""The server in a process: it opens its engines, listens, and on SIGTERM or Ctrl-C finishes what it has begun.

Once told to stop it takes no connection any more, answers what is under way, at most for --drain-s, closes the engines
and ends with 0. A load balancer needs no more than that its next request goes elsewhere.
"""

import ipaddress
import logging
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn

from configs.errors import UserError
from serve.config import ServerConfig
from serve.guard import log
from serve.metrics import Metrics
from serve.server import create_app, opened, secret

CONNECTIONS = 4096  # at the same time; each may hold a body of --max-bytes


class JsonLines(logging.Handler):
    """uvicorn's own log lines in the form of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        trace = {"trace": logging.Formatter().formatException(record.exc_info)} if record.exc_info else {}
        log("uvicorn", level=record.levelname.lower(), message=record.getMessage(), **trace)


class _Server(uvicorn.Server):
    serving = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.serving, flush=True)  # not before: whoever reads it may ask at once

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        log("draining", signal=signal.Signals(sig).name)
        super().handle_exit(sig, frame)


def run(config: ServerConfig) -> dict[str, Any]:
    """Serve until told to stop; returns {"out", "metrics"}. Raises: UserError where it cannot begin."""
    listener = _bound(config.host, config.port or 0)  # before the engines are opened, which takes longer
    with listener:
        secret(config.token_file)  # before the engines, too: they take long
        metrics = Metrics()
        engines = opened(config, metrics)
        try:
            app = create_app(config, engines, metrics)
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            _log_in_json()
            if not config.token_file and not ipaddress.ip_address(host).is_loopback:
                log("warning", message=f"anyone who reaches {shown}:{port} may ask; --token-file asks for a secret")
            server = _Server(uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="on", ws="none", server_header=False,
                timeout_graceful_shutdown=max(1, round(config.drain_s)), limit_concurrency=CONNECTIONS, backlog=2048,
            ))  # fmt: skip
            # uvicorn raises the signal again once it is done, which would end the process by it and not with 0.
            signal.signal(signal.SIGTERM, lambda *_: None)
            for engine in engines.engines():
                print(f"{engine.name}: {engine.reader.session.why}", flush=True)
            server.serving = f"serving on http://{shown}:{port}/ (Ctrl-C or SIGTERM ends it)"
            server.run(sockets=[listener])
        finally:
            engines.close()
    log("stopped")
    return {"out": None, "metrics": {"host": host, "port": port, "requests": server.server_state.total_requests}}


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
