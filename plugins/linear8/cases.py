"""Shapes of 8-bit products: small ones that go wrong first, and those that the bench times."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from plugins import formats
from plugins.cases import ProductCase


@dataclass(frozen=True)
class Case(ProductCase):
    """x rows + [inputs] times the transpose of weight [outputs, inputs]."""

    outputs: int  # M
    format: str = "float8"
    channels: bool = False  # a scale for each output; cuBLASLt has that for 9.0 alone
    approximate: str = ""  # the form of GELU, which linear8_gelu8 has alone

    @property
    def attributes(self) -> dict[str, str]:
        return {"format": self.format} | ({"approximate": self.approximate} if self.approximate else {})


USUAL = [
    Case("packed", "three different lengths, so that no two axes can be mistaken for each other", (24,), 32, 48),
    Case("padded", "rows have two axes", (3, 5), 32, 16),
    Case("one token", "a vector times a matrix", (1,), 64, 16),
    Case("odd tokens", "a packed batch has any number of them, and only widths are multiples of 16", (37,), 48, 96),
    Case("deep", "more products to a sum than the tensor cores' short sums keep all bits of", (4,), 4096, 16),
    Case("channels", "a scale for each output", (24,), 32, 48, channels=True),
    Case("few", "our kernel: two blocks of rows, the second one not full", (70,), 256, 192, channels=True),
    Case("few, K of 96", "a smaller block of K", (2, 4), 96, 64),
    Case("int8", "the same by our kernel", (24,), 32, 48, "int8"),
    Case("int8 channels", "a scale for each output; K ends within a block", (37,), 208, 96, "int8", channels=True),
    Case("int8 padded", "rows have two axes; M ends within a block", (3, 5), 64, 80, "int8"),
    Case("many", "several tiles each way; rows, K and M end within the last ones", (300,), 208, 272),
    Case("int8 many", "the kernel for many tokens, several blocks each way", (150,), 80, 144, "int8", channels=True),
]
CASES = [
    *USUAL,
    *(
        replace(case, name=f"{case.name}, {said}", approximate=approximate)
        for case in USUAL
        for said, approximate in (("tanh", "tanh"), ("erf", "none"))
    ),
]

# What float8's short sums on a GPU (`matmul8.FAST_ACCUMULATION`) may add to the errors: arguments of
# `legs.assert_case_right`.
ON_GPU: Any = {"slack": 2**-7, "share": 0.2}

# Per layer of an encoder: qkv, attention.out, ffn.in (with GELU), ffn.out.
BENCH_CASES = [
    Case(f"{model} {batch}x{length} {name}{channels and ' channels'}{form and f' {form}'}{gelu and f' {gelu}'}", name,
         (batch * length,), inputs, outputs, form or "float8", bool(channels), gelu.replace("erf", "none"))
    for model, hidden, ffn in (("base", 768, 3072), ("large", 1024, 4096), ("minilm", 384, 1536))
    for batch, length in ((1, 128), (2, 128), (8, 128), (32, 128), (32, 384))
    for name, inputs, outputs in (
        ("qkv", hidden, 3 * hidden), ("attention.out", hidden, hidden),
        ("ffn.in", hidden, ffn), ("ffn.out", ffn, hidden),
    )
    for channels, form, gelu in (("", "", ""), ("c", "", ""), ("", "int8", ""), ("", "", "erf"), ("", "", "tanh"))
    if name == "ffn.in" or not gelu
]  # fmt: skip


def inputs(case: Case, rng: np.random.Generator, dtype) -> dict[str, np.ndarray]:
    """x and weight in the format, bias in dtype, scale; sums lie around -3..3, where GELU bends."""
    weight = rng.standard_normal((case.outputs, case.inputs)) / np.sqrt(case.inputs)
    if case.channels:
        weight *= np.exp2(rng.uniform(-4, 0, (case.outputs, 1)))
    x = rng.standard_normal((*case.rows, case.inputs))
    most = formats.MOST[case.format]
    weight_scale = np.abs(weight).max(axis=1 if case.channels else None, keepdims=True) / most  # [M, 1] or [1, 1]
    return {
        "x": formats.quantise(x, most / 4, case.format),
        "weight": formats.quantise(weight, 1 / weight_scale, case.format),
        "bias": rng.standard_normal(case.outputs).astype(dtype),
        "scale": (weight_scale.reshape(-1) * 4 / most).astype(np.float32),
        "inverse_scale": np.array([most / 3], np.float32),  # of linear8_gelu8: some of its numbers lie beyond
    }
