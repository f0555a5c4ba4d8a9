"""Launch every plugin's cases that have a kernel of ours in them, without TensorRT. Made for NVIDIA's memory checker.

    python -m plugins.sanitize --arch 90 --compile-only        fills the cache; needs no GPU
    compute-sanitizer --error-exitcode 9 python -m plugins.sanitize
    compute-sanitizer --tool racecheck --print-limit 100000 python -m plugins.sanitize
    python -m plugins.sanitize --ops gelu                      without the checker: are the results right?

Each tensor is an allocation of its own, so a read or write one byte beyond it is seen. Results are compared with the
references, too. Exit code 1 if one is wrong; the last line is JSON. cuBLASLt computes by its first algorithm, untimed,
since a checker makes each of hundreds of calls slow. The race checker finds hazards in cuBLASLt's own kernels (nvjet);
without --print-limit it prints 100, and then nothing of the kernels after them.
"""

import argparse
import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from typing import Any

import plugins
from configs.errors import UserError
from plugins import legs
from plugins.device import Device
from plugins.linear import matmul

DTYPES = ("float16", "bfloat16")


def ops_with_kernels() -> list[str]:
    """The operators whose folder has a kernel.py."""
    return [op for op, folder in plugins.OPS.items() if importlib.util.find_spec(f"plugins.{folder}.kernel")]


def compile_all(ops: list[str], arch: int) -> int:
    """Compile what the cases need into the cache; gives the number of kernels."""
    names = set()
    for op in ops:
        for case in legs.cases(op):
            for dtype in DTYPES:
                shapes = legs.shapes(op, case, legs.inputs(op, case, dtype))
                names |= set(legs.kernels(op, case, shapes, dtype, arch))
    return len(names)


def launch_all(ops: list[str]) -> list[str]:
    """Launch all cases on the current GPU, those of an operator that has a kernel for many tokens with that one, too;
    gives a sentence for every wrong result."""
    wrong = []
    for op in ops:
        for many in (False, True) if _limits(op) else (False,):
            few = dict.fromkeys(_limits(op), 0) if many else {}  # any number of tokens is many
            with _set(legs.part(op, "plugin"), few), _set(matmul, {"CANDIDATES": 1}):
                for case in legs.cases(op):
                    for dtype in DTYPES:
                        wrong += _launch(op, case, dtype, f"{op}, case {case.name!r}, {dtype}{', many tokens' * many}")
    return wrong


def _launch(op: str, case: Any, dtype: str, what: str) -> list[str]:
    """A sentence if the result is wrong."""
    given = legs.inputs(op, case, dtype)
    if not legs.variants(op, case, legs.shapes(op, case, given), dtype):
        return []  # a library computes it
    with Device() as device:
        result = legs.launched(device, op, case, given, dtype)
    try:
        allowance = getattr(legs.part(op, "cases"), "ON_GPU", {})
        legs.assert_case_right(op, case, result, given, dtype, what, **allowance)
    except AssertionError as error:
        print(f"WRONG  {what}", flush=True)
        return [str(error)]
    print(f"right  {what}", flush=True)
    return []


def _limits(op: str) -> dict[str, int]:
    """Up to and from how many tokens an operator takes other kernels, where it has one for many; else nothing."""
    found = {name: value for name, value in vars(legs.part(op, "plugin")).items() if "_TOKENS" in name}
    return found if any(name.startswith("LARGE_TOKENS") for name in found) else {}


@contextlib.contextmanager
def _set(module: Any, values: dict[str, int]) -> Iterator[None]:
    """A module's constants have other values inside the block."""
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m plugins.sanitize", description=__doc__)
    parser.add_argument("--ops", nargs="+", choices=ops_with_kernels(), default=ops_with_kernels())
    parser.add_argument("--compile-only", action="store_true", help="stop before anything is launched")
    parser.add_argument("--arch", type=int, help="architecture to compile for with --compile-only, as 90")
    settings = parser.parse_args()
    result: dict = {"command": "plugins.sanitize"}
    if settings.compile_only:
        if not settings.arch:
            parser.error("--compile-only needs --arch, as 90")
        print(json.dumps(result | {"metrics": {"kernels": compile_all(settings.ops, settings.arch)}}))
        return 0
    try:
        wrong = launch_all(settings.ops)
    except UserError as error:
        print(json.dumps(result | {"error": str(error), "exit_code": 1}))
        return 1
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    print(json.dumps(result | {"metrics": {"wrong": len(wrong)}}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
