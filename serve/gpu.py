"""Is there an NVIDIA GPU, and which? Asked through the CUDA runtime alone, and answered with a reason where none is.

CUDA's first visible device is meant wherever serve speaks of "the GPU"; CUDA_VISIBLE_DEVICES chooses another one.
"""

import os
import platform
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    name: str  # "NVIDIA H200"
    architecture: int  # compute capability x 10: 90 for 9.0


def find() -> Gpu | str:
    """The GPU; or why there is none, in words that fit behind "no GPU: "."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        return f"cuda-bindings is not installed ({error})"
    status, count = runtime.cudaGetDeviceCount()
    if status != runtime.cudaError_t.cudaSuccess:
        return f"CUDA says {status.name}"
    if not count:
        return "CUDA sees no device"
    status, about = runtime.cudaGetDeviceProperties(0)
    if status != runtime.cudaError_t.cudaSuccess:
        return f"CUDA says {status.name}"
    return Gpu(about.name.split(b"\0")[0].decode("utf-8", "replace"), about.major * 10 + about.minor)


def visible() -> list[str]:
    """The GPUs that CUDA sees, as CUDA_VISIBLE_DEVICES names them; none: an empty list."""
    if isinstance(find(), str):
        return []
    from cuda.bindings import runtime

    count = runtime.cudaGetDeviceCount()[1]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in named.split(",")][:count] if named else [str(place) for place in range(count)]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_name() -> str:
    """The processor as its maker names it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
