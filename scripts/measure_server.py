"""What one machine serves within a p99: `python -m scripts.measure_server --engine DIR --padded DIR --data FILE`.

    highest rate    open loop, requests at random times: the most a second whose p99 stays within --p99-ms; with batches
                    by tokens, and with batches by count (--counts, each with every one of --delays) of the padded
                    engine, as servers do that count requests. From text ("text" yes), and from tokens ("no"), where
                    Python's part is small; then over HTTP, with token batches
    one client      `Reader.answer`, then the same questions over HTTP, one after the other; from /metrics how long a
                    request waits from the queue to its launch, and what the server adds to `Reader.answer`

Prints a table, writes every rate that was tried into a CSV. One command for a machine with a GPU; on a CPU it runs as
well, with a --p99-ms that a CPU can keep.
"""

import csv
import datetime
import random
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs import command
from configs.errors import UserError
from configs.options import setting
from data import squad
from scripts.bench_batcher import UNBOUNDED, CountBatcher
from scripts.server_process import started
from serve import load
from serve.batcher import Batcher, DeadlinePassed, QueueFull
from serve.load_clients import Job, Sent, in_turn, run
from serve.manifest import read
from serve.packed import Packed
from serve.reader import Reader, as_example
from serve.session import Session

Ask = tuple[str, str] | Packed
COLUMNS = ["batches", "text", "over_http", "delay_ms", *load.FIGURES, "borne", "budget", "layout", "layers", "hidden",
           "runtime", "device", "data", "p99_limit_ms", "versions", "date"]  # fmt: skip
CLIENTS = 32  # of the closed loop that says where to begin looking
ONE_CLIENT = 300  # questions
STAGES = ("queue", "tokenise", "compute", "total", "overhead")


@dataclass(frozen=True)
class MeasureConfig:
    """Find the highest rate within a p99, with batches by tokens and by count, and what batcher and server add.

    Example:

      python -m scripts.measure_server --engine engines/base --padded engines/base-padded --data dev-v1.1.json.gz
    """

    engine: str = setting(required=True, help="engine folder, packed")
    padded: str | None = setting(None, help="the same checkpoint's engine of the padded layout; none: no count batches")
    data: str = setting(required=True, help="questions: SQuAD .json or .json.gz, builtin:dev-facts")
    limit: int = setting(1000, least=10, help="questions to draw from")
    runtime: str = setting("auto", help="as for serve.py")
    calls: int = setting(1, least=1, help="ONNX Runtime's calls at a time on a CPU")
    p99_ms: float = setting(10.0, above=0.0, help="the p99 that a rate has to keep")
    counts: tuple[int, ...] = setting((4, 8, 16, 32), help="windows a batch, where they are counted")
    delays: tuple[float, ...] = setting((0.0, 2.0), help="milliseconds that a batch by count may wait")
    seconds: float = setting(2.0, above=0.0, help="for each rate that is tried, eight or so for each kind of batch")
    processes: int = setting(4, least=1, help="that send over HTTP")
    text: bool = setting(True, help="measure from text, too; --no-text measures from tokens alone")
    http: bool = setting(True, help="measure over HTTP, too")
    seed: int = setting(1, least=0, help="of questions and times")
    out: str = setting("results/server.csv", help="CSV to write")


