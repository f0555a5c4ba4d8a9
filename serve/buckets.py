"""Sizes are rounded up to a few, so that one captured CUDA graph serves many batches: tables of sizes and buffers.

A packed batch of 700 tokens in 5 sequences is computed as 768 tokens in 8: what lies past its own tokens belongs to no
sequence, and the sequences that fill up the count have no tokens, their offsets repeating the last one.
A padded batch of 5 x 70 is computed as 8 x 96, whose last three rows are masked whole.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np

from heads import Output
from serve.manifest import Manifest
from serve.packed import ROWS, Packed

ALIGN = 64  # words: TensorRT wants addresses in multiples of 256 bytes
LENGTH_STEP = 32
SHORTEST = 16  # tokens: sequences that are shorter on average than this are not prepared for
# (up to so many tokens, in steps of): at most an eighth is computed in vain from 512 tokens on
TOKEN_STEPS = ((512, 64), (2048, 128), (8192, 256), (1 << 24, 512))


@dataclass(frozen=True)
class Bucket:
    """A shape that batches are brought to, and where its arrays lie in a block of inputs and in one of outputs."""

    key: tuple[int, int]  # packed: (tokens, sequences); padded: (rows, length)
    inputs: dict[str, tuple[int, tuple[int, ...]]]  # name -> first word of four bytes, shape
    outputs: dict[str, tuple[int, tuple[int, ...]]]
    input_words: int
    output_words: int
    per_sequence: frozenset[str] = field(default_factory=frozenset)  # outputs with a row a sequence, not a token

    def write(self, batch: Packed, words: np.ndarray) -> None:
        """A batch into a block of inputs, int32 [input_words or more]."""
        if "cu_seqlens" in self.inputs:
            for name, source, rest in (
                ("token_ids", batch.token_ids, 0),  # what the last batch left there may be no valid id here
                ("segment_ids", batch.segment_ids, 0),
                ("position_ids", batch.position_ids, 0),
                ("cu_seqlens", batch.cu_seqlens, batch.tokens),
            ):
                first, (size,) = self.inputs[name]
                words[first : first + len(source)] = source
                words[first + len(source) : first + size] = rest
        else:
            arrays = self._arrays(words, self.inputs)
            mask = batch.mask(*self.key)
            arrays["padding_mask"][:] = mask
            for name in ("token_ids", "segment_ids"):
                arrays[name][:] = 0
                arrays[name][mask] = getattr(batch, name)

    def read(self, batch: Packed, floats: np.ndarray) -> tuple[np.ndarray, ...]:
        """The batch's outputs, float32 [T, ...] or [B, ...] each, copied out of a block, float32 [output_words]."""
        mask = None if "cu_seqlens" in self.inputs else batch.mask(*self.key)

        def real(name: str, array: np.ndarray) -> np.ndarray:
            if name in self.per_sequence:
                return array[: len(batch)].copy()
            return array[: batch.tokens].copy() if mask is None else array[mask]

        return tuple(real(name, array) for name, array in self._arrays(floats, self.outputs).items())

    @staticmethod
    def _arrays(block: np.ndarray, places: dict[str, tuple[int, tuple[int, ...]]]) -> dict[str, np.ndarray]:
        return {name: block[first : first + math.prod(shape)].reshape(shape) for name, (first, shape) in places.items()}


