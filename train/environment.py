"""Environment variables that TensorFlow reads when it is imported: import this first. What the user has set, stays."""

import contextlib
import logging
import os
from pathlib import Path

CACHE = Path(os.environ.get("RETORT_CACHE") or Path.home() / ".cache" / "retort")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings hide what matters
with contextlib.suppress(OSError):  # XLA writes there only if the folder exists; without one nothing is kept
    (CACHE / "xla").mkdir(parents=True, exist_ok=True)
# XLA compiles a step for tens of seconds a shape; on a GPU the result is kept for the next run of the same sizes.
os.environ.setdefault(
    "TF_XLA_FLAGS",
    f"--tf_xla_persistent_cache_directory={CACHE / 'xla'} --tf_xla_persistent_cache_device_types=XLA_GPU_JIT",
)
logging.getLogger("tensorflow").setLevel(logging.ERROR)  # its warning of retracing: a shape a bucket is meant to be
