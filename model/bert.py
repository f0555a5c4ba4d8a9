"""BERT, top to bottom: token ids in, one vector a token out (Devlin et al. 2019, arXiv 1810.04805).

The letters used for shapes in the whole project:

    B batch   S padded length   H width   N heads   D = H / N   I feed-forward width   L layers   V vocabulary

Precision: every weight is a float32 variable. The dtype policy handed in says what products are computed in; layer-norm
statistics and softmax are float32 whatever it is. Residuals have the compute dtype.
Padding: a row's real tokens stand first and its padding last, as everywhere in this project; fused attention relies on
that.
"""

from dataclasses import dataclass, field

import keras
import tensorflow as tf

from configs.errors import UserError
from model.attention import attend, scaled_scores
from model.column_sums import plus
from model.config import BertConfig
from model.dropout import dropout
from model.gelu import bias_gelu
from model.layer_norm import layer_norm
from model.recompute import anew, recomputed


@dataclass
class Encoded:
    """What an encoder returns. Lists stay empty unless asked for, because each of them costs memory."""

    output: tf.Tensor  # [B, S, H] compute dtype
    hidden: list[tf.Tensor] = field(default_factory=list)  # L + 1 times [B, S, H]: the embedding block's output first
    # L entries each, None for a layer that was not asked for:
    scores: list = field(default_factory=list)  # [B, N, S, S] float32: Q K^T / sqrt(D), no mask
    relations: list = field(default_factory=list)  # (query, key, value), each [B, S, N, D]


class LayerNorm(keras.layers.Layer):
    """Layer normalisation: statistics, scale and offset in float32 whatever x is; y has x's dtype."""

    def __init__(self, width: int, epsilon: float, dtype, name: str):
        super().__init__(dtype=dtype, name=name, autocast=False)  # Keras would round a float32 x to the compute dtype
        self.epsilon = epsilon
        self.scale = self.add_weight(shape=(width,), initializer="ones", autocast=False, name="scale")
        self.offset = self.add_weight(shape=(width,), initializer="zeros", autocast=False, name="offset")

    def call(self, x):
        return layer_norm(x, self.scale.value, self.offset.value, self.epsilon)


class Linear(keras.layers.Layer):
    """x W + b in the compute dtype; `product` leaves the bias to the caller, who may fuse it with what comes next."""

    def __init__(self, inputs: int, outputs: int, dtype, name: str):
        super().__init__(dtype=dtype, name=name)
        normal = keras.initializers.TruncatedNormal(stddev=0.02)
        self.kernel = self.add_weight(shape=(inputs, outputs), initializer=normal, autocast=False, name="kernel")
        self.bias = self.add_weight(shape=(outputs,), initializer="zeros", autocast=False, name="bias")

    def product(self, x):
        """[..., inputs] -> [..., outputs], without the bias."""
        rows = tf.reshape(x, (-1, x.shape[-1]))
        return tf.reshape(rows @ tf.cast(self.kernel.value, x.dtype), _leading(x) + (self.kernel.shape[-1],))

    def call(self, x):
        return plus(self.product(x), self.bias.value)


def _leading(x) -> tuple:
    """Every size of x but the last, static where known."""
    dynamic = tf.shape(x)
    return tuple(dynamic[axis] if size is None else size for axis, size in enumerate(x.shape[:-1]))


