"""Inputs that skip-layer-norm must get right, and why each is there. Used by tests, sanitizer and benches."""

from dataclasses import dataclass

import numpy as np

from plugins.cases import NormCase


@dataclass(frozen=True)
class Case(NormCase):
    """Those with a format are skip_layer_norm8's."""

    mean: float = 0.0  # of x, to see digits lost
    spread: float = 1.0  # of x and residual around it


CASES = [
    Case("one", "one token of MiniLM's width", (1,), 384),
    Case("empty", "no token: nothing to launch", (0,), 384),
    Case("narrowest", "64 rows a program, of which 3 are there", (3,), 8),
    Case("narrow", "several rows a program, and a program more than half empty", (2, 5), 128),
    Case("tinybert", "312 is no power of two; rows start at multiples of 16 bytes", (2, 3), 312),
    Case("odd", "257: rows start anywhere, no vector loads", (7,), 257),
    Case("base", "BERT-base", (1, 3), 768),
    Case("large", "BERT-large: a whole block, no masked lane", (3,), 1024),
    Case("wide", "beyond BERT", (2,), 1536),
    Case("far from zero", "E[s^2] - E[s]^2 would lose its digits", (3,), 384, mean=200.0, spread=0.5),
    Case("constant", "variance 0: y is beta", (2,), 384, mean=3.0, spread=0.0),
    Case("tiny", "a variance far below epsilon 1e-5, which decides", (2,), 384, spread=1e-4, epsilon=1e-5),
    Case("float8", "BERT-base; the largest numbers lie just within 448", (1, 3), 768, format="float8"),
    Case("float8 tinybert", "312 is no power of two", (2, 3), 312, format="float8"),
    Case("float8 beyond", "much lies beyond 448 and must stay 448", (5,), 128, format="float8", inverse_scale=400.0),
    Case("float8 small", "most numbers are subnormal in E4M3", (4,), 384, format="float8", inverse_scale=0.01),
    Case("float8 empty", "no token: nothing to launch", (0,), 384, format="float8"),
    Case("int8", "whole numbers, a half goes to the even one", (1, 3), 768, format="int8", inverse_scale=30.0),
    Case("int8 beyond", "much lies beyond 127 and must stay 127", (5,), 128, format="int8", inverse_scale=100.0),
]
BENCH_CASES = [
    Case("1x128", "BERT-base, one short question", (128,), 768),
    Case("32x128", "BERT-base", (32 * 128,), 768),
    Case("32x384", "BERT-base", (32 * 384,), 768),
    Case("minilm 32x384", "MiniLM", (32 * 384,), 384),
    Case("large 32x384", "BERT-large", (32 * 384,), 1024),
    Case("32x384 float8", "BERT-base, with the second output", (32 * 384,), 768, format="float8"),
]


def inputs(case: Case, rng: np.random.Generator, dtype: np.dtype) -> dict[str, np.ndarray]:
    """x, residual, bias in dtype; gamma and beta float32."""

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    shape = (*case.leading, case.width)
    return {
        "x": (case.mean + case.spread * normal(*shape)).astype(dtype),
        "residual": (case.spread * normal(*shape)).astype(dtype),
        "bias": (case.spread * normal(case.width)).astype(dtype),
        "gamma": 1 + normal(case.width) / 4,
        "beta": normal(case.width) / 4,
    }
