"""What a connection may bring before there is a request, a head of bounded length and time; and how it ends."""

import asyncio
import socket
import threading
import time

import pytest
import uvicorn

from serve import connection, listen


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


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Stopping:
    """A server that stops while others wait at the same socket, as a worker that is replaced does."""

    def __init__(self, listener: socket.socket) -> None:
        config = uvicorn.Config(app, http=connection.Connection, log_config=None, lifespan="off", backlog=1)
        config.load()
        self.server, self.sockets = listen._Server(config), [listener.dup()]
        self.server.lifespan = config.lifespan_class(config)

    async def __aenter__(self) -> None:
        await self.server.startup(self.sockets)

    async def __aexit__(self, *_: object) -> None:
        await self.server.shutdown(self.sockets)


async def answer(listener: socket.socket, turns: int, earlier: int = 0) -> bytes:
    """What a client is told who connects so many turns of the loop before the first of two servers stops, has asked it
    `earlier` times by then, and asks while it stops."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        async with Stopping(listener):
            client.connect(listener.getsockname())  # which the kernel does alone: no turn of the loop passes
            client.setblocking(False)
            for _ in range(earlier):
                await loop.sock_sendall(client, REQUEST)
                while not (await loop.sock_recv(client, 65536)).endswith(b"ok"):
                    continue
            for _ in range(turns):
                await asyncio.sleep(0)
            loop.call_later(0.05, client.send, REQUEST)
        async with Stopping(listener):
            return await asyncio.wait_for(loop.sock_recv(client, 65536), 5)


@pytest.fixture
def listener():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


@pytest.mark.parametrize("turns", range(7))
def test_a_client_who_is_just_let_in_when_the_server_stops_is_answered(listener, turns):
    begin = time.monotonic()
    said = asyncio.run(answer(listener, turns))
    assert said.startswith(b"HTTP/1.1 200")
    assert time.monotonic() - begin < 3  # and the server ends with it


def test_a_request_on_a_kept_connection_is_answered_while_the_server_stops_and_is_the_last(listener):
    said = asyncio.run(answer(listener, 10, earlier=2))
    assert said.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in said


def test_idle_connections_do_not_keep_a_server_that_stops(listener):
    async def stop() -> float:
        async with Stopping(listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            await asyncio.sleep(0.05)
            begin = time.monotonic()
        writer.close()
        return time.monotonic() - begin

    assert connection.LAST_S - 0.2 < asyncio.run(stop()) < connection.LAST_S + 1
