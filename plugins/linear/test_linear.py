"""linear and linear_gelu: reference, ONNX function and engine say the same, and cuBLASLt is told what is meant."""

import ctypes
import gc
from typing import Any

import numpy as np
import pytest

from plugins import legs, one_node, tensorrt_flavour
from plugins.compile import SHARED, Sizes, compile_kernel
from plugins.device import Device
from plugins.gelu.reference import gelu
from plugins.linear import kernel, matmul, plugin
from plugins.linear.cases import CASES
from plugins.linear.numpy_cublaslt import Clock, NumpyCublasLt
from plugins.linear.plugin import Linear, LinearGelu
from plugins.linear.product import Product
from plugins.registration import Plugin

OPS = ("linear", "linear_gelu")
ALL = [(op, case, dtype) for op in OPS for case in legs.cases(op) for dtype in ("float16", "bfloat16")]
ids = [f"{op}-{case.name}-{dtype}" for op, case, dtype in ALL]
STREAM = 5
FEW = [(op, case, dtype) for op, case, dtype in ALL if "few tokens" in case.name]
few_ids = [f"{op}-{case.name}-{dtype}" for op, case, dtype in FEW]


def ids_of(item):
    return getattr(item, "name", item)


def right(result, op, case, given, dtype):
    legs.assert_right(result, legs.exact(op, case, given), legs.plain(op, case, given, dtype), dtype)


@pytest.mark.parametrize(("op", "case"), [(op, case) for op in OPS for case in legs.cases(op)], ids=ids_of)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_function_is_the_reference(op, case, dtype):
    given = legs.inputs(op, case, dtype)
    right(legs.onnxruntime(op, case, given, dtype), op, case, given, dtype)


@pytest.fixture
def model(monkeypatch, tmp_path):
    """cuBLASLt in numpy, and a GPU's clock on which algorithm 2 is the fastest."""
    library = NumpyCublasLt()
    clock = Clock(library, {1: 3.0, 2: 1.0, 3: 2.0})
    monkeypatch.setattr(matmul, "cublaslt", lambda: library)
    monkeypatch.setattr(matmul, "driver", lambda: clock)
    for memory in ("_winners", "_handles", "_choices"):
        monkeypatch.setattr(matmul, memory, {})
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path))
    return library, clock


def aligned(array):
    buffer = np.full(array.nbytes + 256, 0xFF, np.uint8)
    start = -buffer.ctypes.data % 256
    inner = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    inner[...] = array
    return inner


def run(op, given, dtype, prepared=None, **attributes):
    """The plugin's own call over host memory; y is NaN beforehand."""
    shapes = {name: tensor.shape for name, tensor in given.items()}
    made = (Linear if op == "linear" else LinearGelu)(attributes)
    shapes["y"] = tuple(made.output_shape(shapes))
    y = aligned(np.full(shapes["y"], np.nan, legs.DTYPES[dtype]))
    tensors = [*map(aligned, given.values()), y]
    call = prepared or made.prepare(shapes, dtype)
    workspace = aligned(np.zeros(made.workspace(shapes, dtype) if attributes else 1, np.uint8))
    call(STREAM, [tensor.ctypes.data for tensor in tensors], workspace.ctypes.data)
    return y.astype(np.float64), call


class GeluInNumpy:
    """In place of gelu's plugin: its kernel over host memory."""

    def __init__(self, values, kernels):
        self.approximate = values["approximate"]

    def prepare(self, shapes, dtype):
        def run(stream, addresses, workspace):
            x, y = (at(address, shapes["x"], legs.DTYPES[dtype]) for address in addresses)
            y[...] = gelu(x.astype(np.float32), approximate=self.approximate)

        return run


def at(address, shape, dtype):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), dtype).reshape(shape)


@pytest.mark.parametrize(("op", "case", "dtype"), ALL, ids=ids)
def test_what_cublaslt_is_told_gives_the_reference(op, case, dtype, model, monkeypatch):
    monkeypatch.setattr(plugin, "Gelu", GeluInNumpy)
    given = legs.inputs(op, case, dtype)
    found, _ = run(op, given, dtype, **case.attributes)
    # cuBLASLt rounds what it gives to the erf form's kernel.
    rounded = legs.FLOOR[dtype] if case.approximate == "none" else 0.0
    legs.assert_case_right(op, case, found, given, dtype, slack=rounded)


