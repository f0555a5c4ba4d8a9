"""The least time that this machine could need for an encoder: its arithmetic or its weights, whichever takes longer.

Both limits are measured in the same run: the rate of one large product (`plugins/peaks.py`; numpy's on a CPU) and that
of a copy within memory. It is a floor of kernels that reach those rates all the time, with nothing else to do.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.quantisation import FORMATS
from model.config import BertConfig
from plugins import peaks
from plugins.device import Device
from scripts.bench_engine_plans import Shape

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int8": 1}


@dataclass(frozen=True)
class Peaks:
    """Operations (multiplications and additions) and bytes a second; nan where not measured."""

    operations: float
    operations8: float  # of 8-bit products
    bytes: float

    def floor_ms(self, config: BertConfig, shape: Shape, precision: str) -> float:
        """Of a forward pass over full sequences."""
        eight = precision in FORMATS
        weights = config.layers * (4 * config.hidden**2 + 2 * config.hidden * config.ffn)
        products = 2.0 * weights * shape.batch * shape.length
        attention = 4.0 * config.layers * config.hidden * shape.batch * shape.length**2  # in 16 bits always
        computed = products / (self.operations8 if eight else self.operations) + attention / self.operations
        return 1e3 * float(np.maximum(computed, weights * BYTES[precision] / self.bytes))

    def __str__(self) -> str:
        eight = f", {self.operations8 / 1e12:,.0f} in 8 bits" if np.isfinite(self.operations8) else ""
        return f"{self.operations / 1e12:,.3g} TFLOP/s{eight}, {self.bytes / 1e12:.3g} TB/s, measured in this run"


def of_gpu(device: Device, precision: str) -> Peaks:
    """precision: the engine's; 8-bit products are measured for an 8-bit engine alone."""
    base = "bfloat16" if precision == "bfloat16" else "float16"
    operations = peaks.operations_per_s(device, base)
    operations8 = peaks.operations_per_s(device, "float8") if precision == "float8" else float("nan")
    return Peaks(operations, operations8, peaks.bytes_per_s(device))


def of_cpu() -> Peaks:
    """float32, with as many threads as numpy takes."""
    a = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    b = np.empty_like(a)
    large, copy = np.ones(1 << 24, np.float32), np.empty(1 << 24, np.float32)

    def best(call: Any) -> float:
        taken = []
        for _ in range(7):
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
        return min(taken[1:])

    copied = best(lambda: np.copyto(copy, large))
    return Peaks(2.0 * 1024**3 / best(lambda: np.matmul(a, a, out=b)), float("nan"), 2.0 * large.nbytes / copied)
