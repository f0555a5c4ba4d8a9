"""linear8 and its kin: reference, function and kernel say the same, and cuBLASLt is told what is meant."""

import numpy as np
import pytest
from nvmath.bindings import cublasLt

from plugins import formats, legs, one_node, plugin, registration, tensorrt_flavour
from plugins.compile import compile_set
from plugins.device import Device
from plugins.gelu import reference
from plugins.linear import matmul
from plugins.linear.numpy_cublaslt import Clock, NumpyCublasLt
from plugins.linear.test_linear import STREAM, aligned
from plugins.linear8 import matmul8
from plugins.linear8 import plugin as plugins_of
from plugins.linear8.cases import CASES, ON_GPU
from plugins.linear8.matmul8 import Matmul8, Product8
from plugins.linear8.plugin import Linear8, Linear8Gelu8

OPS = ("linear8", "linear8_gelu", "linear8_gelu8")
ALL = [(op, case, dtype) for op in OPS for case in legs.cases(op) for dtype in ("float16", "bfloat16")]
FLOAT8 = [(op, case, dtype) for op, case, dtype in ALL if case.format == "float8"]
CASE = {case.name: case for case in CASES}
# Those that our kernels compute: of float8 where their blocks fit.
OURS = [
    (op, case, dtype) for op, case, dtype in ALL
    if case.format == "int8" or (case.outputs % 64 == 0 and case.inputs % 32 == 0)
]  # fmt: skip


def ids(item):
    return getattr(item, "name", item)


@pytest.mark.parametrize(("op", "case"), [(op, case) for op in OPS for case in legs.cases(op)], ids=ids)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_function_is_the_reference(op, case, dtype):
    given = legs.inputs(op, case, dtype)
    legs.assert_case_right(op, case, legs.onnxruntime(op, case, given, dtype), given, dtype)


@pytest.fixture(scope="module")
def kernel_results():
    results = legs.interpreted_all([(op, case, legs.inputs(op, case, dtype), dtype) for op, case, dtype in OURS])
    return {(op, case.name, dtype): result for (op, case, dtype), result in zip(OURS, results, strict=True)}


@pytest.mark.parametrize(("op", "case", "dtype"), OURS, ids=ids)
def test_our_kernels_are_the_reference(op, case, dtype, kernel_results):
    given = legs.inputs(op, case, dtype)
    legs.assert_case_right(op, case, kernel_results[op, case.name, dtype], given, dtype)


@pytest.fixture
def model(monkeypatch):
    """cuBLASLt in numpy, a GPU's clock, and float32 ones in the host's memory."""
    library = NumpyCublasLt()
    kept = []

    def ones(count):
        kept.append(aligned(np.ones(count, np.float32)))
        return kept[-1].ctypes.data

    monkeypatch.setattr(matmul, "cublaslt", lambda: library)
    monkeypatch.setattr(matmul, "driver", lambda: Clock(library, {1: 3.0, 2: 1.0, 3: 2.0}))
    monkeypatch.setattr(matmul, "_winners", {})
    monkeypatch.setattr(matmul, "_handles", {})
    monkeypatch.setattr(matmul8, "ones", ones)
    return library


class Prepared:
    """The kernel after a product, in numpy: GELU of what lies at an address, in float8, at another."""

    launched: list[str]  # the forms of GELU so far

    def __init__(self, kernels, launch, names):
        assert launch.kernel in kernels
        self.approximate, dtype = launch.kernel.split("-")[2:4]
        self.launched.append(self.approximate)
        self.dtype, self.count = legs.DTYPES[dtype], launch.arguments[1]

    def __call__(self, stream, addresses):
        import ctypes

        def at(address, dtype, count):
            size = np.dtype(dtype).itemsize * count
            return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), dtype)

        sums, inverse_scale, y = addresses
        x = at(sums, self.dtype, self.count).astype(np.float32)
        gelu = reference.gelu(x, approximate=self.approximate)
        at(y, formats.DTYPES["float8"], self.count)[:] = formats.quantise(
            gelu, at(inverse_scale, np.float32, 1)[0], "float8"
        )


def run(op, case, given, dtype):
    """The plugin's own calls over host memory; y is NaN beforehand."""
    shapes = legs.shapes(op, case, given)
    made = plugin(op)(case.attributes, legs.kernels(op, case, shapes, dtype, 90))
    (kind,) = legs.outputs(op, case, dtype).values()
    y = aligned(np.full(shapes["y"], np.nan, legs.DTYPES[kind]))
    workspace = aligned(np.zeros(made.workspace(shapes, dtype), np.uint8))
    tensors = [*map(aligned, given.values()), y]
    made.prepare(shapes, dtype)(STREAM, [tensor.ctypes.data for tensor in tensors], workspace.ctypes.data)
    return y.astype(np.float64)


