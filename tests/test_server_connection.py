"""What a connection may bring before there is a request: a head of bounded length, within a bounded time."""

import socket
import threading
import time

import pytest
import uvicorn

from serve import connection


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def address():
    config = uvicorn.Config(app, port=0, http=connection.Connection, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()
        server.should_exit = True
        thread.join(20)


def said(client: socket.socket) -> bytes:
    """What comes until the server closes the connection or 5 s are over."""
    client.settimeout(5)
    found = b""
    try:
        while more := client.recv(65536):
            found += more
    except ConnectionResetError:
        return found
    return found


def asked(client: socket.socket, more: bytes = b"") -> bytes:
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + more + b"\r\n")
    client.settimeout(5)
    return client.recv(65536)


def test_requests_on_one_connection_are_answered_however_long_it_is_kept(address, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    with socket.create_connection(address) as client:
        for _ in range(3):
            assert asked(client).startswith(b"HTTP/1.1 200")
            time.sleep(0.3)  # between two requests uvicorn's own limit counts, which is longer
        assert asked(client, b"A: " + b"a" * 60_000 + b"\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"], ids=["nothing", "half a head"])
def test_a_head_that_does_not_come_ends_the_connection(address, monkeypatch, sent):
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    begin = time.monotonic()
    with socket.create_connection(address) as client:
        client.sendall(sent)
        assert said(client) == b""
    assert 0.1 < time.monotonic() - begin < 3


def test_half_a_head_after_a_whole_request_ends_the_connection_too(address, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    with socket.create_connection(address) as client:
        assert asked(client).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET / HT")
        assert said(client) == b""


def test_a_head_without_end_is_not_kept(address):
    def send() -> None:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        for place in range(2000):
            client.sendall(b"A%d: " % place + b"a" * 1000 + b"\r\n")
            time.sleep(0.0002)

    with socket.create_connection(address) as client, pytest.raises(ConnectionError):
        send()


def test_a_whole_head_that_is_too_long_is_refused(address):
    with socket.create_connection(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nA: " + b"a" * 70_000 + b"\r\n\r\n")
        assert said(client)[:12] in (b"HTTP/1.1 400", b"")
