"""The tasks of GLUE (Wang et al. 2019, arXiv 1804.07461): from its TSV files, or through tensorflow-datasets.

--task glue/sst2 --data SST-2/train.tsv --dev SST-2/dev.tsv
--task glue/sst2 --data tfds:glue/sst2 --dev tfds:glue/sst2       where the network allows
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.errors import UserError
from data import scores, sources
from data.sentences import Dataset, Example, as_number, checked
from data.squad import clean
from data.tables import read_text

Metric = Callable[[np.ndarray, np.ndarray], float]
GLUE_HOST = "dl.fbaipublicfiles.com"  # where tensorflow-datasets fetches it


@dataclass(frozen=True)
class Task:
    """A task's files and metrics."""

    labels: tuple[str, ...]  # in tensorflow-datasets' order; of a TSV's 0, 1, ..., too. Empty: a number
    columns: tuple[str, ...]  # of the TSV, texts first, the label last
    keys: tuple[str, ...]  # of tensorflow-datasets, texts
    metrics: tuple[str, ...]  # the first picks the best epoch


TASKS = {
    "cola": Task(("unacceptable", "acceptable"), ("3", "1"), ("sentence",), ("matthews", "accuracy")),
    "sst2": Task(("negative", "positive"), ("sentence", "label"), ("sentence",), ("accuracy",)),
    "mrpc": Task(("not_equivalent", "equivalent"), ("#1 String", "#2 String", "Quality"), ("sentence1", "sentence2"),
                 ("f1", "accuracy")),
    "stsb": Task((), ("sentence1", "sentence2", "score"), ("sentence1", "sentence2"), ("spearman", "pearson")),
    "qqp": Task(("not_duplicate", "duplicate"), ("question1", "question2", "is_duplicate"), ("question1", "question2"),
                ("f1", "accuracy")),
    "mnli": Task(("entailment", "neutral", "contradiction"), ("sentence1", "sentence2", "gold_label"),
                 ("premise", "hypothesis"), ("accuracy",)),
    "qnli": Task(("entailment", "not_entailment"), ("question", "sentence", "label"), ("question", "sentence"),
                 ("accuracy",)),
    "rte": Task(("entailment", "not_entailment"), ("sentence1", "sentence2", "label"), ("sentence1", "sentence2"),
                ("accuracy",)),
    "wnli": Task(("not_entailment", "entailment"), ("sentence1", "sentence2", "label"), ("sentence1", "sentence2"),
                 ("accuracy",)),
}  # fmt: skip
METRICS: dict[str, Metric] = {
    "accuracy": scores.accuracy, "f1": scores.f1_of, "macro_f1": scores.macro_f1, "matthews": scores.matthews,
    "pearson": scores.pearson, "spearman": scores.spearman,
}  # fmt: skip


def read(name: str, source: str, *, limit: int | None = None, split: str = "train") -> Dataset:
    """The examples of GLUE's task `name`: `source` is a TSV of GLUE's, or tfds:glue/NAME. Raises: UserError."""
    if source.startswith("tfds:"):
        return _from_tfds(name, source, limit, split)
    return _from_tsv(name, source, limit)


def _from_tsv(name: str, source: str, limit: int | None) -> Dataset:
    """No quoting: a double quote is part of the text. cola's files have no header."""
    task = TASKS[name]
    lines = [
        line.removesuffix("\r").split("\t") for line in read_text(Path(source), f"a TSV of GLUE's {name}").split("\n")
    ]
    lines = [line for line in lines if line != [""]]
    if name == "cola":
        wanted, first = [int(column) for column in task.columns], 0
    else:
        header = lines[0] if lines else []
        if missing := [column for column in task.columns if column not in header]:
            raise UserError(f"{source} is not GLUE's {name}: its header lacks {missing}, it has {header[:12]}")
        wanted, first = [header.index(column) for column in task.columns], 1
    examples, skipped = [], []
    for number, line in enumerate(lines[first:], first + 1):
        if len(line) <= max(wanted):
            skipped.append(f"{number}: {len(line)} columns, needed are {max(wanted) + 1}")
            continue
        *texts, label = (clean(line[place]) for place in wanted)
        given = as_number(label, source, number) if not task.labels else _label(label, task, name, source, number)
        examples.append(Example(str(number), texts[0], texts[1] if len(texts) > 1 else "", given))
    if not examples:
        raise UserError(f"{source} has no example of GLUE's {name}")
    return checked(examples, skipped, source, limit)


def _label(value: str, task: Task, name: str, source: str, line: int) -> str:
    if value.isdecimal() and int(value) < len(task.labels):
        return task.labels[int(value)]
    if value not in task.labels:
        raise UserError(
            f"{source}, line {line}: the label {value!r} is none of GLUE's {name} ({', '.join(task.labels)}); "
            "the test files have none, take train or dev"
        )
    return value


def _from_tfds(name: str, source: str, limit: int | None, split: str) -> Dataset:
    asked = source.removeprefix("tfds:").removeprefix("glue/")
    base, _, part = asked.partition("_")
    if base != name or part not in ("", "matched", "mismatched"):
        raise UserError(f"{source} is not --task glue/{name}; give tfds:glue/{name}, or a TSV file")
    task, wanted = TASKS[name], {"train": "train", "dev": "validation", "validation": "validation"}[split]
    if name == "mnli" and wanted == "validation":
        wanted = f"validation_{part or 'matched'}"
    rows = sources.tfds_rows(
        f"glue/{name}", wanted, GLUE_HOST, f"download GLUE's {name} TSV elsewhere and give its path"
    )
    examples = []
    for place, row in enumerate(rows):
        texts = [clean(row[key].decode()) for key in task.keys]
        label = task.labels[int(row["label"])] if task.labels else float(row["label"])
        examples.append(Example(str(row.get("idx", place)), texts[0], texts[1] if len(texts) > 1 else "", label))
    return Dataset(examples[:limit], source)
