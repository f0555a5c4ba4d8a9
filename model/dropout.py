"""Dropout whose mask is a function of its seed alone, so that a resumed run draws what an uninterrupted one draws."""

import tensorflow as tf

_LEVELS = 65536  # a mask is drawn from 16-bit numbers: half the random bits of 32, and 0.1 becomes 6554 / 65536


def dropout(x: tf.Tensor, rate: float, seed: tf.Tensor | None) -> tf.Tensor:
    """Zero each element of x with probability `rate` and scale the rest by 1 / (1 - rate) (Srivastava et al. 2014).

    Args:
        x: any shape and float dtype; y has both.
        rate: probability, 0 to below 1; met to within 1 / 65536.
        seed: int64 [2]; None means no dropout.
    """
    if seed is None or rate == 0:
        return x
    threshold = round(rate * _LEVELS)
    shape = tf.shape(x) if None in x.shape else x.shape
    size = tf.size(x) if None in x.shape else x.shape.num_elements()
    words = tf.random.stateless_uniform([(size + 1) // 2], seed, minval=None, maxval=None, dtype=tf.int32)
    halves = tf.reshape(tf.bitcast(words, tf.uint16), [-1])[:size]
    keep = tf.reshape(halves >= tf.constant(threshold, tf.uint16), shape)
    return tf.where(keep, x * tf.cast(_LEVELS / (_LEVELS - threshold), x.dtype), tf.zeros([], x.dtype))
