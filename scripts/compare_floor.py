"""The least time that this machine could need for an encoder: its arithmetic or its weights, whichever takes longer.

Both limits are measured in the same run, so that a GPU short of power has the floor it deserves: the rate of one large
product (cuBLASLt's fastest algorithm; numpy's on a CPU) and that of a copy within memory. It is a floor of kernels that
reach those rates all the time, with nothing else to do.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.quantisation import FORMATS
from model.config import BertConfig
from plugins.device import Device
from plugins.launch import check, driver
from plugins.linear.matmul import WORKSPACE, Matmul
from plugins.linear.product import Product
from scripts.bench_engine_plans import Shape
from scripts.bench_engine_timer import milliseconds

WIDTH = 8192  # of the product on a GPU
COPIED = 1 << 30  # bytes
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int8": 1}
ASKED = "clocks.sm,power.draw"  # of nvidia-smi
EVERY_MS = 200


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
    product = Product(WIDTH, WIDTH, WIDTH, base, gelu=False)
    # Random numbers, since zeros draw less power and would be faster; of 16 bits, all below 1 in size.
    words = np.random.default_rng(0).integers(0, 0x3800, (WIDTH, WIDTH), np.uint16)
    x, weight = device.upload(words), device.upload(words)
    bias, y, workspace = device.upload(words[0] * 0), device.empty(2 * WIDTH * WIDTH), device.empty(WORKSPACE)
    matmul = Matmul(product)
    operations = _rate(device, lambda: matmul(device.stream, x, weight, bias, y, workspace), 2.0 * WIDTH**3)
    operations8 = _rate8(device, x, weight, bias, y, workspace) if precision == "float8" else float("nan")
    cuda = driver()
    source, to = device.empty(COPIED), device.empty(COPIED)

    def copy() -> None:
        check(cuda.cuMemcpyDtoDAsync(to, source, COPIED, device.stream), "copying")

    # Not from a graph: 2.6 TB/s was seen there on an H200, where a copy on a stream moves 4.3.
    copied = float(milliseconds(device.stream, copy, 30, 1).min())
    found = Peaks(operations, operations8, 2.0 * COPIED / (1e-3 * copied))
    device.free()
    return found


def _rate8(device: Device, x: int, weight: int, bias: int, y: int, workspace: int) -> float:
    """Of a float8 product over the same bytes; nan where this GPU or version has none."""
    from plugins.linear8.matmul8 import Matmul8, Product8

    try:
        scale = device.upload(np.ones(1, np.float32))
        product = Matmul8(Product8(WIDTH, WIDTH, WIDTH, "float16", gelu=False))
        return _rate(device, lambda: product(device.stream, x, weight, bias, y, workspace, scale), 2.0 * WIDTH**3)
    except (RuntimeError, ValueError, TypeError) as error:
        print(f"no floor in 8 bits: {error}")
        return float("nan")


def _rate(device: Device, call: Any, size: float) -> float:
    """`size` over the time of a call, the least of 30."""
    call()
    device.wait()
    return size / (1e-6 * float(device.capture(call).times_us(30).min()))


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


@dataclass
class Clocks:
    """What nvidia-smi said every fifth of a second, while something was timed; empty where there is none."""

    mhz: list[float] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)

    def text(self) -> dict[str, str]:
        """The CSV's columns: from the least to the most."""
        return {name: f"{min(seen):.0f}-{max(seen):.0f}" if seen else ""
                for name, seen in (("clock_mhz", self.mhz), ("power_w", self.watts))}  # fmt: skip


@contextmanager
def clocks(gpu: str = "0") -> Iterator[Clocks]:
    """Log a GPU's clock and power while the block runs; filled in when it ends. gpu: `Device.bus`, or its number."""
    found = Clocks()
    if not shutil.which("nvidia-smi"):
        yield found
        return
    asked = ["nvidia-smi", "-i", gpu, f"--query-gpu={ASKED}", "--format=csv,noheader,nounits", f"--loop-ms={EVERY_MS}"]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            yield found
        finally:
            child.terminate()
            said, _ = child.communicate()
            if not said.strip():  # it kept its lines to itself
                said = subprocess.run(asked[:-1], capture_output=True, text=True, check=False, timeout=30).stdout
    for line in said.splitlines():
        try:
            mhz, watts = map(float, line.split(","))
        except ValueError:  # cut off, or "[N/A]"
            continue
        found.mhz.append(mhz)
        found.watts.append(watts)
