"""An HTTP connection as uvicorn has it, with bounds on a request's head: how long it may be, and how long it may take.

uvicorn's parser in C knows neither. A client that never ends its head would fill the memory, or hold one of the
connections for as long as it likes. A body has its bounds in `serve/guard.py` and `serve/waiting.py`.

And with an end that loses no request: a connection that has none under way uvicorn closes at once, even if one is on
its way, from a client who has just been let in or who keeps a pool of connections.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.guard import log

HEAD_BYTES = 1 << 16  # of the request line and all headers
HEAD_S = 30.0  # for a client to send them, from its connection or its first byte on
LAST_S = 1.0  # for the same once the server stops; the answer tells the client that the connection ends


class Connection(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`."""

    _bytes = 0  # of the head so far
    _limit: asyncio.TimerHandle | None = None  # there while a head is awaited
    _leaving = False  # the server stops: the next request, if there is one, is the last

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
        if self._leaving:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """The server stops: what has been asked for is answered, and what arrives within LAST_S, too."""
        if self.cycle and not self.cycle.response_complete:
            super().shutdown()
            return
        self._leaving = True
        self._head_is_there()
        self._limit = self.loop.call_later(LAST_S, self.transport.close)

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
