"""A TensorRT engine around one operator, for tests: built anywhere, run where a GPU is, eagerly and as a CUDA graph."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

import plugins
from plugins import legs, tensorrt_flavour
from plugins.device import Device
from plugins.kernels import KernelSet
from plugins.registration import registered


def build(
    trt: Any, op: str, case: Any, dtype: str, names: Collection[str], *, axes: bool = False, smallest: Any = None
) -> tuple[bytes, int]:
    """(the plan, how many plugin layers its network had) with the named plugins registered.

    axes: all axes' lengths are open in the network. The plan's profile allows the case's, and from those of the case
    `smallest` on, if it is given.
    Raises RuntimeError with TensorRT's words, also for what it only logs.
    """
    given = legs.inputs(op, case, dtype)
    log = tensorrt_flavour.logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    config = builder.create_builder_config()
    if axes:
        profile = builder.create_optimization_profile()
        least = legs.inputs(op, smallest or case, dtype)
        for name, tensor in given.items():
            profile.set_shape(name, least[name].shape, tensor.shape, tensor.shape)
        config.add_optimization_profile(profile)
    with registered(trt, names):
        parser = trt.OnnxParser(network, log)
        if not parser.parse(legs.model(op, case, given, dtype, axes=axes).SerializeToString()):
            raise RuntimeError(f"parser: {[parser.get_error(i).desc() for i in range(parser.num_errors)]}")
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        plan = builder.build_serialized_network(network, config)
    if plan is None or log.errors:
        raise RuntimeError(f"builder: {log.errors}")
    return bytes(plan), sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)


class Engine:
    """An open plan of one operator. The plugins are registered while it is opened, and no longer."""
    def __init__(self, trt: Any, plan: bytes, names: Collection[str], kernels: KernelSet) -> None:
        self._log = tensorrt_flavour.logger(trt)
        self._runtime = trt.Runtime(self._log)
        with registered(trt, names, kernels):
            self.engine = self._runtime.deserialize_cuda_engine(plan)
            if self.engine is None:
                raise RuntimeError(f"runtime: {self._log.errors}")
            self.context = self.engine.create_execution_context()

    def run(
        self, device: Device, given: Mapping[str, np.ndarray], shape: tuple[int, ...], kinds: Mapping[str, str]
    ) -> list[Any]:
        """The outputs (name -> dtype), of that shape, as float64: run eagerly, and replayed from a CUDA graph over
        poisoned memory."""
        for name, tensor in given.items():
            self.context.set_input_shape(name, tensor.shape)
            self.context.set_tensor_address(name, device.upload(tensor))
        size = {name: int(np.prod(shape)) * legs.DTYPES[kind].itemsize for name, kind in kinds.items()}
        addresses = {name: device.empty(size[name]) for name in kinds}
        for name, address in addresses.items():
            self.context.set_tensor_address(name, address)

        def found() -> Any:
            arrays = [device.download(addresses[name], shape, legs.DTYPES[kind]) for name, kind in kinds.items()]
            return legs.result([array.astype(np.float64) for array in arrays])

        self._execute(device)
        results = [found()]
        graph = device.capture(lambda: self._execute(device))
        for name, address in addresses.items():
            device.poison(address, size[name])
        graph.replay()
        return [*results, found()]

    def _execute(self, device: Device) -> None:
        if not self.context.execute_async_v3(device.stream) or self._log.errors:
            raise RuntimeError(f"engine: {self._log.errors}")


def assert_engine_right(target: str, op: str, case: Any, dtype: str, **allowance: float) -> None:
    """Build, open and run an engine around the operator on the current GPU; both results are right, by
    `legs.assert_case_right` with this allowance."""
    trt = tensorrt_flavour.load(target)
    given = legs.inputs(op, case, dtype)
    shapes = legs.shapes(op, case, given)
    plan, layers = build(trt, op, case, dtype, [plugins.OPS[op]], axes=True)
    assert layers == 1
    with Device() as device:
        kernels = legs.kernels(op, case, shapes, dtype, device.architecture)
        engine = Engine(trt, plan, [plugins.OPS[op]], kernels)
        kinds = legs.outputs(op, case, dtype)
        results = engine.run(device, given, shapes[next(iter(kinds))], kinds)
        for result, how in zip(results, ("eager", "graph"), strict=True):
            what = f"{op}, case {case.name!r}, {dtype}, {how}"
            legs.assert_case_right(op, case, result, given, dtype, what, **allowance)
