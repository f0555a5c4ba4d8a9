"""The README's figures, measured again: the commands that stand under "Measured" there, one after the other.

    python -m scripts.remeasure --list
    python -m scripts.remeasure --pick "bench_train --parts full" check_tasks --train train.json.gz --dev dev.json.gz

The README is the only list of them. A command is picked by its number in --list or by words it contains; its output
goes to a file of --logs, its last line is shown, and one that fails or takes too long does not keep the others. What
they write is theirs to say: most add rows to a CSV in results/. Most need a GPU.
"""

import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from configs import command
from configs.errors import UsageError, UserError
from configs.options import setting

ROOT = Path(__file__).parent.parent
SECTION = "Measured"
NOT_RUN = re.compile(r"\.\.\.|\b(DIR|RUN|FILE)\b|scripts\.remeasure")  # an example, or this one
TRAIN, DEV = "train-v1.1.json.gz", "dev-v1.1.json.gz"  # as the README calls the questions


@dataclass(frozen=True)
class RemeasureConfig:
    """Run commands of the README's section "Measured" again."""

    pick: tuple[str, ...] = setting((), help="numbers of --list, or words of the commands; none: all of them")
    list: bool = setting(False, help="show the commands with their numbers and run none")
    train: str = setting(TRAIN, help=f"questions to take where the README says {TRAIN}")
    dev: str = setting(DEV, help=f"questions to take where the README says {DEV}")
    limit_s: int = setting(3600, least=1, help="seconds a command may take")
    minutes: float = setting(600.0, above=0, help="for all of them; those that have not begun by then are left out")
    logs: str = setting("runs/remeasure", help="folder for what they print, a file a command")


def commands(readme: str) -> list[str]:
    """The commands of the section, each once, in order: lines of its code blocks, and whole ones between backticks."""
    found = re.search(rf"^## {SECTION}$(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    if not found:
        raise UserError(f'README.md has no section "## {SECTION}"; there is nothing to run')
    text = re.sub(r"\\\n\s*", "", found[1])
    lines = re.findall(r"^    (python .+)$|`(python [^`]+)`", text, re.MULTILINE)
    whole = [(block or inline).split("  #")[0].strip() for block, inline in lines]
    return list(dict.fromkeys(line for line in whole if not NOT_RUN.search(line)))


def picked(all_commands: list[str], picks: tuple[str, ...]) -> list[tuple[int, str]]:
    """(number, command) of those that a pick names, in the README's order. Raises: UsageError where it names none."""
    numbered = list(enumerate(all_commands, 1))
    chosen: set[int] = set()
    for pick in picks:
        mine = {number for number, line in numbered if pick == str(number) or (not pick.isdigit() and pick in line)}
        if not mine:
            raise UsageError(f"--pick {pick} is in none of the {len(numbered)} commands; --list shows them")
        chosen |= mine
    return [(number, line) for number, line in numbered if not picks or number in chosen]


def main(config: RemeasureConfig) -> dict:
    chosen = picked(commands((ROOT / "README.md").read_text(encoding="utf-8")), config.pick)
    if config.list:
        print("\n".join(f"{number:3}  {line}" for number, line in chosen))
        return {"out": None, "metrics": {"commands": len(chosen)}}
    end, failed, seconds = time.monotonic() + 60 * config.minutes, list[str](), dict[str, float]()
    for number, line in chosen:
        left = end - time.monotonic()
        if left <= 0:
            failed.append(f"{number} (no time left)")
            continue
        begin = time.monotonic()
        words = [{TRAIN: config.train, DEV: config.dev}.get(word, word) for word in shlex.split(line)]
        print(f"{number:3}  {line}", flush=True)
        log = Path(config.logs) / f"{number:02}.log"
        how = run(words, log, min(left, config.limit_s))
        seconds[str(number)] = round(time.monotonic() - begin, 1)
        print(f"     {how}, {seconds[str(number)]:.0f} s, {log}: {last_line(log)}", flush=True)
        if how != "done":
            failed.append(f"{number} ({how})")
    if failed:
        raise UserError(f"not measured: {', '.join(failed)}; {config.logs} has what they printed")
    return {"out": config.logs, "metrics": {"seconds": seconds}}


def run(words: list[str], log: Path, limit_s: float) -> str:
    """How a command ended: "done", "ended at its limit", or its exit code. Its words begin with "python"."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen([sys.executable, *words[1:]], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.terminate()  # what it has measured so far is in its CSV
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return "ended at its limit"
    return "done" if code == 0 else f"exit code {code}"


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "(nothing printed)"


if __name__ == "__main__":
    command.run("scripts.remeasure", RemeasureConfig, main)
