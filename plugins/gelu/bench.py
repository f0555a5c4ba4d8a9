"""How fast is GELU alone: python -m plugins.gelu.bench, on a GPU. Memory is its limit: every number in and out once."""

import math

from plugins import measure


def moved(shapes, size):
    """Bytes: x read, y written."""
    return 2 * math.prod(shapes["x"]) * size


if __name__ == "__main__":
    measure.main("gelu", moved)
