"""Our engine beside its peers, in one run: python -m serve.bench --engine DIR --compare torch,ort,trt

Latency and throughput by batch and length, against the floor of this machine, as one table, a CSV and a picture.

- All compute one network: the peers' weights, sizes and head are read from the engine folder (`compare_network.py`).
- All get the same ids, full sequences of one length, so nothing is padding. Every output is compared with ONNX Runtime
  in float32 in the same run; what is wrong is in the table and no yardstick.
- All of a shape take turns of a few milliseconds, in a new order every time, after a warm-up (`bench_engine_timer.py`):
  a GPU that slows down slows all of them. Its clock and power are logged meanwhile.
- On a GPU all are CUDA graphs on data in its memory, and copies are not in it; `serve.bench` itself measures those.
- torch.compile is tried in several modes; the best one of a shape stands for it, by name.

It lives here, not in serve/, which must run where there is no PyTorch and imports neither it nor export/; `serve.bench`
starts it as a process of its own.
"""

import contextlib
import csv
import datetime
import gc
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs import command
from configs.errors import UsageError, UserError
from configs.options import setting
from plugins import tensorrt_flavour
from plugins.device import Device
from scripts import compare_floor, nvidia_smi
from scripts.bench_engine_plans import Shape
from scripts.bench_engine_timer import Entrant, alone, take_turns
from scripts.compare_entrants import MODES, OURS, Entrants
from scripts.compare_network import Network, worst_error
from scripts.compare_plot import draw
from serve import fitting, gpu
from serve import manifest as manifests
from serve.packed import Packed, check
from serve.session import RUNTIMES

# Largest difference of an output over its size. Usual: 1e-5; 0.02 of 16 bits; 0.6 of 8 bits.
WRONG = {"float32": 1e-3, "float16": 0.15, "bfloat16": 1.0, "float8": 2.5, "int8": 2.5}
FIGURES = ("p20_ms", "p50_ms", "p90_ms", "p99_ms")
COLUMNS = (
    "started", "engine", "entrant", "best", "precision", "batch", "length", *FIGURES, "sequences_per_s", "floor_ms",
    "percent_of_floor", "error", "verdict", "samples", "replays", "spread_percent", "alone_ms",
    "clock_mhz", "power_w", "peaks",
    "device", "driver", "versions", "date",
)  # fmt: skip


@dataclass(frozen=True)
class CompareConfig:
    """Time an engine beside PyTorch, ONNX Runtime and TensorRT without plugins; `serve.bench --compare` calls it."""

    engine: str = setting(required=True, help="engine folder, written by export.py")
    peers: tuple[str, ...] = setting((), help="of torch, ort, trt; none: the engine alone")
    runtime: str = setting("auto", choices=RUNTIMES, help="of the engine: its plan on a GPU, or ONNX Runtime on a CPU")
    batches: tuple[int, ...] = setting((1, 8, 32), help="sequences a batch")
    lengths: tuple[int, ...] = setting((32, 128, 384), help="tokens a sequence")
    compile_modes: tuple[str, ...] = setting(("default", "max-autotune"), help="of torch.compile")
    seed: int = setting(1, least=0, help="of the ids")
    samples: int = setting(200, least=1, help="timings of each, over all rounds")
    minutes: float = setting(8.0, above=0.0, help="after which nothing more is begun")
    threads: int | None = setting(None, least=1, help="on a CPU; none: all cores")
    out: str | None = setting(None, help="CSV to write; the picture goes beside it")

    def __post_init__(self):
        if wrong := [mode for mode in self.compile_modes if mode not in MODES]:
            raise UsageError(f"--compile-modes: {wrong[0]!r} is not known; there are {', '.join(MODES)}")


