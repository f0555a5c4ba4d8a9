"""Attention: blocks equal the whole, padding counts for nothing, dropout is a function of its seed in both passes."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf

from model import cudnn_attention
from model.attention import QUERY_BLOCK, attend, scaled_scores
from model.dropout import dropout

SEED = tf.constant([7, 11], tf.int64)


def drawn(shape, seed=0, dtype=tf.float32):
    return tf.cast(np.random.default_rng(seed).normal(size=shape), dtype)


def three(batch, length, heads, size, dtype=tf.float32):
    return [drawn((batch, length, heads, size), seed, dtype) for seed in (1, 2, 3)]


def attended(tensors, mask, **arguments):
    query, key, value = tensors
    return attend(query, key, value, mask, **arguments)


def mask_of(lengths, length):
    return tf.sequence_mask(lengths, length, tf.int32)


def in_float64(tensors, mask):
    """The equation, as one would write it: [B, S, N, D]."""
    query, key, value = (np.array(x, np.float64) for x in tensors)
    scores = np.einsum("bqnd,bknd->bnqk", query, key) / query.shape[-1] ** 0.5
    scores = np.where(np.array(mask)[:, None, None, :], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnqk,bknd->bqnd", weights / weights.sum(-1, keepdims=True), value)


def with_gradients(tensors, mask, whole=False, **arguments):
    """[output, dq, dk, dv], nothing coming back from padding."""
    real = tf.cast(mask, tensors[0].dtype)[:, :, None, None]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        scores = scaled_scores(*tensors[:2]) if whole else None
        output = attended(tensors, mask, scores=scores, **arguments)
    return [output * real, *tape.gradient(output, tensors, output_gradients=drawn(output.shape, 4) * real)]


CASES = [  # S, D, lengths, why
    pytest.param(5, 8, [5, 3, 1], id="less than a block"),
    pytest.param(QUERY_BLOCK, 26, [128, 77, 1], id="one block, TinyBERT's head size"),
    pytest.param(QUERY_BLOCK + 1, 8, [129, 128, 64], id="one query in the last block"),
    pytest.param(300, 26, [300, 170, 1], id="two blocks and a part, padding of many kinds"),
]


@pytest.mark.parametrize(("length", "size", "lengths"), CASES)
def test_blocks_equal_the_whole_and_float64_in_value_and_gradients(length, size, lengths):
    tensors, mask = three(3, length, 2, size), mask_of(lengths, length)
    blocked, whole = with_gradients(tensors, mask), with_gradients(tensors, mask, whole=True)
    for name, got, want in zip(("output", "dq", "dk", "dv"), blocked, whole, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)
    real = np.array(mask)[:, :, None, None]
    np.testing.assert_allclose(blocked[0], in_float64(tensors, mask) * real, atol=1e-5)


def test_a_length_known_only_at_run_time_gives_the_same():
    tensors, mask = three(2, 200, 2, 8), mask_of([200, 30], 200)
    spec = [tf.TensorSpec([None, None, 2, 8])] * 3 + [tf.TensorSpec([None, None], tf.int32)]

    def both(*x):
        with tf.GradientTape() as tape:
            tape.watch(x[0])
            output = attended(x[:3], x[3])
        return output, tape.gradient(output, x[0])

    compiled = tf.function(both, input_signature=spec, autograph=False)
    for got, want in zip(compiled(*tensors, mask), both(*tensors, mask), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_what_stands_at_padding_does_not_reach_real_tokens():
    mask, other = mask_of([200, 1], 200), [x + 100 * drawn(x.shape, 9) for x in three(2, 200, 2, 8)]
    real = tf.cast(mask, tf.float32)[:, :, None, None]
    mixed = [x * real + y * (1 - real) for x, y in zip(three(2, 200, 2, 8), other, strict=True)]
    for got, want in zip(with_gradients(mixed, mask), with_gradients(three(2, 200, 2, 8), mask), strict=True):
        np.testing.assert_allclose(got * real, want * real, atol=1e-6)
        assert np.isfinite(got).all()


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name)
def test_a_narrow_dtype_goes_in_and_out_with_a_float32_softmax(dtype):
    tensors = three(2, 150, 2, 8, dtype)
    tensors[1] += tf.constant(30, dtype)  # large scores that differ little: a narrow softmax would see few values
    mask = mask_of([150, 40], 150)
    assert scaled_scores(*tensors[:2]).dtype == tf.float32
    output = attended(tensors, mask)
    assert output.dtype == dtype
    real = np.array(mask, bool)
    error = np.abs(tf.cast(output, tf.float64) - in_float64([tf.cast(x, tf.float64) for x in tensors], mask))[real]
    assert error.mean() < {"float16": 0.01, "bfloat16": 0.08}[dtype.name]


def operations(graph):
    """All operations of a graph and of the functions in it."""
    yield from graph.get_operations()
    for function in graph._functions.values():
        yield from operations(function.graph)


@pytest.mark.parametrize("wanted", [False, True], ids=["blocked", "scores asked for"])
def test_only_who_asks_for_scores_gets_a_tensor_of_their_size(wanted):
    batch, length, heads = 2, 256, 3
    spec = [tf.TensorSpec([batch, length, heads, 8])] * 3
    mask = mask_of([256, 9], length)
    traced = tf.function(lambda *x: with_gradients(list(x), mask, wanted, rate=0.1, seed=SEED), autograph=False)
    found = list(operations(traced.get_concrete_function(*spec).graph))
    sizes = [output.shape.num_elements() or 0 for operation in found for output in operation.outputs]
    assert (max(sizes) >= batch * heads * length * length) == wanted
    # Two blocks: each softmax once on the way there, and on the way back once for what it weighs and once for its own
    # gradient instead of being kept.
    assert sum(operation.type == "Softmax" for operation in found) == (2 if wanted else 6)


def probabilities(length, mask, **arguments):
    """What the values are weighed with, [B, Q, K], read off with one value a key; queries and keys alike."""
    value = tf.tile(tf.eye(length)[None, :, None, :], (mask.shape[0], 1, 1, 1))
    flat = tf.zeros((mask.shape[0], length, 1, 4))
    return attend(flat, flat, value, mask, **arguments)[:, :, 0].numpy()


def test_probabilities_are_dropped_at_the_rate_and_the_rest_scaled_up():
    mask = mask_of([256, 100], 256)
    found = probabilities(256, mask, rate=0.1, seed=SEED)
    assert (found[1, :, 100:] == 0).all()
    for row, count in ((found[0], 256), (found[1, :, :100], 100)):
        assert abs((row == 0).mean() - 0.1) < 4 * np.sqrt(0.09 / row.size)
        np.testing.assert_allclose(row[row > 0], 1 / count / 0.9, rtol=1e-4)


def test_blocks_rows_seeds_and_sites_drop_different_probabilities():
    mask = mask_of([256, 256], 256)

    def dropped(*seed):
        return probabilities(256, mask, rate=0.5, seed=tf.constant(seed, tf.int64)) == 0

    first = dropped(7, 11)
    np.testing.assert_array_equal(first, dropped(7, 11))
    others = [dropped(7, 12), dropped(8, 11), dropped(7, 11 + (1 << 26)), np.roll(first, 128, axis=1), first[::-1]]
    for index, other in enumerate(others):
        assert abs((first == other).mean() - 0.5) < 0.01, index


def test_without_a_seed_or_a_rate_nothing_is_dropped():
    tensors, mask = three(2, 140, 2, 8), mask_of([140, 9], 140)
    plain = attended(tensors, mask)
    np.testing.assert_array_equal(attended(tensors, mask, rate=0.5), plain)
    np.testing.assert_array_equal(attended(tensors, mask, seed=SEED), plain)


@pytest.mark.parametrize("position", range(3), ids=["query", "key", "value"])
def test_gradients_under_dropout_equal_finite_differences(position):
    """They do so only if the recomputed block drops what the first one dropped."""
    tensors, mask = three(1, 140, 1, 4), mask_of([135], 140)
    direction, upstream = drawn(tensors[0].shape, 8), drawn(tensors[0].shape, 4)
    upstream *= tf.cast(mask, tf.float32)[:, :, None, None]

    def loss(offset):
        moved = [x + offset * direction if index == position else x for index, x in enumerate(tensors)]
        return float(tf.reduce_sum(tf.cast(attended(moved, mask, rate=0.4, seed=SEED) * upstream, tf.float64)))

    wanted = (loss(1e-2) - loss(-1e-2)) / 2e-2
    gradient = with_gradients(tensors, mask, rate=0.4, seed=SEED)[1 + position]
    assert float(tf.reduce_sum(gradient * direction)) == pytest.approx(wanted, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name)
def test_dropout_keeps_rate_expectation_and_dtype(dtype, rate):
    x = tf.ones((999, 1001), dtype)  # odd sizes: a 32-bit number makes two elements
    y = dropout(x, rate, SEED)
    assert y.dtype == dtype
    kept = tf.cast(y, tf.float64).numpy()
    assert abs((kept == 0).mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / kept.size) + 1 / 65536
    assert set(np.unique(kept)) == {0.0, float(tf.cast(65536 / (65536 - round(rate * 65536)), dtype))}
    neighbours = (kept[:, 1:] == 0) & (kept[:, :-1] == 0)
    assert abs(neighbours.mean() - rate**2) < 0.002, "neighbours are dropped independently"


def test_masks_of_two_places_and_the_rows_and_columns_of_one_are_independent():
    """The hash of a row and that of a column are summed: nothing of the sum may be seen in what is dropped."""
    signs = [
        np.sign(dropout(tf.ones((1500, 500)), 0.5, tf.constant([1, place], tf.int64)).numpy() - 0.5) for place in (8, 9)
    ]
    assert abs((signs[0] * signs[1]).mean()) < 4 / np.sqrt(signs[0].size)
    for part in (signs[0][:500], signs[0].T):  # all pairs of rows, all pairs of columns
        products = (part @ part.T / np.sqrt(part.shape[1]))[np.triu_indices(500, 1)]
        assert abs(products.mean()) < 0.02
        assert abs(products.std() - 1) < 0.02
        assert np.abs(products).max() < 6


def test_dropout_of_a_shape_known_only_at_run_time_is_the_same():
    x = drawn((7, 9))
    compiled = tf.function(lambda x: dropout(x, 0.3, SEED), input_signature=[tf.TensorSpec([None, None])])
    np.testing.assert_array_equal(compiled(x), dropout(x, 0.3, SEED))


PRODUCTS = {"forward": {"bmm1", "bmm2"}, "backward": {f"bmm{i}_grad_gemm{j}" for i in "12" for j in "12"}}


@pytest.mark.parametrize(("dtype", "element"), [(tf.float16, "f16"), (tf.bfloat16, "bf16")])
@pytest.mark.parametrize("direction", PRODUCTS)
def test_the_text_handed_to_xla_is_balanced_and_says_what_was_asked_for(direction, dtype, element):
    text = cudnn_attention._module(3, 128, 12, 32, dtype, 0.25, direction)
    for opening, closing in ("()", "{}", "[]", "<>"):
        assert text.replace("->", "").count(opening) == text.replace("->", "").count(closing)
    called = re.findall(r"custom_call @__cudnn\$fmhaSoftmax(Backward)?\(([^)]*)\)", text)
    assert [name for name, _ in called] == ["Backward" if direction == "backward" else ""]

    # As many types and layouts as operands; every argument of the function is used.
    operands = called[0][1].split(", ")
    layouts = re.search(r"operand_layouts = \[(.*)\], result_layouts = \[(.*)\]\}", text)
    signature = re.search(r"\]\} : \((.*)\) -> \((.*)\)\n", text)
    assert layouts
    assert signature
    assert layouts[1].count("dense<") == signature[1].count("tensor<") == len(operands)
    assert layouts[2].count("dense<") == signature[2].count("tensor<") == int(re.findall(r"%r:(\d)", text)[0])
    header = text.split("@main(")[1].split(") ->")[0]
    assert set(operands) == set(re.findall(r"%a\d", header))
    assert f"tensor<3x128x12x32x{element}>" in header
    assert signature[2].startswith(f"tensor<3x12x128x32x{element}>")

    escaped = re.search(r'backend_config = "([^"]*)"', text)
    assert escaped
    config = json.loads(escaped[1].replace("\\22", '"'))["cudnn_fmha_backend_config"]
    assert (config["fmha_scale"], config["dropout_rate"]) == (0.25, 0.0)
    assert config["intermediate_tensor_shape"]["dimensions"] == ["3", "12", "128", "128"]
    assert (config["mask_type"], config["is_flash_attention"]) == ("PADDING", True)
    named = {key.removesuffix("_dot_dimension_numbers") for key in config if key.endswith("dot_dimension_numbers")}
    assert named == PRODUCTS[direction]


def test_fused_attention_widens_heads_with_zeros_and_keeps_their_scale(monkeypatch):
    """On the CPU the custom call is replaced by plain attention that takes its scale from the text."""

    def plain(query, key, value, lengths, text):
        assert query.shape[-1] == 32
        scale = float(re.findall(r"fmha_scale\\22: ([0-9.e-]+)", text("forward"))[0])
        return attend(query * scale * np.sqrt(32), key, value, mask_of(lengths, query.shape[1]))

    monkeypatch.setattr(cudnn_attention, "_fused", plain)
    tensors, mask = three(2, 40, 3, 26, tf.bfloat16), mask_of([40, 7], 40)
    got, want = attended(tensors, mask, fused=True), attended(tensors, mask)
    assert got.shape == want.shape
    np.testing.assert_allclose(tf.cast(got, tf.float32), tf.cast(want, tf.float32), atol=0.03)
    # The kernel is called without dropout only; what is dropped comes from the blocks.
    blocked = attended(tensors, mask, rate=0.5, seed=SEED)
    np.testing.assert_array_equal(attended(tensors, mask, rate=0.5, seed=SEED, fused=True), blocked)


@pytest.mark.parametrize(("dtype", "length", "error", "message"), [
    (tf.float32, 40, TypeError, "takes float16 or bfloat16, got float32"),
    (tf.float16, None, ValueError, "needs a static batch and length, got"),
])  # fmt: skip
def test_fused_attention_says_what_it_cannot_do(dtype, length, error, message):
    spec = tf.TensorSpec([2, length, 3, 32], dtype)
    compiled = tf.function(lambda x: attend(x, x, x, tf.ones((2, 40), tf.int32), fused=True), autograph=False)
    with pytest.raises(error, match=message):
        compiled.get_concrete_function(spec)
