"""A TensorRT engine around one operator, for tests: built anywhere, run where a GPU is, eagerly and as a CUDA graph."""

from collections.abc import Collection
from typing import Any

from plugins import legs, tensorrt_flavour
from plugins.registration import registered


def build(trt: Any, op: str, case: Any, dtype: str, names: Collection[str]) -> tuple[bytes, int]:
    """(the plan, how many plugin layers its network had) with the named plugins registered.

    Leading axes are open, from 1 to the case's length. Raises RuntimeError with TensorRT's words.
    """
    given = legs.inputs(op, case, dtype)
    log = tensorrt_flavour.logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    with registered(trt, names):
        parser = trt.OnnxParser(network, log)
        if not parser.parse(legs.model(op, case, given, dtype).SerializeToString()):
            raise RuntimeError(f"parser: {[parser.get_error(i).desc() for i in range(parser.num_errors)]}")
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise RuntimeError(f"builder: {log.errors}")
    return bytes(plan), sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)
