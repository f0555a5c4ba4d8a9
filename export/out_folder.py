"""Folders that appear whole or not at all: written beside their place, renamed at the end.

Nothing of a user's is deleted that this command has not written: an --out that exists is replaced with --overwrite
alone, and only if it looks like ours.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import UsageError

Ours = Callable[[Path], bool]


def check(flag: str, out: Path, overwrite: bool, ours: Ours, inputs: dict[str, str | None]) -> None:
    """Raise a UsageError unless a folder may be written at `out`.

    flag: what the user called it, "--out"; ours: whether a folder is one that this flag writes; inputs: flag -> path
    of what is read, which must not lie in a folder that is replaced.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{flag} {out} is {'a link' if out.is_symlink() else 'a file'}; name a folder that is free")
    for name, given in inputs.items():
        source = Path(given or "").resolve()
        if given and (source == out.resolve() or out.resolve() in source.parents):
            raise UsageError(f"{flag} {out} would replace {name} {given}; name another {flag}")
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{flag} {out} exists; add --overwrite to replace it, or name another")
    if not ours(out):
        raise UsageError(f"{flag} {out} was not written by this command, it is not overwritten; name another")


@contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` to write into; what is still there at the end is removed, whatever happened."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{os.getpid()}")  # not "writing": two exports at once must not meet
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move(folder: Path, out: Path) -> None:
    """Put a finished folder in its place; what was there goes, but only after the new one has arrived."""
    _as_any_file(folder)
    before = out.with_name(f".{out.name}.{os.getpid()}.before")
    if out.exists():
        os.rename(out, before)
    os.rename(folder, out)
    shutil.rmtree(before, ignore_errors=True)


def _as_any_file(folder: Path) -> None:
    """Some libraries write files that their owner alone may read; what serves an engine is often another user."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)
