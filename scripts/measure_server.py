"""What one machine serves within a p99: `python -m scripts.measure_server --engine DIR --padded DIR --data FILE`.

    highest rate    open loop, requests at random times: the most a second whose p99 stays within --p99-ms; with batches
                    by tokens, and with batches by count (--counts, the best with --delays) of the padded engine, as
                    servers do that count requests. From text ("text" yes), and from tokens ("no"), where
                    Python's part is small; then over HTTP, with token batches
                    and with --workers by so many processes
    one client      `Reader.answer`, then the same questions over HTTP, one after the other; from /metrics how long a
                    request waits from the queue to its launch, and what the server adds to `Reader.answer`

In this order, the most wanted first: nothing is begun once --minutes are over, and what is left out is named. Of the
batches by count the largest come first, without waiting; one that does not bear the best rate so far is not looked at
further, and with the other delays, and from text, only the best count is. A rate that cannot keep the p99 any more is
ended at once; how long one is tried, `serve/load_search.py` says. Prints a table, writes every rate that was tried into
a CSV as soon as its kind is done, and the one client into another beside it (_one_client.csv). What fails is named, the
rest goes on. One command for a machine with a GPU; on a CPU it runs as well, with a --p99-ms that a CPU can keep.
"""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from configs import command
from configs.errors import UserError
from configs.options import setting
from data import squad
from scripts import measure_server_http
from scripts.bench_batcher import UNBOUNDED, CountBatcher
from scripts.measure_server_http import CLIENTS, LONGER, TRIES
from scripts.measure_server_rows import Findings, top
from serve import load_search, quiet
from serve.batcher import Batcher, DeadlinePassed, QueueFull
from serve.load_clients import Job, Sent
from serve.manifest import read
from serve.packed import Packed
from serve.reader import Reader, as_example
from serve.session import Session

Ask = tuple[str, str] | Packed
WARM = (1, 2, 4, 8, 16, CLIENTS)  # clients of the closed loops before; what sizes need, the batcher has prepared
HOPELESS = 1.5  # percent of all that will have been sent late: the p99 is missed, whatever comes
BETTER = 1.02  # times the best rate so far: what a kind of batch must bear to be looked at


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
    workers: tuple[int, ...] = setting((), help="over HTTP, measure servers of so many processes, too")
    minutes: float = setting(3.0, above=0.0, help="after which no further kind is begun")
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
    found = Findings(config)
    with Session.open(config.engine, config.runtime, calls=config.calls) as session:
        print(f"runtime: {session.why}\ndevice: {session.device}", flush=True)
        reader = Reader(config.engine, session=session)
        asks: dict[str, list[Ask]] = {"no": [*packed(reader, pairs)]}
        if config.text:
            asks["yes"] = [*pairs]
        quiet.settle()  # as a server does
        with found.kept("tokens, from tokens"):
            found.rates(searched("tokens", None, lambda: Batcher(reader), asks["no"], config), reader, "no", session)
        if config.http:
            with found.kept("one client"):
                reader_ms = measure_server_http.alone(reader, pairs)
                with measure_server_http.server(config) as url:
                    found.one_client(measure_server_http.one_client(url, pairs, reader_ms))
                    with found.kept("over HTTP"):
                        found.rates(over_http(config, url, "tokens"), reader, "yes", session)
        if config.text and found.begins("tokens, from text"):
            with found.kept("tokens, from text"):
                rows = searched("tokens", None, lambda: Batcher(reader), asks["yes"], config)
                found.rates(rows, reader, "yes", session)
    if config.padded and found.begins("by count"):
        by_count(config, found, asks)
    for workers in config.workers if config.http else ():
        what = f"over HTTP, {workers} workers"
        if not found.begins(what):
            continue
        with found.kept(what), measure_server_http.server(config, workers) as url:
            found.rates(over_http(config, url, f"tokens, {workers} workers"), reader, "yes", session)
    return found.told()


def over_http(config: MeasureConfig, url: str, name: str) -> list[dict]:
    return measure_server_http.highest(config, url, lambda row: completed(row, name, None, True, None, config))


