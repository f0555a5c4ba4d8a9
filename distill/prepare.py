"""From settings to stages ready for the loop: teacher, student, data, objectives and compiled steps."""

from functools import partial
from pathlib import Path
from typing import Any

import train.environment  # isort: skip - before TensorFlow

import tensorflow as tf

from configs.errors import UsageError
from data import batches
from distill import augment_rows as ways
from distill import cache, holdout, projection, student, teacher, text
from distill.candidates import candidates_for
from distill.config import DistillConfig
from distill.layer_map import listed
from distill.losses import relation_heads
from distill.objective import Objective, Recipe
from distill.projection import Projections
from distill.stages import Prepared, Stage
from heads import Head
from model import weights
from model.heads import HeadModel
from train import precision
from train.evaluate import Evaluator
from train.hardware import Hardware, use_fused_attention, use_xla
from train.optimizer import constant_rate, learning_rate
from train.prepare import Say, compiled_step, steps_per_epoch, tokenised
from train.step import Step


def prepare(config: DistillConfig, machine: Hardware, say: Say) -> Prepared:
    """Read, check, tokenise and build. Raises: UserError or UsageError for whatever of the settings cannot be met."""
    chosen = precision.choose(config.amp, machine.gpu)
    jit, why_jit = use_xla(config.jit, machine.gpu)
    say(f"precision: {chosen.compute} ({chosen.reason}); xla: {'on' if jit else 'off'} ({why_jit})")
    if config.batch_size % machine.replicas:
        raise UsageError(
            f"--batch-size {config.batch_size} cannot be split over {machine.replicas} devices; make it a multiple"
        )
    if config.cache_teacher and machine.strategy:
        raise UsageError("--cache-teacher works on one device; leave it or --distribute out")

    stages = config.ordered_stages
    fine_tuned = stages != ("general",)
    taught = teacher.read(config, config.teacher, head=fine_tuned)
    head = taught.head
    plan = student.plan(config, taught.weights, head)
    if config.student and plan.start.folder != taught.weights.folder:
        teacher.same_vocabulary(taught.tokenizer, plan.start.folder, taught.head, "--student")
    kind, why = projection.choose(config.projection, plan.config.hidden, taught.weights.config.hidden)
    recipes = {name: recipe(config, name, plan, taught.weights.config, head) for name in stages}
    say(f"teacher: {taught.weights.source}, {_sizes(taught.weights.config)}")
    say(f"student: {_sizes(plan.config)}; {plan.told}; layer map {listed(plan.layer_map)}; projection {kind} ({why})")

    train_set = head.read(config.data, limit=config.limit) if fine_tuned else None
    dev_set = head.read(config.dev, limit=config.dev_limit, split="dev") if config.dev else None
    picked_on = dev_set
    if config.holdout and fine_tuned:
        train_set, picked_on = holdout.split(head, train_set, config.holdout)
        say(
            f"held out to pick the best epoch on: {len(picked_on.examples)} examples; "
            f"{len(train_set.examples)} are left to learn from"
        )

    fused = {rate: use_fused_attention(machine.gpu, jit, chosen, rate) for rate in (0.0, plan.config.attention_dropout)}
    say(f"attention: {fused[plan.config.attention_dropout][1]}; written out in layers whose scores are learnt")
    with machine.scope():
        model = HeadModel(head, plan.config, chosen.policy, fused[plan.config.attention_dropout][0], config.recompute)
        models = {"task": teacher.build(head, taught.weights, chosen.policy, fused[0.0][0])}
        projections = Projections(kind, plan.config.layers + 1, plan.config.hidden, taught.weights.config.hidden)
    models["prediction"] = models["general"] = models["task"]

    def windows(dataset, title) -> Any:
        return tokenised(head, dataset, taught.tokenizer, taught.options, config.cache, say, title)

    def evaluator(who, dataset, title) -> Evaluator:
        lengths = min(config.buckets, 2 if jit else 4)  # XLA compiles each length
        return Evaluator(who, dataset, windows(dataset, title), jit=jit, buckets=lengths)

    figures = {}
    if fine_tuned and config.check_questions and any(recipe.needed for recipe in recipes.values()):
        some = teacher.part(dev_set or picked_on or train_set, config.check_questions)
        tried = evaluator(models["task"], some, "teacher's check")
        figures = teacher.check(tried, taught.tokenizer, config.check_margin, config.teacher)
        say(f"teacher on {len(some.examples)} examples: " + ", ".join(f"{k} {v:.1f}" for k, v in figures.items()))
    if "general" in stages and config.general_teacher:
        models["general"] = general_teacher(config, taught, machine, chosen.policy, fused[0.0][0])

    data = {"task": train_set, "prediction": train_set}
    if config.augment and fine_tuned:
        larger = augmented(config, train_set, taught, chosen.policy, say)
        data = {"task": larger, "prediction": larger if config.augment_prediction else train_set}
    made: list[Stage] = []
    for index, name in enumerate(stages):
        window = taught.options.window
        if name == "general":
            source, window = config.text or config.data, min(config.text_window, taught.weights.config.positions)
            features = text.featurise(text.read(source, head), taught.tokenizer, window, config.seed, source)
        elif made and made[-1].name == "task" and data["task"] is data["prediction"]:
            features = made[-1].features
        else:
            features = windows(data[name], name)
        objective = Objective(model, models[name] if recipes[name].needed else None, recipes[name], projections)
        stage = make_stage(config, name, index, features, window, objective, chosen, jit, machine)
        made.append(stage)
        weighed = ", ".join(f"{loss} x {weight:g}" for loss, weight in recipes[name].weights.items() if weight)
        say(f"stage {name}: {stage.epochs} epochs of {len(features)} windows, padded to {listed(stage.edges)} tokens")
        say(f"stage {name} learns {weighed}")
    prepared = Prepared(
        machine, taught, plan, model, projections, made, None, None, figures, train_set.version if train_set else "1.1"
    )  # fmt: skip
    if machine.chief and picked_on and "prediction" in stages:
        prepared.evaluate = evaluator(model, picked_on, "dev" if picked_on is dev_set else "held-out part")
        if dev_set and picked_on is not dev_set:
            prepared.final = evaluator(model, dev_set, "dev")
    if config.cache_teacher:
        use_cache(config, prepared, models, chosen.compute, jit, say)
    return prepared


