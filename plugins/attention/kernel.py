"""Attention without a score matrix: one Triton kernel for packed and padded input (Dao 2023, arXiv 2307.08691).

A program takes BLOCK_M queries of one head of one sequence and walks over that sequence's keys, BLOCK_N at a time,
keeping for each query the largest score so far, the sum of exponentials and the weighted sum of v, all float32. Blocks
whose keys all count are taken without masks; what is left at a sequence's end is taken with them.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from plugins import formats
from plugins.compile import SHORT, Sizes, Variant

_LOWEST = tl.constexpr(-3.0e38)  # below any score, and finite: the difference of two of them is 0, not NaN

# ruff: noqa: N803 - compile-time constants are written in capitals
QUERIES = 64  # of a program: what 4 warps' matrix instructions of 9.0 take at once


@triton.jit
def attention_kernel(
    qkv,  # A [T, 3, HEADS, HEAD_SIZE], T = tokens of all sequences, or B * S
    where,  # int32: cu_seqlens [B + 1], or padding_mask [B, S]
    y,  # A, float8 or int8 [T, HEADS, HEAD_SIZE]
    sequences,  # B
    length,  # packed: T; padded: S
    scale,  # float32 above 0: the node's scale times log2(e), since exp2 is what the hardware has
    inverse_scale,  # float32; of an 8-bit y alone
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,  # a multiple of 8
    PACKED: tl.constexpr,
    BLOCK_D: tl.constexpr,  # the power of 2 from 16 on that holds HEAD_SIZE
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LOOK: tl.constexpr,  # numbers of `where` read at once
    PDL: tl.constexpr,  # overlap with the kernels before and after
    MOST: tl.constexpr,  # the largest number of an 8-bit y; 0 where y is A
    WHOLE: tl.constexpr,  # whether y has whole numbers alone
):
    """Grid: (HEADS, T // BLOCK_M + B + 1) packed, (HEADS, B * ceil(S / BLOCK_M)) padded. It follows from sizes alone,
    so that a captured launch stays right when the lengths in `where` change."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    head = tl.program_id(0)  # fastest: programs that run together read whole rows of qkv
    slot = tl.program_id(1)
    if PACKED:
        start, tokens, tile, keys, whole = _find_packed(where, sequences, length, slot, BLOCK_M, BLOCK_N, LOOK)
    else:
        start, tokens, tile, keys, whole = _find_padded(where, length, slot, BLOCK_M, BLOCK_N, LOOK)
    if (tile >= 0) & (tile * BLOCK_M < tokens):
        row_size: tl.constexpr = 3 * HEADS * HEAD_SIZE
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        key = tl.arange(0, BLOCK_N)
        column = tl.arange(0, BLOCK_D)
        in_head = (column < HEAD_SIZE)[None, :]
        inside = (row < tokens)[:, None] & in_head
        base = qkv + start.to(tl.int64) * row_size + head * HEAD_SIZE
        q = tl.load(base + row[:, None] * row_size + column[None, :], mask=inside, other=0.0)  # [BLOCK_M, BLOCK_D]
        k_block = base + HEADS * HEAD_SIZE + key[:, None] * row_size + column[None, :]  # pointers [BLOCK_N, BLOCK_D]

        largest = tl.full([BLOCK_M], _LOWEST, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for first in range(0, whole, BLOCK_N):
            pointers = k_block + first * row_size
            if HEAD_SIZE == BLOCK_D:
                k = tl.load(pointers)
                v = tl.load(pointers + HEADS * HEAD_SIZE)
            else:
                k = tl.load(pointers, mask=in_head, other=0.0)
                v = tl.load(pointers + HEADS * HEAD_SIZE, mask=in_head, other=0.0)
            scores = tl.dot(q, tl.trans(k))
            largest, total, mixed = _add_block(scores, v, scale, largest, total, mixed)
        for first in tl.range(whole, keys, BLOCK_N, num_stages=1):  # one block or none, unless a mask has holes
            pointers = k_block + first * row_size
            seen = first + key < keys
            if not PACKED:
                seen = seen & (tl.load(where + start + first + key, mask=seen, other=0) != 0)
            mask = seen[:, None] & in_head
            k = tl.load(pointers, mask=mask, other=0.0)
            v = tl.load(pointers + HEADS * HEAD_SIZE, mask=mask, other=0.0)  # 0, so that no NaN meets a weight of 0
            scores = tl.where(seen[None, :], tl.dot(q, tl.trans(k)), float("-inf"))
            largest, total, mixed = _add_block(scores, v, scale, largest, total, mixed)

        mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]  # no key seen: zeros stay zeros
        out = y + start.to(tl.int64) * (HEADS * HEAD_SIZE) + head * HEAD_SIZE
        out += row[:, None] * (HEADS * HEAD_SIZE) + column[None, :]
        if MOST:
            mixed = tl.clamp(mixed * inverse_scale, -1.0 * MOST, 1.0 * MOST, propagate_nan=tl.PropagateNan.ALL)
        if WHOLE:
            mixed = (mixed + 12582912.0) - 12582912.0  # 1.5 * 2^23: float32 has no fractions there, and rounds to even
        tl.store(out, mixed.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _add_block(scores, v, scale, largest, total, mixed):
    """A block of keys into the running softmax: unscaled scores float32 [BLOCK_M, BLOCK_N], v A [BLOCK_N, BLOCK_D]."""
    new = tl.maximum(largest, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - new[:, None])
    keep = tl.exp2(largest - new)
    mixed = tl.dot(weights.to(v.dtype), v, mixed * keep[:, None])
    return new, total * keep + tl.sum(weights, 1), mixed


@triton.jit
def _find_packed(
    cu_seqlens, sequences, tokens, slot, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, LOOK: tl.constexpr
):  # fmt: skip
    """The tile of a program: (first token of its sequence, tokens in it, which tile, keys, keys in whole blocks).

    Sequence i owns the slots from cu_seqlens[i] // BLOCK_M + i on, up to the next one's. A sequence of L tokens from
    token c on needs ceil(L / BLOCK_M) <= (c + L) // BLOCK_M - c // BLOCK_M + 1 of them, so they suffice, and at most
    one a sequence idles. The tail after cu_seqlens[B] counts as sequence B; it has no keys and so gets zeros.

    cu_seqlens is data: each number is taken as no less than 0 and no more than tokens, and a sequence that ends before
    it starts has no tile. So nonsense spoils the result, and still no access leaves [0, tokens).
    """
    begun = 0
    for chunk in range(0, sequences + 1, LOOK):
        index = chunk + tl.arange(0, LOOK)
        there = index <= sequences
        offset = tl.load(cu_seqlens + index, mask=there, other=0)
        offset = tl.minimum(tl.maximum(offset, 0), tokens)
        begun += tl.sum((there & (offset // BLOCK_M + index <= slot)).to(tl.int32), 0)
    sequence = tl.maximum(begun - 1, 0)
    is_tail = sequence >= sequences
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence), 0), tokens)
    end = tl.load(cu_seqlens + sequence + 1, mask=sequence < sequences, other=0)
    end = tl.where(is_tail, tokens, tl.minimum(tl.maximum(end, 0), tokens))
    keys = tl.where(is_tail, 0, end - start)
    return start, end - start, slot - (start // BLOCK_M + sequence), keys, keys // BLOCK_N * BLOCK_N


@triton.jit
def _find_padded(padding_mask, length, slot, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, LOOK: tl.constexpr):
    """The same of row slot // tiles: its keys end at the last one seen; with a hole before it, no block is whole."""
    tiles = tl.cdiv(length, BLOCK_M)
    start = slot // tiles * length
    count = 0
    last = 0
    for chunk in range(0, length, LOOK):
        index = chunk + tl.arange(0, LOOK)
        seen = tl.load(padding_mask + start + index, mask=index < length, other=0) != 0
        count += tl.sum(seen.to(tl.int32), 0)
        last = tl.maximum(last, tl.max(tl.where(seen, index + 1, 0), 0))
    whole = tl.where(count == last, last // BLOCK_N * BLOCK_N, 0)
    return start, length, slot % tiles, last, whole


def variants(
    shapes: dict[str, tuple[int, ...]],
    dtype: str,
    *,
    num_heads: int,
    layout: str,
    scale: float = 1.0,
    format: str = "",
    inverse_scale: float = 1.0,
    block_n: int | None = None,
    warps: int = 4,
    stages: int | None = None,
) -> list[Variant]:
    """The kernels for qkv of this width: for "many" programs and for "few" (plugin.py says how many).

    format: "float8" or "int8" where y is that. scale and inverse_scale are arguments of the launch, compiled into
    nothing. The last three are for benches, to try others.
    """
    head_size = shapes["qkv"][-1] // (3 * num_heads)
    pointer = f"*{SHORT[dtype]}"
    kinds = {"few": (128, 2), "many": (64, 3)}  # keys at a time, and how many times they are under way
    return [
        Variant(
            name=f"attention-{layout}-{num_heads}x{head_size}-{kind}-{dtype}{format and '-'}{format}",
            module=__name__,
            function="attention_kernel",
            signature={
                "qkv": pointer, "where": "*i32", "y": f"*{SHORT[format or dtype]}", "sequences": "i32", "length": "i32",
                "scale": "fp32", "inverse_scale": "fp32",
            },
            constants={
                "HEADS": num_heads, "HEAD_SIZE": head_size, "PACKED": layout == "packed",
                "BLOCK_D": max(16, 1 << (head_size - 1).bit_length()),
                "BLOCK_M": QUERIES, "BLOCK_N": block_n or keys, "LOOK": 128, "PDL": False,
                "MOST": formats.MOST[format] if format else 0, "WHOLE": format == "int8",
            },
            aligned=("qkv", "y"),
            num_warps=warps,
            num_stages=stages or usual_stages,
        )
        for kind, (keys, usual_stages) in kinds.items()
    ]  # fmt: skip


def needed(sizes: Sizes, dtype: str) -> list[Variant]:
    """What an engine of this model needs."""
    shapes = {"qkv": (1, 3 * sizes.heads * sizes.head_size)}
    kinds = ("", sizes.format) if sizes.format else ("",)
    given = {"num_heads": sizes.heads, "layout": sizes.layout}
    return [variant for kind in kinds for variant in variants(shapes, dtype, **given, format=kind)]
