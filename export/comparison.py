"""A runtime's logits against the checkpoint's: logits, answers, scores, and what of it is beyond a tolerance.

What is compared is what a user would notice (the answers that change, exact match and F1) and what announces it (the
largest and the mean difference of a logit). A difference of scores comes with its paired bootstrap interval: on a few
hundred questions one answer that falls otherwise moves F1 by a third of a point and means nothing.
"""

from dataclasses import dataclass

import numpy as np

from data import metric, squad
from data.answers import best_answers, texts
from data.features import FeatureOptions, Features, featurise
from export.checkpoint import Checkpoint

RESAMPLES, SEED = 1000, 0
Rows = list[np.ndarray]  # one float32 array a window, as long as the window
Logits = tuple[Rows, Rows]  # start, end


@dataclass(frozen=True)
class Tolerance:
    """What is put down to rounding."""

    logit: float  # largest difference of a logit
    answers: float  # percent of answers that change
    f1: float  # points lost, where the bootstrap interval says that they are no accident
    f1_proven: float | None = None  # points that may be lost by the interval's lower end; None: not asked


@dataclass(frozen=True)
class Questions:
    """Dev questions and their windows as the checkpoint was trained to see them."""

    dataset: squad.Dataset
    features: Features
    checkpoint: Checkpoint

    @classmethod
    def read(cls, checkpoint: Checkpoint, dev: str, limit: int | None) -> "Questions":
        return cls.of(checkpoint, squad.read(dev, limit=limit, split="dev"))

    @classmethod
    def of(cls, checkpoint: Checkpoint, dataset: squad.Dataset) -> "Questions":
        """Questions that were read already."""
        info = checkpoint.info
        options = FeatureOptions(info.window, info.stride, info.query)
        return cls(dataset, featurise(dataset, checkpoint.tokenizer, options), checkpoint)

    def answers(self, logits: Logits) -> dict[str, str]:
        """Question id -> answer, "" for none."""
        info = self.checkpoint.info
        found = best_answers(self.features, self.dataset, *logits, max_answer_tokens=info.max_answer_tokens)
        return texts(found, info.no_answer_threshold if self.dataset.version == "2.0" else None)

    def scores(self, answers: dict[str, str]) -> np.ndarray:
        """[questions, 2] exact match and F1 of each, 0 to 100."""
        each = metric.score_each(self.dataset, answers)
        return 100 * np.array([each[example.id] for example in self.dataset.examples], np.float64)


@dataclass(frozen=True)
class Comparison:
    """A runtime against the checkpoint."""

    largest_logit_difference: float
    mean_logit_difference: float
    answers_changed: float  # percent
    exact: float
    exact_checkpoint: float
    exact_interval: tuple[float, float]  # 95 %, of the difference runtime - checkpoint
    f1: float
    f1_checkpoint: float
    f1_interval: tuple[float, float]

    def complaints(self, tolerance: Tolerance) -> list[str]:
        """What is beyond the tolerance."""
        found = []
        if not self.largest_logit_difference <= tolerance.logit:  # a NaN is beyond, too
            found.append(f"a logit differs by {self.largest_logit_difference:.3g} (tolerance {tolerance.logit:g})")
        if self.answers_changed > tolerance.answers:
            found.append(f"{self.answers_changed:.2f} % of the answers change (tolerance {tolerance.answers:g} %)")
        if self.f1_checkpoint - self.f1 > tolerance.f1 and self.f1_interval[1] < 0:
            found.append(
                f"F1 falls from {self.f1_checkpoint:.2f} to {self.f1:.2f}, by more than chance (95 % interval of the "
                f"difference {self.f1_interval[0]:+.2f} to {self.f1_interval[1]:+.2f}, tolerance {tolerance.f1:g})"
            )
        if tolerance.f1_proven is not None and self.f1_interval[0] < -tolerance.f1_proven:
            found.append(
                f"F1 may fall by {-self.f1_interval[0]:.2f} (lower end of the 95 % interval of the difference; "
                f"tolerance {tolerance.f1_proven:g}); more questions (--dev) make the interval narrower"
            )
        return found


def compare(questions: Questions, ours: Logits, reference: Logits) -> Comparison:
    """Logits of all windows, (starts, ends) of a runtime and of the checkpoint."""
    differences = [
        np.abs(a.astype(np.float64) - b) for one, other in zip(ours, reference, strict=True)
        for a, b in zip(one, other, strict=True)
    ]  # fmt: skip
    flat = np.concatenate(differences)
    answers, expected = questions.answers(ours), questions.answers(reference)
    scores, wanted = questions.scores(answers), questions.scores(expected)
    low, high = bootstrap(scores - wanted)
    changed = sum(answers[name] != text for name, text in expected.items())
    exact, f1 = scores.mean(axis=0)
    exact_wanted, f1_wanted = wanted.mean(axis=0)
    return Comparison(
        float(flat.max()), float(flat.mean()), 100 * changed / len(expected),
        float(exact), float(exact_wanted), (float(low[0]), float(high[0])),
        float(f1), float(f1_wanted), (float(low[1]), float(high[1])),
    )  # fmt: skip


def bootstrap(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2.5 and 97.5 % quantiles of the mean of [questions, k] paired differences, over questions drawn again: [k] each.

    Efron & Tibshirani 1993, chapter 13; 1,000 resamples from a fixed seed.
    """
    random = np.random.default_rng(SEED)
    count = len(differences)
    means = np.stack([differences[random.integers(0, count, count)].mean(axis=0) for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
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
        f"  {questions} questions, {windows} windows   engine   checkpoint   difference (95 % interval)",
    ]
    for title, name in (("EM", "exact"), ("F1", "f1")):
        ours, theirs = getattr(result, name), getattr(result, f"{name}_checkpoint")
        low, high = getattr(result, f"{name}_interval")
        rows.append(f"  {title:10}{ours:8.2f} {theirs:8.2f} {ours - theirs:+8.2f} ({low:+.2f} to {high:+.2f})")
    rows.append(
        f"  logits differ by at most {result.largest_logit_difference:.3g}, on average by "
        f"{result.mean_logit_difference:.3g}; {result.answers_changed:.2f} % of the answers change"
    )
    return "\n".join(rows)
