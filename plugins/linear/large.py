"""The product of many tokens with all that follows it in one kernel: 16 bits, float8 or int8, for 9.0 and 10.0.

cuBLASLt has no erf form of GELU, it writes no float8 where a weight has many scales, and int8 it multiplies without
bias or scale: then sums go through memory once more. Here they stay where they are. Two programs share a
multiprocessor, each with a tile of 128 x 128 at a time: while one is at what follows its sums, the other multiplies.
The tensor memory accelerator copies tiles by itself, past the end of a matrix as zeros, so any number of tokens will
do.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from plugins.compile import SHARED, Variant
from plugins.launch import Launch, Tiles

# ruff: noqa: N803 - compile-time constants are written in capitals
TILE = 128  # tokens, and outputs, that a program takes at a time
BYTES = 128  # of K that are copied at a time: a row of what the hardware spreads over all banks
WARPS, STAGES = 4, 3  # so two programs fit into a multiprocessor's registers, and into its shared memory
PROGRAMS = 264  # two for each of an H100's 132 multiprocessors; each takes tile after tile
ARCHITECTURES = tuple(arch for arch, kib in SHARED.items() if kib >= 227)  # 9.0 and 10.0; measured on 9.0 alone


@triton.jit
def large_kernel(
    x_tiles,  # A or Q [T, K]
    weight_tiles,  # A [K, M], or Q [M, K]
    bias_ptr,  # A [M]
    scale_ptr,  # float32 [1] or [M]; read where SCALED
    inverse_scale_ptr,  # float32 [1]; read where MOST
    y_tiles,  # A, or where MOST Q [T, M]
    tokens,  # int32: T
    each,  # int32: 1 where scale is [M], 0 where it is [1]
    K: tl.constexpr,
    M: tl.constexpr,
    SCALED: tl.constexpr,  # of 8 bits: the weight lies as [M, K], and its sums have a scale
    GELU: tl.constexpr,  # "" | "tanh" | "erf"
    MOST: tl.constexpr,  # the largest number of an 8-bit y; 0 where y is A
    WHOLE: tl.constexpr,  # whether y has whole numbers alone
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HALVES: tl.constexpr,  # write a tile in two halves: its own shared memory is then small enough for two programs
    PDL: tl.constexpr,  # overlap with the kernels before and after
):
    """Grid: (programs,), any number of them."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    sums: tl.constexpr = tl.int32 if x_tiles.dtype == tl.int8 else tl.float32
    inverse_scale = tl.load(inverse_scale_ptr) if MOST else 1.0
    across: tl.constexpr = (M + TILE - 1) // TILE
    # Flattened, the first tiles of the next product are asked for while this one's sums are finished.
    for index in tl.range(tl.program_id(0), tl.cdiv(tokens, TILE) * across, tl.num_programs(0), flatten=True):
        column, row = index % across * TILE, index // across * TILE
        total = tl.zeros([TILE, TILE], sums)
        for first in range(0, K, BLOCK_K):
            x = x_tiles.load([row, first])
            if SCALED:
                total = tl.dot(x, weight_tiles.load([column, first]).T, total, out_dtype=sums)
            else:
                total = tl.dot(x, weight_tiles.load([first, column]), total)
        if HALVES:
            half: tl.constexpr = TILE // 2
            left, right = tl.split(tl.permute(tl.reshape(total, (TILE, 2, half)), (0, 2, 1)))
            y = _finish(left, bias_ptr, scale_ptr, each, inverse_scale, column, half, M, SCALED, GELU, MOST, WHOLE)
            y_tiles.store([row, column], y.to(y_tiles.dtype))
            column += half
            y = _finish(right, bias_ptr, scale_ptr, each, inverse_scale, column, half, M, SCALED, GELU, MOST, WHOLE)
            y_tiles.store([row, column], y.to(y_tiles.dtype))
        else:
            y = _finish(total, bias_ptr, scale_ptr, each, inverse_scale, column, TILE, M, SCALED, GELU, MOST, WHOLE)
            y_tiles.store([row, column], y.to(y_tiles.dtype))


