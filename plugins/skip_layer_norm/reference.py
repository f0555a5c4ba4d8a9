"""Bias, residual and layer norm, slow and obvious. Layer norm: Ba, Kiros & Hinton 2016, arXiv:1607.06450."""

import numpy as np

from plugins import formats


def skip_layer_norm(
    x: np.ndarray,
    residual: np.ndarray,
    bias: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    *,
    epsilon: float = 1e-12,
) -> np.ndarray:
    """x, residual rows+[H], bias, gamma, beta [H] -> (s - mean) / sqrt(variance + epsilon) * gamma + beta, s = x + bias
    + residual, mean and variance over H. float64 where x is float64, else float32."""
    dtype = np.result_type(x.dtype, np.float32)
    s = x.astype(dtype) + bias.astype(dtype) + residual.astype(dtype)
    return layer_norm(s, gamma, beta, epsilon)


def skip_layer_norm8(
    x: np.ndarray,
    residual: np.ndarray,
    bias: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    *,
    epsilon: float = 1e-12,
    inverse_scale: float = 1.0,
    format: str = "float8",
) -> tuple[np.ndarray, np.ndarray]:
    """(y as above, y * inverse_scale held within the format's range: what is rounded to it)."""
    y = skip_layer_norm(x, residual, bias, gamma, beta, epsilon=epsilon)
    return y, formats.scaled(y, inverse_scale, format)


def layer_norm(s: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float) -> np.ndarray:
    """s rows+[H] -> the same shape and dtype. The variance is the mean of squares of what is left after the mean is
    taken off: the other formula, E[s^2] - E[s]^2, loses all digits where the mean is large."""
    centred = s - s.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + s.dtype.type(epsilon)) * gamma.astype(s.dtype) + beta.astype(s.dtype)
