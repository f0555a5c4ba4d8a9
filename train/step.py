"""One training step: forward, backward, unscale, clip, update, on one device or on several.

An *objective* says what is learnt; this file turns it into a compiled step, and fine-tuning and distillation differ
in their objective alone. It is called as `objective(batch, seed)`, batch a dict of [B, ...] tensors, seed int64 [2],
and returns

    {"loss": float32 scalar, other parts: float32 scalars}    each summed over the rows, weighted by batch["weight"]

so that the mean over a batch that is spread over devices is the mean over the whole batch.
"""


import contextlib

import keras
import tensorflow as tf

from data.feed import Packed
from model import column_sums
from model.recompute import anew
from train import packs
from train.compiled import ByLayout

COUNTED = ("updates", "skipped_steps", "good_steps")
# What every step reports beside the objective's parts; counters as of after it, exact up to 2^24.
MEASURED = ("gradient_norm", "finite", "learning_rate", "loss_scale", *COUNTED, "skipped_in_a_row")
_STREAMS = 1 << 20  # dropout seeds kept for one replica's step; a place in the model has an index below this
_REPLICAS = 64


class Step:
    """A compiled step over fixed variables.

    Args:
        objective: see above.
        optimizer, loss_scale: `train/optimizer.py`, `train/precision.py`; made under the same strategy.
        parts: names of the objective's results, "loss" first.
        batch_size: rows of a whole batch (all devices together): what the loss is divided by before the backward pass.
        clip_norm: upper bound of the gradients' global norm; 0 for none.
        accumulate: batches per update. One non-finite batch discards all that are summed with it.
        jit: compile with XLA.
        strategy: a `tf.distribute` strategy or None.
        seed: of the run; dropout is a function of it, the step, the replica and the place in the model.
    """

    def __init__(
        self,
        objective,
        optimizer,
        loss_scale,
        *,
        batch_size,
        parts=("loss",),
        clip_norm=1.0,
        accumulate=1,
        jit=False,
        strategy=None,
        seed=0,
    ):
        self.objective, self.optimizer, self.loss_scale = objective, optimizer, loss_scale
        self.parts, self.batch_size, self.clip_norm = tuple(parts), float(batch_size), float(clip_norm)
        self.accumulate, self.strategy, self.seed = accumulate, strategy, seed
        self.shapes: set[tuple[int, ...]] = set()  # batch shapes seen: each is traced, and under XLA compiled, once
        self._ticks = tf.Variable([0, 0], trainable=False, dtype=tf.int64, name="clock")  # (seed, step) on the device
        self._ticked: tuple[int, int] | None = (0, 0)  # what it holds, as far as the host knows
        self.pending = tf.Variable(0, trainable=False, dtype=tf.int64, name="pending")  # batches in the sums below
        self.sums = {}
        if accumulate > 1:
            self.sums = {
                name: tf.Variable(tf.zeros(variable.shape), trainable=False, name=f"sum.{name}")
                for name, variable in optimizer.weights.items()
            }
        self._fewer = jit  # kernels: on a GPU the start of a small one takes as long as its work
        self._backward = tf.function(self._backward_body, autograph=False, jit_compile=jit or None)
        # XLA turns dozens of small operations a variable into one pass over it: worth it on a CPU without --jit, too.
        self._update = tf.function(self._update_body, autograph=False, jit_compile=True)
        if strategy is None:
            self._run = ByLayout(self._one_device, jit=jit)
        else:  # the collectives stay outside of XLA, and nothing else does
            self._before_sum = tf.function(self._before_sum_body, autograph=False, jit_compile=jit or None)
            self._after_sum = tf.function(self._after_sum_body, autograph=False, jit_compile=True)
            self._layout: packs.Layout | None = None  # of what is summed; known when the first half is traced
            self._run = ByLayout(self._many_devices, apart=False)

    def variables(self) -> dict[str, tf.Variable]:
        """Everything to save beside the weights: slots, schedule, loss scale, gradients summed so far."""
        sums = {f"sum.{name}": variable for name, variable in self.sums.items()}
        return {**self.optimizer.variables(), **self.loss_scale.variables(), "pending": self.pending, **sums}

    def restart(self, seed: int) -> None:
        """Everything but the weights as at the start of a run with this seed; what is compiled stays."""
        self.seed = seed
        for variable in self.variables().values():
            variable.assign(tf.zeros_like(variable))
        self.loss_scale.restart()

    def counters(self) -> dict[str, int]:
        """Updates applied, steps skipped, and finite steps since the loss scale last changed."""
        return {name: int(counter.numpy()) for name, counter in zip(COUNTED, self._counters(), strict=False)}

    def _counters(self) -> list[tf.Variable]:
        scale = self.loss_scale
        return [self.optimizer.updates, scale.skipped, scale.good, scale.skipped_in_a_row]

    def summary(self) -> dict:
        """What a command's last line tells of the steps."""
        return self.counters() | {
            "loss_scale": float(self.loss_scale.scale.numpy()),
            "compiled_shapes": len(self.shapes),
        }

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the numbers that a step returns, in order."""
        return self.parts + MEASURED

    def __call__(self, batch: Packed | dict, step: int) -> tf.Tensor:
        """Consume one batch; returns float32 [len(measured)] without waiting for the device.

        batch: int32 [B, S] and float32 `weight` [B] among its tensors; under a strategy of per-replica values.
        step: batches consumed before.
        """
        batch = Packed.of(batch)
        self.shapes.add(batch.shape("token_ids"))
        if self._ticked != (self.seed, step):
            self._ticks.assign(self._clock(step))
        self._ticked = None  # whatever happens in the step
        report = self._run(batch)
        self._ticked = (self.seed, step + 1)
        return report

    def first_not_finite(self, batch: Packed | dict, step: int) -> str:
        """Name of the first variable whose gradient is not finite for this batch, for the message before an abort."""
        if self.strategy is not None:
            return "(not searched on several devices)"
        gradients, _ = self._backward(Packed.of(batch).apart(), self._clock(step), 0)
        for name, gradient in zip(self.optimizer.weights, gradients, strict=True):
            if not bool(tf.reduce_all(tf.math.is_finite(gradient))):
                return name
        return "none; only their norm overflows"

    def _clock(self, step: int) -> tf.Tensor:
        """(seed, step): not constants of the function, so that runs that differ in the seed share compiled code."""
        return tf.constant([self.seed, step], tf.int64)

    def _one_device(self, batch):
        """The clock is read and moved on by the device: a number from the host is copied only after all that the
        device has been given is done, so it would wait for the host after every step."""
        clock = tf.identity(self._ticks)
        gradients, report = self._backward(batch, clock, 0)
        report = self._finish(gradients, report, 0)
        self._ticks.assign_add(tf.constant([0, 1], tf.int64))
        return report

    def _many_devices(self, batch):
        """Two compiled programs a replica and the collectives between them: whatever else is done here would be a
        kernel by itself, and launched while the GPU waits, for the host goes on only after the sum is there."""
        strategy, layout = self.strategy, batch.layout
        assert strategy is not None

        def replica(numbers, others):
            context = tf.distribute.get_replica_context()
            index = int(tf.get_static_value(context.replica_id_in_sync_group))  # a constant tensor otherwise
            flats = self._before_sum(numbers, others, layout, index)
            flats = [context.all_reduce(tf.distribute.ReduceOp.SUM, flat) for flat in flats]
            return self._after_sum(flats, index)

        return strategy.experimental_local_results(strategy.run(replica, args=(batch.numbers, batch.others)))[0]

    def _before_sum_body(self, numbers, others, layout, replica):
        """What this replica's share adds to the sums; its own copy of the clock is read and moved on."""
        batch = Packed(numbers, layout, others).apart()
        ticks = self._local(replica)(self._ticks)
        gradients, report = self._backward_body(batch, tf.identity(ticks), replica)
        ticks.assign_add(tf.constant([0, 1], tf.int64))
        flats, self._layout = packs.pack([*gradients, report])
        return flats

    def _after_sum_body(self, flats, replica):
        assert self._layout is not None
        *gradients, report = packs.unpack(flats, self._layout)
        return self._finish(gradients, report, replica)

    def _backward_body(self, batch, clock, replica):
        """Gradients of scale * loss / batch_size, float32 [...] each, and [weight, parts...] summed over the rows."""
        stream = (clock[1] * _REPLICAS + tf.cast(replica, tf.int64)) * _STREAMS
        seed = tf.stack([clock[0], stream])
        weights = [_variable(variable) for variable in self.optimizer.weights.values()]
        with column_sums.collected() if self._fewer else contextlib.nullcontext() as sums:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                for weight in weights:
                    tape.watch(weight)
                results = self.objective(batch, seed)
                scaled = results["loss"] * (self.loss_scale.scale / self.batch_size)
            gradients = tape.gradient(scaled, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        if sums:
            gradients = sums.finished(gradients)
        report = tf.stack([tf.reduce_sum(batch["weight"]), *(results[name] for name in self.parts)])
        return [tf.convert_to_tensor(gradient) for gradient in gradients], report

    def _finish(self, gradients, report, replica):
        """Sums over the whole batch -> an update, or a longer sum -> float32 [len(measured)]."""
        weight = tf.maximum(report[0], 1.0)
        # The loss was divided by a full batch before the backward pass; the last batch of an epoch may hold fewer rows.
        correction = self.batch_size / weight
        scale, rate = tf.identity(self.loss_scale.scale), self.optimizer.rate()
        norm, finite = self._update(gradients, correction, replica)
        counted = [self._local(replica)(counter) for counter in self._counters()]
        told = [norm, tf.cast(finite, tf.float32), rate, scale, *(tf.cast(one, tf.float32) for one in counted)]
        return tf.concat([report[1:] / weight, tf.stack(told)], axis=0)

    def _update_body(self, gradients, correction, replica):
        """Unscale, clip, apply. Returns the unscaled gradients' global norm and whether it is finite."""
        local = self._local(replica)
        factor = correction / local(self.loss_scale.scale)
        named = dict(zip(self.optimizer.weights, (gradient * factor for gradient in gradients), strict=True))
        ready = tf.constant(True)
        if self.accumulate > 1:
            pending = local(self.pending)
            sums = {name: local(self.sums[name]) + gradient / self.accumulate for name, gradient in named.items()}
            ready = pending + 1 >= self.accumulate
            for name, value in sums.items():
                local(self.sums[name]).assign(tf.where(ready, tf.zeros_like(value), value))
            pending.assign(tf.where(ready, tf.zeros_like(pending), pending + 1))
            named = sums
        named, squares = grouped(named, self._fewer)
        # One reduction answers both questions: any inf or nan makes the norm not finite. (So does a norm above 1e19,
        # whose square float32 cannot hold; a step like that is not worth taking either.)
        norm = tf.sqrt(tf.reduce_sum(squares))
        finite = tf.math.is_finite(norm)
        clip = tf.minimum(1.0, self.clip_norm / (norm + 1e-12)) if self.clip_norm else tf.constant(1.0)
        self.optimizer.apply(named, tf.logical_and(finite, ready), clip, local)
        self.loss_scale.update(finite, ready, local)
        return norm, tf.logical_or(finite, tf.logical_not(ready))

    def _local(self, replica: int):
        """A function from a variable to the copy of it that this replica writes; all replicas write the same values."""
        if self.strategy is None:
            return _variable
        results, here = self.strategy.experimental_local_results, len(self.strategy.extended.worker_devices)
        return lambda variable: results(_variable(variable))[int(replica) % here]


def _variable(variable):
    """The tf.Variable inside a Keras variable, or the variable itself."""
    return variable.value if isinstance(variable, keras.Variable) else variable


_SMALL = 1 << 14  # elements up to which a gradient is stacked with others of its shape


def grouped(gradients: dict, fewer: bool) -> tuple[dict, tf.Tensor]:
    """The same gradients, and sums of squares [any number] that add up to the square of their global norm.

    fewer: by fewer kernels, on a GPU; the order of summing is another one then.

    BERT-base has 148 vectors among its 197 variables, and a vector's few kernels (a norm, an update) take longer to
    start than to run. Vectors of one length are stacked, and the norm is one reduction a stack; their updates read
    rows of the stack, by which XLA sees that they belong together and puts a dozen into one kernel.
    """
    shapes: dict[tuple, list[str]] = {}
    for name, gradient in gradients.items():
        large = gradient.shape.num_elements() > _SMALL
        shapes.setdefault((name,) if large else tuple(gradient.shape), []).append(name)
    rows, squares = {}, []
    for names in shapes.values():
        stack = tf.stack([gradients[name] for name in names])
        if len(names) > 1:
            (stack,) = anew(stack)  # or XLA takes the stack apart again
        squares.append(tf.reshape(tf.reduce_sum(tf.square(stack), axis=-1), [-1]))
        rows |= zip(names, tf.unstack(stack), strict=True)
    together = tf.concat(squares, axis=0)
    if fewer:
        (together,) = anew(together)  # or XLA sums each to one number first, by a further kernel each
    return {name: rows[name] for name in gradients}, together
