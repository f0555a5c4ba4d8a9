"""Bias, residual and layer norm in standard ONNX operators: what runs where no plugin does."""

import onnx
from onnx import TensorProto, helper

from plugins import DOMAIN, formats


def build(dtype: int) -> onnx.FunctionProto:
    """(x A rows+[H], residual A rows+[H], bias A [H], gamma float32 [H], beta float32 [H]) -> y A rows+[H].

    dtype: A as onnx.TensorProto.FLOAT, FLOAT16 or BFLOAT16. Sum and statistics are float32 whatever A is: epsilon,
    1e-12, is zero in float16. It comes from the node's attribute.
    """
    return _function("skip_layer_norm", dtype, ["y"], [], [])


def build_skip_layer_norm8(dtype: int, *, format: str) -> onnx.FunctionProto:
    """The same with a second output, q: y * inverse_scale, from float32, in "float8" or "int8"."""
    after = [formats.attribute("inverse_scale"), *formats.nodes("y32", "inverse_scale", "q", format)]
    return _function("skip_layer_norm8", dtype, ["y", "q"], after, ["inverse_scale", "format"])


def _function(name: str, dtype: int, outputs: list[str], after: list, attributes: list[str]) -> onnx.FunctionProto:
    names = ("x", "residual", "bias")
    norm = helper.make_node("LayerNormalization", ["s", "gamma", "beta"], ["y32"], axis=-1)
    norm.attribute.append(onnx.AttributeProto(name="epsilon", ref_attr_name="epsilon", type=onnx.AttributeProto.FLOAT))
    return helper.make_function(
        DOMAIN, name, [*names, "gamma", "beta"], outputs,
        [
            *(helper.make_node("Cast", [each], [f"{each}32"], to=TensorProto.FLOAT) for each in names),
            helper.make_node("Add", ["x32", "bias32"], ["with_bias"]),
            helper.make_node("Add", ["with_bias", "residual32"], ["s"]),
            norm,
            helper.make_node("Cast", ["y32"], ["y"], to=dtype),
            *after,
        ],
        [helper.make_opsetid("", 20)],
        attributes=["epsilon", *attributes, "plugin_namespace", "plugin_version"],
    )  # fmt: skip
