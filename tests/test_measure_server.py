"""The measurement of a server within a p99: rates by tokens, by count and over HTTP, and what one client pays."""

import csv
import json
from contextlib import contextmanager

import pytest
import serve_kit

from configs import options
from configs.errors import UserError
from scripts import measure_server, measure_server_http, measure_server_rows
from serve.batcher import Batcher
from serve.load_clients import Job, Sent
from serve.reader import Reader


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("measure")
    profile = {"batch": [1, 4, 32], "length": [4, 16, 32]}
    serve_kit.write(root / "packed", profile={"batch": [1, 4, 32], "tokens": [1, 64, 1024]})
    serve_kit.write(root / "padded", "padded", profile=profile)
    answers = [{"text": "Ada Lovelace", "answer_start": 34}]
    contexts = [serve_kit.PASSAGE, "the notes " * 20 + serve_kit.PASSAGE]
    paragraphs = [
        {"context": context, "qas": [{"id": str(place), "question": serve_kit.QUESTION, "answers": answers}]}
        for place, context in enumerate(contexts)
    ]  # fmt: skip
    paragraphs[1]["qas"][0]["answers"] = [{"text": "Ada Lovelace", "answer_start": 234}]
    (root / "data.json").write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    return root


def config(root, *argv: object) -> measure_server.MeasureConfig:
    words = ["--engine", root / "packed", "--data", root / "data.json", "--out", root / "server.csv",
             "--runtime", "onnxruntime", "--p99-ms", 200, "--seconds", 0.1, *argv]  # fmt: skip
    return options.parse(measure_server.MeasureConfig, list(map(str, words)), "measure_server")


def test_rates_of_every_kind_are_found_and_one_client_is_taken_apart(root, monkeypatch):
    monkeypatch.setattr(measure_server, "TRIES", 1)
    monkeypatch.setattr(measure_server_http, "TRIES", 1)
    told = measure_server.main(config(root, "--padded", root / "padded", "--counts", 4, "--delays", 0,
                                      "--processes", 1))["metrics"]  # fmt: skip
    kinds = [(row["batches"], row["text"], row["over_http"]) for row in told["best"]]
    assert kinds == [("tokens", "no", False), ("tokens", "yes", True), ("tokens", "yes", False),
                     ("count 4", "no", False), ("count 4", "yes", False)]  # fmt: skip
    assert all(row["rate"] > 10 for row in told["best"])
    one = told["one_client"]
    assert one["http, from /metrics"] > one["total, from /metrics"] > one["compute, from /metrics"] > 0
    assert one["queue, from /metrics"] > 0
    adds = one["http, from /metrics"] - one["Reader.answer"]
    assert one["server adds to Reader.answer"] == pytest.approx(adds)
    rows = list(csv.DictReader((root / "server.csv").open()))
    assert len(rows) > len(kinds)
    assert {row["layout"] for row in rows} == {"packed", "padded"}
    stages = {row["what"]: row for row in csv.DictReader((root / "server_one_client.csv").open())}
    assert float(stages["queue, from /metrics"]["mean_ms"]) == pytest.approx(one["queue, from /metrics"], abs=1e-3)
    assert stages["queue, from /metrics"]["must_be_below_ms"] == "0.2"


def test_what_fails_is_named_and_what_was_measured_stays(root, monkeypatch):
    monkeypatch.setattr(measure_server, "TRIES", 0)
    monkeypatch.setattr(measure_server_http, "server", lambda config: 1 / 0)
    with pytest.raises(UserError, match=r"1 failed: one client \(ZeroDivisionError: .*; the rest is in"):
        measure_server.main(config(root, "--no-text"))
    rows = list(csv.DictReader((root / "server.csv").open()))
    assert {(row["batches"], row["text"]) for row in rows} == {("tokens", "no")}


def test_batches_that_do_not_bear_the_best_rate_so_far_are_looked_at_no_further(root):
    with Reader(root / "packed") as reader:
        windows: list = [*measure_server.packed(reader, [(serve_kit.QUESTION, serve_kit.PASSAGE)])]
        limits = config(root, "--p99-ms", 1e-6)
        (row,) = measure_server.searched("count 4", 0.0, lambda: Batcher(reader), windows, limits, 20.0)
    assert (row["rate"], row["borne"]) == (pytest.approx(20.4), False)


def test_a_rate_that_has_missed_the_p99_is_ended(root):
    with Reader(root / "packed") as reader:
        windows: list = [*measure_server.packed(reader, [(serve_kit.QUESTION, serve_kit.PASSAGE)])]
        with Batcher(reader) as batcher:
            sent = measure_server.offered(batcher, windows, Job("", {}, [], None, 200.0, 2.0, 1), 1e-6)
            assert 5 < len(sent) < 250
            assert max(one.at for one in sent) < 1.2
            whole = measure_server.offered(batcher, windows, Job("", {}, [], None, 200.0, 0.3, 1), 1e4)
    assert max(one.at for one in whole) > 0.25


