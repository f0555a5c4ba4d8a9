"""Windows in batches of like length, so that little padding is computed.

The plan of an epoch is a numpy function of seed and epoch: going on after a stop is an index into it, not a saved
tf.data state. `data/feed.py` takes the batches to the device.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from configs.errors import UserError
from data.features import Features
from data.sequences import Sequences

Windows = Features | Sequences

Extend = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
Plan = list[tuple[int, np.ndarray]]  # (pad_to, rows [batch_size] with -1 where the last batch is not full)


def edges(lengths: np.ndarray, most: int = 4, multiple: int = 32, window: int = 384) -> tuple[int, ...]:
    """At most `most` padded lengths that minimise the tokens computed when every window is padded to the next one.

    Edges are multiples of `multiple` (the last may be the window itself); a compiled step exists once for each.
    """
    lengths = np.asarray(lengths)
    longest = int(lengths.max(initial=1))
    if longest > window:
        raise ValueError(
            f"the longest window has {longest} tokens, more than window={window}; pass the window of the features"
        )
    candidates = sorted(
        {min(-(-int(n) // multiple) * multiple, window) for n in np.unique(lengths)} or {min(multiple, window)}
    )
    below = np.searchsorted(np.sort(lengths), candidates, side="right")  # windows that fit each candidate
    # cost[j] is the fewest tokens for all windows up to candidate j, using at most `used` edges of which j is the last
    cost = [int(below[j]) * edge for j, edge in enumerate(candidates)]
    chosen: list[tuple[int, ...]] = [(edge,) for edge in candidates]
    for _ in range(most - 1):
        previous, before = list(cost), list(chosen)
        for j, edge in enumerate(candidates):
            for i in range(j):
                tokens = previous[i] + int(below[j] - below[i]) * edge
                if tokens < cost[j]:
                    cost[j], chosen[j] = tokens, (*before[i], edge)
    return chosen[-1]


def plan(
    lengths: np.ndarray, batch_size: int, edges: Sequence[int], seed: int = 0, epoch: int = 0, *, shuffle: bool = True
) -> Plan:
    """Every window once, in ceil(W / batch_size) batches of one padded length each; only the last may be partly -1.

    What does not fill a batch of its bucket moves up to the next longer one. `shuffle=False` keeps short before long.
    """
    lengths = np.asarray(lengths)
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is not possible; it must be at least 1")
    if len(lengths) and lengths.max() > max(edges):
        raise ValueError(
            f"a window has {lengths.max()} tokens, the longest edge is {max(edges)}; make the edges from these lengths"
        )
    random = np.random.default_rng([seed % 2**63, epoch])
    order = random.permutation(len(lengths)) if shuffle else np.argsort(lengths, kind="stable")
    bucket = np.searchsorted(edges, lengths[order])  # [W] the first edge that is long enough
    batches: Plan = []
    left = np.zeros(0, np.int64)
    for index, edge in enumerate(edges):
        rows = np.concatenate([left, order[bucket == index]])
        full = len(rows) // batch_size * batch_size
        batches += [(int(edge), chunk) for chunk in rows[:full].reshape(-1, batch_size)]
        left = rows[full:]
    if shuffle:
        batches = [batches[i] for i in random.permutation(len(batches))]
    if len(left):
        pad_to = int(edges[int(np.searchsorted(edges, lengths[left].max()))])
        batches.append((pad_to, np.concatenate([left, np.full(batch_size - len(left), -1)])))
    return batches


def lengths(features: Windows) -> np.ndarray:
    """[examples] what each training example is padded to: its window, or the longest of those that go together."""
    together = features.together
    return features.length if together == 1 else features.length.reshape(-1, together).max(axis=1)


def rank_rows(rows: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """One worker's share of a batch: every `ranks`-th row, so that fillers are spread evenly too."""
    if len(rows) % ranks:
        raise UserError(f"batch size {len(rows)} cannot be split over {ranks} workers; make it a multiple of {ranks}")
    return rows[rank::ranks]


def batches(
    features: Windows,
    plan: Plan,
    first_step: int = 0,
    rank: int = 0,
    ranks: int = 1,
    extend: Extend | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The plan from `first_step` on as numpy batches: Features.assemble plus `weight` float32 [B], 0 for fillers.

    Of examples of two windows, token arrays have 2 B rows: all first windows, then all second ones. extend: adds
    arrays [rows, ...] of the caller's to a batch.
    """
    for pad_to, rows in plan[first_step:]:
        rows = rank_rows(rows, rank, ranks)
        batch = features.assemble(windows_of(rows, features.together), pad_to)
        batch = batch | {"weight": (rows >= 0).astype(np.float32)}
        yield extend(batch) if extend else batch


def windows_of(rows: np.ndarray, together: int) -> np.ndarray:
    """Rows of examples as rows of their windows, -1 for fillers: [together * B]."""
    if together == 1:
        return rows
    return np.concatenate([np.where(rows < 0, -1, rows * together + place) for place in range(together)])
