"""linear and linear_gelu for TensorRT: what they take and give, and whether cuBLASLt or our kernels compute it."""

import dataclasses
import math
from collections.abc import Container, Mapping
from typing import ClassVar

from plugins.gelu.plugin import Gelu
from plugins.launch import Launch
from plugins.linear import kernel, large
from plugins.linear.matmul import WORKSPACE, Matmul
from plugins.linear.product import Product
from plugins.registration import Plugin, Run

FEW_TOKENS = 128  # up to which our kernel is the faster one, where there is one for the weight
LARGE_TOKENS = 512  # from which `large.py` is faster than cuBLASLt and a kernel of GELU, where cuBLASLt has none in it


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
        if self.ours(product, self.kernels or ()):
            return super().prepare(shapes, dtype)
        return self.by_cublaslt(product)

    def by_cublaslt(self, product: Product) -> Run:
        matmul = Matmul(product)

        def run(stream, addresses, workspace):
            x, weight, bias, y = addresses
            matmul(stream, x, weight, bias, y, workspace)

        return run

    def ours(self, product: Product, kernels: Container[str]) -> str:
        """The name of our kernel that is to be taken, of those that there are; "" where cuBLASLt is."""
        name = self.kernel_name(product, "few")
        return name if product.tokens <= FEW_TOKENS and name in kernels else ""

    def launches(self, shapes: Mapping, dtype: str, kernels: Mapping) -> list[Launch]:
        product = self.product(shapes, dtype)
        if not product.tokens:
            return []
        name = self.ours(product, kernels)
        if name == self.kernel_name(product, "large"):
            return [large.launch(name, product.tokens, product.inputs, product.outputs, eight=False)]
        constants = kernels[name].constants
        grid = (product.outputs // constants["BLOCK_M"], -(-product.tokens // constants["BLOCK_T"]))
        return [Launch(name, grid, ("x", "weight", "bias", "y", product.tokens))]

    def kernel_name(self, product: Product, kind: str) -> str:
        approximate = self.values.get("approximate", "")
        return kernel.name(product.inputs, product.outputs, approximate, product.dtype, kind)

    def product(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Product:
        """The product of these shapes. Raises ValueError where they don't fit each other."""
        x, weight, bias = (tuple(shapes[name]) for name in ("x", "weight", "bias"))
        if not x or len(weight) != 2 or x[-1] != weight[0] or bias != weight[1:]:
            seen = f"x {list(x)}, weight {list(weight)}, bias {list(bias)}"
            raise ValueError(f"{self.op}: {seen}; needed are rows + [K], [K, M] and [M]")
        return Product(math.prod(x[:-1]), weight[0], weight[1], dtype, gelu=self.op == "linear_gelu")


class LinearGelu(Linear):
    """GELU of it; cuBLASLt has the tanh form alone."""

    op = "linear_gelu"
    attributes: ClassVar = {"approximate": "tanh"}

    def workspace(self, shapes: Mapping, dtype: str) -> int:
        between = 2 * math.prod(shapes["y"]) if self.values["approximate"] == "none" else 0  # bytes of the sums
        return super().workspace(shapes, dtype) + between

    def ours(self, product: Product, kernels: Container[str]) -> str:
        many = self.values["approximate"] == "none" and product.tokens >= LARGE_TOKENS
        name = self.kernel_name(product, "large")
        return super().ours(product, kernels) or (name if many and name in kernels else "")

    def by_cublaslt(self, product: Product) -> Run:
        if self.values["approximate"] == "tanh":
            return super().by_cublaslt(product)
        matmul = Matmul(dataclasses.replace(product, gelu=False))
        rows = {"x": (product.tokens, product.outputs), "y": (product.tokens, product.outputs)}
        gelu = Gelu({"approximate": "none"}, self.kernels).prepare(rows, product.dtype)

        def run(stream, addresses, workspace):
            x, weight, bias, y = addresses
            sums = workspace + WORKSPACE
            matmul(stream, x, weight, bias, sums, workspace)
            gelu(stream, [sums, y], 0)

        return run
