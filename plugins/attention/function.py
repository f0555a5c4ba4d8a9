"""Attention in standard ONNX: what ONNX Runtime runs, and TensorRT where the plugin is not registered.

Here the scores do exist, [N, T, T] packed and [B, N, S, S] padded, so the packed body does the work of T tokens times T
keys whatever the sequences are: right everywhere, and nothing to be fast with.
"""

import onnx
from onnx import TensorProto, helper

from plugins import DOMAIN, formats

_DARK = -1e9  # added to float32 scores that must not count: exp() of it is 0, and it is finite where all are dark


def build(dtype: int, *, layout: str = "packed") -> onnx.FunctionProto:
    """The function `retort.attention`.

    Args:
        dtype: onnx.TensorProto.FLOAT, FLOAT16 or BFLOAT16: that of qkv, both products and the result. The softmax is
            float32.
        layout: "packed": (qkv [T, 3 N D], cu_seqlens int32 [B + 1]) -> [T, N D]. "padded": (qkv [B, S, 3 N D],
            padding_mask int32 [B, S]) -> [B, S, N D].

    num_heads and scale are attributes of the node. scale is put on q before the product, which keeps float16 scores
    away from 65504.
    """
    return _function("attention", dtype, layout, [], [])


def build_attention8(dtype: int, *, layout: str = "packed", format: str = "float8") -> onnx.FunctionProto:
    """The same, then context * inverse_scale in "float8" or "int8"; packed, what lies in the tail is 0."""
    after = [_node("Cast", "context", "context32", to=TensorProto.FLOAT), formats.attribute("inverse_scale")]
    after += formats.nodes("context32", "inverse_scale", "context8", format)
    return _function("attention8", dtype, layout, after, ["inverse_scale", "format"])


def _function(
    name: str, dtype: int, layout: str, after: list[onnx.NodeProto], attributes: list[str]
) -> onnx.FunctionProto:
    if layout not in ("packed", "padded"):
        raise ValueError(f"layout is packed or padded, not {layout!r}")
    where = "cu_seqlens" if layout == "packed" else "padding_mask"
    nodes = _constants(dtype) + (_packed_mask() if layout == "packed" else _padded_mask()) + _heads(layout)
    nodes += [
        _node("Mul", "q_heads scale", "q_scaled"),
        _node("MatMul", "q_scaled k_heads", "scores"),  # packed [N, T, T], padded [B, N, S, S]
        _node("Cast", "scores", "scores32", to=TensorProto.FLOAT),
        _node("Add", "scores32 dark", "visible_scores"),
        _node("Softmax", "visible_scores", "weights32", axis=-1),
        _node("Cast", "weights32", "weights", to=dtype),
        _node("MatMul", "weights v_heads", "context_heads"),
        _node("Transpose", "context_heads", "context_split", perm=[1, 0, 2] if layout == "packed" else [0, 2, 1, 3]),
        _constant("joined_shape", ints=[0, -1] if layout == "packed" else [0, 0, -1]),
        _node("Reshape", "context_split joined_shape", "context"),
    ]
    return helper.make_function(
        DOMAIN, name, ["qkv", where], ["context8" if after else "context"], nodes + after,
        [helper.make_opsetid("", 20)],
        attributes=["num_heads", "scale", "layout", *attributes, "plugin_namespace", "plugin_version"],
    )  # fmt: skip


def _constants(dtype: int) -> list[onnx.NodeProto]:
    """scale in A, N as int64 [1], and the small numbers that the masks need."""
    return [
        _from_attribute("scale32", "value_float", "scale", onnx.AttributeProto.FLOAT),
        _node("Cast", "scale32", "scale", to=dtype),
        _from_attribute("heads", "value_int", "num_heads", onnx.AttributeProto.INT),
        _constant("zero", ints=[0]),
        _constant("one", ints=[1]),
        _constant("rest", ints=[-1]),
        _node("Cast", "zero", "nothing", to=dtype),
        _node("Reshape", "heads rest", "heads_1d"),
    ]


