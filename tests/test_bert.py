"""The encoder equals transformers' BertModel (golden files of scripts/make_golden.py) and keeps to its precision."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from configs.errors import UserError
from data.tokenize import Tokenizer
from heads import default
from heads.span import span_loss
from model import weights
from model.bert import LayerNorm
from model.config import BertConfig
from model.heads import HeadModel
from scripts import make_golden

SPAN = default()

MOST = 2e-5  # max abs difference of a logit or a hidden value in float32
SMALL = BertConfig(vocabulary=60, hidden=48, layers=3, heads=4, ffn=80, positions=32)
NAMES = ("token_ids", "segment_ids", "padding_mask")


def golden(name):
    return json.loads((make_golden.GOLDEN / name).read_text(encoding="utf-8"))


def spelt(tensors, spelling):
    """The same weights as other publishers name them."""
    if spelling == "old":
        ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, old in ends.items():
            tensors = {name.replace(new, old): value for name, value in tensors.items()}
    if spelling != "plain":
        tensors = {name if name.startswith("qa_") else f"bert.{name}": value for name, value in tensors.items()}
    return tensors


def build(published, **arguments):
    model = HeadModel(SPAN, published.config, **arguments)
    for name, variable in model.names().items():
        variable.assign(published.tensors[name])
    return model


def drawn(config=SMALL, **arguments):
    """A model with the golden cases' weights, without a way through files."""
    theirs = make_golden.random_tensors()
    named = weights._rename(
        weights.published_names.hugging_face(config, set(theirs), SPAN), theirs.__getitem__, "drawn",
        turned={name for name in weights.expected_shapes(config, SPAN) if name.endswith("kernel")},
    )  # fmt: skip
    return build(weights.Published(config, named, [], Path(), {}, "drawn"), **arguments)


def batch():
    return [tf.constant(make_golden.random_batch()[name]) for name in NAMES]


def everything(model, arrays):
    """All that the encoder can return, under the golden file's names."""
    encoded = model.encoder(*arrays, want=("hidden", "scores", "relations"))
    start, end = model.logits(encoded.output)
    found = {"start_logits": start, "end_logits": end}
    found |= {f"hidden.{index}": x for index, x in enumerate(encoded.hidden)}
    found |= {f"scores.{index}": x for index, x in enumerate(encoded.scores)}
    for index, (_, _, value) in enumerate(encoded.relations):
        found[f"value.{index}"] = tf.reshape(value, (*value.shape[:2], -1))
    return found


def differences(found, wanted, padding_mask):
    assert found.keys() == wanted.keys()
    samples = {name: make_golden.sample(x, padding_mask) for name, x in found.items()}
    return {name: float(np.abs(samples[name] - np.array(wanted[name])).max()) for name in wanted}


def too_large(found, wanted, padding_mask):
    """Scores grow to 20 and more in these weights: they may differ by a millionth of the largest more."""
    least = {name: MOST + 1e-6 * max(map(abs, values)) for name, values in wanted.items() if name.startswith("scores")}
    return {name: d for name, d in differences(found, wanted, padding_mask).items() if not d < least.get(name, MOST)}


@pytest.mark.parametrize("spelling", ["plain", "prefix", "old"])
@pytest.mark.parametrize("case", make_golden.CASES)
def test_a_drawn_encoder_equals_transformers(case, spelling, tmp_path):
    tensors = spelt(make_golden.random_tensors(), spelling)
    folder = make_golden.write_folder(tmp_path, make_golden.SIZES | make_golden.CASES[case], tensors)
    model, arrays = build(weights.load(str(folder), SPAN)), batch()
    wanted = golden("bert_random.json")["cases"][case]
    assert not too_large(everything(model, arrays), wanted, arrays[2])
    start, end = model(*arrays)  # nobody asks for scores: attention takes its other way
    logits = {"start_logits": start, "end_logits": end}
    assert not too_large(logits, {name: wanted[name] for name in logits}, arrays[2])


def test_published_weights_equal_transformers_on_real_text(minilm):
    stored = golden("bert_minilm.json")
    arrays = [np.array(stored["batch"][name], np.int32) for name in NAMES]
    published = weights.load(str(minilm))
    assert published.left_over == ["embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"]
    span = make_golden.head(published.config.hidden)
    published.tensors |= {"span.kernel": span["qa_outputs.weight"].T, "span.bias": span["qa_outputs.bias"]}
    assert not too_large(everything(build(published), arrays), stored["outputs"], arrays[2])


