"""A class for one text or two (GLUE, a user's own CSV): BERT's pooler on [CLS], then a number for every class."""

from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar

import numpy as np

from configs.errors import UserError
from data import glue, sentences, sequences
from heads import pooling
from heads.head import Output, probabilities
from heads.sentence import SentenceHead

GLUE = tuple(f"glue/{name}" for name, task in glue.TASKS.items() if task.labels)


@dataclass(frozen=True, slots=True)
class Classification:
    label: str
    score: float  # probability of that class, 0 to 1
    probabilities: dict[str, float]  # of every class, in the order of the labels


class Classify(SentenceHead):
    """Logits of C classes a sequence. A text beyond the window is cut off, the longer of two first."""

    title = "classification"
    tasks: ClassVar = (*GLUE, "csv")
    takes: ClassVar = {"text_column": "text", "second_column": "", "label_column": "label"}
    pretrained: ClassVar = ("pooler.kernel", "pooler.bias")
    architecture = "BertForSequenceClassification"
    needs = "a text, and the second one where the task has two"
    route, invites = "classify", "Classify a text"
    gives: ClassVar = {"label": "text", "score": "number", "probabilities": "json"}

    def __init__(self, task, labels=(), settings=None):
        known = glue.TASKS.get(task.removeprefix("glue/")) if "/" in task else None
        super().__init__(task, labels or (known.labels if known else ()), settings)
        self.measured = known.metrics if known else ("accuracy", "macro_f1")
        self.score = self.measured[0]

    # --- data

    def fit(self, dataset):
        """With the classes of a training set, unless the task says what they are."""
        found = sentences.classes(dataset.examples, dataset.source)
        if self.labels:
            sentences.known(dataset, self.labels)
            return self
        return type(self)(self.task, found, self.settings)

    def featurise(self, dataset, tokenizer, options, cache_dir=None, progress=None) -> sequences.Sequences:
        """Raises: UserError for a label that training did not have."""
        sentences.known(dataset, self.labels)
        index = {name: place for place, name in enumerate(self.labels)}
        labels = np.array([index.get(e.label, -1) for e in dataset.examples], np.int32)
        return self.windows(dataset, tokenizer, options, progress, {"labels": labels})

    # --- model

    def shapes(self, config) -> dict[str, tuple[int, ...]]:
        wide, classes = config.hidden, self._classes()
        return {
            "pooler.kernel": (wide, wide), "pooler.bias": (wide,),
            "classifier.kernel": (wide, classes), "classifier.bias": (classes,),
        }  # fmt: skip

    def _classes(self) -> int:
        if not self.labels:
            raise UserError(
                f"--task {self.task} has no labels yet; they come from training data or a run's config.json"
            )
        return len(self.labels)

    def outputs(self, hidden) -> tuple[Output, ...]:
        return (Output("logits", "sequence", self._classes()),)

    def published(self, layout) -> dict[str, str]:
        if layout == "google":  # fine-tuned by run_classifier.py
            pooler, last = "{bert}pooler/dense/{part}", "output_{part}"
            names = {"kernel": ("kernel", "weights"), "bias": ("bias", "bias")}
        else:
            pooler, last = "{bert}pooler.dense.{part}", "classifier.{part}"
            names = {"kernel": ("weight", "weight"), "bias": ("bias", "bias")}
        return {
            f"{stem}.{ours}": theirs.replace("{part}", parts[at])
            for at, (stem, theirs) in enumerate((("pooler", pooler), ("classifier", last)))
            for ours, parts in names.items()
        }

    def forward(self, weights, x, padding_mask, drop):
        import tensorflow as tf

        first = pooling.pool(x, padding_mask, "cls")  # [B, H]
        hidden = tf.tanh(first @ weights["pooler.kernel"] + weights["pooler.bias"])
        return (drop(hidden) @ weights["classifier.kernel"] + weights["classifier.bias"],)  # [B, C]

    def loss(self, outputs, batch):
        """Cross-entropy, as google-research/bert."""
        import tensorflow as tf

        return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["labels"], outputs[0])

    def soft_loss(self, student, teacher, batch, cross_entropy):
        import tensorflow as tf

        return cross_entropy(student[0], teacher[0], tf.ones_like(student[0]))

    def tail(self, writer, tensors, x, layout) -> None:
        first = pooling.pooled(writer, x, layout, "cls")  # A [B, H]
        dense = pooling.dense(writer, "head/pooler", first, tensors["pooler.kernel"], tensors["pooler.bias"], "pooler")
        hidden = writer.op("head/tanh", "Tanh", [dense])
        narrow = writer.op("head/tanh_cast", "Cast", [hidden], to=writer.dtype)
        kernel, bias = tensors["classifier.kernel"], tensors["classifier.bias"]
        pooling.dense(writer, "head/logits", narrow, kernel, bias, "classifier", "logits")

    # --- answers

    def decode(self, features, dataset, outputs) -> dict[str, Any]:
        found = {}
        for example, logits in zip(dataset.examples, outputs[0], strict=True):
            shares = probabilities(logits)
            named = dict(zip(self.labels, shares.tolist(), strict=True))
            best = self.labels[int(np.argmax(shares))]
            found[example.id] = Classification(best, named[best], named)
        return found

    def scores(self, dataset, predictions, threshold=None) -> np.ndarray:
        """[examples, 2] true class and the one found."""
        index = {name: place for place, name in enumerate(self.labels)}
        pairs = [(index[e.label], index[predictions[e.id].label]) for e in dataset.examples]
        return np.array(pairs, np.float64).reshape(-1, 2)

    def figures(self, scores) -> dict[str, float]:
        true, said = scores.T.astype(int)
        return {name: glue.METRICS[name](true, said) for name in self.measured}

    def said(self, prediction, threshold=None) -> Any:
        return prediction.label

    def misread(self, outputs):
        """Classes in another order, as long as there are few."""
        if not 2 <= len(self.labels) <= 4:
            return {}
        cure = "the teacher's labels stand in another order; put classifier.kernel and classifier.bias in this one's"
        return {
            f"classes in the order {', '.join(self.labels[at] for at in order)}": (
                ([row[list(order)] for row in outputs[0]],), cure,
            )
            for order in permutations(range(len(self.labels))) if order != tuple(range(len(self.labels)))
        }  # fmt: skip

    # --- serving

    def response(self, prediction, threshold=None) -> dict[str, Any]:
        """{"label", "score", "probabilities": {label: share}}."""
        return {name: getattr(prediction, name) for name in ("label", "score", "probabilities")}

    def shown(self, example, prediction, threshold=None) -> tuple[str, int, int, list[str]]:
        shares = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])
        return "", 0, 0, [f"label: {prediction.label}", ", ".join(f"{name} {share:.3f}" for name, share in shares[:10])]


HEAD = Classify
