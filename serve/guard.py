"""What stands between the network and the routes: the secret, the size of a body, ids, log lines, and errors in words.

Every request gets an id (the client's X-Request-Id where that is a plain word) and leaves one line of JSON on stderr:
when, what, how long, which engine, how it ended; never a text, a token or the secret. Whatever goes wrong inside ends
here as a status and one sentence, `{"error": ...}`; a stack trace goes to the log and nowhere else.
"""

import asyncio
import hashlib
import hmac
import json
import os
import re
import sys
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from configs.errors import UserError
from serve.batcher import DeadlinePassed, Draining, QueueFull
from serve.engines import BusyError, UnknownEngineError
from serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
METHODS = {"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"}
CLOSED = 499  # no status of HTTP, but how log lines call a client that did not wait
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}  # fmt: skip


class RefusedError(Exception):
    """A request that ends with this status and sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


STATUSES: tuple[tuple[type[BaseException], int], ...] = (  # the first that fits
    (UnknownEngineError, 404), (BusyError, 409), (QueueFull, 429), (Draining, 503), (DeadlinePassed, 504),
    (UserError, 400), (ClientDisconnect, CLOSED),
)  # fmt: skip


def status_of(error: BaseException) -> int:
    """The HTTP status of an error; 500 for one that no client could have caused."""
    if isinstance(error, RefusedError):
        return error.status
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def log(event: str, **fields: Any) -> None:
    """One line of JSON on stderr."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, "pid": os.getpid(), **fields}
    sys.stderr.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
    sys.stderr.flush()


class Guard:
    """ASGI middleware around all routes."""

    def __init__(
        self, app: Any, *, metrics: Metrics, max_bytes: int, token: str | None = None, anyone: frozenset[str]
    ) -> None:
        """Args:
        token: the secret, or None where none is asked for.
        anyone: paths that are answered without it.
        """
        self._app, self._metrics, self._most, self._anyone = app, metrics, max_bytes, anyone
        self._token = hashlib.sha256(token.encode()).digest() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status, said = time.perf_counter(), 0, 0
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        name = given if ID.fullmatch(given) else uuid.uuid4().hex
        facts: dict[str, Any] = {}  # for the log line; routes add to them
        scope.setdefault("state", {}).update(request_id=name, facts=facts)
        taken = 0

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._most:
                raise self._too_large()
            return message

        async def noted(message: Any) -> None:
            nonlocal status, said
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = HEADERS | {"x-request-id": name} | ({"connection": "close"} if status in (413, 503) else {})
                message["headers"] = [
                    *message.get("headers", ()), *((key.encode(), value.encode()) for key, value in extra.items())
                ]  # fmt: skip
            said += len(message.get("body", b""))
            await send(message)

        try:
            self._admit(scope["path"], headers)
            await self._app(scope, counted, noted)
        except asyncio.CancelledError:  # uvicorn ends what is under way when the time for draining is over
            facts["error"] = "ended by the server's stop"
            if status:
                raise
            await _tell(noted, 503, "the server is stopping")
        except Exception as error:
            code = status_of(error)
            reason = " ".join(str(error).split())[:1000]
            if code == 500:
                facts["trace"] = traceback.format_exc()
                reason = "the server failed at this request; its log says why, under the id of the request"
            facts["error"] = reason
            if code == CLOSED or status:  # nobody to tell, or told half already: the connection ends
                status = CLOSED if code == CLOSED else status
                if code != CLOSED:
                    raise
            else:
                await _tell(noted, code, reason)
        finally:
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.http(route, method, status, seconds)
            if "served_ms" in facts:
                self._metrics.overhead(facts["model"], seconds - facts.pop("served_ms") / 1000)
            log("request", id=name, method=scope["method"][:20], path=scope["path"][:200], status=status,
                ms=round(1000 * seconds, 3), bytes_in=taken, bytes_out=said, **facts)  # fmt: skip

    def _admit(self, path: str, headers: dict[bytes, str]) -> None:
        """Raises: RefusedError for who lacks the secret, and for a body that is too large or compressed."""
        if self._token and path not in self._anyone:
            kind, _, secret = headers.get(b"authorization", "").partition(" ")
            shown = hashlib.sha256(secret.strip().encode("latin-1")).digest()
            if not hmac.compare_digest(shown, self._token) or kind.lower() != "bearer":
                raise RefusedError(401, "this server needs a secret: Authorization: Bearer SECRET")
        if headers.get(b"content-encoding", "identity").lower() not in ("identity", ""):
            raise RefusedError(415, "bodies are taken as they are, not compressed; leave Content-Encoding out")
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or len(length) > 15 or int(length) > self._most:
            raise self._too_large()

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body has more than {self._most:,} bytes, which is this server's limit")


def in_json(value: Any) -> Response:
    """A response of 200. `value` has neither infinities nor NaN, which JSON does not know."""
    return Response(json.dumps(value, ensure_ascii=False, allow_nan=False).encode(), media_type="application/json")


async def _tell(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status in (429, 503):
        headers.append((b"retry-after", b"1"))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
