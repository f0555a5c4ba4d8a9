"""Seconds from the start of a process to the end of its first training step, without and with XLA's cache.

    python -m scripts.bench_train_first MODEL PRECISION BATCH TOKENS xla   # one process: {"seconds", ...}

`bench_train --parts first` starts it twice with a cache folder that is empty at first.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BEGUN = time.perf_counter()

LIMIT_S = 300  # a process that compiles one step

from configs.errors import UserError  # noqa: E402 - the imports belong to what is timed
from scripts.bench_train_step import Variant, build, on_devices, random_rows  # noqa: E402
from train import hardware  # noqa: E402


def rows(variant: Variant) -> Iterator[dict]:
    """A row without a cache and one with the cache that the first has filled."""
    with tempfile.TemporaryDirectory() as scratch:
        for detail in ("no compiled code", "compiled code cached"):
            seen = one_process(variant, Path(scratch))
            yield {
                "part": "first",
                "framework": "retort",
                "model": variant.model,
                "precision": variant.precision,
                "detail": detail,
                "batch": variant.batch,
                "tokens": variant.tokens,
                "first_step_s": round(seen["seconds"], 1),
                "compiled_shapes": 1,
                "value": f"{seen['step_seconds']:.1f} s of it the step; {seen['cached_mib']:.0f} MiB cached after it",
            }


def one_process(variant: Variant, cache: Path) -> dict:
    arguments = [variant.model, variant.precision, str(variant.batch), str(variant.tokens), "xla" * variant.xla]
    environment = {name: value for name, value in os.environ.items() if name != "TF_XLA_FLAGS"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "scripts.bench_train_first", *arguments], timeout=LIMIT_S,
            capture_output=True, text=True, check=False, env=environment | {"RETORT_CACHE": str(cache)},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UserError(f"the process was not done after {LIMIT_S} s and was ended") from error
    if done.returncode:
        raise UserError(f"the process ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"cached_mib": size / 2**20}


def main() -> None:
    name, kind, batch, tokens, xla = sys.argv[1:]
    machine = hardware.prepare("auto", "none", False, 1)
    variant = Variant(name, kind, bool(xla), batch=int(batch), tokens=int(tokens))
    step, _ = build(variant, machine)
    rows = on_devices(random_rows(variant), machine)
    built = time.perf_counter()
    step(rows, 0).numpy()
    done = time.perf_counter()
    print(json.dumps({"seconds": done - BEGUN, "step_seconds": done - built}))


if __name__ == "__main__":
    main()
