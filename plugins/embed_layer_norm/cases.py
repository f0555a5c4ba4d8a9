"""Inputs that the embeddings must get right, and why each is there. Used by tests, sanitizer and benches."""

from dataclasses import dataclass

import numpy as np

from plugins.cases import NormCase


@dataclass(frozen=True)
class Case(NormCase):
    """Those with a format are embed_layer_norm8's."""

    vocabulary: int = 50  # V
    positions: int = 16  # P
    out_of_range: bool = False  # some ids lie beyond their tables; ONNX Runtime refuses them


CASES = [
    Case("one", "one token", (1,), 384),
    Case("empty", "no token: nothing to launch", (0,), 384),
    Case("narrowest", "64 rows a program, of which 5 are there", (5,), 8),
    Case("padded", "two leading axes", (2, 7), 128),
    Case("tinybert", "312 is no power of two", (5,), 312),
    Case("odd", "257: rows start anywhere, no vector loads", (3,), 257),
    Case("base", "BERT-base's vocabulary: a row that starts beyond 2^24 bytes", (4,), 768, vocabulary=30522),
    Case("nonsense", "ids below 0 and beyond the tables: the nearest row, no fault", (9,), 64, out_of_range=True),
    Case("float8", "the largest numbers lie about 448", (5,), 312, format="float8"),
    Case("int8", "whole numbers", (2, 7), 128, format="int8", inverse_scale=40.0),
    Case("int8 empty", "no token: nothing to launch", (0,), 384, format="int8"),
]
BENCH_CASES = [
    Case("1x128", "BERT-base, one short question", (128,), 768, vocabulary=30522, positions=512),
    Case("32x128", "BERT-base", (32 * 128,), 768, vocabulary=30522, positions=512),
    Case("32x384", "BERT-base", (32 * 384,), 768, vocabulary=30522, positions=512),
    Case("minilm 32x384", "MiniLM", (32 * 384,), 384, vocabulary=30522, positions=512),
]


def inputs(case: Case, rng: np.random.Generator, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Ids int32, tables in dtype; gamma and beta float32."""

    def ids(count: int) -> np.ndarray:
        low, high = (-count, 3 * count) if case.out_of_range else (0, count)
        drawn = rng.integers(low, high, case.leading, np.int32)
        if not case.out_of_range and drawn.size:
            drawn.flat[-1] = count - 1  # the table's last row is always asked for
        return drawn

    def table(count: int) -> np.ndarray:
        return (0.1 * rng.standard_normal((count, case.width), np.float32)).astype(dtype)

    return {
        "token_ids": ids(case.vocabulary),
        "segment_ids": ids(2),
        "position_ids": ids(case.positions),
        "token_table": table(case.vocabulary),
        "position_table": table(case.positions),
        "segment_table": table(2),
        "gamma": 1 + rng.standard_normal(case.width, np.float32) / 4,
        "beta": rng.standard_normal(case.width, np.float32) / 4,
    }
