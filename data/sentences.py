"""One text or two with a label: what classification, regression and sentence embeddings are trained on."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from configs.errors import UserError
from data import tables

Label = str | float | None


@dataclass(frozen=True, slots=True)
class Example:
    id: str
    first: str
    second: str = ""  # "" where a task has one text
    label: Label = None  # a class's name, a number, or nothing


@dataclass(frozen=True)
class Dataset:
    examples: list[Example]
    source: str = ""
    skipped: list[str] = field(default_factory=list)  # "id: reason", one for each example left out
    version: str = ""  # what `data/squad.Dataset` has for SQuAD


def read_table(
    source: str, text: str, second: str | None, label: str, *, number: bool, limit: int | None = None
) -> Dataset:
    """A .csv, .tsv or .jsonl whose columns are called so. number: labels are numbers, else names of classes.

    Raises: UserError for a missing column, a label that is none, or a file in which too much is empty.
    """
    examples, skipped = [], []
    for line, row in tables.rows(source):
        first = tables.text_column(row, text, source, line)
        other = tables.text_column(row, second, source, line) if second else ""
        value = tables.column(row, label, source, line)
        given = as_number(value, source, line) if number else as_class(value, source, line)
        name = str(line)
        if not first.strip() or (second and not other.strip()):
            skipped.append(f"{name}: empty text")
        else:
            examples.append(Example(name, first, other, given))
    return checked(examples, skipped, source, limit)


def checked(examples: list[Example], skipped: list[str], source: str, limit: int | None) -> Dataset:
    """A data set, unless more than a tenth of it was left out."""
    if len(skipped) > 0.1 * (len(skipped) + len(examples)):
        raise UserError(
            f"{source}: {len(skipped)} of {len(skipped) + len(examples)} rows have an empty text (first: line "
            f"{skipped[0]}); check the columns' names"
        )
    return Dataset(examples[:limit], source, skipped)


def as_number(value: Any, source: str, line: int | str) -> float:
    """A finite number. Raises: UserError for text that is none, NaN and infinity."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{source}, line {line}: the target is {value!r}; needed is a finite number, take the row out")
    return number


def as_class(value: Any, source: str, line: int | str) -> str:
    """A class's name: text, or a whole number's digits. Raises: UserError for nothing, NaN and fractions."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = str(value).strip() if isinstance(value, str | int) else ""
    if not name or name.lower() == "nan":
        raise UserError(
            f"{source}, line {line}: the label is {value!r}; needed is a class's name, take the row out "
            "(numbers to be predicted are --task csv/number)"
        )
    return name


def classes(examples: Iterable[Example], source: str) -> tuple[str, ...]:
    """The names of all classes, numbers by size and before words. Raises: UserError where there is one only."""
    names = {str(example.label) for example in examples if example.label is not None}
    if len(names) < 2:
        raise UserError(
            f"{source} has {f'one class only, {min(names)!r}' if names else 'no label'}; there is nothing to tell "
            "apart. Needed are at least two: check --label-column and --limit"
        )
    return tuple(sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name)))


def known(dataset: Dataset, labels: tuple[str, ...]) -> None:
    """Raise a UserError unless every label is one of those that the model was trained with."""
    strange = [example for example in dataset.examples if example.label is not None and example.label not in labels]
    if strange:
        names = sorted({str(example.label) for example in strange})
        raise UserError(
            f"{dataset.source}: the label {names[0]!r} ({len(strange)} rows, the first is {strange[0].id}) was never "
            f"seen in training, which had {', '.join(map(repr, labels))}; take these rows out, or train with them"
        )


def differ(dataset: Dataset) -> None:
    """Raise a UserError where all targets are one number: nothing can be learnt, no correlation be computed."""
    values = {float(example.label or 0.0) for example in dataset.examples}
    if len(values) < 2:
        raise UserError(
            f"{dataset.source} has one target only, {min(values, default=None)}; there is nothing to learn. Needed are "
            "at least two: check --label-column and --limit"
        )
