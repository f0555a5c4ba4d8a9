"""linear and linear_gelu for TensorRT: what they take and give; no kernel of ours, cuBLASLt computes."""

import math
from collections.abc import Mapping
from typing import ClassVar

from plugins.linear.matmul import WORKSPACE, Matmul
from plugins.linear.product import Product
from plugins.registration import Plugin, Run


class Linear(Plugin):
    """x A rows + [K], weight A [K, M], bias A [M] -> y A rows + [M], y = x W + b."""

    op = "linear"
    inputs: ClassVar = {"x": "A", "weight": "A", "bias": "A"}

    def output_shape(self, shapes):
        return [*shapes["x"][:-1], shapes["weight"][-1]]

    def workspace(self, shapes: Mapping, dtype: str) -> int:
        return WORKSPACE

    def prepare(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Run:
        product = self.product(shapes, dtype)
        if not product.tokens:
            return lambda stream, addresses, workspace: None
        matmul = Matmul(product)

        def run(stream, addresses, workspace):
            x, weight, bias, y = addresses
            matmul(stream, x, weight, bias, y, workspace)

        return run

    def product(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Product:
        """The product of these shapes. Raises ValueError where they don't fit each other."""
        x, weight, bias = (tuple(shapes[name]) for name in ("x", "weight", "bias"))
        if not x or len(weight) != 2 or x[-1] != weight[0] or bias != weight[1:]:
            seen = f"x {list(x)}, weight {list(weight)}, bias {list(bias)}"
            raise ValueError(f"{self.op}: {seen}; needed are rows + [K], [K, M] and [M]")
        return Product(math.prod(x[:-1]), weight[0], weight[1], dtype, gelu=self.op == "linear_gelu")


class LinearGelu(Linear):
    """GELU of it, in the tanh form."""

    op = "linear_gelu"
