"""The frame around every command: exit codes, the last line, where log lines go. Each case is a process of its own."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import configs
from configs import command

ROOT = Path(__file__).parent.parent
PROGRAM = '''
"""A command that ends as it is told."""
import errno, logging, os, signal, sys, time
import tqdm  # as data/features.py does, before absl starts
from dataclasses import dataclass
from absl import logging as absl_logging
from configs import command
from configs.errors import UsageError, UserError
from configs.options import setting

@dataclass(frozen=True)
class Config:
    """End in one of several ways."""
    how: str = setting("well", help="which")

def main(config):
    print("a table for people")
    absl_logging.info("by absl")
    logging.getLogger("library").warning("by a library")
    for _ in tqdm.tqdm(range(2)):
        absl_logging.info("beside the bar")
    match config.how:
        case "user": raise UserError("data.json is no JSON;\\n  give a SQuAD file")
        case "usage": raise UsageError("--window 8 leaves no room")
        case "bug": raise KeyError("weights")
        case "silent": raise AssertionError
        case "disk": raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/last")
        case "interrupt":
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started deaf to it
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(9)
        case "odd": return {"metrics": {"f1": float("nan"), 1: float("-inf")}, "out": None}
        case "nothing": return None
    return {"out": "runs/a", "metrics": {"f1": 66.5}}

if __name__ == "__main__":
    command.run("train", Config, main)
'''


def ends(*argv: str) -> tuple[int, dict, subprocess.CompletedProcess]:
    """Exit code, last line of stdout as JSON, and the process."""
    call = [sys.executable, "-c", PROGRAM, *argv]
    done = subprocess.run(
        call, cwd=ROOT, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done


def test_a_good_end_says_what_came_out_and_with_which_versions():
    code, last, done = ends()
    assert code == 0
    assert list(last) == ["command", "out", "metrics", "seconds", "versions"]
    assert (last["command"], last["out"], last["metrics"]) == ("train", "runs/a", {"f1": 66.5})
    assert 0 <= last["seconds"] < 60
    assert last["versions"]["retort"] == configs.__version__
    assert last["versions"]["python"] == sys.version.split()[0]
    assert done.stdout.startswith("a table for people\n")


def test_naming_versions_imports_nothing():
    assert "tensorflow" not in ends()[1]["versions"]


@pytest.mark.parametrize(("how", "code", "error"), [
    ("user", 1, "data.json is no JSON; give a SQuAD file"),
    ("usage", 2, "--window 8 leaves no room"),
    ("disk", 1, "no space left on the disk for runs/a/last; make room first"),
    ("interrupt", 130, "interrupted"),
])  # fmt: skip
def test_what_a_user_can_mend_is_one_line_and_no_traceback(how, code, error):
    seen, last, done = ends("--how", how)
    assert (seen, last) == (code, {"command": "train", "error": error, "exit_code": code})
    assert done.stderr.splitlines()[-1] == f"error: {error}"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("how", "error"), [("bug", "KeyError: 'weights'"), ("silent", "AssertionError: AssertionError")]
)
def test_a_fault_of_ours_keeps_its_traceback(how, error):
    code, last, done = ends("--how", how)
    assert (code, last["exit_code"], last["error"]) == (1, 1, error)
    assert done.stderr.count("Traceback") == 1


def test_an_unknown_flag_ends_with_2_and_the_nearest_and_no_traceback():
    code, last, done = ends("--hwo", "well")
    assert (code, last["exit_code"]) == (2, 2)
    assert "did you mean --how?" in last["error"]
    assert "Traceback" not in done.stderr
    assert "a table" not in done.stdout


def test_help_ends_with_0():
    call = [sys.executable, "-c", PROGRAM, "--help"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "End in one of several ways." in done.stdout


def test_what_is_not_finite_becomes_null():
    assert ends("--how", "odd")[1]["metrics"] == {"f1": None, "1": None}


def test_a_command_may_return_nothing():
    code, last, _ = ends("--how", "nothing")
    assert (code, last["out"], last["metrics"]) == (0, None, {})


def test_log_lines_go_to_stderr_once_each_and_never_after_the_last_line():
    _, _, done = ends()
    assert done.stderr.count("by absl") == done.stderr.count("by a library") == 1
    assert done.stderr.count("beside the bar") == 2
    assert len(done.stdout.splitlines()) == 2
    assert re.search(r"^I \d\d:\d\d:\d\d \[<string>:\d+\]: by absl$", done.stderr, flags=re.MULTILINE)


def test_numpy_values_and_paths_become_plain():
    value = {
        "a": np.float32(2),
        "b": np.arange(2),
        "c": (np.int64(3), Path("x")),
        "d": np.float64("nan"),
        "e": np.True_,
    }
    assert command.plain(value) == {"a": 2.0, "b": [0, 1], "c": [3, "x"], "d": None, "e": True}


def test_the_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == configs.__version__
