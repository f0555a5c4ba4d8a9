"""The answer to a question as a span of its passage (SQuAD): for every token, how likely it starts and ends there."""

from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np

from data import metric, spans, squad, written
from data.answers import Prediction, best_answers, texts
from data.features import Features, featurise
from heads.head import Field, Head, Output, text_of

PASSAGE = (
    "Ada Lovelace was an English mathematician. In 1843 she published notes on the Analytical Engine, a machine "
    "proposed by Charles Babbage, and in them a method to compute Bernoulli numbers with it."
)


class Span(Head):
    """Two numbers a token. With SQuAD version 2.0 [CLS] stands for "no answer", and a threshold decides."""

    title, groups = "question answering", "articles"
    tasks: ClassVar = ("squad",)
    takes: ClassVar = {"max_answer_tokens": 30}
    score = "f1"
    writes = (".json",)
    parts: ClassVar = ("question", "context")
    builtin = "builtin:dev-facts"
    architecture = "BertForQuestionAnswering"
    needs = "a question and the passage that it is about"
    route, invites = "answer", "Ask a passage"
    fields: ClassVar = {
        "context": Field("Passage", "the passage that has the answer", long=True, sample=PASSAGE),
        "question": Field("Question", "what is asked", sample="Who proposed the Analytical Engine?"),
    }  # fmt: skip
    gives: ClassVar = {
        "answer": "text", "start": "whole", "end": "whole", "score": "number", "no_answer_score": "number",
        "windows": "whole",
    }  # fmt: skip
    most_runners_up: ClassVar = 20

    # --- data

    def read(self, source, *, limit=None, split="train") -> squad.Dataset:
        return squad.read(source, limit=limit, split=split)

    def featurise(self, dataset, tokenizer, options, cache_dir=None, progress=None) -> Features:
        return featurise(dataset, tokenizer, options, cache_dir=cache_dir, progress=progress)

    def group(self, example) -> str:
        return example.title or example.context  # whole articles: their questions share what is to be known

    def texts(self, dataset) -> list[str]:
        return list(dict.fromkeys(example.context for example in dataset.examples))

    def augment(self, ways, dataset, candidates, **settings):
        return ways.augment(dataset, candidates, **settings)

    def file(self, dataset, kind):
        return written.squad_json(dataset)

    # --- model

    def shapes(self, config) -> dict[str, tuple[int, ...]]:
        return {"span.kernel": (config.hidden, 2), "span.bias": (2,)}

    def outputs(self, hidden) -> tuple[Output, ...]:
        return Output("start_logits", "token"), Output("end_logits", "token")

    def published(self, layout) -> dict[str, str]:
        if layout == "google":  # fine-tuned by run_squad.py
            return {"span.kernel": "cls/squad/output_weights", "span.bias": "cls/squad/output_bias"}
        return {"span.kernel": "qa_outputs.weight", "span.bias": "qa_outputs.bias"}

    def forward(self, weights, x, padding_mask, drop):
        """-> (start, end) float32 [B, S]. No dropout, as published."""
        import tensorflow as tf

        kernel, bias = weights["span.kernel"], weights["span.bias"]
        # Two sums over H and no product: a matrix of two columns would have the float32 output written out first.
        start, end = (tf.reduce_sum(x * kernel[:, column], axis=-1) + bias[column] for column in (0, 1))
        return start, end

    def loss(self, outputs, batch):
        start, end = outputs
        return span_loss(start, end, batch["padding_mask"], batch["start_positions"], batch["end_positions"])

    def soft_loss(self, student, teacher, batch, cross_entropy):
        """Start and end count half each, as in `span_loss`; the classes are the positions of a window."""
        start, end = (cross_entropy(z, t, batch["padding_mask"]) for z, t in zip(student, teacher, strict=True))
        return (start + end) / 2

    def tail(self, writer, tensors, x, layout) -> None:
        """float32: x W + b, whose two columns are the start and the end logits.

        Written as a product and a sum a column: a matrix product 2 wide gains nothing from tensor cores, and
        TensorRT-RTX has none in float32 for compute capability 7.5.
        """
        from onnx import TensorProto

        wide = writer.op("head/cast", "Cast", [x], to=TensorProto.FLOAT)  # rows+[H]
        axis = writer.weight("head/axis", np.array([-1]), TensorProto.INT64)
        for column, word in enumerate(("start", "end")):
            kernel = writer.weight(f"span.kernel.{word}", tensors["span.kernel"][:, column], TensorProto.FLOAT)  # [H]
            bias = writer.weight(f"span.bias.{word}", tensors["span.bias"][column], TensorProto.FLOAT)
            product = writer.op(f"head/{word}/product", "Mul", [wide, kernel])
            total = writer.op(f"head/{word}/sum", "ReduceSum", [product, axis], keepdims=0)  # rows
            writer.op(f"head/{word}_logits", "Add", [total, bias], f"{word}_logits")

    # --- answers

    def decode(self, features, dataset, outputs) -> dict[str, Prediction]:
        return best_answers(features, dataset, *outputs, max_answer_tokens=self.settings["max_answer_tokens"])

    def scores(self, dataset, predictions, threshold=None) -> np.ndarray:
        """[questions, 2] exact match and F1 of each, 0 to 100."""
        said = texts(predictions, threshold if dataset.version == "2.0" else None)
        each = metric.score_each(dataset, said)
        return 100 * np.array([each[example.id] for example in dataset.examples], np.float64).reshape(-1, 2)

    def figures(self, scores) -> dict[str, float]:
        exact, f1 = scores.mean(axis=0)
        return {"exact": float(exact), "f1": float(f1)}

    def metrics(self, dataset, predictions, threshold=None) -> dict[str, float]:
        """For version 2.0 without a threshold at the best one, which is told as "threshold"."""
        return metric.score(dataset, predictions, threshold if dataset.version == "2.0" else None)

    def said(self, prediction, threshold=None) -> str:
        return "" if threshold is not None and prediction.no_answer_score > threshold else prediction.text

    def misread(self, outputs):
        start, end = outputs
        return {
            "start and end exchanged": (
                (end, start),
                "its head has another label order (column 0 is the start here). Exchange the columns of span.kernel "
                "and span.bias",
            )
        }

    # --- serving

    def example(self, fields, place=0) -> squad.Example:
        question, context = (text_of(fields, name, place, self.needs) for name in ("question", "context"))
        return squad.Example(str(place), "", squad.clean(context), squad.clean(question), (), True)

    def dataset(self, examples) -> squad.Dataset:
        return squad.Dataset(examples, "2.0", source="the questions given")

    def response(self, prediction, threshold=None) -> dict[str, Any]:
        """{"answer", "start", "end", "score", "no_answer_score", "windows"}; "answer" is "" for none."""
        none = threshold is not None and prediction.no_answer_score > threshold
        return {
            "answer": "" if none else prediction.text, "start": 0 if none else prediction.start,
            "end": 0 if none else prediction.end, "score": prediction.score,
            "no_answer_score": prediction.no_answer_score, "windows": prediction.windows,
        }  # fmt: skip

    def runners_up(self, features, dataset, outputs, most) -> list[dict[str, Any]]:
        """[{"text", "start", "end", "score"}], from high to low; none overlaps a better one."""
        start, end = outputs
        found = spans.ranked(features, dataset, start, end, 1 + most, self.settings["max_answer_tokens"])
        return [asdict(span) for span in found[1:]]

    def shown(self, example, prediction, threshold=None) -> tuple[str, int, int, list[str]]:
        found = self.response(prediction, threshold)
        against = f"no answer {found['no_answer_score']:+.2f} against it"
        return example.context, found["start"], found["end"], [
            f"answer: {found['answer'] or '(the passage does not say)'}",
            f"score {found['score']:.2f}, {against}, windows {found['windows']}",
        ]  # fmt: skip


def span_loss(start_logits, end_logits, padding_mask, start_positions, end_positions):
    """Mean of the cross-entropies of start and end over the row's real tokens: float32 [B] (google-research/bert).

    Args: logits float32 [B, S]; padding_mask int32 [B, S]; positions int32 [B], 0 ([CLS]) where a window has no answer.
    """
    import tensorflow as tf

    hidden = (1.0 - tf.cast(padding_mask, tf.float32)) * -1e9
    start = tf.nn.sparse_softmax_cross_entropy_with_logits(start_positions, start_logits + hidden)
    end = tf.nn.sparse_softmax_cross_entropy_with_logits(end_positions, end_logits + hidden)
    return (start + end) / 2


HEAD = Span
