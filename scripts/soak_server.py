"""Thousands of requests of every kind to one server, each answer checked: `python -m scripts.soak_server --engine DIR`.

It starts `serve.py` with --engine, and 64 clients send, at random:

    ask          a question; the answer must be the Reader's
    infer        tensors of a window; the logits must be the session's
    leave        a question whose client hangs up within 50 ms
    late         a question with a deadline of 1 to 100 ms: the right answer, or 504
    malformed    a body that is none: 400

After a sixth and a third of them the engine is swapped, for --other and back. Before a swap was asked for an answer
must be the old engine's, after it was told done the new one's, and between the two either's. A lost request, an answer
that is wrong or another request's, or any other status ends the run with an error. The server's memory is read all
along; it must stay within 5 % over the second half.
"""

import asyncio
import csv
import datetime
import json
import random
import re
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
from tqdm import tqdm

from configs import command
from configs.errors import UserError
from configs.options import setting
from data import squad
from scripts.server_process import started
from serve import gpu
from serve import manifest as manifests
from serve.packed import Packed
from serve.protocol import INPUTS
from serve.reader import Answer, Reader, as_example

KINDS = {"ask": 70, "infer": 10, "leave": 8, "late": 6, "malformed": 6}  # percent
BAD = (
    b"", b"{", b"[]", b"\xff\xfe", b'{"question": "who?"}', b'{"question": 3, "context": "x"}',
    b'{"question": "", "context": "x"}', b'{"question": "who?", "context": " "}',
    b'{"question": "\\ud800", "context": "x"}',
    b'{"question": "who?", "context": "x", "priority": 1e999}', b"[" * 2000,
)  # fmt: skip
SWAPS = (1 / 6, 1 / 3)  # of the requests
FLAT = 0.05
DEADLINE_MS = 60_000  # the server's own: so long that a 504 of a request without one is a fault, not a slow machine
SCORE = 0.01  # by which a score or logit may differ: batches change the order of sums


@dataclass(frozen=True)
class SoakConfig:
    """Send a server requests of every kind, check every answer, and watch its memory.

    Example:

      python -m scripts.soak_server --engine engines/student --other engines/teacher --data dev-v1.1.json.gz
    """

    engine: str = setting(required=True, help="engine folder; it must lie in one folder with --other")
    other: str = setting(required=True, help="engine folder to swap it for, best one with other answers")
    data: str = setting("builtin:dev-facts", help="questions: SQuAD .json or .json.gz, builtin:dev-facts")
    limit: int = setting(300, least=1, help="questions to draw from")
    requests: int = setting(30_000, least=100, help="to send, of all kinds together")
    clients: int = setting(64, least=1, most=1000, help="at the same time")
    seed: int = setting(1, least=0, help="of what is sent")
    out: str = setting("results/soak.csv", help="CSV to write")


@dataclass
class Truth:
    """What one engine says to every question and to the first window of each."""

    answers: list[Answer]
    windows: list[Packed]
    logits: list[tuple[np.ndarray, ...]]