def main(config: CompareConfig) -> dict:
    network = Network.of(manifests.read(config.engine))
    fitted, why = None, "asked for"
    if config.runtime != "onnxruntime":
        try:
            fitted = fitting.fit(network.manifest)
        except UserError as error:
            if config.runtime == "tensorrt":
                raise
            why = str(getattr(error, "reason", error))
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(Device()) if fitted else None
        entrants = Entrants(network, fitted, device, config.threads)
        entrants.refuse(list(config.peers))
        print(f"device: {device.name if device else f'{gpu.cpu_name()} (no plan: {why})'}", flush=True)
        peaks = compare_floor.of_gpu(device, network.manifest.precision) if device else compare_floor.of_cpu()
        print(f"floor: {peaks}", flush=True)
        about = described(config, peaks, device)
        rows, left_out = measure(config, entrants, peaks, about, device.bus if device else "0")
        notes = entrants.notes
        del entrants  # what TensorRT holds must go before CUDA does
        gc.collect()
    metrics = table(rows)
    for note in notes:
        print(note)
    if left_out:
        print(f"left out for lack of time (--minutes {config.minutes:g}): {'; '.join(left_out)}")
    if config.out and rows:
        print(f"picture: {draw(rows, Path(config.out).with_suffix('.png'))}")
    if bad := [f"{row['entrant']} {row['batch']}x{row['length']}" for row in rows if row["verdict"] != "right"]:
        raise UserError(f"wrong or failed: {'; '.join(bad)}; the table says how")
    return {"out": config.out, "metrics": {"device": about["device"], "peaks": str(peaks), "p50_ms": metrics}}


def described(config: CompareConfig, peaks: compare_floor.Peaks, device: Device | None) -> dict[str, str]:
    """What is the same in all rows."""
    now = datetime.datetime.now()
    return {
        "started": now.isoformat(timespec="seconds"), "engine": Path(config.engine).name, "peaks": str(peaks),
        "device": device.name if device else gpu.cpu_name(),
        "driver": f"{nvidia_smi.driver_version()} (CUDA {device.driver_version})".strip() if device else "",
        "date": now.date().isoformat(),
    }  # fmt: skip


def measure(
    config: CompareConfig, entrants: Entrants, peaks: compare_floor.Peaks, about: dict[str, str], gpu: str
) -> tuple[list[dict], list[str]]:
    """(rows, what there was no time for). The CSV is written after every shape: a GPU may be lost before the last.

    gpu: nvidia-smi's name for the one whose clock is logged.
    """
    end = time.monotonic() + 60 * config.minutes
    rows: list[dict] = []
    left_out: list[str] = []
    for shape in (Shape(batch, length) for length in config.lengths for batch in config.batches):
        ids = entrants.ids(shape, config.seed)
        try:
            check(Packed.of(list(ids), [[0] * shape.length] * shape.batch), entrants.network.manifest)
        except UserError as error:
            print(f"left out: {shape} ({error})")
            continue
        reference = entrants.reference(ids)
        here: list[dict] = []
        ready: list[tuple[dict, Entrant]] = []
        for name, precision, make in entrants.offered(list(config.peers), config.compile_modes):
            row = {"entrant": name, "precision": precision, "batch": shape.batch, "length": shape.length}
            if time.monotonic() > end:
                left_out.append(f"{name} {shape}")
                continue
            here.append(row)
            begin = time.monotonic()
            try:
                entrant = make(shape, ids)
            except Exception as error:  # the others are measured all the same
                row["verdict"] = f"failed: {type(error).__name__}: {' '.join(str(error).split())}"[:300]
            else:
                error = worst_error(entrant.output, reference)
                right = "right" if error <= WRONG[precision] else "wrong"
                floor = peaks.floor_ms(entrants.network.config, shape, precision)
                row |= {"error": f"{error:.2g}", "verdict": right, "floor_ms": f"{floor:.4g}"}
                ready.append((row, entrant))
            print(f"{shape} {name}: {row['verdict']}, {time.monotonic() - begin:.1f} s", flush=True)
        try:
            timed(ready, config.samples, shape, gpu)
        except Exception as error:  # of this shape nothing can be compared
            for row, _ in ready:
                row["verdict"] = f"failed while it was timed: {' '.join(str(error).split())}"[:300]
        rows += [about | {"versions": versions_of(entrants)} | row for row in marked(here)]
        if config.out:
            write(Path(config.out), rows)
        del ready
        gc.collect()
    if not rows and not left_out:
        raise UserError("nothing to compare: no --batches with --lengths fits this engine; the lines above say why")
    return rows, left_out


