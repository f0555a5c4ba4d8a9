"""From settings to a job for the loop: weights, tokeniser, windows, model, step; fine-tuning and measuring share it."""

import dataclasses
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import train.environment  # isort: skip - before TensorFlow

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import heads
from configs import command
from configs.errors import UsageError, UserError
from data import batches
from data.features import FeatureOptions
from data.tokenize import Tokenizer
from heads import Head
from model import run_folder, weights
from model.config import NAMED, BertConfig
from model.heads import HeadModel
from train import loop, precision
from train.config import RunConfig, TrainConfig
from train.epoch import epoch_batches
from train.evaluate import Evaluator
from train.hardware import Hardware, use_fused_attention, use_xla
from train.optimizer import AdamW, learning_rate
from train.step import Step

Say = Callable[..., None]  # print on the chief, nothing elsewhere


@dataclass
class Prepared:
    """Everything of a run that exists once, however often it is started: `job` makes it ready for the loop."""

    machine: Hardware
    source: weights.Published
    tokenizer: Tokenizer
    train_set: Any  # of the head's kind, as is dev
    features: batches.Windows
    edges: tuple[int, ...]  # padded lengths
    model: HeadModel
    step: Step
    evaluate: Evaluator | None

    def job(self, config: TrainConfig) -> loop.Job:
        """The job of these settings; weights, slots and counters are as at the start of a run with this seed."""
        initialise(self.model, self.source, config.seed)
        self.step.restart(config.seed)
        return loop.Job(
            out=Path(config.out),
            info=describe(config, self.source, self.tokenizer, self.train_set, self.model.head),
            step=self.step,
            weights=self.model.names(),
            extra={},
            batches=lambda epoch, first: epoch_batches(self.features, self.edges, config, self.machine, epoch, first),
            steps_per_epoch=steps_per_epoch(self.features, config),
            epochs=config.epochs,
            evaluate=self.evaluate,
            eval_every=config.eval_every,
            save_every=config.save_every,
            log_every=config.log_every,
            score=self.model.head.score,
            chief=self.machine.chief,
            ranks=self.machine.ranks,
            data=self.features.fingerprint(),
        )


def prepare(config: TrainConfig, machine: Hardware, say: Say) -> Prepared:
    """Read, tokenise and build. Raises: UserError or UsageError for whatever of the settings cannot be met."""
    chosen = precision.choose(config.amp, machine.gpu)
    jit, why_jit = use_xla(config.jit, machine.gpu)
    say(f"precision: {chosen.compute} ({chosen.reason})")
    say(f"device: {'GPU' if machine.gpu else 'CPU'}, {machine.replicas} replica(s); xla: {_on(jit)} ({why_jit})")
    if config.batch_size % machine.replicas:
        raise UsageError(
            f"--batch-size {config.batch_size} cannot be split over {machine.replicas} devices; make it a multiple"
        )
    head = heads.of_flags(config)
    train_set = head.read(config.data, limit=config.limit)
    head = head.fit(train_set)
    dev_set = head.read(config.dev, limit=config.dev_limit, split="dev") if config.dev else None
    say(f"task: {head.task}" + (f", labels {', '.join(head.labels)}" if head.labels else ""))
    source = read_weights(config.model, config.vocab, head)
    sizes = trained_sizes(source, config)
    fused, why_attention = use_fused_attention(machine.gpu, jit, chosen, sizes.attention_dropout)
    say(f"attention: {why_attention}")
    tokenizer = read_tokenizer(source, config.vocab)
    options, cache = FeatureOptions(config.window, config.stride, config.query), config.cache
    features = tokenised(head, train_set, tokenizer, options, cache, say, "train")
    dev_features = tokenised(head, dev_set, tokenizer, options, cache, say, "dev") if dev_set else None

    with machine.scope():
        model = HeadModel(head, sizes, chosen.policy, fused, config.recompute)
        step = make_step(model, config, chosen, jit, machine, steps_per_epoch(features, config))
    fresh = [name for name in model.names() if name not in source.tensors]
    say(
        f"weights: {source.source}; {len(source.tensors)} tensors read, left over: {_listed(source.left_over)}; "
        f"random: {_listed(fresh)}"
    )
    edges = batches.edges(features.length, most=config.buckets, window=config.window)
    say(f"data: {len(features)} windows, batches of {config.batch_size} padded to {', '.join(map(str, edges))} tokens")
    evaluate = None
    if dev_set and dev_features is not None and machine.chief:
        lengths = min(config.buckets, 2) if jit else config.buckets  # compiling a third takes longer than it saves
        evaluate = Evaluator(model, dev_set, dev_features, jit=jit, buckets=lengths)
    if jit:
        also = f" and {len(evaluate.shapes)} of the evaluation" if evaluate else ""
        say(f"xla: compiles {len(edges)} shapes of the step{also}, each when it first comes")
    return Prepared(machine, source, tokenizer, train_set, features, edges, model, step, evaluate)


def read_weights(model: str, vocab: str | None, head: Head | None = None) -> weights.Published:
    """The weights that --model names, a head's with them where they are there, or random ones of a named size."""
    if model == "minilm-l6":
        from scripts.fetch_weights import minilm_folder

        return weights.load(str(minilm_folder()), head)
    if model in NAMED:
        if not vocab:
            raise UsageError(f"--model {model} is a size with random weights; it needs a vocabulary: --vocab FILE")
        return weights.Published(NAMED[model], {}, [], Path(vocab).parent, {"lowercase": True}, f"{model}, random")
    return weights.load(model, head)


