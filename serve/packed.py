"""Sequences in one row without padding: the input that every session takes, whatever layout its engine has.

    token_ids  [CLS] who [SEP] it was ada [SEP] | [CLS] when [SEP] in 1843 [SEP]        T tokens of B sequences
    cu_seqlens 0                                  7                               12    [B + 1], first 0, last T

Letters: `B` sequences, `T` tokens of all of them, `S` length of the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.errors import UserError
from data.features import Features
from data.sequences import Sequences
from serve.manifest import Manifest

ROWS = ("token_ids", "segment_ids", "position_ids")


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """B sequences in a row of T tokens."""

    token_ids: np.ndarray  # [T] int32
    segment_ids: np.ndarray  # [T] int32
    position_ids: np.ndarray  # [T] int32, from 0 in every sequence
    cu_seqlens: np.ndarray  # [B + 1] int32: sequence i has tokens cu_seqlens[i] to cu_seqlens[i + 1]

    @classmethod
    def of(cls, token_ids: Sequence, segment_ids: Sequence) -> "Packed":
        """From one list of ids for each sequence, twice; positions count from 0 in each."""
        lengths = np.array([len(row) for row in token_ids], np.int64)
        if [len(row) for row in segment_ids] != lengths.tolist():
            raise UserError("token ids and segment ids differ in length; give one segment for every token")
        flat = [np.concatenate([np.asarray(row) for row in rows] or [[]]) for rows in (token_ids, segment_ids)]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        return cls(*(np.asarray(array, np.int32) for array in (*flat, positions, starts)))

    @classmethod
    def windows(cls, features: Features | Sequences, rows: np.ndarray) -> "Packed":
        """The windows `rows` [B] of some features, in that order."""
        lengths = features.length[rows]
        batch = features.assemble(rows, int(lengths.max(initial=0)))  # [B, S] as for training; then without padding
        real = batch["padding_mask"].astype(bool)
        positions = np.broadcast_to(np.arange(real.shape[1], dtype=np.int32), real.shape)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return cls(batch["token_ids"][real], batch["segment_ids"][real], positions[real], starts)

    def __len__(self) -> int:
        """How many sequences."""
        return len(self.cu_seqlens) - 1

    @property
    def tokens(self) -> int:
        return len(self.token_ids)

    @property
    def lengths(self) -> np.ndarray:
        """[B] int32: tokens of each sequence."""
        return self.cu_seqlens[1:] - self.cu_seqlens[:-1]

    def take(self, first: int, last: int) -> "Packed":
        """Sequences `first` to before `last`, as a batch of their own."""
        span = slice(int(self.cu_seqlens[first]), int(self.cu_seqlens[last]))
        starts = self.cu_seqlens[first : last + 1] - self.cu_seqlens[first]
        return Packed(self.token_ids[span], self.segment_ids[span], self.position_ids[span], starts)

    def mask(self, batch: int, length: int) -> np.ndarray:
        """bool [batch, length]: where this batch's tokens lie once it is padded; rows past its own are empty."""
        lengths = np.zeros(batch, np.int32)
        lengths[: len(self)] = self.lengths
        return np.arange(length)[None, :] < lengths[:, None]


def check(batch: Packed, manifest: Manifest) -> None:
    """Refuse what the engine was not built for, before anything reads memory by it. Raises: UserError."""
    for name in (*ROWS, "cu_seqlens"):
        array = getattr(batch, name)
        if not isinstance(array, np.ndarray) or array.dtype != np.int32 or array.ndim != 1:
            seen = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise UserError(f"{name} is {seen}; needed is an int32 array with one axis")
    ends, tokens = batch.cu_seqlens, batch.tokens
    if len(ends) < 2 or not tokens:
        raise UserError("the batch is empty; give at least one sequence with at least one token")
    lengths = batch.lengths
    if ends[0] != 0 or ends[-1] != tokens or lengths.min() < 1:
        raise UserError(
            f"cu_seqlens runs {_few(ends)}; needed are growing whole numbers from 0 to {tokens}, the number of tokens"
        )
    if (longest := int(lengths.max())) > manifest.longest:
        raise UserError(
            f"a sequence has {longest} tokens, this engine takes up to {manifest.longest}; cut it into windows"
        )
    profile = manifest.profile
    if len(batch) > profile.batch.most:
        raise UserError(f"{len(batch)} sequences, the engine takes up to {profile.batch.most} at once; split the batch")
    if profile.tokens and tokens > profile.tokens.most:
        raise UserError(f"{tokens} tokens, the engine takes up to {profile.tokens.most} at once; split the batch")
    for name, size in zip(ROWS, ("vocabulary", "segments", "positions"), strict=True):
        values, most = getattr(batch, name), manifest.sizes[size]
        if len(values) != tokens:
            raise UserError(f"{name} has {len(values)} entries and token_ids {tokens}; give one for every token")
        if values.view(np.uint32).max() >= most:  # one pass: as unsigned, negative numbers are the largest
            bad = int(values[(values < 0) | (values >= most)][0])
            raise UserError(f"{name} has {bad}; this engine knows 0 to {most - 1}. Is it another model's vocabulary?")
    if manifest.layout == "padded":  # its positions are made inside, from 0 in every row
        expected = np.arange(tokens) - np.repeat(ends[:-1], lengths)
        if (batch.position_ids != expected).any():
            raise UserError("this engine is padded and counts positions itself; position_ids must count from 0 as well")


def cut(
    lengths: Sequence[int] | np.ndarray, most_tokens: int, most_sequences: int, *, padded: bool = False
) -> list[np.ndarray]:
    """Rows [W] in groups: each of at most `most_sequences` whole sequences and at most `most_tokens` tokens.

    A sequence longer than that is a group alone. Packed groups keep the order and count real tokens. Padded ones are
    made from short to long and count rows times the longest, since that is what is computed.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(lengths, kind="stable") if padded else np.arange(len(lengths))
    groups: list[np.ndarray] = []
    first, tokens = 0, 0
    for place, length in enumerate(lengths[order].tolist()):
        tokens = (place - first + 1) * length if padded else tokens + length
        if place > first and (tokens > most_tokens or place - first == most_sequences):
            groups.append(order[first:place])
            first, tokens = place, length
    return [*groups, order[first:]] if len(order) else []


def _few(values: np.ndarray) -> str:
    return np.array2string(values, threshold=8, edgeitems=3, separator=" ")
