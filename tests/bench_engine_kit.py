"""A GPU, its driver and a TensorRT made of plain objects, for the tests of scripts/bench_engine.py."""

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class Gpu:
    """Time passes when somebody replays a graph. Methods are those of the driver, of a Device and of TensorRT."""

    architecture, stream, name, driver_version, bus = 80, 7, "made up", "13.0", "0000:1b:00.0"

    def __init__(self):
        self.now, self.memory, self.events = 0.0, {}, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def cuEventCreate(self, _):  # noqa: N802
        self.events.append(None)
        return 0, len(self.events) - 1

    def cuEventRecord(self, event, stream):  # noqa: N802
        assert stream == self.stream
        self.events[event] = self.now
        return (0,)

    def cuEventSynchronize(self, event):  # noqa: N802
        return (0,)

    def cuEventElapsedTime(self, first, last):  # noqa: N802
        return 0, self.events[last] - self.events[first]

    def cuEventDestroy(self, event):  # noqa: N802
        return (0,)

    def spend(self, milliseconds):
        self.now += milliseconds

    def upload(self, array):
        self.memory[len(self.memory) + 1] = array
        return len(self.memory)

    def empty(self, size):
        return self.upload(np.full(size, 0xFF, np.uint8))

    def poison(self, address, size):
        self.memory[address] = np.full(size, 0xFF, np.uint8)

    def download(self, address, shape, dtype):
        return self.memory[address].view(dtype).reshape(shape)

    def wait(self):
        pass

    def capture(self, call):
        return SimpleNamespace(replay=call)


class FakeContext:
    """Its first run writes four values, later ones two; `refused` is the call that fails."""

    def __init__(self, gpu, refused):
        self.gpu, self.refused, self.runs, self.shapes, self.addresses = gpu, refused, 0, {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return self.refused != "shape"

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return self.refused != name

    def execute_async_v3(self, stream):
        assert stream == 7
        self.runs += 1
        written = 4 if self.runs == 1 else 2
        self.gpu.memory[self.addresses["encoded"]].view(np.float16)[:written] = self.runs
        return self.refused != "run"


def fake_trt(context):
    config = SimpleNamespace(create_runtime_cache=lambda: "cache", set_runtime_cache=lambda cache: None)
    engine = SimpleNamespace(create_runtime_config=lambda: config, create_execution_context=lambda given: context)
    read = (lambda plan: engine) if context else (lambda plan: None)

    class Logger:
        Severity = SimpleNamespace(ERROR=1, WARNING=2)

    trt: Any = ModuleType("trt")
    vars(trt).update(
        ILogger=Logger, Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=read), config=config,
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"), get_plugin_registry=lambda: None,
        CudaGraphStrategy=SimpleNamespace(DISABLED="disabled"),
    )  # fmt: skip
    return trt
