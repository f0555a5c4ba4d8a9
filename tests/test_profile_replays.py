"""The kernels of a CUDA graph by time, and that the script asks for what it needs."""

import json

import pytest
from own_process import alone

from configs.errors import UsageError
from scripts import profile_replays


def test_kernels_are_summed_by_name_and_the_dearest_comes_first():
    events = [("norm", 2.0), ("product", 5.0), ("norm", 4.0), ("synchronize", 0.0), ("copy", 1.0)]
    assert profile_replays.summed(events) == {"norm": (2, 6.0), "product": (1, 5.0), "copy": (1, 1.0)}
    assert list(profile_replays.summed(events)) == ["norm", "product", "copy"]


def test_a_shape_that_is_none_is_refused_before_anything_is_built():
    with pytest.raises(UsageError, match="is no shape"):
        profile_replays.main(profile_replays.ProfileConfig(shapes=("32",)))


@pytest.mark.gpu
def test_a_small_size_has_our_kernels():
    pytest.importorskip("torch", reason="the kernels of a graph are listed by PyTorch's profiler, not installed")
    told = alone(["-m", "scripts.profile_replays", "--size", "bert-tiny", "--shapes", "2x16", "--replays", "2"])
    assert json.loads(told.splitlines()[-1])["metrics"]["2x16"] > 0
