"""A made-up head, all that it takes: yes or no for a text, from one number on its mean vector. See test_heads.py."""

from pathlib import Path
from typing import ClassVar

import numpy as np

from data import scores, sequences
from data.sentences import Dataset, Example
from heads import pooling
from heads.head import Head, Output, text_of


class Yes(Head):
    """Files have a line a text: yes or no, a tab, the text."""

    title, tasks = "yes or no", ("yes",)
    score = "accuracy"
    needs: ClassVar = "a text"

    def read(self, source, *, limit=None, split="train"):
        lines = [line.split("\t") for line in Path(source).read_text(encoding="utf-8").splitlines()][:limit]
        return Dataset([Example(str(at), text, "", label) for at, (label, text) in enumerate(lines)], source)

    def featurise(self, dataset, tokenizer, options, cache_dir=None, progress=None):
        targets = np.array([e.label == "yes" for e in dataset.examples], np.float32)
        ids, texts = zip(*((e.id, e.first) for e in dataset.examples), strict=True)
        nothing = [""] * len(texts)
        labels = {"targets": targets}
        return sequences.of_texts(list(ids), list(texts), nothing, tokenizer, options.window, progress, labels=labels)

    def texts(self, dataset):
        return [e.first for e in dataset.examples]

    def shapes(self, config):
        return {"yes.kernel": (config.hidden, 1), "yes.bias": (1,)}

    def outputs(self, hidden):
        return (Output("yes_logits", "sequence", 1),)

    def forward(self, weights, x, padding_mask, drop):
        return (drop(pooling.pool(x, padding_mask, "mean")) @ weights["yes.kernel"] + weights["yes.bias"],)

    def loss(self, outputs, batch):
        import tensorflow as tf

        return tf.nn.sigmoid_cross_entropy_with_logits(batch["targets"], outputs[0][:, 0])

    def tail(self, writer, tensors, x, layout):
        mean = pooling.pooled(writer, x, layout, "mean")
        pooling.dense(writer, "head/yes_logits", mean, tensors["yes.kernel"], tensors["yes.bias"], "yes", "yes_logits")

    def decode(self, features, dataset, outputs):
        return {e.id: bool(row[0] > 0) for e, row in zip(dataset.examples, outputs[0], strict=True)}

    def scores(self, dataset, predictions, threshold=None):
        return np.array([(e.label == "yes", predictions[e.id]) for e in dataset.examples], np.float64)

    def figures(self, rows):
        return {"accuracy": scores.accuracy(*rows.T)}

    def said(self, prediction, threshold=None):
        return prediction

    def example(self, fields, place=0):
        return Example(str(place), text_of(fields, "text", place, self.needs))

    def dataset(self, examples):
        return Dataset(examples, "the texts given")

    def response(self, prediction, threshold=None):
        return {"yes": prediction}


HEAD = Yes
