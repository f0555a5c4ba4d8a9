"""How fast an engine folder answers: `python -m serve.bench --engine DIR --data dev-v1.1.json.gz --out serve.csv`.

    full        random ids, every sequence as long as the row says, so nothing is padding: latency of `Session.run` from
                host memory to host memory, and sequences a second with two batches under way
    question    --data: one question at a time, all of its windows in one batch; latency as a caller sees it
    all         --data: all questions at once, in the largest batches that the engine takes; windows a second

The last two stand there twice: from text to the answer, and from tokens to logits ("no" under text). Every case runs
in several rounds of random order, so that a machine that slows down slows all of them. Percentiles are of single runs;
with fewer than 100 of them p99 is the slowest or nearly so.
"""

import csv
import datetime
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configs import command
from configs.errors import UserError
from configs.options import setting
from data import squad
from serve.config import EngineConfig
from serve.packed import Packed, check
from serve.reader import Reader
from serve.session import Session

SHOWN = ("case", "text", "batch", "length", "runs", "p50_ms", "p95_ms", "p99_ms", "sequences_per_s", "tokens_per_s")
COLUMNS: list[str] = [*SHOWN, "layout", "precision", "runtime", "device", "why", "versions", "engine", "date"]
ROUNDS = 4
WARM = 3  # TensorRT: the first run of a shape prepares, the next two capture a graph in either slot
VARIANTS = 4  # different ids of one shape


@dataclass(frozen=True)
class BenchConfig(EngineConfig):
    """Measure latency and throughput of an engine folder, by batch and length and on real questions.

    Example:

      python -m serve.bench --engine engines/student --data dev-v1.1.json.gz --limit 500 --out results/serve.csv
    """

    batches: tuple[int, ...] = setting((1, 8, 32), help="sequences a batch; what the engine does not take is left out")
    lengths: tuple[int, ...] = setting((32, 128, 384), help="tokens a sequence")
    data: str | None = setting(None, help="questions of real lengths: SQuAD .json or .json.gz, builtin:dev-facts")
    limit: int | None = setting(None, least=1, help="with --data: take so many questions only")
    seconds: float = setting(2.0, above=0.0, help="to measure each case, latency and throughput apart")
    seed: int = setting(1, least=0, help="of ids and of the order")
    out: str | None = setting(None, help="CSV to write")
    profile: bool = setting(False, help="tell instead which plugin takes how long, on a GPU")


@dataclass
class Case:
    """One row. `once` does the work a single time; `stream` yields once it is under way, then after every piece."""

    row: dict
    sequences: float  # of one piece of work, on average
    tokens: float
    once: Callable[[], object] | None
    stream: Callable[[], Iterator[object]]
    times: list[float] = field(default_factory=list)  # seconds of single runs
    done: int = 0  # pieces of work streamed, and the seconds they took
    seconds: float = 0.0

    def measure(self, seconds: float) -> None:
        """One round: single runs for so long, then a stream for so long; at least one run of each."""
        end = time.perf_counter() + seconds
        while self.once:
            begin = time.perf_counter()
            self.once()
            now = time.perf_counter()
            self.times.append(now - begin)
            if now > end:
                break
        stream = self.stream()
        next(stream)
        begin = time.perf_counter()
        for _ in stream:
            self.done += 1
            if time.perf_counter() - begin > seconds:
                break
        self.seconds += time.perf_counter() - begin

    def result(self) -> dict:
        """The row with its figures."""
        rate = self.done / self.seconds
        figures: dict = {"runs": len(self.times) or self.done}
        for percent in (50, 95, 99):
            if self.times:
                figures[f"p{percent}_ms"] = round(1000 * float(np.percentile(self.times, percent)), 3)
        figures |= {"sequences_per_s": round(rate * self.sequences, 1), "tokens_per_s": round(rate * self.tokens)}
        return self.row | figures


def main(config: BenchConfig) -> dict:
    session = Session.open(
        config.engine, config.runtime, list(config.providers) or None, threads=config.threads, calls=config.calls or 1
    )  # fmt: skip
    with session:
        print(f"runtime: {session.why}\ndevice: {session.device}", flush=True)
        if config.profile:
            return {"out": None, "metrics": {"runtime": session.why, "plugins_us": profile(session, config)}}
        cases = [*full(session, config), *(real(Reader(config.engine, session=session), config) if config.data else ())]
        if not cases:
            raise UserError("nothing to measure: no --batches with --lengths fits this engine, and no --data was given")
        order = random.Random(config.seed)
        turns = [case for _ in range(ROUNDS) for case in order.sample(cases, len(cases))]
        for case in tqdm(turns, "measure", unit="round", leave=False, mininterval=0.5):
            case.measure(config.seconds / ROUNDS)
        rows = [case.result() for case in cases]
        show(rows)
        for note in session.notes:
            print(note)
    if config.out:
        write(Path(config.out), rows, session, config.engine)
    return {"out": config.out, "metrics": {"runtime": session.why, "device": session.device, "rows": rows}}


