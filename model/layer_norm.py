"""Layer normalisation (Ba et al. 2016, arXiv 1607.06450) with its gradient written out; float32 inside for any x."""

import tensorflow as tf

from model.column_sums import column_sum
from model.recompute import anew


def layer_norm(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float) -> tf.Tensor:
    """(x - mean) / sqrt(variance + epsilon) * scale + offset over the last axis.

    Args: x [..., H], any float dtype, y has both; scale, offset float32 [H], and so are their gradients.
    """

    @tf.custom_gradient
    def compute(x, scale, offset):
        wide = tf.cast(x, tf.float32)
        mean, variance = _moments(wide, one_pass=x.dtype != tf.float32)
        root = tf.math.rsqrt(variance + epsilon)  # [..., 1]

        def gradient(upstream):
            normal, given = (wide - mean) * root, tf.cast(upstream, tf.float32) * scale
            # Two sums and what is made of them: one kernel each. Without the barrier XLA for GPUs writes kernels of
            # whole rows by Triton, which hold too much in registers and take twice the time that memory needs.
            sums = tf.reduce_sum(given, -1, keepdims=True), tf.reduce_sum(given * normal, -1, keepdims=True)
            sum_given, sum_product = anew(*sums)
            along = given - (sum_given + normal * sum_product) * (1.0 / x.shape[-1])
            # The sums over rows are another kernel, which computes from x and the statistics, too, instead of reading
            # the float32 products that the one above would have to write for it.
            x_again, upstream_again, mean_again, root_again = anew(x, upstream, mean, root)
            wide_upstream = tf.cast(upstream_again, tf.float32)
            normal_again = (tf.cast(x_again, tf.float32) - mean_again) * root_again
            return (
                tf.cast(along * root, x.dtype),
                column_sum(wide_upstream * normal_again),
                column_sum(wide_upstream),
            )

        return tf.cast((wide - mean) * root * scale + offset, x.dtype), gradient

    return compute(x, scale, offset)


def _moments(wide, one_pass: bool):
    """Mean and variance over the last axis, [..., 1].

    one_pass: E x^2 - (E x)^2, whose sums XLA makes in one kernel, together with x itself. It loses as many of float32's
    24 bits as the square of mean / deviation has, while x rounded to 11 bits or 8 has lost that ratio's own: less
    than the rounding of x and y for means up to dozens of deviations, and BERT's are below one.
    """
    mean = tf.reduce_mean(wide, axis=-1, keepdims=True)
    if not one_pass:
        return mean, tf.reduce_mean(tf.square(wide - mean), axis=-1, keepdims=True)
    return mean, tf.maximum(tf.reduce_mean(tf.square(wide), axis=-1, keepdims=True) - tf.square(mean), 0.0)
