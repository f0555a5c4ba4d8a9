"""EM and F1 of a model on questions: while training, and alone as `python -m train.evaluate --run DIR --dev FILE`."""

import json
from dataclasses import dataclass
from pathlib import Path

import train.environment  # noqa: F401  isort: skip - before TensorFlow

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from configs import command
from configs.errors import UserError
from configs.options import setting
from data import batches, squad
from data.answers import Prediction, best_answers, texts
from data.features import FeatureOptions, Features, featurise
from data.metric import score
from data.tokenize import Tokenizer
from model import run_folder, weights
from model.heads import SpanModel

ROWS = 64  # windows a forward pass


class Evaluator:
    """Answers a set of questions with a model as it is when called.

    Args:
        model: a `SpanModel`.
        dataset, features: the questions and their windows.
        jit: compile the forward pass with XLA (needed where the model's attention is fused).
    """

    def __init__(
        self, model, dataset: squad.Dataset, features: Features, *, max_answer_tokens=30, jit=False, buckets=4
    ):
        self.dataset, self.features, self.max_answer_tokens = dataset, features, max_answer_tokens
        edges = batches.edges(features.length, most=buckets, window=int(features.length.max(initial=32)))
        self.plan = batches.plan(features.length, ROWS, edges, shuffle=False)
        self._forward = tf.function(
            lambda batch: model(batch["token_ids"], batch["segment_ids"], batch["padding_mask"]),
            autograph=False,
            jit_compile=jit or None,
        )

    @property
    def shapes(self) -> set[int]:
        """Padded lengths; under XLA each is compiled once."""
        return {pad_to for pad_to, _ in self.plan}

    def logits(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Start and end logits of every window: float32 arrays of the window's length, in the order of the features."""
        start: list = [None] * len(self.features)
        end: list = [None] * len(self.features)
        every = batches.batches(self.features, self.plan)
        for batch in tqdm(every, "answer dev", len(self.plan), unit="batch", leave=False, mininterval=1.0):
            results = self._forward(
                {name: tf.constant(batch[name]) for name in ("token_ids", "segment_ids", "padding_mask")}
            )
            first, last = (result.numpy() for result in results)  # [ROWS, S] float32
            for place, row in enumerate(batch["row"]):
                if row >= 0:
                    length = self.features.length[row]
                    start[row], end[row] = first[place, :length], last[place, :length]
        return start, end

    def predictions(self) -> dict[str, Prediction]:
        """Question id -> best answer, before any no-answer threshold."""
        start, end = self.logits()
        return best_answers(self.features, self.dataset, start, end, max_answer_tokens=self.max_answer_tokens)

    def __call__(self) -> dict[str, float]:
        """{"exact", "f1", "total"}; for SQuAD v2.0 at the threshold with the best F1, which is "threshold"."""
        return score(self.dataset, self.predictions())


@dataclass(frozen=True)
class EvaluateConfig:
    """Score the best weights of a run folder on a set of questions."""

    run: str = setting(required=True, help="run folder")
    dev: str = setting(required=True, help="questions: SQuAD .json or .json.gz, tfds:squad, builtin:dev-facts ...")
    predictions: str | None = setting(None, help="file to write answers to, in the official format {id: text}")
    limit: int | None = setting(None, least=1, help="take so many questions only")


def main(config: EvaluateConfig) -> dict:
    folder = Path(config.run)
    info = run_folder.read(folder)
    published = weights.load(str(folder))
    if "span.kernel" not in published.tensors:
        raise UserError(f"{folder} has no span head: it was not fine-tuned for question answering")
    model = SpanModel(published.config)
    for name, variable in model.names().items():
        variable.assign(published.tensors[name])
    dataset = squad.read(config.dev, limit=config.limit, split="dev")
    tokenizer = Tokenizer.from_config(info.tokenizer, folder / "vocab.txt")
    features = featurise(dataset, tokenizer, FeatureOptions(info.window, info.stride, info.query))
    predictions = Evaluator(model, dataset, features, max_answer_tokens=info.max_answer_tokens).predictions()
    threshold = info.no_answer_threshold if dataset.version == "2.0" else None
    if config.predictions:
        Path(config.predictions).write_text(
            json.dumps(texts(predictions, threshold), ensure_ascii=False), encoding="utf-8"
        )
    metrics = score(dataset, predictions, threshold)
    print(", ".join(f"{name} {value:.2f}" for name, value in metrics.items()))
    return {"out": str(folder), "metrics": metrics}


if __name__ == "__main__":
    command.run("train.evaluate", EvaluateConfig, main)
