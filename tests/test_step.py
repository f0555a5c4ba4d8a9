"""The step: scaling, accumulation, clipping and skipping, on a model of two variables."""

import numpy as np
import pytest
import tensorflow as tf

from train.optimizer import AdamW, learning_rate
from train.precision import LossScale
from train.step import COUNTED, Step, grouped


@pytest.fixture(autouse=True)
def _eager():
    """Run what is compiled in earnest as plain Python: compiling a step takes longer than all the tests of it."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


NORM, FINITE, RATE, SCALE = 1, 2, 3, 4  # places in what a step returns


def batch(rows: int = 8, seed: int = 0, real: int | None = None) -> dict[str, tf.Tensor]:
    """Inputs [B, 4] and targets [B, 3]; rows from `real` on are fillers of weight 0."""
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(rows, 4)).astype(np.float32), random.normal(size=(rows, 3)).astype(np.float32)
    weight = (np.arange(rows) < (rows if real is None else real)).astype(np.float32)
    arrays = {"token_ids": np.zeros((rows, 1), np.int32), "x": x, "y": y, "weight": weight}
    return {name: tf.constant(value) for name, value in arrays.items()}


def joined(*batches: dict) -> dict:
    return {name: tf.concat([one[name] for one in batches], axis=0) for name in batches[0]}


def spoilt(given: dict) -> dict:
    """The same batch with an infinite target: its gradients are not finite."""
    return given | {"y": given["y"] * np.inf}


def make(*, compute=tf.float32, scale=1.0, batch_size=8, rate=0.1, initial=0.5, squash=1.0, **settings) -> Step:
    """A step that learns y = x @ kernel + bias in mean squares, its product in `compute`."""
    random = np.random.default_rng(7)
    weights = {
        "layer.kernel": tf.Variable((random.normal(size=(4, 3)) * initial).astype(np.float32)),
        "layer.bias": tf.Variable(np.zeros(3, np.float32)),
    }

    def objective(given, seed):
        product = tf.cast(given["x"], compute) @ tf.cast(weights["layer.kernel"], compute)
        error = tf.cast(product, tf.float32) + weights["layer.bias"] - given["y"]
        return {"loss": tf.reduce_sum(tf.reduce_sum(tf.square(error) * squash, axis=1) * given["weight"])}

    optimizer = AdamW(weights, lambda done: learning_rate(done, rate, 2, 20))
    growth = settings.pop("growth_interval", 2000)
    return Step(objective, optimizer, LossScale(True, scale, growth), batch_size=batch_size, **settings)


def everything(step: Step) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in {**step.variables(), **step.optimizer.weights}.items()}


def weights(step: Step) -> np.ndarray:
    return np.concatenate([variable.numpy().ravel() for variable in step.optimizer.weights.values()])


def test_a_step_reports_loss_norm_rate_and_scale():
    step, given = make(scale=4.0), batch()
    error = given["x"].numpy() @ step.optimizer.weights["layer.kernel"].numpy() - given["y"].numpy()
    gradient = np.concatenate([(given["x"].numpy().T @ error * 2 / 8).ravel(), error.sum(0) * 2 / 8])
    assert step.measured[:5] == ("loss", "gradient_norm", "finite", "learning_rate", "loss_scale")
    assert step.measured[5:] == (*COUNTED, "skipped_in_a_row")
    expected = [(error**2).sum(1).mean(), np.linalg.norm(gradient), 1.0, 0.05, 4.0, 1, 0, 1, 0]
    np.testing.assert_allclose(step(given, 0).numpy(), expected, rtol=1e-5)


def test_the_weights_do_not_depend_on_the_scale():
    one, other = make(scale=1.0), make(scale=2.0**15)
    for number in range(5):
        first, second = one(batch(seed=number), number).numpy(), other(batch(seed=number), number).numpy()
        np.testing.assert_array_equal(first[:SCALE], second[:SCALE])
    np.testing.assert_array_equal(weights(one), weights(other))  # powers of two do not round


@pytest.mark.parametrize("settings", [{"accumulate": 2}, {"jit": True}], ids=str)
def test_a_compiled_step_computes_what_its_source_says(settings):
    written, compiled = make(scale=8.0, **settings), make(scale=8.0, **settings)
    given = [batch(), batch(seed=1), spoilt(batch()), batch(seed=2)]
    expected = [written(one, number).numpy() for number, one in enumerate(given)]
    tf.config.run_functions_eagerly(False)
    reports = [compiled(one, number).numpy() for number, one in enumerate(given)]
    np.testing.assert_allclose(reports, expected, rtol=1e-5)
    for name, value in everything(written).items():
        np.testing.assert_allclose(everything(compiled)[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_two_batches_summed_are_one_of_twice_the_size():
    summed, whole = make(accumulate=2, clip_norm=0.0), make(batch_size=16, clip_norm=0.0)
    for number in range(0, 6, 2):
        halves = batch(seed=number), batch(seed=number + 1)
        norms = [summed(half, number + place).numpy()[NORM] for place, half in enumerate(halves)]
        assert norms[1] == pytest.approx(whole(joined(*halves), number).numpy()[NORM], rel=1e-5)
    for name, slot in whole.optimizer.variables().items():  # Adam's steps alone would look alike for any multiple
        np.testing.assert_allclose(summed.variables()[name].numpy(), slot.numpy(), rtol=1e-4, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(weights(summed), weights(whole), rtol=1e-5, atol=1e-6)
    assert int(summed.optimizer.updates.numpy()) == 3


def test_a_sum_that_is_not_complete_moves_no_weight():
    step = make(accumulate=3)
    before = weights(step)
    step(batch(), 0)
    step(batch(seed=1), 1)
    np.testing.assert_array_equal(weights(step), before)
    step(batch(seed=2), 2)
    assert (weights(step) != before).all()


@pytest.mark.parametrize("bad", [0, 1])
def test_one_batch_that_is_not_finite_discards_all_that_is_summed_with_it(bad):
    step = make(accumulate=2, scale=8.0)
    before = everything(step)
    for place in range(2):
        step(spoilt(batch(seed=place)) if place == bad else batch(seed=place), place)
    after = everything(step)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"loss_scale.scale", "loss_scale.skipped", "loss_scale.skipped_in_a_row"}
    assert all(not after[name].any() for name in after if name.startswith("sum."))
    assert (after["loss_scale.scale"], after["loss_scale.skipped"]) == (4, 1)
    fresh = make(accumulate=2, scale=4.0)
    for place in (2, 3):
        step(batch(seed=place), place)
        fresh(batch(seed=place), place)
    np.testing.assert_array_equal(weights(step), weights(fresh))


def test_a_step_that_is_not_finite_changes_neither_weights_nor_slots_nor_schedule():
    step = make(scale=8.0)
    step(batch(), 0)
    before = everything(step)
    report = step(spoilt(batch()), 1).numpy()
    assert report[FINITE] == 0
    after = everything(step)
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {
        "loss_scale.scale", "loss_scale.skipped", "loss_scale.skipped_in_a_row", "loss_scale.good"
    }  # fmt: skip
    assert step(batch(), 2).numpy()[RATE] == np.float32(0.1)  # the rate of update 1, as if nothing had been


def test_the_counters_in_the_report_are_those_after_the_step():
    step, told = make(accumulate=2, scale=8.0), []
    given = [batch(seed=number) for number in range(8)]
    for number, one in enumerate([*given[:2], spoilt(given[2]), *given[3:5], spoilt(given[5]), *given[6:]]):
        report = dict(zip(step.measured, step(one, number).numpy().tolist(), strict=True))
        assert {name: report[name] for name in COUNTED} == step.counters()
        told.append((report["updates"], report["skipped_steps"], report["skipped_in_a_row"]))
    assert told == [(0, 0, 0), (1, 0, 0), (1, 0, 0), (1, 1, 1), (1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 0)]


def test_a_partial_batch_is_normalised_by_its_real_rows():
    partial, small = make(batch_size=8), make(batch_size=5)
    given = batch(8, real=5)
    one = partial(given, 0).numpy()
    other = small({name: value[:5] for name, value in given.items()}, 0).numpy()
    np.testing.assert_allclose(one, other, rtol=1e-5)
    np.testing.assert_allclose(weights(partial), weights(small), rtol=1e-6)


def test_gradients_are_clipped_after_they_are_unscaled():
    """A scale of 2^10 alone must not make gradients of norm 8 look like 8192 and shrink them to the bound."""
    free, bound, scaled = make(clip_norm=0.0), make(clip_norm=1.0), make(clip_norm=1.0, scale=1024.0)
    norms = [step(batch(), 0).numpy()[NORM] for step in (free, bound, scaled)]
    assert norms[0] == norms[1] == norms[2] > 1  # what is reported is the norm before clipping
    slots = [list(step.optimizer.mean.values()) for step in (free, bound, scaled)]
    mean = [np.concatenate([slot.numpy().ravel() for slot in each]) for each in slots]
    assert np.linalg.norm(mean[0]) == pytest.approx(0.1 * norms[0], rel=1e-5)
    assert np.linalg.norm(mean[1]) == pytest.approx(0.1, rel=1e-5)
    np.testing.assert_allclose(mean[2], mean[1], rtol=1e-6)


def test_the_scale_saves_gradients_that_float16_cannot_hold():
    """Gradients of 1e-9 are zero in float16 (smallest: 6e-8), unless the loss was scaled before the backward pass."""
    moved = {}
    for scale in (1.0, 2.0**15):
        step = make(compute=tf.float16, scale=scale, squash=1e-9, clip_norm=0.0)
        step(batch(), 0)
        moved[scale] = np.abs(step.optimizer.mean["layer.kernel"].numpy()).max()
    assert moved[1.0] == 0
    assert moved[2.0**15] > 0


def test_a_scale_too_high_for_float16_is_halved_until_steps_are_taken():
    step = make(compute=tf.float16, scale=2.0**24)
    before = weights(step)
    skips = 0
    while step(batch(), skips).numpy()[FINITE] == 0:
        np.testing.assert_array_equal(weights(step), before)
        skips += 1
    assert 5 <= skips <= 20
    assert float(step.loss_scale.scale.numpy()) == 2.0 ** (24 - skips)
    assert all(np.isfinite(value).all() for value in everything(step).values())


def test_the_variable_whose_gradient_is_not_finite_is_named():
    step = make()
    step.optimizer.weights["layer.kernel"].assign(np.full((4, 3), 1e20, np.float32))
    assert step.first_not_finite(batch() | {"y": batch()["y"] * 0}, 0) == "none; only their norm overflows"
    step.optimizer.weights["layer.kernel"].assign(np.full((4, 3), 1e38, np.float32))
    given = batch() | {"x": tf.constant(np.full((8, 4), 3.0, np.float32))}  # 3 * 3 * 1e38 is too much, 3 * 1e38 is not
    assert step.first_not_finite(given | {"x": given["x"] / 4 * 3}, 0) == "layer.kernel"


def test_each_batch_shape_is_remembered():
    step = make()
    for rows in (8, 4, 8):
        step(batch(rows), 0)
    assert step.shapes == {(8, 1), (4, 1)}


def test_seeds_differ_between_steps_and_repeat_for_one():
    seen = {}
    weight = {"w.kernel": tf.Variable(1.0)}

    def objective(given, seed):
        noise = tf.random.stateless_uniform([], seed)
        return {"loss": weight["w.kernel"] * tf.reduce_sum(given["weight"]) * noise}

    step = Step(objective, AdamW(weight, lambda done: 0.0), LossScale(False), batch_size=8, seed=3)
    for number in (0, 1, 2, 1):
        seen.setdefault(number, []).append(float(step(batch(), number).numpy()[NORM]))
    assert seen[1][0] == seen[1][1]
    assert len({values[0] for values in seen.values()}) == 3


def test_the_device_counts_steps_in_a_row_by_itself_and_the_host_sets_it_where_it_must(monkeypatch):
    step, told = make(), []
    clock = step._clock
    monkeypatch.setattr(step, "_clock", lambda number: told.append(number) or clock(number))
    for number in (0, 1, 2, 2, 3, 7, 8):
        step(batch(), number)
    assert told == [2, 7]  # 0 is where it starts
    assert step._ticks.numpy().tolist() == [0, 9]
    step.restart(seed=5)
    step(batch(), 0)
    assert (told, step._ticks.numpy().tolist()) == ([2, 7, 0], [5, 1])


def test_a_step_that_failed_leaves_no_doubt_about_the_clock():
    step = make()
    step(batch(), 0)
    with pytest.raises(Exception, match="x"):
        step({name: value for name, value in batch().items() if name != "x"}, 1)
    step(batch(), 1)
    assert step._ticks.numpy().tolist() == [0, 2]


@pytest.mark.parametrize("jit", [False, True])
def test_vectors_of_one_length_are_stacked_and_come_back_as_they_were(jit):
    random = np.random.default_rng(0)
    shapes = {"a": (5,), "b": (5,), "c": (2, 5), "d": (7,), "e": (2, 5), "f": (3, 2, 2)}
    given = {name: tf.constant(random.normal(size=shape), tf.float32) for name, shape in shapes.items()}
    tf.config.run_functions_eagerly(not jit)
    rows, squares = tf.function(grouped, jit_compile=jit or None, autograph=False)(given, jit)
    assert list(rows) == list(given)
    for name, value in given.items():
        np.testing.assert_array_equal(rows[name], value)
    expected = sum((value.numpy() ** 2).sum() for value in given.values())
    assert float(tf.reduce_sum(squares)) == pytest.approx(expected, rel=1e-6)
