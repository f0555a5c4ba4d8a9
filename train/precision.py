"""Mixed precision, the only place that knows: what products are computed in, and how the loss is scaled for float16.

Float16 has 5 exponent bits: gradients below 6e-8 become zero. The loss is therefore multiplied by a large scale
before the backward pass and the float32 gradients are divided by it afterwards (Micikevicius et al. 2018, arXiv
1710.03740, section 3.2). Weights, optimizer slots, losses, layer-norm statistics, softmax and logits are float32 in
every mode.
"""

from dataclasses import dataclass

import tensorflow as tf

from configs.errors import UserError

POLICIES = {"float32": "float32", "float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}
SKIPS_BEFORE_ABORT = 50  # in a row; a scale of 2^24 needs 24 halvings to reach the floor, so this is no normal descent


@dataclass(frozen=True)
class Precision:
    """What `--amp` came to mean on this machine, and why."""

    compute: str  # float32, float16 or bfloat16
    reason: str

    @property
    def policy(self) -> str:
        """Name of the Keras dtype policy."""
        return POLICIES[self.compute]

    @property
    def scaled(self) -> bool:
        """Whether the loss is scaled: float16 alone needs it, bfloat16 has float32's exponent range."""
        return self.compute == "float16"


def choose(amp: str | None, gpu: bool) -> Precision:
    """The precision that `--amp [auto|float16|bfloat16]` asks for.

    Raises: UserError for any other word.
    """
    if amp is None or amp == "float32":
        return Precision("float32", "no --amp")
    if amp == "auto":
        if gpu:
            return Precision("float16", "--amp; GPUs have float16 matrix units, the loss is scaled")
        return Precision("bfloat16", "--amp on a CPU; bfloat16 is the faster one there and needs no loss scale")
    if amp not in POLICIES:
        raise UserError(f"--amp {amp} is not known; choose auto, float16 or bfloat16, or leave it out for float32")
    return Precision(amp, f"--amp {amp}")


class LossScale:
    """Dynamic loss scale: halved on a non-finite gradient, doubled after a stretch of finite ones, within bounds.

    State (saved with the run): `scale` float32, `good` finite steps since the last change, `skipped` steps in all,
    `skipped_in_a_row`. Without `scaled` the scale stays 1, and non-finite steps are counted all the same.
    """

    def __init__(self, scaled: bool, initial=2.0**15, growth_interval=2000, floor=1.0, cap=2.0**24):
        if scaled and not floor <= initial <= cap:
            raise UserError(
                f"loss scale {initial:g} lies outside its bounds {floor:g} to {cap:g}; move one of the three"
            )
        if growth_interval < 1:
            raise UserError(f"--loss-scale-growth-interval {growth_interval} must be at least 1 step")
        self.scaled, self.growth_interval, self.floor, self.cap = scaled, growth_interval, floor, cap
        self.initial = initial if scaled else 1.0
        self.scale = tf.Variable(self.initial, trainable=False, dtype=tf.float32, name="loss_scale")
        self.good = tf.Variable(0, trainable=False, dtype=tf.int64, name="good_steps")
        self.skipped = tf.Variable(0, trainable=False, dtype=tf.int64, name="skipped_steps")
        self.skipped_in_a_row = tf.Variable(0, trainable=False, dtype=tf.int64, name="skipped_in_a_row")

    def restart(self) -> None:
        """State as at the start of a run."""
        for variable in self.variables().values():
            variable.assign(tf.zeros_like(variable))
        self.scale.assign(self.initial)

    def variables(self) -> dict[str, tf.Variable]:
        names = ("scale", "good", "skipped", "skipped_in_a_row")
        return {f"loss_scale.{name}": getattr(self, name) for name in names}

    def update(self, finite, ready, local) -> None:
        """Account for one step.

        Args:
            finite: bool scalar, the gradients were finite.
            ready: bool scalar, False while gradients are still being summed: nothing is counted then.
            local: which copy of a variable to write (`train/step.py`).
        """
        good, in_a_row, scale = local(self.good), local(self.skipped_in_a_row), local(self.scale)
        took, missed = tf.logical_and(ready, finite), tf.logical_and(ready, tf.logical_not(finite))
        local(self.skipped).assign_add(tf.cast(missed, tf.int64))
        in_a_row.assign(tf.where(took, tf.zeros_like(in_a_row), in_a_row + tf.cast(missed, tf.int64)))
        if not self.scaled:
            return
        count = tf.where(missed, tf.zeros_like(good), good + tf.cast(took, tf.int64))
        grow = tf.logical_and(took, count >= self.growth_interval)
        grown = tf.where(grow, tf.minimum(scale * 2.0, self.cap), scale)
        scale.assign(tf.where(missed, tf.maximum(scale * 0.5, self.floor), grown))
        good.assign(tf.where(grow, tf.zeros_like(count), count))
