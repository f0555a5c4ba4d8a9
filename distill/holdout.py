"""A part of the training examples set aside to pick the best epoch on, so that dev is never used for picking."""

import hashlib
from dataclasses import replace
from typing import Any

from configs.errors import UserError
from heads import Head


def split(head: Head, dataset: Any, share: float) -> tuple[Any, Any]:
    """(the rest, the part set aside): whole groups of `Head.group` (articles of SQuAD), about `share` of the examples.

    Which groups is a matter of their names alone: every seed and every variant of an experiment picks on the same
    examples. Raises: UserError when there are too few groups.
    """
    sizes: dict[str, int] = {}
    for example in dataset.examples:
        group = head.group(example)
        sizes[group] = sizes.get(group, 0) + 1
    wanted, taken, chosen = share * len(dataset.examples), 0, set()
    for group in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        # half a group too many is nearer to the share than half a group too few
        if taken + sizes[group] / 2 <= wanted:
            chosen.add(group)
            taken += sizes[group]
    if not chosen or len(chosen) == len(sizes):
        raise UserError(
            f"{dataset.source} has {len(sizes)} {head.groups}, {share:.0%} of the examples cannot be set aside without "
            "parting one; raise --holdout, or name a file of its own with --dev"
        )
    held = [example for example in dataset.examples if head.group(example) in chosen]
    kept = [example for example in dataset.examples if head.group(example) not in chosen]
    return replace(dataset, examples=kept), replace(dataset, examples=held, source=f"{dataset.source} (held out)")
