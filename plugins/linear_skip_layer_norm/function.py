"""Product, bias, residual and layer norm in standard ONNX operators: what runs where no plugin does."""

import onnx
from onnx import TensorProto, helper

from plugins import DOMAIN


def build(dtype: int) -> onnx.FunctionProto:
    """(x A rows+[K], weight A [K, H], bias A [H], residual A rows+[H], gamma, beta float32 [H]) -> y A rows+[H].

    dtype: A as onnx.TensorProto.FLOAT, FLOAT16 or BFLOAT16. All after the product is float32; epsilon is the node's.
    """
    names = ("product", "bias", "residual")
    norm = helper.make_node("LayerNormalization", ["s", "gamma", "beta"], ["y32"], axis=-1)
    norm.attribute.append(onnx.AttributeProto(name="epsilon", ref_attr_name="epsilon", type=onnx.AttributeProto.FLOAT))
    return helper.make_function(
        DOMAIN, "linear_skip_layer_norm", ["x", "weight", "bias", "residual", "gamma", "beta"], ["y"],
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"]),
            *(helper.make_node("Cast", [name], [f"{name}32"], to=TensorProto.FLOAT) for name in names),
            helper.make_node("Add", ["product32", "bias32"], ["with_bias"]),
            helper.make_node("Add", ["with_bias", "residual32"], ["s"]),
            norm,
            helper.make_node("Cast", ["y32"], ["y"], to=dtype),
        ],
        [helper.make_opsetid("", 20)],
        attributes=["epsilon", "plugin_namespace", "plugin_version"],
    )  # fmt: skip
