"""What this GPU reaches at most, measured and not read from a data sheet: a copy within its memory, a large product.

A GPU short of power or cooling has the peaks it deserves. Nothing that does more than copy or multiply reaches them all
the time, so they bound what any kernel can do here.
"""

import itertools
from collections.abc import Callable

import numpy as np

from plugins.device import Device
from plugins.launch import check, driver
from plugins.linear.matmul import WORKSPACE, Matmul
from plugins.linear.product import Product

WIDTH = 8192  # of the product
COPIED = 1 << 30  # bytes
SAMPLES = 30


def bytes_per_s(device: Device) -> float:
    """Read and written by a copy of COPIED bytes, the fastest of SAMPLES."""
    cuda = driver()
    source, to = device.empty(COPIED), device.empty(COPIED)
    events = [check(cuda.cuEventCreate(0), "making an event") for _ in range(SAMPLES + 1)]
    # Not from a graph: 2.6 TB/s was seen there on an H200, where a copy on a stream moves 4.3.
    for event in events:
        check(cuda.cuMemcpyDtoDAsync(to, source, COPIED, device.stream), "copying")
        check(cuda.cuEventRecord(event, device.stream), "recording an event")
    device.wait()
    taken = [check(cuda.cuEventElapsedTime(*pair), "reading the time") for pair in itertools.pairwise(events)]
    for event in events:
        check(cuda.cuEventDestroy(event), "destroying an event")
    device.free()
    return 2.0 * COPIED / (1e-3 * min(taken))


def operations_per_s(device: Device, dtype: str) -> float:
    """Multiplications and additions of cuBLASLt's fastest product of WIDTH x WIDTH matrices.

    dtype: float16, bfloat16 or float8. nan where this GPU or version has no such product.
    """
    # Random numbers, since zeros draw less power and would be faster; of 16 bits, all below 1 in size.
    words = np.random.default_rng(0).integers(0, 0x3800, (WIDTH, WIDTH), np.uint16)
    x, weight = device.upload(words), device.upload(words)
    bias, y, workspace = device.upload(words[0] * 0), device.empty(2 * WIDTH * WIDTH), device.empty(WORKSPACE)
    try:
        if dtype == "float8":
            return _rate(device, _product8(device, x, weight, bias, y, workspace))
        matmul = Matmul(Product(WIDTH, WIDTH, WIDTH, dtype, gelu=False))
        return _rate(device, lambda: matmul(device.stream, x, weight, bias, y, workspace))
    except (RuntimeError, ValueError, TypeError) as error:
        print(f"no peak of {dtype} products: {error}")
        return float("nan")
    finally:
        device.free()


def _product8(device: Device, x: int, weight: int, bias: int, y: int, workspace: int) -> Callable[[], None]:
    """A float8 product over the same bytes."""
    from plugins.linear8.matmul8 import Matmul8, Product8

    scale = device.upload(np.ones(1, np.float32))
    product = Matmul8(Product8(WIDTH, WIDTH, WIDTH, "float16", gelu=False))
    return lambda: product(device.stream, x, weight, bias, y, workspace, scale)


def _rate(device: Device, call: Callable[[], None]) -> float:
    """Operations over the time of a product, the least of SAMPLES."""
    call()
    device.wait()
    return 2.0 * WIDTH**3 / (1e-6 * float(device.capture(call).times_us(SAMPLES).min()))
