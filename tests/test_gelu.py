"""Bias and GELU: both forms and their gradients against float64, whatever dtype x has."""

import math

import numpy as np
import pytest
import tensorflow as tf

from model.gelu import bias_gelu

BIAS = np.array([-0.5, 0.0, 0.25, 1.0], np.float32)


def erf_form(z):
    return z * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))


def tanh_form(z):
    return 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


FORMS = {"erf": erf_form, "tanh": tanh_form}
ULP = {"float32": 2.0**-20, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # float32: a few units of its last place


def points(dtype="float32"):
    """[27, 4] from -9 to 9, rounded to dtype: both flat ends and the bend."""
    return tf.cast(np.linspace(-9, 9, 108).reshape(27, 4), dtype)


def slope(function, z, step=1e-6):
    return (function(z + step) - function(z - step)) / (2 * step)


@pytest.mark.parametrize("dtype", ULP)
@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradients_equal_float64_up_to_rounding_to_the_dtype(form, dtype):
    x, bias = points(dtype), tf.constant(BIAS)
    upstream = tf.cast(np.random.default_rng(3).normal(size=(27, 4)), dtype)
    with tf.GradientTape() as tape:
        tape.watch([x, bias])
        y = bias_gelu(x, bias, form)
    dx, dbias = tape.gradient(y, [x, bias], output_gradients=upstream)
    assert (y.dtype, dx.dtype, dbias.dtype) == (x.dtype, x.dtype, tf.float32)

    z, g = tf.cast(x, tf.float64).numpy() + BIAS, tf.cast(upstream, tf.float64).numpy()
    rtol, atol = ULP[dtype], 2e-6
    np.testing.assert_allclose(tf.cast(y, tf.float64), FORMS[form](z), rtol=rtol, atol=atol)
    want = g * slope(FORMS[form], z)
    np.testing.assert_allclose(tf.cast(dx, tf.float64), want, rtol=rtol, atol=atol)
    # Summed before it is rounded: the bias's gradient is a float32 sum even where dx is not.
    np.testing.assert_allclose(dbias, want.sum(axis=0), rtol=1e-5, atol=1e-5)


def test_the_two_forms_differ_by_more_than_rounding_and_by_less_than_a_thousandth():
    difference = np.abs(bias_gelu(points(), BIAS, "erf") - bias_gelu(points(), BIAS, "tanh")).max()
    assert 1e-4 < difference < 1e-3


def test_any_number_of_leading_axes_is_taken():
    flat = bias_gelu(points(), BIAS, "erf")
    x = tf.reshape(points(), (3, 9, 4))
    bias = tf.constant(BIAS)
    with tf.GradientTape() as tape:
        tape.watch(bias)
        y = bias_gelu(x, bias, "erf")
    np.testing.assert_array_equal(tf.reshape(y, (27, 4)), flat)
    assert tape.gradient(y, bias).shape == (4,)


@pytest.mark.parametrize("form", FORMS)
def test_the_largest_float16_numbers_stay_finite_with_gradients_of_zero_and_one(form):
    x, bias = tf.constant([[-60000.0, -12.0, 12.0, 60000.0]], tf.float16), tf.zeros(4)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = bias_gelu(x, bias, form)
    # XLA's erf ends at 1 - 2e-7 rather than 1: of a large negative z remains a ten-millionth.
    assert (np.abs(y - np.maximum(x, 0)) <= 2e-7 * np.abs(x)).all()
    np.testing.assert_allclose(tape.gradient(y, x), [[0, 0, 1, 1]], atol=1e-6)


def test_an_unknown_form_is_an_error():
    with pytest.raises(KeyError, match="swish"):
        bias_gelu(points(), tf.constant(BIAS), "swish")
