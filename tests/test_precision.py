"""What --amp comes to mean, and the life of the loss scale."""

import numpy as np
import pytest
import tensorflow as tf

from configs.errors import UserError
from train import precision
from train.precision import LossScale


def walk(scale: LossScale, *steps: bool, ready: bool = True) -> float:
    """Account for steps (True: finite); returns the scale after them."""
    for finite in steps:
        scale.update(tf.constant(finite), tf.constant(ready), lambda variable: variable)
    return float(scale.scale.numpy())


def counters(scale: LossScale) -> dict[str, int]:
    return {name.split(".")[1]: int(v.numpy()) for name, v in scale.variables().items() if name != "loss_scale.scale"}


def test_amp_alone_is_float16_on_a_gpu_and_bfloat16_on_a_cpu():
    assert precision.choose("auto", gpu=True).policy == "mixed_float16"
    assert precision.choose("auto", gpu=False).policy == "mixed_bfloat16"
    assert "CPU" in precision.choose("auto", gpu=False).reason
    assert precision.choose(None, gpu=True).policy == "float32"


@pytest.mark.parametrize("word", ["float32", "float16", "bfloat16"])
def test_a_precision_asked_for_by_name_is_taken_on_any_device(word):
    assert {precision.choose(word, gpu).compute for gpu in (True, False)} == {word}


def test_only_float16_is_scaled():
    assert [precision.choose(word, True).scaled for word in ("float16", "bfloat16", "float32")] == [True, False, False]


def test_an_unknown_precision_is_named():
    with pytest.raises(UserError, match="float8"):
        precision.choose("float8", gpu=True)


def test_the_scale_starts_at_two_to_the_fifteenth_and_doubles_on_the_2000th_finite_step():
    scale = LossScale(True)
    assert float(scale.scale.numpy()) == 2**15
    scale.good.assign(1998)
    assert walk(scale, True) == 2**15
    assert walk(scale, True) == 2**16
    assert counters(scale)["good"] == 0


def test_the_scale_doubles_after_an_unbroken_stretch_only():
    scale = LossScale(True, 1024, growth_interval=3)
    assert walk(scale, True, True, False) == 512
    assert walk(scale, True, True) == 512  # two before the break do not count
    assert walk(scale, True) == 1024
    assert walk(scale, True, True, True) == 2048


def test_every_non_finite_step_halves_the_scale_down_to_the_floor():
    scale = LossScale(True, 8, floor=2)
    assert [walk(scale, False) for _ in range(4)] == [4, 2, 2, 2]
    assert counters(scale) == {"good": 0, "skipped": 4, "skipped_in_a_row": 4}


def test_the_scale_stops_at_its_cap():
    assert walk(LossScale(True, 2, growth_interval=1, cap=8), *[True] * 5) == 8


def test_a_finite_step_ends_the_row_of_skips_but_not_their_count():
    scale = LossScale(True)
    walk(scale, False, False, True)
    assert counters(scale) == {"good": 1, "skipped": 2, "skipped_in_a_row": 0}


def test_nothing_is_counted_while_gradients_are_still_being_summed():
    scale = LossScale(True, 4, growth_interval=1)
    assert walk(scale, True, False, ready=False) == 4
    assert counters(scale) == {"good": 0, "skipped": 0, "skipped_in_a_row": 0}


def test_without_scaling_the_scale_stays_one_and_skips_are_counted_all_the_same():
    scale = LossScale(False, growth_interval=1)
    assert walk(scale, True, False, False) == 1
    assert counters(scale) == {"good": 0, "skipped": 2, "skipped_in_a_row": 2}


@pytest.mark.parametrize(("settings", "named"), [
    ({"initial": 2.0**25}, "3.35544e[+]07"),
    ({"initial": 0.5}, "0.5"),
    ({"floor": 4.0, "cap": 2.0}, "4 to 2"),
    ({"growth_interval": 0}, "growth-interval 0"),
])  # fmt: skip
def test_settings_that_contradict_each_other_are_named(settings, named):
    with pytest.raises(UserError, match=named):
        LossScale(True, **settings)


def test_a_scale_and_its_half_are_exact_in_float32():
    """Scaling must not round: the default scale, its cap and floor are powers of two."""
    scale = LossScale(True)
    seen = [walk(scale, False) for _ in range(20)]
    assert all(np.log2(value) == int(np.log2(value)) for value in seen)
    assert seen[-1] == 1
