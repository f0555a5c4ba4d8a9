"""Self-attention three ways, chosen by what the caller needs and where it runs.

    written out   the [B, N, S, S] scores exist in memory: only where distillation asks to see them
    blocked       128 queries at a time, the backward pass computes its block again: any device, O(B N 128 S) memory
    fused         cuDNN's flash attention inside an XLA-compiled function: NVIDIA GPUs, float16 and bfloat16, no dropout

All three compute softmax(Q K^T / sqrt(D) + mask) V with a float32 softmax; the first two can drop probabilities out.
"""

import math

import tensorflow as tf

from model import cudnn_attention
from model.dropout import dropout
from model.recompute import anew, recomputed

QUERY_BLOCK = 128  # queries; smaller saves memory, larger saves launches
_MASKED = -1e9  # added to float32 scores of padding; exp() of it is 0, and no sum of it overflows


def scaled_scores(query, key):
    """[B, S, N, D], [B, S, N, D] -> Q K^T / sqrt(D), float32 [B, N, S, S], before any mask or softmax."""
    return tf.cast(_product(query, key), tf.float32)


def _product(query, key):
    """Q K^T / sqrt(D) in the dtype of both, [B, N, Q, S]."""
    query = query * tf.cast(1.0 / math.sqrt(query.shape[-1]), query.dtype)
    return tf.matmul(tf.transpose(query, (0, 2, 1, 3)), tf.transpose(key, (0, 2, 3, 1)))


def attend(query, key, value, padding_mask, *, rate=0.0, seed=None, scores=None, fused=False):
    """Context vectors of every token.

    Args:
        query, key, value: [B, S, N, D], one dtype.
        padding_mask: int32 [B, S], 1 for real tokens, which stand first in a row.
        rate, seed: dropout of attention probabilities; seed int64 [2] or None.
        scores: `scaled_scores(query, key)` if the caller has them; they are then used, not computed again.
        fused: use cuDNN where nothing is dropped (the caller is being compiled by XLA for an NVIDIA GPU).

    Returns: [B, S, N, D] in value's dtype. What stands at padding is finite and meaningless.
    """
    rate = 0.0 if seed is None else rate
    if scores is None and fused and not rate:
        return cudnn_attention.attend(query, key, value, tf.reduce_sum(padding_mask, axis=1))
    bias = (1.0 - tf.cast(padding_mask, tf.float32))[:, None, None, :] * _MASKED  # [B, 1, 1, S]
    if scores is not None:
        return _weigh(scores, value, bias, rate, seed)
    length = query.shape[1]
    if length is None:
        return _block(query, key, value, bias, rate, seed)
    blocks = []
    for index, first in enumerate(range(0, length, QUERY_BLOCK)):
        block_seed = None if seed is None else seed + tf.constant([0, index << 10], tf.int64)  # above all sites
        blocks.append(_block(query[:, first : first + QUERY_BLOCK], key, value, bias, rate, block_seed))
    return blocks[0] if len(blocks) == 1 else tf.concat(blocks, axis=1)


def _weigh(scores, value, bias, rate, seed):
    """Softmax of [B, N, Q, S] scores, dropout, weighted sum of value [B, S, N, D] -> [B, Q, N, D]."""
    probabilities = _probabilities(scores, value.dtype, bias, rate, seed)
    context = tf.matmul(probabilities, tf.transpose(value, (0, 2, 1, 3)))  # [B, N, Q, D]
    return tf.transpose(context, (0, 2, 1, 3))


def _probabilities(scores, dtype, bias, rate, seed):
    """Softmax in float32 of scores of any dtype, rounded to `dtype`, with dropout.

    The gradient computes the softmax again from the scores, which a matrix product has written anyway: left to itself
    XLA keeps it, as a float32 tensor of twice their size.
    """

    def softmax(scores):
        return tf.nn.softmax(tf.cast(scores, tf.float32) + bias, axis=-1)

    @tf.custom_gradient
    def compute(scores):
        def gradient(upstream):
            probabilities = softmax(*anew(scores))
            upstream = tf.cast(dropout(upstream, rate, seed), tf.float32)
            along = tf.reduce_sum(probabilities * upstream, axis=-1, keepdims=True)
            return tf.cast(probabilities * (upstream - along), scores.dtype)

        return dropout(tf.cast(softmax(scores), dtype), rate, seed), gradient

    return compute(scores)


def _block(query, key, value, bias, rate, seed):
    """Attention of some queries [B, Q, N, D] whose scores live only as long as this block does, in both directions."""
    constants = (bias,) if seed is None else (bias, seed)

    def compute(query, key, value, bias, seed=None):
        return _weigh(_product(query, key), value, bias, rate, seed)

    return recomputed(compute, query, key, value, constants=constants)
