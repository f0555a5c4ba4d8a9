"""The batcher: every answer is the Reader's own, whoever else comes, leaves, is late or sends rubbish meanwhile."""

import random
import threading
import time
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest
import serve_kit

from configs.errors import UsageError, UserError
from serve.batcher import AGEING_S, Batcher, DeadlinePassed, Draining, QueueFull
from serve.reader import Reader

POISON = serve_kit.PIECES.index("[MASK]")
ASK = {"question": serve_kit.QUESTION, "context": serve_kit.PASSAGE}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("engines")
    return {layout: serve_kit.write(root / layout, layout) for layout in ("packed", "padded")}


@pytest.fixture
def reader(folders):
    with Reader(folders["packed"]) as opened:
        yield opened


class Gate:
    """Holds up a session's batches until it is opened, and notes the tokens of each sequence that passes."""

    def __init__(self, session) -> None:
        self.open, self.entered, self.batches = threading.Event(), threading.Event(), list[list[int]]()
        real = session.submit

        def submit(batch):
            self.entered.set()
            assert self.open.wait(10)
            self.batches.append(batch.lengths.tolist())
            return real(batch)

        session.submit = submit


def poisoned(session) -> None:
    real = session.submit

    def submit(batch):
        if (batch.token_ids == POISON).any():
            raise RuntimeError("poison")
        return real(batch)

    session.submit = submit


def waiting(batcher: Batcher, least: int) -> int:
    """How many windows wait for a batch, as soon as there are so many."""
    end = time.perf_counter() + 10
    while (count := int(batcher.stats()["windows_queued"])) < least:
        assert time.perf_counter() < end, count
        time.sleep(0.002)
    time.sleep(0.02)  # and those that come with them
    return int(batcher.stats()["windows_queued"])


def ids(*lengths: int, first: int = 5):
    batch = serve_kit.batch(*lengths)
    batch.token_ids[batch.token_ids == POISON] = 6
    batch.token_ids[0] = first
    return batch


def same(got: dict, wanted: dict) -> bool:
    scores = ("score", "no_answer_score")
    return all(abs(got[name] - wanted[name]) < 1e-3 if name in scores else got[name] == wanted[name] for name in wanted)


