"""The measurement of a server within a p99: rates by tokens, by count and over HTTP, and what one client pays."""

import csv
import json

import pytest
import serve_kit

from configs import options
from configs.errors import UserError
from scripts import measure_server
from serve.batcher import Batcher
from serve.load_clients import Job
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
    monkeypatch.setattr(measure_server.load, "TRIES", 1)
    told = measure_server.main(config(root, "--padded", root / "padded", "--counts", 4, "--delays", 0,
                                      "--processes", 1))["metrics"]  # fmt: skip
    kinds = [(row["batches"], row["text"], row["over_http"]) for row in told["best"]]
    assert kinds == [("tokens", "no", False), ("tokens", "yes", False), ("count 4", "no", False),
                     ("count 4", "yes", False), ("tokens", "yes", True)]  # fmt: skip
    assert all(row["rate"] > 10 for row in told["best"])
    one = told["one_client"]
    assert one["http, from /metrics"] > one["total, from /metrics"] > one["compute, from /metrics"] > 0
    assert one["queue, from /metrics"] > 0
    adds = one["http, from /metrics"] - one["Reader.answer"]
    assert one["server adds to Reader.answer"] == pytest.approx(adds)
    rows = list(csv.DictReader((root / "server.csv").open()))
    assert len(rows) > len(kinds)
    assert {row["layout"] for row in rows} == {"packed", "padded"}


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
