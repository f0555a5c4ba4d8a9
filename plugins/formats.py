"""The 8-bit formats: what a number becomes in them, in numpy and in standard ONNX.

    float8   E4M3 of Micikevicius et al. 2022 (arXiv 2209.05433), without infinities: 3 bits of mantissa, up to 448
    int8     -127 to 127; -128 is left out, so that the range is the same on both sides

A value v is stored as round(v * inverse_scale), to the nearest and to even, what lies beyond the format's end as its
end; it stands for stored * scale. NaN stays NaN in float8 and is 0 in int8, which has none.
"""

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

MOST = {"float8": 448, "int8": 127}  # the largest stored number
DTYPES = {"float8": np.dtype(ml_dtypes.float8_e4m3fn), "int8": np.dtype(np.int8)}
ONNX = {"float8": TensorProto.FLOAT8E4M3FN, "int8": TensorProto.INT8}
# The multiple that the widths of a product must be: cuBLASLt's for float8, our kernel's loads of 16 bytes for int8.
MULTIPLE = 16
# The first GPU, as compute capability x 10, whose tensor cores multiply the format (7.5 has int8, too, but Triton has
# nothing for it there).
FIRST = {"float8": 89, "int8": 80}


def known(name: str) -> str:
    """The name of a format back. Raises ValueError for another."""
    if name not in MOST:
        raise ValueError(f"format is {' or '.join(MOST)}, not {name!r}")
    return name


def scaled(v: np.ndarray, inverse_scale: float | np.ndarray, format: str) -> np.ndarray:
    """v * inverse_scale held within the format's range, not yet rounded; any float dtype, which stays."""
    most = v.dtype.type(MOST[known(format)])
    return np.clip(v * np.asarray(inverse_scale).astype(v.dtype), -most, most)


def rounded(s: np.ndarray, format: str) -> np.ndarray:
    """What `scaled` gave, in the format."""
    if format == "int8":
        return np.rint(np.nan_to_num(s)).astype(np.int8)
    return s.astype(np.float32).astype(DTYPES[known(format)])


def quantise(v: np.ndarray, inverse_scale: float | np.ndarray, format: str) -> np.ndarray:
    """v in the format. inverse_scale: a number, or an array that broadcasts to v."""
    return rounded(scaled(v, inverse_scale, format), format)


def nodes(source: str, inverse_scale: str, target: str, format: str) -> list[onnx.NodeProto]:
    """ONNX nodes from float32 `source` to `target` in the format; inverse_scale: name of a float32 value, [] or [1].

    The names of what lies between begin with the target's.
    """
    most = helper.make_tensor("most", TensorProto.FLOAT, [], [float(MOST[known(format)])])
    found = [
        helper.make_node("Mul", [source, inverse_scale], [f"{target}_scaled"]),
        helper.make_node("Constant", [], [f"{target}_most"], value=most),
        helper.make_node("Neg", [f"{target}_most"], [f"{target}_least"]),
        helper.make_node("Clip", [f"{target}_scaled", f"{target}_least", f"{target}_most"], [f"{target}_held"]),
    ]
    if format == "int8":
        found.append(helper.make_node("Round", [f"{target}_held"], [f"{target}_whole"]))
        return [*found, helper.make_node("Cast", [f"{target}_whole"], [target], to=TensorProto.INT8)]
    return [*found, helper.make_node("Cast", [f"{target}_held"], [target], to=TensorProto.FLOAT8E4M3FN)]


def attribute(name: str) -> onnx.NodeProto:
    """A Constant float32 [] that takes its value from the function's float attribute of that name."""
    node = helper.make_node("Constant", [], [name])
    node.attribute.add(name="value_float", ref_attr_name=name, type=onnx.AttributeProto.FLOAT)
    return node
