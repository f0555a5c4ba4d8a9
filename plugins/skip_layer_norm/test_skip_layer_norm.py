"""Skip-layer-norm: reference, ONNX function, kernel and engine say the same."""

import numpy as np
import pytest

from plugins import legs
from plugins.suite import SameEverywhere


class TestSkipLayerNorm(SameEverywhere):
    ops = ("skip_layer_norm", "skip_layer_norm8")

    def test_a_number_beyond_the_format_is_its_end_and_nan_stays_nan(self, kernel_results):
        for name, most in (("float8 beyond", 448), ("int8 beyond", 127)):
            _, q = kernel_results["skip_layer_norm8", name, "float16"]
            assert q.max() == most
            assert q.min() == -most
        given = legs.inputs("skip_layer_norm8", self.case("float8"), "float16")
        given["x"][0, 0, 0] = np.nan
        ((y, q),) = legs.interpreted("skip_layer_norm8", [(self.case("float8"), given, "float16")])
        assert np.isnan(y[0, 0]).all()
        assert np.isnan(q[0, 0]).all()
        assert np.isfinite(q[0, 1:]).all()

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_tensorrt_takes_the_plugin_only_where_it_is_registered(self, dtype):
        for op, name in (("skip_layer_norm", "tinybert"), ("skip_layer_norm8", "float8"), ("skip_layer_norm8", "int8")):
            assert self.plugin_layers(op, name, dtype, ["skip_layer_norm"]) == 1
        # TensorRT has float8 from a QuantizeLinear alone, so the body of the 8-bit one is ONNX Runtime's.
        assert self.plugin_layers("skip_layer_norm", "tinybert", dtype, []) == 0
