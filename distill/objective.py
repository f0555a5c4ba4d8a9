"""What a stage learns, as an objective for `train/step.py`: the student's pass, the teacher's, and the losses between.

The teacher is asked once a batch, without dropout and without gradients, in its own compute type and inside the same
compiled function; or not at all, where the batch brings its cached outputs along (`distill/cache.py`). Attention scores
are written out only in layers whose scores are learnt; all others, in teacher and student, may use fused attention.
"""

from dataclasses import dataclass

import tensorflow as tf

from distill import losses
from distill.projection import Projections
from model.bert import Encoded
from model.heads import HeadModel

PREFIX = "teacher."  # of the teacher's outputs in a batch: "teacher.logits", "teacher.hidden.0", "teacher.query.3"


@dataclass(frozen=True)
class Recipe:
    """The losses of a stage.

    weights: loss -> weight; those of weight 0 cost nothing. mapped: the teacher's layer of each of the student's, from
    1. related: the student's layers, from 1, whose relations are learnt. answers: keys of the head's outputs.
    """

    weights: dict[str, float]
    mapped: tuple[int, ...]
    related: tuple[int, ...]
    relation_heads: int
    temperature: float = 1.0
    answers: tuple[str, ...] = ()

    def learns(self, *names: str) -> bool:
        return any(self.weights.get(name, 0.0) > 0 for name in names)

    @property
    def layers(self) -> range:
        return range(1, len(self.mapped) + 1)

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the teacher's outputs that the losses compare with."""
        names = list(self.answers) if self.learns("prediction") else []
        names += ["hidden.0"] if self.learns("embedding") else []
        names += [f"hidden.{layer}" for layer in self.layers] if self.learns("hidden") else []
        names += [f"scores.{layer}" for layer in self.layers] if self.learns("attention") else []
        if self.learns("relation"):
            names += [f"{kind}.{layer}" for layer in self.related for kind in ("query", "key", "value")]
        return tuple(PREFIX + name for name in names)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what the objective reports: the sum, each loss, each layer's share of it."""
        names = ["loss"] + [name for name in ("embedding",) if self.learns(name)]
        for name, layers in (("hidden", self.layers), ("attention", self.layers), ("relation", self.related)):
            if self.learns(name):
                names += [name, *(f"{name}_{layer}" for layer in layers)]
        return tuple(names + [name for name in ("prediction", "hard") if self.learns(name)])

    @property
    def want(self) -> set[str]:
        """What the encoders have to keep."""
        names = {"hidden"} if self.learns("embedding", "hidden") else set()
        names |= {"scores"} if self.learns("attention") else set()
        return names | ({"relations"} if self.learns("relation") else set())


def teacher_outputs(teacher: HeadModel, batch: dict, recipe: Recipe) -> dict[str, tf.Tensor]:
    """One forward pass of the teacher: the outputs that `recipe.needed` names.

    The head's: float32, of its shapes; hidden.0 (embeddings), hidden.m: [B, S, H]; scores.m: float32 [B, N, S, S];
    query.m, key.m, value.m: [B, S, N, D].
    """
    layer_of = dict(zip(recipe.layers, recipe.mapped, strict=True))
    watched = (layer_of[m] for m in (recipe.layers if recipe.learns("attention") else recipe.related))
    encoded: Encoded = teacher.encoder(
        batch["token_ids"], batch["segment_ids"], batch["padding_mask"], want=recipe.want, of={n - 1 for n in watched}
    )
    found = {}
    if recipe.learns("prediction"):
        found |= zip(recipe.answers, teacher.logits(encoded.output, batch["padding_mask"]), strict=True)
    if "hidden" in recipe.want:
        found |= {"hidden.0": encoded.hidden[0]} | {f"hidden.{m}": encoded.hidden[n] for m, n in layer_of.items()}
    if "scores" in recipe.want:
        found |= {f"scores.{m}": encoded.scores[n - 1] for m, n in layer_of.items()}
    if "relations" in recipe.want:
        for m in recipe.related:
            triple = encoded.relations[layer_of[m] - 1]
            found |= {f"{kind}.{m}": x for kind, x in zip(("query", "key", "value"), triple, strict=True)}
    return {PREFIX + name: tf.stop_gradient(x) for name, x in found.items() if PREFIX + name in recipe.needed}