def crowd(reader: Reader, requests: int, seed: int) -> dict[str, int]:
    """Clients that ask, leave, are late or send rubbish, at random; checks each answer, counts how requests ended."""
    rng, words = random.Random(seed), [*serve_kit.WORDS, "unheard", "[MASK]"]
    asks = [
        {"question": " ".join(rng.choices(words, k=asked)),
         "context": " ".join(rng.choices(words, k=rng.choice((3, 12, 40, 150))))}
        for asked in rng.choices(range(1, 10), k=150)
    ]  # fmt: skip
    direct = reader.respond(asks)
    ended: dict[str, int] = dict.fromkeys(("answered", "cancelled", "late", "malformed", "full"), 0)
    lock = threading.Lock()

    def client(number: int) -> None:
        mine = random.Random(1000 * seed + number)
        for _ in range(requests // 16):
            place = mine.randrange(len(asks))
            kind = mine.choices(("ask", "leave", "late", "bad"), (80, 8, 6, 6))[0]
            try:
                if kind == "bad":
                    rubbish: list = [("", "x"), ("x", "  "), (None, "x"), ("x", 3), ("x", "")]
                    future = batcher.submit(dict(zip(("question", "context"), mine.choice(rubbish), strict=True)))
                    with pytest.raises(UserError):
                        future.result(30)
                    outcome = "malformed"
                else:
                    deadline = mine.choice((0, 0.5, 3)) if kind == "late" else None
                    future = batcher.submit(asks[place], deadline_ms=deadline, priority=mine.randint(-2, 2))
                    if kind == "leave":
                        time.sleep(mine.choice((0, 0.001)))
                        future.cancel()
                    assert same(future.result(30).response, direct[place]), asks[place]
                    outcome = "answered"
            except QueueFull:
                outcome = "full"
            except CancelledError:
                outcome = "cancelled"
            except DeadlinePassed:
                assert kind == "late"
                outcome = "late"
            with lock:
                ended[outcome] += 1

    with Batcher(reader, token_budget=100, queue_limit_tokens=4000) as batcher:
        threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert batcher.drain(10)
        stats = batcher.stats()
    assert sum(ended.values()) == 16 * (requests // 16)  # a client that failed has not counted all of its requests
    assert [stats[name] for name in ("requests", "windows_queued", "tokens_queued", "tokens_charged")] == [0] * 4
    assert [ended[name] for name in ("answered", "cancelled", "late", "malformed", "full")] == [
        stats[name] for name in ("answered", "cancelled", "expired", "failed", "refused")
    ]
    return ended


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_crowd_that_comes_and_goes_gets_the_readers_answers(folders, layout):
    with Reader(folders[layout]) as reader:
        ended = crowd(reader, 800, seed=1)
    assert min(ended["answered"], ended["late"], ended["malformed"]) > 10


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_tens_of_thousands_of_requests_get_the_readers_answers(folders, layout):
    with Reader(folders[layout]) as reader:
        ended = crowd(reader, 30_000, seed=2)
    assert min(ended["answered"], ended["cancelled"], ended["late"], ended["malformed"]) > 100


def test_one_poisoned_request_of_a_batch_fails_alone(reader):
    poisoned(reader.session)
    gate = Gate(reader.session)
    reports = []
    with Batcher(reader, token_budget=160) as batcher:
        batcher.on_batch(reports.append)
        first = batcher.submit_packed(ids(4))
        assert gate.entered.wait(5)  # the others gather behind it
        requests = [batcher.submit_packed(ids(6, 5, first=POISON if place == 2 else 5)) for place in range(5)]
        gate.open.set()
        wait([first, *requests], 10)
        assert str(requests[2].exception()) == "poison"
        for place in (0, 1, 3, 4):
            np.testing.assert_allclose(requests[place].result(), serve_kit.expected(ids(6, 5)), atol=1e-5)
    assert [report.failed for report in reports].count(True) == 1
    assert max(report.requests for report in reports) > 1


def test_a_batch_keeps_to_its_tokens_and_its_sequences(reader):
    gate = Gate(reader.session)
    with Batcher(reader, token_budget=20, most_sequences=3) as batcher:
        futures = [batcher.submit_packed(ids(length)) for length in (4, *[9] * 4, *[2] * 9, 30)]
        assert gate.entered.wait(5)
        gate.open.set()
        wait(futures, 10)
    assert sorted(length for batch in gate.batches for length in batch) == sorted((4, *[9] * 4, *[2] * 9, 30))
    assert [batch for batch in gate.batches if len(batch) > 3 or (sum(batch) > 20 and len(batch) > 1)] == []
    assert [30] in gate.batches  # longer than the budget: alone


def test_an_idle_device_does_not_wait_for_company(reader):
    with Batcher(reader, max_delay_ms=2000) as batcher:
        begin = time.perf_counter()
        batcher.submit(ASK).result(5)
        assert time.perf_counter() - begin < 1


def test_a_deadline_is_told_when_it_passes_though_the_device_hangs(reader):
    gate = Gate(reader.session)
    with Batcher(reader, token_budget=160) as batcher:
        asleep = batcher.submit(ASK, deadline_ms=1e12)
        assert gate.entered.wait(5)
        begin = time.perf_counter()
        with pytest.raises(DeadlinePassed):
            batcher.submit(ASK, deadline_ms=30).result(5)
        assert 0.025 < time.perf_counter() - begin < 2
        gate.open.set()
        assert asleep.result(5).response["answer"] == "Ada Lovelace"
    assert sum(map(len, gate.batches)) == 1  # the late one was not computed


def test_an_answer_that_comes_after_its_deadline_is_none(reader, monkeypatch):
    monkeypatch.setattr(Batcher, "_watch", lambda self: None)  # as if that thread were slower than the device
    with Batcher(reader) as batcher:
        with pytest.raises(DeadlinePassed, match="by its deadline"):
            batcher.submit(ASK, deadline_ms=0.001).result(5)
        assert (batcher.stats()["expired"], batcher.stats()["answered"]) == (1, 0)


def test_the_queue_is_bounded_and_a_cancelled_request_makes_room_at_once(reader):
    gate = Gate(reader.session)
    with Batcher(reader, token_budget=160, queue_limit_tokens=60) as batcher:
        futures = [batcher.submit_packed(ids(20)) for _ in range(3)]
        with pytest.raises(QueueFull):
            batcher.submit_packed(ids(20))
        assert gate.entered.wait(5)
        assert futures[2].cancel()
        futures[2] = batcher.submit_packed(ids(20))
        gate.open.set()
        wait(futures, 10)
        assert batcher.stats()["refused"] == 1
        assert len(batcher.submit_packed(ids(30, 30, 30)).result(5)[0]) == 90  # over the limit, but alone


def test_drain_answers_what_is_there_and_close_fails_the_rest(reader):
    gate = Gate(reader.session)
    batcher = Batcher(reader, token_budget=160)
    first = batcher.submit(ASK)
    assert gate.entered.wait(5)
    second = batcher.submit(ASK)
    assert not batcher.drain(0.02)
    assert isinstance(batcher.submit(ASK).exception(5), Draining)
    assert batcher.stats()["requests"] == 2  # what was refused is not kept
    closing = threading.Thread(target=batcher.close)
    closing.start()
    assert isinstance(second.exception(5), Draining)
    assert isinstance(first.exception(5), Draining)
    gate.open.set()
    closing.join(5)
    assert not [thread for thread in batcher._threads if thread.is_alive()]


def test_close_does_not_wait_for_a_device_that_hangs(reader):
    gate = Gate(reader.session)
    batcher = Batcher(reader, token_budget=160)
    asked = batcher.submit(ASK)
    assert gate.entered.wait(5)
    begin = time.perf_counter()
    assert not batcher.close(0.05)
    assert time.perf_counter() - begin < 2
    assert isinstance(asked.exception(1), Draining)
    gate.open.set()
    assert batcher.close(5)


def test_a_long_text_shares_the_device_and_is_not_starved(reader):
    gate = Gate(reader.session)
    with Batcher(reader, token_budget=32) as batcher:
        done: list[str] = []
        batcher.submit_packed(ids(3))
        assert gate.entered.wait(5)
        batcher._lane.seconds_a_token = 1e-3  # a slow device: of 40 x 24 tokens each quarter lasts most of a second
        book = batcher.submit({"question": "when ?", "context": "the notes . " * 200})
        book.add_done_callback(lambda _: done.append("book"))
        windows = waiting(batcher, 30)
        for _ in range(20):
            batcher.submit(ASK).add_done_callback(lambda _: done.append("short"))
        waiting(batcher, windows + 20)
        gate.open.set()
        assert book.result(10).response["windows"] > 30
        batcher.drain(5)
    assert done.count("short") == 20
    assert done.index("book") >= 18  # the short ones, though they came later, were faster; two threads end them


def test_an_urgent_request_goes_first_but_not_for_ever(reader):
    gate = Gate(reader.session)
    with Batcher(reader, token_budget=1) as batcher:
        batcher.submit_packed(ids(2))
        assert gate.entered.wait(5)
        futures = [batcher.submit_packed(ids(9), priority=1), batcher.submit_packed(ids(8))]
        time.sleep(AGEING_S + 0.05)
        futures.append(batcher.submit_packed(ids(7)))
        gate.open.set()
        wait(futures, 10)
    assert [batch[0] for batch in gate.batches] == [2, 8, 9, 7]
    with pytest.raises(UserError, match="priority"):
        batcher.submit_packed(ids(3), priority=-100).result(1)


def test_numbers_out_of_range_are_refused(reader):
    with pytest.raises(UsageError, match="tokenisers is 0"):
        Batcher(reader, tokenisers=0)
    with pytest.raises(UserError, match="token budget"):
        Batcher(reader, token_budget="some")
