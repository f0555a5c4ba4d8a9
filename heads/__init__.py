"""Heads: one file a kind of task. `find("glue/sst2")` is the entry that everything else asks.

head = find("glue/sst2")                          # as a flag names it, without labels yet
head = of_run(run_folder.read("runs/teacher"))    # as a run, or an engine's manifest, has it
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from configs.errors import UserError
from configs.flags import nearest
from heads.head import Head, Output

__all__ = ["DEFAULT_TASK", "Head", "Output", "default", "find", "of_run", "tasks"]
DEFAULT_TASK = "squad"


def entries() -> dict[str, type[Head]]:
    """Task -> its head's class, from every file of this folder; a file is all that a new head needs."""
    found: dict[str, type[Head]] = {}
    for module in sorted(item.name for item in pkgutil.iter_modules(__path__)):
        if entry := getattr(importlib.import_module(f"{__name__}.{module}"), "HEAD", None):
            found |= dict.fromkeys(entry.tasks, entry)
    return found


def tasks() -> tuple[str, ...]:
    """What --task may say."""
    return tuple(entries())


def by_path() -> dict[str, type[Head]]:
    """Route of the server -> the head whose requests it takes; heads of one route take the same ones."""
    return {entry.path(): entry for entry in entries().values()}


def find(task: str, labels: Sequence[str] = (), settings: Mapping[str, Any] | None = None) -> Head:
    """The head of a task. Raises: UserError for a task that nobody knows, or a setting that its head has not."""
    there = entries()
    if task not in there:
        raise UserError(f"no task {task!r}{nearest(task, there)}; there are {', '.join(there)}")
    return there[task](task, labels, settings)


def default() -> Head:
    """Of `DEFAULT_TASK`: what train.py takes where no task is named."""
    return find(DEFAULT_TASK)


def of_run(run: Any, **changes: Any) -> Head:
    """The head of a run's config.json or an engine's manifest: its task, labels and settings.

    changes: settings that are other ones now; None is no change.
    """
    found = find(run.task)
    stated = {name: run.head.get(name, getattr(run, name, None)) for name in found.takes}
    stated |= {name: value for name, value in changes.items() if value is not None and name in found.takes}
    return find(run.task, run.labels, stated)


def of_flags(config: Any) -> Head:
    """The head of a command's settings: --task and the flags that its head takes."""
    found = find(config.task)
    return find(config.task, (), {name: getattr(config, name, None) for name in found.takes})