class Embeddings(keras.layers.Layer):
    """Token + position + segment vectors, layer norm, dropout: [B, S] ids -> [B, S, H]."""

    def __init__(self, config: BertConfig, dtype):
        super().__init__(dtype=dtype, name="embeddings")
        normal = keras.initializers.TruncatedNormal(stddev=0.02)
        self.rate = config.dropout
        table = {"initializer": normal, "autocast": False}  # looked up first and cast after: V x H is not worth a cast
        self.token = self.add_weight(shape=(config.vocabulary, config.hidden), name="token", **table)
        self.position = self.add_weight(shape=(config.positions, config.hidden), name="position", **table)
        self.segment = self.add_weight(shape=(config.segments, config.hidden), name="segment", **table)
        self.norm = LayerNorm(config.hidden, config.layer_norm_epsilon, dtype, "norm")
        self.built = True  # or else Keras runs the first call twice, once to find out what is to be built

    def call(self, token_ids, segment_ids, seed=None):
        batch, length = _leading(token_ids[..., None])
        x = tf.gather(self.token.value, tf.reshape(token_ids, [-1]))  # [B * S, H] float32
        position = tf.broadcast_to(self.position.value[:length], (batch, length, x.shape[1]))
        x += tf.reshape(position, (-1, x.shape[1]))
        # Two rows of segments: a choice, whose gradient is a sum over rows; that of a gather scatters B * S into two.
        table, ids = self.segment.value, tf.reshape(segment_ids, [-1, 1])
        segment = table[:1]
        for index in range(1, table.shape[0]):
            segment = tf.where(ids == index, table[index : index + 1], segment)
        x += segment
        x = dropout(tf.cast(self.norm(x), self.compute_dtype), self.rate, seed)
        return tf.reshape(x, (batch, length, x.shape[1]))


class Layer(keras.layers.Layer):
    """One transformer layer: self-attention and a feed-forward block, each with dropout, residual and layer norm."""

    def __init__(self, config: BertConfig, dtype, name: str):
        super().__init__(dtype=dtype, name=name)
        self.config = config

        width, epsilon = config.hidden, config.layer_norm_epsilon
        self.qkv = Linear(width, 3 * width, dtype, "qkv")  # query, key and value side by side: one product, not three
        self.attention_out = Linear(width, width, dtype, "attention_out")
        self.attention_norm = LayerNorm(width, epsilon, dtype, "attention_norm")
        self.ffn_in = Linear(width, config.ffn, dtype, "ffn_in")
        self.ffn_out = Linear(config.ffn, width, dtype, "ffn_out")
        self.ffn_norm = LayerNorm(width, epsilon, dtype, "ffn_norm")
        self.built = True

    def call(self, x, padding_mask, seed=None, want=frozenset(), fused=False):
        """x [B, S, H], padding_mask int32 [B, S] -> (y [B, S, H], scores or None, (query, key, value))."""
        c = self.config
        batch, length = _leading(x)
        x = tf.reshape(x, (-1, c.hidden))  # [B * S, H]: two axes leave XLA no choice of their order in memory
        qkv = tf.reshape(self.qkv(x), (batch, length, 3, c.heads, c.head_size))
        query, key, value = tf.unstack(qkv, axis=2)  # [B, S, N, D]; three slices' gradients would be padded and added

        scores = scaled_scores(query, key) if "scores" in want else None
        context = attend(
            query, key, value, padding_mask, rate=c.attention_dropout, seed=_site(seed, 0), scores=scores, fused=fused
        )
        context = tf.reshape(context, (-1, c.hidden))
        x = self.attention_norm(_residual(x) + dropout(self.attention_out(context), c.dropout, _site(seed, 1)))

        inner = bias_gelu(self.ffn_in.product(x), self.ffn_in.bias.value, c.gelu)  # [B * S, I]
        x = self.ffn_norm(_residual(x) + dropout(self.ffn_out(inner), c.dropout, _site(seed, 2)))
        return tf.reshape(x, (batch, length, c.hidden)), scores, (query, key, value)


@tf.custom_gradient
def _residual(x):
    """x, past a block. On the way back the gradient that comes past the block is kept as a tensor of its own, so that
    XLA has the block's last product add to it (cuBLAS's beta) instead of adding the product's result in a kernel."""
    return tf.identity(x), lambda upstream: anew(upstream)[0]


def _site(seed, index: int):
    """Seed of the index-th dropout below `seed` (int64 [2]): the stream is a function of run, step and place alone."""
    return None if seed is None else seed + tf.constant([0, index], tf.int64)


