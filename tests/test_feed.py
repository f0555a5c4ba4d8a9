"""Batches on their way to the device: the same numbers, ahead of whoever uses them, by a thread that ends."""

import threading

import numpy as np
import pytest
import tensorflow as tf
from data_kit import dataset, example, letters

from configs.errors import UserError
from data import batches, feed
from data.features import FeatureOptions, featurise
from train.compiled import ByLayout


@pytest.fixture
def features(tmp_path):
    texts = ["ab" * n for n in range(1, 15)]
    return featurise(dataset(*(example(t, t) for t in texts)), letters(tmp_path), FeatureOptions(24, 6, 4))


def test_prefetched_batches_are_the_numpy_batches_in_order(features):
    plan = batches.plan(features.length, 4, batches.edges(features.length, multiple=8, window=24))
    expected = list(batches.batches(features, plan, first_step=1))
    got = list(feed.prefetched(batches.batches(features, plan, first_step=1), ahead=2))
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape("token_ids") == b["token_ids"].shape
        same(a.apart(), b)


def test_what_is_uploaded_together_is_the_same_bits_of_the_same_types():
    random = np.random.default_rng(0)
    awkward = np.array([0x7FA00000, 0xFFC00001, 0x80000000, 0x7F800000, 1], np.uint32)  # as floats: NaNs, -0, inf
    given = [
        {"ids": awkward.view(np.int32), "empty": np.zeros((0, 3), np.int32), "x": awkward.view(np.float32)},
        {"ids": random.integers(-(2**31), 2**31 - 1, (4, 7), dtype=np.int32).T, "half": np.ones((3, 5), np.float16)},
        {"one": np.array(3, np.int32), "many": np.arange(3, dtype=np.int64)},
    ]
    found = feed.unpacked(feed.uploaded(given))
    for packed, arrays in zip(found, given, strict=True):
        same(packed.apart(), arrays)
    same(tf.function(lambda numbers: found[0].layout.apart(numbers), jit_compile=True)(found[0].numbers), given[0])


def same(tensors: dict, arrays: dict) -> None:
    """Assert that both are the same bits of the same types."""
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        got = tensors[name].numpy()
        assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


def test_batches_of_one_shape_have_one_layout_and_others_another():
    def layout(rows: int, kind: type) -> feed.Layout:
        return feed.uploaded([{"x": np.zeros((rows, 2), kind), "y": np.zeros(rows, np.float32)}]).layouts[0]

    assert layout(3, np.int32) == layout(3, np.int32)
    assert len({layout(3, np.int32), layout(4, np.int32), layout(3, np.float32), layout(3, np.float16)}) == 4


def test_a_batch_that_is_tensors_already_goes_as_it_is():
    given = {"x": tf.ones((2, 3)), "n": tf.constant(3)}
    packed = feed.Packed.of(given)
    assert packed.apart() == given
    assert packed.shape("x") == (2, 3)
    assert feed.Packed.of(packed) is packed


def test_the_thread_beside_copies_and_never_computes(monkeypatch):
    threads = set()
    for name in ("split", "reshape", "bitcast"):
        usual = getattr(tf, name)
        monkeypatch.setattr(
            tf, name, lambda *given, usual=usual: (threads.add(threading.current_thread().name), usual(*given))[1]
        )
    stream = feed.prefetched(iter([{"x": np.ones((2, 3), np.int32)}] * 5), ahead=4)
    assert [batch.apart()["x"].shape for batch in stream] == [(2, 3)] * 5
    assert threads == {threading.current_thread().name}


def test_parcels_grow_to_half_of_what_is_made_ahead_and_heavy_batches_go_alone():
    def some(numbers, count):
        return iter([{"x": np.zeros(numbers, np.float32)}] * count)

    assert [len(parcel) for parcel in feed.parcels(some(1, 23), 16)] == [4, 8, 8, 3]
    assert [len(parcel) for parcel in feed.parcels(some(1, 99), feed.AHEAD)] == [4, 8, 16, 32, 32, 7]
    assert [len(parcel) for parcel in feed.parcels(some(1, 3), 1)] == [1, 1, 1]
    assert [len(parcel) for parcel in feed.parcels(some(feed.PARCEL_BYTES // 4, 2), 16)] == [1, 1]
    assert [len(parcel) for parcel in feed.parcels(some(feed.PARCEL_BYTES // 12, 4), 16)] == [4]


def test_an_error_in_the_making_of_a_batch_is_raised_where_the_batch_is_wanted():

    def broken():
        yield {"x": np.ones(2, np.float32)}
        raise UserError("the second batch is broken")

    stream = feed.prefetched(broken())
    np.testing.assert_array_equal(next(stream).apart()["x"], [1, 1])
    with pytest.raises(UserError, match="second batch"):
        next(stream)


def test_nobody_goes_on_making_batches_that_nobody_wants():
    made = []

    def endless():
        while True:
            made.append(len(made))
            yield {"x": np.zeros(1, np.float32)}

    stream = feed.prefetched(endless(), ahead=3)
    next(stream)
    stream.close()
    count = len(made)
    assert count <= 6
    assert "batches" not in {thread.name for thread in threading.enumerate()}
    assert len(made) == count


# A size for which a CPU works on every batch for a moment, and one for a GPU: it is behind all along.
@pytest.mark.parametrize(("width", "count"), [(128, 40), pytest.param(4096, 400, marks=pytest.mark.gpu)])
def test_whoever_is_behind_gets_every_batch_as_it_was_made(width, count):
    random = np.random.default_rng(0)
    lengths = random.choice([8, 16, 24, 40], count)
    given = [
        {
            "ids": random.integers(-(2**31), 2**31 - 1, (4, length), dtype=np.int32),
            "weight": random.standard_normal(4).astype(np.float32),
        }
        for length in lengths
    ]
    square = tf.random.stateless_normal((width, width), [1, 2]) / width

    def late(batch: dict) -> dict:
        """The batch, and a number that depends on two products."""
        return batch | {"busy": tf.reduce_sum(square @ (square + batch["weight"][0]))}

    call = ByLayout(late, jit=True)
    found = [call(batch) for batch in feed.prefetched(iter(given))]
    assert len(call.made) == len(set(lengths))
    for tensors, arrays in zip(found, given, strict=True):
        assert np.isfinite(tensors.pop("busy").numpy())
        same(tensors, arrays)
