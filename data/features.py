"""Examples to windows of token ids, stored once as flat arrays and put together into a padded batch when it is needed.

A context's tokens are stored once however many questions and windows use them, so 100,000 questions need a few hundred
megabytes.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np

from configs.errors import UserError
from data.squad import Dataset
from data.tokenize import Tokenizer
from data.windows import SPECIAL_TOKENS, FeatureOptions, answer_tokens, cut, label, max_context

__all__ = ["FeatureOptions", "Features", "featurise"]
DEFAULT = FeatureOptions()
FORMAT = 1  # raise it when the meaning of an array changes: it is part of the cache's key


@dataclass(frozen=True)
class Features:
    """Q examples, C distinct contexts, W windows.

    Ragged arrays come with a start array: item i is start[i] to start[i + 1].
    """

    examples: list[str]  # ids, in the data set's order
    question_tokens: np.ndarray  # int32, already truncated
    question_start: np.ndarray  # [Q + 1]
    context_tokens: np.ndarray  # int32
    context_offsets: np.ndarray  # [*, 2] int32: characters of the original context
    context_start: np.ndarray  # [C + 1]
    # One row a window, all int32 [W]; the windows of an example follow each other.
    example: np.ndarray
    context: np.ndarray
    first: np.ndarray  # first context token
    count: np.ndarray  # context tokens
    length: np.ndarray  # all tokens: 1 + question + 1 + count + 1
    start_position: np.ndarray  # answer's first token in the window; 0 is [CLS]: no answer, or not wholly inside
    end_position: np.ndarray
    special: np.ndarray  # [3] int32: the ids of [CLS], [SEP], [PAD]

    together: ClassVar[int] = 1  # windows of one training example; `data/batches.py` keeps them side by side

    def __len__(self) -> int:
        return len(self.example)

    def query_length(self, rows: np.ndarray | int | slice = slice(None)) -> np.ndarray:
        """Question tokens of the given windows."""
        example = self.example[rows]
        return (self.question_start[example + 1] - self.question_start[example]).astype(np.int32)

    def assemble(self, rows: np.ndarray, pad_to: int) -> dict[str, np.ndarray]:
        """The windows `rows` [B] as int32 arrays [B, pad_to] and their labels [B].

        Row -1 is a filler: [CLS] [SEP] with labels 0, real enough that attention over it stays finite.
        """
        rows = np.asarray(rows, np.int64)
        cls_id, sep_id, pad_id = self.special.tolist()
        filler = rows < 0
        query = np.where(filler, 0, self.query_length(rows))[:, None]  # [B, 1]
        count = np.where(filler, 0, self.count[rows])[:, None]
        length = np.where(filler, 2, self.length[rows])[:, None]
        if rows.size and pad_to < length.max():
            raise ValueError(
                f"a window of {length.max()} tokens does not fit {pad_to}; take pad_to from the batch plan"
            )
        position = np.arange(pad_to)[None, :]  # [1, S]
        in_query = (position >= 1) & (position <= query)  # [B, S]
        in_context = (position >= query + 2) & (position < query + 2 + count)
        token_ids = np.full((len(rows), pad_to), pad_id, np.int32)
        token_ids[:, :1] = cls_id
        from_question = self.question_start[self.example[rows]][:, None] + position - 1
        token_ids[in_query] = self.question_tokens[from_question[in_query]]
        from_context = (self.context_start[self.context[rows]] + self.first[rows])[:, None] + position - query - 2
        token_ids[in_context] = self.context_tokens[from_context[in_context]]
        token_ids[(position == query + 1) | (position == length - 1)] = sep_id
        mask = position < length
        return {
            "token_ids": token_ids,
            "segment_ids": (mask & (position >= query + 2)).astype(np.int32),
            "padding_mask": mask.astype(np.int32),
            "start_positions": np.where(filler, 0, self.start_position[rows]).astype(np.int32),
            "end_positions": np.where(filler, 0, self.end_position[rows]).astype(np.int32),
            "row": rows.astype(np.int32),
        }

    def pieces(self) -> np.ndarray:
        """The token ids of all texts, each once."""
        return np.concatenate([self.context_tokens, self.question_tokens])

    def fingerprint(self) -> str:
        """SHA-256 of all windows and labels: the same for the same questions, tokeniser and options."""
        digest = hashlib.sha256("\n".join(self.examples).encode())
        for name, value in sorted(vars(self).items()):
            if isinstance(value, np.ndarray):
                digest.update(f"{name} {value.dtype} {value.shape}".encode())
                digest.update(np.ascontiguousarray(value).data)
        return digest.hexdigest()

    def max_context(self, row: int) -> np.ndarray:
        """bool [count of the window]: the context tokens that this window shows with more context than any other."""
        low, high = np.searchsorted(self.example, [self.example[row], self.example[row] + 1])
        return max_context(self.first[low:high], self.count[low:high], row - int(low))


def featurise(
    dataset: Dataset,
    tokenizer: Tokenizer,
    options: FeatureOptions = DEFAULT,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Tokenises and cuts the data set; with `cache_dir` the result is kept there, named by a hash of all it depends on.

    `progress(done, total)` counts texts. The tokenizers library uses all cores by itself.
    """
    options.check()
    folder = Path(cache_dir) / f"features-{_key(dataset, tokenizer, options)}" if cache_dir else None
    arrays = _load(folder) if folder else None
    if arrays is None:
        arrays = _compute(dataset, tokenizer, options, progress)
        if folder:
            _save(folder, arrays)
    return Features(examples=[e.id for e in dataset.examples], **arrays)


