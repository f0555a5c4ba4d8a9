"""Whether --out may be written: nothing of a user's is ever deleted that is not a run folder named for it."""

import dataclasses
import json
import shutil
from pathlib import Path

from configs.errors import UsageError, UserError
from model import run_folder
from train.config import RunConfig

# What may differ on --resume: it has no influence on what is learnt.
FREE_TO_CHANGE = {
    "resume", "overwrite", "log_every", "save_every", "cache", "out", "device", "cache_teacher", "cache_budget_gib",
}  # fmt: skip
# Settings that name files.
INPUTS = ("model", "teacher", "student", "general_teacher", "augment_model", "data", "dev", "text", "vocab")


def check_out(out: Path, config: RunConfig) -> None:
    """Raise a UsageError unless --out is free, or a run that the settings allow to go on with or to overwrite."""
    if config.resume:
        if not (out / "config.json").exists():
            raise UsageError(f"--resume: there is no run in {out}; leave --resume out to start one")
        before = run_folder.read(out).made.get("settings", {})
        now = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples as the file has them: lists
        changed = {name for name in now if name not in FREE_TO_CHANGE and before.get(name) != now[name]}
        if changed:
            names = ", ".join(f"{name} ({before.get(name)} -> {now[name]})" for name in sorted(changed))
            raise UsageError(f"--resume goes on with the same settings; changed: {names}. Start another run for those")
    elif out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, a run needs a folder; name another --out")
    elif out.exists() and any(out.iterdir()):
        if not config.overwrite:
            raise UsageError(
                f"{out} exists; add --resume to go on with it, --overwrite to start again, or name another --out"
            )
        if not is_run(out):
            raise UsageError(f"{out} is no run folder, it is not overwritten; name another --out")
        for name in INPUTS:
            given = getattr(config, name, None)
            source = Path(given or "").resolve()
            if given and (source == out.resolve() or out.resolve() in source.parents):
                raise UsageError(f"--overwrite would delete --{name} {source}, which lies in --out; name another --out")


def is_run(folder: Path) -> bool:
    """Whether the folder is one of ours; a model's folder has a config.json, too."""
    try:
        return bool(run_folder.read(folder))
    except UserError:
        return False


def empty(folder: Path) -> None:
    """Make the folder, or delete all that is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
