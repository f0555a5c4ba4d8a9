"""`python train.py`: settings -> data, model, step -> the loop -> a run folder."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import train.environment  # noqa: F401  isort: skip - before TensorFlow

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from configs import command
from configs.errors import UsageError, UserError
from data import batches, squad
from data.features import FeatureOptions, Features, featurise
from data.tokenize import Tokenizer
from model import run_folder, weights
from model.config import NAMED, BertConfig
from model.heads import SpanModel, span_loss
from train import hardware, loop, precision
from train.config import TrainConfig
from train.evaluate import Evaluator
from train.optimizer import AdamW, learning_rate
from train.step import Step

FREE_TO_CHANGE = {"resume", "overwrite", "log_every", "save_every", "cache", "out", "device"}  # on --resume


def main(config: TrainConfig) -> dict:
    """Fine-tune as told; returns {"out", "metrics"}."""
    machine = hardware.prepare(config.device, config.distribute, config.deterministic, config.seed)
    chosen = precision.choose(config.amp, machine.gpu)
    jit, why_jit = hardware.use_xla(config.jit, machine.gpu)
    say = print if machine.chief else lambda *words: None
    say(f"precision: {chosen.compute} ({chosen.reason})")
    say(f"device: {'GPU' if machine.gpu else 'CPU'}, {machine.replicas} replica(s); xla: {'on' if jit else 'off'} ({why_jit})")

    if config.batch_size % machine.replicas:
        raise UsageError(
            f"--batch-size {config.batch_size} cannot be split over {machine.replicas} devices; make it a multiple of that"
        )
    out = Path(config.out)
    if machine.chief:  # another worker may look when the chief has begun to write
        check_out(out, config)
    source = read_weights(config)
    sizes = trained_sizes(source, config)
    fused, why_attention = hardware.use_fused_attention(machine.gpu, jit, chosen, sizes.attention_dropout)
    say(f"attention: {why_attention}")
    tokenizer = Tokenizer.from_config(source.tokenizer, vocab_file(config, source))
    if tokenizer.size > source.config.vocabulary:
        raise UserError(
            f"the vocabulary has {tokenizer.size} pieces, the embeddings of {source.source} have {source.config.vocabulary} "
            "rows; take the vocab.txt that belongs to the weights"
        )
    train_set = squad.read(config.data, limit=config.limit)
    dev_set = squad.read(config.dev, limit=config.dev_limit, split="dev") if config.dev else None
    options = FeatureOptions(config.window, config.stride, config.query)
    features = tokenised(train_set, tokenizer, options, config, say, "train")
    dev_features = tokenised(dev_set, tokenizer, options, config, say, "dev") if dev_set else None

    with machine.scope():
        model = build(source, sizes, chosen.policy, fused, say)
        edges = batches.edges(features.length, most=config.buckets, window=config.window)
        steps_per_epoch = -(-len(features) // config.batch_size)
        step = make_step(model, config, chosen, jit, machine, steps_per_epoch)
    say(f"data: {len(features)} windows, batches of {config.batch_size} padded to {', '.join(map(str, edges))} tokens")

    info = describe(config, source, tokenizer, train_set)
    if machine.chief and not config.resume:
        empty(out)  # as late as this: a mistake in the other settings must not cost the run that is there
        run_folder.write(out, info)
        shutil.copyfile(tokenizer.vocab_file, out / "vocab.txt")
    evaluate = None
    if dev_set and dev_features is not None and machine.chief:
        evaluate = Evaluator(model, dev_set, dev_features, max_answer_tokens=config.max_answer_tokens, jit=jit)
    job = loop.Job(
        out=out,
        info=info,
        step=step,
        weights=model.names(),
        extra={},
        batches=lambda epoch, first: epoch_batches(features, edges, config, machine, epoch, first),
        steps_per_epoch=steps_per_epoch,
        epochs=config.epochs,
        evaluate=evaluate,
        eval_every=config.eval_every,
        save_every=config.save_every,
        log_every=config.log_every,
        chief=machine.chief,
    )
    metrics = loop.run(job, resume=config.resume)
    scale = step.loss_scale
    metrics |= {
        "updates": int(step.optimizer.updates.numpy()),
        "skipped_steps": int(scale.skipped.numpy()),
        "loss_scale": float(scale.scale.numpy()),
        "compiled_shapes": len(step.shapes),
    }
    return {"out": str(out), "metrics": metrics}


def check_out(out: Path, config: TrainConfig) -> None:
    """Raise a UsageError unless --out is free, or a run that the settings allow to go on with or to overwrite."""
    if config.resume:
        if not (out / "config.json").exists():
            raise UsageError(f"--resume: there is no run in {out}; leave --resume out to start one")
        before = run_folder.read(out).made.get("settings", {})
        now = dataclasses.asdict(config)
        changed = {name for name in now if name not in FREE_TO_CHANGE and before.get(name) != now[name]}
        if changed:
            names = ", ".join(f"{name} ({before.get(name)} -> {now[name]})" for name in sorted(changed))
            raise UsageError(f"--resume goes on with the same settings; changed: {names}. Start another run for those")
    elif out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, a run needs a folder; name another --out")
    elif out.exists() and any(out.iterdir()):
        if not config.overwrite:
            raise UsageError(f"{out} exists; add --resume to go on with it, --overwrite to start again, or name another --out")
        if not is_run(out):
            raise UsageError(f"{out} is no run folder, it is not overwritten; name another --out")
        for name in ("model", "data", "dev", "vocab"):
            source = Path(getattr(config, name) or "").resolve()
            if getattr(config, name) and (source == out.resolve() or out.resolve() in source.parents):
                raise UsageError(f"--overwrite would delete --{name} {source}, which lies in --out; name another --out")


def is_run(folder: Path) -> bool:
    """Whether the folder is one of ours; a model's folder has a config.json, too."""
    try:
        return bool(run_folder.read(folder))
    except UserError:
        return False


