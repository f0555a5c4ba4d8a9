"""How fast is the encoder with our plugins: against TensorRT without them and against torch.compile, on one GPU.

    python -m scripts.bench_engine --out results/engine.csv

Random weights of a named size, full batches (no padding), the encoder without its head. Every entrant is a CUDA graph,
and all are timed alike: events on one stream with a few replays between two of them, the L2 cache as the replay before
left it. The entrants of a shape take turns of one sample each, in a new order every time, so that a GPU which slows
down slows all of them; rows of one run only may be compared. Each output is compared with ONNX Runtime in float32. Rows
go into the CSV as soon as their shape is done, the most important first; what does not fit into --minutes is left out
and named.
"""

import csv
import datetime
import gc
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs import command
from configs.errors import UsageError, UserError
from configs.options import setting
from export.quantisation import BASE, FORMATS
from model.config import NAMED
from plugins import tensorrt_flavour
from plugins.device import Device
from scripts import bench_engine_torch as peers
from scripts import nvidia_smi
from scripts.bench_engine_plans import ALL, ALL8, Encoder, Shape, Variant, worst_error
from scripts.bench_engine_timer import Entrant, alone, take_turns

# An error of a token's vector beyond which a row is wrong; usual: 3e-3, and 0.1 to 0.2 in 8 bits on random weights.
WRONG = {"float16": 2e-2, "bfloat16": 1e-1, "float8": 5e-1, "int8": 5e-1}
# ms on an H200 that TensorRT without plugins needed; a slower one here would flatter us, so it does not count.
COUNTS = {("bert-base", Shape(32, 128)): 2.5, ("bert-base", Shape(32, 384)): 8.0}
PARTS = ("goal", "eight", "plugins", "more")
TIMING = "2 ms of replays a turn, entrants in random order"
COLUMNS = (
    "started", "size", "precision", "shape", "variant", "gelu", "p20_ms", "p50_ms", "p80_ms", "alone_ms", "samples",
    "replays", "spread_percent", "worst_error", "verdict", "timing",
    "clock_mhz", "power_w", "gpu", "driver", "tensorrt", "torch", "date",
)  # fmt: skip


@dataclass(frozen=True)
class BenchConfig:
    """Time the encoder with all plugins, without any, with each one left out, and in PyTorch, and add to a CSV.

    Example:

      python -m scripts.bench_engine --out results/engine.csv --minutes 6
      python -m scripts.bench_engine --precision float8 --parts eight --peers none --sizes bert-base minilm-l6
    """

    out: str = setting("results/engine.csv", help="CSV to add to")
    sizes: tuple[str, ...] = setting(("bert-base", "minilm-l6"), help="sizes by name")
    shapes: tuple[str, ...] = setting(("32x128", "32x384", "1x128", "8x128"), help="batch x length, the first two more")
    parts: tuple[str, ...] = setting(
        PARTS, help="goal: ours, none, torch; eight: ours in 16 and 8 bits; plugins: each one left out; more: the rest"
    )
    leave_out: tuple[str, ...] = setting((), help="entrants that are not timed: torch.compile@erf")
    precision: str = setting(
        "float16", choices=("float16", "bfloat16", *FORMATS), help="float8, int8: all products, beside float16"
    )
    peers: str = setting("torch", choices=("torch", "none"), help="what else is timed; torch must be installed for it")
    target: str = setting("tensorrt_rtx", choices=tensorrt_flavour.TARGETS, help="which TensorRT")
    parser: str = setting("", help="version of the ONNX parser where it differs from TensorRT's; a parser tells none")
    minutes: float = setting(3.5, above=0.0, help="after which nothing more is begun")
    samples: int = setting(200, least=50, help="timings a row, over all rounds")


@dataclass(frozen=True)
class Group:
    """What takes turns: variants of one size and shape; of torch's, (name in peers.MODES, gelu)."""

    size: str
    shape: Shape
    variants: tuple[Variant | tuple[str, str], ...]


PACKED = "all plugins, packed"
PADDED = "all plugins, padded"
NONE = "no plugins, no mask"
BARE = "no plugins, no mask, no casts"
OPEN = "no plugins, no mask, one plan for all shapes"


