"""Waiting for a client's body, for an answer while the client waits, for a slow call: no longer than each is worth."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from serve.batcher import DeadlinePassed
from serve.guard import RefusedError

BODY_S = 30.0  # for a client to send its body
GRACE_S = 5.0  # past its deadline a request that nobody told is given up
T = TypeVar("T")


async def outcome(request: Request, future: "Future[T]", deadline_ms: float) -> T:
    """What the future gives. Raises: its error, ClientDisconnect, DeadlinePassed; it is cancelled then."""
    answer = asyncio.wrap_future(future)
    left = asyncio.ensure_future(_left(request))
    try:
        wait = max(deadline_ms, 0.0) / 1000 + GRACE_S
        done, _ = await asyncio.wait({answer, left}, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        if answer in done:
            return answer.result()
        if left in done:
            raise ClientDisconnect
        raise DeadlinePassed
    finally:
        left.cancel()
        answer.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def body(request: Request) -> bytes:
    """All of it. Raises: RefusedError (408) where it does not come, ClientDisconnect."""
    try:
        async with asyncio.timeout(BODY_S):
            return await request.body()
    except TimeoutError as error:
        raise RefusedError(408, f"the body did not come within {BODY_S:.0f} seconds") from error


async def apart(function: Callable[..., T], *given: Any) -> T:
    """`function(*given)` in a thread of its own, which the server does not wait for when it stops.

    asyncio's own threads it would wait for, however long: one may be opening an engine, or hang in a device.
    """
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function(*given))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return await shared(future)


async def shared(future: "Future[T]") -> T:
    """What the future gives; whoever stops waiting for it does not cancel it."""
    answer = asyncio.wrap_future(future)
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # looked at, even if nobody waits
    return await asyncio.shield(answer)
