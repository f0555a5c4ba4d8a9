"""Attention: reference, ONNX function, kernel and engine say the same, and nonsense lengths stay harmless."""

import dataclasses
from collections import defaultdict

import numpy as np
import pytest

from plugins import legs, one_node, tensorrt_flavour
from plugins.attention import cases, plugin, reference
from plugins.attention.plugin import Attention
from plugins.compile import SHARED, Sizes, compile_kernel, needed
from plugins.device import Device
from plugins.numpy_tensor import Job, run_interpreted

CASES, CASES8 = legs.cases("attention"), legs.cases("attention8")
CASE = {case.name: case for case in CASES}
SOME = [CASE[name] for name in ("one sequence", "long among short", "tail", "padded, holes")]
# "wide" has hundreds of programs, at a hundredth of a second each here; SOME are sent to its kernel instead.
ALL = [(case, dtype, False) for case in CASES if case.name != "wide" for dtype in ("float16", "bfloat16")]
ALL += [(case, dtype, many) for case in SOME for dtype, many in (("float32", False), ("float16", True))]
ids = [f"{case.name}-{dtype}{'-many' * many}" for case, dtype, many in ALL]


def right(result, case, given, dtype):
    legs.assert_right(result, legs.exact("attention", case, given), legs.plain("attention", case, given, dtype), dtype)


def right8(result, case, given, dtype):
    """Where the context is 8 bits wide, the scores' rounding moves some numbers by a step, and those near 0 by more."""
    allowance = cases.ON_GPU if dtype == "bfloat16" else cases.ON_GPU | {"share": 0.1}
    legs.assert_case_right("attention8", case, result, given, dtype, **allowance)


@pytest.mark.parametrize("case", CASES8, ids=lambda case: case.name)
def test_the_function_in_8_bits_is_the_reference(case):
    for dtype in ("float32", "float16"):
        given = legs.inputs("attention8", case, dtype)
        right8(legs.onnxruntime("attention8", case, given, dtype), case, given, dtype)


