"""Reading SQuAD: what is accepted, what is left out and counted, what is refused and with which words."""

import gzip
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from data_kit import shared

from configs.errors import UserError
from data import sources, squad


def raw(*qas: dict, context: str = "Ada built the tower.", version: str | None = "1.1") -> dict:
    body = {"data": [{"title": "Towers", "paragraphs": [{"context": context, "qas": list(qas)}]}]}
    return body if version is None else {"version": version} | body


def qa(name: str = "1", question: str = "Who?", answer: str | None = "Ada", start: int = 0, **more) -> dict:
    answers = [] if answer is None else [{"text": answer, "answer_start": start}]
    return {"id": name, "question": question, "answers": answers} | more


def many(bad: list[dict], good: int) -> dict:
    return raw(*bad, *(qa(f"good{i}") for i in range(good)))


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_reads_the_same_packed_and_plain(tmp_path: Path, packed: bool):
    content = json.dumps(raw(qa())).encode()
    path = tmp_path / ("a.json.gz" if packed else "a.json")
    path.write_bytes(gzip.compress(content) if packed else content)
    dataset = squad.read(path)
    assert dataset.version == "1.1"
    assert dataset.examples == [
        squad.Example("1", "Towers", "Ada built the tower.", "Who?", (squad.Answer("Ada", 0),), False)
    ]


@pytest.mark.parametrize(
    ("version", "impossible", "expected"),
    [("1.1", None, "1.1"), ("v2.0", None, "2.0"), ("2.0", False, "2.0"), (None, True, "2.0"), (None, None, "1.1")],
)
def test_the_version_comes_from_its_field_or_from_an_impossible_question(version, impossible, expected):
    more = {} if impossible is None else {"is_impossible": impossible}
    content = raw(qa("1"), qa("2", answer=None if impossible else "Ada", **more), version=version)
    assert squad.from_dict(content).version == expected


def test_a_question_without_answers_is_impossible_in_2_and_skipped_in_1():
    two = squad.from_dict(raw(qa("1"), qa("2", answer=None), version="2.0"))
    assert [e.impossible for e in two.examples] == [False, True]
    one = squad.from_dict(many([qa("none", answer=None)], good=10))
    assert len(one.examples) == 10
    assert one.skipped == ["none: no answer given, and the file is not version 2.0"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (qa("x", start=1), "answer 'Ada' is not at offset 1, where 'da ' stands"),
        (qa("x", start=-1), "not at offset -1"),
        (qa("x", start=10**12), "not at offset 1000000000000"),
        (qa("x", answer="ada"), "answer 'ada' is not at offset 0"),
        (qa("x", answer=""), "empty answer"),
        (qa("x", question=" \n"), "empty question"),
        (qa("x", is_impossible=True), "is_impossible is true, yet it has answers"),
    ],
)
def test_an_unusable_example_is_left_out_with_its_reason(bad, reason):
    dataset = squad.from_dict(many([bad], good=9))
    assert len(dataset.examples) == 9
    assert len(dataset.skipped) == 1
    assert dataset.skipped[0].startswith("x: ")
    assert reason in dataset.skipped[0]


def test_an_empty_context_costs_all_its_questions():
    content = many([], good=20)
    content["data"][0]["paragraphs"].append({"context": "  ", "qas": [qa("a"), qa("b")]})
    assert squad.from_dict(content).skipped == ["a: empty context", "b: empty context"]


def test_more_than_a_tenth_unusable_is_an_error_and_a_tenth_is_not():
    assert len(squad.from_dict(many([qa("x", start=5)], good=9)).skipped) == 1
    with pytest.raises(UserError, match="2 of 19 examples are unusable, more than 10%"):
        squad.from_dict(many([qa("x", start=5), qa("y", start=5)], good=17))


def test_a_duplicate_id_is_an_error():
    with pytest.raises(UserError, match="'1' stands twice"):
        squad.from_dict(raw(qa("1"), qa("1")))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1], "the top level is a list"),
        ({"rows": []}, r"the top level has the keys \['rows'\], but not 'data'"),
        ({"data": {}}, "'data' of type dict, not list"),
        ({"data": [3]}, r"data\[0\] is int, not an object"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, r"data\[0\].paragraphs\[0\] has the keys .* not 'context'"),
        (raw({"id": "1", "question": "Who?"}), r"qas\[0\] has the keys .* but not 'answers'"),
        (raw({"id": None, "question": "Who?", "answers": []}), "'id' of type NoneType"),
        (raw(qa(answer="Ada", start="0")), "'answer_start' of type str, not int"),  # type: ignore[arg-type]
        ({"data": []}, "no question in it"),
    ],
)
def test_json_that_is_not_squad_is_refused_with_what_was_seen_and_what_is_needed(content, said):
    with pytest.raises(UserError, match=said) as error:
        squad.from_dict(content, source="f.json")
    assert "f.json" in str(error.value)
    assert '"paragraphs"' in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'{"data": [{"par', "it looks cut off"),
        ("a.json", json.dumps(raw(qa())).encode()[:-30], "it looks cut off"),
        ("a.json", b"", "it looks cut off"),
        ("a.json", b"<html>no such page</html>" + b" " * 9, "not JSON"),
        ("a.json", b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json.gz", gzip.compress(json.dumps(raw(qa())).encode(), mtime=0)[:-9], "broken gzip"),
        ("a.json.gz", b"plain text", "broken gzip"),
        ("a.json.gz", gzip.compress(b"x" * 999, mtime=0)[:12] + b"\xff" * 40, "broken gzip"),
    ],
)
def test_a_broken_file_is_one_clear_error(tmp_path: Path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        squad.read(tmp_path / name)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="is missing; give a SQuAD"):
        squad.read(tmp_path / "no.json")
    with pytest.raises(UserError, match="is a folder"):
        squad.read(tmp_path)


