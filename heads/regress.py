"""A number for one text or two (STS-B, a user's own CSV): the classifier's layers with a single output."""

from typing import Any, ClassVar

import numpy as np

from data import scores, sentences
from heads.classify import Classify
from heads.head import Output


class Regress(Classify):
    """One value a sequence, learnt by its squared error."""

    title = "regression"
    tasks: ClassVar = ("glue/stsb", "csv/number")
    takes: ClassVar = {"text_column": "text", "second_column": "", "label_column": "target"}
    route, invites = "regress", "Put a number to a text"
    gives: ClassVar = {"value": "number"}
    number: ClassVar = True

    def __init__(self, task, labels=(), settings=None):
        super().__init__(task, labels, settings)
        self.score = "spearman"

    def fit(self, dataset):
        sentences.differ(dataset)
        return self

    def featurise(self, dataset, tokenizer, options, cache_dir=None, progress=None):
        targets = np.array([e.label or 0.0 for e in dataset.examples], np.float32)
        return self.windows(dataset, tokenizer, options, progress, {"targets": targets})

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
        return scores.correlations(*values.T)

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


HEAD = Regress
