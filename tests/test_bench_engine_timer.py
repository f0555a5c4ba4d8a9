"""How the entrants of scripts/bench_engine.py are timed, and what a plan's entrant is, on a made-up GPU."""

from typing import Any

import numpy as np
import pytest
from bench_engine_kit import FakeContext, Gpu, fake_trt

from scripts import bench_engine_timer
from scripts.bench_engine_opened import Opened
from scripts.bench_engine_timer import Entrant


def test_times_are_those_of_a_replay_whoever_else_takes_turns(monkeypatch):
    gpu = Gpu()
    monkeypatch.setattr(bench_engine_timer, "driver", lambda: gpu)
    costs = [0.25, 3.0]
    entrants = [Entrant(lambda cost=cost: gpu.spend(cost), 7, np.zeros(0)) for cost in costs]
    found = bench_engine_timer.take_turns(entrants, 100)
    assert [replays for _, replays in found] == [8, 1]
    for (times, _), cost in zip(found, costs, strict=True):
        assert times.shape == (4, 25)
        np.testing.assert_allclose(times, cost)


def test_alone_is_the_time_of_a_replay_with_nothing_before_it_but_its_own(monkeypatch):
    gpu = Gpu()
    monkeypatch.setattr(bench_engine_timer, "driver", lambda: gpu)
    taken = iter([*[3.0] * 151, *[2.0] * 151])  # one that speeds up: what counts is the second half
    entrant = Entrant(lambda: gpu.spend(next(taken)), 7, np.zeros(0))
    assert bench_engine_timer.alone(entrant, once=2.0) == 2.0
    assert next(taken, None) is None


def test_an_output_is_that_of_a_replay_over_poisoned_memory(monkeypatch):
    gpu = Gpu()
    context = FakeContext(gpu, "")
    trt = fake_trt(context)
    opened: Any = Opened(trt, b"plan", (), None)
    found = opened.entrant(gpu, {"token_ids": np.zeros((2, 3), np.int32)}, (1, 4), np.float16)
    assert context.shapes == {"token_ids": (2, 3)}
    assert found.output[0, :2].tolist() == [2, 2]  # what only the first run has written is gone
    assert np.isnan(found.output[0, 2:]).all()
    assert (trt.config.dynamic_shapes_kernel_specialization_strategy, found.stream) == ("eager", 7)
    for refused, said in (("shape", "the shape"), ("encoded", "an address for encoded"), ("run", "to run")):
        gpu = Gpu()
        opened = Opened(fake_trt(FakeContext(gpu, refused)), b"plan", (), None)
        with pytest.raises(RuntimeError, match=f"TensorRT refused {said}"):
            opened.entrant(gpu, {"token_ids": np.zeros((2, 3), np.int32)}, (1, 4), np.float16)
    with pytest.raises(RuntimeError, match="cannot read the plan"):
        Opened(fake_trt(None), b"plan", (), None)
