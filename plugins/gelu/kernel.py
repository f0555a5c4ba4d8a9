"""The GELU kernel: each program takes BLOCK neighbouring numbers, in groups of 8, which are 16 bytes.

A mask on single numbers would split every load into one of two bytes, since the compiler cannot know that it ends at a
multiple of 8; on an H200 that took 111 us where this takes 51. So the mask is on groups, and numbers beyond the last
whole group are looked at only where there are any (ODD).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from plugins import formats
from plugins.compile import SHORT, Sizes, Variant

# ruff: noqa: N803 - compile-time constants are written in capitals


@triton.jit
def gelu_kernel(
    x_ptr,  # A [n]
    n,  # int32
    y_ptr,  # A, float8 or int8 [n]
    inverse_scale,  # float32; of an 8-bit y alone
    TANH: tl.constexpr,
    BLOCK: tl.constexpr,  # a multiple of 8
    ODD: tl.constexpr,  # n is no multiple of 8
    PDL: tl.constexpr,  # overlap with the kernels before and after
    MOST: tl.constexpr,  # the largest number of an 8-bit y; 0 where y is A
    WHOLE: tl.constexpr,  # whether y has whole numbers alone
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    group = tl.program_id(0) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    at = group[:, None] * 8 + tl.arange(0, 8)[None, :]  # fits int32: the plugin refuses larger tensors
    inside = at < n if ODD else (group < n // 8)[:, None]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if TANH:
        # (1 + tanh u) / 2 = 1 / (1 + exp(-2u)), which cannot give inf/inf: exp overflows to inf, and x/inf is 0
        u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        y = x / (1.0 + tl.exp(-2.0 * u))
    else:
        y = _erf_form(x)
    if MOST:
        y = tl.clamp(y * inverse_scale, -1.0 * MOST, 1.0 * MOST, propagate_nan=tl.PropagateNan.ALL)
    if WHOLE:
        y = (y + 12582912.0) - 12582912.0  # 1.5 * 2^23, beyond which float32 has no fractions: to the nearest, and even
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _erf_form(x):
    """x (1 + erf(x / sqrt 2)) / 2 as max(x, 0) - |x| 2^p(|x|): p is a polynomial through log2 of the normal
    distribution's tail, which is nearly a parabola. Off by at most 5.4e-7 anywhere, and float32's rounding. tl.erf
    took 36 instructions for a number, and the kernel waited for arithmetic, not for memory."""
    a = tl.minimum(tl.abs(x), 16.0, propagate_nan=tl.PropagateNan.ALL)  # beyond it the tail is 0; inf times 0 is not
    p = -0.0004881171626 * a + 0.0071988049895
    p = ((p * a - 0.0521468035877) * a - 0.4595957100391) * a - 1.1510006189346
    return tl.maximum(x, 0.0) - a * tl.exp2(p * a - 1.0)


def variants(
    shapes: dict[str, tuple[int, ...]],
    dtype: str,
    *,
    approximate: str,
    format: str = "",
    inverse_scale: float = 1.0,
    block: int = 2048,
    warps: int = 4,
) -> list[Variant]:
    """The kernels for these input shapes ({"x": any}) and dtype ("float16" | "bfloat16"): "even" where x has a multiple
    of 8 numbers, else "odd". block, warps: for benches, to try others.

    format: "float8" or "int8" where y is that. inverse_scale is an argument of the launch and compiled into nothing.
    """
    pointer = f"*{SHORT[dtype]}"
    return [
        Variant(
            name=f"gelu-{approximate}-{'odd' if odd else 'even'}-{dtype}{format and '-'}{format}",
            module=__name__,
            function="gelu_kernel",
            signature={
                "x_ptr": pointer, "n": "i32", "y_ptr": f"*{SHORT[format or dtype]}", "inverse_scale": "fp32",
            },
            # 16 numbers a thread: two loads of 16 bytes under way at once
            constants={
                "TANH": approximate == "tanh", "BLOCK": block, "ODD": odd, "PDL": False,
                "MOST": formats.MOST[format] if format else 0, "WHOLE": format == "int8",
            },
            aligned=("x_ptr", "y_ptr"),  # TensorRT's buffers are, and a launch checks it
            num_warps=warps,
        )
        for odd in (False, True)
    ]  # fmt: skip


def needed(sizes: Sizes, dtype: str) -> list[Variant]:
    """A model with the tanh form has it inside linear_gelu, unless its product is not 8 bits wide and the next one is;
    so of 16 bits only the erf form is this plugin's."""
    wanted = [""] * (sizes.gelu == "none") + [sizes.format] * bool(sizes.format)
    shapes = {"x": (1, sizes.ffn)}
    return [made for kind in wanted for made in variants(shapes, dtype, approximate=sizes.gelu, format=kind)]
