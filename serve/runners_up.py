"""The answers that came next: further spans of the passage, none of which overlaps a better one.

The batcher keeps the best span only, so these cost a second inference of the passage. That is well for a person who
looks at one answer, and why nobody gets them who does not ask.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.features import Features
from data.squad import Dataset, clean
from serve.packed import Packed
from serve.reader import Reader, as_example

BEST = 20  # starts and ends of a window that are looked at, as in data/answers.py


@dataclass(frozen=True, slots=True)
class RunnerUp:
    text: str
    start: int  # characters of the passage
    end: int  # exclusive
    score: float  # start logit + end logit


def cut(reader: Reader, question: str, context: str) -> tuple[Features, list[Packed]]:
    """The windows of a question, and the same in batches that the engine takes. Raises: UserError."""
    example = as_example(0, question, context)
    features = reader.features(Dataset([example], "2.0", source="a request"))
    order = reader.batches(features.length)
    return features, [Packed.windows(features, rows) for rows in order]


def find(
    reader: Reader, features: Features, batches: Sequence[tuple[np.ndarray, np.ndarray]], context: str, most: int
) -> list[RunnerUp]:
    """At most `most` spans after the best one, from high to low; `batches` are the logits of those of `cut`."""
    limit = reader.manifest.max_answer_tokens
    found: list[tuple[float, int, int]] = []  # score, first and last token of the context
    for rows, logits in zip(reader.batches(features.length), batches, strict=True):
        edges = np.cumsum(features.length[rows])[:-1]
        for row, start, end in zip(rows, *(np.split(part, edges) for part in logits), strict=True):
            found += _spans(features, int(row), start, end, limit)
    context, kept = clean(context), list[RunnerUp]()
    for score, first, last in sorted(found, reverse=True):
        begin, stop = int(features.context_offsets[first, 0]), int(features.context_offsets[last, 1])
        while stop < len(context) and unicodedata.combining(context[stop]):
            stop += 1
        if all(stop <= other.start or begin >= other.end for other in kept):
            kept.append(RunnerUp(context[begin:stop], begin, stop, score))
        if len(kept) > most:
            break
    return kept[1:]


def _spans(
    features: Features, row: int, start: np.ndarray, end: np.ndarray, limit: int
) -> list[tuple[float, int, int]]:
    """Every allowed span of a window's best starts and ends."""
    shift, count = int(features.query_length(row)) + 2, int(features.count[row])
    origin = int(features.context_start[features.context[row]] + features.first[row])
    visible = features.max_context(row)
    start, end = (np.nan_to_num(part.astype(np.float64), nan=-1e8, posinf=1e8, neginf=-1e8) for part in (start, end))
    starts = [int(place) - shift for place in np.argsort(-start, kind="stable")[:BEST]]
    ends = [int(place) - shift for place in np.argsort(-end, kind="stable")[:BEST]]
    return [
        (float(start[first + shift] + end[last + shift]), origin + first, origin + last)
        for first in starts if 0 <= first < count and visible[first]
        for last in ends if first <= last < min(count, first + limit)
    ]  # fmt: skip
