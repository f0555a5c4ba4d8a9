"""What a run tells while it goes: progress bar, metrics.jsonl, TensorBoard. One place, so that the three agree."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tqdm import tqdm

from train.step import COUNTED

# Reading what a step returned waits for all that the device has to do, and then the device waits for the host: so it is
# done for many steps at once: after FIRST_READ of them, twice as many, and so on up to READ_STEPS (a run that gets
# nowhere mostly does so from the start), or as soon as there is a line to write and READ_S seconds have passed.
FIRST_READ, READ_STEPS, READ_S = 50, 250, 1.0
EVENTS_S = 5  # seconds after which TensorBoard's file is up to date


class Journal:
    """Collects what steps return and writes a line for every `log_every` of them, some time after.

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
        self.before, self.told = before, first_step  # steps of which lines are written
        self.folder, self.names, self.log_every, self.title = folder, list(names), log_every, title
        self.unread: list[tuple[tf.Tensor, int]] = []  # a step's numbers and real windows
        self.untold: list[tuple[np.ndarray, int, float]] = []  # the same with its seconds, once read
        self.since, self.many = time.perf_counter(), FIRST_READ
        self.lines = self.events = None
        self.bar = tqdm(
            total=total_steps, initial=first_step, desc=title, unit="step", dynamic_ncols=True, file=sys.stderr,
            disable=folder is None, mininterval=1.0,
        )  # fmt: skip
        if folder is not None:
            _drop_after(folder / "metrics.jsonl", before + first_step)
            self.lines = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
            self.events = EventFileWriter(str(folder / "events"), flush_secs=EVENTS_S)

    def step(self, numbers: tf.Tensor, rows: int) -> None:
        """Note one step: its numbers (still on the device) and how many real windows it had."""
        self.unread.append((numbers, rows))
        self.bar.update()

    @property
    def due(self) -> bool:
        """Whether it is time to read."""
        enough = len(self.untold) + len(self.unread) >= self.log_every
        return len(self.unread) >= self.many or (enough and time.perf_counter() - self.since >= READ_S)

    def read(self, *, end: bool = False) -> int:
        """Fetch the numbers of the steps noted, and write the lines that are complete; at the end of a run all.

        Waits for the device. Returns how many steps in a row were skipped up to the last.
        """
        if not self.unread:
            return 0
        if len(self.unread) >= self.many:
            self.many = min(2 * self.many, READ_STEPS)
        found = tf.stack([numbers for numbers, _ in self.unread]).numpy()  # [steps, names], in one copy
        now = time.perf_counter()
        seconds = (now - self.since) / len(found)
        self.untold += [(row, rows, seconds) for row, (_, rows) in zip(found, self.unread, strict=True)]
        self.unread, self.since = [], now
        while len(self.untold) >= self.log_every or (end and self.untold):
            self._tell(self.untold[: self.log_every])
            self.untold = self.untold[self.log_every :]
        return int(found[-1, self.names.index("skipped_in_a_row")])

    def _tell(self, steps: list[tuple[np.ndarray, int, float]]) -> None:
        """One line: means of what the steps returned, and the counters after the last of them."""
        table = dict(zip(self.names, np.stack([row for row, _, _ in steps]).T, strict=True))
        rows, seconds = sum(rows for _, rows, _ in steps), sum(seconds for _, _, seconds in steps)
        self.told += len(steps)
        counters = {name: int(table.pop(name)[-1]) for name in COUNTED}
        del table["skipped_in_a_row"]
        taken = table.pop("finite") > 0
        line: dict = {"step": self.told, **counters}
        for name, column in table.items():
            if name in ("learning_rate", "loss_scale"):
                line[name] = float(column[-1])
            # a skipped step has no loss worth averaging, and the norm of a window still being summed may be infinite
            else:
                column = column[taken & np.isfinite(column)]
                line[name] = float(column.mean()) if len(column) else None
        line |= {"seq_per_s": rows / seconds, "seconds": seconds}
        self.write(line)
        shown = {
            "loss": f"{line['loss']:.3f}" if line["loss"] is not None else "skipped",
            "seq/s": f"{line['seq_per_s']:.1f}",
        }
        if line["loss_scale"] != 1:
            shown["scale"] = f"{line['loss_scale']:g} ({counters['good_steps']} good)"
        if counters["skipped_steps"]:
            shown["skips"] = str(counters["skipped_steps"])
        self.bar.set_postfix(shown, refresh=False)

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
        # TensorBoard's own writer: tf.summary's runs three operations a number, and each waits for its turn on a GPU.
        summary = Summary()
        for name, value in line.items():
            if isinstance(value, int | float) and name not in ("step", "seconds"):
                summary.MergeFrom(scalar_pb(f"{self.title}/{name}", float(value)))
        self.events.add_event(Event(step=line["step"], wall_time=time.time(), summary=summary))

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
