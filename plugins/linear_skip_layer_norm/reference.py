"""Product, bias, residual and layer norm, slow and obvious: two references one after the other. Then the same as two
operators compute it, `plain`: what goes from the product to the norm is rounded to A."""

import numpy as np

from plugins import formats
from plugins.linear.reference import linear
from plugins.linear8.reference import linear8
from plugins.skip_layer_norm.reference import layer_norm

Array = np.ndarray


def linear_skip_layer_norm(
    x: Array, weight: Array, bias: Array, residual: Array, gamma: Array, beta: Array, *, epsilon: float = 1e-12
) -> Array:
    """Layer norm of s = x W + b + residual: x rows+[K], weight [K, H], residual rows+[H] -> rows+[H].

    float64 where x is float64, else float32.
    """
    return _norm(linear(x, weight, bias), residual, gamma, beta, epsilon)


def linear_skip_layer_norm8(
    x: Array, weight: Array, bias: Array, residual: Array, gamma: Array, beta: Array, *,
    epsilon: float = 1e-12, inverse_scale: float = 1.0, format: str = "float8",
) -> tuple[Array, Array]:  # fmt: skip
    """(y as above, y * inverse_scale held within the format's range: what is rounded to it)."""
    return _with_q(
        linear_skip_layer_norm(x, weight, bias, residual, gamma, beta, epsilon=epsilon), inverse_scale, format
    )


def linear8_skip_layer_norm(
    x: Array, weight: Array, bias: Array, scale: Array, residual: Array, gamma: Array, beta: Array, *,
    epsilon: float = 1e-12, format: str = "float8",
) -> Array:  # fmt: skip
    """Layer norm of s = (x W') scale + b + residual: x rows+[K] and weight [H, K] as stored, scale [1] or [H].

    float64 where the bias is float64, else float32.
    """
    return _norm(linear8(x, weight, bias, scale), residual, gamma, beta, epsilon)


def linear8_skip_layer_norm8(
    x: Array, weight: Array, bias: Array, scale: Array, residual: Array, gamma: Array, beta: Array, *,
    epsilon: float = 1e-12, inverse_scale: float = 1.0, format: str = "float8",
) -> tuple[Array, Array]:  # fmt: skip
    """That, and y * inverse_scale."""
    y = linear8_skip_layer_norm(x, weight, bias, scale, residual, gamma, beta, epsilon=epsilon)
    return _with_q(y, inverse_scale, format)


def plain(x, weight, bias, residual, gamma, beta, *, epsilon: float = 1e-12) -> Array:
    return _rounded_norm(linear(x, weight, bias), residual, gamma, beta, epsilon).astype(x.dtype)


def plain_linear_skip_layer_norm8(
    x, weight, bias, residual, gamma, beta, *, epsilon: float, inverse_scale: float, format: str
) -> tuple[Array, Array]:
    y = _rounded_norm(linear(x, weight, bias), residual, gamma, beta, epsilon)
    return _with_q(y, inverse_scale, format)


def plain_linear8_skip_layer_norm(
    x, weight, bias, scale, residual, gamma, beta, *, epsilon: float, format: str
) -> Array:  # fmt: skip
    return _rounded_norm(linear8(x, weight, bias, scale), residual, gamma, beta, epsilon)


def plain_linear8_skip_layer_norm8(
    x, weight, bias, scale, residual, gamma, beta, *, epsilon: float, inverse_scale: float, format: str
) -> tuple[Array, Array]:
    y = _rounded_norm(linear8(x, weight, bias, scale), residual, gamma, beta, epsilon)
    return _with_q(y, inverse_scale, format)


def _norm(product: Array, residual: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    return layer_norm(product + residual.astype(product.dtype), gamma, beta, epsilon)


def _rounded_norm(product: Array, residual: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    """float32; the sum was rounded to the residual's dtype before."""
    s = (product.astype(np.float32) + residual.astype(np.float32)).astype(residual.dtype)
    return layer_norm(s.astype(np.float32), gamma, beta, epsilon)


def _with_q(y: Array, inverse_scale: float, format: str) -> tuple[Array, Array]:
    return y, formats.scaled(y, inverse_scale, format)
