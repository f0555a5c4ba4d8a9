"""Skip-layer-norm: reference, ONNX function, kernel and engine say the same."""

import pytest

from plugins import legs, one_node, tensorrt_flavour
from plugins.device import Device
from plugins.skip_layer_norm.cases import CASES

OP = "skip_layer_norm"
ALL = [(case, dtype) for case in CASES for dtype in ("float32", "float16", "bfloat16")]
ON_GPU = [(case, dtype) for case, dtype in ALL if dtype != "float32"]


def ids(item):
    return getattr(item, "name", item)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_function_is_the_reference(case, dtype):
    given = legs.inputs(OP, case, dtype)
    exact, plain = legs.exact(OP, case, given), legs.plain(OP, case, given, dtype)
    legs.assert_right(legs.onnxruntime(OP, case, given, dtype), exact, plain, dtype)


@pytest.fixture(scope="module")
def kernel_results():
    tasks = [(case, legs.inputs(OP, case, dtype), dtype) for case, dtype in ALL]
    return dict(zip([(case.name, dtype) for case, dtype in ALL], legs.interpreted(OP, tasks), strict=True))


@pytest.mark.parametrize(("case", "dtype"), ALL, ids=ids)
def test_the_kernel_is_the_reference(case, dtype, kernel_results):
    given = legs.inputs(OP, case, dtype)
    exact, plain = legs.exact(OP, case, given), legs.plain(OP, case, given, dtype)
    legs.assert_right(kernel_results[case.name, dtype], exact, plain, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensorrt_takes_the_plugin_only_where_it_is_registered(dtype):
    trt = tensorrt_flavour.load("tensorrt_rtx")
    case = next(case for case in CASES if case.name == "tinybert")
    assert one_node.build(trt, OP, case, dtype, names=[OP])[1] == 1
    assert one_node.build(trt, OP, case, dtype, names=[])[1] == 0


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "dtype"), ON_GPU, ids=ids)
def test_the_launched_kernel_is_the_reference(case, dtype):
    given = legs.inputs(OP, case, dtype)
    exact, plain = legs.exact(OP, case, given), legs.plain(OP, case, given, dtype)
    with Device() as device:
        legs.assert_right(legs.launched(device, OP, case, given, dtype), exact, plain, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "dtype"), [(case, dtype) for case, dtype in ON_GPU if case.name != "empty"], ids=ids)
def test_the_engine_is_the_reference(case, dtype):
    one_node.assert_engine_right("tensorrt_rtx", OP, case, dtype)
