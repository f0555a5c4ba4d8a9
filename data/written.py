"""Data sets as text of the files that `data/` reads, in pieces: the same examples in the same order.

    csv, tsv, jsonl     of `data/sentences.py`, with the columns' names; GLUE's own TSV
    conll, jsonl        of `data/tagged.py`
    json                of `data/squad.py`
"""

import csv
import io
import json
from collections.abc import Iterator
from itertools import groupby

from configs.errors import UserError
from data import glue, sentences, squad, tagged
from data.tables import KINDS


def squad_json(dataset: squad.Dataset) -> Iterator[str]:
    """Neighbours of one title make an article, neighbours in it of one context a paragraph."""
    yield json.dumps({"version": dataset.version, "data": []})[:-2]
    for index, article in enumerate(_articles(dataset.examples)):
        yield (", " if index else "") + json.dumps(article, ensure_ascii=False)
    yield "]}\n"


def table(dataset: sentences.Dataset, columns: tuple[str, str, str], kind: str) -> Iterator[str]:
    """columns: names for text, second text ("" for none) and label. kind: ".csv", ".tsv" or ".jsonl"."""
    names = [name for name in columns if name]
    rows = ([e.first, *([e.second] if columns[1] else []), e.label] for e in dataset.examples)
    if kind == ".jsonl":
        for row in rows:
            yield json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n"
        return
    yield _line(names, KINDS[kind])
    for row in rows:
        yield _line(row, KINDS[kind])


def glue_tsv(name: str, dataset: sentences.Dataset) -> Iterator[str]:
    """A TSV of GLUE's task `name`, its labels by name."""
    task = glue.TASKS[name]
    if name != "cola":
        yield _line(list(task.columns), "\t")
    for e in dataset.examples:
        texts = [e.first, e.second][: len(task.keys)]
        yield _line(["", e.label, "", *texts] if name == "cola" else [*texts, e.label], "\t")


def words(dataset: tagged.Dataset, kind: str) -> Iterator[str]:
    """kind: ".jsonl", or a word and its tag a line."""
    for example in dataset.examples:
        tokens = [example.text[first:last] for first, last in example.words]
        tags = example.tags or ()
        if kind == ".jsonl":
            yield json.dumps({"tokens": tokens, "tags": tags}, ensure_ascii=False) + "\n"
        else:  # a tab: a line that begins with "# " would be a comment
            yield "".join(f"{word}\t{tag}\n" for word, tag in zip(tokens, tags, strict=True)) + "\n"


def _line(row: list, delimiter: str) -> str:
    """A line of a CSV, or of a TSV, which has no quotes. Raises: UserError for a text that a TSV cannot hold."""
    out = io.StringIO()
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    try:
        csv.writer(out, delimiter=delimiter, quoting=quoting, quotechar=None if delimiter == "\t" else '"',
                   lineterminator="\n").writerow(row)  # fmt: skip
    except csv.Error as error:
        raise UserError(
            f"{str(row[0])[:60]!r} has a tab or a line break in it, which a .tsv cannot hold; write a .csv or .jsonl"
        ) from error
    return out.getvalue()


def _articles(examples: list[squad.Example]) -> Iterator[dict]:
    for title, article in groupby(examples, key=lambda e: e.title):
        paragraphs = groupby(article, key=lambda e: e.context)
        yield {
            "title": title,
            "paragraphs": [{"context": text, "qas": [_qa(e) for e in row]} for text, row in paragraphs],
        }


def _qa(example: squad.Example) -> dict:
    answers = [{"text": a.text, "answer_start": a.start} for a in example.answers]
    qa = {"id": example.id, "question": example.question, "answers": answers}
    return qa | {"is_impossible": True} if example.impossible else qa