def by_count(config: MeasureConfig, found: Findings, asks: dict[str, list[Ask]]) -> None:
    """Every count with the first delay; the best with the others, and from text."""
    with Session.open(str(config.padded), config.runtime, calls=config.calls) as session:
        padded = Reader(str(config.padded), session=session)
        quiet.settle()
        best = (0.0, max(config.counts), config.delays[0])  # rate, count, delay

        def looked_at(count: int, delay: float, text: str, beaten: float) -> float:
            def opened() -> Batcher:
                return CountBatcher(padded, token_budget=UNBOUNDED, most_sequences=count, max_delay_ms=delay,
                                    alike=False)  # fmt: skip

            what = f"count {count}, delay {delay:g}, text {text}"
            if not found.begins(what):
                return 0.0
            with found.kept(what):
                rows = searched(f"count {count}", delay, opened, asks[text], config, beaten)
                return top(found.rates(rows, padded, text, session))["rate"] or 0.0
            return 0.0

        for count in sorted(config.counts, reverse=True):
            best = max(best, (looked_at(count, config.delays[0], "no", best[0]), count, config.delays[0]))
        for delay in config.delays[1:]:
            best = max(best, (looked_at(best[1], delay, "no", best[0]), best[1], delay))
        if "yes" in asks:
            looked_at(best[1], best[2], "yes", 0.0)


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
    name: str, delay_ms: float | None, opened: Callable[[], Batcher], asks: list[Ask], config: MeasureConfig,
    beaten: float = 0.0,
) -> list[dict]:  # fmt: skip
    """A row for every rate tried; one alone where it does not bear a little more than `beaten`."""
    with opened() as batcher:

        def measure(rate: float) -> dict:
            job = Job("", {}, [], None, rate, config.seconds, config.seed)
            send = lambda job: offered(batcher, asks, job, config.p99_ms)  # noqa: E731
            row = load_search.measured(send, job, config.p99_ms, LONGER * config.seconds)
            return completed(row, name, delay_ms, False, batcher.budget.tokens, config)

        for clients in WARM:
            first = closed(batcher, asks, min(config.seconds, 2.0) / 8, config.seed, clients) / 2
        tried: dict[float, dict] = {}
        if beaten:
            first = round(BETTER * beaten, 3)
            tried[first] = measure(first)
            if not tried[first]["borne"]:
                return [tried[first]]
        found = lambda rate: tried.get(rate) or measure(rate)  # noqa: E731
        return load_search.highest(found, first, lambda row: row["borne"], TRIES)[1]


def completed(
    row: dict, name: str, delay_ms: float | None, over_http: bool, budget: int | None, config: MeasureConfig
) -> dict:
    """A row with what it is of and whether the rate is borne; printed."""
    row |= {"batches": name, "delay_ms": delay_ms, "over_http": over_http, "budget": budget}
    row["borne"] = load_search.bears(row, config.p99_ms)
    way = " over HTTP" if over_http else "" if delay_ms is None else f", delay {delay_ms:g} ms"
    print(f"{name}{way}: {row['rate']:.1f}/s, p99 {row['p99_ms']} ms{'' if row['borne'] else ', missed'}", flush=True)
    return row


def submitted(to: Batcher, ask: Ask) -> Future:
    return to.submit_packed(ask) if isinstance(ask, Packed) else to.submit({"question": ask[0], "context": ask[1]})


def closed(batcher: Batcher, asks: list[Ask], seconds: float, seed: int, clients: int = CLIENTS) -> float:
    """Requests a second of a few clients that wait for each answer."""
    done, end = [0] * clients, time.perf_counter() + seconds

    def client(number: int) -> None:
        choice = random.Random(f"{seed} {number}")
        while time.perf_counter() < end:
            submitted(batcher, choice.choice(asks)).result()
            done[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(sum(done), 1) / seconds


def offered(batcher: Batcher, asks: list[Ask], job: Job, limit_ms: float = float("inf")) -> list[Sent]:
    """An open loop into a batcher of this process; latency counts from when a request was due.

    It ends early once so many are later than limit_ms that the p99 of the whole would be, too.
    """
    choice, sent, late = random.Random(job.seed), list[Sent](), list[float]()
    assert job.rate
    hopeless = 3 + HOPELESS / 100 * job.rate * job.seconds
    begin, at = time.perf_counter(), choice.expovariate(job.rate)
    while at < job.seconds and len(late) < hopeless:
        if (wait := at - (time.perf_counter() - begin)) > 0:
            time.sleep(wait)

        def note(future: Future, at: float = at) -> None:
            error = future.exception()
            status = 200 if error is None else 504 if isinstance(error, DeadlinePassed) else 500
            sent.append(Sent(at, 1000 * (time.perf_counter() - begin - at), status))
            if sent[-1].latency_ms > limit_ms and at > job.seconds / 4:
                late.append(at)

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


if __name__ == "__main__":
    command.run("scripts.measure_server", MeasureConfig, main)
