"""Exact match and F1 as the official SQuAD scripts compute them, and the best no-answer threshold.

Versions 1.1 and 2.0 differ where it is easy to miss: 1.1 counts a missing prediction as wrong, 2.0 leaves it out; 1.1
gives F1 0 when nothing is left of both sides after normalising, 2.0 gives 1. All scores are percentages.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from configs.errors import UserError
from data.answers import Prediction, texts
from data.squad import Dataset, Example

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@lru_cache(100_000)  # answers to compare with come again with every evaluation
def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces, in this order ("A.N." becomes "an" and goes)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def evaluate(dataset: Dataset, texts: Mapping[str, str]) -> dict[str, float]:
    """{"exact", "f1", "total"}; for version 2.0 also HasAns_* and NoAns_*, where questions of that kind exist."""
    scores = score_each(dataset, texts)
    if dataset.version == "1.1":
        return _mean(scores, len(dataset.examples))
    result = _mean(scores, len(scores))
    for prefix, has_answer in (("HasAns", True), ("NoAns", False)):
        of_kind = {e.id for e in dataset.examples if bool(e.answers) == has_answer}
        if of_kind:
            # The official script stops on a missing prediction here; it is left out, as in the totals.
            part = {name: pair for name, pair in scores.items() if name in of_kind}
            result |= {f"{prefix}_{key}": value for key, value in _mean(part, len(part)).items()}
    return result


def best_threshold(
    dataset: Dataset, texts: Mapping[str, str], no_answer_scores: Mapping[str, float]
) -> dict[str, float]:
    """The no-answer threshold with the best F1, and that F1; "exact" is the exact match at the same threshold.

    `texts` are the answers before any threshold. {"threshold", "exact", "f1"}, and with exact match maximised alone
    {"best_exact", "best_exact_threshold"}. As in the official script, a score equal to the threshold still answers.
    """
    scores = score_each(dataset, texts)
    if missing := [name for name in scores if name not in no_answer_scores]:
        raise UserError(
            f"no no-answer score for {len(missing)} of {len(scores)} questions, the first is {missing[0]!r}; give all"
        )
    f1, threshold = _search(dataset, texts, no_answer_scores, {name: pair[1] for name, pair in scores.items()})
    exact, exact_threshold = _search(dataset, texts, no_answer_scores, {name: pair[0] for name, pair in scores.items()})
    chosen = {name: "" if no_answer_scores[name] > threshold else texts[name] for name in scores}
    return {
        "threshold": threshold,
        "exact": evaluate(dataset, chosen)["exact"],
        "f1": f1,
        "best_exact": exact,
        "best_exact_threshold": exact_threshold,
    }


def score_each(dataset: Dataset, texts: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """(exact, F1), each 0 to 1, of every question that has a prediction."""
    one = _score_1 if dataset.version == "1.1" else _score_2
    return {e.id: one(e, texts[e.id]) for e in dataset.examples if e.id in texts}


def _score_1(example: Example, text: str) -> tuple[float, float]:
    golds = [a.text for a in example.answers]
    if not golds:
        raise UserError(
            f"question {example.id!r} has no answer to compare with; version 1.1 needs one for every question"
        )
    said = normalise(text)
    exact = max(float(normalise(gold) == said) for gold in golds)
    return exact, max(_overlap(normalise(gold).split(), said.split()) for gold in golds)


def _score_2(example: Example, text: str) -> tuple[float, float]:
    golds = [gold for a in example.answers if (gold := normalise(a.text))] or [""]
    said = normalise(text)
    exact = max(float(gold == said) for gold in golds)
    # Where a side has no tokens there is no overlap to speak of: right only if both have none.
    return exact, max(_overlap(g.split(), said.split()) if g and said else float(g == said) for g in golds)


def _overlap(gold: list[str], said: list[str]) -> float:
    """F1 of two bags of words; 0 if they share none."""
    if set(gold).isdisjoint(said):
        return 0.0
    same = sum((Counter(gold) & Counter(said)).values())
    precision, recall = same / len(said), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def _mean(scores: Mapping[str, tuple[float, float]], total: int) -> dict[str, float]:
    if not total:
        return {"exact": 0.0, "f1": 0.0, "total": 0}
    exact, f1 = (sum(pair[i] for pair in scores.values()) for i in (0, 1))
    return {"exact": 100.0 * exact / total, "f1": 100.0 * f1 / total, "total": total}


def _search(
    dataset: Dataset, texts: Mapping[str, str], no_answer_scores: Mapping[str, float], scores: Mapping[str, float]
) -> tuple[float, float]:
    """(best score in percent, threshold): from "never answer" on, answers are let through one by one, the surest first.

    Where never answering is best the official script says 0.0, which is right for probabilities alone: ours is below
    every score then.
    """
    has_answer = {e.id: bool(e.answers) for e in dataset.examples}
    current = best = float(sum(not has for has in has_answer.values()))
    threshold = min([0.0] + [score - 1.0 for score in no_answer_scores.values() if score <= 0])
    for name in sorted(no_answer_scores, key=lambda name: no_answer_scores[name]):
        if name not in scores:
            continue
        current += scores[name] if has_answer[name] else (-1 if texts[name] else 0)
        if current > best:
            best, threshold = current, no_answer_scores[name]
    return 100.0 * best / len(scores) if scores else 0.0, threshold


def score(dataset: Dataset, predictions: Mapping[str, Prediction], threshold: float | None = None) -> dict[str, float]:
    """EM and F1 in percent; version 2.0 at `threshold`, or at the best one on these questions, returned with them."""
    if dataset.version == "1.1":
        return evaluate(dataset, texts(predictions))
    found = {}
    if threshold is None:
        scores = {name: prediction.no_answer_score for name, prediction in predictions.items()}
        threshold = best_threshold(dataset, texts(predictions), scores)["threshold"]
        found = {"threshold": threshold}
    return evaluate(dataset, texts(predictions, threshold)) | found
