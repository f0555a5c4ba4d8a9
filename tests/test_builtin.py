"""The built-in question sets: exact, repeatable, varied, and dev really is held out."""

import hashlib
import itertools
import json
import re
from functools import cache

import pytest

from data.builtin import load
from data.builtin.generate import LENGTH_WORDS, MAX_ANSWER_WORDS, SPLITS, passages
from data.builtin.grammar import patterns
from data.builtin.handwritten import answers
from data.builtin.world import is_held_out

PARTS = [(part, version) for part in (*SPLITS, "dev-handwritten") for version in ("1.1", "2.0")]
SAMPLE_SHA256 = "33afea61c109c2e654660608982436f707942400c4f3fd874bda2ee95185f513"

WH = (
    "how many",
    "how much",
    "how long",
    "how old",
    "how high|how tall",
    "how far",
    "how",
    "what year|in what year|in which year",
    "when|since when",
    "where",
    "why|for what reason",
    "whom|by whom|to whom|with whom|after whom",
    "whose",
    "who",
    "which",
    "what",
)


def kind(question: str) -> str:
    words = re.sub(r"[^a-z ]", "", question.lower())
    return next((name for name in WH if re.match(rf"({name})\b", words)), "other")


@cache
def made(part: str, version: str = "1.1") -> list:
    return list(itertools.islice(passages(part, 3, version), 150))


@cache
def whole(part: str) -> dict:
    return load(part)


