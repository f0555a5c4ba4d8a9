"""How fast linear and linear_gelu are: python -m plugins.linear.bench, on a GPU.

Operations are 2 T K M; bytes are those of x, weight, bias and y. Weights come from memory here, as in a network whose
weights do not fit into the L2 cache; the algorithm was chosen with weights in the cache.
"""

import math

from plugins import measure


def moved(shapes, size):
    return size * sum(math.prod(shape) for shape in shapes.values())


def done(shapes, case):
    return 2 * math.prod(shapes["y"]) * case.inputs


if __name__ == "__main__":
    measure.main("linear", moved=moved, done=done, also=["linear_gelu"])
