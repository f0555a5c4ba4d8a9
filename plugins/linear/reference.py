"""A matrix product with a bias, and with GELU after it: two operators, because a function has one body per name."""

import numpy as np

from plugins.gelu.reference import gelu


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x W + b: x rows + [K], weight [K, M], bias [M] -> rows + [M]; float64 math for float64 x, else float32."""
    single = x.dtype != np.float64
    x, weight, bias = (tensor.astype(np.float32) if single else tensor for tensor in (x, weight, bias))
    return x @ weight + bias


def linear_gelu(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, approximate: str = "tanh") -> np.ndarray:
    """GELU of it, "tanh" or "none" (erf)."""
    return gelu(linear(x, weight, bias), approximate=approximate)
