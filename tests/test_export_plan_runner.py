"""A plan with marked outputs on a made-up TensorRT and GPU: copies, shapes, what is refused, what is given back."""

from types import SimpleNamespace

import numpy as np
import pytest
from fake_cuda import FakeCuda

from export import plan_runner


class PretendTensorrt:
    """A TensorRT whose plan has inputs `a` and `b` [T] and gives `sum` [T, 2]: a + b, and b; on a `FakeCuda`."""

    TensorIOMode = SimpleNamespace(INPUT="input", NONE="none")
    ILogger = object

    def __init__(self, cuda, refused=None):
        self.cuda, self.refused, self.shapes, self.addresses = cuda, refused, {}, {}
        context = SimpleNamespace(
            set_input_shape=self.take_shape,
            set_tensor_address=lambda name, address: self.addresses.update({name: address}) or True,
            get_tensor_shape=lambda name: (*self.shapes["a"], 2),
            execute_async_v3=lambda stream: self.cuda.put(stream, self.compute) or self.refused != "to run",
        )
        plan = SimpleNamespace(
            create_runtime_config=lambda: "config",
            create_execution_context=lambda config: context,
            get_tensor_mode=lambda name: "input" if name in ("a", "b") else "none",
        )
        self.Runtime = lambda log: SimpleNamespace(
            deserialize_cuda_engine=lambda data: None if self.refused == "the plan" else plan
        )

    def take_shape(self, name, shape):
        self.shapes[name] = shape
        return name in ("a", "b") and self.refused != "the shape"

    def compute(self):
        size = 4 * self.shapes["a"][0]
        a, b = (self.cuda.block(self.addresses[name], size).view(np.int32) for name in ("a", "b"))
        out = self.cuda.block(self.addresses["sum"], 2 * size).view(np.float32)
        out.reshape(-1, 2)[:] = np.stack([a + b, b], axis=-1)


def test_a_plan_with_marked_outputs_is_run_and_gives_everything_back(monkeypatch):
    monkeypatch.setattr(plan_runner.tensorrt_flavour, "logger", lambda trt: SimpleNamespace(errors=["no room"]))
    a, b = np.arange(5, dtype=np.int32), np.arange(5, 10, dtype=np.int32)
    cuda = FakeCuda()
    found = plan_runner.execute(PretendTensorrt(cuda), b"", {"a": a, "b": b, "unused": a}, ["sum"], cuda)
    np.testing.assert_array_equal(found, [np.stack([a + b, b], axis=-1)])
    assert not cuda.alive
    for refused in ("the plan", "the shape", "to run"):
        with pytest.raises(RuntimeError, match=f"TensorRT refused {refused}.*: no room"):
            plan_runner.execute(PretendTensorrt(cuda, refused), b"", {"a": a, "b": b}, ["sum"], cuda)