def questions(data: dict) -> list[tuple[str, dict]]:
    return [
        (paragraph["context"], qa)
        for article in data["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


@pytest.mark.parametrize(("part", "version"), PARTS)
def test_every_answer_stands_at_its_offset(part, version):
    pairs = questions(load(part, version=version, count=250))
    assert len(pairs) == 250
    for context, qa in pairs:
        assert bool(qa["answers"]) != qa.get("is_impossible", False)
        for answer in qa["answers"]:
            start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
            assert context[start:end] == answer["text"] == answer["text"].strip() != ""
            assert not re.match(r"\w\w", context[start - 1 : start + 1]) or start == 0, (
                "an answer starts in the middle of a word"
            )
            assert not re.match(r"\w\w", context[end - 1 : end + 1]), "an answer ends in the middle of a word"


def test_the_same_seed_gives_the_same_bytes_on_any_machine():
    sample = [load(part, count=60, seed=7, version=version) for part, version in PARTS]
    assert hashlib.sha256(json.dumps(sample).encode()).hexdigest() == SAMPLE_SHA256, (
        "changed on purpose? put the new hash here"
    )
    assert load("train", count=60, seed=8) != sample[0]


def test_a_larger_count_continues_a_smaller_one():
    few, many = load("train", count=40), load("train", count=90)
    assert [qa for _, qa in questions(many)][:40] == [qa for _, qa in questions(few)]


@pytest.mark.parametrize(("part", "count"), [("train", 4000), ("dev-facts", 300), ("dev-patterns", 300)])
def test_a_part_has_its_default_size_and_nothing_twice(part, count):
    pairs = questions(whole(part))
    assert len(pairs) == count
    for what in ("id", "question"):
        assert len({qa[what] for _, qa in pairs}) == count
    assert all(LENGTH_WORDS[0] <= len(context.split()) <= LENGTH_WORDS[1] for context, _ in pairs)
    assert all(len(qa["answers"][0]["text"].split()) <= MAX_ANSWER_WORDS for _, qa in pairs)
    if part == "train":
        counts = [sum(kind(qa["question"]) == name for _, qa in pairs) for name in WH]
        assert sum(number >= 15 for number in counts) >= 12, dict(zip(WH, counts, strict=True))


def test_text_is_finished_english():
    for part in SPLITS:
        for passage in made(part):
            for text in (passage.context, *(q.text for q in passage.questions)):
                assert not re.search(
                    r"[\[\]{}<>|]|  | [.,;?]|\b[Aa] [aeio]|\b(\w+) \1\b(?<!that that)|\(\)|\bin on [A-Z]", text
                ), text
            assert passage.context[0].isupper() or passage.context[0] in '"0123456789'


def test_names_of_train_never_come_in_dev():
    train = {name for passage in made("train") for name in passage.names}
    for part in ("dev-facts", "dev-patterns"):
        assert not train & {name for passage in made(part) for name in passage.names}
    assert all(
        is_held_out(name.split()[-1])
        for passage in made("dev-facts")
        for name in passage.names
        if re.fullmatch(r"[A-Z]\w+ [A-Z]\w+", name)
        and name.split()[0] in ("Anna", "Clara", "Omar", "Felix", "Kenji", "Ruth")
    )


def test_no_sentence_or_question_pattern_of_dev_patterns_is_in_train():
    train = {key for passage in made("train") for key in (*passage.keys, *(q.key for q in passage.questions))}
    dev = {key for passage in made("dev-patterns") for key in (*passage.keys, *(q.key for q in passage.questions))}
    assert not train & dev
    assert len(dev) > 150
    known = {
        p.key: p.dev
        for topic in patterns().topics.values()
        for p in (*topic.intros, *topic.sentences, *topic.questions)
    }
    assert not any(known.get(key) for key in train)
    assert all(known.get(key, True) for key in dev)


def test_no_train_context_is_in_dev():
    train = {context for context, _ in questions(whole("train"))}
    assert not train & {
        context for part in ("dev-facts", "dev-patterns", "dev-handwritten") for context, _ in questions(whole(part))
    }


def test_an_answer_stands_in_the_passage_once_unless_it_is_a_name():
    for passage in made("train"):
        for question in passage.questions:
            times = len(re.findall(rf"(?<!\w){re.escape(question.answer.lower())}(?!\w)", passage.context.lower()))
            assert times == 1 or question.answer.lower().startswith("the ") or question.answer[0].isupper(), (
                question,
                passage.context,
            )
            assert question.answer.lower() not in question.text.lower(), "the question gives its answer away"


def test_a_third_of_version_2_is_unanswerable_and_its_fact_is_not_stated():
    made_2 = made("train", "2.0")
    all_questions = [(passage, q) for passage in made_2 for q in passage.questions]
    impossible = [(passage, q) for passage, q in all_questions if q.start < 0]
    assert 0.25 < len(impossible) / len(all_questions) < 0.42
    slots = {p.key: (topic.name, p.about) for topic in patterns().topics.values() for p in topic.questions}
    for passage, question in impossible:
        if question.key in slots:
            # Had the thing's fact been stated, the passage would hold it as (name, slot).
            assert not any(
                name in question.text and (name, slots[question.key][1]) in passage.stated for name in passage.names
            )


def test_handwritten_questions_are_enough_and_some_have_two_golds():
    plain, full = questions(load("dev-handwritten")), questions(load("dev-handwritten", version="2.0"))
    assert len({context for context, _ in plain}) >= 40
    assert len(plain) >= 200
    assert len(full) - len(plain) >= 30
    assert sum(len(qa["answers"]) > 1 for _, qa in plain) >= 100
    assert len({qa["question"] for _, qa in full}) == len(full)
    assert questions(load("dev-handwritten", count=10, seed=1)) != questions(load("dev-handwritten", count=10, seed=2))


@pytest.mark.parametrize(
    ("golds", "message"), [(["a cat"], "not in the passage"), (["red"], "occurs 2 times"), (["red#3"], "number 3")]
)
def test_a_handwritten_answer_that_cannot_be_placed_is_an_error(golds, message):
    with pytest.raises(ValueError, match=message):
        answers("A red dog has a red ball in a redoubt.", golds, "Dogs: What?")


def test_a_shorter_gold_is_placed_inside_the_first():
    assert [a["answer_start"] for a in answers("A dog and a red dog bark.", ["a red dog", "dog"], "")] == [10, 16]


def test_an_unknown_part_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match=r"no built-in part 'test'.*dev-handwritten"):
        load("test")


def test_dev_is_the_three_dev_parts_together():
    together = [paragraph for article in load("dev")["data"] for paragraph in article["paragraphs"]]
    parts = [paragraph for part in (*SPLITS, "dev-handwritten")[1:] for article in load(part)["data"]
             for paragraph in article["paragraphs"]]  # fmt: skip
    assert together == parts
    ids = [question["id"] for paragraph in together for question in paragraph["qas"]]
    assert len(ids) == len(set(ids)) == 875
