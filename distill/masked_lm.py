"""The masked language model: what BERT expects where a word is hidden, many words at once.

    [CLS] the text around the word, the word as [MASK] [SEP] the same as it is [SEP]

The second half lets the model see which word is to be replaced (TinyBERT, arXiv 1909.10351, algorithm 1). From a long
text it gets the pieces around the word only, `REACH` on each side: what is further away costs more than it tells.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from configs.errors import UserError
from data.tokenize import Tokenizer, read_vocabulary
from distill.candidates import Neighbours, chosen_pieces, usable
from distill.replace import Place, Progress
from model.bert import Bert, LayerNorm, named_variables
from model.gelu import bias_gelu
from model.weights import Published

REACH = 14  # pieces on each side of the word, about a sentence: 3 + 2 * (2 * 14 + 1) = 61 tokens at most
MULTIPLE = 32  # rows are padded to a multiple, so that there are few shapes to compile


class MaskedLanguageModel:
    """Candidates by masked language modelling; words of several pieces get neighbours.

    Which words come back does not depend on the batch, but for float rounding between almost equal ones.
    """

    kind = "mlm"
    reason = "the checkpoint has its masked-language-model head; words of several pieces get neighbours"

    def __init__(
        self,
        published: Published,
        head: dict[str, np.ndarray],
        tokenizer: Tokenizer,
        neighbours: Neighbours,
        *,
        dtype: str = "float32",
        batch_size: int = 128,
    ):
        """head: as `candidates.read_head` returns it."""
        if batch_size < 1:
            raise UserError(f"a batch of {batch_size} rows is not possible; take 1 or more, usually 64 to 512")
        self._tokenizer, self._neighbours, self._batch_size = tokenizer, neighbours, batch_size
        self._pieces = read_vocabulary(tokenizer.vocab_file)
        self._usable = [usable(piece) for piece in self._pieces]
        config = published.config
        self._reach = max(0, min(REACH, ((config.positions - 3) // 2 - 1) // 2))
        self._encoder = Bert(config, dtype)
        for name, variable in named_variables(self._encoder).items():
            variable.assign(published.tensors[name])
        self._head, self._gelu = {name: tf.constant(value) for name, value in head.items()}, config.gelu
        self._norm = LayerNorm(config.hidden, config.layer_norm_epsilon, "float32", "mlm_norm")
        self._norm.scale.assign(head["norm.scale"])
        self._norm.offset.assign(head["norm.offset"])
        self._top = tf.function(self._compute, reduce_retracing=True)

    def __call__(
        self, texts: Sequence[str], places: Sequence[Place], most: int, progress: Progress | None = None
    ) -> list[tuple[str, ...]]:
        pieces = self._tokenizer.encode_flat(list(texts))
        rows: dict[int, tuple[list[int], int]] = {}  # place -> (tokens of the text around it, position of the word)
        others: list[int] = []  # places of words that are several pieces
        for index, (text, first, last) in enumerate(places):
            begin, end = int(pieces.start[text]), int(pieces.start[text + 1])
            at = begin + int(np.searchsorted(pieces.offsets[begin:end, 1], first, side="right"))
            if at < end and tuple(pieces.offsets[at].tolist()) == (first, last):
                low, high = max(begin, at - self._reach), min(end, at + self._reach + 1)
                rows[index] = (pieces.ids[low:high].tolist(), at - low)
            else:
                others.append(index)
        found: list[tuple[str, ...]] = [()] * len(places)
        named = self._neighbours(texts, [places[index] for index in others], most)
        for index, words in zip(others, named, strict=True):
            found[index] = words
        order = sorted(rows, key=lambda index: len(rows[index][0]))  # like lengths together: little padding
        for begin in range(0, len(order), self._batch_size):
            batch = order[begin : begin + self._batch_size]
            for index, ids in zip(batch, self.top([rows[index] for index in batch], most), strict=True):
                text, first, last = places[index]
                likely = (self._pieces[i] for i in ids if i < len(self._pieces) and self._usable[i])
                found[index] = chosen_pieces(texts[text][first:last], likely, most)
            if progress:
                progress(len(others) + begin + len(batch), len(places))
        return found

    def top(self, rows: list[tuple[list[int], int]], most: int) -> list[list[int]]:
        """The ids of the `most` likeliest pieces at the hidden position of each (tokens, position), likeliest first."""
        t = self._tokenizer
        length = 3 + 2 * max(len(tokens) for tokens, _ in rows)
        length = min(-(-length // MULTIPLE) * MULTIPLE, self._encoder.config.positions)
        shape = (self._batch_size, length)  # always whole batches: another size would be compiled anew
        token_ids = np.full(shape, t.pad_id, np.int32)
        segment_ids, padding_mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        padding_mask[:, :2] = 1  # rows to spare: something to attend to
        at = np.ones(self._batch_size, np.int32)
        for row, (tokens, position) in enumerate(rows):
            masked = [*tokens[:position], t.mask_id, *tokens[position + 1 :]]
            whole = [t.cls_id, *masked, t.sep_id, *tokens, t.sep_id]
            token_ids[row, : len(whole)], padding_mask[row, : len(whole)] = whole, 1
            segment_ids[row, len(tokens) + 2 : len(whole)] = 1
            at[row] = position + 1
        ids = self._top(token_ids, segment_ids, padding_mask, at, min(most, self._encoder.config.vocabulary))
        return ids.numpy()[: len(rows)].tolist()

    def _compute(self, token_ids, segment_ids, padding_mask, at, most: int):
        """int32 [B, S] three times and at [B] -> int32 [B, most]. The head is float32 whatever the encoder is."""
        x = self._encoder(token_ids, segment_ids, padding_mask).output  # [B, S, H]
        x = tf.cast(tf.gather(x, at, batch_dims=1), tf.float32)  # [B, H]
        x = self._norm(bias_gelu(x @ self._head["dense.kernel"], self._head["dense.bias"], self._gelu))
        logits = tf.matmul(x, self._head["output.table"], transpose_b=True) + self._head["output.bias"]  # [B, V]
        return tf.math.top_k(logits, most).indices
