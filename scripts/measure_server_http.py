"""The HTTP side of `measure_server`: what one client pays by stage, and the highest rate within the p99."""

import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from configs.errors import UserError
from scripts.server_process import started
from serve import load
from serve.load_clients import Job, in_turn, run
from serve.load_search import highest as search
from serve.load_search import measured, summary
from serve.reader import Reader

CLIENTS = 32  # of the closed loop that says where to begin looking
CROWD_S = 2.0  # from which on a closed loop without any answer is not tried again
ONE_CLIENT = 300  # questions
LONGER = 4  # times --seconds, that a low rate may be tried: few requests tell no p99
TRIES = 4  # rates between the last borne and the first missed: a rate to 6 %
STAGES = ("queue", "tokenise", "compute", "total", "overhead")
HEADERS = {"Content-Type": "application/json"}
# Row of the second table -> the most that it may be, ms.
MOST = {"queue, from /metrics": 0.2, "server adds to Reader.answer": 1.5}


def alone(reader: Reader, pairs: list[tuple[str, str]]) -> float:
    """Mean of `Reader.answer`, ms, once every question has been asked often enough for its shape to be prepared."""
    asked = pairs[:ONE_CLIENT]
    for _ in range(2):
        reader.answer_many(asked[:1])
        for pair in asked:
            reader.answer(*pair)
    begin = time.perf_counter()
    for pair in asked:
        reader.answer(*pair)
    return 1000 * (time.perf_counter() - begin) / len(asked)


def one_client(url: str, pairs: list[tuple[str, str]], reader_ms: float) -> dict[str, float]:
    """Means in ms of the same questions over HTTP, one after the other: stages as /metrics has them."""
    bodies = [load.body(*pair) for pair in pairs[:ONE_CLIENT]]
    for _ in range(2):
        ask_all(url, bodies)
    before = sums(url)
    ask_all(url, bodies)
    after = sums(url)
    told = {f"{name}, from /metrics": 1000 * (after[name] - before[name]) / len(bodies) for name in after}
    adds = told["http, from /metrics"] - reader_ms
    return {"Reader.answer": reader_ms} | told | {"server adds to Reader.answer": adds}


def highest(config: Any, url: str, found: Callable[[dict], dict]) -> list[dict]:
    """A row for every rate tried. config: `measure_server.MeasureConfig`; found: completes a row and prints it."""
    quiet = load.LoadConfig(url=url, data=config.data, limit=config.limit, rates=(1.0,), seed=config.seed)
    job = Job(url, HEADERS, load.questions(quiet), None, None, config.seconds, config.seed)

    def measure(rate: float) -> dict:
        send = lambda job: run(job, config.processes)  # noqa: E731
        return found(measured(send, replace(job, rate=rate), config.p99_ms, LONGER * config.seconds))

    first = begin_at(replace(job, clients=CLIENTS, seconds=min(config.seconds, 2.0)))
    return search(measure, first, lambda row: row["borne"], TRIES)[1]


def begin_at(crowd: Job) -> float:
    """Half the rate of a closed loop; one that was too short for a single answer says nothing, and is made longer."""
    while not (rate := summary(run(crowd, 1), crowd)["answers_per_s"]) and crowd.seconds < CROWD_S:
        crowd = replace(crowd, seconds=4 * crowd.seconds)
    return max(rate, 1.0) / 2


@contextmanager
def server(config: Any, workers: int | None = None) -> Iterator[str]:
    """Its address. workers: processes under a supervisor; None: one without."""
    words = ("--engine", config.engine, "--port", 0, "--runtime", config.runtime, "--calls", config.calls)
    with started("serve", *words, *(("--workers", workers) if workers else ())) as (_, url):
        yield url


def ask_all(url: str, bodies: list[bytes]) -> None:
    """One after the other over one connection."""
    if any(sent.status != 200 for sent in in_turn(Job(url, HEADERS, bodies, 1, None, 0.0, 0))):
        raise UserError("the server did not answer every question of one client; its log says why")


def sums(url: str) -> dict[str, float]:
    """Seconds spent in each stage so far."""
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()

    def total(pattern: str) -> float:
        return float(re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE)[0])

    found = {stage: total(rf"retort_{stage}_seconds_sum\{{model=\"[^\"]*\"\}}") for stage in STAGES}
    return found | {"http": total(r"retort_http_seconds_sum\{path=\"/answer\"\}")}
