"""Every loss of distillation against its published equation in numpy, one row and one token at a time."""

import math

import numpy as np
import pytest
import tensorflow as tf

from distill import losses
from distill.objective import Recipe
from distill.projection import Projections, choose

B, S, N = 3, 7, 2
STUDENT, TEACHER = 8, 12  # widths
LENGTHS = (7, 4, 2)
MASK = (np.arange(S)[None, :] < np.array(LENGTHS)[:, None]).astype(np.int32)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng([seed, *shape]).normal(size=shape) * scale).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def mean_square(student, teacher, kernel, bias) -> list[float]:
    """1 / (n d) sum (H_S W - H_T)^2 of every row."""
    rows = []
    for row, n in enumerate(LENGTHS):
        total = 0.0
        for token in range(n):
            total += float(((student[row, token].astype(float) @ kernel + bias - teacher[row, token]) ** 2).sum())
        rows.append(total / (n * teacher.shape[-1]))
    return rows


def attention(student, teacher) -> list[float]:
    """1 / (h n^2) sum (A_S - A_T)^2."""
    rows = []
    for row, n in enumerate(LENGTHS):
        pairs = [(h, i, j) for h in range(N) for i in range(n) for j in range(n)]
        rows.append(sum((float(student[row][p]) - float(teacher[row][p])) ** 2 for p in pairs) / (N * n * n))
    return rows


def prediction(student, teacher, t) -> list[float]:
    """- t^2 sum softmax(z_T / t) log softmax(z_S / t)."""
    rows = []
    for row, n in enumerate(LENGTHS):
        p, q = (softmax(z[row, :n].astype(float) / t) for z in (teacher, student))
        rows.append(-t * t * float((p * np.log(q)).sum()))
    return rows


def relation(student, teacher, heads) -> list[float]:
    """1 / (A n) sum KL(R_T || R_S) for queries, keys and values, added up."""
    rows = []
    for row, n in enumerate(LENGTHS):
        total = 0.0
        for mine, theirs in zip(student, teacher, strict=True):
            flat = [x[row, :n].reshape(n, -1).astype(float) for x in (mine, theirs)]
            for head in range(heads):
                cut = [np.split(x, heads, axis=1)[head] for x in flat]  # each [n, H / A]
                q, p = ([softmax(line) for line in x @ x.T / math.sqrt(x.shape[1])] for x in cut)
                total += sum(float((p[i] * np.log(p[i] / q[i])).sum()) for i in range(n)) / (heads * n)
        rows.append(total)
    return rows


def projected():
    layer = Projections("shared", 1, STUDENT, TEACHER)
    layer.restart(3)
    layer.biases["all"].assign(draw(TEACHER, seed=5))
    return layer.at(0), layer.kernels["all"].numpy(), layer.biases["all"].numpy()


