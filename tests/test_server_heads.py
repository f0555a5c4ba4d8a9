"""The routes of every head: each is made of what the head says of itself, and one batcher serves them all."""

import json
import re
from concurrent.futures import wait

import numpy as np
import pytest
import serve_kit
import server_kit
from serve_kit import near
from server_kit import ASK, TASKS

import heads
from configs.errors import UserError
from serve.answerer import Answerer
from serve.batcher import Batcher, DeadlinePassed, Draining, QueueFull
from serve.packed import ROWS

LONG = "ada it was by lovelace . " * 30  # several windows where texts are not cut
ASKED = {
    "/answer": [ASK, ASK | {"context": LONG}],
    "/classify": [{"text": "it was ada"}, {"text": "lovelace wrote", "second": "ada wrote ada"}],
    "/regress": [{"text": "it was ada"}, {"text": LONG, "second": LONG}],
    "/tag": [{"text": "😀 it was by Ada Lovelace ."}, {"words": ["ada", "Lovelace"]}, {"text": LONG}],
    "/embed": [{"text": "it was ada"}, {"text": "it was ada", "second": "it was lovelace"}],
    "/encode": [{"text": "it was ada"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def all_served(tmp_path_factory):
    argv = ("--max-bytes", 4000, "--max-characters", 2000)
    with server_kit.heads_served(tmp_path_factory.mktemp("heads"), *argv) as served:
        yield served


def test_every_head_has_a_route_and_a_task_here():
    assert set(heads.by_path()) == set(TASKS) == set(ASKED)


@pytest.mark.parametrize("path", TASKS)
def test_a_route_says_what_the_engine_says(all_served, path):
    served = all_served(path)
    direct = served.engine().reader.respond(ASKED[path])
    for asked, wanted in zip(ASKED[path], direct, strict=True):
        told = served.ask("POST", path, json=asked).json()
        assert told.pop("model") == path[1:]
        assert told.pop("timing")["total_ms"] > 0
        assert near(told, json.loads(json.dumps(wanted)))
        gives = heads.by_path()[path].gives
        assert {name for name, kind in gives.items() if not kind.endswith("?")} <= told.keys() <= gives.keys()


def test_the_responses_are_those_of_the_model(all_served):
    told = all_served("/classify").ask("POST", "/classify", json={"text": "it was ada"}).json()
    assert (told["label"], sum(told["probabilities"].values())) == ("first", pytest.approx(1))
    told = all_served("/tag").ask("POST", "/tag", json={"text": "😀 it was by Ada Lovelace ."}).json()
    surest = max(told["entities"], key=lambda entity: entity["score"])
    assert [surest[name] for name in ("kind", "text", "start", "end")] == ["NAME", "Lovelace", 16, 24]
    told = all_served("/embed").ask("POST", "/embed", json=ASKED["/embed"][1]).json()
    assert told["similarity"] == pytest.approx(np.dot(told["embedding"], told["second_embedding"]))


@pytest.mark.parametrize("path", TASKS)
def test_another_heads_route_says_where_to_ask(all_served, path):
    other = next(route for route in TASKS if route != path)
    response = all_served(path).ask("POST", other, json=ASKED[other][0])
    assert response.status_code == 400
    assert f"ask it by POST {path}" in response.json()["error"]


@pytest.mark.parametrize(("path", "body", "seen"), [
    ("/classify", {}, "text: Field required"), ("/classify", {"text": " "}, "text 0 is empty"),
    ("/classify", {"text": "a", "second": 3}, "second: .*string"), ("/classify", {"text": "a", "tekst": "b"}, "Extra"),
    ("/classify", {"text": "a", "runners_up": 1}, "Extra"), ("/answer", ASK | {"runners_up": 21}, "less than or equal"),
    ("/tag", {}, "text 0 is missing"), ("/tag", {"words": []}, "words: .*at least 1"),
    ("/tag", {"words": ["a b"]}, "without a blank"), ("/tag", {"words": ["a", 3]}, "words.1: .*string"),
    ("/embed", {"text": "a", "second": ""}, "second: .*at least 1"),
    ("/tag", {"words": ["x" * 500] * 5}, "words have 2,500 characters, the limit is 2,000"),
    ("/encode", {"text": "a", "second": "b"}, "Extra"), ("/regress", {"text": None}, "text: .*string"),
])  # fmt: skip
def test_a_request_that_does_not_fit_its_head_gets_400_and_the_reason(all_served, path, body, seen):
    response = all_served(path).ask("POST", path, json=body)
    assert response.status_code == 400
    assert re.search(seen, response.json()["error"])


@pytest.mark.parametrize("path", TASKS)
@pytest.mark.parametrize(("error", "status"), [(QueueFull("full"), 429), (Draining("going"), 503),
                                               (DeadlinePassed("late"), 504)])  # fmt: skip
def test_what_the_batcher_says_has_a_status_on_every_route(all_served, monkeypatch, path, error, status):
    def submit(*_, **__):
        raise error

    served = all_served(path)
    monkeypatch.setattr(served.engine().batcher, "submit", submit)
    assert served.ask("POST", path, json=ASKED[path][0]).status_code == status
    assert served.ask("POST", path, json=ASKED[path][0] | {"model": "other"}).status_code == 404
    assert served.ask("POST", path, content=b"x" * 4001).status_code == 413


@pytest.mark.parametrize("path", TASKS)
def test_ready_is_asked_in_the_heads_own_way_and_counted(all_served, path):
    served = all_served(path)
    served.engine().proven = 0.0
    assert served.ask("GET", "/v2/health/ready").status_code == 200
    served.ask("POST", path, json=ASKED[path][0])
    answered = f'retort_batcher_answered{{model="{path[1:]}"}}'
    lines = served.ask("GET", "/metrics").text.splitlines()
    assert next(float(line.split()[-1]) for line in lines if line.startswith(answered)) >= 2


@pytest.mark.parametrize("path", TASKS)
def test_the_open_inference_protocol_describes_and_gives_the_heads_own_tensors(all_served, path):
    served, batch = all_served(path), serve_kit.batch(5, 9, 3)
    about = served.ask("GET", f"/v2/models/{path[1:]}").json()
    assert [one["name"] for one in about["inputs"]] == [*ROWS, "cu_seqlens"]
    inputs = [one | {"shape": list(array.shape), "data": array.tolist()} for one in about["inputs"]
              for array in [getattr(batch, one["name"])]]  # fmt: skip
    told = served.ask("POST", f"/v2/models/{path[1:]}/infer", json={"inputs": inputs}).json()["outputs"]
    direct = served.engine().reader.session.run(batch)
    for stated, output, wanted in zip(about["outputs"], told, direct, strict=True):
        assert (stated["name"], stated["datatype"]) == (output["name"], output["datatype"])
        assert [-1, *output["shape"][1:]] == stated["shape"]
        np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), wanted, atol=1e-5)
    wrong = {"inputs": inputs, "outputs": [{"name": "nothing"}]}
    assert about["outputs"][0]["name"] in served.ask("POST", f"/v2/models/{path[1:]}/infer", json=wrong).json()["error"]


def test_the_description_of_the_server_has_every_heads_fields(all_served):
    served = all_served("/tag")
    paths = served.ask("GET", "/openapi.json").json()["paths"]
    for path, head in heads.by_path().items():
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(head.fields) <= set(schema["properties"])
        assert schema.get("required", []) == [name for name, field in head.fields.items() if field.needed]
        given = paths[path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
        assert set(given) == {*head.gives, "model", "timing"}
    about = served.ask("GET", "/engine").json()
    assert (about["model"], about["route"], about["task"]) == ("tag", "/tag", "conll")
    assert [field["name"] for field in about["fields"]] == ["text", "words"]
    assert served.ask("GET", "/engine?model=other").status_code == 404


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("path", TASKS)
def test_requests_of_a_head_share_batches_and_are_answered_as_alone(tmp_path, path, layout):
    """Long and short, of one text and of two, of one window and of many, all at once."""
    with Answerer(serve_kit.write(tmp_path / "engine", layout, **TASKS[path]), "onnxruntime") as answerer:
        asked = ASKED[path] * 6
        direct, reports = answerer.respond(asked), []
        with Batcher(answerer, token_budget=120, max_delay_ms=50) as batcher:
            batcher.on_batch(reports.append)
            futures = [batcher.submit(fields) for fields in asked]
            wait(futures, 20)
            with pytest.raises(UserError, match=r"runners_up is 21; an engine for .* has 0 to (20|0) of them"):
                batcher.submit(asked[0], runners_up=21).result(5)
        assert all(near(future.result().response, wanted) for future, wanted in zip(futures, direct, strict=True))
        assert max(report.requests for report in reports) > 1
