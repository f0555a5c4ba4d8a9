"""Chinese and cased models, from Google's layout of a checkpoint to an answer: characters are pieces, offsets right."""

import json
from pathlib import Path

import numpy as np
import task_kit as kit
import tiny
from safetensors.numpy import load_file
from test_weights import google_names, write_google

from data.tokenize import Tokenizer
from model import run_folder, weights
from serve.classifier import Classifier
from serve.reader import Reader
from serve.tagger import Tagger

PEOPLE, PLACES, DOING = ("李明", "王小红", "张伟"), ("北京", "上海市", "大理"), ("去了", "住在", "喜欢")


def google(folder: Path, texts: list[str]) -> Path:
    """A checkpoint of random weights as Google publishes one, whose vocabulary has the characters of `texts`."""
    source = kit.model(folder.parent / "source", texts)
    sizes = json.loads((source / "config.json").read_text())
    write_google(folder, google_names(load_file(source / "model.safetensors")), sizes)
    (folder / "vocab.txt").write_bytes((source / "vocab.txt").read_bytes())
    return folder


def sentences(seed: int) -> list[list[tuple[str, str]]]:
    random, found = np.random.default_rng(seed), []
    for _ in range(kit.COUNT):
        one = []
        for text, kind in ((random.choice(PEOPLE), "PER"), (random.choice(DOING), ""), (random.choice(PLACES), "LOC")):
            one += [(char, f"{'I' if place else 'B'}-{kind}" if kind else "O") for place, char in enumerate(text)]
        found.append([*one, ("。", "O")])
    return found


def test_chinese_names_are_found_character_by_character(tmp_path):
    for name, seed in (("train", 0), ("dev", 1)):
        kit.write_conll(tmp_path / f"{name}.conll", sentences(seed))
    model = google(tmp_path / "chinese_L-1_H-32_A-2", [char for one in sentences(0) for char, _ in one])
    metrics = kit.chain(
        tmp_path, "conll", tmp_path / "train.conll", tmp_path / "dev.conll", "--model", str(model), plan=False
    )
    assert metrics["student"]["best"]["f1"] >= 90
    assert metrics["engine"]["answers_changed"] == 0
    info = run_folder.read(tmp_path / "student")
    assert (info.bert.gelu, info.tokenizer["chinese"], info.tokenizer["lowercase"]) == ("tanh", True, True)
    with Tagger(tmp_path / "engine") as tagger:
        text = "李明住在 上海市。王小红去了北京。"
        found = tagger.tag(text)
        assert [text[a:b] for a, b in found.words] == [char for char in text if char != " "]
        assert ("LOC", "上海市", 5, 8) in [(e.kind, e.text, e.start, e.end) for e in found.entities]
        assert all(text[e.start : e.end] == e.text for e in found.entities)


def test_an_answer_is_cut_out_of_a_chinese_passage_at_its_characters(tmp_path):
    """Questions as ever; full-width marks, Latin words and a character outside of the basic plane among them."""
    passages = [f"{person}在{place}写了《𠮷 Book》，{person}喜欢{place}。" for person in PEOPLE for place in PLACES]
    qas = [
        {"context": text, "qas": [{
            "id": str(at), "question": "在哪里写了书？",
            "answers": [{"text": place, "answer_start": text.index(place)}],
        }]}
        for at, (text, place) in enumerate(zip(passages, PLACES * 3, strict=True))
    ]  # fmt: skip
    data = tmp_path / "train.json"
    data.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": qas * 1}]}), encoding="utf-8")
    model = google(tmp_path / "chinese_L-1_H-32_A-2", [*passages, "在哪里写了书？"])
    argv = ["--model", model, "--data", data, "--dev", data, "--out", tmp_path / "run", "--cache", tmp_path / "cache"]
    with tiny.eager():
        metrics = tiny.train([*map(str, argv), *kit.SMALL, "--query", "8", "--window", "48", "--epochs", "25"])
    assert metrics["best"]["exact"] >= 80
    kit.export("--run", tmp_path / "run", "--out", tmp_path / "engine", "--dev", data, "--target", "none")
    with Reader(tmp_path / "engine") as reader:
        answer = reader.answer("在哪里写了书？", passages[1])
        assert (answer.text, answer.start, answer.end) == (
            passages[1][answer.start : answer.end],
            answer.start,
            answer.end,
        )
        right = [
            reader.answer("在哪里写了书？", text).text == place
            for text, place in zip(passages, PLACES * 3, strict=True)
        ]
        assert sum(right) >= 7


def test_a_cased_model_tells_a_name_from_a_word(tmp_path):
    """The same letters, large or small: only a tokeniser that keeps case can learn it."""
    things = ("Rose", "May", "Mark", "Bill")
    rows = [
        {"text": f"{word if place % 2 else word.lower()} was here", "label": ("thing", "person")[place % 2]}
        for place, word in enumerate(np.random.default_rng(0).choice(things, kit.COUNT).tolist())
    ]
    data = kit.write_csv(tmp_path / "rows.csv", rows)
    model = google(tmp_path / "cased_L-1_H-32_A-2", [row["text"] for row in rows])
    assert weights.load(str(model)).tokenizer["lowercase"] is False
    tokenizer = Tokenizer.from_config({"lowercase": False, "strip_accents": None, "chinese": True}, model / "vocab.txt")
    assert len({tuple(e.ids) for e in tokenizer.encode_batch(["Rose", "rose"])}) == 2
    metrics = kit.chain(tmp_path, "csv", data, data, "--model", str(model), plan=False)
    assert metrics["student"]["best"]["accuracy"] >= 95
    with Classifier(tmp_path / "engine") as classifier:
        said = [classifier.classify(text).label for text in ("Rose was here", "rose was here")]
        assert said == ["person", "thing"]