PROJECT, KERNEL, BIAS = projected()
TRIPLES = [
    tuple(draw(B, S, N, width // N, seed=10 * width + k) for k in range(3)) for width in (STUDENT, TEACHER)
]  # fmt: skip
# loss -> (of tensors and mask, the tensors, numpy's values); logits are large, so that a temperature matters
CASES = {
    "embedding": (
        lambda s, t, mask: losses.embedding_loss(s, t, mask, PROJECT),
        (draw(B, S, STUDENT), draw(B, S, TEACHER)), lambda s, t: mean_square(s, t, KERNEL, BIAS),
    ),
    "hidden": (
        lambda s, t, mask: losses.hidden_loss(s, t, mask, PROJECT),
        (draw(B, S, STUDENT, seed=1), draw(B, S, TEACHER, seed=1)), lambda s, t: mean_square(s, t, KERNEL, BIAS),
    ),
    "hidden without projection": (
        losses.hidden_loss, (draw(B, S, TEACHER, seed=2), draw(B, S, TEACHER, seed=1)),
        lambda s, t: mean_square(s, t, np.eye(TEACHER), 0),
    ),
    "attention": (losses.attention_loss, (draw(B, N, S, S), draw(B, N, S, S, seed=1)), attention),
    "prediction": (
        losses.prediction_loss, (draw(B, S, scale=5), draw(B, S, seed=1, scale=5)), lambda s, t: prediction(s, t, 1)
    ),
    "prediction at temperature 3": (
        lambda s, t, mask: losses.prediction_loss(s, t, mask, 3.0), (draw(B, S, scale=5), draw(B, S, seed=1, scale=5)),
        lambda s, t: prediction(s, t, 3),
    ),
    "relation with the heads there are": (
        lambda s, t, mask: losses.relation_loss(s, t, mask, N), TRIPLES, lambda s, t: relation(s, t, N)
    ),
    "relation with more heads": (
        lambda s, t, mask: losses.relation_loss(s, t, mask, 4), TRIPLES, lambda s, t: relation(s, t, 4)
    ),
}  # fmt: skip


def tensors(tree, dtype=tf.float32, change=lambda x: x):
    """The arrays, alone or in tuples, as tensors."""
    return tf.nest.map_structure(lambda x: tf.cast(change(x), dtype), tree)


def token_axes(x: np.ndarray) -> list[int]:
    """[B, S], [B, S, H] and [B, S, N, D] have tokens on axis 1; scores [B, N, S, S] on the last two."""
    return [2, 3] if x.ndim == 4 and x.shape[2] == x.shape[3] and x.shape[1] == N else [1]


@pytest.mark.parametrize("case", CASES)
def test_a_loss_is_its_published_equation(case):
    loss, (student, teacher), numpy = CASES[case]
    got = loss(tensors(student), tensors(teacher), MASK)
    assert got.dtype == tf.float32
    np.testing.assert_allclose(got, numpy(student, teacher), rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_loss_of_float16_activations_is_float32_and_near(case):
    loss, (student, teacher), numpy = CASES[case]
    got = loss(tensors(student, tf.float16), tensors(teacher, tf.float16), MASK)
    assert got.dtype == tf.float32
    np.testing.assert_allclose(got, numpy(student, teacher), rtol=1e-2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("junk", [1e3, np.nan])
def test_what_stands_at_padding_reaches_neither_loss_nor_gradient(case, junk):
    loss, (student, teacher), _ = CASES[case]

    def spoilt(x):
        x = x.copy()
        for axis in token_axes(x):
            at_padding = np.moveaxis(x, (0, axis), (0, 1))
            at_padding[MASK == 0] = junk
        return x

    results = []
    for change in (lambda x: x, spoilt):
        given = tensors(student, change=change)
        with tf.GradientTape() as tape:
            tape.watch(given)
            total = tf.reduce_sum(loss(given, tensors(teacher, change=change), MASK))
        results.append([total.numpy(), *(g.numpy() for g in tf.nest.flatten(tape.gradient(total, given)))])
    for plain, other in zip(*results, strict=True):
        np.testing.assert_allclose(other, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_more_padding_changes_nothing(case):
    loss, (student, teacher), numpy = CASES[case]

    def longer(x):
        return np.pad(x, [(0, 5 if axis in token_axes(x) else 0) for axis in range(x.ndim)], constant_values=9)

    mask = np.pad(MASK, [(0, 0), (0, 5)])
    got = loss(tensors(student, change=longer), tensors(teacher, change=longer), mask)
    np.testing.assert_allclose(got, numpy(student, teacher), rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_row_does_not_know_its_place_or_its_neighbours(case):
    loss, (student, teacher), numpy = CASES[case]
    order = [2, 0]
    got = loss(
        tensors(student, change=lambda x: x[order]), tensors(teacher, change=lambda x: x[order]), MASK[order]
    )  # fmt: skip
    np.testing.assert_allclose(got, np.array(numpy(student, teacher))[order], rtol=1e-5)


def test_a_student_equal_to_its_teacher_has_nothing_left_to_learn():
    same, scores, triple = draw(B, S, TEACHER), draw(B, N, S, S), TRIPLES[1]
    assert float(tf.reduce_max(losses.hidden_loss(same, same, MASK))) == 0
    assert float(tf.reduce_max(losses.attention_loss(scores, scores, MASK))) == 0
    assert abs(float(tf.reduce_max(losses.relation_loss(triple, triple, MASK, 3)))) < 1e-6


def test_a_temperature_keeps_the_size_of_the_gradient():
    student, teacher = tf.constant(draw(B, S, scale=0.1)), tf.constant(draw(B, S, seed=1, scale=0.1))
    sizes = []
    for temperature in (1.0, 8.0):
        with tf.GradientTape() as tape:
            tape.watch(student)
            total = tf.reduce_sum(losses.prediction_loss(student, teacher, MASK, temperature))
        sizes.append(float(tf.norm(tape.gradient(total, student))))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_temperature_zero_is_refused():
    with pytest.raises(ValueError, match="temperature 0 must be above 0"):
        losses.prediction_loss(draw(B, S), draw(B, S), MASK, 0)


def test_relation_heads_offered_divide_both_widths():
    assert losses.relation_heads(312, 384) == [1, 2, 3, 4, 6, 8, 12, 24]


@pytest.mark.parametrize(("kind", "names"), [("none", 0), ("shared", 2), ("per_layer", 8)])
def test_projections_are_as_many_as_asked_for_and_start_alike(kind, names):
    layers = Projections(kind, 4, STUDENT, TEACHER)
    layers.restart(1)
    assert len(layers.variables()) == names
    if kind == "none":
        assert layers.at(2) is None
        return
    project = layers.at(2)
    assert project
    out = project(tf.constant(draw(64, 64, STUDENT)))
    assert float(tf.math.reduce_std(out)) == pytest.approx(1.0, rel=0.2)  # lengths are kept
    before = {name: variable.numpy() for name, variable in layers.variables().items()}
    layers.kernels[layers.names[0]].assign_add(tf.ones((STUDENT, TEACHER)))
    layers.restart(1)
    assert all((before[name] == variable.numpy()).all() for name, variable in layers.variables().items())
    layers.restart(2)
    assert not (before[f"projection.{layers.names[0]}.kernel"] == layers.kernels[layers.names[0]].numpy()).all()


def test_a_projection_between_equal_widths_starts_as_the_identity():
    layers = Projections("shared", 2, STUDENT, STUDENT)
    layers.restart(1)
    project = layers.at(1)
    assert project
    np.testing.assert_array_equal(project(tf.constant(draw(B, S, STUDENT))), draw(B, S, STUDENT))
    assert choose(None, 8, 8)[0] == "none"
    assert choose(None, 8, 12)[0] == "shared"


def test_what_a_recipe_does_not_learn_it_neither_asks_for_nor_reports():
    recipe = Recipe({"hidden": 1.0, "attention": 0.0, "relation": 2.0}, (2, 4), (2,), 1)
    assert recipe.parts == ("loss", "hidden", "hidden_1", "hidden_2", "relation", "relation_2")
    assert recipe.want == {"hidden", "relations"}
    assert [name.removeprefix("teacher.") for name in recipe.needed] == [
        "hidden.1", "hidden.2", "query.2", "key.2", "value.2",
    ]  # fmt: skip
    assert Recipe({"hard": 1.0}, (1,), (1,), 1).needed == ()
