"""Gradients of biases and layer norms: sums over all rows, whose last part is one kernel for many of them.

XLA sums columns by two kernels: one, which computes what is summed, too, leaves a sum for each of some parts of the
rows, and one adds these up. BERT-base has a hundred such sums, and a kernel for a few kilobytes takes as long to start
as to run. Where somebody collects, the parts are added up for all sums of one width at once:

    with column_sums.collected() as sums:
        gradients = tape.gradient(loss, weights)
    gradients = sums.finished(gradients)
"""

import contextlib
import threading
from collections.abc import Iterator

import tensorflow as tf

from model.recompute import anew

PARTS = 64  # of the rows: what XLA makes of 12,288
_here = threading.local()


class Collected:
    """The sums of a backward pass and the parts they were made of."""

    def __init__(self) -> None:
        self._found: list[tuple[tf.Tensor, tf.Tensor]] = []  # float32 [H]; [PARTS, H]

    def add(self, total: tf.Tensor, parts: tf.Tensor) -> None:
        self._found.append((total, parts))

    def finished(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """The same gradients; those that are a collected sum itself are summed anew, all of one width together."""
        parts = {id(total): parts for total, parts in self._found}
        widths: dict[int, list[int]] = {}
        for place, gradient in enumerate(gradients):
            if id(gradient) in parts:
                widths.setdefault(gradient.shape[-1], []).append(place)
        summed = list(gradients)
        for places in widths.values():
            together = tf.stack([parts[id(gradients[place])] for place in places])  # [sums, PARTS, H]
            for place, total in zip(places, tf.unstack(tf.reduce_sum(together, axis=1)), strict=True):
                summed[place] = total
        return summed


@contextlib.contextmanager
def collected() -> Iterator[Collected]:
    """Within the block `column_sum` leaves the last part of its sums to `Collected.finished`."""
    before = getattr(_here, "sums", None)
    _here.sums = Collected()
    try:
        yield _here.sums
    finally:
        _here.sums = before


def collecting() -> bool:
    return getattr(_here, "sums", None) is not None


def parts_of(x: tf.Tensor) -> int:
    """How many parts the rows of x [..., H] are summed in: PARTS, or 1 where nobody collects or they don't divide."""
    rows = x.shape[:-1].num_elements()
    return PARTS if collecting() and rows and rows % PARTS == 0 and rows > PARTS else 1


def in_parts(x: tf.Tensor, parts: int) -> tf.Tensor:
    """[..., H] -> sums over equal parts of the rows, [parts, H]; of one part [H]."""
    if parts == 1:
        return tf.reduce_sum(x, axis=list(range(len(x.shape) - 1)))
    return tf.reduce_sum(tf.reshape(x, (parts, -1, x.shape[-1])), axis=1)


def added_up(summed: tf.Tensor) -> tf.Tensor:
    """What `in_parts` gave -> the sum over all rows, [H]."""
    if len(summed.shape) == 1:
        return summed
    (summed,) = anew(summed)  # or XLA makes one sum of both
    total = tf.reduce_sum(summed, axis=0)
    _here.sums.add(total, summed)
    return total


def column_sum(x: tf.Tensor) -> tf.Tensor:
    """Float32 [..., H] -> [H], the sum over all rows."""
    return added_up(in_parts(x, parts_of(x)))


def plus(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """x + bias in x's dtype. x [..., H], any float dtype; bias float32 [H], and so is its gradient."""
    if not collecting():
        return x + tf.cast(bias, x.dtype)

    @tf.custom_gradient
    def compute(x, bias):
        def gradient(upstream):
            return upstream, column_sum(tf.cast(upstream, tf.float32))

        return x + tf.cast(bias, x.dtype), gradient

    return compute(x, bias)
