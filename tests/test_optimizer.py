"""AdamW against its definition in float64, and the schedule at its corners."""

import numpy as np
import pytest
import tensorflow as tf

from configs.errors import UserError
from train.optimizer import AdamW, constant_rate, learning_rate

SHAPES = {
    "embeddings.token": (5, 4), "layers.0.ffn.in.kernel": (4, 3), "layers.0.ffn.in.bias": (3,),
    "layers.0.ffn.norm.scale": (4,), "layers.0.ffn.norm.offset": (4,),
}  # fmt: skip
DECAYED = {"embeddings.token", "layers.0.ffn.in.kernel"}


def made(schedule=lambda update: 0.01, **settings) -> AdamW:
    random = np.random.default_rng(0)
    variables = {name: tf.Variable(random.normal(size=shape).astype(np.float32)) for name, shape in SHAPES.items()}
    return AdamW(variables, schedule, **settings)


def gradients(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}


def apply(optimizer: AdamW, given: dict, take: bool = True, factor: float = 1.0) -> None:
    tensors = {name: tf.constant(value) for name, value in given.items()}
    optimizer.apply(tensors, tf.constant(take), tf.constant(factor), lambda variable: variable)


def snapshot(optimizer: AdamW) -> dict[str, np.ndarray]:
    variables = optimizer.variables() | {f"weight.{name}": weight for name, weight in optimizer.weights.items()}
    return {name: variable.numpy() for name, variable in variables.items()}


@pytest.mark.parametrize("correction", [True, False])
def test_five_updates_equal_the_definition_in_float64(correction):
    optimizer = made(lambda update: learning_rate(update, 0.05, 2, 8), bias_correction=correction)
    weights = {name: weight.numpy().astype(np.float64) for name, weight in optimizer.weights.items()}
    mean, square = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for t in range(1, 6):
        given = gradients(t)
        apply(optimizer, given)
        rate = 0.05 * (t / 2 if t <= 2 else (8 - (t - 1)) / 6)
        for name in SHAPES:
            g = given[name].astype(np.float64)
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.999 * square[name] + 0.001 * g**2
            m, v = mean[name], square[name]
            if correction:
                m, v = m / (1 - 0.9**t), v / (1 - 0.999**t)
            decay = 0.01 * weights[name] if name in DECAYED else 0.0
            weights[name] = weights[name] - rate * (m / (np.sqrt(v) + 1e-6) + decay)
    for name, weight in optimizer.weights.items():
        np.testing.assert_allclose(weight.numpy(), weights[name], rtol=2e-5, atol=2e-6, err_msg=name)
    assert int(optimizer.updates.numpy()) == 5


def test_decay_moves_kernels_and_embeddings_alone():
    optimizer = made(decay=0.5)
    before = snapshot(optimizer)
    apply(optimizer, {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    after = snapshot(optimizer)
    assert {name for name in SHAPES if (before[f"weight.{name}"] != after[f"weight.{name}"]).any()} == DECAYED


def test_an_update_that_is_not_taken_changes_nothing_at_all():
    optimizer = made()
    apply(optimizer, gradients(1))
    before = snapshot(optimizer)
    apply(optimizer, {name: np.full(shape, np.inf, np.float32) for name, shape in SHAPES.items()}, take=False)
    for name, value in snapshot(optimizer).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_the_factor_is_multiplied_into_every_gradient():
    one, other = made(), made()
    apply(one, {name: value * np.float32(0.25) for name, value in gradients(1).items()})
    apply(other, gradients(1), factor=0.25)
    for name, value in snapshot(one).items():
        np.testing.assert_array_equal(value, snapshot(other)[name], err_msg=name)


@pytest.mark.parametrize(("update", "share"), [
    (0, 0.1),  # the first update already moves
    (9, 1.0),  # the last one of the warm-up, at the peak
    (10, 1.0),
    (55, 0.5),
    (99, 1 / 90),  # the last update still moves
    (100, 0.0),
    (150, 0.0),  # never negative
])  # fmt: skip
def test_the_rate_rises_to_its_peak_and_falls_to_zero(update, share):
    rate = learning_rate(tf.constant(update, tf.int64), 3e-5, 10, 100)
    assert float(rate) == pytest.approx(3e-5 * share, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize(("warmup", "total", "first"), [(0, 10, 1.0), (10, 10, 0.1), (1, 1, 1.0), (0, 1, 1.0)])
def test_the_first_rate_is_right_without_a_warm_up_and_with_nothing_else(warmup, total, first):
    assert float(learning_rate(tf.constant(0, tf.int64), 1.0, warmup, total)) == pytest.approx(first)


def test_the_constant_rate_stays_at_its_peak():
    rates = [float(constant_rate(tf.constant(update, tf.int64), 2.0, 4, 10)) for update in (0, 3, 4, 99)]
    assert rates == [0.5, 2.0, 2.0, 2.0]


def test_an_optimizer_with_nothing_to_train_says_so():
    with pytest.raises(UserError, match="nothing to train"):
        AdamW({}, lambda update: 0.1)
