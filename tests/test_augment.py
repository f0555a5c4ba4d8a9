"""Copies with exchanged words: answers and labels stay; draws depend on seed, id and passage."""

import string

import pytest
from data_kit import dataset, example

from configs.errors import UserError
from data import squad
from data.builtin import load
from data.squad import Answer, Dataset, Example
from distill.augment_questions import augment
from distill.augment_rows import augment_pairs
from distill.replace import Job, in_case_of, vary, words

STAND_INS = ("fig", "watermelon", "quince")  # of three lengths, so that texts shrink and grow


def fruit(texts, places, most, progress=None):
    """Candidates that are easily told from the text, the same for every word."""
    if progress:
        progress(len(places), len(places))
    return [STAND_INS[:most] for _ in places]


def nothing(texts, places, most, progress=None):
    return [()] * len(places)


def builtin(version="1.1", count=300):
    return squad.from_dict(load("train", count=count, version=version))


def copies_of(larger):
    return [e for e in larger.examples if "#" in e.id]


def all_words(text, **settings):
    """The text with every word that may be exchanged exchanged."""
    job = Job("key", text, **settings)
    ((variant,),), _ = vary([job], fruit, copies=1, probability=1.0, most=1, seed=0)
    return variant.text


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_answers_keep_their_text_and_stand_at_their_offsets(version):
    original = builtin(version)
    larger, report = augment(original, fruit, copies=3)
    before = {e.id: e for e in original.examples}
    moved = 0
    for copy in copies_of(larger):
        source = before[copy.id.split("#")[0]]
        assert [a.text for a in copy.answers] == [a.text for a in source.answers]
        assert all(copy.context[a.start : a.start + len(a.text)] == a.text for a in copy.answers)
        assert (copy.impossible, copy.title) == (source.impossible, source.title)
        assert (copy.context, copy.question) != (source.context, source.question)
        moved += [a.start for a in copy.answers] != [a.start for a in source.answers]
    assert moved > len(original.examples)
    assert any(e.impossible for e in copies_of(larger)) == (version == "2.0")
    assert (report.copies + report.same, report.lost, larger.version) == (3 * len(original.examples), 0, version)


def test_the_originals_come_first_and_ids_are_unique():
    original = builtin(count=40)
    larger, report = augment(original, fruit, copies=4)
    assert larger.examples[:40] == original.examples
    assert len({e.id for e in larger.examples}) == len(larger.examples) == 40 + report.copies
    assert {e.id for e in copies_of(larger)} <= {f"{e.id}#{k}" for e in original.examples for k in (1, 2, 3, 4)}
    assert (report.examples, report.kind, report.reason) == (40, "custom", "given by the caller")


def test_a_shared_passage_is_varied_once_a_copy_and_keeps_the_answers_of_all_its_questions():
    text = "Anna Berg painted seven harbours in Norway before winter came to Bergen"
    set_of = dataset(*(example(name, text, f"question number {name}", answer) for name, answer in
                       [("a", "Anna Berg"), ("b", "seven harbours"), ("c", "Bergen")]))  # fmt: skip
    larger, report = augment(set_of, fruit, copies=5, probability=1.0)
    assert len({e.context for e in larger.examples}) == 6
    for copy in copies_of(larger):
        kept = [word for word in copy.context.split() if word.lower() not in STAND_INS]
        assert kept == ["Anna", "Berg", "seven", "harbours", "in", "before", "to", "Bergen"]
    assert report.words == 4 + 3 * 2  # painted, Norway, winter, came; question, number
    assert report.exchanged == 5 * report.words
    assert report.texts == 4


def test_words_of_the_answer_stay_in_question_and_passage_wherever_they_stand():
    text = "The red bridge is older than the green bridge, said Redford."
    larger, _ = augment(dataset(example("a", text, "Is the Red or the white bridge older?", "red bridge")), fruit,
                        copies=1, probability=1.0, most=1)  # fmt: skip
    copy = larger.examples[1]
    assert copy.context == "The red bridge is fig than the fig bridge, fig Fig."
    assert copy.question == "Is the Red or the fig bridge fig?"


