"""Recomputing: the same gradients from less memory; and XLA does not undo it by merging what is equal."""

import re
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import tiny

from heads import default
from model.attention import attend
from model.config import BertConfig
from model.heads import HeadModel
from model.recompute import anew, recomputed
from model.weights import Published
from train.prepare import initialise

SIZES = BertConfig(vocabulary=60, hidden=16, layers=1, heads=4, ffn=64, positions=32, attention_dropout=0.0)
IDS = tf.constant(np.random.default_rng(0).integers(0, 60, (4, 24)), tf.int32)
ARGUMENTS = (IDS, tf.cast(IDS % 2, tf.int32), tf.sequence_mask([24, 20, 9, 3], 24, tf.int32))
SEED = tf.constant([3, 1 << 20], tf.int64)


def model(sizes: BertConfig, **settings) -> HeadModel:
    made = HeadModel(default(), sizes, **settings)
    initialise(made, Published(sizes, {}, [], None, {}, "random"), 1)  # type: ignore[arg-type]
    return made


def gradients(made: HeadModel, jit: bool | None):
    """A function () -> {name: gradient}, and the compiled function itself."""
    names = made.names()

    @tf.function(jit_compile=jit, autograph=False)
    def compute():
        weights = [variable.value for variable in names.values()]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            start, end = made(*ARGUMENTS, seed=SEED)
            loss = tf.reduce_mean(tf.square(start)) + tf.reduce_mean(end * tf.cast(IDS, tf.float32))
        return [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, weights)]

    return compute, lambda: dict(zip(names, (gradient.numpy() for gradient in compute()), strict=True))


@pytest.mark.parametrize(("jit", "rate"), [(None, 0.2), (True, 0.0)], ids=["plain", "compiled"])
def test_gradients_are_those_of_a_model_that_keeps_everything(jit, rate):
    sizes = replace(SIZES, attention_dropout=rate)
    kept, again = (gradients(model(sizes, recompute=recompute), jit)[1]() for recompute in (False, True))
    for name, value in kept.items():
        assert np.abs(value).max() > 0 or name.endswith("segment")
        np.testing.assert_allclose(again[name], value, rtol=2e-5, atol=1e-7, err_msg=name)


def handed_to_xla(compute) -> tuple[int, int]:
    """Matrix products and barriers in a function as XLA is given it; on a GPU it keeps apart what a barrier divides."""
    text = compute.experimental_get_compiler_ir()(stage="hlo")
    return len(re.findall(r" dot\(", text)), len(re.findall(r" opt-barrier\(", text))


def test_every_layer_is_computed_again_behind_a_barrier():
    (kept, none), (again, barriers) = (
        handed_to_xla(gradients(model(SIZES, recompute=recompute), True)[0]) for recompute in (False, True)
    )
    assert again == kept + 6 * SIZES.layers  # qkv, scores, context, out, and two of the feed-forward block
    # Both have those in the gradients of GELU and layer norm.
    assert barriers == none + SIZES.layers


def test_what_is_made_anew_has_the_same_bits():
    x = tf.constant(np.random.default_rng(1).normal(size=(3, 5)), tf.float16)
    for given in (anew(x)[0], tf.function(lambda: anew(x)[0])(), tf.function(lambda: anew(x)[0], jit_compile=True)()):
        np.testing.assert_array_equal(given, x)


def test_variables_inside_get_their_gradients_and_constants_none():
    weight = tf.Variable(3.0)
    with tf.GradientTape() as tape:
        x = tf.constant(2.0)
        tape.watch(x)
        y = recomputed(lambda x, mask: weight * x * x * tf.cast(mask, tf.float32), x, constants=(tf.constant(5),))
    assert [float(g) for g in tape.gradient(y, [x, weight])] == [60.0, 20.0]


def test_a_block_of_attention_is_computed_again_behind_a_barrier():
    query, key, value = (tf.random.stateless_normal((1, 256, 4, 8), [index, 1]) for index in range(3))
    mask = tf.ones((1, 256), tf.int32)

    @tf.function(jit_compile=True, autograph=False)
    def compute():
        with tf.GradientTape() as tape:
            tape.watch([query, key, value])
            y = tf.reduce_sum(attend(query, key, value, mask, rate=0.1, seed=SEED) ** 2)
        return tape.gradient(y, [query, key, value])

    # Two blocks: forward, forward again, backward; a barrier for what is computed again and one for the softmax.
    assert handed_to_xla(compute) == (2 * (2 + 2 + 4), 2 * 2)


def test_the_flag_reaches_the_step_and_the_loss_is_the_same(tmp_path):
    losses = []
    for flags in ([], ["--recompute"]):
        out = f"run{len(losses)}"
        tiny.train([*tiny.arguments(tmp_path, out, count=20), "--epochs", "1", "--log-every", "1", *flags])
        losses.append([line["loss"] for line in tiny.lines(tmp_path / out)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
