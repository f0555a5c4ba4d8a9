"""How fast are 8-bit products: python -m plugins.linear8.bench, on a GPU; operations and bytes as for `linear`.

--sweep tries other tiles of our float8 product: --only base 1x128 --without int8 channels. Whether it beats cuBLASLt
and a kernel of GELU for many tokens: --sweep --few-tokens 99999 --only 32x384 ffn.in erf; without --few-tokens that is
cuBLASLt's time.
"""

import math

from plugins import measure

SWEEP = [  # tokens, outputs and inputs at a time, warps, stages
    {"tile": tile}
    for tile in (
        (64, 64, 128, 4, 3), (64, 64, 128, 4, 6), (64, 64, 256, 4, 2), (64, 64, 256, 4, 3), (64, 32, 128, 4, 4),
        (64, 32, 256, 4, 3), (128, 32, 128, 4, 4), (128, 64, 128, 4, 4), (64, 128, 128, 4, 3), (128, 128, 128, 8, 3),
        (128, 128, 128, 8, 4), (128, 128, 64, 8, 4), (128, 256, 64, 8, 4),
    )
]  # fmt: skip


def moved(shapes, size):
    """Bytes: x and weight have one each, of linear8_gelu8 y, too; bias, scales and another y more."""
    to_8 = "inverse_scale" in shapes
    return math.prod(shapes["x"]) + math.prod(shapes["weight"]) + (1 if to_8 else size) * math.prod(shapes["y"])


def done(shapes, case):
    return 2 * math.prod(shapes["y"]) * case.inputs


if __name__ == "__main__":
    measure.main("linear8", moved=moved, done=done, sweep=SWEEP, also=["linear8_gelu8"])
