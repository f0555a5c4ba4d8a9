"""The teacher's outputs on disk: computed once for every window, read back in later epochs instead of asking again.

One file a kind of output, all windows' real tokens in a row, or a value a window; a window finds its own by its row.
Attention scores are never kept: they grow with the square of the length. The folder's name says what was computed from
what, so that a second run, or a resumed one, finds it again and another teacher does not.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from configs.errors import UserError
from data import batches
from data.batches import Windows
from distill.objective import PREFIX, Recipe, teacher_outputs
from heads import Head
from model import weights
from model.heads import HeadModel
from train.evaluate import ROWS
from train.forward import Forward

Column = tuple[tuple[int, ...], str]  # (shape of one, "token" or "sequence")
Columns = dict[str, Column]
FORMAT = 2  # part of the key: raise it when the files change their meaning


@dataclass(frozen=True)
class TeacherCache:
    """Outputs of all windows: name -> array [tokens, ...] or [windows, ...], mapped from disk; window w at start[w]."""

    columns: dict[str, np.ndarray]
    start: np.ndarray  # [W + 1]

    def extend(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with the outputs of its rows, [rows, S, ...] or [rows, ...], zeros at padding and in fillers."""
        rows, length = batch["row"], batch["token_ids"].shape[1]
        added = {}
        for name, column in self.columns.items():
            if len(column) == len(self.start) - 1:  # a value a window
                real = (rows >= 0).reshape(-1, *[1] * (column.ndim - 1))
                added[name] = np.where(real, column[np.maximum(rows, 0)], np.zeros((), column.dtype))
                continue
            padded = np.zeros((len(rows), length, *column.shape[1:]), column.dtype)
            for place, row in enumerate(rows):
                if row >= 0:
                    own = column[self.start[row] : self.start[row + 1]]
                    padded[place, : len(own)] = own
            added[name] = padded
        return batch | added


def shapes(recipe: Recipe, teacher: weights.Published, head: Head) -> Columns | None:
    """Output -> (its shape a token or a window, which of them), or None if the recipe needs what is not kept."""
    hidden = teacher.config.hidden
    sizes: Columns = {"hidden": ((hidden,), "token")}
    sizes |= dict.fromkeys(("query", "key", "value"), ((teacher.config.heads, teacher.config.head_size), "token"))
    sizes |= {o.key: (() if o.width is None else (o.width,), o.per) for o in head.outputs(hidden)}
    kinds = {name: name.removeprefix(PREFIX).split(".")[0] for name in recipe.needed}
    if any(kind not in sizes for kind in kinds.values()):
        return None
    return {name: sizes[kind] for name, kind in kinds.items()}


def kept_dtype(name: str, recipe: Recipe, compute: str) -> np.dtype:
    """The head's outputs are float32; everything else is kept in the type it is computed in."""
    if name.removeprefix(PREFIX) in recipe.answers:
        return np.dtype(np.float32)
    return np.dtype(ml_dtypes.bfloat16 if compute == "bfloat16" else compute)


def full_shape(column: Column, features: Windows) -> tuple[int, ...]:
    """Of the array of all windows: two windows or more have more tokens than there are windows."""
    shape, per = column
    return (int(features.length.sum()) if per == "token" else len(features), *shape)


def size_bytes(columns: Columns, recipe: Recipe, features: Windows, compute: str) -> int:
    """What the files of these columns take."""
    return sum(
        int(np.prod(full_shape(column, features))) * kept_dtype(name, recipe, compute).itemsize
        for name, column in columns.items()
    )


def key(teacher: weights.Published, features: Windows, columns, compute: str) -> str:
    """A hash of all that the outputs depend on."""
    digest = hashlib.blake2b(repr((FORMAT, compute, sorted(columns), teacher.config)).encode(), digest_size=12)
    for name in sorted(teacher.tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(teacher.tensors[name]).data)
    digest.update(features.fingerprint().encode())
    return digest.hexdigest()


def open_or_compute(
    folder: Path,
    teacher: HeadModel,
    features: Windows,
    recipe: Recipe,
    columns: Columns,
    edges: tuple[int, ...],
    compute: str,
    jit: bool,
    say: Callable[..., None],
) -> TeacherCache:
    """The cache in `folder`, computed first if it is not there. Raises: UserError when the disk is too small."""
    start = np.concatenate([[0], np.cumsum(features.length, dtype=np.int64)])
    needed = size_bytes(columns, recipe, features, compute)
    if folder.is_dir():
        say(f"teacher's outputs: {needed / 2**30:.2f} GiB, found in {folder}")
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < needed:
            raise UserError(
                f"--cache-teacher needs {needed / 2**30:.2f} GiB in {folder.parent}, {free / 2**30:.2f} are free; make "
                "room, name another folder with --cache, or lower --cache-budget-gib so that hidden states stay out"
            )
        say(f"teacher's outputs: {needed / 2**30:.2f} GiB, computed once into {folder}")
        scratch = Path(tempfile.mkdtemp(prefix=".teacher-", dir=folder.parent))
        try:
            _compute(scratch, teacher, features, recipe, columns, edges, compute, jit, start)
            if not folder.is_dir():  # another run may have been quicker
                os.rename(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    found: dict[str, np.ndarray] = {
        name: np.memmap(folder / name, kept_dtype(name, recipe, compute), "r", shape=full_shape(column, features))
        for name, column in columns.items()
    }
    return TeacherCache(found, start)


def _compute(scratch, teacher, features, recipe, columns, edges, compute, jit, start) -> None:
    """Every window through the teacher once, its real tokens into the files."""
    files = {
        name: np.memmap(scratch / name, kept_dtype(name, recipe, compute), "w+", shape=full_shape(column, features))
        for name, column in columns.items()
    }
    forward = Forward(lambda batch: teacher_outputs(teacher, batch, recipe), jit)
    length = features.length
    for rows, outputs in forward(features, batches.plan(features.length, ROWS, edges, shuffle=False), "teacher"):
        for name, column in files.items():
            values = outputs[name]  # [ROWS, S, ...] or [ROWS, ...]
            for place, row in enumerate(rows):
                if row >= 0 and columns[name][1] == "token":
                    column[start[row] : start[row + 1]] = values[place, : length[row]]
                elif row >= 0:
                    column[row] = values[place]
    for column in files.values():
        column.flush()
