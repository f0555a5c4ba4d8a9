"""Metrics of the tasks: those of scikit-learn, scipy and seqeval, and what they say where nothing is to be said."""

import json
from pathlib import Path

import numpy as np
import pytest

from data import scores
from data.scores import entities, entity_f1

GOLDEN = json.loads((Path(__file__).parent / "golden" / "scores.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["classes"])
def test_classes_score_as_scikit_learn_says(case):
    true, said = (np.array(case[name]) for name in ("true", "said"))
    found = {"accuracy": scores.accuracy, "f1": scores.f1_of, "macro_f1": scores.macro_f1, "matthews": scores.matthews}
    for name, function in found.items():
        assert function(true, said) == pytest.approx(100 * case[name], abs=1e-9), name


@pytest.mark.parametrize("case", GOLDEN["numbers"])
def test_numbers_correlate_as_scipy_says(case):
    true, said = (np.array(case[name]) for name in ("true", "said"))
    for name in ("pearson", "spearman"):
        assert getattr(scores, name)(true, said) == pytest.approx(100 * case[name], abs=1e-9), name


@pytest.mark.parametrize("case", GOLDEN["tags"])
def test_entities_score_as_seqeval_says(case):
    pairs = [[set(entities(tags)) for tags in pair] for pair in zip(case["true"], case["said"], strict=True)]
    counts = np.sum([(len(true & said), len(said), len(true)) for true, said in pairs], axis=0)
    for name, value in entity_f1(*counts).items():
        assert value == pytest.approx(100 * case[name], abs=1e-9), name


@pytest.mark.parametrize(("tags", "expected"), [
    ("O O", []),
    ("B-PER I-PER O B-PER", [("PER", 0, 2), ("PER", 3, 4)]),
    ("I-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),  # a stray I begins one
    ("B-A I-B", [("A", 0, 1), ("B", 1, 2)]),
    ("B-A E-A S-A", [("A", 0, 2), ("A", 2, 3)]),
    ("U-A B-A L-A", [("A", 0, 1), ("A", 1, 3)]),  # BILOU
    ("PER PER O LOC", [("PER", 0, 2), ("LOC", 3, 4)]),  # tags without a mark
    ("B-a-b I-a-b", [("a-b", 0, 2)]),  # a kind with a hyphen
])  # fmt: skip
def test_tags_become_entities_in_every_scheme(tags, expected):
    assert entities(tags.split()) == expected


def test_where_nothing_varies_a_score_is_0_and_no_error():
    same, mixed = np.ones(4), np.array([0.0, 1.0, 1.0, 0.0])
    assert [scores.matthews(same, mixed), scores.pearson(same, mixed), scores.spearman(mixed, same)] == [0, 0, 0]
    assert scores.f1_of(same * 0, same * 0) == 0
    assert entity_f1(0, 0, 0) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert scores.accuracy(np.zeros(0), np.zeros(0)) == 0
