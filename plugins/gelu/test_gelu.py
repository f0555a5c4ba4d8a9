"""GELU: reference, ONNX function, kernel and engine say the same."""

import math
from types import SimpleNamespace

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


def test_the_erf_form_is_exact_to_float32_and_keeps_infinity_and_nan():
    x = np.concatenate([np.linspace(-9, 9, 4001), [-np.inf, np.inf, np.nan, -1e30, 1e30, -0.0]]).astype(np.float32)
    case = SimpleNamespace(attributes={"approximate": "none"})
    (y,) = legs.interpreted("gelu", [(case, {"x": x}, "float32")])
    exact = np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in x[:4001].astype(float)])
    assert np.abs(y[:4001] - exact).max() < 1e-6
    np.testing.assert_array_equal(y[4001:], np.array([0, np.inf, np.nan, 0, 1e30, 0], np.float32))


def test_the_two_forms_differ_by_what_is_known():
    x = np.linspace(-6, 6, 2001)
    gap = np.abs(legs.part("gelu", "reference").gelu(x) - legs.part("gelu", "reference").gelu(x, approximate="tanh"))
    assert 4e-4 < gap.max() < 5e-4