def test_the_kernel_in_8_bits_is_the_reference():
    tasks = [(c, legs.inputs("attention8", c, d), d) for c in CASES8 for d in ("float32", "float16", "bfloat16")]
    for (case, given, dtype), result in zip(tasks, legs.interpreted("attention8", tasks), strict=True):
        right8(result, case, given, dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_function_is_the_reference(case, dtype):
    given = legs.inputs("attention", case, dtype)
    right(legs.onnxruntime("attention", case, given, dtype), case, given, dtype)


@pytest.fixture(scope="module")
def kernel_results():
    found = {}
    for many, least in ((False, plugin.FEW_PROGRAMS), (True, 0)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plugin, "FEW_PROGRAMS", least)
            chosen = [(case, dtype) for case, dtype, m in ALL if m == many]
            tasks = [(case, legs.inputs("attention", case, dtype), dtype) for case, dtype in chosen]
            for (case, dtype), result in zip(chosen, legs.interpreted("attention", tasks), strict=True):
                found[case.name, dtype, many] = result
    return found


@pytest.mark.parametrize(("case", "dtype", "many"), ALL, ids=ids)
def test_the_kernel_is_the_reference(case, dtype, many, kernel_results):
    given = legs.inputs("attention", case, dtype)
    right(kernel_results[case.name, dtype, many], case, given, dtype)


def job(case, tensors):
    """The launch for these tensors, which may hold something else than what the case's generator wrote."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    variants = legs.variants("attention", case, shapes, "float32")
    shapes["y"] = tuple(Attention().output_shape(shapes))
    launches = Attention(case.attributes).launches(shapes, "float32", variants)
    return Job(launches, variants, tensors | {"y": np.full(shapes["y"], np.nan, np.float32)})


TINY = dataclasses.replace(CASE["one token"], heads=1, head_size=8)


def test_one_launch_serves_every_way_to_cut_the_tokens():
    rng, tokens, sequences = np.random.default_rng(5), 300, 5
    qkv = rng.standard_normal((tokens, 24)).astype(np.float32)
    cuts = [np.sort(np.append(rng.integers(0, tokens + 1, sequences), 0)).astype(np.int32) for _ in range(6)]
    cuts += [np.array(cut, np.int32) for cut in ([0, 63, 64, 128, 129, 300], [0, 0, 0, 0, 0, 300], [0] * 6)]
    jobs = [job(TINY, {"qkv": qkv, "where": cut}) for cut in cuts]
    assert len({one.launches[0] for one in jobs}) == 1
    for cut, result in zip(cuts, run_interpreted(jobs), strict=True):
        exact = reference.attention(qkv, cut, **TINY.attributes)
        np.testing.assert_allclose(result["y"], exact, atol=1e-5, err_msg=str(cut))


def test_nonsense_lengths_touch_nothing_outside_of_the_tensors():
    far = 2**31 - 1
    cuts = [[0, 70, 30, 90], [5, 9, 60, 61], [-5, -1, 40, 90], [0, 10, far, far], [far] * 4, [-far, far, -far, far]]
    qkv = np.random.default_rng(1).standard_normal((90, 24)).astype(np.float32)
    jobs = [job(TINY, {"qkv": qkv, "where": np.array(cut, np.int32)}) for cut in cuts]
    for one in jobs:
        one.tensors["y"][...] = 0  # what the kernel leaves out stays; what it reads outside is NaN, by run_interpreted
    for cut, result in zip(cuts, run_interpreted(jobs), strict=True):
        assert np.isfinite(result["y"]).all(), cut


def test_what_stands_in_the_tail_or_at_padding_does_not_matter():
    packed, padded = CASE["tail"], CASE["padded"]
    for case, hidden in ((packed, slice(70, None)), (padded, (1, slice(1, None)))):
        given = legs.inputs("attention", case, "float32")
        clean = legs.onnxruntime("attention", case, given, "float32")
        given["qkv"][hidden][..., -case.heads * case.head_size :] = np.nan  # v
        if case is packed:
            given["qkv"][hidden] = np.nan
        np.testing.assert_array_equal(legs.onnxruntime("attention", case, given, "float32"), clean)
        np.testing.assert_allclose(run_interpreted([job(case, given)])[0]["y"], clean, atol=1e-5)


def test_masked_tokens_ask_and_are_not_asked():
    given = legs.inputs("attention", CASE["padded"], "float32")
    context = legs.exact("attention", CASE["padded"], given)
    alone = reference.attention(
        given["qkv"][1, :1].astype(np.float64), np.array([0, 1], np.int32), num_heads=2, scale=1.0, layout="packed"
    )
    np.testing.assert_allclose(context[1], np.broadcast_to(alone, context[1].shape))


def test_many_programs_take_another_kernel_than_few():
    def kernel(tokens, batch, heads=12):
        attention = Attention({"num_heads": heads, "scale": 0.125, "layout": "packed"})
        shapes = {"qkv": (tokens, 2304), "where": (batch + 1,)}
        made = legs.part("attention", "kernel").variants(shapes, "float16", **attention.values)
        (launch,) = attention.launches(shapes, "float16", {variant.name: variant for variant in made})
        return launch.kernel, launch.grid

    assert kernel(32 * 128, 32) == ("attention-packed-12x64-many-float16", (12, 97))
    assert kernel(32 * 384, 32, heads=6) == ("attention-packed-6x128-many-float16", (6, 225))
    assert kernel(128, 1) == ("attention-packed-12x64-few-float16", (12, 4))


@pytest.mark.parametrize(("values", "qkv", "where", "words"), [
    ({"num_heads": 5}, (4, 48), (2,), "48 columns for 5 heads"),
    ({"num_heads": 0}, (4, 48), (2,), "48 columns for 0 heads"),
    ({"num_heads": 1}, (4, 36), (2,), "8, 16, ... or 128"),
    ({"num_heads": 1}, (4, 408), (2,), "8, 16, ... or 128"),
    ({"layout": "padded"}, (4, 48), (2,), "padded is [B, S, 3 N D]"),
    ({"layout": "ragged"}, (4, 48), (2,), "'ragged'"),
    ({"layout": "padded"}, (2, 4, 48), (2, 5), "padding_mask [2, 5]"),
    ({"scale": 0.0}, (4, 48), (2,), "above 0"),
    ({"num_heads": 16}, (2**20, 6144), (2,), "smaller batches"),
    ({}, (4, 48), (70000,), "smaller batches"),
])  # fmt: skip
def test_what_the_kernel_cannot_do_is_refused_in_words(values, qkv, where, words):
    attention = Attention(values)
    any_kernel = legs.variants("attention", TINY, {"qkv": (1, 24)}, "float16")["attention-packed-1x8-few-float16"]
    made = defaultdict(lambda: any_kernel)
    with pytest.raises(ValueError) as raised:
        attention.launches({"qkv": qkv, "where": where}, "float16", made)
    assert words in str(raised.value)


def test_no_tokens_launch_nothing():
    assert Attention({}).launches({"qkv": (0, 48), "where": (1,)}, "float16", {}) == []


HEAD_SIZES = [(80, "float16", 64), (90, "bfloat16", 40), (120, "float16", 32)]


@pytest.mark.parametrize(("arch", "dtype", "head_size"), HEAD_SIZES)
def test_the_kernels_compile_and_fit_in_shared_memory(arch, dtype, head_size):
    made = needed(Sizes(768, 12, head_size, 3072, "packed", "tanh"), dtype, ["attention"])
    assert made
    for variant in made:
        kernel = compile_kernel(variant, arch)
        assert kernel.shared <= SHARED[arch] << 10


@pytest.mark.slow
@pytest.mark.parametrize("arch", sorted(SHARED))
@pytest.mark.parametrize("head_size", [8, 32, 40, 64, 128])
def test_every_architecture_takes_every_head_size(arch, head_size):
    for layout in ("packed", "padded"):
        for variant in needed(Sizes(768, 12, head_size, 3072, layout, "tanh"), "float16", ["attention"]):
            assert compile_kernel(variant, arch).shared <= SHARED[arch] << 10


@pytest.mark.parametrize("name", ["long among short", "padded"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensorrt_takes_the_plugin_only_where_it_is_registered(name, dtype):
    trt = tensorrt_flavour.load("tensorrt_rtx")
    assert one_node.build(trt, "attention", CASE[name], dtype, names=["attention"])[1] == 1
    assert one_node.build(trt, "attention", CASE[name], dtype, names=[])[1] == 0
    for case in CASES8:
        assert one_node.build(trt, "attention8", case, dtype, names=["attention"])[1] == 1


ON_GPU = [(case, dtype) for case in CASES for dtype in ("float16", "bfloat16")]


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "dtype"), ON_GPU, ids=lambda item: getattr(item, "name", item))
@pytest.mark.parametrize("few", [plugin.FEW_PROGRAMS, 0], ids=["few", "many"])
def test_the_launched_kernel_is_the_reference(case, dtype, few, monkeypatch):
    monkeypatch.setattr(plugin, "FEW_PROGRAMS", few)
    given = legs.inputs("attention", case, dtype)
    with Device() as device:
        right(legs.launched(device, "attention", case, given, dtype), case, given, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "dtype"), ON_GPU, ids=lambda item: getattr(item, "name", item))
def test_the_engine_is_the_reference(case, dtype):
    one_node.assert_engine_right("tensorrt_rtx", "attention", case, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES8, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("few", [plugin.FEW_PROGRAMS, 0], ids=["few", "many"])
def test_the_launched_kernel_in_8_bits_is_the_reference(case, dtype, few, monkeypatch):
    monkeypatch.setattr(plugin, "FEW_PROGRAMS", few)
    given = legs.inputs("attention8", case, dtype)
    with Device() as device:
        right8(legs.launched(device, "attention8", case, given, dtype), case, given, dtype)
