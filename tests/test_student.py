"""The student before it has learnt anything: its sizes, where its first values come from, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from configs.errors import UsageError, UserError
from data.squad import Dataset, Example
from data.tokenize import Tokenizer
from distill import holdout, projection, student, text
from distill.config import DistillConfig
from distill.prepare import recipe
from heads import default
from model import weights
from model.config import BertConfig

SPAN = default()

SIZES = BertConfig(vocabulary=20, hidden=12, layers=4, heads=2, ffn=16, positions=8)


def published(config: BertConfig = SIZES, **more) -> weights.Published:
    """Weights in which every number of a tensor is the tensor's own."""
    shapes = weights.expected_shapes(config, SPAN)
    tensors = {name: np.full(shape, index, np.float32) for index, (name, shape) in enumerate(shapes.items())}
    return weights.Published(config, tensors, [], Path("teacher"), {}, "teacher", **more)


def settings(**given) -> DistillConfig:
    files: dict[str, Any] = {"teacher": "teacher", "data": "-", "out": "-"}
    return DistillConfig(**(files | given))


TEACHER = published()


@pytest.mark.parametrize(("name", "sizes"), [
    ("tinybert-4l-312", (4, 312, 12, 1200)),
    ("tinybert-6l-768", (6, 768, 12, 3072)),
    ("minilm-3l-384", (3, 384, 12, 1536)),
])  # fmt: skip
def test_a_name_stands_for_sizes_and_the_rest_is_the_teachers(name, sizes):
    base = replace(SIZES, hidden=768, layers=12, heads=12, ffn=3072, gelu="tanh", dropout=0.2)
    built = student.plan(settings(student=name), weights.Published(base, {}, [], Path("t"), {}, "t"), SPAN).config
    assert (built.layers, built.hidden, built.heads, built.ffn) == sizes
    assert (built.vocabulary, built.positions, built.gelu, built.dropout) == (20, 8, "tanh", 0.2)


def test_numbers_go_over_the_name_and_no_name_means_the_teachers_sizes():
    built = student.plan(settings(layers=2, hidden=6, heads=3, ffn=5, dropout=0.0), TEACHER, SPAN).config
    assert (built.layers, built.hidden, built.heads, built.ffn, built.dropout) == (2, 6, 3, 5, 0.0)
    assert student.plan(settings(layers=2), TEACHER, SPAN).config == replace(SIZES, layers=2)


@pytest.mark.parametrize(("asked", "source"), [("uniform", (2, 4)), ("last", (3, 4)), ("1,3", (1, 3))])
def test_a_student_of_equal_width_starts_as_the_teachers_mapped_layers(asked, source):
    plan = student.plan(settings(layers=2, layer_map=asked), TEACHER, SPAN)
    assert plan.layer_map == source
    assert set(plan.start.tensors) == set(weights.expected_shapes(plan.config, SPAN))
    for index, number in enumerate(source):
        mine = plan.start.tensors[f"layers.{index}.ffn.out.kernel"]
        np.testing.assert_array_equal(mine, TEACHER.tensors[f"layers.{number - 1}.ffn.out.kernel"])
    np.testing.assert_array_equal(plan.start.tensors["span.kernel"], TEACHER.tensors["span.kernel"])


def test_a_narrower_student_starts_at_random_and_so_does_one_told_to():
    assert student.plan(settings(layers=2, hidden=6), TEACHER, SPAN).start.tensors == {}
    assert student.plan(settings(layers=2, fill="random"), TEACHER, SPAN).start.tensors == {}
    assert student.plan(settings(layers=2, fill="random"), TEACHER, SPAN).told == "random"


def test_another_number_of_heads_takes_all_but_the_attention():
    taken = student.plan(settings(layers=2, heads=4), TEACHER, SPAN).start.tensors
    assert not [name for name in taken if "attention.qkv" in name or "attention.out" in name]
    assert {"layers.1.ffn.in.kernel", "layers.1.attention.norm.scale", "embeddings.token"} <= set(taken)


def test_another_feed_forward_width_takes_all_that_fits():
    taken = student.plan(settings(layers=2, ffn=8), TEACHER, SPAN).start.tensors
    assert "layers.0.ffn.out.bias" in taken  # as wide as the student, whatever the feed-forward width
    assert not [name for name in taken if name.endswith(("ffn.in.kernel", "ffn.in.bias", "ffn.out.kernel"))]


def test_a_folder_gives_sizes_and_first_values(tmp_path):
    folder = tiny.weights(tmp_path / "small", layers=1)
    theirs = BertConfig(vocabulary=400, hidden=tiny.WIDTH, layers=3, heads=2, ffn=tiny.FFN, positions=64)
    plan = student.plan(settings(student=str(folder)), published(theirs), SPAN)
    assert (plan.config.layers, plan.config.hidden, plan.layer_map) == (1, tiny.WIDTH, (3,))
    assert plan.start.folder == folder
    with pytest.raises(UsageError, match="has its own sizes"):
        student.plan(settings(student=str(folder), layers=2), published(theirs), SPAN)
    with pytest.raises(UserError, match="embeddings for 400 pieces, the teacher for 20"):
        student.plan(settings(student=str(folder)), published(replace(theirs, vocabulary=20)), SPAN)


