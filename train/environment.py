"""Environment variables that TensorFlow reads when it is imported: import this first. What the user has set, stays."""

import contextlib
import hashlib
import importlib.metadata
import logging
import os
from pathlib import Path

CACHE = Path(os.environ.get("RETORT_CACHE") or Path.home() / ".cache" / "retort")


def compiled_code(cache: Path = CACHE) -> Path:
    """Folder for what XLA compiles: one for each TensorFlow, set of XLA's flags and kind of GPU.

    TensorFlow looks compiled code up by the computation alone, and would hand out what other flags have made.
    """
    made_by = os.environ.get("XLA_FLAGS", "").split()
    for name in ("tensorflow", "tensorflow-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            made_by.append(importlib.metadata.version(name))
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            made_by += [line for line in path.read_text().splitlines() if line.startswith("Model")]
    return cache / "xla" / hashlib.sha256("\n".join(made_by).encode()).hexdigest()[:12]


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings hide what matters
with contextlib.suppress(OSError):  # XLA writes there only if the folder exists; without one nothing is kept
    compiled_code().mkdir(parents=True, exist_ok=True)
# XLA compiles a step for tens of seconds a shape; on a GPU the result is kept for the next run of the same sizes. Of
# TensorFlow's two ways to XLA one asks for the device's type here and one for that of its compiler.
os.environ.setdefault(
    "TF_XLA_FLAGS",
    f"--tf_xla_persistent_cache_directory={compiled_code()} --tf_xla_persistent_cache_device_types=GPU,XLA_GPU_JIT",
)
logging.getLogger("tensorflow").setLevel(logging.ERROR)  # its warning of retracing: a shape a bucket is meant to be