class Buckets:
    """The buckets of an engine: `of(batch)` is the smallest one that holds a batch within the engine's profile."""

    def __init__(self, manifest: Manifest) -> None:
        profile = manifest.profile
        self._counts = doubling(profile.batch.least, profile.batch.most)
        tokens, length = profile.tokens, profile.length
        self._outputs, self._longest = manifest.outputs, manifest.longest
        self._tokens: tuple[int, ...] = steps(tokens.least, tokens.most, TOKEN_STEPS) if tokens else ()
        self._lengths: tuple[int, ...] = steps(length.least, length.most, ((1 << 24, LENGTH_STEP),)) if length else ()

    def of(self, batch: Packed) -> Bucket:
        count = _at_least(self._counts, len(batch))
        if self._tokens:
            return packed_bucket(_at_least(self._tokens, batch.tokens), count, self._outputs)
        return padded_bucket(count, _at_least(self._lengths, int(batch.lengths.max())), self._outputs)

    def keys(self) -> list[tuple[int, int]]:
        """Packed: every (tokens, the fewest sequences that hold so many); padded: every (rows, length)."""
        if not self._tokens:
            return [(rows, length) for rows in self._counts for length in self._lengths]
        fewest = [(tokens, -(-tokens // self._longest)) for tokens in self._tokens]
        return [(tokens, count) for tokens, count in fewest if count <= self._counts[-1]]

    def likely(self, most_tokens: int) -> Iterator[tuple[int, int]]:
        """(tokens, sequences) of a batch for every bucket that one of up to so many tokens, padding included, may need.

        Packed: none whose sequences would be shorter than `SHORTEST` on average. From small to large.
        """
        if not self._tokens:
            yield from ((rows * length, rows) for rows in self._counts for length in self._lengths
                        if rows * length <= most_tokens)  # fmt: skip
            return
        for before, tokens in pairwise((0, *self._tokens)):
            if before >= most_tokens:
                return
            for fewer, count in pairwise((0, *self._counts)):
                sequences = min(count, tokens // SHORTEST)
                whole = min(tokens, sequences * self._longest)
                if sequences > fewer and whole > before:
                    yield whole, sequences

    def largest(self) -> Bucket:
        if self._tokens:
            return packed_bucket(self._tokens[-1], self._counts[-1], self._outputs)
        return padded_bucket(self._counts[-1], self._lengths[-1], self._outputs)


def steps(least: int, most: int, table: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The sizes from `least` to `most` that the table names, and `most` itself."""
    sizes, size = [], 0
    for limit, step in table:
        while size < min(limit, most):
            size += step
            sizes.append(size)
    return tuple(size for size in sizes if least <= size < most) + (most,)


def doubling(least: int, most: int) -> tuple[int, ...]:
    """`least`, the powers of two up to `most`, and `most` itself."""
    return tuple(sorted({least, *(1 << i for i in range(25) if least <= 1 << i <= most), most}))


@lru_cache(4096)
def packed_bucket(tokens: int, sequences: int, outputs: tuple[Output, ...]) -> Bucket:
    inputs: dict[str, tuple[int, ...]] = {name: (tokens,) for name in ROWS} | {"cu_seqlens": (sequences + 1,)}
    return _bucket((tokens, sequences), inputs, outputs, (tokens,), sequences)


@lru_cache(4096)
def padded_bucket(rows: int, length: int, outputs: tuple[Output, ...]) -> Bucket:
    inputs: dict[str, tuple[int, ...]] = dict.fromkeys(("token_ids", "segment_ids", "padding_mask"), (rows, length))
    return _bucket((rows, length), inputs, outputs, (rows, length), rows)


def _bucket(
    key: tuple[int, int], inputs: dict[str, tuple[int, ...]], outputs: tuple[Output, ...], tokens: tuple[int, ...],
    sequences: int,
) -> Bucket:  # fmt: skip
    """tokens: the axes of an output per token."""
    placed_inputs, input_words = _placed(inputs)
    shapes = {o.name: (tokens if o.per == "token" else (sequences,)) + (() if o.width is None else (o.width,))
              for o in outputs}  # fmt: skip
    placed_outputs, output_words = _placed(shapes)
    rows = frozenset(output.name for output in outputs if output.per == "sequence")
    return Bucket(key, placed_inputs, placed_outputs, input_words, output_words, rows)


def _placed(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, tuple[int, tuple[int, ...]]], int]:
    """Arrays of four-byte words one behind the other, each beginning at a multiple of ALIGN; and the words of all."""
    places, words = {}, 0
    for name, shape in shapes.items():
        places[name] = (words, shape)
        words += -(-int(np.prod(shape)) // ALIGN) * ALIGN
    return places, words


def _at_least(sizes: tuple[int, ...], needed: int) -> int:
    return sizes[bisect_left(sizes, needed)]
