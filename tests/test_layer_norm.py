"""Layer norm: its value and its hand-written gradients against float64, whatever dtype x has, compiled or not."""

import numpy as np
import pytest
import tensorflow as tf

from model.layer_norm import layer_norm

EPSILON = 1e-3
ROUNDING = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def in_float64(x, scale, offset):
    x = tf.constant(x, tf.float64)
    mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
    return (x - mean) / tf.sqrt(variance + EPSILON) * scale + offset


def with_gradients(function, inputs, upstream):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs)
    return [y, *tape.gradient(y, inputs, output_gradients=upstream)]


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_value_and_gradients_equal_float64_up_to_rounding_to_the_dtype(dtype, compiled):
    x = tf.cast(3.0 + 2.0 * drawn(6, 5, 32), dtype)  # a mean that counts
    scale, offset, upstream = 1.0 + drawn(32, seed=1), drawn(32, seed=2), tf.cast(drawn(6, 5, 32, seed=3), dtype)

    def ours(x, scale, offset):
        return layer_norm(x, scale, offset, EPSILON)

    def whole(*inputs):
        return with_gradients(ours, list(inputs), upstream)

    run = tf.function(whole, jit_compile=True, autograph=False) if compiled else whole
    y, dx, dscale, doffset = run(x, tf.constant(scale, tf.float32), tf.constant(offset, tf.float32))
    assert (y.dtype, dx.dtype, dscale.dtype, doffset.dtype) == (x.dtype, x.dtype, tf.float32, tf.float32)

    wide = [tf.constant(np.asarray(tf.cast(value, tf.float64))) for value in (x, scale, offset)]
    expected = with_gradients(in_float64, wide, tf.cast(upstream, tf.float64))
    for got, want in zip((y, dx), expected[:2], strict=True):
        np.testing.assert_allclose(tf.cast(got, tf.float64), want, rtol=ROUNDING[dtype], atol=2 * ROUNDING[dtype])
    # Sums over rows are made in float32 of what x and the upstream gradient hold, however coarse those are.
    for got, want in zip((dscale, doffset), expected[2:], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_mean_of_fifty_deviations_costs_less_than_the_rounding_of_y(dtype):
    x = tf.cast(100.0 + 2.0 * drawn(64, 768), dtype)
    y = layer_norm(x, tf.ones(768), tf.zeros(768), EPSILON)
    want = in_float64(tf.cast(x, tf.float64), 1.0, 0.0)
    np.testing.assert_allclose(tf.cast(y, tf.float64), want, rtol=ROUNDING[dtype] / 2, atol=1e-5)


def test_a_row_of_one_value_has_a_finite_gradient():
    x = tf.ones((2, 8), tf.float16)
    y, dx, *_ = with_gradients(
        lambda x, scale, offset: layer_norm(x, scale, offset, EPSILON),
        [x, tf.ones(8), tf.zeros(8)],
        tf.cast(drawn(2, 8), tf.float16),
    )
    np.testing.assert_array_equal(y, np.zeros((2, 8)))
    assert np.isfinite(tf.cast(dx, tf.float32)).all()
