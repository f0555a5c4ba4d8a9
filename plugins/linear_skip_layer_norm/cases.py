"""Shapes of linear_skip_layer_norm: small ones that go wrong first, and those that the bench times."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Case:
    """x rows + [inputs] times weight [inputs, width]."""

    name: str
    note: str
    rows: tuple[int, ...]
    inputs: int  # K
    width: int  # H
    epsilon: float = 1e-12

    @property
    def attributes(self) -> dict[str, float]:
        return {"epsilon": self.epsilon}


CASES = [
    Case("one token", "one row of a block", (1,), 128, 64),
    Case("one part", "the product is not divided", (3,), 32, 64),
    Case("parts", "4 programs share a sum", (7,), 3072, 64),
    Case("padded", "rows have two axes, and more than one block", (2, 35), 64, 128),
    Case("norm of a part of a block", "192 columns, norms are made over 256", (5,), 768, 192),
    Case("epsilon", "a large one", (2,), 64, 64, epsilon=0.5),
    Case("odd widths", "no kernel of ours has such blocks", (7,), 24, 40),
    Case("many tokens", "more than few", (300,), 64, 64),
]

BENCH_CASES = [
    Case(f"{model} {batch}x{length} {name}", name, (batch * length,), inputs, hidden)
    for model, hidden, ffn in (("base", 768, 3072), ("minilm", 384, 1536), ("large", 1024, 4096))
    for batch, length in ((1, 128), (8, 128), (32, 128), (32, 384))
    for name, inputs in (("attention.out", hidden), ("ffn.out", ffn))
]


def inputs(case: Case, rng: np.random.Generator, dtype: np.dtype) -> dict[str, np.ndarray]:
    """x, weight, bias and residual in dtype; gamma and beta float32. The sums are of order 1."""

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    return {
        "x": normal(*case.rows, case.inputs).astype(dtype),
        "weight": (normal(case.inputs, case.width) / np.sqrt(case.inputs)).astype(dtype),
        "bias": normal(case.width).astype(dtype),
        "residual": normal(*case.rows, case.width).astype(dtype),
        "gamma": 1 + normal(case.width) / 4,
        "beta": normal(case.width) / 4,
    }
