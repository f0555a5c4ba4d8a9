"""The skip-layer-norm kernel: a row is read once, kept in registers for both passes over it, and written once;
or twice, the second time in 8 bits for the product that follows."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from plugins import formats
from plugins.compile import SHORT, Sizes, Variant

# ruff: noqa: N803 - compile-time constants are written in capitals


@triton.jit
def skip_layer_norm_kernel(
    x_ptr,  # A [rows, H]
    residual_ptr,  # A [rows, H]
    bias_ptr,  # A [H]
    gamma_ptr,  # float32 [H]
    beta_ptr,  # float32 [H]
    y_ptr,  # A [rows, H]
    rows,  # int32
    epsilon,  # float32
    H: tl.constexpr,
    BLOCK: tl.constexpr,  # the power of 2 that holds H
    ROWS: tl.constexpr,  # rows a program takes
    PDL: tl.constexpr,  # overlap with the kernels before and after
):
    y, at, inside = _normalised(
        x_ptr, residual_ptr, bias_ptr, gamma_ptr, beta_ptr, rows, epsilon, H, BLOCK, ROWS, PDL
    )  # fmt: skip
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def skip_layer_norm8_kernel(
    x_ptr,  # as above, up to y_ptr
    residual_ptr,
    bias_ptr,
    gamma_ptr,
    beta_ptr,
    y_ptr,
    q_ptr,  # float8 or int8 [rows, H]: y * inverse_scale, rounded from float32
    rows,  # int32
    epsilon,  # float32
    inverse_scale,  # float32
    H: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
    MOST: tl.constexpr,  # the format's largest number
    WHOLE: tl.constexpr,  # whether the format has whole numbers alone
):
    y, at, inside = _normalised(
        x_ptr, residual_ptr, bias_ptr, gamma_ptr, beta_ptr, rows, epsilon, H, BLOCK, ROWS, PDL
    )  # fmt: skip
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)
    q = tl.clamp(y * inverse_scale, -1.0 * MOST, 1.0 * MOST, propagate_nan=tl.PropagateNan.ALL)
    if WHOLE:
        q = (q + 12582912.0) - 12582912.0  # 1.5 * 2^23, beyond which float32 has no fractions: to the nearest, and even
    tl.store(q_ptr + at, q.to(q_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _normalised(
    x_ptr, residual_ptr, bias_ptr, gamma_ptr, beta_ptr, rows, epsilon,
    H: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A program's rows: (y float32 [ROWS, BLOCK], the offsets of its numbers, which of them there are)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    in_row = column < H
    inside = (row < rows)[:, None] & in_row[None, :]
    at = row.to(tl.int64)[:, None] * H + column[None, :]  # [ROWS, BLOCK]

    bias = tl.load(bias_ptr + column, mask=in_row, other=0.0).to(tl.float32)
    gamma = tl.load(gamma_ptr + column, mask=in_row, other=0.0)
    beta = tl.load(beta_ptr + column, mask=in_row, other=0.0)
    if PDL:  # what stands above are weights, which no kernel writes
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    s = x + bias[None, :] + residual
    mean = tl.sum(s, 1) / H
    centred = tl.where(in_row[None, :], s - mean[:, None], 0.0)
    # The mean is off by its rounding, which epsilon 1e-12 would make large where all numbers are equal; what is left of
    # it is taken off, too.
    rest = tl.sum(centred, 1) / H
    variance = tl.maximum(tl.sum(centred * centred, 1) / H - rest * rest, 0.0)
    y = (centred - rest[:, None]) * tl.rsqrt(variance + epsilon)[:, None] * gamma[None, :] + beta[None, :]
    return y, at, inside


def variants(
    shapes: dict[str, tuple[int, ...]],
    dtype: str,
    *,
    epsilon: float = 1e-12,
    format: str = "",
    inverse_scale: float = 1.0,
    rows: int | None = None,
    warps: int | None = None,
) -> list[Variant]:
    """The kernel for rows of this width, shapes["x"][-1], from 1 to 8192. rows, warps: for benches, to try others.

    format: "float8" or "int8" for the kernel with a second output in it. epsilon and inverse_scale are arguments of the
    launch and compiled into nothing.
    """
    width = shapes["x"][-1]
    if not 1 <= width <= 8192:
        raise ValueError(f"skip_layer_norm keeps a row in registers: up to 8192 wide, not {width}")
    block = 1 << (width - 1).bit_length()
    rows = rows or max(1, 2048 // block)  # 64 numbers a thread: enough loads under way to occupy the memory
    a = f"*{SHORT[dtype]}"
    tensors = {"x_ptr": a, "residual_ptr": a, "bias_ptr": a, "gamma_ptr": "*fp32", "beta_ptr": "*fp32", "y_ptr": a}
    numbers = {"rows": "i32", "epsilon": "fp32"}
    constants: dict = {"H": width, "BLOCK": block, "ROWS": rows, "PDL": False}
    if format:
        tensors |= {"q_ptr": f"*{SHORT[formats.known(format)]}"}
        numbers |= {"inverse_scale": "fp32"}
        constants |= {"MOST": formats.MOST[format], "WHOLE": format == "int8"}
    return [
        Variant(
            name=f"skip_layer_norm-{width}-{dtype}{format and '-'}{format}",
            module=__name__,
            function=f"skip_layer_norm{'8' if format else ''}_kernel",
            signature=tensors | numbers,
            constants=constants,
            aligned=tuple(tensors),  # where each starts; that rows within it are aligned, too, follows from H
            num_warps=warps or min(16, max(1, rows * block // 2048)),
        )
    ]


def needed(sizes: Sizes, dtype: str) -> list[Variant]:
    """What an engine of this model needs."""
    kinds = ("", sizes.format) if sizes.format else ("",)
    return [variant for kind in kinds for variant in variants({"x": (1, sizes.hidden)}, dtype, format=kind)]
