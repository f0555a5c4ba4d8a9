"""Checkpoints that survive a kill at any moment, and resuming from them.

A checkpoint is a folder written beside its final place and moved there by renaming. Whatever moment a process dies
at, one whole checkpoint is found again:

    write NAME.new, fsync   |  rename NAME -> NAME.old  |  rename NAME.new -> NAME  |  delete NAME.old
    NAME is whole           |  NAME.new is whole        |  NAME is whole            |  NAME is whole
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from safetensors.numpy import save_file

from configs.errors import UserError
from model.weights import MODEL_FILE, read_json, read_tensors

STATE_FILE, POSITION_FILE = "state.safetensors", "state.json"


def values(variables: Mapping[str, keras.Variable | tf.Variable]) -> dict[str, np.ndarray]:
    """The variables' values by name, contiguous, as safetensors wants them."""
    # not ascontiguousarray, which makes [1] of a scalar
    return {name: np.asarray(variable.numpy(), order="C") for name, variable in variables.items()}


def assign(
    variables: Mapping[str, keras.Variable | tf.Variable], arrays: Mapping[str, np.ndarray], source: str
) -> None:
    """Set every variable from `arrays`; both must have the same names and shapes.

    Raises: UserError naming what differs.
    """
    missing, unknown = sorted(variables.keys() - arrays.keys()), sorted(arrays.keys() - variables.keys())
    if missing or unknown:
        raise UserError(
            f"{source} does not fit this run: {len(missing)} tensors missing {missing[:3]}, {len(unknown)} unknown "
            f"{unknown[:3]}; resume with the settings the run was started with"
        )
    for name, variable in variables.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise UserError(f"{source}: {name} has shape {arrays[name].shape}, this run needs {tuple(variable.shape)}")
        variable.assign(arrays[name])


def write_folder(folder: Path, tensors: Mapping[str, Mapping[str, np.ndarray]], documents: Mapping[str, dict]) -> None:
    """Write a checkpoint folder atomically.

    Args: tensors: file name -> tensors; documents: file name -> JSON object.
    Raises: UserError when the disk is full; the previous checkpoint is then untouched.
    """
    scratch, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    recover(folder)
    try:
        scratch.mkdir(parents=True)
        for name, arrays in tensors.items():
            save_file(dict(arrays), scratch / name)
            _sync(scratch / name)
        for name, document in documents.items():
            (scratch / name).write_text(json.dumps(document), encoding="utf-8")
            _sync(scratch / name)
        _sync(scratch)
    except Exception as error:
        shutil.rmtree(scratch, ignore_errors=True)
        # safetensors wraps the operating system's error in its own
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if not full:
            raise
        kept = f"the previous one in {folder} is whole" if folder.exists() else "there was none before"
        raise UserError(
            f"no space left on the disk for a checkpoint; {kept}. Make room and go on with --resume"
        ) from error
    if folder.exists():
        os.rename(folder, old)
    os.rename(scratch, folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Finish or undo what a killed process left: afterwards `folder` is a whole checkpoint or does not exist."""
    scratch, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():  # killed between the two renames; scratch was complete before the first
        os.rename(scratch if scratch.exists() else old, folder)
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def save_last(folder: Path, weights, state, position: dict) -> None:
    """Write last/: weights, everything else that changes (slots, loss scale, sums) and the position in the data."""
    write_folder(folder, {MODEL_FILE: values(weights), STATE_FILE: values(state)}, {POSITION_FILE: position})


def load_last(folder: Path, weights, state) -> dict:
    """Restore what `save_last` wrote; returns the position. Raises: UserError when it is missing or does not fit."""
    recover(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist: the run stopped before its first checkpoint; start it with --overwrite"
        )
    for name in (MODEL_FILE, STATE_FILE, POSITION_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}; put it back, or start the run again with --overwrite")
    assign(weights, read_tensors(folder / MODEL_FILE), str(folder / MODEL_FILE))
    assign(state, read_tensors(folder / STATE_FILE), str(folder / STATE_FILE))
    return read_json(folder / POSITION_FILE)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
