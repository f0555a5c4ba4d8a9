"""The tests that every folder with a kernel of its own has: reference, ONNX function, kernel and engine say the same.

    class TestGelu(SameEverywhere):
        ops = ("gelu", "gelu8")

Each runs for all cases of the operators in the dtypes that its leg knows. What is particular to an operator stands in
its folder, as further methods or functions.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from plugins import legs, one_node, tensorrt_flavour
from plugins.device import Device

DTYPES = ("float32", "float16", "bfloat16")
FLAVOUR = "tensorrt_rtx"  # the one that builds plans without a GPU
Results = dict[tuple[str, str, str], legs.Result]  # by operator, case's name, dtype


class SameEverywhere:
    """To be inherited by a class whose name begins with Test."""

    ops: ClassVar[tuple[str, ...]]  # of one folder; the tests are run for each

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """pytest's: op, case and dtype for a test that takes them."""
        if "case" not in metafunc.fixturenames:
            return
        chosen = [item for item in self.items() if _knows(metafunc.function.__name__, *item[1:])]
        metafunc.parametrize(("op", "case", "dtype"), chosen, ids=lambda item: getattr(item, "name", item))

    @classmethod
    def items(cls) -> list[tuple[str, Any, str]]:
        """(operator, case, dtype) of all."""
        return [(op, case, dtype) for op in cls.ops for case in legs.cases(op) for dtype in DTYPES]

    @classmethod
    def case(cls, name: str) -> Any:
        """The case of a name."""
        return next(case for _, case, _ in cls.items() if case.name == name)

    @classmethod
    def plugin_layers(cls, op: str, name: str, dtype: str, registered: Sequence[str]) -> int:
        """How many plugins TensorRT takes for the network of a case, where those are registered."""
        return one_node.build(tensorrt_flavour.load(FLAVOUR), op, cls.case(name), dtype, names=registered)[1]

    @pytest.fixture(scope="class")
    @classmethod
    def kernel_results(cls) -> Results:
        """Of every case in every dtype; Triton's interpreter is a process for each operator."""
        found: Results = {}
        for op in cls.ops:
            mine = [(case, dtype) for name, case, dtype in cls.items() if name == op]
            results = legs.interpreted(op, [(case, legs.inputs(op, case, dtype), dtype) for case, dtype in mine])
            found |= {(op, case.name, dtype): result for (case, dtype), result in zip(mine, results, strict=True)}
        return found

    def test_the_function_is_the_reference(self, op, case, dtype):
        given = legs.inputs(op, case, dtype)
        legs.assert_case_right(op, case, legs.onnxruntime(op, case, given, dtype), given, dtype)

    def test_the_kernel_is_the_reference(self, op, case, dtype, kernel_results):
        given = legs.inputs(op, case, dtype)
        legs.assert_case_right(op, case, kernel_results[op, case.name, dtype], given, dtype)

    @pytest.mark.gpu
    def test_the_launched_kernel_is_the_reference(self, op, case, dtype):
        given = legs.inputs(op, case, dtype)
        with Device() as device:
            legs.assert_case_right(op, case, legs.launched(device, op, case, given, dtype), given, dtype)

    @pytest.mark.gpu
    def test_the_engine_is_the_reference(self, op, case, dtype):
        one_node.assert_engine_right(FLAVOUR, op, case, dtype)


def _knows(test: str, case: Any, dtype: str) -> bool:
    """Whether the leg of a test can compute a case in a dtype."""
    if "function" in test:  # ONNX Runtime on a CPU: no bfloat16, and no ids beyond their tables
        return dtype != "bfloat16" and not getattr(case, "out_of_range", False)
    if "engine" in test:  # TensorRT makes none for no token
        return dtype != "float32" and "empty" not in case.name
    return dtype != "float32" or "launched" not in test
