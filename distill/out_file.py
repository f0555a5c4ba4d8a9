"""The file that `python -m distill.augment` writes: looked at before the work, written beside its place, renamed."""

import gzip
import os
from collections.abc import Iterable
from pathlib import Path

from configs.errors import UsageError, UserError


def check_out(out: Path, kinds: tuple[str, ...], overwrite: bool, inputs: tuple[str | None, ...] = ()) -> str:
    """The kind of the file, one of `kinds` (".json"), packed (.gz) or not; makes its folder.

    inputs: what the command reads, and must not write over. Raises: a UserError now, rather than after the work, if
    `out` cannot be written.
    """
    kind = Path(out.name.removesuffix(".gz")).suffix
    if kind not in kinds:
        raise UsageError(f"--out {out} must end in {' or '.join(kinds)}, packed (.gz) or not")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file")
    if any(name and Path(name).exists() and Path(name).resolve() == out.resolve() for name in inputs):
        raise UsageError(f"--out {out} is what is read; name another file")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; add --overwrite to replace it, or name another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _scratch(out).touch()
        _scratch(out).unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); name a file elsewhere") from error
    return kind


def write(pieces: Iterable[str], out: Path) -> None:
    """Write elsewhere and rename: a reader sees the whole file or none. The same text gives the same bytes."""
    scratch = _scratch(out)
    try:
        with open(scratch, "wb") as file:
            if out.suffix == ".gz":
                with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                    packed.writelines(piece.encode() for piece in pieces)
            else:
                file.writelines(piece.encode() for piece in pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, out)
    finally:
        scratch.unlink(missing_ok=True)


def _scratch(out: Path) -> Path:
    return out.with_name(f".{out.name}.{os.getpid()}")
