"""Attention for TensorRT: what it takes, what it gives, which kernel on which grid."""

import math
from collections.abc import Mapping
from typing import ClassVar

from plugins.attention.kernel import QUERIES
from plugins.launch import Launch
from plugins.registration import Plugin

LOG2_E = math.log2(math.e)
# Few programs have a multiprocessor to themselves and take 128 keys at a time; more of them, which share one, take 64
# and hide each other's waiting. Three for each of an H100's 132 multiprocessors are few: results.csv.
FEW_PROGRAMS = 396


class Attention(Plugin):
    """Packed: qkv A [T, 3 N D], cu_seqlens int32 [B + 1] -> y A [T, N D].
    Padded: qkv A [B, S, 3 N D], padding_mask int32 [B, S] -> y A [B, S, N D]."""

    op = "attention"
    attributes: ClassVar = {"num_heads": 1, "scale": 1.0, "layout": "packed"}
    inputs: ClassVar = {"qkv": "A", "where": "int32"}

    def output_shape(self, shapes):
        return [*shapes["qkv"][:-1], shapes["qkv"][-1] // 3]

    def launches(self, shapes: Mapping, dtype: str, kernels: Mapping) -> list[Launch]:
        heads, scale, layout = (self.values[key] for key in ("num_heads", "scale", "layout"))
        *rows, width = shapes["qkv"]
        if layout not in ("packed", "padded") or len(rows) != (1 if layout == "packed" else 2):
            seen = f"qkv {list(shapes['qkv'])} in layout {layout!r}"
            raise ValueError(f"attention: {seen}; packed is [T, 3 N D], padded is [B, S, 3 N D]")
        if heads < 1 or width % (3 * heads) or (size := width // (3 * heads)) % 8 or not 8 <= size <= 128:
            raise ValueError(
                f"attention: {width} columns for {heads} heads; a head's q, k, v need 8, 16, ... or 128 each"
            )
        if not 0 < scale < math.inf:
            raise ValueError(f"attention: scale is {scale}, and must be above 0")
        tokens = math.prod(rows)
        if not tokens:
            return []
        if layout == "padded" and tuple(shapes["where"]) != tuple(rows):
            raise ValueError(f"attention: padding_mask {list(shapes['where'])} for qkv {list(shapes['qkv'])}")
        sequences, length = (shapes["where"][0] - 1, tokens) if layout == "packed" else rows
        block = QUERIES
        slots = tokens // block + sequences + 1 if layout == "packed" else sequences * -(-length // block)
        kind = "few" if heads * slots <= FEW_PROGRAMS else "many"
        format = self.values.get("format", "")
        kernel = f"attention-{layout}-{heads}x{size}-{kind}-{dtype}{format and '-'}{format}"
        if slots > 65535 or tokens * width >= 2**31:  # CUDA's limit of a grid's second axis; int32 offsets
            raise ValueError(f"attention: {tokens} tokens in {sequences} sequences are too many; make smaller batches")
        numbers = (sequences, length, scale * LOG2_E, self.values.get("inverse_scale", 1.0))
        return [Launch(kernel, (heads, slots), ("qkv", "where", "y", *numbers))]


class Attention8(Attention):
    """The same with y * inverse_scale in float8 or int8 in y's place, for the product that follows."""

    op = "attention8"
    attributes: ClassVar = {**Attention.attributes, "inverse_scale": 1.0, "format": "float8"}
    outputs: ClassVar = {"y": "Q"}
