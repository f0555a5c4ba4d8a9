"""The server's routes: right answers, one status and sentence for everything else, and nothing for who may not ask."""

import asyncio
import json
import re
import time

import httpx
import numpy as np
import pytest
import serve_kit
import server_kit
from server_kit import ASK, HEADERS, Held, Served, until

from configs.errors import UsageError, UserError
from serve import protocol
from serve.batcher import DeadlinePassed, Draining, QueueFull


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return serve_kit.write(tmp_path_factory.mktemp("engines") / "tiny")


@pytest.fixture(scope="module")
def served(folder):
    served = Served(server_kit.settings(folder, "--max-bytes", 4000, "--max-characters", 2000))
    yield served
    served.close()


@pytest.fixture(scope="module")
def closed(folder, tmp_path_factory):
    """The same behind a secret."""
    served = Served(server_kit.settings(folder, *server_kit.with_token(tmp_path_factory.mktemp("secret"))))
    yield served
    served.close()


@pytest.fixture
def held(served, monkeypatch):
    engine = served.engine()
    held = Held(engine.batcher)
    monkeypatch.setattr(engine, "batcher", held)
    return held


def test_an_answer_comes_with_its_place_score_and_stages(served):
    told = served.ask("POST", "/answer", json=ASK).json()
    assert (told["answer"], told["start"], told["end"], told["model"]) == ("Ada Lovelace", 34, 46, "tiny")
    assert told["score"] > 9 > told["no_answer_score"]
    assert told["timing"]["total_ms"] > told["timing"]["compute_ms"] > 0
    assert told["timing"]["batch_tokens"] > 10


def test_characters_are_those_of_the_passage_whatever_they_take_in_bytes(served):
    passage = "😀 ё " + serve_kit.PASSAGE
    told = served.ask("POST", "/answer", json=ASK | {"context": passage}).json()
    assert passage[told["start"] : told["end"]] == told["answer"] == "Ada Lovelace"


@pytest.mark.parametrize(("body", "seen"), [
    (b"", "EOF"), (b"{", "EOF"), (b"[]", "object"), (b'{"question": "\xff", "context": "x"}', "unicode"),
    (b'{"question": "\\ud800", "context": "x"}', "hex escape"), (b"[" * 3000, "recursion"),
    (b'{"question": "who"}', "context: Field required"), (b'{"question": 3, "context": "x"}', "question: .*string"),
    (b'{"question": "", "context": "x"}', "question: .*at least 1"),
    (b'{"question": " ", "context": "x"}', "question 0 is empty"),
    (b'{"question": "who", "context": "\\t"}', "context 0 is empty"),
    (b'{"question": "who", "context": "x", "dedline_ms": 3}', "dedline_ms: Extra inputs"),
    (b'{"question": "who", "context": "x", "deadline_ms": NaN}', "finite|number"),
    (b'{"question": "who", "context": "x", "deadline_ms": -1}', "greater than 0"),
    (b'{"question": "who", "context": "x", "priority": 1e999}', "priority"),
    (b'{"question": "who", "context": "x", "priority": ' + b"9" * 1000 + b"}", "priority"),
    (b'{"question": "who", "context": "' + b"x" * 1998 + b'"}', "2,001 characters, the limit is 2,000"),
])  # fmt: skip
def test_a_body_that_is_no_question_gets_400_and_the_reason(served, body, seen):
    response = served.ask("POST", "/answer", content=body)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    assert re.search(f"(?i){seen}", response.json()["error"])


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(served):
    taken = []

    async def chunks():
        for _ in range(100):
            taken.append(1)
            yield b"x" * 1000

    response = served.ask("POST", "/answer", content=chunks())  # no Content-Length
    assert response.status_code == 413
    assert len(taken) < 8
    assert served.ask("POST", "/answer", content=b"x" * 4001).status_code == 413
    assert served.ask("POST", "/v2/models/tiny/infer", content=b"x" * 4001).status_code == 413
    assert served.ask("POST", "/answer", content=b"x" * 4000).status_code == 400
    assert served.ask("POST", "/answer", headers={"Content-Encoding": "gzip"}, json=ASK).status_code == 415


