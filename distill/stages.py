"""The stages of a run one after the other, each through the training loop, and going on inside any of them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import tensorflow as tf

from configs import command
from data.batches import Windows
from distill import student, teacher
from distill.config import DistillConfig
from distill.objective import Objective
from distill.projection import Projections
from model import run_folder
from model.heads import HeadModel
from model.weights import MODEL_FILE, read_json, read_tensors
from train import checkpoint, loop
from train.epoch import epoch_batches
from train.evaluate import Evaluator
from train.hardware import Hardware
from train.prepare import initialise
from train.step import Step

SEEDS_APART = 1_000_003  # between the stages of a run, so that they do not draw the same order and dropout


@dataclass
class Stage:
    """One stage: what it learns, from which windows, for how long."""

    name: str
    index: int  # in the run
    features: Windows
    edges: tuple[int, ...]
    objective: Objective
    step: Step
    peak: tf.Variable  # learning rate, set when a run starts
    epochs: int
    steps_per_epoch: int
    extend: Callable | None = None  # adds the teacher's cached outputs to a batch

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs


@dataclass
class Prepared:
    """Everything of a run that exists once, however often it is started."""

    machine: Hardware
    teacher: teacher.Teacher
    plan: student.Student
    model: HeadModel  # the student
    projections: Projections
    stages: list[Stage]
    evaluate: Evaluator | None  # what the best epoch is picked on: the held-out part, or dev
    final: Evaluator | None  # dev, where something else is picked on
    figures: dict[str, float]  # of the teacher
    version: str

    def restart(self, config: DistillConfig) -> None:
        """Weights, projections, slots and counters as at the start of a run with this seed and these rates."""
        initialise(self.model, self.plan.start, config.seed)
        self.projections.restart(config.seed)
        for stage in self.stages:
            stage.step.restart(config.seed + SEEDS_APART * stage.index)
            stage.peak.assign(getattr(config, f"{stage.name}_lr"))

    def job(self, stage: Stage, config: DistillConfig) -> loop.Job:
        """The stage as a job for the loop. Earlier stages keep their results in best-NAME/ and last-NAME/."""
        own = replace(config, seed=config.seed + SEEDS_APART * stage.index)
        final = stage is self.stages[-1]
        suffix = "" if final else f"-{stage.name}"
        answers = stage.objective.recipe.learns("prediction", "hard")
        return loop.Job(
            out=Path(config.out),
            info=describe(config, self),
            step=stage.step,
            weights=self.model.names(),
            extra=self.projections.variables(),
            batches=lambda epoch, first: epoch_batches(
                stage.features, stage.edges, own, self.machine, epoch, first, stage.extend
            ),
            steps_per_epoch=stage.steps_per_epoch,
            epochs=stage.epochs,
            evaluate=self.evaluate if answers else None,  # before the answers are learnt, there is nothing to score
            eval_every=config.eval_every if answers else 0,
            save_every=config.save_every,
            log_every=config.log_every,
            score=self.model.head.score,
            title=stage.name,
            chief=self.machine.chief,
            ranks=self.machine.ranks,
            last=f"last{suffix}",
            best=f"best{suffix}",
            data=stage.features.fingerprint(),
            before=sum(earlier.total_steps for earlier in self.stages[: stage.index]),
        )


def describe(config: DistillConfig, prepared: Prepared) -> run_folder.RunInfo:
    """What config.json says of this run: what a fine-tuned model's says, so that nobody needs to know of a teacher."""
    taught = prepared.teacher
    return run_folder.RunInfo(
        model=prepared.plan.config.to_dict(),
        tokenizer=taught.tokenizer.config(),
        window=taught.options.window,
        stride=taught.options.stride,
        query=taught.options.query,
        max_answer_tokens=taught.max_answer_tokens,
        task=taught.head.task,
        labels=list(taught.head.labels),
        head=taught.head.settings,
        version=prepared.version,
        made={
            "command": "distill",
            "settings": dataclasses.asdict(config),
            "teacher": taught.weights.source,
            "teacher_figures": prepared.figures,
            "layer_map": list(prepared.plan.layer_map),
            "start": prepared.plan.told,
            "projection": prepared.projections.kind,
            "versions": command.versions(),
        },
    )


def run(prepared: Prepared, config: DistillConfig, resume: bool = False) -> dict:
    """All stages to the end; returns the last line's metrics.

    A stage that was finished is only read back; one that was begun goes on; the others start from what came before.
    """
    result: dict = {}
    for stage in prepared.stages:
        job = prepared.job(stage, config)
        there = resume and begun(job)
        if there and read_json(job.out / job.last / checkpoint.POSITION_FILE)["step"] >= job.total_steps:
            result = _read_back(job)
            continue
        result = loop.run(job, resume=there)
    metrics = result | prepared.stages[-1].step.summary() | _counts(prepared)
    if prepared.final is not None:
        metrics |= score_best(prepared, Path(config.out))
    return metrics


def begun(job: loop.Job) -> bool:
    """Whether the stage has a checkpoint to go on from."""
    checkpoint.recover(job.out / job.last)
    return (job.out / job.last / checkpoint.POSITION_FILE).is_file()


def score_best(prepared: Prepared, out: Path) -> dict[str, float]:
    """The metrics on dev of the weights picked elsewhere, as dev_exact, dev_f1 and the like."""
    assert prepared.final is not None
    checkpoint.assign(prepared.model.names(), read_tensors(out / "best" / MODEL_FILE), str(out / "best"))
    threshold = run_folder.read(out).no_answer_threshold  # picked elsewhere, too
    scores = prepared.model.head.metrics(prepared.final.dataset, prepared.final.predictions(), threshold)
    print(
        f"dev, {prepared.final.dataset.source}: " + ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
    )
    return {f"dev_{name}": value for name, value in scores.items()}


def _read_back(job: loop.Job) -> dict:
    """A finished stage's weights and projections as the next stage expects them, and its metrics."""
    position = checkpoint.load_last(job.out / job.last, job.weights, {**job.step.variables(), **job.extra})
    checkpoint.recover(job.out / job.best)
    return {**(position["history"][-1] if position["history"] else {}), "best": position["best"]}


def _counts(prepared: Prepared) -> dict:
    """Over all stages: updates and steps skipped; sizes of both; the teacher's figures."""

    def parameters(stage: Stage) -> int:
        return sum(int(variable.shape.num_elements()) for variable in stage.objective.student.names().values())

    stages = prepared.stages
    counted = {f"updates_{stage.name}": int(stage.step.optimizer.updates.numpy()) for stage in stages}
    taught = sum(int(array.size) for array in prepared.teacher.weights.tensors.values())
    return counted | {
        "updates": sum(counted.values()),
        "skipped_steps": sum(int(stage.step.loss_scale.skipped.numpy()) for stage in stages),
        "parameters": parameters(stages[-1]),
        "teacher_parameters": taught,
        "teacher": prepared.figures,
    }
