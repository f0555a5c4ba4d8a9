"""Varied copies of texts with labels: one sentence, two, or words with tags; each copy from its original row.

What `distill/augment_questions.py` does for questions. A head names the way that is its own (`Head.augment`).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from configs.errors import UserError
from data import sentences, tagged
from data.scores import entities
from distill.augment_questions import Report, augment, check, exchanged, named
from distill.replace import Candidates, Job, Progress, vary, words

__all__ = ["Pair", "augment", "augment_pairs", "augment_sentences", "augment_tagged"]


class Pair(NamedTuple):
    """A sentence pair of an augmented set; its label is that of row `row` of the original set."""

    id: str
    first: str
    second: str
    row: int


def augment_pairs(
    rows: Sequence[tuple[str, str, str]],
    candidates: Candidates,
    *,
    copies: int,
    probability: float = 0.4,
    most: int = 15,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[list[Pair], Report]:
    """Sentence pairs (id, first, second) followed by up to 2 x `copies` variants of each.

    A variant has one sentence varied and the other as in the original row: "ID#a1", "ID#a2" vary the first, "ID#b1",
    "ID#b2" the second. An empty second sentence (a task of single sentences) is left alone.
    """
    check(copies, probability, most)
    if len({name for name, _, _ in rows}) < len(rows):
        raise UserError("sentence pairs: an id stands twice; ids seed the copies and must be unique")
    jobs = [Job(f"{side}\n{row[0]}", row[at]) for row in rows for at, side in ((1, "first"), (2, "second"))]
    variants, count = vary(
        jobs, candidates, copies=copies, probability=probability, most=most, seed=seed, progress=progress
    )
    made, same = [Pair(*row, index) for index, row in enumerate(rows)], 0
    for index, (name, first, second) in enumerate(rows):
        seen = {(first, second)}
        # Every variant starts from the row itself, never from the variant before it.
        of_first = [Pair(f"{name}#a{k}", v.text, second, index) for k, v in enumerate(variants[2 * index], 1)]
        of_second = [Pair(f"{name}#b{k}", first, v.text, index) for k, v in enumerate(variants[2 * index + 1], 1)]
        for pair in of_first + of_second if second else of_first:
            if (pair.first, pair.second) in seen:
                same += 1
            else:
                seen.add((pair.first, pair.second))
                made.append(pair)
    counts = (len(rows), len(made) - len(rows), 0, same, len(variants), count, exchanged(variants))
    return made, Report(*named(candidates), *counts)


def augment_sentences(
    dataset: sentences.Dataset, candidates: Candidates, **settings: Any
) -> tuple[sentences.Dataset, Report]:
    """Examples of one text or two and their varied copies (`augment_pairs`), each with the label of its own row."""
    rows = [(e.id, e.first, e.second) for e in dataset.examples]
    pairs, report = augment_pairs(rows, candidates, **settings)
    examples = [sentences.Example(p.id, p.first, p.second, dataset.examples[p.row].label) for p in pairs]
    return replace(dataset, examples=examples, source=f"{dataset.source} and {report.copies} copies"), report


def augment_tagged(
    dataset: tagged.Dataset, candidates: Candidates, *, copies: int, probability: float = 0.4, most: int = 15,
    seed: int = 0, progress: Progress | None = None,
) -> tuple[tagged.Dataset, Report]:  # fmt: skip
    """Sentences with a tag a word and their varied copies: words of entities stay, so do the number of words and tags.

    A copy in which a word became two (or none) is dropped and counted as `lost`.
    """
    check(copies, probability, most)
    jobs = []
    for example in dataset.examples:
        spans = [example.words[w] for _, first, last in entities(example.tags or ()) for w in range(first, last)]
        kept = frozenset().union(*(words(example.text[first:last]) for first, last in spans))
        jobs.append(Job(f"tagged\n{example.id}", example.text, tuple(spans), kept))
    variants, count = vary(
        jobs, candidates, copies=copies, probability=probability, most=most, seed=seed, progress=progress
    )
    made, lost, same = list(dataset.examples), 0, 0
    for example, row in zip(dataset.examples, variants, strict=True):
        seen = {example.text}
        for k, variant in enumerate(row, 1):
            said = variant.text.split(" ")
            if len(said) != len(example.words) or not all(said):
                lost += 1
            elif variant.text in seen:
                same += 1
            else:
                seen.add(variant.text)
                made.append(tagged.Example.of_words(f"{example.id}#{k}", said, example.tags))
    added = len(made) - len(dataset.examples)
    counts = (len(dataset.examples), added, lost, same, len(variants), count, exchanged(variants))
    report = Report(*named(candidates), *counts)
    return replace(dataset, examples=made, source=f"{dataset.source} and {added} copies"), report
