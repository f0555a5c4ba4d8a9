"""Whatever a client sends by the server's own OpenAPI description, and against it, ends in words and never in a 500."""

import json

import hypothesis
import pytest
import schemathesis
import server_kit
from hypothesis import strategies as st
from server_kit import Served

KNOWN = {200, 400, 401, 403, 404, 405, 408, 409, 413, 415, 429, 503, 504}
INFER = "/v2/models/{model}/infer"
PATHS = dict.fromkeys(server_kit.TASKS, 60) | {"/answer": 150, INFER: 150}  # requests that are made up for each
QUIET = {
    "deadline": None, "database": None, "derandomize": True,
    "suppress_health_check": list(hypothesis.HealthCheck),
}  # fmt: skip


@pytest.fixture(scope="module")
def all_served(tmp_path_factory):
    """Route -> a server with an engine of its head; the Open Inference Protocol's is asked of the span's."""
    argv = ("--max-bytes", 20_000, "--deadline-ms", 2000)
    with server_kit.heads_served(tmp_path_factory.mktemp("fuzz"), *argv) as served:
        yield lambda path: served("/answer" if path == INFER else path)


@pytest.fixture
def served(all_served):
    return all_served("/answer")


def fuzzed(served: Served, path: str, examples: int) -> list[int]:
    """The statuses that `examples` made-up requests got; each is one that the server means to give."""
    schema = schemathesis.openapi.from_dict(served.ask("GET", "/openapi.json").json())
    operation = schema[path]["POST"]
    statuses: list[int] = []

    def one(case: schemathesis.Case) -> None:
        filled = case.path.replace("{model}", "answer").replace("{version}", "1")
        body = case.body if case.body is not None else b""
        content = body if isinstance(body, bytes) else json.dumps(body, default=repr).encode()
        response = served.ask("POST", filled, content=content, headers=_plain(case.headers))
        assert response.status_code in KNOWN, (response.status_code, content)
        assert "Traceback" not in response.text
        assert response.status_code == 200 or list(response.json()) == ["error"]
        statuses.append(response.status_code)

    strategies = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode))
    settings = hypothesis.settings(max_examples=examples, **QUIET)
    settings(hypothesis.given(case=strategies)(one))()
    return statuses


def _plain(headers) -> dict[str, str]:
    return {
        name: value for name, value in dict(headers or {}).items() if f"{name}{value}".isprintable() and value.isascii()
    }


@pytest.mark.parametrize("path", PATHS)
def test_nothing_made_from_the_openapi_description_gets_a_500(all_served, path):
    statuses = fuzzed(all_served(path), path, PATHS[path])
    assert len(statuses) >= PATHS[path] / 2
    assert 400 in statuses
    assert 200 in statuses or path == INFER


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_nor_does_more_of_it(all_served, path):
    assert fuzzed(all_served(path), path, 3000)


@hypothesis.settings(max_examples=150, **QUIET)
@hypothesis.given(body=st.binary(max_size=300), header=st.sampled_from([None, "0", "5", "999", "-1", "x", "1" * 20]))
def test_bytes_at_random_get_400(served, body, header):
    headers = {"Inference-Header-Content-Length": header} if header else {}
    assert served.ask("POST", "/v2/models/answer/infer", content=body, headers=headers).status_code == 400
    assert served.ask("POST", "/answer", content=body).status_code == 400


@hypothesis.settings(max_examples=100, **QUIET)
@hypothesis.given(question=st.text(max_size=40), context=st.text(max_size=400))
def test_any_text_gets_an_answer_out_of_itself_or_a_reason(served, question, context):
    response = served.ask("POST", "/answer", content=json.dumps({"question": question, "context": context}))
    told = response.json()
    if response.status_code == 200:
        assert context[told["start"] : told["end"]] == told["answer"]
    else:
        assert response.status_code == 400
        assert told["error"]
