"""A matrix product with a bias, and with GELU after it: two operators, because a function has one body per name."""

import math

import numpy as np


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x W + b: x rows + [K], weight [K, M], bias [M] -> rows + [M]; float64 math for float64 x, else float32."""
    single = x.dtype != np.float64
    x, weight, bias = (tensor.astype(np.float32) if single else tensor for tensor in (x, weight, bias))
    return x @ weight + bias


def linear_gelu(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """GELU of linear(x, weight, bias) in its tanh form (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
    return gelu_tanh(linear(x, weight, bias))


def gelu_tanh(z: np.ndarray) -> np.ndarray:
    """In the dtype of z, any shape."""
    return z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2
