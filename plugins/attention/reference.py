"""Self-attention from packed or padded q, k and v, slow and obvious: what everything else is compared with."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from plugins import formats


def attention(
    qkv: np.ndarray, where: np.ndarray, *, num_heads: int, scale: float, layout: str = "packed"
) -> np.ndarray:
    """softmax(q k^T * scale) v for every head of every sequence (Vaswani et al. 2017, Eq. 1).

    Args:
        qkv: [T, 3 N D] packed or [B, S, 3 N D] padded: for each token the q of all heads, then k, then v.
        where: int32. Packed: cu_seqlens [B + 1], sequence i is the tokens cu_seqlens[i] up to cu_seqlens[i + 1], the
            first is 0. Padded: padding_mask [B, S], 1 where a token can be seen.
        num_heads: N.
        scale: what q k^T is multiplied with, 1 / sqrt(D) for a D without padding.
        layout: "packed" or "padded".

    Returns: [T, N D] or [B, S, N D]; float64 math for float64 qkv, else float32. Packed: zero for tokens at or past
    cu_seqlens[B]. Padded: all tokens of a row ask, those at padding too; a row that can see nothing gets zeros.
    """
    qkv = qkv.astype(np.result_type(qkv.dtype, np.float32) if qkv.dtype.kind == "f" else np.float32)
    return _attention(qkv, where, num_heads, scale, layout, lambda array: array)


def attention8(
    qkv: np.ndarray, where: np.ndarray, *, inverse_scale: float = 1.0, format: str = "float8", **attributes: Any
) -> np.ndarray:
    """The context of `attention` times inverse_scale, held within the format's range: what is rounded to it."""
    return formats.scaled(attention(qkv, where, **attributes), inverse_scale, format)


def plain_attention8(
    qkv: np.ndarray, where: np.ndarray, *, inverse_scale: float = 1.0, format: str = "float8", **attributes: Any
) -> np.ndarray:
    """`plain` for it."""
    return formats.scaled(plain(qkv, where, **attributes).astype(np.float32), inverse_scale, format)


def plain(qkv: np.ndarray, where: np.ndarray, *, num_heads: int, scale: float, layout: str = "packed") -> np.ndarray:
    """The unremarkable implementation in qkv's dtype: scores, weights and context are each rounded to it.

    Its error is what a kernel's is measured against; the softmax itself is float32 here, too.
    """
    dtype = qkv.dtype

    def rounded(array: np.ndarray) -> np.ndarray:
        return array.astype(dtype).astype(np.float32)

    context = _attention(qkv.astype(np.float32), where, num_heads, scale, layout, rounded)
    return context.astype(dtype)


def _attention(
    qkv: np.ndarray, where: np.ndarray, num_heads: int, scale: float, layout: str, rounded: Callable
) -> np.ndarray:
    """Sequence by sequence; `rounded` is what happens to each intermediate array."""
    context = np.zeros((*qkv.shape[:-1], qkv.shape[-1] // 3), qkv.dtype)
    if layout == "packed":
        for start, end in itertools.pairwise(where):
            context[start:end] = _sequence(qkv[start:end], np.ones(end - start, bool), num_heads, scale, rounded)
    else:
        for row, mask in enumerate(where):
            context[row] = _sequence(qkv[row], mask != 0, num_heads, scale, rounded)
    return context


def _sequence(qkv: np.ndarray, seen: np.ndarray, num_heads: int, scale: float, rounded: Callable) -> np.ndarray:
    """One sequence's [S, 3 N D] -> [S, N D]; seen bool [S] says which keys count."""
    tokens = len(qkv)
    if not seen.any():
        return np.zeros((tokens, qkv.shape[1] // 3), qkv.dtype)
    query, key, value = qkv.reshape(tokens, 3, num_heads, -1).transpose(1, 2, 0, 3)  # each [N, S, D]
    scores = rounded(query @ key[:, seen].transpose(0, 2, 1) * scale)  # [N, S, seen]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = rounded(weights / weights.sum(axis=-1, keepdims=True))
    return (weights @ value[:, seen]).transpose(1, 0, 2).reshape(tokens, -1)
