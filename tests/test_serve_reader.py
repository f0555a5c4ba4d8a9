"""The reader and its command: text in, the right characters of the given passage out, and words for what is no text."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import serve_kit
from serve_kit import PASSAGE, QUESTION

from configs import options
from configs.errors import UsageError, UserError
from data import squad
from serve import __main__ as command
from serve.config import ServeConfig
from serve.reader import Answer, Reader
from serve.session import Session

ROOT = Path(__file__).parent.parent
FILLER = "the notes was in it . "  # six tokens


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("engines")
    return {layout: serve_kit.write(place / layout, layout) for layout in ("packed", "padded")}


@pytest.fixture(scope="module")
def reader(folders):
    return Reader(folders["packed"])


def test_an_answer_is_cut_out_of_the_passage_as_it_was_given(reader):
    answer = reader.answer(QUESTION, "it was by  ADA\n Lovelace. The notes")
    assert answer.text == "ADA\n Lovelace"
    assert (answer.start, answer.end) == (11, 24)
    assert answer.windows == 1
    assert answer.score > 9
    assert answer.no_answer_score < -9


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_long_passage_is_read_in_windows_and_its_answer_found_anywhere(folders, layout):
    reader = Reader(folders[layout])
    for before in (0, 3, 10):
        passage = FILLER * before + PASSAGE + " " + FILLER * (10 - before)
        answer = reader.answer(QUESTION, passage)
        assert passage[answer.start : answer.end] == answer.text == "Ada Lovelace"
        assert answer.windows > 5


def test_many_questions_are_answered_as_each_alone_in_their_order(reader):
    random = np.random.default_rng(1)
    names = ["ada lovelace", "ada", "lovelace", "1843"]
    pairs = []
    for _ in range(40):
        before, after = random.integers(0, 12, 2)
        pairs.append((QUESTION, f"{FILLER * before}by {names[random.integers(4)]} in {FILLER * after}"))
    seen = []
    together = reader.answer_many(pairs, progress=lambda done, total: seen.append((done, total)))
    for pair, answer in zip(pairs, together, strict=True):
        alone = reader.answer(*pair)
        assert answer.score == pytest.approx(alone.score, abs=1e-5)
        same = {"score": 0.0, "no_answer_score": 0.0}
        assert dataclasses.replace(answer, **same) == dataclasses.replace(alone, **same)
    windows = sum(answer.windows for answer in together)
    assert seen[-1] == (windows, windows)
    assert len(seen) > 3  # several batches were needed
    assert reader.answer_many([]) == []


def test_two_batches_are_under_way_and_never_more(reader, monkeypatch):
    """One computed while the next is copied in; more would only hold memory."""
    log = []
    for name in ("submit", "result"):
        real = getattr(reader.session, name)
        counted = lambda given, name=name, real=real: (log.append(name), real(given))[1]  # noqa: E731
        monkeypatch.setattr(reader.session, name, counted)
    reader.answer_many([(QUESTION, FILLER * 6)] * 20)
    under_way = np.cumsum([1 if name == "submit" else -1 for name in log])
    assert under_way.max() == 2
    assert under_way[-1] == 0
    assert log[:2] == ["submit", "submit"]


def test_every_batch_of_the_reader_is_one_that_the_engine_takes(folders):
    for folder in folders.values():
        reader = Reader(folder)
        lengths = np.random.default_rng(2).integers(8, 25, 200)
        batches = reader.batches(lengths)
        assert sorted(np.concatenate(batches).tolist()) == list(range(200))
        assert all(len(rows) <= 8 for rows in batches)
        assert all(lengths[rows].sum() <= 160 for rows in batches) or reader.manifest.layout == "padded"


def test_a_question_beyond_the_query_limit_is_cut_as_in_training(reader):
    """`query` is 6 tokens: what comes after them cannot matter, and the windows have no less room for it."""
    short, long = ("who who wrote wrote it it", "who who wrote wrote it it in 1843 " + "by " * 100)
    assert reader.answer(long, PASSAGE) == reader.answer(short, PASSAGE)
    assert reader.answer("who who wrote wrote it was", PASSAGE) != reader.answer(short, PASSAGE)


@pytest.mark.parametrize(("threshold", "text"), [(-100.0, ""), (100.0, "Ada Lovelace"), (None, "Ada Lovelace")])
def test_above_the_engines_threshold_there_is_no_answer(tmp_path, threshold, text):
    answer = Reader(serve_kit.write(tmp_path / "engine", no_answer_threshold=threshold)).answer(QUESTION, PASSAGE)
    assert answer.text == text
    assert (answer.end > answer.start) == bool(text)
    assert answer.score > 9


@pytest.mark.parametrize(("question", "context", "seen"), [
    ("", PASSAGE, "question 1 is empty"),
    (" \n", PASSAGE, "question 1 is empty"),
    (QUESTION, "\t", "context 1 is empty"),
    (QUESTION, None, "context 1 is NoneType, needed is text"),
    (3, PASSAGE, "question 1 is int"),
])  # fmt: skip
def test_what_is_no_question_or_no_passage_is_named(reader, question, context, seen):
    with pytest.raises(UserError, match=seen):
        reader.answer_many([(QUESTION, PASSAGE), (question, context)])


def test_a_passage_without_a_token_has_no_answer(reader):
    answer = reader.answer(QUESTION, "\u200b")  # not white space for Python, nothing for the tokeniser
    assert answer == Answer("", 0, 0, -1e9, 1e9, 1)


def test_lone_surrogates_move_no_offset(reader):
    answer = reader.answer(QUESTION + "\ud800", "\ud83d it was by ada \udc00 lovelace")
    assert (answer.text, answer.start, answer.end) == ("ada \ufffd lovelace", 12, 26)


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path):
    folder = serve_kit.write(tmp_path / "engine")
    with open(folder / "vocab.txt", "a", encoding="utf-8") as file:
        file.write("".join(f"word{i}\n" for i in range(60)))
    serve_kit.relist(folder, serve_kit.stated())
    with pytest.raises(UserError, match="has 79 pieces, the model knows 60"):
        Reader(folder)


def test_windows_longer_than_the_engine_takes_are_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="windows of 40 tokens do not fit this engine, which takes up to 32"):
        Reader(serve_kit.write(tmp_path / "engine", "padded", window=40))


def test_a_session_given_to_a_reader_stays_open(folders):
    with Session.open(folders["packed"]) as session:
        closed = []
        session.close = lambda: closed.append(1)  # type: ignore[method-assign]
        with Reader(folders["packed"], session=session):
            pass
        assert not closed


# The command.


def questions(folder: Path, version: str = "1.1") -> Path:
    answers = [{"text": "Ada Lovelace", "answer_start": 34}]
    qas = [{"id": f"q{i}", "question": QUESTION, "answers": answers} for i in range(3)]
    qas[2]["answers"] = [{"text": "1843", "answer_start": 50}]
    if version == "2.0":
        qas.append({"id": "none", "question": QUESTION, "answers": [], "is_impossible": True})
    path = folder / "dev.json"
    path.write_text(json.dumps({"version": version, "data": [{"paragraphs": [{"context": PASSAGE, "qas": qas}]}]}))
    return path


def settings(*argv: object) -> ServeConfig:
    return options.parse(ServeConfig, [str(word) for word in argv], "serve")


def test_data_writes_predictions_in_the_official_format_and_scores_them(folders, tmp_path, capsys):
    out = tmp_path / "answers.json"
    result = command.main(settings("--engine", folders["packed"], "--data", questions(tmp_path), "--predictions", out))
    assert json.loads(out.read_text()) == dict.fromkeys(("q0", "q1", "q2"), "Ada Lovelace")
    assert result["metrics"]["exact"] == pytest.approx(200 / 3)
    assert result["metrics"]["total"] == 3
    assert "runtime: ONNX Runtime" in capsys.readouterr().out


@pytest.mark.parametrize(("threshold", "expected"), [(-100.0, ""), (100.0, "Ada Lovelace"), (None, "Ada Lovelace")])
def test_version_2_is_scored_at_the_engines_threshold_or_at_the_best_one(tmp_path, threshold, expected):
    folder = serve_kit.write(tmp_path / "engine", no_answer_threshold=threshold)
    out = tmp_path / "answers.json"
    metrics = command.main(settings("--engine", folder, "--data", questions(tmp_path, "2.0"), "--predictions", out))[
        "metrics"
    ]
    assert json.loads(out.read_text())["q0"] == expected
    assert ("threshold" in metrics) == (threshold is None)
    assert metrics["NoAns_exact"] == (0.0 if expected else 100.0)


def test_a_missing_folder_for_predictions_costs_no_answering(folders, tmp_path):
    with pytest.raises(UserError, match="--predictions: there is no folder"):
        command.main(settings("--engine", folders["padded"], "--data", "no.json", "--predictions", tmp_path / "a/b"))


@pytest.mark.parametrize("argv", [
    [], ["--question", "who"], ["--context", "x"], ["--question", "who", "--context", "x", "--context-file", "y"],
    ["--data", "x", "--question", "who"], ["--question", "who", "--context", "x", "--limit", "3"],
    ["--question", "who", "--context", "x", "--predictions", "p"], ["--data", "x", "--runtime", "tflite"],
], ids=" ".join)  # fmt: skip
def test_flags_that_contradict_each_other_are_refused(argv):
    with pytest.raises(UsageError):
        settings("--engine", "e", *argv)


def test_one_question_in_a_process_of_its_own_ends_in_a_line_for_machines(folders, tmp_path):
    (tmp_path / "passage.txt").write_text(PASSAGE)
    flags = ["--engine", folders["packed"], "--question", QUESTION, "--context-file", tmp_path / "passage.txt"]
    done = subprocess.run(
        [sys.executable, "serve.py", *map(str, flags)],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "80"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *shown, last = done.stdout.splitlines()
    assert ">>>Ada Lovelace<<< in 1843." in "\n".join(shown)
    found = json.loads(last)
    assert found["command"] == "serve"
    assert found["metrics"]["answer"] == "Ada Lovelace"
    assert found["metrics"]["start"] == 34
    assert "onnxruntime" in found["versions"]
    assert "tensorflow" not in found["versions"]


def test_the_answer_stands_out_and_a_passage_cannot_steer_the_terminal():
    answer = Answer("bad", 4, 7, 1.0, -1.0, 1)
    assert command.highlighted("not bad\x1b[2J\x07", answer, colours=False) == "not >>>bad<<<\ufffd[2J\ufffd"
    assert command.highlighted("not bad", answer, colours=True) == "not \x1b[1;7mbad\x1b[0m"
    long = command.highlighted("x" * 1000 + "bad" + "y" * 1000, Answer("bad", 1000, 1003, 1.0, -1.0, 1), colours=False)
    assert long == "..." + "x" * 300 + ">>>bad<<<" + "y" * 300 + "..."
    assert command.highlighted("nothing here", Answer("", 0, 0, 1.0, 9.0, 1), colours=False) == "nothing here"


@pytest.mark.parametrize(("content", "seen"), [(b"\xff\xfe\xfa", "byte 0 is not UTF-8"), (None, "cannot be read")])
def test_a_passage_file_that_is_no_text_is_named(tmp_path, content, seen):
    path = tmp_path / "passage.txt"
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=seen):
        command.passage(settings("--engine", "e", "--question", "who", "--context-file", path))


def test_the_reader_scores_as_the_metric_of_training_does(reader, tmp_path):
    dataset = squad.read(questions(tmp_path))
    found = reader.predict(dataset, reader.features(dataset))
    assert {name: answer.text for name, answer in found.items()} == dict.fromkeys(("q0", "q1", "q2"), "Ada Lovelace")