def recipe(config: DistillConfig, stage: str, plan: student.Student, theirs, head: Head) -> Recipe:
    """The losses of a stage. Raises: UsageError where heads or widths do not allow what was asked for."""
    ours, by_loss = plan.config, config.weights(stage)
    if by_loss["attention"] and ours.heads != theirs.heads:
        raise UsageError(
            f"the attention loss compares head by head, the student has {ours.heads} heads, the teacher "
            f"{theirs.heads}; choose --heads {theirs.heads} (where it divides the width {ours.hidden}), "
            "--attention-weight 0, or relations in its place: --attention-weight 0 --relation-weight 1"
        )
    heads = config.relation_heads or theirs.heads
    allowed = relation_heads(ours.hidden, theirs.hidden)
    if by_loss["relation"] and heads not in allowed:
        raise UsageError(
            f"{heads} relation heads do not divide both widths, {ours.hidden} and {theirs.hidden}; choose "
            f"--relation-heads from {', '.join(map(str, allowed))}"
        )
    related = (ours.layers,) if config.relation_layers == "last" else tuple(range(1, ours.layers + 1))
    answers = tuple(output.key for output in head.outputs(theirs.hidden))
    return Recipe(by_loss, plan.layer_map, related, heads, config.temperature, answers)


def make_stage(config, name, index, features, window, objective, chosen, jit, machine) -> Stage:
    """A stage with its compiled step."""
    per_epoch = steps_per_epoch(features, config)
    step, peak = make_objective_step(config, name, per_epoch, objective, chosen, jit, machine)
    edges = batches.edges(features.length, most=config.buckets, window=window)
    return Stage(name, index, features, edges, objective, step, peak, getattr(config, f"{name}_epochs"), per_epoch)


