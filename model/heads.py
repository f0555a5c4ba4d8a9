"""An encoder with a head of `heads/` on it, as a Keras model; what the head is, its entry says."""

from typing import Any

import keras
import tensorflow as tf

from model.bert import Bert, named_variables
from model.config import BertConfig
from model.dropout import dropout

DROPOUT_SITE = 1000  # above those of every layer, below those of attention's blocks (`model/attention.py`)


class Tail(keras.layers.Layer):
    """A head's weights: float32 variables under our names. Kernels drawn as BERT's, everything else 0."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        super().__init__(dtype="float32", name="head")
        normal = keras.initializers.TruncatedNormal(stddev=0.02)
        self.named = {
            name: self.add_weight(
                shape=shape, initializer=normal if name.endswith("kernel") else "zeros", autocast=False, name=name
            )
            for name, shape in shapes.items()
        }
        self.built = True

    def call(self, x):  # Keras wants one; the head's entry computes with the values
        return x


class HeadModel(keras.Model):
    """Encoder and head.

    Outputs are float32 whatever the encoder computes in: the head's products are float32.

    Args: head: an entry of `heads/` with its labels; config, dtype, fused, recompute: the encoder's (`model/bert.py`).
    """

    def __init__(
        self, head: Any, config: BertConfig, dtype: str = "float32", fused: bool = False, recompute: bool = False
    ):
        super().__init__(dtype="float32", name="head_model")
        self.head, self.config = head, config
        self.encoder = Bert(config, dtype, fused, recompute)
        self.tail = Tail(head.shapes(config))
        self.built = True

    def call(self, token_ids, segment_ids, padding_mask, seed=None):
        """int32 [B, S] three times -> the head's outputs, float32 [B, S, ...] or [B, ...] each."""
        encoded = self.encoder(token_ids, segment_ids, padding_mask, seed=seed)
        return self.logits(encoded.output, padding_mask, seed)

    def logits(self, output, padding_mask=None, seed=None):
        """Encoder output [B, S, H] -> the head's outputs. padding_mask: where a head asks for it; seed: of dropout."""
        seed = None if seed is None else seed + tf.constant([0, DROPOUT_SITE], tf.int64)
        weights = {name: variable.value for name, variable in self.tail.named.items()}
        return self.head.forward(
            weights, tf.cast(output, tf.float32), padding_mask, lambda x: dropout(x, self.config.dropout, seed)
        )

    def names(self) -> dict[str, keras.Variable]:
        """Our name of every weight, encoder and head, -> its variable."""
        return named_variables(self.encoder) | self.tail.named
