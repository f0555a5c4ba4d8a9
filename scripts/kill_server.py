"""kill -9 of one of two workers under load, and how soon nobody notices: `python -m scripts.kill_server --engine DIR`.

    workers   `serve.py --workers 2`: the supervisor replaces the dead one
    ray       `python -m serve.ray_app --replicas 2`: Ray does; needs the extra `ray`

Clients ask in a closed loop, and each answer is compared with the Reader's. Once all goes well one worker is killed:

    first_answer_s   until a question that was sent afterwards is answered
    longest_gap_s    the longest time without any answer, from the kill on
    back_s           until a worker that was not there before answers
    broken           requests without an answer: connections of the dead one, or a proxy's 500
    wrong            answers that are not the Reader's; the run fails if there is one
"""

import asyncio
import csv
import datetime
import itertools
import json
import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from configs import command
from configs.errors import UserError
from configs.options import setting
from data import squad
from scripts.server_process import started
from scripts.soak_server import same
from serve import gpu
from serve import manifest as manifests
from serve.reader import Answer, Reader

COMMANDS = {
    "workers": ("serve", "--workers", "2", "--port", "0"),
    "ray": ("serve.ray_app", "--replicas", "2", "--cpus", "0.5", "--port", "8791"),
}
ERRORS = (OSError, aiohttp.ClientError, TimeoutError, ValueError)
START_S = 120.0
LIMITS = {"first_answer_s": 5.0, "back_s": 30.0}


@dataclass(frozen=True)
class KillConfig:
    """Kill a worker under load, and measure how soon another one answers and the dead one is replaced.

    Example:

      python -m scripts.kill_server --engine engines/student --data dev-v1.1.json.gz --kinds workers ray
    """

    engine: str = setting(required=True, help="engine folder")
    data: str = setting("builtin:dev-facts", help="questions: SQuAD .json or .json.gz, builtin:dev-facts")
    limit: int = setting(100, least=1, help="questions to draw from")
    kinds: tuple[str, ...] = setting(("workers",), help="workers, ray, or both")
    clients: int = setting(16, least=1, most=1000, help="at the same time")
    before_s: float = setting(5.0, above=0.0, help="of load before the kill")
    after_s: float = setting(5.0, above=0.0, help="of load once the dead one is replaced")
    seed: int = setting(1, least=0, help="of questions, and of who is killed")
    out: str = setting("results/kill.csv", help="CSV to write")


@dataclass
class Watch:
    """Clients of one server, and what they saw; times are time.monotonic()."""

    url: str
    pairs: list[tuple[str, str]]
    answers: list[Answer]
    seen: list[tuple[float, float]] = field(default_factory=list)  # an answer: when it was asked for, when it came
    broken: int = 0
    wrong: list[str] = field(default_factory=list)
    going: bool = True

    async def client(self, session: aiohttp.ClientSession, choice: random.Random) -> None:
        while self.going:
            place = choice.randrange(len(self.pairs))
            question, context = self.pairs[place]
            asked = time.monotonic()
            try:
                body = json.dumps({"question": question, "context": context}).encode()
                async with session.post(f"{self.url}/answer", data=body) as response:
                    status, told = response.status, await response.read()
            except ERRORS:
                self.broken += 1
                await asyncio.sleep(0.01)
                continue
            if status != 200:
                self.broken += 1
            elif same(json.loads(told), self.answers[place]):
                self.seen.append((asked, time.monotonic()))
            else:
                self.wrong.append(f"{question!r} got {told[:300]!r}")

    async def workers(self, session: aiohttp.ClientSession, tries: int = 1) -> set[int]:
        """Process ids of those who answer, asked over a new connection each time."""
        found = set()
        for _ in range(tries):
            with suppress(*ERRORS):
                async with session.get(f"{self.url}/v2", headers={"Connection": "close"}) as response:
                    found.add((await response.json())["worker"])
        return found

    async def run(self, config: KillConfig) -> dict:
        """The row."""
        choice = random.Random(config.seed)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(30)) as session:
            clients = [asyncio.create_task(self.client(session, random.Random(f"{config.seed} {number}")))
                       for number in range(config.clients)]  # fmt: skip
            await asyncio.sleep(config.before_s)
            there: set[int] = set()
            while len(there) < 2:
                there |= await self.workers(session, 5)
            broken_before = self.broken
            os.kill(choice.choice(sorted(there)), signal.SIGKILL)
            killed = time.monotonic()
            while not await self.workers(session) - there:
                if time.monotonic() > killed + START_S:
                    raise UserError(f"no new worker answered within {START_S:.0f} s")
                await asyncio.sleep(0.02)
            back = time.monotonic()
            await asyncio.sleep(config.after_s)
            self.going = False
            await asyncio.gather(*clients)
        first = min(came for asked, came in self.seen if asked > killed)
        came = sorted(when for _, when in self.seen if when > killed)
        return {
            "clients": config.clients, "answered": len(self.seen), "wrong": len(self.wrong),
            "broken_before": broken_before, "broken": self.broken - broken_before,
            "first_answer_s": round(first - killed, 3),
            "longest_gap_s": round(max(b - a for a, b in itertools.pairwise([killed, *came])), 3),
            "back_s": round(back - killed, 3),
        }  # fmt: skip


def main(config: KillConfig) -> dict:
    if unknown := sorted(set(config.kinds) - set(COMMANDS)):
        raise UserError(f"--kinds takes {', '.join(COMMANDS)}; got {unknown[0]!r}")
    dataset = squad.read(config.data, limit=config.limit, split="dev")
    pairs = [(example.question, example.context) for example in dataset.examples]
    with Reader(config.engine, "onnxruntime") as reader:
        answers = reader.answer_many(pairs)
    rows, wrong = [], []
    for kind in config.kinds:
        with started(*COMMANDS[kind], "--engine", config.engine, "--runtime", "onnxruntime") as (_, url):
            watch = Watch(url, pairs, answers)
            rows.append({"kind": kind} | asyncio.run(watch.run(config)))
            wrong += watch.wrong
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    sizes = manifests.read(config.engine).sizes
    same_for_all = {
        "layers": sizes["layers"], "hidden": sizes["hidden"],
        "data": Path(config.data).name, "device": gpu.cpu_name(), "cores": gpu.cores(),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    with open(config.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *same_for_all])
        writer.writeheader()
        writer.writerows(row | same_for_all for row in rows)
    if wrong:
        raise UserError(f"{len(wrong)} answers were wrong; the first: {wrong[0]}")
    for row in rows:
        for name, most in LIMITS.items():
            if row[name] > most:
                raise UserError(f"{row['kind']}: {name} is {row[name]}, at most {most:g} is needed")
    return {"out": config.out, "metrics": {"rows": rows}}


if __name__ == "__main__":
    command.run("scripts.kill_server", KillConfig, main)
