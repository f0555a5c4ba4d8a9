"""A product as cuBLASLt is told of it: which matrix is which, and how each lies in memory.

cuBLASLt thinks in columns, and adds its bias along the rows of the result. Our tensors, row by row in memory, are their
own transposes column by column: weight [K, M] is the M x K matrix W', x [T, K] is K x T, y [T, M] is M x T. So

    y' = W' x' + b      no operand is transposed, and b [M] lies along the rows of y'

cuBLASLt's GELU is the tanh form, computed in float32 on the sum before it is rounded.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Product:
    """y = x W + b, or GELU of it. Matrices are (rows, columns, leading dimension), column by column."""

    tokens: int  # T, all leading axes of x multiplied
    inputs: int  # K
    outputs: int  # M
    dtype: str  # float16 | bfloat16
    gelu: bool
    skip: bool = False  # add a residual [T, M], cuBLASLt's C, before the epilogue

    @property
    def a(self) -> tuple[int, int, int]:
        """weight"""
        return self.outputs, self.inputs, self.outputs

    @property
    def b(self) -> tuple[int, int, int]:
        """x"""
        return self.inputs, self.tokens, self.inputs

    @property
    def d(self) -> tuple[int, int, int]:
        """y"""
        return self.outputs, self.tokens, self.outputs

    @property
    def matrices(self) -> list[tuple[str, tuple[int, int, int]]]:
        """dtype and sizes of A, B, C and D."""
        return [(self.dtype, matrix) for matrix in (self.a, self.b, self.d, self.d)]

    @property
    def epilogue(self) -> str:
        return "GELU_BIAS" if self.gelu else "BIAS"

    @property
    def size_class(self) -> tuple:
        """Products that share the choice of an algorithm: T up to the same quarter of the same power of 2."""
        step = 1 << max(0, (self.tokens - 1).bit_length() - 3)
        return -(-self.tokens // step) * step, self.inputs, self.outputs, self.dtype, self.gelu, self.skip

    def __str__(self) -> str:
        after = "bias and GELU" if self.gelu else "bias and residual" if self.skip else "bias"
        return f"x [{self.tokens}, {self.inputs}] @ weight [{self.inputs}, {self.outputs}] with {after} in {self.dtype}"
