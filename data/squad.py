"""SQuAD as a list of checked examples: from a JSON file, a .json.gz, tensorflow-datasets or the built-in set.

Versions 1.1 (every question has an answer) and 2.0 (some have none) share one shape. An example that contradicts itself
is left out and its reason kept; a file in which more than a tenth is like that is refused: something else is wrong.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.sources import NEEDED, from_builtin, from_file, from_tfds

MOST_SKIPPED = 0.10


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    start: int  # in characters of the context


@dataclass(frozen=True, slots=True)
class Example:
    id: str
    title: str
    context: str
    question: str
    answers: tuple[Answer, ...]  # the first is the training label; the metric takes the best of all
    impossible: bool  # version 2.0: the context does not hold the answer


@dataclass(frozen=True)
class Dataset:
    examples: list[Example]
    version: str  # "1.1" or "2.0"
    skipped: list[str] = field(default_factory=list)  # "id: reason", one for each example left out
    source: str = ""


def read(source: str | Path, *, limit: int | None = None, split: str = "train") -> Dataset:
    """Reads `source`: a path (.json, .json.gz), "tfds:squad", "tfds:squad/v2.0" or "builtin:PART".

    `limit` keeps the first so many examples; `split` ("train" or "dev") matters to tfds, where one name means both.
    """
    name = str(source)
    if name.startswith("builtin:"):
        raw = from_builtin(name.removeprefix("builtin:"), limit)
    elif name.startswith("tfds:"):
        raw = from_tfds(name.removeprefix("tfds:"), split)
    else:
        raw = from_file(Path(name))
    return from_dict(raw, source=name, limit=limit)


def from_dict(raw: Any, *, source: str = "a dictionary", limit: int | None = None) -> Dataset:
    """Checks a parsed SQuAD JSON and flattens it; `source` is only for messages."""
    articles = _get(raw, "data", list, source, "the top level")
    examples: list[Example] = []
    skipped: list[str] = []
    ids: set[str] = set()
    has_impossible = False
    for a, article in enumerate(articles):
        title = article.get("title", "") if isinstance(article, dict) else ""
        for p, paragraph in enumerate(_get(article, "paragraphs", list, source, f"data[{a}]")):
            place = f"data[{a}].paragraphs[{p}]"
            context = _get(paragraph, "context", str, source, place)
            if not context.isascii():
                context = clean(context)
            for q, qa in enumerate(_get(paragraph, "qas", list, source, place)):
                example = _example(qa, str(title), context, source, f"{place}.qas[{q}]")
                if example.id in ids:
                    raise UserError(
                        f"{source}: the id {example.id!r} stands twice; ids must be unique, scores go by them"
                    )
                ids.add(example.id)
                has_impossible |= example.impossible
                reason = _flaw(example)
                if reason:
                    skipped.append(f"{example.id}: {reason}")
                else:
                    examples.append(example)
    version = "2.0" if str(raw.get("version", "")).lower().lstrip("v").startswith("2") or has_impossible else "1.1"
    if version == "1.1":  # only 2.0 may leave a question unanswered
        skipped += [f"{e.id}: no answer given, and the file is not version 2.0" for e in examples if not e.answers]
        examples = [e for e in examples if e.answers]
    else:
        examples = [e if e.answers else Example(e.id, e.title, e.context, e.question, (), True) for e in examples]
    if not ids:
        raise UserError(f"{source}: no question in it; {NEEDED}")
    if len(skipped) > MOST_SKIPPED * len(ids):
        raise UserError(
            f"{source}: {len(skipped)} of {len(ids)} examples are unusable, more than {MOST_SKIPPED:.0%} "
            f"(first: {skipped[0]}); offsets must count characters of the context. Check how the file was made"
        )
    return Dataset(examples[:limit], version, skipped, source)


def clean(text: str) -> str:
    """Replaces lone surrogates (JSON can hold them, UTF-8 cannot) one for one, so that offsets stay."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


def _get(holder: Any, key: str, kind: type, source: str, place: str) -> Any:
    """holder[key], or an error that says what stood there instead."""
    if isinstance(holder, dict) and isinstance(holder.get(key), kind):
        return holder[key]
    if not isinstance(holder, dict):
        seen = f"is {'a list' if isinstance(holder, list) else type(holder).__name__}, not an object"
    elif key in holder:
        seen = f"has {key!r} of type {type(holder[key]).__name__}, not {kind.__name__}"
    else:
        seen = f"has the keys {sorted(map(str, holder))[:8]}, but not {key!r}"
    raise UserError(f"{source} is not SQuAD: {place} {seen}; {NEEDED}")


def _example(qa: Any, title: str, context: str, source: str, place: str) -> Example:
    question = clean(_get(qa, "question", str, source, place))
    if not isinstance(qa.get("id"), str | int):
        _get(qa, "id", str, source, place)
    answers = []
    for i, answer in enumerate(_get(qa, "answers", list, source, place)):
        where = f"{place}.answers[{i}]"
        text = clean(_get(answer, "text", str, source, where))
        answers.append(Answer(text, _get(answer, "answer_start", int, source, where)))
    impossible = qa.get("is_impossible", False)
    if not isinstance(impossible, bool | int):
        _get(qa, "is_impossible", bool, source, place)
    return Example(clean(str(qa["id"])), clean(title), context, question, tuple(answers), bool(impossible))


def _flaw(example: Example) -> str | None:
    """Why the example cannot be used, or None."""
    if not example.context.strip():
        return "empty context"
    if not example.question.strip():
        return "empty question"
    if example.impossible and example.answers:
        return "is_impossible is true, yet it has answers"
    for text, start in ((a.text, a.start) for a in example.answers):
        if not text.strip():
            return "empty answer"
        if start < 0 or not example.context.startswith(text, start):
            seen = example.context[max(start, 0) : max(start, 0) + len(text)]
            return f"answer {text[:40]!r} is not at offset {start}, where {seen[:40]!r} stands"
    return None
