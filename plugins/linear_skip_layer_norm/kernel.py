"""Product, bias, residual and layer norm in two launches; which two depends on the number of tokens.

Few tokens: `product_kernel` divides the sum over K among programs, which write what they have in float32, and
`norm_kernel` adds that up on its way to the norm. No program waits for another, and no sum is rounded in between.
Many tokens: cuBLASLt adds bias and residual to its product, and `norm_kernel` normalises the result in place.

Either product may be float8: `product8_kernel`, whose weight lies as [H, K]. Either norm may write 8 bits beside A.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from plugins import formats
from plugins.compile import SHORT, Sizes, Variant

# ruff: noqa: N803 - compile-time constants are written in capitals
BLOCK_T, BLOCK_H, BLOCK_K = 64, 64, 128
PART = 768  # products of K that one program sums up, about: fewer make more programs, and more to add up
PART8 = 768  # the same of a float8 product
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
def product8_kernel(
    x_ptr,  # float8 [T, K]
    weight_ptr,  # float8 [H, K]
    parts_ptr,  # float32 [PARTS, T, H], before the scale
    tokens,  # int32: T, at least 1
    K: tl.constexpr,
    H: tl.constexpr,  # a multiple of BLOCK_H
    PARTS: tl.constexpr,  # K is a multiple of PARTS * BLOCK_K
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LINE: tl.constexpr,  # bytes from one request ahead to the next, up to 128
    AHEAD: tl.constexpr,  # requests for each row of the weight at once; LINE * AHEAD divides K / PARTS
    PDL: tl.constexpr,
):
    """Grid: (H / BLOCK_H, ceil(T / BLOCK_T), PARTS)."""
    output = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    row = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    part = tl.program_id(2)
    begin = part * (K // PARTS)
    if PDL:
        gdc_launch_dependents()
        for first in tl.static_range(0, K // PARTS, LINE * AHEAD):
            line = weight_ptr + output[:, None] * K + (begin + first + LINE * tl.arange(0, AHEAD))[None, :]
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [line], dtype=tl.int32, is_pure=False, pack=1
            )
        gdc_wait()
    k = begin + tl.arange(0, BLOCK_K)
    x_block = x_ptr + tl.minimum(row, tokens - 1)[:, None] * K + k[None, :]  # rows past the end: the last one
    weight_block = weight_ptr + output[None, :] * K + k[:, None]
    total = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    for first in range(0, K // PARTS, BLOCK_K):
        total = tl.dot(tl.load(x_block + first), tl.load(weight_block + first), total)
    tl.store(parts_ptr + (part * tokens + row)[:, None] * H + output[None, :], total, mask=(row < tokens)[:, None])


@triton.jit
def norm_kernel(
    s_ptr,  # PARTS > 0: float32 [PARTS, T, H], products; PARTS 0: A [T, H], a sum in A, and may be y
    residual_ptr,  # A [T, H]; read where SKIP
    bias_ptr,  # A [H]; read where PARTS > 0
    scale_ptr,  # float32 [1] or [H] of the products; read where SCALED
    gamma_ptr,  # float32 [H]
    beta_ptr,  # float32 [H]
    y_ptr,  # A [T, H]
    q_ptr,  # float8 or int8 [T, H]: y * inverse_scale, rounded from float32; written where MOST
    tokens,  # int32: T
    each,  # int32: 1 where scale is [H], 0 where it is [1]
    epsilon,  # float32
    inverse_scale,  # float32
    H: tl.constexpr,
    PARTS: tl.constexpr,
    SKIP: tl.constexpr,  # the residual is not yet in s
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,  # the power of 2 that holds H
    ROWS: tl.constexpr,  # rows a program takes
    PDL: tl.constexpr,  # overlap with the kernels before and after
    MOST: tl.constexpr,  # the largest number of q's format; 0 where there is no q
    WHOLE: tl.constexpr,  # whether that has whole numbers alone
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
    if SCALED:
        scale = tl.load(scale_ptr + column * each, mask=in_row, other=0.0)
    if PDL:  # what stands above are weights, which no kernel writes
        gdc_launch_dependents()
        gdc_wait()
    if PARTS:
        s = tl.load(s_ptr + at, mask=inside, other=0.0)
        for part in tl.static_range(1, PARTS):
            s += tl.load(s_ptr + part * tokens.to(tl.int64) * H + at, mask=inside, other=0.0)
        if SCALED:
            s = s * scale[None, :]
        s += bias[None, :]
    else:
        s = tl.load(s_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if SKIP:
        s += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(s, 1) / H
    centred = tl.where(in_row[None, :], s - mean[:, None], 0.0)
    rest = tl.sum(centred, 1) / H  # of the mean, which was rounded; see skip_layer_norm
    variance = tl.maximum(tl.sum(centred * centred, 1) / H - rest * rest, 0.0)
    y = (centred - rest[:, None]) * tl.rsqrt(variance + epsilon)[:, None] * gamma[None, :] + beta[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)
    if MOST:
        q = tl.clamp(y * inverse_scale, -1.0 * MOST, 1.0 * MOST, propagate_nan=tl.PropagateNan.ALL)
        if WHOLE:
            q = (q + 12582912.0) - 12582912.0  # 1.5 * 2^23, beyond which float32 has no fractions: to the nearest, even
        tl.store(q_ptr + at, q.to(q_ptr.dtype.element_ty), mask=inside)


def variants(
    shapes: dict[str, tuple[int, ...]],
    dtype: str,
    *,
    epsilon: float = 1e-12,
    format: str = "",
    inverse_scale: float | None = None,
    block_t: int = BLOCK_T,
    block_h: int = BLOCK_H,
    block_k: int = BLOCK_K,
    part: int = 0,
    warps: int = 4,
    stages: int = 4,
    rows: int | None = None,
    norm_warps: int | None = None,
) -> list[Variant]:
    """The kernels for a weight of this shape, shapes["weight"] [K, H], or [H, K] where there is a shapes["scale"]: then
    the product is float8. H from 1 to 8192.

    "norm" is for many tokens, and "add", which adds the residual, where cuBLASLt does not add it to float8 products;
    "product" and "sum" are for few, where their blocks divide K and H.
    format: of the 8-bit output, where an inverse_scale is given. Its number and epsilon are arguments of the launch and
    compiled into nothing. The last eight are for benches, to try others.
    """
    eight = "scale" in shapes
    inputs, width = shapes["weight"][::-1] if eight else shapes["weight"]
    if not 1 <= width <= 8192:
        raise ValueError(f"linear_skip_layer_norm keeps a row in registers: up to 8192 wide, not {width}")
    a, q = f"*{SHORT[dtype]}", format if inverse_scale is not None else ""
    block = 1 << (width - 1).bit_length()
    called = names(inputs, width, dtype, eight, q)

    def norm(kind: str, parts: int, rows: int, norm_warps: int) -> Variant:
        tensors = {
            "s_ptr": "*fp32" if parts else a, "residual_ptr": a, "bias_ptr": a, "scale_ptr": "*fp32",
            "gamma_ptr": "*fp32", "beta_ptr": "*fp32", "y_ptr": a, "q_ptr": f"*{SHORT[q or dtype]}",
        }  # fmt: skip
        return Variant(
            name=called[kind],
            module=__name__,
            function="norm_kernel",
            signature=tensors | {"tokens": "i32", "each": "i32", "epsilon": "fp32", "inverse_scale": "fp32"},
            constants={
                "H": width, "PARTS": parts, "SKIP": kind != "norm", "SCALED": eight and kind == "sum", "BLOCK": block,
                "ROWS": rows, "PDL": False, "MOST": formats.MOST[q] if q else 0, "WHOLE": q == "int8",
            },
            aligned=tuple(name for name in tensors if name != "scale_ptr"),
            num_warps=norm_warps,
        )  # fmt: skip

    usual = rows or max(1, NORM // block)
    usual_warps = norm_warps or min(16, max(1, usual * block // NORM))
    found = [norm(kind, 0, usual, usual_warps) for kind in (("norm", "add") if eight else ("norm",))]
    block_k = next((size for size in (block_k, 64, 32) if inputs % size == 0), 0)
    if not block_k or width % block_h:
        return found
    blocks = inputs // block_k
    most = max(LEAST_PARTS, inputs // (part or (PART8 if eight else PART)))
    parts = max(parts for parts in range(1, blocks + 1) if blocks % parts == 0 and parts <= most)
    each = inputs // parts
    line = min(128, each & -each)
    requests = each // line
    ahead = {"LINE": line, "AHEAD": min(4, requests & -requests)} if eight else {"AHEAD": min(256, each & -each)}
    kind = "*fp8e4nv" if eight else a
    product = Variant(
        name=called["product"],
        module=__name__,
        function="product8_kernel" if eight else "product_kernel",
        signature={"x_ptr": kind, "weight_ptr": kind, "parts_ptr": "*fp32", "tokens": "i32"},
        constants={
            "K": inputs, "H": width, "PARTS": parts, "BLOCK_T": block_t, "BLOCK_H": block_h, "BLOCK_K": block_k,
            **ahead, "PDL": False,
        },
        aligned=("x_ptr", "weight_ptr", "parts_ptr"),
        num_warps=warps,
        num_stages=stages,
    )  # fmt: skip
    # One row a program: there are few rows, and each waits for memory alone.
    return [*found, product, norm("sum", parts, 1, max(1, min(8, block // 256)))]


def names(inputs: int, width: int, dtype: str, eight: bool = False, q: str = "") -> dict[str, str]:
    """What the kernels for a product of `inputs` and `width` are called. eight: a float8 one; q: format of a second
    output."""
    shape = f"{inputs}x{width}"
    after = f"{dtype}{q and '-'}{q}"
    return {
        "norm": f"linear_skip_layer_norm-norm-{width}-{after}",
        "add": f"linear_skip_layer_norm-add-{width}-{after}",
        "product": f"linear_skip_layer_norm-product-{shape}-{'float8' if eight else dtype}",
        "sum": f"linear_skip_layer_norm-sum{'8' if eight else ''}-{shape}-{after}",
    }


def needed(sizes: Sizes, dtype: str) -> list[Variant]:
    """What an engine of this model needs: attention.out and ffn.out, each in A or 8 bits, with or without 8 bits after
    it. int8 products have no kernel here."""
    found = {}
    for inputs in (sizes.heads * sizes.head_size, sizes.ffn):
        kinds: list[dict[str, tuple[int, ...]]] = [{"weight": (inputs, sizes.hidden)}]
        if sizes.format == "float8" and not (inputs % formats.MULTIPLE or sizes.hidden % formats.MULTIPLE):
            kinds.append({"weight": (sizes.hidden, inputs), "scale": (1,)})
        for shapes in kinds:
            for inverse_scale in (None, 1.0) if sizes.format else (None,):
                made = variants(shapes, dtype, format=sizes.format, inverse_scale=inverse_scale)
                found |= {variant.name: variant for variant in made}
    return list(found.values())
