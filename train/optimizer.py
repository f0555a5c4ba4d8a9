"""AdamW as BERT uses it, over all variables at once, and its schedule.

Why not Keras's AdamW: its bias correction cannot be switched off (google-research/bert has none), and a non-finite
step must leave weights, slots and schedule alone without a branch, so that XLA fuses the whole update into few kernels.
"""

import re

import tensorflow as tf

from configs.errors import UserError

NO_DECAY = re.compile(r"\.(bias|scale|offset)$")  # biases and layer norms, by our names


def learning_rate(update, peak: float, warmup_updates: int, total_updates: int):
    """Linear warm-up to `peak`, then linear decay to 0 at `total_updates` (google-research/bert `optimization.py`).

    Args: update: int64 scalar, updates applied so far. Returns: float32 scalar.
    """
    done = tf.cast(update, tf.float32)
    rising = (done + 1.0) / max(warmup_updates, 1)  # the first update already moves
    falling = (total_updates - done) / max(total_updates - warmup_updates, 1)
    return peak * tf.where(done < warmup_updates, rising, tf.maximum(falling, 0.0))


def constant_rate(update, peak: float, warmup_updates: int, total_updates: int):
    """`peak` after a linear warm-up (TinyBERT's first stage); same signature as `learning_rate`."""
    done = tf.cast(update, tf.float32)
    return peak * tf.minimum((done + 1.0) / max(warmup_updates, 1), 1.0)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101; Kingma & Ba 2015, algorithm 1).

    Args:
        variables: our name -> float32 variable, the trainable weights.
        schedule: update count -> learning rate.
        bias_correction: divide the moments by 1 - beta^t; False copies google-research/bert.
    """

    def __init__(self, variables, schedule, *, decay=0.01, epsilon=1e-6, betas=(0.9, 0.999), bias_correction=True):
        if not variables:
            raise UserError("there is nothing to train: no trainable variable was given to the optimizer")
        self.schedule, self.decay, self.epsilon, self.betas = schedule, decay, epsilon, betas
        self.bias_correction = bias_correction
        self.weights = dict(variables)
        self.updates = tf.Variable(0, trainable=False, dtype=tf.int64, name="updates")

        def slots(kind):
            return {
                name: tf.Variable(tf.zeros(variable.shape), trainable=False, name=f"{kind}.{name}")
                for name, variable in self.weights.items()
            }

        self.mean, self.square = slots("adam_mean"), slots("adam_square")

    def variables(self) -> dict[str, tf.Variable]:
        """Slots and counter under the names they are saved by."""
        named = {"updates": self.updates}
        named |= {f"adam_mean.{name}": slot for name, slot in self.mean.items()}
        return named | {f"adam_square.{name}": slot for name, slot in self.square.items()}

    def rate(self):
        """Learning rate of the next update, float32 scalar."""
        return self.schedule(self.updates)

    def apply(self, gradients: dict, take, factor, local):
        """One update: weights, slots and counter change if `take`, otherwise none of them does.

        Args:
            gradients: our name -> float32 tensor, unscaled.
            take: bool scalar.
            factor: float32 scalar multiplied into every gradient (clipping).
            local: which copy of a variable to write (`train/step.py`).
        """
        counter = local(self.updates)
        rate = self.schedule(counter)
        first, second = self.betas
        time = tf.cast(counter, tf.float32) + 1.0
        correct_first = 1.0 - first**time if self.bias_correction else 1.0
        correct_second = 1.0 - second**time if self.bias_correction else 1.0
        for name, gradient in gradients.items():
            weight, mean, square = local(self.weights[name]), local(self.mean[name]), local(self.square[name])
            gradient = gradient * factor
            new_mean = first * mean + (1.0 - first) * gradient
            new_square = second * square + (1.0 - second) * tf.square(gradient)
            step = (new_mean / correct_first) / (tf.sqrt(new_square / correct_second) + self.epsilon)
            if not NO_DECAY.search(name):
                step += self.decay * weight
            new_weight = weight - rate * step
            # where(), not a product with 0: 0 * inf is nan
            weight.assign(tf.where(take, new_weight, weight))
            mean.assign(tf.where(take, new_mean, mean))
            square.assign(tf.where(take, new_square, square))
        counter.assign_add(tf.cast(take, tf.int64))
