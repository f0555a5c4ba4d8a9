"""The 8-bit product's own kernels: int8 with everything that follows it, and float8's GELU where cuBLASLt has none.

cuBLASLt multiplies int8 into int32 or int8, without bias, GELU or a scale for each output; writing int32 sums to memory
and reading them again would cost what int8 saves. So `linear8_kernel` does it in one piece.
"""

import triton
import triton.language as tl

from plugins import formats
from plugins.compile import SHORT, Sizes, Variant
from plugins.linear8.plugin import AFTER, BLOCK

# ruff: noqa: N803 - compile-time constants are written in capitals


@triton.jit
def linear8_kernel(
    x_ptr,  # int8 [tokens, K]
    weight_ptr,  # int8 [M, K]
    bias_ptr,  # A [M]
    scale_ptr,  # float32 [1] or [M]
    y_ptr,  # A [tokens, M]
    tokens,  # int32
    each,  # int32: 1 where the scale is [M], 0 where it is [1]
    K: tl.constexpr,
    M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GELU: tl.constexpr,
):
    y, at, inside = _product(
        x_ptr, weight_ptr, bias_ptr, scale_ptr, tokens, each, K, M, BLOCK_T, BLOCK_M, BLOCK_K, GELU
    )
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def linear8_to_int8_kernel(
    x_ptr,  # as above, up to scale_ptr
    weight_ptr,
    bias_ptr,
    scale_ptr,
    inverse_scale_ptr,  # float32 [1]
    y_ptr,  # int8 [tokens, M]
    tokens,
    each,
    K: tl.constexpr,
    M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GELU: tl.constexpr,
):
    y, at, inside = _product(
        x_ptr, weight_ptr, bias_ptr, scale_ptr, tokens, each, K, M, BLOCK_T, BLOCK_M, BLOCK_K, GELU
    )
    q = tl.clamp(y * tl.load(inverse_scale_ptr), -127.0, 127.0)
    q = (q + 12582912.0) - 12582912.0  # 1.5 * 2^23, beyond which float32 has no fractions: to the nearest, and even
    tl.store(y_ptr + at, q.to(tl.int8), mask=inside)


@triton.jit
def _product(
    x_ptr, weight_ptr, bias_ptr, scale_ptr, tokens, each,
    K: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    GELU: tl.constexpr,
):  # fmt: skip
    """A program's tile: (y float32 [BLOCK_T, BLOCK_M], the offsets of its numbers, which of them there are)."""
    column = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    part = tl.arange(0, BLOCK_K)
    # Rows and columns past the end are read as the last one, and not stored.
    x_at = tl.minimum(row, tokens - 1)[:, None] * K + part[None, :]
    weight_at = tl.minimum(column, M - 1)[None, :] * K + part[:, None]
    sums = tl.zeros((BLOCK_T, BLOCK_M), tl.int32)
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K:
            there = start + part < K
            x = tl.load(x_ptr + x_at + start, mask=there[None, :], other=0)
            weight = tl.load(weight_ptr + weight_at + start, mask=there[:, None], other=0)
        else:
            x = tl.load(x_ptr + x_at + start)
            weight = tl.load(weight_ptr + weight_at + start)
        sums = tl.dot(x, weight, sums, out_dtype=tl.int32)
    scale = tl.load(scale_ptr + tl.minimum(column, M - 1) * each)
    bias = tl.load(bias_ptr + tl.minimum(column, M - 1)).to(tl.float32)
    y = sums.to(tl.float32) * scale[None, :] + bias[None, :]
    if GELU:
        y = y / (1.0 + tl.exp(-1.5957691216057308 * (y + 0.044715 * y * y * y)))  # the tanh form; 2 sqrt(2 / pi)
    at = row[:, None] * M + column[None, :]
    return y, at, (row < tokens)[:, None] & (column < M)[None, :]


@triton.jit
def gelu_to_float8_kernel(
    sums_ptr,  # A [n]: products with their bias
    n,  # int32
    inverse_scale_ptr,  # float32 [1]
    y_ptr,  # float8 [n]
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(sums_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    q = tl.clamp(y * tl.load(inverse_scale_ptr), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + at, q.to(tl.float8e4nv), mask=inside)


# Tokens, outputs and inputs a program takes at a time, warps and stages: for few tokens, and for many.
TILES = {"tall": (32, 64, 128, 4, 4), "wide": (128, 128, 64, 8, 3)}


def variants(
    shapes: dict[str, tuple[int, ...]], dtype: str, *, format: str = "float8", op: str = "", tile: tuple = ()
) -> list[Variant]:
    """The kernels for a weight of this shape, shapes["weight"]: [M, K]. tile: for benches, in place of TILES'.

    op: the operator, or all of them. float8 has one kernel, for what cuBLASLt does not do.
    """
    outputs, inputs = shapes["weight"]
    pointer = f"*{SHORT[dtype]}"
    if formats.known(format) == "float8":
        return [
            Variant(
                name=f"linear8-gelu8-{dtype}-float8", module=__name__, function="gelu_to_float8_kernel",
                signature={"sums_ptr": pointer, "n": "i32", "inverse_scale_ptr": "*fp32", "y_ptr": "*fp8e4nv"},
                constants={"BLOCK": BLOCK}, aligned=("sums_ptr", "y_ptr"), num_warps=4,
            )
        ]  # fmt: skip
    found = []
    wanted = {"linear8": (False, False), "linear8_gelu": (True, False), "linear8_gelu8": (True, True)}
    for name, (gelu, to_int8) in wanted.items() if not op else [(op, wanted[op])]:
        for kind, (block_t, block_m, block_k, warps, stages) in TILES.items():
            signature = {"x_ptr": "*i8", "weight_ptr": "*i8", "bias_ptr": pointer, "scale_ptr": "*fp32"}
            signature |= {"inverse_scale_ptr": "*fp32", "y_ptr": "*i8"} if to_int8 else {"y_ptr": pointer}
            found.append(
                Variant(
                    name=f"linear8-{AFTER[name]}-{inputs}x{outputs}-{kind}-{dtype}-int8", module=__name__,
                    function="linear8_to_int8_kernel" if to_int8 else "linear8_kernel",
                    signature=signature | {"tokens": "i32", "each": "i32"},
                    constants={
                        "K": inputs, "M": outputs, "BLOCK_T": block_t, "BLOCK_M": block_m, "BLOCK_K": block_k,
                        "GELU": gelu,
                    },
                    aligned=("x_ptr", "weight_ptr", "y_ptr"), num_warps=warps, num_stages=stages,
                )
            )  # fmt: skip
    return found


def needed(sizes: Sizes, dtype: str) -> list[Variant]:
    """What an engine of this model needs: nothing unless some of its products are 8 bits wide."""
    if not sizes.format:
        return []
    wide = sizes.heads * sizes.head_size
    tanh = sizes.gelu == "tanh"
    products = [
        (sizes.hidden, 3 * wide, "linear8"), (wide, sizes.hidden, "linear8"), (sizes.ffn, sizes.hidden, "linear8"),
        *((sizes.hidden, sizes.ffn, op) for op in (("linear8_gelu", "linear8_gelu8") if tanh else ("linear8",))),
    ]  # fmt: skip
    found = {
        variant.name: variant
        for inputs, outputs, op in products
        if not (inputs % formats.MULTIPLE or outputs % formats.MULTIPLE)
        for variant in variants(
            {"weight": (outputs, inputs)}, dtype, format=sizes.format, op=op if sizes.format == "int8" else ""
        )
    }
    return list(found.values())
