"""Plain text as windows for the general stage: [CLS] piece [SEP], or [CLS] piece [SEP] piece [SEP].

It takes the form of question features without answers, so that batches and the loop need to know nothing of it.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np

from configs.errors import UserError
from data.features import Features
from data.tokenize import Tokenizer
from heads import Head

LEAST_TOKENS = 8  # a shorter piece teaches next to nothing


def read(source: str, head: Head) -> list[str]:
    """Documents: those of a .txt or .txt.gz, with blank lines between them; or the texts of a head's data set."""
    path = Path(source)
    if not source.endswith((".txt", ".txt.gz")):
        return head.texts(head.read(source))
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if source.endswith(".gz") else raw).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"text {path} cannot be read ({error}); needed is UTF-8, with or without gzip") from error
    documents = [" ".join(block.split()) for block in text.replace("\r\n", "\n").split("\n\n")]
    return [document for document in documents if document]


def featurise(documents: list[str], tokenizer: Tokenizer, window: int, seed: int, source: str) -> Features:
    """Windows of at most `window` tokens, one after the other in each document.

    Half of them, by the seed, are cut in two, so that the second segment's embedding learns as well.
    """
    pieces = tokenizer.encode_flat(documents)
    random = np.random.default_rng(seed)
    room = window - 3
    first, length = [], []  # of each window's tokens
    for begin, end in zip(pieces.start[:-1], pieces.start[1:], strict=True):
        for at in range(int(begin), int(end), room):
            count = min(room, int(end) - at)
            if count >= LEAST_TOKENS:
                first.append(at)
                length.append(count)
    if not first:
        raise UserError(f"{source} holds no piece of {LEAST_TOKENS} tokens or more; needed is plain text in sentences")
    count = np.array(length)
    cut = np.where(
        random.random(len(count)) < 0.5, np.maximum(1, (random.random(len(count)) * count).astype(int)), count
    )
    whole = cut == count
    ends = np.array(first) + count
    # "questions" are the parts before the cut, "contexts" those after it, empty for a window in one piece
    before = [pieces.ids[at : at + n] for at, n in zip(first, cut, strict=True)]
    after = [pieces.ids[end - n : end] for end, n in zip(ends, count - cut, strict=True)]
    order = np.arange(len(count), dtype=np.int32)
    zeros = np.zeros(len(count), np.int32)
    return Features(
        examples=[str(index) for index in order],
        question_tokens=np.concatenate(before).astype(np.int32),
        question_start=np.concatenate([[0], np.cumsum(cut)]),
        context_tokens=np.concatenate(after).astype(np.int32),
        context_offsets=np.zeros((int((count - cut).sum()), 2), np.int32),
        context_start=np.concatenate([[0], np.cumsum(count - cut)]),
        example=order,
        context=order,
        first=zeros,
        count=(count - cut).astype(np.int32),
        length=(count + np.where(whole, 2, 3)).astype(np.int32),
        start_position=zeros,
        end_position=zeros,
        special=np.array([tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id], np.int32),
    )
