"""Three embeddings, added and normalised, slow and obvious: what a BERT does first."""

import numpy as np

from plugins import formats
from plugins.skip_layer_norm.reference import layer_norm


def embed_layer_norm(
    token_ids: np.ndarray,
    segment_ids: np.ndarray,
    position_ids: np.ndarray,
    token_table: np.ndarray,
    position_table: np.ndarray,
    segment_table: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    *,
    epsilon: float = 1e-12,
) -> np.ndarray:
    """ids integer rows, tables [V, H], [P, H], [2, H], gamma and beta [H] -> layer norm of the rows' sum, rows+[H].

    An id beyond its table is taken as the nearest one in it, as the kernel does so as not to read foreign memory; it is
    for the caller to refuse such ids. float64 where the token table is float64, else float32.
    """
    dtype = np.result_type(token_table.dtype, np.float32)
    pairs = ((token_ids, token_table), (position_ids, position_table), (segment_ids, segment_table))
    token, position, segment = (table[np.clip(ids, 0, len(table) - 1)].astype(dtype) for ids, table in pairs)
    return layer_norm(token + position + segment, gamma, beta, epsilon)


def embed_layer_norm8(
    *tensors: np.ndarray, epsilon: float = 1e-12, inverse_scale: float = 1.0, format: str = "float8"
) -> tuple[np.ndarray, np.ndarray]:
    """(y as above from the same tensors, y * inverse_scale held within the format's range: what is rounded to it)."""
    y = embed_layer_norm(*tensors, epsilon=epsilon)
    return y, formats.scaled(y, inverse_scale, format)
