"""Several devices and several machines learn what one learns. As a script, this file is a process with two devices."""

import contextlib
import json
import os
import socket
import sys
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tiny

from configs.errors import UsageError, UserError
from data import batches, feed
from train import hardware
from train.epoch import epoch_batches, fed
from train.optimizer import AdamW
from train.precision import LossScale
from train.step import Step

STEPS = 20
SCALE, SKIPPED = 4, 6  # places in what a step returns, "stream" left out


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def cluster(workers: list[str], index: int) -> str:
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})


def test_two_workers_have_the_loss_curve_of_one_with_the_same_batch(tmp_path):
    flags = ["--epochs", "3", "--log-every", "1", "--dropout", "0", "--attention-dropout", "0", "--save-every", "1000"]
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    argv = [*tiny.arguments(tmp_path, "two"), *flags, "--distribute", "multiworker"]
    processes = [tiny.start(argv, TF_CONFIG=cluster(workers, index)) for index in (0, 1)]
    try:
        alone = tiny.train([*tiny.arguments(tmp_path, "one"), *flags])
        ended = [tiny.finish(process) for process in processes]
    finally:
        for process in processes:  # one that failed must not leave the other waiting for it
            process.kill()
    assert [code for code, _, _ in ended] == [0, 0], "\n".join(output[-2000:] for _, _, output in ended)
    curves = [[line["loss"] for line in tiny.lines(tmp_path / run)][:STEPS] for run in ("one", "two")]
    assert len(curves[0]) == STEPS
    assert curves[0][0] - curves[0][-1] > 0.3  # it learns: a curve that stands still would prove nothing
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
    assert [last["metrics"]["updates"] for _, last, _ in ended] == [alone["updates"]] * 2


@pytest.mark.parametrize(
    "stated",
    [
        None,
        "",
        "{}",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": 3, "task": 4}',
        "[1]",
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
    ],
)
def test_a_worker_without_a_usable_list_of_workers_says_what_it_needs(stated, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if stated is not None:
        monkeypatch.setenv("TF_CONFIG", stated)
    with pytest.raises(UserError, match="TF_CONFIG"):
        hardware.prepare("auto", "multiworker", False, 1)


@pytest.mark.parametrize(("kind", "index", "rank"), [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)])
def test_a_separate_chief_comes_first_and_alone_writes(kind, index, rank, monkeypatch):
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
    monkeypatch.setattr(hardware.tf.distribute, "MultiWorkerMirroredStrategy", mock.Mock)
    machine = hardware.prepare("auto", "multiworker", False, 1)
    assert (machine.rank, machine.ranks, machine.chief) == (rank, 3, rank == 0)


def test_a_process_has_one_mirrored_strategy():
    first, second = (hardware.prepare("auto", "mirrored", False, 1).strategy for _ in range(2))
    assert first is second
    assert first is not None


@pytest.mark.parametrize(("gpu", "way"), [(True, "NCCL"), (False, "AUTO")])
def test_workers_with_gpus_sum_by_nccl(gpu, way, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["a:1"]}, "task": {"index": 0}}))
    made = mock.Mock()
    monkeypatch.setattr(hardware.tf.distribute, "MultiWorkerMirroredStrategy", made)
    hardware._worker(gpu)
    assert made.call_args.kwargs["communication_options"].implementation.value == way


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path):
    strategy = mock.Mock(num_replicas_in_sync=3)
    machine = hardware.Hardware(False, strategy, rank=0, ranks=3, chief=True)
    with pytest.raises(UsageError, match=r"--batch-size 8 .*3 devices"):
        tiny.train(tiny.arguments(tmp_path), machine)


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """What the process with two devices saw."""
    path = tmp_path_factory.mktemp("two") / "seen.json"
    code, _, output = tiny.finish(tiny.start([str(path)], ("tests/test_workers.py",), PYTHONPATH=str(tiny.ROOT)))
    assert code == 0, output
    return json.loads(path.read_text(encoding="utf-8"))


def test_two_devices_of_one_machine_compute_what_one_computes(seen):
    assert seen["replicas"] == 2
    np.testing.assert_allclose(seen["two"], seen["one"], rtol=1e-5, atol=1e-6)
    assert [line[SCALE] for line in seen["one"]] == [8] * 4 + [4] * 7  # the third batch spoilt the second pair
    assert [line[SKIPPED] for line in seen["two"]] == [0] * 3 + [1] * 8
    for copies in seen["copies"].values():
        np.testing.assert_array_equal(copies[0], copies[1])


def test_every_replica_counts_steps_by_itself_and_the_host_sets_them_where_it_must(seen):
    assert seen["told"] == [30, 4]  # not 0 to 7, nor 31
    assert seen["ticks"] == [[0, 5], [0, 5]]


def test_dropout_differs_between_replicas_and_steps_and_is_that_of_the_step_when_a_run_goes_on(seen):
    one, two = seen["streams"]["one"], seen["streams"]["two"]
    numbers = np.array([*range(8), 30, 31, 4])
    assert one == (64 * numbers).tolist()
    assert two == (64 * numbers + (64 * numbers + 1)).tolist()  # the sum of both replicas' streams


def test_all_gradients_and_the_report_are_summed_by_one_collective_a_device(seen):
    assert seen["collectives"] == 2