def empty(folder: Path) -> None:
    """Make the folder, or delete all that is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def read_weights(config: TrainConfig) -> weights.Published:
    """The weights that --model names, or random ones of a named size."""
    if config.model == "minilm-l6":
        from scripts.fetch_weights import minilm_folder

        return weights.load(str(minilm_folder()))
    if config.model in NAMED:
        if not config.vocab:
            raise UsageError(f"--model {config.model} is a size with random weights; it needs a vocabulary: --vocab FILE")
        size = NAMED[config.model]
        return weights.Published(size, {}, [], Path(config.vocab).parent, {"lowercase": True}, f"{config.model}, random")
    return weights.load(config.model)


def vocab_file(config: TrainConfig, source: weights.Published) -> Path:
    path = Path(config.vocab) if config.vocab else source.folder / "vocab.txt"
    if not path.is_file():
        raise UserError(f"no vocabulary at {path}; name one with --vocab FILE")
    return path


def tokenised(dataset, tokenizer, options, config: TrainConfig, say, title: str) -> Features:
    """Featurise with a progress bar, and say what was left out."""
    if dataset.skipped:
        say(f"{title}: {len(dataset.skipped)} of {len(dataset.skipped) + len(dataset.examples)} questions left out, first {dataset.skipped[0]}")
    root = Path(config.cache or train.environment.CACHE)
    with tqdm(desc=f"tokenise {title}", unit="text", leave=False, mininterval=1.0) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return featurise(dataset, tokenizer, options, cache_dir=root, progress=progress)


def trained_sizes(source: weights.Published, config: TrainConfig) -> BertConfig:
    """The source's sizes with the dropout rates of this run."""
    if config.window > source.config.positions:
        raise UserError(
            f"--window {config.window} needs as many position vectors, {source.source} has {source.config.positions}"
        )
    rates = {"dropout": config.dropout, "attention_dropout": config.attention_dropout}
    return dataclasses.replace(source.config, **{name: rate for name, rate in rates.items() if rate is not None})


