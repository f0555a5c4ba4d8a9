"""linear8 and its kin for TensorRT: float8 by cuBLASLt, int8 by a kernel that does what cuBLASLt does not."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import ClassVar

from plugins import formats
from plugins.launch import Launch, Prepared
from plugins.linear.matmul import WORKSPACE, MatmulError
from plugins.linear8.matmul8 import Matmul8, Product8
from plugins.registration import Plugin, Run

AFTER = {"linear8": "sum", "linear8_gelu": "gelu", "linear8_gelu8": "gelu8"}  # an operator in its kernels' names
BLOCK = 1024  # numbers a program of the kernel after a product takes


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
        if self.values["format"] == "int8":
            return super().prepare(shapes, dtype)
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

    def launches(self, shapes: Mapping, dtype: str, kernels: Mapping) -> list[Launch]:
        """int8 alone."""
        product = self.product(shapes, dtype)
        if not product.tokens:
            return []
        if product.tokens * max(product.inputs, product.outputs) >= 2**31:
            raise ValueError(f"{self.op}: {product.tokens} tokens are too many; make smaller batches")
        kind = "tall" if product.tokens <= 128 else "wide"
        kernel = f"linear8-{AFTER[self.op]}-{product.inputs}x{product.outputs}-{kind}-{dtype}-int8"
        rows, columns = kernels[kernel].constants["BLOCK_T"], kernels[kernel].constants["BLOCK_M"]
        grid = (-(-product.outputs // columns), -(-product.tokens // rows))
        each = int(product.channels)  # how far apart the scales of two outputs are
        return [Launch(kernel, grid, (*self.inputs, "y", product.tokens, each))]


class Linear8Gelu(Linear8):
    """GELU of it, in the tanh form."""

    op = "linear8_gelu"


class Linear8Gelu8(Linear8):
    """That times inverse_scale float32 [1], in Q."""

    op = "linear8_gelu8"
    inputs: ClassVar = {**Linear8.inputs, "inverse_scale": "float32"}
    outputs: ClassVar = {"y": "Q"}

    def workspace(self, shapes: Mapping, dtype: str) -> int:
        between = 2 * math.prod(shapes["y"])  # bytes of the sums in A, where they go through memory
        return super().workspace(shapes, dtype) and WORKSPACE + between

    def prepare(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Run:
        if self.values["format"] == "int8":
            return super().prepare(shapes, dtype)
        product = self.product(shapes, dtype)
        if not product.tokens:
            return lambda stream, addresses, workspace: None
        if product.channels:
            return self._in_two_steps(product, dtype)
        try:
            chosen, proven = super().prepare(shapes, dtype), False
        except ValueError as error:
            _tell_of_two_steps(error)
            return self._in_two_steps(product, dtype)

        def run(stream, addresses, workspace):
            nonlocal chosen, proven
            try:
                chosen(stream, addresses, workspace)
            except MatmulError as error:  # an algorithm that is listed may be refused when it is called
                if proven:
                    raise
                _tell_of_two_steps(error)
                chosen = self._in_two_steps(product, dtype)
                chosen(stream, addresses, workspace)
            proven = True

        return run

    def _in_two_steps(self, product: Product8, dtype: str) -> Run:
        """Where cuBLASLt does not write float8: y in A into the workspace, from there through GELU into float8."""
        if self.kernels is None:
            raise ValueError(f"{self.op} was registered without kernels, which is for building, not for running")
        matmul = Matmul8(dataclasses.replace(product, gelu=False, float8_out=False))
        count = product.tokens * product.outputs
        launch = Launch(f"linear8-gelu8-{dtype}-float8", (-(-count // BLOCK),), ("sums", count, "inverse_scale", "y"))
        after = Prepared(self.kernels, launch, ("sums", "inverse_scale", "y"))

        def run(stream, addresses, workspace):
            x, weight, bias, scale, inverse_scale, y = addresses
            sums = workspace + WORKSPACE
            matmul(stream, x, weight, bias, sums, workspace, scale)
            after(stream, [sums, inverse_scale, y])

        return run


def _tell_of_two_steps(error: Exception) -> None:
    warnings.warn(f"{error}; bias, GELU and float8 are a kernel of their own there", stacklevel=3)
