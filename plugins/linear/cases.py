"""Shapes of linear: small ones that go wrong first, and those that the bench times."""

from dataclasses import dataclass, replace

import numpy as np

from plugins.cases import ProductCase


@dataclass(frozen=True)
class Case(ProductCase):
    """x rows + [inputs] times weight [inputs, outputs]."""

    outputs: int  # M
    approximate: str = ""  # the form of GELU, which linear_gelu has alone

    @property
    def attributes(self) -> dict[str, str]:
        return {"approximate": self.approximate} if self.approximate else {}


USUAL = [
    Case("packed", "three different lengths, so that no two axes can be mistaken for each other", (24,), 16, 40),
    Case("padded", "rows have two axes", (3, 5), 32, 8),
    Case("one token", "a vector times a matrix", (1,), 64, 16),
    Case("odd tokens", "a packed batch has any number of them", (37,), 48, 96),
    Case("odd widths", "rows that start at addresses no vector load likes", (7,), 13, 9),
    Case("few tokens", "our own kernel: two blocks of rows, the second one not full", (70,), 128, 192),
    Case("few tokens, many inputs", "four blocks of K, three more asked for ahead", (3,), 512, 64),
    Case("few tokens, K of 96", "a smaller block of K", (2, 4), 96, 64),
    Case("wide", "more products to a sum than a float16 sum survives", (4,), 2048, 8),
    Case("many tokens", "several tiles each way; rows, K and M end within the last ones", (300,), 200, 264),
]
FORMS = {"tanh": "tanh", "erf": "none"}
CASES = [
    *USUAL,
    *(replace(case, name=f"{case.name}, {said}", approximate=form) for case in USUAL for said, form in FORMS.items()),
]

# Per layer of an encoder: qkv, attention.out, ffn.in (with GELU), ffn.out.
BENCH_CASES = [
    Case(f"{model} {batch}x{length} {name}{gelu and f' {gelu}'}", name, (batch * length,), inputs, outputs,
         FORMS.get(gelu, ""))
    for model, hidden, ffn in (("base", 768, 3072), ("minilm", 384, 1536))
    for batch, length in ((1, 128), (8, 128), (32, 128), (32, 384))
    for name, inputs, outputs in (
        ("qkv", hidden, 3 * hidden), ("attention.out", hidden, hidden),
        ("ffn.in", hidden, ffn), ("ffn.out", ffn, hidden),
    )
    for gelu in ("", *FORMS)
    if name == "ffn.in" or not gelu
]  # fmt: skip


def inputs(case: Case, rng: np.random.Generator, dtype) -> dict[str, np.ndarray]:
    """x, weight and bias in dtype; sums lie around -3..3, where GELU bends."""
    weight = rng.standard_normal((case.inputs, case.outputs)) / np.sqrt(case.inputs)
    return {
        "x": rng.standard_normal((*case.rows, case.inputs)).astype(dtype),
        "weight": weight.astype(dtype),
        "bias": rng.standard_normal(case.outputs).astype(dtype),
    }