def test_an_answer_within_a_word_keeps_the_whole_word():
    within = dataset(example("a", "some overgrown garden", "which", "grown"))
    larger, _ = augment(within, fruit, copies=1, probability=1.0)
    assert larger.examples[1].context.startswith("some overgrown ")
    assert larger.examples[1].answers == (Answer("grown", 9),)
    two = dataset(*(example(answer, "an overgrown garden", "which", answer) for answer in ("grown", "gard")))
    larger, report = augment(two, fruit, copies=1, probability=1.0)
    assert (larger.examples, report.words) == (two.examples, 0)


def test_draws_depend_on_seed_id_and_passage_alone():
    original = builtin(count=120)
    by_id = {e.id: e for e in augment(original, fruit, copies=4, seed=7)[0].examples}
    backwards = Dataset(original.examples[::-1], "1.1", source="test")
    assert {e.id: e for e in augment(backwards, fruit, copies=4, seed=7)[0].examples} == by_id
    contexts = {e.context for e in original.examples[:30]}
    part = Dataset([e for e in original.examples if e.context in contexts], "1.1", source="test")
    fewer, _ = augment(part, fruit, copies=2, seed=7)
    assert all(by_id[e.id] == e for e in fewer.examples)
    twins = dataset(*(example(name, "Oslo", "which town has seven old harbours", "Oslo") for name in "ab"))
    assert len({e.question for e in augment(twins, fruit, copies=1)[0].examples}) == 3
    other, _ = augment(original, fruit, copies=4, seed=8)
    assert sum(by_id.get(e.id) == e for e in copies_of(other)) < 10


def test_copies_differ_and_words_are_exchanged_about_as_often_as_asked():
    original = builtin(count=200)
    larger, report = augment(original, fruit, copies=5, probability=0.3)
    assert 0.28 < report.exchanged / (5 * report.words) < 0.32
    seen = [(e.id.split("#")[0], e.context, e.question) for e in larger.examples]
    assert len(set(seen)) == len(seen)
    used = "".join(e.context.lower() for e in copies_of(larger))
    counts = [used.count(word) for word in STAND_INS]
    assert max(counts) < 1.15 * min(counts)


def test_a_question_without_answers_is_not_made_impossible():
    bare = dataset(Example("a", "t", "seven harbours", "which", (), False))
    larger, _ = augment(bare, fruit, copies=1, probability=1.0)
    assert [e.impossible for e in larger.examples] == [False, False]


def test_parts_not_to_be_varied_stay():
    original = builtin(count=20)
    before = {e.id: e for e in original.examples}
    for copy in copies_of(augment(original, fruit, copies=2, probability=0.9, parts="question")[0]):
        assert copy.context == before[copy.id.split("#")[0]].context
        assert copy.question != before[copy.id.split("#")[0]].question
    for copy in copies_of(augment(original, fruit, copies=2, probability=0.9, parts="context")[0]):
        assert copy.question == before[copy.id.split("#")[0]].question
        assert copy.context != before[copy.id.split("#")[0]].context


def test_an_answer_that_is_not_at_its_offset_costs_the_copies_not_the_original():
    wrong = Example("a", "t", "many dogs and many cats", "which pets", (Answer("many", 0), Answer("cats", 5)), False)
    larger, report = augment(dataset(wrong, example("b", "many dogs", "which pets", "dogs")), fruit, copies=3)
    assert larger.examples[0] == wrong
    assert not [e for e in copies_of(larger) if e.id.startswith("a")]
    assert report.lost == 3


def test_copies_equal_to_the_original_are_left_out():
    larger, report = augment(dataset(example("a", "It is so.", "is it", "so")), fruit, copies=3)
    assert (len(larger.examples), report.same, report.copies, report.words) == (1, 3, 0, 0)
    larger, report = augment(builtin(count=10), nothing, copies=3)
    assert (len(larger.examples), report.same, report.exchanged) == (10, 30, 0)


