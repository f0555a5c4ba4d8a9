"""8-bit products in standard ONNX: what ONNX Runtime runs. The stored numbers are multiplied in float32, exactly as
long as a sum of int8 products stays below 2^24, and in float8 up to the order of the sums."""

import onnx
from onnx import TensorProto, helper

from plugins import DOMAIN, formats


def build(dtype: int) -> onnx.FunctionProto:
    """`retort.linear8`: (x Q rows + [K], weight Q [M, K], bias A [M], scale float32 [1] or [M]) -> A rows + [M].

    dtype: A, of onnx.TensorProto. Q is what the tensors are, FLOAT8E4M3FN or INT8.
    """
    return _function("linear8", [], [helper.make_node("Cast", ["sum"], ["y"], to=dtype)])


def build_linear8_gelu(dtype: int) -> onnx.FunctionProto:
    """`retort.linear8_gelu`: the tanh form of GELU over it, in float32."""
    return _function("linear8_gelu", [], [_gelu("tanh"), helper.make_node("Cast", ["after"], ["y"], to=dtype)])


def build_linear8_gelu8(dtype: int, *, format: str, approximate: str) -> onnx.FunctionProto:
    """`retort.linear8_gelu8`: GELU, "tanh" or "none" (erf), times a fifth input, inverse_scale float32 [1], in Q; no A
    but the bias."""
    after = [_gelu(approximate), *formats.nodes("after", "inverse_scale", "y", format)]
    return _function("linear8_gelu8", ["inverse_scale"], after, "approximate")


def _gelu(approximate: str) -> onnx.NodeProto:
    return helper.make_node("Gelu", ["sum"], ["after"], approximate=approximate)


def _function(name: str, inputs: list[str], after: list[onnx.NodeProto], *attributes: str) -> onnx.FunctionProto:
    nodes = [helper.make_node("Cast", [each], [f"{each}32"], to=TensorProto.FLOAT) for each in ("x", "weight", "bias")]
    nodes += [
        helper.make_node("Transpose", ["weight32"], ["weight_t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x32", "weight_t"], ["product"]),
        helper.make_node("Mul", ["product", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias32"], ["sum"]),
    ]
    return helper.make_function(
        DOMAIN, name, ["x", "weight", "bias", "scale", *inputs], ["y"], nodes + after, [helper.make_opsetid("", 20)],
        attributes=["format", *attributes, "plugin_namespace", "plugin_version"],
    )  # fmt: skip
