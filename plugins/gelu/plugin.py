"""GELU for TensorRT: what it takes, what it gives, what to launch."""

import math
from collections.abc import Mapping
from typing import ClassVar

from plugins.launch import Launch
from plugins.registration import Plugin


class Gelu(Plugin):
    """x A any shape -> y A of its shape."""

    op = "gelu"
    attributes: ClassVar = {"approximate": "none"}
    inputs: ClassVar = {"x": "A"}

    def output_shape(self, shapes):
        return shapes["x"]

    def launches(self, shapes: Mapping, dtype: str, kernels: Mapping) -> list[Launch]:
        format = self.values.get("format", "")
        count = math.prod(shapes["x"])
        kernel = f"gelu-{self.values['approximate']}-{'odd' if count % 8 else 'even'}-{dtype}{format and '-'}{format}"
        block = kernels[kernel].constants["BLOCK"]
        if count > 2**31 - block:
            raise ValueError(f"gelu takes up to {2**31 - block} numbers, not {count}; make smaller batches")
        return [Launch(kernel, (-(-count // block),), ("x", count, "y", self.values.get("inverse_scale", 1.0)))]


class Gelu8(Gelu):
    """x A any shape -> y * inverse_scale in float8 or int8."""

    op = "gelu8"
    attributes: ClassVar = {"approximate": "none", "inverse_scale": 1.0, "format": "float8"}
    outputs: ClassVar = {"y": "Q"}
