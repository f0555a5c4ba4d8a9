"""Writes `engine.json`: what an engine folder says of itself. `serve/manifest.py` reads and checks it.

Every file of the folder stands there with its size and hash, every plugin in the plan with the hash of its sources, and
beside them what the engine was made from, by which versions, and what the comparison with the checkpoint gave.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.command import plain, versions
from export.checkpoint import Checkpoint
from serve.fitting import source_hash
from serve.manifest import FORMAT, NAME, Profile, sha256


def describe(
    checkpoint: Checkpoint, *, precision: str, layout: str, gelu: str, profile: Profile, plan: dict[str, Any] | None
) -> dict[str, Any]:
    """What is known before the gate.

    plan: None, or {"target", "tensorrt" (its version), "cuda", "architectures", "plugins" (names), "plugin_layers",
    "features"} of model.plan.
    """
    info = checkpoint.info
    about = {
        "format": FORMAT,
        "task": info.task,
        "labels": list(checkpoint.head.labels),
        "head": checkpoint.head.settings,
        "layout": layout,
        "precision": precision,
        "sizes": checkpoint.config.to_dict(),
        "gelu": gelu,
        "tokenizer": checkpoint.tokenizer.config(),
        "window": info.window,
        "stride": info.stride,
        "query": info.query,
        "max_answer_tokens": info.max_answer_tokens,
        "no_answer_threshold": info.no_answer_threshold if info.version == "2.0" else None,
        "profile": {name: list(axis) for name, axis in asdict(profile).items() if axis},
        "plan": {"built": plan is not None, "was_run": False},
        "checkpoint": {"run": str(checkpoint.folder), "sha256": checkpoint.sha256},
        "versions": versions(),
        "verified": None,
    }
    if plan:
        names = plan.pop("plugins")
        about |= plan | {"plugins": {name: source_hash(name) for name in names}}
    return about


def write(folder: Path, about: dict[str, Any]) -> None:
    """Write engine.json over all files that lie in the folder now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    listed = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }
    text = json.dumps(plain(about | {"files": listed}), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def is_engine(folder: Path) -> bool:
    """Whether a folder looks like one of ours: it has an engine.json of any format."""
    try:
        stated = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(stated, dict) and "format" in stated and "files" in stated