@pytest.fixture(scope="module")
def kernel_results():
    return interpreted(FEW)


def interpreted(which):
    results = legs.interpreted_all([(op, case, legs.inputs(op, case, dtype), dtype) for op, case, dtype in which])
    return {(op, case.name, dtype): result for (op, case, dtype), result in zip(which, results, strict=True)}


@pytest.mark.parametrize(("op", "case", "dtype"), FEW, ids=few_ids)
def test_the_kernel_of_few_tokens_is_the_reference(op, case, dtype, kernel_results):
    right(kernel_results[op, case.name, dtype], op, case, legs.inputs(op, case, dtype), dtype)


def test_our_kernel_takes_few_tokens_and_cublaslt_many(model, monkeypatch):
    monkeypatch.setattr(Plugin, "prepare", lambda *_: "our kernel")

    def made(tokens):
        shapes = {"x": (tokens, 128), "weight": (128, 192), "bias": (192,), "y": (tokens, 192)}
        kernels: Any = legs.variants("linear", CASES[0], shapes, "float16")  # of a kernel the name alone is asked
        return Linear({}, kernels).prepare(shapes, "float16")

    assert made(plugin.FEW_TOKENS) == "our kernel"
    assert made(plugin.FEW_TOKENS + 1) != "our kernel"


@pytest.mark.parametrize("arch", [75, 86, 90])
def test_the_kernel_fits_into_the_shared_memory_of_old_and_new(arch):
    for form in ("tanh", "none"):
        for variant in kernel.needed(Sizes(384, 12, 32, 1536, "packed", form), "float16"):
            if not variant.only or arch in variant.only:
                made = compile_kernel(variant, arch)
                assert made.shared <= SHARED[arch] << 10
                assert made.overlaps == (arch >= 90)


def test_the_heuristic_is_told_what_a_call_will_have(model):
    matmul.Matmul(Product(4, 16, 8, "float16", gelu=False))
    alignments = {f"MIN_ALIGNMENT_{matrix}_BYTES": matmul.ALIGNMENT for matrix in "ABCD"}
    assert model[0].wishes == {"MAX_WORKSPACE_BYTES": Linear({}).workspace({}, "float16")} | alignments


def test_every_call_takes_the_bias_that_it_is_given(model):
    given = legs.inputs("linear", CASES[0], "float16")
    first, call = run("linear", given, "float16")
    second, _ = run("linear", given | {"bias": given["bias"] + np.float16(4)}, "float16", call)
    np.testing.assert_allclose(second - first, 4, atol=0.01)


def test_the_fastest_algorithm_is_taken_and_other_layers_take_it_untimed(model):
    library, clock = model
    given = legs.inputs("linear", CASES[0], "float16")
    run("linear", given, "float16")
    assert library.calls[-1] == (2, STREAM)
    timed = len(library.calls)
    assert timed > 3 * matmul.CALLS
    run("linear", given, "float16")
    assert library.calls[timed:] == [(2, STREAM)]
    assert clock.live == 0


def test_large_products_are_timed_in_fewer_calls(model, monkeypatch):
    monkeypatch.setattr(matmul, "ENOUGH", 1)
    library, _ = model
    run("linear", legs.inputs("linear", CASES[0], "float16"), "float16")
    candidates = len(library.calls) // 2  # each runs once before it is captured
    assert candidates <= 3 + matmul.FINALISTS
    assert library.calls[-1] == (2, STREAM)


def test_nothing_is_timed_or_waited_for_while_the_stream_is_captured(model):
    library, clock = model
    clock.capturing = True
    given = legs.inputs("linear", CASES[0], "float16")
    _, call = run("linear", given, "float16")
    assert library.calls == [(1, STREAM)]
    clock.capturing = False
    run("linear", given, "float16", call)
    assert library.calls[-1] == (2, STREAM)


def test_an_algorithm_that_does_not_fit_other_sizes_is_not_used_there(model):
    library, _ = model
    given = legs.inputs("linear", CASES[0], "float16")
    run("linear", given, "float16")
    library.fitting = (1, 3)
    run("linear", given | {"x": given["x"][:-1]}, "float16")
    assert library.calls[-1] == (1, STREAM)