@dataclass
class Run:
    """What clients share. `may`: the engines whose answers are right now, a set that is exchanged and never changed."""

    config: SoakConfig
    url: str
    pid: int
    headers: dict[str, str]
    pairs: list[tuple[str, str]]
    truths: dict[str, Truth]
    may: frozenset[str]
    ended: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[int, float]] = field(default_factory=list)  # (requests ended, MiB)
    begun: int = 0

    @property
    def model(self) -> str:
        return Path(self.config.engine).resolve().name

    async def client(self, session: aiohttp.ClientSession, number: int) -> None:
        choice = random.Random(f"{self.config.seed} {number}")
        while self.begun < self.config.requests and not self.wrong:
            self.begun += 1
            kind = choice.choices(list(KINDS), list(KINDS.values()))[0]
            place, may = choice.randrange(len(self.pairs)), self.may
            try:
                end = await getattr(self, f"_{kind}")(session, choice, place, may)
            except (OSError, aiohttp.ClientError, TimeoutError) as error:
                end = None
                self.wrong.append(f"{kind}: lost ({type(error).__name__}: {error})")
            self.ended[f"{kind} {end}"] += 1

    async def _ask(self, session, choice: random.Random, place: int, may: frozenset[str], **more) -> int:
        question, context = self.pairs[place]
        body = json.dumps({"question": question, "context": context, **more}).encode()
        status, told = await self._post(session, "/answer", body)
        if status == 200:
            # also right are the engines that came into service while it was under way
            if not any(same(told, self.truths[name].answers[place]) for name in may | self.may):
                self.wrong.append(f"{question!r}: {told} is the answer of none of {sorted(may | self.may)}")
        elif status != 504 or "deadline_ms" not in more:
            self.wrong.append(f"status {status}: {told}")
        return status

    async def _late(self, session, choice: random.Random, place: int, may: frozenset[str]) -> int:
        return await self._ask(session, choice, place, may, deadline_ms=choice.choice((1, 10, 100)))

    async def _leave(self, session, choice: random.Random, place: int, may: frozenset[str]) -> str:
        asked = asyncio.create_task(self._ask(session, choice, place, may))
        await asyncio.sleep(choice.uniform(0.0, 0.05))
        if asked.done():
            return f"{await asked}"
        asked.cancel()  # closes its connection
        await asyncio.gather(asked, return_exceptions=True)
        return "left"

    async def _malformed(self, session, choice: random.Random, place: int, may: frozenset[str]) -> int:
        path = choice.choice(("/answer", f"/v2/models/{self.model}/infer"))
        status, told = await self._post(session, path, choice.choice(BAD))
        if status != 400 or list(told) != ["error"]:
            self.wrong.append(f"a malformed body got {status}: {told}")
        return status

    async def _infer(self, session, choice: random.Random, place: int, may: frozenset[str]) -> int:
        batch = self.truths[min(may)].windows[place]
        inputs = [{"name": name, "datatype": "INT32", "shape": [len(getattr(batch, name))],
                   "data": getattr(batch, name).tolist()} for name in INPUTS]  # fmt: skip
        body = json.dumps({"inputs": inputs}).encode()
        status, told = await self._post(session, f"/v2/models/{self.model}/infer", body)
        if status != 200:
            self.wrong.append(f"infer got {status}: {told}")
            return status
        got = {output["name"]: np.array(output["data"], np.float32) for output in told["outputs"]}
        logits = [self.truths[name].logits[place] for name in may | self.may]
        if not any(
            all(got[name].shape == side.shape and np.abs(got[name] - side).max() < SCORE
                for name, side in zip(("start_logits", "end_logits"), pair, strict=True)) for pair in logits
        ):  # fmt: skip
            self.wrong.append(f"infer {place}: logits of none of {sorted(may | self.may)}")
        return status

    async def _post(self, session, path: str, body: bytes) -> tuple[int, dict]:
        async with session.post(f"{self.url}{path}", data=body) as response:
            return response.status, json.loads(await response.read())

    async def swaps(self, session) -> None:
        for part, folder in zip(SWAPS, (self.config.other, self.config.engine), strict=True):
            while self.begun < part * self.config.requests:
                await asyncio.sleep(0.05)
            name = Path(folder).resolve().name
            self.may |= {name}
            body = json.dumps({"parameters": {"folder": name}}).encode()
            status, told = await self._post(session, f"/v2/repository/models/{self.model}/load", body)
            if status != 200:
                self.wrong.append(f"the swap to {name} got {status}: {told}")
            self.ended[f"swap {status}"] += 1
            self.may = frozenset({name})

    async def watch(self) -> None:
        with tqdm(desc="requests", total=self.config.requests, leave=False, mininterval=1) as bar:
            while True:
                done = sum(self.ended.values())
                self.memory.append((done, resident_mib(self.pid)))
                bar.update(done - bar.n)
                await asyncio.sleep(0.5)

    async def all(self) -> None:
        timeout = aiohttp.ClientTimeout(60)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(headers=self.headers, connector=connector, timeout=timeout) as session:
            watching, swapping = asyncio.create_task(self.watch()), asyncio.create_task(self.swaps(session))
            await asyncio.gather(*(self.client(session, number) for number in range(self.config.clients)))
            watching.cancel()
            await swapping if not self.wrong else swapping.cancel()


