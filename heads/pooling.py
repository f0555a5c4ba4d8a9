"""One vector for a sequence: its first token's, or the mean of all; as TensorFlow and as ONNX, packed and padded."""

from typing import Any

import numpy as np

POOLINGS = ("mean", "cls")


def pool(x: Any, padding_mask: Any, pooling: str) -> Any:
    """TensorFlow: float32 [B, S, H], mask int32 [B, S] -> [B, H]."""
    import tensorflow as tf

    if pooling == "cls":
        return x[:, 0]
    weights = tf.cast(padding_mask, tf.float32)
    return tf.einsum("bs,bsh->bh", weights, x) / tf.reduce_sum(weights, axis=1, keepdims=True)


def pooled(writer: Any, x: str, layout: str, pooling: str) -> str:
    """ONNX: x A [T, H] or [B, S, H] -> "head/pooled" A [B, H]. A sequence without tokens gets some other's values."""
    from onnx import TensorProto

    def whole(name: str, *values: int) -> str:
        return writer.weight(f"head/{name}", np.array(values), TensorProto.INT64)

    # One of many is taken by Gather, not by Squeeze: the core of TensorRT-RTX 1.6 knows no Squeeze of a shape.
    zero = writer.weight("head/zero", np.array(0), TensorProto.INT64)
    if layout == "padded":
        if pooling == "cls":
            return writer.op("head/pooled", "Gather", [x, zero], axis=1)
        mask = writer.op("head/mask", "Cast", ["padding_mask"], to=TensorProto.FLOAT)  # [B, S]
        count = writer.op("head/count", "ReduceSum", [mask, whole("axis_1", 1)], keepdims=1)
        share = writer.op("head/share", "Div", [mask, _at_least_one(writer, count)])
        share = writer.op("head/share_cast", "Cast", [share], to=writer.dtype)
        row = writer.op("head/share_row", "Unsqueeze", [share, whole("axis_1", 1)])  # [B, 1, S]
        total = writer.op("head/mean", "MatMul", [row, x])  # [B, 1, H]
        return writer.op("head/pooled", "Gather", [total, zero], axis=1)

    first = writer.op(
        "head/first", "Slice", ["cu_seqlens", whole("from_0", 0), whole("to_last", -1), whole("axis_0", 0)]
    )
    shape = writer.op("head/shape", "Shape", ["token_ids"])  # int64 [1]: T
    if pooling == "cls":
        # A batch may be filled up with sequences of no token, which begin behind the last one.
        last = writer.op("head/last_64", "Sub", [shape, whole("one", 1)])
        last = writer.op("head/last", "Cast", [last], to=TensorProto.INT32)
        at = writer.op("head/at", "Min", [first, last])  # int32 [B]
        return writer.op("head/pooled", "Gather", [x, at], axis=0)
    end = writer.op(
        "head/end", "Slice", ["cu_seqlens", whole("one", 1), whole("to_end", 2**31 - 1), whole("axis_0", 0)]
    )
    step = writer.weight("head/step", np.array(1), TensorProto.INT64)
    tokens = writer.op("head/tokens", "Gather", [shape, zero], axis=0)
    place = writer.op("head/place_64", "Range", [zero, tokens, step])
    place = writer.op("head/place", "Cast", [place], to=TensorProto.INT32)  # [T]
    first_column = writer.op("head/first_column", "Unsqueeze", [first, whole("axis_1", 1)])  # [B, 1]
    end_column = writer.op("head/end_column", "Unsqueeze", [end, whole("axis_1", 1)])
    begun = writer.op("head/begun", "GreaterOrEqual", [place, first_column])  # [B, T]
    open_ = writer.op("head/open", "Less", [place, end_column])
    inside = writer.op("head/inside", "And", [begun, open_])
    mask = writer.op("head/mask", "Cast", [inside], to=TensorProto.FLOAT)
    length = writer.op("head/length", "Sub", [end_column, first_column])
    count = writer.op("head/count", "Cast", [length], to=TensorProto.FLOAT)
    share = writer.op("head/share", "Div", [mask, _at_least_one(writer, count)])
    share = writer.op("head/share_cast", "Cast", [share], to=writer.dtype)
    return writer.op("head/pooled", "MatMul", [share, x])


def _at_least_one(writer: Any, count: str) -> str:
    from onnx import TensorProto

    one = writer.weight("head/least", np.array(1.0), TensorProto.FLOAT)
    return writer.op("head/counted", "Max", [count, one])


def dense(writer: Any, name: str, x: str, kernel: np.ndarray, bias: np.ndarray, source: str, output: str = "") -> str:
    """ONNX: x A [..., H] -> x W + b float32 [..., C] as node `name`. The product is in the precision A of the encoder:
    TensorRT-RTX has none in float32 for compute capability 7.5."""
    from onnx import TensorProto

    product = writer.op(f"{name}/product", "MatMul", [x, writer.weight(f"{source}.kernel", kernel)])
    wide = writer.op(f"{name}/cast", "Cast", [product], to=TensorProto.FLOAT)
    plus = writer.weight(f"{source}.bias", bias, TensorProto.FLOAT)
    return writer.op(name, "Add", [wide, plus], output)
