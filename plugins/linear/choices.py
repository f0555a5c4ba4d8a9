"""Which of cuBLASLt's algorithms was the fastest: in an engine's folder, else in ~/.cache/retort/cublaslt.

Timing takes 10 to 100 ms a shape, and an engine has dozens; and two processes that time for themselves may choose
differently and differ in the last bit of their results. So export times all shapes on a GPU that it finds and puts what
it chose into the folder (`write`), and whoever opens the engine offers that file (`offer`) before anything runs. Shapes
that no file knows are timed when they first run, and kept on disk.

An algorithm is cuBLASLt's own 64 bytes, which mean something to that version on that GPU alone, so both are in the
file, or in its name. A file that cannot be read or written costs the timing and nothing else, and cuBLASLt checks every
algorithm before it is used.
"""

import json
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from plugins import cache_folder

FILE = "cublaslt.json"  # in an engine folder
BYTES = 64  # of cublasLtMatmulAlgo_t
MOST_BYTES = 1 << 20  # of a file; ours have some kilobytes
WHOLE = re.compile(f"[0-9a-f]{{{2 * BYTES}}}")

_offered: dict[str, dict[str, str]] = {}  # what engine folders brought, by the name of the file on disk


class Choices:
    """Algorithms by a product's size class, for one GPU and one version of cuBLASLt. For several threads."""

    def __init__(self, gpu: str, version: int) -> None:
        self.path = cache_folder("cublaslt") / _name(gpu, version)
        self._lock = threading.Lock()
        self._known = _algorithms(_json(self.path))

    def get(self, size_class: tuple) -> np.ndarray | None:
        """uint64 [8], as cuBLASLt described the algorithm; None where the class is not known."""
        with self._lock:
            key = _key(size_class)
            stored = _offered.get(self.path.name, {}).get(key) or self._known.get(key)
        return None if stored is None else np.frombuffer(bytes.fromhex(stored), np.uint64).copy()

    def put(self, size_class: tuple, algorithm: np.ndarray) -> None:
        """Keep an algorithm, also beside those that another process has kept meanwhile."""
        with self._lock:
            self._known[_key(size_class)] = algorithm.tobytes().hex()
            self._known = _algorithms(_json(self.path)) | self._known
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle, scratch = tempfile.mkstemp(dir=self.path.parent)
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(self._known, file, indent=1, sort_keys=True)
                os.replace(scratch, self.path)


def write(path: Path, gpu: str, version: int, found: Mapping[tuple, np.ndarray]) -> None:
    """An engine folder's file: size class -> algorithm, uint64 [8], all of one GPU and one version of cuBLASLt."""
    algorithms = {_key(size_class): algorithm.tobytes().hex() for size_class, algorithm in found.items()}
    about = {"gpu": gpu, "cublaslt": version, "algorithms": algorithms}
    path.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def offer(path: Path, gpu: str, version: int) -> str:
    """Have an engine folder's file asked before the one on disk, for the rest of the process.

    Of two engines with a product of the same sizes the first one to run it decides for both. Returns "", or why the
    file is not used: a sentence for a person.
    """
    about = _json(path)
    algorithms = _algorithms(about.get("algorithms"))
    made, here = f"cuBLASLt {about.get('cublaslt')} on {about.get('gpu')}", f"cuBLASLt {version} on {gpu}"
    if not algorithms:
        return f"{path.name} holds no algorithms; they are timed when they are first needed"
    if made != here:
        return f"{path.name} is for {made[:200]}, here is {here}; algorithms are timed when they are first needed"
    _offered.setdefault(_name(gpu, version), {}).update(algorithms)
    return ""


def _name(gpu: str, version: int) -> str:
    """Of the file on disk."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', gpu).strip('_')}-{version}.json"


def _key(size_class: tuple) -> str:
    return " ".join(map(str, size_class))


def _json(path: Path) -> dict[str, Any]:
    """What a file holds; {} where it is none of ours."""
    try:
        if path.stat().st_size > MOST_BYTES:
            return {}
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _algorithms(known: Any) -> dict[str, str]:
    """Those entries that are algorithms."""
    if not isinstance(known, dict):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str) and WHOLE.fullmatch(value)}