class Objective:
    """Call it as `train/step.py` says: (batch, seed) -> the parts, summed over the rows.

    Args: teacher: None where nothing of it is needed; projections: from the student's width to the teacher's.
    """

    def __init__(self, student: HeadModel, teacher: HeadModel | None, recipe: Recipe, projections: Projections):
        self.student, self.teacher, self.recipe, self.projections = student, teacher, recipe, projections

    def variables(self) -> dict:
        """What this stage trains: a head that no loss reaches would only decay."""
        names = self.student.names()
        if not self.recipe.learns("prediction", "hard"):
            names = {name: variable for name, variable in names.items() if name not in self.student.tail.named}
        return names | (self.projections.variables() if self.recipe.learns("embedding", "hidden") else {})

    def __call__(self, batch: dict, seed) -> dict[str, tf.Tensor]:
        recipe = self.recipe
        theirs = {name: batch[name] for name in recipe.needed if name in batch}
        if len(theirs) < len(recipe.needed):
            assert self.teacher is not None
            theirs = teacher_outputs(self.teacher, batch, recipe)
        every = recipe.layers if recipe.learns("attention") else recipe.related
        mine: Encoded = self.student.encoder(
            batch["token_ids"],
            batch["segment_ids"],
            batch["padding_mask"],
            seed=seed,
            want=recipe.want,
            of={layer - 1 for layer in every},
        )
        rows = self._intermediate(mine, theirs, batch["padding_mask"])  # each [B], or two windows' [2 B]
        together = self.student.head.together
        if together > 1:
            rows = {name: tf.reduce_mean(tf.reshape(row, (together, -1)), axis=0) for name, row in rows.items()}
        if recipe.learns("prediction", "hard"):
            rows |= self._answers(mine, theirs, batch)
        parts = {name: tf.reduce_sum(row * batch["weight"]) for name, row in rows.items()}
        weighted = [weight * parts[name] for name, weight in recipe.weights.items() if weight > 0]
        return {"loss": tf.add_n(weighted), **parts}

    def _intermediate(self, mine: Encoded, theirs: dict, mask) -> dict[str, tf.Tensor]:
        recipe, project, rows = self.recipe, self.projections.at, {}
        if recipe.learns("embedding"):
            rows["embedding"] = losses.embedding_loss(mine.hidden[0], theirs[f"{PREFIX}hidden.0"], mask, project(0))
        if recipe.learns("hidden"):
            rows |= _summed("hidden", {
                m: losses.hidden_loss(mine.hidden[m], theirs[f"{PREFIX}hidden.{m}"], mask, project(m))
                for m in recipe.layers
            })  # fmt: skip
        if recipe.learns("attention"):
            rows |= _summed("attention", {
                m: losses.attention_loss(mine.scores[m - 1], theirs[f"{PREFIX}scores.{m}"], mask) for m in recipe.layers
            })  # fmt: skip
        if recipe.learns("relation"):
            by_layer = {}
            for m in recipe.related:
                triple = [theirs[f"{PREFIX}{kind}.{m}"] for kind in ("query", "key", "value")]
                by_layer[m] = losses.relation_loss(mine.relations[m - 1], triple, mask, recipe.relation_heads)
            rows |= _summed("relation", by_layer)
        return rows

    def _answers(self, mine: Encoded, theirs: dict, batch: dict) -> dict[str, tf.Tensor]:
        head, rows = self.student.head, {}
        outputs = self.student.logits(mine.output, batch["padding_mask"])
        if self.recipe.learns("prediction"):
            targets = tuple(theirs[PREFIX + key] for key in self.recipe.answers)

            def cross_entropy(student, teacher, mask):
                return losses.prediction_loss(student, teacher, mask, self.recipe.temperature)

            rows["prediction"] = head.soft_loss(outputs, targets, batch, cross_entropy)
        if self.recipe.learns("hard"):
            rows["hard"] = head.loss(outputs, batch)
        return rows


def _summed(name: str, by_layer: dict[int, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The sum over layers, as published, and each layer's share."""
    return {name: tf.add_n(list(by_layer.values()))} | {f"{name}_{m}": row for m, row in by_layer.items()}
