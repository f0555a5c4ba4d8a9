"""What the numbers that the products multiply look like: |x| of every product on real windows, and scales from it.

    absmax    the largest |x| becomes the format's largest number: nothing is cut off
    99.99     so does that share of the numbers (percent), 99.9 likewise: a few are cut off, the others get finer steps
    mse       the cut with the least mean squared error of what is kept

Krishnamoorthi 2018 (arXiv 1806.08342) and Wu et al. 2020 (arXiv 2004.09602) compare them; which is best differs from
model to model, so `calibration.py` tries all.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from data.batches import Windows
from export.files import EXTERNAL_FROM, EXTERNAL_TENSOR
from export.runners import ONNX_TOKENS, ONNX_WINDOWS, cpu_session, inputs_of, real
from plugins import formats
from serve.packed import Packed, cut

METHODS = ("absmax", "99.99", "99.9", "mse")
BINS = 4096
CUTS = np.concatenate([np.arange(0.05, 0.5, 0.05), np.arange(0.5, 1.001, 0.02)])  # shares of absmax that mse tries


class Range:
    """A histogram of |x| that widens by doubling: counts of BINS equal steps from 0 to `limit`."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 0.0
        self.largest = 0.0

    def add(self, x: np.ndarray) -> None:
        """Raises ValueError for a number that is not finite."""
        size = np.abs(x.reshape(-1).astype(np.float64))
        if not size.size:
            return
        largest = float(size.max())
        if not np.isfinite(largest):
            raise ValueError("x is not finite")
        if not self.limit:
            self.limit = largest or 1e-6
        while largest > self.limit:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self.limit *= 2
        self.largest = max(self.largest, largest)
        place = np.minimum((size * (BINS / self.limit)).astype(np.int64), BINS - 1)
        self.counts += np.bincount(place, minlength=BINS)

    def cut(self, method: str, format: str) -> float:
        """Where a method of METHODS cuts |x|, above 0."""
        if method == "absmax" or not self.largest:
            return self.largest or 1.0
        if method == "mse":
            return float(min(CUTS * self.largest, key=lambda at: self._error(at, format)))
        share = np.cumsum(self.counts) / self.counts.sum()
        place = int(np.searchsorted(share, float(method) / 100))
        return min((place + 1) * self.limit / BINS, self.largest)

    def scale(self, method: str, format: str) -> float:
        return self.cut(method, format) / formats.MOST[format]

    def _error(self, at: float, format: str) -> float:
        """Sum of squares of what storing loses when |x| is cut there; every number is taken as its bin's middle."""
        middle = (np.arange(BINS) + 0.5) * self.limit / BINS
        scale = at / formats.MOST[format]
        kept = formats.quantise(middle, 1 / scale, format).astype(np.float64) * scale
        return float((self.counts * (kept - middle) ** 2).sum())


def batches(features: Windows, rows: np.ndarray) -> Iterable[tuple[np.ndarray, Packed]]:
    """The windows `rows` in small batches: (their rows, the batch)."""
    for group in cut(features.length[rows], ONNX_TOKENS, ONNX_WINDOWS):
        yield rows[group], Packed.windows(features, rows[group])


def product_of(node: onnx.NodeProto) -> str:
    """`layers.3.ffn.in` for a node of a product, `layer_3/ffn/in`; "" for any other. A node that does more is named for
    what it does last."""
    if not node.op_type.startswith("linear"):
        return ""
    *where, last = node.name.replace("layer_", "layers.").split("/")
    return ".".join([*where, {"norm": "out", "gelu": "in"}.get(last, last)])


def session(model: onnx.ModelProto, folder: Path):
    """An ONNX Runtime session of a changed model.onnx, whose weights may lie in a file beside it in the folder.

    The model is not to be used afterwards: where it is too large for one file its weights have moved.
    """
    path, data = folder / "calibration.onnx", folder / "calibration.onnx.data"
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) >= EXTERNAL_FROM
    where = {"all_tensors_to_one_file": True, "location": data.name, "size_threshold": EXTERNAL_TENSOR} if large else {}
    onnx.save_model(model, str(path), save_as_external_data=large, **where)
    try:
        return cpu_session(path)
    finally:
        path.unlink()
        data.unlink(missing_ok=True)


def mark(model: onnx.ModelProto) -> dict[str, str]:
    """Make every product's x an output of a network in float32; returns product -> name of that output."""
    sources = {name: node.input[0] for node in model.graph.node if (name := product_of(node))}
    for source in dict.fromkeys(sources.values()):
        model.graph.output.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, None))
    return sources


def measure(path: Path, layout: str, features: Windows, rows: np.ndarray) -> dict[str, Range]:
    """Product -> range of its x, over the windows `rows` of some features, by model.onnx (float32) on the CPU."""
    model = onnx.load(str(path), load_external_data=False)
    sources = mark(model)
    run = session(model, path.parent)
    known = {item.name for item in run.get_inputs()}
    found = {name: Range() for name in sources}
    wanted = list(dict.fromkeys(sources.values()))
    for _, batch in batches(features, rows):
        inputs, mask = inputs_of(batch, layout)
        arrays = run.run(wanted, {name: array for name, array in inputs.items() if name in known})
        values = dict(zip(wanted, arrays, strict=True))
        for name, source in sources.items():
            found[name].add(real(values[source], mask))
    return found
