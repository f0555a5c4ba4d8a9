"""Workers behind one port: killed, hanging or renewed under load, and nobody but the dead one's clients notices."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import serve_kit
from server_kit import ASK
from test_server_process import ROOT, logged, post, process

from serve.config import ServerConfig
from serve.supervisor import PAUSE_S, Supervisor, Worker


def pids(folder: Path, event: str = "worker ready") -> list[int]:
    """Workers of which the log has this, in its order."""
    return [line["of"] for line in logged(folder) if line["event"] == event]


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it did not happen within {seconds} seconds"
        time.sleep(0.05)


class Load:
    """Clients that ask all along; `answered` has the time of each answer, `wrong` whatever else came."""

    def __init__(self, port: int, clients: int = 4) -> None:
        self.port, self.going = port, True
        self.answered, self.broken, self.wrong = list[float](), 0, list[object]()
        self.threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    def _client(self, number: int) -> None:
        turn = 0
        while self.going:
            turn += 1
            before = "the notes " * (number + turn % 3)
            try:
                status, told = post(self.port, ASK | {"context": before + serve_kit.PASSAGE})
            except OSError:  # the connection broke: no answer, and none that is wrong
                self.broken += 1
                continue
            if (status, told.get("start")) == (200, 34 + len(before)):
                self.answered.append(time.monotonic())
            else:
                self.wrong.append((status, told))

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        until(lambda: len(self.answered) > 20)
        return self

    def __exit__(self, *_: object) -> None:
        self.going = False
        for thread in self.threads:
            thread.join(30)


@contextmanager
def workers(tmp_path: Path, *argv: object) -> Iterator[tuple[subprocess.Popen, int]]:
    with process(serve_kit.write(tmp_path / "tiny"), "--workers", 2, *argv) as (server, port):
        yield server, port
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0


def test_a_worker_killed_under_load_is_replaced_and_every_answer_is_right(tmp_path):
    with workers(tmp_path) as (_, port), Load(port) as load:
        first = pids(tmp_path)
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: load.answered[-1] > killed, 5)
        until(lambda: len(pids(tmp_path)) == 3)
        since = len(load.answered)
        until(lambda: len(load.answered) > since + 20)
    assert load.wrong == []
    assert load.broken <= len(load.threads)  # those whose connections the dead one had
    assert not Path(f"/proc/{first[1]}").exists()


def test_connections_are_shared_among_the_workers(tmp_path):
    with workers(tmp_path) as (_, port):
        seen = Counter()
        for _ in range(5):  # on a busy machine one of them may not run for a while: then there are more
            open_ones = [http.client.HTTPConnection("127.0.0.1", port, timeout=20) for _ in range(60)]
            for connection in open_ones:
                connection.connect()
            for connection in open_ones:
                connection.request("GET", "/v2")
                seen[json.loads(connection.getresponse().read())["worker"]] += 1
                connection.close()
            if len(seen) == 2 and min(seen.values()) > 5:
                break
    assert len(seen) == 2
    assert min(seen.values()) > 5


def test_a_worker_that_hangs_is_killed_and_replaced(tmp_path):
    with workers(tmp_path, "--hang-s", 4) as (_, port):
        os.kill(pids(tmp_path)[0], signal.SIGSTOP)
        until(lambda: len(pids(tmp_path)) == 3)
        assert pids(tmp_path, "worker hangs") == pids(tmp_path)[:1]
        assert post(port)[0] == 200


def test_sighup_renews_all_workers_with_the_folder_as_it_is_now_and_breaks_no_connection(tmp_path):
    with workers(tmp_path) as (server, port), Load(port, clients=2) as load:
        serve_kit.write(tmp_path / "tiny", max_answer_tokens=7)
        server.send_signal(signal.SIGHUP)
        until(lambda: any(line["event"] == "renewed" for line in logged(tmp_path)))
        now = pids(tmp_path)
    assert len(now) == len(set(now)) == 4
    assert load.wrong == []
    assert load.broken == 0


def test_sighup_with_a_broken_folder_leaves_the_old_workers(tmp_path):
    with workers(tmp_path) as (server, port):
        (tmp_path / "tiny" / "model.onnx").write_bytes(b"x")
        server.send_signal(signal.SIGHUP)
        until(lambda: any(line["event"] == "renewing stopped" for line in logged(tmp_path)))
        assert post(port)[0] == 200
        assert len(pids(tmp_path)) == 2


def test_metrics_are_those_of_all_workers_and_workers_end_with_their_supervisor(tmp_path):
    with process(serve_kit.write(tmp_path / "tiny"), "--workers", 2) as (server, port):
        for _ in range(10):
            assert post(port)[0] == 200
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        assert 'retort_requests_total{method="POST",path="/answer",status="200"} 10.0' in text
        assert 'retort_total_seconds_count{model="tiny"} 10.0' in text
        server.kill()
        server.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids(tmp_path)))


def test_an_engine_that_no_worker_can_open_is_said_in_one_line(tmp_path):
    folder = serve_kit.write(tmp_path / "tiny")
    (folder / "model.onnx").write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "serve.py", "--engine", folder, "--port", "0", "--workers", "2"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "model.onnx has 1 bytes" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_that_dies_at_once_again_and_again_is_replaced_ever_less_often(monkeypatch):
    supervisor = Supervisor(ServerConfig(engine="e", port=0, workers=1), None, print)  # type: ignore[arg-type]
    supervisor._serving = True
    pauses = []
    for _ in range(7):
        worker = Worker(0, DeadProcess(), DeadProcess())  # type: ignore[arg-type]
        supervisor._workers.append(worker)
        supervisor._lost(worker, 100.0)
        pauses.append(supervisor._due[0] - 100.0)
    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0, PAUSE_S[1], PAUSE_S[1]]
    worker = Worker(0, DeadProcess(), DeadProcess(), ready=50.0)  # type: ignore[arg-type]
    supervisor._workers.append(worker)
    supervisor._lost(worker, 100.0)
    assert supervisor._due[0] == 100.0


class DeadProcess:
    pid, exitcode = 1, -9

    def close(self) -> None:
        return None


