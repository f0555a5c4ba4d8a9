"""The teacher: read, built without dropout, and tried on questions before an hour is spent on learning from it."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configs.errors import UserError
from data import squad
from data.answers import best_answers
from data.features import FeatureOptions, Features
from data.metric import score
from data.tokenize import Tokenizer, read_vocabulary
from distill.config import DistillConfig
from model import run_folder, weights
from model.heads import SpanModel
from train.evaluate import Evaluator

DEFAULTS = {"window": 384, "stride": 128, "query": 64, "max_answer_tokens": 30}  # of a teacher that is no run folder


@dataclass(frozen=True)
class Teacher:
    """A teacher as it was found."""

    weights: weights.Published
    tokenizer: Tokenizer
    labels: list[str]
    options: FeatureOptions
    max_answer_tokens: int


def read(config: DistillConfig, source: str, head: bool) -> Teacher:
    """A run folder, or published weights. Raises: UserError where it lacks the head that the stages need."""
    published = weights.load(source)
    if head and "span.kernel" not in published.tensors:
        raise UserError(
            f"{source} has no question answering head (span.kernel): it was not fine-tuned, there is no answer to "
            "learn from. Fine-tune it with train.py and name that run folder, or run --stages general alone"
        )
    stated, labels = DEFAULTS | {"window": min(DEFAULTS["window"], published.config.positions)}, []
    if published.folder == Path(source) and (Path(source) / "best").is_dir():
        info = run_folder.read(Path(source))
        stated = {name: getattr(info, name) for name in DEFAULTS}
        labels = info.labels
    stated |= {name: getattr(config, name) for name in DEFAULTS if getattr(config, name) is not None}
    if stated["window"] > published.config.positions:
        raise UserError(
            f"windows of {stated['window']} tokens need as many position vectors, {source} has "
            f"{published.config.positions}; choose --window {published.config.positions} or less"
        )
    vocabulary = published.folder / "vocab.txt"
    tokenizer = Tokenizer.from_config(published.tokenizer, vocabulary)
    if tokenizer.size > published.config.vocabulary:
        raise UserError(
            f"{vocabulary} has {tokenizer.size} pieces, the teacher's embeddings have {published.config.vocabulary} "
            "rows; take the vocab.txt that belongs to the weights"
        )
    broken = [name for name, value in published.tensors.items() if not np.isfinite(value).all()]
    if broken:
        raise UserError(f"{source}: {broken[0]} and {len(broken) - 1} more are not finite; the teacher is damaged")
    options = FeatureOptions(stated["window"], stated["stride"], stated["query"])
    return Teacher(published, tokenizer, labels, options, stated["max_answer_tokens"])


def build(published: weights.Published, policy: str, fused: bool) -> SpanModel:
    """The teacher as a model; called without a seed, it drops nothing."""
    model = SpanModel(replace(published.config, dropout=0.0, attention_dropout=0.0), policy, fused)
    for name, variable in model.names().items():
        if name in published.tensors:
            variable.assign(published.tensors[name])
    return model


def same_vocabulary(teacher: Tokenizer, folder: Path, labels: list[str], title: str) -> None:
    """Raise a UserError unless a model in `folder` reads text as the teacher does and means the same by its outputs."""
    if (folder / "vocab.txt").is_file():
        ours, theirs = read_vocabulary(folder / "vocab.txt"), read_vocabulary(teacher.vocab_file)
        if ours != theirs:
            pairs = enumerate(zip(ours, theirs, strict=False))
            first = next((line for line, (one, other) in pairs if one != other), None)
            where = f"line {first + 1} is {ours[first]!r} and {theirs[first]!r}" if first is not None else "one goes on"
            raise UserError(
                f"{title} {folder} has another vocabulary than the teacher: {len(ours)} and {len(theirs)} pieces, "
                f"{where}; the same words would be other tokens. Take one that was cut from the teacher's vocabulary"
            )
    if not (folder / "best").is_dir():
        return
    info = run_folder.read(folder)
    if info.tokenizer != teacher.config():
        raise UserError(f"{title} {folder} cuts text as {info.tokenizer}, the teacher as {teacher.config()}")
    if info.labels != labels:
        raise UserError(
            f"{title} {folder} has the labels {info.labels}, the teacher {labels}; their outputs mean different "
            "things. Fine-tune both on the same labels in the same order"
        )


def part(dataset: squad.Dataset, questions: int) -> squad.Dataset:
    """About so many questions, evenly spread."""
    every = max(1, len(dataset.examples) // questions)
    return replace(dataset, examples=dataset.examples[::every][:questions])


def check(evaluator: Evaluator, tokenizer: Tokenizer, margin: float, source: str) -> dict[str, float]:
    """The teacher's figures on the evaluator's questions: {"exact", "f1", "chance_f1", "swapped_f1", "unknown"}.

    Chance is what random logits score on the same questions. Raises: UserError when the teacher is not `margin` F1
    points above it, or is better with start and end exchanged.
    """
    dataset, features = evaluator.dataset, evaluator.features
    start, end = evaluator.logits()

    def scored(first, last) -> dict[str, float]:
        return score(
            dataset, best_answers(features, dataset, first, last, max_answer_tokens=evaluator.max_answer_tokens)
        )

    random = np.random.default_rng(0)
    noise = [[random.standard_normal(len(row)).astype(np.float32) for row in start] for _ in range(2)]
    own, swapped, chance = scored(start, end), scored(end, start), scored(*noise)
    unknown = 100 * _share_unknown(features, tokenizer)
    figures = {
        "exact": own["exact"], "f1": own["f1"], "chance_f1": chance["f1"], "swapped_f1": swapped["f1"],
        "questions": float(len(dataset.examples)), "unknown_percent": unknown,
    }  # fmt: skip
    told = (
        f"on {len(dataset.examples)} questions of {dataset.source} the teacher {source} has EM {own['exact']:.1f} and "
        f"F1 {own['f1']:.1f}; chance is F1 {chance['f1']:.1f}; {unknown:.1f} % of the tokens are unknown words"
    )
    if swapped["f1"] > own["f1"] + margin:
        raise UserError(
            f"{told}; with start and end exchanged it has F1 {swapped['f1']:.1f}: its head has another label order "
            "(column 0 is the start here). Exchange the columns of span.kernel and span.bias"
        )
    if own["f1"] < chance["f1"] + margin:
        raise UserError(
            f"{told}. A student cannot learn from that: check that weights and vocab.txt belong together and that the "
            "data is what the teacher was trained for; --check-margin sets how much better it must be"
        )
    return figures


def _share_unknown(features: Features, tokenizer: Tokenizer) -> float:
    return float(np.mean(np.concatenate([features.context_tokens, features.question_tokens]) == tokenizer.unk_id))
