"""Compiled functions of a batch, found by the batch's layout.

To find the one among its traces that fits, `tf.function` hashes every variable and argument at every call: a
millisecond for BERT's two hundred variables, in which the GPU waits. The layout says it all, and is one hash.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from data.feed import Packed, of_devices


class ByLayout:
    """`body(batch)` compiled once for each layout; called with a `Packed`.

    Args:
        body: of a dict of tensors; reads variables as they are at a call, and all else as it was at the first.
        jit: compile with XLA.
        apart: take the batch apart inside; otherwise the body gets the `Packed`, of per-replica values, say.
    """

    def __init__(self, body: Callable, *, jit: bool = False, apart: bool = True) -> None:
        self._body, self._jit, self._apart = body, jit, apart
        self.made: dict[tuple, Any] = {}  # by layout and what else comes with the batch

    def __call__(self, batch: Packed) -> Any:
        if tf.config.functions_run_eagerly():
            return self._body(batch.apart() if self._apart else batch)
        key = (batch.layout, *((name, _kind(value)) for name, value in sorted(batch.others.items())))
        if key not in self.made:
            self.made[key] = self._traced(batch)
        return self.made[key](batch.numbers, batch.others)

    def _traced(self, batch: Packed) -> Any:
        layout = batch.layout

        def whole(numbers, others):
            given = Packed(numbers, layout, others)
            return self._body(given.apart() if self._apart else given)

        compiled = tf.function(whole, autograph=False, jit_compile=self._jit or None)
        return compiled.get_concrete_function(batch.numbers, batch.others)


def _kind(value: Any) -> tuple:
    """Shape and dtype of a tensor, or of each of a per-replica value's."""
    return tuple((tuple(one.shape), one.dtype.name) for one in of_devices(value))