def read_tokenizer(source: weights.Published, vocab: str | None) -> Tokenizer:
    """The tokeniser of the weights. Raises: UserError when the vocabulary is missing or larger than the embeddings."""
    path = Path(vocab) if vocab else source.folder / "vocab.txt"
    if not path.is_file():
        raise UserError(f"no vocabulary at {path}; name one with --vocab FILE")
    tokenizer = Tokenizer.from_config(source.tokenizer, path)
    if tokenizer.size > source.config.vocabulary:
        raise UserError(
            f"the vocabulary has {tokenizer.size} pieces, the embeddings of {source.source} have "
            f"{source.config.vocabulary} rows; take the vocab.txt that belongs to the weights"
        )
    return tokenizer


def tokenised(
    head: Head, dataset: Any, tokenizer: Tokenizer, options: FeatureOptions, cache: str | None, say: Say, title: str
) -> Any:
    """Featurise with a progress bar, and say what was left out."""
    if dataset.skipped:
        total = len(dataset.skipped) + len(dataset.examples)
        say(f"{title}: {len(dataset.skipped)} of {total} examples left out, the first is {dataset.skipped[0]}")
    with tqdm(desc=f"tokenise {title}", unit="text", leave=False, mininterval=1.0) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        folder = cache or train.environment.CACHE
        found = head.featurise(dataset, tokenizer, options, cache_dir=folder, progress=progress)
    if cut := getattr(found, "cut", 0):
        say(f"{title}: {cut} of {len(dataset.examples)} texts are longer than --window {options.window} and were cut")
    return found


def trained_sizes(source: weights.Published, config: TrainConfig) -> BertConfig:
    """The source's sizes with the dropout rates of this run."""
    if config.window > source.config.positions:
        raise UserError(
            f"--window {config.window} needs as many position vectors, {source.source} has {source.config.positions}"
        )
    rates = {"dropout": config.dropout, "attention_dropout": config.attention_dropout}
    return dataclasses.replace(source.config, **{name: rate for name, rate in rates.items() if rate is not None})


def initialise(model: HeadModel, source: weights.Published, seed: int) -> None:
    """Fill the model: the source's tensors, and for the rest values drawn by seed and name.

    Kernels and embeddings: normal, deviation 0.02, cut at twice that (BERT's); scales 1; biases and offsets 0.
    Raises: UserError when the source holds numbers that are not finite.
    """
    broken = [name for name, value in source.tensors.items() if not np.isfinite(value).all()]
    if broken:
        raise UserError(f"{source.source}: {_listed(broken)} not finite; the checkpoint is damaged")
    for name, variable in model.names().items():
        if name in source.tensors:
            variable.assign(source.tensors[name])
        elif name.endswith((".bias", ".offset")):
            variable.assign(np.zeros(variable.shape, np.float32))
        elif name.endswith(".scale"):
            variable.assign(np.ones(variable.shape, np.float32))
        else:
            drawn = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(variable.shape)
            variable.assign(np.clip(drawn * 0.02, -0.04, 0.04).astype(np.float32))


def steps_per_epoch(features: batches.Windows, config: RunConfig) -> int:
    return -(-len(batches.lengths(features)) // config.batch_size)


def make_step(model: HeadModel, config: TrainConfig, chosen, jit: bool, machine: Hardware, per_epoch: int) -> Step:
    """The compiled step of fine-tuning; made under the strategy's scope."""
    updates = max(1, per_epoch * config.epochs // config.accumulate)
    warmup = int(updates * config.warmup)

    def objective(batch, seed):
        outputs = model(batch["token_ids"], batch["segment_ids"], batch["padding_mask"], seed=seed)
        losses = model.head.loss(outputs, batch)  # [B]
        return {"loss": tf.reduce_sum(losses * batch["weight"])}

    schedule = partial(learning_rate, peak=config.lr, warmup_updates=warmup, total_updates=updates)
    return compiled_step(objective, model.names(), schedule, config, chosen, jit, machine)


def compiled_step(
    objective, variables: dict, schedule, config: RunConfig, chosen, jit: bool, machine: Hardware, parts=("loss",)
) -> Step:
    """A step that learns any objective with the run's optimizer settings; made under the strategy's scope."""
    optimizer = AdamW(variables, schedule, decay=config.weight_decay, bias_correction=config.bias_correction)
    scale = precision.LossScale(
        chosen.scaled,
        config.loss_scale_initial,
        config.loss_scale_growth_interval,
        config.loss_scale_min,
        config.loss_scale_max,
    )

    return Step(
        objective,
        optimizer,
        scale,
        parts=parts,
        batch_size=config.batch_size,
        clip_norm=config.clip_norm,
        accumulate=config.accumulate,
        jit=jit,
        strategy=machine.strategy,
        seed=config.seed,
    )


def describe(config: TrainConfig, source: weights.Published, tokenizer, train_set, head: Head) -> run_folder.RunInfo:
    """What config.json says of this run."""
    return run_folder.RunInfo(
        model=source.config.to_dict(),
        tokenizer=tokenizer.config(),
        window=config.window,
        stride=config.stride,
        query=config.query,
        max_answer_tokens=config.max_answer_tokens,
        task=head.task,
        labels=list(head.labels),
        head=head.settings,
        version=train_set.version,
        made={
            "command": "train",
            "settings": dataclasses.asdict(config),
            "weights": source.source,
            "versions": command.versions(),
        },
    )


def _on(switch: bool) -> str:
    return "on" if switch else "off"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "none"
