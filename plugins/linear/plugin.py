"""linear and linear_gelu for TensorRT: what they take and give, and whether cuBLASLt or our kernel computes it."""

import math
from collections.abc import Mapping
from typing import ClassVar

from plugins.launch import Launch
from plugins.linear import kernel
from plugins.linear.matmul import WORKSPACE, Matmul
from plugins.linear.product import Product
from plugins.registration import Plugin, Run

FEW_TOKENS = 128  # up to which our kernel is the faster one, where there is one for the weight


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
        if product.tokens <= FEW_TOKENS and self.kernel_name(product) in (self.kernels or ()):
            return super().prepare(shapes, dtype)
        matmul = Matmul(product)

        def run(stream, addresses, workspace):
            x, weight, bias, y = addresses
            matmul(stream, x, weight, bias, y, workspace)

        return run

    def launches(self, shapes: Mapping, dtype: str, kernels: Mapping) -> list[Launch]:
        product = self.product(shapes, dtype)
        constants = kernels[name := self.kernel_name(product)].constants
        grid = (product.outputs // constants["BLOCK_M"], -(-product.tokens // constants["BLOCK_T"]))
        return [Launch(name, grid, ("x", "weight", "bias", "y", product.tokens))] if product.tokens else []

    def kernel_name(self, product: Product) -> str:
        return kernel.name(product.inputs, product.outputs, product.gelu, product.dtype)

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
