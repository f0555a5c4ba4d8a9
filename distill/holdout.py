"""A part of the training questions set aside to pick the best epoch on, so that dev is never used for picking."""

import hashlib
from dataclasses import replace

from configs.errors import UserError
from data.squad import Dataset


def split(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """(the rest, the part set aside): whole articles, about `share` of the questions.

    Which articles is a matter of their titles alone (of the passage where there is no title): every seed and every
    variant of an experiment picks on the same questions. Raises: UserError when there are too few articles.
    """
    sizes: dict[str, int] = {}
    for example in dataset.examples:
        group = example.title or example.context
        sizes[group] = sizes.get(group, 0) + 1
    wanted, taken, chosen = share * len(dataset.examples), 0, set()
    for group in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        # half a group too many is nearer to the share than half a group too few
        if taken + sizes[group] / 2 <= wanted:
            chosen.add(group)
            taken += sizes[group]
    if not chosen or len(chosen) == len(sizes):
        raise UserError(
            f"{dataset.source} has {len(sizes)} articles, {share:.0%} of the questions cannot be set aside without "
            "parting one; raise --holdout, or name a file of its own with --dev"
        )
    held = [e for e in dataset.examples if (e.title or e.context) in chosen]
    kept = [e for e in dataset.examples if (e.title or e.context) not in chosen]
    return replace(dataset, examples=kept), replace(dataset, examples=held, source=f"{dataset.source} (held out)")
