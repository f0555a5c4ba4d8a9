"""Product, bias, residual and layer norm in standard ONNX operators: what runs where no plugin does."""

import onnx
from onnx import TensorProto, helper

from plugins import DOMAIN, formats

AFTER = ["residual", "gamma", "beta"]  # the last inputs of all


def build(dtype: int) -> onnx.FunctionProto:
    """(x A rows+[K], weight A [K, H], bias A [H], residual A rows+[H], gamma, beta float32 [H]) -> y A rows+[H].

    dtype: A as onnx.TensorProto.FLOAT, FLOAT16 or BFLOAT16. All after the product is float32; epsilon is the node's.
    """
    return _of_a("linear_skip_layer_norm", dtype, "")


def build_linear_skip_layer_norm8(dtype: int, *, format: str) -> onnx.FunctionProto:
    """The same with a second output, q: y * inverse_scale, from float32, in "float8" or "int8"."""
    return _of_a("linear_skip_layer_norm8", dtype, format)


def build_linear8_skip_layer_norm(dtype: int) -> onnx.FunctionProto:
    """(x Q rows+[K], weight Q [H, K], bias A [H], scale float32 [1] or [H], residual A rows+[H], gamma, beta float32
    [H]) -> y A rows+[H]. The stored numbers are multiplied in float32, as in plugins/linear8."""
    return _of_q("linear8_skip_layer_norm", dtype, "")


def build_linear8_skip_layer_norm8(dtype: int, *, format: str) -> onnx.FunctionProto:
    """That with q."""
    return _of_q("linear8_skip_layer_norm8", dtype, format)


def _of_a(name: str, dtype: int, q: str) -> onnx.FunctionProto:
    product = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Cast", ["product"], ["product32"], to=TensorProto.FLOAT),
    ]
    return _function(name, dtype, ["x", "weight", "bias", *AFTER], product, q, [])


def _of_q(name: str, dtype: int, q: str) -> onnx.FunctionProto:
    product = [
        *(helper.make_node("Cast", [each], [f"{each}32"], to=TensorProto.FLOAT) for each in ("x", "weight")),
        helper.make_node("Transpose", ["weight32"], ["weight_t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x32", "weight_t"], ["product"]),
        helper.make_node("Mul", ["product", "scale"], ["product32"]),
    ]
    return _function(name, dtype, ["x", "weight", "bias", "scale", *AFTER], product, q, [] if q else ["format"])


def _function(
    name: str, dtype: int, inputs: list[str], product: list[onnx.NodeProto], q: str, attributes: list[str]
) -> onnx.FunctionProto:
    """product: the nodes up to `product32`. q: format of the second output, or ""."""
    norm = helper.make_node("LayerNormalization", ["s", "gamma", "beta"], ["y32"], axis=-1)
    norm.attribute.append(onnx.AttributeProto(name="epsilon", ref_attr_name="epsilon", type=onnx.AttributeProto.FLOAT))
    return helper.make_function(
        DOMAIN, name, inputs, ["y", "q"] if q else ["y"],
        [
            *product,
            *(helper.make_node("Cast", [each], [f"{each}32"], to=TensorProto.FLOAT) for each in ("bias", "residual")),
            helper.make_node("Add", ["product32", "bias32"], ["with_bias"]),
            helper.make_node("Add", ["with_bias", "residual32"], ["s"]),
            norm,
            helper.make_node("Cast", ["y32"], ["y"], to=dtype),
            *([formats.attribute("inverse_scale"), *formats.nodes("y32", "inverse_scale", "q", q)] if q else []),
        ],
        [helper.make_opsetid("", 20)],
        attributes=["epsilon", *attributes, *(["inverse_scale", "format"] if q else []), "plugin_namespace",
                    "plugin_version"],
    )  # fmt: skip
