"""How fast attention is: python -m plugins.attention.bench, on a GPU; --sweep tries other blocks.

Bytes are those of qkv, read once, and of the context. Operations are the two products of every sequence with itself,
2 x 2 L^2 D for each head and length L, without what a block's padding adds; exponentials are not counted.
"""

import math

from plugins import measure

SWEEP = [
    {"block_n": block_n, "warps": warps, "stages": stages}
    for block_n in (32, 64, 128)
    for warps in (4, 8)
    for stages in (2, 3, 4)
]


def moved(shapes, size):
    return math.prod(shapes["qkv"]) * size * 4 / 3


def done(shapes, case):
    return sum(4 * length * length * case.head_size * case.heads for length in case.lengths)


if __name__ == "__main__":
    measure.main("attention", moved=moved, done=done, sweep=SWEEP)
