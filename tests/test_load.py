"""The load generator: it sends what it says, counts from when a request was due, and finds the rate a server bears."""

import asyncio
import csv
import json
import time
from dataclasses import replace

import pytest
import serve_kit
from server_kit import TOKEN
from test_server_process import process

from configs import options
from configs.errors import UsageError, UserError
from serve import load, load_clients, load_search
from serve.load_clients import Job, Sent

JOB = Job("http://x", {}, [b""], None, 10.0, 8.0, 1)


def config(*argv: object) -> load.LoadConfig:
    return options.parse(load.LoadConfig, [str(word) for word in argv], "serve.load")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    (folder / "token").write_text(TOKEN)
    with process(serve_kit.write(folder / "tiny"), "--token-file", folder / "token") as (_, port):
        yield f"http://127.0.0.1:{port}", folder / "token"


@pytest.fixture
def questions(tmp_path):
    answers = [{"text": "Ada Lovelace", "answer_start": 34}]
    qas = [{"id": str(place), "question": serve_kit.QUESTION, "answers": answers} for place in range(5)]
    paragraph = {"context": serve_kit.PASSAGE, "qas": qas}
    data = {"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph]}]}
    (tmp_path / "questions.json").write_text(json.dumps(data))
    return tmp_path / "questions.json"


def test_both_loops_measure_a_server_and_write_a_table_and_a_picture(url, questions, tmp_path):
    told = load.main(config(
        "--url", url[0], "--token-file", url[1], "--data", questions, "--clients", 1, 4, "--rates", "40",
        "--seconds", 1, "--processes", 2, "--out", tmp_path / "load.csv", "--plot", tmp_path / "load.svg",
    ))  # fmt: skip
    rows = told["metrics"]["rows"]
    assert [(row["loop"], row["clients"], row["rate"]) for row in rows] == [
        ("closed", 1, None), ("closed", 4, None), ("open", None, 40.0)
    ]  # fmt: skip
    assert all(row["p99_ms"] >= row["p50_ms"] > 0 and row["failed"] == row["lost"] == 0 for row in rows)
    assert 10 < rows[2]["sent"] < 60  # about 30: 40 a second for three quarters of a second
    written = list(csv.DictReader((tmp_path / "load.csv").open()))
    assert [row["model"] for row in written] == ["tiny"] * 3
    assert "<svg" in (tmp_path / "load.svg").read_text()[:1000]


def test_a_deadline_that_nobody_can_keep_is_counted_as_late(url, questions):
    told = load.main(config("--url", url[0], "--token-file", url[1], "--data", questions, "--clients", 2,
                            "--seconds", 0.5, "--deadline-ms", 10_000))  # fmt: skip
    assert told["metrics"]["rows"][0]["late"] == 0
    with pytest.raises(UserError, match="504"):
        load.main(config("--url", url[0], "--token-file", url[1], "--data", questions, "--clients", 2,
                         "--deadline-ms", 0.001))  # fmt: skip


def test_who_is_no_server_of_ours_is_said_in_words(url, questions, tmp_path):
    with pytest.raises(UserError, match="is it running there"):
        load.main(config("--url", "http://127.0.0.1:9", "--data", questions, "--clients", 1))
    with pytest.raises(UserError, match="answered 401"):
        load.main(config("--url", url[0], "--data", questions, "--clients", 1))


def test_a_row_leaves_out_the_beginning_and_counts_each_end():
    sent = [Sent(1.0, 5000.0, 200), Sent(3.0, 10.0, 200), Sent(4.0, 30.0, 200), Sent(9.0, 1.0, 200)]
    sent += [Sent(5.0, 1.0, 429), Sent(6.0, 9.0, 504), Sent(7.0, 9.0, 0), Sent(7.5, 9.0, 500)]
    row = load_search.summary(sent, JOB)
    assert (row["sent"], row["answers_per_s"], row["p50_ms"]) == (6, round(2 / 6, 2), 20.0)
    assert [row[name] for name in ("refused", "late", "failed", "lost")] == [1, 1, 1, 1]


@pytest.mark.parametrize("truth", [3.0, 40.0, 64.0, 5000.0])
def test_the_highest_rate_is_found_within_a_hundredth_from_above_and_below(truth):
    best, rows = load_search.highest(lambda rate: {"rate": rate}, 50.0, lambda row: row["rate"] <= truth)
    assert truth * 0.97 <= best <= truth
    assert len(rows) < 16


def test_a_server_that_bears_nothing_bears_nothing():
    best, rows = load_search.highest(lambda rate: {"rate": rate}, 50.0, lambda row: False)
    assert best == 0
    assert len(rows) < 12


def test_a_rate_is_borne_with_its_p99_and_hardly_a_request_lost():
    row = {"p99_ms": 9.0, "sent": 1000, "refused": 0, "late": 1, "failed": 0, "lost": 0}
    assert load_search.bears(row, 10.0)
    assert not load_search.bears(row, 8.0)
    assert not load_search.bears(row | {"lost": 1}, 10.0)
    assert not load_search.bears(row | {"p99_ms": None}, 10.0)


def sending(late: list[int], jobs: list):
    """A `send` of 100 requests a second of which so many are late, the first time and the next ones."""

    def send(job: Job) -> list[Sent]:
        jobs.append(job)
        count = round((job.rate or 0) * job.seconds)
        number = late[len(jobs) - 1]
        return [Sent(job.seconds * (place + 0.5) / count, 50.0 if place >= count - number else 1.0, 200)
                for place in range(count)]  # fmt: skip

    return send


@pytest.mark.parametrize(("late", "runs", "borne"), [
    ([4], 1, True), ([12, 2], 2, True), ([12, 11], 2, False), ([40], 1, False)
], ids=["kept", "missed by chance", "missed twice", "missed by far"])  # fmt: skip
def test_a_rate_that_may_have_missed_by_chance_is_tried_again_and_judged_by_both(late, runs, borne):
    jobs: list[Job] = []
    job = replace(JOB, rate=100.0, seconds=10.0)
    row = load_search.measured(sending(late, jobs), job, 10.0, 10.0)
    assert (len(jobs), load_search.bears(row, 10.0)) == (runs, borne)
    assert row["sent"] == 750 * runs
    assert row["answers_per_s"] == pytest.approx(100, abs=1)
    assert len({one.seed for one in jobs}) == runs


@pytest.mark.parametrize(("rate", "seconds"), [(1000.0, 2.0), (200.0, 1000 / 150), (20.0, 8.0)])
def test_a_low_rate_is_tried_until_a_thousand_requests_count_or_the_limit_is_there(rate, seconds):
    jobs: list[Job] = []
    load_search.measured(lambda job: jobs.append(job) or [], replace(JOB, rate=rate, seconds=2.0), 10.0, 8.0)
    assert jobs[0].seconds == pytest.approx(seconds)


def test_what_was_given_up_is_judged_by_what_was_sent_and_not_tried_again():
    jobs: list[Job] = []

    def send(job: Job) -> list[Sent]:
        jobs.append(job)
        return [Sent(place / 100, 50.0, 200) for place in range(100)]

    row = load_search.measured(send, replace(JOB, rate=100.0, seconds=10.0), 10.0, 10.0)
    assert (len(jobs), row["seconds"], row["sent"]) == (1, 0.99, 74)


def test_a_request_goes_when_it_is_due_and_not_a_millisecond_later():
    async def lateness() -> list[float]:
        found = []
        for _ in range(50):
            begin = time.perf_counter()
            await asyncio.sleep(0.0003)
            found.append(time.perf_counter() - begin)
        return sorted(found)

    assert load_clients._run(lateness())[20] < 0.0009


@pytest.mark.parametrize("argv", [
    ["--clients", "1", "--url", "localhost:80"], ["--url", "http://x"], ["--url", "http://x", "--clients", "0"],
    ["--url", "http://x", "--clients", "1", "--p99-ms", "10"], ["--url", "http://x", "--rates", "1", "--plot", "a.pdf"],
], ids=" ".join)  # fmt: skip
def test_flags_that_make_no_load_are_refused(argv):
    with pytest.raises(UsageError):
        config(*argv)
