"""Shapes of attention: small ones that a kernel gets wrong first, and those that the bench times."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """One input. Packed unless `padded_to` says how long a row is."""

    name: str
    note: str
    heads: int
    head_size: int
    lengths: tuple[int, ...]  # real tokens of each sequence
    tail: int = 0  # packed: tokens after the last sequence
    padded_to: int = 0  # S
    holes: bool = False  # padded: every third token is dark, and a whole block of the first row
    format: str = ""  # of y, where it is not qkv's
    inverse_scale: float = 100.0

    @property
    def layout(self) -> str:
        return "padded" if self.padded_to else "packed"

    @property
    def attributes(self) -> dict:
        """What the node carries: scale is that of the head size, as if it had no padding."""
        own = {"num_heads": self.heads, "scale": self.head_size**-0.5, "layout": self.layout}
        return own | {"inverse_scale": self.inverse_scale, "format": self.format} if self.format else own


CASES = [
    Case("one token", "softmax over one key: the context is v", 2, 16, (1,)),
    Case("one sequence", "no block is full, the last holds one token", 2, 32, (65,)),
    Case("exact blocks", "nothing to mask anywhere", 1, 64, (128, 64)),
    Case("long among short", "programs without a tile stand between those with one", 2, 32, (3, 150, 1, 2, 17)),
    Case("empty sequence", "two equal offsets, also as the first and the last", 1, 16, (0, 5, 0, 0, 70, 0)),
    Case("tail", "tokens of no sequence, more than a block", 1, 32, (20, 50), tail=90),
    Case("only tail", "no token belongs to a sequence", 1, 16, (0,), tail=7),
    Case("many short", "more sequences than one look at cu_seqlens takes in", 1, 8, (1, 2, 0, 3) * 33, tail=3),
    Case("head 8", "the smallest head, padded to 16 for the product", 3, 8, (33,)),
    Case("head 40", "padded to 64, and three heads are no power of two", 3, 40, (70, 9)),
    Case("head 72", "padded to 128", 1, 72, (31,)),
    Case("head 96", "padded to 128", 1, 96, (40, 66)),
    Case("head 128", "the largest", 1, 128, (66,)),
    Case("wide", "enough programs for the kernel of many tokens", 66, 8, (300, 212)),
    Case("padded", "lengths of all kinds, one row full", 2, 32, (70, 1, 64, 33), padded_to=70),
    Case("padded, nothing seen", "a row of padding alone", 1, 16, (0, 9), padded_to=20),
    Case("padded, holes", "a mask need not be a prefix", 2, 16, (150, 3, 90), padded_to=150, holes=True),
    Case("float8", "a tail, and heads that are no power of 2", 3, 40, (70, 9), tail=5, format="float8"),
    Case("float8 padded", "some lie beyond 448", 2, 32, (70, 1), padded_to=70, format="float8", inverse_scale=300.0),
    Case("int8", "whole numbers", 2, 32, (3, 65, 1), format="int8", inverse_scale=30.0),
]  # fmt: skip

# Plain attention rounds its scores to 16 bits, the kernel does not, so numbers of an 8-bit y may be several steps apart
# where they are near 0. Arguments of `legs.assert_case_right`; the kernel's own errors are the smaller ones.
ON_GPU: Any = {"near": 2**-5, "share": 0.3}

BENCH_CASES = [
    Case("base 1x128", "BERT-base, one short question", 12, 64, (128,)),
    Case("base 8x128", "BERT-base", 12, 64, (128,) * 8),
    Case("base 32x128", "BERT-base", 12, 64, (128,) * 32),
    Case("base 32x384", "BERT-base, SQuAD's window", 12, 64, (384,) * 32),
    Case("base 32x384 padded", "the same rows with a mask", 12, 64, (384,) * 32, padded_to=384),
    Case("base mixed", "as SQuAD's questions come: half of 32 x 384", 12, 64, tuple(range(30, 384, 11))),
    Case("minilm 1x128", "MiniLM-L6", 12, 32, (128,)),
    Case("minilm 32x128", "MiniLM-L6", 12, 32, (128,) * 32),
    Case("minilm 32x384", "MiniLM-L6", 12, 32, (384,) * 32),
    Case("one long", "512 tokens among short questions", 12, 64, (24,) * 31 + (512,)),
]


def inputs(case: Case, rng: np.random.Generator, dtype) -> dict[str, np.ndarray]:
    """qkv in dtype, spread so that a softmax has clear winners, and `where` int32: cu_seqlens or padding_mask."""
    width = 3 * case.heads * case.head_size
    if case.padded_to:
        mask = np.zeros((len(case.lengths), case.padded_to), np.int32)
        for row, length in enumerate(case.lengths):
            mask[row, :length] = 1
        if case.holes:
            mask[:, ::3] = 0
            mask[0, 8:140] = 0
        shape, where = mask.shape, mask
    else:
        offsets = np.concatenate([[0], np.cumsum(case.lengths)]).astype(np.int32)
        shape, where = (int(offsets[-1]) + case.tail,), offsets
    return {"qkv": (1.5 * rng.standard_normal((*shape, width))).astype(dtype), "where": where}
