"""Checkpoints: whole after a kill at any moment, whole after a full disk, and refused when they do not fit."""

import errno
import json
import os
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from safetensors import SafetensorError
from safetensors.numpy import load_file

from configs.errors import UserError
from train import checkpoint


class KilledError(BaseException):
    """What a kill looks like from inside: nothing after it runs, no handler of ours sees it."""


def write(folder, value: float, count: int = 4) -> None:
    arrays = {"a": np.full(count, value, np.float32)}
    files = {"model.safetensors": arrays, "state.safetensors": arrays}
    checkpoint.write_folder(folder, files, {"state.json": {"step": value}})


def seen(folder) -> float:
    """The one value that all files of a checkpoint agree on."""
    found = {json.loads((folder / "state.json").read_text())["step"]}
    found |= {float(value) for name in ("model", "state") for value in load_file(folder / f"{name}.safetensors")["a"]}
    assert len(found) == 1, f"files of two checkpoints in one folder: {found}"
    return found.pop()


def kill_at(monkeypatch, module, name: str, call: int, after: bool) -> None:
    """Kill the process just before or just after so many calls of a function."""
    real, calls = getattr(module, name), []

    def wrapped(*arguments, **options):
        calls.append(arguments)
        if len(calls) == call and not after:
            raise KilledError
        result = real(*arguments, **options)
        if len(calls) == call:
            raise KilledError
        return result

    monkeypatch.setattr(module, name, wrapped)


# What is being done when the process dies, and the checkpoint that has to be there afterwards.
MOMENTS: dict[str, tuple[Any, ...]] = {
    "before anything is written": (checkpoint, "save_file", 1, False, 1.0),
    "between two files": (checkpoint, "save_file", 2, False, 1.0),
    "before the folder is synced": (checkpoint, "_sync", 4, False, 1.0),
    "before the old one is moved away": (os, "rename", 1, False, 1.0),
    "with neither in its place": (os, "rename", 1, True, 2.0),
    "before the new one is moved in": (os, "rename", 2, False, 2.0),
    "with the new one in place": (os, "rename", 2, True, 2.0),
    "before the old one is deleted": (shutil, "rmtree", 3, False, 2.0),  # two are recover()'s
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_leaves_one_whole_checkpoint(moment, tmp_path, monkeypatch):
    folder = tmp_path / "last"
    write(folder, 1.0)
    *where, expected = MOMENTS[moment]
    with monkeypatch.context() as patch:
        kill_at(patch, *where)
        with pytest.raises(KilledError):
            write(folder, 2.0)
    checkpoint.recover(folder)
    assert seen(folder) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    write(folder, 3.0)
    assert seen(folder) == 3.0


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_while_recovering_can_be_recovered_from(after, tmp_path, monkeypatch):
    folder = tmp_path / "last"
    write(folder, 1.0)
    for call, where in ((1, True), (1, after)):  # killed between the renames, then within recover()'s own rename
        with monkeypatch.context() as patch:
            kill_at(patch, os, "rename", call, where)
            with pytest.raises(KilledError):
                write(folder, 2.0)
    checkpoint.recover(folder)
    assert seen(folder) == 2.0


def test_a_torn_file_is_never_taken_for_a_checkpoint(tmp_path, monkeypatch):
    """Killed while the very first checkpoint was being written: there is none."""
    folder = tmp_path / "last"
    with monkeypatch.context() as patch:
        kill_at(patch, checkpoint, "save_file", 2, False)
        with pytest.raises(KilledError):
            write(folder, 1.0)
    (tmp_path / "last.new" / "state.safetensors").write_bytes(b"torn")
    checkpoint.recover(folder)
    assert not list(tmp_path.iterdir())


FULL = (
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
)


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_full_disk_leaves_the_previous_checkpoint_whole_and_says_so(error, tmp_path, monkeypatch):
    folder = tmp_path / "last"
    write(folder, 1.0)
    real = checkpoint.save_file

    def save(arrays, path):
        if path.name == "state.safetensors":
            path.write_bytes(b"half")
            raise error
        real(arrays, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save)
        with pytest.raises(UserError, match=r"no space left .* previous one in .*last is whole.* --resume"):
            write(folder, 2.0)
    assert seen(folder) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["last"]  # the half-written one takes no space
    write(folder, 3.0)
    assert seen(folder) == 3.0


def test_an_error_that_is_no_full_disk_is_not_called_one(tmp_path, monkeypatch):
    def save(*_):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint, "save_file", save)
    with pytest.raises(OSError, match="Permission denied"):
        write(tmp_path / "last", 1.0)


def test_a_disk_that_is_really_full_is_reported_as_such(tmp_path):
    """On a disk of 256 KiB: the first checkpoint fits, a second one beside it does not.

    Whoever is not root has the tests above, where the system's error is made up; in CI it is run by root."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        write(tmp_path / "last", 1.0, count=20_000)  # two files of 80 kB
        with pytest.raises(UserError, match="no space left"):
            write(tmp_path / "last", 2.0, count=20_000)
        assert seen(tmp_path / "last") == 1.0
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def variables(**shapes) -> dict[str, tf.Variable]:
    return {name: tf.Variable(tf.ones(shape)) for name, shape in shapes.items()}


def test_what_is_saved_comes_back_with_its_dtype(tmp_path):
    weights, state = variables(a=(2, 3)), {"updates": tf.Variable(2**40, dtype=tf.int64), "scale": tf.Variable(0.5)}
    checkpoint.save_last(tmp_path / "last", weights, state, {"step": 7})
    for variable in (*weights.values(), *state.values()):
        variable.assign(tf.zeros_like(variable))
    assert checkpoint.load_last(tmp_path / "last", weights, state) == {"step": 7}
    assert weights["a"].numpy().tolist() == [[1, 1, 1], [1, 1, 1]]
    assert (int(state["updates"].numpy()), float(state["scale"].numpy())) == (2**40, 0.5)


@pytest.mark.parametrize(("saved", "wanted", "named"), [
    ({"a": (2,)}, {"a": (2,), "b": (2,)}, r"1 tensors missing \['b'\]"),
    ({"a": (2,), "b": (2,)}, {"a": (2,)}, r"1 unknown \['b'\]"),
    ({"a": (2,)}, {"a": (3,)}, r"a has shape \(2,\), this run needs \(3,\)"),
])  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(saved, wanted, named, tmp_path):
    checkpoint.save_last(tmp_path / "last", variables(**saved), {}, {})
    with pytest.raises(UserError, match=named):
        checkpoint.load_last(tmp_path / "last", variables(**wanted), {})


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize("keep", [0, 9, -1])
def test_a_truncated_file_is_named(name, keep, tmp_path):
    weights, state = variables(a=(8,)), variables(b=(8,))
    checkpoint.save_last(tmp_path / "last", weights, state, {"step": 7, "best": None})
    path = tmp_path / "last" / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=name):
        checkpoint.load_last(tmp_path / "last", weights, state)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
def test_a_missing_file_is_named(name, tmp_path):
    checkpoint.save_last(tmp_path / "last", variables(a=(8,)), variables(b=(8,)), {"step": 7})
    (tmp_path / "last" / name).unlink()
    with pytest.raises(UserError, match=name):
        checkpoint.load_last(tmp_path / "last", variables(a=(8,)), variables(b=(8,)))


def test_resuming_without_a_checkpoint_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"before its first checkpoint.*--overwrite"):
        checkpoint.load_last(tmp_path / "last", {}, {})
