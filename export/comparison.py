"""A runtime's logits against the checkpoint's: logits, answers, scores, and what of it is beyond a tolerance.

What is compared is what a user would notice (the answers that change, exact match and F1) and what announces it (the
largest and the mean difference of a logit). A difference of scores comes with its paired bootstrap interval: on a few
hundred questions one answer that falls otherwise moves F1 by a third of a point and means nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.batches import Windows
from data.features import FeatureOptions
from export.checkpoint import Checkpoint

RESAMPLES, SEED = 1000, 0
TIE = 1e-4  # of a logit: what the order of a float32 sum may do to it (six layers: 1.5e-5 seen)
TITLES = {"exact": "EM", "f1": "F1"}  # metrics that people call otherwise
Rows = list[np.ndarray]  # one float32 array a window: [its length, ...], or [...] of an output a sequence
Logits = tuple[Rows, ...]  # of each of the head's outputs


@dataclass(frozen=True)
class Tolerance:
    """What is put down to rounding."""

    logit: float  # largest difference of a logit
    answers: float  # percent of answers that change, ties left out
    f1: float  # points of the head's score lost, where the bootstrap interval says that they are no accident
    f1_proven: float | None = None  # points that may be lost by the interval's lower end; None: not asked


@dataclass(frozen=True)
class Questions:
    """Dev examples and their windows as the checkpoint was trained to see them."""

    dataset: Any  # of the head's kind
    features: Windows
    checkpoint: Checkpoint

    @classmethod
    def read(cls, checkpoint: Checkpoint, dev: str, limit: int | None) -> "Questions":
        return cls.of(checkpoint, checkpoint.head.read(dev, limit=limit, split="dev"))

    @classmethod
    def of(cls, checkpoint: Checkpoint, dataset: Any) -> "Questions":
        """Examples that were read already."""
        info, head = checkpoint.info, checkpoint.head
        options = FeatureOptions(info.window, info.stride, info.query)
        return cls(dataset, head.featurise(dataset, checkpoint.tokenizer, options), checkpoint)

    @property
    def threshold(self) -> float | None:
        """Of "no answer"."""
        return self.checkpoint.info.no_answer_threshold if self.dataset.version == "2.0" else None

    def predictions(self, logits: Logits) -> dict[str, Any]:
        """Example's id -> prediction."""
        return self.checkpoint.head.decode(self.features, self.dataset, logits)

    def answers(self, logits: Logits) -> dict[str, Any]:
        """Example's id -> what is said to a user: of a question the answer, "" for none."""
        head = self.checkpoint.head
        return {name: head.said(found, self.threshold) for name, found in self.predictions(logits).items()}

    def scores(self, predictions: dict[str, Any]) -> np.ndarray:
        """[examples, k] what each contributes to the metrics."""
        return self.checkpoint.head.scores(self.dataset, predictions, self.threshold)


@dataclass(frozen=True)
class Figure:
    """A metric of a runtime and of the checkpoint, in percent."""

    engine: float
    checkpoint: float
    interval: tuple[float, float]  # 95 %, of the difference engine - checkpoint


@dataclass(frozen=True)
class Comparison:
    """A runtime against the checkpoint."""

    largest_logit_difference: float
    mean_logit_difference: float
    answers_changed: float  # percent, without those of which `ties` tells
    figures: dict[str, Figure]
    score: str  # the figure that decides
    ties: int = 0  # answers that change between two which the checkpoint itself cannot tell apart

    def report(self) -> dict[str, Any]:
        """For engine.json: {"f1", "f1_checkpoint", "f1_interval", ...} of every figure, and the rest."""
        found: dict[str, Any] = {
            "largest_logit_difference": self.largest_logit_difference,
            "mean_logit_difference": self.mean_logit_difference,
            "answers_changed": self.answers_changed,
            "ties": self.ties,
        }
        for name, figure in self.figures.items():
            found |= {name: figure.engine, f"{name}_checkpoint": figure.checkpoint, f"{name}_interval": figure.interval}
        return found

    def complaints(self, tolerance: Tolerance) -> list[str]:
        """What is beyond the tolerance."""
        found = []
        if not self.largest_logit_difference <= tolerance.logit:  # a NaN is beyond, too
            found.append(f"a logit differs by {self.largest_logit_difference:.3g} (tolerance {tolerance.logit:g})")
        if self.answers_changed > tolerance.answers:
            found.append(f"{self.answers_changed:.2f} % of the answers change (tolerance {tolerance.answers:g} %)")
        figure, name = self.figures[self.score], TITLES.get(self.score, self.score)
        low, high = figure.interval
        if not figure.checkpoint - figure.engine <= tolerance.f1 and not high >= 0:
            found.append(
                f"{name} falls from {figure.checkpoint:.2f} to {figure.engine:.2f}, by more than chance (95 % interval "
                f"of the difference {low:+.2f} to {high:+.2f}, tolerance {tolerance.f1:g})"
            )
        if tolerance.f1_proven is not None and low < -tolerance.f1_proven:
            found.append(
                f"{name} may fall by {-low:.2f} (lower end of the 95 % interval of the difference; "
                f"tolerance {tolerance.f1_proven:g}); more questions (--dev) make the interval narrower"
            )
        return found


