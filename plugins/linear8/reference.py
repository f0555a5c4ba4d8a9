"""Products of 8-bit numbers: the sums are scaled back to what they stand for before the bias comes to them."""

import numpy as np

from plugins import formats
from plugins.gelu.reference import gelu


def linear8(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, scale: np.ndarray, *, format: str = "float8"
) -> np.ndarray:
    """x rows + [K] and weight [M, K] as stored, bias [M], scale [1] or [M] -> (x W') scale + b, rows + [M].

    scale: what a product of two stored numbers stands for, which is x's scale times the weight's. float64 math for a
    float64 bias, else float32.
    """
    dtype = np.result_type(bias.dtype, np.float32)
    x, weight, bias, scale = (tensor.astype(dtype) for tensor in (x, weight, bias, scale))
    return (x @ weight.T) * scale + bias


def linear8_gelu(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, scale: np.ndarray, *, format: str = "float8"
) -> np.ndarray:
    """GELU of it in its tanh form."""
    return gelu(linear8(x, weight, bias, scale), approximate="tanh")


def linear8_gelu8(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    scale: np.ndarray,
    inverse_scale: np.ndarray,
    *,
    format: str = "float8",
    approximate: str = "tanh",
) -> np.ndarray:
    """GELU of it, "tanh" or "none" (erf), times inverse_scale [1], held within the format's range: what is rounded to
    it."""
    return formats.scaled(gelu(linear8(x, weight, bias, scale), approximate=approximate), inverse_scale, format)
