"""The spans of one question from the best one down, none of which overlaps a better one."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.features import Features
from data.squad import Dataset

BEST = 20  # starts and ends of a window that are looked at, as in data/answers.py


@dataclass(frozen=True, slots=True)
class Span:
    text: str
    start: int  # characters of the passage
    end: int  # exclusive
    score: float  # start logit + end logit


def ranked(
    features: Features, dataset: Dataset, start_logits: Sequence[np.ndarray], end_logits: Sequence[np.ndarray],
    most: int, max_answer_tokens: int,
) -> list[Span]:  # fmt: skip
    """At most `most` spans of a data set's only question, from high to low.

    start_logits, end_logits: float [length] of every window of `features`.
    """
    (example,) = dataset.examples
    found: list[tuple[float, int, int]] = []  # score, first and last token of the context
    for row, (start, end) in enumerate(zip(start_logits, end_logits, strict=True)):
        found += _spans(features, row, start, end, max_answer_tokens)
    context, kept = example.context, list[Span]()
    for score, first, last in sorted(found, reverse=True):
        begin, stop = int(features.context_offsets[first, 0]), int(features.context_offsets[last, 1])
        while stop < len(context) and unicodedata.combining(context[stop]):
            stop += 1
        if all(stop <= other.start or begin >= other.end for other in kept):
            kept.append(Span(context[begin:stop], begin, stop, score))
        if len(kept) == most:
            break
    return kept


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
