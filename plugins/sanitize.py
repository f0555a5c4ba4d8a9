"""Launch every plugin's cases with our kernels alone: no TensorRT, no library. Made for NVIDIA's memory checker.

    python -m plugins.sanitize --arch 90 --compile-only        fills the cache; needs no GPU
    compute-sanitizer --error-exitcode 9 python -m plugins.sanitize
    python -m plugins.sanitize --ops gelu                      without the checker: are the results right?

Each tensor is an allocation of its own, so a read or write one byte beyond it is seen. Results are compared with the
references, too. Exit code 1 if one is wrong; the last line is JSON.
"""

import argparse
import importlib.util
import json
import sys

import plugins
from configs.errors import UserError
from plugins import legs
from plugins.device import Device

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
    """Launch all cases on the current GPU; gives a sentence for every wrong result."""
    wrong = []
    for op, many in ((op, many) for op in ops for many in (False, True)):
        if many and not _take_kernels_of_many_tokens(op):
            continue
        for case in legs.cases(op):
            for dtype in DTYPES:
                given = legs.inputs(op, case, dtype)
                if not legs.variants(op, case, legs.shapes(op, case, given), dtype):
                    continue  # a library computes it
                with Device() as device:
                    result = legs.launched(device, op, case, given, dtype)
                what = f"{op}, case {case.name!r}, {dtype}{', as of many tokens' * many}"
                try:
                    allowance = getattr(legs.part(op, "cases"), "ON_GPU", {})
                    legs.assert_case_right(op, case, result, given, dtype, what, **allowance)
                except AssertionError as error:
                    wrong.append(str(error))
                print(f"{'WRONG' if wrong and what in wrong[-1] else 'right'}  {what}", flush=True)
    return wrong


def _take_kernels_of_many_tokens(op: str) -> bool:
    """From now on the kernels that many tokens have take any number; False for an operator that has none."""
    limits = legs.part(op, "plugin")
    names = [name for name in vars(limits) if name.startswith(("FEW_TOKENS", "LARGE_TOKENS"))]
    for name in names:
        setattr(limits, name, 0)
    return any(name.startswith("LARGE") for name in names)


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
