"""GELU, slow and obvious: y = x P(a standard normal number is below x). Hendrycks & Gimpel 2016, arXiv:1606.08415."""

import math

import numpy as np

from plugins import formats


def gelu(x: np.ndarray, *, approximate: str = "none") -> np.ndarray:
    """x any shape -> y of its shape, in float64 where x is float64, else float32.

    approximate: "none" by the error function (the exact one), "tanh" the approximation of the original BERT.
    """
    x = np.asarray(x, np.result_type(x.dtype, np.float32))
    if approximate == "none":
        erf = np.asarray(np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2)), x.dtype)
        return x * (1 + erf) / 2
    if approximate == "tanh":
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    raise ValueError(f"approximate is 'none' or 'tanh', not {approximate!r}")


def gelu8(
    x: np.ndarray, *, approximate: str = "none", inverse_scale: float = 1.0, format: str = "float8"
) -> np.ndarray:
    """y * inverse_scale held within the format's range: what is rounded to it."""
    return formats.scaled(gelu(x, approximate=approximate), inverse_scale, format)
