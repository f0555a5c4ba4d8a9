"""The batcher's parts: the order of its queue, the size of batch that it finds for a device, who submits a batch."""

import threading
import time

import pytest
import serve_kit
from fake_cuda import FakeCuda, FakePlan

from serve import budget
from serve.batcher import Batcher
from serve.manifest import read
from serve.queue import Heap, Window, WindowQueue
from serve.reader import Reader
from serve.tensorrt_session import TensorrtSession


def turns(queue: WindowQueue, *tokens: int, padded: bool = False, alike: bool = True, most: int = 9, budget: int = 20):
    for place, length in enumerate(tokens):
        queue.push(Window(None, place, length, float(place)))
    found = []
    while batch := queue.cut(budget, most, padded=padded, alike=alike):
        found.append([window.index for window in batch])
    return found


def test_batches_are_led_in_turn_and_filled_from_a_little_behind():
    assert turns(WindowQueue(), 12, 12, 8, 20, 8) == [[0, 2], [1, 4], [3]]
    assert turns(WindowQueue(), *[20] * 100, most=9)[0] == [0]
    assert turns(WindowQueue(), *[1] * 5, most=2) == [[0, 1], [2, 3], [4]]
    assert turns(WindowQueue(), 4, 10, 5, 9, padded=True) == [[0, 2], [1, 3]]
    assert turns(WindowQueue(), 4, 10, 5, 9, padded=True, alike=False) == [[0, 1], [2, 3]]


def test_a_crowd_that_leaves_the_queue_leaves_no_memory():
    queue, heap = WindowQueue(), Heap[Window](lambda window: window.gone)
    for place in range(5000):
        windows = [Window(None, index, 5, float(place)) for index in range(3)]
        for window in windows:
            queue.push(window)
            heap.push(window.turn, window)
        queue.drop(windows)
        heap.lost(3)
    assert (queue.tokens, queue.count) == (0, 0)
    assert max(len(queue._heap), len(queue._arrived), len(heap)) < 1000


@pytest.mark.parametrize(("seconds", "tokens"), [
    (lambda tokens: tokens * 1e-4 * (1 + tokens / 2000), 128),  # the CPU's squares: small is best
    (lambda tokens: 1e-3 + tokens * 1e-6, 8192),  # a GPU: the launch is dear, the largest is nearly alone
    (lambda tokens: max(tokens, 1000) * 1e-6, 1024),
    (lambda tokens: tokens * 1e-4, 128),
])  # fmt: skip
def test_the_budget_is_the_smallest_that_is_nearly_as_fast_as_the_best(monkeypatch, tmp_path, seconds, tokens):
    folder = serve_kit.write(tmp_path / "e", profile={"batch": [1, 8, 999], "tokens": [1, 64, 8192]})
    now = [0.0]
    with Reader(folder) as reader:
        def submit(batch):
            now[0] += seconds(batch.tokens)

        monkeypatch.setattr(reader.session, "submit", submit)
        monkeypatch.setattr(reader.session, "result", lambda ticket: None)
        found = budget.measure(reader.session, limit_s=5, clock=lambda: now[0])
        assert found.tokens == tokens
        now[0], before = 0.0, now[0]
        assert before < 5
        assert len(found.measured) <= 3 or tokens > 128  # it stops where larger batches bring nothing
        monkeypatch.setattr(reader.session, "submit", lambda batch: now.__setitem__(0, now[0] + 1.0))
        assert budget.measure(reader.session, limit_s=0.8, clock=lambda: now[0]).measured[0][0] == 128
        assert now[0] <= 6  # the first size alone, however slow


def test_what_tensorrt_compiles_for_a_shape_says_nothing_of_its_speed(monkeypatch, tmp_path):
    folder = serve_kit.write(tmp_path / "e", profile={"batch": [1, 8, 999], "tokens": [1, 64, 4096]})
    now, seen = [0.0], set[int]()
    with Reader(folder) as reader:
        def submit(batch):
            now[0] += 1e-3 + batch.tokens * 1e-6 + (0.7 if batch.tokens not in seen else 0)
            seen.add(batch.tokens)

        monkeypatch.setattr(type(reader.session), "runtime", "tensorrt")
        monkeypatch.setattr(reader.session, "submit", submit)
        monkeypatch.setattr(reader.session, "result", lambda ticket: None)
        assert budget.measure(reader.session, clock=lambda: now[0]).tokens == 4096
        assert 6 * 0.7 < now[0] < 7


@pytest.mark.parametrize(("at_once", "by"), [(True, "batcher-tokens"), (False, "batcher-launch")])
def test_a_text_alone_is_submitted_by_the_thread_that_cut_it_where_that_is_soon_done(tmp_path, at_once, by):
    cuda = FakeCuda(0)
    session = TensorrtSession(read(serve_kit.write(tmp_path / "e", "packed")), FakePlan(cuda), cuda)
    session.at_once, threads, submit = at_once, list[str](), session.submit

    def submitted(batch):
        threads.append(threading.current_thread().name)
        time.sleep(0.001)
        return submit(batch)

    with Batcher(Reader(tmp_path / "e", session=session), token_budget=160) as batcher:
        session.submit = submitted
        for _ in range(5):
            batcher.submit({"question": "who", "context": "it was ada"}).result(10)
        futures = [batcher.submit({"question": "who", "context": "it was ada"}) for _ in range(40)]
    assert [future.result(0).response["windows"] for future in futures] == [1] * 40  # none is lost at the end
    assert all(name.startswith(by) for name in threads[:5]), threads
    session.close()
