"""The product of few tokens, for which cuBLASLt's kernels are too few and start too late: one Triton kernel.

Few tokens make a product that waits for its weights. So each program asks for its columns of the weight before the
kernel ahead of it has ended (from 9.0 on), and tiles are small enough to occupy most of the GPU.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from plugins.compile import SHORT, Sizes, Variant
from plugins.gelu.kernel import variants as gelu_variants
from plugins.linear import large

# ruff: noqa: N803 - compile-time constants are written in capitals
BLOCK_T, BLOCK_M, BLOCK_K = 64, 64, 128
ROW = 8  # numbers of 16 bits: what a row is a multiple of for `large`


@triton.jit
def linear_kernel(
    x_ptr,  # A [T, K]
    weight_ptr,  # A [K, M]
    bias_ptr,  # A [M]
    y_ptr,  # A [T, M]
    tokens,  # int32: T
    K: tl.constexpr,  # a multiple of BLOCK_K
    M: tl.constexpr,  # a multiple of BLOCK_M
    GELU: tl.constexpr,  # "" | "tanh" | "erf": over the sum
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,  # at least 64, or a multiple of it: the lines that are asked for ahead are 128 bytes
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,  # rows of the weight that are asked for at once; a power of 2 that divides K
    PDL: tl.constexpr,  # overlap with the kernels before and after
):
    """Grid: (M / BLOCK_M, ceil(T / BLOCK_T))."""
    column = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    bias = tl.load(bias_ptr + column).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        for first in tl.static_range(0, K, AHEAD):
            for beside in tl.static_range(0, BLOCK_M, 64):
                line = weight_ptr + (first + tl.arange(0, AHEAD)) * M + tl.program_id(0) * BLOCK_M + beside
                tl.inline_asm_elementwise(
                    "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [line], dtype=tl.int32, is_pure=False, pack=1
                )
        gdc_wait()
    inside = (row < tokens)[:, None]
    k = tl.arange(0, BLOCK_K)
    x_block = x_ptr + row[:, None] * K + k[None, :]
    weight_block = weight_ptr + k[:, None] * M + column[None, :]
    total = tl.zeros([BLOCK_T, BLOCK_M], tl.float32)
    for first in range(0, K, BLOCK_K):
        x = tl.load(x_block + first, mask=inside, other=0.0)
        total = tl.dot(x, tl.load(weight_block + first * M), total)
    y = total + bias[None, :]
    if GELU == "tanh":  # as in plugins/gelu/kernel.py
        u = 0.7978845608028654 * (y + 0.044715 * y * y * y)
        y = y / (1.0 + tl.exp(-2.0 * u))
    elif GELU == "erf":
        a = tl.minimum(tl.abs(y), 16.0, propagate_nan=tl.PropagateNan.ALL)
        p = -0.0004881171626 * a + 0.0071988049895
        p = ((p * a - 0.0521468035877) * a - 0.4595957100391) * a - 1.1510006189346
        y = tl.maximum(y, 0.0) - a * tl.exp2(p * a - 1.0)
    tl.store(y_ptr + row[:, None] * M + column[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)


def variants(
    shapes: dict[str, tuple[int, ...]],
    dtype: str,
    *,
    approximate: str = "",
    block_t: int = BLOCK_T,
    block_m: int = BLOCK_M,
    block_k: int = BLOCK_K,
    warps: int = 4,
    stages: int = 4,
) -> list[Variant]:
    """The kernels for a weight of this shape, shapes["weight"] [K, M]: for few tokens where its blocks divide K and M,
    and for the erf form of GELU (approximate "none") what cuBLASLt lacks: one for many tokens, and GELU alone.

    approximate: "" for no GELU. The last five are for benches, to try others.
    """
    inputs, outputs = shapes["weight"]
    found = []
    if approximate == "none":
        found += gelu_variants({}, dtype, approximate=approximate)
        if inputs % ROW == outputs % ROW == 0 and dtype != "float32":
            called, kind = name(inputs, outputs, approximate, dtype, "large"), SHORT[dtype]
            found.append(large.variant(called, inputs, outputs, x=kind, a=kind, y=kind, gelu="erf"))
    block_k = next((size for size in (block_k, 64, 32) if inputs % size == 0), 0)
    if not block_k or outputs % block_m:
        return found
    a = f"*{SHORT[dtype]}"
    return [
        *found,
        Variant(
            name=name(inputs, outputs, approximate, dtype),
            module=__name__,
            function="linear_kernel",
            signature={"x_ptr": a, "weight_ptr": a, "bias_ptr": a, "y_ptr": a, "tokens": "i32"},
            constants={
                "K": inputs, "M": outputs, "GELU": {"none": "erf"}.get(approximate, approximate), "BLOCK_T": block_t,
                "BLOCK_M": block_m, "BLOCK_K": block_k, "AHEAD": min(256, inputs & -inputs), "PDL": False,
            },
            aligned=("x_ptr", "weight_ptr", "bias_ptr", "y_ptr"),
            num_warps=warps,
            num_stages=stages,
        ),
    ]  # fmt: skip


def name(inputs: int, outputs: int, approximate: str, dtype: str, kind: str = "few") -> str:
    """What the kernel for a weight [inputs, outputs] is called; kind: "few" or "large"."""
    return f"linear-{inputs}x{outputs}-{kind}-{'erf' if approximate == 'none' else approximate or 'sum'}-{dtype}"


def needed(sizes: Sizes, dtype: str) -> list[Variant]:
    """What an engine of this model needs: qkv and ffn.in, and the two that a layer norm follows. An ffn.in in A before
    an 8-bit ffn.out leaves its GELU to gelu8."""
    context, hidden, ffn = sizes.heads * sizes.head_size, sizes.hidden, sizes.ffn
    forms = [sizes.gelu] + [""] * bool(sizes.format or sizes.gelu == "none")  # without the norms' plugin erf is apart
    products = [((hidden, 3 * context), ""), ((context, hidden), ""), ((ffn, hidden), "")]
    products += [((hidden, ffn), form) for form in forms]
    made = [made for shape, form in products for made in variants({"weight": shape}, dtype, approximate=form)]
    return list({variant.name: variant for variant in made}.values())
