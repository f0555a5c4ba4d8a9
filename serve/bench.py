"""How fast an engine folder answers: `python -m serve.bench --engine DIR --data dev-v1.1.json.gz --out serve.csv`.

    full        random ids, every sequence as long as the row says, so nothing is padding: latency of `Session.run` from
                host memory to host memory, and sequences a second with several batches under way (`Session.stream`)
    window      --data: one window of a question at a time, from tokens to logits: batch 1 at real lengths
    question    --data: one question at a time, all of its windows in one batch; latency as a caller sees it
    all         --data: all questions over and over, in the largest batches that the engine takes

A sequence is a window: a question whose passage fits into one counts once, others as often as the line above the table
says. "yes" under text is from text to the answer, "no" from tokens to logits; both have the copies to the GPU and back
and the packing of batches in them. Every case runs in several rounds of random order, so that a machine that slows down
slows all of them. Percentiles are of single runs; with fewer than 100 of them p99 is the slowest or nearly so.

`--compare` times the engine's network beside other runtimes instead. They are none of serving's business, and one of
them is PyTorch, so that is `scripts/compare.py`, in a process of its own.
"""

import csv
import datetime
import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from configs import command
from configs.errors import UsageError, UserError
from configs.options import setting
from serve.bench_cases import full, real
from serve.bench_profile import profile
from serve.config import EngineConfig
from serve.reader import Reader
from serve.session import Session

SHOWN = (
    "case", "text", "batch", "length", "runs", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "sequences_per_s",
    "tokens_per_s",
)  # fmt: skip
COLUMNS: list[str] = [*SHOWN, "layout", "precision", "runtime", "device", "why", "versions", "engine", "date"]
ROUNDS = 4
PEERS = ("torch", "ort", "trt")
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class BenchConfig(EngineConfig):
    """Measure latency and throughput of an engine folder, by batch and length and on real questions.

    Example:

      python -m serve.bench --engine engines/student --data dev-v1.1.json.gz --limit 500 --out results/serve.csv
      python -m serve.bench --engine engines/student --compare torch,trt --batches 1 8 32 --out results/compare.csv
    """

    batches: tuple[int, ...] = setting((1, 8, 32), help="sequences a batch; what the engine does not take is left out")
    lengths: tuple[int, ...] = setting((32, 128, 384), help="tokens a sequence")
    data: str | None = setting(None, help="questions of real lengths: SQuAD .json or .json.gz, builtin:dev-facts")
    limit: int | None = setting(None, least=1, help="with --data: take so many questions only")
    seconds: float = setting(2.0, above=0.0, help="to measure each case, latency and throughput apart")
    seed: int = setting(1, least=0, help="of ids and of the order")
    out: str | None = setting(None, help="CSV to write")
    profile: bool = setting(False, help="tell instead which plugin takes how long, on a GPU")
    compare: str | None = setting(
        None,
        help="time the network beside peers instead: torch (compiled, and eager), ort (ONNX Runtime), trt (TensorRT "
        "without plugins); several with commas. On a GPU all but ort are CUDA graphs; a picture goes beside --out",
    )
    compile_modes: tuple[str, ...] = setting(
        ("default", "max-autotune"), help="with --compare torch: modes of torch.compile to try; the best one is named"
    )
    samples: int = setting(200, least=200, help="with --compare: timings of each, in random order after a warm-up")
    minutes: float = setting(8.0, above=0.0, help="with --compare: after which nothing more is begun")

    def __post_init__(self):
        names = self.peers()
        if wrong := [name for name in names if name not in PEERS]:
            raise UsageError(f"--compare: no peer {wrong[0]!r}; there are {', '.join(PEERS)}, several with commas")
        if names and (self.profile or self.data):
            raise UsageError("--compare stands alone; leave --profile and --data out")

    def peers(self) -> list[str]:
        """Those of --compare, each once."""
        said = (self.compare or "").split(",")
        return list(dict.fromkeys(name.strip() for name in said if name.strip()))


def main(config: BenchConfig) -> dict:
    if config.compare is not None:
        return compare(config)
    with config.open() as session:
        print(f"runtime: {session.why}\ndevice: {session.device}", flush=True)
        if config.profile:
            return {"out": None, "metrics": {"runtime": session.why, "plugins_us": profile(session, config)}}
        cases = [*full(session, config), *(real(Reader(config.engine, session=session), config) if config.data else ())]
        if not cases:
            raise UserError("nothing to measure: no --batches with --lengths fits this engine, and no --data was given")
        order = random.Random(config.seed)
        turns = [case for _ in range(ROUNDS) for case in order.sample(cases, len(cases))]
        for case in tqdm(turns, "measure", unit="round", leave=False, mininterval=0.5):
            case.measure(config.seconds / ROUNDS)
        rows = [case.result() for case in cases]
        show(rows)
        for note in session.notes:
            print(note)
    if config.out:
        write(Path(config.out), rows, session, config.engine)
    return {"out": config.out, "metrics": {"runtime": session.why, "device": session.device, "rows": rows}}


def compare(config: BenchConfig) -> dict:
    """Hand over to `scripts/compare.py`; what it prints passes by. Raises: UserError with its error."""
    flags = ["--engine", str(Path(config.engine).absolute()), "--peers", *config.peers(), "--runtime", config.runtime]
    for name in ("batches", "lengths", "compile_modes"):
        flags += [f"--{name.replace('_', '-')}", *map(str, getattr(config, name))]
    for name in ("seed", "samples", "minutes", "threads"):
        if (value := getattr(config, name)) is not None:
            flags += [f"--{name}", str(value)]
    if config.out:
        flags += ["--out", str(Path(config.out).absolute())]
    last = ""
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.compare", *flags], stdout=subprocess.PIPE, text=True, encoding="utf-8", cwd=ROOT
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if last:
                print(last, end="", flush=True)
            last = line
    try:
        found = json.loads(last)
    except ValueError:
        raise UserError(f"scripts.compare ended with code {child.returncode}: {last[:300]}") from None
    if child.returncode:
        raise UserError(str(found.get("error")))
    return {"out": config.out, "metrics": found["metrics"]}


def show(rows: list[dict]) -> None:
    """A table for people."""
    widths = [max(len(name), *(len(_cell(row.get(name))) for row in rows)) for name in SHOWN]
    for cells in ([name for name in SHOWN], *([_cell(row.get(name)) for name in SHOWN] for row in rows)):
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))


def _cell(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value)


def write(path: Path, rows: list[dict], session: Session, engine: str) -> None:
    """The rows as CSV, each with what they were measured on."""
    manifest = session.manifest
    same = {
        "layout": manifest.layout, "precision": manifest.precision if session.runtime == "tensorrt" else "float32",
        "runtime": session.runtime, "device": session.device, "why": session.why, "engine": Path(engine).name,
        "versions": " ".join(f"{name} {version}" for name, version in command.versions().items()),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow(row | same)


if __name__ == "__main__":
    command.run("serve.bench", BenchConfig, main)
