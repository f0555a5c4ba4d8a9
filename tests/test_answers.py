"""From logits to an answer: the best allowed span, cut out of the original text, and nothing that crashes."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from data_kit import dataset, example, letters, shared, write_vocab

from data import answers, squad
from data.answers import best_answers, texts
from data.features import FeatureOptions, Features, featurise
from data.metric import best_threshold, evaluate
from data.tokenize import Tokenizer


def noise(features: Features, seed: int, size: float = 1.0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [(random.standard_normal(n) * size).astype(np.float32) for n in features.length]


def slow_answer(
    features: Features, data: squad.Dataset, i: int, start, end, best: int, most: int
) -> tuple[float, str] | None:
    """The same search one pair at a time."""
    found = []
    for row in np.flatnonzero(features.example == i):
        shift = int(features.query_length(row)) + 2
        mask = features.max_context(int(row))
        tops = [sorted(range(len(x)), key=lambda k: -x[k])[:best] for x in (start[row], end[row])]
        for s, e in itertools.product(*tops):
            inside = shift <= s < shift + len(mask) and shift <= e < shift + len(mask)
            if inside and mask[s - shift] and 0 <= e - s < most:
                token = features.context_start[features.context[row]] + features.first[row] - shift
                first, last = features.context_offsets[token + s, 0], features.context_offsets[token + e, 1]
                found.append((float(start[row][s]) + float(end[row][e]), data.examples[i].context[first:last]))
    return max(found, key=lambda pair: pair[0]) if found else None


@pytest.mark.parametrize(("best", "most"), [(20, 30), (5, 3), (1, 30), (3, 1)])
def test_the_answer_is_that_of_an_exhaustive_search(tmp_path: Path, best: int, most: int):
    words = "the quick brown fox jumps over 13 lazy dogs, twice. "
    data = dataset(*(example(str(n), words * n, "who" * n) for n in range(1, 9)))
    features = featurise(data, letters(tmp_path), FeatureOptions(40, 11, 8))
    for seed in range(3):
        start, end = noise(features, seed), noise(features, seed + 100)
        predictions = best_answers(features, data, start, end, best=best, max_answer_tokens=most)
        for i, one in enumerate(data.examples):
            expected = slow_answer(features, data, i, start, end, best, most)
            got = predictions[one.id]
            assert got.windows == (features.example == i).sum()
            if expected is None:
                assert got.text == ""
                continue
            assert (got.score, got.text) == (pytest.approx(expected[0], abs=1e-12), expected[1])
            assert one.context[got.start : got.end] == got.text
            null = min(float(start[r][0]) + float(end[r][0]) for r in np.flatnonzero(features.example == i))
            assert got.no_answer_score == pytest.approx(null - got.score, abs=1e-12)


def oracle(features: Features, wrong_nulls: bool = False) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Logits that a perfect model would give: 10 at the label; 2 at [CLS] where the window has no answer."""
    both = []
    for position in (features.start_position, features.end_position):
        logits = [np.full(n, -5.0, np.float32) for n in features.length]
        for row, at in enumerate(position):
            logits[row][at] = 10 if at else 2
        both.append(logits)
    return both[0], both[1]


@pytest.mark.parametrize("name", ["dev-v1.1.json.gz", "dev-v2.0.json.gz"])
def test_perfect_logits_score_nearly_100_on_real_data(tmp_path: Path, name: str):
    data = squad.read(shared(name))
    features = featurise(data, Tokenizer(write_vocab(tmp_path)))  # spelt letter by letter: several windows a question
    predictions = best_answers(features, data, *oracle(features), max_answer_tokens=200)
    two = data.version == "2.0"
    scores = evaluate(data, texts(predictions, 0.0 if two else None))
    assert scores["f1"] > 98.5
    if two:
        assert scores["NoAns_f1"] == 100
        assert (
            best_threshold(data, texts(predictions), {k: p.no_answer_score for k, p in predictions.items()})["f1"]
            > 98.5
        )


def test_the_text_keeps_case_accents_and_spaces_of_the_original(tmp_path: Path):
    context = "In  \u00c9VORA, Cafe\u0301 Nil\u00f6 (1895)  opened."
    data = dataset(
        example("1", context, "who", "Cafe\u0301 Nil\u00f6"), example("2", context, "who", "\u00c9VORA, Cafe\u0301")
    )
    features = featurise(data, letters(tmp_path))
    predictions = best_answers(features, data, *oracle(features))
    assert texts(predictions) == {"1": "Cafe\u0301 Nil\u00f6", "2": "\u00c9VORA, Cafe\u0301"}


