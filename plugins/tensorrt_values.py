"""What TensorRT hands a plugin and takes from it, in Python's terms: axes of unknown length, dtypes, attributes."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np


class Axis:
    """An axis whose length is not known while building; arithmetic on it makes expressions for TensorRT."""

    def __init__(self, trt: Any, builder: Any, expression: Any) -> None:
        self._trt, self._builder, self.expression = trt, builder, expression

    def _with(self, operation: str, other: "int | Axis") -> "Axis":
        right = other.expression if isinstance(other, Axis) else self._builder.constant(other)
        kind = getattr(self._trt.DimensionOperation, operation)
        return Axis(self._trt, self._builder, self._builder.operation(kind, self.expression, right))

    def __add__(self, other: "int | Axis") -> "Axis":
        return self._with("SUM", other)

    def __mul__(self, other: "int | Axis") -> "Axis":
        return self._with("PROD", other)

    def __floordiv__(self, other: "int | Axis") -> "Axis":
        return self._with("FLOOR_DIV", other)


@functools.cache
def dtype_names(trt: Any) -> dict[Any, str]:
    types = trt.DataType
    return {
        types.HALF: "float16", types.BF16: "bfloat16", types.FLOAT: "float32", types.INT32: "int32",
        types.FP8: "float8", types.INT8: "int8",
    }  # fmt: skip


class Fields:
    """Attributes as TensorRT keeps them in a plan, `.collection`. That holds addresses of data which die with the
    PluginFields it was made from (the plan would get what stands there next), so whoever hands it out keeps this."""

    def __init__(self, trt: Any, values: Mapping[str, str | int | float]) -> None:
        kinds = trt.PluginFieldType
        self.fields = []
        for name, value in values.items():
            if isinstance(value, str):
                kind, data = kinds.CHAR, np.frombuffer(value.encode(), np.int8)
            elif isinstance(value, int):
                kind, data = kinds.INT32, np.array([value], np.int32)
            else:
                kind, data = kinds.FLOAT32, np.array([value], np.float32)
            self.fields.append(trt.PluginField(name, data, kind))
        self.collection = trt.PluginFieldCollection(self.fields)


def value_of(field: Any, default: str | int | float) -> str | int | float:
    """The attribute's value from a field, in its default's type. Texts arrive with a zero at their end."""
    data = np.asarray(field.data)
    if isinstance(default, str):
        return data.astype(np.int8).tobytes().rstrip(b"\0").decode()
    return type(default)(data.reshape(-1)[0])
