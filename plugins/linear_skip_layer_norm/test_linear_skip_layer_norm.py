"""linear_skip_layer_norm: reference, ONNX function, both pairs of kernels and the engine say the same."""

from typing import Any

import numpy as np
import pytest

from plugins import legs, one_node, tensorrt_flavour
from plugins import plugin as plugin_of
from plugins.compile import SHARED, Sizes, compile_kernel
from plugins.device import Device
from plugins.linear import matmul
from plugins.linear.numpy_cublaslt import Clock, NumpyCublasLt, NumpyCublasLtError
from plugins.linear8 import matmul8
from plugins.linear_skip_layer_norm import kernel, plugin
from plugins.linear_skip_layer_norm.cases import CASES, ON_GPU
from plugins.linear_skip_layer_norm.plugin import Linear8SkipLayerNorm, LinearSkipLayerNorm
from plugins.numpy_tensor import Job, run_interpreted

OP = "linear_skip_layer_norm"
ALL = [(case, dtype) for case in CASES for dtype in ("float16", "bfloat16")]
MANY = ("odd widths", "many")
FEW = [(case, dtype) for case, dtype in ALL if not any(word in case.name for word in MANY) and case.rows != (0,)]
CASE = {case.name: case for case in CASES}
# How many numbers of q may differ from those of two operators, which round the sum between them. float8's step is 2^-3.
SHARE = {"float16": 0.05, "bfloat16": 0.15, "float32": 0.02}


def ids(item):
    return getattr(item, "name", item)


def right(result, case, given, dtype, **allowance: Any):
    allowance = {"share": SHARE[dtype]} | allowance
    legs.assert_case_right(case.op, case, result, given, dtype, **allowance)


@pytest.mark.parametrize("case", CASES, ids=ids)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_function_is_the_reference(case, dtype):
    given = legs.inputs(case.op, case, dtype)
    right(legs.onnxruntime(case.op, case, given, dtype), case, given, dtype)


@pytest.fixture(scope="module")
def kernel_results():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugin, "WORKSPACE", 0)  # the parts' share is enough here
        tasks = [(case.op, case, legs.inputs(case.op, case, dtype), dtype) for case, dtype in FEW]
        results = legs.interpreted_all(tasks)
    return {(case.name, dtype): result for (case, dtype), result in zip(FEW, results, strict=True)}


@pytest.mark.parametrize(("case", "dtype"), FEW, ids=ids)
def test_the_kernels_of_few_tokens_are_the_reference(case, dtype, kernel_results):
    right(kernel_results[case.name, dtype], case, legs.inputs(case.op, case, dtype), dtype)


class Recorded:
    """In place of a prepared launch: what is to be launched is kept, and later run by the interpreter."""

    launches: list

    def __init__(self, kernels, launch, names):
        self.launches.append(launch)

    def __call__(self, stream, addresses):
        pass


def aligned(array):
    buffer = np.full(array.nbytes + 16, 0xFF, np.uint8)
    inner = buffer[-buffer.ctypes.data % 16 :][: array.nbytes].view(array.dtype).reshape(array.shape)
    inner[...] = array
    return inner


@pytest.fixture
def cublaslt(monkeypatch, tmp_path):
    """The library in numpy; `cublaslt.run(case, dtype)` is the plugin's own run for many tokens, then the norm."""
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path))
    library: Any = NumpyCublasLt()
    monkeypatch.setattr(matmul, "cublaslt", lambda: library)
    monkeypatch.setattr(matmul, "driver", lambda: Clock(library, {1: 1.0, 2: 2.0, 3: 2.0}))
    for memory in ("_winners", "_handles", "_choices"):
        monkeypatch.setattr(matmul, memory, {})
    one = aligned(np.ones(512, np.float32))
    monkeypatch.setattr(matmul8, "ones", lambda count: one.ctypes.data)
    monkeypatch.setattr(plugin, "Prepared", Recorded)
    for name in ("FEW_TOKENS", "FEW_TOKENS_NARROW"):
        monkeypatch.setattr(plugin, name, 0)

    def run(case, dtype):
        given = legs.inputs(case.op, case, dtype)
        shapes = legs.shapes(case.op, case, given)
        variants: Any = legs.variants(case.op, case, shapes, dtype)
        kinds = legs.outputs(case.op, case, dtype)
        results = {name: legs._poison(shapes[name], kind) for name, kind in kinds.items()}
        tensors = {name: aligned(tensor) for name, tensor in {**given, **results}.items()}
        Recorded.launches = []
        made = plugin_of(case.op)(case.attributes, variants)
        made.prepare(shapes, dtype)(5, [tensor.ctypes.data for tensor in tensors.values()], 0)
        (after,) = run_interpreted([Job(Recorded.launches[-1:], variants, tensors)])
        library.kinds = [launch.kernel.split("-")[1] for launch in Recorded.launches]
        right(legs.result([after[name].astype(np.float64) for name in kinds]), case, given, dtype)

    library.run = run
    return library


SOME = [case.name for case in CASES[:8]]
SOME += ["8 to 8 many tokens", "8 to 8 channels", "8 epsilon", "8 beyond", "many to float8", "many to int8"]


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, "float16") for name in SOME] + [(name, "bfloat16") for name in ("padded", SOME[9])]
)
def test_cublaslt_and_the_norm_in_place_are_the_reference(name, dtype, cublaslt):
    cublaslt.run(CASE[name], dtype)
    assert cublaslt.calls
    assert cublaslt.kinds == ["norm"]