def main(config: MeasureConfig) -> dict:
    dataset = squad.read(config.data, limit=config.limit, split="dev")
    pairs = [(example.question, example.context) for example in dataset.examples]
    if config.padded:
        counted = read(config.padded)
        if counted.layout != "padded" or counted.sizes != read(config.engine).sizes:
            raise UserError(f"{config.padded} is no padded engine of the same model; export it with --layout padded")
    rows: list[dict] = []
    best: list[dict] = []
    with Session.open(config.engine, config.runtime, calls=config.calls) as session:
        print(f"runtime: {session.why}\ndevice: {session.device}", flush=True)
        reader = Reader(config.engine, session=session)
        windows = packed(reader, pairs)
        asks: dict[str, list[Ask]] = {"no": [*windows]}
        if config.text:
            asks["yes"] = [*pairs]
        for text, asked in asks.items():
            found = searched("tokens", None, lambda: Batcher(reader), asked, config)
            rows += [row | about(reader, text, session) for row in found]
            best.append(top(rows[-len(found):]))
        one = one_client(reader, pairs)
    if config.padded:
        with Session.open(config.padded, config.runtime, calls=config.calls) as session:
            padded = Reader(config.padded, session=session)
            for text, asked in asks.items():
                tried = []
                for count, delay in ((count, delay) for count in config.counts for delay in config.delays):

                    def opened(count: int = count, delay: float = delay) -> Batcher:
                        return CountBatcher(padded, token_budget=UNBOUNDED, most_sequences=count, max_delay_ms=delay,
                                            alike=False)  # fmt: skip

                    found = searched(f"count {count}", delay, opened, asked, config)
                    tried += [row | about(padded, text, session) for row in found]
                rows += tried
                best.append(top(tried))
    if config.http:
        found, told = over_http(config, pairs, one)
        rows += [row | about(reader, "yes", None) for row in found]
        best.append(top(rows[-len(found):]))
        one |= told
    print("\nhighest rate with a p99 of at most", config.p99_ms, "ms")
    for row in best:
        words = f"{row['batches']:10} text {row['text']:3} {'HTTP' if row['over_http'] else '':5}"
        print(f"{words} {row['rate'] or 0:10.1f} requests a second, p99 {row['p99_ms']} ms")
    print("\none client, means in ms")
    print("\n".join(f"{name:34} {value:8.3f}" for name, value in one.items()))
    write(Path(config.out), rows, config)
    return {"out": config.out, "metrics": {"best": best, "one_client": one}}


def packed(reader: Reader, pairs: list[tuple[str, str]]) -> list[Packed]:
    """The windows of each question, as many as one batch takes."""
    most = reader.manifest.profile.batch.most
    found = []
    for question, context in pairs:
        dataset = squad.Dataset([as_example(0, question, context)], "2.0", source="a question")
        features = reader.features(dataset)
        found.append(Packed.windows(features, np.arange(min(len(features), most))))
    return found


def searched(
    name: str, delay_ms: float | None, opened: Callable[[], Batcher], asks: list[Ask], config: MeasureConfig
) -> list[dict]:
    """A row for every rate tried."""
    with opened() as batcher:

        def measure(rate: float) -> dict:
            job = Job("", {}, [], None, rate, config.seconds, config.seed)
            row = load.summary(offered(batcher, asks, job), job)
            row |= {"batches": name, "delay_ms": delay_ms, "over_http": False, "budget": batcher.budget.tokens}
            row["borne"] = load.bears(row, config.p99_ms)
            print(f"{name}, delay {delay_ms}: {rate:.1f}/s, p99 {row['p99_ms']} ms", flush=True)
            return row

        first = closed(batcher, asks, min(config.seconds, 2.0), config.seed) / 2
        return load.highest(measure, first, lambda row: row["borne"])[1]


def submitted(batcher: Batcher, ask: Ask) -> Future:
    return batcher.submit_packed(ask) if isinstance(ask, Packed) else batcher.submit(*ask)


