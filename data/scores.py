"""The metrics of GLUE and of CoNLL, from columns of true and predicted values; all in percent.

Own code rather than scikit-learn, scipy and seqeval: the bootstrap of `export/comparison.py` asks a thousand times, the
formulas are a line each, and seqeval's last release is of 2020 and a source archive. `tests/golden/scores.json` holds
what those three say, and the tests compare.
"""

from collections.abc import Sequence

import numpy as np

Entity = tuple[str, int, int]  # kind, first word, the one after the last


def accuracy(true: np.ndarray, said: np.ndarray) -> float:
    return 100.0 * float(np.mean(true == said)) if len(true) else 0.0


def f1_of(true: np.ndarray, said: np.ndarray, kind: int = 1) -> float:
    """F1 of one class (GLUE's for MRPC and QQP: class 1); 0 where nothing is right."""
    right = np.sum((true == kind) & (said == kind))
    return 200.0 * float(right) / max(int(np.sum(true == kind) + np.sum(said == kind)), 1)


def macro_f1(true: np.ndarray, said: np.ndarray) -> float:
    """The mean of every class's F1, over the classes that occur in either column."""
    return float(np.mean([f1_of(true, said, kind) for kind in np.unique(np.concatenate([true, said]))] or [0.0]))


def matthews(true: np.ndarray, said: np.ndarray) -> float:
    """Matthews' correlation of any number of classes (Gorodkin 2004); 0 where a column has one class only."""
    kinds = int(max(true.max(initial=0), said.max(initial=0))) + 1
    table = np.zeros((kinds, kinds))
    np.add.at(table, (true.astype(int), said.astype(int)), 1.0)
    total, t, p = table.sum(), table.sum(axis=1), table.sum(axis=0)
    spread = (total**2 - t @ t) * (total**2 - p @ p)
    return 100.0 * float((np.trace(table) * total - t @ p) / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(true: np.ndarray, said: np.ndarray) -> float:
    """Pearson's correlation; 0 where a column is constant."""
    x, y = true - true.mean(), said - said.mean()
    spread = float(x @ x) * float(y @ y)
    return 100.0 * float(x @ y) / spread**0.5 if spread > 0 else 0.0


def spearman(true: np.ndarray, said: np.ndarray) -> float:
    """Pearson's correlation of the ranks, equal values sharing their mean rank."""
    return pearson(_ranks(true), _ranks(said))


def correlations(true: np.ndarray, said: np.ndarray) -> dict[str, float]:
    """Both, the one that picks the best epoch first."""
    return {"spearman": spearman(true, said), "pearson": pearson(true, said)}


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence's tags, in IOB2, IOB1 or IOBES, as conlleval and seqeval read them.

    An entity begins at B and S, and wherever a tag's kind is another one than that before it: a stray "I-PER" begins
    one. It ends at E and S, before B and S, and where the kind changes. A tag without a hyphen and other than "O"
    ("PER") is its own kind.
    """
    found: list[Entity] = []
    begun, kind_now = 0, None
    for place, tag in enumerate([*tags, "O"]):
        mark, kind = _split(tag)
        if kind_now is not None and (kind != kind_now or mark in "BS"):
            found.append((kind_now, begun, place))
            kind_now = None
        if kind is not None and kind_now is None:
            begun, kind_now = place, kind
        if kind is not None and mark in "ES":
            found.append((kind, begun, place + 1))
            kind_now = None
    return found


def _split(tag: str) -> tuple[str, str | None]:
    """ "B-PER" -> ("B", "PER"); "O" -> ("O", None); "PER" -> ("I", "PER")."""
    if tag == "O" or not tag:
        return "O", None
    mark, hyphen, kind = tag.partition("-")
    if not hyphen or mark not in ("B", "I", "E", "S", "L", "U", "M"):
        return "I", tag
    return {"L": "E", "U": "S", "M": "I"}.get(mark, mark), kind


def entity_f1(right: float, said: float, true: float) -> dict[str, float]:
    """Counts of entities -> precision, recall and F1 over all of them (micro-averaged, as conlleval)."""
    precision, recall = (100.0 * right / count if count else 0.0 for count in (said, true))
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