def _packed_mask() -> list[onnx.NodeProto]:
    """cu_seqlens -> dark float32 [T, T], 0 where query and key share a sequence; qkv with its tail set to zero.

    A token's sequence is the number of offsets at or below its place: 1..B, and B + 1 in the tail. The tail attends to
    itself, and its context is zero because its v is; so no row of the softmax is without a key.
    """
    return [
        _node("Shape", "qkv", "tokens", start=0, end=1),
        _constant("first", value=0),
        _constant("step", value=1),
        _constant("no_axes", ints=[]),
        _node("Reshape", "tokens no_axes", "tokens_scalar"),
        _node("Range", "first tokens_scalar step", "place64"),
        _node("Cast", "place64", "place", to=TensorProto.INT32),  # [T]
        _node("Unsqueeze", "place one", "place_column"),  # [T, 1]
        _node("Unsqueeze", "cu_seqlens zero", "offset_row"),  # [1, B + 1]
        _node("GreaterOrEqual", "place_column offset_row", "begun"),
        _node("Cast", "begun", "begun_count", to=TensorProto.INT32),
        _node("ReduceSum", "begun_count one", "sequence_column", keepdims=1),  # [T, 1]
        _node("Transpose", "sequence_column", "sequence_row", perm=[1, 0]),
        _node("Equal", "sequence_column sequence_row", "same"),  # [T, T]
        _constant("dark_on", floats=[_DARK]),
        _constant("dark_off", floats=[0.0]),
        _node("Where", "same dark_off dark_on", "dark"),
        _node("Gather", "cu_seqlens rest", "end", axis=0),  # [1]
        _node("Less", "place_column end", "is_token"),  # [T, 1]
        _node("Where", "is_token qkv nothing", "tokens_only"),
    ]


def _padded_mask() -> list[onnx.NodeProto]:
    """padding_mask -> dark float32 [B, 1, 1, S]. `_heads` sets v at padding to zero, for rows that see nothing."""
    return [
        _constant("two_axes", ints=[1, 2]),
        _node("Cast", "padding_mask", "is_seen", to=TensorProto.BOOL),
        _node("Unsqueeze", "is_seen two_axes", "is_seen_keys"),
        _constant("dark_on", floats=[_DARK]),
        _constant("dark_off", floats=[0.0]),
        _node("Where", "is_seen_keys dark_off dark_on", "dark"),
    ]


def _heads(layout: str) -> list[onnx.NodeProto]:
    """qkv -> q_heads, v_heads [.., N, S, D] and k_heads [.., N, D, S], where packed has no B and T for S."""
    packed = layout == "packed"
    axis, kept = (1, ["zero"]) if packed else (2, ["zero", "zero"])
    nodes = [
        _node("Split", "tokens_only" if packed else "qkv", "q k v_all", axis=axis, num_outputs=3),
        _node("Concat", " ".join([*kept, "heads_1d", "rest"]), "split_shape", axis=0),
    ]
    if packed:
        nodes.append(_node("Identity", "v_all", "v"))
    else:
        nodes += [_node("Unsqueeze", "is_seen rest", "is_seen_v"), _node("Where", "is_seen_v v_all nothing", "v")]
    forward, transposed = ([1, 0, 2], [1, 2, 0]) if packed else ([0, 2, 1, 3], [0, 2, 3, 1])
    for name in "qkv":
        nodes.append(_node("Reshape", f"{name} split_shape", f"{name}_split"))
        nodes.append(_node("Transpose", f"{name}_split", f"{name}_heads", perm=transposed if name == "k" else forward))
    return nodes


def _node(op: str, inputs: str, outputs: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def _constant(name: str, *, ints: list[int] | None = None, floats: list[float] | None = None, value: int = 0):
    """A Constant int64 [n] from ints, float32 [n] from floats, else the int64 scalar `value`."""
    if floats is not None:
        tensor = helper.make_tensor(name, TensorProto.FLOAT, [len(floats)], floats)
    elif ints is not None:
        tensor = helper.make_tensor(name, TensorProto.INT64, [len(ints)], ints)
    else:
        tensor = helper.make_tensor(name, TensorProto.INT64, [], [value])
    return helper.make_node("Constant", [], [name], value=tensor)


def _from_attribute(name: str, key: str, attribute: str, kind: onnx.AttributeProto.AttributeType) -> onnx.NodeProto:
    """A Constant scalar that takes its value from an attribute of the function's node."""
    node = helper.make_node("Constant", [], [name])
    node.attribute.add(name=key, ref_attr_name=attribute, type=kind)
    return node
