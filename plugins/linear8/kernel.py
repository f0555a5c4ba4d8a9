"""The 8-bit product's own kernels: int8 with everything that follows it, float8 the same for few tokens, and GELU to
float8 where cuBLASLt has none.

cuBLASLt multiplies int8 into int32 or int8, without bias, GELU or a scale for each output; writing int32 sums to memory
and reading them again would cost what int8 saves. So `linear8_kernel` does it in one piece. float8 is cuBLASLt's for
many tokens; for few it starts too late, and `float8_kernel` is `plugins/linear/kernel.py` for 8 bits. On 9.0 and 10.0
`plugins/linear/large.py` takes what has many tokens in int8, and in float8 what has GELU and float8 after it.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from plugins import formats
from plugins.compile import SHORT, Sizes, Variant
from plugins.linear import large
from plugins.linear8.plugin import after_name, kernel_name

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
    GELU: tl.constexpr,  # "" | "tanh" | "erf"
    PDL: tl.constexpr,  # overlap with the kernels before and after
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
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
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
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
    y = _gelu(y, GELU)
    at = row[:, None] * M + column[None, :]
    return y, at, (row < tokens)[:, None] & (column < M)[None, :]


@triton.jit
def _gelu(y, GELU: tl.constexpr):
    if GELU == "tanh":
        y = y / (1.0 + tl.exp(-1.5957691216057308 * (y + 0.044715 * y * y * y)))  # 2 sqrt(2 / pi)
    elif GELU == "erf":
        a = tl.minimum(tl.abs(y), 16.0, propagate_nan=tl.PropagateNan.ALL)  # as in plugins/gelu/kernel.py
        p = -0.0004881171626 * a + 0.0071988049895
        p = ((p * a - 0.0521468035877) * a - 0.4595957100391) * a - 1.1510006189346
        y = tl.maximum(y, 0.0) - a * tl.exp2(p * a - 1.0)
    return y


@triton.jit
def float8_kernel(
    x_ptr,  # float8 [T, K]
    weight_ptr,  # float8 [M, K]
    bias_ptr,  # A [M]
    scale_ptr,  # float32 [1] or [M]
    inverse_scale_ptr,  # float32 [1], of a float8 y alone
    y_ptr,  # A or float8 [T, M]
    tokens,  # int32: T, at least 1
    each,  # int32: 1 where the scale is [M], 0 where it is [1]
    K: tl.constexpr,  # a multiple of BLOCK_K
    M: tl.constexpr,  # a multiple of BLOCK_M
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GELU: tl.constexpr,
    FLOAT8: tl.constexpr,  # y is that
    LINE: tl.constexpr,  # bytes from one request ahead to the next, up to 128
    AHEAD: tl.constexpr,  # requests for each row of the weight at once; LINE * AHEAD divides K
    PDL: tl.constexpr,
):
    """Grid: (M / BLOCK_M, ceil(T / BLOCK_T))."""
    column = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    late: tl.constexpr = BLOCK_T * BLOCK_M > 64 * 64  # such a tile needs all its registers for the sums
    if not late:
        bias = tl.load(bias_ptr + column).to(tl.float32)
        scale = tl.load(scale_ptr + column * each)
    if PDL:  # what is read before the wait are weights, which no kernel writes
        gdc_launch_dependents()
        for first in tl.static_range(0, K, LINE * AHEAD):
            line = weight_ptr + column[:, None] * K + (first + LINE * tl.arange(0, AHEAD))[None, :]
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [line], dtype=tl.int32, is_pure=False, pack=1
            )
        gdc_wait()
    k = tl.arange(0, BLOCK_K)
    x_block = x_ptr + tl.minimum(row, tokens - 1)[:, None] * K + k[None, :]  # rows past the end: the last one
    weight_block = weight_ptr + column[None, :] * K + k[:, None]
    total = tl.zeros([BLOCK_T, BLOCK_M], tl.float32)
    for first in range(0, K, BLOCK_K):
        total = tl.dot(tl.load(x_block + first), tl.load(weight_block + first), total)
    if late:
        bias = tl.load(bias_ptr + column).to(tl.float32)
        scale = tl.load(scale_ptr + column * each)
    y = _gelu(total * scale[None, :] + bias[None, :], GELU)
    if FLOAT8:
        y = tl.clamp(y * tl.load(inverse_scale_ptr), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + row[:, None] * M + column[None, :], y.to(y_ptr.dtype.element_ty), mask=(row < tokens)[:, None])


@triton.jit
def gelu_to_float8_kernel(
    sums_ptr,  # A [n]: products with their bias
    n,  # int32: a multiple of 16
    inverse_scale_ptr,  # float32 [1]
    y_ptr,  # float8 [n]
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    inverse_scale = tl.load(inverse_scale_ptr)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    group = tl.program_id(0) * (BLOCK // 16) + tl.arange(0, BLOCK // 16)
    at = (
        group[:, None] * 16 + tl.arange(0, 16)[None, :]
    )  # a mask on single numbers would make every load one of 2 bytes
    inside = (group < n // 16)[:, None]
    y = _gelu(tl.load(sums_ptr + at, mask=inside, other=0.0).to(tl.float32), GELU)
    q = tl.clamp(y * inverse_scale, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + at, q.to(tl.float8e4nv), mask=inside)


# Tokens, outputs and inputs a program takes at a time, warps and stages: of int8 for few tokens, and for many; FEW is
# float8's.
TILES = {"tall": (32, 64, 128, 4, 4), "wide": (128, 128, 64, 8, 3)}
FEW = (64, 64, 128, 4, 4)
BLOCK = 2048  # numbers a program of the kernel after a product takes


def variants(
    shapes: dict[str, tuple[int, ...]],
    dtype: str,
    *,
    format: str = "float8",
    op: str = "linear8",
    approximate: str = "tanh",
    tile: tuple = (),
) -> list[Variant]:
    """The kernels for a weight of this shape, shapes["weight"]: [M, K]; of float8 only where the blocks divide K and M,
    and beside it what follows cuBLASLt's product where that does not write float8.

    op, approximate: what comes after the product. tile: for benches, in place of TILES' and FEW.
    """
    outputs, inputs = shapes["weight"]
    a = f"*{SHORT[dtype]}"
    gelu = "" if op == "linear8" else {"tanh": "tanh", "none": "erf"}[approximate]
    to_8 = op == "linear8_gelu8"
    tensors = {"x_ptr": f"*{SHORT[formats.known(format)]}", "weight_ptr": "", "bias_ptr": a, "scale_ptr": "*fp32"}
    tensors["weight_ptr"] = tensors["x_ptr"]
    result = {"y_ptr": tensors["x_ptr"] if to_8 else a, "tokens": "i32", "each": "i32"}
    constants: dict = {"K": inputs, "M": outputs, "GELU": gelu, "PDL": False}
    found = []

    def add(kind: str, function: str, tile: tuple, signature: dict, constants: dict) -> None:
        block_t, block_m, block_k, warps, stages = tile
        found.append(
            Variant(
                name=kernel_name(op, approximate, inputs, outputs, kind, dtype, format), module=__name__,
                function=function, signature=signature,
                constants=constants | {"BLOCK_T": block_t, "BLOCK_M": block_m, "BLOCK_K": block_k},
                aligned=("x_ptr", "weight_ptr", "y_ptr"), num_warps=warps, num_stages=stages,
            )
        )  # fmt: skip

    if format == "int8" or to_8:
        called = kernel_name(op, approximate, inputs, outputs, "large", dtype, format)
        dtypes = {"x": SHORT[format], "a": SHORT[dtype], "y": SHORT[format if to_8 else dtype]}
        found.append(large.variant(called, inputs, outputs, **dtypes, gelu=gelu, most=formats.MOST[format] * to_8))
    if format == "int8":
        function = "linear8_to_int8_kernel" if to_8 else "linear8_kernel"
        signature = tensors | ({"inverse_scale_ptr": "*fp32"} if to_8 else {}) | result
        for kind, usual in TILES.items():
            add(kind, function, tile or usual, signature, constants)
        return found
    block_t, block_m, block_k, warps, stages = tile or FEW
    block_k = next((size for size in (block_k, 64, 32) if inputs % size == 0), 0)
    if block_k and outputs % block_m == 0:
        line = min(128, inputs & -inputs)
        requests = inputs // line
        constants |= {"FLOAT8": to_8, "LINE": line, "AHEAD": min(4, requests & -requests)}
        signature = tensors | {"inverse_scale_ptr": "*fp32"} | result
        add("few", "float8_kernel", (block_t, block_m, block_k, warps, stages), signature, constants)
    if to_8:
        found.append(
            Variant(
                name=after_name(approximate, dtype), module=__name__, function="gelu_to_float8_kernel",
                signature={"sums_ptr": a, "n": "i32", "inverse_scale_ptr": "*fp32", "y_ptr": "*fp8e4nv"},
                constants={"GELU": gelu, "BLOCK": BLOCK, "PDL": False}, aligned=("sums_ptr", "y_ptr"), num_warps=4,
            )
        )  # fmt: skip
    return found


def variants_linear8_gelu(shapes: dict[str, tuple[int, ...]], dtype: str, **more) -> list[Variant]:
    return variants(shapes, dtype, op="linear8_gelu", **more)


def variants_linear8_gelu8(shapes: dict[str, tuple[int, ...]], dtype: str, **more) -> list[Variant]:
    return variants(shapes, dtype, op="linear8_gelu8", **more)


def needed(sizes: Sizes, dtype: str) -> list[Variant]:
    """What an engine of this model needs: nothing unless some of its products are 8 bits wide."""
    if not sizes.format:
        return []
    wide = sizes.heads * sizes.head_size
    first = "linear8_gelu" if sizes.gelu == "tanh" else "linear8"  # of ffn.in, where ffn.out is not 8 bits wide
    products = [
        (sizes.hidden, 3 * wide, "linear8"), (wide, sizes.hidden, "linear8"), (sizes.ffn, sizes.hidden, "linear8"),
        (sizes.hidden, sizes.ffn, first), (sizes.hidden, sizes.ffn, "linear8_gelu8"),
    ]  # fmt: skip
    found = {
        variant.name: variant
        for inputs, outputs, op in products
        if not (inputs % formats.MULTIPLE or outputs % formats.MULTIPLE)
        for variant in variants(
            {"weight": (outputs, inputs)}, dtype, format=sizes.format, op=op, approximate=sizes.gelu
        )
    }  # fmt: skip
    return list(found.values())
