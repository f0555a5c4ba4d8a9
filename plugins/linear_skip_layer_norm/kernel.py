"""Product, bias, residual and layer norm in two launches; which two depends on the number of tokens.

Few tokens: `product_kernel` divides the sum over K among programs, which write what they have in float32, and
`norm_kernel` adds that up on its way to the norm. No program waits for another, and no sum is rounded in between.
Many tokens: cuBLASLt adds bias and residual to its product, and `norm_kernel` normalises the result in place.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from plugins.compile import SHORT, Sizes, Variant

# ruff: noqa: N803 - compile-time constants are written in capitals
BLOCK_T, BLOCK_H, BLOCK_K = 64, 64, 128
PART = 768  # products of K that one program sums up, about: fewer make more programs, and more to add up
LEAST_PARTS = 2  # where K allows them
NORM = 2048  # numbers that a warp normalises at once: enough loads under way to occupy the memory


@triton.jit
def product_kernel(
    x_ptr,  # A [T, K]
    weight_ptr,  # A [K, H]
    parts_ptr,  # float32 [PARTS, T, H]
    tokens,  # int32: T
    K: tl.constexpr,
    H: tl.constexpr,  # a multiple of BLOCK_H
    PARTS: tl.constexpr,  # K is a multiple of PARTS * BLOCK_K
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,  # at least 64, or a multiple of it: the lines that are asked for ahead are 128 bytes
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,  # rows of the weight that are asked for at once; a power of 2 that divides K / PARTS
    PDL: tl.constexpr,  # overlap with the kernels before and after
):
    """Grid: (H / BLOCK_H, ceil(T / BLOCK_T), PARTS)."""
    column = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    row = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    part = tl.program_id(2)
    begin = part * (K // PARTS)
    if PDL:  # as in plugins/linear/kernel.py
        gdc_launch_dependents()
        for first in tl.static_range(0, K // PARTS, AHEAD):
            for beside in tl.static_range(0, BLOCK_H, 64):
                line = weight_ptr + (begin + first + tl.arange(0, AHEAD)) * H + tl.program_id(0) * BLOCK_H + beside
                tl.inline_asm_elementwise(
                    "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [line], dtype=tl.int32, is_pure=False, pack=1
                )
        gdc_wait()
    inside = (row < tokens)[:, None]
    k = begin + tl.arange(0, BLOCK_K)
    x_block = x_ptr + row[:, None] * K + k[None, :]
    weight_block = weight_ptr + k[:, None] * H + column[None, :]
    total = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    for first in range(0, K // PARTS, BLOCK_K):
        x = tl.load(x_block + first, mask=inside, other=0.0)
        total = tl.dot(x, tl.load(weight_block + first * H), total)
    tl.store(parts_ptr + (part * tokens + row)[:, None] * H + column[None, :], total, mask=inside)


@triton.jit
def norm_kernel(
    s_ptr,  # PARTS > 0: float32 [PARTS, T, H], products; PARTS 0: A [T, H], all but normalised, and may be y
    residual_ptr,  # A [T, H]; read where PARTS > 0, as is the bias
    bias_ptr,  # A [H]
    gamma_ptr,  # float32 [H]
    beta_ptr,  # float32 [H]
    y_ptr,  # A [T, H]
    tokens,  # int32: T
    epsilon,  # float32
    H: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,  # the power of 2 that holds H
    ROWS: tl.constexpr,  # rows a program takes
    PDL: tl.constexpr,  # overlap with the kernels before and after
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    in_row = column < H
    inside = (row < tokens)[:, None] & in_row[None, :]
    at = row.to(tl.int64)[:, None] * H + column[None, :]  # [ROWS, BLOCK]
    gamma = tl.load(gamma_ptr + column, mask=in_row, other=0.0)
    beta = tl.load(beta_ptr + column, mask=in_row, other=0.0)
    if PARTS:
        bias = tl.load(bias_ptr + column, mask=in_row, other=0.0).to(tl.float32)
    if PDL:  # what stands above are weights, which no kernel writes
        gdc_launch_dependents()
        gdc_wait()
    if PARTS:
        s = bias[None, :] + tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        for part in tl.static_range(PARTS):
            s += tl.load(s_ptr + part * tokens.to(tl.int64) * H + at, mask=inside, other=0.0)
    else:
        s = tl.load(s_ptr + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(s, 1) / H
    centred = tl.where(in_row[None, :], s - mean[:, None], 0.0)
    rest = tl.sum(centred, 1) / H  # of the mean, which was rounded; see skip_layer_norm
    variance = tl.maximum(tl.sum(centred * centred, 1) / H - rest * rest, 0.0)
    y = (centred - rest[:, None]) * tl.rsqrt(variance + epsilon)[:, None] * gamma[None, :] + beta[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def variants(
    shapes: dict[str, tuple[int, ...]],
    dtype: str,
    *,
    epsilon: float = 1e-12,
    block_t: int = BLOCK_T,
    block_h: int = BLOCK_H,
    block_k: int = BLOCK_K,
    part: int = PART,
    warps: int = 4,
    stages: int = 4,
    rows: int | None = None,
    norm_warps: int | None = None,
) -> list[Variant]:
    """The kernels for a weight of this shape, shapes["weight"] [K, H], H from 1 to 8192.

    "norm" is for many tokens; "product" and "sum" are for few, where their blocks divide K and H. epsilon is an
    argument of the launch and compiled into nothing. The last eight are for benches, to try others.
    """
    inputs, width = shapes["weight"]
    if not 1 <= width <= 8192:
        raise ValueError(f"linear_skip_layer_norm keeps a row in registers: up to 8192 wide, not {width}")
    a = f"*{SHORT[dtype]}"
    block = 1 << (width - 1).bit_length()

    def norm(name: str, parts: int, rows: int, norm_warps: int) -> Variant:
        return Variant(
            name=name,
            module=__name__,
            function="norm_kernel",
            signature={
                "s_ptr": "*fp32" if parts else a, "residual_ptr": a, "bias_ptr": a, "gamma_ptr": "*fp32",
                "beta_ptr": "*fp32", "y_ptr": a, "tokens": "i32", "epsilon": "fp32",
            },
            constants={"H": width, "PARTS": parts, "BLOCK": block, "ROWS": rows, "PDL": False},
            aligned=("s_ptr", "residual_ptr", "bias_ptr", "gamma_ptr", "beta_ptr", "y_ptr"),
            num_warps=norm_warps,
        )  # fmt: skip

    usual = rows or max(1, NORM // block)
    usual_warps = norm_warps or min(16, max(1, usual * block // NORM))
    found = [norm(names(inputs, width, dtype)["norm"], 0, usual, usual_warps)]
    block_k = next((size for size in (block_k, 64, 32) if inputs % size == 0), 0)
    if not block_k or width % block_h:
        return found
    blocks = inputs // block_k
    most = max(LEAST_PARTS, inputs // part)
    parts = max(parts for parts in range(1, blocks + 1) if blocks % parts == 0 and parts <= most)
    each = inputs // parts
    product = Variant(
        name=names(inputs, width, dtype)["product"],
        module=__name__,
        function="product_kernel",
        signature={"x_ptr": a, "weight_ptr": a, "parts_ptr": "*fp32", "tokens": "i32"},
        constants={
            "K": inputs, "H": width, "PARTS": parts, "BLOCK_T": block_t, "BLOCK_H": block_h, "BLOCK_K": block_k,
            "AHEAD": min(256, each & -each), "PDL": False,
        },
        aligned=("x_ptr", "weight_ptr", "parts_ptr"),
        num_warps=warps,
        num_stages=stages,
    )  # fmt: skip
    # One row a program: there are few rows, and each waits for memory alone.
    return [*found, product, norm(names(inputs, width, dtype)["sum"], parts, 1, max(1, min(8, block // 256)))]


def names(inputs: int, width: int, dtype: str) -> dict[str, str]:
    """What the kernels for a weight [inputs, width] are called."""
    shape = f"{inputs}x{width}"
    return {
        "norm": f"linear_skip_layer_norm-norm-{width}-{dtype}",
        "product": f"linear_skip_layer_norm-product-{shape}-{dtype}",
        "sum": f"linear_skip_layer_norm-sum-{shape}-{dtype}",
    }


def needed(sizes: Sizes, dtype: str) -> list[Variant]:
    """What an engine of this model needs: attention.out and ffn.out."""
    found = {}
    for inputs in (sizes.heads * sizes.head_size, sizes.ffn):
        found |= {variant.name: variant for variant in variants({"weight": (inputs, sizes.hidden)}, dtype)}
    return list(found.values())
