"""How fast is an operator's kernel: p20/p50/p80, bytes and arithmetic per second, and the share of this GPU's peak,
which is measured in the same run (`peaks.py`).

    measure.main("gelu", moved=lambda shapes, size: ...)      # all of a bench.py; python -m plugins.gelu.bench runs it

A CUDA graph launches the kernel over and over, each time on other copies of its tensors, so many that they don't fit
into the L2 cache: what is timed is the GPU and its memory, no Python, and nothing that was left in a cache. In a
network the layer before has often left its output there, so the kernel is faster there than here. Where PyTorch is
installed, its operators are timed alike on the same inputs (`peers.py`).
"""

import argparse
import contextlib
import csv
import datetime
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import plugins
from plugins import legs, peaks, peers
from plugins.device import Device

COLD_BYTES = 256 << 20  # what the copies take together: five times an H100's L2
MOST_COPIES = 512
SAMPLES = 100
COLUMNS = ("case", "dtype", "tuning", "p20_us", "p50_us", "p80_us", "gb_per_s", "peak_gb_per_s", "percent_of_bandwidth",
           "tflop_per_s", "peak_tflop_per_s", "percent_of_arithmetic", "torch_p50_us", "gpu", "driver_cuda", "triton",
           "torch", "date")  # fmt: skip

Moved = Callable[[Mapping[str, tuple[int, ...]], int], float]  # (shapes of inputs and y, bytes of an A) -> bytes moved
Done = Callable[[Mapping[str, tuple[int, ...]], Any], float]  # (those shapes, the case) -> multiplications + additions


