"""How fast linear_skip_layer_norm is: python -m plugins.linear_skip_layer_norm.bench, on a GPU; --sweep tries others.

Operations are the product's; bytes are those of all inputs and y, each once.
"""

import math

from plugins import measure

SWEEP = [
    {"block_t": block_t, "block_h": block_h, "part": part, "stages": stages}
    for block_t, block_h in ((64, 64), (32, 64), (128, 64))
    for part in (192, 384, 768)
    for stages in (3, 5)
]


def moved(shapes, size):
    vectors = sum(4 * math.prod(shapes[name]) for name in ("gamma", "beta"))
    return vectors + size * sum(math.prod(shapes[name]) for name in ("x", "weight", "bias", "residual", "y"))


def done(shapes, case):
    return 2 * math.prod(shapes["y"]) * case.inputs


if __name__ == "__main__":
    measure.main("linear_skip_layer_norm", moved=moved, done=done, sweep=SWEEP)