@pytest.mark.parametrize("name", ["8 padded", "8 to 8 channels"])
@pytest.mark.parametrize("when", ["asked", "called"])
def test_a_residual_that_cublaslt_does_not_add_is_added_by_the_norm(name, when, cublaslt, monkeypatch):
    """Either it lists no algorithm for it, or it refuses the one that it listed."""
    added = []
    original = cublaslt.matmul if when == "called" else cublaslt.matmul_algo_get_heuristic

    def refuse(handle, descriptor, *rest):
        if not added:
            added.append(1)
            if when == "called":
                raise NumpyCublasLtError("CUBLAS_STATUS_NOT_SUPPORTED")
            return  # count stays 0
        original(handle, descriptor, *rest)

    monkeypatch.setattr(cublaslt, "matmul" if when == "called" else "matmul_algo_get_heuristic", refuse)
    cublaslt.algorithms = (1,)
    with pytest.warns(UserWarning, match="bias and residual in float16, to float16: .*; the residual is added by the"):
        cublaslt.run(CASE[name], "float16")
    assert cublaslt.kinds[-1] == "add"


def test_a_sum_is_divided_into_parts_of_equal_size():
    def parts(inputs, width=768, eight=False, **tuning):
        shapes = {"weight": (width, inputs), "scale": (1,)} if eight else {"weight": (inputs, width)}
        found = {variant.name: variant.constants for variant in kernel.variants(shapes, "float16", **tuning)}
        called = kernel.names(inputs, width, "float16", eight)
        product: Any = found[called["product"]]
        assert found[called["sum"]]["PARTS"] == product["PARTS"]
        if eight:  # all of a row's part is asked for ahead, and no more
            assert inputs // product["PARTS"] % (product["LINE"] * product["AHEAD"]) == 0
        return product["PARTS"], product["BLOCK_K"]

    assert parts(768) == (2, 128)
    assert parts(3072) == (4, 128)
    assert parts(4096, 1024) == (4, 128)
    assert parts(312 * 4, 64) == (1, 32)
    assert parts(3072, part=384) == (8, 128)
    assert parts(64, 64) == (1, 64)
    assert parts(3072, part=3072) == (2, 128)
    assert parts(3072, eight=True) == (4, 128)
    assert parts(96, 64, eight=True) == (1, 32)


@pytest.mark.parametrize("name", ["parts", "8 to 8 parts"])
def test_few_tokens_take_our_product_and_its_parts_fit_into_the_workspace(name):
    case = CASE[name]
    shapes = legs.shapes(case.op, case, legs.inputs(case.op, case, "float16"))
    variants: Any = legs.variants(case.op, case, shapes, "float16")
    made: Any = plugin_of(case.op)(case.attributes, variants)
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
    shapes |= {"weight": (64, 64), "scale": (1,)}
    for name, shape, said in (("scale", (2,), "scale"), ("weight", (64, 8), "do not"), ("bias", (8,), "do not")):
        with pytest.raises(ValueError, match=said):
            Linear8SkipLayerNorm({}).product(shapes | {name: shape}, "float16")
    uneven = {"x": (0, 24), "weight": (64, 24)}
    with pytest.raises(ValueError, match="multiples of 16"):
        Linear8SkipLayerNorm({}).product(shapes | uneven, "float16")
    with pytest.raises(ValueError, match="take linear8 and skip_layer_norm for int8"):
        Linear8SkipLayerNorm({"format": "int8"}).product(shapes, "float16")


@pytest.mark.parametrize(("arch", "format"), [(75, ""), (86, "int8"), (89, "float8"), (90, "float8")])
def test_the_kernels_fit_into_the_shared_memory_of_old_and_new(arch, format):
    needed = kernel.needed(Sizes(768, 12, 64, 3072, "packed", "none", format), "float16")
    assert len({variant.name for variant in needed}) == len(needed) == {"": 5, "int8": 8, "float8": 16}[format]
    for variant in needed:
        assert compile_kernel(variant, arch).shared <= SHARED[arch] << 10


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["one token", "8 padded", "8 to 8 channels", "to float8", "to int8"])
def test_tensorrt_takes_the_plugin_only_where_it_is_registered(name, dtype):
    trt, case = tensorrt_flavour.load("tensorrt_rtx"), CASE[name]
    assert one_node.build(trt, case.op, case, dtype, names=[OP])[1] == 1
    if case.op == OP:
        assert one_node.build(trt, OP, case, dtype, names=[])[1] == 0


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "dtype"), ALL, ids=ids)
@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
def test_the_launches_are_the_reference(case, dtype, few, monkeypatch):
    for name in () if few else ("FEW_TOKENS", "FEW_TOKENS_NARROW"):
        monkeypatch.setattr(plugin, name, 0)
    given = legs.inputs(case.op, case, dtype)
    with Device() as device:
        right(legs.launched(device, case.op, case, given, dtype), case, given, dtype, **allowed(case))


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "dtype"), ALL, ids=ids)
def test_the_engine_is_the_reference(case, dtype):
    allowance = {"share": SHARE[dtype]} | allowed(case)
    one_node.assert_engine_right("tensorrt_rtx", case.op, case, dtype, **allowance)


def allowed(case):
    return ON_GPU if case.eight else {}
