"""linear_skip_layer_norm for TensorRT: what it takes and gives, and whether cuBLASLt or our kernel multiplies."""

import math
from collections.abc import Mapping
from typing import ClassVar

from plugins.launch import Launch, Prepared
from plugins.linear.matmul import WORKSPACE, Matmul
from plugins.linear.product import Product
from plugins.linear_skip_layer_norm.kernel import names
from plugins.registration import Plugin, Run

# Up to how many tokens our product is the faster one, where there is one for the weight; and where K is at most 1024.
FEW_TOKENS, FEW_TOKENS_NARROW, NARROW = 128, 256, 1024


class LinearSkipLayerNorm(Plugin):
    """x A rows+[K], weight A [K, H], bias A [H], residual A rows+[H], gamma, beta float32 [H] -> y A rows+[H]."""

    op = "linear_skip_layer_norm"
    attributes: ClassVar = {"epsilon": 1e-12}
    inputs: ClassVar = {
        "x": "A", "weight": "A", "bias": "A", "residual": "A", "gamma": "float32", "beta": "float32",
    }  # fmt: skip

    def output_shape(self, shapes):
        return shapes["residual"]

    def workspace(self, shapes: Mapping, dtype: str) -> int:
        """cuBLASLt's, or the parts of a product, which are for few tokens only and at most K / 32."""
        inputs, width = shapes["weight"]
        tokens = min(FEW_TOKENS_NARROW, math.prod(shapes["x"][:-1]))
        return max(WORKSPACE, 4 * (inputs // 32) * tokens * width)

    def prepare(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Run:
        product = self.product(shapes, dtype)
        if not product.tokens or self.has_few(product):
            return super().prepare(shapes, dtype)
        if self.kernels is None:
            raise ValueError(f"{self.op} was registered without kernels, which is for building, not for running")
        matmul = Matmul(product)
        norm = Prepared(self.kernels, self._norm(product, self.kernels), [*self.inputs, "y", "workspace"])

        def run(stream, addresses, workspace):
            x, weight, bias, residual, _, _, y = addresses
            matmul(stream, x, weight, bias, y, workspace, residual)
            norm(stream, [*addresses, workspace])

        return run

    def launches(self, shapes: Mapping, dtype: str, kernels: Mapping) -> list[Launch]:
        """Those for few tokens."""
        product = self.product(shapes, dtype)
        if not product.tokens:
            return []
        called = names(product.inputs, product.outputs, dtype)
        constants = kernels[called["product"]].constants
        parts, tokens = constants["PARTS"], product.tokens
        grid = (product.outputs // constants["BLOCK_H"], -(-tokens // constants["BLOCK_T"]), parts)
        arguments = ("workspace", "residual", "bias", "gamma", "beta", "y", tokens, self.values["epsilon"])
        return [
            Launch(called["product"], grid, ("x", "weight", "workspace", tokens)),
            Launch(called["sum"], (tokens,), arguments),
        ]

    def _norm(self, product: Product, kernels: Mapping) -> Launch:
        """The norm in place, after cuBLASLt."""
        name = names(product.inputs, product.outputs, product.dtype)["norm"]
        grid = (-(-product.tokens // kernels[name].constants["ROWS"]),)
        arguments = ("y", "residual", "bias", "gamma", "beta", "y", product.tokens, self.values["epsilon"])
        return Launch(name, grid, arguments)

    def has_few(self, product: Product) -> bool:
        """Whether our own product is to be taken."""
        name = names(product.inputs, product.outputs, product.dtype)["product"]
        few = FEW_TOKENS_NARROW if product.inputs <= NARROW else FEW_TOKENS
        return product.tokens <= few and name in (self.kernels or ())

    def product(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Product:
        """The product of these shapes. Raises ValueError where they don't fit each other."""
        x, weight, residual = (tuple(shapes[name]) for name in ("x", "weight", "residual"))
        vectors = {tuple(shapes[name]) for name in ("bias", "gamma", "beta")}
        if (
            not x
            or len(weight) != 2
            or x[-1] != weight[0]
            or residual != (*x[:-1], weight[1])
            or vectors != {weight[1:]}
        ):
            raise ValueError(f"{self.op}: shapes {dict(shapes)} do not belong together")
        return Product(math.prod(x[:-1]), weight[0], weight[1], dtype, gelu=False, skip=True)
