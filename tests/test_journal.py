"""What a run tells: a line for every so many steps, read from the device seldom, the same in TensorBoard."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import journal
from train.journal import Journal
from train.step import MEASURED

NAMES = ("loss", *MEASURED)


def report(number: int, **other: float) -> tf.Tensor:
    """What the step of this number returns: a loss of its number, a norm of ten times that, all steps taken."""
    named = {
        "loss": number, "gradient_norm": 10 * number, "finite": 1, "learning_rate": 0.1 * number, "loss_scale": 8,
        "updates": number + 1, "skipped_steps": 0, "good_steps": number + 1, "skipped_in_a_row": 0,
    }  # fmt: skip
    return tf.constant([(named | other)[name] for name in NAMES], tf.float32)


def told(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def start(tmp_path):
    made = []

    def start(log_every: int = 4, first: int = 0, before: int = 0, folder: Path | None = tmp_path) -> Journal:
        made.append(Journal(folder, NAMES, 100, first, log_every, "train", before))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_a_line_for_every_so_many_steps_whenever_they_are_read(start, tmp_path):
    one = start()
    for number in range(11):
        one.step(report(number), 32)
        if number in (2, 9):  # three, then eleven with those that were left
            assert one.read() == 0
    assert [line["step"] for line in told(tmp_path)] == [4, 8]
    one.read(end=True)
    lines = told(tmp_path)
    assert [line["step"] for line in lines] == [4, 8, 11]
    assert [line["loss"] for line in lines] == [1.5, 5.5, 9]
    assert [line["gradient_norm"] for line in lines] == [15, 55, 90]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.3, 0.7, 1.0])
    assert [line["updates"] for line in lines] == [4, 8, 11]
    rows = [line["seq_per_s"] * line["seconds"] for line in lines]
    assert rows == pytest.approx([32 * 4, 32 * 4, 32 * 3])


def test_numbers_are_read_once_in_a_while_or_when_there_are_many(start, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(journal.time, "perf_counter", lambda: clock[0])
    one = start(log_every=20)
    for many in (50, 100, 200, 250, 250):
        for number in range(many):
            assert not one.due
            one.step(report(number), 1)
            clock[0] += 0.001
        assert one.due  # many
        one.read()
        assert not one.due
    for number in range(10):
        one.step(report(number), 1)
    assert not one.due
    clock[0] += 1.01
    assert one.due  # 10 of the 850 were left, with these they are a line
    one.read()
    for number in range(3):
        one.step(report(number), 1)
    clock[0] += 60
    assert not one.due  # no line yet: there is nothing to tell


def test_time_that_is_not_training_does_not_count(start, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(journal.time, "perf_counter", lambda: clock[0])
    one = start(log_every=2)
    for number in range(4):
        one.step(report(number), 3)
        clock[0] += 1.0
        if number == 2:  # a pause comes after a read
            one.read()
            paused = one.pause()
            clock[0] += 100.0
            one.go_on(paused)
    one.read(end=True)
    assert [(line["seconds"], line["seq_per_s"]) for line in told(tmp_path)] == [(2.0, 3.0), (2.0, 3.0)]


def test_skipped_steps_have_no_part_in_the_means_and_those_in_a_row_at_the_end_are_returned(start, tmp_path):
    one = start()
    for number in range(4):
        skipped = {"finite": 0, "loss": np.inf, "gradient_norm": np.nan, "skipped_in_a_row": number}
        one.step(report(number, **(skipped if number in (1, 2) else {})), 1)
    assert one.read() == 0
    assert (told(tmp_path)[0]["loss"], told(tmp_path)[0]["gradient_norm"]) == (1.5, 15)
    for number in range(4):
        one.step(report(number, finite=0, loss=np.nan, skipped_in_a_row=number + 1), 1)
    assert one.read() == 4
    assert told(tmp_path)[1]["loss"] is None


def test_tensorboard_shows_the_lines(start, tmp_path):
    one = start(log_every=2, before=1000)
    for number in range(4):
        one.step(report(number), 1)
    one.read(end=True)
    one.write({"step": 4, "dev_f1": 60.5, "dev_threshold": None})
    one.close()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    tags = events.Tags()["tensors"]
    assert {"train/loss", "train/updates", "train/seq_per_s", "train/dev_f1"} <= set(tags)
    assert not {"train/step", "train/seconds", "train/dev_threshold", "train/stage"} & set(tags)
    shown = [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors("train/loss")]
    assert shown == [(1002, 0.5), (1004, 2.5)]
    metadata = events.SummaryMetadata("train/loss")
    assert metadata.plugin_data.plugin_name == "scalars"


def test_a_run_that_goes_on_forgets_lines_of_steps_that_come_again(start, tmp_path):
    one = start(log_every=1)
    for number in range(6):
        one.step(report(number), 1)
    one.read(end=True)
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 7, "lo')  # a kill in the middle of a line
    two = start(log_every=1, first=4)
    two.step(report(40), 1)
    two.read(end=True)
    assert [(line["step"], line["loss"]) for line in told(tmp_path)] == [(1, 0), (2, 1), (3, 2), (4, 3), (5, 40)]


def test_a_worker_that_is_not_the_chief_reads_but_is_silent(start, tmp_path, capsys):
    one = start(folder=None)
    for number in range(4):
        one.step(report(number, skipped_in_a_row=7), 1)
    assert one.read(end=True) == 7
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""