def timed(ready: list[tuple[dict, Entrant]], samples: int, shape: Shape, gpu: str) -> None:
    """Take turns, and put the figures into the rows."""
    with nvidia_smi.clocks(gpu) as clocks:
        taken = take_turns([entrant for _, entrant in ready], samples)
    for (row, entrant), (times, replays) in zip(ready, taken, strict=True):
        figures = np.percentile(times, (20, 50, 90, 99))
        row |= {name: f"{value:.4f}" for name, value in zip(FIGURES, figures, strict=True)} | clocks.text()
        if entrant.stream is not None:  # at the clock that it has for itself
            row["alone_ms"] = f"{alone(entrant, figures[1]):.4f}"
        medians = np.median(times, axis=1)
        row |= {
            "sequences_per_s": f"{1000 * shape.batch / figures[1]:.1f}", "samples": times.size, "replays": replays,
            "percent_of_floor": f"{100 * float(row['floor_ms']) / figures[1]:.1f}",
            "spread_percent": f"{100 * (medians.max() - medians.min()) / figures[1]:.1f}",
        }  # fmt: skip


def marked(rows: list[dict]) -> list[dict]:
    """A shape's rows; of torch.compile's modes the fastest that is right has "best"."""
    modes = [row for row in rows if row["entrant"].startswith("torch.compile") and row["verdict"] == "right"]
    best = min((row for row in modes if "p50_ms" in row), key=lambda row: float(row["p50_ms"]), default=None)
    return [row | {"best": "yes" if row is best else ""} for row in rows]


def table(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Print what was measured; returns {"32 x 128": {entrant: p50 ms}}."""
    found: dict[str, dict[str, float]] = {}
    for shape in dict.fromkeys((row["batch"], row["length"]) for row in rows):
        here = [row for row in rows if (row["batch"], row["length"]) == shape]
        title = f"{shape[0]} x {shape[1]}"
        ours = next((float(r["p50_ms"]) for r in here if r["entrant"] == OURS and "p50_ms" in r), float("nan"))
        print(f"\n{title:33} precision   p50 ms   (p20 to p90)        sequences/s  of floor  x ours  error")
        for row in here:
            name = row["entrant"] + (" *" if row["best"] else "")
            if "p50_ms" not in row:
                print(f"  {name:31} {row['precision']:9} {row['verdict']}")
                continue
            p50 = float(row["p50_ms"])
            spread = f"({row['p20_ms']} to {row['p90_ms']})"
            note = "" if row["verdict"] == "right" else f"  {row['verdict'].upper()}"
            print(f"  {name:31} {row['precision']:9} {p50:8.4f}   {spread:20} {float(row['sequences_per_s']):10,.0f} "
                  f"{row['percent_of_floor']:>8} % {p50 / ours:7.2f}  {row['error']}{note}")  # fmt: skip
            found.setdefault(title, {})[row["entrant"]] = p50
        print(f"  {'floor':31} {here[0]['precision']:9} {float(here[0].get('floor_ms', 'nan')):8.4f}")
    if any(row["best"] for row in rows):
        print("* the best mode of torch.compile for that shape")
    return found


def write(path: Path, rows: list[dict]) -> None:
    """The rows as CSV, in place of what was there: rows of one run alone may be compared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def versions_of(entrants: Entrants) -> str:
    """Of all that was timed."""
    import onnxruntime as ort

    fitted = entrants.fitted
    found = [f"{entrants.network.manifest.target} {tensorrt_flavour.version(fitted.trt)}"] if fitted else []
    return ", ".join([*found, f"onnxruntime {ort.__version__}", *([entrants.versions] if entrants.versions else [])])


if __name__ == "__main__":
    command.run("scripts.compare", CompareConfig, main)
