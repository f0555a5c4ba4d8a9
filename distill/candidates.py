"""What may stand in for a word: what the masked language model expects there, or its neighbours in the embeddings.

    chosen = candidates_for("bert-base-uncased/", tokenizer)     # chosen.kind and chosen.reason say which it became

The language model sees `[CLS] masked [SEP] original [SEP]` (TinyBERT, Jiao et al. 2020, arXiv 1909.10351, algorithm 1).
It can hide a word that is one piece; a word of several gets neighbours, of the mean of its pieces' vectors (TinyBERT
takes GloVe's there, another download). A fine-tuned checkpoint has no such head: all its words get neighbours.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from configs.errors import UserError
from data.tokenize import Tokenizer, read_vocabulary
from distill.replace import STOP_WORDS, Place, Progress
from model import weights
from model.config import NAMED
from model.weights import Published

KINDS = ("auto", "mlm", "neighbours")
WORDS_A_BLOCK = 1024  # similarities of so many words to the whole vocabulary at once: 90 MB
_SPARE = 6  # so many of the nearest pieces may be the word in another case, or a part of it

# Our name of a part of the masked-language-model head -> what Hugging Face and Google call it.
_HF, _GOOGLE = "cls.predictions.", "cls/predictions/"
HEAD = {
    "dense.kernel": (f"{_HF}transform.dense.weight", f"{_GOOGLE}transform/dense/kernel"),
    "dense.bias": (f"{_HF}transform.dense.bias", f"{_GOOGLE}transform/dense/bias"),
    "norm.scale": (
        f"{_HF}transform.LayerNorm.weight", f"{_HF}transform.LayerNorm.gamma", f"{_GOOGLE}transform/LayerNorm/gamma",
    ),
    "norm.offset": (
        f"{_HF}transform.LayerNorm.bias", f"{_HF}transform.LayerNorm.beta", f"{_GOOGLE}transform/LayerNorm/beta",
    ),
    "output.bias": (f"{_HF}bias", f"{_HF}decoder.bias", f"{_GOOGLE}output_bias"),
}  # fmt: skip
TABLE = f"{_HF}decoder.weight"  # the same numbers as the word embeddings; most files leave it out


class Neighbours:
    """The words nearest to a word by the cosine of their embeddings."""

    kind = "neighbours"

    def __init__(self, table: np.ndarray, tokenizer: Tokenizer, reason: str):
        """table: word embeddings [V, H]; reason: why neighbours, for the user."""
        self.reason = reason
        self._tokenizer, self._table = tokenizer, np.asarray(table, np.float32)
        self._pieces = read_vocabulary(tokenizer.vocab_file)
        self._usable = np.flatnonzero([usable(piece) for piece in self._pieces])  # [P] ids
        self._units = _unit(self._table[self._usable])  # [P, H]

    def __call__(
        self, texts: Sequence[str], places: Sequence[Place], most: int, progress: Progress | None = None
    ) -> list[tuple[str, ...]]:
        fold = str.lower if self._tokenizer.lowercase else str
        asked = [fold(texts[text][first:last]) for text, first, last in places]
        distinct = list(dict.fromkeys(asked))
        found = dict(zip(distinct, self.nearest(distinct, most, progress), strict=True))
        return [found[word] for word in asked]

    def nearest(self, words: list[str], most: int, progress: Progress | None = None) -> list[tuple[str, ...]]:
        """The `most` nearest words of each word, nearest first; none of a word that the vocabulary cannot spell."""
        result: list[tuple[str, ...]] = []
        keep = min(most + _SPARE, len(self._usable))
        for begin in range(0, len(words), WORDS_A_BLOCK):
            block = words[begin : begin + WORDS_A_BLOCK]
            ids = [encoding.ids for encoding in self._tokenizer.encode_batch(block)]
            known = np.array([bool(row) and self._tokenizer.unk_id not in row for row in ids])
            means = np.stack([self._table[row or [0]].mean(axis=0) for row in ids])  # [words, H]
            cosines = _unit(means) @ self._units.T  # [words, P]
            near = np.argpartition(-cosines, keep - 1, axis=1)[:, :keep] if keep else np.zeros((len(block), 0), int)
            order = np.argsort(-np.take_along_axis(cosines, near, axis=1), axis=1, kind="stable")
            near = self._usable[np.take_along_axis(near, order, axis=1)]  # [words, keep] ids, nearest first
            for word, own, row, spelt in zip(block, ids, near.tolist(), known, strict=True):
                # Without its own pieces: "photos" is no word for "photos ##yn ##thesis".
                others = (self._pieces[i] for i in row if i not in own)
                result.append(chosen_pieces(word, others, most) if spelt else ())
            if progress:
                progress(len(result), len(words))
        return result


def usable(piece: str) -> bool:
    """Whether a piece may stand for a word: no [special], no ##end, no stop word; two letters are mostly a fragment."""
    return re.fullmatch("[A-Za-z]{3,}", piece) is not None and piece.lower() not in STOP_WORDS


