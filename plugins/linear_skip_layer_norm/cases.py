"""Shapes of linear_skip_layer_norm and its kin: small ones that go wrong first, and those that the bench times."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from plugins import formats
from plugins.cases import ProductCase


@dataclass(frozen=True)
class Case(ProductCase):
    """x rows + [inputs] times weight [inputs, width], or of 8 bits times the transpose of weight [width, inputs]."""

    width: int  # H
    epsilon: float = 1e-12
    eight: bool = False  # the product is float8
    channels: bool = False  # and has a scale for each output
    format: str = ""  # of a second output
    inverse_scale: float = 100.0  # of that

    @property
    def op(self) -> str:
        return f"linear{'8' if self.eight else ''}_skip_layer_norm{'8' if self.format else ''}"

    @property
    def attributes(self) -> dict[str, float | str]:
        found: dict[str, float | str] = {"epsilon": self.epsilon}
        found |= {"inverse_scale": self.inverse_scale} if self.format else {}
        return found | ({"format": self.format or "float8"} if self.eight or self.format else {})


def sixteens(width: int) -> int:
    """The next multiple, which 8-bit products want."""
    return -(-width // formats.MULTIPLE) * formats.MULTIPLE


USUAL = [
    Case("one token", "one row of a block", (1,), 128, 64),
    Case("one part", "the product is not divided", (3,), 32, 64),
    Case("parts", "4 programs share a sum", (7,), 3072, 64),
    Case("padded", "rows have two axes, and more than one block", (2, 35), 64, 128),
    Case("norm of a part of a block", "192 columns, norms are made over 256", (5,), 768, 192),
    Case("epsilon", "a large one", (2,), 64, 64, epsilon=0.5),
    Case("odd widths", "no kernel of ours has such blocks", (7,), 24, 40),
    Case("many tokens", "more than few", (300,), 64, 64),
]
CASES = [
    *USUAL,
    *(
        replace(case, name=f"{name} {case.name}", inputs=sixteens(case.inputs), width=sixteens(case.width), **more)
        for case in USUAL
        for name, more in (("8", {"eight": True}), ("8 to 8", {"eight": True, "format": "float8"}))
        if name == "8 to 8" or case.name in ("one token", "padded", "epsilon", "many tokens")
    ),
    Case("8 channels", "a scale for each output, several parts", (9,), 768, 64, eight=True, channels=True),
    Case("8 to 8 channels", "the same, and a row is more than one block", (70,), 96, 192, 1e-12, True, True, "float8"),
    Case("8 no token", "nothing to launch", (0,), 64, 64, eight=True, format="float8"),
    Case("8 beyond", "much lies beyond 448 and must stay 448", (5,), 64, 64, 1e-12, True, False, "float8", 400.0),
    Case("to float8", "the product is not, the next one is 8 bits wide", (7,), 768, 192, format="float8"),
    Case("many to float8", "the same in place", (300,), 64, 64, format="float8"),
    Case("to int8", "whole numbers, a half goes to the even one", (7,), 128, 64, format="int8", inverse_scale=30.0),
    Case("many to int8", "the same in place", (300,), 64, 64, format="int8", inverse_scale=30.0),
]  # fmt: skip

# What float8's short sums on a GPU may add to the errors, and how many more numbers of q they round otherwise.
ON_GPU: Any = {"slack": 2**-7, "share": 0.2}

BENCH_CASES = [
    Case(f"{model} {batch}x{length} {name}{said}", name, (batch * length,), inputs, hidden, **more)
    for model, hidden, ffn in (("base", 768, 3072), ("minilm", 384, 1536), ("large", 1024, 4096))
    for batch, length in ((1, 128), (2, 128), (8, 128), (32, 128), (32, 384))
    for name, inputs in (("attention.out", hidden), ("ffn.out", ffn))
    for said, more in (("", {}), (" 8 to 8", {"eight": True, "format": "float8"}))
]  # fmt: skip


def inputs(case: Case, rng: np.random.Generator, dtype: np.dtype) -> dict[str, np.ndarray]:
    """x and weight in dtype, or as stored in float8 with their scale; bias and residual in dtype; gamma and beta
    float32. The sums are of order 1."""

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    x, weight = normal(*case.rows, case.inputs), normal(case.inputs, case.width) / np.sqrt(case.inputs)
    given = {"x": x.astype(dtype), "weight": weight.astype(dtype)}
    if case.eight:
        weight, most = weight.T, formats.MOST["float8"]
        if case.channels:
            weight = weight * np.exp2(rng.uniform(-4, 0, (case.width, 1))).astype(np.float32)
        scale = np.abs(weight).max(axis=1 if case.channels else None, keepdims=True) / most  # [H, 1] or [1, 1]
        given = {
            "x": formats.quantise(x, most / 4, "float8"),
            "weight": formats.quantise(weight, 1 / scale, "float8"),
            "scale": (scale.reshape(-1) * 4 / most).astype(np.float32),
        }
    return given | {
        "bias": normal(case.width).astype(dtype),
        "residual": normal(*case.rows, case.width).astype(dtype),
        "gamma": 1 + normal(case.width) / 4,
        "beta": normal(case.width) / 4,
    }
