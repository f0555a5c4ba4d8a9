"""Kernels on a CPU, without torch: Triton's interpreter runs them over numpy arrays, in a process of its own.

    results = run_interpreted([Job(launches, variants, {"x": x, "y": np.empty_like(x)})])   # y as the kernel left it

Triton decides at import whether `@triton.jit` compiles or interprets, so the interpreter needs a process of its own;
that takes a second to start, so all cases of an operator go into one call. Every tensor stands between two guards: a
kernel that writes past an end is an error, and what it reads there is NaN. Needs numpy below 2.4, for Triton 3.6.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from plugins import formats
from plugins.compile import SHORT, Variant
from plugins.launch import TENSOR_DESCRIPTOR, Launch, Tiles

NAMES: dict[Any, str] = {dtype: name for name, dtype in formats.DTYPES.items()}  # where numpy has another name
GUARD = 256  # bytes before and after each tensor; a multiple of 16, so that tensors stay aligned


@dataclass(frozen=True)
class Job:
    """Launches one after the other over the same tensors; outputs are among them, their content is overwritten."""

    launches: Sequence[Launch]
    variants: Mapping[str, Variant]
    tensors: Mapping[str, np.ndarray]


def run_interpreted(jobs: Sequence[Job]) -> list[dict[str, np.ndarray]]:
    """Run all jobs in one fresh process; gives every job's tensors as they are afterwards.

    Raises RuntimeError with the interpreter's words when a kernel fails or writes outside of its tensors.
    """
    with tempfile.TemporaryDirectory() as folder:
        about, arrays = [], {}
        for index, job in enumerate(jobs):
            for name, tensor in job.tensors.items():
                arrays[f"{index}/{name}"] = np.ascontiguousarray(tensor).view(_stored(tensor.dtype))
            launches = []
            for launch in job.launches:
                variant = job.variants[launch.kernel]
                launches.append({
                    "module": variant.module, "function": variant.function, "constants": dict(variant.constants),
                    "grid": launch.grid, "signature": dict(variant.signature),
                    "arguments": [asdict(a) if isinstance(a, Tiles) else a for a in launch.arguments],
                })  # fmt: skip
            about.append({"launches": launches, "dtypes": {name: t.dtype.name for name, t in job.tensors.items()}})
        np.savez(Path(folder) / "before.npz", **arrays)
        Path(folder, "jobs.json").write_text(json.dumps(about), encoding="utf-8")
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "plugins.numpy_tensor", folder],
            env=environment, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"Triton's interpreter failed:\n{done.stderr[-3000:]}")
        with np.load(Path(folder) / "after.npz") as after:
            return [
                {name: after[f"{index}/{name}"].view(tensor.dtype) for name, tensor in job.tensors.items()}
                for index, job in enumerate(jobs)
            ]


class _Dtype(str):
    """Triton's name of a dtype, which a tensor descriptor asks for its bytes."""

    itemsize = property(lambda self: 1 if self in ("i8", "fp8e4nv") else int(self[-2:]) // 8)


class NumpyTensor:
    """The few methods of a torch tensor that the interpreter calls, over a numpy array."""

    def __init__(self, array: np.ndarray | None) -> None:
        self.array: Any = array

    dtype = property(lambda self: _Dtype(SHORT[NAMES.get(self.array.dtype) or self.array.dtype.name]))
    shape = property(lambda self: self.array.shape)
    device = "cpu"

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    # The interpreter copies a tensor's storage to the CPU and back. Ours is there: a storage is the tensor itself.
    def untyped_storage(self) -> "NumpyTensor":
        return self

    def cpu(self) -> "NumpyTensor":
        return self

    def copy_(self, other: "NumpyTensor") -> None:
        assert other.array is self.array

    def new_empty(self, *_: Any, **__: Any) -> "NumpyTensor":
        return NumpyTensor(None)

    def set_(self, storage: "NumpyTensor", *_: Any) -> None:
        self.array = storage.array

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self, axis: int | None = None) -> Any:
        steps = tuple(step // self.array.itemsize for step in self.array.strides)
        return steps if axis is None else steps[axis]


def _stored(dtype: np.dtype) -> Any:
    """bfloat16 and float8 travel as unsigned integers: numpy's file format does not know them."""
    return {np.dtype(ml_dtypes.bfloat16): np.uint16, formats.DTYPES["float8"]: np.uint8}.get(dtype, dtype)


def _guarded(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a copy of the tensor, the buffer it stands in): guards on both sides have all bits set, a NaN or -1."""
    buffer = np.full(2 * GUARD + tensor.nbytes + 16, 0xFF, np.uint8)
    start = GUARD + -(buffer.ctypes.data + GUARD) % 16
    inner = buffer[start : start + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
    inner[...] = tensor
    return inner, buffer


def _mend_small_floats() -> None:
    """Two faults of the interpreter of Triton 3.6 with bfloat16 and float8, which it keeps as integers.

    It rounds 1.999 to 1 instead of 2 (a mantissa that overflows is ORed into the exponent, not added): ml_dtypes does
    it instead. And tl.dot multiplies the bits as integers: it gets float32, which holds such products without loss.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    small = {"bf16": ml_dtypes.bfloat16, "fp8e4nv": formats.DTYPES["float8"]}
    known = {("fp32", name): (np.float32, dtype) for name, dtype in small.items()}
    known |= {(name, "fp32"): (dtype, np.float32) for name, dtype in small.items()}
    original: Any = interpreter._convert_float

    def convert(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        if (pair := known.get((str(source), str(target)))) is None:
            return original(data, source, target, rounding)
        bits = {8: np.uint8, 16: np.uint16, 32: np.uint32}[target.primitive_bitwidth]
        return np.ascontiguousarray(data).view(pair[0]).astype(pair[1]).view(bits)

    interpreter._convert_float = convert
    dot = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if (dtype := small.get(str(handle.dtype.scalar))) is None:
            return handle
        return interpreter.TensorHandle(handle.data.view(dtype).astype(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, widened(a), widened(b), *others)

    interpreter.InterpreterBuilder.create_dot = create_dot


def _argument(tensors: Mapping[str, np.ndarray], kind: str, given: Any) -> Any:
    """An argument as the interpreter takes it: a number, a tensor by its name, or `Tiles` of one."""
    if isinstance(given, str):
        return NumpyTensor(tensors[given])
    if not isinstance(given, dict):
        return given
    from triton.tools.tensor_descriptor import TensorDescriptor

    matrix = TENSOR_DESCRIPTOR.fullmatch(kind)
    assert matrix
    base, shape = NumpyTensor(tensors[given["tensor"]]), [given["rows"], given["columns"]]
    return TensorDescriptor(base, shape, [given["columns"], 1], [int(matrix[2]), int(matrix[3])])


def _main(folder: Path) -> None:
    _mend_small_floats()
    jobs = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
    after = {}
    with np.load(folder / "before.npz") as before:
        for index, job in enumerate(jobs):
            tensors, buffers = {}, {}
            for name, dtype in job["dtypes"].items():
                tensors[name], buffers[name] = _guarded(before[f"{index}/{name}"].view(np.dtype(dtype)))
            for launch in job["launches"]:
                function = getattr(importlib.import_module(launch["module"]), launch["function"])
                pairs = zip(launch["signature"].items(), launch["arguments"], strict=True)
                arguments = {name: _argument(tensors, kind, given) for (name, kind), given in pairs}
                if all(launch["grid"]):
                    function[tuple(launch["grid"])](**arguments, **launch["constants"])
            for name, tensor in tensors.items():
                after[f"{index}/{name}"] = tensor.view(_stored(tensor.dtype))
                inside = tensor.ctypes.data - buffers[name].ctypes.data
                outside = np.delete(buffers[name], slice(inside, inside + tensor.nbytes))
                if (outside != 0xFF).any():
                    raise IndexError(f"job {index}: {launch['function']} wrote outside of tensor {name!r}")
    np.savez(folder / "after.npz", **after)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
