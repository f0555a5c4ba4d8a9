"""How fast are 8-bit products: python -m plugins.linear8.bench, on a GPU; operations and bytes as for `linear`."""

import math

from plugins import measure


def moved(shapes, size):
    """Bytes: x and weight have one each, bias, scales and y more."""
    return math.prod(shapes["x"]) + math.prod(shapes["weight"]) + size * math.prod(shapes["y"])


def done(shapes, case):
    return 2 * math.prod(shapes["y"]) * case.inputs


if __name__ == "__main__":
    measure.main("linear8", moved=moved, done=done)
