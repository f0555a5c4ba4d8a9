"""Writes a data set as a SQuAD JSON file that `data.squad.read` gives back: same examples, same order."""

import gzip
import json
import os
from collections.abc import Iterator
from io import BufferedWriter
from itertools import groupby
from pathlib import Path

from configs.errors import UsageError, UserError
from data.squad import Dataset, Example


def check_out(out: Path, overwrite: bool, inputs: tuple[str | None, ...] = ()) -> None:
    """Raise a UserError now, rather than after the work, if `out` cannot be written; make its folder.

    inputs: what the command reads, and must not write over.
    """
    if not out.name.endswith((".json", ".json.gz")):
        raise UsageError(f"--out {out} must end in .json or .json.gz")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file")
    if any(name and Path(name).exists() and Path(name).resolve() == out.resolve() for name in inputs):
        raise UsageError(f"--out {out} is what is read; name another file")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; add --overwrite to replace it, or name another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _scratch(out).touch()
        _scratch(out).unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); name a file elsewhere") from error


def write(dataset: Dataset, out: Path) -> None:
    """Write elsewhere and rename: a reader sees the whole file or none. The same data give the same bytes."""
    scratch = _scratch(out)
    try:
        with open(scratch, "wb") as file:
            if out.suffix == ".gz":
                with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                    _write_text(dataset, packed)
            else:
                _write_text(dataset, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, out)
    finally:
        scratch.unlink(missing_ok=True)


def _scratch(out: Path) -> Path:
    return out.with_name(f".{out.name}.{os.getpid()}")


def _write_text(dataset: Dataset, file: BufferedWriter | gzip.GzipFile) -> None:
    """An article at a time: twenty copies of SQuAD make a text of a gigabyte."""
    file.write(json.dumps({"version": dataset.version, "data": []})[:-2].encode())
    for index, article in enumerate(_articles(dataset.examples)):
        file.write((", " if index else "").encode() + json.dumps(article, ensure_ascii=False).encode("utf-8"))
    file.write(b"]}\n")


def _articles(examples: list[Example]) -> Iterator[dict]:
    """Neighbours of one title make an article, neighbours in it of one context a paragraph."""
    for title, article in groupby(examples, key=lambda e: e.title):
        paragraphs = groupby(article, key=lambda e: e.context)
        yield {
            "title": title,
            "paragraphs": [{"context": text, "qas": [_qa(e) for e in row]} for text, row in paragraphs],
        }


def _qa(example: Example) -> dict:
    answers = [{"text": a.text, "answer_start": a.start} for a in example.answers]
    qa = {"id": example.id, "question": example.question, "answers": answers}
    return qa | {"is_impossible": True} if example.impossible else qa