def test_a_start_counts_only_in_the_window_that_shows_it_best(tmp_path: Path):
    data = dataset(example("1", "abcdefghijklmnop", ""))
    features = featurise(data, letters(tmp_path), FeatureOptions(11, 4, 1))
    assert features.first.tolist() == [0, 4, 8]
    start, end = ([np.zeros(n, np.float32) for n in features.length] for _ in range(2))
    start[0][2 + 7] = end[0][2 + 7] = 9  # "h", the last token of the first window: more context in the second one
    start[1][2 + 4] = end[1][2 + 4] = 5  # "i"
    assert best_answers(features, data, start, end)["1"].text == "i"


def test_nothing_allowed_gives_an_empty_answer_and_a_score_that_survives_json(tmp_path: Path):
    data = dataset(example("empty", "\u200b\x07"), example("question", "abc"), version="2.0")
    features = featurise(data, letters(tmp_path))
    logits = [np.zeros(n, np.float32) for n in features.length]
    logits[1][1] = 5  # a question token
    predictions = best_answers(features, data, logits, logits, best=1)
    for prediction in predictions.values():
        assert (prediction.text, prediction.start, prediction.end) == ("", 0, 0)
        assert prediction.no_answer_score > 1e8
        json.dumps(asdict(prediction), allow_nan=False)
    assert texts(predictions, 100.0) == {"empty": "", "question": ""}


def test_the_answers_of_many_windows_are_those_of_each_alone(tmp_path: Path, monkeypatch):
    words = "the quick brown fox jumps over 13 lazy dogs, twice. "
    data = dataset(*(example(str(n), words * n, "who" * n) for n in range(1, 9)))
    features = featurise(data, letters(tmp_path), FeatureOptions(40, 11, 8))
    start, end = noise(features, 1), noise(features, 2)
    start[5][3], end[7][:9], start[11][12] = np.nan, -np.inf, np.inf
    together = best_answers(features, data, start, end)
    for size in (1, 7):
        monkeypatch.setattr(answers, "TOGETHER", size)
        assert best_answers(features, data, start, end) == together


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_of_a_diverged_model_do_not_crash(tmp_path: Path, value: float):
    data = dataset(example("1", "abc abc"))
    features = featurise(data, letters(tmp_path))
    logits = [np.full(n, value, np.float32) for n in features.length]
    prediction = best_answers(features, data, logits, logits)["1"]
    json.dumps(asdict(prediction), allow_nan=False)


def test_one_nan_does_not_spoil_the_rest(tmp_path: Path):
    data = dataset(example("1", "abcdef", "who", "cd"))
    features = featurise(data, letters(tmp_path))
    start, end = oracle(features)
    start[0][6], end[0][5] = np.nan, np.nan
    assert best_answers(features, data, start, end)["1"].text == "cd"


def test_logits_padded_beyond_the_window_are_cut(tmp_path: Path):
    data = dataset(example("1", "abcdef", "who", "cd"))
    features = featurise(data, letters(tmp_path))
    start, end = oracle(features)
    padded = [[np.concatenate([x, np.full(9, 99, np.float32)]) for x in logits] for logits in (start, end)]
    assert best_answers(features, data, *padded) == best_answers(features, data, start, end)


def test_a_threshold_is_exclusive_and_none_ignores_the_null(tmp_path: Path):
    data = dataset(example("1", "abcdef", "who", "cd"), version="2.0")
    features = featurise(data, letters(tmp_path))
    start, end = oracle(features)
    start[0][0] = end[0][0] = 11
    predictions = best_answers(features, data, start, end)
    assert predictions["1"].no_answer_score == 2
    assert [texts(predictions, t)["1"] for t in (None, 2.0, 1.9)] == ["cd", "cd", ""]


def test_the_wrong_number_of_logits_and_a_foreign_data_set_are_errors(tmp_path: Path):
    data = dataset(example("1", "abc"))
    features = featurise(data, letters(tmp_path))
    with pytest.raises(ValueError, match="0 start and 0 end logits for 1 windows"):
        best_answers(features, data, [], [])
    logits = [np.zeros(8, np.float32)]
    with pytest.raises(ValueError, match="belong to another data set"):
        best_answers(features, dataset(example("2", "abc")), logits, logits)
