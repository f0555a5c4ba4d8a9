"""The encoder alone: a vector for every token, nothing learnt. For `export/keras_layer.py`, and whoever builds on it.

    python export.py --run runs/student --task encode --out engines/encoder --dev texts.txt
"""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from configs.errors import UserError
from data.sentences import Dataset, Example
from data.squad import clean
from data.tables import read_text
from heads.head import Head, Output
from heads.sentence import TEXT, SentenceHead


class Encode(SentenceHead):
    """H values a token, as the last layer gives them."""

    title, tasks = "encoding", ("encode",)
    score = "norm"
    writes = ()
    route, invites = "encode", "Encode a text"
    fields: ClassVar = {"text": TEXT._replace(about="the text")}
    gives: ClassVar = {"encoded": "json"}

    def read(self, source, *, limit=None, split="train") -> Dataset:
        """A file of text; every line that is not blank is an example."""
        lines = enumerate(read_text(Path(source), "a file of text with an example a line").split("\n"), 1)
        found = [Example(str(number), clean(line.strip())) for number, line in lines if line.strip()][:limit]
        if not found:
            raise UserError(f"{source} has no line of text; needed is one at least")
        return Dataset(found, source)

    def fit(self, dataset):
        raise UserError("--task encode learns nothing: train another task, and export its run with --task encode")

    def featurise(self, dataset, tokenizer, options, cache_dir=None, progress=None):
        return self.windows(dataset, tokenizer, options, progress, {})

    def augment(self, ways, dataset, candidates, **settings):
        return Head.augment(self, ways, dataset, candidates, **settings)  # nothing is learnt, so nothing is varied

    def shapes(self, config) -> dict[str, tuple[int, ...]]:
        return {}

    def outputs(self, hidden) -> tuple[Output, ...]:
        return (Output("encoded", "token", hidden),)

    def forward(self, weights, x, padding_mask, drop):
        return (x,)

    def loss(self, outputs, batch):
        """There is nothing to be wrong about: 0 for every row."""
        import tensorflow as tf

        return tf.zeros(tf.shape(outputs[0])[0])

    def tail(self, writer, tensors, x, layout) -> None:
        from onnx import TensorProto

        writer.op("head/encoded", "Cast", [x], "encoded", to=TensorProto.FLOAT)

    def decode(self, features, dataset, outputs) -> dict[str, Any]:
        return {e.id: np.asarray(row) for e, row in zip(dataset.examples, outputs[0], strict=True)}

    def scores(self, dataset, predictions, threshold=None) -> np.ndarray:
        """[texts, 1] mean length of a token's vector: no quality, there is none without labels."""
        return np.array([[np.linalg.norm(predictions[e.id], axis=1).mean()] for e in dataset.examples])

    def figures(self, rows) -> dict[str, float]:
        return {"norm": float(rows.mean())}

    def said(self, prediction, threshold=None) -> Any:
        return prediction.tolist()

    def same(self, one, other) -> bool:
        """The vectors of a text, all together, point the same way to a cosine of 0.999."""
        a, b = np.ravel(one), np.ravel(other)
        return float(a @ b) >= 0.999 * float(np.linalg.norm(a) * np.linalg.norm(b))

    def response(self, prediction, threshold=None) -> dict[str, Any]:
        """{"encoded": [[H numbers] of every token, [CLS] and [SEP] included]}."""
        return {"encoded": prediction.tolist()}

    def shown(self, example, prediction, threshold=None) -> tuple[str, int, int, list[str]]:
        return "", 0, 0, [f"{len(prediction)} tokens, a vector of {prediction.shape[1]} each"]


HEAD = Encode
