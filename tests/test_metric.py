"""Our scores against the official SQuAD scripts' outputs, kept in tests/golden/metric_v1.json and metric_v2.json."""

import json
from pathlib import Path

import pytest
from data_kit import dataset, example

from configs.errors import UserError
from data.metric import best_threshold, evaluate, normalise
from data.squad import Answer, Dataset, Example

GOLDEN = Path(__file__).parent / "golden"
ONE = json.loads((GOLDEN / "metric_v1.json").read_text())
TWO = json.loads((GOLDEN / "metric_v2.json").read_text())


def build(cases: list[dict], version: str) -> tuple[Dataset, dict[str, str]]:
    examples = [
        Example(c["id"], "", "c", "q", tuple(Answer(g, 0) for g in c["golds"]), version == "2.0" and not c["golds"])
        for c in cases
    ]
    return Dataset(examples, version), {c["id"]: c["prediction"] for c in cases if c["prediction"] is not None}


def close(ours: dict, official: dict) -> None:
    assert ours == pytest.approx(official, abs=1e-9, rel=0)  # the keys too


def named(cases: list[dict]) -> list:
    return [pytest.param(c, id=c["note"].replace(" ", "_")) for c in cases if "official" in c]


@pytest.mark.parametrize("case", named(ONE["cases"]))
def test_a_case_scores_as_in_the_official_script_of_1_1(case: dict):
    ours = evaluate(*build([case], "1.1"))
    close(ours, {"exact": case["official"]["exact_match"], "f1": case["official"]["f1"], "total": 1})


@pytest.mark.parametrize("case", named(TWO["cases"]))
def test_a_case_scores_as_in_the_official_script_of_2_0(case: dict):
    close(evaluate(*build([case], "2.0")), case["official"])


def test_all_cases_together_score_as_in_the_official_scripts():
    ours = evaluate(*build(ONE["cases"], "1.1"))
    close(ours, {"exact": ONE["all"]["exact_match"], "f1": ONE["all"]["f1"], "total": len(ONE["cases"])})
    close(evaluate(*build([c for c in TWO["cases"] if c["prediction"] is not None], "2.0")), TWO["all_answered"])
    assert min(len(ONE["cases"]), len(TWO["cases"])) >= 60


def test_a_missing_prediction_is_wrong_in_1_1_and_left_out_in_2_0():
    ours = evaluate(*build(TWO["cases"], "2.0"))
    close({key: ours[key] for key in ("exact", "f1", "total")}, TWO["all_with_missing"])
    one = dataset(example("1", "ab", answer="ab"), example("2", "ab", answer="ab"))
    assert evaluate(one, {"1": "ab"}) == {"exact": 50.0, "f1": 50.0, "total": 2}
    assert evaluate(Dataset(one.examples, "2.0"), {"1": "ab"})["exact"] == 100.0
    assert evaluate(Dataset(one.examples, "2.0"), {})["total"] == 0


@pytest.mark.parametrize("search", [pytest.param(s, id=s["note"].replace(" ", "_")) for s in TWO["searches"]])
def test_the_threshold_search_finds_what_the_official_script_finds(search: dict):
    cases = [c for c in TWO["cases"] if c["id"] in search["ids"]]
    data, texts = build(cases, "2.0")
    ours = best_threshold(data, search["predictions"] or texts, search["no_answer_scores"])
    official = search["official"]
    assert ours["f1"] == pytest.approx(official["best_f1"], abs=1e-9)
    assert ours["threshold"] == pytest.approx(official["best_f1_thresh"], abs=1e-9)
    assert ours["best_exact"] == pytest.approx(official["best_exact"], abs=1e-9)
    assert ours["best_exact_threshold"] == pytest.approx(official["best_exact_thresh"], abs=1e-9)


def test_applying_the_threshold_found_gives_the_score_promised():
    data = dataset(
        *(example(f"a{i}", "ab", answer="ab") for i in range(3)),
        *(example(f"n{i}", "ab") for i in range(3)),
        version="2.0",
    )
    texts = {e.id: "ab" for e in data.examples}
    scores = {"a0": -5.0, "a1": -4.0, "n0": -3.0, "a2": -2.5, "n1": 1.0, "n2": 2.0}
    found = best_threshold(data, texts, scores)
    assert found["threshold"] == -2.5 or found["threshold"] == -4.0
    chosen = {name: "" if scores[name] > found["threshold"] else text for name, text in texts.items()}
    assert evaluate(data, chosen)["f1"] == pytest.approx(found["f1"])
    assert evaluate(data, chosen)["exact"] == found["exact"]


def test_where_never_answering_is_best_the_threshold_lies_below_every_score():
    data = dataset(example("1", "ab"), example("2", "ab"), version="2.0")
    scores = {"1": -7.0, "2": 3.0}
    found = best_threshold(data, {"1": "ab", "2": "ab"}, scores)
    assert found["threshold"] < -7.0  # the official script says 0.0 here, which would let "1" through
    assert (found["f1"], found["exact"]) == (100.0, 100.0)


def test_a_question_without_a_no_answer_score_or_a_gold_answer_is_an_error():
    data = dataset(example("1", "ab"), version="2.0")
    with pytest.raises(UserError, match="no no-answer score for 1 of 1 questions"):
        best_threshold(data, {"1": "ab"}, {})
    with pytest.raises(UserError, match="has no answer to compare with"):
        evaluate(dataset(example("1", "ab")), {"1": "ab"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("The  A-Team!", "ateam"), ("A.N. Other", "other"), ("l'a b", "la b"), ("a\u0301 b", "\u0301 b")],
)
def test_punctuation_goes_before_articles(text: str, expected: str):
    assert normalise(text) == expected