def main(config: SoakConfig) -> dict:
    dataset = squad.read(config.data, limit=config.limit, split="dev")
    pairs = [(example.question, example.context) for example in dataset.examples]
    folders = {Path(folder).resolve() for folder in (config.engine, config.other)}
    if len(folders) != 2 or len({folder.parent for folder in folders}) != 1:
        raise UserError("--engine and --other must be two engine folders that lie in the same folder")
    print(f"asking both engines {len(pairs)} questions for the right answers", flush=True)
    truths = {folder.name: truth(folder, pairs) for folder in folders}
    differ = sum(left.text != right.text for left, right in zip(*(t.answers for t in truths.values()), strict=True))
    print(f"they differ in {differ} of {len(pairs)} answers", flush=True)
    token = secrets.token_hex(16)
    begin = time.monotonic()
    with server(config, token) as (pid, url):
        run = Run(config, url, pid, {"Authorization": f"Bearer {token}"}, pairs, truths,
                  frozenset({Path(config.engine).resolve().name}))  # fmt: skip
        asyncio.run(run.all())
    sizes = manifests.read(config.engine).sizes
    row = summary(run, differ, time.monotonic() - begin) | {name: sizes[name] for name in ("layers", "hidden")}
    print("\n".join(f"{name}: {value}" for name, value in row.items()))
    path = Path(config.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    if run.wrong:
        raise UserError(f"{len(run.wrong)} requests went wrong; the first: {run.wrong[0][:1000]}")
    if row["memory_spread_second_half"] > FLAT:
        raise UserError(f"memory was not flat: {row['memory_spread_second_half']:.1%} over the second half")
    return {"out": config.out, "metrics": row}


def truth(folder: Path, pairs: list[tuple[str, str]]) -> Truth:
    """What an engine says, on ONNX Runtime."""
    with Reader(folder, "onnxruntime") as reader:
        windows = []
        for question, context in pairs:
            dataset = squad.Dataset([as_example(0, question, context)], "2.0", source="a question")
            windows.append(Packed.windows(reader.features(dataset), np.arange(1)))
        return Truth(reader.answer_many(pairs), windows, [reader.session.run(window) for window in windows])


@contextmanager
def server(config: SoakConfig, token: str) -> Iterator[tuple[int, str]]:
    """(process id, address) of `serve.py`."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "token").write_text(token)
        root = Path(config.engine).resolve().parent
        words = ["--engine", config.engine, "--root", root, "--port", 0,
                 "--token-file", f"{folder}/token", "--runtime", "onnxruntime",
                 "--deadline-ms", DEADLINE_MS]  # fmt: skip
        with started("serve", *words) as found:
            yield found


def resident_mib(pid: int) -> float:
    """Memory of a process that is in RAM."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


def summary(run: Run, differ: int, seconds: float) -> dict:
    """The CSV's row."""
    half = [mib for done, mib in run.memory if done >= run.config.requests / 2] or [run.memory[-1][1]]
    return {
        "requests": sum(number for end, number in run.ended.items() if not end.startswith("swap")),
        "swaps": run.ended["swap 200"], "wrong_or_lost": len(run.wrong), "answers_that_differ": differ,
        **{f"{end.replace(' ', '_')}": number for end, number in sorted(run.ended.items()) if end != "swap 200"},
        "memory_mib_at_half": round(half[0], 1), "memory_mib_at_end": round(half[-1], 1),
        "memory_spread_second_half": round((max(half) - min(half)) / min(half), 4), "clients": run.config.clients,
        "seconds": round(seconds, 1), "data": Path(run.config.data).name, "device": gpu.cpu_name(),
        "cores": gpu.cores(), "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def same(told: dict, answer: Answer) -> bool:
    """Is this body of POST /answer that answer? Its score may differ by what another batch does to a sum, no more."""
    near = abs(told["score"] - answer.score) < SCORE and told["windows"] == answer.windows
    return near and (told["answer"], told["start"], told["end"]) == (answer.text, answer.start, answer.end)


if __name__ == "__main__":
    command.run("scripts.soak_server", SoakConfig, main)
