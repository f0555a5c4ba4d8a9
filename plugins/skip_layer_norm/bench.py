"""How fast is skip-layer-norm alone: python -m plugins.skip_layer_norm.bench, on a GPU. Memory is its limit."""

import math

from plugins import measure

SWEEP = [{"rows": rows, "warps": warps} for rows in (1, 2, 4) for warps in (1, 2, 4, 8)]


def moved(shapes, size):
    """Bytes: x and residual read, y written; bias, gamma and beta stay in a cache."""
    return 3 * math.prod(shapes["x"]) * size + math.prod(shapes.get("q", (0,)))


if __name__ == "__main__":
    measure.main("skip_layer_norm", moved, sweep=SWEEP)
