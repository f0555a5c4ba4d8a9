"""Three embeddings, added and normalised, in standard ONNX operators: what runs where no plugin does."""

import onnx
from onnx import TensorProto, helper

from plugins import DOMAIN, formats

TABLES = ("token", "position", "segment")


def build(dtype: int) -> onnx.FunctionProto:
    """(token_ids, segment_ids, position_ids int32 rows; token_table A [V, H], position_table A [P, H],
    segment_table A [2, H], gamma float32 [H], beta float32 [H]) -> y A rows+[H].

    dtype: A as onnx.TensorProto.FLOAT, FLOAT16 or BFLOAT16. Sum and statistics are float32; epsilon comes from the
    node's attribute. An id beyond its table is an error of ONNX Runtime's, where the kernel takes the nearest one.
    """
    return _function("embed_layer_norm", dtype, ["y"], [], [])


def build_embed_layer_norm8(dtype: int, *, format: str) -> onnx.FunctionProto:
    """The same with a second output, q: y * inverse_scale, from float32, in "float8" or "int8"."""
    after = [formats.attribute("inverse_scale"), *formats.nodes("y32", "inverse_scale", "q", format)]
    return _function("embed_layer_norm8", dtype, ["y", "q"], after, ["inverse_scale", "format"])


def _function(name: str, dtype: int, outputs: list[str], after: list, attributes: list[str]) -> onnx.FunctionProto:
    nodes = []
    for table in TABLES:
        nodes.append(helper.make_node("Gather", [f"{table}_table", f"{table}_ids"], [f"{table}_rows"], axis=0))
        nodes.append(helper.make_node("Cast", [f"{table}_rows"], [table], to=TensorProto.FLOAT))
    norm = helper.make_node("LayerNormalization", ["s", "gamma", "beta"], ["y32"], axis=-1)
    norm.attribute.append(onnx.AttributeProto(name="epsilon", ref_attr_name="epsilon", type=onnx.AttributeProto.FLOAT))
    nodes += [
        helper.make_node("Add", ["token", "position"], ["placed"]),
        helper.make_node("Add", ["placed", "segment"], ["s"]),
        norm,
        helper.make_node("Cast", ["y32"], ["y"], to=dtype),
        *after,
    ]
    return helper.make_function(
        DOMAIN,
        name,
        ["token_ids", "segment_ids", "position_ids", *(f"{table}_table" for table in TABLES), "gamma", "beta"],
        outputs,
        nodes,
        [helper.make_opsetid("", 20)],
        attributes=["epsilon", *attributes, "plugin_namespace", "plugin_version"],
    )
