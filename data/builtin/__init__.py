"""The built-in question sets: enough to train and score on a machine that can fetch no data.

load("train")               questions about an invented world, made by a seeded generator
load("dev-facts")           the same patterns, facts and names that train never contains
load("dev-patterns")        new facts in sentences and questions that train never contains
load("dev-handwritten")     written by hand about ordinary subjects
"""

from data.builtin.generate import SPLITS, squad
from data.builtin.handwritten import load_handwritten

DEFAULT_COUNTS = {"train": 4000, "dev-facts": 300, "dev-patterns": 300}
PARTS = (*DEFAULT_COUNTS, "dev-handwritten")


def load(part: str, *, count: int | None = None, seed: int = 0, version: str = "1.1") -> dict:
    """One part as SQuAD JSON; `count` questions (default: 4,000 for train, 300 for dev, all that are handwritten)."""
    if part not in PARTS:
        raise ValueError(f"no built-in part '{part}'; there are {', '.join(PARTS)}")
    if version not in ("1.1", "2.0"):
        raise ValueError(f"SQuAD version '{version}' is not known; use 1.1 or 2.0")
    if count is not None and count < 1:
        raise ValueError(f"count is {count}; ask for at least 1 question")
    if part in SPLITS:
        return squad(part, count or DEFAULT_COUNTS[part], seed, version)
    return load_handwritten(count=count, seed=seed, version=version)
