"""Float32 logits of all windows, what `check_engine` compares with: computed, or from a file of another machine.

The file is an .npz without pickles: start and end logits float32, all windows in a row; length int32 [windows];
and a hash of the weights and of all tokens, so that it is never compared with another run or other questions.
"""

import hashlib
import importlib.util
import zipfile
from pathlib import Path

import numpy as np

from configs.errors import UserError
from export import runners
from export.comparison import Logits, Questions
from serve.session import Session

MOST_BYTES = 1 << 30  # unpacked: 10,570 questions of SQuAD take 16 MB
ARRAYS = {"start": np.float32, "end": np.float32, "length": np.int32, "key": np.uint8}


def find(file: str | None, engine: str, questions: Questions) -> tuple[Logits, str]:
    """(float32 logits of all windows, where they come from): a file, Keras, or ONNX Runtime on the engine's folder."""
    if file:
        return read(Path(file), questions), f"Keras, from {Path(file).name}"
    if importlib.util.find_spec("tensorflow"):
        return runners.Keras(questions.checkpoint).logits(questions.features), "Keras"
    with Session.open(engine, "onnxruntime") as session:
        return runners.session_logits(session, questions.features, "reference"), session.why


def write(path: Path, logits: Logits, questions: Questions) -> int:
    """Write logits of all windows, flat; returns the bytes."""
    start, end = (np.concatenate(side).astype(np.float32) for side in logits)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:  # numpy would add .npz to another name
        np.savez_compressed(
            file, start=start, end=end, length=questions.features.length.astype(np.int32), key=key(questions)
        )
    return path.stat().st_size


def read(path: Path, questions: Questions) -> Logits:
    """What `write` wrote for this run and these questions. Raises: UserError for anything else."""
    again = "write it again with --write-reference"
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > MOST_BYTES:
                raise UserError(f"{path} unpacks to more than {MOST_BYTES:,} bytes; {again}")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} holds no logits ({error}); {again}") from error
    if any(array.dtype != ARRAYS[name] or array.ndim != 1 for name, array in arrays.items()):
        raise UserError(f"{path} holds other arrays than --write-reference writes; {again}")
    length = questions.features.length
    same = np.array_equal(arrays["key"], key(questions)) and np.array_equal(arrays["length"], length)
    if not same or not len(arrays["start"]) == len(arrays["end"]) == int(length.sum()):
        raise UserError(f"{path} is of another run, or of other questions; {again}")
    edges = np.cumsum(length)[:-1]
    return np.split(arrays["start"], edges), np.split(arrays["end"], edges)


def key(questions: Questions) -> np.ndarray:
    """uint8 [32]: SHA-256 of the weights' hash and of all windows' tokens."""
    digest = hashlib.sha256(questions.checkpoint.sha256.encode())
    features = questions.features
    for name in ("question_tokens", "context_tokens", "example", "context", "first", "count", "length"):
        digest.update(np.ascontiguousarray(getattr(features, name), np.int32).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)