def test_our_tokeniser_gives_the_ids_that_the_golden_file_was_made_with(minilm):
    tokenizer = Tokenizer.from_config(weights.load(str(minilm)).tokenizer, minilm / "vocab.txt")
    for text, row in zip(make_golden.TEXTS, golden("bert_minilm.json")["batch"]["token_ids"], strict=True):
        question, context = (encoding.ids for encoding in tokenizer.encode_batch(list(text)))
        ids = [tokenizer.cls_id, *question, tokenizer.sep_id, *context, tokenizer.sep_id]
        assert ids + [tokenizer.pad_id] * (len(row) - len(ids)) == row


def test_what_nobody_asks_for_is_not_returned_and_shapes_are_as_told():
    model, arrays = drawn(), batch()
    plain = model.encoder(*arrays)
    assert (plain.hidden, plain.scores, plain.relations) == ([], [], [])
    full = model.encoder(*arrays, want=("hidden", "scores", "relations"))
    assert [tuple(x.shape) for x in full.hidden] == [(3, 24, 48)] * 4
    assert [tuple(x.shape) for x in full.scores] == [(3, 4, 24, 24)] * 3
    assert [tuple(x.shape) for three in full.relations for x in three] == [(3, 24, 4, 12)] * 9
    np.testing.assert_array_equal(full.hidden[-1], full.output)


def test_more_padding_and_what_stands_there_change_nothing():
    model, (ids, segments, mask) = drawn(), batch()
    wider = [tf.pad(x, [[0, 0], [0, 8]], constant_values=fill) for x, fill in ((ids, 59), (segments, 1), (mask, 0))]
    real = tf.cast(mask, tf.float32)
    for short, long in zip(model(ids, segments, mask), model(*wider), strict=True):
        np.testing.assert_allclose(short * real, long[:, :24] * real, atol=MOST)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_a_compiled_model_equals_the_eager_one(jit):
    model, arrays = drawn(), batch()
    spec = [tf.TensorSpec([3, 24] if jit else [None, None], tf.int32)] * 3
    compiled = tf.function(lambda *x: model(*x), input_signature=spec, jit_compile=jit or None, autograph=False)
    for eager, graph in zip(model(*arrays), compiled(*arrays), strict=True):
        np.testing.assert_allclose(eager, graph, atol=MOST)


@pytest.mark.parametrize(("policy", "compute", "most"), [
    ("float32", tf.float32, 0), ("mixed_float16", tf.float16, 0.02), ("mixed_bfloat16", tf.bfloat16, 0.15),
])  # fmt: skip
def test_weights_scores_and_logits_are_float32_under_every_policy(policy, compute, most):
    model, exact, arrays = drawn(dtype=policy), drawn(), batch()
    assert {variable.dtype for variable in model.variables} == {"float32"}
    encoded = model.encoder(*arrays, want=("hidden", "scores", "relations"))
    assert encoded.output.dtype == compute
    assert {x.dtype for x in encoded.hidden} == {compute}
    assert {x.dtype for three in encoded.relations for x in three} == {compute}
    assert {x.dtype for x in encoded.scores} == {tf.float32}
    for got, want in zip(model(*arrays), exact(*arrays), strict=True):
        assert got.dtype == tf.float32
        error = np.abs((got - want) * tf.cast(arrays[2], tf.float32)).max()
        assert error <= most
        assert error > 0 or policy == "float32", "nothing was computed in the compute dtype"


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32], ids=lambda dtype: dtype.name)
def test_layer_norm_statistics_are_float32_whatever_x_is(dtype):
    # Around 3000 a sum of 64 values overflows float16, and a bfloat16 mean is off by more than these values vary.
    x = tf.cast(3000 + 64 * np.random.default_rng(1).integers(-3, 4, (5, 64)), dtype)
    norm, scale, offset = LayerNorm(64, 1e-12, "mixed_float16", "norm"), np.linspace(0.5, 2, 64), np.linspace(-1, 1, 64)
    norm.scale.assign(scale)
    norm.offset.assign(offset)
    y, wide = norm(x), tf.cast(x, tf.float64).numpy()
    assert y.dtype == dtype
    normal = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-12)
    ulp = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 1e-5}[dtype.name]
    np.testing.assert_allclose(tf.cast(y, tf.float64), normal * scale + offset, rtol=ulp, atol=ulp)


def test_embeddings_are_normalised_before_they_are_rounded():
    model = drawn(dtype="mixed_float16")
    position = model.encoder.embeddings.position
    position.assign(position.value + 4096.0)  # one step of float16 is 4 there; the norm takes a constant away again
    x = model.encoder.embeddings(*batch()[:2])
    np.testing.assert_allclose(tf.cast(x, tf.float32), drawn().encoder.embeddings(*batch()[:2]), atol=5e-3)


