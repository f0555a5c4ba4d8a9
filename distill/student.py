"""The student: its sizes by name or by number, and what its variables hold before it has learnt anything."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configs.errors import UsageError, UserError
from distill.config import DistillConfig
from distill.layer_map import layer_map, listed
from heads import Head
from model import weights
from model.config import BertConfig

NAMED = {  # sizes of TinyBERT (Jiao et al. 2020) and MiniLM (Wang et al. 2020); what is not said is the teacher's
    "tinybert-4l-312": {"layers": 4, "hidden": 312, "heads": 12, "ffn": 1200},
    "tinybert-6l-768": {"layers": 6, "hidden": 768, "heads": 12, "ffn": 3072},
    "minilm-3l-384": {"layers": 3, "hidden": 384, "heads": 12, "ffn": 1536},
}


@dataclass(frozen=True)
class Student:
    """What there is to know of a student before it is built."""

    config: BertConfig
    layer_map: tuple[int, ...]  # the teacher's layer of each of its layers, from 1
    start: weights.Published  # first values; what it lacks is drawn by the run's seed
    told: str  # where they come from, for people


def plan(config: DistillConfig, teacher: weights.Published, head: Head) -> Student:
    """The student that the settings ask for. Raises: UsageError or UserError for one that cannot learn here."""
    own = None
    sizes: dict = {}
    if config.student in NAMED:
        sizes = dict(NAMED[config.student])
    elif config.student:
        if not Path(config.student).is_dir() and "/" not in config.student:
            raise UsageError(f"--student {config.student} is no folder and none of {', '.join(NAMED)}")
        own = weights.load(config.student, head)
    asked = {name: getattr(config, name) for name in ("layers", "hidden", "heads", "ffn")}
    sizes |= {name: size for name, size in asked.items() if size is not None}
    rates = {"dropout": config.dropout, "attention_dropout": config.attention_dropout}
    base = own.config if own else teacher.config
    built = replace(base, **sizes, **{name: rate for name, rate in rates.items() if rate is not None})
    if own and sizes and any(getattr(own.config, name) != size for name, size in sizes.items()):
        raise UsageError(
            f"--student {config.student} has its own sizes; leave out --layers, --hidden, --heads and --ffn"
        )
    if built.hidden > teacher.config.hidden:
        raise UsageError(
            f"the student is {built.hidden} wide, the teacher {teacher.config.hidden}; choose --hidden "
            f"{teacher.config.hidden} or less, or a wider teacher"
        )
    if built.vocabulary != teacher.config.vocabulary:
        raise UserError(
            f"the student has embeddings for {built.vocabulary} pieces, the teacher for {teacher.config.vocabulary}; "
            "both must be cut from the same vocabulary"
        )
    mapped = layer_map(config.layer_map, built.layers, teacher.config.layers)
    if own:
        return Student(built, mapped, own, f"{len(own.tensors)} tensors of {own.source}")
    same = built.hidden == teacher.config.hidden
    if config.fill == "teacher" and not same:
        raise UsageError(
            f"--fill teacher needs equal widths, the student has {built.hidden}, the teacher {teacher.config.hidden}; "
            f"choose --fill random, or --hidden {teacher.config.hidden}"
        )
    tensors = from_teacher(teacher, built, mapped, head) if same and config.fill != "random" else {}
    total = len(weights.expected_shapes(built, head))
    told = f"{len(tensors)} of {total} tensors from the teacher's layers {listed(mapped)}" if tensors else "random"
    return Student(built, mapped, replace(teacher, config=built, tensors=tensors, source="the teacher"), told)


def from_teacher(
    teacher: weights.Published, student: BertConfig, mapped: tuple[int, ...], head: Head
) -> dict[str, np.ndarray]:
    """Every tensor of the student that the teacher has in the same shape: embeddings, mapped layers, head.

    A layer's attention is taken only where the heads are as many, because they cut the same kernel differently.
    """
    taken = {}
    for name, shape in weights.expected_shapes(student, head).items():
        theirs = name
        if name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            theirs = f"layers.{mapped[int(index)] - 1}.{rest}"
            if rest.startswith(("attention.qkv", "attention.out")) and student.heads != teacher.config.heads:
                continue
        if theirs in teacher.tensors and teacher.tensors[theirs].shape == shape:
            taken[name] = teacher.tensors[theirs]
    return taken
