"""Inputs that GELU must get right, and why each is there. Used by tests, sanitizer and benches."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Case:
    name: str
    note: str
    shape: tuple[int, ...]
    approximate: str = "none"
    largest: float = 6.0  # inputs lie within -largest .. largest
    format: str = ""  # of y, where it is not x's
    inverse_scale: float = 70.0

    @property
    def attributes(self) -> dict[str, float | str]:
        own: dict[str, float | str] = {"approximate": self.approximate}
        return own | {"inverse_scale": self.inverse_scale, "format": self.format} if self.format else own


CASES = [
    Case("one", "a single number: a block of 2,048 with one lane in use", (1,)),
    Case("empty", "no token: nothing to launch", (0, 24)),
    Case("odd", "no multiple of anything: the last block is masked", (3, 7, 257)),
    Case("block", "exactly one block: the mask is all true", (2, 1024)),
    Case("eights", "groups of 8 end within a block", (9, 1000)),
    Case("tanh", "the other formula", (5, 312), approximate="tanh"),
    Case("far", "float16's ends: exp must not give inf/inf", (3, 65), largest=60000.0),
    Case("far-tanh", "the same for tanh, whose x^3 overflows earlier", (3, 65), approximate="tanh", largest=60000.0),
    Case("float8", "the last block is masked", (3, 7, 257), format="float8"),
    Case("float8 tanh", "much lies beyond 448", (5, 312), approximate="tanh", format="float8", inverse_scale=200.0),
    Case("float8 empty", "no token: nothing to launch", (0, 24), format="float8"),
    Case("int8", "whole numbers, and most of GELU's left half is 0", (3, 7, 257), format="int8", inverse_scale=20.0),
]
# Feed-forward activations of BERT-base: 32 x 128 and 32 x 384 tokens.
BENCH_CASES = [
    Case("32x128", "BERT-base", (32 * 128, 3072)),
    Case("32x384", "BERT-base", (32 * 384, 3072)),
    Case("32x384-tanh", "BERT-base", (32 * 384, 3072), approximate="tanh"),
]


def inputs(case: Case, rng: np.random.Generator, dtype: np.dtype) -> dict[str, np.ndarray]:
    """x of the case in dtype (float32, float16 or ml_dtypes.bfloat16), evenly spread so that both tails are hit."""
    return {"x": rng.uniform(-case.largest, case.largest, case.shape).astype(np.float32).astype(dtype)}
