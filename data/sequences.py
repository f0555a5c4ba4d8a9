"""Windows of token ids with labels of any kind, stored flat: what every task but span answering is trained on.

    [CLS] first text [SEP]          [CLS] first text [SEP] second text [SEP]

`data/features.py` does the same for questions, whose passages are shared by many windows.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from data.tokenize import Tokenizer


@dataclass(frozen=True)
class Sequences:
    """W windows of T tokens in all; window w has tokens start[w] to start[w + 1]."""

    examples: list[str]  # ids, in the data set's order
    example: np.ndarray  # int32 [W]: the windows of an example follow each other
    tokens: np.ndarray  # int32 [T], special ones included
    segments: np.ndarray  # int32 [T]
    start: np.ndarray  # int64 [W + 1]
    special: np.ndarray  # int32 [3]: the ids of [CLS], [SEP], [PAD]
    labels: dict[str, np.ndarray] = field(default_factory=dict)  # [W] each; one a window
    token_labels: dict[str, np.ndarray] = field(default_factory=dict)  # int32 [T] each; -1 where none counts
    # Where texts are cut into windows and words counted; else empty:
    places: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # [T]: which word a token begins, or -1
    first: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # [W]: the text's token it begins with
    together: int = 1  # windows of one training example
    cut: int = 0  # examples whose text did not fit and was shortened

    def __len__(self) -> int:
        return len(self.example)

    @property
    def length(self) -> np.ndarray:
        """int32 [W]: tokens of each window."""
        return np.diff(self.start).astype(np.int32)

    def assemble(self, rows: np.ndarray, pad_to: int) -> dict[str, np.ndarray]:
        """The windows `rows` as int32 arrays [rows, pad_to], and their labels [rows / together] or [rows, pad_to].

        Row -1 is a filler: [CLS] [SEP] with labels 0, real enough that attention over it stays finite.
        """
        rows = np.asarray(rows, np.int64)
        cls_id, sep_id, pad_id = self.special.tolist()
        filler = rows < 0
        length = np.where(filler, 2, self.length[rows] if len(self) else 2)[:, None]  # [rows, 1]
        if rows.size and pad_to < length.max():
            raise ValueError(
                f"a window of {length.max()} tokens does not fit {pad_to}; take pad_to from the batch plan"
            )
        position = np.arange(pad_to)[None, :]
        mask = position < length  # [rows, S]
        inside = mask & ~filler[:, None]
        source = (self.start[rows][:, None] + position)[inside]

        def spread(flat: np.ndarray, empty: int) -> np.ndarray:
            array = np.full((len(rows), pad_to), empty, np.int32)
            array[inside] = flat[source]
            return array

        token_ids = spread(self.tokens, pad_id)
        token_ids[filler, :2] = cls_id, sep_id
        first = rows[: len(rows) // self.together] // self.together  # -1 stays -1
        return {
            "token_ids": token_ids,
            "segment_ids": spread(self.segments, 0),
            "padding_mask": mask.astype(np.int32),
            "row": rows.astype(np.int32),
            **{name: spread(flat, -1) for name, flat in self.token_labels.items()},
            **{
                name: np.where(first < 0, np.zeros((), values.dtype), values[first])
                for name, values in self.labels.items()
            },
        }

    def pieces(self) -> np.ndarray:
        """The token ids of all texts."""
        return self.tokens[~np.isin(self.tokens, self.special)]

    def fingerprint(self) -> str:
        """SHA-256 of all windows and labels: the same for the same examples, tokeniser and settings."""
        digest = hashlib.sha256("\n".join(self.examples).encode())
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        for name, value in sorted((arrays | self.labels | self.token_labels).items()):
            digest.update(f"{name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        return digest.hexdigest()


def special_ids(tokenizer: Tokenizer) -> np.ndarray:
    """int32 [3]: [CLS], [SEP], [PAD]."""
    return np.array([tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id], np.int32)


def of_texts(
    ids: list[str], first: list[str], second: list[str], tokenizer: Tokenizer, window: int, progress=None, **more
) -> Sequences:
    """One window an example, from one text or two ("" for none).

    What does not fit is cut off from the end of the longer of the two, token by token, as in google-research/bert;
    `cut` counts such examples. more: fields of `Sequences`.
    """
    total = 2 * len(ids)
    a = tokenizer.encode_flat(first, progress and (lambda done: progress(done, total)))
    b = tokenizer.encode_flat(second, progress and (lambda done: progress(len(ids) + done, total)))
    # a text that is given has its [SEP] even if it has no token
    pair = np.array([bool(text) for text in second])
    n, m = np.diff(a.start), np.diff(b.start) * pair
    room = window - 2 - pair  # tokens of both texts together
    kept_n, kept_m = shorten(n, m, room)
    length = kept_n + kept_m + 2 + pair
    start = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    tokens = np.empty(int(start[-1]), np.int32)
    segments = np.zeros(int(start[-1]), np.int32)
    cls_id, sep_id, _ = special_ids(tokenizer).tolist()
    tokens[start[:-1]] = cls_id
    for source, begins, counts, at in ((a, a.start[:-1], kept_n, start[:-1] + 1),
                                       (b, b.start[:-1], kept_m, start[:-1] + kept_n + 2)):  # fmt: skip
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        tokens[np.repeat(at, counts) + within] = source.ids[np.repeat(begins, counts) + within]
    tokens[start[:-1] + kept_n + 1] = sep_id
    tokens[start[1:] - 1] = sep_id
    rest = kept_m + pair  # of each window, the last so many tokens are segment 1
    within = np.arange(int(rest.sum())) - np.repeat(np.cumsum(rest) - rest, rest)
    segments[np.repeat(start[1:] - rest, rest) + within] = 1
    return Sequences(
        examples=list(ids), example=np.arange(len(ids), dtype=np.int32), tokens=tokens, segments=segments, start=start,
        special=special_ids(tokenizer), cut=int((kept_n + kept_m < n + m).sum()), **more,
    )  # fmt: skip


def shorten(n: np.ndarray, m: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens kept of each pair: one after the other goes from the longer text, from the second of two equal ones."""
    total = n + m
    half = room // 2
    # Once both are above half the room they end equal; else the longer one gives up all that is too much.
    short_n, short_m = n <= room - half, m <= half
    kept_n = np.where(short_n, n, np.where(short_m, room - m, room - half))
    kept_m = np.where(short_m, m, np.where(short_n, room - n, half))
    fits = total <= room
    return np.where(fits, n, kept_n), np.where(fits, m, kept_m)
