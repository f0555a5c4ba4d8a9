"""Labelled sets cut out of the built-in passages, and what the comparison of all tasks says of an engine."""

import json
from pathlib import Path

import export_kit
import pytest

import heads
from configs.errors import UserError
from scripts import check_tasks
from scripts.task_data import MAKERS, write


@pytest.mark.parametrize("task", MAKERS)
def test_a_set_is_read_by_its_task_and_teaches_something(task, tmp_path):
    settings = {"second_column": "second"} if task == "csv/pair" else {}
    head = heads.find("csv" if task == "csv/pair" else task, (), settings)
    train, dev = (head.read(str(write(task, part, 80, tmp_path))) for part in ("train", "dev"))
    assert len(train.examples) == len(dev.examples) == 80
    fitted = head.fit(train)
    expected = {"csv/pair": ("no", "yes"), "conll": ("O", "B-NAME", "I-NAME", "B-NUM", "I-NUM")}
    if task in expected:
        assert set(fitted.labels) <= set(expected[task])
    (tmp_path / "again").mkdir()
    again = write(task, "train", 80, tmp_path / "again")
    assert again.read_bytes() == next(tmp_path.glob(f"{task.replace('/', '-')}-train.*")).read_bytes()
    assert not set(head.texts(train)) & set(head.texts(dev))


def test_names_and_numbers_are_tagged_where_they_stand(tmp_path):
    head = heads.find("conll")
    example = head.read(str(write("conll", "train", 3, tmp_path))).examples[0]
    words = [example.text[first:last] for first, last in example.words]
    assert all(any(c.isdigit() for c in word) for word, tag in zip(words, example.tags, strict=True) if tag == "B-NUM")
    assert example.tags.count("B-NAME") >= 1


@pytest.mark.parametrize(("changed", "interval", "passed"), [
    (0.5, (-0.2, 0.1), True), (1.5, (-0.2, 0.1), False), (0.0, (-0.3, -0.1), False),
])  # fmt: skip
def test_an_engine_passes_that_agrees_on_99_percent_and_loses_nothing_for_certain(
    changed, interval, passed, tmp_path, monkeypatch
):
    asked = []

    def call(package, flags, log):
        asked.append([package, *map(str, flags)])
        out = Path(flags[flags.index("--out") + 1])
        if package == "train":
            export_kit.run(out, task="csv", labels=["a", "b"])
            return
        out.mkdir()
        verified = {
            "accuracy": 90.0, "accuracy_checkpoint": 90.1, "accuracy_interval": interval, "answers_changed": changed,
            "largest_logit_difference": 0.0123, "questions": 20, "runtime": "tensorrt", "why": "a GPU",
        }  # fmt: skip
        (out / "engine.json").write_text(json.dumps({"verified": verified, "precision": "float16"}))

    monkeypatch.setattr(check_tasks, "call", call)
    config = check_tasks.CheckConfig(
        out=str(tmp_path / "t.csv"), work=str(tmp_path / "w"), tasks=("csv/pair",), train=20, dev=20
    )
    if passed:
        assert check_tasks.main(config)["metrics"] == {"csv/pair": 100 - changed}
    else:
        with pytest.raises(UserError, match=r"not as Keras on csv/pair; .*t\.csv says how far"):
            check_tasks.main(config)
    row = (tmp_path / "t.csv").read_text().splitlines()[1]
    assert row.startswith("csv/pair,accuracy,90.1,90.0,")
    assert [words[0] for words in asked] == ["train", "export"]
    assert asked[0][asked[0].index("--second-column") :][:2] == ["--second-column", "second"]


def test_a_task_that_fails_does_not_take_the_others_rows_along(tmp_path, monkeypatch):
    def check(config, task, folder):
        if task == "csv":
            raise UserError("train.py stopped")
        return {"task": task, "agreement": 100.0, "passed": True}

    monkeypatch.setattr(check_tasks, "check", check)
    with pytest.raises(UserError, match=r"^csv: train\.py stopped$"):
        check_tasks.main(check_tasks.CheckConfig(out=str(tmp_path / "t.csv"), work=str(tmp_path), at_once=3))
    rows = (tmp_path / "t.csv").read_text().splitlines()[1:]
    assert rows == [f"{task},100.0,True" for task in MAKERS if task != "csv"]  # in order, whichever was done first


def test_tasks_beside_each_other_have_cores_of_their_own(monkeypatch):
    given = []
    monkeypatch.setattr(check_tasks.os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5}, raising=False)
    monkeypatch.setattr(check_tasks.os, "sched_setaffinity", lambda _, cores: given.append(cores), raising=False)
    for seat in range(4):
        check_tasks.sit(seat, 4)
    assert given == [[0, 4], [1, 5], [2], [3]]


def test_a_command_that_fails_is_quoted_and_its_words_are_kept(tmp_path):
    with pytest.raises(UserError, match=r'serve.py stopped with exit code 2: \{"command": "serve", .*--engine'):
        check_tasks.call("serve", ["--text", "a"], tmp_path / "log.txt")
    assert "error: " in (tmp_path / "log.txt").read_text()
