"""The run folder: what train and distill write, and what distill, evaluate and export read. No TensorFlow here.

config.json            what the model is and how it was made (`RunInfo`)
best/model.safetensors the weights with the best dev score, float32, names as in `model/weights.py`
best/metrics.json      that score
last/                  the newest weights with everything that `--resume` needs (`train/checkpoint.py`)
vocab.txt  metrics.jsonl  events/ (TensorBoard)
"""

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from configs.errors import UserError
from model.config import BertConfig
from model.weights import read_json

FORMAT = "retort-run-1"


@dataclass
class RunInfo:
    """`config.json` of a run folder."""

    model: dict  # BertConfig's fields
    tokenizer: dict  # {lowercase, strip_accents, chinese}
    window: int
    stride: int
    query: int
    max_answer_tokens: int
    task: str = "squad"
    labels: list[str] = field(default_factory=list)  # in the order of the head's outputs; empty where it has none
    head: dict = field(default_factory=dict)  # settings of the head (`heads/`): columns, pooling ...
    version: str = "1.1"  # of SQuAD: "2.0" knows questions without an answer
    no_answer_threshold: float | None = None  # best on dev for version 2.0: above it the answer is "none"
    made: dict = field(default_factory=dict)  # command, settings, source of the weights, versions
    format: str = FORMAT

    @property
    def bert(self) -> BertConfig:
        return BertConfig(**self.model)


def write(folder: Path, info: RunInfo) -> None:
    """Write config.json so that a reader sees the old one or the new one, never half of it."""
    scratch = folder / "config.json.new"
    with open(scratch, "w", encoding="utf-8") as file:
        json.dump(asdict(info), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, folder / "config.json")


def read(folder: Path) -> RunInfo:
    """Read config.json. Raises: UserError when it is missing, of another format, or lacks keys."""
    if not folder.is_dir():
        raise UserError(f"no run folder at {folder}; train.py and distill.py write one")
    stated = read_json(folder / "config.json")
    if stated.get("format") != FORMAT:
        raise UserError(f"{folder}/config.json has format {stated.get('format')!r}, this version reads {FORMAT!r}")
    known = {item.name for item in fields(RunInfo)}
    if unknown := set(stated) - known:
        raise UserError(f"{folder}/config.json has unknown keys {sorted(unknown)}; it was written by another version")
    try:
        return RunInfo(**stated)
    except TypeError as error:
        raise UserError(f"{folder}/config.json is incomplete: {error}") from error
