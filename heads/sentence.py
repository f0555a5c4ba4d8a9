"""What heads over a text or two have in common (`data/sentences.py`): reading, one window an example, requests."""

from typing import Any, ClassVar

import numpy as np

from configs.errors import UserError
from data import glue, sentences, sequences, written
from data.sentences import Dataset, Example
from data.squad import clean
from heads.head import Field, Head, text_of

TEXT = Field("Text", "the text, or the first one of two", long=True, sample="Ada Lovelace wrote the first program.")
SECOND = Field("Second text", "the second text, where the task has two", needed=False, long=True)


class SentenceHead(Head):
    """Examples are `data.sentences.Example`. `takes` has the columns of a table, where one can be read."""

    writes = (".csv", ".tsv", ".jsonl")
    fields: ClassVar = {"text": TEXT, "second": SECOND}
    number: ClassVar[bool] = False  # labels are numbers, else names of classes

    def __init__(self, task, labels=(), settings=None):
        super().__init__(task, labels, settings)
        if task.startswith("glue/"):
            self.writes = (".tsv",)  # GLUE's own

    def read(self, source, *, limit=None, split="train") -> Dataset:
        if self.task.startswith("glue/"):
            return glue.read(self.task.removeprefix("glue/"), source, limit=limit, split=split)
        return sentences.read_table(source, *self._columns(), number=self.number, limit=limit)

    def _columns(self) -> tuple[str, str, str]:
        text, second, label = (self.settings[f"{name}_column"] for name in ("text", "second", "label"))
        return text, second, label

    def file(self, dataset, kind):
        if self.task.startswith("glue/"):
            return written.glue_tsv(self.task.removeprefix("glue/"), dataset)
        return written.table(dataset, self._columns(), kind)

    def windows(
        self, dataset: Dataset, tokenizer: Any, options: Any, progress: Any, labels: dict[str, np.ndarray]
    ) -> sequences.Sequences:
        """One window an example, of both its texts. labels: name -> [examples]."""
        if not dataset.examples:
            raise UserError(f"{dataset.source}: no examples to make features from")
        first, second = ([getattr(e, name) for e in dataset.examples] for name in ("first", "second"))
        ids = [e.id for e in dataset.examples]
        return sequences.of_texts(ids, first, second, tokenizer, options.window, progress, labels=labels)

    def texts(self, dataset) -> list[str]:
        return list(dict.fromkeys(text for e in dataset.examples for text in (e.first, e.second) if text))

    def group(self, example) -> str:
        return example.first

    def augment(self, ways, dataset, candidates, **settings):
        return ways.augment_sentences(dataset, candidates, **settings)

    def example(self, fields, place=0) -> Example:
        needs, second = self.needs, ""
        if "second" in self.fields:
            second = clean(text_of(fields, "second", place, needs, default=""))
        return Example(str(place), clean(text_of(fields, "text", place, needs)), second)

    def dataset(self, examples) -> Dataset:
        return Dataset(examples, "the texts given")
