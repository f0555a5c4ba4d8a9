"""GELU: reference, ONNX function, kernel and engine say the same."""

import numpy as np
import pytest

from plugins import legs
from plugins.suite import SameEverywhere


class TestGelu(SameEverywhere):
    ops = ("gelu", "gelu8")

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_tensorrt_takes_the_plugin_only_where_it_is_registered(self, dtype):
        assert self.plugin_layers("gelu", "odd", dtype, ["gelu"]) == 1
        assert self.plugin_layers("gelu", "odd", dtype, []) == 0
        for name in ("float8", "int8"):
            assert self.plugin_layers("gelu8", name, dtype, ["gelu"]) == 1


def test_the_two_forms_differ_by_what_is_known():
    x = np.linspace(-6, 6, 2001)
    gap = np.abs(legs.part("gelu", "reference").gelu(x) - legs.part("gelu", "reference").gelu(x, approximate="tanh"))
    assert 4e-4 < gap.max() < 5e-4
