"""Which of cuBLASLt's algorithms was the fastest, kept from process to process in ~/.cache/retort/cublaslt.

Timing takes 10 to 100 ms a shape, and an engine has dozens; and two processes that time for themselves may choose
differently and differ in the last bit of their results. An algorithm is cuBLASLt's own 64 bytes, which mean something
to that version on that GPU alone, so both are in the file's name. A file that cannot be read or written costs the
timing and nothing else, and cuBLASLt checks every algorithm before it is used.
"""

import json
import os
import re
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

from plugins import cache_folder

BYTES = 64  # of cublasLtMatmulAlgo_t
MOST_BYTES = 1 << 20  # of a file; ours have some kilobytes


class Choices:
    """Algorithms by a product's size class, for one GPU and one version of cuBLASLt. For several threads."""

    def __init__(self, gpu: str, version: int) -> None:
        name = re.sub(r"[^A-Za-z0-9]+", "_", gpu).strip("_")
        self.path = cache_folder("cublaslt") / f"{name}-{version}.json"
        self._lock = threading.Lock()
        self._known = _read(self.path)

    def get(self, size_class: tuple) -> np.ndarray | None:
        """uint64 [8], as cuBLASLt described the algorithm; None where the class is not known."""
        with self._lock:
            stored = self._known.get(_key(size_class))
        return None if stored is None else np.frombuffer(bytes.fromhex(stored), np.uint64).copy()

    def put(self, size_class: tuple, algorithm: np.ndarray) -> None:
        """Keep an algorithm, also beside those that another process has kept meanwhile."""
        with self._lock:
            self._known[_key(size_class)] = algorithm.tobytes().hex()
            self._known = _read(self.path) | self._known
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle, scratch = tempfile.mkstemp(dir=self.path.parent)
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(self._known, file, indent=1, sort_keys=True)
                os.replace(scratch, self.path)


def _key(size_class: tuple) -> str:
    return " ".join(map(str, size_class))


def _read(path: Path) -> dict[str, str]:
    """What a file holds, those entries that are algorithms; {} where it is none of ours."""
    try:
        if path.stat().st_size > MOST_BYTES:
            return {}
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(known, dict):
        return {}
    whole = re.compile(f"[0-9a-f]{{{2 * BYTES}}}")
    return {key: value for key, value in known.items() if isinstance(value, str) and whole.fullmatch(value)}