def schedule(config: BenchConfig, shapes: list[Shape]) -> Iterator[Group]:
    """All groups, the most important first."""
    compiled, autotuned, eager = peers.MODES
    others = ((compiled, "erf"), (compiled, "tanh"), (autotuned, "erf"), (eager, "erf")) * (config.peers == "torch")
    ours = {gelu: Variant(PACKED, gelu, "packed", ALL) for gelu in ("erf", "tanh")}
    eight: tuple[Variant, ...] = ()
    if config.precision in FORMATS:
        name = f"{PACKED}, {config.precision}"
        eight = tuple(Variant(name, gelu, "packed", ALL8, format=config.precision) for gelu in ("erf", "tanh"))
    none = {gelu: Variant(NONE, gelu, mask=False) for gelu in ("erf", "tanh")}
    bare = {gelu: Variant(BARE, gelu, mask=False, casts=False) for gelu in ("erf", "tanh")}
    unfixed = Variant(OPEN, "tanh", mask=False, open=True)
    for size in config.sizes if "goal" in config.parts else ():
        for shape in shapes:
            plain = (*none.values(), unfixed) if shape in shapes[:2] else tuple(none.values())
            yield Group(size, shape, (*ours.values(), *eight, *plain, *others[:2]))
    for size in config.sizes if "eight" in config.parts and eight and "goal" not in config.parts else ():
        for shape in shapes:
            yield Group(size, shape, (*ours.values(), *eight))
    left_out = [
        Variant(f"without {name}", plugins=tuple(other for other in ALL if other != name), layout="padded")
        for name in ALL
        if name not in ("skip_layer_norm", "gelu")  # which are in a plan in place of linear_skip_layer_norm alone
    ]
    whole = Variant(PADDED, plugins=ALL)
    for part, some in (("plugins", shapes[:2]), ("more", shapes[:2]), ("plugins", shapes[2:]), ("more", shapes[2:])):
        for size in config.sizes if part in config.parts else ():
            for shape in some:
                if part == "plugins":
                    yield Group(size, shape, (whole, *left_out, Variant("no plugins, mask")))
                else:
                    yield Group(size, shape, (*ours.values(), *bare.values(), *others[2:]))


class Bench:
    """A run: entrants are made, timed and written group by group."""

    def __init__(self, config: BenchConfig, shapes: list[Shape], trt: Any, torch: Any, device: Device) -> None:
        self.config, self.shapes, self.trt, self.torch, self.device = config, shapes, trt, torch, device
        self.end = time.monotonic() + 60 * config.minutes
        self.rows: list[dict] = []
        self.left_out: list[str] = []
        self._encoders: dict[str, Encoder] = {}
        self._peers: dict[str, peers.Peers] = {}
        self._base = BASE if config.precision in FORMATS else config.precision
        now = datetime.datetime.now()
        version = f"{config.target} {tensorrt_flavour.version(trt)}"
        self._same = {
            "started": now.isoformat(timespec="seconds"), "precision": config.precision, "timing": TIMING,
            "gpu": device.name, "driver": f"{nvidia_smi.driver_version()} (CUDA {device.driver_version})".strip(),
            "tensorrt": f"{version}, parser {config.parser}" if config.parser else version,
            "torch": torch.__version__ if torch else "", "date": now.date().isoformat(),
        }  # fmt: skip

    def run(self, group: Group) -> None:
        """Make the entrants of a group, time them, write their rows."""
        rows: list[dict] = []
        entrants: list[tuple[dict, Entrant]] = []
        for variant in group.variants:
            name, gelu = (variant.name, variant.gelu) if isinstance(variant, Variant) else variant
            if {name, f"{name}@{gelu}"} & set(self.config.leave_out):
                continue
            row = {"size": group.size, "shape": str(group.shape), "variant": name, "gelu": gelu}
            if time.monotonic() > self.end:
                self.left_out.append(" ".join(row.values()))
                continue
            begin = time.monotonic()
            try:
                encoder = self._of(group.size)
                reference = encoder.reference(gelu, group.shape)
                if isinstance(variant, Variant):
                    entrant = encoder.entrant(self.trt, self.device, variant, group.shape)
                else:
                    entrant = self._torch(group.size).entrant(name, gelu, group.shape)
            except Exception as error:  # the others are measured all the same
                rows.append(row | {"verdict": f"failed: {type(error).__name__}: {error}"[:300]})
                print(f"{' '.join(row.values())}: {rows[-1]['verdict']}", flush=True)
                continue
            error = worst_error(entrant.output, reference)
            precision = (variant.format if isinstance(variant, Variant) else "") or self._base
            row["precision"] = precision
            right = "right" if error <= WRONG[precision] else "wrong"
            rows.append(row | {"worst_error": f"{error:.2e}", "verdict": right})
            entrants.append((rows[-1], entrant))
            print(f"{' '.join(row.values())}: {right}, {time.monotonic() - begin:.1f} s", flush=True)
        try:
            with nvidia_smi.clocks(self.device.bus) as clocks:
                taken = take_turns([entrant for _, entrant in entrants], self.config.samples)
        except Exception as error:
            taken = []
            for row, _ in entrants:
                row["verdict"] = f"failed while it was timed: {error}"[:300]
        for (row, entrant), (times, replays) in zip(entrants, taken, strict=bool(taken)):
            medians = np.median(times, axis=1)
            p20, p50, p80 = np.percentile(times, (20, 50, 80))
            row |= {"p20_ms": f"{p20:.4f}", "p50_ms": f"{p50:.4f}", "p80_ms": f"{p80:.4f}", "samples": times.size}
            row |= clocks.text()  # of the turns; what follows is alone
            row["alone_ms"] = f"{alone(entrant, p50):.4f}"
            row |= {"replays": replays, "spread_percent": f"{100 * (medians.max() - medians.min()) / p50:.1f}"}
        append(Path(self.config.out), [self._same | row for row in rows])
        self.rows += rows

    def _of(self, size: str) -> Encoder:
        if size not in self._encoders:
            self._encoders[size] = Encoder(NAMED[size], self._base, self.shapes)
        return self._encoders[size]

    def _torch(self, size: str) -> peers.Peers:
        if size not in self._peers:
            tensors = self._of(size).tensors
            self._peers[size] = peers.Peers(self.torch, tensors, NAMED[size], self._base)
        return self._peers[size]


