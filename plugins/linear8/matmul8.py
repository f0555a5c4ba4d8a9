"""A float8 product as cuBLASLt is told of it.

What its documentation demands of float8 on 8.9, 9.0 and 12.x: A is transposed and B is not (so that both have K along
their rows in memory), widths are multiples of 16, sums and factors are float32, C has the bias's dtype, and D has that
or is float8 itself. As in `plugins/linear/product.py` our rows are its columns:

    y' = W x' scale + b      W [M, K] row by row is K x M column by column, transposed; b [M] lies along the rows of y'

One scale for the whole weight is a factor of A. One for each of its M rows is an "outer vector" of A, which cuBLASLt
takes on 9.0 alone, wants of B as well (ours is all ones) and does not take where D is float8.
"""

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from plugins.launch import check, driver
from plugins.linear.matmul import ALIGNMENT, Matmul, MatmulError, data_type
from plugins.linear.product import Product
from plugins.registration import Run

TRANSPOSED = 1  # CUBLAS_OP_T
# Hopper's tensor cores keep about 14 bits of a float8 sum. Without this, cuBLASLt adds to float32 after every 128
# products, which is slower; numbers of 4 bits don't notice the difference (test_linear8.py models it).
FAST_ACCUMULATION = 1
FEWEST_ONES = 16384

_lock = threading.Lock()
_ones: dict[int, list[tuple[int, int]]] = {}  # by CUDA context: (count, address), growing; graphs may hold any of them


@dataclass(frozen=True)
class Product8(Product):
    """y = x W' scale + b, or GELU of it. `dtype` is A: the bias's, and y's unless that is float8, too."""

    channels: bool = False  # a scale for each output
    float8_out: bool = False

    @property
    def a(self) -> tuple[int, int, int]:
        """weight, before it is transposed"""
        return self.inputs, self.outputs, self.inputs

    @property
    def matrices(self) -> list[tuple[str, tuple[int, int, int]]]:
        """dtype and sizes of A, B, C and D."""
        last = "float8" if self.float8_out else self.dtype
        return [("float8", self.a), ("float8", self.b), (self.dtype, self.d), (last, self.d)]

    @property
    def size_class(self) -> tuple:
        return *super().size_class, "float8", self.channels, self.float8_out

    def __str__(self) -> str:
        scales = "a scale for each output" if self.channels else "one scale"
        out = "float8" if self.float8_out else self.dtype
        after = "bias and GELU" if self.gelu else "bias and residual" if self.skip else "bias"
        return (
            f"x [{self.tokens}, {self.inputs}] @ weight [{self.outputs}, {self.inputs}] in float8 with {scales}, "
            f"{after} in {self.dtype}, to {out}"
        )


class Matmul8(Matmul):
    """A float8 product's descriptors and algorithm. Raises ValueError where cuBLASLt knows no algorithm for it."""

    product: Product8

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, stream: int, x: int, weight: int, bias: int, y: int, workspace: int, scale: int, inverse_scale: int = 0,
        residual: int | None = None,
    ) -> None:  # fmt: skip
        """`Matmul.__call__` with two more addresses: scale float32 [1] or [M]; inverse_scale float32 [1] of a float8
        y."""
        self._point("A_SCALE_POINTER", scale)
        if self.product.float8_out:
            self._point("D_SCALE_POINTER", inverse_scale)
        super().__call__(stream, x, weight, bias, y, workspace, residual)

    def _tell(self) -> None:
        super()._tell()
        product, modes = self.product, self._library.MatmulMatrixScale
        self._describe("TRANSA", TRANSPOSED)
        self._describe("FAST_ACCUM", FAST_ACCUMULATION)
        self._describe("BIAS_DATA_TYPE", data_type(product.dtype))
        self._point("A_SCALE_POINTER", ALIGNMENT)  # not null; nothing is read there yet
        if product.channels:
            self._describe("A_SCALE_MODE", int(modes.OUTER_VEC_32F))
            self._describe("B_SCALE_MODE", int(modes.OUTER_VEC_32F))
            self._point("B_SCALE_POINTER", ones(product.tokens))
        if product.float8_out:
            self._point("D_SCALE_POINTER", ALIGNMENT)


def or_else(usual: Callable[[], Run], resort: Callable[[], Run], what: str) -> Run:
    """The run that usual() prepares; in its place resort()'s where cuBLASLt knows no algorithm for it, or refuses at
    the first call the one that it listed. `what` is done otherwise then, says a warning."""

    def tell(error: Exception) -> Run:
        warnings.warn(f"{error}; {what}", stacklevel=3)
        return resort()

    try:
        chosen, proven = usual(), False
    except ValueError as error:
        return tell(error)

    def run(stream, addresses, workspace):
        nonlocal chosen, proven
        try:
            chosen(stream, addresses, workspace)
        except MatmulError as error:
            if proven:
                raise
            chosen = tell(error)
            chosen(stream, addresses, workspace)
        proven = True

    return run


def ones(count: int) -> int:
    """The address of at least `count` float32 ones in the current CUDA context, kept for the life of the process.

    Not for use inside a capture.
    """
    cuda = driver()
    context = int(check(cuda.cuCtxGetCurrent(), "asking for the CUDA context"))
    with _lock:
        kept = _ones.setdefault(context, [])
        if not kept or kept[-1][0] < count:
            size = max(FEWEST_ONES, 1 << (count - 1).bit_length())
            address = int(check(cuda.cuMemAlloc(4 * size), f"allocating {4 * size} bytes"))
            (bits,) = np.ones(1, np.float32).view(np.uint32).tolist()
            check(cuda.cuMemsetD32(address, bits, size), "filling memory")
            check(cuda.cuCtxSynchronize(), "filling memory")  # our streams do not wait for the one this was on
            kept.append((size, address))
        return kept[-1][1]