def compare(questions: Questions, ours: Logits, reference: Logits) -> Comparison:
    """The outputs of all windows of a runtime, and of the checkpoint."""
    head = questions.checkpoint.head
    differences = [
        np.abs(a.astype(np.float64) - b).reshape(-1) for one, other in zip(ours, reference, strict=True)
        for a, b in zip(one, other, strict=True)
    ]  # fmt: skip
    flat = np.concatenate(differences)
    found, expected = questions.predictions(ours), questions.predictions(reference)
    changed = others(questions, found, expected)
    ties = changed - others(questions, found, questions.predictions(nudged(reference, ours))) if changed else set()
    scores, wanted = questions.scores(found), questions.scores(expected)
    both = np.stack([scores, wanted], axis=1)  # [examples, 2, k]

    def difference(rows: np.ndarray) -> np.ndarray:
        one, other = head.figures(rows[:, 0]), head.figures(rows[:, 1])
        return np.array([one[name] - other[name] for name in one])

    low, high = bootstrap(both, difference)
    engine, checkpoint = head.figures(scores), head.figures(wanted)
    figures = {
        name: Figure(value, checkpoint[name], (float(low[place]), float(high[place])))
        for place, (name, value) in enumerate(engine.items())
    }
    share = 100 * len(changed - ties) / len(expected)
    return Comparison(float(flat.max()), float(flat.mean()), share, figures, head.score, len(ties))


def others(questions: Questions, found: dict[str, Any], expected: dict[str, Any]) -> set[str]:
    """Ids of the examples of which two sets of predictions say something else."""
    head, threshold = questions.checkpoint.head, questions.threshold
    return {
        name for name, one in expected.items()
        if not head.same(head.said(found[name], threshold), head.said(one, threshold))
    }  # fmt: skip


def nudged(reference: Logits, ours: Logits) -> Logits:
    """The checkpoint's logits, each moved towards the runtime's by at most `TIE`.

    Where they say what the runtime says, another order of the checkpoint's own sums would have said it, too: its
    answer is a tie, and a runtime that breaks it otherwise has done nothing wrong. Differences beyond rounding stay.
    """
    return tuple(
        [one + np.clip(other - one, -TIE, TIE) for one, other in zip(mine, theirs, strict=True)]
        for mine, theirs in zip(reference, ours, strict=True)
    )


def mean(rows: np.ndarray) -> np.ndarray:
    return rows.mean(axis=0)


def bootstrap(
    rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray] = mean
) -> tuple[np.ndarray, np.ndarray]:
    """2.5 and 97.5 % quantiles of a statistic [k] of rows [examples, ...], over examples drawn again: [k] each.

    Efron & Tibshirani 1993, chapter 13; 1,000 resamples from a fixed seed. Rows that hold a pair make it paired.
    """
    random = np.random.default_rng(SEED)
    count = len(rows)
    drawn = np.stack([statistic(rows[random.integers(0, count, count)]) for _ in range(RESAMPLES)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return low, high


def worst(ours: Logits, reference: Logits, most: int) -> np.ndarray:
    """The windows with the largest differences, at most so many, in their order."""
    largest = np.array([
        np.max([np.abs(a - b).max() for a, b in zip(pair, wanted, strict=True)])  # a NaN stays one
        for pair, wanted in zip(zip(*ours, strict=True), zip(*reference, strict=True), strict=True)
    ])  # fmt: skip
    order = np.argsort(-np.nan_to_num(largest, nan=np.inf, posinf=np.inf), kind="stable")
    return np.sort(order[:most])


def table(result: Comparison, questions: int, windows: int) -> str:
    """A comparison for a person."""
    rows = [
        f"  {questions} examples, {windows} windows   engine   checkpoint   difference (95 % interval)",
    ]
    for name, figure in result.figures.items():
        (low, high), ours, theirs = figure.interval, figure.engine, figure.checkpoint
        title = TITLES.get(name, name)
        rows.append(f"  {title:10}{ours:8.2f} {theirs:8.2f} {ours - theirs:+8.2f} ({low:+.2f} to {high:+.2f})")
    rows.append(
        f"  logits differ by at most {result.largest_logit_difference:.3g}, on average by "
        f"{result.mean_logit_difference:.3g}; {result.answers_changed:.2f} % of the answers change"
        + (f", besides {result.ties} that the checkpoint leaves to rounding" if result.ties else "")
    )
    return "\n".join(rows)
