"""linear_skip_layer_norm: reference, ONNX function, both pairs of kernels and the engine say the same."""

from typing import Any

import numpy as np
import pytest

from plugins import legs, one_node, tensorrt_flavour
from plugins.compile import SHARED, Sizes, compile_kernel
from plugins.device import Device
from plugins.linear import matmul
from plugins.linear.numpy_cublaslt import Clock, NumpyCublasLt
from plugins.linear_skip_layer_norm import kernel, plugin
from plugins.linear_skip_layer_norm.cases import CASES
from plugins.linear_skip_layer_norm.plugin import LinearSkipLayerNorm
from plugins.numpy_tensor import Job, run_interpreted

OP = "linear_skip_layer_norm"
ALL = [(case, dtype) for case in CASES for dtype in ("float16", "bfloat16")]
MANY = {"odd widths", "many tokens"}
FEW = [(case, dtype) for case, dtype in ALL if case.name not in MANY]


def ids(item):
    return getattr(item, "name", item)


def right(result, case, given, dtype):
    legs.assert_right(result, legs.exact(OP, case, given), legs.plain(OP, case, given, dtype), dtype)


@pytest.mark.parametrize("case", CASES, ids=ids)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_function_is_the_reference(case, dtype):
    given = legs.inputs(OP, case, dtype)
    right(legs.onnxruntime(OP, case, given, dtype), case, given, dtype)


@pytest.fixture(scope="module")
def kernel_results():
    tasks = [(case, legs.inputs(OP, case, dtype), dtype) for case, dtype in FEW]
    return dict(zip([(case.name, dtype) for case, dtype in FEW], legs.interpreted(OP, tasks), strict=True))


@pytest.mark.parametrize(("case", "dtype"), FEW, ids=ids)
def test_the_kernels_of_few_tokens_are_the_reference(case, dtype, kernel_results):
    right(kernel_results[case.name, dtype], case, legs.inputs(OP, case, dtype), dtype)


@pytest.mark.parametrize(("case", "dtype"), ALL, ids=ids)
def test_cublaslt_and_the_norm_in_place_are_the_reference(case, dtype, monkeypatch, tmp_path):
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path))
    library = NumpyCublasLt()
    monkeypatch.setattr(matmul, "cublaslt", lambda: library)
    monkeypatch.setattr(matmul, "driver", lambda: Clock(library, {1: 1.0, 2: 2.0, 3: 2.0}))
    for memory in ("_winners", "_handles", "_choices"):
        monkeypatch.setattr(matmul, memory, {})
    given = legs.inputs(OP, case, dtype)
    shapes = legs.shapes(OP, case, given)
    made = LinearSkipLayerNorm(case.attributes)
    product = made.product(shapes, dtype)
    tensors = {name: _aligned(tensor) for name, tensor in given.items()}
    y = _aligned(np.full(shapes["y"], np.nan, legs.DTYPES[dtype]))
    at = {name: tensor.ctypes.data for name, tensor in tensors.items()}
    matmul.Matmul(product)(5, at["x"], at["weight"], at["bias"], y.ctypes.data, 0, at["residual"])
    variants = legs.variants(OP, case, shapes, dtype)
    (after,) = run_interpreted([Job([made._norm(product, variants)], variants, tensors | {"y": y})])
    right(after["y"].astype(np.float64), case, given, dtype)


def _aligned(array):
    buffer = np.full(array.nbytes + 16, 0xFF, np.uint8)
    inner = buffer[-buffer.ctypes.data % 16 :][: array.nbytes].view(array.dtype).reshape(array.shape)
    inner[...] = array
    return inner


def test_a_sum_is_divided_into_parts_of_equal_size():
    def parts(inputs, width=768, **tuning):
        found = {variant.name: variant.constants for variant in kernel.variants(
            {"weight": (inputs, width)}, "float16", **tuning)}  # fmt: skip
        product = found[f"linear_skip_layer_norm-product-{inputs}x{width}-float16"]
        assert found[f"linear_skip_layer_norm-sum-{inputs}x{width}-float16"]["PARTS"] == product["PARTS"]
        return product["PARTS"], product["BLOCK_K"]

    assert parts(768) == (2, 128)
    assert parts(3072) == (4, 128)
    assert parts(4096, 1024) == (4, 128)
    assert parts(312 * 4, 64) == (1, 32)
    assert parts(3072, part=384) == (8, 128)
    assert parts(64, 64) == (1, 64)
    assert parts(3072, part=3072) == (2, 128)


def test_few_tokens_take_our_product_and_its_parts_fit_into_the_workspace():
    case = next(case for case in CASES if case.name == "parts")
    shapes = legs.shapes(OP, case, legs.inputs(OP, case, "float16"))
    variants: Any = legs.variants(OP, case, shapes, "float16")
    made = LinearSkipLayerNorm(case.attributes, variants)
    assert made.has_few(made.product(shapes, "float16"))

    def of(tokens):
        return shapes | {name: (tokens, *shapes[name][1:]) for name in ("x", "residual", "y")}

    assert not made.has_few(made.product(of(plugin.FEW_TOKENS + 1), "float16"))
    few = of(plugin.FEW_TOKENS)
    product, total = made.launches(few, "float16", variants)
    constants = variants[product.kernel].constants
    assert 4 * constants["PARTS"] * plugin.FEW_TOKENS * constants["H"] <= made.workspace(few, "float16")
    assert total.grid == (plugin.FEW_TOKENS,)


def test_no_tokens_launch_nothing_and_shapes_that_do_not_fit_are_named():
    shapes = {"x": (0, 64), "weight": (64, 64), "bias": (64,), "residual": (0, 64), "gamma": (64,), "beta": (64,)}
    assert LinearSkipLayerNorm({}).launches(shapes, "float16", {}) == []
    for name, shape in (("x", (0, 8)), ("residual", (1, 64)), ("bias", (8,)), ("weight", (64, 8)), ("gamma", (1,))):
        with pytest.raises(ValueError, match="do not belong together"):
            LinearSkipLayerNorm({}).product(shapes | {name: shape}, "float16")


@pytest.mark.parametrize("arch", [75, 86, 90])
def test_the_kernels_fit_into_the_shared_memory_of_old_and_new(arch):
    for variant in kernel.needed(Sizes(768, 12, 64, 3072, "packed", "none"), "float16"):
        assert compile_kernel(variant, arch).shared <= SHARED[arch] << 10


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensorrt_takes_the_plugin_only_where_it_is_registered(dtype):
    trt = tensorrt_flavour.load("tensorrt_rtx")
    assert one_node.build(trt, OP, CASES[0], dtype, names=[OP])[1] == 1
    assert one_node.build(trt, OP, CASES[0], dtype, names=[])[1] == 0


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "dtype"), ALL, ids=ids)
@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
def test_the_launches_are_the_reference(case, dtype, few, monkeypatch):
    for name in () if few else ("FEW_TOKENS", "FEW_TOKENS_NARROW"):
        monkeypatch.setattr(plugin, name, 0)
    given = legs.inputs(OP, case, dtype)
    with Device() as device:
        right(legs.launched(device, OP, case, given, dtype), case, given, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "dtype"), ALL, ids=ids)
def test_the_engine_is_the_reference(case, dtype):
    one_node.assert_engine_right("tensorrt_rtx", OP, case, dtype)
