"""A server of the tiny engine in this process, asked through httpx without a socket: for the tests of the server."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import serve_kit

from configs import options
from serve.config import ServeConfig
from serve.engines import Engine, Engines, Opener, opener
from serve.metrics import Metrics
from serve.server import create_app

TOKEN = "0123456789abcdef-secret"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
ASK = {"question": serve_kit.QUESTION, "context": serve_kit.PASSAGE}


def settings(folder: Path, *argv: object) -> ServeConfig:
    words = ["--engine", folder, "--port", 0, "--token-budget", 160, "--threads", 1, *argv]
    return options.parse(ServeConfig, [str(word) for word in words], "serve")


def with_token(tmp_path: Path) -> list[object]:
    (tmp_path / "token").write_text(TOKEN + "\n")
    return ["--token-file", tmp_path / "token"]


class Held:
    """A batcher whose answers come when the test says so."""

    def __init__(self, batcher: Any) -> None:
        self.batcher, self.futures, self.free = batcher, list[Future](), False

    def submit(self, *given: Any, **options: Any) -> Future:
        if self.free or given[0] != ASK:
            return self.batcher.submit(*given, **options)
        self.futures.append(Future())
        return self.futures[-1]

    def answer(self) -> None:
        self.free = True
        for future in self.futures:
            if future.set_running_or_notify_cancel():
                future.set_result(self.batcher.submit(ASK).result(10))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batcher, name)


class Served:
    """An application, its engines, and `ask` to send it one request."""

    def __init__(self, config: ServeConfig, *, root: Path | None = None, opens: Opener | None = None) -> None:
        self.metrics = Metrics()
        self.engines = Engines(opens or opener(config), root, 5.0, self.metrics.watch)
        folder = Path(config.engine)
        self.engines.load(folder.name, folder)
        self.app = create_app(config, self.engines, self.metrics)

    def engine(self, name: str | None = None) -> Engine:
        with self.engines.use(name) as engine:
            return engine

    def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        async def one(client: httpx.AsyncClient) -> httpx.Response:
            return await client.request(method, path, **given)

        return self.run(one)

    def run(self, what: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        """`what(client)` in a loop of its own, for 20 seconds at most."""

        async def within() -> Any:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client, asyncio.timeout(20):
                return await what(client)

        return asyncio.run(within())

    def close(self) -> None:
        self.engines.close()


# Route of every head -> engine.json of an engine that is asked there.
TASKS: dict[str, dict[str, Any]] = {
    "/answer": {"task": "squad"}, "/classify": {"task": "csv", "labels": ["first", "second"]},
    "/regress": {"task": "csv/number"}, "/tag": {"task": "conll", "labels": ["O", "B-NAME"]},
    "/embed": {"task": "embed"}, "/encode": {"task": "encode"},
}  # fmt: skip


@contextmanager
def heads_served(root: Path, *argv: object) -> Iterator[Callable[[str], Served]]:
    """Route -> a server with an engine of its head, opened when it is asked for."""
    there = dict[str, Served]()

    def served(path: str) -> Served:
        if path not in there:
            there[path] = Served(settings(serve_kit.write(root / path[1:], **TASKS[path]), *argv))
        return there[path]

    yield served
    for each in there.values():
        each.close()


async def until(true: Callable[[], Any]) -> None:
    """Wait until something is so, for 10 seconds."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it did not happen within 10 seconds"
        await asyncio.sleep(0.005)
