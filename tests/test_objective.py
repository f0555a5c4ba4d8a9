"""What a stage learns: which outputs of teacher and student meet in which loss, and how the losses add up."""

import numpy as np
import pytest
import tensorflow as tf

from distill import losses
from distill.objective import Objective, Recipe, teacher_outputs
from distill.projection import Projections
from heads import default
from heads.span import span_loss
from model.config import BertConfig
from model.heads import HeadModel

SPAN = default()

B, S = 3, 8
SIZES = {"vocabulary": 30, "heads": 2, "ffn": 16, "positions": S, "attention_dropout": 0.0}
MAPPED = (1, 4)  # not the uniform one, and not the student's own numbers
WEIGHTS = {"embedding": 0.5, "hidden": 2.0, "attention": 3.0, "relation": 5.0, "prediction": 7.0, "hard": 11.0}
RECIPE = Recipe(WEIGHTS, MAPPED, (1, 2), 2, temperature=2.0, answers=("start", "end"))


@pytest.fixture(scope="module")
def models():
    tf.keras.utils.set_random_seed(3)
    student = HeadModel(SPAN, BertConfig(hidden=8, layers=2, dropout=0.5, **SIZES))
    teacher = HeadModel(SPAN, BertConfig(hidden=12, layers=4, dropout=0.0, **SIZES))
    random = np.random.default_rng(1)
    for model in (student, teacher):  # initial values of 0.02 would make all layers alike
        for name, variable in model.names().items():
            if not name.endswith("scale"):
                variable.assign(random.normal(size=variable.shape) * 0.5)
    projections = Projections("per_layer", 3, 8, 12)
    projections.restart(1)
    return student, teacher, projections


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(2)
    real = (np.arange(S)[None, :] < np.array([8, 5, 2])[:, None]).astype(np.int32)
    arrays = {"token_ids": random.integers(0, 30, (B, S)), "segment_ids": np.zeros((B, S)), "padding_mask": real,
              "start_positions": np.array([1, 2, 0]), "end_positions": np.array([3, 2, 0])}  # fmt: skip
    return {name: tf.constant(value, tf.int32) for name, value in arrays.items()} | {
        "weight": tf.constant([1.0, 1.0, 0.0])  # the last row is a filler
    }


def by_hand(models, batch) -> dict[str, float]:
    """Every part from the two encoders' own outputs."""
    student, teacher, projections = models
    ids = (batch["token_ids"], batch["segment_ids"], batch["padding_mask"])
    mine, theirs = (model.encoder(*ids, want=("hidden", "scores", "relations")) for model in (student, teacher))
    mask = batch["padding_mask"]
    rows = {"embedding": losses.embedding_loss(mine.hidden[0], theirs.hidden[0], mask, projections.at(0))}
    for m, n in ((1, 1), (2, 4)):
        rows[f"hidden_{m}"] = losses.hidden_loss(mine.hidden[m], theirs.hidden[n], mask, projections.at(m))
        rows[f"attention_{m}"] = losses.attention_loss(mine.scores[m - 1], theirs.scores[n - 1], mask)
        rows[f"relation_{m}"] = losses.relation_loss(mine.relations[m - 1], theirs.relations[n - 1], mask, 2)
    (start, end), (start_t, end_t) = student.logits(mine.output), teacher.logits(theirs.output)
    both = losses.prediction_loss(start, start_t, mask, 2.0) + losses.prediction_loss(end, end_t, mask, 2.0)
    rows["prediction"] = both / 2
    rows["hard"] = span_loss(start, end, mask, batch["start_positions"], batch["end_positions"])
    parts = {name: float(row[0] + row[1]) for name, row in rows.items()}
    for name in ("hidden", "attention", "relation"):
        parts[name] = parts[f"{name}_1"] + parts[f"{name}_2"]
    return parts | {"loss": sum(weight * parts[name] for name, weight in WEIGHTS.items())}


def test_each_part_compares_what_it_is_named_for_and_the_loss_weighs_them(models, batch):
    student, teacher, projections = models
    got = Objective(student, teacher, RECIPE, projections)(batch, None)
    expected = by_hand(models, batch)
    assert set(got) == set(RECIPE.parts) == set(expected)
    for name, value in expected.items():
        assert float(got[name]) == pytest.approx(value, rel=1e-5), name


def test_cached_outputs_are_taken_in_place_of_a_teacher(models, batch):
    student, teacher, projections = models
    outputs = teacher_outputs(teacher, batch, RECIPE)
    assert set(outputs) == set(RECIPE.needed)
    live = Objective(student, teacher, RECIPE, projections)(batch, None)
    cached = Objective(student, None, RECIPE, projections)(batch | outputs, None)
    for name in RECIPE.parts:
        assert float(cached[name]) == pytest.approx(float(live[name]), rel=1e-6), name


def test_the_student_drops_by_its_seed_and_the_teacher_never(models, batch):
    student, teacher, projections = models
    objective = Objective(student, teacher, RECIPE, projections)
    seeds = [tf.constant(pair, tf.int64) for pair in ([1, 0], [2, 0], [1, 0])]
    first, second, again = (float(objective(batch, seed)["loss"]) for seed in seeds)
    assert first != second
    assert first == again
    assert float(objective(batch, None)["loss"]) != first


def test_a_stage_trains_what_its_losses_reach(models):
    student, teacher, projections = models
    names = set(student.names())

    def trained(**weights):
        return set(Objective(student, teacher, Recipe(weights, MAPPED, (2,), 2), projections).variables())

    assert trained(prediction=1.0) == trained(hard=1.0) == names
    headless = names - {"span.kernel", "span.bias"}
    assert trained(attention=1.0) == trained(relation=1.0) == headless
    assert trained(hidden=1.0) == headless | set(projections.variables())
