"""GELU in standard ONNX operators: what runs where no plugin does."""

import onnx
from onnx import helper

from plugins import DOMAIN, formats


def build(dtype: int, *, approximate: str = "none") -> onnx.FunctionProto:
    """(x A any shape) -> y A, in float32 inside.

    dtype: A as onnx.TensorProto.FLOAT, FLOAT16 or BFLOAT16. The attribute `approximate` stands in the signature because
    the plugin reads it from the node; which body this is was decided here.
    """
    return _function("gelu", [helper.make_node("Cast", ["y32"], ["y"], to=dtype)], approximate, [])


def build_gelu8(dtype: int, *, approximate: str = "none", format: str = "float8") -> onnx.FunctionProto:
    """(x A any shape) -> y * inverse_scale in "float8" or "int8"."""
    after = [formats.attribute("inverse_scale"), *formats.nodes("y32", "inverse_scale", "y", format)]
    return _function("gelu8", after, approximate, ["inverse_scale", "format"])


def _function(name: str, after: list[onnx.NodeProto], approximate: str, attributes: list[str]) -> onnx.FunctionProto:
    return helper.make_function(
        DOMAIN, name, ["x"], ["y"],
        [
            helper.make_node("Cast", ["x"], ["x32"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Gelu", ["x32"], ["y32"], approximate=approximate),
            *after,
        ],
        [helper.make_opsetid("", 20)],
        attributes=["approximate", *attributes, "plugin_namespace", "plugin_version"],
    )  # fmt: skip
