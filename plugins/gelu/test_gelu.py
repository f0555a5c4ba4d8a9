"""GELU: reference, ONNX function, kernel and engine say the same."""

import numpy as np
import pytest

from plugins import legs, one_node, tensorrt_flavour
from plugins.device import Device
from plugins.gelu.cases import CASES

OPS = ("gelu", "gelu8")
PAIRS = [(op, case) for op in OPS for case in legs.cases(op)]
ALL = [(op, case, dtype) for op, case in PAIRS for dtype in ("float32", "float16", "bfloat16")]
ON_GPU = [(op, case, dtype) for op, case, dtype in ALL if dtype != "float32"]


def ids(item):
    return getattr(item, "name", item)


@pytest.mark.parametrize(("op", "case"), PAIRS, ids=ids)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_function_is_the_reference(op, case, dtype):
    given = legs.inputs(op, case, dtype)
    legs.assert_case_right(op, case, legs.onnxruntime(op, case, given, dtype), given, dtype)


@pytest.fixture(scope="module")
def kernel_results():
    found = {}
    for op in OPS:
        mine = [(case, dtype) for name, case, dtype in ALL if name == op]
        results = legs.interpreted(op, [(case, legs.inputs(op, case, dtype), dtype) for case, dtype in mine])
        found |= {(op, case.name, dtype): result for (case, dtype), result in zip(mine, results, strict=True)}
    return found


@pytest.mark.parametrize(("op", "case", "dtype"), ALL, ids=ids)
def test_the_kernel_is_the_reference(op, case, dtype, kernel_results):
    given = legs.inputs(op, case, dtype)
    legs.assert_case_right(op, case, kernel_results[op, case.name, dtype], given, dtype)


def test_the_two_forms_differ_by_what_is_known():
    x = np.linspace(-6, 6, 2001)
    gap = np.abs(legs.part("gelu", "reference").gelu(x) - legs.part("gelu", "reference").gelu(x, approximate="tanh"))
    assert 4e-4 < gap.max() < 5e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensorrt_takes_the_plugin_only_where_it_is_registered(dtype):
    trt = tensorrt_flavour.load("tensorrt_rtx")
    odd = next(case for case in CASES if case.name == "odd")
    assert one_node.build(trt, "gelu", odd, dtype, names=["gelu"])[1] == 1
    assert one_node.build(trt, "gelu", odd, dtype, names=[])[1] == 0
    for name in ("float8", "int8"):
        case = next(case for case in CASES if case.name == name)
        assert one_node.build(trt, "gelu8", case, dtype, names=["gelu"])[1] == 1


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "case", "dtype"), ON_GPU, ids=ids)
def test_the_launched_kernel_is_the_reference(op, case, dtype):
    given = legs.inputs(op, case, dtype)
    with Device() as device:
        legs.assert_case_right(op, case, legs.launched(device, op, case, given, dtype), given, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "case", "dtype"), [item for item in ON_GPU if "empty" not in item[1].name], ids=ids)
def test_the_engine_is_the_reference(op, case, dtype):
    one_node.assert_engine_right("tensorrt_rtx", op, case, dtype)