def test_dropout_is_off_without_a_seed_and_a_function_of_the_seed_with_one():
    model, arrays = drawn(), batch()

    def start(*seed):
        return model(*arrays, seed=tf.constant(seed, tf.int64) if seed else None)[0].numpy()

    np.testing.assert_array_equal(start(), start())
    np.testing.assert_array_equal(start(1, 2), start(1, 2))
    outputs = [start(), start(1, 2), start(1, 1 << 20), start(2, 2)]
    assert all(np.abs(a - b).max() > 0.01 for i, a in enumerate(outputs) for b in outputs[:i])
    quiet = drawn(replace(SMALL, dropout=0.0, attention_dropout=0.0))
    np.testing.assert_array_equal(quiet(*arrays, seed=tf.constant([1, 2], tf.int64))[0], quiet(*arrays)[0])


@pytest.mark.parametrize("rates", [{"dropout": 0.0}, {"attention_dropout": 0.0}], ids=["attention", "hidden"])
def test_each_kind_of_dropout_works_alone(rates):
    model, arrays = drawn(replace(SMALL, **rates)), batch()
    assert np.abs(model(*arrays, seed=tf.constant([1, 2], tf.int64))[0] - model(*arrays)[0]).max() > 0.01


def test_every_place_of_dropout_draws_from_a_seed_of_its_own(monkeypatch):
    drawn_at = []

    def record(x, rate, seed):
        drawn_at.append((rate, tuple(seed.numpy().tolist())))
        return x

    monkeypatch.setattr("model.bert.dropout", record)
    monkeypatch.setattr("model.attention.dropout", record)
    drawn(replace(SMALL, attention_dropout=0.2))(*batch(), seed=tf.constant([1, 2], tf.int64))
    assert [rate for rate, _ in drawn_at] == [0.1] + 3 * [0.2, 0.1, 0.1]
    assert len({seed for _, seed in drawn_at}) == 10


def test_names_cover_every_variable_once_in_the_expected_shapes():
    model = HeadModel(SPAN, SMALL)
    names = model.names()
    assert sorted(map(id, names.values())) == sorted(map(id, model.variables))
    shapes = {name: tuple(variable.shape) for name, variable in names.items()}
    assert shapes == weights.expected_shapes(SMALL, SPAN)
    assert list(HeadModel(SPAN, SMALL).names()) == list(names)


def test_every_weight_gets_a_gradient():
    model, arrays = drawn(), batch()
    names = model.names()
    with tf.GradientTape() as tape:
        # Not the cross-entropy: the same shift of all logits leaves it alone, and so has no gradient.
        loss = sum(tf.reduce_sum(tf.square(x) * tf.cast(arrays[2], tf.float32)) for x in model(*arrays))
    gradients = tape.gradient(loss, [variable.value for variable in names.values()], unconnected_gradients="zero")
    norms = {name: float(tf.norm(tf.convert_to_tensor(x))) for name, x in zip(names, gradients, strict=True)}
    assert [name for name, norm in norms.items() if norm < 1e-3] == []


def test_a_window_longer_than_the_position_table_is_refused():
    ids = tf.zeros((1, 33), tf.int32)
    with pytest.raises(UserError, match=r"windows of 33 tokens .* the model has 32; choose --window 32 or less"):
        drawn()(ids, ids, ids + 1)


@pytest.mark.parametrize(("change", "message"), [
    ({"hidden": 312, "heads": 5}, "width 312 cannot be split over 5 heads; choose one of 1, 2, 3, 4, 6, 8, 12,"),
    ({"gelu": "relu"}, "activation 'relu' is not known; needed is 'erf'"),
    ({"layers": 0}, "model size 'layers' is 0; needed is a whole number above 0"),
    ({"hidden": "48"}, "model size 'hidden' is '48'"),
    ({"dropout": 1.0}, "model constant 'dropout' is 1.0; needed is a number from 0 to below 1"),
])  # fmt: skip
def test_sizes_that_make_no_model_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **change)


def test_the_loss_is_the_mean_cross_entropy_of_real_tokens():
    start, end = np.array([[[1, 2, 9], [0, 0, 0]], [[0, 1, 9], [3, 0, 0]]], np.float32)
    mask = np.array([[1, 1, 0], [1, 1, 1]], np.int32)  # the third token of the first row must not count
    want = [(np.log1p(np.e) - 1 + np.log1p(np.e)) / 2, (np.log(3) + np.log(np.exp(3) + 2)) / 2]
    np.testing.assert_allclose(span_loss(start, end, mask, [1, 0], [0, 1]), want, rtol=1e-6)
