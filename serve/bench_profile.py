"""`serve.bench --profile`: which operator takes how long on the GPU, and how far that is from what it could take."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from configs.errors import UserError
from serve.packed import Packed
from serve.session import Session


def profile(session: Session, config: Any) -> dict:
    """Print a table for each batch and length; returns {"32 x 128": {op: microseconds}}."""
    if session.runtime != "tensorrt":
        raise UserError(f"--profile is for plugins on a GPU, and this is {session.why}")
    peaks = measured_peaks()
    found: dict[str, dict[str, float]] = {}
    for length, count in itertools.product(config.lengths, config.batches):
        ids = np.random.default_rng(config.seed).integers(0, session.manifest.sizes["vocabulary"], (count, length))
        try:
            rows = session.profile(Packed.of(list(ids), [[0] * length] * count))  # type: ignore[attr-defined]
        except (UserError, RuntimeError) as error:
            print(f"left out: {count} x {length} ({error})")
            continue
        found[f"{count} x {length}"] = table(f"{count} x {length}", rows, peaks)
    if not found:
        raise UserError("nothing was profiled: no --batches with --lengths ran; the lines above say why")
    return found


def table(title: str, rows: list, peaks: tuple[float, float]) -> dict[str, float]:
    """Print `plugins.profile.Row`s, nan as a dash; returns op -> microseconds of those that were timed."""
    total = sum(row.microseconds for row in rows if not math.isnan(row.microseconds))
    print(f"\n{title}: {total:,.0f} us in plain runs; floors are those of {peaks[0] / 1e12:.1f} TB/s and "
          f"{peaks[1] / 1e12:.0f} TFLOP/s, 16 bits, just measured")  # fmt: skip
    print(f"{'operator':24} calls   us a run   share   floor us  of floor  shapes")
    found: dict[str, float] = {}
    for row in rows:
        floor = row.floor(*peaks)
        cells = (f"{row.microseconds:10.1f}", _share(row.microseconds, total), f"{floor:10.1f}",
                 _share(floor, row.microseconds))  # fmt: skip
        print(f"{row.op:24} {row.calls:5} {' '.join(cell.replace('nan', '  -') for cell in cells)}  {row.shapes}")
        if not math.isnan(row.microseconds):
            found[row.op] = round(found.get(row.op, 0.0) + row.microseconds, 1)
    return found


def _share(part: float, whole: float) -> str:
    return f"{part / whole if whole > 0 else math.nan:8.1%}"


def measured_peaks() -> tuple[float, float]:
    """Bytes and operations of 16 bits a second that this GPU reaches, before anything is profiled."""
    from plugins import peaks  # what it imports is more than serving needs
    from plugins.device import Device

    with Device() as device:
        return _or_nan(peaks.bytes_per_s, device), _or_nan(lambda on: peaks.operations_per_s(on, "float16"), device)


def _or_nan(ask: Callable[[Any], float], device: Any) -> float:
    """A GPU's limit; one that cannot be measured costs the floors, not the times."""
    try:
        return ask(device)
    except (RuntimeError, AttributeError) as error:
        print(f"a limit of this GPU is not known: {error}")
        return math.nan