def build(source: weights.Published, sizes: BertConfig, policy: str, fused: bool, say) -> SpanModel:
    """The model with the source's weights in it; what the source lacks (the head) stays random, by the run's seed."""
    model = SpanModel(sizes, policy, fused)
    for name, variable in model.names().items():
        if name in source.tensors:
            variable.assign(source.tensors[name])
    fresh = [name for name in model.names() if name not in source.tensors]
    say(f"weights: {source.source}; {len(source.tensors)} tensors read, left over: {_listed(source.left_over)}; random: {_listed(fresh)}")
    broken = [name for name, value in source.tensors.items() if not np.isfinite(value).all()]
    if broken:
        raise UserError(f"{source.source}: {_listed(broken)} not finite; the checkpoint is damaged")
    return model


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "none"


def make_step(model: SpanModel, config: TrainConfig, chosen, jit: bool, machine, steps_per_epoch: int) -> Step:
    """The compiled step of fine-tuning."""
    updates = max(1, steps_per_epoch * config.epochs // config.accumulate)
    warmup = int(updates * config.warmup)
    optimizer = AdamW(
        model.names(),
        lambda done: learning_rate(done, config.lr, warmup, updates),
        decay=config.weight_decay,
        bias_correction=config.bias_correction,
    )
    scale = precision.LossScale(
        chosen.scaled,
        config.loss_scale_initial,
        config.loss_scale_growth_interval,
        config.loss_scale_min,
        config.loss_scale_max,
    )

    def objective(batch, seed):
        start, end = model(batch["token_ids"], batch["segment_ids"], batch["padding_mask"], seed=seed)
        losses = span_loss(start, end, batch["padding_mask"], batch["start_positions"], batch["end_positions"])  # [B]
        return {"loss": tf.reduce_sum(losses * batch["weight"])}

    return Step(
        objective,
        optimizer,
        scale,
        batch_size=config.batch_size,
        clip_norm=config.clip_norm,
        accumulate=config.accumulate,
        jit=jit,
        strategy=machine.strategy,
        seed=config.seed,
    )


def epoch_batches(features, edges, config: TrainConfig, machine, epoch: int, first: int) -> Iterator[tuple[dict, int]]:
    """(batch on the device or devices, real rows) from the epoch's first-th batch on."""
    plan = batches.plan(features.length, config.batch_size, edges, seed=config.seed, epoch=epoch)
    if machine.strategy is None:
        for (_, rows), batch in zip(plan[first:], batches.dataset(features, plan, first), strict=True):
            yield batch, loop.real_rows(rows >= 0)
        return
    local = machine.replicas // machine.ranks
    for (_, rows), batch in zip(plan[first:], batches.batches(features, plan, first, machine.rank, machine.ranks), strict=True):

        def share(context, batch=batch):
            index = context.replica_id_in_sync_group % local
            return {name: tf.constant(batches.rank_rows(value, index, local)) for name, value in batch.items()}

        yield machine.strategy.experimental_distribute_values_from_function(share), loop.real_rows(rows >= 0)


def describe(config: TrainConfig, source: weights.Published, tokenizer, train_set) -> run_folder.RunInfo:
    """What config.json says of this run."""
    sizes: BertConfig = source.config
    return run_folder.RunInfo(
        model=sizes.to_dict(),
        tokenizer=tokenizer.config(),
        window=config.window,
        stride=config.stride,
        query=config.query,
        max_answer_tokens=config.max_answer_tokens,
        version=train_set.version,
        made={
            "command": "train",
            "settings": dataclasses.asdict(config),
            "weights": source.source,
            "versions": command.versions(),
        },
    )


if __name__ == "__main__":
    command.run("train", TrainConfig, main)
