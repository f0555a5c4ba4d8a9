"""A run that was killed and resumed ends where an uninterrupted one ends, bit for bit; what would break that, does."""

import os
import shutil
import signal
import time
from unittest import mock

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from train import checkpoint, loop

KILLED_AT, SAVED_AT = 11, 9  # steps; the checkpoint stands in the middle of an accumulation


class KilledError(BaseException):
    """What a kill looks like from inside."""


def killed(job: loop.Job, at: int) -> loop.Job:
    """The same job, whose process dies when it asks for a batch after so many steps."""
    whole = job.batches

    def batches(epoch, first):
        for number, batch in enumerate(whole(epoch, first), start=epoch * job.steps_per_epoch + first):
            if number == at:
                raise KilledError
            yield batch

    job.batches = batches
    return job


def state(job: loop.Job) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in {**job.weights, **job.step.variables()}.items()}


def differing(one: loop.Job, other: loop.Job) -> set[str]:
    """Names of what is not the same, bit for bit."""
    first, second = state(one), state(other)
    return {name for name in first | second if first[name].tobytes() != second[name].tobytes()}


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A run that was never stopped, and the folder of one that was killed."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "whole").mkdir()
    (folder / "killed").mkdir()
    with tiny.eager():
        whole = tiny.job(folder / "whole")
        loop.run(whole)
        with pytest.raises(KilledError):
            loop.run(killed(tiny.job(folder / "killed"), KILLED_AT))
    return whole, folder / "killed"


@pytest.fixture
def runs(before, tmp_path):
    """The run that was never stopped, and a fresh job in a copy of the other's folder."""
    whole, folder = before
    with tiny.eager():
        yield whole, tiny.job(shutil.copytree(folder, tmp_path / "killed"))


def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(runs):
    whole, resumed = runs
    position = checkpoint.read_json(resumed.out / "last" / "state.json")
    assert position["step"] == SAVED_AT
    loop.run(resumed, resume=True)
    assert differing(whole, resumed) == set()
    assert int(whole.step.loss_scale.skipped.numpy()) > 0  # the loss scale had something to say
    best = [load_file(job.out / "best" / "model.safetensors")["w.kernel"] for job in (whole, resumed)]
    np.testing.assert_array_equal(best[0], best[1])


def test_metrics_tell_every_step_once_and_the_same_numbers(runs):
    whole, resumed = runs
    with open(resumed.out / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 12, "lo')  # a kill in the middle of a line
    loop.run(resumed, resume=True)
    told = [tiny.lines(job.out) for job in (whole, resumed)]
    assert [line["step"] for line in told[1]] == list(range(1, 22))
    for one, other in zip(*told, strict=True):
        assert {k: v for k, v in one.items() if k not in ("seconds", "seq_per_s")} == {
            k: v for k, v in other.items() if k not in ("seconds", "seq_per_s")
        }


# What a resumed run might fail to restore, as the beginnings of the names it is saved by.
STATE = ("w.", "adam_mean.", "adam_square.", "updates", "loss_scale.scale", "loss_scale.good", "pending", "sum.")


@pytest.mark.parametrize("forgotten", STATE)
def test_forgetting_any_state_changes_the_weights(forgotten, runs):
    whole, resumed = runs
    real = checkpoint.assign

    def assign(variables, arrays, source):
        kept = {name: array for name, array in arrays.items() if not name.startswith(forgotten)}
        real({name: variables[name] for name in kept}, kept, source)

    with mock.patch.object(checkpoint, "assign", assign):
        loop.run(resumed, resume=True)
    assert {"w.kernel", "w.bias"} <= differing(whole, resumed)


def test_dropout_that_starts_anew_changes_the_weights(runs):
    whole, resumed = runs
    step = resumed.step

    class Forgetful:
        def __call__(self, batch, number):
            return step(batch, number - SAVED_AT)

        def __getattr__(self, name):
            return getattr(step, name)

    resumed.step = Forgetful()  # type: ignore[assignment]
    loop.run(resumed, resume=True)
    assert {"w.kernel", "w.bias"} <= differing(whole, resumed)


def test_data_that_starts_anew_changes_the_weights(runs):
    whole, resumed = runs
    batches = resumed.batches
    resumed.batches = lambda epoch, first: list(batches(epoch, 0))[: 7 - first]
    loop.run(resumed, resume=True)
    assert {"w.kernel", "w.bias"} <= differing(whole, resumed)


def test_resuming_a_finished_run_does_nothing(runs):
    whole, _ = runs
    again = tiny.job(whole.out)
    assert loop.run(again, resume=True) == {"best": {"step": 21}}
    assert differing(whole, again) == set()


def wait_for(process, run, step: int, timeout_s: float = 120) -> None:
    """Return when the run has a checkpoint and has told of so many steps."""
    until = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < until:
        metrics = run / "metrics.jsonl"
        if (run / "last").exists() and metrics.exists() and metrics.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.005)


def test_train_killed_by_the_system_and_resumed_ends_with_the_same_bits(tmp_path):
    """The whole command in float16: BERT's dropout, loss scale, half-summed gradients, shuffled batches."""
    tiny.arguments(tmp_path, count=40)  # writes the files that both runs read
    flags = [
        "--deterministic",
        "--amp",
        "float16",
        "--accumulate",
        "2",
        "--save-every",
        "3",
        "--log-every",
        "1",
        "--epochs",
    ]
    flags += ["6", "--loss-scale-initial", str(2.0**24), "--loss-scale-growth-interval", "4", "--device", "cpu"]
    whole, stopped = (tiny.start([*tiny.arguments(tmp_path, name, count=40), *flags]) for name in ("whole", "stopped"))
    try:
        wait_for(stopped, tmp_path / "stopped", 8)
        stopped.send_signal(signal.SIGKILL)
        assert stopped.wait(60) == -signal.SIGKILL, stopped.communicate()
        left = os.listdir(tmp_path / "stopped")
        again = tiny.start([*tiny.arguments(tmp_path, "stopped", count=40), *flags, "--resume"])
        ended = [tiny.finish(process) for process in (whole, again)]
    finally:
        for process in (whole, stopped):
            process.kill()
    assert [code for code, _, _ in ended] == [0, 0], [output[-2000:] for _, _, output in ended]
    assert {name.split(".")[0] for name in left} >= {"last", "config"}
    first, second = (tiny.lines(tmp_path / name) for name in ("whole", "stopped"))
    assert [line["step"] for line in first] == list(range(1, len(first) + 1))
    assert [(line["step"], line["loss"]) for line in second] == [(line["step"], line["loss"]) for line in first]
    for name in ("best/model", "last/model", "last/state"):
        one, other = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "stopped"))
        assert one.keys() == other.keys()
        assert [key for key in one if one[key].tobytes() != other[key].tobytes()] == []
    state = load_file(tmp_path / "whole" / "last" / "state.safetensors")
    assert state["loss_scale.skipped"] > 0
    assert state["updates"] > 0