def time_case(
    device: Device, op: str, case: Any, dtype: str, tuning: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> tuple[np.ndarray, dict]:
    """(microseconds of one run, sampled; shapes of the inputs and y).

    tuning: further arguments of `variants`. given: the inputs, where `legs.inputs` has made them already.
    """
    given = given or legs.inputs(op, case, dtype)
    shapes = legs.shapes(op, case, given)
    plugin = plugins.plugin(op)(case.attributes, legs.kernels(op, case, shapes, dtype, device.architecture, tuning))
    plugin.load()
    run = plugin.prepare(shapes, dtype)
    results = [
        int(np.prod(shapes[name])) * legs.DTYPES[kind].itemsize for name, kind in legs.outputs(op, case, dtype).items()
    ]
    size = sum(results) + sum(tensor.nbytes for tensor in given.values())
    copies = [
        (
            [*map(device.upload, given.values()), *map(device.empty, results)],
            device.empty(plugin.workspace(shapes, dtype)),
        )
        for _ in range(min(MOST_COPIES, -(-COLD_BYTES // size)))
    ]
    rounds = -(-20 // len(copies))

    def all_copies() -> None:
        for addresses, workspace in rounds * copies:
            run(device.stream, addresses, workspace)

    all_copies()
    device.wait()
    taken = device.capture(all_copies).times_us(SAMPLES) / (rounds * len(copies))
    device.free()
    return taken, shapes


def measure(
    op: str, moved: Moved, done: Done | None, tunings: Sequence[Mapping], dtypes: Sequence[str],
    also: Sequence[str] = (), only: Sequence[str] = (), without: Sequence[str] = (),
) -> list[dict]:  # fmt: skip
    """A row of results for every bench case, dtype and tuning, on the current GPU.

    also: further operators of the folder. only, without: words of a case's name, all of which or none of which it has.
    Interrupted, it gives the rows that it has.
    """
    rows: list[dict] = []
    torch = peers.load()
    eight = [f"{op}8"] if plugins.OPS.get(f"{op}8") == plugins.OPS[op] else []  # writes 8 bits, too: no sweep
    ops = (op, *also) if len(tunings) > 1 else dict.fromkeys((op, *eight, *also))
    pairs = [(name, case) for name in ops for case in legs.cases(name, "BENCH_CASES")]
    pairs = [
        (name, case) for name, case in pairs
        if set(only) <= set(case.name.split()) and not set(without) & set(case.name.split())
    ]  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt), Device() as device:
        eights = {name: plugins.plugin(name).inputs.get("x") == "Q" for name, _ in pairs} if done else {}
        kinds = {"float8" if eight else "float16" for eight in eights.values()}
        peak_bytes = peaks.bytes_per_s(device)
        peak_operations = {kind: peaks.operations_per_s(device, kind) for kind in sorted(kinds)}
        for (op, case), dtype in itertools.product(pairs, dtypes):
            given = legs.inputs(op, case, dtype)
            for tuning in tunings:
                taken, shapes = time_case(device, op, case, dtype, tuning, given)
                p20, p50, p80 = np.percentile(taken, (20, 50, 80))
                bytes_per_s = moved(shapes, legs.DTYPES[dtype].itemsize) / p50 * 1e6
                row = {"case": case.name, "dtype": dtype, "tuning": " ".join(f"{k}={v}" for k, v in tuning.items())}
                row |= {"p20_us": f"{p20:.2f}", "p50_us": f"{p50:.2f}", "p80_us": f"{p80:.2f}"}
                row |= {"gb_per_s": f"{bytes_per_s / 1e9:.0f}", "peak_gb_per_s": f"{peak_bytes / 1e9:.0f}"}
                row |= {"percent_of_bandwidth": f"{100 * bytes_per_s / peak_bytes:.1f}"}
                if done:
                    # int8 products are held against float8's peak: the chip's data sheet has one figure for both.
                    per_s, peak = done(shapes, case) / p50 * 1e6, peak_operations["float8" if eights[op] else "float16"]
                    row |= {"tflop_per_s": f"{per_s / 1e12:.1f}", "peak_tflop_per_s": f"{peak / 1e12:.1f}"}
                    row |= {"percent_of_arithmetic": f"{100 * per_s / peak:.1f}"}
                if torch and not tuning and dtype == "float16":  # numpy's bfloat16 is not torch's
                    peer = peers.time_us(torch, op, case, given, COLD_BYTES, MOST_COPIES, SAMPLES)
                    row |= {"torch_p50_us": f"{peer:.2f}", "torch": torch.__version__} if peer else {}
                row |= {"gpu": device.name, "driver_cuda": device.driver_version, "triton": _triton_version()}
                rows.append(row | {"date": datetime.date.today().isoformat()})
                print("  ".join(f"{key} {row[key]}" for key in COLUMNS if row.get(key)), flush=True)
    return rows


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Put the rows into a CSV in place of those for the same case, dtype, tuning and GPU; the others stay."""

    def key(row: Mapping[str, str]) -> tuple:
        return tuple(row.get(name) or "" for name in ("case", "dtype", "tuning", "gpu"))

    fresh = {key(row) for row in rows}
    if path.exists():
        with open(path, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if key(row) not in fresh] + list(rows)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(
    op: str, moved: Moved, done: Done | None = None, sweep: Sequence[Mapping] = (), also: Sequence[str] = ()
) -> None:
    """The command of a bench.py. --sweep also tries the tunings of `sweep`; also: further operators of the folder."""
    parser = argparse.ArgumentParser(prog=f"python -m plugins.{plugins.OPS[op]}.bench", description=__doc__)
    parser.add_argument("--out", type=Path, help="CSV to write; results.csv in the operator's folder if not given")
    parser.add_argument("--dtypes", nargs="+", choices=("float16", "bfloat16"), default=["float16"])
    parser.add_argument("--sweep", action="store_true", help="try other block sizes and warps, too; nothing is written")
    parser.add_argument("--only", nargs="+", default=[], help="cases whose names have all these words, as base 1x128")
    parser.add_argument("--without", nargs="+", default=[], help="cases whose names have none of these, as int8")
    parser.add_argument("--few-tokens", type=int, help="up to how many our products are taken; nothing is written")
    parser.add_argument("--large-tokens", type=int, help="from how many on they are, however many; nothing is written")
    settings = parser.parse_args()
    tunings = [{}, *sweep] if settings.sweep else [{}]
    end = None if settings.large_tokens is None else 1 << 40
    changed = {"FEW_TOKENS": settings.few_tokens, "LARGE_TOKENS": settings.large_tokens, "LARGE_END": end}
    changed = {name: limit for name, limit in changed.items() if limit is not None}
    limits = legs.part(op, "plugin")
    for start, limit in changed.items():
        for name in (name for name in vars(limits) if name.startswith(start)):
            setattr(limits, name, limit)
    rows = measure(op, moved, done, tunings, settings.dtypes, also, settings.only, settings.without)
    out = settings.out or Path(__file__).parent / plugins.OPS[op] / "results.csv"
    if not settings.sweep and not changed:
        write_rows(out, rows)
    metrics = {f"{row['case']} {row['dtype']} {row['tuning']}".strip(): float(row["p50_us"]) for row in rows}
    print(json.dumps({"command": parser.prog, "out": str(out), "metrics": metrics}))


def _triton_version() -> str:
    import triton

    return triton.__version__
