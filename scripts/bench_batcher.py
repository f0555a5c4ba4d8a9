"""What cutting batches by tokens brings: `python -m scripts.bench_batcher --engine DIR --padded DIR --data FILE`.

Closed loop: 64 threads of this process each ask a question of --data, wait for the answer, and ask the next one.

    tokens     the batcher, its token budget measured; "tokens, N calls": with N calls of ONNX Runtime at a time
    none       the batcher with one window a batch; "none, padded": of the padded engine
    reader     no batcher: every client calls Reader.answer
    count N    N windows a batch in order of arrival, padded to the longest of them, as servers do that count requests:
               a batch goes when it has N, or when its first window has waited for the delay

"count" needs an engine of the same checkpoint exported with --layout padded; each N is measured with every delay, and
all rows are written. The variants come in random order, in several rounds. What is answered before a quarter of a round
is over does not count: the clients, who all begin at once, have spread by then.
"""

import csv
import datetime
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configs import command
from configs.errors import UserError
from configs.options import setting
from data import squad
from serve import gpu
from serve.batcher import Batcher
from serve.budget import limits
from serve.manifest import read
from serve.onnx_session import OnnxSession
from serve.reader import Reader

FIGURES = ("variant", "delay_ms", "answers", "answers_per_s", "p50_ms", "p95_ms", "p99_ms", "padding", "mean_batch")
COLUMNS = [*FIGURES, "budget", "layout", "layers", "hidden", "runtime", "clients", "client_process", "data", "seconds",
           "device", "cores", "versions", "date"]  # fmt: skip
UNBOUNDED = 1 << 30


@dataclass(frozen=True)
class BatcherBenchConfig:
    """Throughput and latency of batches cut by tokens, by count, and of none, on ONNX Runtime.

    Example:

      python -m scripts.bench_batcher --engine engines/packed --padded engines/padded --data dev-v1.1.json.gz
    """

    engine: str = setting(required=True, help="engine folder")
    padded: str | None = setting(None, help="the same checkpoint's engine of the padded layout; none: no count batches")
    data: str = setting(required=True, help="questions: SQuAD .json or .json.gz, builtin:dev-facts")
    limit: int | None = setting(2000, least=1, help="questions to choose from")
    clients: int = setting(64, least=1, most=4096, help="threads that ask")
    counts: tuple[int, ...] = setting((4, 8, 16, 32), help="windows a batch, where they are counted")
    delays: tuple[float, ...] = setting((0.0, 5.0, 50.0), help="milliseconds that a batch by count may wait")
    seconds: float = setting(20.0, above=0.0, help="for each variant, all rounds together")
    rounds: int = setting(2, least=1, help="in which the variants take turns")
    seed: int = setting(1, least=0, help="of questions and order")
    out: str = setting("results/batcher.csv", help="CSV to write")


class CountBatcher(Batcher):
    """Waits for its count or its delay, whether or not the device is idle."""

    def _company(self) -> bool:
        return True


@dataclass
class Variant:
    name: str
    reader: Reader
    open: Callable[[], Batcher] | None  # None: the reader itself
    delay_ms: float | None = None
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    counts: dict[str, float] = field(default_factory=lambda: {"batches": 0.0, "tokens": 0.0, "slots": 0.0})
    budget: int | None = None

    def measure(self, pairs: list[tuple[str, str]], clients: int, seconds: float, seed: int) -> None:
        """One round. Raises: whatever a request raised."""
        batcher = self.open() if self.open else None
        begin = time.perf_counter()
        ramp, end = begin + seconds / 4, begin + seconds
        found: list[list[float]] = [[] for _ in range(clients)]
        broken: list[BaseException] = []

        def client(number: int) -> None:
            choice = random.Random(f"{seed} {number}")
            try:
                while (asked := time.perf_counter()) < end and not broken:
                    question, context = choice.choice(pairs)
                    if batcher:
                        future: Future = batcher.submit({"question": question, "context": context})
                        future.result()
                    else:
                        self.reader.answer(question, context)
                    if ramp <= (now := time.perf_counter()) < end:
                        found[number].append(1000 * (now - asked))
            except BaseException as error:
                broken.append(error)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if batcher:
            batcher.close()
            stats = batcher.stats()
            self.budget = batcher.budget.tokens if self.name.startswith("tokens") else None
            self.counts = {name: self.counts[name] + stats[name] for name in self.counts}
        if broken:
            raise broken[0]
        self.latencies += [latency for each in found for latency in each]
        self.seconds += end - ramp

    def row(self) -> dict:
        if not self.latencies:
            raise UserError(f"{self.name}: no answer within the time; give more --seconds")
        p50, p95, p99 = (round(float(np.percentile(self.latencies, percent)), 1) for percent in (50, 95, 99))
        tokens, slots, batches = (self.counts[name] for name in ("tokens", "slots", "batches"))
        manifest = self.reader.manifest
        return {
            "variant": self.name, "delay_ms": self.delay_ms, "answers": len(self.latencies),
            "answers_per_s": round(len(self.latencies) / self.seconds, 2), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99,
            "padding": round(1 - tokens / slots, 4) if slots else 0.0,
            "mean_batch": round(tokens / batches, 1) if batches else None, "budget": self.budget,
            "layout": manifest.layout, "layers": manifest.sizes["layers"], "hidden": manifest.sizes["hidden"],
            "runtime": self.reader.session.why,
        }  # fmt: skip


