"""Text to word pieces with character offsets into the original text, by the `tokenizers` library from a vocab.txt.

Training, evaluation and serving all cut text here, so that a token means the same characters everywhere.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import Encoding, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from configs.errors import UserError
from data.squad import clean

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MOST_BYTES = 64 * 1024**2  # the largest BERT vocabulary (multilingual, 120,000 pieces) has 1 MB
TEXTS_A_CHUNK = 4096
LITTLE = 20_000  # characters; up to here a text's words are looked up among those of the texts before it
MOST_WORDS = 1 << 15  # that are kept, some 10 MB; then it begins anew
LONGEST_WORD = 64  # characters of a word that is kept: what has no spaces hardly comes again
FEW = 8  # new words that are cut one by one, which holds Python's lock; more of them are handed on together


@dataclass(frozen=True, slots=True)
class Pieces:
    """The tokens of many texts in a row: text i has tokens start[i] to start[i + 1]."""

    ids: np.ndarray  # [T] int32
    offsets: np.ndarray  # [T, 2] int32: first character and the one after the last, in the text as it was given
    start: np.ndarray  # [texts + 1] int64

    def parted(self, texts: int) -> "tuple[Pieces, Pieces]":
        """The first so many texts, and the others."""
        end = self.start[texts]
        others = Pieces(self.ids[end:], self.offsets[end:], self.start[texts:] - end)
        return Pieces(self.ids[:end], self.offsets[:end], self.start[: texts + 1]), others


Word = tuple[tuple[int, ...], tuple[int, ...]]  # of k pieces: k ids; 2 k characters, first and past the last of each


class Tokenizer:
    """BERT's word pieces. `strip_accents` None follows `lowercase`, as in every published checkpoint."""

    def __init__(
        self, vocab_file: str | Path, lowercase: bool = True, strip_accents: bool | None = None, chinese: bool = True
    ) -> None:
        self.vocab_file = Path(vocab_file)
        self.lowercase, self.strip_accents, self.chinese = lowercase, strip_accents, chinese
        pieces = read_vocabulary(self.vocab_file)
        index = {piece: i for i, piece in enumerate(pieces)}
        self.size = len(pieces)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (index[name] for name in SPECIAL)
        self.mask_id: int | None = index.get("[MASK]")
        # A word above 100 characters is [UNK]. No special token is registered: "[SEP]" inside a text stays text.
        self._backend = Backend(models.WordPiece(index, unk_token="[UNK]", max_input_chars_per_word=100))
        self._backend.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
        )
        self._backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._known: dict[str, Word] = {}

    @classmethod
    def from_config(cls, config: dict[str, Any], vocab_file: str | Path) -> Self:
        """From the `tokenizer` entry of a run folder's config.json."""
        known = {"lowercase", "strip_accents", "chinese"}
        if unknown := set(config) - known:
            raise UserError(f"tokenizer settings {sorted(unknown)} are not known; needed are {sorted(known)}")
        return cls(vocab_file, **config)

    def config(self) -> dict[str, bool | None]:
        return {"lowercase": self.lowercase, "strip_accents": self.strip_accents, "chinese": self.chinese}

    def encode_batch(self, texts: list[str]) -> list[Encoding]:
        """One object a text with `.ids` and `.offsets`; no special tokens are added. For many texts see encode_flat."""
        return self._backend.encode_batch([clean(text) for text in texts], add_special_tokens=False)

    def encode_flat(self, texts: list[str], progress=None) -> Pieces:
        """The same tokens as arrays, many times faster on much text: every distinct word is cut only once.

        BERT's rules never look across a space, so a text's tokens are those of its words. `progress` gets the number of
        texts done. The words of a little text are kept for the next one, which takes a third of the time then.
        """
        if texts and sum(map(len, texts)) <= LITTLE:
            pieces = self._looked_up(texts)
            if progress:
                progress(len(texts))
            return pieces
        words: dict[str, int] = {}  # word -> its row in the tables below
        ids = np.zeros(0, np.int32)  # the tokens of all distinct words in a row
        spans = np.zeros((0, 2), np.int32)
        first = np.zeros(1, np.int64)  # word w has tokens first[w] to first[w + 1]
        out_ids, out_offsets, out_counts = [ids], [spans], [np.zeros(0, np.int64)]
        for begin in range(0, len(texts), TEXTS_A_CHUNK):
            split = [_spaced(text).split(" ") for text in texts[begin : begin + TEXTS_A_CHUNK]]
            flat = [word for row in split for word in row]
            known = len(words)
            new = [word for word in dict.fromkeys(flat) if word not in words]
            words.update(zip(new, range(known, known + len(new)), strict=True))
            new_ids, new_spans, counts = _arrays(self.encode_batch(new))
            ids, spans = np.concatenate([ids, new_ids]), np.concatenate([spans, new_spans])
            first = np.concatenate([first, first[-1] + np.cumsum(counts)])

            row = np.fromiter(map(words.__getitem__, flat), np.int64, len(flat))  # [words of the chunk]
            words_a_text = np.fromiter(map(len, split), np.int64, len(split))
            at = _starts_of_words(np.fromiter(map(len, flat), np.int64, len(flat)), words_a_text)
            pieces = first[row + 1] - first[row]
            total = int(pieces.sum())
            # token k of a word comes from table row first[word] + k
            within = np.arange(total) - np.repeat(np.cumsum(pieces) - pieces, pieces)
            take = np.repeat(first[row], pieces) + within
            out_ids.append(ids[take])
            out_offsets.append((spans[take] + np.repeat(at, pieces)[:, None]).astype(np.int32))
            out_counts.append(np.add.reduceat(pieces, np.cumsum(words_a_text) - words_a_text))
            if progress:
                progress(begin + len(split))
        start = np.concatenate([[0], np.cumsum(np.concatenate(out_counts))]).astype(np.int64)
        return Pieces(np.concatenate(out_ids), np.concatenate(out_offsets), start)

    def _looked_up(self, texts: list[str]) -> Pieces:
        """`encode_flat` of a little text. Threads may share the words: whoever misses one cuts it again."""
        known = self._known
        split = [_spaced(text).split(" ") for text in texts]
        flat = [word for row in split for word in row]
        looked_up = list(map(known.get, flat))
        words = [found for found in looked_up if found]
        if len(words) < len(flat):
            new = list({word for word, found in zip(flat, looked_up, strict=True) if found is None})
            cut = dict(zip(new, self._cut_words(new), strict=True))
            words = [found or cut[word] for word, found in zip(flat, looked_up, strict=True)]
            if len(known) + len(cut) > MOST_WORDS:
                known = self._known = {}
            known.update((word, found) for word, found in cut.items() if len(word) <= LONGEST_WORD)
        together = map(itertools.chain.from_iterable, zip(*words, strict=True))
        ids, spans = (np.array(list(part), np.int32) for part in together)
        counts = np.array([len(found[0]) for found in words])
        words_a_text = np.array(list(map(len, split)))
        at = _starts_of_words(np.array(list(map(len, flat))), words_a_text).astype(np.int32)
        first = np.concatenate([[0], np.cumsum(counts)])[np.concatenate([[0], np.cumsum(words_a_text)])]
        return Pieces(ids, spans.reshape(-1, 2) + np.repeat(at, counts)[:, None], first.astype(np.int64))

    def _cut_words(self, words: list[str]) -> list[Word]:
        if len(words) <= FEW:
            found = [self._backend.encode(clean(word), add_special_tokens=False) for word in words]
        else:
            found = self.encode_batch(words)
        return [(tuple(one.ids), tuple(itertools.chain.from_iterable(one.offsets))) for one in found]