def profile(session: Session, config: BenchConfig) -> dict:
    """Print a table for each batch and length; returns {"32 x 128": {op: microseconds}}."""
    if session.runtime != "tensorrt":
        raise UserError(f"--profile is for plugins on a GPU, and this is {session.why}")
    from plugins import measure  # what it imports is more than serving needs
    from plugins.device import Device

    with Device() as device:
        peaks = measure.bandwidth(device), measure.arithmetic(device)
    found: dict[str, dict[str, float]] = {}
    for length, count in itertools.product(config.lengths, config.batches):
        ids = np.random.default_rng(config.seed).integers(0, session.manifest.sizes["vocabulary"], (count, length))
        try:
            rows = session.profile(Packed.of(list(ids), [[0] * length] * count))  # type: ignore[attr-defined]
        except UserError as error:
            print(f"left out: {count} x {length} ({error})")
            continue
        total = sum(row.microseconds for row in rows)
        print(f"\n{count} x {length}: {total:,.0f} us in plugins; floors are those of {peaks[0] / 1e12:.1f} TB/s and "
              f"{peaks[1] / 1e12:.0f} TFLOP/s")  # fmt: skip
        print(f"{'operator':24} calls   us a run  share  floor us   of floor  shapes")
        for row in rows:
            floor = row.floor(*peaks)
            print(f"{row.op:24} {row.calls:5} {row.microseconds:10.1f} {row.microseconds / total:6.1%} {floor:9.1f} "
                  f"{floor / row.microseconds:9.1%}  {row.shapes}")  # fmt: skip
            here = found.setdefault(f"{count} x {length}", {})
            here[row.op] = round(here.get(row.op, 0.0) + row.microseconds, 1)
    return found


def full(session: Session, config: BenchConfig) -> Iterator[Case]:
    """Random ids by batch and length."""
    ids = np.random.default_rng(config.seed)
    for length in config.lengths:
        for count in config.batches:
            sizes = session.manifest.sizes
            tokens = ids.integers(0, sizes["vocabulary"], (VARIANTS, count, length))
            batches = [Packed.of(list(rows), [[0] * length] * count) for rows in tokens]
            try:
                check(batches[0], session.manifest)
            except UserError as error:
                print(f"left out: {count} x {length} ({error})")
                continue
            for _ in range(WARM):
                session.run(batches[0])
            row = {"case": "full", "text": "no", "batch": count, "length": length}
            yield Case(row, count, count * length, _one_by_one(session, batches), _pipelined(session, batches))


def real(reader: Reader, config: BenchConfig) -> Iterator[Case]:
    """The questions of --data, one at a time and all at once, with and without the way from and to text."""
    session = reader.session
    dataset = squad.read(str(config.data), limit=config.limit, split="dev")
    features = reader.features(dataset)
    pairs = [(example.question, example.context) for example in dataset.examples]
    edges = np.searchsorted(features.example, np.arange(len(pairs) + 1))
    single = [Packed.windows(features, np.arange(first, last)) for first, last in itertools.pairwise(edges)]
    batches = [batch for batch in single if _fits(batch, session)]
    if len(batches) < len(pairs):
        print(f"left out of question without text: {len(pairs) - len(batches)} whose windows fit no single batch")
    if not batches:
        raise UserError(f"{config.data}: no question whose windows fit one batch; export with a larger --max-batch")
    order = random.Random(config.seed).sample(range(len(pairs)), len(pairs))
    windows, tokens = len(features) / len(pairs), float(features.length.sum()) / len(pairs)
    mean = round(float(features.length.mean()))

    turn = itertools.cycle(order)

    def ask() -> object:
        return reader.answer(*pairs[next(turn)])

    def row(case: str, text: str, batch: float) -> dict:
        return {"case": case, "text": text, "batch": round(batch, 2), "length": mean}

    for _ in range(WARM):
        reader.answer(*pairs[order[0]])
    yield Case(row("question", "yes", windows), windows, tokens, ask, _again(ask))
    in_batches = sum(batch.tokens for batch in batches) / len(batches)
    alone = sum(map(len, batches)) / len(batches)
    yield Case(
        row("question", "no", alone), alone, in_batches, _one_by_one(session, batches),
        _pipelined(session, batches),
    )  # fmt: skip
    size = len(features) / len(reader.batches(features.length))
    total = float(features.length.sum())
    yield Case(row("all", "yes", size), len(features), total, None, _again(lambda: reader.answer_many(pairs)))
    yield Case(row("all", "no", size), len(features), total, None, _again(lambda: reader.logits(features)))


def _fits(batch: Packed, session: Session) -> bool:
    try:
        check(batch, session.manifest)
    except UserError:
        return False
    return True


def _one_by_one(session: Session, batches: list[Packed]) -> Callable[[], object]:
    turn = itertools.cycle(batches)
    return lambda: session.run(next(turn))


def _again(work: Callable[[], object]) -> Callable[[], Iterator[object]]:
    def stream() -> Iterator[object]:
        yield None
        while True:
            yield work()

    return stream


def _pipelined(session: Session, batches: list[Packed]) -> Callable[[], Iterator[object]]:
    """Batches back to back, the next one submitted before the last one's logits are fetched."""

    def stream() -> Iterator[object]:
        turn = itertools.cycle(batches)
        before = session.submit(next(turn))
        yield None
        while True:
            ticket = session.submit(next(turn))
            yield session.result(before)
            before = ticket

    return stream


def show(rows: list[dict]) -> None:
    """A table for people."""
    widths = [max(len(name), *(len(_cell(row.get(name))) for row in rows)) for name in SHOWN]
    for cells in ([name for name in SHOWN], *([_cell(row.get(name)) for name in SHOWN] for row in rows)):
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))


def _cell(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value)


def write(path: Path, rows: list[dict], session: Session, engine: str) -> None:
    """The rows as CSV, each with what they were measured on."""
    manifest = session.manifest
    same = {
        "layout": manifest.layout, "precision": manifest.precision if session.runtime == "tensorrt" else "float32",
        "runtime": session.runtime, "device": session.device, "why": session.why, "engine": Path(engine).name,
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
    command.run("serve.bench", BenchConfig, main)
