"""Heads: what stands on the encoder for a task. Today the span head of extractive question answering."""

import keras
import tensorflow as tf

from model.bert import Bert, named_variables
from model.config import BertConfig


class SpanModel(keras.Model):
    """Encoder and span head: for every token, how likely the answer starts and ends there.

    Logits are float32 whatever the encoder computes in: the head is a float32 product.
    """

    def __init__(self, config: BertConfig, dtype: str = "float32", fused: bool = False, recompute: bool = False):
        super().__init__(dtype="float32", name="span_model")
        self.config = config
        self.encoder = Bert(config, dtype, fused, recompute)
        self.span = keras.layers.Dense(
            2, kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02), dtype="float32", name="span"
        )
        self.span.build((None, None, config.hidden))
        self.built = True

    def call(self, token_ids, segment_ids, padding_mask, seed=None):
        """int32 [B, S] three times -> (start_logits, end_logits) float32 [B, S]."""
        encoded = self.encoder(token_ids, segment_ids, padding_mask, seed=seed)
        return self.logits(encoded.output)

    def logits(self, output):
        """Encoder output [B, S, H] -> (start_logits, end_logits) float32 [B, S]."""
        wide, kernel, bias = tf.cast(output, tf.float32), self.span.kernel.value, self.span.bias.value
        # Two sums over H and no product: a matrix of two columns would have the float32 output written out first.
        start, end = (tf.reduce_sum(wide * kernel[:, column], axis=-1) + bias[column] for column in (0, 1))
        return start, end

    def names(self) -> dict[str, keras.Variable]:
        """Our name of every weight, encoder and head, -> its variable."""
        head = {"span.kernel": self.span.kernel, "span.bias": self.span.bias}
        return named_variables(self.encoder) | head


def span_loss(start_logits, end_logits, padding_mask, start_positions, end_positions):
    """Mean of the cross-entropies of start and end over the row's real tokens: float32 [B] (google-research/bert).

    Args: logits float32 [B, S]; padding_mask int32 [B, S]; positions int32 [B], 0 ([CLS]) where a window has no answer.
    """
    hidden = (1.0 - tf.cast(padding_mask, tf.float32)) * -1e9
    start = tf.nn.sparse_softmax_cross_entropy_with_logits(start_positions, start_logits + hidden)
    end = tf.nn.sparse_softmax_cross_entropy_with_logits(end_positions, end_logits + hidden)
    return (start + end) / 2
