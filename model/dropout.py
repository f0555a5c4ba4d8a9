"""Dropout whose mask is a function of its seed alone, so that a resumed run draws what an uninterrupted one draws.

No mask and no random number is ever kept in memory: an element's place in the tensor is hashed with two keys made from
the seed, wherever the element is needed, in the forward pass and again in the backward pass. TensorFlow's generators
write their numbers to memory, at four kernels a mask, and what they feed is then fused with nothing; XLA fuses a hash
into the operations around it.
"""

import tensorflow as tf

_LEVELS = 65536  # the upper 16 bits of a hash decide: 0.1 becomes 6554 / 65536


def dropout(x: tf.Tensor, rate: float, seed: tf.Tensor | None) -> tf.Tensor:
    """Zero each element of x with probability `rate` and scale the rest by 1 / (1 - rate) (Srivastava et al. 2014).

    Args:
        x: any shape and float dtype; y has both; at most 2^31 - 1 elements.
        rate: probability, 0 to below 1; met to within 1 / 65536.
        seed: int64 [2]; None means no dropout.
    """
    if seed is None or rate == 0:
        return x

    @tf.custom_gradient
    def compute(x):
        return _drop(x, seed, rate), lambda upstream: _drop(upstream, seed, rate)  # linear: its own gradient

    return compute(x)


def _constant(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint32)


def _mix(x, shifts: tuple[int, int], factors: tuple[int, int]):
    """A bijection of uint32 whose upper bits depend on all of x (shift, multiply, twice, as MurmurHash3 ends)."""
    for shift, factor in zip(shifts, factors, strict=True):
        x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _constant(shift))) * _constant(factor)
    return x


# Shifts and factors of the least biased such functions known: Wellons, "Prospecting for hash functions" (2018).
def _first(x):
    x = _mix(x, (16, 15), (0x7FEB352D, 0x846CA68B))
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _constant(16)))


def _second(x):
    return _mix(x, (17, 11), (0xED5AD4BB, 0xAC4C1B51))


def _keys(seed):
    """int64 [2] -> two uint32 scalars."""
    words = tf.reshape(tf.bitcast(seed, tf.uint32), [4])
    key = _first(words[0])
    for index in (1, 2, 3):
        key = _first(key + words[index] + _constant(0x9E3779B9))
    return key, _second(key + _constant(0x9E3779B9))


@tf.function(jit_compile=True, autograph=False)
def _drop(x, seed, rate):
    threshold = round(rate * _LEVELS)
    first, second = _keys(seed)
    shape = tf.shape(x)
    x = tf.reshape(x, [-1, shape[-1]])  # rows in memory order: XLA may turn the axes of a tensor of more around
    rows, width = tf.shape(x)[0], tf.shape(x)[1]
    # Rows and columns are hashed once each, their sum once an element: half the arithmetic of hashing a place twice.
    lines = tf.bitwise.bitwise_xor(_first(tf.cast(tf.range(rows + width), tf.uint32) + first), second)
    number = _second(lines[:rows, None] + lines[rows:])
    keep = number >= _constant(threshold * (2**32 // _LEVELS))
    kept = tf.where(keep, x * tf.cast(_LEVELS / (_LEVELS - threshold), x.dtype), tf.zeros([], x.dtype))
    return tf.reshape(kept, shape)
