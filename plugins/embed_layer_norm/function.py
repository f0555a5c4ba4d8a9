"""Three embeddings, added and normalised, in standard ONNX operators: what runs where no plugin does."""

import onnx
from onnx import TensorProto, helper

from plugins import DOMAIN

TABLES = ("token", "position", "segment")


def build(dtype: int) -> onnx.FunctionProto:
    """(token_ids, segment_ids, position_ids int32 rows; token_table A [V, H], position_table A [P, H],
    segment_table A [2, H], gamma float32 [H], beta float32 [H]) -> y A rows+[H].

    dtype: A as onnx.TensorProto.FLOAT, FLOAT16 or BFLOAT16. Sum and statistics are float32; epsilon comes from the
    node's attribute. An id beyond its table is an error of ONNX Runtime's, where the kernel takes the nearest one.
    """
    nodes = []
    for name in TABLES:
        nodes.append(helper.make_node("Gather", [f"{name}_table", f"{name}_ids"], [f"{name}_rows"], axis=0))
        nodes.append(helper.make_node("Cast", [f"{name}_rows"], [name], to=TensorProto.FLOAT))
    norm = helper.make_node("LayerNormalization", ["s", "gamma", "beta"], ["y32"], axis=-1)
    norm.attribute.append(onnx.AttributeProto(name="epsilon", ref_attr_name="epsilon", type=onnx.AttributeProto.FLOAT))
    nodes += [
        helper.make_node("Add", ["token", "position"], ["placed"]),
        helper.make_node("Add", ["placed", "segment"], ["s"]),
        norm,
        helper.make_node("Cast", ["y32"], ["y"], to=dtype),
    ]
    return helper.make_function(
        DOMAIN,
        "embed_layer_norm",
        ["token_ids", "segment_ids", "position_ids", *(f"{name}_table" for name in TABLES), "gamma", "beta"],
        ["y"],
        nodes,
        [helper.make_opsetid("", 20)],
        attributes=["epsilon", "plugin_namespace", "plugin_version"],
    )