def test_a_gzip_bomb_and_a_huge_file_are_refused_before_they_fill_the_memory(tmp_path: Path, monkeypatch):
    bomb = tmp_path / "bomb.json.gz"
    bomb.write_bytes(gzip.compress(b" " * (80 * 1024**2)))
    with pytest.raises(UserError, match="this is no SQuAD file, refused"):
        squad.read(bomb)
    monkeypatch.setattr(sources, "MOST_BYTES", 100)
    (tmp_path / "big.json").write_text(json.dumps(raw(qa())))
    with pytest.raises(UserError, match="more than 100 bytes of JSON"):
        squad.read(tmp_path / "big.json")


@pytest.mark.parametrize(
    "answer", ["\U0001f680", "cafe\u0301", "\u05e9\u05dc\u05d5\u05dd", "a\x00\x07b", "\u5317\u4eac", "\u202eabc\u202c"]
)
def test_any_character_is_kept_and_offsets_count_characters(tmp_path: Path, answer):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(raw(qa(answer=answer, start=3), context=f"x\U0001f600 {answer} y")))
    assert squad.read(path).examples[0].answers[0].text == answer


def test_a_lone_surrogate_becomes_one_replacement_character(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('{"data": [{"paragraphs": [{"context": "a\\ud800b Ada", "qas": [{"id": "1", "question": "q",'
                    ' "answers": [{"text": "Ada", "answer_start": 4}]}]}]}]}')  # fmt: skip
    assert squad.read(path).examples[0].context == "a\ufffdb Ada"


def test_limit_keeps_the_first_examples():
    assert [e.id for e in squad.from_dict(raw(*(qa(str(i)) for i in range(5))), limit=2).examples] == ["0", "1"]


def test_a_builtin_part_is_loaded_by_name_and_an_unknown_one_lists_the_known(monkeypatch):
    module = types.ModuleType("data.builtin")
    asked = []
    module.load = lambda part, **more: asked.append((part, more)) or raw(*(qa(str(i)) for i in range(3)))  # type: ignore
    monkeypatch.setitem(sys.modules, "data.builtin", module)
    assert len(squad.read("builtin:train", limit=2).examples) == 2
    squad.read("builtin:dev-facts", limit=2)
    assert asked == [("train", {"count": 2}), ("dev-facts", {})]
    with pytest.raises(UserError, match="choose builtin: and one of train, dev, dev-facts"):
        squad.read("builtin:nonsense")


class FakeBuilder:
    """The part of a tensorflow-datasets builder that is used."""

    def __init__(self, rows: list[dict], prepared: bool) -> None:
        self.rows, self.prepared, self.asked = rows, prepared, []

    def is_prepared(self) -> bool:
        return self.prepared

    def download_and_prepare(self) -> None:
        self.asked.append("download")

    def as_dataset(self, split: str) -> list[dict]:
        self.asked.append(split)
        return self.rows


def fake_tfds(monkeypatch, builder: FakeBuilder) -> None:
    module = types.ModuleType("tensorflow_datasets")
    module.as_numpy = lambda rows: rows  # type: ignore
    module.builder = lambda name: builder.asked.append(name) or builder  # type: ignore
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)


def test_tfds_rows_become_examples_of_the_split_asked_for(monkeypatch):
    row = {"id": b"7", "context": "Zo\u00eb built it.".encode(), "question": b"Who?", "is_impossible": np.bool_(False)}
    row["answers"] = {"text": np.array(["Zo\u00eb".encode()], object), "answer_start": np.array([0], np.int32)}
    builder = FakeBuilder([row], prepared=True)
    fake_tfds(monkeypatch, builder)
    dataset = squad.read("tfds:squad/v2.0", split="dev")
    assert builder.asked == ["squad/v2.0", "validation"]
    one = dataset.examples[0]
    assert (dataset.version, one.id, one.answers[0].text) == ("2.0", "7", "Zo\u00eb")


def test_tfds_without_a_network_says_at_once_to_give_a_file(monkeypatch):
    def refuse(address, timeout):
        raise OSError("no route to host")

    builder = FakeBuilder([], prepared=False)
    fake_tfds(monkeypatch, builder)
    monkeypatch.setattr(sources.socket, "create_connection", refuse)
    monkeypatch.setattr(sources, "getproxies", dict)
    with pytest.raises(UserError, match=r"OSError: no route to host.*give its path instead"):
        squad.read("tfds:squad")
    assert "download" not in builder.asked
    with pytest.raises(UserError, match=r"use tfds:squad or tfds:squad/v2\.0"):
        squad.read("tfds:glue")


@pytest.mark.parametrize(
    ("name", "questions", "version", "impossible"),
    [("train-v1.1", 6931, "1.1", 0), ("dev-v1.1", 1831, "1.1", 0), ("dev-v2.0", 2107, "2.0", 998)],
)
def test_the_real_files_have_the_questions_their_readme_says(name, questions, version, impossible):
    dataset = squad.read(shared(f"{name}.json.gz"))
    assert (len(dataset.examples), dataset.version, len(dataset.skipped)) == (questions, version, 0)
    assert sum(e.impossible for e in dataset.examples) == impossible
