"""Product, bias, residual and layer norm, slow and obvious: two references one after the other."""

import numpy as np

from plugins.linear.reference import linear
from plugins.skip_layer_norm.reference import layer_norm


def linear_skip_layer_norm(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    residual: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    *,
    epsilon: float = 1e-12,
) -> np.ndarray:
    """Layer norm of s = x W + b + residual: x rows+[K], weight [K, H], residual rows+[H] -> rows+[H].

    float64 where x is float64, else float32.
    """
    s = linear(x, weight, bias)
    return layer_norm(s + residual.astype(s.dtype), gamma, beta, epsilon)


def plain(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    residual: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    *,
    epsilon: float = 1e-12,
) -> np.ndarray:
    """The same as two operators compute it: what goes from the product to the norm is rounded to x's dtype."""
    s = (linear(x, weight, bias) + residual.astype(np.float32)).astype(x.dtype).astype(np.float32)
    return layer_norm(s, gamma, beta, epsilon).astype(x.dtype)
