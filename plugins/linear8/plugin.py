"""linear8 and its kin for TensorRT: float8 by cuBLASLt, or by our kernels for few tokens and for many with GELU and
float8 after them; int8 by ours alone."""

import dataclasses
import math
from collections.abc import Container, Mapping
from typing import ClassVar

from plugins import formats
from plugins.launch import Launch, Prepared
from plugins.linear import large
from plugins.linear.matmul import WORKSPACE
from plugins.linear8.matmul8 import Matmul8, Product8, or_else
from plugins.registration import Plugin, Run

AFTER = {"linear8": "sum", "linear8_gelu": "gelu", "linear8_gelu8": "gelu8"}  # an operator in its kernels' names
FEW_TOKENS = 128  # up to which our kernel is the faster one in float8, where there is one for the weight
# From how many on `plugins/linear/large.py` is, where float8 is to be written: faster than cuBLASLt and a kernel after
# it, which the erf form and a scale for each output need, and than cuBLASLt alone. Measured on an H200.
LARGE_TOKENS_APART = 512
LARGE_TOKENS = 2048
# From how many bytes of x on cuBLASLt alone is the faster one again, without a pause between replays; why is not known.
# Between BERT-base's 12,288 tokens (9 MiB, ours) and BERT-large's (12 MiB, cuBLASLt's) nothing was measured.
LARGE_END = 10 << 20


def kernel_name(op: str, approximate: str, inputs: int, outputs: int, kind: str, dtype: str, format: str) -> str:
    """What the kernel for a weight [outputs, inputs] is called; kind: "few" or "large", of int8 also "tall", "wide"."""
    after = AFTER[op] + ("_erf" if op == "linear8_gelu8" and approximate == "none" else "")
    return f"linear8-{after}-{inputs}x{outputs}-{kind}-{dtype}-{format}"


def after_name(approximate: str, dtype: str) -> str:
    """What the kernel is called that makes float8 of a product's sums."""
    return f"linear8-after-{approximate}-{dtype}-float8"


