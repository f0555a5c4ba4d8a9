"""Intermediate outputs of a plan on the GPU: the network is built again with them marked, run once, and thrown away.

For the search after a failed comparison alone (`export/first_difference.py`); answers come from `serve/session.py`.
"""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export import engine
from export.first_difference import Runner, Values, counts
from export.runners import inputs_of, marked, per_sequence, real
from plugins import registration, tensorrt_flavour
from plugins.kernels import KernelSet
from serve.cuda import Cuda
from serve.packed import Packed


def plan_runner(
    trt: Any, model: Path, plan: engine.Plan, kernels: KernelSet | None, layout: str
) -> Callable[[Packed], Runner]:
    """A batch -> the `Runner` of a plan of `model` (ONNX in the plan's precision) for it; arguments as for a build."""

    def of(batch: Packed) -> Runner:
        def run(names: list[str]) -> Values:
            with marked(model, names) as copy, tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "marked.plan"
                engine.build(trt, copy, file, plan, counts(copy))
                inputs, mask = inputs_of(batch, layout)
                with registration.registered(trt, plan.plugins, kernels):
                    outputs = execute(trt, file.read_bytes(), inputs, [f"marked.{name}" for name in names])
                whole = per_sequence(onnx.load(str(copy), load_external_data=False))
            return {
                name: real(array, None if f"marked.{name}" in whole else mask)
                for name, array in zip(names, outputs, strict=True)
            }

        return run

    return of


def execute(trt: Any, plan: bytes, inputs: dict[str, np.ndarray], outputs: list[str], cuda: Any = None) -> list:
    """Run a plan once on its inputs (int32 arrays by name); its outputs of these names, float32 arrays.

    Its plugins must be registered. cuda: a `serve.cuda.Cuda`, or a stand-in. Raises: RuntimeError where TensorRT
    refuses something.
    """
    cuda, log = cuda or Cuda(), tensorrt_flavour.logger(trt)

    def must(done: Any, what: str) -> Any:
        if not done:
            raise RuntimeError(f"TensorRT refused {what}: {tensorrt_flavour.reason(log)}")
        return done

    runtime = trt.Runtime(log)
    loaded = must(runtime.deserialize_cuda_engine(plan), "the plan")
    config, _cache = tensorrt_flavour.runtime_config(trt, loaded)
    context = must(loaded.create_execution_context(config), "a context")
    stream = cuda.stream()
    blocks: dict[str, tuple[int, np.ndarray, int]] = {}  # address on the host, its bytes, address on the GPU

    def place(name: str, size: int) -> tuple[int, np.ndarray, int]:
        blocks[name] = (*cuda.pinned(size), cuda.memory(size))
        must(context.set_tensor_address(name, blocks[name][2]), f"an address for {name}")
        return blocks[name]

    for name, array in inputs.items():
        if loaded.get_tensor_mode(name) != trt.TensorIOMode.INPUT:
            continue  # nothing that is marked depends on it
        must(context.set_input_shape(name, array.shape), f"the shape {array.shape} of {name}")
        host, view, gpu = place(name, array.nbytes)
        view.view(np.int32)[:] = array.reshape(-1)
        cuda.copy_in(gpu, host, array.nbytes, stream)
    shapes = {name: tuple(context.get_tensor_shape(name)) for name in outputs}
    for name, shape in shapes.items():
        place(name, 4 * math.prod(shape))
    must(context.execute_async_v3(int(stream)), "to run")
    for name in outputs:
        host, view, gpu = blocks[name]
        cuda.copy_out(host, gpu, view.nbytes, stream)
    cuda.finish(stream)
    found = [blocks[name][1].view(np.float32).reshape(shape).copy() for name, shape in shapes.items()]
    for host, _, gpu in blocks.values():
        cuda.free_pinned(host)
        cuda.free(gpu)
    cuda.free_stream(stream)
    return found
