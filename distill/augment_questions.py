"""Varied copies of questions about passages, and what all ways of `distill/augment.py` share.

Answers stay to the letter and stand where they are said to stand; labels stay; the originals come first. A passage that
several questions share is varied once a copy, with the answers of all of them kept, so that its tokens stay shared.
"""

from dataclasses import dataclass, replace

from configs.errors import UserError
from data.squad import Answer, Dataset, Example
from distill.augment_config import PARTS
from distill.replace import Candidates, Job, Progress, Variant, vary, words


@dataclass(frozen=True)
class Report:
    """What became of a set; `copies` is what was made after `lost` and `same` were dropped."""

    kind: str  # of candidates: mlm, neighbours, or custom
    reason: str  # why that kind
    examples: int  # originals, all kept
    copies: int
    lost: int  # copies dropped: an answer is not at its offset
    same: int  # copies dropped: equal to the original or to an earlier copy
    texts: int  # distinct texts that were varied
    words: int  # in these texts, that might have been exchanged
    exchanged: int  # words, over all copies of these texts


def augment(
    dataset: Dataset,
    candidates: Candidates,
    *,
    copies: int,
    probability: float = 0.4,
    most: int = 15,
    seed: int = 0,
    parts: str = "both",
    progress: Progress | None = None,
) -> tuple[Dataset, Report]:
    """The data set followed by up to `copies` variants of every example, with ids "ID#1", "ID#2" and so on.

    Args:
        candidates: from `candidates_for`, or any function like it.
        copies: variants an example; usually 5 to 20.
        probability: of each word to be exchanged, stop words and words of the answers excepted.
        most: candidates a word, all equally likely.
        seed: an example's copies depend on it, on the example's id and its passage, and on nothing else.
        parts: "question", "context" or "both".
        progress: gets (done, total), counted in words whose candidates are known.

    Raises: UserError for a setting out of range, an empty set, or one that holds copies already.
    """
    check(copies, probability, most)
    if parts not in PARTS:
        raise UserError(f"parts {parts!r} cannot be varied; choose one of {', '.join(PARTS)}")
    if not dataset.examples:
        raise UserError(f"{dataset.source}: no examples to vary")
    _refuse_copies(dataset)

    contexts = _context_jobs(dataset) if parts != "question" else {}
    questions = [_question_job(e) for e in dataset.examples] if parts != "context" else []
    variants, count = vary(
        [*contexts.values(), *questions], candidates,
        copies=copies, probability=probability, most=most, seed=seed, progress=progress,
    )  # fmt: skip
    of_context = dict(zip(contexts, variants, strict=False))
    of_question = variants[len(contexts) :]
    made: list[list[Example]] = [[] for _ in range(copies)]
    lost = same = 0
    for index, example in enumerate(dataset.examples):
        seen = {(example.context, example.question)}
        for k in range(copies):
            context = of_context[example.context][k] if of_context else None
            copy = _copy(example, k + 1, context, of_question[index][k] if of_question else None)
            if copy is None:
                lost += 1
            elif (copy.context, copy.question) in seen:
                same += 1
            else:
                seen.add((copy.context, copy.question))
                made[k].append(copy)
    copied = [example for row in made for example in row]
    report = Report(
        *named(candidates), len(dataset.examples), len(copied), lost, same, len(variants), count, exchanged(variants)
    )
    source = f"{dataset.source} and {len(copied)} copies"
    return replace(dataset, examples=dataset.examples + copied, source=source), report


def check(copies: int, probability: float, most: int) -> None:
    """Raise a UserError for a setting out of range."""
    if copies < 1:
        raise UserError(f"{copies} copies of an example cannot be made; take 1 or more, usually 5 to 20")
    if not 0 < probability <= 1:
        raise UserError(f"a probability of {probability} is not possible; take one above 0 and up to 1, usually 0.4")
    if most < 1:
        raise UserError(f"{most} candidates a word are too few; take 1 or more, usually 15")


def _refuse_copies(dataset: Dataset) -> None:
    ids = {example.id for example in dataset.examples}
    for name in ids:
        original, _, number = name.rpartition("#")
        if original in ids and number.isdecimal():
            raise UserError(f"{dataset.source}: {name} is a copy already; start from the set without copies")


def _context_jobs(dataset: Dataset) -> dict[str, Job]:
    """Every distinct context -> how to vary it: its questions' answers stay, as do their words elsewhere in it."""
    spans: dict[str, set[tuple[int, int]]] = {}
    kept: dict[str, set[str]] = {}
    for example in dataset.examples:
        spans.setdefault(example.context, set()).update((a.start, a.start + len(a.text)) for a in example.answers)
        kept.setdefault(example.context, set()).update(*(words(a.text) for a in example.answers))
    return {text: Job(f"context\n{text}", text, tuple(sorted(spans[text])), frozenset(kept[text])) for text in spans}


def _question_job(example: Example) -> Job:
    """A question names its answer where it asks for one of two: such words stay."""
    kept = frozenset().union(*(words(answer.text) for answer in example.answers))
    return Job(f"question\n{example.id}", example.question, (), kept)


def _copy(example: Example, k: int, context: Variant | None, question: Variant | None) -> Example | None:
    """The k-th copy, or None if one of the answers does not stand where it should."""
    text = context.text if context else example.context
    answers = []
    for answer in example.answers:
        start = context.shift(answer.start) if context else answer.start
        if not text.startswith(answer.text, start):
            return None
        answers.append(Answer(answer.text, start))
    asked = question.text if question else example.question
    return Example(f"{example.id}#{k}", example.title, text, asked, tuple(answers), example.impossible)


def named(candidates: Candidates) -> tuple[str, str]:
    return getattr(candidates, "kind", "custom"), getattr(candidates, "reason", "given by the caller")


def exchanged(variants: list[list[Variant]]) -> int:
    return sum(len(variant.ends) for row in variants for variant in row)