def main(config: BenchConfig) -> dict:
    shapes = checked(config)
    trt = tensorrt_flavour.load(config.target)
    torch = peers.load() if config.peers == "torch" else None
    with Device() as device:
        bench = Bench(config, shapes, trt, torch, device)
        try:
            for group in schedule(config, shapes):
                bench.run(group)
        finally:
            rows, left_out = bench.rows, bench.left_out
            del bench  # what TensorRT holds must go before CUDA does
            gc.collect()
            metrics = table(rows)
    if left_out:
        print(f"left out for lack of time (--minutes {config.minutes:g}): {'; '.join(left_out)}")
    if bad := [row for row in rows if row["verdict"] != "right"]:
        keys = ("size", "shape", "variant", "gelu", "verdict", "worst_error")
        named = [" ".join(row[key] for key in keys if key in row) for row in bad]
        raise UserError(f"wrong or failed: {'; '.join(named)}. The rows are in {config.out}")
    return {"out": config.out, "metrics": metrics}


def checked(config: BenchConfig) -> list[Shape]:
    """The shapes of the settings. Raises: UsageError for a name or a shape that is none, or for another kind of CSV."""
    for said, known in ((config.sizes, NAMED), (config.parts, PARTS)):
        if wrong := [name for name in said if name not in known]:
            raise UsageError(f"{wrong[0]!r} is not known; there are {', '.join(known)}")
    if Path(config.out).exists():
        with open(config.out, encoding="utf-8", errors="replace") as file:
            head, wanted = file.readline(10_000).strip(), ",".join(COLUMNS)
        if head != wanted:
            raise UsageError(f"{config.out} has the columns {head[:200]}, not {wanted}; name another --out")
    shapes = []
    for said in config.shapes:
        batch, _, length = said.partition("x")
        if not (batch.isdecimal() and length.isdecimal() and 1 <= int(batch) <= 4096 and 4 <= int(length) <= 512):
            raise UsageError(f"--shapes: {said!r} is no shape; write batch x length, as in 32x128")
        shapes.append(Shape(int(batch), int(length)))
    return shapes


def table(rows: list[dict]) -> dict:
    """Print what was measured, with ratios; returns {size and shape: {variant: {ms, times_...}}}."""
    metrics: dict[str, dict] = {}
    for place in dict.fromkeys((row["size"], row["shape"]) for row in rows):
        here = [row for row in rows if (row["size"], row["shape"]) == place and "p50_ms" in row]
        plain, compiled = fastest(here, (NONE, BARE)), fastest(here, tuple(peers.MODES)[:2])
        whole = fastest(here, (PADDED,))
        print(f"\n{' '.join(place):46}   p50 ms   (p20 to p80)        alone  error    none/this  torch/this  saves ms")
        for row in here:
            p50 = float(row["p50_ms"])
            ratios = {"none": plain / p50, "torch": compiled / p50}
            saves = p50 - whole if row["variant"].startswith("without ") else math.nan
            cells = [f"{value:9.2f} x" if math.isfinite(value) else " " * 11 for value in ratios.values()]
            cells.append(f"{saves:9.3f}" if math.isfinite(saves) else "")
            title = f"  {row['variant']}, {row['gelu']}"
            spread = f"({row['p20_ms']} to {row['p80_ms']})"
            alone_ms = row.get("alone_ms", "")
            note = "" if row["verdict"] == "right" else f"  {row['verdict']}"
            print(f"{title:46} {p50:8.4f}   {spread:20} {alone_ms:>8}  {row['worst_error']} {' '.join(cells)}{note}")
            entry = {"ms": p50} | {f"times_{name}": round(ratio, 3) for name, ratio in ratios.items()}
            metrics.setdefault(" ".join(place), {})[f"{row['variant']}, {row['gelu']}"] = entry
        limit = next((ms for (size, shape), ms in COUNTS.items() if (size, str(shape)) == place), math.inf)
        if plain > limit:
            print(f"  no plugins took {plain:.3f} ms, more than the {limit:g} that it can: ratios to it do not count")
    return metrics


def fastest(rows: list[dict], names: tuple[str, ...]) -> float:
    """The least p50 of the rows so called, nan where there are none. What is wrong is never a yardstick."""
    return min(
        (float(row["p50_ms"]) for row in rows if row["variant"] in names and row["verdict"] == "right"),
        default=math.nan,
    )


def append(path: Path, rows: list[dict]) -> None:
    """Add lines to the CSV, with a head if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    command.run("scripts.bench_engine", BenchConfig, main)
