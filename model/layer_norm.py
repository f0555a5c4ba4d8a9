"""Layer normalisation (Ba et al. 2016, arXiv 1607.06450) with its gradient written out; float32 inside for any x."""

import tensorflow as tf

from model.recompute import anew


def layer_norm(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float) -> tf.Tensor:
    """(x - mean) / sqrt(variance + epsilon) * scale + offset over the last axis.

    Args: x [..., H], any float dtype, y has both; scale, offset float32 [H], and so are their gradients.
    """

    @tf.custom_gradient
    def compute(x, scale, offset):
        wide = tf.cast(x, tf.float32)
        mean = tf.reduce_mean(wide, axis=-1, keepdims=True)
        centred = wide - mean
        root = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True) + epsilon)  # [..., 1]

        def gradient(upstream):
            normal, given = (wide - mean) * root, tf.cast(upstream, tf.float32) * scale
            along = given - tf.reduce_mean(given, -1, keepdims=True)
            along -= normal * tf.reduce_mean(given * normal, -1, keepdims=True)
            # The sums over rows are another kernel, which computes from x and the statistics, too, instead of reading
            # the float32 products that the one above would have to write for it.
            x_again, upstream_again, mean_again, root_again = anew(x, upstream, mean, root)
            rows, wide_upstream = list(range(len(x.shape) - 1)), tf.cast(upstream_again, tf.float32)
            normal_again = (tf.cast(x_again, tf.float32) - mean_again) * root_again
            return (
                tf.cast(along * root, x.dtype),
                tf.reduce_sum(wide_upstream * normal_again, rows),
                tf.reduce_sum(wide_upstream, rows),
            )

        return tf.cast(centred * root * scale + offset, x.dtype), gradient

    return compute(x, scale, offset)
