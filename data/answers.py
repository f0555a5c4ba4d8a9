"""Logits to answers: the best allowed span over all windows of a question, cut out of the original context."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.features import Features
from data.squad import Dataset
from data.windows import bounds

NOTHING = -1e9  # the score where no span is allowed at all: finite, so that it survives JSON


@dataclass(frozen=True, slots=True)
class Prediction:
    text: str  # best span, whatever the no-answer score says; "" only if no span is allowed
    start: int  # characters of the context
    end: int  # exclusive
    score: float  # start logit + end logit of that span
    no_answer_score: float  # least [CLS] score over the windows minus `score`: above the threshold means "no answer"
    windows: int


def best_answers(
    features: Features,
    dataset: Dataset,
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    *,
    best: int = 20,
    max_answer_tokens: int = 30,
) -> dict[str, Prediction]:
    """One prediction a question; start_logits[row], end_logits[row] are float [length of that window], padding ignored.

    Of the `best` starts and `best` ends of a window those pairs count whose tokens are both in the context, whose start
    has its maximum context in this window, and which have 1 to `max_answer_tokens` tokens.
    """
    if not len(start_logits) == len(end_logits) == len(features):
        raise ValueError(
            f"{len(start_logits)} start and {len(end_logits)} end logits for {len(features)} windows; give one each"
        )
    if features.examples != [e.id for e in dataset.examples]:
        raise ValueError("the features belong to another data set; make them from this one")
    edges = bounds(features.example, len(features.examples))
    query_lengths = features.query_length()
    answers = {}
    for i, example in enumerate(dataset.examples):
        top, span, null = NOTHING, None, np.inf
        for row in range(edges[i], edges[i + 1]):
            length = features.length[row]
            start = _finite(start_logits[row][:length])
            end = _finite(end_logits[row][:length])
            null = min(null, start[0] + end[0])
            score, first, last = _best_span(
                start, end, query_lengths[row] + 2, features.max_context(row), best, max_answer_tokens
            )
            if score > top:  # the first window wins a tie
                token = features.context_start[features.context[row]] + features.first[row]
                top, span = score, features.context_offsets[[token + first, token + last]]
        if span is None:
            answers[example.id] = Prediction("", 0, 0, NOTHING, -NOTHING, int(edges[i + 1] - edges[i]))
            continue
        begin, stop = int(span[0, 0]), _with_marks(example.context, int(span[1, 1]))
        windows = int(edges[i + 1] - edges[i])
        answers[example.id] = Prediction(
            example.context[begin:stop], begin, stop, float(top), float(null - top), windows
        )
    return answers


def texts(predictions: Mapping[str, Prediction], threshold: float | None = None) -> dict[str, str]:
    """The answers as text by id; with a threshold (version 2.0), "" where the no-answer score is above it."""
    return {
        name: "" if threshold is not None and p.no_answer_score > threshold else p.text
        for name, p in predictions.items()
    }


def _best_span(
    start: np.ndarray, end: np.ndarray, shift: int, max_context: np.ndarray, best: int, most_tokens: int
) -> tuple[float, int, int]:
    """(score, first, last): the best span in context tokens of the window, whose first one stands at position `shift`.

    The score is NOTHING if no span is allowed.
    """
    starts = np.argsort(-start, kind="stable")[:best] - shift  # [best]
    ends = np.argsort(-end, kind="stable")[:best] - shift
    starts = starts[(starts >= 0) & (starts < len(max_context))]
    starts = starts[max_context[starts]]
    ends = ends[(ends >= 0) & (ends < len(max_context))]
    tokens = ends[None, :] - starts[:, None] + 1  # [starts, ends]
    score = start[starts + shift][:, None] + end[ends + shift][None, :]
    score = np.where((tokens >= 1) & (tokens <= most_tokens), score, NOTHING)
    if not score.size:
        return NOTHING, 0, 0
    i, j = np.unravel_index(np.argmax(score), score.shape)
    return float(score[i, j]), int(starts[i]), int(ends[j])


def _finite(logits: np.ndarray) -> np.ndarray:
    """float64 (sums of float32 tie too easily); a diverged model's NaN never wins and never spreads."""
    wide = np.asarray(logits, np.float64)
    return wide if np.isfinite(wide).all() else np.nan_to_num(wide, nan=-1e8, posinf=1e8, neginf=-1e8)


def _with_marks(context: str, end: int) -> int:
    """Moves an end past the combining marks of the last letter, which the tokeniser's offsets leave out."""
    while end < len(context) and unicodedata.combining(context[end]):
        end += 1
    return end
