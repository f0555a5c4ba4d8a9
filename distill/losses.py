"""What a student may copy from its teacher: embeddings, hidden states, attention, answers, relations; a function each.

Every function returns float32 [B], for each row the mean over what is real in it: padding, as a row or as a column,
counts for nothing, and a row's loss does not depend on the rows beside it or on how far the batch is padded. Everything
is computed in float32 whatever the activations are. The caller weighs the rows (fillers 0) and sums over them.

Written in TinyBERT's letters (Jiao et al. 2020, arXiv 1909.10351): S student, T teacher, m a student's layer, g(m) the
teacher's layer it learns from, n the number of real tokens of the row, h heads, d the teacher's width, t temperature.
"""

import math
from collections.abc import Callable

import tensorflow as tf

_MASKED = -1e9  # in place of float32 logits of padding; exp() of it is 0, and no sum of it overflows


def embedding_loss(student, teacher, padding_mask, project: Callable | None = None):
    """1 / (n d) sum over real tokens and d of (E_S W - E_T)^2 (TinyBERT, eq. 9): float32 [B].

    Args:
        student: [B, S, H'] the embedding block's output, any float dtype.
        teacher: [B, S, H] the same of the teacher.
        padding_mask: int32 [B, S].
        project: [B, S, H'] float32 -> [B, S, H] float32, W of the equation; None where the widths agree.
    """
    return _mean_square(student, teacher, padding_mask, project)


def hidden_loss(student, teacher, padding_mask, project: Callable | None = None):
    """1 / (n d) sum over real tokens and d of (H_S^m W - H_T^g(m))^2 (TinyBERT, eq. 8): float32 [B].

    Arguments as for `embedding_loss`, the outputs of layers m and g(m).
    """
    return _mean_square(student, teacher, padding_mask, project)


def _mean_square(student, teacher, padding_mask, project):
    student, teacher = tf.cast(student, tf.float32), tf.cast(teacher, tf.float32)
    difference = (project(student) if project else student) - teacher  # [B, S, H]
    real = padding_mask > 0
    # where() before the square: not even a NaN at padding reaches the loss or a gradient
    difference = tf.where(real[..., None], difference, 0.0)
    tokens = tf.reduce_sum(tf.cast(real, tf.float32), axis=1)  # [B]
    return tf.reduce_sum(tf.reduce_mean(tf.square(difference), axis=-1), axis=1) / tf.maximum(tokens, 1.0)


def attention_loss(student, teacher, padding_mask):
    """1 / (h n^2) sum over heads and pairs of real tokens of (A_S^m - A_T^g(m))^2 (TinyBERT, eq. 7): float32 [B].

    A = Q K^T / sqrt(D) before mask and softmax. The published code averages over padding, too; rows and columns of
    padding are left out here, and the sum is divided by the n^2 pairs that are real.

    Args: student, teacher: [B, N, S, S], as many heads each; padding_mask: int32 [B, S].
    """
    real = padding_mask > 0
    pairs = real[:, None, :, None] & real[:, None, None, :]  # [B, 1, S, S]
    difference = tf.where(pairs, tf.cast(student, tf.float32) - tf.cast(teacher, tf.float32), 0.0)
    tokens = tf.reduce_sum(tf.cast(real, tf.float32), axis=1)
    heads = float(student.shape[1])
    return tf.reduce_sum(tf.square(difference), axis=(1, 2, 3)) / (heads * tf.square(tf.maximum(tokens, 1.0)))


def prediction_loss(student, teacher, padding_mask, temperature: float = 1.0):
    """- t^2 sum over real positions of softmax(z_T / t) log softmax(z_S / t) (TinyBERT, eq. 10): float32 [B].

    A sum over the classes (of a span, the positions of a window), not the mean of the published code. t^2 keeps the
    gradient's size when t changes (Hinton et al. 2015, arXiv 1503.02531, section 2).

    Args: student, teacher: logits float32 [..., C], for spans [B, S]; padding_mask: [..., C], above 0 where a class is
    real. Returns: float32 [...].
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} must be above 0; 1 leaves the logits as they are")
    student, teacher = (_real_logits(z, padding_mask, temperature) for z in (student, teacher))
    cross = tf.nn.softmax(teacher, axis=-1) * tf.nn.log_softmax(student, axis=-1)  # [B, S]
    return -(temperature**2) * tf.reduce_sum(cross, axis=-1)


def _real_logits(logits, padding_mask, temperature):
    return tf.where(padding_mask > 0, tf.cast(logits, tf.float32) / temperature, _MASKED)


def relation_loss(student, teacher, padding_mask, heads: int):
    """1 / (A n) sum over heads and real tokens of KL(R_T || R_S), summed over the three x below: float32 [B].

    R = softmax(X X^T / sqrt(H / A)) for X the queries, the keys and the values of a layer, all heads side by side and
    cut anew into A relation heads: so student and teacher may differ in heads and in width (MiniLM v2, Wang et al.
    2021, arXiv 2012.15828).

    Args:
        student, teacher: (query, key, value), each [B, S, N, D] before any scaling; N and D may differ between the two.
        padding_mask: int32 [B, S]. heads: A, divides both widths.
    """
    real = padding_mask > 0
    tokens = tf.maximum(tf.reduce_sum(tf.cast(real, tf.float32), axis=1), 1.0)
    total = 0.0
    for mine, theirs in zip(student, teacher, strict=True):
        log_mine, log_theirs = _log_relations(mine, real, heads), _log_relations(theirs, real, heads)  # [B, A, S, S]
        divergence = tf.reduce_sum(tf.exp(log_theirs) * (log_theirs - log_mine), axis=-1)  # [B, A, S]
        # A row of padding is all zeros in both, its relations are equal and its divergence is 0.
        total += tf.reduce_sum(divergence, axis=(1, 2)) / (heads * tokens)
    return total


def _log_relations(x, real, heads: int):
    """[B, S, N, D] -> log softmax over the real columns of X X^T / sqrt(H / A), float32 [B, A, S, S].

    The product is float32: a token with itself scores highest by far, and float16 is coarse up there.
    """
    batch, length = (x.shape[axis] or tf.shape(x)[axis] for axis in (0, 1))
    size = x.shape[2] * x.shape[3] // heads
    x = tf.where(real[:, :, None, None], tf.cast(x, tf.float32), 0.0)
    x = tf.transpose(tf.reshape(x, (batch, length, heads, size)), (0, 2, 1, 3)) * size**-0.25  # [B, A, S, H / A]
    scores = tf.matmul(x, x, transpose_b=True)
    return tf.nn.log_softmax(tf.where(real[:, None, None, :], scores, _MASKED), axis=-1)


def relation_heads(student_width: int, teacher_width: int) -> list[int]:
    """The numbers of relation heads that both widths can be cut into."""
    common = math.gcd(student_width, teacher_width)
    return [count for count in range(1, common + 1) if common % count == 0]