class Linear8(Plugin):
    """x Q rows + [K], weight Q [M, K], bias A [M], scale float32 [1] or [M] -> y A rows + [M], y = (x W') scale + b."""

    op = "linear8"
    attributes: ClassVar = {"format": "float8"}
    inputs: ClassVar = {"x": "Q", "weight": "Q", "bias": "A", "scale": "float32"}

    def output_shape(self, shapes):
        return [*shapes["x"][:-1], shapes["weight"][0]]

    def workspace(self, shapes: Mapping, dtype: str) -> int:
        return WORKSPACE if self.values["format"] == "float8" else 0

    def prepare(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Run:
        product = self.product(shapes, dtype)
        if not product.tokens:
            return lambda stream, addresses, workspace: None
        if self.values["format"] == "int8" or self.ours(product, self.kernels or ()):
            return super().prepare(shapes, dtype)
        return self.by_cublaslt(product)

    def by_cublaslt(self, product: Product8) -> Run:
        matmul = Matmul8(product)

        def run(stream, addresses, workspace):
            x, weight, bias, scale, *inverse, y = addresses
            matmul(stream, x, weight, bias, y, workspace, scale, *inverse)

        return run

    def product(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Product8:
        """The product of these shapes. Raises ValueError where they don't fit each other."""
        x, weight, bias, scale = (tuple(shapes[name]) for name in ("x", "weight", "bias", "scale"))
        fits = x and len(weight) == 2 and x[-1] == weight[1] and bias == weight[:1] and scale in ((1,), weight[:1])
        if not fits or any(width % formats.MULTIPLE for width in weight):
            seen = f"x {list(x)}, weight {list(weight)}, bias {list(bias)}, scale {list(scale)}"
            raise ValueError(
                f"{self.op}: {seen}; needed are rows + [K], [M, K], [M] and [1] or [M], K and M multiples of "
                f"{formats.MULTIPLE}"
            )
        return Product8(
            math.prod(x[:-1]), weight[1], weight[0], dtype, gelu=self.op != "linear8", channels=scale != (1,),
            float8_out=self.outputs["y"] == "Q",
        )  # fmt: skip

    def ours(self, product: Product8, kernels: Container[str]) -> str:
        """The name of our kernel that is to be taken, of those that there are; "" where cuBLASLt is."""
        few, large = (self.kernel(product, kind) for kind in ("few", "large"))
        if self.values["format"] == "int8":
            wide = large if large in kernels else self.kernel(product, "wide")
            return self.kernel(product, "tall") if product.tokens <= 128 else wide
        if product.tokens <= FEW_TOKENS and few in kernels:
            return few
        return large if large in kernels and self.many(product) else ""

    def many(self, product: Product8) -> bool:
        """Whether our kernel for many tokens, where there is one for the weight, is faster than cuBLASLt."""
        return product.tokens >= LARGE_TOKENS and product.tokens * product.inputs < LARGE_END

    def kernel(self, product: Product8, kind: str) -> str:
        sizes = (product.inputs, product.outputs)
        return kernel_name(
            self.op, self.values.get("approximate", ""), *sizes, kind, product.dtype, self.values["format"]
        )

    def launches(self, shapes: Mapping, dtype: str, kernels: Mapping) -> list[Launch]:
        """int8, or float8 for few tokens and for many."""
        product = self.product(shapes, dtype)
        if not product.tokens:
            return []
        if product.tokens * max(product.inputs, product.outputs) >= 2**31:
            raise ValueError(f"{self.op}: {product.tokens} tokens are too many; make smaller batches")
        float8, to_8 = self.values["format"] == "float8", "inverse_scale" in self.inputs
        kernel, each = self.ours(product, kernels), int(product.channels)  # how far apart the scales of two outputs are
        if kernel == self.kernel(product, "large"):
            sizes = (product.tokens, product.inputs, product.outputs)
            return [large.launch(kernel, *sizes, eight=True, each=each, to_8=to_8)]
        rows, columns = kernels[kernel].constants["BLOCK_T"], kernels[kernel].constants["BLOCK_M"]
        grid = (-(-product.outputs // columns), -(-product.tokens // rows))
        # A float8 kernel has a place for an inverse scale even where there is none: the scale stands for it, unread.
        unread = ("scale",) if float8 and not to_8 else ()
        return [Launch(kernel, grid, (*self.inputs, *unread, "y", product.tokens, each))]


class Linear8Gelu(Linear8):
    """GELU of it, in the tanh form."""

    op = "linear8_gelu"


class Linear8Gelu8(Linear8):
    """That times inverse_scale float32 [1], in Q; or with the erf form of GELU."""

    op = "linear8_gelu8"
    attributes: ClassVar = {**Linear8.attributes, "approximate": "tanh"}
    inputs: ClassVar = {**Linear8.inputs, "inverse_scale": "float32"}
    outputs: ClassVar = {"y": "Q"}

    def workspace(self, shapes: Mapping, dtype: str) -> int:
        between = 2 * math.prod(shapes["y"])  # bytes of the sums in A, where they go through memory
        return super().workspace(shapes, dtype) and WORKSPACE + between

    def many(self, product: Product8) -> bool:
        return product.tokens >= LARGE_TOKENS_APART if self._apart(product) else super().many(product)

    def _apart(self, product: Product8) -> bool:
        """Whether cuBLASLt has no epilogue for it."""
        return product.channels or self.values["approximate"] == "none"

    def by_cublaslt(self, product: Product8) -> Run:
        if self._apart(product):
            return self._in_two_steps(product)
        usual = super().by_cublaslt
        what = "bias, GELU and float8 are a kernel of their own there"
        return or_else(lambda: usual(product), lambda: self._in_two_steps(product), what)

    def _in_two_steps(self, product: Product8) -> Run:
        """Where cuBLASLt does not write float8: y in A into the workspace, from there through GELU into float8."""
        if self.kernels is None:
            raise ValueError(f"{self.op} was registered without kernels, which is for building, not for running")
        matmul = Matmul8(dataclasses.replace(product, gelu=False, float8_out=False))
        count, name = product.tokens * product.outputs, after_name(self.values["approximate"], product.dtype)
        grid = (-(-count // int(self.kernels[name].constants["BLOCK"])),)
        launch = Launch(name, grid, ("sums", count, "inverse_scale", "y"))
        after = Prepared(self.kernels, launch, ("sums", "inverse_scale", "y"))

        def run(stream, addresses, workspace):
            x, weight, bias, scale, inverse_scale, y = addresses
            sums = workspace + WORKSPACE
            matmul(stream, x, weight, bias, sums, workspace, scale)
            after(stream, [sums, inverse_scale, y])

        return run
