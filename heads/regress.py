"""A number for one text or two (STS-B, a user's own CSV): the classifier's layers with a single output."""

from typing import Any, ClassVar

import numpy as np

from configs.errors import UserError
from data import glue, scores, sentences
from data.sentences import Dataset
from heads.classify import Classify, featurised
from heads.head import Output


class Regress(Classify):
    """One value a sequence, learnt by its squared error."""

    title = "regression"
    tasks: ClassVar = ("glue/stsb", "csv/number")
    takes: ClassVar = {"text_column": "text", "second_column": "", "label_column": "target"}

    def __init__(self, task, labels=(), settings=None):
        super().__init__(task, labels, settings)
        self.measured = ("spearman", "pearson")
        self.score = self.measured[0]

    def read(self, source, *, limit=None, split="train") -> Dataset:
        if self.task.startswith("glue/"):
            return glue.read(self.task.removeprefix("glue/"), source, limit=limit, split=split)
        return sentences.read_table(source, **self._columns(), number=True, limit=limit)

    def fit(self, dataset):
        refuse_constant(dataset)
        return self

    def featurise(self, dataset, tokenizer, options, cache_dir=None, progress=None):
        targets = np.array([e.label or 0.0 for e in dataset.examples], np.float32)
        return featurised(dataset, tokenizer, options, progress, {"targets": targets})

    def _classes(self) -> int:
        return 1

    def outputs(self, hidden) -> tuple[Output, ...]:
        return (Output("logits", "sequence", 1),)

    def loss(self, outputs, batch):
        """Squared error, as google-research/bert's and transformers'."""
        import tensorflow as tf

        return tf.square(outputs[0][:, 0] - batch["targets"])

    def soft_loss(self, student, teacher, batch, cross_entropy):
        import tensorflow as tf

        return tf.square(student[0][:, 0] - teacher[0][:, 0])

    def decode(self, features, dataset, outputs) -> dict[str, Any]:
        return {e.id: float(row[0]) for e, row in zip(dataset.examples, outputs[0], strict=True)}

    def scores(self, dataset, predictions, threshold=None) -> np.ndarray:
        """[examples, 2] target and value found."""
        return np.array([(e.label, predictions[e.id]) for e in dataset.examples], np.float64).reshape(-1, 2)

    def figures(self, values) -> dict[str, float]:
        return {name: getattr(scores, name)(*values.T) for name in self.measured}

    def said(self, prediction, threshold=None) -> float:
        return prediction

    def same(self, one, other) -> bool:
        """To 1 %, of small numbers to a hundredth: float16 has three digits, whatever a target's unit is."""
        return abs(one - other) < 0.01 * max(1.0, abs(other))

    def misread(self, outputs):
        return {"numbers with the wrong sign": (([-row for row in outputs[0]],), "check what its targets mean")}

    def response(self, prediction, threshold=None) -> dict[str, Any]:
        """{"value"}."""
        return {"value": prediction}

    def shown(self, example, prediction, threshold=None) -> tuple[str, int, int, list[str]]:
        return "", 0, 0, [f"value: {prediction:.4f}"]


def refuse_constant(dataset: Dataset) -> None:
    """Raise a UserError where all targets are one number: nothing can be learnt, no correlation be computed."""
    values = {float(example.label or 0.0) for example in dataset.examples}
    if len(values) < 2:
        raise UserError(
            f"{dataset.source} has one target only, {min(values, default=None)}; there is nothing to learn. Needed are "
            "at least two: check --label-column and --limit"
        )


HEAD = Regress
