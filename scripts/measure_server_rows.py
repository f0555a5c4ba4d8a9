"""What `measure_server` has found: rows into its CSV as soon as they are there, tables at the end."""

import csv
import datetime
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs import command
from configs.errors import UserError
from scripts.measure_server_http import MOST
from serve import load
from serve.reader import Reader
from serve.session import Session

COLUMNS = ["batches", "text", "over_http", "delay_ms", *load.FIGURES, "borne", "budget", "layout", "layers", "hidden",
           "runtime", "device", "data", "p99_limit_ms", "versions", "date"]  # fmt: skip


class Findings:
    """What was measured so far: in the files as soon as it is there, and printed at the end."""

    def __init__(self, config: Any) -> None:
        """config: `measure_server.MeasureConfig`."""
        self._config, self.rows, self.one, self.failed = config, list[dict](), dict[str, float](), list[str]()
        self.left_out = list[str]()
        self._end = time.monotonic() + 60 * config.minutes

    def begins(self, what: str) -> bool:
        """Is there time for this piece? What is left out is told at the end."""
        if time.monotonic() < self._end:
            return True
        self.left_out.append(what)
        return False

    @contextmanager
    def kept(self, what: str) -> Iterator[None]:
        """A piece whose failure is noted and ends no other."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()
            self.failed.append(f"{what} ({type(error).__name__}: {str(error)[:200]})")
            print(f"failed: {self.failed[-1]}", flush=True)

    def rates(self, rows: list[dict], reader: Reader, text: str, session: Session) -> list[dict]:
        self.rows += [row | about(reader, text, session) for row in rows]
        write(Path(self._config.out), self.rows, self._config)
        return rows

    def one_client(self, told: dict[str, float]) -> None:
        self.one = told
        path = Path(self._config.out)
        rows = [{"what": name, "mean_ms": round(value, 4), "must_be_below_ms": MOST.get(name)}
                for name, value in told.items()]  # fmt: skip
        written(path.with_name(f"{path.stem}_one_client.csv"), ["what", "mean_ms", "must_be_below_ms"], rows)

    def told(self) -> dict:
        """Print the tables. Raises: UserError where something failed."""
        kinds: dict[tuple, list[dict]] = {}
        for row in self.rows:
            name = "count" if row["batches"].startswith("count") else row["batches"]  # the best of all counts
            kinds.setdefault((name, row["text"], row["over_http"]), []).append(row)
        best = [top(rows) for rows in kinds.values()]
        print("\nhighest rate with a p99 of at most", self._config.p99_ms, "ms")
        for row in best:
            words = f"{row['batches']:18} text {row['text']:3} {'HTTP' if row['over_http'] else '':5}"
            print(f"{words} {row['rate'] or 0:10.1f} requests a second, p99 {row['p99_ms']} ms")
        if self.one:
            print("\none client, means in ms")
            print("\n".join(f"{name:34} {value:8.3f}" + (f"  (must be below {MOST[name]})" if name in MOST else "")
                            for name, value in self.one.items()))  # fmt: skip
        if self.left_out:
            print(f"\nleft out after {self._config.minutes:g} minutes (--minutes): {'; '.join(self.left_out)}")
        if self.failed:
            raise UserError(f"{len(self.failed)} failed: {'; '.join(self.failed)}; the rest is in {self._config.out}")
        return {"out": self._config.out, "metrics": {"best": best, "one_client": self.one, "left_out": self.left_out}}


def about(reader: Reader, text: str, session: Session) -> dict:
    sizes = reader.manifest.sizes
    told = {"text": text, "layout": reader.manifest.layout, "layers": sizes["layers"], "hidden": sizes["hidden"]}
    return told | {"runtime": session.why, "device": session.device}


def top(rows: list[dict]) -> dict:
    """The highest rate borne."""
    return max(rows, key=lambda row: row["rate"] if row["borne"] else 0) if any(row["borne"] for row in rows) else (
        rows[0] | {"rate": None}
    )  # fmt: skip


def write(path: Path, rows: list[dict], config: Any) -> None:
    same = {
        "data": Path(config.data).name, "p99_limit_ms": config.p99_ms,
        "versions": " ".join(f"{name} {version}" for name, version in command.versions().items()),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    written(path, COLUMNS, [row | same for row in rows])


def written(path: Path, columns: list[str], rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    with open(scratch, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(scratch, path)  # a kill in between leaves the earlier rows
