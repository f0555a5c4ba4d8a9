"""GELU in standard ONNX operators: what runs where no plugin does."""

import onnx
from onnx import helper

from plugins import DOMAIN


def build(dtype: int, *, approximate: str = "none") -> onnx.FunctionProto:
    """(x A any shape) -> y A, in float32 inside.

    dtype: A as onnx.TensorProto.FLOAT, FLOAT16 or BFLOAT16. The attribute `approximate` stands in the signature because
    the plugin reads it from the node; which body this is was decided here.
    """
    return helper.make_function(
        DOMAIN, "gelu", ["x"], ["y"],
        [
            helper.make_node("Cast", ["x"], ["x32"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Gelu", ["x32"], ["y32"], approximate=approximate),
            helper.make_node("Cast", ["y32"], ["y"], to=dtype),
        ],
        [helper.make_opsetid("", 20)],
        attributes=["approximate", "plugin_namespace", "plugin_version"],
    )  # fmt: skip
