"""What a run tells while it goes: progress bar, metrics.jsonl, TensorBoard. One place, so that the three agree."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm


class Journal:
    """Collects what steps return and writes it out every `log_every` steps; reading a step's numbers waits for the
    device.

    Args:
        folder: run folder; None for a worker that is not the chief, which stays silent.
        names: of the numbers that a step returns, in order.
        total_steps, first_step: for the bar and its ETA.
        before: steps of earlier stages in the same folder; what is written counts on from them.
    """

    def __init__(
        self,
        folder: Path | None,
        names: Sequence[str],
        total_steps: int,
        first_step: int,
        log_every: int,
        title: str,
        before: int = 0,
    ):
        self.before = before
        self.folder, self.names, self.log_every, self.title = folder, list(names), log_every, title
        self.pending: list[tf.Tensor] = []
        self.rows, self.since = 0, time.perf_counter()
        self.lines = self.events = None
        self.bar = tqdm(
            total=total_steps, initial=first_step, desc=title, unit="step", dynamic_ncols=True, file=sys.stderr,
            disable=folder is None, mininterval=1.0,
        )  # fmt: skip
        if folder is not None:
            _drop_after(folder / "metrics.jsonl", before + first_step)
            self.lines = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
            self.events = tf.summary.create_file_writer(str(folder / "events"))

    def step(self, numbers: tf.Tensor, rows: int) -> None:
        """Note one step: its numbers (still on the device) and how many real windows it had."""
        self.pending.append(numbers)
        self.rows += rows
        self.bar.update()

    @property
    def due(self) -> bool:
        return len(self.pending) >= self.log_every

    def flush(self, step: int, counters: dict[str, int]) -> dict | None:
        """Write the mean of the noted steps and the step's counters; returns what was written."""
        if not self.pending:
            return None
        numbers = np.stack([numbers.numpy() for numbers in self.pending])  # [steps, names]
        table = dict(zip(self.names, numbers.T, strict=True))
        seconds = time.perf_counter() - self.since
        taken = table.pop("finite") > 0
        line: dict = {"step": step, **counters}
        for name, column in table.items():
            if name in ("learning_rate", "loss_scale"):
                line[name] = float(column[-1])
            # a skipped step has no loss worth averaging, and the norm of a window still being summed may be infinite
            else:
                column = column[taken & np.isfinite(column)]
                line[name] = float(column.mean()) if len(column) else None
        line |= {"seq_per_s": self.rows / seconds, "seconds": seconds}
        self.write(line)
        shown = {
            "loss": f"{line['loss']:.3f}" if line["loss"] is not None else "skipped",
            "seq/s": f"{line['seq_per_s']:.1f}",
        }
        if line["loss_scale"] != 1:
            shown["scale"] = f"{line['loss_scale']:g} ({counters['good_steps']} good)"
        if counters["skipped_steps"]:
            shown["skips"] = str(counters["skipped_steps"])
        self.bar.set_postfix(shown)
        self.pending, self.rows, self.since = [], 0, time.perf_counter()
        return line

    def write(self, line: dict) -> None:
        """One object into metrics.jsonl, its numbers into TensorBoard under the same names."""
        if self.lines is None or self.events is None:
            return
        line = {"stage": self.title, **line, "step": self.before + line["step"]}
        # JSON has no word for what is not finite
        line = {
            name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in line.items()
        }
        self.lines.write(json.dumps(line, allow_nan=False) + "\n")
        self.lines.flush()
        with self.events.as_default(step=line["step"]):
            for name, value in line.items():
                if isinstance(value, int | float) and name not in ("step", "seconds"):
                    tf.summary.scalar(f"{self.title}/{name}", float(value))
        self.events.flush()

    def pause(self) -> float:
        """Start of something that is not training (evaluation, a checkpoint)."""
        return time.perf_counter()

    def go_on(self, paused_at: float) -> None:
        """End of it: the time does not count as training."""
        self.since += time.perf_counter() - paused_at

    def close(self) -> None:
        self.bar.close()
        if self.lines is not None and self.events is not None:
            self.lines.close()
            self.events.close()


def _drop_after(path: Path, step: int) -> None:
    """Forget lines of steps that a killed run made after the checkpoint it is resumed from; they will come again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            break  # torn by the kill; nothing whole follows
    scratch = path.with_suffix(".new")
    scratch.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(scratch, path)
