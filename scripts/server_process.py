"""A server as a process of its own, for measurements: started, its address read from what it prints, ended."""

import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from configs.errors import UserError

END_S = 60.0


@contextmanager
def started(*words: object) -> Iterator[tuple[int, str]]:
    """(process id, address as http://127.0.0.1:8000) of `python -m WORDS`, once it serves.

    Raises: UserError with the end of its log where it does not.
    """
    argv = [sys.executable, "-m", *map(str, words)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout
        try:
            for line in process.stdout:
                if found := re.search(r"serving on (http://[^/]+)/", line):
                    break
            else:
                log.seek(0)
                raise UserError(f"{' '.join(argv[1:])} did not start: {log.read()[-2000:]}")
            rest = threading.Thread(target=process.stdout.read, daemon=True)
            rest.start()
            yield process.pid, found[1]
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