def main(config: BatcherBenchConfig) -> dict:
    dataset = squad.read(config.data, limit=config.limit, split="dev")
    pairs = [(example.question, example.context) for example in dataset.examples]
    found = list(variants(config))
    for variant in found:  # whatever a first call prepares
        variant.reader.answer_many(pairs[:4])
    order = random.Random(config.seed)
    turns = [(turn, variant) for turn in range(config.rounds) for variant in order.sample(found, len(found))]
    for turn, variant in tqdm(turns, "measure", unit="round", leave=False):
        variant.measure(pairs, config.clients, config.seconds / config.rounds, config.seed + turn)
    rows = [variant.row() for variant in found]
    for row in rows:
        print("  ".join(f"{name} {row[name]}" for name in FIGURES if row[name] is not None))
    write(Path(config.out), rows, config)
    return {"out": config.out, "metrics": {"rows": rows} | ratios(rows)}


def variants(config: BatcherBenchConfig) -> Iterator[Variant]:
    reader = Reader(config.engine, "onnxruntime")
    yield Variant("tokens", reader, lambda: Batcher(reader))
    if (calls := gpu.cores()) > 1:
        at_once = Reader(config.engine, session=OnnxSession(reader.manifest, calls=calls))
        yield Variant(f"tokens, {calls} calls", at_once, lambda: Batcher(at_once))
    yield Variant("none", reader, lambda: Batcher(reader, token_budget=UNBOUNDED, most_sequences=1))
    yield Variant("reader", reader, None)
    if config.padded is None:
        return
    manifest = read(config.padded)
    if manifest.layout != "padded" or manifest.sizes != reader.manifest.sizes:
        raise UserError(f"{config.padded} is no padded engine of the same model; export it with --layout padded")
    # A session that would cut batches up by length is told not to: the whole batch is one call.
    padded = Reader(config.padded, session=OnnxSession(manifest, token_budget=limits(reader.session) + UNBOUNDED))
    alone = {"token_budget": UNBOUNDED, "alike": False}
    yield Variant("none, padded", padded, lambda: Batcher(padded, most_sequences=1, **alone))
    for count in config.counts:
        if count > manifest.profile.batch.most:
            raise UserError(f"{config.padded} takes up to {manifest.profile.batch.most} windows a batch, not {count}")
        for delay in config.delays:

            def opened(count: int = count, delay: float = delay) -> Batcher:
                return CountBatcher(padded, most_sequences=count, max_delay_ms=delay, **alone)

            yield Variant(f"count {count}", padded, opened, delay)


def ratios(rows: list[dict]) -> dict[str, float]:
    """The throughput of token batches over the best of the others, and the p99 over that without batches."""
    found: dict[str, float] = {}
    others = [row for row in rows if row["variant"].startswith(("none", "reader"))]
    alone = max(others, key=lambda row: row["answers_per_s"])
    counted = [row["answers_per_s"] for row in rows if row["variant"].startswith("count")]
    for row in rows:
        if row["variant"].startswith("tokens"):
            found[f"{row['variant']} over none"] = row["answers_per_s"] / alone["answers_per_s"]
            found[f"{row['variant']} p99 to none"] = row["p99_ms"] / alone["p99_ms"]
            if counted:
                found[f"{row['variant']} over count"] = row["answers_per_s"] / max(counted)
    return {name: round(value, 3) for name, value in found.items()}


def write(path: Path, rows: list[dict], config: BatcherBenchConfig) -> None:
    same = {
        "clients": config.clients, "client_process": "threads of the same process", "data": Path(config.data).name,
        "seconds": config.seconds, "device": gpu.cpu_name(), "cores": gpu.cores(),
        "versions": " ".join(f"{name} {version}" for name, version in command.versions().items()),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow(row | same)


if __name__ == "__main__":
    command.run("scripts.bench_batcher", BatcherBenchConfig, main)
