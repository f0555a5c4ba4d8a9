"""The built-in question sets: enough to train and score on a machine that can fetch no data.

load("train")               questions about an invented world, made by a seeded generator
load("dev-facts")           the same patterns, facts and names that train never contains
load("dev-patterns")        new facts in sentences and questions that train never contains
load("dev-handwritten")     written by hand about ordinary subjects
load("dev")                 these three together
"""

from data.builtin.generate import SPLITS, squad
from data.builtin.handwritten import load_handwritten

DEFAULT_COUNTS = {"train": 4000, "dev-facts": 300, "dev-patterns": 300}
PARTS = (*DEFAULT_COUNTS, "dev-handwritten", "dev")
DEV = tuple(part for part in PARTS if part.startswith("dev-"))


def load(part: str, *, count: int | None = None, seed: int = 0, version: str = "1.1") -> dict:
    """One part as SQuAD JSON; `count` questions (default: 4,000 for train, 300 for dev, all that are handwritten).

    Of "dev", `count` questions of each of its three.
    """
    if part not in PARTS:
        raise ValueError(f"no built-in part '{part}'; there are {', '.join(PARTS)}")
    if version not in ("1.1", "2.0"):
        raise ValueError(f"SQuAD version '{version}' is not known; use 1.1 or 2.0")
    if count is not None and count < 1:
        raise ValueError(f"count is {count}; ask for at least 1 question")
    if part == "dev":
        parts = [load(one, count=count, seed=seed, version=version) for one in DEV]
        return {"version": version, "data": [article for one in parts for article in one["data"]]}
    if part in SPLITS:
        return squad(part, count or DEFAULT_COUNTS[part], seed, version)
    return load_handwritten(count=count, seed=seed, version=version)