# Settings that no student can have -> what the error says, with the way out.
BAD = {
    "deeper": ({"layers": 5}, "5 layers, the teacher 4; .* --layers 4 or less"),
    "wider": ({"hidden": 24}, "24 wide, the teacher 12; choose --hidden 12 or less"),
    "heads that do not divide": ({"heads": 5}, "12 cannot be split over 5 heads; choose one of 1, 2, 3, 4, 6, 12"),
    "an unknown name": ({"student": "tinybert"}, "tinybert-4l-312, tinybert-6l-768, minilm-3l-384"),
    "a teacher too narrow to fill it": ({"hidden": 6, "fill": "teacher"}, "--fill random, or --hidden 12"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_student_that_cannot_be_is_refused_with_the_way_out(case):
    given, said = BAD[case]
    with pytest.raises(UserError, match=said):
        student.plan(settings(**given), TEACHER, SPAN)


def test_attention_between_different_heads_is_refused_with_the_choices_left():
    plan = student.plan(settings(layers=2, heads=4), TEACHER, SPAN)
    said = r"4 heads, the teacher 2; choose --heads 2 .*--attention-weight 0, or relations .*--relation-weight 1"
    with pytest.raises(UsageError, match=said):
        recipe(settings(), "task", plan, SIZES, SPAN)
    free = recipe(settings(attention_weight=0.0, relation_weight=1.0), "task", plan, SIZES, SPAN)
    assert (free.relation_heads, free.related) == (2, (2,))
    every = settings(attention_weight=0.0, relation_weight=1.0, relation_layers="all", relation_heads=3)
    assert recipe(every, "task", plan, SIZES, SPAN).related == (1, 2)


def test_relation_heads_that_do_not_divide_are_refused_with_those_that_do():
    plan = student.plan(settings(layers=2, hidden=8), TEACHER, SPAN)
    with pytest.raises(UsageError, match=r"3 relation heads .* 8 and 12; choose --relation-heads from 1, 2, 4"):
        recipe(settings(relation_weight=1.0, relation_heads=3), "task", plan, SIZES, SPAN)


def test_no_projection_between_different_widths_is_refused():
    with pytest.raises(UsageError, match="student has 6, the teacher 12; choose shared or per_layer"):
        projection.choose("none", 6, 12)


@pytest.mark.parametrize(("given", "said"), [
    ({"hidden_weight": 0.0, "embedding_weight": 0.0, "attention_weight": 0.0}, "losses of the task stage .*--hidden"),
    ({"prediction_weight": 0.0}, "all losses of the prediction stage .* --hard-weight"),
    ({"stages": ()}, "name each at most once"),
    ({"stages": ("task", "task")}, "name each at most once"),
    ({"stages": ("general", "task")}, "--general-teacher, or run --stages general alone"),
])  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(given, said):
    with pytest.raises(UsageError, match=said) as caught:
        settings(**given)
    assert caught.value.exit_code == 2


def test_stages_run_in_their_order_whatever_the_order_they_are_named_in():
    assert settings(stages=("prediction", "task")).ordered_stages == ("task", "prediction")


def articles(*sizes: int, titles: bool = True) -> Dataset:
    made = [
        Example(f"{group}-{index}", f"title {group}" if titles else "", f"passage {group}", "who?", (), True)
        for group, size in enumerate(sizes) for index in range(size)
    ]  # fmt: skip
    return Dataset(made, "2.0", source="some.json")


@pytest.mark.parametrize("titles", [True, False])
def test_whole_articles_are_held_out_and_always_the_same(titles):
    whole = articles(*([10] * 20), titles=titles)
    rest, held = holdout.split(SPAN, whole, 0.1)
    assert len(held.examples) == 20
    assert len(rest.examples) == 180
    assert not {e.context for e in rest.examples} & {e.context for e in held.examples}
    again = holdout.split(SPAN, replace(whole, examples=whole.examples[::-1]), 0.1)[1]
    assert {e.id for e in again.examples} == {e.id for e in held.examples}


def test_one_article_cannot_be_parted():
    with pytest.raises(UserError, match=r"1 articles, 10% .* cannot be set aside"):
        holdout.split(SPAN, articles(50), 0.1)


def test_text_becomes_windows_of_one_or_two_segments(tmp_path):
    source = tmp_path / "plain.txt"
    source.write_text("the north tower was built. " * 60 + "\n\nshort\n\na b c d e f g h i j k l", encoding="utf-8")
    folder = tiny.weights(tmp_path / "model")
    tokenizer = Tokenizer(folder / "vocab.txt")
    documents = text.read(str(source), SPAN)
    assert len(documents) == 3
    features = text.featurise(documents, tokenizer, 32, 1, str(source))
    batch = features.assemble(np.arange(len(features)), 32)
    real = batch["padding_mask"].sum(axis=1)
    np.testing.assert_array_equal(real, features.length)
    assert (real <= 32).all()
    two = batch["segment_ids"].max(axis=1)
    assert 0 < two.sum() < len(features)
    ids = batch["token_ids"]
    for row in range(len(features)):
        line = ids[row, : real[row]]
        assert line[0] == tokenizer.cls_id
        assert line[-1] == tokenizer.sep_id
        assert (line == tokenizer.sep_id).sum() == 1 + two[row]
    joined = np.concatenate([ids[row, : real[row]] for row in range(len(features))])
    kept = joined[~np.isin(joined, [tokenizer.cls_id, tokenizer.sep_id])]
    whole = tokenizer.encode_flat([documents[0], documents[2]]).ids
    assert len(whole) - 8 < len(kept) <= len(whole)  # all but a tail too short to teach anything
    np.testing.assert_array_equal(kept[:100], whole[:100])


def test_text_without_a_sentence_is_refused(tmp_path):
    folder = tiny.weights(tmp_path / "model")
    with pytest.raises(UserError, match="no piece of 8 tokens"):
        text.featurise(["a b"], Tokenizer(folder / "vocab.txt"), 32, 1, "x.txt")
