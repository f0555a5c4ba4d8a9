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
    windows, example = len(features), features.example
    found = np.full(windows, NOTHING), np.zeros(windows, np.int64), np.zeros(windows, np.int64), np.zeros(windows)
    begin = (features.query_length() + 2)[:, None]  # [W, 1]
    end = begin + features.count[:, None]
    beside = np.zeros(windows, bool)  # other windows of its example
    beside[1:] = example[1:] == example[:-1]
    beside[:-1] |= beside[1:]
    for low in range(0, windows, TOGETHER):
        part = slice(low, low + TOGETHER)
        length = features.length[part]
        start_logit, end_logit = (_padded(logits[part], length) for logits in (start_logits, end_logits))  # [R, S]
        every = np.arange(len(length))[:, None]
        starts, ends = ((-values).argsort(axis=1, kind="stable")[:, :best] for values in (start_logit, end_logit))
        may_start = (starts >= begin[part]) & (starts < end[part])  # [R, best]
        for place in np.flatnonzero(beside[part]):
            mine = np.flatnonzero(may_start[place])
            shown = features.max_context(low + int(place))
            may_start[place, mine] = shown[starts[place, mine] - begin[low + place]]
        may_end = (ends >= begin[part]) & (ends < end[part])
        tokens = ends[:, None, :] - starts[:, :, None] + 1  # [R, starts, ends]
        score = start_logit[every, starts][:, :, None] + end_logit[every, ends][:, None, :]
        allowed = may_start[:, :, None] & may_end[:, None, :] & (tokens >= 1) & (tokens <= most_tokens)
        score = np.where(allowed, score, NOTHING).reshape(len(length), -1)
        place = score.argmax(axis=1)[:, None]
        best_of = score[every, place], starts[every, place // ends.shape[1]], ends[every, place % ends.shape[1]]
        found[0][part] = best_of[0][:, 0]
        found[1][part], found[2][part] = ((token - begin[part])[:, 0] for token in best_of[1:])
        found[3][part] = start_logit[:, 0] + end_logit[:, 0]
    return found


def _padded(logits: Sequence[np.ndarray], length: np.ndarray) -> np.ndarray:
    """float64 [R, longest] (sums of float32 tie too easily), -inf at padding; a diverged model's NaN never wins and
    never spreads."""
    flat = np.concatenate([one[:n] for one, n in zip(logits, length.tolist(), strict=True)], dtype=np.float64)
    if not np.isfinite(flat).all():
        flat = np.nan_to_num(flat, nan=-1e8, posinf=1e8, neginf=-1e8)
    if len(length) == 1:
        return flat[None]
    padded = np.full((len(length), int(length.max())), -np.inf)
    padded[np.arange(padded.shape[1]) < length[:, None]] = flat
    return padded


def _with_marks(context: str, end: int) -> int:
    """Moves an end past the combining marks of the last letter, which the tokeniser's offsets leave out."""
    while end < len(context) and unicodedata.combining(context[end]):
        end += 1
    return end