class Bert(keras.Model):
    """The encoder.

    Args:
        config: sizes.
        dtype: Keras dtype policy: "float32", "mixed_float16" or "mixed_bfloat16".
        fused: attention by cuDNN's fused kernel; only in what XLA compiles for a GPU (`model/attention.py`).
        recompute: keep each layer's input alone for the backward pass, which computes the layer again.
    """

    def __init__(self, config: BertConfig, dtype: str = "float32", fused: bool = False, recompute: bool = False):
        super().__init__(dtype=dtype, name="bert")
        self.config, self.fused, self.recompute = config, fused, recompute
        self.embeddings = Embeddings(config, dtype)
        self.blocks = [Layer(config, dtype, f"layer_{index}") for index in range(config.layers)]
        self.built = True

    def call(self, token_ids, segment_ids, padding_mask, seed=None, want=(), of=None):
        """Encode a batch.

        Args:
            token_ids, segment_ids, padding_mask: int32 [B, S]; the mask is 1 for real tokens, which stand first.
            seed: int64 [2] for dropout, None for none (evaluation, teachers).
            want: any of "hidden", "scores", "relations"; what is not wanted is not kept.
            of: indices of the layers whose scores and relations are wanted, None for all: scores have to be written
                out, and a layer without is free to use fused attention.

        Returns: `Encoded`.
        Raises: UserError when S exceeds the position table.
        """
        if token_ids.shape[1] and token_ids.shape[1] > self.config.positions:
            raise UserError(
                f"windows of {token_ids.shape[1]} tokens need as many position vectors, the model has "
                f"{self.config.positions}; choose --window {self.config.positions} or less"
            )
        want = frozenset(want)
        # A few numbers are kept free below every layer for its own dropout sites.
        x = self.embeddings(token_ids, segment_ids, seed=_site(seed, 0))
        result = Encoded(x, hidden=[x] if "hidden" in want else [])
        for index, layer in enumerate(self.blocks):
            here = want if of is None or index in of else want & {"hidden"}
            place = _site(seed, 8 * (index + 1))
            scores = relation = None
            if self.recompute and not here - {"hidden"}:

                def compute(x, padding_mask, seed=None, layer=layer):
                    return layer(x, padding_mask, seed=seed, fused=self.fused)[0]

                constants = (padding_mask,) if place is None else (padding_mask, place)
                x = recomputed(compute, x, constants=constants)
            else:
                x, scores, relation = layer(x, padding_mask, seed=place, want=here, fused=self.fused)
            if "hidden" in want:
                result.hidden.append(x)
            if "scores" in want:
                result.scores.append(scores)
            if "relations" in want:
                result.relations.append(relation if "relations" in here else None)
        result.output = x
        return result


def named_variables(encoder: Bert) -> dict[str, keras.Variable]:
    """Our name of every weight -> its variable, in a fixed order; `model/weights.py` maps published names to these."""
    e = encoder.embeddings
    names = {"embeddings.token": e.token, "embeddings.position": e.position, "embeddings.segment": e.segment}
    names |= _norm("embeddings.norm", e.norm)
    for index, layer in enumerate(encoder.blocks):
        stem = f"layers.{index}"
        names |= _dense(f"{stem}.attention.qkv", layer.qkv) | _dense(f"{stem}.attention.out", layer.attention_out)
        names |= _norm(f"{stem}.attention.norm", layer.attention_norm)
        names |= _dense(f"{stem}.ffn.in", layer.ffn_in) | _dense(f"{stem}.ffn.out", layer.ffn_out)
        names |= _norm(f"{stem}.ffn.norm", layer.ffn_norm)
    return names


def _dense(stem, layer):
    return {f"{stem}.kernel": layer.kernel, f"{stem}.bias": layer.bias}


def _norm(stem, layer):
    return {f"{stem}.scale": layer.scale, f"{stem}.offset": layer.offset}
