"""The teacher: read, built without dropout, and tried on examples before an hour is spent on learning from it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import heads
from configs.errors import UserError
from data.batches import Windows
from data.features import FeatureOptions
from data.tokenize import Tokenizer, read_vocabulary
from distill.config import DistillConfig
from heads import Head
from model import run_folder, weights
from model.heads import HeadModel
from train.evaluate import Evaluator

DEFAULTS = {"window": 384, "stride": 128, "query": 64, "max_answer_tokens": 30}  # of a teacher that is no run folder


@dataclass(frozen=True)
class Teacher:
    """A teacher as it was found."""

    weights: weights.Published
    tokenizer: Tokenizer
    head: Head
    options: FeatureOptions
    max_answer_tokens: int


def read(config: DistillConfig, source: str, head: bool) -> Teacher:
    """A run folder, or published weights. Raises: UserError where it lacks the head that the stages need."""
    is_run = (Path(source) / "best").is_dir()
    info = run_folder.read(Path(source)) if is_run else None
    entry = head_of(config, info, source, head)
    published = weights.load(source, entry)
    if head and (missing := [name for name in entry.shapes(published.config) if name not in published.tensors]):
        raise UserError(
            f"{source} has no {entry.title} head ({missing[0]}): it was not fine-tuned, there is no answer "
            "to learn from. Fine-tune it with train.py and name that run folder, or run --stages general alone"
        )
    stated = DEFAULTS | {"window": min(DEFAULTS["window"], published.config.positions)}
    if info:
        stated = {name: getattr(info, name) for name in DEFAULTS}
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
    return Teacher(published, tokenizer, entry, options, stated["max_answer_tokens"])


def head_of(config: DistillConfig, info: run_folder.RunInfo | None, source: str, needed: bool) -> Head:
    """The teacher's head as its run folder, or its Hugging Face configuration, has it; flags may read data otherwise.

    Raises: UserError where --task names another one, or the labels of published weights have no names.
    """
    found = heads.find(info.task if info else config.task or heads.DEFAULT_TASK)
    flags = {name: getattr(config, name, None) for name in found.takes}
    if info:
        if config.task not in (None, info.task):
            raise UserError(
                f"--task {config.task}: the teacher {source} was trained for --task {info.task}; name another"
            )
        return heads.of_run(info, **flags)
    if not needed:
        return heads.default()  # nothing asks it: hidden states and attention are all that is learnt
    head = heads.find(config.task or heads.DEFAULT_TASK, (), flags)
    named = weights.load(source).labels
    if head.labels and named and [name.lower() for name in head.labels] != [name.lower() for name in named]:
        raise UserError(
            f"the teacher {source} has the labels {named}, --task {head.task} {list(head.labels)}; their outputs mean "
            "different things. Take a teacher with these labels in this order"
        )
    return head if head.labels or not named else heads.find(head.task, named, head.settings)


def build(head: Head, published: weights.Published, policy: str, fused: bool) -> HeadModel:
    """The teacher as a model; called without a seed, it drops nothing."""
    model = HeadModel(head, replace(published.config, dropout=0.0, attention_dropout=0.0), policy, fused)
    for name, variable in model.names().items():
        if name in published.tensors:
            variable.assign(published.tensors[name])
    return model


def same_vocabulary(teacher: Tokenizer, folder: Path, head: Head, title: str) -> None:
    """Raise a UserError unless a model in `folder` reads text as the teacher does and means the same by its outputs."""
    labels = list(head.labels)
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


def part(dataset: Any, examples: int) -> Any:
    """About so many examples, evenly spread."""
    every = max(1, len(dataset.examples) // examples)
    return replace(dataset, examples=dataset.examples[::every][:examples])


def check(evaluator: Evaluator, tokenizer: Tokenizer, margin: float, source: str) -> dict[str, float]:
    """The teacher's figures on the evaluator's examples: its metrics, "chance_f1" (or whatever the head's score is
    called), "questions", "unknown_percent".

    Chance is what random logits score on the same examples. Raises: UserError when the teacher is not `margin` points
    above it, or is better by as much if its head is read in another way.
    """
    head, dataset, features = evaluator.head, evaluator.dataset, evaluator.features
    outputs = evaluator.logits()

    def scored(values) -> dict[str, float]:
        return head.metrics(dataset, head.decode(features, dataset, values))

    random = np.random.default_rng(0)
    noise = [[random.standard_normal(np.shape(row)).astype(np.float32) for row in rows] for rows in outputs]
    own, chance, name = scored(outputs), scored(noise), head.score
    unknown = 100 * _share_unknown(features, tokenizer)
    figures = {key: value for key, value in own.items() if key != "total"} | {
        f"chance_{name}": chance[name], "questions": float(len(dataset.examples)), "unknown_percent": unknown,
    }  # fmt: skip
    shown = ", ".join(f"{title(key)} {value:.1f}" for key, value in own.items() if key not in ("total", "threshold"))
    told = (
        f"on {len(dataset.examples)} questions of {dataset.source} the teacher {source} has {shown}; "
        f"chance is {title(name)} {chance[name]:.1f}; {unknown:.1f} % of the tokens are unknown words"
    )
    for wrong, (values, cure) in head.misread(outputs).items():
        other = scored(values)[name]
        figures[f"other_{name}"] = max(other, figures.get(f"other_{name}", other))
        if other > own[name] + margin:
            raise UserError(f"{told}; with {wrong} it has {title(name)} {other:.1f}: {cure}")
    if own[name] < chance[name] + margin:
        raise UserError(
            f"{told}. A student cannot learn from that: check that weights and vocab.txt belong together and that the "
            "data is what the teacher was trained for; --check-margin sets how much better it must be"
        )
    return figures


def title(metric: str) -> str:
    """A metric's name for people."""
    return {"exact": "EM", "f1": "F1"}.get(metric, metric)


def _share_unknown(features: Windows, tokenizer: Tokenizer) -> float:
    return float(np.mean(features.pieces() == tokenizer.unk_id))
