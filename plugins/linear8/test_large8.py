"""The kernel of many tokens with 8-bit factors: it is the reference, and taken where it is the faster one."""

import pytest

from plugins import legs, measure, registration
from plugins.device import Device
from plugins.linear import large
from plugins.linear8 import plugin as plugins_of
from plugins.linear8.cases import ON_GPU
from plugins.linear8.plugin import Linear8Gelu8
from plugins.linear8.test_linear8 import ALL, CASE, FLOAT8, OPS, ids

# Those of many tokens: in float8 what writes float8; of int8 also where there is no kernel for so many.
MANY = [(op, case, dtype, False) for op, case, dtype in FLOAT8 if op == OPS[2] and dtype == "float16"]
MANY += [(op, case, dtype, True) for op, case, dtype in ALL if "int8 many" in case.name]
# Whole tiles of 128 x 128 take the interpreter long: a GPU takes all cases, here these must do.
NAMES = ("padded, tanh", "one token, erf", "channels, tanh", "many, tanh", "many, erf")
HERE = [task for task in MANY if task[3] or task[1].name in NAMES]


@pytest.fixture(scope="module")
def results_of_many_tokens():
    """Those of `linear/large.py`, three programs for all tiles; and of int8 before 9.0, which has no such kernel."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in (("FEW_TOKENS", 0), ("LARGE_TOKENS", 0), ("LARGE_TOKENS_APART", 0)):
            patch.setattr(plugins_of, name, limit)
        patch.setattr(large, "PROGRAMS", 3)
        for old, without in ((False, "no such kernel"), (True, "-large-")):
            mine = [(op, case, dtype) for op, case, dtype, of_old in HERE if of_old == old]
            tasks = [(op, case, legs.inputs(op, case, dtype), dtype) for op, case, dtype in mine]
            results = legs.interpreted_all(tasks, without)
            found |= {(op, c.name, d, old): r for (op, c, d), r in zip(mine, results, strict=True)}
    return found


@pytest.mark.parametrize(("op", "case", "dtype", "old"), HERE, ids=ids)
def test_our_kernels_for_many_tokens_are_the_reference(op, case, dtype, old, results_of_many_tokens):
    given = legs.inputs(op, case, dtype)
    legs.assert_case_right(op, case, results_of_many_tokens[op, case.name, dtype, old], given, dtype)


def test_many_tokens_take_our_kernel_where_it_is_the_faster_one(monkeypatch):
    """From fewer on where cuBLASLt would need a kernel after it, and then to any number."""
    launched = []
    monkeypatch.setattr(Linear8Gelu8, "by_cublaslt", lambda *_: "cuBLASLt's")
    monkeypatch.setattr(registration.Plugin, "prepare", lambda self, shapes, dtype: launched.append(
        self.launches(shapes, dtype, self.kernels)[0].kernel.split("-")[3]
    ))  # fmt: skip
    apart = plugins_of.LARGE_TOKENS_APART
    for name, least, after in (
        ("few, tanh", apart, None),
        ("many, erf", apart, None),
        ("many, tanh", plugins_of.LARGE_TOKENS, "cuBLASLt's"),
    ):
        case = CASE[name]
        shapes = legs.shapes(OPS[2], case, legs.inputs(OPS[2], case, "float16"))
        kernels = legs.variants(OPS[2], case, shapes, "float16")
        made = Linear8Gelu8(case.attributes, kernels)  # pyright: ignore[reportArgumentType]
        end = -(-plugins_of.LARGE_END // case.inputs)
        for tokens, taken in ((least - 1, "cuBLASLt's"), (least, None), (end - 1, None), (end, after)):
            assert made.prepare(shapes | {"x": (tokens, case.inputs)}, "float16") == taken
    assert launched == ["large"] * 8


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "case", "dtype", "old"), MANY, ids=ids)
def test_the_launched_product_of_many_tokens_is_the_reference(op, case, dtype, old, monkeypatch):
    for name in ("FEW_TOKENS", "LARGE_TOKENS", "LARGE_TOKENS_APART"):
        monkeypatch.setattr(plugins_of, name, 0)
    monkeypatch.setattr(large, "ARCHITECTURES", (1,) if old else large.ARCHITECTURES)
    given = legs.inputs(op, case, dtype)
    with Device() as device:
        legs.assert_case_right(op, case, legs.launched(device, op, case, given, dtype), given, dtype, **ON_GPU)


def test_the_bench_takes_our_kernel_for_any_number_of_tokens_where_told_to(monkeypatch):
    """--large-tokens 0 lifts the upper limit, too; 999999 leaves all to cuBLASLt."""
    case = CASE["many, tanh"]
    shapes = legs.shapes(OPS[2], case, legs.inputs(OPS[2], case, "float16"))
    kernels = legs.variants(OPS[2], case, shapes, "float16")
    made = Linear8Gelu8(case.attributes, kernels)  # pyright: ignore[reportArgumentType]
    product = made.product(shapes | {"x": (2 * plugins_of.LARGE_END // case.inputs, case.inputs)}, "float16")
    taken = []
    monkeypatch.setattr(measure, "measure", lambda *_: taken.append(made.ours(product, kernels)) or [])
    for name in ("LARGE_TOKENS", "LARGE_TOKENS_APART", "LARGE_END"):
        monkeypatch.setattr(plugins_of, name, getattr(plugins_of, name))  # put back afterwards what the bench changes
    for least in ("0", "999999"):
        monkeypatch.setattr("sys.argv", ["bench", "--large-tokens", least])
        measure.main(OPS[2], lambda *_: 0)
    assert "-large-" in taken[0]
    assert taken[1] == ""