@pytest.mark.parametrize(("op", "case", "dtype"), FLOAT8, ids=ids)
def test_what_cublaslt_is_told_gives_the_reference(op, case, dtype, model, monkeypatch):
    monkeypatch.setattr(plugins_of, "FEW_TOKENS", 0)
    monkeypatch.setattr(plugins_of, "Prepared", Prepared)
    monkeypatch.setattr(Prepared, "launched", [], raising=False)
    given = legs.inputs(op, case, dtype)
    # Where float8 is written by a kernel after it, the sums are rounded to A on their way.
    alone = op == OPS[2] and (case.channels or case.approximate == "none")
    share = {"float16": 0.05, "bfloat16": 0.2}[dtype] if alone else 0.02
    legs.assert_case_right(op, case, run(op, case, given, dtype), given, dtype, share=share)
    assert model.calls
    assert Prepared.launched == [case.approximate] * alone  # cuBLASLt's GELU is the tanh form, which 8 bits don't show


def test_what_cublaslt_does_not_write_in_float8_goes_through_a_kernel(model, monkeypatch):
    monkeypatch.setattr(plugins_of, "Prepared", Prepared)
    monkeypatch.setattr(Prepared, "launched", [], raising=False)
    model.algorithms, original = (1,), model._why_not
    no_gelu = "no GELU to float8"
    monkeypatch.setattr(model, "_why_not", lambda told, *m: no_gelu if m[3][0] == m[0][0] else original(told, *m))
    case = CASE["packed, tanh"]
    given = legs.inputs(OPS[2], case, "float16")
    with pytest.warns(UserWarning, match="one scale, bias and GELU in float16, to float8: cuBLASLt knows no algorithm"):
        found = run(OPS[2], case, given, "float16")
    # The sums are rounded to float16 on their way.
    legs.assert_codes(found, legs.plain(OPS[2], case, given, "float16"), "float8", share=0.05)


@pytest.mark.parametrize("name", ["TRANSA", "A_SCALE_POINTER", "D_SCALE_POINTER", "EPILOGUE"])
def test_what_is_not_told_is_seen(name, model, monkeypatch):
    """The numpy model can fail: each of these left out gives wrong numbers, or none."""
    attribute = int(cublasLt.MatmulDescAttribute[name])
    original = model.matmul_desc_set_attribute
    monkeypatch.setattr(
        model, "matmul_desc_set_attribute", lambda d, key, *rest: None if key == attribute else original(d, key, *rest)
    )
    case = CASE["packed, tanh"]
    given = legs.inputs(OPS[2], case, "bfloat16")
    with pytest.raises((AssertionError, ValueError, KeyError)):
        legs.assert_case_right(OPS[2], case, run(OPS[2], case, given, "bfloat16"), given, "bfloat16")


def test_outer_vectors_are_told_for_both_matrices_and_asked_of_9_0_alone(model):
    made = Matmul8(Product8(40, 32, 48, "float16", False, channels=True))
    told = model.live[made._descriptor]
    modes = [told[int(cublasLt.MatmulDescAttribute[f"{matrix}_SCALE_MODE"])] for matrix in "AB"]
    assert modes == [int(cublasLt.MatmulMatrixScale.OUTER_VEC_32F)] * 2
    model.architecture = 89
    with pytest.raises(ValueError, match=r"x \[40, 32\] @ weight \[48, 32\] in float8 with a scale for each output"):
        Matmul8(Product8(40, 32, 48, "float16", False, channels=True))
    Matmul8(Product8(40, 32, 48, "float16", False))


def test_products_that_differ_in_scales_or_output_choose_their_own_algorithm():
    kinds = [{}, {"channels": True}, {"gelu": True}, {"gelu": True, "float8_out": True}]
    usual = {"tokens": 4, "inputs": 32, "outputs": 48, "dtype": "float16", "gelu": False}
    made = [Product8(**usual | kind) for kind in kinds]
    assert len({product.size_class for product in made}) == len(kinds)


