"""Scores of a model on examples: while training, and alone as `python -m train.evaluate --run DIR --dev FILE`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import train.environment  # noqa: F401  isort: skip - before TensorFlow

import numpy as np

import heads
from configs import command
from configs.errors import UserError
from configs.options import setting
from data import batches
from data.features import FeatureOptions
from data.tokenize import Tokenizer
from model import run_folder, weights
from model.heads import HeadModel
from train.config import ColumnConfig
from train.forward import IDS, Forward

ROWS = 64  # windows a forward pass


class Evaluator:
    """Predicts a set of examples with a model as it is when called.

    Args:
        model: a `HeadModel`.
        dataset, features: the examples and their windows.
        jit: compile the forward pass with XLA (needed where the model's attention is fused).
    """

    def __init__(self, model, dataset: Any, features: batches.Windows, *, jit=False, buckets=4):
        self.head, self.dataset, self.features = model.head, dataset, features
        edges = batches.edges(features.length, most=buckets, window=int(features.length.max(initial=32)))
        self.plan = batches.plan(features.length, ROWS, edges, shuffle=False)
        self.outputs = self.head.outputs(model.config.hidden)
        self._forward = Forward(lambda batch: model(*(batch[name] for name in IDS)), jit)

    @property
    def shapes(self) -> set[int]:
        """Padded lengths; under XLA each is compiled once."""
        return {pad_to for pad_to, _ in self.plan}

    def logits(self) -> tuple[list[np.ndarray], ...]:
        """Of each output of the head: float32 arrays of all windows, without padding, in the order of the features."""
        found: tuple[list, ...] = tuple([None] * len(self.features) for _ in self.outputs)
        length = self.features.length
        for rows, results in self._forward(self.features, self.plan, "answer dev"):
            for output, values, kept in zip(self.outputs, results, found, strict=True):  # [ROWS, S, ...] or [ROWS, ...]
                for place, row in enumerate(rows):
                    if row >= 0:
                        kept[row] = values[place, : length[row]] if output.per == "token" else values[place]
        return found

    def predictions(self) -> dict[str, Any]:
        """Example's id -> prediction, before any no-answer threshold."""
        return self.head.decode(self.features, self.dataset, self.logits())

    def __call__(self) -> dict[str, float]:
        """The head's metrics, in percent, and "total"; for SQuAD v2.0 at the best "threshold", which is among them."""
        return self.head.metrics(self.dataset, self.predictions())


@dataclass(frozen=True)
class EvaluateConfig(ColumnConfig):
    """Score the best weights of a run folder on a set of examples."""

    run: str = setting(required=True, help="run folder")
    dev: str = setting(required=True, help="examples of the run's task, as train.py --dev takes them")
    predictions: str | None = setting(None, help="file to write predictions to, as JSON: {id: prediction}")
    limit: int | None = setting(None, least=1, help="take so many examples only")


def main(config: EvaluateConfig) -> dict:
    folder = Path(config.run)
    info = run_folder.read(folder)
    head = heads.of_run(
        info, text_column=config.text_column, second_column=config.second_column, label_column=config.label_column
    )
    published = weights.load(str(folder), head)
    if missing := [name for name in head.shapes(published.config) if name not in published.tensors]:
        raise UserError(f"{folder} lacks {missing[0]}: it was not fine-tuned for --task {head.task}")
    model = HeadModel(head, published.config)
    for name, variable in model.names().items():
        variable.assign(published.tensors[name])
    dataset = head.read(config.dev, limit=config.limit, split="dev")
    tokenizer = Tokenizer.from_config(info.tokenizer, folder / "vocab.txt")
    features = head.featurise(dataset, tokenizer, FeatureOptions(info.window, info.stride, info.query))
    predictions = Evaluator(model, dataset, features).predictions()
    threshold = info.no_answer_threshold if dataset.version == "2.0" else None
    if config.predictions:
        said = {name: head.said(prediction, threshold) for name, prediction in predictions.items()}
        Path(config.predictions).write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
    metrics = head.metrics(dataset, predictions, threshold)
    print(", ".join(f"{name} {value:.2f}" for name, value in metrics.items()))
    return {"out": str(folder), "metrics": metrics}


if __name__ == "__main__":
    command.run("train.evaluate", EvaluateConfig, main)