@pytest.mark.parametrize(("text", "changed"), [
    ("Castles stand. CASTLES! castles?", "Fig fig. FIG! fig?"),
    ("the McDonald iPhone x X garden", "the McDonald iPhone x X fig"),  # no other word has that case; single letters
    ("it isn't the teacher's o'clock", "it isn't the fig's o'clock"),
    ("the 1990s B2B naive naïve", "the 1990s B2B fig naïve"),  # digits and accents make another word
    ("cafe\u0301 co\u00adop home-grown snake_case", "cafe\u0301 co\u00adop fig-fig fig_fig"),
    ("Henry IV left CIVIC LIFE", "Fig IV fig CIVIC FIG"),  # a number in Roman letters, or what looks like one
    ("don’t ‘quoted’ Jürgen’s", "don’t ‘fig’ Jürgen’s"),
    ("", ""),
])  # fmt: skip
def test_only_whole_english_words_are_exchanged_and_keep_their_case(text, changed):
    assert all_words(text) == changed


@pytest.mark.parametrize(("old", "new", "written"), [
    ("city", "Paris", "Paris"), ("City", "town", "Town"), ("CITY", "town", "TOWN"), ("City", "iPhone", "IPhone"),
])  # fmt: skip
def test_a_stand_in_is_written_as_the_word_was(old, new, written):
    assert in_case_of(old, new) == written


def test_stop_words_spans_and_kept_words_stay():
    assert all_words("Who was not with us at home") == "Who was not with us at fig"
    assert all_words("brown fox, brown dog", spans=((6, 9),)) == "fig fox, fig fig"
    assert all_words("brown fox, Brown dog", kept=frozenset({"brown"})) == "brown fig, Brown fig"
    assert words("Don't RUN") == {"don", "t", "run"}


def test_every_position_outside_the_exchanged_words_is_found_again():
    text = string.ascii_lowercase.join(["castle ", " + ", " * harbour."])
    ((variant,),), _ = vary([Job("k", text)], fruit, copies=1, probability=0.7, most=3, seed=5)
    for mark in "+*.":
        assert variant.text[variant.shift(text.index(mark))] == mark


def test_sentence_pairs_vary_one_sentence_and_take_the_other_from_the_original_row():
    rows = [("1", "A farmer sells apples", "Apples are sold"), ("2", "Rain falls on Paris", "")]
    made, report = augment_pairs(rows, fruit, copies=3, probability=0.6, seed=2)
    assert [(p.first, p.second, p.row) for p in made[:2]] == [(*rows[0][1:], 0), (*rows[1][1:], 1)]
    for pair in made[2:]:
        _, first, second = rows[pair.row]
        name, side = pair.id.split("#")
        assert name == rows[pair.row][0]
        assert pair.second == second if side[0] == "a" else pair.first == first
        assert (pair.first, pair.second) != (first, second)
    assert {p.id[2] for p in made if "#" in p.id} == {"a", "b"}
    assert len({p.id for p in made}) == len(made) == 2 + report.copies
    alone = augment_pairs(rows[:1], fruit, copies=2, probability=0.6, seed=2)[0]
    assert set(alone) <= set(made)
    _, single = augment_pairs(rows[1:], fruit, copies=3, probability=0.6, seed=2)
    assert single.copies + single.same == 3


@pytest.mark.parametrize(("settings", "message"), [
    ({"copies": 0}, "0 copies"),
    ({"probability": 0.0}, "probability of 0.0"),
    ({"probability": 1.5}, "probability of 1.5"),
    ({"probability": float("nan")}, "probability of nan"),
    ({"most": 0}, "0 candidates"),
    ({"parts": "answer"}, "parts 'answer' cannot be varied; choose one of both, question, context"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        augment(builtin(count=2), fruit, **({"copies": 2} | settings))


def test_sets_that_cannot_be_varied_are_refused():
    with pytest.raises(UserError, match="no examples"):
        augment(dataset(), fruit, copies=1)
    larger, _ = augment(builtin(count=5), fruit, copies=1)
    with pytest.raises(UserError, match="#1 is a copy already; start from the set without copies"):
        augment(larger, fruit, copies=2)
    with pytest.raises(UserError, match="an id stands twice"):
        augment_pairs([("1", "a", "b"), ("1", "c", "d")], fruit, copies=1)
    with pytest.raises(UserError, match="0 copies"):
        augment_pairs([("1", "a", "b")], fruit, copies=0)
