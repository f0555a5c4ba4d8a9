"""A plan opened for timing: for given inputs captured into a CUDA graph, whose outputs are those of a replay."""

from typing import Any

import numpy as np

from plugins import registration, tensorrt_flavour
from plugins.device import Device
from scripts.bench_engine_timer import Entrant


class Opened:
    """A plan that TensorRT has read, and what it needs to live."""

    def __init__(self, trt: Any, plan: bytes, names: tuple[str, ...], kernels: Any) -> None:
        self._trt, self._names, self._kernels = trt, names, kernels
        self._log = tensorrt_flavour.logger(trt)
        self._runtime = trt.Runtime(self._log)
        with registration.registered(trt, names, kernels):
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise RuntimeError(f"TensorRT cannot read the plan it built: {tensorrt_flavour.reason(self._log)}")

    def entrant(self, device: Device, given: dict[str, np.ndarray], shape: tuple[int, int], dtype: Any) -> Entrant:
        """`entrant_of` for an encoder without a head; its output is the array."""
        entrant = self.entrant_of(device, given, {"encoded": (shape, dtype)})
        entrant.output = entrant.output["encoded"]
        return entrant

    def entrant_of(
        self, device: Device, given: dict[str, np.ndarray], outputs: dict[str, tuple[tuple[int, ...], Any]]
    ) -> Entrant:
        """A context of its own for these inputs, run once plainly, then captured, then replayed over poison.

        outputs: name -> shape, dtype. The entrant's output is a float32 array for each.
        """
        config, cache = tensorrt_flavour.runtime_config(self._trt, self._engine)
        with registration.registered(self._trt, self._names, self._kernels):
            context = self._engine.create_execution_context(config)
        if context is None:
            raise RuntimeError(f"TensorRT made no execution context: {tensorrt_flavour.reason(self._log)}")
        for name, array in given.items():
            self._must(context.set_input_shape(name, array.shape), f"the shape {array.shape} of {name}")
            self._must(context.set_tensor_address(name, device.upload(array)), f"an address for {name}")
        sizes = {name: int(np.prod(shape)) * np.dtype(dtype).itemsize for name, (shape, dtype) in outputs.items()}
        places = {name: device.empty(size) for name, size in sizes.items()}
        for name, address in places.items():
            self._must(context.set_tensor_address(name, address), f"an address for {name}")

        def run() -> None:
            self._must(context.execute_async_v3(device.stream), "to run")

        run()  # TensorRT and the plugins prepare themselves for the shape, which a capture would not allow
        device.wait()
        captured = device.capture(run)
        for name, size in sizes.items():
            device.poison(places[name], size)
        captured.replay()
        output = {
            name: device.download(places[name], shape, dtype).astype(np.float32)
            for name, (shape, dtype) in outputs.items()
        }
        return Entrant(captured.replay, device.stream, output, keep=(context, cache, self))

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise RuntimeError(f"TensorRT refused {what}: {tensorrt_flavour.reason(self._log)}")