def test_batches_come_in_order_each_share_on_its_own_device(seen):
    fed = seen["fed"]
    assert fed["rest"] == fed["whole"][9:]
    for batch in fed["whole"]:
        assert [share["device"][-5:] for share in batch["shares"]] == ["CPU:0", "CPU:1"]
        assert [share["copied"] for share in batch["shares"]] == ["float32", "float32"]  # int32 would lie on the host
        assert [share["type"] for share in batch["shares"]] == ["int32", "int32"]  # where they are computed with
        first, second = (share["token_ids"] for share in batch["shares"])
        mixed = np.stack([first, second], axis=1).reshape(4, -1)
        np.testing.assert_array_equal(mixed, batch["token_ids"])
        assert sum(sum(share["weight"]) for share in batch["shares"]) == batch["rows"]
    assert [batch["rows"] for batch in fed["whole"]] == [4] * 16 + [2]
    assert fed["copied"] == ["CPU:0", "CPU:1"]  # by the thread beside, not by the one that unpacks
    assert fed["threads"] == [True, False]  # while batches come, and after nobody wants any more


def _small_step(strategy) -> tuple[Step, dict]:
    """A step for y = x @ kernel on one device or several, two batches an update; and its weights."""
    with strategy.scope() if strategy else contextlib.nullcontext():
        weights = {"w.kernel": tf.Variable(tf.ones((4, 3)) / 4)}
        optimizer, scale = AdamW(weights, lambda done: 0.1), LossScale(True, 8.0)

        def objective(given, seed):
            loss = tf.square(given["x"] @ weights["w.kernel"] - given["y"])
            stream = tf.cast(seed[1] // 2**20, tf.float32)  # dropout is a function of it
            return {"loss": tf.reduce_sum(tf.reduce_sum(loss, axis=1) * given["weight"]), "stream": stream}

        parts = ("loss", "stream")
        return Step(objective, optimizer, scale, batch_size=8, parts=parts, accumulate=2, strategy=strategy), weights


def _two_devices(out: Path) -> None:
    """The same batches (one of them infinite) on one device and on two; what was seen, into a file."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    alone, both = (hardware.Hardware(False, each, rank=0, ranks=1, chief=True) for each in (None, strategy))
    (one, _), (two, weights) = _small_step(None), _small_step(strategy)
    seen: dict = {"replicas": strategy.num_replicas_in_sync, "one": [], "two": [], "told": []}
    seen["streams"] = {"one": [], "two": []}
    clock = two._clock
    two._clock = lambda step: seen["told"].append(step) or clock(step)
    random = np.random.default_rng(0)
    for number in (*range(8), 30, 31, 4):
        given = {"x": random.normal(size=(8, 4)), "y": random.normal(size=(8, 3)), "weight": np.arange(8) < 7}
        given = {name: value.astype(np.float32) for name, value in given.items()}
        given["token_ids"] = np.zeros((8, 1), np.int32)
        if number == 2:
            given["y"][5] = np.inf

        for name, step, machine in (("one", one, alone), ("two", two, both)):
            (batch,) = fed(iter([given]), machine)
            numbers = step(batch, number).numpy()
            seen["streams"][name].append(round(float(numbers[1]) * 7))  # a mean over seven rows
            seen[name].append(np.nan_to_num(np.delete(numbers, 1), posinf=-1, nan=-1).tolist())
    everything = {**two.variables(), **weights}
    copies = {
        name: [copy.numpy().tolist() for copy in strategy.experimental_local_results(variable)]
        for name, variable in {**everything, "ticks": two._ticks}.items()
    }
    seen["ticks"], seen["copies"] = copies.pop("ticks"), copies
    (function,) = two._run.made.values()
    graph = function.graph
    seen["collectives"] = sum(operation.type == "CollectiveReduceV2" for operation in graph.get_operations())
    seen["fed"] = _fed(strategy)
    out.write_text(json.dumps(seen), encoding="utf-8")


class _Windows:
    """Windows of two tokens, which are their number and its square; three parcels of batches of four."""

    together, length = 1, np.full(66, 2)

    @staticmethod
    def assemble(rows, pad_to: int) -> dict[str, np.ndarray]:
        return {"token_ids": np.stack([rows, rows**2], axis=1).astype(np.int32)}


def _fed(strategy) -> dict:
    """Batches of an epoch as two devices get them: the whole, the rest from the tenth on, and one that is the last."""
    machine = hardware.Hardware(False, strategy, rank=0, ranks=1, chief=True)
    settings = mock.Mock(batch_size=4, seed=3)
    plan = batches.plan(_Windows.length, 4, (2,), seed=3, epoch=1)

    def from_batch(first: int):
        return epoch_batches(_Windows, (2,), settings, machine, 1, first)

    def told(batch: feed.Packed, rows: int, given: dict) -> dict:
        shares = []
        for numbers in strategy.experimental_local_results(batch.numbers):
            share = batch.layout.apart(numbers)
            arrays = {name: share[name].numpy().tolist() for name in ("token_ids", "weight")}
            kinds = {"copied": numbers.dtype.name, "type": share["token_ids"].dtype.name}
            shares.append({"device": numbers.device} | kinds | arrays)
        return {"shares": shares, "rows": rows, "token_ids": given["token_ids"].tolist()}

    def epoch(first: int) -> list:
        own = batches.batches(_Windows, plan, first)  # type: ignore[arg-type]
        return [told(batch, rows, given) for (batch, rows), given in zip(from_batch(first), own, strict=True)]

    left = from_batch(0)
    next(left)
    threads = [any(thread.name == "batches" for thread in threading.enumerate())]
    left.close()
    threads.append(any(thread.name == "batches" for thread in threading.enumerate()))
    copied = feed.shares_uploaded(strategy.extended.worker_devices, [_Windows.assemble(np.arange(4), 2)])
    return {
        "whole": epoch(0),
        "rest": epoch(9),
        "threads": threads,
        "copied": [parcel.numbers.device[-5:] for _, parcel in copied],
    }


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    _two_devices(Path(sys.argv[1]))
