"""Skip-layer-norm for TensorRT: what it takes, what it gives, what to launch."""

import math
from collections.abc import Mapping
from typing import ClassVar

from plugins.launch import Launch
from plugins.registration import Plugin


class SkipLayerNorm(Plugin):
    """x A rows+[H], residual A rows+[H], bias A [H], gamma float32 [H], beta float32 [H] -> y A rows+[H]."""

    op = "skip_layer_norm"
    attributes: ClassVar = {"epsilon": 1e-12}
    inputs: ClassVar = {"x": "A", "residual": "A", "bias": "A", "gamma": "float32", "beta": "float32"}

    def output_shape(self, shapes):
        return shapes["x"]

    def launches(self, shapes: Mapping, dtype: str, kernels: Mapping) -> list[Launch]:
        *leading, width = shapes["x"]
        if shapes["residual"] != shapes["x"] or any(shapes[name] != (width,) for name in ("bias", "gamma", "beta")):
            raise ValueError(f"{self.op}: shapes {dict(shapes)} do not belong together")
        format = self.values.get("format", "")
        kernel, rows = f"skip_layer_norm-{width}-{dtype}{format and '-'}{format}", math.prod(leading)
        each = kernels[kernel].constants["ROWS"]
        numbers = [self.values[name] for name in ("epsilon", "inverse_scale") if name in self.values]
        return [Launch(kernel, (-(-rows // each),), (*self.inputs, *self.outputs, rows, *numbers))]


class SkipLayerNorm8(SkipLayerNorm):
    """The same, and y * inverse_scale in float8 or int8 beside it: the next product takes q, the next residual is y."""

    op = "skip_layer_norm8"
    attributes: ClassVar = {"epsilon": 1e-12, "inverse_scale": 1.0, "format": "float8"}
    outputs: ClassVar = {"y": "A", "q": "Q"}
