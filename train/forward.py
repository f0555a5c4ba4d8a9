"""A forward pass over many windows: answers while training and alone, a teacher's outputs kept on disk."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from data import feed
from data.batches import Plan, Windows
from train.compiled import ByLayout

IDS = ("token_ids", "segment_ids", "padding_mask")
# Results that stay on the device before the host reads any: reading waits for all that was started, and the device
# then for the host. The logits of SQuAD's dev set take a third of it.
KEPT_BYTES = 96 << 20


class Forward:
    """A model's forward pass, compiled once for each padded length.

    Args:
        model: of a dict of int32 [B, S], IDS, to a nest of tensors.
        jit: compile with XLA.
    """

    def __init__(self, model: Callable[[dict], Any], jit: bool) -> None:
        self._model = ByLayout(model, jit=jit)

    def __call__(self, windows: Windows, plan: Plan, title: str) -> Iterator[tuple[np.ndarray, Any]]:
        """(rows [B] as the plan has them, -1 for fillers; the model's nest for them as numpy) for each batch."""

        def ids() -> Iterator[dict[str, np.ndarray]]:
            for pad_to, rows in plan:
                batch = windows.assemble(rows, pad_to)
                yield {name: batch[name] for name in IDS}

        kept, size = list[tuple[np.ndarray, Any]](), 0
        bar = tqdm(plan, title, unit="batch", leave=False, mininterval=1.0)
        with contextlib.closing(feed.prefetched(ids())) as stream:
            for (_, rows), batch in zip(bar, stream, strict=True):
                results = self._model(batch)
                kept.append((rows, results))
                size += sum(result.shape.num_elements() * result.dtype.size for result in tf.nest.flatten(results))
                if size >= KEPT_BYTES:
                    yield from _read(kept)
                    kept, size = [], 0
        yield from _read(kept)


def _read(kept: list[tuple[np.ndarray, Any]]) -> Iterator[tuple[np.ndarray, Any]]:
    for rows, results in kept:
        yield rows, tf.nest.map_structure(lambda result: result.numpy(), results)
