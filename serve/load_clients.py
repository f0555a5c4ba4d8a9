"""The clients of `serve.load`: they send what a job says, from one process or several, and note what becomes of it."""

import asyncio
import itertools
import json
import multiprocessing
import random
import select
import selectors
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import aiohttp

from configs.errors import UserError
from serve import quiet

T = TypeVar("T")
TIMEOUT_S = 60.0  # for a response
SOON_S = 0.2  # before the first request is sent, for each process to have its job
MOST_UNDER_WAY = 4000  # requests of a process at a time; a server that far behind has failed


class Sent(NamedTuple):
    at: float  # seconds since the start, when it was to be sent
    latency_ms: float
    status: int  # 0: no response


@dataclass(frozen=True)
class Job:
    url: str
    headers: dict[str, str]
    bodies: list[bytes]
    clients: int | None  # closed loop
    rate: float | None  # open loop, requests a second
    seconds: float
    seed: int


def asked_once(url: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
    """Which engine answers: {"model", "platform"}. Raises: UserError where the server does not answer."""

    async def ask() -> dict[str, str]:
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(TIMEOUT_S)) as session:
            async with session.post(f"{url}/answer", data=body) as response:
                told = json.loads(await response.read())
                if response.status != 200:
                    raise UserError(f"{url} answered {response.status}: {str(told.get('error'))[:300]}")
            async with session.get(f"{url}/v2/models/{told['model']}") as response:
                return {"model": told["model"], "platform": (await response.json())["platform"]}

    try:
        return asyncio.run(ask())
    except (OSError, aiohttp.ClientError, TimeoutError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{url} does not answer as our server does ({type(error).__name__}: {error}); is it running "
                        "there? python serve.py --engine DIR --port 8000 starts it") from error  # fmt: skip


class _Exact(selectors.EpollSelector):
    """epoll waits whole milliseconds, to which asyncio rounds up: every request would go half of one late and more.

    That there is something for epoll, select() says as well, and it waits to the microsecond.
    """

    def select(self, timeout: float | None = None) -> list:
        if timeout is not None and timeout > 0:
            select.select([self], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def _run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(_Exact())) as runner:
        return runner.run(work)


def in_turn(job: Job) -> list[Sent]:
    """Every body of the job once, one after the other over one connection, whatever time it takes."""

    async def ask() -> list[Sent]:
        async with aiohttp.ClientSession(headers=job.headers, timeout=aiohttp.ClientTimeout(TIMEOUT_S)) as session:
            one = _Sender(job, session)
            for body in job.bodies:
                await one.ask(body, time.perf_counter() - one.begin)
            return one.sent

    return _run(ask())


def run(job: Job, processes: int) -> list[Sent]:
    """All that was sent, clients or rate being divided among the processes."""
    if processes == 1:
        return _run(_send(job, time.time()))
    shares = [job.clients // processes + (place < job.clients % processes) if job.clients else None
              for place in range(processes)]  # fmt: skip
    jobs = [
        replace(job, clients=share, rate=job.rate / processes if job.rate else None, seed=job.seed * 1009 + place)
        for place, share in enumerate(shares) if share != 0
    ]  # fmt: skip
    context = multiprocessing.get_context("spawn")
    all_there = context.Barrier(len(jobs))
    with context.Pool(len(jobs), initializer=_wait, initargs=(all_there,)) as pool:
        pool.apply(_nothing)  # returns once all processes are there
        start = time.time() + SOON_S
        return list(itertools.chain(*pool.starmap(_sent, [(one, start) for one in jobs], chunksize=1)))


def _wait(barrier: Any) -> None:
    barrier.wait(TIMEOUT_S)


def _nothing() -> None:
    return None


def _sent(job: Job, start: float) -> list[Sent]:
    return _run(_send(job, start))


async def _send(job: Job, start: float) -> list[Sent]:
    """`start`: time.time() at which the first request may go."""
    quiet.settle()  # the client's own stalls would be counted, too
    await asyncio.sleep(max(start - time.time(), 0.0))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        headers=job.headers, connector=connector, timeout=aiohttp.ClientTimeout(TIMEOUT_S)
    ) as session:
        one = _Sender(job, session)
        if job.rate is None:
            await asyncio.gather(*(one.closed(client) for client in range(job.clients or 0)))
        else:
            await one.open(job.rate)
        return one.sent


class _Sender:
    def __init__(self, job: Job, session: aiohttp.ClientSession) -> None:
        self._job, self._session, self._url = job, session, f"{job.url}/answer"
        self.begin = time.perf_counter()
        self.sent: list[Sent] = []

    async def closed(self, client: int) -> None:
        choice = random.Random(f"{self._job.seed} {client}")
        while (now := time.perf_counter() - self.begin) < self._job.seconds:
            await self.ask(choice.choice(self._job.bodies), now)

    async def open(self, rate: float) -> None:
        choice, tasks = random.Random(self._job.seed), set[asyncio.Task]()
        at = choice.expovariate(rate)
        while at < self._job.seconds:
            await asyncio.sleep(max(at - (time.perf_counter() - self.begin), 0.0))
            if len(tasks) >= MOST_UNDER_WAY:
                self.sent.append(Sent(at, 0.0, 0))
            else:
                task = asyncio.create_task(self.ask(choice.choice(self._job.bodies), at))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            at += choice.expovariate(rate)
        if tasks:
            await asyncio.wait(set(tasks))

    async def ask(self, body: bytes, at: float) -> None:
        status = 0
        try:
            async with self._session.post(self._url, data=body) as response:
                await response.read()
                status = response.status
        except (OSError, aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(0.01)  # a server that is gone is not asked as fast as this process can
        self.sent.append(Sent(at, 1000 * (time.perf_counter() - self.begin - at), status))
