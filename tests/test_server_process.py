"""The server as a process of its own: its usual client, its limits on a socket, and how it ends."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import serve_kit
from server_kit import ASK, HEADERS, TOKEN
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from serve import listen, protocol

ROOT = Path(__file__).parent.parent
LOGITS = ("start_logits", "end_logits")


@contextmanager
def process(folder: Path, *argv: object) -> Iterator[tuple[subprocess.Popen, int]]:
    """(the process, its port), once it listens; it is gone at the end."""
    words = ["--engine", folder, "--port", 0, "--threads", 1, "--token-budget", 160, *argv]
    log = open(folder.parent / "log", "w+")  # noqa: SIM115
    server = subprocess.Popen(
        [sys.executable, "serve.py", *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
    )
    try:
        assert server.stdout
        for line in server.stdout:  # one that it prints once it listens
            if found := re.search(r"serving on http://127\.0\.0\.1:(\d+)/", line):
                break
        else:
            raise AssertionError((folder.parent / "log").read_text())
        yield server, int(found[1])
    finally:
        server.kill()
        server.wait()
        assert server.stdout
        server.stdout.close()
        log.close()


def post(port: int, body: dict = ASK, headers: dict | None = None) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", "/answer", json.dumps(body), headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


def logged(folder: Path) -> list[dict]:
    """The server's log, of the process whose engine lies in the folder."""
    lines = (folder / "log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "token").write_text(TOKEN)
    with process(serve_kit.write(folder / "tiny"), "--token-file", folder / "token", "--root", folder) as (_, port):
        yield port


@pytest.fixture
def client(port):
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_logits_as_bytes_and_as_json(client, binary):
    batch = serve_kit.batch(5, 9, 3)
    inputs = []
    for name in protocol.INPUTS:
        values = getattr(batch, name)
        inputs.append(triton.InferInput(name, list(values.shape), "INT32").set_data_from_numpy(values, binary))
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in LOGITS]
    for wanted in (outputs, None):  # None: all of them
        told = client.infer("tiny", inputs, outputs=wanted, request_id="mine", timeout=5_000_000, priority=1,
                            headers=dict(HEADERS))  # fmt: skip
        assert told.get_response()["id"] == "mine"
        for name, values in zip(LOGITS, serve_kit.expected(batch), strict=True):
            np.testing.assert_allclose(told.as_numpy(name), values, atol=1e-5)


def test_tritons_client_finds_models_and_health_and_changes_engines(client, port):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny", headers=HEADERS)
    assert client.is_model_ready("tiny", "1", headers=HEADERS)
    assert not client.is_model_ready("other", headers=HEADERS)
    assert client.get_server_metadata(headers=HEADERS)["name"] == "retort"
    assert client.get_model_metadata("tiny", headers=HEADERS)["inputs"][0]["name"] == "token_ids"
    client.load_model("tiny", headers=HEADERS)
    index = client.get_model_repository_index(headers=HEADERS)
    assert {row["name"]: row["state"] for row in index} == {"tiny": "READY"}
    with pytest.raises(InferenceServerException, match="no engine folder 'other'"):
        client.load_model("other", headers=HEADERS)
    with pytest.raises(InferenceServerException, match="needs a secret"):
        client.unload_model("tiny")
    assert post(port, headers=HEADERS)[1]["answer"] == "Ada Lovelace"


def test_a_client_that_hangs_up_in_the_middle_harms_nobody(port):
    for text in (b"POST /answer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", b"GE", b"\x16\x03\x01", b""):
        with socket.create_connection(("127.0.0.1", port), 5) as raw:
            raw.sendall(text)
    assert post(port, headers=HEADERS)[0] == 200


def test_sigterm_answers_what_is_under_way_takes_nothing_new_and_ends_with_0(tmp_path):
    folder = serve_kit.write(tmp_path / "tiny")
    with process(folder, "--max-delay-ms", 0) as (server, port):
        raw = socket.create_connection(("127.0.0.1", port), 10)
        body = json.dumps(ASK).encode()
        head = f"POST /answer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        raw.sendall(head + body[:5])  # under way: its body comes later
        idle = socket.create_connection(("127.0.0.1", port), 10)
        time.sleep(0.3)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), 2)
        assert server.poll() is None
        raw.sendall(body[5:])
        told = b"".join(iter(lambda: raw.recv(65536), b""))
        assert told.startswith(b"HTTP/1.1 200 OK")
        assert b"Ada Lovelace" in told
        assert server.wait(10) == 0
        raw.close()
        idle.close()
        assert server.stdout
        assert json.loads(server.stdout.read().splitlines()[-1])["metrics"]["requests"] == 1
    events = [line["event"] for line in logged(tmp_path)]
    assert events.count("draining") == 1
    assert events[-1] == "stopped"


def test_a_client_that_never_ends_holds_the_server_no_longer_than_drain_s(tmp_path):
    with process(serve_kit.write(tmp_path / "tiny"), "--drain-s", 1) as (server, port):
        with socket.create_connection(("127.0.0.1", port), 10) as raw:
            raw.sendall(b"POST /answer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(0.2)
            begin = time.monotonic()
            server.send_signal(signal.SIGTERM)
            assert server.wait(10) == 0
            assert time.monotonic() - begin < 5
            assert raw.recv(100).startswith(b"HTTP/1.1 503")
        assert "Traceback" not in (tmp_path / "log").read_text()


def test_many_clients_at_once_each_get_their_own_answer(port):
    wrong = []

    def client(place: int) -> None:
        for turn in range(15):
            before = "the notes " * (place + turn % 3)
            status, told = post(port, ASK | {"context": before + serve_kit.PASSAGE}, HEADERS)
            if (status, told.get("start")) != (200, 34 + len(before)):
                wrong.append((status, told))

    threads = [threading.Thread(target=client, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


def test_a_port_that_is_taken_is_said_in_one_line(port, tmp_path):
    folder = serve_kit.write(tmp_path / "tiny")
    done = subprocess.run(
        [sys.executable, "serve.py", "--engine", folder, "--port", str(port)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=30, env=os.environ | {"NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    assert f"cannot listen at 127.0.0.1 port {port} (Address already in use)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_connection_sends_at_once_and_does_not_wait_for_a_clients_acknowledgement():
    with listen._bound("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname(), 5), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
