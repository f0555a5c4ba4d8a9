"""Logits to answers: the best allowed span over all windows of a question, cut out of the original context."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.features import Features
from data.squad import Dataset
from data.windows import bounds

TOGETHER = 256  # windows that are searched at once: 256 * 20 * 20 pairs take 1 MB
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
    score, first, last, null = _best_spans(features, start_logits, end_logits, best, max_answer_tokens)
    edges = bounds(features.example, len(features.examples))
    answers = {}
    for i, example in enumerate(dataset.examples):
        low, high = int(edges[i]), int(edges[i + 1])
        row = low + int(np.argmax(score[low:high])) if high > low else low  # the first window wins a tie
        if high == low or score[row] <= NOTHING:
            answers[example.id] = Prediction("", 0, 0, NOTHING, -NOTHING, high - low)
            continue
        token = features.context_start[features.context[row]] + features.first[row]
        begin = int(features.context_offsets[token + first[row], 0])
        stop = _with_marks(example.context, int(features.context_offsets[token + last[row], 1]))
        top, nothing = float(score[row]), float(null[low:high].min())
        answers[example.id] = Prediction(example.context[begin:stop], begin, stop, top, nothing - top, high - low)
    return answers


def texts(predictions: Mapping[str, Prediction], threshold: float | None = None) -> dict[str, str]:
    """The answers as text by id; with a threshold (version 2.0), "" where the no-answer score is above it."""
    return {
        name: "" if threshold is not None and p.no_answer_score > threshold else p.text
        for name, p in predictions.items()
    }


def _best_spans(
    features: Features, start_logits: Sequence, end_logits: Sequence, best: int, most_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each window [W]: score, first and last context token of its best span, and the score of [CLS].

    The score is NOTHING if no span is allowed. Many windows at once: one by one, Python takes longer than the model.
    """
    windows = len(features)
    found = np.full(windows, NOTHING), np.zeros(windows, np.int64), np.zeros(windows, np.int64), np.zeros(windows)
    shift, count = features.query_length() + 2, features.count
    for low in range(0, windows, TOGETHER):
        rows = np.arange(low, min(low + TOGETHER, windows))
        length, begin = features.length[rows], shift[rows, None]
        start, end = (_padded(logits[low : low + TOGETHER], length) for logits in (start_logits, end_logits))  # [R, S]
        starts, ends = (np.argsort(-values, axis=1, kind="stable")[:, :best] for values in (start, end))  # [R, best]
        inside = [(places >= begin) & (places < begin + count[rows, None]) for places in (starts, ends)]
        inside[0] &= np.take_along_axis(_shown_best(features, rows, start.shape[1]), starts, axis=1)
        tokens = ends[:, None, :] - starts[:, :, None] + 1  # [R, starts, ends]
        score = np.take_along_axis(start, starts, 1)[:, :, None] + np.take_along_axis(end, ends, 1)[:, None, :]
        allowed = inside[0][:, :, None] & inside[1][:, None, :] & (tokens >= 1) & (tokens <= most_tokens)
        score = np.where(allowed, score, NOTHING).reshape(len(rows), -1)
        place = np.argmax(score, axis=1)
        every = np.arange(len(rows))
        first, last = starts[every, place // ends.shape[1]], ends[every, place % ends.shape[1]]
        values = score[every, place], first - begin[:, 0], last - begin[:, 0], start[:, 0] + end[:, 0]
        for column, value in zip(found, values, strict=True):
            column[rows] = value
    return found


def _padded(logits: Sequence[np.ndarray], length: np.ndarray) -> np.ndarray:
    """float64 [R, longest] (sums of float32 tie too easily), -inf at padding; a diverged model's NaN never wins and
    never spreads."""
    wide = np.concatenate([np.asarray(one[:n], np.float64) for one, n in zip(logits, length, strict=True)])
    if not np.isfinite(wide).all():
        wide = np.nan_to_num(wide, nan=-1e8, posinf=1e8, neginf=-1e8)
    padded = np.full((len(length), length.max()), -np.inf)
    padded[np.arange(padded.shape[1]) < length[:, None]] = wide
    return padded


def _shown_best(features: Features, rows: np.ndarray, width: int) -> np.ndarray:
    """bool [R, width]: whether this window shows the token with its maximum context; of the only window, all."""
    shown = np.ones((len(rows), width), bool)
    shift, example = features.query_length() + 2, features.example
    beside = (np.r_[-1, example[:-1]] == example) | (np.r_[example[1:], -1] == example)
    for place, row in enumerate(rows):
        if beside[row]:
            shown[place, shift[row] : shift[row] + features.count[row]] = features.max_context(row)
    return shown


def _with_marks(context: str, end: int) -> int:
    """Moves an end past the combining marks of the last letter, which the tokeniser's offsets leave out."""
    while end < len(context) and unicodedata.combining(context[end]):
        end += 1
    return end
