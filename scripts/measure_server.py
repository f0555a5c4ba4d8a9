"""What one machine serves within a p99: `python -m scripts.measure_server --engine DIR --padded DIR --data FILE`.

    highest rate    open loop, requests at random times: the most a second whose p99 stays within --p99-ms; with batches
                    by tokens, and with batches by count (--counts, each with every one of --delays) of the padded
                    engine, as servers do that count requests. From text ("text" yes), and from tokens ("no"), where
                    Python's part is small; then over HTTP, with token batches
    one client      `Reader.answer`, then the same questions over HTTP, one after the other; from /metrics how long a
                    request waits from the queue to its launch, and what the server adds to `Reader.answer`

A kind of batch that does not bear the best rate of the kinds by count before it is not looked at further; a rate that
cannot keep the p99 any more is ended at once. Prints a table, writes every rate that was tried into a CSV as soon as
its kind is done, and the one client into another beside it (_one_client.csv). What fails is named, the rest goes on.
One command for a machine with a GPU; on a CPU it runs as well, with a --p99-ms that a CPU can keep.
"""

import csv
import datetime
import os
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configs import command
from configs.errors import UserError
from configs.options import setting
from data import squad
from scripts import measure_server_http
from scripts.bench_batcher import UNBOUNDED, CountBatcher
from scripts.measure_server_http import CLIENTS, MOST
from serve import load
from serve.batcher import Batcher, DeadlinePassed, QueueFull
from serve.load_clients import Job, Sent
from serve.manifest import read
from serve.packed import Packed
from serve.reader import Reader, as_example
from serve.session import Session

Ask = tuple[str, str] | Packed
COLUMNS = ["batches", "text", "over_http", "delay_ms", *load.FIGURES, "borne", "budget", "layout", "layers", "hidden",
           "runtime", "device", "data", "p99_limit_ms", "versions", "date"]  # fmt: skip
WARM = (1, 2, 4, 8, 16, CLIENTS)  # clients of the closed loops before: batches of every size are prepared once
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
        with found.kept("tokens, from tokens"):
            found.rates(searched("tokens", None, lambda: Batcher(reader), asks["no"], config), reader, "no", session)
        if config.http:
            with found.kept("one client"):
                reader_ms = measure_server_http.alone(reader, pairs)
                with measure_server_http.server(config) as url:
                    found.one_client(measure_server_http.one_client(url, pairs, reader_ms))
                    with found.kept("over HTTP"):
                        done = lambda row: completed(row, "tokens", None, True, None, config)  # noqa: E731
                        found.rates(measure_server_http.highest(config, url, done), reader, "yes", session)
        if config.text:
            with found.kept("tokens, from text"):
                rows = searched("tokens", None, lambda: Batcher(reader), asks["yes"], config)
                found.rates(rows, reader, "yes", session)
    if config.padded:
        with Session.open(config.padded, config.runtime, calls=config.calls) as session:
            padded = Reader(config.padded, session=session)
            for text, asked in asks.items():
                best = 0.0
                for count, delay in ((count, delay) for count in config.counts for delay in config.delays):

                    def opened(count: int = count, delay: float = delay) -> Batcher:
                        return CountBatcher(padded, token_budget=UNBOUNDED, most_sequences=count, max_delay_ms=delay,
                                            alike=False)  # fmt: skip

                    with found.kept(f"count {count}, delay {delay:g}, text {text}"):
                        rows = searched(f"count {count}", delay, opened, asked, config, best)
                        best = max(best, top(found.rates(rows, padded, text, session))["rate"] or 0.0)
    return found.told()


