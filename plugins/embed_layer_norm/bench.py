"""How fast are the embeddings alone: python -m plugins.embed_layer_norm.bench, on a GPU. Memory is their limit."""

import math

from plugins import measure

SWEEP = [{"rows": rows, "warps": warps} for rows in (1, 2, 4) for warps in (1, 2, 4, 8)]


def moved(shapes, size):
    """Bytes: three ids and a row of the token table read, y written; the rest stays in a cache."""
    return math.prod(shapes["token_ids"]) * 3 * 4 + 2 * math.prod(shapes["y"]) * size


if __name__ == "__main__":
    measure.main("embed_layer_norm", moved, sweep=SWEEP)