def test_an_algorithm_that_fails_when_timed_is_not_taken(model, monkeypatch):
    library, clock = model
    original = library.matmul

    def failing(*arguments):
        original(*arguments)
        if library.calls[-1][0] == 2:
            raise library.cuBLASLtError("CUBLAS_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(library, "matmul", failing)
    run("linear", legs.inputs("linear", CASES[0], "float16"), "float16")
    assert library.calls[-1] == (3, STREAM)
    assert clock.live == 0


def test_descriptors_go_with_the_call_that_made_them(model):
    library, _ = model
    _, call = run("linear", legs.inputs("linear", CASES[0], "float16"), "float16")
    assert len(library.live) == 5
    del call
    gc.collect()
    assert library.live == {}


def test_a_product_that_cublaslt_refuses_is_named(model, monkeypatch):
    library, _ = model
    library.algorithms = ()
    with pytest.raises(ValueError) as raised:
        matmul.Matmul(Product(4, 13, 9, "float16", gelu=True))
    assert "x [4, 13] @ weight [13, 9] with bias and GELU in float16" in str(raised.value)
    library.algorithms = (1,)
    call = matmul.Matmul(Product(4, 16, 8, "bfloat16", gelu=False))
    with pytest.raises(ValueError, match="not a multiple of 16"):
        call(STREAM, 16, 32, 24, 64, 0)
    with pytest.raises(ValueError, match="workspace 0x80 is not a multiple of 256"):
        call(STREAM, 16, 32, 48, 64, 128)

    def broken(*_):
        raise library.cuBLASLtError("CUBLAS_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(library, "matmul", broken)
    with pytest.raises(matmul.MatmulError) as failed:
        call(STREAM, 16, 32, 48, 64, 0)
    assert str(failed.value) == (
        "x [4, 16] @ weight [16, 8] with bias in bfloat16: cuBLASLt failed: CUBLAS_STATUS_EXECUTION_FAILED"
    )


@pytest.mark.parametrize(("x", "weight", "bias"), [
    ((4, 8), (9, 3), (3,)), ((4, 8), (8, 3), (4,)), ((4, 8), (8, 3), (1, 3)), ((4, 8), (8,), (8,)), ((), (8, 3), (3,)),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_named(x, weight, bias):
    with pytest.raises(ValueError) as raised:
        LinearGelu({}).product({"x": x, "weight": weight, "bias": bias}, "float16")
    assert f"linear_gelu: x {list(x)}, weight {list(weight)}, bias {list(bias)}" in str(raised.value)


def test_no_tokens_need_no_call(model):
    shapes = {"x": (0, 16), "weight": (16, 8), "bias": (8,)}
    Linear({}).prepare(shapes, "float16")(STREAM, [0, 0, 0, 0], 0)
    assert model[0].calls == []


def test_size_classes_are_few_and_end_at_usual_sizes():
    classes = {Product(tokens, 768, 768, "float16", False).size_class for tokens in range(1, 16385)}
    assert len(classes) < 60
    for tokens in (128, 1024, 4096, 12288):
        kept = Product(tokens, 768, 768, "float16", False).size_class
        assert kept == Product(tokens - 1, 768, 768, "float16", False).size_class
        assert kept != Product(tokens + 1, 768, 768, "float16", False).size_class
    assert Product(4, 8, 8, "float16", False).size_class != Product(4, 8, 8, "float16", True).size_class


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensorrt_takes_the_plugin_only_where_it_is_registered(op, dtype):
    trt = tensorrt_flavour.load("tensorrt_rtx")
    for case in legs.cases(op)[:2]:
        assert one_node.build(trt, op, case, dtype, names=["linear"])[1] == 1
        assert one_node.build(trt, op, case, dtype, names=[])[1] == 0


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "case", "dtype"), ALL, ids=ids)
def test_the_launched_product_is_the_reference(op, case, dtype):
    given = legs.inputs(op, case, dtype)
    with Device() as device:
        right(legs.launched(device, op, case, given, dtype), op, case, given, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "case", "dtype"), ALL, ids=ids)
def test_the_engine_is_the_reference(op, case, dtype):
    one_node.assert_engine_right("tensorrt_rtx", op, case, dtype)