class Findings:
    """What was measured so far: in the files as soon as it is there, and printed at the end."""

    def __init__(self, config: MeasureConfig) -> None:
        self._config, self.rows, self.one, self.failed = config, list[dict](), dict[str, float](), list[str]()

    @contextmanager
    def kept(self, what: str) -> Iterator[None]:
        """A piece whose failure is noted and ends no other."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()
            self.failed.append(f"{what} ({type(error).__name__}: {str(error)[:200]})")
            print(f"failed: {self.failed[-1]}", flush=True)

    def rates(self, rows: list[dict], reader: Reader, text: str, session: Session) -> list[dict]:
        self.rows += [row | about(reader, text, session) for row in rows]
        write(Path(self._config.out), self.rows, self._config)
        return rows

    def one_client(self, told: dict[str, float]) -> None:
        self.one = told
        path = Path(self._config.out)
        rows = [{"what": name, "mean_ms": round(value, 4), "must_be_below_ms": MOST.get(name)}
                for name, value in told.items()]  # fmt: skip
        written(path.with_name(f"{path.stem}_one_client.csv"), ["what", "mean_ms", "must_be_below_ms"], rows)

    def told(self) -> dict:
        """Print the tables. Raises: UserError where something failed."""
        kinds: dict[tuple, list[dict]] = {}
        for row in self.rows:
            name = row["batches"].partition(" ")[0]  # the best of all counts
            kinds.setdefault((name, row["text"], row["over_http"]), []).append(row)
        best = [top(rows) for rows in kinds.values()]
        print("\nhighest rate with a p99 of at most", self._config.p99_ms, "ms")
        for row in best:
            words = f"{row['batches']:10} text {row['text']:3} {'HTTP' if row['over_http'] else '':5}"
            print(f"{words} {row['rate'] or 0:10.1f} requests a second, p99 {row['p99_ms']} ms")
        if self.one:
            print("\none client, means in ms")
            print("\n".join(f"{name:34} {value:8.3f}" + (f"  (must be below {MOST[name]})" if name in MOST else "")
                            for name, value in self.one.items()))  # fmt: skip
        if self.failed:
            raise UserError(f"{len(self.failed)} failed: {'; '.join(self.failed)}; the rest is in {self._config.out}")
        return {"out": self._config.out, "metrics": {"best": best, "one_client": self.one}}


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
            sent = offered(batcher, asks, job, config.p99_ms)
            ended = max((one.at for one in sent), default=job.seconds)
            row = load.summary(sent, job if ended > 0.9 * job.seconds else replace(job, seconds=round(ended, 3)))
            return completed(row, name, delay_ms, False, batcher.budget.tokens, config)

        for clients in WARM:
            first = closed(batcher, asks, min(config.seconds, 2.0) / 8, config.seed, clients) / 2
        if not beaten:
            return load.highest(measure, first, lambda row: row["borne"])[1]
        tried = measure(first := round(BETTER * beaten, 3))
        if not tried["borne"]:
            return [tried]
        measure_on = lambda rate: tried if rate == first else measure(rate)  # noqa: E731
        return load.highest(measure_on, first, lambda row: row["borne"])[1]


def completed(
    row: dict, name: str, delay_ms: float | None, over_http: bool, budget: int | None, config: MeasureConfig
) -> dict:
    """A row with what it is of and whether the rate is borne; printed."""
    row |= {"batches": name, "delay_ms": delay_ms, "over_http": over_http, "budget": budget}
    row["borne"] = load.bears(row, config.p99_ms)
    way = " over HTTP" if over_http else "" if delay_ms is None else f", delay {delay_ms:g} ms"
    print(f"{name}{way}: {row['rate']:.1f}/s, p99 {row['p99_ms']} ms{'' if row['borne'] else ', missed'}", flush=True)
    return row


def submitted(batcher: Batcher, ask: Ask) -> Future:
    return batcher.submit_packed(ask) if isinstance(ask, Packed) else batcher.submit(*ask)


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


def about(reader: Reader, text: str, session: Session) -> dict:
    sizes = reader.manifest.sizes
    told = {"text": text, "layout": reader.manifest.layout, "layers": sizes["layers"], "hidden": sizes["hidden"]}
    return told | {"runtime": session.why, "device": session.device}


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
    written(path, COLUMNS, [row | same for row in rows])


def written(path: Path, columns: list[str], rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    with open(scratch, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(scratch, path)  # a kill in between leaves the earlier rows


if __name__ == "__main__":
    command.run("scripts.measure_server", MeasureConfig, main)
