"""Gradients of one replica in a few long tensors, so that devices sum them in a few collectives.

A collective of TensorFlow's ends on the host: the next one starts after a callback, some 50 us later, so BERT-base's
197 gradients one by one would idle for 10 ms. Given them as a list, `all_reduce` puts them together and takes them
apart by operations of its own, outside of XLA, a further write and read of all gradients each. Packed by the program
that computes them and unpacked by the one that uses them, they are written once, and read as slices.
"""

import math
from dataclasses import dataclass

import tensorflow as tf

from model.recompute import anew

SMALL = 1 << 14  # elements up to which a tensor is packed with its like first: a kernel that joins 150 is a slow one


@dataclass(frozen=True)
class Layout:
    """Where packed tensors lie."""

    shapes: tuple[tuple[int, ...], ...]
    flats: tuple[tuple[int, ...], ...]  # for each flat tensor, which of them it holds, one after the other

    def sizes(self, flat: int) -> list[int]:
        return [math.prod(self.shapes[place]) for place in self.flats[flat]]


def as_computed(tensor: tf.Tensor) -> tf.Tensor:
    """The float16 tensor that was widened to make this one, or the tensor itself.

    The gradient of a kernel that is used in float16 is a float16 product, then cast: it travels in half the bytes
    without loss. The sum over the devices is rounded to float16 as the product over a whole batch on one device is,
    and what it does not hold becomes infinite, for which there is a loss scale.
    """
    if tf.executing_eagerly() or tensor.op.type != "Cast" or tensor.op.inputs[0].dtype != tf.float16:
        return tensor
    return tensor.op.inputs[0]


def pack(tensors: list[tf.Tensor]) -> tuple[list[tf.Tensor], Layout]:
    """Float32 tensors of known shapes -> one flat tensor of those that were float16, one of the others, either only
    if there are any; and where each lies."""
    given = [as_computed(tensor) for tensor in tensors]
    flats, places = [], []
    for dtype in sorted({tensor.dtype for tensor in given}, key=lambda dtype: dtype.name):
        here = [place for place, tensor in enumerate(given) if tensor.dtype == dtype]
        large = [place for place in here if given[place].shape.num_elements() > SMALL]
        small = [place for place in here if place not in large]
        pieces = [tf.reshape(given[place], [-1]) for place in large]
        if small:
            together = tf.concat([tf.reshape(given[place], [-1]) for place in small], axis=0)
            pieces += anew(together) if large else [together]  # or XLA makes one kernel of both
        flats.append(tf.concat(pieces, axis=0))
        places.append((*large, *small))
    return flats, Layout(tuple(tuple(tensor.shape) for tensor in tensors), tuple(places))


def unpack(flats: list[tf.Tensor], layout: Layout) -> list[tf.Tensor]:
    """The tensors of `pack`, float32, in their order."""
    found = {}
    for number, flat in enumerate(flats):
        for place, piece in zip(layout.flats[number], tf.split(flat, layout.sizes(number)), strict=True):
            found[place] = tf.cast(tf.reshape(piece, layout.shapes[place]), tf.float32)
    return [found[place] for place in range(len(layout.shapes))]
