"""Sentences whose words have tags: CoNLL files, or JSON lines {"tokens": [...], "tags": [...]}.

A CoNLL file has a word a line, its columns apart by blanks or tabs, the tag in the last one, and an empty line after
every sentence; lines that begin with -DOCSTART- or "# " are left out. In Chinese a character is a word.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from data import tables
from data.sequences import Sequences, special_ids
from data.squad import clean
from data.tokenize import Tokenizer
from data.windows import max_context

NEEDED = "a CoNLL file (a word and its tag a line, an empty line between sentences), or .jsonl with tokens and tags"


@dataclass(frozen=True, slots=True)
class Example:
    id: str
    text: str
    words: tuple[tuple[int, int], ...]  # characters of `text`, first and the one after the last
    tags: tuple[str, ...] | None = None  # one a word; None: to be found

    @classmethod
    def of_words(cls, name: str, words: Sequence[str], tags: Sequence[str] | None = None) -> "Example":
        """Words with a blank between them."""
        ends = list(accumulate(len(word) + 1 for word in words))
        spans = tuple((end - len(word) - 1, end - 1) for word, end in zip(words, ends, strict=True))
        return cls(name, " ".join(words), spans, None if tags is None else tuple(tags))


@dataclass(frozen=True)
class Dataset:
    examples: list[Example]
    source: str = ""
    skipped: list[str] = field(default_factory=list)
    version: str = ""  # what `data/squad.Dataset` has for SQuAD


def read(source: str, *, limit: int | None = None) -> Dataset:
    """Raises: UserError where a line has no tag, tags do not align with words, or there is no sentence."""
    if source.removesuffix(".gz").endswith(".jsonl"):
        examples = [_of_row(row, line, source) for line, row in tables.rows(source)]
    else:
        examples = list(_of_lines(tables.read_text(Path(source), NEEDED).split("\n"), source))
    if not examples:
        raise UserError(f"{source} has no sentence; needed is {NEEDED}")
    return Dataset(examples[:limit], source)


def _of_lines(lines: list[str], source: str) -> Iterable[Example]:
    words: list[str] = []
    tags: list[str] = []
    columns = begun = 0
    for number, line in enumerate([*lines, ""], 1):
        parts = line.split()
        if not parts:
            if words:
                yield Example.of_words(str(begun), words, tags)
                words, tags = [], []
            continue
        if parts[0] == "-DOCSTART-" or (not words and line.startswith("# ")):
            continue
        columns = columns or len(parts)
        if len(parts) != columns or columns < 2:
            other = "needed are a word and its tag" if columns < 2 else f"the lines before have {columns}"
            raise UserError(
                f"{source}, line {number}: {len(parts)} columns, {other} ({line.strip()[:60]!r}); a tag may be "
                "missing, or a word hold a blank"
            )
        begun = begun if words else number
        words.append(clean(parts[0]))
        tags.append(parts[-1])


def _of_row(row: dict, line: int, source: str) -> Example:
    words, tags = (_words(row.get(name), name, line, source) for name in ("tokens", "tags"))
    if len(words) != len(tags):
        raise UserError(
            f"{source}, line {line}: {len(words)} tokens and {len(tags)} tags do not align; give a tag for every token"
        )
    if blank := [word for word in words if word.split() != [word]]:
        raise UserError(f"{source}, line {line}: the token {blank[0]!r} holds a blank; a token is one word")
    return Example.of_words(str(line), [clean(word) for word in words], tags)


def _words(value: Any, name: str, line: int, source: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise UserError(f"{source}, line {line}: {name!r} is {str(value)[:60]}; needed is a list of words")
    return value


def labels(examples: Iterable[Example], source: str) -> tuple[str, ...]:
    """All tags, "O" first. Raises: UserError where there is one only."""
    names = {tag for example in examples for tag in example.tags or ()}
    if len(names) < 2:
        raise UserError(
            f"{source} has {f'one tag only, {min(names)!r}' if names else 'no tag'}; there is nothing to tell apart. "
            "Needed are at least two: is the tag in the last column?"
        )
    return tuple(sorted(names, key=lambda name: (name != "O", name.partition("-")[2], name)))


def featurise(
    dataset: Dataset, names: tuple[str, ...], tokenizer: Tokenizer, window: int, stride: int, progress=None
) -> Sequences:
    """Windows of [CLS] pieces [SEP]; a word's first piece has its label, all others have -1.

    A sentence longer than a window is cut into overlapping ones, `stride` tokens apart. Whatever a window cuts, words
    are decided one by one and in the window that shows most around them (`decided`), and entities are put together
    from words afterwards: none is lost at an edge.
    Raises: UserError for a tag that training did not have.
    """
    index = {name: place for place, name in enumerate(names)}
    if strange := [(e, tag) for e in dataset.examples for tag in e.tags or () if tag not in index]:
        example, tag = strange[0]
        raise UserError(
            f"{dataset.source}: the tag {tag!r} (in the sentence of line {example.id}) was never seen in training, "
            f"which had {', '.join(names)}; take such sentences out, or train with them"
        )
    total = len(dataset.examples)
    pieces = tokenizer.encode_flat(
        [e.text for e in dataset.examples], progress and (lambda done: progress(done, total))
    )
    counts = np.diff(pieces.start)
    room = window - 2
    word, label = np.full(len(pieces.ids), -1, np.int32), np.full(len(pieces.ids), -1, np.int32)
    for row, example in enumerate(dataset.examples):
        span = slice(int(pieces.start[row]), int(pieces.start[row + 1]))
        word[span] = first_pieces(pieces.offsets[span], example.words)
        if example.tags is not None:
            tags = np.array([index[tag] for tag in example.tags] + [-1])  # the last for pieces that begin no word
            label[span] = tags[word[span]]
    step = min(room, stride)
    per = 1 + np.maximum(0, -(-(counts - room) // step))  # windows of each sentence
    example_of = np.repeat(np.arange(total), per)
    ordinal = np.arange(len(example_of)) - np.repeat(np.cumsum(per) - per, per)
    first = ordinal * step
    count = np.minimum(room, counts[example_of] - first)
    length = count + 2
    start = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    source = np.repeat(pieces.start[example_of] + first, count) + within
    target = np.repeat(start[:-1] + 1, count) + within

    def spread(values: np.ndarray, empty: int) -> np.ndarray:
        flat = np.full(int(start[-1]), empty, np.int32)
        flat[target] = values[source]
        return flat

    tokens = spread(pieces.ids, tokenizer.cls_id)
    tokens[start[1:] - 1] = tokenizer.sep_id
    return Sequences(
        examples=[e.id for e in dataset.examples], example=example_of.astype(np.int32), tokens=tokens,
        segments=np.zeros(int(start[-1]), np.int32), start=start, special=special_ids(tokenizer),
        token_labels={"tags": spread(label, -1)}, places=spread(word, -1), first=first.astype(np.int32),
    )  # fmt: skip


def first_pieces(offsets: np.ndarray, words: Sequence[tuple[int, int]]) -> np.ndarray:
    """int32 [pieces]: the word that a piece is the first of, -1 for the others. offsets [pieces, 2]: characters."""
    if not len(offsets) or not len(words):
        return np.full(len(offsets), -1, np.int32)
    begins, ends = np.array(words).T
    at = np.minimum(np.searchsorted(ends, offsets[:, 0], side="right"), len(words) - 1)
    at = np.where((offsets[:, 0] >= begins[at]) & (offsets[:, 0] < ends[at]), at, -1)  # the word it stands in, if any
    new = np.concatenate([[True], at[1:] != at[:-1]])
    return np.where(new, at, -1).astype(np.int32)


def decided(features: Sequences, logits: Sequence[np.ndarray], place: int, words: int) -> np.ndarray:
    """float32 [words, C]: logits of each word of example `place`, from the window that shows most around it.

    A word without any token (of control characters, say) has -inf everywhere but in class 0, which is "O" where there
    is one.
    """
    low, high = np.searchsorted(features.example, [place, place + 1])
    width = logits[low].shape[-1] if high > low else 1
    found = np.full((words, width), -np.inf, np.float32)
    found[:, 0] = 0.0
    counts = features.length[low:high] - 2
    for row in range(low, high):
        own = features.places[int(features.start[row]) + 1 : int(features.start[row + 1]) - 1]
        best = max_context(features.first[low:high], counts, row - low) & (own >= 0)
        found[own[best]] = logits[row][1:-1][best]
    return found
