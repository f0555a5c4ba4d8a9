"""The embedding kernel: a program gathers three rows, adds them in float32 and normalises the sum, all in registers."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from plugins import formats
from plugins.compile import SHORT, Sizes, Variant

# ruff: noqa: N803 - compile-time constants are written in capitals


@triton.jit
def embed_layer_norm_kernel(
    token_ids_ptr,  # int32 [rows]
    segment_ids_ptr,  # int32 [rows]
    position_ids_ptr,  # int32 [rows]
    token_table_ptr,  # A [tokens, H]
    position_table_ptr,  # A [positions, H]
    segment_table_ptr,  # A [segments, H]
    gamma_ptr,  # float32 [H]
    beta_ptr,  # float32 [H]
    y_ptr,  # A [rows, H]
    q_ptr,  # float8 or int8 [rows, H]: y * inverse_scale, rounded from float32; y_ptr again where MOST is 0
    rows,  # int32, as all that follow
    tokens,
    positions,
    segments,
    epsilon,  # float32
    inverse_scale,  # float32
    H: tl.constexpr,
    BLOCK: tl.constexpr,  # the power of 2 that holds H
    ROWS: tl.constexpr,  # rows a program takes
    PDL: tl.constexpr,  # overlap with the kernels before and after
    MOST: tl.constexpr,  # the largest number of q's format; 0 for no q
    WHOLE: tl.constexpr,  # whether q has whole numbers alone
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    column = tl.arange(0, BLOCK)
    in_row = column < H
    inside = there[:, None] & in_row[None, :]

    # Ids are data: each is held within its table, so that nonsense gives a wrong row and never a fault.
    token = tl.load(token_ids_ptr + row, mask=there, other=0)
    token = tl.minimum(tl.maximum(token, 0), tokens - 1).to(tl.int64)
    position = tl.load(position_ids_ptr + row, mask=there, other=0)
    position = tl.minimum(tl.maximum(position, 0), positions - 1).to(tl.int64)
    segment = tl.load(segment_ids_ptr + row, mask=there, other=0)
    segment = tl.minimum(tl.maximum(segment, 0), segments - 1).to(tl.int64)

    s = tl.load(token_table_ptr + token[:, None] * H + column[None, :], mask=inside, other=0.0).to(tl.float32)
    s += tl.load(position_table_ptr + position[:, None] * H + column[None, :], mask=inside, other=0.0).to(tl.float32)
    s += tl.load(segment_table_ptr + segment[:, None] * H + column[None, :], mask=inside, other=0.0).to(tl.float32)
    gamma = tl.load(gamma_ptr + column, mask=in_row, other=0.0)
    beta = tl.load(beta_ptr + column, mask=in_row, other=0.0)

    mean = tl.sum(s, 1) / H
    centred = tl.where(in_row[None, :], s - mean[:, None], 0.0)
    rest = tl.sum(centred, 1) / H  # of the mean, which was rounded; see skip_layer_norm
    variance = tl.maximum(tl.sum(centred * centred, 1) / H - rest * rest, 0.0)
    y = (centred - rest[:, None]) * tl.rsqrt(variance + epsilon)[:, None] * gamma[None, :] + beta[None, :]
    at = row.to(tl.int64)[:, None] * H + column[None, :]
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
    inverse_scale: float = 1.0,
    rows: int | None = None,
    warps: int | None = None,
) -> list[Variant]:
    """The kernel for tables of this width, shapes["token_table"][-1], from 1 to 8192. rows, warps: for benches.

    format: "float8" or "int8" for a second output in it. epsilon and inverse_scale are arguments of the launch and
    compiled into nothing.
    """
    width = shapes["token_table"][-1]
    if not 1 <= width <= 8192:
        raise ValueError(f"embed_layer_norm keeps a row in registers: up to 8192 wide, not {width}")
    block = 1 << (width - 1).bit_length()
    rows = rows or max(1, 2048 // block)  # 64 numbers a thread, as in skip_layer_norm
    a = f"*{SHORT[dtype]}"
    tables = {f"{name}_table_ptr": a for name in ("token", "position", "segment")}
    return [
        Variant(
            name=f"embed_layer_norm-{width}-{dtype}{format and '-'}{format}",
            module=__name__,
            function="embed_layer_norm_kernel",
            signature={
                "token_ids_ptr": "*i32", "segment_ids_ptr": "*i32", "position_ids_ptr": "*i32", **tables,
                "gamma_ptr": "*fp32", "beta_ptr": "*fp32", "y_ptr": a,
                "q_ptr": f"*{SHORT[format or dtype]}",
                "rows": "i32", "tokens": "i32", "positions": "i32", "segments": "i32", "epsilon": "fp32",
                "inverse_scale": "fp32",
            },
            constants={
                "H": width, "BLOCK": block, "ROWS": rows, "PDL": False,
                "MOST": formats.MOST[format] if format else 0, "WHOLE": format == "int8",
            },
            # The ids may be slices of a longer tensor, which start anywhere; tables and results start a buffer.
            aligned=(*tables, "gamma_ptr", "beta_ptr", "y_ptr", "q_ptr"),
            num_warps=warps or min(16, max(1, rows * block // 2048)),
        )
    ]  # fmt: skip


def needed(sizes: Sizes, dtype: str) -> list[Variant]:
    """What an engine of this model needs."""
    kinds = ("", sizes.format) if sizes.format else ("",)
    return [made for kind in kinds for made in variants({"token_table": (1, sizes.hidden)}, dtype, format=kind)]
