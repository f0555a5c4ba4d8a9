"""Which products of the encoder are 8 bits wide, and with which scales: what graph.py writes and engine.json keeps.

A product is named as its weight is: `layers.3.ffn.in`. Its x has one scale, found on real windows (`calibration.py`);
its weight has one, or one for each output. Products that are not named stay in 16 bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from model.config import BertConfig
from plugins import formats

PRODUCTS = ("attention.qkv", "attention.out", "ffn.in", "ffn.out")  # of a layer, in the order of computing
FORMATS = tuple(formats.MOST)
BASE = "float16"  # what the rest of an 8-bit engine is computed in


@dataclass(frozen=True)
class Quantisation:
    """8-bit products by name, each with the scale of its x: what stored 1 stands for."""

    format: str  # float8 | int8
    scales: Mapping[str, float]
    channels: bool  # a scale for each output of a weight

    def __contains__(self, name: str) -> bool:
        return name in self.scales

    def inverse(self, name: str) -> float:
        """What a product's x is multiplied with before it is rounded, as float32 has it."""
        return float(np.float32(1 / self.scales[name]))

    def stored(self, name: str, kernel: np.ndarray, channels: bool | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(weight [M, K] in the format, scale float32 [1] or [M] of x and weight together) of a kernel [K, M]."""
        channels = self.channels if channels is None else channels
        weight, scale = quantise_weight(kernel, self.format, channels)
        return weight, (scale * self.scales[name]).astype(np.float32)


def quantise_weight(kernel: np.ndarray, format: str, channels: bool) -> tuple[np.ndarray, np.ndarray]:
    """(weight [M, K] in the format, scale float32 [1] or [M]): the largest number of a scale's share becomes the
    format's largest. A share of zeros has scale 1."""
    weight = np.ascontiguousarray(kernel.T, np.float32)
    largest = np.abs(weight).max(axis=1) if channels else np.abs(weight).max(keepdims=True).reshape(1)
    scale = np.where(largest > 0, largest / formats.MOST[format], 1).astype(np.float32)
    return formats.quantise(weight, (1 / scale)[:, None], format), scale


def names(config: BertConfig) -> list[str]:
    """All products, in the order of computing."""
    return [f"layers.{index}.{product}" for index in range(config.layers) for product in PRODUCTS]


def sizes(config: BertConfig, padded_head: int) -> dict[str, tuple[int, int]]:
    """Product of a layer -> its weight's (inputs, outputs) in the graph."""
    wide = config.heads * padded_head
    return {
        "attention.qkv": (config.hidden, 3 * wide), "attention.out": (wide, config.hidden),
        "ffn.in": (config.hidden, config.ffn), "ffn.out": (config.ffn, config.hidden),
    }  # fmt: skip


def kind(name: str) -> str:
    """`layers.3.ffn.in` -> `ffn.in`"""
    return name.split(".", 2)[2]


def width_complaint(inputs: int, outputs: int) -> str:
    """Why a product cannot be 8 bits wide, "" where it can: its widths must be multiples the hardware loads at once."""
    if inputs % formats.MULTIPLE or outputs % formats.MULTIPLE:
        return f"its weight is {inputs} x {outputs}, and both must be multiples of {formats.MULTIPLE}"
    return ""