@triton.jit
def _finish(
    total, bias_ptr, scale_ptr, each, inverse_scale, first,
    WIDTH: tl.constexpr, M: tl.constexpr, SCALED: tl.constexpr, GELU: tl.constexpr, MOST: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Sums [TILE, WIDTH], of outputs from `first` on, to y in float32."""
    output = first + tl.arange(0, WIDTH)
    inside = output < M
    y = total.to(tl.float32)
    if SCALED:
        y = y * tl.load(scale_ptr + output * each, mask=inside, other=0.0)[None, :]
    y += tl.load(bias_ptr + output, mask=inside, other=0.0).to(tl.float32)[None, :]
    if GELU == "erf":
        y = _gelu(y, -0.0004881171626, 0.0071988049895, -0.0521468035877, -0.4595957100391, -1.1510006189346)
    elif GELU == "tanh":  # off by at most 5.4e-6, which 8 bits don't show
        y = _gelu(y, -0.00210769, 0.00973022, -0.05023379, -0.46176696, -1.15027651)
    if MOST:
        y = tl.clamp(y * inverse_scale, -1.0 * MOST, 1.0 * MOST, propagate_nan=tl.PropagateNan.ALL)
    if WHOLE:
        y = (y + 12582912.0) - 12582912.0  # 1.5 * 2^23, beyond which float32 has no fractions: to the nearest, and even
    return y


@triton.jit
def _gelu(y, c5, c4, c3, c2, c1):
    """GELU by a polynomial through log2 of the tail, as in plugins/gelu/kernel.py. That of the tanh form is fitted to
    1 / (1 + exp(2 u)) so that the largest error of y is smallest."""
    a = tl.minimum(tl.abs(y), 16.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL) - a * tl.exp2(
        ((((c5 * a + c4) * a + c3) * a + c2) * a + c1) * a - 1.0
    )


def variant(name: str, inputs: int, outputs: int, *, x: str, a: str, y: str, gelu: str = "", most: int = 0) -> Variant:
    """The kernel for a weight of these sizes. x, a, y: Triton's names of the dtypes of x and weight, of the bias and of
    y; gelu: "" | "tanh" | "erf"; most: the largest number of an 8-bit y."""
    eight = x in ("fp8e4nv", "i8")
    block_k = BYTES if eight else BYTES // 2
    halves = not most
    weight = f"{x}[{TILE},{block_k}]" if eight else f"{x}[{block_k},{TILE}]"
    return Variant(
        name=name,
        module=__name__,
        function="large_kernel",
        signature={
            "x_tiles": f"tensordesc<{x}[{TILE},{block_k}]>", "weight_tiles": f"tensordesc<{weight}>",
            "bias_ptr": f"*{a}", "scale_ptr": "*fp32", "inverse_scale_ptr": "*fp32",
            "y_tiles": f"tensordesc<{y}[{TILE},{TILE // 2 if halves else TILE}]>", "tokens": "i32", "each": "i32",
        },
        constants={
            "K": inputs, "M": outputs, "SCALED": eight, "GELU": gelu, "MOST": most, "WHOLE": y == "i8", "TILE": TILE,
            "BLOCK_K": block_k, "HALVES": halves, "PDL": False,
        },
        num_warps=WARPS,
        num_stages=STAGES,
        only=ARCHITECTURES,
    )  # fmt: skip


def launch(
    kernel: str, tokens: int, inputs: int, outputs: int, *, eight: bool, each: int = 0, to_8: bool = False
) -> Launch:
    """The launch of `variant`'s kernel for at least one token, over the tensors x, weight, bias and y; scale, where
    both factors are 8 bits wide, and inverse_scale, where y is. each: 1 where there is a scale for each output."""
    weight = Tiles("weight", outputs, inputs) if eight else Tiles("weight", inputs, outputs)
    scale = "scale" if eight else "bias"  # where there is none, any address stands for it, unread
    tiles = -(-tokens // TILE) * -(-outputs // TILE)
    return Launch(
        kernel, (min(tiles, PROGRAMS),),
        (Tiles("x", tokens, inputs), weight, "bias", scale, "inverse_scale" if to_8 else scale,
         Tiles("y", tokens, outputs), tokens, each),
    )  # fmt: skip