def test_short_sums_cost_less_than_a_tenth_of_what_float8_does():
    """FAST_ACCUMULATION, modelled: every 32 products (one instruction) are added to a sum cut off after 13 bits."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((64, 4096)), rng.standard_normal((16, 4096)) / 64
    x8, w8 = (formats.quantise(v, 448 / np.abs(v).max(), "float8").astype(np.float64) for v in (x, w))
    scale = np.abs(x).max() * np.abs(w).max() / 448**2
    total = np.zeros((64, 16))
    for start in range(0, 4096, 32):
        total = total + x8[:, start : start + 32] @ w8[:, start : start + 32].T
        step = np.exp2(np.floor(np.log2(np.maximum(np.abs(total), 1e-30))) - 13)
        total = np.trunc(total / step) * step
    short, rounding = np.abs(total - x8 @ w8.T) * scale, np.abs(x8 @ w8.T * scale - x @ w.T)
    assert short.mean() < rounding.mean() / 10


def test_ones_are_made_once_and_kept_when_more_are_needed(monkeypatch):
    made = []

    class Cuda:
        def cuCtxGetCurrent(self):  # noqa: N802
            return 0, 7

        def cuMemAlloc(self, size):  # noqa: N802
            made.append(size)
            return 0, 4096 * len(made)

        def cuMemsetD32(self, address, bits, count):  # noqa: N802
            assert np.array([bits], np.uint32).view(np.float32)[0] == 1
            assert 4 * count == made[-1]
            return (0,)

        def cuCtxSynchronize(self):  # noqa: N802
            return (0,)

    monkeypatch.setattr(matmul8, "driver", Cuda)
    monkeypatch.setattr(matmul8, "_ones", {})
    assert [matmul8.ones(count) for count in (3, 16384, 16385, 5)] == [4096, 4096, 8192, 8192]


@pytest.mark.parametrize(("x", "weight", "bias", "scale"), [
    ((4, 16), (32, 48), (32,), (1,)), ((4, 16), (32, 16), (16,), (1,)), ((4, 16), (32, 16), (32,), (2,)),
    ((4, 24), (32, 24), (32,), (1,)), ((4, 16), (40, 16), (40,), (1,)),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_named(x, weight, bias, scale):
    with pytest.raises(ValueError) as raised:
        Linear8({}).product({"x": x, "weight": weight, "bias": bias, "scale": scale}, "float16")
    assert f"linear8: x {list(x)}, weight {list(weight)}, bias {list(bias)}, scale {list(scale)}" in str(raised.value)


def test_no_tokens_need_no_call(model):
    shapes = {"x": (0, 16), "weight": (32, 16), "bias": (32,), "scale": (1,), "inverse_scale": (1,), "y": (0, 32)}
    for format in formats.MOST:
        Linear8Gelu8({"format": format}).prepare(shapes, "float16")(STREAM, [0] * 6, 0)
    assert model.calls == []


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["padded", "int8"])
def test_tensorrt_takes_the_plugin_with_8_bit_tensors(op, name):
    trt = tensorrt_flavour.load("tensorrt_rtx")
    for said in ("", ", erf") if op == OPS[2] else ("",):
        case = CASE[name + (said or ", tanh" * (op == OPS[2]))]
        assert one_node.build(trt, op, case, "float16", names=["linear8"])[1] == 1


@pytest.mark.parametrize("arch", [80, 90])
def test_the_int8_kernels_fit_into_shared_memory(arch):
    made = legs.variants("linear8", CASE["int8 many"], {"weight": (768, 768)}, "float16")
    found = compile_set(list(made.values()), arch)
    assert all(kernel.shared <= (163 << 10) for kernel in found.values())
    assert all(kernel.shared < (228 << 9) - 1024 for name, kernel in found.items() if "-large-" in name)  # two at once
    assert {name.split("-")[3] for name in found} == {"tall", "wide", *["large"] * (arch >= 90)}


def test_few_tokens_take_our_float8_kernel_where_its_blocks_fit(monkeypatch):
    launched = []
    monkeypatch.setattr(Linear8, "by_cublaslt", lambda *_: "cuBLASLt's")
    monkeypatch.setattr(registration.Plugin, "prepare", lambda self, *arguments: launched.append(self.op))
    for op in OPS:
        case = CASE["few, tanh" if op == OPS[2] else "few"]
        shapes = legs.shapes(op, case, legs.inputs(op, case, "float16"))
        made = plugin(op)(case.attributes, legs.kernels(op, case, shapes, "float16", 90))
        made.prepare(shapes, "float16")
        assert launched == [op]
        launched.clear()
        many = {"x": (plugins_of.FEW_TOKENS + 1, case.inputs)}
        monkeypatch.setattr(Linear8Gelu8, "by_cublaslt", lambda *_: "cuBLASLt's")
        assert made.prepare(shapes | many, "float16") == "cuBLASLt's"


def test_a_call_that_cublaslt_refuses_is_made_in_two_steps_from_then_on(monkeypatch):
    case = CASE["packed, tanh"]
    given = legs.inputs("linear8_gelu8", case, "float16")
    shapes = legs.shapes("linear8_gelu8", case, given)
    made = plugin("linear8_gelu8")(case.attributes)
    calls = []

    def refuse(stream, addresses, workspace):
        calls.append("fused")
        raise matmul.MatmulError("no such value")

    monkeypatch.setattr(Linear8, "by_cublaslt", lambda *_: refuse)
    monkeypatch.setattr(made, "_in_two_steps", lambda *_: lambda *_: calls.append("two steps"))
    run = made.prepare(shapes, "float16")
    with pytest.warns(UserWarning, match="no such value; bias, GELU and float8 are a kernel of their own there"):
        run(5, [], 0)
    run(5, [], 0)
    assert calls == ["fused", "two steps", "two steps"]


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "case", "dtype"), ALL, ids=ids)
def test_the_launched_product_is_the_reference(op, case, dtype):
    given = legs.inputs(op, case, dtype)
    with Device() as device:
        legs.assert_case_right(op, case, legs.launched(device, op, case, given, dtype), given, dtype, **ON_GPU)


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "case", "dtype"), ALL, ids=ids)
def test_the_engine_is_the_reference(op, case, dtype):
    one_node.assert_engine_right("tensorrt_rtx", op, case, dtype, **ON_GPU)
