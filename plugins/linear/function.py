"""linear and linear_gelu in standard ONNX: what ONNX Runtime runs, and TensorRT where the plugin is not registered."""

import onnx
from onnx import TensorProto, helper

from plugins import DOMAIN


def build(dtype: int) -> onnx.FunctionProto:
    """`retort.linear`: (x A rows + [K], weight A [K, M], bias A [M]) -> A rows + [M]; dtype: A, of onnx.TensorProto."""
    return _function("linear", [])


def build_linear_gelu(dtype: int, *, approximate: str = "tanh") -> onnx.FunctionProto:
    """`retort.linear_gelu`: GELU over it, "tanh" or "none" (erf). The sum is rounded to A, GELU itself is float32."""
    after = [
        helper.make_node("Cast", ["sum"], ["sum32"], to=TensorProto.FLOAT),
        helper.make_node("Gelu", ["sum32"], ["gelu32"], approximate=approximate),
        helper.make_node("Cast", ["gelu32"], ["y"], to=dtype),
    ]
    return _function("linear_gelu", after, "approximate")


def _function(name: str, after: list[onnx.NodeProto], *attributes: str) -> onnx.FunctionProto:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum" if after else "y"]),
    ]
    return helper.make_function(
        DOMAIN, name, ["x", "weight", "bias"], ["y"], nodes + after, [helper.make_opsetid("", 20)],
        attributes=[*attributes, "plugin_namespace", "plugin_version"],
    )  # fmt: skip