def chosen_pieces(word: str, pieces: Iterable[str], most: int) -> tuple[str, ...]:
    """The first `most` pieces that differ from the word and from each other in more than case."""
    different: dict[str, str] = {}
    for piece in pieces:
        if piece.lower() != word.lower():
            different.setdefault(piece.lower(), piece)
    return tuple(different.values())[:most]


def candidates_for(
    source: str | Published, tokenizer: Tokenizer, kind: str = "auto", *, dtype: str = "float32", batch_size: int = 128
):
    """The candidates that a checkpoint can give; see `kind` and `reason` of the result for which it became and why.

    Args:
        source: a folder with weights, or weights already read.
        tokenizer: with the vocabulary that belongs to them.
        kind: "mlm" (an error where the checkpoint has no head), "neighbours", or "auto": the first that can be had.
        dtype: Keras policy that the language model computes in; batch_size: rows of at most 64 tokens at once.

    Raises: UserError.
    """
    if kind not in KINDS:
        raise UserError(f"candidates of kind {kind!r} are not known; choose one of {', '.join(KINDS)}")
    if isinstance(source, str) and source in NAMED:
        raise UserError(f"{source} is a size with random weights, which know no words; name trained weights")
    published = weights.load(source) if isinstance(source, str) else source
    table = published.tensors.get("embeddings.token")
    if table is None or not np.isfinite(table).all():
        seen = "without word embeddings" if table is None else "with word embeddings that are not finite"
        raise UserError(f"{published.source} comes {seen}; name the folder of a trained checkpoint")
    if tokenizer.size > len(table):
        raise UserError(
            f"the vocabulary has {tokenizer.size} pieces, the embeddings of {published.source} have {len(table)} rows; "
            "take the vocab.txt that belongs to the weights"
        )
    lack = "asked for" if kind == "neighbours" else _lack(published, tokenizer)
    if kind == "mlm" and lack:
        raise UserError(f"{published.source}: {lack}; take --kind neighbours, or the checkpoint as it was pre-trained")
    if lack:
        return Neighbours(table, tokenizer, lack)
    from distill.masked_lm import MaskedLanguageModel  # TensorFlow, for those who need it

    others = Neighbours(table, tokenizer, "words of several pieces")
    return MaskedLanguageModel(published, read_head(published), tokenizer, others, dtype=dtype, batch_size=batch_size)


def _lack(published: Published, tokenizer: Tokenizer) -> str:
    """What is missing for masked language modelling, or an empty text."""
    missing = [names for names in HEAD.values() if not set(names) & set(published.left_over)]
    if len(missing) == len(HEAD):
        return "no masked-language-model head in the checkpoint (fine-tuning does not keep it)"
    if missing:
        return f"the masked-language-model head is incomplete, {' or '.join(missing[0])} is missing"
    return "" if tokenizer.mask_id is not None else f"no [MASK] in {tokenizer.vocab_file}"


def read_head(published: Published) -> dict[str, np.ndarray]:
    """The head's tensors under our names, float32: those of `HEAD`, and "output.table" [V, H]."""
    present = set(published.left_over)
    theirs = {ours: next(name for name in names if name in present) for ours, names in HEAD.items()}
    if TABLE in present:
        theirs["output.table"] = TABLE
    google = any("/" in name for name in theirs.values())
    tensors = _google(published.folder, theirs) if google else _hugging_face(published.folder, theirs)
    tensors.setdefault("output.table", published.tensors["embeddings.token"])
    wide, rows = published.config.hidden, published.config.vocabulary
    shapes = {name: (wide,) for name in HEAD} | {
        "dense.kernel": (wide, wide), "output.bias": (rows,), "output.table": (rows, wide),
    }  # fmt: skip
    for name, array in tensors.items():
        seen = theirs.get(name, "word embeddings")
        if array.shape != shapes[name]:
            raise UserError(f"{published.source}: {seen} has shape {array.shape}, the sizes need {shapes[name]}")
        if not np.isfinite(array).all():
            raise UserError(f"{published.source}: {seen} is not finite; the checkpoint is damaged, fetch it again")
    return tensors


def _hugging_face(folder: Path, theirs: dict[str, str]) -> dict[str, np.ndarray]:
    tensors = weights.read_tensors(folder / weights.MODEL_FILE)
    named = {ours: np.asarray(tensors[name], np.float32) for ours, name in theirs.items()}
    return named | {"dense.kernel": np.ascontiguousarray(named["dense.kernel"].T)}  # [outputs, inputs] there


def _google(folder: Path, theirs: dict[str, str]) -> dict[str, np.ndarray]:
    import tensorflow as tf

    (index,) = folder.glob(weights.CHECKPOINT)  # weights.load has refused several
    try:
        reader = tf.train.load_checkpoint(str(index).removesuffix(".index"))
        return {ours: np.asarray(reader.get_tensor(name), np.float32) for ours, name in theirs.items()}
    except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{index} cannot be read as a TensorFlow checkpoint ({error}); fetch it again") from error


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays one."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