def read_vocabulary(path: Path) -> list[str]:
    """The pieces of a vocab.txt, one a line, checked; a piece's id is its line number from 0."""
    if not path.is_file():
        raise UserError(f"vocabulary {path} is missing; it stands beside the weights of a BERT checkpoint as vocab.txt")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"vocabulary {path} has {path.stat().st_size:,} bytes; a vocab.txt has one word piece a line")
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")  # not splitlines(): pieces may be exotic line separators
    except UnicodeDecodeError as error:
        raise UserError(
            f"vocabulary {path}: byte {error.start} is not UTF-8; a vocab.txt has one word piece a line"
        ) from error
    pieces = [line.removesuffix("\r") for line in lines]
    while pieces and not pieces[-1]:
        pieces.pop()
    if missing := [name for name in SPECIAL if name not in pieces]:
        raise UserError(f"vocabulary {path} ({len(pieces)} lines) lacks {', '.join(missing)}; give a BERT vocab.txt")
    line_of: dict[str, int] = {}
    for number, piece in enumerate(pieces, 1):
        if piece in line_of:
            raise UserError(
                f"vocabulary {path}: {piece!r} stands in lines {line_of[piece]} and {number}; ids must be unique"
            )
        line_of[piece] = number
    return pieces


def _spaced(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").replace("\r", " ")


def _arrays(encodings: list[Encoding]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids [T], spans [T, 2], counts [words])."""
    ids: list[int] = []
    spans: list[int] = []
    counts = np.zeros(len(encodings), np.int64)
    for i, encoding in enumerate(encodings):
        ids += encoding.ids
        counts[i] = len(encoding)
        for first, last in encoding.offsets:
            spans += (first, last)
    return np.array(ids, np.int32), np.array(spans, np.int32).reshape(-1, 2), counts


def _starts_of_words(lengths: np.ndarray, words_a_text: np.ndarray) -> np.ndarray:
    """The character at which each word starts in its own text, one space between words."""
    ends = np.cumsum(lengths + 1)
    starts = ends - lengths - 1
    return starts - np.repeat(starts[np.cumsum(words_a_text) - words_a_text], words_a_text)
