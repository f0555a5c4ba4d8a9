"""A vector for a text (Sentence-BERT, Reimers & Gurevych 2019, arXiv 1908.10084): pooled, of length 1, no weights.

Trained on pairs of texts with a similarity; two texts are as similar as the cosine of their vectors.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from configs.errors import UserError
from data import glue, scores, sentences, sequences
from data.sentences import Dataset
from data.windows import bounds
from heads import pooling
from heads.head import Output
from heads.sentence import SECOND, TEXT, SentenceHead

LEAST = 1e-12  # of a vector's length, as transformers and torch have it


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    vectors: tuple[np.ndarray, ...]  # float32 [H] of each text, of length 1
    similarity: float | None  # cosine, -1 to 1, where there are two


class Embed(SentenceHead):
    """H values a sequence. A training example is two windows, side by side."""

    title = "embedding"
    tasks: ClassVar = ("embed",)
    takes: ClassVar = {
        "pooling": "mean", "text_column": "sentence1", "second_column": "sentence2", "label_column": "score",
        "scale": 1.0,  # what a similarity of 1 is called in the data, found by `fit`
    }  # fmt: skip
    together: ClassVar = 2
    score = "spearman"
    needs = "a text, or two to compare"
    route, invites = "embed", "Compare two texts"
    fields: ClassVar = {
        "text": TEXT._replace(about="the text"),
        "second": SECOND._replace(about="a second one to compare it with", sample="She wrote code before others did."),
    }  # fmt: skip
    gives: ClassVar = {"embedding": "numbers", "second_embedding": "numbers?", "similarity": "number?"}
    number: ClassVar = True

    def __init__(self, task, labels=(), settings=None):
        super().__init__(task, labels, settings)
        if self.settings["pooling"] not in pooling.POOLINGS:
            raise UserError(
                f"pooling {self.settings['pooling']!r} is not known; there are {', '.join(pooling.POOLINGS)}"
            )

    # --- data

    def read(self, source, *, limit=None, split="train") -> Dataset:
        if source.startswith("tfds:"):
            return glue.read("stsb", source, limit=limit, split=split)
        if not self.settings["second_column"]:
            raise UserError("--task embed learns from pairs: name the second text's column with --second-column")
        return super().read(source, limit=limit, split=split)

    def fit(self, dataset):
        """With the scale of the similarities: 1 where they lie within -1 and 1, else the largest (STS-B: 5)."""
        sentences.differ(dataset)
        largest = max(abs(float(e.label)) for e in dataset.examples)
        return type(self)(self.task, (), self.settings | {"scale": largest if largest > 1 else 1.0})

    def featurise(self, dataset, tokenizer, options, cache_dir=None, progress=None) -> sequences.Sequences:
        """One window a text; both of a pair follow each other."""
        if not dataset.examples:
            raise UserError(f"{dataset.source}: no examples to make features from")
        pairs = [(place, text) for place, e in enumerate(dataset.examples) for text in (e.first, e.second) if text]
        together = 2 if len(pairs) == 2 * len(dataset.examples) else 1  # single texts are embedded, not learnt from
        targets = [float(dataset.examples[place].label or 0.0) / self.settings["scale"] for place, _ in pairs]
        texts = [text for _, text in pairs]
        found = sequences.of_texts(
            [str(place) for place, _ in pairs], texts, [""] * len(texts), tokenizer, options.window, progress
        )
        labels = np.array(targets, np.float32)[::together]
        return replace(
            found, examples=[e.id for e in dataset.examples], example=np.array([p for p, _ in pairs], np.int32),
            labels={"targets": labels}, together=together,
        )  # fmt: skip

    # --- model

    def shapes(self, config) -> dict[str, tuple[int, ...]]:
        return {}

    def outputs(self, hidden) -> tuple[Output, ...]:
        return (Output("embedding", "sequence", hidden),)

    def forward(self, weights, x, padding_mask, drop):
        import tensorflow as tf

        vector = pooling.pool(x, padding_mask, self.settings["pooling"])  # [B, H]
        length = tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(vector), axis=-1, keepdims=True), LEAST**2))
        return (vector / length,)

    def loss(self, outputs, batch):
        """Squared error of the cosine. outputs: ([2 B, H],), all first texts before all second ones."""
        import tensorflow as tf

        return tf.square(_cosine(outputs[0]) - batch["targets"])

    def soft_loss(self, student, teacher, batch, cross_entropy):
        """Squared difference of the two cosines, for any widths; for equal ones the angle between the vectors, too."""
        import tensorflow as tf

        mine, theirs = student[0], tf.cast(teacher[0], tf.float32)
        loss = tf.square(_cosine(mine) - _cosine(theirs))  # [B]
        if mine.shape[-1] == theirs.shape[-1]:
            angle = 1.0 - tf.reduce_sum(mine * theirs, axis=-1)  # [2 B]
            loss += tf.reduce_mean(tf.stack(tf.split(angle, 2)), axis=0)
        return loss

    def tail(self, writer, tensors, x, layout) -> None:
        from onnx import TensorProto

        mean = pooling.pooled(writer, x, layout, self.settings["pooling"])
        wide = writer.op("head/cast", "Cast", [mean], to=TensorProto.FLOAT)
        axis = writer.weight("head/last_axis", np.array([-1]), TensorProto.INT64)
        least = writer.weight("head/least_length", np.array(LEAST), TensorProto.FLOAT)
        square = writer.op("head/square", "Mul", [wide, wide])
        total = writer.op("head/total", "ReduceSum", [square, axis], keepdims=1)
        root = writer.op("head/root", "Sqrt", [total])
        length = writer.op("head/norm", "Max", [root, least])
        writer.op("head/embedding", "Div", [wide, length], "embedding")

    # --- answers

    def decode(self, features, dataset, outputs) -> dict[str, Any]:
        edges = bounds(features.example, len(dataset.examples))
        found = {}
        for place, example in enumerate(dataset.examples):
            vectors = tuple(np.asarray(row) for row in outputs[0][edges[place] : edges[place + 1]])
            similarity = float(vectors[0].astype(np.float64) @ vectors[1]) if len(vectors) == 2 else None
            found[example.id] = Embedding(vectors, similarity)
        return found

    def scores(self, dataset, predictions, threshold=None) -> np.ndarray:
        """[pairs, 2] similarity stated and found."""
        pairs = [(e.label, predictions[e.id].similarity) for e in dataset.examples]
        return np.nan_to_num(np.array(pairs, np.float64).reshape(-1, 2))

    def figures(self, values) -> dict[str, float]:
        return scores.correlations(*values.T)

    def said(self, prediction, threshold=None) -> Any:
        if prediction.similarity is not None:
            return prediction.similarity
        return prediction.vectors[0].tolist()

    def same(self, one, other) -> bool:
        """Similarities to a hundredth; vectors whose cosine is 0.999 or more."""
        if isinstance(one, float):
            return abs(one - other) < 0.01
        return float(np.dot(one, other)) >= 0.999

    # --- serving

    def response(self, prediction, threshold=None) -> dict[str, Any]:
        """{"embedding": [H numbers]}, or for two texts {"embedding", "second_embedding", "similarity"}."""
        names = ("embedding", "second_embedding")
        found: dict[str, Any] = {n: v.tolist() for n, v in zip(names, prediction.vectors, strict=False)}
        return found if prediction.similarity is None else found | {"similarity": prediction.similarity}

    def shown(self, example, prediction, threshold=None) -> tuple[str, int, int, list[str]]:
        if prediction.similarity is not None:
            return "", 0, 0, [f"similarity: {prediction.similarity:.4f}"]
        vector = prediction.vectors[0]
        return "", 0, 0, [f"vector of {len(vector)}: {', '.join(f'{value:.4f}' for value in vector[:8])} ..."]


def _cosine(vectors):
    """[2 B, H] of length 1 -> [B]."""
    import tensorflow as tf

    first, second = tf.split(vectors, 2)
    return tf.reduce_sum(first * second, axis=-1)


HEAD = Embed
