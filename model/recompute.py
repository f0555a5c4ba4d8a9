"""Compute something again in the backward pass instead of keeping it: less memory and traffic, more arithmetic.

XLA merges equal computations wherever it sees them, and the one that was to be made later is then one that was kept
(`tf.recompute_grad` knows nothing of that). `anew` hides from it that a tensor is the same one.
"""

from collections.abc import Callable

import tensorflow as tf


@tf.function(jit_compile=True, autograph=False)
def _barrier(tensors):
    from tensorflow.compiler.tf2xla.python import xla  # a private path: imported where it is used, and nowhere else

    return xla.optimization_barrier(*tensors)


def anew(*tensors: tf.Tensor) -> list[tf.Tensor]:
    """The same tensors; what is computed from them is never merged with what was computed from the originals."""
    return list(tensors) if tf.executing_eagerly() else _barrier(list(tensors))


def recomputed(function: Callable, *inputs: tf.Tensor, constants: tuple = ()) -> tf.Tensor:
    """function(*inputs, *constants), of which nothing but its inputs is kept for the backward pass (Chen et al. 2016,
    arXiv 1604.06174).

    Args:
        function: returns one tensor; may read variables, whose gradients flow.
        inputs: float tensors with a gradient.
        constants: tensors without one: masks, seeds.
    """

    @tf.custom_gradient
    def compute(*inputs):
        def gradient(upstream, variables=()):
            # Behind the same barrier, what is computed again waits for the gradient that needs it.
            *given, upstream = anew(*inputs, *constants, upstream)
            again = given[: len(inputs)]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([*again, *variables])
                y = function(*given)
            gradients = tape.gradient(y, [*again, *variables], output_gradients=upstream)
            here, there = gradients[: len(inputs)], gradients[len(inputs) :]
            return (here, there) if variables else here

        return function(*inputs, *constants), gradient

    return compute(*inputs)