@pytest.mark.parametrize(("error", "status"), [
    (QueueFull("full"), 429), (Draining("going"), 503), (DeadlinePassed("late"), 504), (UserError("bad"), 400),
])  # fmt: skip
def test_what_the_batcher_says_has_a_status(served, monkeypatch, error, status):
    def submit(*_, **__):
        raise error

    monkeypatch.setattr(served.engine().batcher, "submit", submit)
    response = served.ask("POST", "/answer", json=ASK)
    assert (response.status_code, response.json()) == (status, {"error": str(error)})
    assert ("retry-after" in response.headers) == (status in (429, 503))


def test_a_fault_of_ours_tells_the_client_nothing_and_the_log_all(served, monkeypatch, capsys):
    def submit(*_, **__):
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(served.engine().batcher, "submit", submit)
    response = served.ask("POST", "/answer", json=ASK, headers={"X-Request-Id": "mine-7"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (line["id"], line["status"]) == ("mine-7", 500)
    assert "secret of the inside" in line["trace"]


def test_a_deadline_passes_for_real(served, monkeypatch):
    engine = served.engine()
    real = engine.reader.session._compute
    slow = lambda batch: (time.sleep(0.2), real(batch))[1]  # noqa: E731
    monkeypatch.setattr(engine.reader.session, "_compute", slow)
    assert served.ask("POST", "/answer", json=ASK | {"deadline_ms": 20}).status_code == 504


def test_a_client_that_leaves_takes_its_request_out_of_the_queue(served, held):
    async def leaves(client: httpx.AsyncClient) -> None:
        messages = [{"type": "http.request", "body": json.dumps(ASK).encode()}]
        gone = asyncio.Event()

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/answer", "headers": [], "query_string": b"",
                 "http_version": "1.1", "scheme": "http", "server": ("test", 80), "client": ("test", 1),
                 "root_path": "", "raw_path": b"/answer"}  # fmt: skip
        task = asyncio.create_task(served.app(scope, receive, send))
        await until(lambda: held.futures)
        assert not held.futures[0].cancelled()
        gone.set()
        await task
        assert held.futures[0].cancelled()
        assert sent == []

    served.run(leaves)
    assert served.engine().users == 0


@pytest.mark.parametrize(("given", "kept"), [("a-B.c:9_1", True), ("x" * 65, False), ("a b", False), ('"\\x', False)])
def test_a_sane_request_id_is_kept_and_any_other_replaced(served, capsys, given, kept):
    response = served.ask("GET", "/v2/health/live", headers={"X-Request-Id": given})
    name = response.headers["x-request-id"]
    assert (name == given) == kept
    assert len(name) == len(given) if kept else len(name) == 32
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["id"] == name


def test_a_log_line_has_stages_and_no_text(served, capsys):
    served.ask("POST", "/answer", json=ASK, headers={"Authorization": "Bearer hidden"})
    text = capsys.readouterr().err
    line = json.loads(text.splitlines()[-1])
    assert (line["event"], line["path"], line["status"], line["model"]) == ("request", "/answer", 200, "tiny")
    assert line["ms"] >= line["total_ms"] > 0
    assert not any(word in text for word in ("Lovelace", "wrote", "hidden"))


# The secret.


@pytest.mark.parametrize("path", ["/answer", "/metrics", "/v2", "/v2/models/tiny", "/openapi.json", "/v2/nothing"])
@pytest.mark.parametrize("shown", [None, "Bearer wrong-secret-wrong", "Basic " + server_kit.TOKEN, server_kit.TOKEN])
def test_without_the_secret_there_is_nothing_to_see(closed, path, shown):
    response = closed.ask("GET", path, headers={"Authorization": shown} if shown else {})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


def test_with_the_secret_all_is_there_and_health_without_it(closed):
    assert closed.ask("POST", "/answer", json=ASK, headers=HEADERS).status_code == 200
    assert closed.ask("GET", "/metrics", headers=HEADERS).status_code == 200
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert closed.ask("GET", path).status_code == 200


@pytest.mark.parametrize("text", ["", "short", "two words of a secret", "é" * 20])
def test_a_secret_that_is_none_is_refused(folder, tmp_path, text):
    (tmp_path / "token").write_text(text)
    with pytest.raises(UserError, match="--token-file"):
        Served(server_kit.settings(folder, "--token-file", tmp_path / "token"))


@pytest.mark.parametrize("argv", [
    ["--root", "x"], ["--load", "x", "--token-file", "t"], ["--question", "who", "--context", "x"], ["--data", "x"],
    ["--token-budget", "many"], ["--token-budget", "0"], ["--port", "65536"], ["--max-bytes", "1"],
], ids=" ".join)  # fmt: skip
def test_flags_of_the_server_that_make_no_sense_are_refused(argv):
    with pytest.raises(UsageError):
        server_kit.settings(serve_kit.Path("e"), *argv)


# Health and the Open Inference Protocol.


def test_ready_is_an_inference_at_most_one_a_second(served, monkeypatch):
    engine = served.engine()
    counted = []
    real = engine.batcher.submit
    monkeypatch.setattr(engine.batcher, "submit", lambda *a, **k: (counted.append(1), real(*a, **k))[1])
    engine.proven = 0.0
    for _ in range(3):
        assert served.ask("GET", "/v2/health/ready").status_code == 200
    assert len(counted) == 1
    assert served.ask("GET", "/v2/models/tiny/ready").status_code == 200


def test_an_engine_that_fails_is_alive_and_not_ready(served, monkeypatch):
    engine = served.engine()
    monkeypatch.setattr(engine, "proven", 0.0)

    def broken(*_):
        raise RuntimeError("the device fell off")

    monkeypatch.setattr(engine.reader.session, "_compute", broken)
    for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
        response = served.ask("GET", path)
        assert response.status_code == 503
        assert "fell off" not in response.text
    assert served.ask("GET", "/v2/health/live").status_code == 200


def test_tensors_in_logits_out(served):
    batch = serve_kit.batch(5, 9, 3)
    inputs = [
        {"name": name, "datatype": "INT32", "shape": [len(values)], "data": values.tolist()}
        for name in protocol.INPUTS for values in [getattr(batch, name)]
    ]  # fmt: skip
    told = served.ask("POST", "/v2/models/tiny/infer", json={"id": "x", "inputs": inputs}).json()
    for output, wanted in zip(told["outputs"], serve_kit.expected(batch), strict=True):
        np.testing.assert_allclose(output["data"], wanted, atol=1e-5)
    inputs[0]["data"][0] = 60
    response = served.ask("POST", "/v2/models/tiny/infer", json={"inputs": inputs})
    assert response.status_code == 400
    assert "this engine knows 0 to 59" in response.json()["error"]


@pytest.mark.parametrize("path", [
    "/v2/models/other", "/v2/models/other/ready", "/v2/models/tiny/versions/2", "/v2/models/..%2f..%2fetc", "/v3",
])  # fmt: skip
def test_what_is_not_there_gets_404(served, path):
    assert served.ask("GET", path).status_code == 404
    assert served.ask("POST", "/v2/models/other/infer", json={}).status_code == 404
    assert served.ask("POST", "/answer", json=ASK | {"model": "other"}).status_code == 404


def test_metrics_count_every_stage(served):
    def value(name: str) -> float:
        lines = served.ask("GET", "/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name))

    name = 'retort_{}_seconds_count{{model="tiny"}}'
    before = {stage: value(name.format(stage)) for stage in ("queue", "tokenise", "compute", "total", "overhead")}
    served.ask("POST", "/answer", json=ASK)
    assert {stage: value(name.format(stage)) - before[stage] for stage in before} == dict.fromkeys(before, 1.0)
    assert value('retort_batch_tokens_count{model="tiny"}') >= 1
    assert value('retort_batcher_answered{model="tiny"}') >= 1
    refused = 'retort_requests_total{method="POST",path="/answer",status="400"}'
    served.ask("POST", "/answer", content=b"")
    assert value(refused) >= 1
    assert "nothing-here" not in (served.ask("GET", "/nothing-here"), served.ask("GET", "/metrics"))[1].text
