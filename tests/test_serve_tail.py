"""What keeps the slowest answers near the others: no garbage, nobody woken for nothing, heaps not looked through."""

import gc
import threading
import time
import weakref
from typing import Any

import pytest
import serve_kit
import server_kit
from fake_cuda import FakeCuda, FakePlan
from server_kit import ASK

from serve import listen, quiet, server
from serve.batcher import Batcher, DeadlinePassed
from serve.manifest import read
from serve.metrics import Metrics
from serve.reader import Reader
from serve.request import Request
from serve.tensorrt_session import TensorrtSession


@pytest.fixture
def batcher(tmp_path):
    folder = serve_kit.write(tmp_path / "tiny")
    cuda = FakeCuda()
    reader = Reader(folder, session=TensorrtSession(read(folder), FakePlan(cuda), cuda))
    with Batcher(reader, token_budget=160) as batcher:
        yield batcher


@pytest.fixture
def collector():
    yield
    gc.unfreeze()
    gc.enable()


def test_an_answered_request_is_gone_without_the_garbage_collector(batcher, monkeypatch, collector):
    made = []
    real = Request.of.__func__  # type: ignore[attr-defined]

    def noted(kind, *given):
        request = real(kind, *given)
        made.append((weakref.ref(request), weakref.ref(request.future)))
        return request

    monkeypatch.setattr(Request, "of", classmethod(noted))
    gc.collect()
    gc.disable()
    for _ in range(20):
        batcher.submit(ASK).result(10)
    batcher.drain(10)
    alive = [one for pair in made for one in pair if one() is not None]
    assert len(made) == 20
    assert len(alive) <= 4  # which a thread's variables may hold until its next one


def test_the_keeper_of_deadlines_is_woken_for_the_earliest_alone(batcher):
    woken, real = [], batcher._clock.notify

    def notify(*given):
        woken.append(threading.current_thread().name)
        real(*given)

    batcher._clock.notify = notify
    gate, submit = threading.Event(), batcher.reader.session.submit
    batcher.reader.session.submit = lambda batch: gate.wait(10) and submit(batch)
    first = batcher.submit(ASK, deadline_ms=60_000)
    for _ in range(1000):  # on a busy machine that thread comes late, and may be woken again until it has looked
        if batcher._alarm < float("inf"):
            break
        time.sleep(0.01)
    gate.set()
    first.result(10)
    for _ in range(29):
        batcher.submit(ASK, deadline_ms=60_000).result(10)
    assert len(woken) == 1
    gate.clear()
    late = batcher.submit(ASK, deadline_ms=50)
    try:
        with pytest.raises(DeadlinePassed):
            late.result(5)
        assert len(woken) == 2
    finally:
        gate.set()


def test_nobody_is_woken_to_cut_a_batch_where_nothing_waits(batcher):
    woken, real = [], batcher._lane._cut.notify
    batcher._lane._cut.notify = lambda *given: woken.append(given) or real(*given)
    for _ in range(20):
        batcher.submit(ASK).result(10)
    assert not woken


def test_what_is_there_after_loading_is_not_looked_through_and_a_second_time_garbage_goes(collector):
    class Ring:
        def __init__(self):
            self.own = self

    gc.unfreeze()
    ring = Ring()
    quiet.settle()
    assert gc.get_freeze_count() > 10_000
    gone = weakref.ref(ring)
    del ring
    gc.collect()
    assert gone() is not None  # frozen
    quiet.settle()
    assert gone() is None


def test_a_server_settles_after_every_exchange_once_the_old_engine_is_closed(tmp_path, monkeypatch):
    settled = []
    folder = serve_kit.write(tmp_path / "tiny")
    monkeypatch.setattr(server.quiet, "settle", lambda: settled.append([one.closed for one in opened]))
    opened: list = []
    real = server.opener

    def opener(config):
        def open_one(name, folder):
            engine: Any = real(config)(name, folder)
            engine.closed, close = False, engine.close
            engine.close = lambda limit: setattr(engine, "closed", True) or close(limit)
            opened.append(engine)
            return engine

        return open_one

    monkeypatch.setattr(server, "opener", opener)
    engines = server.opened(server_kit.settings(folder), Metrics())
    try:
        engines.load("tiny", folder)
        assert settled == [[False], [True, False]]
        engines.unload("tiny")
        assert settled[2:] == [[True, True]]
    finally:
        engines.close()


def test_a_server_settles_before_it_listens(tmp_path, monkeypatch):
    done: list[str] = []
    monkeypatch.setattr(listen.quiet, "settle", lambda: done.append("settled"))
    monkeypatch.setattr(listen._Server, "run", lambda self, sockets: done.append("listening"))
    monkeypatch.setattr(listen.signal, "signal", lambda *given: None)
    config = server_kit.settings(serve_kit.write(tmp_path / "tiny"))
    with listen._bound("127.0.0.1", 0) as listener:
        listen.serve(config, listener, lambda engines: None)
    assert done[-2:] == ["settled", "listening"]
