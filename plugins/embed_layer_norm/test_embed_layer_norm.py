"""Embeddings: reference, ONNX function, kernel and engine say the same."""

import pytest

from plugins.suite import SameEverywhere


class TestEmbedLayerNorm(SameEverywhere):
    ops = ("embed_layer_norm", "embed_layer_norm8")

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_tensorrt_takes_the_plugin_only_where_it_is_registered(self, dtype):
        assert self.plugin_layers("embed_layer_norm", "tinybert", dtype, ["embed_layer_norm"]) == 1
        assert self.plugin_layers("embed_layer_norm", "tinybert", dtype, []) == 0
        for name in ("float8", "int8"):
            assert self.plugin_layers("embed_layer_norm8", name, dtype, ["embed_layer_norm"]) == 1
