"""The kernel of many tokens, with the erf form: it is the reference, and taken where it is the faster one."""

from typing import Any

import pytest

from plugins import legs
from plugins.device import Device
from plugins.linear import large, plugin
from plugins.linear.kernel import variants
from plugins.linear.plugin import LinearGelu
from plugins.linear.test_linear import ALL, ids_of, interpreted, right

MANY = [(op, case, dtype) for op, case, dtype in ALL if case.approximate == "none" and "odd widths" not in case.name]
many_ids = [f"{case.name}-{dtype}" for _, case, dtype in MANY]
# The interpreter computes whole tiles of 128 x 128, however few tokens there are: a GPU takes all, here these must do.
HERE = [task for task, said in zip(MANY, many_ids, strict=True) if said in (
    "padded, erf-float16", "one token, erf-bfloat16", "many tokens, erf-float16", "many tokens, erf-bfloat16",
)]  # fmt: skip


@pytest.fixture(scope="module")
def results_of_many_tokens():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugin, "FEW_TOKENS", 0)
        patch.setattr(plugin, "LARGE_TOKENS", 0)
        patch.setattr(large, "PROGRAMS", 3)
        return interpreted(HERE)


@pytest.mark.parametrize(("op", "case", "dtype"), HERE, ids=ids_of)
def test_the_kernel_of_many_tokens_is_the_reference(op, case, dtype, results_of_many_tokens):
    right(results_of_many_tokens[op, case.name, dtype], op, case, legs.inputs(op, case, dtype), dtype)


@pytest.mark.parametrize(("approximate", "arch", "taken"), [
    ("none", 90, True), ("none", 89, False), ("none", 120, False), ("tanh", 90, False),
])  # fmt: skip
def test_our_kernel_takes_many_tokens_with_the_erf_form_where_two_of_its_programs_fit(approximate, arch, taken):
    def ours(tokens):
        shapes = {"x": (tokens, 128), "weight": (128, 192), "bias": (192,), "y": (tokens, 192)}
        made = variants({"weight": (128, 192)}, "float16", approximate=approximate)
        kernels: Any = {variant.name: variant for variant in made if not variant.only or arch in variant.only}
        op = LinearGelu({"approximate": approximate}, kernels)
        return op.ours(op.product(shapes, "float16"), kernels).split("-")[2:3] == ["large"]

    assert ours(plugin.LARGE_TOKENS) == taken
    assert not ours(plugin.LARGE_TOKENS - 1)


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "case", "dtype"), MANY, ids=many_ids)
def test_the_launched_product_of_many_tokens_is_the_reference(op, case, dtype, monkeypatch):
    monkeypatch.setattr(plugin, "FEW_TOKENS", 0)
    monkeypatch.setattr(plugin, "LARGE_TOKENS", 0)
    given = legs.inputs(op, case, dtype)
    with Device() as device:
        right(legs.launched(device, op, case, given, dtype), op, case, given, dtype)
