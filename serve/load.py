"""Load on a server, and how it bears it: `python -m serve.load --url http://127.0.0.1:8000 --data dev-v1.1.json.gz`.

    --clients 1 16 64    closed loop: so many clients ask, wait for the answer, and ask the next one
    --rates 20 40 80     open loop: so many requests a second at random times, whether or not those before are answered
    --p99-ms 10          open loop: the highest rate whose p99 keeps to it is looked for, from --rates on

A latency of the open loop counts from when the request was to be sent, not from when there was time to send it: a
server that stops for a second has all who came meanwhile wait, and they are seen. Questions are drawn from --data, so
lengths are real ones. What is sent in the first quarter of a measurement warms up and does not count.
"""

import csv
import datetime
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from configs import command
from configs.errors import UsageError, UserError
from configs.options import setting
from data import squad
from serve.load_clients import Job, asked_once, run
from serve.load_search import ENDS, bears, highest, measured, summary
from serve.server import secret

FIGURES = ("loop", "clients", "rate", "sent", "answers_per_s", "p50_ms", "p95_ms", "p99_ms", *ENDS)
COLUMNS = [*FIGURES, "seconds", "processes", "deadline_ms", "data", "model", "platform", "date"]
LONGER = 3  # times --seconds, that a rate may be tried where --seconds bring too few requests to judge a p99 by


@dataclass(frozen=True)
class LoadConfig:
    """Ask a server as many clients would, and measure latency, throughput and errors.

    Examples:

      python -m serve.load --url http://127.0.0.1:8000 --data dev-v1.1.json.gz --clients 1 16 64 --out load.csv
      python -m serve.load --url http://127.0.0.1:8000 --data dev-v1.1.json.gz --rates 50 --p99-ms 10 --plot load.svg
    """

    url: str = setting(required=True, help="the server's address; POST /answer is asked below it")
    data: str = setting("builtin:dev-facts", help="questions: SQuAD .json or .json.gz, builtin:dev-facts")
    limit: int | None = setting(2000, least=1, help="questions to draw from")
    clients: tuple[int, ...] = setting((), help="closed loop: clients at a time, one measurement for each number")
    rates: tuple[float, ...] = setting((), help="open loop: requests a second, one measurement for each number")
    p99_ms: float | None = setting(None, above=0.0, help="open loop: look for the highest rate with no higher p99")
    seconds: float = setting(20.0, above=0.0, help="for each measurement; looking for a rate, longer for a low one")
    processes: int = setting(1, least=1, most=256, help="that send; one manages about a thousand requests a second")
    deadline_ms: float | None = setting(None, above=0.0, help="sent with each request; none: the server's own")
    model: str | None = setting(None, help="engine to ask; none: the server's first")
    token_file: str | None = setting(None, help="file with the server's secret")
    seed: int = setting(1, least=0, help="of questions and times")
    out: str | None = setting(None, help="CSV to write")
    plot: str | None = setting(None, help="picture to write, .svg or .png")

    def __post_init__(self):
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise UsageError(f"--url takes an address as http://127.0.0.1:8000; got {self.url!r}")
        if not self.clients and not self.rates:
            raise UsageError("give --clients for a closed loop, --rates for an open one, or both")
        if any(count < 1 for count in self.clients) or any(rate <= 0 for rate in self.rates):
            raise UsageError("--clients and --rates take numbers above 0")
        if self.p99_ms is not None and len(self.rates) != 1:
            raise UsageError("--p99-ms looks for a rate from one of --rates on; give one to begin with")
        if self.plot and Path(self.plot).suffix not in (".svg", ".png"):
            raise UsageError(f"--plot writes .svg or .png, not {self.plot!r}")


def main(config: LoadConfig) -> dict:
    token = secret(config.token_file)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    bodies = questions(config)
    about = asked_once(config.url, headers, bodies[0])
    print(f"engine {about['model']} ({about['platform']}), {len(bodies)} questions of {config.data}", flush=True)

    def measure(clients: int | None, rate: float | None, limit: float | None = None) -> dict:
        job = Job(config.url, headers, bodies, clients, rate, config.seconds, config.seed)
        if limit is None:
            row = summary(run(job, config.processes), job)
        else:
            row = measured(lambda job: run(job, config.processes), job, limit, LONGER * config.seconds)
        print("  ".join(f"{name} {row[name]}" for name in FIGURES if row[name] is not None), flush=True)
        return row

    rows = [measure(count, None) for count in config.clients]
    found: dict[str, Any] = {}
    if config.p99_ms is not None:
        limit = config.p99_ms
        best, tried = highest(lambda rate: measure(None, rate, limit), config.rates[0], lambda row: bears(row, limit))
        rows += tried
        found = {"highest_rate": best}
        print(f"highest rate with a p99 of at most {config.p99_ms:g} ms: {best:g} requests a second")
    else:
        rows += [measure(None, rate) for rate in config.rates]
    same = {
        "processes": config.processes, "deadline_ms": config.deadline_ms, "data": Path(config.data).name, **about,
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    if config.out:
        write(Path(config.out), [row | same for row in rows])
    if config.plot:
        draw(Path(config.plot), rows)
    return {"out": config.out, "metrics": {"rows": rows} | found}


def questions(config: LoadConfig) -> list[bytes]:
    """Bodies of POST /answer, in random order."""
    dataset = squad.read(config.data, limit=config.limit, split="dev")
    more = {"deadline_ms": config.deadline_ms, "model": config.model}
    more = {name: value for name, value in more.items() if value is not None}
    bodies = [
        body(example.question, example.context, **more)
        for example in dataset.examples if example.question.strip() and example.context.strip()
    ]  # fmt: skip
    if not bodies:
        raise UserError(f"{config.data} has no question; give another file")
    random.Random(config.seed).shuffle(bodies)
    return bodies


def body(question: str, context: str, **more: Any) -> bytes:
    """A body of POST /answer."""
    return json.dumps({"question": question, "context": context, **more}).encode()


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def draw(path: Path, rows: list[dict]) -> None:
    """Latency against clients, against requests a second, or both side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    loops = [loop for loop in ("closed", "open") if any(row["loop"] == loop for row in rows)]
    figure, axes = pyplot.subplots(1, len(loops), figsize=(6 * len(loops), 4), squeeze=False)
    for axis, loop in zip(axes[0], loops, strict=True):
        across = "clients" if loop == "closed" else "rate"
        shown = sorted((row for row in rows if row["loop"] == loop and row["p99_ms"]), key=lambda row: row[across])
        for name in ("p50_ms", "p95_ms", "p99_ms"):
            axis.plot([row[across] for row in shown], [row[name] for row in shown], "o-", label=name[:3])
        axis.set(xlabel="clients" if loop == "closed" else "requests a second", ylabel="latency, ms", yscale="log")
        axis.set_title(f"{loop} loop")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    command.run("serve.load", LoadConfig, main)
