"""The GELU kernel: each program takes BLOCK neighbouring numbers. It waits for memory, never for arithmetic."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from plugins.compile import SHORT, Sizes, Variant


@triton.jit
def gelu_kernel(
    x_ptr,  # A [n]
    n,  # int32
    y_ptr,  # A [n]
    TANH: tl.constexpr,  # noqa: N803  constants are written large, as Triton's own code does
    BLOCK: tl.constexpr,  # noqa: N803
    PDL: tl.constexpr,  # noqa: N803  overlap with the kernels before and after
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # fits int32: the plugin refuses larger tensors
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if TANH:
        # (1 + tanh u) / 2 = 1 / (1 + exp(-2u)), which cannot give inf/inf: exp overflows to inf, and x/inf is 0
        u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        y = x / (1.0 + tl.exp(-2.0 * u))
    else:
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def variants(shapes: dict[str, tuple[int, ...]], dtype: str, *, approximate: str) -> list[Variant]:
    """The kernel for these input shapes ({"x": any}) and dtype ("float16" | "bfloat16"): one serves all shapes."""
    pointer = f"*{SHORT[dtype]}"
    return [
        Variant(
            name=f"gelu-{approximate}-{dtype}",
            module=__name__,
            function="gelu_kernel",
            signature={"x_ptr": pointer, "n": "i32", "y_ptr": pointer},
            constants={
                "TANH": approximate == "tanh",
                "BLOCK": 1024,
                "PDL": False,
            },  # 8 numbers a thread: one load of 16 bytes
            aligned=("x_ptr", "y_ptr"),  # TensorRT's buffers are, and a launch checks it
            num_warps=4,
        )
    ]


def needed(sizes: Sizes, dtype: str) -> list[Variant]:
    """A model with the tanh form has it inside linear_gelu; only the erf form is this plugin's."""
    return variants({"x": (1, sizes.ffn)}, dtype, approximate="none") if sizes.gelu == "none" else []
