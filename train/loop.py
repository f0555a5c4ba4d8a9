"""The training loop: batches in, steps, evaluations, checkpoints. Fine-tuning and every stage of distillation use it.

What is learnt is the step's business (`train/step.py`), what is measured the caller's. The loop owns the position in
the data: `step` counts batches consumed, and epoch and batch follow from it, so that resuming is an index.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from configs.errors import UserError
from data.feed import Packed
from model import run_folder
from model.weights import MODEL_FILE
from train import checkpoint
from train.journal import Journal
from train.precision import SKIPS_BEFORE_ABORT
from train.step import Step


@dataclass
class Job:
    """All that a loop needs to know."""

    out: Path  # run folder
    info: run_folder.RunInfo  # written as config.json with every new best
    step: Step
    weights: dict  # our name -> variable, what best/ holds
    extra: dict  # our name -> variable, saved in last/ beside the step's own state (projections of distillation)
    batches: Callable[[int, int], Iterator[tuple[Packed | dict, int]]]  # (epoch, first batch) -> (batch, real rows)
    steps_per_epoch: int
    epochs: int
    evaluate: Callable[[], dict] | None  # -> metrics with "f1"; None: the last weights are the best
    eval_every: int = 0  # steps; 0: every epoch
    save_every: int = 500
    log_every: int = 20
    title: str = "train"
    score: str = "f1"  # which metric makes a checkpoint the best
    chief: bool = True  # alone writes
    ranks: int = 1  # processes that train together
    last: str = "last"  # folder of the checkpoint that --resume reads
    best: str = "best"
    data: str = ""  # fingerprint of what `batches` gives; a run is resumed with the same
    before: int = 0  # steps of earlier stages in the same folder: metrics.jsonl and events go on counting
    history: list = field(default_factory=list)  # of evaluations: {"step", metrics...}

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs


def run(job: Job, resume: bool = False) -> dict:
    """Train to the end. Returns the metrics of the last evaluation, with the best ones under "best".

    Raises: UserError when 50 steps in a row had non-finite gradients, the disk is full, or a run is resumed with other
    data.
    """
    position = {"step": 0, "best": None, "history": []}
    state = job.step.variables()
    if resume:
        position = checkpoint.load_last(job.out / job.last, job.weights, {**state, **job.extra})
        checkpoint.recover(job.out / job.best)
        if position.get("data", job.data) != job.data:
            raise UserError(
                f"--resume: the training questions are not those that {job.out / job.last} was written with, though "
                "they have the same name; put the old file back, or start again with --overwrite"
            )
    done, best, job.history = position["step"], position["best"], position["history"]
    journal = Journal(
        job.out if job.chief else None,
        job.step.measured,
        job.total_steps,
        done,
        job.log_every,
        job.title,
        job.before,
    )

    def save_last() -> None:
        if job.chief:
            where = {"step": done, "best": best, "history": job.history, "data": job.data}
            checkpoint.save_last(job.out / job.last, job.weights, {**state, **job.extra}, where)

    def evaluate() -> None:
        nonlocal best
        if not job.chief:
            return
        metrics = job.evaluate() if job.evaluate else {}
        if metrics:
            job.history.append({"step": done, **metrics})
            journal.write({"step": done, **{f"dev_{name}": value for name, value in metrics.items()}})
            journal.bar.write(f"step {done}: " + ", ".join(f"{k} {v:.2f}" for k, v in metrics.items()))
        if best is None or not metrics or metrics[job.score] > best[job.score]:
            best = dict(metrics, step=done)
            job.info.no_answer_threshold = metrics.get("threshold")
            checkpoint.write_folder(
                job.out / job.best, {MODEL_FILE: checkpoint.values(job.weights)}, {"metrics.json": best}
            )
            run_folder.write(job.out, job.info)

    try:
        while done < job.total_steps:
            epoch, first = divmod(done, job.steps_per_epoch)
            for batch, rows in job.batches(epoch, first):
                journal.step(job.step(batch, done), rows)
                done += 1
                at_end = done == job.total_steps
                due = done % job.eval_every == 0 if job.eval_every else done % job.steps_per_epoch == 0
                pausing = due or at_end or done % job.save_every == 0  # which waits for the device in any case
                # Workers must stop at the same step, but read by the clock; one alone looks whenever it has read.
                looking = pausing or (job.ranks > 1 and done % SKIPS_BEFORE_ABORT == 0)
                if looking or journal.due:
                    in_a_row = journal.read(end=at_end)
                    if looking or job.ranks == 1:
                        stop_if_stuck(job, batch, done, in_a_row)
                if pausing:
                    paused = journal.pause()
                    if at_end or due:
                        evaluate()
                    save_last()  # after the evaluation: a resumed run does not repeat it
                    journal.go_on(paused)
        if not job.history and best is None:
            evaluate()
    finally:
        journal.close()
    return {**(job.history[-1] if job.history else {}), "best": best}


def stop_if_stuck(job: Job, batch: Packed | dict, done: int, in_a_row: int) -> None:
    """Raise a UserError when too many steps in a row were skipped."""
    if in_a_row >= SKIPS_BEFORE_ABORT:
        name = job.step.first_not_finite(batch, done - 1)
        raise UserError(
            f"{in_a_row} steps in a row had gradients that are not finite, the loss scale is "
            f"{float(job.step.loss_scale.scale.numpy()):g}; the first variable concerned is {name}. "
            "Lower --lr, or try --amp bfloat16 or --no-amp"
        )
