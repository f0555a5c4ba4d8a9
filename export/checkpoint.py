"""The run folder as export needs it: weights, sizes and vocabulary, all checked before an hour goes into a plan.

Read with numpy alone; TensorFlow is not needed here.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import heads
from configs.errors import UserError
from configs.flags import listed
from data.tokenize import Tokenizer
from heads import Head
from model import run_folder, weights
from model.config import BertConfig
from serve.manifest import sha256

NUMBERS = ("window", "stride", "query", "max_answer_tokens")
WINDOW, STRIDE, QUERY, ANSWER = 384, 128, 64, 30  # tokens, of weights that say nothing of them


@dataclass(frozen=True)
class Checkpoint:
    """A run's best weights and what the engine has to know beside them."""

    folder: Path
    info: run_folder.RunInfo
    config: BertConfig
    tensors: dict[str, np.ndarray]  # our name -> float32
    tokenizer: Tokenizer
    sha256: str  # of best/model.safetensors
    head: Head


def read(run: str | Path, task: str | None = None) -> Checkpoint:
    """Read and check a run folder; or published weights, which do not say what they are for: `task` does.

    With a run folder `task` takes its encoder for another task, one that needs no head of its own: embed, encode.

    Raises: UserError for missing or damaged files, an unknown task, weights that are not finite float32 or do not fit
        config.json, a vocabulary or a window larger than the weights' tables.
    """
    folder = Path(run)
    info = _published(folder, task) if task else run_folder.read(folder)
    if info.task not in heads.tasks():
        raise UserError(
            f"{folder} was trained for the task {info.task!r}, whose head the graph does not know; "
            f"it knows {listed(heads.tasks())}"
        )
    head = heads.of_run(info)
    is_run = (folder / "best").is_dir() or not task
    path = folder / "best" / weights.MODEL_FILE if is_run else folder / weights.MODEL_FILE
    if not path.is_file():
        raise UserError(f"{path} is missing: the run has saved no best weights yet; let it finish, or --resume it")
    published = weights.load(str(folder), head)
    if missing := [name for name in head.shapes(published.config) if name not in published.tensors]:
        raise UserError(f"{path} lacks {listed(missing)}: it has no head for {info.task!r}; fine-tune it with train.py")
    _check_values(published.tensors, path)
    _check_numbers(info, published.config, folder)
    vocabulary = folder / "vocab.txt"
    if not vocabulary.is_file():
        raise UserError(f"{vocabulary} is missing; copy the vocabulary that the run was trained with there")
    tokenizer = Tokenizer.from_config(info.tokenizer, vocabulary)
    if tokenizer.size > published.config.vocabulary:
        raise UserError(
            f"{vocabulary} has {tokenizer.size} pieces, the embeddings have {published.config.vocabulary} rows; "
            "take the vocab.txt that belongs to the weights"
        )
    return Checkpoint(folder, info, published.config, published.tensors, tokenizer, sha256(path), head)


def _published(folder: Path, task: str) -> run_folder.RunInfo:
    """What a run folder says but for its task, or would say of published weights, with the usual windows.

    Raises: UserError for what is neither a run folder nor a Hugging Face folder.
    """
    if (folder / "best").is_dir():
        return replace(run_folder.read(folder), task=task, labels=list(heads.find(task).labels), head={})
    if not (folder / weights.MODEL_FILE).is_file():
        raise UserError(f"{folder} has no {weights.MODEL_FILE}: --task is for a Hugging Face folder; is it one?")
    source = weights.load(str(folder))
    window = min(WINDOW, source.config.positions)
    return run_folder.RunInfo(
        source.config.to_dict(), source.tokenizer, window, min(STRIDE, window), min(QUERY, window // 4), ANSWER,
        task=task, labels=list(heads.find(task).labels) or source.labels,
    )  # fmt: skip


def _check_values(tensors: dict[str, np.ndarray], path: Path) -> None:
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise UserError(f"{path}: {name} is {array.dtype}; best/ holds float32 master weights, write it again")
        if not np.isfinite(array).all():
            kind = "NaN" if np.isnan(array).any() else "infinite values"
            raise UserError(
                f"{path}: {name} holds {kind}: the run diverged or the file is damaged; take another checkpoint"
            )


def _check_numbers(info: run_folder.RunInfo, config: BertConfig, folder: Path) -> None:
    for name in NUMBERS:
        value = getattr(info, name)
        if type(value) is not int or value < 1:
            raise UserError(f"{folder}/config.json: {name} is {value!r}; needed is a whole number above 0")
    if info.window > config.positions:
        raise UserError(
            f"{folder}/config.json has windows of {info.window} tokens, the weights have {config.positions} position "
            "vectors; they do not belong together"
        )
