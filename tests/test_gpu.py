"""What only an NVIDIA GPU can show: cuDNN's fused attention, forward, backward and with dropout. `make test-gpu`."""

import numpy as np
import pytest
import tensorflow as tf

from model import cudnn_attention
from model.attention import attend

pytestmark = pytest.mark.gpu


def drawn(shape, dtype, seed):
    return tf.cast(tf.random.stateless_normal(shape, [seed, 7]), dtype)


def reference(query, key, value, upstream, lengths):
    """Output and gradients in float64 on the CPU."""
    with tf.device("/CPU:0"):
        q, k, v, g = (tf.cast(x, tf.float64) for x in (query, key, value, upstream))
        mask = tf.sequence_mask(lengths, query.shape[1], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch([q, k, v])
            scores = tf.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(query.shape[-1])
            weights = tf.nn.softmax(scores + (1 - mask[:, None, None, :]) * -1e9)
            out = tf.einsum("bnqk,bknd->bqnd", weights, v) * mask[:, :, None, None]
        return [out, *tape.gradient(out, [q, k, v], output_gradients=g)]


CASES = [  # B, S, N, D, lengths, why
    pytest.param(3, 128, 4, 64, [128, 77, 1], id="usual head, one token alone"),
    pytest.param(2, 384, 12, 32, [384, 200], id="MiniLM's heads"),
    pytest.param(2, 96, 12, 26, [96, 50], id="TinyBERT's heads, no multiple of 8"),
    pytest.param(1, 512, 2, 128, [511], id="longest and widest"),
]


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("batch", "length", "heads", "size", "lengths"), CASES)
def test_fused_attention_equals_float64_up_to_the_error_of_its_dtype(batch, length, heads, size, lengths, dtype):
    query, key, value, upstream = (drawn((batch, length, heads, size), dtype, seed) for seed in range(4))
    mask = tf.sequence_mask(lengths, length, tf.int32)
    upstream *= tf.cast(mask, dtype)[:, :, None, None]

    @tf.function(jit_compile=True, autograph=False)
    def both(query, key, value):
        with tf.GradientTape() as tape:
            tape.watch([query, key, value])
            out = attend(query, key, value, mask, fused=True)
        return [out, *tape.gradient(out, [query, key, value], output_gradients=upstream)]

    bound = {"float16": 2e-3, "bfloat16": 1.6e-2}[dtype.name]
    real = tf.cast(mask, tf.float64)[:, :, None, None].numpy()
    for name, got, want in zip(
        "output dq dk dv".split(),
        both(query, key, value),
        reference(query, key, value, upstream, lengths),
        strict=True,
    ):
        got, want = tf.cast(got, tf.float64).numpy() * real, want.numpy() * real
        assert np.linalg.norm(got - want) <= bound * np.linalg.norm(want), name


@pytest.mark.parametrize("length", [128, 256])
def test_blocks_compiled_by_xla_drop_the_same_probabilities_in_both_directions(length):
    shape = (2, length, 4, 64)
    query, key, value, upstream = (drawn(shape, tf.float16, seed) for seed in range(4))
    mask = tf.ones((2, length), tf.int32)

    @tf.function(jit_compile=True, autograph=False)
    def both(value, seed):
        with tf.GradientTape() as tape:
            tape.watch(value)
            out = attend(query, key, value, mask, rate=0.1, seed=seed, fused=True)
        return out, tape.gradient(out, value, output_gradients=upstream)

    outputs = []
    for step in range(3):
        out, dv = (tf.cast(x, tf.float64).numpy() for x in both(value, tf.constant([1, step << 26], tf.int64)))
        # The output is linear in `value`: <out, g> = <value, dv> if both passes drop the same entries.
        wide = upstream.numpy().astype(np.float64)
        forward, backward = np.sum(out * wide), np.sum(value.numpy().astype(np.float64) * dv)
        assert abs(forward - backward) <= 1e-4 * np.linalg.norm(out) * np.linalg.norm(wide)
        outputs.append(out)
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01, "the mask must change from step to step"


def test_fused_attention_never_holds_the_scores():
    # Scores are 256 MiB; the gradient with its tensors and cuDNN's scratch takes 144, and as much at 16 x 512 tokens.
    shape, lengths = (8, 1024, 16, 64), tf.fill((8,), 1024)
    query = drawn(shape, tf.float16, 1)

    @tf.function(jit_compile=True, autograph=False)
    def both(query):
        with tf.GradientTape() as tape:
            tape.watch(query)
            out = cudnn_attention.attend(query, query, query, lengths)
        return tape.gradient(out, query, output_gradients=query)

    both(query)
    tf.config.experimental.reset_memory_stats("GPU:0")
    before = tf.config.experimental.get_memory_info("GPU:0")["current"]
    both(query)
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] - before
    scores_bytes = 8 * 16 * 1024 * 1024 * 2
    assert peak < scores_bytes, f"{peak / 2**20:.0f} MiB against {scores_bytes / 2**20:.0f} MiB of scores"
