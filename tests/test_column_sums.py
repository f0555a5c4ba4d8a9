"""Sums over rows whose last part is added up for many at once: the same gradients, by fewer sums."""

import numpy as np
import pytest
import tensorflow as tf

from model import column_sums
from model.column_sums import PARTS, column_sum, plus
from model.gelu import bias_gelu
from model.layer_norm import layer_norm
from scripts.bench_train_step import Variant, build, on_devices, random_rows
from train.hardware import Hardware

ROWS = {"equal parts": (2, PARTS, 8), "no equal parts": (PARTS + 1, 8), "a row a part": (PARTS, 8), "few": (3, 8)}


def drawn(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", ROWS.values(), ids=ROWS)
def test_a_sum_is_that_over_all_rows_collected_or_not(shape):
    x = drawn(*shape)
    wanted = x.reshape(-1, shape[-1]).sum(axis=0)

    @tf.function(jit_compile=True)
    def both(x):
        with column_sums.collected() as sums:
            early = column_sum(x)
            (late,) = sums.finished([early])
        assert (late is early) == (shape != ROWS["equal parts"])
        return early, late, column_sum(x)

    for found in both(x):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def block(x, bias, other, scale, offset):
    """What a layer of BERT has: GELU, a bias, a layer norm, whose gradients are sums over rows."""
    return layer_norm(plus(bias_gelu(x, bias, "tanh"), other), scale, offset, 1e-6)


@pytest.mark.parametrize(("shape", "dtype"), [
    (ROWS["equal parts"], "float32"), (ROWS["equal parts"], "float16"), (ROWS["no equal parts"], "float32")
])  # fmt: skip
def test_gradients_are_those_of_plain_sums(shape, dtype):
    x, upstream = tf.cast(drawn(*shape), dtype), tf.cast(drawn(*shape)[::-1].copy(), dtype)
    weights = [tf.constant(drawn(4, 8)[place]) for place in range(4)]

    def gradients(collect: bool):
        @tf.function(jit_compile=True)
        def run(x, *weights):
            given = [x, *weights]
            with column_sums.collected() as sums:
                if not collect:
                    column_sums._here.sums = None
                with tf.GradientTape() as tape:
                    tape.watch(given)
                    y = block(*given)
                found = tape.gradient(y, given, output_gradients=upstream)
            return sums.finished(found)

        return run(x, *weights)

    for ours, plain in zip(gradients(True), gradients(False), strict=True):
        tolerance = 1e-5 if dtype == "float32" else 5e-3  # the plain sum of a bias is rounded to float16
        np.testing.assert_allclose(ours, plain, rtol=tolerance, atol=tolerance * np.abs(plain).max())


def test_what_is_no_collected_sum_stays_what_it_is():
    with column_sums.collected() as sums:
        total, other = column_sum(tf.ones((2 * PARTS, 3))), tf.ones(3)
        found = sums.finished([other, total, 2.0 * total])
    assert found[0] is other
    np.testing.assert_array_equal(found[1], [2 * PARTS] * 3)
    np.testing.assert_array_equal(found[2], [4 * PARTS] * 3)


def test_nothing_is_collected_before_and_after():
    assert not column_sums.collecting()
    with column_sums.collected() as outer:
        with column_sums.collected():
            column_sum(tf.ones((2 * PARTS, 3)))
        assert column_sums.collecting()
        assert not outer._found
    assert not column_sums.collecting()


MACHINE = Hardware(False, None, 0, 1, True)


def reports(monkeypatch, **kind):
    """(three steps' reports, how many gradients each compilation took together)"""
    taken = []
    finished = column_sums.Collected.finished

    def watched(self, gradients):
        found = finished(self, gradients)
        taken.append(sum(one is not other for one, other in zip(found, gradients, strict=True)))
        return found

    monkeypatch.setattr(column_sums.Collected, "finished", watched)
    variant = Variant("bert-tiny", "float32", batch=4, tokens=32, **kind)
    tf.keras.utils.set_random_seed(1)
    step, _ = build(variant, MACHINE)
    batch = on_devices(random_rows(variant), MACHINE)
    return [step(batch, number).numpy() for number in range(3)], taken


@pytest.fixture(scope="module")
def plain():
    with pytest.MonkeyPatch.context() as patch:
        return reports(patch, xla=False)


@pytest.mark.parametrize("recompute", [False, True])
def test_all_biases_and_layer_norms_of_an_encoder_are_summed_together(recompute, plain, monkeypatch):
    """Should a gradient reach the tape as another tensor, its sum would still be right, and a kernel by itself."""
    compiled, taken = reports(monkeypatch, xla=True, recompute=recompute)
    # By XLA alone: two layers of four biases and two norms, and the embeddings' norm.
    assert (taken, plain[1]) == ([2 * 8 + 2], [])
    np.testing.assert_allclose(compiled, plain[0], rtol=1e-4)
