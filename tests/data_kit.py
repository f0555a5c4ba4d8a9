"""Small data for the tests of data/: a vocabulary, data sets, and where the shared SQuAD files lie."""

from pathlib import Path

import pytest

from data.squad import Answer, Dataset, Example
from data.tokenize import Tokenizer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "squad"
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,?!-'"


def write_vocab(
    folder: Path, words: tuple[str, ...] = ("the", "tower", "##s", "was", "built"), extra: str = ""
) -> Path:
    """A vocabulary in which every Latin word can be spelt: whole words first, then letters."""
    letters = ALPHABET + extra
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{c}" for c in letters)]
    path = folder / "vocab.txt"
    path.write_text("\n".join(dict.fromkeys(pieces)) + "\n", encoding="utf-8")
    return path


def letters(folder: Path) -> Tokenizer:
    """A tokeniser that gives one token a letter, so that tests can count tokens on their fingers."""
    return Tokenizer(write_vocab(folder, words=()))


def example(
    name: str, context: str, question: str = "who", answer: str | None = None, start: int | None = None
) -> Example:
    if answer is None:
        return Example(name, "t", context, question, (), True)
    return Example(
        name, "t", context, question, (Answer(answer, context.index(answer) if start is None else start),), False
    )


def dataset(*examples: Example, version: str = "1.1") -> Dataset:
    return Dataset(list(examples), version, source="test")


def shared(name: str) -> Path:
    """A file of real SQuAD, or the test is skipped: a user has none. The project's own data covers the same code."""
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not there: the real SQuAD files are not part of the project")
    return path
