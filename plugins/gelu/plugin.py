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
        count = math.prod(shapes["x"])
        kernel = f"gelu-{self.values['approximate']}-{'odd' if count % 8 else 'even'}-{dtype}"
        block = kernels[kernel].constants["BLOCK"]
        if count > 2**31 - block:
            raise ValueError(f"gelu takes up to {2**31 - block} numbers, not {count}; make smaller batches")
        return [Launch(kernel, (-(-count // block),), ("x", count, "y"))]
