"""Skip-layer-norm: reference, ONNX function, kernel and engine say the same."""

import numpy as np
import pytest

from plugins import legs, one_node, tensorrt_flavour
from plugins.device import Device
from plugins.skip_layer_norm.cases import CASES

OPS = ("skip_layer_norm", "skip_layer_norm8")
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


def test_a_number_beyond_the_format_is_its_end_and_nan_stays_nan(kernel_results):
    for name, most in (("float8 beyond", 448), ("int8 beyond", 127)):
        _, q = kernel_results["skip_layer_norm8", name, "float16"]
        assert q.max() == most
        assert q.min() == -most
    case = next(case for case in CASES if case.name == "float8")
    given = legs.inputs("skip_layer_norm8", case, "float16")
    given["x"][0, 0, 0] = np.nan
    ((y, q),) = legs.interpreted("skip_layer_norm8", [(case, given, "float16")])
    assert np.isnan(y[0, 0]).all()
    assert np.isnan(q[0, 0]).all()
    assert np.isfinite(q[0, 1:]).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("op", "name"), [(OPS[0], "tinybert"), (OPS[1], "float8"), (OPS[1], "int8")])
def test_tensorrt_takes_the_plugin_only_where_it_is_registered(op, name, dtype):
    trt = tensorrt_flavour.load("tensorrt_rtx")
    case = next(case for case in CASES if case.name == name)
    assert one_node.build(trt, op, case, dtype, names=[OPS[0]])[1] == 1
    if op == OPS[0]:  # TensorRT has float8 from a QuantizeLinear alone, so the other's body is ONNX Runtime's
        assert one_node.build(trt, op, case, dtype, names=[])[1] == 0


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