def test_a_device_that_stalls_is_seen_by_those_who_were_due_meanwhile(root):
    with Reader(root / "packed") as reader:
        windows = measure_server.packed(reader, [(serve_kit.QUESTION, serve_kit.PASSAGE)])
        real, stalled = reader.session.submit, []

        def submit(batch):
            if len(stalled) < 1:
                stalled.append(measure_server.time.sleep(0.3))
            return real(batch)

        with Batcher(reader, token_budget=160) as batcher:
            reader.session.submit = submit  # type: ignore[method-assign]
            sent = measure_server.offered(batcher, [*windows], Job("", {}, [], None, 100.0, 0.6, 1))
    assert sum(one.latency_ms > 100 for one in sent) > 10
    assert {one.status for one in sent} == {200}


def test_engines_of_different_models_are_not_compared(root, tmp_path):
    with pytest.raises(UserError, match="no padded engine of the same model"):
        measure_server.main(config(root, "--padded", root / "packed", "--no-http", "--no-text"))


def test_nothing_is_begun_when_the_time_is_over_and_what_is_left_out_is_told(root, monkeypatch, capsys):
    monkeypatch.setattr(measure_server, "TRIES", 0)
    told = measure_server.main(config(root, "--padded", root / "padded", "--minutes", 1e-6, "--no-http"))["metrics"]
    assert told["left_out"] == ["tokens, from text", "by count"]
    assert [(row["batches"], row["text"]) for row in told["best"]] == [("tokens", "no")]
    assert "left out after" in capsys.readouterr().out


def test_counts_go_from_large_to_small_and_only_the_best_waits_or_is_asked_in_text(root, monkeypatch):
    looked: list[tuple] = []

    def searched(name, delay, opened, asks, config, beaten=0.0):
        looked.append((name, delay, isinstance(asks[0], tuple), beaten))
        rate = {"count 16": 300.0, "count 8": 400.0}.get(name, 100.0)
        row = dict.fromkeys(measure_server_rows.load.FIGURES) | {"batches": name, "delay_ms": delay, "over_http": False}
        return [row | {"rate": rate, "borne": rate > beaten, "p99_ms": 1.0}]

    monkeypatch.setattr(measure_server, "searched", searched)
    measure_server.main(config(root, "--padded", root / "padded", "--no-http", "--counts", 4, 8, 16, "--delays", 0, 2))
    assert looked[2:] == [("count 16", 0.0, False, 0.0), ("count 8", 0.0, False, 300.0), ("count 4", 0.0, False, 400.0),
                          ("count 8", 2.0, False, 400.0), ("count 8", 0.0, True, 0.0)]  # fmt: skip


def test_servers_of_several_processes_are_measured_where_asked_for(root, monkeypatch):
    asked: list[int | None] = []

    @contextmanager
    def server(config, workers=None):
        asked.append(workers)
        yield "http://x"

    def highest(config, url, found):
        return [found(dict.fromkeys(measure_server_rows.load.FIGURES, 0) | {"rate": 9.0, "p99_ms": 1.0})]

    monkeypatch.setattr(measure_server, "TRIES", 0)
    monkeypatch.setattr(measure_server_http, "server", server)
    monkeypatch.setattr(measure_server_http, "highest", highest)
    monkeypatch.setattr(measure_server_http, "one_client", lambda *given: {})
    told = measure_server.main(config(root, "--workers", 2, 4, "--no-text"))["metrics"]
    assert asked == [None, 2, 4]
    assert [row["batches"] for row in told["best"] if row["over_http"]] == ["tokens", "tokens, 2 workers",
                                                                            "tokens, 4 workers"]  # fmt: skip


@pytest.mark.parametrize(("needed", "rate", "tried"), [
    (0.05, 100.0, [0.1]), (0.3, 25.0, [0.1, 0.4]), (9.0, 0.5, [0.1, 0.4, 1.6, 6.4]),
])  # fmt: skip
def test_a_closed_loop_too_short_for_an_answer_is_made_longer(monkeypatch, needed, rate, tried):
    """On a busy machine 0.1 s went by without one, and the search began, and ended, at half a request a second."""
    seen = []

    def run(job, processes):
        seen.append(job.seconds)
        return [Sent(job.seconds / 4, 1.0, 200)] * 15 if job.seconds > needed else []

    monkeypatch.setattr(measure_server_http, "run", run)
    assert measure_server_http.begin_at(Job("http://here", {}, [], 32, None, 0.1, 0)) == rate
    assert seen == pytest.approx(tried)