def _compute(dataset: Dataset, tokenizer: Tokenizer, options: FeatureOptions, progress) -> dict[str, np.ndarray]:
    if not dataset.examples:
        raise UserError(f"{dataset.source}: no examples to make features from")
    index: dict[str, int] = {}
    context_of = np.array([index.setdefault(e.context, len(index)) for e in dataset.examples])  # [Q]
    texts, total = list(index), len(index) + len(dataset.examples)
    both = tokenizer.encode_flat(
        [*texts, *(e.question for e in dataset.examples)], progress and (lambda done: progress(done, total))
    )
    contexts, questions = both.parted(len(texts))
    question_lengths = np.diff(questions.start)
    query = np.minimum(question_lengths, options.query)  # [Q]
    ordinal = np.arange(len(questions.ids)) - np.repeat(questions.start[:-1], question_lengths)

    example, first, count = cut(options, query, np.diff(contexts.start)[context_of])
    labels = [e.answers[0] if e.answers and not e.impossible else None for e in dataset.examples]
    begin = np.array([a.start if a else -1 for a in labels])
    end = np.array([a.start + len(a.text) if a else -1 for a in labels])
    answer_first, answer_last = answer_tokens(contexts.offsets, contexts.start, context_of, begin, end)
    start, stop = label(first, count, query[example], answer_first[example], answer_last[example])
    return {
        "question_tokens": questions.ids[ordinal < options.query],
        "question_start": np.concatenate([[0], np.cumsum(query)]),
        "context_tokens": contexts.ids,
        "context_offsets": contexts.offsets,
        "context_start": contexts.start,
        "example": example,
        "context": context_of[example].astype(np.int32),
        "first": first,
        "count": count,
        "length": (query[example] + count + SPECIAL_TOKENS).astype(np.int32),
        "start_position": start,
        "end_position": stop,
        "special": np.array([tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id], np.int32),
    }


def _key(dataset: Dataset, tokenizer: Tokenizer, options: FeatureOptions) -> str:
    """A hash of all that the arrays depend on: texts, answers, vocabulary, options and this code's format."""
    settings = [FORMAT, options.window, options.stride, options.query, tokenizer.config()]
    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update(tokenizer.vocab_file.read_bytes())
    for e in dataset.examples:
        answer = (e.answers[0].start, e.answers[0].text) if e.answers else None
        digest.update(repr((e.id, e.context, e.question, answer, e.impossible)).encode())
    return digest.hexdigest()[:24]


def _load(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays, mapped into memory; None when they are not there or broken (they are then made anew)."""
    names = [f.name for f in fields(Features) if f.name != "examples"]
    try:
        # asarray: the same mapped memory, without memmap's slow indexing
        return {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in names}
    except (OSError, ValueError):
        return None


def _save(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes elsewhere and renames: a reader sees all or nothing. A full disk costs the cache, not the run."""
    scratch = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".features-", dir=folder.parent))
        for name, array in arrays.items():
            np.save(scratch / f"{name}.npy", array, allow_pickle=False)
        if folder.exists():  # broken, or it would have been loaded
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(scratch, folder)
    except OSError as error:
        print(f"features are not cached: {error}")
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
