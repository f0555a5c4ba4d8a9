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
            raise ValueError(f"skip_layer_norm: shapes {dict(shapes)} do not belong together")
        kernel, rows = f"skip_layer_norm-{width}-{dtype}", math.prod(leading)
        each = kernels[kernel].constants["ROWS"]
        arguments = ("x", "residual", "bias", "gamma", "beta", "y", rows, self.values["epsilon"])
        return [Launch(kernel, (-(-rows // each),), arguments)]
