"""Intermediate outputs of a plan on the GPU: the network is built again with them marked, run once, and thrown away.

For the search after a failed comparison alone (`export/first_difference.py`); answers come from `serve/session.py`.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from export import engine
from export.first_difference import Runner, Values
from export.runners import inputs_of, marked, real
from plugins import registration
from plugins.kernels import KernelSet
from serve.cuda import Cuda
from serve.packed import Packed


def plan_runner(
    trt: Any, model: Path, plan: engine.Plan, expected: dict[str, int], kernels: KernelSet | None, layout: str
) -> Callable[[Packed], Runner]:
    """A batch -> the `Runner` of a plan of `model` (ONNX in the plan's precision) for it; arguments as for a build."""

    def of(batch: Packed) -> Runner:
        def run(names: list[str]) -> Values:
            with marked(model, names) as copy, tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "marked.plan"
                engine.build(trt, copy, file, plan, expected)
                inputs, mask = inputs_of(batch, layout)
                with registration.registered(trt, plan.plugins, kernels):
                    outputs = execute(trt, file.read_bytes(), inputs, [f"marked.{name}" for name in names])
            return {name: real(array, mask) for name, array in zip(names, outputs, strict=True)}

        return run

    return of


def execute(trt: Any, plan: bytes, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
    """Run a plan once on its inputs (int32); float32 outputs by name. Its plugins must be registered."""
    cuda, log = Cuda(), engine.tensorrt_flavour.logger(trt)
    runtime = trt.Runtime(log)
    loaded = runtime.deserialize_cuda_engine(plan)
    context = loaded.create_execution_context()
    stream, addresses = cuda.stream(), []

    def place(name: str, size: int) -> tuple[int, np.ndarray, int]:
        """(address on the host, its bytes, address on the GPU) for a tensor."""
        host, view = cuda.pinned(size)
        addresses.append((host, cuda.memory(size)))
        context.set_tensor_address(name, addresses[-1][1])
        return host, view, addresses[-1][1]

    for name, array in inputs.items():
        if loaded.get_tensor_mode(name) != trt.TensorIOMode.INPUT:
            continue
        context.set_input_shape(name, array.shape)
        host, view, gpu = place(name, array.nbytes)
        view.view(np.int32)[:] = array.reshape(-1)
        cuda.copy_in(gpu, host, array.nbytes, stream)
    shapes = {name: tuple(context.get_tensor_shape(name)) for name in outputs}
    places = {name: place(name, 4 * int(np.prod(shape))) for name, shape in shapes.items()}
    if not context.execute_async_v3(int(stream)):
        raise RuntimeError(f"TensorRT refused to run: {log.errors[-1] if log.errors else 'it gave no reason'}")
    for host, view, gpu in places.values():
        cuda.copy_out(host, gpu, view.nbytes, stream)
    cuda.finish(stream)
    found = [places[name][1].view(np.float32).reshape(shapes[name]).copy() for name in outputs]
    for host, gpu in addresses:
        cuda.free_pinned(host)
        cuda.free(gpu)
    cuda.free_stream(stream)
    return found
