"""Labelled sets for every task, cut out of the built-in passages about an invented world (`data/builtin/README.md`).

    csv         which field a passage is about (history, science, ...): its text, and the pattern file it was made from
    csv/pair    whether a question is about the passage beside it, or about another one of the same field
    csv/number  how many numbers a passage holds
    conll       names of what a passage is about, and numbers
    embed       two questions: 1 about the same thing, 0.5 of the same field, 0 otherwise

train and dev have no name in common. Ours and under the project's licence, as is what they are cut out of.
"""

import csv
import random
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from data.builtin.generate import Made, passages

WORDS = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
PARTS = {"train": "train", "dev": "dev-facts"}


def field(made: Made) -> str:
    """ "g_history:100" -> "history"."""
    key = next(key for key in made.keys if ":" in key and "_" in key.split(":")[0])
    return key.split(":")[0].partition("_")[2]


def write(task: str, part: str, count: int, folder: Path, seed: int = 0) -> Path:
    """A file of `count` examples of "train" or "dev"; the same for the same seed."""
    path = folder / f"{task.replace('/', '-')}-{part}.{'conll' if task == 'conll' else 'csv'}"
    made = list(islice(passages(PARTS[part], seed, "1.1"), max(2, count)))
    rows = list(islice(MAKERS[task](made, random.Random(f"{task} {part} {seed}")), count))
    with open(path, "w", newline="", encoding="utf-8") as file:
        if task == "conll":
            file.write("\n\n".join("\n".join(f"{word} {tag}" for word, tag in row) for row in rows) + "\n")
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def fields(made: list[Made], draw: random.Random) -> Iterator[dict]:
    for one in made:
        yield {"text": one.context, "label": field(one)}


def pairs(made: list[Made], draw: random.Random) -> Iterator[dict]:
    kinds = by_field(made)
    for one in made:
        asked, own = draw.choice(one.questions).text, draw.random() < 0.5
        context = one.context if own else other(one, kinds[field(one)], draw).context
        yield {"text": asked, "second": context, "label": "yes" if own or context == one.context else "no"}


def numbers(made: list[Made], draw: random.Random) -> Iterator[dict]:
    for one in made:
        yield {"text": one.context, "target": len(re.findall(r"\d[\d,.]*", one.context))}


def tagged(made: list[Made], draw: random.Random) -> Iterator[list[tuple[str, str]]]:
    for one in made:
        tags: dict[tuple[int, int], str] = {}
        kinds = [("NAME", re.escape(re.sub("^the ", "", name))) for name in one.names]
        for kind, pattern in [*kinds, ("NUM", r"\d[\d,.]*\d|\d")]:
            for match in re.finditer(pattern, one.context):
                inside = [word.span() for word in WORDS.finditer(one.context, *match.span())]
                tags |= {span: f"{'I' if place else 'B'}-{kind}" for place, span in enumerate(inside)}
        yield [(word.group(), tags.get(word.span(), "O")) for word in WORDS.finditer(one.context)]


def questions(made: list[Made], draw: random.Random) -> Iterator[dict]:
    kinds = by_field(made)
    for one in made:
        kind, own = draw.randrange(3), field(one)
        first, second = draw.sample(one.questions, 2)
        if kind:
            names = [own] if kind == 1 else [name for name in kinds if name != own] or [own]
            second = draw.choice(other(one, kinds[draw.choice(names)], draw).questions)
        yield {"sentence1": first.text, "sentence2": second.text, "score": (1.0, 0.5, 0.0)[kind]}


def by_field(made: list[Made]) -> dict[str, list[Made]]:
    found: dict[str, list[Made]] = {}
    for one in made:
        found.setdefault(field(one), []).append(one)
    return found


def other(one: Made, among: list[Made], draw: random.Random) -> Made:
    """A passage that is not this one, where there is another."""
    found = draw.choice(among)
    while found is one and len(among) > 1:
        found = draw.choice(among)
    return found


MAKERS: dict[str, Callable] = {
    "csv": fields, "csv/pair": pairs, "csv/number": numbers, "conll": tagged, "embed": questions,
}  # fmt: skip
