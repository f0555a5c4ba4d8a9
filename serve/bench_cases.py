"""What `serve.bench` measures, case by case: the work, how it is repeated, and the figures that come of it."""

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from configs.errors import UserError
from data import squad
from serve.packed import Packed, check
from serve.reader import Reader
from serve.session import Session

VARIANTS = 4  # different ids of one shape
PERCENTS = (50, 90, 95, 99)


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
        for percent in PERCENTS:
            if self.times:
                figures[f"p{percent}_ms"] = round(1000 * float(np.percentile(self.times, percent)), 3)
        figures |= {"sequences_per_s": round(rate * self.sequences, 1), "tokens_per_s": round(rate * self.tokens)}
        return self.row | figures


def full(session: Session, config: Any) -> Iterator[Case]:
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
            session.warm(batches[:1])
            session.run(batches[0])
            row = {"case": "full", "text": "no", "batch": count, "length": length}
            yield Case(row, count, count * length, _one_by_one(session, batches), _pipelined(session, batches))


def real(reader: Reader, config: Any) -> Iterator[Case]:
    """The questions of --data: a window, a question, or all at once; with and without the way from and to text."""
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
    turns = random.Random(config.seed)
    order = turns.sample(range(len(pairs)), len(pairs))
    windows, tokens = len(features) / len(pairs), float(features.length.sum()) / len(pairs)
    mean, in_all = round(float(features.length.mean())), reader.batches(features.length)
    print(
        f"{config.data}: {len(pairs):,} questions in {len(features):,} windows, {windows:.3f} each, of {mean} tokens "
        f"on average and {features.length.max()} at most; all of them are {len(in_all)} batches of up to "
        f"{max(int(features.length[rows].sum()) for rows in in_all):,} tokens",
        flush=True,
    )

    turn = itertools.cycle(order)

    def ask() -> object:
        return reader.answer(*pairs[next(turn)])

    def row(case: str, text: str, batch: float) -> dict:
        return {"case": case, "text": text, "batch": round(batch, 2), "length": mean}

    places = turns.sample(range(len(features)), len(features))
    alone = [Packed.windows(features, np.array([place])) for place in places]
    session.warm([*alone, *batches, *(Packed.windows(features, rows) for rows in in_all)])
    yield Case(
        row("window", "no", 1), 1, float(features.length.mean()), _one_by_one(session, alone),
        _pipelined(session, alone),
    )  # fmt: skip
    reader.answer(*pairs[order[0]])
    yield Case(row("question", "yes", windows), windows, tokens, ask, _again(ask))
    in_batches = sum(batch.tokens for batch in batches) / len(batches)
    each = sum(map(len, batches)) / len(batches)
    yield Case(
        row("question", "no", each), each, in_batches, _one_by_one(session, batches), _pipelined(session, batches)
    )
    size, total = len(features) / len(in_all), float(features.length.sum())
    yield Case(row("all", "yes", size), len(features), total, None, _again(lambda: reader.answer_many(pairs)))
    yield Case(row("all", "no", size), len(features), total, None, _offline(session, features, in_all))


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
    """Batches back to back; as many are fetched between two yields as are submitted."""
    return lambda: session.stream(itertools.cycle(batches))


def _offline(session: Session, features: Any, groups: list[np.ndarray]) -> Callable[[], Iterator[object]]:
    """All windows over and over, packed on the way; a piece is one pass. As many batches are fetched between two yields
    as are submitted."""

    def stream() -> Iterator[object]:
        fetched = itertools.cycle(groups)
        outputs = session.stream(Packed.windows(features, rows) for rows in itertools.cycle(groups))
        session.split(next(outputs), features.length[next(fetched)])
        yield None
        while True:
            for _ in groups:
                session.split(next(outputs), features.length[next(fetched)])
            yield None

    return stream
