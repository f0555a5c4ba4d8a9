"""How fast are linear_skip_layer_norm and its kin: python -m plugins.linear_skip_layer_norm.bench, on a GPU; float8
beside float16. --sweep tries other blocks for few tokens: --sweep --only 1x128; one of them fits no weight, which is
cuBLASLt's time.

Operations are the product's; bytes are those of all inputs and outputs, each once.
"""

import math

from plugins import measure

SWEEP = [
    {"block_h": 1 << 20},
    *(
        {"block_t": block_t, "block_h": block_h, "part": part, "stages": stages}
        for block_t, block_h in ((64, 64), (32, 64), (128, 64), (64, 32))
        for part in (192, 384, 768)
        for stages in (3, 5)
    ),
]


def moved(shapes, size):
    eight = "scale" in shapes  # x and weight have a byte each
    vectors = sum(4 * math.prod(shapes[name]) for name in ("gamma", "beta", "scale") if name in shapes)
    product = (1 if eight else size) * sum(math.prod(shapes[name]) for name in ("x", "weight"))
    rest = size * sum(math.prod(shapes[name]) for name in ("bias", "residual", "y"))
    return vectors + product + rest + math.prod(shapes.get("q", (0,)))


def done(shapes, case):
    return 2 * math.prod(shapes["y"]) * case.inputs


if __name__ == "__main__":
    op = "linear_skip_layer_norm"
    measure.main(op, moved=moved, done=done, sweep=SWEEP, also=["linear8_skip_layer_norm8"])
