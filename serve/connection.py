"""An HTTP connection as uvicorn has it, with bounds on a request's head: how long it may be, and how long it may take.

uvicorn's parser in C knows neither. A client that never ends its head would fill the memory, or hold one of the
connections for as long as it likes. A body has its bounds in `serve/guard.py` and `serve/waiting.py`.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.guard import log

HEAD_BYTES = 1 << 16  # of the request line and all headers
HEAD_S = 30.0  # for a client to send them, from its connection or its first byte on


class Connection(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`."""

    _bytes = 0  # of the head so far
    _limit: asyncio.TimerHandle | None = None  # there while a head is awaited

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._limit:
            self._bytes += len(data)
            if self._bytes > HEAD_BYTES:
                self._close("too long")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._limit:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._head_is_there()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            raise ValueError("the head is too long")  # which the parser makes a 400 of
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._bytes, self._limit = 0, self.loop.call_later(HEAD_S, self._close, "too slow")

    def _head_is_there(self) -> None:
        if self._limit:
            self._limit.cancel()
            self._limit = None

    def _close(self, why: str) -> None:
        log("connection closed", reason=f"the head of a request was {why}")
        self._head_is_there()
        self.transport.abort()
