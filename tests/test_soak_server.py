"""The soak of the server: it runs, and notices an answer that is wrong and one of an engine that is not in service."""

import asyncio
import csv
import random

import pytest
import serve_kit

from configs import options
from configs.errors import UserError
from scripts import soak_server
from scripts.soak_server import Run, SoakConfig


def config(root, *argv: object) -> SoakConfig:
    words = ["--engine", root / "one", "--other", root / "two", "--limit", 20, "--out", root / "soak.csv", *argv]
    return options.parse(SoakConfig, [str(word) for word in words], "soak_server")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("soak")
    serve_kit.write(root / "one")
    serve_kit.write(root / "two", max_answer_tokens=1)
    return root


def test_requests_of_every_kind_and_two_swaps_are_answered_right(root):
    told = soak_server.main(config(root, "--requests", 400, "--clients", 8))["metrics"]
    assert (told["requests"], told["swaps"], told["wrong_or_lost"]) == (400, 2, 0)
    assert told["ask_200"] > 200
    assert told["malformed_400"] > 5
    assert told["leave_left"] > 5
    assert told["answers_that_differ"] > 0
    assert next(csv.DictReader((root / "soak.csv").open()))["requests"] == "400"


def test_an_answer_of_an_engine_out_of_service_or_of_another_question_is_noticed(root):
    pairs = [(serve_kit.QUESTION, serve_kit.PASSAGE), (serve_kit.QUESTION, "the notes")]
    truths = {name: soak_server.truth(root / name, pairs) for name in ("one", "two")}

    def wrong(place: int, status: int, may: str, **more) -> int:
        run = Run(config(root), "", 0, {}, pairs, truths, frozenset({may}))
        answer = truths["one"].answers[0]
        told = {"answer": answer.text, "start": answer.start, "end": answer.end, "score": answer.score, "windows": 1}

        async def post(*_):
            return status, told

        run._post = post  # type: ignore[method-assign]
        asyncio.run(run._ask(None, random.Random(0), place, run.may, **more))
        return len(run.wrong)

    assert wrong(0, 200, "one") == 0
    assert wrong(0, 200, "two") == 1
    assert wrong(1, 200, "one") == 1
    assert wrong(0, 500, "one") == 1
    assert wrong(0, 504, "one") == 1
    assert wrong(0, 504, "one", deadline_ms=1) == 0


def test_two_engines_of_one_folder_are_needed(root):
    with pytest.raises(UserError, match="the same folder"):
        soak_server.main(config(root, "--other", root / "one"))