def make_objective_step(config, name, per_epoch, objective, chosen, jit, machine) -> tuple[Step, tf.Variable]:
    """The stage's compiled step, and its peak learning rate: a variable, so that a search over it compiles once."""
    updates = max(1, per_epoch * getattr(config, f"{name}_epochs") // config.accumulate)
    warmup = int(updates * getattr(config, f"{name}_warmup"))
    rate = constant_rate if name == "task" and config.task_schedule == "constant" else learning_rate
    with machine.scope():
        peak = tf.Variable(getattr(config, f"{name}_lr"), trainable=False, dtype=tf.float32, name="peak_rate")
        schedule = partial(rate, peak=peak, warmup_updates=warmup, total_updates=updates)
        variables, parts = objective.variables(), objective.recipe.parts
        return compiled_step(objective, variables, schedule, config, chosen, jit, machine, parts), peak


def general_teacher(config, taught: teacher.Teacher, machine, policy: str, fused: bool) -> HeadModel:
    """The pre-trained teacher of the general stage, which must be as large as the other and cut text alike."""
    other = teacher.read(config, config.general_teacher, head=False)
    ours, theirs = other.weights.config, taught.weights.config
    if (ours.layers, ours.hidden, ours.heads) != (theirs.layers, theirs.hidden, theirs.heads):
        raise UsageError(
            f"--general-teacher is {_sizes(ours)}, --teacher {_sizes(theirs)}; one layer map and projection serves "
            "both, so they must be equal: take the weights that the teacher was fine-tuned from"
        )
    teacher.same_vocabulary(taught.tokenizer, other.weights.folder, taught.head, "--general-teacher")
    with machine.scope():
        return teacher.build(other.head, other.weights, policy, fused)


def augmented(config: DistillConfig, dataset: Any, taught: teacher.Teacher, policy: str, say: Say) -> Any:
    """The examples and --augment varied copies of each."""
    source = taught.weights
    if config.augment_model:
        source = weights.load(config.augment_model)
        teacher.same_vocabulary(taught.tokenizer, source.folder, taught.head, "--augment-model")
    candidates = candidates_for(source, taught.tokenizer, dtype=policy)
    larger, report = taught.head.augment(ways, dataset, candidates, copies=config.augment, seed=config.seed)
    say(f"augmented: {report.examples} examples and {report.copies} copies; words by {report.kind} ({report.reason})")
    return larger


def use_cache(config: DistillConfig, prepared: Prepared, models, compute: str, jit: bool, say: Say) -> None:
    """Give every stage the teacher's outputs from disk where they can be kept and fit, cheapest first."""
    budget = config.cache_budget_gib * 2**30
    wanted = []
    for stage in prepared.stages:
        source = stage.objective.recipe
        columns = cache.shapes(source, prepared.teacher.weights, prepared.teacher.head) if source.needed else {}
        if columns is None:
            say(f"stage {stage.name}: attention scores are not kept on disk, the teacher is asked for every batch")
        elif columns and stage.name != "general":
            wanted.append((cache.size_bytes(columns, source, stage.features, compute), stage, columns))
    for size, stage, columns in sorted(wanted, key=lambda one: one[0]):
        if size > budget:
            say(
                f"stage {stage.name}: the teacher's outputs need {size / 2**30:.2f} GiB, of --cache-budget-gib "
                f"{budget / 2**30:.2f} are left; the teacher is asked for every batch"
            )
            continue
        budget -= size
        root = Path(config.cache or train.environment.CACHE)
        folder = root / f"teacher-{cache.key(prepared.teacher.weights, stage.features, columns, compute)}"
        stage.extend = cache.open_or_compute(
            folder, models[stage.name], stage.features, stage.objective.recipe, columns, stage.edges, compute, jit, say
        ).extend


def _sizes(config) -> str:
    return f"{config.layers} layers, width {config.hidden}, {config.heads} heads, feed-forward {config.ffn}"