def closed(batcher: Batcher, asks: list[Ask], seconds: float, seed: int) -> float:
    """Requests a second of a few clients that wait for each answer."""
    done, end = [0] * CLIENTS, time.perf_counter() + seconds

    def client(number: int) -> None:
        choice = random.Random(f"{seed} {number}")
        while time.perf_counter() < end:
            submitted(batcher, choice.choice(asks)).result()
            done[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(sum(done), 1) / seconds


def offered(batcher: Batcher, asks: list[Ask], job: Job) -> list[Sent]:
    """An open loop into a batcher of this process; latency counts from when a request was due."""
    choice, sent = random.Random(job.seed), list[Sent]()
    assert job.rate
    begin, at = time.perf_counter(), choice.expovariate(job.rate)
    while at < job.seconds:
        if (wait := at - (time.perf_counter() - begin)) > 0:
            time.sleep(wait)

        def note(future: Future, at: float = at) -> None:
            error = future.exception()
            status = 200 if error is None else 504 if isinstance(error, DeadlinePassed) else 500
            sent.append(Sent(at, 1000 * (time.perf_counter() - begin - at), status))

        try:
            submitted(batcher, choice.choice(asks)).add_done_callback(note)
        except QueueFull:
            sent.append(Sent(at, 0.0, 429))
        at += choice.expovariate(job.rate)
    batcher_empty(batcher)
    return sent


def batcher_empty(batcher: Batcher) -> None:
    while batcher.stats()["requests"]:
        time.sleep(0.005)


def one_client(reader: Reader, pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Mean of `Reader.answer`, ms."""
    for pair in pairs[:20]:
        reader.answer(*pair)
    asked = pairs[:ONE_CLIENT]
    begin = time.perf_counter()
    for pair in asked:
        reader.answer(*pair)
    return {"Reader.answer": 1000 * (time.perf_counter() - begin) / len(asked)}


def over_http(
    config: MeasureConfig, pairs: list[tuple[str, str]], one: dict[str, float]
) -> tuple[list[dict], dict[str, float]]:
    """(rows, what /metrics says of one client)."""
    quiet = load.LoadConfig(url="http://x", data=config.data, limit=config.limit, rates=(1.0,), seed=config.seed)
    bodies, headers = load.questions(quiet), {"Content-Type": "application/json"}
    with server(config) as url:
        alone = [load.body(*pair) for pair in pairs[:ONE_CLIENT]]
        ask_all(url, alone[:20])
        before = sums(url)
        ask_all(url, alone)
        after = sums(url)
        told = {name: 1000 * (after[name] - before[name]) / len(alone) for name in after}
        told |= {"server adds to Reader.answer": told["http"] - one["Reader.answer"]}

        def measure(rate: float) -> dict:
            job = Job(url, headers, bodies, None, rate, config.seconds, config.seed)
            row = load.summary(run(job, config.processes), job)
            row |= {"batches": "tokens", "delay_ms": None, "over_http": True}
            row["borne"] = load.bears(row, config.p99_ms)
            print(f"tokens over HTTP: {rate:.1f}/s, p99 {row['p99_ms']} ms", flush=True)
            return row

        job = Job(url, headers, bodies, CLIENTS, None, min(config.seconds, 2.0), config.seed)
        first = max(load.summary(run(job, 1), job)["answers_per_s"], 1.0) / 2
        rows = load.highest(measure, first, lambda row: row["borne"])[1]
    return rows, {f"{name}, from /metrics" if name in (*STAGES, "http") else name: told[name] for name in told}


@contextmanager
def server(config: MeasureConfig) -> Iterator[str]:
    words = ("--engine", config.engine, "--port", 0, "--runtime", config.runtime, "--calls", config.calls)
    with started("serve", *words) as (_, url):
        yield url


def ask_all(url: str, bodies: list[bytes]) -> None:
    """One after the other over one connection."""
    job = Job(url, {"Content-Type": "application/json"}, bodies, 1, None, 0.0, 0)
    if any(sent.status != 200 for sent in in_turn(job)):
        raise UserError("the server did not answer every question of one client; its log says why")


def sums(url: str) -> dict[str, float]:
    """Seconds spent in each stage so far."""
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()

    def total(pattern: str) -> float:
        return float(re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE)[0])

    found = {stage: total(rf"retort_{stage}_seconds_sum\{{model=\"[^\"]*\"\}}") for stage in STAGES}
    return found | {"http": total(r"retort_http_seconds_sum\{path=\"/answer\"\}")}


def about(reader: Reader, text: str, session: Session | None) -> dict:
    sizes = reader.manifest.sizes
    told = {"text": text, "layout": reader.manifest.layout, "layers": sizes["layers"], "hidden": sizes["hidden"]}
    return told | ({"runtime": session.why, "device": session.device} if session else {})


def top(rows: list[dict]) -> dict:
    """The highest rate borne."""
    return max(rows, key=lambda row: row["rate"] if row["borne"] else 0) if any(row["borne"] for row in rows) else (
        rows[0] | {"rate": None}
    )  # fmt: skip


def write(path: Path, rows: list[dict], config: MeasureConfig) -> None:
    same = {
        "data": Path(config.data).name, "p99_limit_ms": config.p99_ms,
        "versions": " ".join(f"{name} {version}" for name, version in command.versions().items()),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | same for row in rows)


if __name__ == "__main__":
    command.run("scripts.measure_server", MeasureConfig, main)
