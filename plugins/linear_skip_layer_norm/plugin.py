"""linear_skip_layer_norm and its kin for TensorRT: what they take and give, and whether cuBLASLt or our kernel
multiplies."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

from plugins import formats
from plugins.launch import Launch, Prepared
from plugins.linear.matmul import WORKSPACE, Matmul
from plugins.linear.product import Product
from plugins.linear8.matmul8 import Matmul8, Product8, or_else
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
        product = self.product(shapes, dtype)
        tokens = min(FEW_TOKENS_NARROW, product.tokens)
        return max(WORKSPACE, 4 * (product.inputs // 32) * tokens * product.outputs)

    def prepare(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Run:
        product = self.product(shapes, dtype)
        if not product.tokens or self.has_few(product):
            return super().prepare(shapes, dtype)
        if self.kernels is None:
            raise ValueError(f"{self.op} was registered without kernels, which is for building, not for running")
        return self.by_cublaslt(product)

    def by_cublaslt(self, product: Product) -> Run:
        """For many tokens: cuBLASLt writes the sum to y, and the norm goes over it in place."""
        matmul, norm = Matmul(product), self._after(product, "norm")

        def run(stream, addresses, workspace):
            x, weight, bias, residual, _, _, y, *_ = addresses
            matmul(stream, x, weight, bias, y, workspace, residual)
            norm(stream, addresses)

        return run

    def launches(self, shapes: Mapping, dtype: str, kernels: Mapping) -> list[Launch]:
        """Those for few tokens."""
        product = self.product(shapes, dtype)
        if not product.tokens:
            return []
        called = self.names(product)
        constants = kernels[called["product"]].constants
        parts, tokens = constants["PARTS"], product.tokens
        grid = (product.outputs // constants["BLOCK_H"], -(-tokens // constants["BLOCK_T"]), parts)
        return [
            Launch(called["product"], grid, ("x", "weight", "workspace", tokens)),
            self.norm(product, "sum", kernels, "workspace"),
        ]

    def norm(self, product: Product, kind: str, kernels: Mapping, s: str = "y") -> Launch:
        """The norm of what lies in the tensor `s`: "norm" and "add" in place after cuBLASLt, "sum" of parts."""
        name = self.names(product)[kind]
        grid = (-(-product.tokens // kernels[name].constants["ROWS"]),)
        # Where there is no scale and no q, another tensor of their type stands for them and is not touched.
        scale = "scale" if "scale" in self.inputs else "gamma"
        numbers = (int(getattr(product, "channels", False)), self.values["epsilon"])
        q, inverse_scale = ("q", self.values["inverse_scale"]) if "q" in self.outputs else ("y", 1.0)
        tensors = (s, "residual", "bias", scale, "gamma", "beta", "y", q)
        return Launch(name, grid, (*tensors, product.tokens, *numbers, inverse_scale))

    def _after(self, product: Product, kind: str) -> Prepared:
        assert self.kernels is not None
        return Prepared(self.kernels, self.norm(product, kind, self.kernels), [*self.inputs, *self.outputs])

    def names(self, product: Product) -> dict[str, str]:
        q = self.values["format"] if "q" in self.outputs else ""
        return names(product.inputs, product.outputs, product.dtype, isinstance(product, Product8), q)

    def has_few(self, product: Product) -> bool:
        """Whether our own product is to be taken."""
        few = FEW_TOKENS_NARROW if product.inputs <= NARROW else FEW_TOKENS
        return product.tokens <= few and self.names(product)["product"] in (self.kernels or ())

    def product(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Product:
        """The product of these shapes. Raises ValueError where they don't fit each other."""
        x, weight = tuple(shapes["x"]), tuple(shapes["weight"])
        self._check(shapes, x, weight)
        return Product(math.prod(x[:-1]), weight[0], weight[1], dtype, gelu=False, skip=True)

    def _check(self, shapes: Mapping, x: tuple[int, ...], weight: tuple[int, ...]) -> None:
        """weight: as [K, H]"""
        vectors = {tuple(shapes[name]) for name in ("bias", "gamma", "beta")}
        fits = x and len(weight) == 2 and x[-1] == weight[0] and vectors == {weight[1:]}
        if not fits or tuple(shapes["residual"]) != (*x[:-1], weight[1]):
            raise ValueError(f"{self.op}: shapes {dict(shapes)} do not belong together")


class LinearSkipLayerNorm8(LinearSkipLayerNorm):
    """The same, and y * inverse_scale in float8 or int8 beside it: the next product takes q, the next residual is y."""

    op = "linear_skip_layer_norm8"
    attributes: ClassVar = {"epsilon": 1e-12, "inverse_scale": 1.0, "format": "float8"}
    outputs: ClassVar = {"y": "A", "q": "Q"}


class Linear8SkipLayerNorm(LinearSkipLayerNorm):
    """x float8 rows+[K], weight float8 [H, K], scale float32 [1] or [H] in place of two tensors of A."""

    op = "linear8_skip_layer_norm"
    attributes: ClassVar = {"epsilon": 1e-12, "format": "float8"}
    inputs: ClassVar = {
        "x": "Q", "weight": "Q", "bias": "A", "scale": "float32", "residual": "A", "gamma": "float32",
        "beta": "float32",
    }  # fmt: skip

    def by_cublaslt(self, product: Product) -> Run:
        assert isinstance(product, Product8)
        return or_else(
            lambda: self._product_and(product, "norm"),
            lambda: self._product_and(dataclasses.replace(product, skip=False), "add"),
            "the residual is added by the norm there",
        )

    def _product_and(self, product: Product8, kind: str) -> Run:
        matmul, norm = Matmul8(product), self._after(product, kind)

        def run(stream, addresses, workspace):
            x, weight, bias, scale, residual, _, _, y, *_ = addresses
            matmul(stream, x, weight, bias, y, workspace, scale, residual=residual)
            norm(stream, addresses)

        return run

    def product(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Product8:
        x, weight, scale = (tuple(shapes[name]) for name in ("x", "weight", "scale"))
        self._check(shapes, x, weight[::-1])
        if scale not in ((1,), weight[:1]) or any(width % formats.MULTIPLE for width in weight):
            raise ValueError(
                f"{self.op}: weight {list(weight)}, scale {list(scale)}; needed are [H, K], multiples of "
                f"{formats.MULTIPLE}, and [1] or [H]"
            )
        if self.values["format"] != "float8":
            raise ValueError(
                f"{self.op} multiplies float8; take linear8 and skip_layer_norm for {self.values['format']}"
            )
        rows, (outputs, inputs) = math.prod(x[:-1]), weight
        return Product8(rows, inputs, outputs, dtype, gelu=False, skip=True, channels=scale != (1,))


class Linear8SkipLayerNorm8(Linear8SkipLayerNorm):
    """That, and y * inverse_scale in float8 beside it."""

    op = "linear8_skip_layer_norm8"
    attributes: ClassVar = LinearSkipLayerNorm8.attributes
    outputs: ClassVar = LinearSkipLayerNorm8.outputs
